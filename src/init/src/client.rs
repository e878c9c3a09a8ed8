//! The other end of PID 1's control socket, for the command lines and for those who start containers.

use std::io::{self, IoSlice, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

use crate::control::SOCKET;

/// Why a call did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens there.
    #[error("cannot reach PID 1 at {SOCKET}: is this machine run by Orlop?")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection to PID 1 broke")]
    Broken(#[source] io::Error),
    /// The answer is none.
    #[error("PID 1 answered with something that is no message")]
    Malformed(#[source] serde_json::Error),
    /// PID 1 says no.
    #[error("{message}")]
    Refused {
        /// The error's name, such as `io.orlop.Init.NoSuchUnit`.
        name: String,
        /// What it says.
        message: String,
    },
}

/// A connection to PID 1.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect() -> Result<Self, Error> {
        let stream = UnixStream::connect(SOCKET).map_err(Error::Connect)?;
        Ok(Self { stream })
    }

    /// Calls a method, `Job` for `io.orlop.Init.Job`, and waits for its answer.
    ///
    /// # Errors
    /// Any of [`Error`].
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value, Error> {
        self.send(method, parameters, &[])?;
        self.receive()
    }

    /// Sends a call with descriptors, without waiting.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub fn send(
        &mut self,
        method: &str,
        parameters: &Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let mut text =
            json!({ "method": format!("io.orlop.Init.{method}"), "parameters": parameters })
                .to_string()
                .into_bytes();
        text.push(0);
        let raw: Vec<RawFd> = descriptors.iter().map(|d| d.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let ancillary = if raw.is_empty() { &[] } else { &rights[..] };
        let mut sent = 0;
        while let Some(rest) = text.get(sent..).filter(|r| !r.is_empty()) {
            let ancillary = if sent == 0 { ancillary } else { &[] };
            let written = sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(rest)],
                ancillary,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
            .map_err(|err| Error::Broken(err.into()))?;
            sent = sent.saturating_add(written);
        }
        Ok(())
    }

    /// Waits for an answer.
    ///
    /// # Errors
    /// Any of [`Error`] but [`Error::Connect`].
    pub fn receive(&mut self) -> Result<Value, Error> {
        let mut text = Vec::new();
        let mut buffer = [0_u8; 4096];
        while text.last() != Some(&0) {
            let length = self.stream.read(&mut buffer).map_err(Error::Broken)?;
            if length == 0 {
                return Err(Error::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            text.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
        text.pop();
        let mut answer: Value = serde_json::from_slice(&text).map_err(Error::Malformed)?;
        let parameters = answer
            .get_mut("parameters")
            .map(Value::take)
            .unwrap_or(Value::Null);
        match answer.get("error").and_then(Value::as_str) {
            None => Ok(parameters),
            Some(name) => Err(Error::Refused {
                name: name.to_owned(),
                message: parameters
                    .get("message")
                    .and_then(Value::as_str)
                    .unwrap_or(name)
                    .to_owned(),
            }),
        }
    }

    /// The connection, to wait for answers and for other things at once.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// Tells PID 1 that the process of `pidfd`, its child, takes the place of the caller as its unit's main process.
///
/// # Errors
/// Any of [`Error`].
pub fn handoff(pidfd: BorrowedFd<'_>) -> Result<(), Error> {
    let mut client = Client::connect()?;
    client.send("HandOff", &json!({}), &[pidfd])?;
    client.receive().map(drop)
}
