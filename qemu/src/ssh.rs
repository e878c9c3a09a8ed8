//! Commands in a guest, by the host's ssh.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, Owned};

/// A key pair that one run makes for itself.
#[derive(Debug, Clone)]
pub struct Key {
    private: PathBuf,
    /// The line for `authorized_keys`.
    pub public: String,
}

impl Key {
    /// Makes a key in `directory`.
    ///
    /// # Errors
    /// ssh-keygen fails.
    pub fn make(directory: &Path) -> Result<Self> {
        let private = directory.join("key");
        if !private.exists() {
            let output = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "orlop", "-f"])
                .arg(&private)
                .stdin(Stdio::null())
                .output()
                .context("start ssh-keygen")?;
            if !output.status.success() {
                bail!(
                    "ssh-keygen: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
        }
        let public = private.with_extension("pub");
        let public = std::fs::read_to_string(&public)
            .with_context(|| format!("read {}", public.display()))?
            .trim()
            .to_owned();
        Ok(Self { private, public })
    }
}

/// The way into one guest.
#[derive(Debug, Clone)]
pub struct Ssh {
    /// The key to show.
    pub key: Key,
    /// The forwarded port on 127.0.0.1.
    pub port: u16,
    /// The socket of an agent that the guest may use too.
    pub agent: Option<PathBuf>,
}

/// An ssh-agent that holds one key; it ends with its owner.
#[derive(Debug)]
pub struct Agent {
    /// Where it listens.
    pub socket: PathBuf,
    _process: Owned,
}

impl Agent {
    /// Starts one.
    ///
    /// # Errors
    /// ssh-agent does not start, or refuses the key.
    pub fn start(key: &Key) -> Result<Self> {
        // Not with the guests' files: a socket's name holds 108 bytes.
        let socket = std::env::temp_dir().join(format!("orlop-agent-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let mut command = process::bound("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let owned = Owned(process::spawn(command)?);
        let deadline = Instant::now() + Duration::from_secs(30);
        process::poll("ssh-agent", deadline, || Ok(socket.exists().then_some(())))?;
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(&key.private)
            .env("SSH_AUTH_SOCK", &socket)
            .stdin(Stdio::null())
            .output()
            .context("start ssh-add")?;
        if !added.status.success() {
            bail!("ssh-add: {}", String::from_utf8_lossy(&added.stderr).trim());
        }
        Ok(Self {
            socket,
            _process: owned,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Ssh {
    /// What to type to get in.
    #[must_use]
    pub fn command_line(&self) -> String {
        format!(
            "ssh -i {} -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null core@127.0.0.1",
            self.key.private.display(),
            self.port
        )
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "-i".to_owned(),
            self.key.private.display().to_string(),
            "-p".to_owned(),
            self.port.to_string(),
        ];
        // The user's own configuration, keys and agent have no part in this.
        arguments.extend(["-F", "none"].map(str::to_owned));
        arguments.extend(match &self.agent {
            Some(socket) => [
                "-o".to_owned(),
                format!("IdentityAgent={}", socket.display()),
                "-A".to_owned(),
            ]
            .to_vec(),
            None => ["-o", "IdentityAgent=none"].map(str::to_owned).to_vec(),
        });
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            "ServerAliveInterval=15",
            "ServerAliveCountMax=8",
        ] {
            arguments.extend(["-o".to_owned(), option.to_owned()]);
        }
        arguments.push("core@127.0.0.1".to_owned());
        arguments
    }

    /// Runs `command` by the guest's shell and gives all that it left, whatever its status.
    ///
    /// # Errors
    /// ssh cannot be started.
    pub fn output(&self, command: &str) -> Result<Output> {
        let mut ssh = process::bound("timeout");
        ssh.args(["300", "ssh"]).args(self.arguments()).arg(command);
        ssh.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        process::spawn(ssh)?.wait_with_output().context("run ssh")
    }

    /// Runs `command` by the guest's shell and gives its standard output.
    ///
    /// # Errors
    /// There is no connection, or the command fails.
    pub fn run(&self, command: &str) -> Result<String> {
        let output = self.output(command)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "`{command}` in the guest: {}\n{stdout}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// Tries until the guest lets us in.
    ///
    /// # Errors
    /// The time is over, with the last attempt's reason, or `alive` says why there is nothing to wait for.
    pub fn wait(&self, deadline: Instant, mut alive: impl FnMut() -> Result<()>) -> Result<()> {
        let mut last = None;
        let found = process::poll("ssh into the guest", deadline, || {
            alive()?;
            match self.run("true") {
                Ok(_) => Ok(Some(())),
                Err(error) => {
                    last = Some(error);
                    std::thread::sleep(Duration::from_millis(200));
                    Ok(None)
                }
            }
        });
        match (found, last) {
            (Err(error), Some(last)) => Err(last.context(error.to_string())),
            (found, _) => found,
        }
    }

    /// Forwards `local` on 127.0.0.1 to `remote` on the guest's 127.0.0.1 until the value is dropped.
    ///
    /// # Errors
    /// ssh cannot be started or does not listen within a minute.
    pub fn forward(&self, local: u16, remote: u16) -> Result<Owned> {
        let mut ssh = process::bound("ssh");
        ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-L"])
            .arg(format!("127.0.0.1:{local}:127.0.0.1:{remote}"))
            .args(self.arguments());
        ssh.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = Owned(process::spawn(ssh)?);
        process::poll(
            "ssh to forward a port",
            Instant::now() + Duration::from_secs(60),
            || {
                if let Some(status) = child.0.try_wait().context("look after ssh")? {
                    bail!("ssh ended with {status}");
                }
                Ok(std::net::TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, local)).ok())
            },
        )?;
        Ok(child)
    }
}
