//! The output of units on its way to the journal.
//!
//! Each process that is started for a unit writes, with those that it starts, to a pipe. Its read end goes to the journal; a copy stays here until the journal says
//! that it has read and written everything, so that a restarted journal takes over where the old one ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use orlop_unit::Logging;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The unit that reads the streams.
pub const JOURNAL_UNIT: &str = "orlop-journal.service";

/// More streams than this are not kept: without a journal, descriptors must not run out.
const MOST_STREAMS: usize = 8192;

#[derive(Serialize)]
struct Packet<'a> {
    stream: &'a Stream,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stream {
    id: u64,
    unit: String,
    invocation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_prefix: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority_max: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit_interval_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit_burst: Option<u32>,
    #[serde(default)]
    console: bool,
    #[serde(skip)]
    read: Option<OwnedFd>,
}

/// What is written down of a stream.
#[derive(Serialize)]
struct Line<'a> {
    stream: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    about: Option<&'a Stream>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fd: Option<RawFd>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    closed: bool,
}

#[derive(Deserialize)]
struct Reply {
    closed: u64,
}

/// All streams, and the socket to the journal.
#[derive(Debug, Default)]
pub struct Streams {
    next: u64,
    live: BTreeMap<u64, Stream>,
    unsent: VecDeque<u64>,
    socket: Option<OwnedFd>,
    /// Streams that came or went since they were written down.
    changed: BTreeSet<u64>,
}

impl Streams {
    /// A pipe for a process of `unit`; answers its number and its write end. The journal hears of it when the process is there:
    /// [`Streams::started`].
    ///
    /// # Errors
    /// Those of pipe2(2), and when too many streams wait for the journal.
    pub fn open(
        &mut self,
        unit: &str,
        invocation: &str,
        identifier: Option<&str>,
        logging: &Logging,
    ) -> io::Result<(u64, OwnedFd)> {
        if self.live.len() >= MOST_STREAMS {
            return Err(io::Error::other("too many streams wait for the journal"));
        }
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        self.next = self.next.saturating_add(1);
        let stream = Stream {
            id: self.next,
            unit: unit.to_owned(),
            invocation: invocation.to_owned(),
            pid: None,
            identifier: identifier.map(str::to_owned),
            priority: logging.level,
            priority_prefix: logging.level_prefix,
            priority_max: logging.level_max,
            rate_limit_interval_us: logging
                .rate_limit_interval
                .map(|span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX)),
            rate_limit_burst: logging.rate_limit_burst,
            console: logging.console,
            read: Some(read),
        };
        self.changed.insert(self.next);
        self.live.insert(self.next, stream);
        Ok((self.next, write))
    }

    /// The process that writes to the stream runs; its number goes with its lines, where it is known to stay the same.
    pub fn started(&mut self, id: u64, pid: Option<i32>) {
        if let Some(stream) = self.live.get_mut(&id) {
            stream.pid = pid;
            self.unsent.push_back(id);
            self.flush();
        }
    }

    /// The process was not started: nobody will write.
    pub fn abandon(&mut self, id: u64) {
        self.live.remove(&id);
        self.changed.remove(&id);
    }

    /// A new journal starts: answers its end of a new socket, over which all streams go again.
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn connect(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        self.socket = Some(ours);
        self.unsent = self.live.keys().copied().collect();
        self.flush();
        rustix::io::ioctl_fionbio(&theirs, false)?;
        Ok(theirs)
    }

    /// Adds lines for [`crate::saved`] about streams that came or went; with `all`, about every one.
    pub fn lines(&mut self, all: bool, out: &mut String) {
        let mut changed = std::mem::take(&mut self.changed);
        if all {
            changed = self.live.keys().copied().collect();
        }
        for id in changed {
            let stream = self.live.get(&id);
            let line = Line {
                stream: id,
                about: stream,
                fd: stream
                    .and_then(|s| s.read.as_ref())
                    .map(|fd| fd.as_raw_fd()),
                closed: stream.is_none(),
            };
            crate::saved::add(&line, out);
        }
    }

    /// Takes over a stream of another PID 1; the journal knows it already.
    pub fn resume(&mut self, line: &Value) {
        let Some(id) = line.get("stream").and_then(Value::as_u64) else {
            return;
        };
        self.next = self.next.max(id);
        let about = line.get("about").cloned().unwrap_or_default();
        let (Some(read), Ok(stream)) = (
            crate::saved::take(line, "fd"),
            serde_json::from_value::<Stream>(about),
        ) else {
            return;
        };
        let stream = Stream {
            read: Some(read),
            ..stream
        };
        self.live.insert(id, stream);
    }

    /// Takes over the socket to the journal. What was sent and what was not is not known: it may be sent twice.
    pub fn resume_socket(&mut self, socket: Option<OwnedFd>) {
        self.socket = socket;
    }

    /// The socket to poll: always for reading, and for writing while [`Streams::is_waiting`].
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|s| s.as_fd())
    }

    /// Whether streams could not be sent yet.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.socket.is_some() && !self.unsent.is_empty()
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(id) = self.unsent.front() {
            let Some(stream) = self.live.get(id) else {
                self.unsent.pop_front();
                continue;
            };
            let (Ok(text), Some(read)) = (serde_json::to_vec(&Packet { stream }), &stream.read)
            else {
                self.unsent.pop_front();
                continue;
            };
            let descriptors = [read.as_raw_fd()];
            let sent = sendmsg::<()>(
                socket.as_raw_fd(),
                &[io::IoSlice::new(&text)],
                &[ControlMessage::ScmRights(&descriptors)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(_) => {
                    self.unsent.pop_front();
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOBUFS) => return,
                Err(_) => {
                    self.socket = None;
                    return;
                }
            }
        }
    }

    /// Reads what the journal says; `false` when it is gone.
    pub fn receive(&mut self) -> bool {
        let mut buffer = [0_u8; 256];
        while let Some(socket) = &self.socket {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(nix::errno::Errno::ECONNRESET) => {
                    self.socket = None;
                    return false;
                }
                Ok(length) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    if let Ok(reply) = serde_json::from_slice::<Reply>(packet) {
                        self.changed.insert(reply.closed);
                        self.live.remove(&reply.closed);
                    }
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
        false
    }
}
