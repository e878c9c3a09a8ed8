//! The whole stage, top to bottom.

use std::process::ExitCode;

use thiserror::Error;

use crate::cmdline::CommandLine;
use crate::coldplug::{ColdplugError, Devices};
use crate::failure::fail;
use crate::modprobe::chain;
use crate::modules::{Loader, ModuleError};
use crate::mounts::{self, MountError};
use crate::root::{self, RootError};
use crate::switch::{self, SwitchError};
use crate::times;

/// Where the root is mounted until it is the root.
const SYSROOT: &str = "/sysroot";

#[derive(Debug, Error)]
enum StageError {
    #[error("cannot mount the kernel's filesystems")]
    Mounts(#[source] MountError),
    #[error("cannot read the kernel command line")]
    CommandLine(#[source] std::io::Error),
    #[error("cannot load modules")]
    Modules(#[source] ModuleError),
    #[error("cannot look for devices")]
    Devices(#[source] ColdplugError),
    #[error("there is no root filesystem")]
    Root(#[source] RootError),
    #[error("cannot switch to the root filesystem")]
    Switch(#[source] SwitchError),
}

/// Runs the initramfs stage as PID 1. It ends in the root's init, or in a reboot; it does not return.
pub fn run() -> ExitCode {
    orlop_sys::kmsg::Logger::install("orlop");
    // An ended PID 1 is a kernel panic; this way the cause is in the log, and the delay is the one that was asked for.
    std::panic::set_hook(Box::new(|panic| fail(&panic.to_string())));
    match enter_root() {
        Ok(never) => match never {},
        Err(error) => fail(&chain(&error)),
    }
}

fn enter_root() -> Result<std::convert::Infallible, StageError> {
    let start = times::now_ns();
    mounts::mount_api().map_err(StageError::Mounts)?;
    times::record("boot.mounts", start);
    let command_line = CommandLine::read().map_err(StageError::CommandLine)?;

    let start = times::now_ns();
    let mut loader = Loader::open(command_line.clone()).map_err(StageError::Modules)?;
    mounts::make_nodes(loader.index());
    let mut devices = Devices::listen("boot: ").map_err(StageError::Devices)?;
    devices.walk(&mut loader);
    devices
        .drain(&mut loader, |_| {})
        .map_err(StageError::Devices)?;
    times::record("boot.drivers", start);

    let start = times::now_ns();
    let root =
        root::find_root(&mut devices, &mut loader, &command_line).map_err(StageError::Root)?;
    times::record("boot.find-root", start);

    let start = times::now_ns();
    root::mount_root(&root, SYSROOT, &mut loader).map_err(StageError::Root)?;
    log::info!("boot: root is {}", root.device.display());
    times::record("boot.mount-root", start);

    let start = times::now_ns();
    switch::switch_root(SYSROOT).map_err(StageError::Switch)?;
    // The root's index knows more nodes than the initramfs's.
    match Loader::open(CommandLine::default()) {
        Ok(loader) => mounts::make_nodes(loader.index()),
        Err(error) => log::warn!("boot: {}", chain(&error)),
    }
    times::record("boot.switch-root", start);
    Err(StageError::Switch(switch::exec_init()))
}
