//! What flags and environment say: how the member is served.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use orlop_agent::connect::TlsFlags;
use orlop_store::node::{AutoCompaction, Options, TICK};
use orlop_store::server::{self, Bootstrap, Joining, PEER_PORT, Settings, Tls, TlsFiles, Token};

use super::Discovery;
use super::addresses::{listening, seed_url};
use super::flags::{self, Given, HOSTNAME, Read};

/// What was said on the command line, or why it cannot be.
pub(super) enum Parsed {
    Run(Box<Start>),
    Help,
    Version,
}

/// What is to be run.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) settings: Settings,
    pub(super) discovery: Option<Discovery>,
    pub(super) level: LevelFilter,
    /// Whether all of the state is looked at before it is used.
    pub(super) looks: bool,
}

/// Reads the command line, and what the environment says for it.
pub(super) fn parse(
    args: &[OsString],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Parsed, String> {
    let given = match Given::read(args, &environment)? {
        Read::Flags(given) => given,
        Read::Help => return Ok(Parsed::Help),
        Read::Version => return Ok(Parsed::Version),
    };
    let value = |name: &str| given.value(name);
    let list = |name: &str| given.list(name);
    let given = |name: &str| given.given(name);
    let is_true = |name: &str| given(name).as_deref().and_then(flags::boolean) == Some(true);
    let level = level(&value("log-level"), is_true("debug"))?;
    let name = match (given("token"), given("name")) {
        (Some(_), None) => environment(HOSTNAME).unwrap_or_else(|| value("name")),
        _ => value("name"),
    };
    let data_dir = Some(value("data-dir"))
        .filter(|d| !d.is_empty())
        .unwrap_or_else(|| format!("{name}.etcd"));
    let tls = certificates(&given)?;
    let (listen, tls_listen) = listening("listen-client-urls", &list("listen-client-urls"))?;
    if !tls_listen.is_empty() && tls.clients.is_none() {
        return Err("-listen-client-urls: https:// needs -cert-file and -key-file".into());
    }
    let joining = joining(&given, &list("join"), tls.peers.is_some())?;
    let plain = joining
        .as_ref()
        .is_some_and(|j| j.seeds.iter().any(|url| url.starts_with("http://")));
    if plain && tls.peers.is_some() {
        return Err("-join: members that have -peer-cert-file are reached at https:// URLs".into());
    }
    let peer_listen = match given("listen-peer-urls") {
        // Whoever writes http:// wants members to talk without TLS.
        None if plain || joining.is_some() && tls.peers.is_some() => {
            vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, PEER_PORT))]
        }
        _ => match listening("listen-peer-urls", &list("listen-peer-urls"))? {
            (_, with) if !with.is_empty() && tls.peers.is_none() => {
                return Err("-listen-peer-urls: https:// needs -peer-cert-file".into());
            }
            (plain, with) => [plain, with].concat(),
        },
    };
    let peer_urls = match (&joining, given("initial-advertise-peer-urls")) {
        // It finds out where it is reached.
        (Some(_), None) => Vec::new(),
        _ => list("initial-advertise-peer-urls"),
    };
    let bootstrap = match joining {
        Some(_) if given("initial-cluster").is_some() => {
            return Err("-token and -initial-cluster exclude each other".into());
        }
        Some(joining) => Bootstrap::Join(joining),
        None => bootstrap(
            &list("initial-cluster"),
            &value("initial-cluster-state"),
            value("initial-cluster-token"),
        )?,
    };
    let quota = value("quota-backend-bytes");
    let quota: i64 = quota
        .parse()
        .map_err(|_| format!("invalid value {quota:?} for flag -quota-backend-bytes"))?;
    let mut options = Options {
        auto_compaction: compaction(
            &value("auto-compaction-mode"),
            &value("auto-compaction-retention"),
        )?,
        ..Options::default()
    };
    (options.heartbeat_ticks, options.election_ticks) =
        timing(&value("heartbeat-interval"), &value("election-timeout"))?;
    let kept = value("snapshot-count");
    match kept.parse() {
        Ok(0) => {}
        Ok(entries) => options.keep_entries = entries,
        Err(_) => return Err(format!("invalid value {kept:?} for flag -snapshot-count")),
    }
    match quota {
        0 => {}
        // etcd takes a negative one for none.
        ..0 => options.quota_bytes = u64::MAX,
        1.. => options.quota_bytes = quota.unsigned_abs(),
    }
    let settings = Settings {
        name,
        data_dir: PathBuf::from(data_dir),
        listen,
        client_urls: list("advertise-client-urls"),
        peer_listen,
        peer_urls,
        bootstrap,
        tls: Tls {
            listen: tls_listen,
            ..tls
        },
        options,
    };
    if let Some(url) = settings.bad_peer_urls().first() {
        return Err(format!(
            "-initial-cluster: members are reached at http://IP:PORT, not at {url:?}"
        ));
    }
    let falls_back = match value("discovery-fallback").as_str() {
        "proxy" | "" => true,
        "exit" => false,
        other => {
            return Err(format!(
                "invalid value {other:?} for flag -discovery-fallback: proxy or exit"
            ));
        }
    };
    let discovery = given("discovery").map(|url| Discovery {
        url,
        falls_back,
        tls: TlsFlags {
            authority: given("trusted-ca-file").map(PathBuf::from),
            certificate: given("cert-file").map(PathBuf::from),
            key: given("key-file").map(PathBuf::from),
            unverified: false,
        },
    });
    if discovery.is_some() {
        if let Some(other) = ["token", "initial-cluster"]
            .into_iter()
            .find(|n| given(n).is_some())
        {
            return Err(format!("-discovery and -{other} exclude each other"));
        }
        if given("initial-advertise-peer-urls").is_none() {
            return Err(
                "-discovery needs -initial-advertise-peer-urls, where the others reach this member"
                    .into(),
            );
        }
        if let Some(url) = settings
            .peer_urls
            .iter()
            .find(|u| server::address_of(u).is_none())
        {
            return Err(format!(
                "-initial-advertise-peer-urls: members are reached at http://IP:PORT, not at {url:?}"
            ));
        }
    }
    Ok(Parsed::Run(Box::new(Start {
        settings,
        discovery,
        level,
        looks: is_true("experimental-initial-corrupt-check"),
    })))
}

/// What is told on standard error.
fn level(name: &str, debug: bool) -> Result<LevelFilter, String> {
    match name {
        _ if debug => Ok(LevelFilter::Debug),
        "debug" => Ok(LevelFilter::Debug),
        "info" | "" => Ok(LevelFilter::Info),
        "warn" | "warning" => Ok(LevelFilter::Warn),
        // What ends the member is told in any case.
        "error" | "panic" | "fatal" => Ok(LevelFilter::Error),
        other => Err(format!(
            "invalid value {other:?} for flag -log-level: debug, info, warn or error"
        )),
    }
}

/// Heartbeats and elections, in ticks of 100 ms, within etcd's bounds.
fn timing(heartbeat: &str, election: &str) -> Result<(usize, usize), String> {
    const TICK_MS: usize = TICK.as_millis() as usize;
    const MAX_ELECTION_MS: usize = 50_000;
    let ticks = |name: &str, text: &str| {
        let ms = text.parse().ok();
        ms.filter(|ms: &usize| *ms > 0 && ms.is_multiple_of(TICK_MS))
            .map(|ms| ms / TICK_MS)
            .ok_or_else(|| format!("-{name} takes hundreds of milliseconds, not {text:?}"))
    };
    let heartbeats = ticks("heartbeat-interval", heartbeat)?;
    let elections = ticks("election-timeout", election)?;
    if elections < heartbeats.saturating_mul(5) {
        return Err("-election-timeout must be at least 5 times -heartbeat-interval".into());
    }
    if elections > MAX_ELECTION_MS / TICK_MS {
        return Err(format!(
            "-election-timeout must be at most {MAX_ELECTION_MS}"
        ));
    }
    Ok((heartbeats, elections))
}

/// How the member finds its cluster, if there is a token.
fn joining(
    given: &impl Fn(&str) -> Option<String>,
    seeds: &[String],
    tls: bool,
) -> Result<Option<Joining>, String> {
    let Some(token) = given("token").and_then(Token::new) else {
        return match seeds.is_empty() {
            true => Ok(None),
            false => Err("-join needs a -token".into()),
        };
    };
    let seeds = seeds
        .iter()
        .map(|seed| seed_url(seed, tls))
        .collect::<Result<Vec<_>, _>>()?;
    let founds = given("bootstrap").as_deref().and_then(flags::boolean);
    let machine =
        given("machine").ok_or("-token needs -machine, for there is no /etc/machine-id")?;
    Ok(Some(Joining {
        token,
        seeds,
        founds,
        machine,
    }))
}

fn compaction(mode: &str, retention: &str) -> Result<AutoCompaction, String> {
    let bad = || format!("invalid value {retention:?} for flag -auto-compaction-retention");
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    match mode {
        "revision" => Ok(match number(retention)? {
            0 => AutoCompaction::Never,
            count => AutoCompaction::Count(count.into()),
        }),
        "periodic" => {
            let unit = retention.trim_start_matches(|c: char| c.is_ascii_digit());
            let seconds = match unit {
                "" | "h" | "h0m0s" => 3600,
                "m" | "m0s" => 60,
                "s" => 1,
                _ => return Err(bad()),
            };
            let count = number(retention.strip_suffix(unit).unwrap_or(retention))?;
            Ok(match count {
                0 => AutoCompaction::Never,
                count => AutoCompaction::Age(Duration::from_secs(u64::from(count) * seconds)),
            })
        }
        other => Err(format!(
            "invalid value {other:?} for flag -auto-compaction-mode: periodic or revision"
        )),
    }
}

/// The certificates that are named.
fn certificates(given: &impl Fn(&str) -> Option<String>) -> Result<Tls, String> {
    let pair = |certificate: &str, key: &str, authority: Option<String>| match (
        given(certificate),
        given(key),
    ) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
            certificate: certificate.into(),
            key: key.into(),
            authority: authority.map(PathBuf::from),
        })),
        (None, None) => Ok(None),
        _ => Err(format!("-{certificate} and -{key} belong together")),
    };
    let authority = given("trusted-ca-file");
    let asked = given("client-cert-auth");
    let authority = match asked.as_deref().and_then(flags::boolean) {
        Some(true) if authority.is_none() => {
            return Err("-client-cert-auth needs -trusted-ca-file".into());
        }
        Some(false) => None,
        _ => authority,
    };
    let peers_asked = given("peer-client-cert-auth");
    if peers_asked.as_deref().and_then(flags::boolean) == Some(false)
        && given("peer-cert-file").is_some()
    {
        return Err("-peer-client-cert-auth: with -peer-cert-file members always need one".into());
    }
    Ok(Tls {
        listen: Vec::new(),
        clients: pair("cert-file", "key-file", authority)?,
        peers: pair(
            "peer-cert-file",
            "peer-key-file",
            given("peer-trusted-ca-file"),
        )?,
    })
}

/// A name may stand several times, once for each URL.
fn bootstrap(members: &[String], state: &str, token: String) -> Result<Bootstrap, String> {
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for member in members {
        let (name, url) = member
            .split_once('=')
            .ok_or_else(|| format!("-initial-cluster: {member:?} is not NAME=URL"))?;
        match all.iter_mut().find(|(n, _)| n == name) {
            Some((_, urls)) => urls.push(url.to_owned()),
            None => all.push((name.to_owned(), vec![url.to_owned()])),
        }
    }
    match state {
        "new" if all.is_empty() => Ok(Bootstrap::Alone),
        "new" => Ok(Bootstrap::New {
            members: all,
            token,
        }),
        "existing" => Ok(Bootstrap::Existing { members: all }),
        other => Err(format!(
            "invalid value {other:?} for flag -initial-cluster-state: new or existing"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::flags::ADDRESS;

    fn parsed(args: &[&str]) -> Result<Settings, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let environment = |name: &str| match name {
            HOSTNAME => Some("host".to_owned()),
            ADDRESS => Some("10.0.0.7".to_owned()),
            _ => None,
        };
        match parse(&args, environment)? {
            Parsed::Run(start) => Ok(start.settings),
            _ => Err("not a run".into()),
        }
    }

    #[test]
    fn flags_come_with_one_dash_or_two_and_with_or_without_an_equals_sign() {
        let settings = parsed(&[
            "-name",
            "a",
            "--data-dir=/x",
            "--listen-client-urls",
            "http://127.0.0.1:1,http://localhost:2",
            "-debug",
            "-pre-vote=T",
            "-enable-pprof=false",
        ]);
        let settings = settings.expect("all of it is known");
        assert_eq!(settings.name, "a");
        assert_eq!(settings.data_dir, PathBuf::from("/x"));
        assert_eq!(
            settings.listen,
            [
                "127.0.0.1:1".parse().expect("an address"),
                "127.0.0.1:2".parse().expect("an address")
            ]
        );
    }

    #[test]
    fn without_flags_it_listens_on_loopback_and_names_its_directory_as_etcd_does() {
        let settings = parsed(&[]).expect("the defaults are good");
        assert_eq!(settings.data_dir, PathBuf::from("default.etcd"));
        assert!(settings.listen.iter().all(|a| a.ip().is_loopback()));
    }

    #[test]
    fn old_revisions_are_given_up_as_etcds_flags_say() {
        let compaction = |args: &[&str]| parsed(args).map(|s| s.options.auto_compaction);
        let hours = |n: u64| Ok(AutoCompaction::Age(Duration::from_secs(n * 3600)));
        assert_eq!(compaction(&[]), hours(1));
        assert_eq!(compaction(&["--auto-compaction-retention=5"]), hours(5));
        assert_eq!(
            compaction(&["--auto-compaction-retention=90s"]),
            Ok(AutoCompaction::Age(Duration::from_secs(90)))
        );
        assert_eq!(
            compaction(&["--auto-compaction-retention=0"]),
            Ok(AutoCompaction::Never)
        );
        let mode = "--auto-compaction-mode=revision";
        assert_eq!(
            compaction(&[mode, "--auto-compaction-retention=1000"]),
            Ok(AutoCompaction::Count(1000))
        );
        assert!(compaction(&[mode, "--auto-compaction-retention=1h"]).is_err());
    }

    #[test]
    fn coreoss_placeholders_stand_for_the_machines_address() {
        let settings = parsed(&[
            "--advertise-client-urls=http://$public_ipv4:2379",
            "--listen-peer-urls=http://$private_ipv4:2380,http://$private_ipv4:7001",
        ])
        .expect("it has an address");
        assert_eq!(settings.client_urls, ["http://10.0.0.7:2379"]);
        assert_eq!(settings.peer_listen[1], ([10, 0, 0, 7], 7001).into());
    }

    #[test]
    fn a_token_and_addresses_are_enough_to_join() {
        let settings = parsed(&[
            "--token=s3cret",
            "--machine=m1",
            "--join=http://10.0.0.1,http://10.0.0.2:99",
        ])
        .expect("it is all that is needed");
        assert_eq!(settings.name, "host");
        assert_eq!(settings.peer_urls, [""; 0], "it finds out where it is");
        assert!(settings.listen.iter().all(|a| a.ip().is_loopback()));
        assert!(settings.peer_listen.iter().all(|a| a.ip().is_unspecified()));
        let joining = settings.bootstrap.joining().expect("there is a token");
        assert_eq!(
            joining.seeds,
            ["http://10.0.0.1:2380", "http://10.0.0.2:99"]
        );
        assert_eq!((joining.founds, joining.machine.as_str()), (None, "m1"));
        assert!(!format!("{settings:?}").contains("s3cret"));
    }

    #[test]
    fn members_with_certificates_join_by_addresses_alone() {
        let files = [
            "--peer-cert-file=/c",
            "--peer-key-file=/k",
            "--peer-trusted-ca-file=/a",
        ];
        let args = [&["--token=t", "--machine=m", "--join=10.0.0.1"][..], &files].concat();
        let settings = parsed(&args).expect("it is all that is needed");
        let joining = settings.bootstrap.joining().expect("there is a token");
        assert_eq!(joining.seeds, ["https://10.0.0.1:2380"]);
        assert!(settings.peer_listen.iter().all(|a| a.ip().is_unspecified()));
        let peers = settings.tls.peers.expect("there are certificates");
        assert_eq!(peers.authority, Some(PathBuf::from("/a")));
    }

    #[test]
    fn times_and_kept_entries_are_heeded() {
        let args = [
            "--heartbeat-interval=500",
            "--election-timeout=5000",
            "--snapshot-count=7",
        ];
        let options = parsed(&args).expect("they are fine").options;
        assert_eq!((options.heartbeat_ticks, options.election_ticks), (5, 50));
        assert_eq!(options.keep_entries, 7);
        let options = parsed(&["--max-txn-ops=128", "--pre-vote"])
            .expect("that is so")
            .options;
        assert_eq!((options.heartbeat_ticks, options.election_ticks), (1, 10));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (args, part) in [
            (&["--no-such-flag"][..], "not defined: -no-such-flag"),
            (&["--name"], "needs an argument: -name"),
            (&["word"], "\"word\" is not a flag"),
            (
                &["--listen-client-urls", "https://127.0.0.1:1"],
                "-cert-file",
            ),
            (&["--cert-file=/c"], "-key-file"),
            (
                &["--force-new-cluster"],
                "-force-new-cluster is not supported",
            ),
            (&["--wal-dir=/w"], "-wal-dir is not supported"),
            (&["--client-cert-auth"], "-trusted-ca-file"),
            (
                &["--token=x", "--machine=m", "--join=https://10.0.0.1"],
                "-peer-cert-file",
            ),
            (
                &["--listen-client-urls", "http://example.org:1"],
                "http://example.org:1",
            ),
            (&["--quota-backend-bytes=many"], "many"),
            (&["--heartbeat-interval=50"], "-heartbeat-interval"),
            (&["--election-timeout=soon"], "soon"),
            (&["--election-timeout=400"], "5 times"),
            (&["--election-timeout=60000"], "50000"),
            (&["--snapshot-count=x"], "-snapshot-count"),
            (&["--max-txn-ops=256"], "128 is all there is"),
            (&["--pre-vote=false"], "-pre-vote: true is all there is"),
            (&["--enable-v2=no"], "invalid boolean value \"no\""),
            (&["--enable-v2=false"], "true is all there is"),
            (&["--logger=json"], "zap or capnslog is all there is"),
            (&["--log-outputs=/var/log/etcd"], "default or stderr"),
            (&["--log-level=loud"], "loud"),
            (&["--auto-tls"], "-auto-tls is not supported"),
            (&["--max-wals=0"], "5 is all there is"),
            (
                &[
                    "--peer-client-cert-auth=false",
                    "--peer-cert-file=/c",
                    "--peer-key-file=/k",
                ],
                "always need one",
            ),
            (
                &["--listen-metrics-urls=http://127.0.0.1:1"],
                "not supported",
            ),
            (
                &["--initial-cluster", "default=http://a:1,other=http://b:1"],
                "http://a:1",
            ),
            (&["--initial-cluster", "http://127.0.0.1:1"], "NAME=URL"),
            (&["--initial-cluster-state=old"], "\"old\""),
            (&["--join=http://10.0.0.1"], "-join needs a -token"),
            (
                &["--token=x", "--machine=m", "--join=m1.example.org"],
                "m1.example.org",
            ),
            (&["--token=x", "--join=http://10.0.0.1"], "-machine"),
            (
                &["--discovery=http://a/v2/keys/d"],
                "-initial-advertise-peer-urls",
            ),
            (
                &[
                    "--discovery=http://a/v2/keys/d",
                    "--initial-cluster=default=http://127.0.0.1:2380",
                ],
                "exclude each other",
            ),
            (&["--discovery-fallback=wait"], "proxy or exit"),
        ] {
            let problem = parsed(args).expect_err("it must be refused");
            assert!(problem.contains(part), "{problem:?} should name {part:?}");
        }
    }
}
