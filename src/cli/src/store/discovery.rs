//! The first members of a cluster find one another at a URL (etcd's `--discovery`): keys of the v2 API of any etcd or Orlop
//! store. `URL/_config/size` says how many they are; each writes one key, `NAME=URL` with commas between several, and the
//! first ones by their index are the cluster.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use orlop_agent::connect::{Target, TlsFlags};
use orlop_store::server::{ASIDE, DISCOVERY_FILE, member_id};
use orlop_store::state::STATE_FILE;
use serde_json::Value;

use crate::etcdctl::Failure;
use crate::etcdctl::v2::http::{Answer, Http, escaped, form};

/// Pause before the service is asked again after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// What a connection, and what a question that does not wait, may take.
const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The most members of one cluster.
const MOST: usize = 64;
/// What the API says of a key that is not there, of one that is there, and of an index that is too old.
const NOT_FOUND: u64 = 100;
const EXISTS: u64 = 105;

/// Members and their URLs for peers.
pub(super) type Members = Vec<(String, Vec<String>)>;

/// What a machine is in the cluster at the URL.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One of these.
    Member(Members),
    /// None: these are all that there will be, and clients are passed on to them.
    Proxy(Members),
}

/// Why there is no cluster at the URL.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum DiscoveryError {
    #[error("{0:?} is no discovery URL such as http://10.0.0.1:2379/v2/keys/discovery/TOKEN")]
    Url(String),
    #[error("{0}")]
    Service(String),
    #[error("the size of the cluster is missing: put it at {0}/_config/size")]
    NoSize(String),
    #[error("the size of the cluster is {0:?}, and must be a number from 1 to {MOST}")]
    BadSize(String),
    #[error(
        "the cluster is full: it has its {0} members. Add this one there (etcdctl member add), and start it with --initial-cluster-state=existing"
    )]
    Full(usize),
    #[error("another machine has registered the same peer URLs: {0:?}")]
    Duplicate(String),
    #[error("two members have the name {0:?}")]
    SameName(String),
    #[error("what a member has registered is not NAME=URL: {0:?}")]
    BadMember(String),
    #[error("keep what was found in {path}: {err}")]
    Keep { path: String, err: String },
    #[error("interrupted")]
    Interrupted,
}

/// One that has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registered {
    id: String,
    value: String,
    created: u64,
}

/// The place in the cluster at `url` of the machine with these URLs for peers, once all of its first members have come. What was
/// found is kept in the data directory, and not asked for again. One for which there is no place is a proxy if it `falls_back`.
///
/// # Errors
/// [`DiscoveryError`]. A service that does not answer is asked again for as long as it takes.
pub(super) fn find(
    url: &str,
    tls: &TlsFlags,
    data_dir: &Path,
    name: &str,
    peer_urls: &[String],
    falls_back: bool,
) -> Result<Place, DiscoveryError> {
    let kept = data_dir.join(DISCOVERY_FILE);
    let text = fs::read_to_string(&kept).unwrap_or_default();
    if has_data(data_dir) {
        // It is in a cluster, whichever URL is given now.
        let first = text.lines().next().unwrap_or_default();
        return Ok(Place::Member(unkept(&text, first).unwrap_or_default()));
    }
    let own_id = member_id(peer_urls, url);
    let place = |members: Members| {
        let mut ids = members.iter().map(|(_, urls)| member_id(urls, url));
        match ids.any(|id| id == own_id) {
            true => Ok(Place::Member(members)),
            false if falls_back => Ok(Place::Proxy(members)),
            false => Err(DiscoveryError::Full(members.len())),
        }
    };
    if let Some(Ok(place)) = unkept(&text, url).map(place) {
        return Ok(place);
    }
    let service = Service::new(url, tls)?;
    let own = peer_urls
        .iter()
        .map(|peer| format!("{name}={peer}"))
        .collect::<Vec<_>>()
        .join(",");
    let members = members(&service.wait_for_all(&format!("{own_id:x}"), &own)?)?;
    let place = place(members.clone())?;
    keep(&kept, url, &members).map_err(|err| DiscoveryError::Keep {
        path: kept.display().to_string(),
        err: err.to_string(),
    })?;
    Ok(place)
}

/// Whether there is a member in the directory, or was until its data was found damaged.
fn has_data(data_dir: &Path) -> bool {
    [STATE_FILE, ASIDE]
        .iter()
        .any(|name| data_dir.join(name).exists())
}

/// The members in what was kept, if it was found at the same URL.
fn unkept(text: &str, url: &str) -> Option<Members> {
    let (first, rest) = text.split_once('\n')?;
    let values: Vec<String> = rest.lines().map(str::to_owned).collect();
    (first == url && !values.is_empty())
        .then(|| read_members(&values).ok())
        .flatten()
}

fn keep(path: &Path, url: &str, members: &Members) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    let mut text = format!("{url}\n");
    for (name, urls) in members {
        let pairs: Vec<String> = urls.iter().map(|url| format!("{name}={url}")).collect();
        text.push_str(&format!("{}\n", pairs.join(",")));
    }
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

fn members(all: &[Registered]) -> Result<Members, DiscoveryError> {
    let values: Vec<String> = all.iter().map(|r| r.value.clone()).collect();
    read_members(&values)
}

fn read_members(values: &[String]) -> Result<Members, DiscoveryError> {
    let mut members = Members::new();
    for value in values {
        let bad = || DiscoveryError::BadMember(value.clone());
        let mut of_one: Members = Vec::new();
        for pair in value.split(',') {
            let (name, url) = pair.split_once('=').ok_or_else(bad)?;
            if name.is_empty() || url.is_empty() || value.contains(char::is_control) {
                return Err(bad());
            }
            match of_one.iter_mut().find(|(n, _)| n == name) {
                Some((_, urls)) => urls.push(url.to_owned()),
                None => of_one.push((name.to_owned(), vec![url.to_owned()])),
            }
        }
        for (name, urls) in of_one {
            if members.iter().any(|(n, _)| *n == name) {
                return Err(DiscoveryError::SameName(name));
            }
            members.push((name, urls));
        }
    }
    Ok(members)
}

/// The discovery service.
struct Service {
    url: String,
    http: Http,
    /// The URL's path, without a slash at the end.
    path: String,
}

impl Service {
    fn new(url: &str, tls: &TlsFlags) -> Result<Self, DiscoveryError> {
        let bad = || DiscoveryError::Url(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let (host, path) = rest.split_once('/').ok_or_else(bad)?;
        let path = path.trim_end_matches('/');
        let is_plain = |c: char| c.is_ascii_graphic() && !"?#".contains(c);
        if path.is_empty() || !path.chars().all(is_plain) {
            return Err(bad());
        }
        let service = |why| DiscoveryError::Service(why);
        let port = if scheme == "https" { 443 } else { 80 };
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, p)| p.parse::<u16>().is_ok());
        let endpoint = match has_port {
            true => format!("{scheme}://{host}"),
            false => format!("{scheme}://{host}:{port}"),
        };
        let target = Target::new(&endpoint, tls, b"http/1.1").map_err(service)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| service(format!("start the runtime: {err}")))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            http: Http {
                targets: vec![target],
                runtime,
                timeout: CONNECT_TIME,
                total: ANSWER_TIME,
            },
            path: format!("/{path}"),
        })
    }

    /// Asks until there is an answer; the first failure is told.
    fn ask(
        &self,
        total: Option<Duration>,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<(Answer, Value), DiscoveryError> {
        let mut told = false;
        loop {
            let why = match self.http.request_within(total, method, path, body.clone()) {
                Ok(answer) => match serde_json::from_slice(&answer.body) {
                    Ok(value) if answer.status < 500 => return Ok((answer, value)),
                    _ => format!("status {}, and no answer of the v2 API", answer.status),
                },
                Err(Failure { code: 0, .. }) => return Err(DiscoveryError::Interrupted),
                Err(failure) => failure.message,
            };
            if !std::mem::replace(&mut told, true) {
                log::warn!("the discovery service at {}: {why}; trying again", self.url);
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn get(&self, what: &str) -> Result<(Answer, Value), DiscoveryError> {
        self.ask(
            Some(ANSWER_TIME),
            "GET",
            &format!("{}{what}", self.path),
            None,
        )
    }

    fn refused(&self, answer: &Answer, value: &Value) -> DiscoveryError {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
        DiscoveryError::Service(format!(
            "the discovery service at {} refuses it with status {}: {} {}",
            self.url,
            answer.status,
            text("message"),
            text("cause")
        ))
    }

    fn size(&self) -> Result<usize, DiscoveryError> {
        let (answer, value) = self.get("/_config/size")?;
        if code(&value) == NOT_FOUND {
            return Err(DiscoveryError::NoSize(self.url.clone()));
        }
        let text = value.pointer("/node/value").and_then(Value::as_str);
        let Some(text) = text else {
            return Err(self.refused(&answer, &value));
        };
        let size = text.trim().parse().ok();
        size.filter(|size| (1..=MOST).contains(size))
            .ok_or_else(|| DiscoveryError::BadSize(text.to_owned()))
    }

    /// Those that have registered, the first one first, and the index up to which that holds.
    fn list(&self) -> Result<(Vec<Registered>, u64), DiscoveryError> {
        let (answer, value) = self.get("")?;
        if answer.status >= 300 {
            return Err(self.refused(&answer, &value));
        }
        Ok((registered(&value), answer.index))
    }

    /// The members, once all are there; this machine is one of them if there is a place for it.
    fn wait_for_all(&self, id: &str, own: &str) -> Result<Vec<Registered>, DiscoveryError> {
        let size = self.size()?;
        let (there, _) = self.list()?;
        if is_in_time(&there, id, size) {
            self.register(id, own)?;
        }
        let mut told = 0;
        loop {
            let (mut there, index) = self.list()?;
            if there.len() >= size {
                there.truncate(size);
                log::info!("discovery: all {size} members are there");
                return Ok(there);
            }
            if told < there.len() {
                told = there.len();
                log::info!("discovery: {told} of {size} members are there; waiting for the others");
            }
            let path = format!(
                "{}?wait=true&recursive=true&waitIndex={}",
                self.path,
                index + 1
            );
            let (answer, _) = self.ask(None, "GET", &path, None)?;
            if answer.status >= 300 {
                // The index may be too old by now.
                std::thread::sleep(AGAIN);
            }
        }
    }

    /// Writes this member's key. One that is there from an earlier attempt is as good.
    fn register(&self, id: &str, own: &str) -> Result<(), DiscoveryError> {
        let path = format!("{}/{}?prevExist=false", self.path, escaped(id, b""));
        let body = form(&[("value", own.to_owned())]);
        let kind = "application/x-www-form-urlencoded";
        let (answer, value) = self.ask(Some(ANSWER_TIME), "PUT", &path, Some((kind, body)))?;
        if answer.status < 300 {
            return Ok(());
        }
        if code(&value) != EXISTS {
            return Err(self.refused(&answer, &value));
        }
        let (there, _) = self.list()?;
        match there.into_iter().find(|r| r.id == id) {
            Some(other) if other.value != own => Err(DiscoveryError::Duplicate(other.value)),
            _ => Ok(()),
        }
    }
}

/// Whether a member is one of the first, or can still be.
fn is_in_time(there: &[Registered], id: &str, size: usize) -> bool {
    let place = there.iter().position(|r| r.id == id);
    place.unwrap_or(there.len()) < size
}

fn code(value: &Value) -> u64 {
    let code = value.get("errorCode").and_then(Value::as_u64);
    code.unwrap_or_default()
}

/// The keys below a node, by the order in which they were made.
fn registered(value: &Value) -> Vec<Registered> {
    let nodes = value.pointer("/node/nodes").and_then(Value::as_array);
    let mut all: Vec<Registered> = nodes
        .into_iter()
        .flatten()
        .filter_map(|node| {
            let key = node.get("key")?.as_str()?;
            let id = key.rsplit('/').next()?;
            (id != "_config").then_some(())?;
            Some(Registered {
                id: id.to_owned(),
                value: node.get("value")?.as_str()?.to_owned(),
                created: node.get("createdIndex")?.as_u64()?,
            })
        })
        .collect();
    all.sort_by_key(|r| r.created);
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_ones_to_register_are_the_cluster() {
        let value = json!({"node": {"key": "/d", "dir": true, "nodes": [
            {"key": "/d/_config", "dir": true, "createdIndex": 1},
            {"key": "/d/2", "value": "b=http://b:1", "createdIndex": 9},
            {"key": "/d/1", "value": "a=http://a:1,a=http://a:2", "createdIndex": 7},
            {"key": "/d/dir", "dir": true, "createdIndex": 8},
        ]}});
        let there = registered(&value);
        assert_eq!(
            there.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
            ["1", "2"]
        );
        assert!(is_in_time(&there, "2", 2) && !is_in_time(&there, "2", 1));
        assert!(is_in_time(&there, "3", 3) && !is_in_time(&there, "3", 2));
        let found = members(&there).expect("they are good");
        assert_eq!(found[0].1, ["http://a:1", "http://a:2"]);
    }

    #[test]
    fn members_that_cannot_form_a_cluster_are_named() {
        let read = |values: &[&str]| {
            read_members(&values.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(
            read(&["a=http://a:1", "a=http://b:1"]),
            Err(DiscoveryError::SameName("a".into()))
        );
        for bad in ["", "a", "=http://a:1", "a=", "a=http://a:1,b", "a=b\nc"] {
            assert_eq!(read(&[bad]), Err(DiscoveryError::BadMember(bad.into())));
        }
    }

    #[test]
    fn what_was_found_is_kept_for_its_url_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new").join("discovery");
        let found = vec![
            (
                "a".to_owned(),
                vec!["http://a:1".to_owned(), "http://a:2".to_owned()],
            ),
            ("b".to_owned(), vec!["http://b:1".to_owned()]),
        ];
        keep(&path, "http://d/x", &found).expect("it can be written");
        let text = fs::read_to_string(&path).expect("it is there");
        assert_eq!(unkept(&text, "http://d/x"), Some(found));
        assert_eq!(unkept(&text, "http://d/y"), None);
        assert_eq!(unkept("http://d/x\n", "http://d/x"), None);
    }

    #[test]
    fn a_member_that_has_data_asks_no_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let find = |url: &str| {
            let peers = ["http://127.0.0.1:1".to_owned()];
            let tls = TlsFlags::default();
            super::find(url, &tls, directory.path(), "a", &peers, true)
        };
        fs::write(directory.path().join(STATE_FILE), "").expect("it can be written");
        assert_eq!(find("no URL"), Ok(Place::Member(Members::new())));
        let found = vec![("b".to_owned(), vec!["http://b:1".to_owned()])];
        let path = directory.path().join(DISCOVERY_FILE);
        keep(&path, "http://d/x", &found).expect("it can be written");
        assert_eq!(find("http://d/y"), Ok(Place::Member(found.clone())));
        fs::remove_file(directory.path().join(STATE_FILE)).expect("it is there");
        // It was not one of them, and still is not.
        assert_eq!(find("http://d/x"), Ok(Place::Proxy(found)));
        assert_eq!(find("no URL"), Err(DiscoveryError::Url("no URL".into())));
    }

    #[test]
    fn urls_without_a_place_for_keys_are_refused() {
        for bad in [
            "",
            "http://a",
            "http://a/",
            "a:1/b",
            "http://a/b?c",
            "http://a/b c",
        ] {
            let made = Service::new(bad, &TlsFlags::default());
            assert_eq!(made.err(), Some(DiscoveryError::Url(bad.into())), "{bad}");
        }
        assert!(Service::new("http://a/b/", &TlsFlags::default()).is_ok());
    }
}
