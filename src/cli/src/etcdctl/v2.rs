//! `etcdctl` for the v2 API: `ETCDCTL_API=2`.

mod cluster;
pub(crate) mod http;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use orlop_store::server::ETCD_VERSION;
use serde_json::Value;

use super::channel::{Target, TlsFlags};
use super::flags::{self, Flag, Given, Until};
use super::keys::word_or_input;
use super::print::say;
use super::text::Json;
use super::{Failure, Outcome};
use http::{Http, escaped, form};

const GLOBAL: &[Flag] = &[
    Flag::value("endpoints", "", "where the store is, with commas between"),
    Flag::value("endpoint", "", "the same"),
    Flag::value("peers", "", "the same").short('C'),
    Flag::value("output", "simple", "simple, extended or json").short('o'),
    Flag::value("timeout", "2s", "what a connection may take"),
    Flag::value(
        "total-timeout",
        "5s",
        "what a command may take, but watches",
    ),
    Flag::value("ca-file", "", "authority of the servers' certificates, PEM"),
    Flag::value("cert-file", "", "certificate of this client, PEM"),
    Flag::value("key-file", "", "its private key, PEM"),
    Flag::switch(
        "no-sync",
        "accepted; the endpoints are always taken as they are",
    ),
    Flag::switch("debug", "not supported"),
    Flag::value("discovery-srv", "", "not supported").short('D'),
    Flag::value("username", "", "not supported: the store has no users").short('u'),
    Flag::switch("version", "print the version").short('v'),
    Flag::switch("help", "print the verbs and flags").short('h'),
];
const REFUSED: [&str; 3] = ["debug", "discovery-srv", "username"];
/// Where the store is when nothing is said.
const DEFAULT_ENDPOINTS: &str = "http://127.0.0.1:2379,http://127.0.0.1:4001";

const TTL: Flag = Flag::value("ttl", "0", "seconds to live");
const SORT: Flag = Flag::switch("sort", "in the order of keys");
const QUORUM: Flag = Flag::switch("quorum", "by way of the log").short('q');
const RECURSIVE: Flag = Flag::switch("recursive", "with all that is below").short('r');
const AFTER_INDEX: Flag = Flag::value("after-index", "0", "what came after this index");
const FOREVER: Flag = Flag::switch("forever", "go on").short('f');

struct Verb {
    name: &'static str,
    usage: &'static str,
    flags: &'static [Flag],
    run: fn(&Call) -> Outcome,
}

const fn verb(
    name: &'static str,
    usage: &'static str,
    flags: &'static [Flag],
    run: fn(&Call) -> Outcome,
) -> Verb {
    Verb {
        name,
        usage,
        flags,
        run,
    }
}

#[rustfmt::skip]
const VERBS: &[Verb] = &[
    verb("get", "KEY", &[SORT, QUORUM], get),
    verb("set", "KEY [VALUE]", &[
        TTL,
        Flag::value("swap-with-value", "", "only if this is its value"),
        Flag::value("swap-with-index", "0", "only if this is its index"),
    ], set),
    verb("mk", "KEY [VALUE]", &[TTL, Flag::switch("in-order", "below the key, numbered")], make),
    verb("mkdir", "KEY", &[TTL], |call| directory(call, Some(false))),
    verb("setdir", "KEY", &[TTL], |call| directory(call, None)),
    verb("update", "KEY [VALUE]", &[TTL], update),
    verb("updatedir", "KEY", &[TTL], |call| directory(call, Some(true))),
    verb("ls", "[KEY]", &[SORT, QUORUM, RECURSIVE, Flag::switch("p", "a slash behind directories").short('p')], list),
    verb("rm", "KEY", &[
        RECURSIVE,
        Flag::switch("dir", "an empty directory too"),
        Flag::value("with-value", "", "only if this is its value"),
        Flag::value("with-index", "0", "only if this is its index"),
    ], remove),
    verb("rmdir", "KEY", &[], remove_directory),
    verb("watch", "KEY", &[AFTER_INDEX, FOREVER, RECURSIVE], watch),
    verb("exec-watch", "KEY [--] PROGRAM…", &[AFTER_INDEX, RECURSIVE], exec_watch),
    verb("member", "list | add NAME URL | remove ID | update ID URLS", &[], cluster::member),
    verb("cluster-health", "", &[FOREVER], cluster::health),
];

struct Call {
    global: Given,
    given: Given,
    http: Http,
}

/// Runs `etcdctl` for the v2 API. Exit codes are etcd's: 1 a wrong call, 2 no connection, 4 the store says no, 5 not healthy.
pub(super) fn run(words: &[String]) -> ExitCode {
    match prepare(words).and_then(|prepared| match prepared {
        Some((verb, call)) => (verb.run)(&call),
        None => Ok(()),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        // etcd's has two spaces.
        Err(failure) => failure.end("Error:  "),
    }
}

fn prepare(words: &[String]) -> Result<Option<(&'static Verb, Call)>, Failure> {
    let wrong = |err: String| Failure::plain(1, err);
    let environment = |name: &str| {
        let name = format!("ETCDCTL_{}", name.to_uppercase().replace('-', "_"));
        // A switch is not taken from there, as etcd does not either.
        let of_interest = !matches!(name.as_str(), "ETCDCTL_DEBUG" | "ETCDCTL_NO_SYNC");
        std::env::var(name)
            .ok()
            .filter(|v| of_interest && !v.is_empty())
    };
    let global = Given::read(&[GLOBAL], words, Until::Word, environment).map_err(wrong)?;
    if let Some(name) = REFUSED.into_iter().find(|name| global.has(name)) {
        return Err(wrong(format!("--{name} is not supported")));
    }
    if global.is_set("version") {
        say(format!("etcdctl version: {ETCD_VERSION}\nAPI version: 2\n"));
        return Ok(None);
    }
    let Some((name, rest)) = global.words.split_first() else {
        show_help();
        return Ok(None);
    };
    if name == "help" || global.is_set("help") {
        show_help();
        return Ok(None);
    }
    let verb = VERBS
        .iter()
        .find(|v| v.name == name)
        .ok_or_else(|| match name.as_str() {
            "backup" => {
                wrong("backup: not supported; `ETCDCTL_API=3 etcdctl snapshot save` is".into())
            }
            "user" | "role" | "auth" => wrong(format!("{name}: the store has no users")),
            _ => Failure::plain(3, format!("No help topic for '{name}'")),
        })?;
    let until = match verb.name {
        // The program has flags of its own.
        "exec-watch" => Until::Word,
        _ => Until::End,
    };
    let given = Given::read(&[verb.flags], rest, until, |_| None).map_err(wrong)?;
    let http = http(&global)?;
    Ok(Some((
        verb,
        Call {
            global,
            given,
            http,
        },
    )))
}

fn http(global: &Given) -> Result<Http, Failure> {
    let endpoints = ["endpoints", "endpoint", "peers"]
        .into_iter()
        .map(|name| global.get(name))
        .find(|value| !value.is_empty())
        .unwrap_or(DEFAULT_ENDPOINTS);
    let path = |name| {
        let value = global.get(name);
        (!value.is_empty()).then(|| PathBuf::from(value))
    };
    let tls = TlsFlags {
        authority: path("ca-file"),
        certificate: path("cert-file"),
        key: path("key-file"),
        unverified: false,
    };
    let target = |endpoint: &str| match endpoint.contains("://") {
        true => Target::new(endpoint, &tls, b"http/1.1"),
        false => Target::new(&format!("http://{endpoint}"), &tls, b"http/1.1"),
    };
    let targets: Result<_, _> = endpoints.split(',').map(target).collect();
    let time = |name| {
        let time: Result<Duration, _> = global.duration(name);
        time.map_err(|err| Failure::plain(1, err.message))
    };
    Ok(Http {
        targets: targets.map_err(|err| Failure::plain(1, err))?,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|err| Failure::plain(1, format!("start the runtime: {err}")))?,
        timeout: time("timeout")?,
        total: time("total-timeout")?,
    })
}

fn show_help() {
    let mut text =
        "Usage: ETCDCTL_API=2 etcdctl [FLAG…] VERB [FLAG…] [WORD…]\n\nVerbs:\n".to_owned();
    for verb in VERBS {
        text += &format!("  {} {}\n", verb.name, verb.usage);
        for line in flags::help(verb.flags).lines() {
            text += &format!("    {line}\n");
        }
    }
    text += "\nFlags before the verb, also as ETCDCTL_NAME in the environment:\n";
    text += &flags::help(GLOBAL);
    say(text);
}

/// A field of a node, or of an answer.
fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

fn is_dir(node: &Value) -> bool {
    node.get("dir").and_then(Value::as_bool).unwrap_or(false)
}

impl Call {
    fn key(&self) -> Result<&str, Failure> {
        let key = self.given.words.first();
        key.map(String::as_str)
            .ok_or_else(|| Failure::new(1, "key required"))
    }

    fn value(&self) -> Result<String, Failure> {
        let value = word_or_input(&self.given.words, 1);
        let value = value.ok_or_else(|| Failure::new(1, "value required"))?;
        Ok(String::from_utf8_lossy(&value).into_owned())
    }

    fn count(&self, name: &str) -> Result<i64, Failure> {
        let count = self.given.number(name);
        count.map_err(|err| Failure::plain(1, err.message))
    }

    fn path(key: &str, query: &[(&str, String)]) -> String {
        let key = escaped(key.trim_matches('/'), b"/");
        let query = form(query);
        let mark = if query.is_empty() { "" } else { "?" };
        format!("/v2/keys/{key}{mark}{query}").replace("/?", "?")
    }

    fn ask(
        &self,
        method: &str,
        key: &str,
        query: &[(&str, String)],
        body: Option<&[(&str, String)]>,
    ) -> Result<(Value, u64), Failure> {
        let body = body.map(|body| ("application/x-www-form-urlencoded", form(body)));
        let answer = self.http.request(method, &Self::path(key, query), body)?;
        answer.into_json()
    }

    fn read(&self, key: &str, recursive: bool) -> Result<(Value, u64), Failure> {
        let switch = |name: &str| self.given.is_set(name).to_string();
        let query = [
            ("quorum", switch("quorum")),
            ("recursive", recursive.to_string()),
            ("sorted", switch("sort")),
        ];
        self.ask("GET", key, &query, None)
    }

    fn write(
        &self,
        method: &str,
        query: &[(&str, String)],
        value: Option<String>,
    ) -> Result<(Value, u64), Failure> {
        let ttl = self.count("ttl")?;
        let mut body = Vec::new();
        body.extend(value.map(|value| ("value", value)));
        if ttl != 0 {
            body.push(("ttl", ttl.to_string()));
        }
        self.ask(method, self.key()?, query, Some(&body))
    }

    fn is_simple(&self) -> bool {
        self.global.get("output") == "simple"
    }

    /// Prints an answer about one key.
    fn show(&self, (answer, index): &(Value, u64)) -> Outcome {
        let none = Value::Null;
        let node = answer.get("node").unwrap_or(&none);
        let before = answer.get("prevNode").filter(|n| !n.is_null());
        let deleted = text(answer, "action") == "delete";
        match self.global.get("output") {
            "simple" if deleted => {
                let value = before.map_or("", |n| text(n, "value"));
                say(format!("PrevNode.Value: {value}\n"));
            }
            "simple" => say(format!("{}\n", text(node, "value"))),
            "extended" => {
                let mut out = format!(
                    "Key: {}\nCreated-Index: {}\nModified-Index: {}\n",
                    text(node, "key"),
                    number(node, "createdIndex"),
                    number(node, "modifiedIndex")
                );
                if let Some(before) = before {
                    out += &format!("PrevNode.Value: {}\n", text(before, "value"));
                }
                out += &format!("TTL: {}\nIndex: {index}\n", number(node, "ttl"));
                if !deleted {
                    out += &format!("\n{}\n", text(node, "value"));
                }
                say(out);
            }
            "json" => {
                let object = Json::Object(vec![
                    ("action", Json::Text(text(answer, "action").to_owned())),
                    ("node", node_json(node)),
                    ("prevNode", before.map_or(Json::Null, node_json)),
                ]);
                say(object.text() + "\n");
            }
            other => eprintln!("Unsupported output format: {other}"),
        }
        Ok(())
    }

    /// Waits for events after an index, one after another; `heard` says whether to go on.
    fn wait(&self, mut heard: impl FnMut(&(Value, u64)) -> Result<bool, Failure>) -> Outcome {
        let key = self.key()?;
        let recursive = self.given.is_set("recursive");
        let mut next = match self.count("after-index")? {
            0 => 0,
            after => after.unsigned_abs() + 1,
        };
        loop {
            let mut query = vec![
                ("recursive", recursive.to_string()),
                ("wait", "true".to_owned()),
            ];
            if next > 0 {
                query.push(("waitIndex", next.to_string()));
            }
            let path = Self::path(key, &query);
            let answer = self.http.request_within(None, "GET", &path, None)?;
            if answer.status == 200 && answer.body.is_empty() {
                continue;
            }
            let event = answer.into_json()?;
            let node = event.0.get("node").cloned().unwrap_or_default();
            next = number(&node, "modifiedIndex") + 1;
            if !heard(&event)? {
                return Ok(());
            }
        }
    }
}

fn node_json(node: &Value) -> Json {
    let nodes = match node.get("nodes").and_then(Value::as_array) {
        Some(nodes) => Json::List(nodes.iter().map(node_json).collect()),
        None => Json::Null,
    };
    let mut fields = vec![("key", Json::Text(text(node, "key").to_owned()))];
    if is_dir(node) {
        fields.push(("dir", Json::Bool(true)));
    }
    fields.extend([
        ("value", Json::Text(text(node, "value").to_owned())),
        ("nodes", nodes),
        (
            "createdIndex",
            Json::Number(number(node, "createdIndex").into()),
        ),
        (
            "modifiedIndex",
            Json::Number(number(node, "modifiedIndex").into()),
        ),
    ]);
    if !text(node, "expiration").is_empty() {
        let expiration = text(node, "expiration").to_owned();
        fields.push(("expiration", Json::Text(expiration)));
    }
    if number(node, "ttl") != 0 {
        fields.push(("ttl", Json::Number(number(node, "ttl").into())));
    }
    Json::Object(fields)
}

fn get(call: &Call) -> Outcome {
    let answer = call.read(call.key()?, false)?;
    if let Some(node) = answer.0.get("node").filter(|n| is_dir(n)) {
        let key = text(node, "key");
        return Err(Failure::plain(1, format!("{key}: is a directory")));
    }
    call.show(&answer)
}

fn set(call: &Call) -> Outcome {
    call.key()?;
    let value = call.value()?;
    let mut query = Vec::new();
    let before = call.given.get("swap-with-value");
    if !before.is_empty() {
        query.push(("prevValue", before.to_owned()));
    }
    match call.count("swap-with-index")? {
        0 => {}
        index => query.push(("prevIndex", index.to_string())),
    }
    call.show(&call.write("PUT", &query, Some(value))?)
}

fn make(call: &Call) -> Outcome {
    call.key()?;
    let value = Some(call.value()?);
    let answer = match call.given.is_set("in-order") {
        true => call.write("POST", &[], value)?,
        false => call.write("PUT", &[("prevExist", "false".into())], value)?,
    };
    call.show(&answer)
}

fn update(call: &Call) -> Outcome {
    call.key()?;
    let value = call.value()?;
    call.show(&call.write("PUT", &[("prevExist", "true".into())], Some(value))?)
}

/// Makes a directory, or changes its time to live.
fn directory(call: &Call, exists: Option<bool>) -> Outcome {
    let mut query = vec![("dir", "true".to_owned())];
    query.extend(exists.map(|exists| ("prevExist", exists.to_string())));
    let answer = call.write("PUT", &query, None)?;
    match call.is_simple() {
        true => Ok(()),
        false => call.show(&answer),
    }
}

fn list(call: &Call) -> Outcome {
    let key = call.given.words.first().map_or("/", String::as_str);
    let answer = call.read(key, call.given.is_set("recursive"))?;
    if !call.is_simple() {
        return call.show(&answer);
    }
    let none = Value::Null;
    let node = answer.0.get("node").unwrap_or(&none);
    if !is_dir(node) {
        say(format!("{}\n", text(node, "key")));
    }
    let mut out = String::new();
    below(node, call.given.is_set("p"), &mut out);
    say(out);
    Ok(())
}

fn below(node: &Value, slash: bool, out: &mut String) {
    for node in node
        .get("nodes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let end = if slash && is_dir(node) { "/" } else { "" };
        *out += &format!("{}{end}\n", text(node, "key"));
        below(node, slash, out);
    }
}

fn removed(call: &Call, query: &[(&str, String)]) -> Outcome {
    let answer = call.ask("DELETE", call.key()?, query, None)?;
    match call.is_simple() && answer.0.get("node").is_some_and(is_dir) {
        true => Ok(()),
        false => call.show(&answer),
    }
}

fn remove(call: &Call) -> Outcome {
    let mut query = Vec::new();
    let before = call.given.get("with-value");
    if !before.is_empty() {
        query.push(("prevValue", before.to_owned()));
    }
    match call.count("with-index")? {
        0 => {}
        index => query.push(("prevIndex", index.to_string())),
    }
    for name in ["recursive", "dir"] {
        if call.given.is_set(name) {
            query.push((name, "true".to_owned()));
        }
    }
    removed(call, &query)
}

fn remove_directory(call: &Call) -> Outcome {
    removed(call, &[("dir", "true".to_owned())])
}

fn watch(call: &Call) -> Outcome {
    let forever = call.given.is_set("forever");
    let recursive = call.given.is_set("recursive");
    call.wait(|event| {
        let node = event.0.get("node").cloned().unwrap_or_default();
        if is_dir(&node) {
            return Ok(true);
        }
        if recursive {
            let action = text(&event.0, "action");
            say(format!("[{action}] {}\n", text(&node, "key")));
        }
        call.show(event)?;
        Ok(forever)
    })
}

fn exec_watch(call: &Call) -> Outcome {
    let program = match call.given.words.get(1..) {
        Some([dashes, program @ ..]) if dashes == "--" => program,
        Some(program) => program,
        None => &[],
    };
    let Some((path, words)) = program.split_first() else {
        return Err(Failure::new(1, "key and command to exec required"));
    };
    call.wait(|event| {
        let node = event.0.get("node").cloned().unwrap_or_default();
        let key = text(&node, "key");
        if is_dir(&node) {
            eprintln!("Ignored dir {key} change");
            return Ok(true);
        }
        let status = Command::new(path)
            .args(words)
            .env("ETCD_WATCH_ACTION", text(&event.0, "action"))
            .env(
                "ETCD_WATCH_MODIFIED_INDEX",
                number(&node, "modifiedIndex").to_string(),
            )
            .env("ETCD_WATCH_KEY", key)
            .env("ETCD_WATCH_VALUE", text(&node, "value"))
            .status();
        // What the program comes to is its own affair.
        status
            .map(|_| true)
            .map_err(|err| Failure::plain(1, format!("{path}: {err}")))
    })
}
