//! The power button: an input device that says `KEY_POWER` (Linux `Documentation/input/event-codes.rst`).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Where input devices appear.
const DIRECTORY: &str = "/dev/input";
/// The size of `struct input_event` on x86-64: two longs, type, code, value.
const EVENT_BYTES: usize = 24;
/// `EV_KEY` and `KEY_POWER` of `include/uapi/linux/input-event-codes.h`.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// More buttons than a machine has; further ones are left alone.
const BUTTONS_MAX: usize = 8;

/// All power buttons, those that appear later included.
#[derive(Debug)]
pub struct PowerButtons {
    inotify: Inotify,
    buttons: Vec<(String, File)>,
}

impl PowerButtons {
    /// Begins to look for buttons.
    ///
    /// # Errors
    /// Those of inotify(7).
    pub fn watch() -> io::Result<Self> {
        fs::create_dir_all(DIRECTORY)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(
            DIRECTORY,
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ATTRIB,
        )?;
        Ok(Self {
            inotify,
            buttons: Vec::new(),
        })
    }

    /// What tells of new devices.
    #[must_use]
    pub fn appearing(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Opens buttons that are new; answers how many there were before and all that there are.
    pub fn look(&mut self) -> (usize, Vec<BorrowedFd<'_>>) {
        // What appeared does not matter one by one: the directory is read again.
        while self.inotify.read_events().is_ok_and(|e| !e.is_empty()) {}
        let before = self.buttons.len();
        for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let label = fs::read_to_string(
                Path::new("/sys/class/input")
                    .join(&name)
                    .join("device/name"),
            );
            let is_button = label.is_ok_and(|l| l.contains("Power Button"));
            let is_known = self.buttons.iter().any(|(known, _)| *known == name);
            if !is_button || is_known || self.buttons.len() >= BUTTONS_MAX {
                continue;
            }
            let opened = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(entry.path());
            if let Ok(file) = opened {
                self.buttons.push((name, file));
            }
        }
        (
            before,
            self.buttons.iter().map(|(_, file)| file.as_fd()).collect(),
        )
    }

    /// Reads what the buttons say; whether one was pressed.
    pub fn is_pressed(&mut self) -> bool {
        let mut pressed = false;
        self.buttons.retain_mut(|(_, file)| {
            let mut event = [0_u8; EVENT_BYTES];
            loop {
                match file.read(&mut event) {
                    Ok(EVENT_BYTES) => pressed |= says_power(&event),
                    Err(err) if err.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    // The device is gone.
                    _ => return false,
                }
            }
        });
        pressed
    }
}

fn says_power(event: &[u8; EVENT_BYTES]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([t0, t1]) == EV_KEY
        && u16::from_ne_bytes([c0, c1]) == KEY_POWER
        && i32::from_ne_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        let event = |kind: u16, code: u16, value: i32| {
            let mut bytes = [0; EVENT_BYTES];
            bytes[16..18].copy_from_slice(&kind.to_ne_bytes());
            bytes[18..20].copy_from_slice(&code.to_ne_bytes());
            bytes[20..24].copy_from_slice(&value.to_ne_bytes());
            bytes
        };
        assert!(says_power(&event(1, 116, 1)));
        assert!(!says_power(&event(1, 116, 0)));
        assert!(!says_power(&event(1, 115, 1)));
        assert!(!says_power(&event(0, 116, 1)));
    }
}
