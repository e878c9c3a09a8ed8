//! The cgroups (version 2) of units: one each, below `system.slice`.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::text;
use orlop_unit::{CpuWeight, Limit, Resources, Signal, UnitName};

/// Where the hierarchy is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";

/// What every unit has: its memory is shown, and what it is killed for is known. Others cost time and memory for each cgroup, and are enabled
/// where a limit needs them; what they count then begins with what is there.
pub const CONTROLLERS: [&str; 1] = ["memory"];

/// The unit's cgroup: `SLICE/UNIT`, slices nested by their dashes (systemd.slice(5)).
#[must_use]
pub fn path(unit: &UnitName, slice: Option<&UnitName>) -> PathBuf {
    within(slice.map_or("system", UnitName::stem)).join(unit.as_str())
}

/// The cgroup of a slice.
#[must_use]
pub fn slice_path(slice: &UnitName) -> PathBuf {
    within(slice.stem())
}

fn within(slice: &str) -> PathBuf {
    let mut path = PathBuf::from(ROOT);
    let mut prefix = String::new();
    if slice != "-" {
        for part in slice.split('-') {
            if !prefix.is_empty() {
                prefix.push('-');
            }
            prefix.push_str(part);
            path.push(format!("{prefix}.slice"));
        }
    }
    path
}

/// Whether the hierarchy is there; it comes and goes at no later time than the mounts that PID 1 begins with.
#[must_use]
pub fn is_mounted() -> bool {
    static MOUNTED: OnceLock<bool> = OnceLock::new();
    *MOUNTED.get_or_init(|| Path::new(ROOT).join("cgroup.procs").exists())
}

/// So many processes, threads and cgroups are looked at.
const MOST: usize = 65_536;

/// Makes the cgroup, with its limits, and opens it; answers as well whether it was there before.
///
/// # Errors
/// Those of mkdir(2) and open(2); a limit that cannot be set is an error as well: it was meant to confine.
pub fn create(path: &Path, resources: &Resources) -> io::Result<(OwnedFd, bool)> {
    let mut was_there = false;
    if let Err(err) = fs::create_dir(path) {
        match err.kind() {
            io::ErrorKind::AlreadyExists => was_there = true,
            io::ErrorKind::NotFound => {
                fs::create_dir_all(path)?;
                for controller in CONTROLLERS {
                    orlop_sys::cgroup::enable(path, controller);
                }
            }
            _ => return Err(err),
        }
    }
    apply(path, resources)?;
    Ok((OwnedFd::from(fs::File::open(path)?), was_there))
}

/// The cgroup below the root that `path` is in.
#[must_use]
pub fn top(path: &Path) -> Option<PathBuf> {
    let first = path.strip_prefix(ROOT).ok()?.components().next()?;
    Some(Path::new(ROOT).join(first))
}

fn apply(path: &Path, resources: &Resources) -> io::Result<()> {
    let set = |file: &str, value: String| {
        orlop_sys::cgroup::set(path, file, &value)
            .map_err(|err| io::Error::new(err.kind(), format!("write {value} to {file}: {err}")))
    };
    let memory = [
        ("memory.min", resources.memory_min),
        ("memory.low", resources.memory_low),
        ("memory.high", resources.memory_high),
        ("memory.max", resources.memory_max),
        ("memory.swap.max", resources.memory_swap_max),
    ];
    for (file, limit) in memory {
        if let Some(limit) = limit {
            let total = total_memory_bytes();
            set(file, number(limit, total))?;
        }
    }
    if let Some(limit) = resources.tasks_max {
        set("pids.max", number(limit, 32_768))?;
    }
    match resources.cpu_weight {
        Some(CpuWeight::Idle) => set("cpu.idle", "1".to_owned())?,
        Some(CpuWeight::Weight(weight)) => set("cpu.weight", weight.to_string())?,
        None => {}
    }
    if let Some(quota) = resources.cpu_quota_permyriad {
        let period_us = resources
            .cpu_quota_period
            .map_or(100_000, |p| p.as_micros());
        let quota_us = u128::from(quota).saturating_mul(period_us) / 10_000;
        set("cpu.max", format!("{quota_us} {period_us}"))?;
    }
    if let Some(weight) = resources.io_weight {
        set("io.weight", format!("default {weight}"))?;
    }
    Ok(())
}

fn number(limit: Limit, total: u64) -> String {
    limit
        .resolve(total)
        .map_or_else(|| "max".to_owned(), |n| n.to_string())
}

fn total_memory_bytes() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(u64::MAX, |info| info.ram_total())
}

/// Whether a process is left in the cgroup or below; one that is not there has none.
#[must_use]
pub fn is_populated(path: &Path) -> bool {
    text::read(path.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|l| l == "populated 1"))
}

/// Whether the process is in the cgroup or below it.
#[must_use]
pub fn holds(path: &Path, pid: i32) -> bool {
    let own = path.strip_prefix(ROOT).unwrap_or(path);
    text::read(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
        text.lines()
            .filter_map(|l| l.strip_prefix("0::/"))
            .any(|c| Path::new(c).starts_with(own))
    })
}

/// The processes of the cgroup and of those below it, at most `max`.
#[must_use]
pub fn processes(path: &Path, max: usize) -> Vec<i32> {
    let mut found = Vec::new();
    let mut left = vec![path.to_path_buf()];
    while let Some(directory) = left.pop() {
        let text = text::read(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
        if found.len() >= max {
            found.truncate(max);
            break;
        }
        left.extend(below(&directory).take(max.saturating_sub(left.len())));
    }
    found
}

/// The cgroups right below one.
fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
}

/// How many threads are in the cgroup and in those below it, at most [`MOST`] in each.
#[must_use]
pub fn tasks(path: &Path) -> u64 {
    if let Some(counted) = number_in(path, "pids.current") {
        return counted;
    }
    let mut count = 0_u64;
    let mut left = vec![path.to_path_buf()];
    while let Some(directory) = left.pop() {
        let threads = text::read(directory.join("cgroup.threads")).unwrap_or_default();
        let own = u64::try_from(threads.lines().take(MOST).count()).unwrap_or(u64::MAX);
        count = count.saturating_add(own);
        left.extend(below(&directory).take(MOST.saturating_sub(left.len())));
    }
    count
}

/// Signals every process of the cgroup, each by a descriptor so that a number that was given anew is never hit.
pub fn signal_all(path: &Path, signal: Signal) {
    for pid in processes(path, MOST) {
        let Ok(pidfd) = orlop_sys::pidfd::open(pid) else {
            continue;
        };
        if holds(path, pid) {
            // One that ended in between needs no signal.
            let _ = orlop_sys::pidfd::send_signal(pidfd.as_fd(), signal.0);
        }
    }
}

/// Kills every process of the cgroup at once (`cgroup.kill`).
pub fn kill_all(path: &Path) {
    if fs::write(path.join("cgroup.kill"), "1").is_err() {
        signal_all(path, Signal::KILL);
    }
}

/// Removes the cgroup and those below it; one that is in use stays.
pub fn remove(path: &Path) {
    if fs::remove_dir(path).is_ok() {
        return;
    }
    for inner in below(path) {
        remove(&inner);
    }
    let _ = fs::remove_dir(path);
}

/// How often the kernel has killed in the cgroup, and in those below it, for lack of memory.
#[must_use]
pub fn oom_kills(path: &Path) -> u64 {
    counter(path, "memory.events", "oom_kill ")
}

/// Memory in use in bytes, and processor time used in microseconds.
#[must_use]
pub fn usage(path: &Path) -> (Option<u64>, Option<u64>) {
    let memory = number_in(path, "memory.current");
    let cpu = path
        .join("cpu.stat")
        .exists()
        .then(|| counter(path, "cpu.stat", "usage_usec "));
    (memory, cpu)
}

/// The one number that a file of the cgroup holds; `None` for `max`, and where there is no such file.
#[must_use]
pub fn number_in(path: &Path, file: &str) -> Option<u64> {
    let text = text::read(path.join(file)).ok()?;
    text.trim().parse().ok()
}

fn counter(path: &Path, file: &str, key: &str) -> u64 {
    text::read(path.join(file))
        .ok()
        .and_then(|text| text.lines().find_map(|l| l.strip_prefix(key)?.parse().ok()))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_dashes() {
        let unit = UnitName::parse("web.service").unwrap();
        let slice = UnitName::parse("a-b.slice").unwrap();
        assert_eq!(
            path(&unit, None),
            Path::new("/sys/fs/cgroup/system.slice/web.service")
        );
        assert_eq!(
            path(&unit, Some(&slice)),
            Path::new("/sys/fs/cgroup/a.slice/a-b.slice/web.service")
        );
        assert_eq!(
            slice_path(&slice),
            Path::new("/sys/fs/cgroup/a.slice/a-b.slice")
        );
        assert_eq!(
            top(&path(&unit, Some(&slice))).as_deref(),
            Some(Path::new("/sys/fs/cgroup/a.slice"))
        );
        assert_eq!(top(Path::new(ROOT)), None);
    }
}
