//! `systemd-notify`: tells PID 1 how a service is doing, for services that are shell scripts (sd_notify(3)).

use std::ffi::OsString;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

/// The most descriptors that one message may bring.
const MOST_PASSED: usize = 16;

const HELP: &str = "Usage: systemd-notify [OPTION…] [VARIABLE=VALUE…]

  --ready           the start, or a reload, is over
  --reloading       the configuration is being read again
  --stopping        the service is about to end
  --pid[=PID]       the main process is PID, or the one that calls this
  --status=TEXT     what `systemctl status` shows
  --fd=NUMBER       pass this descriptor along, for FDSTORE=1; may be repeated
  --no-block        do not wait until PID 1 has read it
";

/// Runs `systemd-notify`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let mut lines = Vec::new();
    let mut waits = true;
    let mut passed = Vec::new();
    for arg in args {
        let arg = arg.to_string_lossy();
        match arg.as_ref() {
            "--ready" => lines.push("READY=1".to_owned()),
            "--reloading" => lines.push("RELOADING=1".to_owned()),
            "--stopping" => lines.push("STOPPING=1".to_owned()),
            "--no-block" => waits = false,
            "--pid" | "--pid=auto" | "--pid=parent" => {
                lines.push(format!("MAINPID={}", std::os::unix::process::parent_id()));
            }
            other if other.starts_with("--fd=") => {
                let number = other.strip_prefix("--fd=").and_then(|n| n.parse().ok());
                match number.map(orlop_sys::inherited::duplicate) {
                    Some(Ok(fd)) => passed.push(fd),
                    _ => {
                        eprintln!("systemd-notify: {other}: no such descriptor");
                        return ExitCode::FAILURE;
                    }
                }
            }
            "-h" | "--help" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            other => match (
                other.strip_prefix("--pid="),
                other.strip_prefix("--status="),
            ) {
                (Some(pid), _) => lines.push(format!("MAINPID={pid}")),
                (_, Some(text)) => lines.push(format!("STATUS={text}")),
                _ if !other.starts_with('-') && other.contains('=') => lines.push(other.to_owned()),
                _ => {
                    eprintln!("systemd-notify: unknown option {other}; --help lists them");
                    return ExitCode::from(2);
                }
            },
        }
    }
    if lines.is_empty() {
        eprint!("{HELP}");
        return ExitCode::from(2);
    }
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        eprintln!("systemd-notify: no $NOTIFY_SOCKET: the caller is no service that may notify");
        return ExitCode::FAILURE;
    };
    match tell(&socket.to_string_lossy(), &lines.join("\n"), &passed, waits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("systemd-notify: {}: {err}", socket.to_string_lossy());
            ExitCode::FAILURE
        }
    }
}

/// Sends the text, and waits until it was read: PID 1 finds out by the living sender whose message it is.
fn tell(socket: &str, text: &str, passed: &[OwnedFd], waits: bool) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        None => SocketAddrUnix::new(socket)?,
    };
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let passed: Vec<BorrowedFd<'_>> = passed.iter().map(AsFd::as_fd).collect();
    send(fd.as_fd(), &address, text, &passed)?;
    if waits {
        // The reader closes its copy of the write end when it is through (sd_notify(3), BARRIER=1).
        let (mut read, write) = std::io::pipe()?;
        send(fd.as_fd(), &address, "BARRIER=1", &[write.as_fd()])?;
        drop(write);
        read.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

fn send(
    fd: BorrowedFd<'_>,
    address: &SocketAddrUnix,
    text: &str,
    passed: &[BorrowedFd<'_>],
) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_PASSED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(std::io::Error::other("too many descriptors"));
    }
    let data = [IoSlice::new(text.as_bytes())];
    sendmsg_addr(fd, address, &data, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
