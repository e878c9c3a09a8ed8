//! The descriptors that a socket unit listens on.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use orlop_unit::Socket;
use orlop_unit::socket::{Address, BindIpv6Only, Listen};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::accounts;

/// Why a socket unit cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be made or bound.
    #[error("cannot listen at {0}: {1}")]
    Bind(String, io::Error),
    /// An option was refused.
    #[error("cannot set {0}= on the socket: {1}")]
    Option(&'static str, io::Error),
    /// A node of the file system could not be made or changed.
    #[error("cannot make {0}: {1}")]
    Node(String, io::Error),
    /// `SocketUser=` or `SocketGroup=` names nobody.
    #[error("{0}: there is no such account")]
    Account(String),
    /// A kind of socket that is not supported.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// Opens everything that the unit listens on, in order.
///
/// # Errors
/// [`Error`]; what was opened before is closed.
pub fn open(socket: &Socket) -> Result<Vec<OwnedFd>, Error> {
    let mut open = Vec::with_capacity(socket.listen.len());
    for listen in &socket.listen {
        open.push(open_one(socket, listen)?);
    }
    let nodes: Vec<&str> = socket.listen.iter().filter_map(Listen::path).collect();
    if let [node] = nodes.as_slice() {
        for link in &socket.symlinks {
            make_parents(link, socket.directory_mode)?;
            // One of an earlier start; what is there and no link makes the next step fail.
            if fs::symlink_metadata(link).is_ok_and(|m| m.is_symlink()) {
                let _ = fs::remove_file(link);
            }
            std::os::unix::fs::symlink(node, link).map_err(|err| Error::Node(link.clone(), err))?;
        }
    }
    Ok(open)
}

/// Removes the nodes that `RemoveOnStop=` says.
pub fn remove(socket: &Socket) {
    if !socket.remove_on_stop {
        return;
    }
    let nodes = socket.listen.iter().filter_map(Listen::path);
    for path in nodes.chain(socket.symlinks.iter().map(String::as_str)) {
        // One that is gone needs nothing.
        let _ = fs::remove_file(path);
    }
}

/// Throws away what waits in the sockets (`FlushPending=`).
pub fn flush(open: &[OwnedFd]) {
    const MOST: usize = 1024;
    for socket in open {
        for _ in 0..MOST {
            if !is_readable(socket.as_fd()) || rustix::net::accept(socket).is_err() {
                break;
            }
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

fn open_one(socket: &Socket, listen: &Listen) -> Result<OwnedFd, Error> {
    match listen {
        Listen::Stream(address) => at_address(socket, address, SocketType::STREAM),
        Listen::Datagram(address) => at_address(socket, address, SocketType::DGRAM),
        Listen::SequentialPacket(address) => at_address(socket, address, SocketType::SEQPACKET),
        Listen::Fifo(path) => fifo(socket, path),
        Listen::Special(path) => {
            let is_special = fs::metadata(path).is_ok_and(|m| {
                m.file_type().is_char_device()
                    || m.is_file() && (path.starts_with("/proc/") || path.starts_with("/sys/"))
            });
            if !is_special {
                let err =
                    io::Error::other("neither a character device nor a file of /proc or /sys");
                return Err(Error::Bind(path.clone(), err));
            }
            fs::File::options()
                .read(true)
                .write(socket.writable)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(path)
                .map(OwnedFd::from)
                .map_err(|err| Error::Bind(path.clone(), err))
        }
        Listen::Netlink { .. } => Err(Error::Unsupported("ListenNetlink=")),
    }
}

fn at_address(socket: &Socket, address: &Address, kind: SocketType) -> Result<OwnedFd, Error> {
    let name = match address {
        Address::Port(port) => port.to_string(),
        Address::Inet(address) => address.to_string(),
        Address::Path(path) => path.clone(),
        Address::Abstract(name) => format!("@{name}"),
    };
    let bind = |err: rustix::io::Errno| Error::Bind(name.clone(), err.into());
    let fd = match address {
        Address::Port(port) => {
            let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port));
            match internet(socket, any, kind, true) {
                // A kernel without IPv6.
                Err(Error::Bind(_, err)) if err.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    internet(socket, (Ipv4Addr::UNSPECIFIED, *port).into(), kind, false)?
                }
                other => other?,
            }
        }
        Address::Inet(address) => internet(socket, *address, kind, false)?,
        Address::Path(path) => {
            make_parents(path, socket.directory_mode)?;
            let fd = make(AddressFamily::UNIX, kind).map_err(bind)?;
            options(socket, fd.as_fd(), false)?;
            // One that an earlier start left behind would keep everybody out.
            if fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                let _ = fs::remove_file(path);
            }
            let address = SocketAddrUnix::new(path.as_str()).map_err(bind)?;
            rustix::net::bind(&fd, &address).map_err(bind)?;
            let made = fs::set_permissions(path, fs::Permissions::from_mode(socket.mode));
            made.map_err(|err| Error::Node(path.clone(), err))?;
            give_away(socket, path)?;
            fd
        }
        Address::Abstract(name) => {
            let fd = make(AddressFamily::UNIX, kind).map_err(bind)?;
            options(socket, fd.as_fd(), false)?;
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(bind)?;
            rustix::net::bind(&fd, &address).map_err(bind)?;
            fd
        }
    };
    if kind != SocketType::DGRAM {
        let backlog = i32::try_from(socket.backlog).unwrap_or(i32::MAX);
        rustix::net::listen(&fd, backlog).map_err(bind)?;
    }
    Ok(fd)
}

fn make(family: AddressFamily, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

fn internet(
    socket: &Socket,
    address: SocketAddr,
    kind: SocketType,
    is_any: bool,
) -> Result<OwnedFd, Error> {
    let bind = |err: rustix::io::Errno| Error::Bind(address.to_string(), err.into());
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let fd = make(family, kind).map_err(bind)?;
    if address.is_ipv6() {
        let only = match socket.bind_ipv6_only {
            BindIpv6Only::Default if is_any => None,
            BindIpv6Only::Default => None,
            BindIpv6Only::Both => Some(false),
            BindIpv6Only::Ipv6Only => Some(true),
        };
        if let Some(only) = only {
            set("BindIPv6Only", sockopt::set_ipv6_v6only(&fd, only))?;
        }
    }
    set("ReuseAddress", sockopt::set_socket_reuseaddr(&fd, true))?;
    options(socket, fd.as_fd(), true)?;
    if socket.free_bind {
        let freed = if address.is_ipv6() {
            sockopt::set_ipv6_freebind(&fd, true)
        } else {
            sockopt::set_ip_freebind(&fd, true)
        };
        set("FreeBind", freed)?;
    }
    if kind == SocketType::STREAM {
        if socket.no_delay {
            set("NoDelay", sockopt::set_tcp_nodelay(&fd, true))?;
        }
        if let Some(time) = socket.keep_alive_time {
            set("KeepAliveTimeSec", sockopt::set_tcp_keepidle(&fd, time))?;
        }
        if let Some(time) = socket.keep_alive_interval {
            set(
                "KeepAliveIntervalSec",
                sockopt::set_tcp_keepintvl(&fd, time),
            )?;
        }
        if let Some(count) = socket.keep_alive_probes {
            set("KeepAliveProbes", sockopt::set_tcp_keepcnt(&fd, count))?;
        }
        if let Some(name) = &socket.tcp_congestion {
            set("TCPCongestion", sockopt::set_tcp_congestion(&fd, name))?;
        }
    }
    if let Some(tos) = socket.ip_tos {
        let set_tos = if address.is_ipv6() {
            sockopt::set_ipv6_tclass(&fd, tos.into())
        } else {
            sockopt::set_ip_tos(&fd, tos)
        };
        set("IPTOS", set_tos)?;
    }
    if let Some(ttl) = socket.ip_ttl {
        let set_ttl = if address.is_ipv6() {
            sockopt::set_ipv6_unicast_hops(&fd, Some(ttl))
        } else {
            sockopt::set_ip_ttl(&fd, ttl.into())
        };
        set("IPTTL", set_ttl)?;
    }
    rustix::net::bind(&fd, &address).map_err(bind)?;
    Ok(fd)
}

fn set(name: &'static str, result: rustix::io::Result<()>) -> Result<(), Error> {
    result.map_err(|err| Error::Option(name, err.into()))
}

/// The options that every kind of socket can have.
fn options(socket: &Socket, fd: BorrowedFd<'_>, is_internet: bool) -> Result<(), Error> {
    let nix = |name: &'static str, result: nix::Result<()>| {
        result.map_err(|err| Error::Option(name, err.into()))
    };
    if socket.keep_alive {
        set("KeepAlive", sockopt::set_socket_keepalive(fd, true))?;
    }
    if socket.reuse_port && is_internet {
        set("ReusePort", sockopt::set_socket_reuseport(fd, true))?;
    }
    if socket.broadcast {
        set("Broadcast", sockopt::set_socket_broadcast(fd, true))?;
    }
    if socket.pass_credentials {
        set("PassCredentials", sockopt::set_socket_passcred(fd, true))?;
    }
    if let Some(bytes) = socket.receive_buffer {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let result = sockopt::set_socket_recv_buffer_size_force(fd, bytes);
        set("ReceiveBuffer", result)?;
    }
    if let Some(bytes) = socket.send_buffer {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let result = sockopt::set_socket_send_buffer_size_force(fd, bytes);
        set("SendBuffer", result)?;
    }
    if let Some(mark) = socket.mark {
        let result = nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::Mark, &mark);
        nix("Mark", result)?;
    }
    if let Some(priority) = socket.priority {
        let result =
            nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::Priority, &priority);
        nix("Priority", result)?;
    }
    if let Some(link) = &socket.bind_to_device {
        let link = std::ffi::OsString::from(link);
        let result =
            nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::BindToDevice, &link);
        nix("BindToDevice", result)?;
    }
    Ok(())
}

fn fifo(socket: &Socket, path: &str) -> Result<OwnedFd, Error> {
    let node = |err: io::Error| Error::Node(path.to_owned(), err);
    make_parents(path, socket.directory_mode)?;
    let mode = nix::sys::stat::Mode::from_bits_truncate(socket.mode);
    match nix::unistd::mkfifo(path, mode) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(err) => return Err(node(err.into())),
    }
    // Open for both: it is not at its end while nobody writes.
    let file = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)
        .map_err(node)?;
    let metadata = file.metadata().map_err(node)?;
    if !metadata.file_type().is_fifo() {
        return Err(node(io::Error::other("something else is there")));
    }
    let permissions = fs::Permissions::from_mode(socket.mode);
    file.set_permissions(permissions).map_err(node)?;
    if let Some(bytes) = socket.pipe_size {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let sized = rustix::pipe::fcntl_setpipe_size(&file, bytes).map(|_| ());
        set("PipeSize", sized)?;
    }
    give_away(socket, path)?;
    Ok(file.into())
}

fn make_parents(path: &str, mode: u32) -> Result<(), Error> {
    let Some(parent) = Path::new(path).parent().filter(|p| !p.exists()) else {
        return Ok(());
    };
    let made = fs::create_dir_all(parent)
        .and_then(|()| fs::set_permissions(parent, fs::Permissions::from_mode(mode)));
    made.map_err(|err| Error::Node(parent.display().to_string(), err))
}

/// Gives a node to `SocketUser=` and `SocketGroup=`.
fn give_away(socket: &Socket, path: &str) -> Result<(), Error> {
    let user = match &socket.user {
        Some(name) => {
            Some(accounts::user(name).ok_or_else(|| Error::Account(format!("SocketUser={name}")))?)
        }
        None => None,
    };
    let group = match &socket.group {
        Some(name) => Some(
            accounts::group(name).ok_or_else(|| Error::Account(format!("SocketGroup={name}")))?,
        ),
        None => user.as_ref().map(|user| user.gid),
    };
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, user.map(|user| user.uid), group)
        .map_err(|err| Error::Node(path.to_owned(), err))
}
