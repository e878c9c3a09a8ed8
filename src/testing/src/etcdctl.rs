//! Debian's `etcdctl` (package etcd-client) on servers under test.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command may print something else than what is waited for: a cluster that lost members, or is still to be made,
/// takes its time on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two attempts; most of those that fail wait for a connection by themselves.
const PAUSE: Duration = Duration::from_millis(20);

/// `etcdctl` for one server.
#[derive(Clone, Debug)]
pub struct Etcdctl {
    flags: Vec<OsString>,
}

impl Etcdctl {
    /// For a server that takes clients at an address without TLS.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            flags: vec![format!("--endpoints={address}").into()],
        }
    }

    /// For a server that takes clients with TLS: the authority of its certificate.
    #[must_use]
    pub fn with_tls(address: SocketAddr, authority: &Path) -> Self {
        Self {
            flags: vec![
                format!("--endpoints=https://{address}").into(),
                "--cacert".into(),
                authority.into(),
            ],
        }
    }

    /// Shows a certificate, of which this is the key.
    #[must_use]
    pub fn showing(mut self, certificate: &Path, key: &Path) -> Self {
        self.flags.extend([
            "--cert".into(),
            certificate.into(),
            "--key".into(),
            key.into(),
        ]);
        self
    }

    /// A command that is still to be started.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(&self.flags)
            .args(words);
        command
    }

    /// What a command prints, or says when it fails.
    ///
    /// # Errors
    ///
    /// What it says on standard error.
    ///
    /// # Panics
    ///
    /// If there is no `etcdctl`.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .command(words)
            .arg("--command-timeout=3s")
            .stdin(Stdio::null())
            .output()
            .expect("etcdctl starts (Debian's package etcd-client is needed)");
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        match status.success() {
            true => Ok(said(&stdout)),
            false => Err(said(&stderr)),
        }
    }

    /// Runs a command until it prints what is wanted.
    ///
    /// # Panics
    ///
    /// If it does not within a minute.
    pub fn wait_for(&self, words: &[&str], wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let said = self.run(words);
            match said {
                Ok(said) if wanted(&said) => return said,
                _ => assert!(Instant::now() < end, "{:?} {words:?}: {said:?}", self.flags),
            }
            thread::sleep(PAUSE);
        }
    }

    /// Runs a command until it succeeds: what it prints.
    ///
    /// # Panics
    ///
    /// If it does not within a minute.
    pub fn insist(&self, words: &[&str]) -> String {
        self.wait_for(words, |_| true)
    }
}
