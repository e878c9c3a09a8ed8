//! A web server for guests: files and texts by path, and a list of what was asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
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
    while !line()?.is_empty() {}
    let mut words = request.split(' ');
    let is_head = words.next() == Some("HEAD");
    let path = words.next().unwrap_or_default().to_owned();
    let content = {
        let mut state = lock(state);
        state.requests.push(path.clone());
        state.contents.get(&path).cloned()
    };
    let mut stream = stream;
    let (length, mut body): (u64, Box<dyn Read>) = match content {
        None => {
            return stream.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
        Some(Content::Bytes(bytes)) => (bytes.len() as u64, Box::new(io::Cursor::new(bytes))),
        Some(Content::File(path)) => {
            let file = File::open(path)?;
            (file.metadata()?.len(), Box::new(file))
        }
    };
    stream.write_all(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
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
