//! First members that find one another at a URL: ours and Debian's, at our store and at Debian's.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop_testing::free_address;

use crate::sides::{Program, Server, Side, ours};

const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    server: Server,
    name: String,
    data_dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

impl Member {
    fn new(server: Server, name: &str, directory: &Path) -> Self {
        Self {
            server,
            name: name.to_owned(),
            data_dir: directory.join(name),
            client: free_address(),
            peer: free_address(),
            process: None,
        }
    }

    fn command(&self, url: &str) -> Command {
        let flags = [
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--listen-client-urls=http://{}", self.client),
            format!("--advertise-client-urls=http://{}", self.client),
            format!("--listen-peer-urls=http://{}", self.peer),
            format!("--initial-advertise-peer-urls=http://{}", self.peer),
            format!("--discovery={url}"),
            "--discovery-fallback=exit".to_owned(),
        ];
        match self.server {
            Server::Etcd => {
                let mut command = Command::new("etcd");
                command.args(flags);
                command
            }
            Server::Ours => ours(&[&["orlop".into(), "store".into()], &flags[..]].concat()),
        }
    }

    fn start(&mut self, url: &str) {
        let child = self
            .command(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(child.expect("it starts"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it to its end: the exit code, and the last line that it says.
    fn fails(&self, url: &str) -> (Option<i32>, String) {
        let mut child = self
            .command(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let errors = BufReader::new(child.stderr.take().expect("it has one"));
        let last = errors.lines().map_while(Result::ok).last();
        (
            child.wait().expect("it ends").code(),
            last.unwrap_or_default(),
        )
    }

    fn etcdctl(&self, words: &[&str]) -> Option<String> {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--command-timeout=2s", "--endpoints"])
            .arg(self.client.to_string())
            .args(words)
            .output()
            .expect("etcdctl starts");
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        output.status.success().then_some(text)
    }

    fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.etcdctl(words);
            if let Some(said) = said.as_ref().filter(|said| wanted(said)) {
                return said.clone();
            }
            assert!(Instant::now() < end, "{} {words:?}: {said:?}", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster of three of `members`, which find one another at one of `service`.
fn three_meet(service: Server, members: Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut service = Side::new(Program::Debians, service, directory.path());
    let base = format!("http://{}/v2/keys/discovery", service.address());
    let url = format!("{base}/token");
    let mut set = |words: &[&str]| assert_eq!(service.run("2", words, "").code, Some(0));
    set(&["set", "/discovery/token/_config/size", "3"]);
    set(&["set", "/discovery/many/_config/size", "many"]);
    let mut three = ["a", "b", "c"].map(|name| Member::new(members, name, directory.path()));
    for member in &mut three {
        member.start(&url);
    }
    let all = |list: &str| list.lines().filter(|l| l.contains(", started, ")).count() == 3;
    let list = three[0].wait_for(&["member", "list"], all);
    for name in [", a, ", ", b, ", ", c, "] {
        assert!(list.contains(name), "{list}");
    }
    three[1].wait_for(&["put", "k", "v"], |said| said == "OK");
    if members == Server::Etcd {
        return;
    }
    // A restart asks nobody, and a member beyond the size finds no place.
    let late = Member::new(members, "d", directory.path());
    let (code, said) = late.fails(&url);
    assert_eq!(code, Some(1));
    assert!(said.contains("the cluster is full"), "{said}");
    for (token, part) in [("nowhere", "/_config/size"), ("many", "\"many\"")] {
        let (code, said) = late.fails(&format!("{base}/{token}"));
        assert_eq!(code, Some(1));
        assert!(said.contains(part), "{said}");
    }
    drop(service);
    three[2].kill();
    three[2].start(&url);
    three[2].wait_for(&["get", "k", "--print-value-only"], |said| said == "v");
}

#[test]
fn three_of_ours_meet_at_our_store() {
    three_meet(Server::Ours, Server::Ours);
}

#[test]
fn three_of_ours_meet_at_etcd() {
    three_meet(Server::Etcd, Server::Ours);
}

#[test]
fn three_of_debians_meet_at_our_store() {
    three_meet(Server::Ours, Server::Etcd);
}
