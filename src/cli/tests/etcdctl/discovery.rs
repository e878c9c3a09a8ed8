//! First members that find one another at a URL: ours and Debian's, at our store and at Debian's.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orlop_testing::{Etcdctl, Process, free_address, write_certificates};

use crate::sides::{Program, Server, Side, ours};

const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    server: Server,
    name: String,
    data_dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    /// Its `--discovery-fallback`, if one is given.
    fallback: Option<&'static str>,
    /// How clients are served.
    scheme: &'static str,
    /// Where its certificates are, if it has some.
    certificates: Option<PathBuf>,
    process: Option<Process>,
}

impl Member {
    fn new(server: Server, name: &str, directory: &Path) -> Self {
        Self {
            server,
            name: name.to_owned(),
            data_dir: directory.join(name),
            client: free_address(),
            peer: free_address(),
            fallback: Some("exit"),
            scheme: "http",
            certificates: None,
            process: None,
        }
    }

    fn command(&self, url: &str) -> Command {
        let scheme = self.scheme;
        let mut flags = vec![
            format!("--name={}", self.name),
            format!("--data-dir={}", self.data_dir.display()),
            format!("--listen-client-urls={scheme}://{}", self.client),
            format!("--advertise-client-urls={scheme}://{}", self.client),
            format!("--listen-peer-urls=http://{}", self.peer),
            format!("--initial-advertise-peer-urls=http://{}", self.peer),
            format!("--discovery={url}"),
        ];
        let fallback = self.fallback.map(|f| format!("--discovery-fallback={f}"));
        flags.extend(fallback);
        if let Some(files) = &self.certificates {
            flags.extend(certificate_flags(files));
        }
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
        let log = self.data_dir.with_extension("log");
        let process = Process::spawn(self.command(url).stdin(Stdio::null()), &log);
        self.process = Some(process.expect("it starts"));
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
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

    fn etcdctl(&self) -> Etcdctl {
        Etcdctl::new(self.client)
    }

    fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        self.etcdctl().wait_for(words, wanted)
    }
}

fn certificate_flags(files: &Path) -> [String; 3] {
    let flag = |flag: &str, file: &str| format!("--{flag}={}", files.join(file).display());
    [
        flag("cert-file", "crt"),
        flag("key-file", "key"),
        flag("trusted-ca-file", "ca"),
    ]
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
    // With the URLs for peers and for clients.
    let all = |list: &str| list.matches("http://").count() == 6;
    let list = three[0].wait_for(&["member", "list"], all);
    for name in [", a, ", ", b, ", ", c, "] {
        assert!(list.contains(name), "{list}");
    }
    three[1].wait_for(&["put", "k", "v"], |said| said == "OK");
    if members == Server::Etcd {
        return;
    }
    // A restart asks nobody, and a member beyond the size finds no place.
    let mut late = Member::new(members, "d", directory.path());
    let (code, said) = late.fails(&url);
    assert_eq!(code, Some(1));
    assert!(said.contains("the cluster is full"), "{said}");
    for (token, part) in [("nowhere", "/_config/size"), ("many", "\"many\"")] {
        let (code, said) = late.fails(&format!("{base}/{token}"));
        assert_eq!(code, Some(1));
        assert!(said.contains(part), "{said}");
    }
    // Unless it is told to end, it passes its clients on.
    late.fallback = None;
    late.start(&url);
    late.wait_for(&["get", "k", "--print-value-only"], |said| said == "v");
    assert_eq!(late.etcdctl().run(&["member", "list"]), Ok(list));
    drop(service);
    for i in [1, 2] {
        three[i].kill();
        late.wait_for(&["put", "k", &format!("{i} is away")], |said| said == "OK");
        three[i].start(&url);
        let all = ["get", "k", "--print-value-only"];
        three[i].wait_for(&all, |said| said == format!("{i} is away"));
    }
    // It knows them without the service, and whichever answers.
    late.kill();
    three[0].kill();
    late.start(&url);
    late.wait_for(&["put", "k", "w"], |said| said == "OK");
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

#[test]
fn a_proxy_shows_members_the_machines_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    write_certificates(directory.path());
    let mut service = Side::new(Program::Debians, Server::Ours, directory.path());
    let url = format!("http://{}/v2/keys/d", service.address());
    let set = service.run("2", &["set", "/d/_config/size", "1"], "");
    assert_eq!(set.code, Some(0));
    let [mut member, mut proxy, mut stranger] = ["a", "b", "c"].map(|name| {
        let mut machine = Member::new(Server::Ours, name, directory.path());
        machine.certificates = Some(directory.path().to_owned());
        machine.fallback = Some("proxy");
        machine
    });
    member.scheme = "https";
    member.start(&url);
    // Only now is its place surely taken.
    let end = Instant::now() + PATIENCE;
    while !service.run("2", &["ls", "/d"], "").out.contains("/d/") {
        assert!(Instant::now() < end, "it does not register");
    }
    proxy.start(&url);
    proxy.wait_for(&["put", "k", "v"], |said| said == "OK");
    let members = proxy.wait_for(&["member", "list"], |said| !said.is_empty());
    assert!(
        members.contains(&format!("https://{}", member.client)),
        "{members}"
    );
    // One that has none gets nobody through.
    stranger.certificates = None;
    stranger.start(&url);
    let end = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect(stranger.client) {
            Ok(stream) => break stream,
            Err(err) => assert!(Instant::now() < end, "{err}"),
        }
    };
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("it can be set");
    let read = stream.read_to_end(&mut Vec::new());
    assert_eq!(read.expect("it hangs up"), 0);
}
