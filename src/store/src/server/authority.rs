//! Requests of etcd's clients whose `:authority` is a whole URL.
//!
//! `etcdctl` 3.4 makes a connection to each member that the cluster lists (`defrag --cluster`), and names as authority the
//! member's client URL, `http://10.0.0.1:2379`. Go's HTTP/2 server takes whatever is there; h2 resets the stream, since
//! RFC 9113 §8.3.1 allows only `[userinfo@]host[:port]`. So the scheme is turned into what h2 takes for user information,
//! which nobody reads: `http..@10.0.0.1:2379`.
//!
//! The new value is as long as the old one. An entry's size in HPACK's dynamic table (RFC 7541 §4.1) is counted in decoded
//! octets, so the table has the same entries on both sides, and nothing of it has to be kept here. A connection whose first
//! request is in order is never looked at again.

mod block;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §4.1.
const FRAME_HEAD_BYTES: usize = 9;
/// The longest frame that h2 takes without having said otherwise (RFC 9113 §6.5.2).
const MAX_FRAME_BYTES: usize = 16_384;
/// The frame that begins a request (RFC 9113 §6.2), and its flags.
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
/// The place of `:authority` in HPACK's static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;
/// Octets that are read at once.
const READ_BYTES: usize = 8 << 10;

/// A client's connection, whose requests h2 takes.
#[derive(Debug)]
pub(super) struct Lenient<S> {
    stream: S,
    filter: Filter,
    /// What has been read and looked at, and how much of it has been handed out.
    ready: Vec<u8>,
    taken: usize,
}

impl<S> Lenient<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            filter: Filter::default(),
            ready: Vec::new(),
            taken: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let rest = this.ready.get(this.taken..).unwrap_or_default();
            if !rest.is_empty() {
                let (now, _) = rest.split_at(rest.len().min(buf.remaining()));
                buf.put_slice(now);
                this.taken += now.len();
                return Poll::Ready(Ok(()));
            }
            if this.filter.step == Step::Pass {
                this.ready = Vec::new();
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            this.ready.clear();
            this.taken = 0;
            if read.filled().is_empty() {
                // The end, maybe within a frame: what there is of it goes on, and then the end is read again.
                this.filter.step = Step::Pass;
                this.ready.append(&mut this.filter.held);
            } else {
                this.filter.pass(read.filled(), &mut this.ready);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What comes next of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The preface, of which so much has been seen.
    Preface(usize),
    /// The head of a frame.
    Head,
    /// The rest of a frame that is of no interest.
    Skip(usize),
    /// A frame with headers, so long with its head.
    Block(usize),
    /// All the rest is of no interest.
    Pass,
}

/// The octets of a connection in, those that h2 is given out.
#[derive(Debug)]
struct Filter {
    step: Step,
    /// Whether an authority has been changed on this connection.
    changed: bool,
    /// The beginning of a frame that cannot be judged yet: never more than [`MAX_FRAME_BYTES`] with its head.
    held: Vec<u8>,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            step: Step::Preface(0),
            changed: false,
            held: Vec::new(),
        }
    }
}

impl Filter {
    fn pass(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.step {
                Step::Pass => {
                    out.extend_from_slice(bytes);
                    return;
                }
                Step::Preface(seen) => {
                    let expected = PREFACE.get(seen..).unwrap_or_default();
                    let (now, rest) = bytes.split_at(bytes.len().min(expected.len()));
                    out.extend_from_slice(now);
                    bytes = rest;
                    self.step = if !expected.starts_with(now) {
                        // HTTP/1.1.
                        Step::Pass
                    } else if now.len() == expected.len() {
                        Step::Head
                    } else {
                        Step::Preface(seen + now.len())
                    };
                }
                Step::Skip(left) => {
                    let (now, rest) = bytes.split_at(bytes.len().min(left));
                    out.extend_from_slice(now);
                    bytes = rest;
                    self.step = skip(left - now.len());
                }
                Step::Head => {
                    if self.hold(FRAME_HEAD_BYTES, &mut bytes) {
                        let [a, b, c, kind] = *self.held.first_chunk().unwrap_or(&[0; 4]);
                        let length = u32::from_be_bytes([0, a, b, c]) as usize;
                        if kind == HEADERS && (1..=MAX_FRAME_BYTES).contains(&length) {
                            self.step = Step::Block(FRAME_HEAD_BYTES + length);
                        } else {
                            out.append(&mut self.held);
                            self.step = skip(length);
                        }
                    }
                }
                Step::Block(length) => {
                    if self.hold(length, &mut bytes) {
                        let changed = with_good_authority(&self.held);
                        self.changed |= changed.is_some();
                        out.extend_from_slice(changed.as_ref().unwrap_or(&self.held));
                        self.held.clear();
                        // An authority that had to be changed may come again.
                        self.step = if self.changed { Step::Head } else { Step::Pass };
                    }
                }
            }
        }
    }

    /// Takes octets until `length` are held; whether they are.
    fn hold(&mut self, length: usize, bytes: &mut &[u8]) -> bool {
        let missing = length.saturating_sub(self.held.len());
        let (now, rest) = bytes.split_at(bytes.len().min(missing));
        self.held.extend_from_slice(now);
        *bytes = rest;
        self.held.len() >= length
    }
}

fn skip(length: usize) -> Step {
    match length {
        0 => Step::Head,
        _ => Step::Skip(length),
    }
}

/// A frame with headers, with an authority that h2 takes; `None` if it stays as it is. Only a header block that is whole in
/// its frame is looked at.
fn with_good_authority(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, payload) = frame.split_at_checked(FRAME_HEAD_BYTES)?;
    let flags = *head.get(4)?;
    if flags & END_HEADERS == 0 {
        return None;
    }
    let (padding, before) = match flags & PADDED {
        0 => (0, 0),
        _ => (usize::from(*payload.first()?), 1),
    };
    let before = before
        + if flags & PRIORITY == 0 {
            0
        } else {
            PRIORITY_BYTES
        };
    let end = payload.len().checked_sub(padding)?;
    let block = payload.get(before..end)?;
    let literal = block::literal(block, AUTHORITY)?;
    let value = without_scheme(&literal.decoded(block)?)?;
    let block = literal.replaced(block, &value)?;
    let length = before + block.len() + padding;
    if length > MAX_FRAME_BYTES {
        return None;
    }
    let [_, lengths @ ..] = u32::try_from(length).ok()?.to_be_bytes();
    let parts = [
        &lengths[..],
        head.get(3..)?,
        payload.get(..before)?,
        &block,
        payload.get(end..)?,
    ];
    Some(parts.concat())
}

/// `http://host:port/path` as `http......@host:port`, of the same length.
fn without_scheme(value: &[u8]) -> Option<Vec<u8>> {
    let colon = value.windows(3).position(|three| three == b"://")?;
    let (scheme, rest) = value.split_at_checked(colon)?;
    let host = rest.get(3..)?.split(|&c| c == b'/').next()?;
    if scheme.is_empty() || !scheme.iter().all(u8::is_ascii_alphanumeric) || host.contains(&b'@') {
        return None;
    }
    let mut out = scheme.to_vec();
    out.resize(value.len().checked_sub(host.len() + 1)?, b'.');
    out.push(b'@');
    out.extend_from_slice(host);
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What etcdctl 3.4 sends: its literals are in Huffman's code.
    fn request(authority: &[u8], huffman: bool) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x45, 0x03];
        block.extend_from_slice(b"/a/");
        block.push(0x41);
        if huffman {
            let coded = block::huffman_encoded(authority);
            block.push(0x80 | u8::try_from(coded.len()).expect("it is short"));
            block.extend_from_slice(&coded);
        } else {
            block.push(u8::try_from(authority.len()).expect("it is short"));
            block.extend_from_slice(authority);
        }
        block.extend_from_slice(&[0x40, 1, b'x', 1, b'y']);
        frame(HEADERS, END_HEADERS, &block)
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("it is short");
        let mut out = length.to_be_bytes()[1..].to_vec();
        out.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        out.extend_from_slice(payload);
        out
    }

    fn passed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut filter = Filter::default();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece.max(1)) {
            filter.pass(piece, &mut out);
            assert!(filter.held.len() <= FRAME_HEAD_BYTES + MAX_FRAME_BYTES);
        }
        out.append(&mut filter.held);
        out
    }

    #[test]
    fn a_url_as_authority_becomes_one_that_is_taken() {
        let settings = frame(4, 0, &[0, 3, 0, 0, 0, 100]);
        let data = frame(0, 1, b"body");
        for (url, good) in [
            ("http://127.0.0.1:2379", "http..@127.0.0.1:2379"),
            ("https://[::1]:2379/", "https...@[::1]:2379"),
        ] {
            assert!(good.parse::<axum::http::uri::Authority>().is_ok());
            for huffman in [false, true] {
                let one = request(url.as_bytes(), huffman);
                let other = request(good.as_bytes(), false);
                let sent = [PREFACE, &settings, &one, &data, &one].concat();
                let expected = [PREFACE, &settings, &other, &data, &other].concat();
                for piece in [1, 7, 100, 1000] {
                    assert_eq!(passed(&sent, piece), expected, "{url} {huffman} {piece}");
                }
            }
        }
    }

    #[test]
    fn all_else_is_left_as_it_is() {
        let good = request(b"127.0.0.1:2379", true);
        let url = request(b"http://127.0.0.1:2379", true);
        let mut parted = url.clone();
        parted[4] = 0;
        let mut too_much_padding = frame(HEADERS, END_HEADERS | PADDED, &[200, 1, 2]);
        too_much_padding.extend_from_slice(&url);
        for sent in [
            b"GET /v2/keys HTTP/1.1\r\nHost: http://a\r\n\r\n".to_vec(),
            b"P".to_vec(),
            [PREFACE, &good, &url].concat(),
            [PREFACE, &parted].concat(),
            [PREFACE, &too_much_padding].concat(),
            [PREFACE, &request(b"://127.0.0.1", true)].concat(),
            [PREFACE, &request(b"http://a@127.0.0.1", true)].concat(),
            [PREFACE, &frame(HEADERS, END_HEADERS, &[])].concat(),
            [PREFACE, &url[..url.len() - 3]].concat(),
        ] {
            for piece in [1, 5, 1000] {
                assert_eq!(passed(&sent, piece), sent);
            }
        }
    }

    #[test]
    fn padding_and_priority_stay() {
        let one = request(b"http://a:1", true);
        let other = request(b"http..@a:1", false);
        let around = |frame: &[u8]| {
            let payload = [&[3, 0, 0, 0, 0, 9][..], &frame[FRAME_HEAD_BYTES..], &[0; 3]].concat();
            super::tests::frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &payload)
        };
        let sent = [PREFACE, &around(&one)].concat();
        assert_eq!(passed(&sent, 9), [PREFACE, &around(&other)].concat());
    }

    proptest! {
        #[test]
        fn hostile_octets_are_passed_in_pieces_as_at_once(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..8),
            rest in proptest::collection::vec(any::<u8>(), 0..60),
            flags in any::<u8>(),
            piece in 1_usize..40,
        ) {
            let mut sent = [PREFACE, &request(b"http://127.0.0.1:2379", true)].concat();
            for payload in &payloads {
                let block = [&[0x41], payload.as_slice()].concat();
                sent.extend_from_slice(&frame(HEADERS, flags | END_HEADERS, &block));
            }
            sent.extend_from_slice(&rest);
            prop_assert_eq!(passed(&sent, piece), passed(&sent, sent.len()));
        }
    }
}
