//! Members as processes, each on a host of its own, and what is done to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_store::node::Options;
use orlop_store::server::{Bootstrap, Settings, Tls};

use super::network::{Network, address};
use crate::random::Random;

/// Tells a child process of the test what to be: its number, how many there are, and its directory, with spaces between.
const MEMBER: &str = "ORLOP_STORE_TEST_NAMESPACE";
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

fn name(member: usize) -> String {
    format!("m{member}")
}

fn url(address: IpAddr, port: u16) -> String {
    format!("http://{}", SocketAddr::new(address, port))
}

/// The URL at which clients reach a member.
pub(super) fn client_url(member: usize) -> String {
    url(address(member), CLIENT_PORT)
}

/// The member itself, when this binary is started by one of the tests; else nothing.
#[test]
fn member_in_a_namespace() {
    let Ok(words) = std::env::var(MEMBER) else {
        return;
    };
    // No member outlives its test, not even one that is stopped.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("die with the test");
    let words: Vec<&str> = words.split(' ').collect();
    let [member, count, data_dir] = words[..] else {
        panic!("{words:?}");
    };
    let member: usize = member.parse().expect("a number");
    let count: usize = count.parse().expect("a number");
    let peer_urls = |member| vec![url(address(member), PEER_PORT)];
    let settings = Settings {
        name: name(member),
        data_dir: data_dir.into(),
        listen: vec![SocketAddr::new(address(member), CLIENT_PORT)],
        client_urls: vec![client_url(member)],
        peer_listen: vec![SocketAddr::new(address(member), PEER_PORT)],
        peer_urls: peer_urls(member),
        bootstrap: Bootstrap::New {
            members: (0..count).map(|m| (name(m), peer_urls(m))).collect(),
            token: "test".into(),
        },
        tls: Tls::default(),
        options: Options {
            // Whoever was away is often sent a whole state.
            keep_entries: 100,
            checkpoint_time: Duration::from_secs(1),
            ..Options::default()
        },
    };
    if let Err(err) = orlop_store::server::run(&settings, |_| {}) {
        eprintln!("m{member}: {:#}", anyhow::Error::new(err));
        std::process::exit(3);
    }
}

#[derive(Debug)]
enum State {
    Running(Child),
    Stopped(Child),
    Dead,
}

/// How often what was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) kills: u64,
    pub(super) stops: u64,
    pub(super) cuts: u64,
}

/// The members and their network.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) network: Arc<Network>,
    directory: tempfile::TempDir,
    states: Vec<State>,
    pub(super) done: Done,
}

impl Members {
    pub(super) fn start(count: usize) -> Self {
        let mut members = Self {
            network: Arc::new(Network::new(count)),
            directory: tempfile::tempdir().expect("a directory"),
            states: (0..count).map(|_| State::Dead).collect(),
            done: Done::default(),
        };
        members.restore();
        members
    }

    pub(super) fn count(&self) -> usize {
        self.states.len()
    }

    fn spawn(&self, member: usize) -> Child {
        let data_dir: PathBuf = self.directory.path().join(name(member));
        let words = format!("{member} {} {}", self.count(), data_dir.display());
        let mut command = Command::new(std::env::current_exe().expect("the test is a file"));
        command
            .args([
                "namespaces::members::member_in_a_namespace",
                "--exact",
                "--nocapture",
            ])
            .env(MEMBER, words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = self.network.at(member, || command.spawn());
        child.expect("the member starts")
    }

    fn signal(child: &Child, signal: Signal) {
        let id = i32::try_from(child.id()).expect("a process number");
        kill(Pid::from_raw(id), signal).expect("the member is there");
    }

    /// As by `kill -9`.
    fn kill(&mut self, member: usize) {
        let state = std::mem::replace(&mut self.states[member], State::Dead);
        let (State::Running(mut child) | State::Stopped(mut child)) = state else {
            return;
        };
        let ended = child.try_wait().expect("it is our child");
        assert_eq!(ended, None, "m{member} ended by itself");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        self.done.kills += 1;
    }

    fn stop(&mut self, member: usize) {
        let state = std::mem::replace(&mut self.states[member], State::Dead);
        self.states[member] = match state {
            State::Running(child) => {
                Self::signal(&child, Signal::SIGSTOP);
                self.done.stops += 1;
                State::Stopped(child)
            }
            other => other,
        };
    }

    /// What is dead starts, what is stopped goes on.
    fn raise(&mut self, member: usize) {
        let state = std::mem::replace(&mut self.states[member], State::Dead);
        self.states[member] = match state {
            State::Running(child) => State::Running(child),
            State::Stopped(child) => {
                Self::signal(&child, Signal::SIGCONT);
                State::Running(child)
            }
            State::Dead => State::Running(self.spawn(member)),
        };
    }

    /// All run, and all ways are open.
    pub(super) fn restore(&mut self) {
        self.network.mend();
        for member in 0..self.count() {
            self.raise(member);
        }
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.network.cut(from, to);
        self.done.cuts += 1;
    }

    /// Some harm, drawn.
    fn harm(&mut self, random: &mut Random) {
        let count = self.count();
        let draw = |random: &mut Random, end: usize| random.below(end as u64) as usize;
        let one = draw(random, count);
        let other = (one + 1 + draw(random, count - 1)) % count;
        match random.below(9) {
            0 | 1 => self.kill(one),
            2 | 3 => self.stop(one),
            4 => self.cut(one, other),
            5 => {
                self.cut(one, other);
                self.cut(other, one);
            }
            // One is heard by no one, hears no one, or both.
            6 => {
                let way = random.below(3);
                for other in (0..count).filter(|other| *other != one) {
                    if way != 0 {
                        self.cut(one, other);
                    }
                    if way != 1 {
                        self.cut(other, one);
                    }
                }
            }
            // Two parts.
            7 => {
                let first: Vec<bool> = (0..count).map(|_| random.once_in(2)).collect();
                for from in 0..count {
                    for to in (0..count).filter(|to| first[*to] != first[from]) {
                        self.cut(from, to);
                    }
                }
            }
            _ => (0..count).for_each(|member| self.kill(member)),
        }
    }

    /// Harms members and ways and lets them recover, again and again.
    pub(super) fn harm_for(&mut self, storm: Duration, random: &mut Random) {
        let begun = Instant::now();
        let pause = |random: &mut Random, from_ms: u64, to_ms: u64| {
            thread::sleep(Duration::from_millis(
                from_ms + random.below(to_ms - from_ms),
            ));
        };
        while begun.elapsed() < storm {
            for _ in 0..1 + random.below(2) {
                self.harm(random);
                pause(random, 100, 1000);
            }
            match random.below(5) {
                // Half of it, at times, so that what follows comes on top.
                0 => self.network.mend(),
                1 => (0..self.count()).for_each(|member| self.raise(member)),
                _ => self.restore(),
            }
            pause(random, 300, 2000);
        }
        self.restore();
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for state in &mut self.states {
            if let State::Running(child) | State::Stopped(child) = state {
                // It may have ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
