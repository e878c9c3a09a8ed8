//! What PID 1 and the journal say to each other, over a pair of AF_UNIX sequenced-packet sockets: one JSON object a
//! packet.
//!
//! To the journal: `{"stream":{…}}` with one descriptor, the read end of a unit's output. Back:
//! `{"closed":ID}` when that stream's end was read and all of it is written.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketType,
};
use serde::{Deserialize, Serialize};

/// The longest packet that is taken.
pub const PACKET_MAX_BYTES: usize = 16 * 1024;
/// More descriptors than a packet may carry, so that those of a wrong one are closed and not left over.
const DESCRIPTORS_MAX: usize = 4;

/// Which unit's output a stream is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// PID 1's number for the stream.
    pub id: u64,
    /// Full name of the unit.
    pub unit: String,
    /// The unit's invocation: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<String>,
    /// The process that the stream was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What stands before the colon; the unit's name without its type when it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// Priority of lines that do not begin with one (`SyslogLevel=`); 6 when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Whether `<N>` before a line is its priority (`SyslogLevelPrefix=`); true when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_prefix: Option<bool>,
    /// The greatest number of a priority that is kept (`LogLevelMax=`); 7 when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_max: Option<u8>,
    /// The unit's `LogRateLimitIntervalSec=`, µs; zero is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_interval_us: Option<u64>,
    /// The unit's `LogRateLimitBurst=`; zero is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit_burst: Option<u32>,
    /// Whether the lines are shown on the console as well (`StandardOutput=journal+console`).
    #[serde(default)]
    pub console: bool,
}

/// What PID 1 sends. Unknown keys are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// A stream that begins, or that a restarted journal takes over.
    #[serde(default)]
    pub stream: Option<StreamInfo>,
}

/// What the journal sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The stream whose end was read and which is written.
    pub closed: u64,
}

/// What is wrong with the socket or a packet.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such descriptor.
    #[error("descriptor {0} is not open")]
    NotOpen(i32, #[source] io::Error),
    /// The descriptor is something else.
    #[error("descriptor {0} is not a sequenced-packet socket")]
    NotASocket(i32),
    /// The socket cannot be read.
    #[error("receive from PID 1")]
    Receive(#[source] io::Error),
    /// The packet is longer than the limit.
    #[error("a packet of PID 1 is longer than {PACKET_MAX_BYTES} bytes")]
    TooLong,
    /// The packet is not what it should be.
    #[error("a packet of PID 1 cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// The packet has not exactly one descriptor.
    #[error("stream {id} of {unit} came with {count} descriptors")]
    Descriptors {
        /// The stream.
        id: u64,
        /// Its unit.
        unit: String,
        /// How many came.
        count: usize,
    },
}

/// What a call of [`Control::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A stream with the read end of its pipe.
    Stream(StreamInfo, OwnedFd),
    /// A packet of a kind that this version does not know.
    Unknown,
    /// No packet is there.
    Nothing,
    /// The other end is closed.
    Ended,
}

/// The journal's end.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    /// Where a packet is read to.
    packet: Box<[u8]>,
    /// Streams whose end PID 1 has not been told of yet; as many as it has opened, at most.
    closed: std::collections::VecDeque<u64>,
}

impl Control {
    /// The socket that this process inherited as descriptor `number`.
    ///
    /// # Errors
    /// [`Error::NotOpen`] or [`Error::NotASocket`].
    pub fn inherit(number: i32) -> Result<Self, Error> {
        let socket =
            orlop_sys::inherited::duplicate(number).map_err(|err| Error::NotOpen(number, err))?;
        match rustix::net::sockopt::socket_type(&socket) {
            Ok(SocketType::SEQPACKET) => {}
            _ => return Err(Error::NotASocket(number)),
        }
        Ok(Self {
            socket,
            packet: vec![0; PACKET_MAX_BYTES].into_boxed_slice(),
            closed: std::collections::VecDeque::new(),
        })
    }

    /// Takes the next packet, without waiting.
    ///
    /// # Errors
    /// Of these only [`Error::Receive`] says that the socket is of no more use.
    pub fn receive(&mut self) -> Result<Received, Error> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            let iov = &mut [IoSliceMut::new(&mut self.packet)];
            match rustix::net::recvmsg(&self.socket, iov, &mut ancillary, flags) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
                Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Ended),
                Err(err) => return Err(Error::Receive(err.into())),
            }
        };
        let mut descriptors: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            })
            .flatten()
            .collect();
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Error::TooLong);
        }
        let packet = self.packet.get(..received.bytes).unwrap_or_default();
        if packet.is_empty() {
            return Ok(Received::Ended);
        }
        let request: Request = serde_json::from_slice(packet).map_err(Error::Malformed)?;
        let Some(stream) = request.stream else {
            return Ok(Received::Unknown);
        };
        match (descriptors.pop(), descriptors.len()) {
            (Some(descriptor), 0) => Ok(Received::Stream(stream, descriptor)),
            (last, others) => Err(Error::Descriptors {
                id: stream.id,
                unit: stream.unit,
                count: others + usize::from(last.is_some()),
            }),
        }
    }

    /// Notes that PID 1 is to be told that the stream's end is written.
    pub fn queue_closed(&mut self, id: u64) {
        self.closed.push_back(id);
    }

    /// Sends what is queued as far as the socket takes it; whether nothing is left.
    pub fn send_queued(&mut self) -> bool {
        while let Some(id) = self.closed.front() {
            let Ok(packet) = serde_json::to_vec(&Reply { closed: *id }) else {
                self.closed.pop_front();
                continue;
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &packet, flags) {
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => return false,
                Err(rustix::io::Errno::INTR) => {}
                // Sent, or nobody is there to be told.
                _ => {
                    self.closed.pop_front();
                }
            }
        }
        true
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
