//! The socket of sd_notify(3).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};

/// Where services send their state.
pub const SOCKET: &str = "/run/orlop/notify";

/// The longest message in bytes; longer ones are cut off by the kernel and ignored.
const MESSAGE_MAX: usize = 4096;

/// What a process said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The sender, from the kernel.
    pub pid: i32,
    /// `READY=1`.
    pub ready: bool,
    /// `STATUS=`.
    pub status: Option<String>,
    /// `MAINPID=`.
    pub main_pid: Option<i32>,
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
                                for descriptor in descriptors {
                                    // Descriptors are not kept for services yet; left open they would pile up.
                                    let _ = nix::unistd::close(descriptor);
                                }
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
        return Some(parse(pid, &text));
    }
}

pub(crate) fn parse(pid: i32, text: &str) -> Message {
    let mut message = Message {
        pid,
        ..Message::default()
    };
    for line in text.lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => message.ready = true,
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
    }
}
