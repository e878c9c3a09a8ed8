//! Downloads over HTTP/1.1 (RFC 9112) that go on where they broke off.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use thiserror::Error;

use crate::dns::{self, ResolveError};
use crate::url::{Url, UrlError};

/// The longest head of an answer in bytes.
const LONGEST_HEAD: u64 = 16 << 10;

/// The longest line before a chunk in bytes.
const LONGEST_CHUNK_LINE: u64 = 256;

/// How often a server may send elsewhere.
const MOST_REDIRECTS: u32 = 5;

/// How often one download may break off, even when there is progress each time.
const MOST_RESUMES: u32 = 1000;

/// How patient a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a connection may take and how long it may be silent.
    pub timeout: Duration,
    /// How often it is tried without a single byte of progress.
    pub attempts: u32,
    /// The first pause before it is tried again; each further one is twice as long.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempts: 6,
            pause: Duration::from_secs(1),
        }
    }
}

/// Why a download failed.
#[derive(Debug, Error)]
pub enum FetchError {
    /// A URL is of no use.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The host has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] io::Error),
    /// The connection broke.
    #[error("the connection to {0} broke")]
    Connection(String, #[source] io::Error),
    /// The server does not speak HTTP.
    #[error("the answer of {0} is not understood: {1}")]
    Answer(String, &'static str),
    /// The server refuses.
    #[error("{url}: the server says {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// Number and reason.
        status: String,
    },
    /// Too many redirects.
    #[error("{0} is redirected too often")]
    Redirects(Url),
    /// The file became another one in the middle.
    #[error("{0} was replaced on the server while it was downloaded; start again")]
    Changed(Url),
    /// More than was asked for.
    #[error("{0} is longer than {1} bytes")]
    TooLong(Url, u64),
    /// Patience is over.
    #[error("{url} broke off at byte {position} {attempts} times in a row")]
    GaveUp {
        /// What was downloaded.
        url: Url,
        /// How far it was.
        position: u64,
        /// How often.
        attempts: u32,
        /// The last reason.
        #[source]
        last: Box<FetchError>,
    },
}

impl FetchError {
    /// Whether the same request may succeed later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Connect(..)
            | Self::Connection(..)
            | Self::Resolve(ResolveError::NoAnswer(..)) => true,
            Self::Status { status, .. } => status.starts_with('5') || status.starts_with("429"),
            _ => false,
        }
    }
}

impl From<FetchError> for io::Error {
    fn from(error: FetchError) -> Self {
        Self::other(error)
    }
}

/// A file on a server, read from front to back.
#[derive(Debug)]
pub struct Download {
    url: Url,
    patience: Patience,
    body: Body,
    position: u64,
    total_bytes: Option<u64>,
    /// What tells this version of the file from others (RFC 9110 §8.8).
    validator: Option<String>,
    failures: u32,
    resumes: u32,
}

impl Download {
    /// Asks for `url`.
    pub fn open(url: &Url, patience: Patience) -> Result<Self, FetchError> {
        let mut url = url.clone();
        let answer = with_patience(&url.clone(), 0, patience, &mut 0, &mut || {
            request(&mut url, 0, None, patience)
        })?;
        Ok(Self {
            url,
            patience,
            position: 0,
            total_bytes: answer.length,
            validator: answer.validator,
            body: answer.body,
            failures: 0,
            resumes: 0,
        })
    }

    /// How long the file is, when the server says so.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    /// How often the connection broke and was made again.
    #[must_use]
    pub fn resumes(&self) -> u32 {
        self.resumes
    }

    /// A new connection that goes on at the position.
    fn resume(&mut self, cause: FetchError) -> Result<(), FetchError> {
        self.resumes += 1;
        self.failures += 1;
        if self.failures >= self.patience.attempts || self.resumes > MOST_RESUMES {
            return Err(self.gave_up(cause));
        }
        log::warn!(
            "{}: broke off at byte {}: {cause}; going on from there",
            self.url,
            self.position
        );
        let (mut url, position, validator, patience) = (
            self.url.clone(),
            self.position,
            self.validator.clone(),
            self.patience,
        );
        let answer = with_patience(
            &self.url,
            position,
            patience,
            &mut self.failures,
            &mut || request(&mut url, position, validator.as_deref(), patience),
        )?;
        let is_same = self.validator == answer.validator && self.total_bytes == answer.length;
        if !is_same {
            return Err(FetchError::Changed(self.url.clone()));
        }
        self.body = answer.body;
        // A server without ranges begins anew.
        let mut skipped = answer.start;
        let mut chunk = vec![0; 64 << 10];
        while skipped < position {
            let most = (position - skipped).min(chunk.len() as u64) as usize;
            let count = self.body.read(chunk.get_mut(..most).unwrap_or_default());
            match count {
                Ok(count) if count > 0 => skipped += count as u64,
                Ok(_) => {
                    return self.resume(broken(
                        &self.url.clone(),
                        io::ErrorKind::UnexpectedEof.into(),
                    ));
                }
                Err(e) => return self.resume(broken(&self.url.clone(), e)),
            }
        }
        Ok(())
    }

    fn gave_up(&self, last: FetchError) -> FetchError {
        let (url, position, attempts) = (self.url.clone(), self.position, self.failures);
        FetchError::GaveUp {
            url,
            position,
            attempts,
            last: Box::new(last),
        }
    }
}

impl Read for Download {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let cause = match self.body.read(into) {
                Ok(0)
                    if into.is_empty()
                        || self.total_bytes.is_none_or(|total| self.position >= total) =>
                {
                    return Ok(0);
                }
                Ok(0) => io::ErrorKind::UnexpectedEof.into(),
                Ok(count) => {
                    self.position += count as u64;
                    self.failures = 0;
                    return Ok(count);
                }
                Err(e) => e,
            };
            self.resume(broken(&self.url.clone(), cause))?;
        }
    }
}

fn broken(url: &Url, cause: io::Error) -> FetchError {
    FetchError::Connection(url.authority(), cause)
}

/// All of a small file.
pub fn get(url: &Url, most_bytes: u64, patience: Patience) -> Result<Vec<u8>, FetchError> {
    let mut download = Download::open(url, patience)?;
    let mut bytes = Vec::new();
    let read = (&mut download)
        .take(most_bytes.saturating_add(1))
        .read_to_end(&mut bytes);
    read.map_err(|e| broken(url, e))?;
    match bytes.len() as u64 > most_bytes {
        true => Err(FetchError::TooLong(url.clone(), most_bytes)),
        false => Ok(bytes),
    }
}

/// Tries until it works, an error will not pass, or patience is over.
fn with_patience<T>(
    url: &Url,
    position: u64,
    patience: Patience,
    failures: &mut u32,
    attempt: &mut dyn FnMut() -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    loop {
        if *failures > 0 {
            // Bounded: at most 2^6 times the first pause.
            std::thread::sleep(patience.pause.saturating_mul(1 << (*failures - 1).min(6)));
        }
        match attempt() {
            Err(error) if error.is_passing() => {
                *failures += 1;
                if *failures >= patience.attempts {
                    let (url, attempts) = (url.clone(), *failures);
                    return Err(FetchError::GaveUp {
                        url,
                        position,
                        attempts,
                        last: Box::new(error),
                    });
                }
                log::warn!("{url}: {error}; trying again");
            }
            other => return other,
        }
    }
}

/// A server's answer.
#[derive(Debug)]
struct Answer {
    /// The whole file's length, when it is known.
    length: Option<u64>,
    /// Where the body starts in the file.
    start: u64,
    validator: Option<String>,
    body: Body,
}

/// Asks for `url` from byte `start`; follows redirects, and leaves where they led in `url`.
fn request(
    url: &mut Url,
    start: u64,
    validator: Option<&str>,
    patience: Patience,
) -> Result<Answer, FetchError> {
    for _ in 0..=MOST_REDIRECTS {
        let mut stream = connect(url, patience)?;
        let mut text = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: orlop/{}\r\nAccept-Encoding: identity\r\nConnection: close\r\n",
            url.target,
            url.authority(),
            env!("CARGO_PKG_VERSION")
        );
        if start > 0 {
            text.push_str(&format!("Range: bytes={start}-\r\n"));
            // Only of the same version; otherwise the whole of the new one comes (RFC 9110 §13.1.5).
            if let Some(validator) = validator {
                text.push_str(&format!("If-Range: {validator}\r\n"));
            }
        }
        text.push_str("\r\n");
        stream
            .write_all(text.as_bytes())
            .map_err(|e| broken(url, e))?;
        let mut reader = BufReader::new(stream);
        let head = Head::read(&mut reader, url)?;
        match head.status {
            301 | 302 | 303 | 307 | 308 => {
                let to = head
                    .value("location")
                    .ok_or_else(|| FetchError::Answer(url.authority(), "a redirect to nowhere"))?;
                *url = url.join(to)?;
            }
            200 | 206 => return head.answer(reader, url, start),
            _ => {
                return Err(FetchError::Status {
                    url: url.to_string(),
                    status: head.line,
                });
            }
        }
    }
    Err(FetchError::Redirects(url.clone()))
}

fn connect(url: &Url, patience: Patience) -> Result<TcpStream, FetchError> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in dns::resolve(&url.host)? {
        let stream =
            TcpStream::connect_timeout(&SocketAddr::new(address, url.port), patience.timeout);
        let set = |stream: TcpStream| {
            stream.set_read_timeout(Some(patience.timeout))?;
            stream.set_write_timeout(Some(patience.timeout))?;
            Ok(stream)
        };
        match stream.and_then(set) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(FetchError::Connect(url.authority(), last))
}

/// An answer's head.
#[derive(Debug)]
struct Head {
    status: u16,
    /// Number and reason.
    line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(reader: &mut impl BufRead, url: &Url) -> Result<Self, FetchError> {
        let strange = |why| FetchError::Answer(url.authority(), why);
        let mut head = reader.take(LONGEST_HEAD);
        let mut next = || -> Result<String, FetchError> {
            let mut line = Vec::new();
            head.read_until(b'\n', &mut line)
                .map_err(|e| broken(url, e))?;
            if line.pop() != Some(b'\n') {
                return match head.limit() {
                    0 => Err(strange("its head is too long")),
                    _ => Err(broken(url, io::ErrorKind::UnexpectedEof.into())),
                };
            }
            Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
        };
        let line = next()?;
        let (_, line) = line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.split_once(' '))
            .ok_or_else(|| strange("it is not HTTP/1"))?;
        let status = line
            .get(..3)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| strange("it has no status"))?;
        let mut fields = Vec::new();
        loop {
            let field = next()?;
            match field.split_once(':') {
                _ if field.is_empty() => break,
                Some((name, value)) => {
                    fields.push((name.to_ascii_lowercase(), value.trim().to_owned()))
                }
                None => return Err(strange("a field has no colon")),
            }
        }
        Ok(Self {
            status,
            line: line.chars().filter(|c| !c.is_control()).take(80).collect(),
            fields,
        })
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field == name)
            .map(|(_, value)| value.as_str())
    }

    fn answer(
        self,
        reader: BufReader<TcpStream>,
        url: &Url,
        asked: u64,
    ) -> Result<Answer, FetchError> {
        let strange = |why| FetchError::Answer(url.authority(), why);
        let is_chunked = self
            .value("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        if self.value("transfer-encoding").is_some() && !is_chunked {
            return Err(strange("it has an unknown transfer encoding"));
        }
        let body_bytes: Option<u64> = match self.value("content-length") {
            Some(_) if is_chunked => None,
            Some(value) => Some(
                value
                    .parse()
                    .map_err(|_| strange("its length is no number"))?,
            ),
            None => None,
        };
        let (start, length) = match self.status {
            206 => {
                let (start, total) = self
                    .value("content-range")
                    .and_then(content_range)
                    .ok_or_else(|| strange("it has no range"))?;
                if start != asked {
                    return Err(strange("it is another range than was asked for"));
                }
                (start, total)
            }
            _ => (0, body_bytes),
        };
        // A weak validator does not promise the same bytes.
        let strong = self.value("etag").filter(|tag| !tag.starts_with("W/"));
        let validator = strong
            .or_else(|| self.value("last-modified"))
            .map(str::to_owned);
        let framing = match (is_chunked, body_bytes) {
            (true, _) => Framing::Chunked {
                left: 0,
                is_first: true,
                is_over: false,
            },
            (false, Some(left)) => Framing::Length { left },
            (false, None) => Framing::UntilClose,
        };
        Ok(Answer {
            length,
            start,
            validator,
            body: Body { reader, framing },
        })
    }
}

/// First byte and whole length of `bytes 5-9/10` (RFC 9110 §14.4).
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// An answer's body.
#[derive(Debug)]
struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    Length {
        left: u64,
    },
    Chunked {
        left: u64,
        is_first: bool,
        is_over: bool,
    },
    UntilClose,
}

impl Body {
    /// Reads a line of the chunked coding (RFC 9112 §7.1).
    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        (&mut self.reader)
            .take(LONGEST_CHUNK_LINE)
            .read_until(b'\n', &mut line)?;
        match line.ends_with(b"\n") {
            true => Ok(String::from_utf8_lossy(&line).trim().to_owned()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The size of the next chunk; 0 at the end.
    fn chunk(&mut self, is_first: bool) -> io::Result<u64> {
        if !is_first && !self.line()?.is_empty() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let line = self.line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        u64::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
    }
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked {
            left: 0,
            is_first,
            is_over: false,
        } = self.framing
        {
            let left = self.chunk(is_first)?;
            self.framing = Framing::Chunked {
                left,
                is_first: false,
                is_over: left == 0,
            };
        }
        let left = match &mut self.framing {
            Framing::UntilClose => return self.reader.read(into),
            Framing::Length { left } | Framing::Chunked { left, .. } => left,
        };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(into.len());
        let count = self.reader.read(into.get_mut(..most).unwrap_or_default())?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= count as u64;
        Ok(count)
    }
}
