//! PID 1 after the root is up: setup, supervisor, control socket, shutdown.

// PID 1 runs this code: nothing in it may panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]
#![allow(
    unreachable_pub,
    reason = "modules say what they offer to each other; the crate's own face is small"
)]

mod accounts;
mod cgroup;
pub mod client;
mod conditions;
pub mod control;
mod crash;
mod manager;
mod mounts;
mod notify;
mod pid1;
mod power_button;
mod requests;
mod resume;
mod saved;
mod service;
pub mod setup;
mod shutdown;
mod spawn;
mod streams;
mod teardown;
mod text;
pub mod trial;
mod trigger;
pub mod unit_files;
mod watchdog;

use std::convert::Infallible;
use std::process::ExitCode;

use orlop_boot::times;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::mountinfo;

/// Reads a datagram of sd_notify(3) as the supervisor does; for the fuzz targets in `fuzz/`.
#[doc(hidden)]
pub fn fuzz_notification(bytes: &[u8]) {
    let _ = notify::parse(2, &String::from_utf8_lossy(bytes));
}

/// Reads a message of the control socket as the supervisor does; for the fuzz targets in `fuzz/`.
#[doc(hidden)]
pub fn fuzz_call(bytes: &[u8]) {
    let _ = control::parse(bytes);
}

/// Runs PID 1 on the root it finds; returns only when it could not even begin.
pub fn run() -> ExitCode {
    crash::install();
    if let Err(err) = nix::unistd::chdir("/") {
        // What is started stands where PID 1 does.
        kmsg::write(
            Priority::Error,
            "orlop",
            &format!("cannot change to /: {err}"),
        );
    }
    if let Some(left) = resume::Left::from_arguments() {
        return ended(resume::go_on(left).and_then(pid1::Pid1::run));
    }
    let began_ns = times::now_ns();
    for problem in mounts::mount_all() {
        kmsg::write(Priority::Warning, "orlop", &problem);
    }
    if let Err(err) = raise_descriptor_limit() {
        let text = format!("cannot have more than 1024 descriptors: {err}");
        kmsg::write(Priority::Warning, "orlop", &text);
    }
    if let Err(err) = nix::sys::reboot::set_cad_enabled(false) {
        // Not so on a real machine: in a container Ctrl-Alt-Del is somebody else's.
        kmsg::write(
            Priority::Info,
            "orlop",
            &format!("Ctrl-Alt-Del stays the kernel's: {err}"),
        );
    }
    times::record("init.mounts", began_ns);
    ended(pid1::Pid1::new().and_then(pid1::Pid1::run))
}

/// PID 1 keeps several descriptors for each unit, and the kernel starts it with room for 1024: it takes all that a process may have.
fn raise_descriptor_limit() -> std::io::Result<()> {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1 << 20);
    Ok(nix::sys::resource::setrlimit(
        nix::sys::resource::Resource::RLIMIT_NOFILE,
        most,
        most,
    )?)
}

/// PID 1 cannot go on.
fn ended(result: std::io::Result<Infallible>) -> ExitCode {
    let err = match result {
        Err(err) => err,
        Ok(never) => match never {},
    };
    kmsg::write(
        Priority::Alert,
        "orlop",
        &format!("PID 1 cannot work: {err}"),
    );
    shutdown::finish(teardown::Action::Reboot)
}
