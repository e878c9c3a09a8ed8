//! The kernel's table of known connections, as far as containers make it stale.
//!
//! Numbers are those of `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::net::Ipv4Addr;

use nix::errno::Errno;

use super::wire::{Message, array, attributes};
use super::{Error, Socket};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const PROTOCOL_NUMBER: u16 = 1;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;

fn message(kind: u16) -> Message {
    // struct nfgenmsg { family: u8, version: u8, res_id: u16 }
    Message::new((SUBSYSTEM << 8) | kind, 0).raw(&[libc::AF_INET as u8, 0, 0, 0])
}

/// Forgets the UDP flows that some address answered.
///
/// A client that sends on from the same port keeps its entry alive, and with it the redirection to where a container was; TCP ends by itself.
pub(crate) fn forget_datagrams_answered_by(
    socket: &mut Socket,
    address: Ipv4Addr,
) -> Result<(), Error> {
    let mut stale: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    socket.dump(message(GET), |answer| {
        let read = || -> Option<(Vec<u8>, Vec<u8>)> {
            let find = |bytes: &'_ [u8], wanted: u16| {
                attributes(bytes)
                    .find(|(kind, _)| *kind == wanted)
                    .map(|(_, value)| value.to_vec())
            };
            let body = answer.payload.get(4..)?;
            let reply = find(body, TUPLE_REPLY)?;
            let source = find(&find(&reply, TUPLE_IP)?, IP_V4_SOURCE)?;
            let protocol = find(&find(&reply, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?;
            (array::<4>(&source, 0).map(Ipv4Addr::from) == Some(address) && protocol == [UDP])
                .then(|| Some((find(body, TUPLE_ORIGINAL)?, find(body, ID)?)))?
        };
        stale.extend(read());
    })?;
    for (tuple, id) in stale {
        // The id: the flow may have ended, and another begun with the same tuple.
        match socket.request(
            message(DELETE)
                .nest(TUPLE_ORIGINAL, |m| m.raw(&tuple))
                .bytes(ID, &id),
        ) {
            Err(err) if err.is(Errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}
