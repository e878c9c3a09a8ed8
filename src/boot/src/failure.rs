//! What PID 1 does when it can not go on: a line, then a reboot after a delay, or a rescue shell where one is asked for.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};
use orlop_sys::kmsg::{self, Priority};

use crate::cmdline::CommandLine;

/// The word on the kernel command line that asks for a shell instead of a reboot.
const RESCUE: &str = "orlop.rescue";

/// The delay where the command line has no usable `panic=`: time to read the screen.
const DEFAULT_DELAY: Duration = Duration::from_secs(30);

/// How long what is in memory may take to be written.
const SYNC_DEADLINE: Duration = Duration::from_secs(5);

/// The delay of `panic=N`, as the kernel means it: below zero at once, N seconds otherwise. Zero would mean to stay for ever;
/// a machine that nobody watches shall rather try again.
#[must_use]
pub fn delay(command_line: &CommandLine, default: Duration) -> Duration {
    match command_line
        .value("panic")
        .and_then(|value| value.parse::<i64>().ok())
    {
        Some(seconds) if seconds != 0 => Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        _ => default,
    }
}

/// Logs `message` and reboots; never returns, since the kernel panics without its first process.
pub(crate) fn fail(message: &str) -> ! {
    restart("boot", message, DEFAULT_DELAY)
}

/// Logs `stage: message` and reboots after `panic=` of the command line or else `default`; with `orlop.rescue` on the
/// command line it runs a shell on the console before. Never returns, since the kernel panics without its first process.
pub fn restart(stage: &str, message: &str, default: Duration) -> ! {
    tell(&format!("{stage}: {message}"));
    // In a child, since a disk that does not answer must not keep the machine down.
    let reason = format!("{stage}: {message}");
    let _ = orlop_sys::fork::run(SYNC_DEADLINE, |_| {
        crate::slot::record_end(&reason);
        nix::unistd::sync();
    });
    let command_line = CommandLine::read().unwrap_or_default();
    if command_line.has(RESCUE) {
        rescue(stage);
    }
    let delay = delay(&command_line, default);
    tell(&format!("{stage}: rebooting in {} s", delay.as_secs()));
    std::thread::sleep(delay);
    let _ = orlop_sys::fork::run(SYNC_DEADLINE, |_| nix::unistd::sync());
    loop {
        // Its success type has no values: what comes back is an error.
        let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
        tell(&format!("{stage}: cannot reboot: {}", error.desc()));
        std::thread::sleep(DEFAULT_DELAY);
    }
}

/// Straight to the kernel's log, whatever this process logs to otherwise.
fn tell(text: &str) {
    kmsg::write(Priority::Critical, "orlop", text);
}

/// Runs one shell on the console as a child: PID 1 must outlive it, or the kernel panics when somebody leaves it.
fn rescue(stage: &str) {
    const SHELLS: [&str; 2] = ["/bin/sh", "/sysroot/bin/busybox"];
    let Some(shell) = SHELLS.into_iter().find(|shell| Path::new(shell).exists()) else {
        tell(&format!(
            "{stage}: {RESCUE}: there is no shell in this initramfs; build it with `image --rescue`"
        ));
        return;
    };
    tell(&format!(
        "{stage}: {RESCUE}: a shell on the console; leave it with `exit` to reboot"
    ));
    // Busybox knows its shell by this name; the hyphen makes it a login shell.
    if let Err(error) = Command::new(shell).arg0("-sh").status() {
        tell(&format!("{stage}: cannot run {shell}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_the_kernels_panic_time() {
        let seconds = |line| delay(&CommandLine::parse(line), DEFAULT_DELAY).as_secs();
        assert_eq!(seconds("panic=10"), 10);
        assert_eq!(seconds("panic=-1"), 0);
        assert_eq!(seconds("panic=0"), 30);
        assert_eq!(seconds("panic=soon"), 30);
        assert_eq!(seconds(""), 30);
    }
}
