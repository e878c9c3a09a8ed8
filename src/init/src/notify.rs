//! The socket of sd_notify(3).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

/// Where services send their state.
pub const SOCKET: &str = "/run/orlop/notify";

/// The longest message in bytes; longer ones are cut off by the kernel and ignored.
const MESSAGE_MAX: usize = 4096;

/// What a process said of itself; the names are those of sd_notify(3).
#[derive(Debug, Default)]
pub struct Message {
    /// The sender, from the kernel.
    pub pid: i32,
    /// `READY=1`.
    pub ready: bool,
    /// `STATUS=`.
    pub status: Option<String>,
    /// `MAINPID=`.
    pub main_pid: Option<i32>,
    /// `RELOADING=1`.
    pub reloading: bool,
    /// `STOPPING=1`.
    pub stopping: bool,
    /// `WATCHDOG=1`.
    pub keep_alive: bool,
    /// `WATCHDOG=trigger`.
    pub watchdog_triggered: bool,
    /// `WATCHDOG_USEC=`.
    pub watchdog_interval: Option<Duration>,
    /// `EXTEND_TIMEOUT_USEC=`.
    pub extend: Option<Duration>,
    /// `FDSTORE=1`.
    pub store_descriptors: bool,
    /// `FDSTOREREMOVE=1` with its `FDNAME=`.
    pub forget_descriptors: Option<String>,
    /// `FDNAME=`.
    pub descriptor_name: Option<String>,
    /// The descriptors that came along; closed with the message where they are not stored, which is all that `BARRIER=1` waits for.
    pub descriptors: Vec<OwnedFd>,
}

/// Opens the socket.
///
/// # Errors
/// Those of making it.
pub fn open() -> io::Result<UnixDatagram> {
    match std::fs::remove_file(SOCKET) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let socket = UnixDatagram::bind(SOCKET)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket.as_fd(), sockopt::PassCred, &true)?;
    std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o666))?;
    Ok(socket)
}

/// The next message; `None` when there is none.
#[must_use]
pub fn receive(socket: BorrowedFd<'_>) -> Option<Message> {
    loop {
        let mut buffer = [0_u8; MESSAGE_MAX];
        let mut space =
            nix::cmsg_space!(nix::sys::socket::UnixCredentials, [std::os::fd::RawFd; 16]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut kept = Vec::new();
        let (length, pid) =
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
                Ok(message) => {
                    let mut pid = None;
                    for control in message.cmsgs().ok()? {
                        match control {
                            ControlMessageOwned::ScmCredentials(credentials) => {
                                pid = Some(credentials.pid())
                            }
                            ControlMessageOwned::ScmRights(descriptors) => {
                                kept.extend(
                                    descriptors.into_iter().filter_map(|number| {
                                        orlop_sys::inherited::take(number).ok()
                                    }),
                                );
                            }
                            _ => {}
                        }
                    }
                    (message.bytes, pid)
                }
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return None,
            };
        let Some(pid) = pid else { continue };
        let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        return Some(Message {
            descriptors: kept,
            ..parse(pid, &text)
        });
    }
}

/// A time in microseconds; endless ones are of no use here.
fn microseconds(text: &str) -> Option<Duration> {
    let time = text.parse().ok().filter(|time| *time < u64::MAX)?;
    Some(Duration::from_micros(time))
}

pub(crate) fn parse(pid: i32, text: &str) -> Message {
    let mut message = Message {
        pid,
        ..Message::default()
    };
    let mut forget = false;
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => message.ready = true,
            Some(("RELOADING", "1")) => message.reloading = true,
            Some(("STOPPING", "1")) => message.stopping = true,
            Some(("WATCHDOG", "1")) => message.keep_alive = true,
            Some(("WATCHDOG", "trigger")) => message.watchdog_triggered = true,
            Some(("WATCHDOG_USEC", time)) => message.watchdog_interval = microseconds(time),
            Some(("EXTEND_TIMEOUT_USEC", time)) => message.extend = microseconds(time),
            Some(("FDSTORE", "1")) => message.store_descriptors = true,
            Some(("FDSTOREREMOVE", "1")) => forget = true,
            Some(("FDNAME", name)) => {
                let is_good = name.len() <= 255
                    && name.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b':');
                message.descriptor_name = is_good.then(|| name.to_owned());
            }
            Some(("STATUS", status)) => {
                message.status = Some(
                    status
                        .chars()
                        .filter(|c| !c.is_control())
                        .take(256)
                        .collect(),
                )
            }
            Some(("MAINPID", pid)) => message.main_pid = pid.parse().ok().filter(|p| *p > 1),
            _ => {}
        }
    }
    if forget {
        message.forget_descriptors = message.descriptor_name.clone();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_and_others_ignored() {
        let message = parse(
            7,
            "READY=1\nSTATUS=at \u{7}work\nMAINPID=42\nFOO=bar\nMAINPID=x",
        );
        assert!(message.ready);
        assert_eq!(message.status.as_deref(), Some("at work"));
        assert_eq!(message.main_pid, None);
        assert_eq!(parse(7, "MAINPID=42").main_pid, Some(42));
        let message = parse(
            7,
            "WATCHDOG=trigger\nEXTEND_TIMEOUT_USEC=1500000\nFDSTOREREMOVE=1\nFDNAME=a b",
        );
        assert!(message.watchdog_triggered && !message.keep_alive);
        assert_eq!(message.extend, Some(Duration::from_millis(1500)));
        assert_eq!(message.forget_descriptors.as_deref(), Some("a b"));
        assert_eq!(
            parse(7, "FDSTOREREMOVE=1\nFDNAME=a:b").forget_descriptors,
            None
        );
    }
}
