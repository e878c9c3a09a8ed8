//! Three members as processes on loopback, under Debian's `etcdctl`: kills, joins, removals.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_store::node::Options;
use orlop_store::server::{Bootstrap, Settings};
use orlop_testing::{Etcdctl, Process, free_address, log_to_stderr};

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
    log_to_stderr();
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
    process: Option<Process>,
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
        let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
        command
            .args(["processes::member_of_a_cluster", "--exact", "--nocapture"])
            .env(MEMBER, words.join(" "));
        let process = Process::spawn(&mut command, &self.data_dir.with_extension("log"));
        self.process = Some(process.expect("the member starts"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends it in order.
    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = process.child.id().to_string();
            let told = Command::new("kill").args(["-TERM", &pid]).status();
            assert!(told.expect("kill starts").success());
            process.child.wait().expect("it ends");
        }
    }

    fn runs(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|process| process.ended().is_none())
    }

    fn etcdctl(&self) -> Etcdctl {
        Etcdctl::new(self.client)
    }

    fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        self.etcdctl().wait_for(words, wanted)
    }

    fn insist(&self, words: &[&str]) -> String {
        self.etcdctl().insist(words)
    }
}

struct Cluster {
    // In this order: what a member said is in the directory.
    members: Vec<Member>,
    directory: tempfile::TempDir,
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
        let cluster = Self { members, directory };
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
    let id = process.child.id();
    std::thread::spawn(move || sender.send(process.child.wait()));
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

/// Flips a bit of an entry in the middle of the log, with whole blocks behind it.
fn damage_log(member: &Member) {
    let path = member.data_dir.join("wal-0000000000000001");
    let mut bytes = std::fs::read(&path).expect("there is a log");
    let written = bytes.iter().rposition(|b| *b != 0).expect("it is used");
    let value = bytes[written / 2..].windows(9).position(|w| w == [b'v'; 9]);
    bytes[written / 2 + value.expect("values follow") + 4] ^= 0x10;
    std::fs::write(&path, bytes).expect("it can be written");
}

/// Flips a bit of each value in the state.
fn damage_state(member: &Member) {
    let path = member.data_dir.join("state.redb");
    let mut bytes = std::fs::read(&path).expect("there is a state");
    let mut at = 0;
    while let Some(found) = bytes[at..].windows(9).position(|w| w == [b'v'; 9]) {
        bytes[at + found + 4] ^= 0x10;
        at += found + 500;
    }
    assert!(at > 0, "values are in it");
    std::fs::write(&path, bytes).expect("it can be written");
}

/// Damages every page of the state, so that the database's code may end with a fault.
fn damage_pages(member: &Member) {
    let path = member.data_dir.join("state.redb");
    let mut bytes = std::fs::read(&path).expect("there is a state");
    for page in bytes.chunks_mut(4096).skip(1) {
        page[10] ^= 0x10;
    }
    std::fs::write(&path, bytes).expect("it can be written");
}

/// Name, id and status in a list of members.
fn listed(list: &str, name: &str) -> Option<(String, String)> {
    list.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(", ").collect();
        (fields.get(2) == Some(&name)).then(|| (fields[0].to_owned(), fields[5].to_owned()))
    })
}

#[test]
fn damaged_members_of_a_cluster_without_a_token_fetch_their_state_from_the_others() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    let urls = urls(&cluster.members);
    for i in 0..40 {
        let put = cluster.members[2].insist(&["put", &format!("k{i}"), &"v".repeat(500)]);
        assert_eq!(put, "OK");
    }
    let damages: [fn(&Member); 3] = [damage_log, damage_state, damage_pages];
    for (damaged, damage) in damages.into_iter().enumerate() {
        let other = (damaged + 1) % 3;
        let before = cluster.members[other].insist(&["member", "list"]);
        let name = cluster.members[damaged].name.clone();
        let (id, _) = listed(&before, &name).expect("it is a member");
        if damaged == 0 {
            cluster.members[damaged].kill();
        } else {
            cluster.members[damaged].stop();
        }
        damage(&cluster.members[damaged]);
        let end = Instant::now() + PATIENCE;
        loop {
            // As a supervisor does.
            if !cluster.members[damaged].runs() {
                cluster.members[damaged].start("new", &urls);
            }
            let list = cluster.members[other].insist(&["member", "list"]);
            let status = listed(&list, &name);
            let is_back = status.is_some_and(|(now, learner)| now != id && learner == "false");
            if is_back && list.lines().count() == 3 {
                break;
            }
            assert!(Instant::now() < end, "{name} stays away: {list}");
        }
        let all = ["get", "k", "--prefix", "--keys-only", "--consistency=s"];
        cluster.members[damaged].wait_for(&all, |keys| {
            keys.lines().filter(|line| line.starts_with('k')).count() == 40
        });
        let kept = cluster.members[damaged].data_dir.join("damaged");
        assert!(kept.join("state.redb").exists(), "what there was is kept");
    }
    // What was put aside is not in the way of a restart, nor of the third one's end.
    cluster.members[0].kill();
    cluster.members[0].start("new", &urls);
    cluster.members[0].insist(&["put", "after", "it"]);
    cluster.members[2].kill();
    cluster.members[1].wait_for(&["get", "after", "--print-value-only"], |said| said == "it");
}

#[test]
fn a_damaged_member_that_was_removed_stays_outside_and_one_of_two_says_what_to_do() {
    let mut cluster = Cluster::start(&["a", "b", "c"]);
    let urls = urls(&cluster.members);
    for i in 0..40 {
        cluster.members[2].insist(&["put", &format!("k{i}"), &"v".repeat(500)]);
    }
    let list = cluster.members[2].insist(&["member", "list"]);
    let (id, _) = listed(&list, "a").expect("it is a member");
    cluster.members[0].kill();
    cluster.members[2].insist(&["member", "remove", &id]);
    damage_log(&cluster.members[0]);
    cluster.members[0].start("new", &urls);
    let ended = cluster.members[0]
        .process
        .take()
        .map(|mut p| p.child.wait());
    assert_eq!(ended.and_then(|e| e.ok()?.code()), Some(3));
    let list = cluster.members[2].insist(&["member", "list"]);
    assert_eq!(list.lines().count(), 2, "{list}");
    // Two are left, each of which is needed for any change. Its state has to know of that.
    cluster.members[1].kill();
    cluster.members[1].start("new", &urls);
    cluster.members[1].insist(&["get", "k1"]);
    cluster.members[1].kill();
    damage_log(&cluster.members[1]);
    cluster.members[1].start("new", &urls);
    let ended = cluster.members[1]
        .process
        .take()
        .map(|mut p| p.child.wait());
    assert_eq!(ended.and_then(|e| e.ok()?.code()), Some(3));
    assert!(!cluster.members[1].data_dir.join("damaged").exists());
}
