//! Telling the supervisor how things are: sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The supervisor's socket, when it wants to be told.
#[derive(Debug)]
pub struct Supervisor(Option<(UnixDatagram, SocketAddr)>);

impl Supervisor {
    /// The one that `NOTIFY_SOCKET` names, if any.
    ///
    /// # Errors
    /// The name is none of a socket, or no socket can be had.
    pub fn from_environment() -> io::Result<Self> {
        Self::at(std::env::var_os("NOTIFY_SOCKET").as_deref())
    }

    /// The one at a socket's name; a name that begins with `@` is of the abstract namespace (unix(7)).
    ///
    /// # Errors
    /// As for [`Supervisor::from_environment`].
    pub fn at(name: Option<&OsStr>) -> io::Result<Self> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(Self(None));
        };
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // The supervisor may wait for what we read: to wait for it could be to wait for ourselves.
        socket.set_nonblocking(true)?;
        Ok(Self(Some((socket, address))))
    }

    /// Sends assignments such as `READY=1`, one a line. To have nobody who listens is no error.
    ///
    /// # Errors
    /// Those of sendto(2), `WouldBlock` for a supervisor that is behind among them.
    pub fn tell(&self, assignments: &str) -> io::Result<()> {
        match &self.0 {
            Some((socket, address)) => socket
                .send_to_addr(assignments.as_bytes(), address)
                .map(drop),
            None => Ok(()),
        }
    }
}

/// Tells the supervisor that `NOTIFY_SOCKET` names, if any.
///
/// # Errors
/// As for [`Supervisor::from_environment`] and [`Supervisor::tell`].
pub fn tell(assignments: &str) -> io::Result<()> {
    Supervisor::from_environment()?.tell(assignments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_told_and_nobody_is_no_error() {
        let name = format!("orlop-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        let told = |socket: &UnixDatagram, at: &OsStr| {
            Supervisor::at(Some(at)).unwrap().tell("READY=1").unwrap();
            let mut buffer = [0; 32];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        };
        told(&by_path, path.as_os_str());
        told(&by_name, OsStr::new(&format!("@{name}")));
        std::fs::remove_file(&path).unwrap();
        assert!(Supervisor::at(None).unwrap().tell("READY=1").is_ok());
        let gone = Supervisor::at(Some(path.as_os_str())).unwrap();
        assert!(gone.tell("READY=1").is_err());
    }
}
