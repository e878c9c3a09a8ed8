//! The end, when all units are stopped: everybody else is told to go, and then the machine.

use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_boot::times;
use orlop_sys::kmsg::{self, Priority};
use orlop_sys::signal::{Signals, reap};

use crate::teardown::{self, Action};

/// How long processes have after SIGTERM, and again after SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an end is called.
#[must_use]
pub fn words(action: Action) -> &'static str {
    match action {
        Action::Reboot => "rebooting",
        Action::PowerOff => "powering off",
        Action::Halt => "halting",
    }
}

/// Ends every process, gives back the storage, and ends the machine. Does not come back: where the kernel refuses, as in a
/// container, the process ends.
pub fn finish(action: Action) -> ! {
    teardown::kill_everyone(Signal::SIGTERM);
    if !all_gone() {
        kmsg::write(
            Priority::Warning,
            "orlop",
            "processes are left after SIGTERM, and are killed",
        );
        teardown::kill_everyone(Signal::SIGKILL);
        if !all_gone() {
            kmsg::write(Priority::Error, "orlop", "processes are left after SIGKILL");
        }
    }
    for problem in teardown::release_storage() {
        kmsg::write(Priority::Error, "orlop", &problem);
    }
    kmsg::write(Priority::Notice, "orlop", &format!("{} now", words(action)));
    let refusal = teardown::final_step(action);
    kmsg::write(
        Priority::Alert,
        "orlop",
        &format!("the machine does not end: {refusal}"),
    );
    loop {
        // Ending as PID 1 would be a kernel panic; the operator has the line above.
        nix::unistd::pause();
    }
}

/// Waits until no child is left, at most [`PATIENCE`].
fn all_gone() -> bool {
    let limit_ns = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
    let deadline_ns = times::now_ns().saturating_add(limit_ns);
    let Ok(signals) = Signals::block(&[libc::SIGCHLD]) else {
        return false;
    };
    loop {
        loop {
            match reap() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return true,
            }
        }
        let left_ms = deadline_ns.saturating_sub(times::now_ns()) / 1_000_000;
        if left_ms == 0 {
            return false;
        }
        let mut polled = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&signals),
            nix::poll::PollFlags::POLLIN,
        )];
        let timeout =
            nix::poll::PollTimeout::try_from(left_ms).unwrap_or(nix::poll::PollTimeout::MAX);
        // Interrupted or timed out: the loop looks again.
        let _ = nix::poll::poll(&mut polled, timeout);
        while signals.next().is_some() {}
    }
}
