//! Drivers for the devices that are there, and for those that appear: by modalias, from an index of few modules.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use orlop_sys::uevent::{Received, Uevent, UeventSocket};
use thiserror::Error;

use crate::modprobe::chain;
use crate::modules::Loader;

/// The buses whose devices lead to disks, networks and the power button. CPU features and platform devices match dozens of
/// modules that nobody needs to reach the root, and each costs a signature check.
const BUSES: [&str; 9] = [
    "pci", "virtio", "usb", "scsi", "acpi", "nvme", "hv", "xen", "vmbus",
];

/// How many modaliases are remembered; beyond it each is looked up again, which costs time alone.
const SEEN_MAX: usize = 4096;

/// Why devices could not be looked for.
#[derive(Debug, Error)]
pub enum ColdplugError {
    /// The socket for uevents could not be opened.
    #[error("cannot listen for uevents")]
    Listen(#[source] io::Error),
    /// Reading from it failed.
    #[error("cannot receive uevents")]
    Receive(#[source] io::Error),
    /// Waiting for it failed.
    #[error("cannot wait for uevents")]
    Wait(#[source] nix::errno::Errno),
}

/// Watches devices and loads their drivers.
///
/// The socket is opened before the first walk, so that a device that appears meanwhile is seen by the one or the other.
#[derive(Debug)]
pub struct Devices {
    socket: UeventSocket,
    /// Begins each logged line: who looks for devices.
    log_prefix: &'static str,
    /// Modaliases that were looked up once; many devices share one, and walks meet events.
    seen: HashSet<String>,
}

impl Devices {
    /// Starts to listen; `log_prefix` begins each line that is logged.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub fn listen(log_prefix: &'static str) -> Result<Self, ColdplugError> {
        let socket = UeventSocket::open().map_err(ColdplugError::Listen)?;
        Ok(Self {
            socket,
            log_prefix,
            seen: HashSet::new(),
        })
    }

    /// Loads drivers for the devices of the known buses that are there now. A module that fails is a logged line.
    pub fn walk(&mut self, loader: &mut Loader) {
        for bus in BUSES {
            let directory = Path::new("/sys/bus").join(bus).join("devices");
            let Ok(devices) = std::fs::read_dir(directory) else {
                continue;
            };
            // Sorted, so that interfaces get their numbers in the same order at each boot.
            let mut paths: Vec<PathBuf> = devices
                .flatten()
                .map(|device| device.path().join("modalias"))
                .collect();
            paths.sort();
            for path in paths {
                if let Ok(modalias) = std::fs::read_to_string(path) {
                    self.driver(loader, modalias.trim_end());
                }
            }
        }
    }

    /// Takes the events that are queued, loads drivers for new devices, and gives every event to `on_event`.
    ///
    /// After lost events the buses are walked again, and `on_event` gets an event without action: look again.
    ///
    /// # Errors
    /// The socket fails.
    pub fn drain(
        &mut self,
        loader: &mut Loader,
        mut on_event: impl FnMut(&Uevent),
    ) -> Result<(), ColdplugError> {
        loop {
            match self.socket.receive().map_err(ColdplugError::Receive)? {
                Received::Empty => return Ok(()),
                Received::Overrun => {
                    log::warn!(
                        "{}uevents were lost, walking the buses again",
                        self.log_prefix
                    );
                    self.walk(loader);
                    on_event(&Uevent::default());
                }
                Received::Event(event) => {
                    if event.action == "add"
                        && event
                            .property("SUBSYSTEM")
                            .is_some_and(|s| BUSES.contains(&s))
                        && let Some(modalias) = event.property("MODALIAS")
                    {
                        self.driver(loader, modalias);
                    }
                    on_event(&event);
                }
            }
        }
    }

    /// Waits until an event is queued or `timeout_ms` milliseconds are over.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait(&self, timeout_ms: u64) -> Result<(), ColdplugError> {
        self.poll(PollTimeout::try_from(timeout_ms).unwrap_or(PollTimeout::MAX))
    }

    /// Waits until an event is queued.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait_for_ever(&self) -> Result<(), ColdplugError> {
        self.poll(PollTimeout::NONE)
    }

    fn poll(&self, timeout: PollTimeout) -> Result<(), ColdplugError> {
        match poll(
            &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(source) => Err(ColdplugError::Wait(source)),
        }
    }

    fn driver(&mut self, loader: &mut Loader, modalias: &str) {
        if modalias.is_empty() || self.seen.contains(modalias) {
            return;
        }
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(modalias.to_owned());
        }
        if let Err(error) = loader.load_for_device(modalias)
            && !error.is_absent_hardware()
        {
            log::warn!(
                "{}{} (for device {modalias})",
                self.log_prefix,
                chain(&error)
            );
        }
    }
}
