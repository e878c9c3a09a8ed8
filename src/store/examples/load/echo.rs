//! What a message to another process and the answer to it take, with nothing done in between: below that and the disk's part no
//! server can acknowledge a put.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes of a put of the load on its way, about.
const ASKED_BYTES: usize = 350;
/// Bytes of its answer, about.
const ANSWER_BYTES: usize = 60;

/// A process that answers, ended with this.
pub(crate) struct Echo {
    stream: TcpStream,
    process: Child,
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Echo {
    /// Starts the process.
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let process = Command::new(std::env::current_exe()?)
            .args(["echo", &listener.local_addr()?.to_string()])
            .stdin(Stdio::null())
            .spawn()?;
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, process })
    }

    /// How long one message and its answer take.
    pub(crate) fn ask(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.stream.write_all(&[7; ASKED_BYTES])?;
        self.stream.read_exact(&mut [0; ANSWER_BYTES])?;
        Ok(begun.elapsed())
    }
}

/// Answers whoever listens at `address` until that ends.
pub(crate) fn serve(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    while stream.read_exact(&mut [0; ASKED_BYTES]).is_ok() {
        stream.write_all(&[7; ANSWER_BYTES])?;
    }
    Ok(())
}
