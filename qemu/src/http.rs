//! A web page, fetched the plainest way; and a server for guests.

pub mod server;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// The largest answer that is read.
const LARGEST_BYTES: u64 = 1 << 20;

/// The body of `path` from 127.0.0.1 at `port`, asked for once.
///
/// # Errors
/// Nobody answers within ten seconds, or the answer's status is not 200.
pub fn get(port: u16, path: &str) -> Result<String> {
    let patience = Duration::from_secs(10);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, patience)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    // In one write: a server that closes before it has read all resets the connection, and its answer is lost.
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream
        .write_all(request.as_bytes())
        .with_context(|| format!("ask {address} for {path}"))?;
    let mut answer = Vec::new();
    stream
        .take(LARGEST_BYTES)
        .read_to_end(&mut answer)
        .with_context(|| format!("read {path} from {address}"))?;
    let answer = String::from_utf8_lossy(&answer);
    // QEMU accepts the connection before the guest does: an empty answer means that nobody listens yet.
    let Some((head, body)) = answer
        .split_once("\r\n\r\n")
        .or_else(|| answer.split_once("\n\n"))
    else {
        bail!("{address} closed the connection without an answer");
    };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{path} from {address}: {status}");
    }
    Ok(body.to_owned())
}

/// Asks for `path` until it is there.
///
/// # Errors
/// The time is over, with the last attempt's reason, or `alive` says why there is nothing to wait for.
pub fn wait_for(
    port: u16,
    path: &str,
    deadline: Instant,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<String> {
    let mut last = None;
    let found = process::poll(&format!("the page {path}"), deadline, || {
        alive()?;
        match get(port, path) {
            Ok(body) => Ok(Some(body)),
            Err(error) => {
                last = Some(error);
                // QEMU holds on to a connection that the guest does not answer; do not pile them up.
                std::thread::sleep(Duration::from_millis(100));
                Ok(None)
            }
        }
    });
    match (found, last) {
        (Err(error), Some(last)) => Err(last.context(error.to_string())),
        (found, _) => found,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer_with(text: &'static str) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("address").port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            stream.write_all(text.as_bytes()).expect("answer");
        });
        port
    }

    #[test]
    fn the_body_is_what_follows_the_head() {
        let port = answer_with("HTTP/1.1 200 OK\r\nA: b\r\n\r\nhello\n");
        assert_eq!(get(port, "/").expect("page"), "hello\n");
    }

    #[test]
    fn a_missing_page_is_an_error() {
        let port = answer_with("HTTP/1.1 404 Not Found\r\n\r\nno\n");
        let error = get(port, "/x").expect_err("no page").to_string();
        assert!(error.contains("404"), "{error}");
    }

    #[test]
    fn a_closed_connection_is_an_error() {
        let port = answer_with("");
        assert!(get(port, "/").is_err());
    }
}
