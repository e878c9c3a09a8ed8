//! A guest's serial console: the log that QEMU writes, and a line to type on.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::process;

/// What a guest wrote on its serial line, as a file that grows.
#[derive(Debug, Clone)]
pub struct Log {
    /// Where it lies.
    pub path: PathBuf,
}

impl Log {
    /// Everything so far, without the carriage returns.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// What came after the first `from` bytes of [`Log::text`].
    #[must_use]
    pub fn text_from(&self, from: usize) -> String {
        let text = self.text();
        text.get(from..).unwrap_or_default().to_owned()
    }

    /// The last `count` lines.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// A connection to a socket whose path is longer than the 108 bytes of `sun_path` (unix(7)).
///
/// # Errors
/// Nobody listens there.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default();
    let opened = File::open(directory).with_context(|| format!("open {}", directory.display()))?;
    let short = Path::new("/proc/self/fd")
        .join(opened.as_raw_fd().to_string())
        .join(name);
    UnixStream::connect(short).with_context(|| format!("connect to {}", path.display()))
}

/// A shell on the serial line, for guests without a network. The line is free again when it is dropped.
#[derive(Debug)]
pub struct Shell {
    stream: UnixStream,
    /// What came by the socket. Not QEMU's log of the same line: it has bytes twice that the socket did not take at once.
    said: Arc<Mutex<Vec<u8>>>,
    commands: u32,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // QEMU serves one connection at a time, and the reader's copy would keep this one.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Shell {
    /// Takes the serial line.
    ///
    /// # Errors
    /// The socket is not there.
    pub fn open(socket: &Path) -> Result<Self> {
        let stream = connect(socket)?;
        let mut reader = stream.try_clone().context("share the serial line")?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                let bytes = buffer.iter().take(count);
                lock(&heard).extend(bytes.filter(|byte| **byte != b'\r'));
            }
        });
        Ok(Self {
            stream,
            said,
            commands: 0,
        })
    }

    /// Presses keys, for what is no shell: the firmware, the loader's menu.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.stream
            .write_all(keys.as_bytes())
            .context("type on the console")
    }

    /// Leaves the shell.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn leave(mut self) -> Result<()> {
        self.press("exit\n")
    }

    /// Types `command` and gives what it printed, once the shell says that it is done.
    ///
    /// # Errors
    /// The shell does not answer in time, or the command fails.
    pub fn run(&mut self, command: &str, deadline: Instant) -> Result<String> {
        self.commands += 1;
        lock(&self.said).clear();
        // The shell echoes what is typed: the quotes keep the marks from being found in the echo.
        let begin = format!("begin-{}-", self.commands);
        let end = format!("end-{}-", self.commands);
        let line = format!(
            "echo be''gin-{0}-; {command}; echo e''nd-{0}-$?.\n",
            self.commands
        );
        let what = format!("`{command}` on the console");
        let mut typed = Instant::now();
        self.stream
            .write_all(line.as_bytes())
            .context("type on the console")?;
        process::poll(&what, deadline, || {
            let text = String::from_utf8_lossy(&lock(&self.said)).into_owned();
            if let Some((_, rest)) = text.split_once(&begin) {
                let Some((output, status)) = rest.split_once(&end) else {
                    return Ok(None);
                };
                let Some((status, _)) = status.split_once('.') else {
                    return Ok(None);
                };
                anyhow::ensure!(
                    status == "0",
                    "{what} ended with {status}: {}",
                    output.trim()
                );
                return Ok(Some(output.trim_start_matches('\n').to_owned()));
            }
            // What is typed before the shell reads its terminal is lost.
            if typed.elapsed().as_secs() >= 5 {
                typed = Instant::now();
                self.stream
                    .write_all(line.as_bytes())
                    .context("type on the console")?;
            }
            Ok(None)
        })
    }
}

/// What was said so far; a reader that panicked has left it whole.
fn lock(said: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}
