//! `etcdctl`: etcd's command line for the store, with its verbs, forms of output and exit codes.
//!
//! `ETCDCTL_API=2` asks for the verbs of the v2 API, as with etcd 3.4.

mod channel;
mod endpoint;
mod flags;
mod keys;
mod lease;
mod members;
mod print;
mod snapshot;
mod text;
mod turns;
pub(crate) mod v2;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use orlop_store::server::ETCD_VERSION;

use channel::{Client, Target, TlsFlags};
use flags::{Flag, Given, Until};
use print::{Format, Printer, say};

/// Flags that all commands have. In the environment they are `ETCDCTL_` and the name in capitals.
const GLOBAL: &[Flag] = &[
    Flag::value(
        "endpoints",
        "127.0.0.1:2379",
        "where the store is, with commas between",
    ),
    Flag::value("write-out", "simple", "fields, json, simple or table").short('w'),
    Flag::switch("hex", "keys and values as hexadecimal digits"),
    Flag::value("cacert", "", "authority of the servers' certificates, PEM"),
    Flag::value("cert", "", "certificate of this client, PEM"),
    Flag::value("key", "", "its private key, PEM"),
    Flag::switch("insecure-skip-tls-verify", "take any certificate"),
    Flag::value("dial-timeout", "2s", "what a connection may take"),
    Flag::value("command-timeout", "5s", "what a short command may take"),
    Flag::value(
        "keepalive-time",
        "2s",
        "silence after which a server is asked",
    ),
    Flag::value(
        "keepalive-timeout",
        "6s",
        "silence after which it is given up",
    ),
    Flag::value(
        "insecure-transport",
        "true",
        "accepted; http:// and https:// decide",
    ),
    Flag::value(
        "insecure-discovery",
        "true",
        "accepted; nothing is discovered",
    ),
    Flag::value("discovery-srv", "", "not supported").short('d'),
    Flag::value("discovery-srv-name", "", "not supported"),
    Flag::value("user", "", "not supported: the store has no users"),
    Flag::value("password", "", "not supported: the store has no users"),
    Flag::switch("debug", "not supported"),
    Flag::switch("help", "print the verbs and flags").short('h'),
];
/// Flags that would deceive if they did nothing.
const REFUSED: [&str; 5] = [
    "discovery-srv",
    "discovery-srv-name",
    "user",
    "password",
    "debug",
];

/// A verb, of one word or two.
struct Verb {
    words: &'static [&'static str],
    usage: &'static str,
    summary: &'static str,
    flags: &'static [Flag],
    run: fn(&Call) -> Outcome,
}

const fn verb(
    words: &'static [&'static str],
    usage: &'static str,
    summary: &'static str,
    flags: &'static [Flag],
    run: fn(&Call) -> Outcome,
) -> Verb {
    Verb {
        words,
        usage,
        summary,
        flags,
        run,
    }
}

/// All verbs of the v3 API.
#[rustfmt::skip]
const VERBS: &[Verb] = &[
    verb(&["get"], "KEY [END]", "a key, or a range of keys", keys::GET, keys::get),
    verb(&["put"], "KEY [VALUE]", "set a key; the value may come from standard input", keys::PUT, keys::put),
    verb(&["del"], "KEY [END]", "delete a key, or a range of keys", keys::DEL, keys::delete),
    verb(&["txn"], "", "several requests at once, from standard input", keys::TXN, keys::txn),
    verb(&["watch"], "KEY [END] [-- PROGRAM…]", "events as they come", watch::WATCH, watch::watch),
    verb(&["lease", "grant"], "TTL", "make a lease", &[], lease::grant),
    verb(&["lease", "revoke"], "LEASE", "end a lease and its keys", &[], lease::revoke),
    verb(&["lease", "timetolive"], "LEASE", "how long a lease lives", lease::TIMETOLIVE, lease::time_to_live),
    verb(&["lease", "list"], "", "all leases", &[], lease::list),
    verb(&["lease", "keep-alive"], "LEASE", "renew a lease", lease::KEEP_ALIVE, lease::keep_alive),
    verb(&["member", "add"], "NAME", "add a member", members::ADD, members::add),
    verb(&["member", "remove"], "MEMBER", "remove a member", &[], members::remove),
    verb(&["member", "update"], "MEMBER", "change where a member is", members::UPDATE, members::update),
    verb(&["member", "list"], "", "all members", &[], members::list),
    verb(&["member", "promote"], "MEMBER", "give a learner its vote", &[], members::promote),
    verb(&["endpoint", "health"], "", "whether the endpoints take requests", endpoint::ENDPOINT, endpoint::health),
    verb(&["endpoint", "status"], "", "what the endpoints say of themselves", endpoint::ENDPOINT, endpoint::status),
    verb(&["endpoint", "hashkv"], "", "the endpoints' checksums of the keyspace", endpoint::HASHKV, endpoint::hash_kv),
    verb(&["compaction"], "REVISION", "give up what is older", keys::COMPACTION, keys::compaction),
    verb(&["defrag"], "", "nothing, as the store has free space used again", endpoint::DEFRAG, endpoint::defrag),
    verb(&["alarm", "list"], "", "all alarms", &[], members::alarm_list),
    verb(&["alarm", "disarm"], "", "clear all alarms", &[], members::alarm_disarm),
    verb(&["move-leader"], "MEMBER", "let another member lead", &[], members::move_leader),
    verb(&["snapshot", "save"], "FILE", "write the whole state to a file", &[], snapshot::save),
    verb(&["snapshot", "status"], "FILE", "what a snapshot holds", &[], snapshot::status),
    verb(&["snapshot", "restore"], "FILE", "make the data of a new cluster from a snapshot", snapshot::RESTORE, snapshot::restore),
    verb(&["lock"], "NAME [PROGRAM…]", "hold a name that one at a time holds", turns::LOCK, turns::lock),
    verb(&["elect"], "NAME [VALUE]", "stand for a name, or tell who leads", turns::ELECT, turns::elect),
    verb(&["version"], "", "print the version", &[], version),
    verb(&["help"], "", "print this list", &[], help),
];

/// Verbs of etcd's that are not here, and why.
const MISSING: &[(&str, &str)] = &[
    ("auth", "the store has no users"),
    ("user", "the store has no users"),
    ("role", "the store has no users"),
    ("check", "measurements of load are not supported"),
    ("make-mirror", "mirrors are not supported"),
    ("migrate", "both APIs see the same keys"),
];

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) message: String,
    /// The message stands for itself, without the heading of errors.
    plain: bool,
}

type Outcome = Result<(), Failure>;

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            plain: false,
        }
    }

    /// With a message that stands for itself, or none.
    fn plain(code: u8, message: impl Into<String>) -> Self {
        Self {
            plain: true,
            ..Self::new(code, message)
        }
    }

    /// Says it behind `heading`, and gives its exit code.
    fn end(self, heading: &str) -> ExitCode {
        match (self.plain, self.message.as_str()) {
            (true, "") => {}
            (true, message) => eprintln!("{message}"),
            (false, message) => eprintln!("{heading}{message}"),
        }
        ExitCode::from(self.code)
    }
}

/// A verb with all that was given to it.
#[derive(Clone)]
struct Call {
    given: Given,
    client: Client,
    tls: TlsFlags,
    runtime: Rc<tokio::runtime::Runtime>,
}

impl Call {
    fn new(given: Given) -> Result<Self, Failure> {
        if let Some(name) = REFUSED.into_iter().find(|name| given.has(name)) {
            return Err(Failure::bad_arguments(format!("--{name} is not supported")));
        }
        let path = |name| Some(given.get(name)).filter(|p| !p.is_empty());
        for name in ["cert", "key", "cacert"] {
            if given.has(name) && path(name).is_none() {
                return Err(Failure::bad_arguments(format!(
                    "empty string is passed to --{name} option"
                )));
            }
        }
        // Nothing is done when it could not be told.
        format(&given)?;
        let tls = TlsFlags {
            authority: path("cacert").map(PathBuf::from),
            certificate: path("cert").map(PathBuf::from),
            key: path("key").map(PathBuf::from),
            unverified: given.is_set("insecure-skip-tls-verify"),
        };
        let targets = given
            .get("endpoints")
            .split(',')
            .map(|endpoint| target(endpoint, &tls))
            .collect::<Result<_, _>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| Failure::new(1, format!("start the runtime: {err}")))?;
        Ok(Self {
            client: Client {
                targets,
                timeout: given.duration("command-timeout")?,
                dial_timeout: given.duration("dial-timeout")?,
                keep_alive: (
                    given.duration("keepalive-time")?,
                    given.duration("keepalive-timeout")?,
                ),
            },
            tls,
            given,
            runtime: Rc::new(runtime),
        })
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Asks within the time of a command.
    fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(tonic::transport::Channel) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Failure> {
        self.run(self.client.ask(ask))
            .map_err(|err| Failure::new(1, err))
    }

    fn printer(&self) -> Result<Printer, Failure> {
        Ok(Printer {
            format: format(&self.given)?,
            hex: self.given.is_set("hex"),
            value_only: false,
        })
    }

    /// An endpoint with this command's certificates.
    fn target(&self, endpoint: &str) -> Result<Arc<Target>, Failure> {
        target(endpoint, &self.tls)
    }
}

fn format(given: &Given) -> Result<Format, Failure> {
    match given.get("write-out") {
        "simple" => Ok(Format::Simple),
        "json" => Ok(Format::Json),
        "fields" => Ok(Format::Fields),
        "table" => Ok(Format::Table),
        _ => Err(Failure::new(4, "unsupported output format")),
    }
}

fn target(endpoint: &str, tls: &TlsFlags) -> Result<Arc<Target>, Failure> {
    Target::new(endpoint, tls, b"h2")
        .map(Arc::new)
        .map_err(Failure::bad_arguments)
}

/// An id of up to 64 bits.
fn hex_id(word: &str) -> Option<u64> {
    u64::from_str_radix(word, 16).ok()
}

/// Runs `etcdctl`. Exit codes are etcd's: 1 a failure, 2 no connection, 3 input that is not understood, 4 a form or value that
/// there is not, 5 an interruption, 128 a wrong call.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let words: Vec<String> = args
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match std::env::var("ETCDCTL_API").as_deref() {
        Ok("2") => return v2::run(&words),
        Ok("3" | "") | Err(_) => {}
        Ok(other) => {
            eprintln!("unsupported API version {other}");
            return ExitCode::FAILURE;
        }
    }
    match run_v3(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.end("Error: "),
    }
}

fn environment(name: &str) -> Option<String> {
    let name = format!("ETCDCTL_{}", name.to_uppercase().replace('-', "_"));
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn run_v3(words: &[String]) -> Outcome {
    let wrong = |err: String| Failure::new(1, err);
    // Flags may stand before the verb, and their values must not be taken for it.
    let mut rest = words;
    let mut before = 0;
    while let Some((word, after)) = rest.split_first() {
        if !word.starts_with('-') {
            break;
        }
        let mut count = 1;
        let one = |count: usize| {
            let words = rest.get(..count).unwrap_or_default();
            Given::read(&[GLOBAL], words, Until::End, |_| None)
        };
        if one(1).is_err() {
            one(2).map_err(wrong)?;
            count = 2;
        }
        before += count;
        rest = after.get(count - 1..).unwrap_or_default();
    }
    let (before, rest) = words.split_at(before.min(words.len()));
    let Some(first) = rest.first() else {
        return show_help();
    };
    let (verb, used) = find(first, rest.get(1))?;
    let words: Vec<String> = before
        .iter()
        .chain(rest.get(used..).unwrap_or_default())
        .cloned()
        .collect();
    let given = Given::read(&[GLOBAL, verb.flags], &words, Until::End, environment);
    let given = given.map_err(wrong)?;
    if given.is_set("help") {
        let flags = flags::help(verb.flags);
        let (words, usage) = (verb.words.join(" "), verb.usage);
        let globals = flags::help(GLOBAL);
        say(format!(
            "{words} {usage}: {}\n{flags}\nFlags of all verbs:\n{globals}",
            verb.summary
        ));
        return Ok(());
    }
    (verb.run)(&Call::new(given)?)
}

/// The verb that the words name, by a beginning that only it has, and how many words that took.
fn find(first: &str, second: Option<&String>) -> Result<(&'static Verb, usize), Failure> {
    let unknown = || {
        let why = MISSING.iter().find(|(name, _)| *name == first);
        match why {
            Some((_, why)) => Failure::new(1, format!("{first}: {why}")),
            None => Failure::new(
                1,
                format!("unknown command {first:?} for \"etcdctl\"; `etcdctl help` lists them"),
            ),
        }
    };
    let mut heads: Vec<&str> = VERBS
        .iter()
        .filter_map(|v| v.words.first().copied())
        .collect();
    heads.dedup();
    let head = pick(&heads, first).ok_or_else(unknown)?;
    let of_head: Vec<&'static Verb> = VERBS
        .iter()
        .filter(|v| v.words.first() == Some(&head))
        .collect();
    if let [verb] = of_head.as_slice()
        && verb.words.len() == 1
    {
        return Ok((verb, 1));
    }
    let names: Vec<&str> = of_head
        .iter()
        .filter_map(|v| v.words.get(1).copied())
        .collect();
    let named = second.and_then(|word| pick(&names, word));
    let verb = of_head
        .into_iter()
        .find(|v| named.is_some() && v.words.get(1).copied() == named);
    let verb =
        verb.ok_or_else(|| Failure::new(1, format!("{head} needs one of: {}", names.join(", "))))?;
    Ok((verb, 2))
}

fn pick(names: &[&'static str], word: &str) -> Option<&'static str> {
    if let Some(name) = names.iter().find(|name| **name == word) {
        return Some(name);
    }
    let mut matching = names.iter().filter(|name| name.starts_with(word));
    match (matching.next(), matching.next()) {
        (Some(name), None) => Some(name),
        _ => None,
    }
}

fn version(_: &Call) -> Outcome {
    let api = ETCD_VERSION.rsplit_once('.').map_or("", |(api, _)| api);
    say(format!(
        "etcdctl version: {ETCD_VERSION}\nAPI version: {api}\n"
    ));
    Ok(())
}

fn help(_: &Call) -> Outcome {
    show_help()
}

fn show_help() -> Outcome {
    let mut text = "Usage: etcdctl [FLAG…] VERB [FLAG…] [WORD…]\n\nVerbs (those of the v2 API with ETCDCTL_API=2):\n".to_owned();
    for verb in VERBS {
        let call = format!("{} {}", verb.words.join(" "), verb.usage);
        text += &format!("  {:<32}{}\n", call.trim_end(), verb.summary);
    }
    text += "\nFlags, also as ETCDCTL_NAME in the environment:\n";
    text += &flags::help(GLOBAL);
    say(text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_found_by_their_words() {
        let found = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            find(&words[0], words.get(1)).map(|(verb, used)| (verb.words.join(" "), used))
        };
        assert_eq!(found(&["get", "a"]).expect("a verb"), ("get".into(), 1));
        assert_eq!(
            found(&["member", "list"]).expect("a verb"),
            ("member list".into(), 2)
        );
        assert_eq!(
            found(&["lease", "keep"]).expect("a verb"),
            ("lease keep-alive".into(), 2)
        );
        for wrong in [
            &["nosuch"][..],
            &["lease"],
            &["lease", "x"],
            &["user", "list"],
        ] {
            assert!(found(wrong).is_err(), "{wrong:?}");
        }
    }
}
