//! The end of the machine, after the units are stopped: processes, swap, mounts, devices, and reboot(2).
//!
//! Nothing here waits without end: what may hang in the kernel runs in a forked child with a deadline.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};
use orlop_sys::{detach, fork, loopdev};

use crate::mountinfo::{self, Mount};
use crate::setup;

/// How long all of one try to release the storage may take.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

/// How many mounts may hang before the rest is given up.
const MOST_HANGS: usize = 3;

/// How often the mounts are gone through: one may hold another in a way that their order does not show.
const PASSES: usize = 5;

/// How long what is in memory may take to be written.
const SYNC_DEADLINE: Duration = Duration::from_secs(20);

/// How long the kernel may take to end the machine before the next way is tried.
const REBOOT_DEADLINE: Duration = Duration::from_secs(30);

/// Filesystems that hold nothing which a shutdown could lose, and of which the kernel itself needs some.
const IN_MEMORY: &[&str] = &[
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "ramfs",
    "rootfs",
    "cgroup",
    "cgroup2",
    "mqueue",
    "hugetlbfs",
    "bpf",
    "securityfs",
    "tracefs",
    "debugfs",
    "pstore",
    "configfs",
    "efivarfs",
    "binfmt_misc",
    "nsfs",
    "fusectl",
];

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It starts anew.
    Reboot,
    /// It is switched off.
    PowerOff,
    /// It stands still.
    Halt,
}

/// Sends `signal` to every process but this one.
pub fn kill_everyone(signal: Signal) {
    // ESRCH: nobody is left, which is what is wanted.
    let _ = kill(Pid::from_raw(-1), signal);
}

/// Saves the random seed and the time, then gives back swap, mounts, loop devices and device-mapper devices, and writes what is
/// in memory. Returns a line for each thing that was not possible.
///
/// Every process but this one has to be gone: what is open can not be unmounted.
#[must_use]
pub fn release_storage() -> Vec<String> {
    let mut problems = Vec::new();
    in_child(
        RELEASE_DEADLINE,
        "saving the random seed and the time",
        &mut problems,
        |out| {
            for (what, saved) in [
                ("the random seed", setup::save_seed(Path::new("/"))),
                ("the time", setup::save_clock(Path::new("/"))),
            ] {
                if let Err(error) = saved {
                    say(out, PROBLEM, &format!("cannot save {what}: {error}"));
                }
            }
        },
    );
    in_child(RELEASE_DEADLINE, "swapoff", &mut problems, stop_swapping);
    let mut hanging = Vec::new();
    while hanging.len() < MOST_HANGS {
        let tried = in_child(RELEASE_DEADLINE, "unmounting", &mut problems, |out| {
            unmount_all(&hanging, out)
        });
        match tried {
            Some(target) => hanging.push(target),
            None => break,
        }
    }
    in_child(
        RELEASE_DEADLINE,
        "detaching devices",
        &mut problems,
        detach_devices,
    );
    in_child(SYNC_DEADLINE, "sync", &mut problems, |_| sync());
    problems
}

/// What a line from the child starts with: a problem, or what is tried next.
const PROBLEM: char = '!';
const TRYING: char = '>';

fn say(out: &mut File, kind: char, text: &str) {
    // Without the pipe nobody listens.
    let _ = writeln!(out, "{kind}{}", text.replace('\n', " "));
}

/// Runs `work` with a deadline and collects its problems. Gives what it was trying when it was still at it.
fn in_child(
    deadline: Duration,
    what: &str,
    problems: &mut Vec<String>,
    work: impl FnOnce(&mut File),
) -> Option<String> {
    let report = match fork::run(deadline, work) {
        Ok(report) => report,
        Err(error) => {
            problems.push(format!("{what}: {error}"));
            return None;
        }
    };
    let mut trying = None;
    for line in String::from_utf8_lossy(&report.said).lines() {
        if let Some(problem) = line.strip_prefix(PROBLEM) {
            problems.push(problem.to_owned());
        } else if let Some(next) = line.strip_prefix(TRYING) {
            trying = Some(next.to_owned());
        }
    }
    if report.has_ended {
        return None;
    }
    let on = trying
        .as_deref()
        .map(|trying| format!(" ({trying})"))
        .unwrap_or_default();
    problems.push(format!(
        "{what}{on} did not end within {} s",
        deadline.as_secs()
    ));
    trying
}

/// `/proc/swaps` has a title, then a line each with the path in front (proc_swaps(5)).
fn stop_swapping(out: &mut File) {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for path in swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
    {
        say(out, TRYING, path);
        if let Err(error) = detach::swap_off(Path::new(path)) {
            say(
                out,
                PROBLEM,
                &format!("cannot stop swapping to {path}: {error}"),
            );
        }
    }
}

fn holds_storage(mount: &Mount) -> bool {
    !IN_MEMORY.contains(&mount.filesystem.as_str())
}

/// Unmounts in the reverse order of mounting, and again while something gives way; what stays is made read-only.
fn unmount_all(hanging: &[String], out: &mut File) {
    let candidates = || -> Vec<Mount> {
        let mut mounts = mountinfo::read();
        mounts.reverse();
        mounts.retain(|mount| holds_storage(mount) && !hanging.contains(&mount.target));
        mounts
    };
    for _ in 0..PASSES {
        let mut has_progress = false;
        for mount in candidates().iter().filter(|mount| mount.target != "/") {
            say(out, TRYING, &mount.target);
            has_progress |= umount2(mount.target.as_str(), MntFlags::UMOUNT_NOFOLLOW).is_ok();
        }
        if !has_progress {
            break;
        }
    }
    for left in candidates().iter().filter(|mount| !mount.is_read_only) {
        say(out, TRYING, &left.target);
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none = None::<&str>;
        if let Err(error) = mount(none, left.target.as_str(), none, flags, none) {
            say(
                out,
                PROBLEM,
                &format!(
                    "{} stays mounted for writing: {}",
                    left.target,
                    error.desc()
                ),
            );
        }
    }
}

/// Devices that the root is on stay: the kernel refuses.
fn detach_devices(out: &mut File) {
    let devices = || {
        fs::read_dir("/sys/class/block")
            .into_iter()
            .flatten()
            .flatten()
    };
    for device in devices().filter(|device| device.path().join("loop/backing_file").exists()) {
        let node = Path::new("/dev").join(device.file_name());
        say(out, TRYING, &node.display().to_string());
        // One in use detaches with its last user.
        let _ = File::open(&node).and_then(|file| loopdev::clear(std::os::fd::AsFd::as_fd(&file)));
    }
    for device in devices() {
        if let Ok(name) = fs::read_to_string(device.path().join("dm/name")) {
            say(out, TRYING, name.trim_end());
            let _ = detach::remove_mapping(name.trim_end());
        }
    }
}

/// Ends the machine; returns only where that is not possible, as in a container, with the reason.
///
/// reboot(2) is called in a child, so that PID 1 outlives a call that fails.
#[must_use]
pub fn final_step(action: Action) -> String {
    let ways: &[(RebootMode, &str)] = match action {
        Action::Reboot => &[(RebootMode::RB_AUTOBOOT, "reboot")],
        // A machine that can not be switched off stands still at least.
        Action::PowerOff => &[
            (RebootMode::RB_POWER_OFF, "power off"),
            (RebootMode::RB_HALT_SYSTEM, "halt"),
        ],
        Action::Halt => &[(RebootMode::RB_HALT_SYSTEM, "halt")],
    };
    let mut problems = Vec::new();
    for (mode, name) in ways {
        in_child(REBOOT_DEADLINE, name, &mut problems, |out| {
            // Its success type has no values: what comes back is an error.
            let Err(error) = reboot(*mode);
            say(out, PROBLEM, &format!("cannot {name}: {}", error.desc()));
        });
    }
    if action == Action::Reboot {
        // The kernel's own way without asking drivers (Documentation/admin-guide/sysrq.rst).
        in_child(REBOOT_DEADLINE, "reboot by sysrq", &mut problems, |out| {
            if let Err(error) = fs::write("/proc/sysrq-trigger", b"b") {
                say(out, PROBLEM, &format!("cannot reboot by sysrq: {error}"));
            }
        });
    }
    problems.join("; ")
}
