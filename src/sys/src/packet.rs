//! Packet sockets (packet(7)): frames of one link, below the kernel's own IP.
//!
//! The socket itself is made with `socket(AF_PACKET, SOCK_DGRAM, 0)`: protocol 0 receives nothing, so no packet slips in before the
//! filter is attached and [`bind`] names the protocol.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One instruction of a classic BPF program, as `struct sock_filter` of `include/uapi/linux/filter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation code.
    pub code: u16,
    /// Instructions to skip when a jump's test holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// What [`receive`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the buffer.
    pub len: usize,
    /// The sender is on this machine and left the transport checksum to hardware that was never reached (`TP_STATUS_CSUMNOTREADY`).
    pub checksum_missing: bool,
    /// The link-layer address of the sender, when it has six bytes.
    pub sender: Option<[u8; 6]>,
}

fn link_address(
    ether_type: u16,
    interface_index: u32,
    hardware: Option<[u8; 6]>,
) -> libc::sockaddr_ll {
    let mut bytes = [0u8; 8];
    if let Some(mac) = hardware {
        bytes[..6].copy_from_slice(&mac);
    }
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: interface_index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: if hardware.is_some() { 6 } else { 0 },
        sll_addr: bytes,
    }
}

/// `bind(fd, {AF_PACKET, ether_type, interface_index})`: from here on the socket receives that protocol's packets of that link.
///
/// See [packet(7)](https://man7.org/linux/man-pages/man7/packet.7.html).
pub fn bind(fd: BorrowedFd<'_>, ether_type: u16, interface_index: u32) -> io::Result<()> {
    let address = link_address(ether_type, interface_index, None);
    // SAFETY: the kernel reads size_of::<sockaddr_ll>() bytes from `address`, which lives across the call.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `setsockopt(SOL_SOCKET, SO_ATTACH_FILTER)`: only packets for which `program` returns non-zero are queued.
///
/// See [socket(7)](https://man7.org/linux/man-pages/man7/socket.7.html).
pub fn attach_filter(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let mut filter: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.operand,
        })
        .collect();
    let len =
        u16::try_from(filter.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog {
        len,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel reads size_of::<sock_fprog>() bytes from `program` and `len` instructions from `filter`, both alive here.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)`: [`receive`] then knows of missing checksums.
///
/// See [packet(7)](https://man7.org/linux/man-pages/man7/packet.7.html).
pub fn report_checksum_state(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads size_of::<c_int>() bytes from `on`.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `sendto(fd, packet, {AF_PACKET, ether_type, interface_index, destination})`: one packet, without its link-layer header.
///
/// See [packet(7)](https://man7.org/linux/man-pages/man7/packet.7.html).
pub fn send(
    fd: BorrowedFd<'_>,
    packet: &[u8],
    ether_type: u16,
    interface_index: u32,
    destination: [u8; 6],
) -> io::Result<()> {
    let address = link_address(ether_type, interface_index, Some(destination));
    // SAFETY: the kernel reads packet.len() bytes from `packet` and size_of::<sockaddr_ll>() bytes from `address`.
    let result = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            libc::MSG_NOSIGNAL,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `recvmsg(fd, MSG_DONTWAIT)`: one packet, without its link-layer header; what does not fit into `buffer` is cut off.
///
/// See [recvmsg(2)](https://man7.org/linux/man-pages/man2/recvmsg.2.html).
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Received> {
    /// Room for one control message with a `tpacket_auxdata`, aligned as the kernel's `cmsghdr` wants it.
    #[repr(C, align(8))]
    struct Control([u8; 64]);

    let mut control = Control([0; 64]);
    let mut address = link_address(0, 0, None);
    let mut vector = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is a plain C structure for which all-zero bytes are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = size_of::<Control>();
    // SAFETY: the kernel writes at most iov_len bytes to `buffer`, msg_namelen to `address` and msg_controllen to `control`.
    let result = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) };
    let len = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    let written = control.0.get(..header.msg_controllen).unwrap_or_default();
    Ok(Received {
        len: len.min(buffer.len()),
        checksum_missing: auxiliary_status(written)
            .is_some_and(|status| status & libc::TP_STATUS_CSUMNOTREADY != 0),
        sender: (address.sll_halen == 6).then(|| {
            let a = address.sll_addr;
            [a[0], a[1], a[2], a[3], a[4], a[5]]
        }),
    })
}

/// `tp_status` of the `tpacket_auxdata` in received control messages: `cmsghdr { len: usize, level: i32, type: i32 }`, then its data,
/// which begins with the status (`include/uapi/linux/if_packet.h`). Only the first message is looked at: we ask for no other.
fn auxiliary_status(control: &[u8]) -> Option<u32> {
    let number =
        |at: usize| -> Option<[u8; 4]> { control.get(at..at.checked_add(4)?)?.try_into().ok() };
    let level = i32::from_ne_bytes(number(8)?);
    let kind = i32::from_ne_bytes(number(12)?);
    (level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA)
        .then(|| number(16).map(u32::from_ne_bytes))
        .flatten()
}
