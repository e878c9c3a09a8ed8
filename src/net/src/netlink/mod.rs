//! Talking to the kernel over netlink: one blocking request, one answer.
//!
//! Links, addresses and routes go through the crates rtnetlink and netlink-packet-route (`route`). Packet rules and the table of connections are
//! encoded here by hand (`wire`, `nft`, `conntrack`), because netlink-packet-netfilter lacks the nf_tables expressions `nat`, `masq`, `ct` and
//! `fib` that our rules are made of.
//!
//! A socket belongs to the network namespace it was opened in, whoever uses it later, so work inside a container needs one short-lived thread that
//! enters the namespace, and no `setns` of our own process.

mod conntrack;
pub(crate) mod nft;
pub(crate) mod route;
pub(crate) mod rules;
pub(crate) mod wire;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

use wire::{Message, Received, array, attributes, messages};

/// The kernel answers at once; an answer that takes this long is not coming.
const ANSWER_TIMEOUT_SECONDS: u32 = 10;
/// The kernel fills at most 32 KiB in one datagram of a dump (`netlink_dump` in `net/netlink/af_netlink.c`).
const BUFFER_BYTES: usize = 64 * 1024;
/// `NLMSGERR_ATTR_MSG`: the attribute of an error answer that holds the kernel's words.
const REASON: u16 = 1;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END` of `include/uapi/linux/netfilter/nfnetlink.h`.
const BATCH: (u16, u16) = (0x10, 0x11);
/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const NFTABLES: u16 = 10;

/// Why a netlink exchange failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The socket could not be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// The container's network namespace could not be entered.
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    /// The request could not be sent.
    #[error("cannot send to the kernel over netlink")]
    Send(#[source] io::Error),
    /// No answer came.
    #[error("no answer from the kernel over netlink")]
    Receive(#[source] io::Error),
    /// The kernel refused the request.
    #[error("{}{}", Errno::from_raw(*errno).desc().to_lowercase(), reason.as_ref().map(|r| format!(" ({r})")).unwrap_or_default())]
    Refused {
        /// The error number.
        errno: i32,
        /// The kernel's own words, where it has some.
        reason: Option<String>,
        /// Which message of a batch it was, from 0; 0 for a single request.
        index: usize,
    },
}

impl Error {
    /// Whether the kernel refused with this error.
    pub(crate) fn is(&self, expected: Errno) -> bool {
        matches!(self, Self::Refused { errno, .. } if *errno == expected as i32)
    }
}

/// A netfilter socket, bound to the network namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket in the caller's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(|err| Error::Open(err.into()))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|err| Error::Open(err.into()))?;
        orlop_sys::netlink::report_reasons(fd.as_fd()).map_err(Error::Open)?;
        setsockopt(
            &fd,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_TIMEOUT_SECONDS.into(), 0),
        )
        .map_err(|err| Error::Open(err.into()))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one request and waits until the kernel has done it.
    pub(crate) fn request(&mut self, message: Message) -> Result<(), Error> {
        self.send(message, libc::NLM_F_ACK as u16)?;
        self.answers(|_| ())
    }

    /// Asks for a list, and hands each part of the answer to `each`.
    pub(crate) fn dump(
        &mut self,
        message: Message,
        each: impl FnMut(Received<'_>),
    ) -> Result<(), Error> {
        self.send(message, libc::NLM_F_DUMP as u16)?;
        self.answers(each)
    }

    /// Asks for one object; `None` when it does not exist.
    pub(crate) fn get<T>(
        &mut self,
        message: Message,
        read: impl Fn(Received<'_>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut found = None;
        self.send(message, libc::NLM_F_ACK as u16)?;
        match self.answers(|m| found = read(m)) {
            Err(err) if err.is(Errno::ENOENT) => Ok(None),
            other => other.map(|()| found),
        }
    }

    /// Sends netfilter messages that are carried out all or none.
    pub(crate) fn batch(&mut self, batch: Vec<Message>) -> Result<(), Error> {
        // struct nfgenmsg { family, version, res_id }: the batch's own messages name the subsystem in res_id.
        let marker = |kind: u16| Message::new(kind, 0).raw(&[0, 0, 0, NFTABLES as u8]);
        let first = self.sequence.wrapping_add(1);
        let count = batch.len();
        let mut datagram = marker(BATCH.0).finish(first, 0);
        for (sequence, message) in (first.wrapping_add(1)..).zip(batch) {
            datagram.extend(message.finish(sequence, libc::NLM_F_ACK as u16));
        }
        self.sequence = first.wrapping_add(count as u32).wrapping_add(1);
        datagram.extend(marker(BATCH.1).finish(self.sequence, 0));
        self.transmit(&datagram)?;

        // Each message is answered, the failed ones too; a batch that cannot be committed is answered under its first message's number.
        let mut answered = 0;
        let mut failure = None;
        let mut buffer = vec![0; BUFFER_BYTES];
        while answered < count {
            let len = self.receive(&mut buffer)?;
            for message in messages(&buffer[..len]) {
                let offset = message.sequence.wrapping_sub(first) as usize;
                if i32::from(message.kind) != libc::NLMSG_ERROR || offset > count {
                    continue;
                }
                let refused = refusal(&message, offset.saturating_sub(1));
                if offset == 0 {
                    return refused.map_or(Ok(()), Err);
                }
                answered += 1;
                failure = failure.or(refused);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn send(&mut self, message: Message, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence, flags);
        self.transmit(&bytes)
    }

    fn transmit(&self, bytes: &[u8]) -> Result<(), Error> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())
            .map(|_| ())
            .map_err(|err| Error::Send(err.into()))
    }

    fn receive(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                other => return other.map_err(|err| Error::Receive(err.into())),
            }
        }
    }

    /// Reads answers to the last request until the one that closes it.
    fn answers(&mut self, mut each: impl FnMut(Received<'_>)) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let len = self.receive(&mut buffer)?;
            for message in messages(&buffer[..len]).filter(|m| m.sequence == self.sequence) {
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR => return refusal(&message, 0).map_or(Ok(()), Err),
                    libc::NLMSG_DONE => return Ok(()),
                    _ => each(message),
                }
            }
        }
    }
}

/// Runs `work` on a thread of its own inside a network namespace; the thread has ended when this returns.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET)
                    .map_err(|err| Error::Enter(err.into()))?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|_| Err(Error::Enter(io::Error::other("the helper thread panicked"))))
    })
}

/// An error answer as an error: `struct nlmsgerr { error: i32, msg: nlmsghdr }`, the request itself unless it was capped, then attributes.
fn refusal(message: &Received<'_>, index: usize) -> Option<Error> {
    /// `NLM_F_CAPPED` and `NLM_F_ACK_TLVS`.
    const CAPPED: u16 = 0x100;
    const HAS_ATTRIBUTES: u16 = 0x200;
    let errno = i32::from_ne_bytes(array(message.payload, 0)?)
        .checked_neg()
        .filter(|e| *e > 0)?;
    let echoed = if message.flags & CAPPED != 0 {
        wire::HEADER_BYTES
    } else {
        array(message.payload, 4).map_or(0, u32::from_ne_bytes) as usize
    };
    let reason = (message.flags & HAS_ATTRIBUTES != 0)
        .then(|| message.payload.get(4 + echoed.next_multiple_of(4)..))
        .flatten()
        .and_then(words_of_the_kernel);
    Some(Error::Refused {
        errno,
        reason,
        index,
    })
}

/// The kernel's words among the attributes of an error answer.
fn words_of_the_kernel(answer_attributes: &[u8]) -> Option<String> {
    attributes(answer_attributes)
        .find(|(kind, _)| *kind == REASON)
        .map(|(_, value)| wire::text(value))
}
