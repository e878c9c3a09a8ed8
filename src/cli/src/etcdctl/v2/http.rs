//! Requests of the v2 API: HTTP/1.1, one connection each.

use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::channel::Target;
use super::Failure;

/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// The way to a store.
pub(crate) struct Http {
    pub(crate) targets: Vec<Target>,
    pub(crate) runtime: tokio::runtime::Runtime,
    /// What a connection may take.
    pub(crate) timeout: Duration,
    /// What a command may take.
    pub(crate) total: Duration,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// `X-Etcd-Index`.
    pub(crate) index: u64,
    pub(crate) body: Vec<u8>,
}

/// Text as part of a URL, with `keep` besides letters and digits.
pub(crate) fn escaped(text: &str, keep: &[u8]) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.contains(&byte) {
            out.push(byte as char);
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

/// Names and values as a form or a query.
pub(crate) fn form(pairs: &[(&str, String)]) -> String {
    let pair = |(name, value): &(&str, String)| format!("{name}={}", escaped(value, b""));
    pairs.iter().map(pair).collect::<Vec<_>>().join("&")
}

impl Http {
    /// Asks the endpoints one after another until one answers.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<Answer, Failure> {
        self.request_within(Some(self.total), method, path, body)
    }

    /// The same, for as long as it takes without `total`.
    pub(crate) fn request_within(
        &self,
        total: Option<Duration>,
        method: &str,
        path: &str,
        body: Option<(&str, String)>,
    ) -> Result<Answer, Failure> {
        let mut failed = Vec::new();
        // What is wrong with a certificate is no matter of the connection to etcd's client.
        let mut code = 2;
        for target in &self.targets {
            let asked = async {
                let exchange = self.exchange(target, method, path, body.as_ref());
                match total {
                    Some(total) => tokio::time::timeout(total, exchange)
                        .await
                        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                    None => tokio::select! {
                        answer = exchange => answer,
                        _ = tokio::signal::ctrl_c() => Err(io::ErrorKind::Interrupted.into()),
                    },
                }
            };
            match self.runtime.block_on(asked) {
                Ok(answer) => return Ok(answer),
                // That is how a watch ends.
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {
                    return Err(Failure::plain(0, ""));
                }
                Err(err) => failed.push(match err.kind() {
                    io::ErrorKind::InvalidData => {
                        code = 4;
                        format!("{}: {err}", target.authority())
                    }
                    io::ErrorKind::ConnectionRefused => {
                        let at = target.authority();
                        format!("dial tcp {at}: connect: connection refused")
                    }
                    io::ErrorKind::TimedOut => {
                        format!("{}: no answer in time", target.authority())
                    }
                    _ => format!("{}: {err}", target.authority()),
                }),
            }
        }
        let named: Vec<String> = failed
            .iter()
            .enumerate()
            .map(|(i, why)| format!("error #{i}: {why}"))
            .collect();
        Err(Failure::new(
            code,
            format!(
                "client: etcd cluster is unavailable or misconfigured; {}",
                named.join("\n; ")
            ),
        ))
    }

    /// Asks one endpoint for a page.
    pub(crate) fn ask_one(&self, target: &Target, path: &str) -> io::Result<Answer> {
        let exchange = self.exchange(target, "GET", path, None);
        let asked = async { tokio::time::timeout(self.total, exchange).await };
        self.runtime
            .block_on(asked)
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn exchange(
        &self,
        target: &Target,
        method: &str,
        path: &str,
        body: Option<&(&str, String)>,
    ) -> io::Result<Answer> {
        let opened = tokio::time::timeout(self.timeout, target.open()).await;
        let mut stream = opened.map_err(|_| io::ErrorKind::TimedOut)??;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            target.authority()
        );
        if let Some((kind, body)) = body {
            head += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).await?;
        if let Some((_, body)) = body {
            stream.write_all(body.as_bytes()).await?;
        }
        stream.flush().await?;
        let mut bytes = Vec::new();
        let mut limited = stream.take(MAX_ANSWER_BYTES);
        limited.read_to_end(&mut bytes).await?;
        answer(&bytes).ok_or_else(|| io::Error::other("the answer is not HTTP"))
    }
}

/// Reads an answer whose connection has ended.
fn answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let body = bytes.get(end + 4..)?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| {
        let found = fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim())
    };
    let chunked = field("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
    let body = match chunked {
        true => dechunked(body)?,
        false => body.to_vec(),
    };
    let length = field("content-length").and_then(|v| v.parse::<usize>().ok());
    if length.is_some_and(|length| length > body.len()) {
        return None;
    }
    let index = field("x-etcd-index").and_then(|v| v.parse().ok());
    Some(Answer {
        status,
        index: index.unwrap_or(0),
        body,
    })
}

/// What a body in chunks holds (RFC 9112 §7.1).
fn dechunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(bytes.get(..end)?).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        bytes = bytes.get(end + 2..)?;
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

impl Answer {
    /// The body of a success; else what the store says of the failure.
    pub(crate) fn into_json(self) -> Result<(Value, u64), Failure> {
        let value: Value = serde_json::from_slice(&self.body).unwrap_or(Value::Null);
        if self.status < 300 {
            return Ok((value, self.index));
        }
        let text = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
        let number = |name| value.get(name).and_then(Value::as_u64).unwrap_or_default();
        let what = match number("errorCode") {
            0 if !text("message").is_empty() => text("message").to_owned(),
            0 => format!("client: the store answers with status {}", self.status),
            code => format!(
                "{code}: {} ({}) [{}]",
                text("message"),
                text("cause"),
                number("index")
            ),
        };
        Err(Failure::new(4, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let plain = b"HTTP/1.1 404 Not Found\r\nx-etcd-index: 7\r\nContent-Length: 2\r\n\r\n{}";
        let read = answer(plain).expect("it is one");
        assert_eq!(
            (read.status, read.index, read.body),
            (404, 7, b"{}".to_vec())
        );
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(answer(chunked).expect("it is one").body, b"abc");
        for end in 0..plain.len() {
            assert!(answer(&plain[..end]).is_none());
        }
        for end in 0..chunked.len() - 2 {
            assert!(answer(&chunked[..end]).is_none(), "{end}");
        }
    }

    #[test]
    fn what_urls_cannot_hold_is_escaped() {
        assert_eq!(escaped("/a b/ü?", b"/"), "/a%20b/%C3%BC%3F");
        assert_eq!(
            form(&[("value", "a&b".into()), ("ttl", "5".into())]),
            "value=a%26b&ttl=5"
        );
    }
}
