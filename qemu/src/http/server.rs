//! A web server for guests: files and texts by path, and a list of what was asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The longest line of a request that is read.
const LONGEST_LINE: u64 = 8 << 10;

/// What is served.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file, as it is when it is asked for.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file of which each answer breaks off after so many bytes.
    Flaky(PathBuf, u64),
}

impl Content {
    /// What an answer from byte `start` on reads, and how long the whole is.
    fn open(self, start: u64) -> io::Result<(Box<dyn Read>, u64)> {
        let file = |path| {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(start))?;
            io::Result::Ok((file, length))
        };
        Ok(match self {
            Self::Bytes(bytes) => {
                let length = bytes.len() as u64;
                let mut bytes = io::Cursor::new(bytes);
                bytes.set_position(start);
                (Box::new(bytes), length)
            }
            Self::File(path) => {
                let (file, length) = file(path)?;
                (Box::new(file), length)
            }
            Self::Flaky(path, most) => {
                let (file, length) = file(path)?;
                (Box::new(file.take(most)), length)
            }
        })
    }
}

#[derive(Debug, Default)]
struct State {
    contents: BTreeMap<String, Content>,
    requests: Vec<String>,
}

/// A server on a port of 127.0.0.1, which a guest on QEMU's own network reaches as 10.0.2.2. It serves as long as this program runs.
#[derive(Debug, Clone)]
pub struct Server {
    /// The port.
    pub port: u16,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Starts a server that has nothing yet.
    ///
    /// # Errors
    /// There is no port for it.
    pub fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for requests")?;
        let server = Self {
            port: listener.local_addr().context("the server's port")?.port(),
            state: Arc::default(),
        };
        let state = Arc::clone(&server.state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || {
                    // A guest that goes away in the middle is its own business.
                    let _ = answer(stream, &state);
                });
            }
        });
        Ok(server)
    }

    /// Serves `content` at `path`, which begins with a slash.
    pub fn serve(&self, path: &str, content: Content) {
        lock(&self.state).contents.insert(path.to_owned(), content);
    }

    /// The URL of a path, for a guest.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://10.0.2.2:{}{path}", self.port)
    }

    /// The paths that were asked for, the first one first.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        lock(&self.state).requests.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request, and closes.
fn answer(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = || {
        let mut line = String::new();
        (&mut reader).take(LONGEST_LINE).read_line(&mut line)?;
        io::Result::Ok(line.trim_end().to_owned())
    };
    let request = line()?;
    // The one form of RFC 9110 §14.2 that a download which goes on sends.
    let mut start = 0;
    loop {
        let field = line()?;
        if field.is_empty() {
            break;
        }
        if let Some(from) = field
            .strip_prefix("Range: bytes=")
            .and_then(|range| range.strip_suffix('-'))
        {
            start = from.parse().unwrap_or(0);
        }
    }
    let mut words = request.split(' ');
    let is_head = words.next() == Some("HEAD");
    let path = words.next().unwrap_or_default().to_owned();
    let content = {
        let mut state = lock(state);
        state.requests.push(path.clone());
        state.contents.get(&path).cloned()
    };
    let mut stream = stream;
    let Some(content) = content else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let (mut body, whole) = content.open(start)?;
    let length = whole.saturating_sub(start);
    let status = match start {
        0 => "200 OK".to_owned(),
        _ => format!(
            "206 Partial Content\r\nContent-Range: bytes {start}-{}/{whole}",
            whole.saturating_sub(1)
        ),
    };
    stream.write_all(
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    if !is_head {
        io::copy(&mut body, &mut stream)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_served_and_all_requests_are_noted() {
        let server = Server::start().expect("a server");
        server.serve("/a", Content::Bytes(b"one\n".to_vec()));
        assert_eq!(
            crate::http::get(server.port, "/a").expect("a page"),
            "one\n"
        );
        let error = crate::http::get(server.port, "/b").expect_err("no page");
        assert!(error.to_string().contains("404"), "{error}");
        assert_eq!(server.requests(), ["/a", "/b"]);
    }
}
