//! The control socket: connections, messages and who may send them. What a message means is the manager's.

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// Where PID 1 listens.
pub const SOCKET: &str = "/run/orlop/init";

/// The longest message in bytes.
const MESSAGE_MAX: usize = 64 * 1024;
/// The most connections at a time; a further one is closed at once.
const CONNECTIONS_MAX: usize = 128;
/// The most descriptors that one message may bring.
const DESCRIPTORS_MAX: usize = 3;

/// A call that somebody made.
#[derive(Debug)]
pub struct Call {
    /// The method, without the interface's name.
    pub method: String,
    /// Its parameters, an object.
    pub parameters: Value,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
    /// The caller's user, from the kernel.
    pub uid: u32,
    /// The caller's process, from the kernel.
    pub pid: i32,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    uid: u32,
    pid: i32,
    input: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    output: Vec<u8>,
    ends: bool,
}

/// The socket and its connections, by number.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Server {
    /// Listens at [`SOCKET`]; everybody may connect, methods are guarded one by one.
    ///
    /// # Errors
    /// Those of making the socket.
    pub fn listen() -> io::Result<Self> {
        std::fs::create_dir_all("/run/orlop")?;
        match std::fs::remove_file(SOCKET) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let listener = UnixListener::bind(SOCKET)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(SOCKET, std::fs::Permissions::from_mode(0o666))?;
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
            next: 0,
        })
    }

    /// All of it as data, for `saved`. Descriptors that came with half a message are not part of it.
    #[must_use]
    pub fn save(&self) -> Value {
        let connections: Vec<Value> = self
            .connections
            .iter()
            .map(|(id, c)| {
                json!({
                    "id": id,
                    "fd": c.stream.as_raw_fd(),
                    "uid": c.uid,
                    "pid": c.pid,
                    "input": c.input,
                    "output": c.output,
                    "ends": c.ends,
                })
            })
            .collect();
        json!({
            "listener": self.listener.as_raw_fd(),
            "next": self.next,
            "connections": connections,
        })
    }

    /// Goes on with what [`Server::save`] gave; `None` when the socket itself is not there.
    #[must_use]
    pub fn resume(saved: &Value) -> Option<Self> {
        let listener = UnixListener::from(crate::saved::take(saved, "listener")?);
        let bytes = |value: Option<&Value>| -> Vec<u8> {
            value
                .and_then(|v| serde_json::from_value(v.clone()).ok())
                .unwrap_or_default()
        };
        let mut connections = BTreeMap::new();
        let list = saved.get("connections").and_then(Value::as_array);
        for one in list.into_iter().flatten() {
            let number = |field: &str| one.get(field).and_then(Value::as_u64);
            let (Some(id), Some(fd)) = (number("id"), crate::saved::take(one, "fd")) else {
                continue;
            };
            let connection = Connection {
                stream: UnixStream::from(fd),
                // Nobody's, rather than root's, where it is not readable.
                uid: number("uid")
                    .and_then(|uid| u32::try_from(uid).ok())
                    .unwrap_or(u32::MAX),
                pid: number("pid")
                    .and_then(|pid| i32::try_from(pid).ok())
                    .unwrap_or(-1),
                input: bytes(one.get("input")),
                descriptors: Vec::new(),
                output: bytes(one.get("output")),
                ends: one.get("ends").and_then(Value::as_bool).unwrap_or(false),
            };
            connections.insert(id, connection);
        }
        Some(Self {
            listener,
            connections,
            next: saved.get("next").and_then(Value::as_u64).unwrap_or(0),
        })
    }

    /// The numbers of all connections.
    pub fn connections(&self) -> impl Iterator<Item = u64> {
        self.connections.keys().copied()
    }

    /// The socket to poll for new connections.
    #[must_use]
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// A connection's socket.
    #[must_use]
    pub fn connection(&self, id: u64) -> Option<BorrowedFd<'_>> {
        self.connections.get(&id).map(|c| c.stream.as_fd())
    }

    /// Takes the next new connection; `None` when there is no more.
    pub fn accept(&mut self) -> Option<u64> {
        loop {
            let (stream, _) = self.listener.accept().ok()?;
            if self.connections.len() >= CONNECTIONS_MAX || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else {
                continue;
            };
            self.next = self.next.saturating_add(1);
            let connection = Connection {
                stream,
                uid: peer.uid.as_raw(),
                pid: peer.pid.as_raw_nonzero().get(),
                input: Vec::new(),
                descriptors: Vec::new(),
                output: Vec::new(),
                ends: false,
            };
            self.connections.insert(self.next, connection);
            return Some(self.next);
        }
    }

    /// Reads what came on a connection; `None` when it is over.
    pub fn read(&mut self, id: u64) -> Option<Vec<Call>> {
        let connection = self.connections.get_mut(&id)?;
        loop {
            let mut buffer = [0_u8; 4096];
            let mut space =
                [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = recvmsg(
                &connection.stream,
                &mut [IoSliceMut::new(&mut buffer)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            );
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    connection.descriptors.extend(descriptors);
                }
            }
            connection.descriptors.truncate(DESCRIPTORS_MAX);
            match received {
                Ok(message) if message.bytes == 0 => {
                    self.connections.remove(&id);
                    return None;
                }
                Ok(message) => {
                    let bytes = buffer.get(..message.bytes).unwrap_or_default();
                    connection.input.extend_from_slice(bytes);
                    if connection.input.len() > MESSAGE_MAX {
                        self.connections.remove(&id);
                        return None;
                    }
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.connections.remove(&id);
                    return None;
                }
            }
        }
        let mut calls = Vec::new();
        while let Some(end) = connection.input.iter().position(|b| *b == 0) {
            let rest = connection.input.split_off(end.saturating_add(1));
            let mut text = std::mem::replace(&mut connection.input, rest);
            text.pop();
            match parse(&text) {
                Some((method, parameters)) => calls.push(Call {
                    method,
                    parameters,
                    descriptors: std::mem::take(&mut connection.descriptors),
                    uid: connection.uid,
                    pid: connection.pid,
                }),
                None => {
                    connection.ends = true;
                    self.error(
                        id,
                        "io.orlop.Init.Failed",
                        "the message is no call of io.orlop.Init",
                    );
                    return Some(calls);
                }
            }
        }
        Some(calls)
    }

    /// Answers a call; a connection that is gone is none of our business.
    pub fn reply(&mut self, id: u64, parameters: &Value) {
        self.send(id, &json!({ "parameters": parameters }));
    }

    /// Answers a call with an error.
    pub fn error(&mut self, id: u64, name: &str, message: &str) {
        self.send(
            id,
            &json!({ "error": name, "parameters": { "message": message } }),
        );
    }

    fn send(&mut self, id: u64, message: &Value) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection
                .output
                .extend_from_slice(message.to_string().as_bytes());
            connection.output.push(0);
        }
        self.flush(id);
    }

    /// Writes what waits; `true` when more is left, and the socket should be polled for writing.
    pub fn flush(&mut self, id: u64) -> bool {
        let Some(connection) = self.connections.get_mut(&id) else {
            return false;
        };
        while !connection.output.is_empty() {
            let sent = nix::sys::socket::send(
                connection.stream.as_raw_fd(),
                &connection.output,
                nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
            );
            match sent {
                Ok(length) => {
                    connection
                        .output
                        .drain(..length.min(connection.output.len()));
                }
                Err(nix::errno::Errno::EAGAIN) => return true,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => {
                    self.connections.remove(&id);
                    return false;
                }
            }
        }
        if connection.ends {
            self.connections.remove(&id);
        }
        false
    }
}

pub(crate) fn parse(text: &[u8]) -> Option<(String, Value)> {
    let mut message: Value = serde_json::from_slice(text).ok()?;
    let parameters = message
        .get_mut("parameters")
        .map_or_else(|| json!({}), Value::take);
    let method = message
        .get("method")?
        .as_str()?
        .strip_prefix("io.orlop.Init.")?;
    Some((method.to_owned(), parameters))
}
