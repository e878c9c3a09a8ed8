//! The role `devices`: drivers for what the initramfs left alone, and for devices that appear later.

use std::process::ExitCode;

use crate::cmdline::CommandLine;
use crate::coldplug::Devices;
use crate::modprobe::chain;
use crate::modules::Loader;

/// Loads drivers from the root's index for the devices that are there, then waits for more; returns only on failure.
#[must_use]
pub fn run() -> ExitCode {
    match watch() {
        Ok(never) => match never {},
        Err(message) => {
            log::error!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn watch() -> Result<std::convert::Infallible, String> {
    let line =
        CommandLine::read().map_err(|error| format!("cannot read /proc/cmdline: {error}"))?;
    let mut loader = Loader::open(line).map_err(|error| chain(&error))?;
    let mut devices = Devices::listen("").map_err(|error| chain(&error))?;
    devices.walk(&mut loader);
    loop {
        devices
            .drain(&mut loader, |_| {})
            .map_err(|error| chain(&error))?;
        devices.wait_for_ever().map_err(|error| chain(&error))?;
    }
}
