//! Socket units: listening, and letting in.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::sys::epoll::{EpollEvent, EpollFlags};
use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{Mode, Request, Socket as SocketUnit, UnitId, UnitName};
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with, getsockname};

use crate::manager::events::token;
use crate::manager::{Manager, log};
use crate::trigger::{Trigger, listen, socket};

/// A connection of a socket unit with `Accept=yes`, until its instance is down.
#[derive(Debug)]
pub struct Connection {
    /// The socket unit.
    pub socket: UnitId,
    /// The connection.
    pub fd: OwnedFd,
    /// The other side, where it has an address: for `REMOTE_ADDR` and `REMOTE_PORT`.
    pub remote: Option<(String, u16)>,
}

impl Manager {
    pub(in crate::manager) fn start_listening(
        &mut self,
        id: UnitId,
        directives: &SocketUnit,
    ) -> Result<(), String> {
        let service = self.triggered(id);
        let is_up = service.is_some_and(|s| !self.graph.state(s).is_down());
        if is_up && !directives.accept {
            let name = service.map(|s| self.name(s)).unwrap_or_default();
            return Err(format!("{name} runs already, without the socket"));
        }
        let opened = listen::open(directives);
        let Some(Trigger::Socket(socket, open)) = self.trigger_mut(id) else {
            return Ok(());
        };
        match opened {
            Ok(mut opened) => {
                if directives.accept {
                    for fd in &mut opened {
                        // Whoever came may be gone again when he is let in.
                        let _ = rustix::io::ioctl_fionbio(&*fd, true);
                    }
                }
                if directives.flush_pending {
                    listen::flush(&opened);
                }
                *open = opened;
                socket.listen(false);
                self.poll_sockets(id);
                Ok(())
            }
            Err(err) => {
                socket.fail(err.to_string());
                Err(err.to_string())
            }
        }
    }

    /// Polls a socket unit's descriptors while it listens, and not otherwise.
    pub(in crate::manager) fn poll_sockets(&mut self, id: UnitId) {
        let Some(Trigger::Socket(socket, open)) = self
            .entries
            .get(id.index())
            .and_then(|e| e.trigger.as_ref())
        else {
            return;
        };
        let Some(epoll) = &self.epoll else { return };
        for (at, fd) in (0_u64..).zip(open) {
            let number = u64::try_from(id.index()).unwrap_or(0) << 16 | at;
            if socket.state == socket::State::Listening {
                let event = EpollEvent::new(EpollFlags::EPOLLIN, token::SOCKET | number);
                // One that is polled already stays so.
                let _ = epoll.add(fd, event);
            } else {
                let _ = epoll.delete(fd);
            }
        }
    }

    pub(in crate::manager) fn somebody_comes(&mut self, id: UnitId, at: usize) {
        let now_ns = times::now_ns();
        let Some(Trigger::Socket(socket, _)) = self.trigger_mut(id) else {
            return;
        };
        match socket.comes(now_ns) {
            socket::Verdict::Wait => self.poll_sockets(id),
            socket::Verdict::TooOften => self.gave_up(id),
            socket::Verdict::Start => {
                self.poll_sockets(id);
                self.start_triggered(id);
            }
            socket::Verdict::Accept => self.let_in(id, at),
        }
    }

    /// Accepts a connection and starts an instance for it.
    fn let_in(&mut self, id: UnitId, at: usize) {
        let own = self.graph.name(id).clone();
        let Some(Trigger::Socket(socket, open)) = self.trigger_mut(id) else {
            return;
        };
        let Some(listening) = open.get(at) else {
            return;
        };
        let Ok((fd, remote)) = acceptfrom_with(listening, SocketFlags::CLOEXEC) else {
            return;
        };
        let remote = remote.and_then(|address| internet_address(&address));
        let source = remote.as_ref().map(|(address, _)| address.clone());
        if !socket.has_room(source.as_deref()) {
            let text = format!("{own}: too many connections: one is refused");
            log(Priority::Warning, &text);
            return;
        }
        socket.accepted = socket.accepted.saturating_add(1);
        let number = socket.accepted.saturating_sub(1);
        let instance = match &remote {
            Some((address, port)) => {
                let local = getsockname(&fd).ok().as_ref().and_then(internet_address);
                let (here, here_port) = local.unwrap_or_default();
                format!("{number}-{here}:{here_port}-{address}:{port}")
            }
            None => match rustix::net::sockopt::socket_peercred(&fd) {
                Ok(peer) => format!(
                    "{number}-{}-{}",
                    peer.pid.as_raw_nonzero(),
                    peer.uid.as_raw()
                ),
                Err(_) => number.to_string(),
            },
        };
        let Ok(name) = UnitName::parse(&format!("{}@{instance}.service", own.prefix())) else {
            return;
        };
        let service = self.load(&name);
        if self.graph.unit(service).is_none() {
            let text = format!("{own}: cannot load {name} for a connection");
            log(Priority::Error, &text);
            self.forgettable.push(service);
            return;
        }
        if let Some(entry) = self.entries.get_mut(service.index()) {
            entry.connection = Some(Connection {
                socket: id,
                fd,
                remote,
            });
        }
        if let Some(Trigger::Socket(socket, _)) = self.trigger_mut(id) {
            socket.connections.insert(service, source);
        }
        let asked = self
            .jobs
            .request(&self.graph, Request::Start, service, Mode::Replace);
        if let Err(err) = asked {
            self.log(
                Priority::Error,
                service,
                &format!("cannot be started: {err}"),
            );
            self.connection_is_over(service);
        }
    }

    /// The instance for a connection is down: its unit goes with it.
    pub(in crate::manager) fn connection_is_over(&mut self, service: UnitId) {
        let entry = self.entries.get_mut(service.index());
        let Some(connection) = entry.and_then(|e| e.connection.take()) else {
            return;
        };
        if let Some(Trigger::Socket(socket, _)) = self.trigger_mut(connection.socket) {
            socket.connections.remove(&service);
        }
        self.forgettable.push(service);
    }
}

/// The address and the port of an internet socket; an IPv4 address in IPv6's clothes is one.
fn internet_address(address: &SocketAddrAny) -> Option<(String, u16)> {
    let address = std::net::SocketAddr::try_from(address.clone()).ok()?;
    let ip = match address.ip() {
        IpAddr::V6(ip) => ip.to_canonical(),
        ip => ip,
    };
    Some((ip.to_string(), address.port()))
}
