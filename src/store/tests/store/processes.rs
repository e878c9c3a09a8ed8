//! Three members as processes on loopback, under Debian's `etcdctl`: kills, joins, removals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use orlop_store::node::Options;
use orlop_store::server::{Bootstrap, Settings};

use crate::etcdctl::free_address;

/// Tells a child process of the test what to be: name, directory, address for clients, address for peers, `new` or
/// `existing`, and the members as NAME=URL, with spaces between.
const MEMBER: &str = "ORLOP_STORE_TEST_MEMBER";
const PATIENCE: Duration = Duration::from_secs(30);

/// The member itself, when this binary is started by one of the tests below; else nothing.
#[test]
fn member_of_a_cluster() {
    let Ok(words) = std::env::var(MEMBER) else {
        return;
    };
    let words: Vec<&str> = words.split(' ').collect();
    let [name, data_dir, client, peer, state, ref members @ ..] = words[..] else {
        panic!("{words:?}");
    };
    let members = members
        .iter()
        .map(|m| m.split_once('=').expect("NAME=URL"))
        .map(|(name, url)| (name.to_owned(), vec![url.to_owned()]))
        .collect();
    let settings = Settings {
        name: name.into(),
        data_dir: data_dir.into(),
        listen: vec![client.parse().expect("an address")],
        client_urls: vec![format!("http://{client}")],
        peer_listen: vec![peer.parse().expect("an address")],
        peer_urls: vec![format!("http://{peer}")],
        bootstrap: if state == "new" {
            Bootstrap::New {
                members,
                token: "test".into(),
            }
        } else {
            Bootstrap::Existing { members }
        },
        tls: orlop_store::server::Tls::default(),
        options: Options {
            keep_entries: 10,
            ..Options::default()
        },
    };
    if let Err(err) = orlop_store::server::run(&settings, |_| {}) {
        eprintln!("{name}: {:#}", anyhow::Error::new(err));
        std::process::exit(3);
    }
}

struct Member {
    name: String,
    data_dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

impl Member {
    fn new(directory: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            data_dir: directory.join(name),
            client: free_address(),
            peer: free_address(),
            process: None,
        }
    }

    fn start(&mut self, state: &str, members: &[String]) {
        let mut words = vec![
            self.name.clone(),
            self.data_dir.display().to_string(),
            self.client.to_string(),
            self.peer.to_string(),
            state.to_owned(),
        ];
        words.extend_from_slice(members);
        let child = Command::new(std::env::current_exe().expect("the test is a file"))
            .args(["processes::member_of_a_cluster", "--exact", "--nocapture"])
            .env(MEMBER, words.join(" "))
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(child.expect("the member starts"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn etcdctl(&self, words: &[&str]) -> Output {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--command-timeout=3s", "--endpoints"])
            .arg(self.client.to_string())
            .args(words)
            .output()
            .expect("etcdctl starts")
    }

    /// What a command prints once it succeeds.
    fn insist(&self, words: &[&str]) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let output = self.etcdctl(words);
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout)
                    .trim_end()
                    .to_owned();
            }
            assert!(
                Instant::now() < end,
                "{} {words:?}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    /// Runs a command until it prints what is wanted.
    fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.insist(words);
            if wanted(&said) {
                return said;
            }
            assert!(Instant::now() < end, "{} {words:?}: {said}", self.name);
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Cluster {
    directory: tempfile::TempDir,
    members: Vec<Member>,
}

impl Cluster {
    fn start(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut members: Vec<Member> = names
            .iter()
            .map(|name| Member::new(directory.path(), name))
            .collect();
        let urls = urls(&members);
        for member in &mut members {
            member.start("new", &urls);
        }
        let cluster = Self { directory, members };
        for member in &cluster.members {
            member.insist(&["endpoint", "health"]);
        }
        cluster
    }

    fn leader(&self) -> usize {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            for (place, member) in self.members.iter().enumerate() {
                if member.process.is_none() {
                    continue;
                }
                // Endpoint, id, version, size, whether it leads, …
                let status = member.insist(&["endpoint", "status"]);
                if status.split(", ").nth(4) == Some("true") {
                    return place;
                }
            }
        }
        panic!("no one leads");
    }
}

fn urls(members: &[Member]) -> Vec<String> {
    members
        .iter()
        .map(|m| format!("{}=http://{}", m.name, m.peer))
        .collect()
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

#[test]
fn three_members_lose_their_leader_and_no_acknowledged_write() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    let list = cluster.members[1].wait_for(&["member", "list"], |list| {
        list.matches(", started, ").count() == 3
    });
    for member in &cluster.members {
        assert!(
            list.contains(&format!(
                ", {}, http://{}, http://{}, false",
                member.name, member.peer, member.client
            )),
            "{list}"
        );
    }
    for i in 0..10 {
        let member = &cluster.members[i % 3];
        assert_eq!(
            member.insist(&["put", &format!("k{i}"), &format!("v{i}")]),
            "OK"
        );
    }
    let leader = cluster.leader();
    cluster.members[leader].kill();
    let killed = Instant::now();
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    assert_eq!(
        cluster.members[others[0]].insist(&["put", "after", "the kill"]),
        "OK"
    );
    println!(
        "a write was taken {:?} after the leader's end",
        killed.elapsed()
    );
    for i in &others {
        for k in 0..10 {
            let read = cluster.members[*i].insist(&["get", &format!("k{k}"), "--print-value-only"]);
            assert_eq!(read, format!("v{k}"));
        }
    }
    // It comes back, and is told what it missed.
    let urls = urls(&cluster.members);
    cluster.members[leader].start("new", &urls);
    cluster.members[leader].insist(&["endpoint", "health"]);
    let read = ["get", "after", "--print-value-only", "--consistency=s"];
    cluster.members[leader].wait_for(&read, |said| said == "the kill");
}

#[test]
fn a_member_joins_by_a_whole_state_is_promoted_and_is_removed() {
    let mut cluster = Cluster::start(&["a"]);
    let value = "x".repeat(50_000);
    for i in 0..30 {
        cluster.members[0].insist(&["put", &format!("k{i}"), &value]);
    }
    let lease = cluster.members[0].insist(&["lease", "grant", "600"]);
    let lease = lease.split(' ').nth(1).expect("an id").to_owned();
    for name in ["b", "c"] {
        let mut joiner = Member::new(cluster.directory.path(), name);
        let url = format!("http://{}", joiner.peer);
        let added =
            cluster.members[0].insist(&["member", "add", name, &format!("--peer-urls={url}")]);
        assert!(added.contains(" added to cluster "), "{added}");
        let mut all = urls(&cluster.members);
        all.push(format!("{name}={url}"));
        joiner.start("existing", &all);
        joiner.insist(&["endpoint", "health"]);
        cluster.members.push(joiner);
        cluster.members[0].wait_for(&["member", "list"], |list| {
            list.lines()
                .any(|l| l.contains(&url) && l.contains("started") && l.ends_with(", false"))
        });
    }
    let count = ["get", "", "--prefix", "--keys-only", "--write-out=fields"];
    for member in &cluster.members {
        let said = member.insist(&count);
        assert!(said.contains("\"Count\" : 30"), "{said}");
        let left = member.insist(&["lease", "timetolive", &lease]);
        assert!(left.contains("granted with TTL(600s)"), "{left}");
        let kept = member.insist(&["lease", "keep-alive", "--once", &lease]);
        assert!(kept.contains("TTL(600)"), "{kept}");
    }
    // The first one hands leadership over and goes.
    let list = cluster.members[1].insist(&["member", "list"]);
    let id_of = |name: &str| {
        let line = list.lines().find(|l| l.contains(&format!(", {name}, ")));
        line.and_then(|l| l.split(", ").next())
            .expect("it is listed")
            .to_owned()
    };
    let leader = cluster.leader();
    let next = &cluster.members[(leader + 1) % 3];
    let moved = cluster.members[leader].insist(&["move-leader", &id_of(&next.name)]);
    assert!(moved.starts_with("Leadership transferred from "), "{moved}");
    let removed = cluster.members[1].insist(&["member", "remove", &id_of("a")]);
    assert!(removed.contains(" removed from cluster "), "{removed}");
    let mut process = cluster.members[0].process.take().expect("it was started");
    let (sender, ended) = std::sync::mpsc::channel();
    let id = process.id();
    std::thread::spawn(move || sender.send(process.wait()));
    match ended.recv_timeout(PATIENCE) {
        Ok(status) => {
            let status = status.expect("it can be waited for");
            assert_eq!(status.code(), Some(3), "it ends with an error");
        }
        Err(_) => panic!("a removed member, process {id}, goes on"),
    }
    assert_eq!(cluster.members[2].insist(&["put", "last", "one"]), "OK");
    let revision = cluster.members[1].insist(&["get", "last", "--write-out=fields"]);
    let mod_revision = revision
        .lines()
        .find_map(|l| l.strip_prefix("\"ModRevision\" : "));
    assert_eq!(mod_revision.and_then(number), Some(32), "{revision}");
}
