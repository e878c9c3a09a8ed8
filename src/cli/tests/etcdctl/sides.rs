//! A program and the server that it is for.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_testing::{Authority, Process, free_address, write_certificates};
use regex::Regex;

/// Where a child process of the test finds its arguments, with 0x1f between.
pub(crate) const ARGUMENTS: &str = "ORLOP_ETCDCTL_TEST_ARGUMENTS";
/// What the child prints before the program's own output.
pub(crate) const MARK: &str = "~~~ program ~~~\n";
const PATIENCE: Duration = Duration::from_secs(30);
/// What the members advertise: nobody asks there.
const PEER: &str = "http://127.0.0.1:9";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Debians,
    Ours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Ours,
    Etcd,
}

pub(crate) struct Side {
    program: Program,
    address: SocketAddr,
    /// Where the certificates are, if the server takes only clients that have one.
    certificates: Option<PathBuf>,
    // Ends with it.
    _process: Process,
    lease: String,
    first: String,
    member: String,
}

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    /// The lines of standard error that are not the library's own.
    pub(crate) errors: String,
}

/// The certificates for loopback, and another authority.
fn make_certificates(directory: &Path) {
    write_certificates(directory);
    let other = Authority::new().expect("an authority");
    std::fs::write(directory.join("other-ca"), other.pem).expect("it can be written");
}

/// Our binary's program, as a child of the test.
pub(crate) fn ours(words: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
    command
        .args(["process", "--exact", "--nocapture"])
        .env(ARGUMENTS, words.join("\x1f"));
    command
}

impl Side {
    pub(crate) fn new(program: Program, server: Server, directory: &Path) -> Self {
        Self::made(program, server, directory, None)
    }

    /// With a server that takes only clients with a certificate.
    pub(crate) fn with_tls(program: Program, server: Server, directory: &Path) -> Self {
        let files = directory.join(format!("{program:?}-certificates"));
        std::fs::create_dir(&files).expect("a directory");
        make_certificates(&files);
        Self::made(program, server, directory, Some(files))
    }

    fn made(
        program: Program,
        server: Server,
        directory: &Path,
        certificates: Option<PathBuf>,
    ) -> Self {
        let address = free_address();
        let scheme = if certificates.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{address}");
        let mut flags = vec![
            "--name=one".to_owned(),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls=http://{}", free_address()),
            format!("--initial-advertise-peer-urls={PEER}"),
            format!("--initial-cluster=one={PEER}"),
            format!(
                "--data-dir={}",
                directory.join(format!("{program:?}")).display()
            ),
            "--enable-v2".to_owned(),
        ];
        if let Some(files) = &certificates {
            flags.extend([
                format!("--cert-file={}", files.join("crt").display()),
                format!("--key-file={}", files.join("key").display()),
                format!("--trusted-ca-file={}", files.join("ca").display()),
                "--client-cert-auth".to_owned(),
            ]);
        }
        let mut command = match server {
            Server::Etcd => {
                let mut command = Command::new("etcd");
                command.args(flags);
                command
            }
            Server::Ours => ours(&[&["orlop".into(), "store".into()], &flags[..]].concat()),
        };
        let log = directory.join(format!("{program:?}.log"));
        let process = Process::spawn(command.stdin(Stdio::null()), &log)
            .expect("the server starts (Debian's packages etcd-server and etcd-client are needed)");
        let mut side = Self {
            program,
            address,
            certificates,
            _process: process,
            lease: String::new(),
            first: String::new(),
            member: String::new(),
        };
        side.wait();
        let listed = side.command("3", &["member", "list"]).output();
        let listed = String::from_utf8(listed.expect("it runs").stdout).expect("UTF-8");
        let listed = listed.split_once(MARK).map_or(listed.as_str(), |(_, l)| l);
        side.first = listed.split(',').next().unwrap_or_default().to_owned();
        assert!(!side.first.is_empty(), "there is a member");
        side
    }

    /// Until it answers that it is healthy.
    fn wait(&self) {
        let until = Instant::now() + PATIENCE;
        if self.certificates.is_some() {
            while outcome(&mut self.command("3", &["endpoint", "health"]), "").code != Some(0) {
                assert!(Instant::now() < until, "the server does not get healthy");
            }
            return;
        }
        loop {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect(self.address) {
                let asked = write!(
                    stream,
                    "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                );
                let read =
                    asked.and_then(|()| std::io::Read::read_to_string(&mut stream, &mut text));
                if read.is_ok() && text.contains("\"true\"") {
                    return;
                }
            }
            assert!(Instant::now() < until, "the server does not get healthy");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self, api: &str, words: &[&str]) -> Command {
        let endpoint = match (api, &self.certificates) {
            (_, Some(_)) => format!("https://{}", self.address),
            ("2", None) => format!("http://{}", self.address),
            _ => self.address.to_string(),
        };
        let mut all = vec!["etcdctl".to_owned()];
        if let Some(files) = &self.certificates {
            let names = match api {
                "2" => [("ca-file", "ca"), ("cert-file", "crt"), ("key-file", "key")],
                _ => [("cacert", "ca"), ("cert", "crt"), ("key", "key")],
            };
            for (flag, file) in names {
                if !words.iter().any(|w| w.starts_with(&format!("--{flag}="))) {
                    all.push(format!("--{flag}={}", files.join(file).display()));
                }
            }
        }
        if !words.iter().any(|w| w.starts_with("--endpoints")) {
            all.push(format!("--endpoints={endpoint}"));
        }
        let with_ids = words.iter().map(|word| match *word {
            "LEASE" => self.lease.clone(),
            "FIRST" => self.first.clone(),
            "MEMBER" => self.member.clone(),
            "--cacert=OTHER" | "--ca-file=OTHER" => {
                let files = self.certificates.as_deref().unwrap_or(Path::new(""));
                word.replace("OTHER", &files.join("other-ca").display().to_string())
            }
            word => word.replace("=LEASE", &format!("={}", self.lease)),
        });
        all.extend(with_ids);
        let mut command = match self.program {
            Program::Ours => ours(&all),
            Program::Debians => {
                let mut command = Command::new("etcdctl");
                command.args(&all[1..]);
                command
            }
        };
        command.env("ETCDCTL_API", api);
        command
    }

    /// Where the server is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs ours without a server.
    pub(crate) fn alone(words: &[&str]) -> Outcome {
        let words: Vec<String> = ["etcdctl"]
            .iter()
            .chain(words)
            .map(|w| (*w).to_owned())
            .collect();
        outcome(ours(&words).env("ETCDCTL_API", "3"), "")
    }

    /// Runs a command to its end.
    pub(crate) fn run(&mut self, api: &str, words: &[&str], input: &str) -> Outcome {
        let Outcome { code, out, errors } = self.run_raw(api, words, input);
        let out = match words {
            ["member", "list" | "add", ..] => in_order(&out),
            _ => out,
        };
        Outcome {
            code,
            out: self.normalised(&out),
            errors: self.normalised(&errors),
        }
    }

    /// The same, with nothing taken out.
    pub(crate) fn run_raw(&mut self, api: &str, words: &[&str], input: &str) -> Outcome {
        let outcome = outcome(&mut self.command(api, words), input);
        self.remember(&outcome.out);
        outcome
    }

    fn remember(&mut self, out: &str) {
        if let Some(rest) = out.strip_prefix("lease ")
            && let Some((id, _)) = rest.split_once(" granted with TTL")
        {
            self.lease = id.to_owned();
        }
        if let Some(rest) = out.strip_prefix("Member ")
            && let Some((id, _)) = rest.split_once(" added to")
        {
            self.member = id.trim().to_owned();
        }
    }

    /// The first lines that a command prints, and how it ends when it is interrupted then. It may also end by itself.
    pub(crate) fn stream(
        &mut self,
        api: &str,
        words: &[&str],
        lines: usize,
    ) -> (Vec<String>, Option<i32>) {
        let mut child = self
            .command(api, words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let output = BufReader::new(child.stdout.take().expect("it has an output"));
        let (sender, received) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines() {
                // Nobody may listen any more.
                let _ = sender.send(line.expect("UTF-8"));
            }
        });
        let next = || received.recv_timeout(PATIENCE).ok();
        if self.program == Program::Ours {
            while next().is_some_and(|line| !line.ends_with(MARK.trim_end())) {}
        }
        let printed = (0..lines).map_while(|_| next());
        let printed = printed.map(|line| self.normalised(&line)).collect();
        let pid = Pid::from_raw(child.id().try_into().expect("a process number"));
        // Not SIGINT, which a test in the background inherits as ignored. It may be gone already.
        let _ = kill(pid, Signal::SIGTERM);
        let code = child.wait().expect("it ends").code();
        (printed, code)
    }

    /// Takes out what differs from one run to the next: addresses, random ids, times, sizes.
    fn normalised(&self, text: &str) -> String {
        let rules = [
            (r" *\b[0-9a-f]{13,16}\b", "ID"),
            (r" *\b[0-9]{16,20}\b", "ID"),
            (r"took = .*", "took"),
            (r#""took":"[^"]*""#, "took"),
            (r#""Took" : .*"#, "took"),
            (r"(?m)^(\+|\|).*TOOK.*\n(.*\n)*", "table with times\n"),
            (r"remaining\([0-9]+s\)", "remaining"),
            (r#""(ttl|TTL)"( : |:)[0-9]+"#, "ttl"),
            (r#"TTL: [0-9]+"#, "TTL"),
            (r#""(dbSize|dbSizeInUse)":[0-9]+"#, "$1"),
            (r#""DBSize" : [0-9]+"#, "DBSize"),
            (r" *[0-9.]+ [kM]B", "SIZE"),
            (r"(?m)^\+[-+]*\n", ""),
            (r#"hash":[0-9]+"#, "hash"),
            (r"\| +HASH +\|", "HASH"),
            (r"\| +[0-9]{6,10} +\|", "hash"),
            (r#""expiration":"[^"]*""#, "expiration"),
        ];
        let mut text = text.replace(&self.address.to_string(), "ADDRESS");
        for (rule, with) in rules {
            let rule = Regex::new(rule).expect("a valid expression");
            text = rule.replace_all(&text, with).into_owned();
        }
        text
    }
}

/// Runs a program to its end.
fn outcome(command: &mut Command, input: &str) -> Outcome {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("it has an input");
    // It may have ended before it read anything.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    // Only ours has the mark, which may be lost with all output of one that fails at once.
    let out = match out.split_once(MARK) {
        Some((_, out)) => out.to_owned(),
        None => out,
    };
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let errors: Vec<&str> = errors
        .lines()
        // What its logging library writes is no output.
        .filter(|line| !line.starts_with("{\"level\"") && !line.is_empty())
        .filter(|line| !line.starts_with("etcdctl: "))
        .collect();
    Outcome {
        code: output.status.code(),
        out,
        errors: errors.join("\n"),
    }
}

/// Members come in the order of their ids, which are random.
fn in_order(text: &str) -> String {
    let line = |line: &str| {
        if !line.starts_with("ETCD_INITIAL_CLUSTER=") {
            return line.to_owned();
        }
        let mut parts: Vec<&str> = line.split(['"', ',']).collect();
        parts.sort_unstable();
        parts.join(" ")
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    if !text.starts_with('{') {
        lines.sort_unstable_by_key(|line| {
            line.contains("started").then(|| line.contains("unstarted"))
        });
    }
    lines.join("\n")
}
