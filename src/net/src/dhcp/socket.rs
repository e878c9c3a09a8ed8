//! One link's DHCP packets: a packet socket, which needs no address, and a UDP socket while the lease is renewed.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use orlop_sys::packet;

use super::frame::{CLIENT_PORT, FILTER, SERVER_PORT, decode, encode};
use super::message::Reply;

/// `ETH_P_IP` of `include/uapi/linux/if_ether.h`.
const ETHER_TYPE_IP: u16 = 0x0800;
/// Everybody on the link.
const BROADCAST: [u8; 6] = [0xff; 6];
/// Longer than any Ethernet payload that a server sends to who said 1500.
const BUFFER_BYTES: usize = 2048;

/// The sockets of one link's client.
#[derive(Debug)]
pub(crate) struct DhcpSocket {
    fd: OwnedFd,
    interface_index: u32,
    interface_name: String,
    /// Open while the server is asked for more time: it keeps the kernel from answering the server with "port unreachable".
    unicast: Option<(Ipv4Addr, UdpSocket)>,
}

impl DhcpSocket {
    /// Opens the packet socket on a link.
    pub(crate) fn open(interface_index: u32, interface_name: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        packet::attach_filter(fd.as_fd(), &FILTER)?;
        packet::report_checksum_state(fd.as_fd())?;
        packet::bind(fd.as_fd(), ETHER_TYPE_IP, interface_index)?;
        Ok(Self {
            fd,
            interface_index,
            interface_name: interface_name.to_owned(),
            unicast: None,
        })
    }

    /// Sends a client's message to everybody.
    pub(crate) fn broadcast(&self, payload: &[u8]) -> io::Result<()> {
        let frame = encode(payload, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        packet::send(
            self.fd.as_fd(),
            &frame,
            ETHER_TYPE_IP,
            self.interface_index,
            BROADCAST,
        )
    }

    /// Sends a client's message to its server by the kernel's routes.
    pub(crate) fn unicast(
        &mut self,
        payload: &[u8],
        from: Ipv4Addr,
        to: Ipv4Addr,
    ) -> io::Result<()> {
        if self
            .unicast
            .as_ref()
            .is_none_or(|(address, _)| *address != from)
        {
            let udp = UdpSocket::bind((from, CLIENT_PORT))?;
            setsockopt(
                &udp,
                sockopt::BindToDevice,
                &self.interface_name.clone().into(),
            )?;
            self.unicast = Some((from, udp));
        }
        if let Some((_, udp)) = &self.unicast {
            udp.send_to(payload, (to, SERVER_PORT))?;
        }
        Ok(())
    }

    /// Closes what [`DhcpSocket::unicast`] opened.
    pub(crate) fn end_unicast(&mut self) {
        self.unicast = None;
    }

    /// The next server's message that waits; `Ok(None)` when there is none.
    pub(crate) fn receive(&self) -> io::Result<Option<Reply>> {
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let received = match packet::receive(self.fd.as_fd(), &mut buffer) {
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            let payload = buffer
                .get(..received.len)
                .and_then(|packet| decode(packet, received.checksum_missing));
            if let Some(reply) = payload.and_then(Reply::decode) {
                return Ok(Some(reply));
            }
        }
    }
}

impl AsFd for DhcpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
