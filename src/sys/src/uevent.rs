//! Kernel uevents: `NETLINK_KOBJECT_UEVENT`.
//!
//! A message is `ACTION@DEVPATH`, a NUL, and `KEY=VALUE` pairs that each end in a NUL
//! (`lib/kobject_uevent.c`). Only the kernel's own multicasts (group 1, sender port 0) are believed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket, sockopt,
};

/// The group to which the kernel sends; udev's daemon uses 2.
const KERNEL_GROUP: u32 = 1;

/// Larger than any message: the kernel's buffer is `UEVENT_BUFFER_SIZE`, 2048 bytes, plus the header line.
const MESSAGE_BYTES: usize = 8 * 1024;

/// What one `recv` gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A message from the kernel.
    Event(Uevent),
    /// Messages were lost (`ENOBUFS`): whoever keeps state must walk `/sys` again.
    Overrun,
    /// Nothing is queued now.
    Empty,
}

/// One kernel uevent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `bind`, …
    pub action: String,
    /// The device's path below `/sys`, with a leading slash.
    pub devpath: String,
    properties: Vec<(String, String)>,
}

impl Uevent {
    /// Parses a message; `None` when it is not of the kernel's form.
    ///
    /// Total: pairs without `=` and text that is not UTF-8 are dropped, never a panic.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|b| *b == 0);
        let header = std::str::from_utf8(parts.next()?).ok()?;
        let (action, devpath) = header.split_once('@')?;
        if action.is_empty() || !devpath.starts_with('/') {
            return None;
        }
        let properties = parts
            .filter_map(|part| std::str::from_utf8(part).ok()?.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Some(Self {
            action: action.to_owned(),
            devpath: devpath.to_owned(),
            properties,
        })
    }

    /// The value of a property such as `SUBSYSTEM`, `DEVNAME`, `MODALIAS`.
    #[must_use]
    pub fn property(&self, key: &str) -> Option<&str> {
        self.properties
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }
}

/// A socket that gets every uevent from the moment it was opened. Non-blocking.
#[derive(Debug)]
pub struct UeventSocket {
    fd: OwnedFd,
}

impl UeventSocket {
    /// Opens and subscribes. Open it *before* walking `/sys`, so that no device falls between.
    ///
    /// # Errors
    /// What socket(2) and bind(2) give; see netlink(7).
    pub fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        // A storm of devices must not overrun the default of 208 KiB. Without CAP_NET_ADMIN the default stays.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20));
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Self { fd })
    }

    /// Takes the next message, skipping those that are malformed or not the kernel's.
    ///
    /// # Errors
    /// What recvfrom(2) gives, except `EAGAIN` and `ENOBUFS`, which are [`Received::Empty`] and [`Received::Overrun`].
    pub fn receive(&self) -> io::Result<Received> {
        let mut buffer = [0_u8; MESSAGE_BYTES];
        loop {
            match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), &mut buffer) {
                Ok((length, sender)) => {
                    if sender.is_some_and(|s| s.pid() != 0) {
                        continue;
                    }
                    if let Some(event) = buffer.get(..length).and_then(Uevent::parse) {
                        return Ok(Received::Event(event));
                    }
                }
                Err(nix::errno::Errno::EAGAIN) => return Ok(Received::Empty),
                Err(nix::errno::Errno::ENOBUFS) => return Ok(Received::Overrun),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for UeventSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_message_gives_its_action_path_and_properties() {
        let event = Uevent::parse(
            b"add@/devices/pci0000:00/0000:00:03.0/virtio1/block/vda\0ACTION=add\0SUBSYSTEM=block\0DEVNAME=vda\0X=a=b\0",
        )
        .unwrap();
        assert_eq!(event.action, "add");
        assert_eq!(
            event.devpath,
            "/devices/pci0000:00/0000:00:03.0/virtio1/block/vda"
        );
        assert_eq!(event.property("DEVNAME"), Some("vda"));
        assert_eq!(event.property("X"), Some("a=b"));
        assert_eq!(event.property("MODALIAS"), None);
    }

    #[test]
    fn what_is_not_the_kernels_form_is_refused() {
        for message in [
            &b"libudev\0\xfe\xed"[..],
            b"",
            b"add",
            b"@/x",
            b"add@x",
            b"\xff@/x",
        ] {
            assert_eq!(Uevent::parse(message), None, "{message:?}");
        }
    }
}
