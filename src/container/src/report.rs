//! What went wrong in the container's first process before it became the payload, told over a socket.

use std::fmt;
use std::io;

/// A step of the start that failed, as the user should read it: `mount proc on /proc: Not a directory`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The step and its object.
    pub step: String,
    /// The kernel's answer; 0 when the refusal is ours.
    pub errno: i32,
    /// What the command exits with: 125, 126 or 127, as `docker run` does.
    pub exit_code: u8,
}

/// The command line or the machine does not allow this container.
pub const EXIT_RUNTIME: u8 = 125;
/// The program was found but cannot be run.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
pub const EXIT_NOT_FOUND: u8 = 127;

/// More text than this is cut.
const MAX_STEP_BYTES: usize = 2000;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)?;
        if self.errno != 0 {
            // The library appends "(os error N)", which helps nobody who reads the words.
            let text = io::Error::from_raw_os_error(self.errno).to_string();
            let words = text
                .split_once(" (os error")
                .map_or(text.as_str(), |(words, _)| words);
            write!(f, ": {words}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A refusal of our own.
    pub(crate) fn refused(step: impl Into<String>) -> Self {
        Self {
            step: step.into(),
            errno: 0,
            exit_code: EXIT_RUNTIME,
        }
    }

    /// One packet of at most [`Failure::MAX_PACKET`] bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut end = self.step.len().min(MAX_STEP_BYTES);
        while !self.step.is_char_boundary(end) {
            end -= 1;
        }
        let mut packet = vec![self.exit_code];
        packet.extend(self.errno.to_ne_bytes());
        packet.extend(self.step.as_bytes().iter().take(end));
        packet
    }

    /// The reverse of [`Failure::encode`]; total, although the sender is our own code.
    pub(crate) fn decode(packet: &[u8]) -> Self {
        let (Some(exit_code), Some(errno), Some(step)) =
            (packet.first(), packet.get(1..5), packet.get(5..))
        else {
            return Self::refused("the container's first process sent an unreadable report");
        };
        Self {
            step: String::from_utf8_lossy(step).into_owned(),
            errno: errno.try_into().map_or(0, i32::from_ne_bytes),
            exit_code: *exit_code,
        }
    }

    /// The largest packet.
    pub(crate) const MAX_PACKET: usize = MAX_STEP_BYTES + 5;
}

/// Attaches the name of a step to an error of the kernel.
pub(crate) trait During<T> {
    /// `step` is built only in case of failure.
    fn during<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            match error.raw_os_error() {
                Some(errno) => Failure {
                    step: step().into(),
                    errno,
                    exit_code: EXIT_RUNTIME,
                },
                None => Failure::refused(format!("{}: {error}", step().into())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_socket_and_reads_as_one_line() {
        let failure = Failure {
            step: "exec /bin/nope".into(),
            errno: 2,
            exit_code: EXIT_NOT_FOUND,
        };
        assert_eq!(Failure::decode(&failure.encode()), failure);
        assert_eq!(
            failure.to_string(),
            "exec /bin/nope: No such file or directory"
        );
    }

    #[test]
    fn a_huge_or_short_report_harms_nobody() {
        let failure = Failure::refused("ü".repeat(5000));
        assert!(failure.encode().len() <= Failure::MAX_PACKET);
        assert_eq!(Failure::decode(&[1, 2]).exit_code, EXIT_RUNTIME);
    }
}
