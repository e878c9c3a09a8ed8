//! A member as a process under Debian's `etcdctl`, and beside Debian's `etcd`: same commands, same outputs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use orlop_testing::{Etcdctl, Process, free_address};
use serde_json::Value;

/// Where a child process of the test finds what to serve.
const DATA_DIR: &str = "ORLOP_STORE_TEST_DATA_DIR";
const ADDRESS: &str = "ORLOP_STORE_TEST_ADDRESS";

/// The member itself, when this binary is started by one of the tests below; else nothing.
#[test]
fn member_process() {
    let (Some(data_dir), Ok(address)) = (std::env::var_os(DATA_DIR), std::env::var(ADDRESS)) else {
        return;
    };
    let url = format!("http://{address}");
    let settings = orlop_store::server::Settings {
        name: "one".into(),
        data_dir: data_dir.into(),
        listen: vec![address.parse().expect("an address")],
        client_urls: vec![url],
        peer_listen: Vec::new(),
        peer_urls: vec!["http://localhost:2380".into()],
        bootstrap: orlop_store::server::Bootstrap::Alone,
        tls: orlop_store::server::Tls::default(),
        options: orlop_store::node::Options::default(),
    };
    orlop_store::server::run(&settings, |_| {}).expect("the member serves");
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Ours,
    Etcd,
}

/// A server on a directory that outlives its processes.
pub(crate) struct Server {
    kind: Kind,
    data_dir: PathBuf,
    pub(crate) address: SocketAddr,
    process: Process,
}

fn start(kind: Kind, data_dir: &Path, address: SocketAddr) -> Process {
    let mut command = match kind {
        Kind::Ours => {
            let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
            command
                .args(["etcdctl::member_process", "--exact", "--nocapture"])
                .env(DATA_DIR, data_dir)
                .env(ADDRESS, address.to_string());
            command
        }
        Kind::Etcd => {
            let url = format!("http://{address}");
            let peer = format!("http://{}", free_address());
            let mut command = Command::new("etcd");
            command.args([
                "--name",
                "one",
                "--enable-v2",
                "--logger",
                "zap",
                "--log-level",
                "error",
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ]);
            command.args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                "http://localhost:2380",
            ]);
            command
                .args(["--initial-cluster", "one=http://localhost:2380"])
                .arg("--data-dir")
                .arg(data_dir);
            command
        }
    };
    let log = data_dir.with_extension("log");
    Process::spawn(command.stdin(Stdio::null()), &log).unwrap_or_else(|err| {
        panic!("start {kind:?} (Debian's packages etcd-server and etcd-client are needed): {err}")
    })
}

impl Server {
    pub(crate) fn new(kind: Kind, data_dir: PathBuf) -> Self {
        let address = free_address();
        let process = start(kind, &data_dir, address);
        let server = Self {
            kind,
            data_dir,
            address,
            process,
        };
        server.wait();
        server
    }

    /// Until it answers that it is healthy.
    fn wait(&self) {
        self.etcdctl().insist(&["endpoint", "health"]);
    }

    /// The answer to an HTTP request, head and all; empty when no one answers.
    pub(crate) fn http(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(self.address) {
            let asked = write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            );
            let _ = asked.and_then(|()| stream.read_to_string(&mut answer));
        }
        answer
    }

    /// kill -9, and start again on the same directory.
    pub(crate) fn crash(&mut self) {
        self.process.kill();
        self.process = start(self.kind, &self.data_dir, self.address);
        self.wait();
    }

    fn etcdctl(&self) -> Etcdctl {
        Etcdctl::new(self.address)
    }

    pub(crate) fn run(&self, words: &[&str], stdin: &str) -> Output {
        let mut child = self
            .etcdctl()
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        child
            .stdin
            .take()
            .expect("it has an input")
            .write_all(stdin.as_bytes())
            .expect("it reads its input");
        child.wait_with_output().expect("etcdctl ends")
    }

    /// What a watch prints, up to so many lines.
    fn watch(&self, words: &[&str], lines: usize) -> String {
        let mut child = self
            .etcdctl()
            .command(&[&["watch"], words].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl starts");
        let output = BufReader::new(child.stdout.take().expect("it has an output"));
        let printed: Vec<String> = output
            .lines()
            .take(lines)
            .map(|l| l.expect("it prints text"))
            .collect();
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        printed.join("\n")
    }
}

/// Takes out what differs from one cluster to the next: ids, terms, addresses, sizes, times.
fn normalised(text: &str, server: &Server) -> String {
    let text = text.replace(&server.address.to_string(), "ADDRESS");
    text.lines()
        .map(|line| {
            serde_json::from_str(line).map_or_else(|_| words(line), |value| json(value).to_string())
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn json(value: Value) -> Value {
    const VARY: [&str; 11] = [
        "cluster_id",
        "member_id",
        "raft_term",
        "ID",
        "id",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "dbSize",
        "dbSizeInUse",
    ];
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (String, Value)| {
                let value = if VARY.contains(&key.as_str()) {
                    Value::from("*")
                } else {
                    json(value)
                };
                (key, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(json).collect()),
        other => other,
    }
}

/// Words of 14 hexadecimal digits or more are ids; `took = …` is a time; so is `remaining(…)`.
fn words(line: &str) -> String {
    let line = line.split("took = ").next().unwrap_or_default();
    let line = line
        .split_once("\"RaftTerm\" : ")
        .map_or(line, |(before, _)| before);
    let word = |word: &str| {
        let id = word.trim_end_matches(',').len() >= 14
            && word
                .trim_end_matches(',')
                .chars()
                .all(|c| c.is_ascii_hexdigit());
        if id { "ID".to_owned() } else { word.to_owned() }
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// Runs a command on both; says what differs.
fn difference(ours: &Server, etcd: &Server, command: &[&str], stdin: &str) -> Option<String> {
    let [one, two] = [ours, etcd].map(|server| {
        let output = server.run(command, stdin);
        let errors = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter(|l| l.starts_with("Error:"))
            .collect::<Vec<_>>()
            .join("\n");
        (
            output.status.code(),
            normalised(&String::from_utf8_lossy(&output.stdout), server),
            normalised(&errors, server),
        )
    });
    (one != two).then(|| format!("{command:?} {stdin:?}\n  ours {one:?}\n  etcd {two:?}"))
}

const COMMANDS: &[(&[&str], &str)] = &[
    (&["get", "", "--prefix", "-w", "json"], ""),
    (&["put", "a", "1"], ""),
    (&["put", "a", "2", "--prev-kv", "-w", "json"], ""),
    (&["put", "b", "3", "-w", "json"], ""),
    (&["put", "dir/x", "x"], ""),
    (&["put", "dir/y", "y"], ""),
    (&["put", "dir/z", "z"], ""),
    (&["put", "", "empty"], ""),
    (&["put", "nothere", "--ignore-value"], ""),
    (&["put", "a", "v", "--ignore-lease"], ""),
    (&["put", "a", "--ignore-value", "-w", "json"], ""),
    (&["put", "a", "v", "--lease=123"], ""),
    (&["get", "a", "-w", "json"], ""),
    (&["get", "a", "-w", "fields"], ""),
    (&["get", "a", "--rev=2", "-w", "json"], ""),
    (&["get", "a", "--rev=1000"], ""),
    (&["get", "a", "--rev=-1"], ""),
    (&["get", "dir/", "--prefix"], ""),
    (&["get", "dir/", "--prefix", "--keys-only"], ""),
    (&["get", "dir/", "--prefix", "--limit=2", "-w", "json"], ""),
    (&["get", "dir/", "--prefix", "--order=DESCEND"], ""),
    (
        &["get", "", "--prefix", "--sort-by=MODIFY", "--order=DESCEND"],
        "",
    ),
    (
        &[
            "get",
            "",
            "--prefix",
            "--sort-by=VERSION",
            "--order=ASCEND",
            "--limit=1",
            "-w",
            "json",
        ],
        "",
    ),
    (
        &[
            "get",
            "",
            "--prefix",
            "--sort-by=VALUE",
            "--order=ASCEND",
            "--keys-only",
        ],
        "",
    ),
    (&["get", "--from-key", "b", "-w", "json"], ""),
    (&["get", "dir/x", "dir/z", "-w", "json"], ""),
    (&["get", "z", "a", "-w", "json"], ""),
    (&["get", "a", "--consistency=s", "-w", "json"], ""),
    (&["del", "dir/x", "--prev-kv", "-w", "json"], ""),
    (&["del", "nothere", "-w", "json"], ""),
    (&["del", "dir/", "--prefix"], ""),
    (&["put", "dir/x", "again", "-w", "json"], ""),
    (&["get", "dir/x", "-w", "json"], ""),
    (&["get", "dir/", "--prefix", "--rev=7", "-w", "json"], ""),
    (
        &["txn"],
        "value(\"a\") = \"v\"\n\nput t yes\nget a\n\nput t no\n\n",
    ),
    (
        &["txn", "-w", "json"],
        "value(\"a\") = \"other\"\n\nput t yes\n\nput t no\nget t\ndel b\n\n",
    ),
    (
        &["txn", "-w", "json"],
        "version(\"nothere\") = \"0\"\ncreate(\"a\") > \"1\"\nmod(\"a\") != \"1\"\nmod(\"a\") < \"1000\"\n\nget a\nget t --rev=3\n\n\n",
    ),
    (&["txn"], "\nput same 1\nput same 2\n\n\n"),
    (&["txn"], "\n\nput same 1\ndel s --prefix\n\n"),
    (&["txn"], "\n\nget a --rev=5000\nput x y\n\n"),
    (&["txn", "-w", "json"], "\n\n\n\n"),
    (
        &["txn"],
        "value(\"nothere\") != \"x\"\n\nput t yes\n\nput t no\n\n",
    ),
    (&["txn"], "lease(\"a\") = \"0\"\n\nput t lease\n\n\n"),
    (&["get", "", "--prefix", "-w", "json"], ""),
    (&["lease", "grant", "1000"], ""),
    (&["lease", "grant", "1", "-w", "json"], ""),
    (&["lease", "grant", "9000000001"], ""),
    (&["lease", "grant", "0", "-w", "json"], ""),
    (&["lease", "revoke", "1234"], ""),
    (&["lease", "timetolive", "1234"], ""),
    (&["lease", "timetolive", "1234", "--keys", "-w", "json"], ""),
    (&["lease", "keep-alive", "--once", "1234"], ""),
    (&["compaction", "5"], ""),
    (&["compaction", "5"], ""),
    (&["compaction", "4000"], ""),
    (&["compaction", "8", "--physical"], ""),
    (&["get", "a", "--rev=7"], ""),
    (&["get", "a", "--rev=8", "-w", "json"], ""),
    (&["get", "dir/", "--prefix", "--rev=9", "-w", "json"], ""),
    (&["get", "dir/", "--prefix", "--rev=10", "-w", "json"], ""),
    (&["member", "list", "-w", "json"], ""),
    (&["member", "list"], ""),
    (&["endpoint", "health"], ""),
    (&["endpoint", "status", "-w", "json"], ""),
    (&["alarm", "list"], ""),
    (&["defrag"], ""),
    // The client's authority is a whole URL then.
    (&["defrag", "--cluster"], ""),
    (&["endpoint", "health", "--cluster"], ""),
    (&["endpoint", "status", "--cluster", "-w", "json"], ""),
    (&["del", "", "--from-key"], ""),
    (&["put", "last", "one"], ""),
];

const WATCHES: &[(&[&str], usize)] = &[
    (&["a", "--rev=8", "-w", "json"], 0),
    (&["--prefix", "", "--rev=8"], 24),
    (&["dir/", "--prefix", "--rev=9", "--prev-kv"], 12),
    (&["a", "z", "--rev=10", "-w", "json"], 1),
    (&["last", "--rev=1"], 1),
];

pub(crate) fn pair() -> (tempfile::TempDir, Server, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let ours = Server::new(Kind::Ours, directory.path().join("ours"));
    let etcd = Server::new(Kind::Etcd, directory.path().join("etcd"));
    (directory, ours, etcd)
}

#[test]
fn etcdctl_prints_the_same_as_with_etcd_before_and_after_a_kill() {
    let (_directory, mut ours, mut etcd) = pair();
    let mut differences = Vec::new();
    for (command, stdin) in COMMANDS {
        differences.extend(difference(&ours, &etcd, command, stdin));
    }
    for (words, lines) in WATCHES {
        let [one, two] =
            [&ours, &etcd].map(|server| normalised(&server.watch(words, *lines), server));
        if one != two {
            differences.push(format!("watch {words:?}\n  ours {one:?}\n  etcd {two:?}"));
        }
    }
    ours.crash();
    etcd.crash();
    for words in [
        &["get", "", "--prefix", "-w", "json"][..],
        &["get", "a", "--rev=12", "-w", "json"],
        &["get", "a", "--rev=7"],
        &["put", "after", "the kill", "-w", "json"],
    ] {
        differences.extend(difference(&ours, &etcd, words, ""));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The first word of `lease … granted`, the id.
fn grant(server: &Server, ttl: &str) -> String {
    let output = server.run(&["lease", "grant", ttl], "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').nth(1).expect("an id").to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

#[test]
fn leases_end_keys_and_outlive_a_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::new(Kind::Ours, directory.path().join("ours"));
    let long = grant(&server, "600");
    let short = grant(&server, "2");
    assert_eq!(
        stdout(&server.run(&["put", "long", "1", &format!("--lease={long}")], "")),
        "OK"
    );
    assert_eq!(
        stdout(&server.run(&["put", "short", "1", &format!("--lease={short}")], "")),
        "OK"
    );
    // The watch sees the end of the lease, so nothing has to be waited for by the clock.
    assert_eq!(
        server.watch(&["short", "--rev=3"], 5),
        "PUT\nshort\n1\nDELETE\nshort"
    );
    server.crash();
    assert_eq!(stdout(&server.run(&["get", "", "--prefix"], "")), "long\n1");
    let left = stdout(&server.run(&["lease", "timetolive", &long, "--keys"], ""));
    assert!(
        left.starts_with(&format!("lease {long} granted with TTL(600s), remaining("))
            && left.ends_with("attached keys([long])"),
        "{left}"
    );
    let kept = stdout(&server.run(&["lease", "keep-alive", "--once", &long], ""));
    assert_eq!(kept, format!("lease {long} keepalived with TTL(600)"));
    assert_eq!(
        stdout(&server.run(&["lease", "revoke", &long], "")),
        format!("lease {long} revoked")
    );
    assert_eq!(stdout(&server.run(&["get", "", "--prefix"], "")), "");
}

#[test]
fn a_watch_is_told_of_what_comes_and_locks_and_elections_work() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::new(Kind::Ours, directory.path().join("ours"));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| server.watch(&["k", "--prefix", "--rev=2"], 3 * 20));
        for i in 0..20 {
            server.run(&["put", &format!("k{i}"), "v"], "");
        }
        let expected = (0..20)
            .map(|i| format!("PUT\nk{i}\nv"))
            .collect::<Vec<_>>()
            .join("\n");
        assert_eq!(watcher.join().expect("the watch ends"), expected);
    });
    assert_eq!(
        stdout(&server.run(&["lock", "l", "echo", "held"], "")),
        "held"
    );
    let mut leader = server
        .etcdctl()
        .command(&["elect", "e", "me"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("etcdctl starts");
    let mut lines = BufReader::new(leader.stdout.take().expect("it has an output")).lines();
    assert!(
        lines
            .next()
            .expect("a line")
            .expect("text")
            .starts_with("e/")
    );
    assert_eq!(lines.next().expect("a line").expect("text"), "me");
    leader.kill().expect("it can be killed");
    leader.wait().expect("it ends");
}

#[test]
fn plain_http_answers_health_and_version() {
    let (_directory, ours, etcd) = pair();
    for server in [&ours, &etcd] {
        assert!(
            server.http("/health").ends_with("{\"health\":\"true\"}"),
            "{:?}: {}",
            server.kind,
            server.http("/health")
        );
        assert!(
            server
                .http("/version")
                .ends_with("{\"etcdserver\":\"3.4.23\",\"etcdcluster\":\"3.4.0\"}"),
            "{}",
            server.http("/version")
        );
        assert!(
            server.http("/nothing").starts_with("HTTP/1.1 404"),
            "{:?}: {}",
            server.kind,
            server.http("/nothing")
        );
    }
}

#[test]
fn an_idle_member_is_small() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::new(Kind::Ours, directory.path().join("ours"));
    let on_disk: u64 = std::fs::read_dir(&server.data_dir)
        .expect("it has a directory")
        .map(|e| e.and_then(|e| e.metadata()).map_or(0, |m| m.len()))
        .sum();
    assert!(on_disk <= 20 << 20, "{on_disk} bytes");
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.child.id()))
        .expect("it runs");
    let line = status
        .lines()
        .find(|l| l.starts_with("RssAnon:"))
        .expect("the kernel tells it");
    let anonymous: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(anonymous <= 15 << 10, "{line}");
}
