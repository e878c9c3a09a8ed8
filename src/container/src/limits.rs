//! A container's cgroup: memory, CPU and process limits, and which devices it may use.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{Mode, OFlags};

use crate::devices;

/// Why a cgroup is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// The directory could not be made or opened.
    #[error("cgroup {}: {err}", path.display())]
    Directory {
        /// The cgroup.
        path: PathBuf,
        /// What happened.
        err: io::Error,
    },
    /// A value could not be written.
    #[error("write {value:?} to {}: {err}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// What happened.
        err: io::Error,
    },
    /// The device filter could not be put in place.
    #[error("restrict devices of cgroup {}: {err}", path.display())]
    Devices {
        /// The cgroup.
        path: PathBuf,
        /// What happened.
        err: io::Error,
    },
}

/// Makes a cgroup with the controllers that every container has.
pub(crate) fn make_cgroup(path: &Path) -> Result<(), LimitsError> {
    std::fs::create_dir_all(path).map_err(|err| LimitsError::Directory {
        path: path.into(),
        err,
    })?;
    for controller in ["memory", "pids"] {
        orlop_sys::cgroup::enable(path, controller);
    }
    Ok(())
}

/// Removes a container's cgroup, killing what is left in it; nothing to remove is no error.
pub fn remove_cgroup(path: &Path) -> Result<(), LimitsError> {
    let fail = |err| LimitsError::Directory {
        path: path.into(),
        err,
    };
    let _nothing_to_kill = write_value(&path.join("cgroup.kill"), "1");
    match std::fs::remove_dir(path) {
        Err(err) if err.kind() == io::ErrorKind::ResourceBusy => {
            wait_until_empty(path).map_err(fail)?;
            std::fs::remove_dir(path).map_err(fail)
        }
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(fail(err)),
        _ => Ok(()),
    }
}

/// What was killed needs a moment to go; the kernel tells when it has.
fn wait_until_empty(cgroup: &Path) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    loop {
        // Opened anew: the kernel reports a change since the last read of the same file.
        let mut events = std::fs::File::open(cgroup.join("cgroup.events"))?;
        let mut text = String::new();
        events.read_to_string(&mut text)?;
        if text.contains("populated 0") {
            return Ok(());
        }
        if poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&patience))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Opens a cgroup for `CLONE_INTO_CGROUP`.
pub(crate) fn open_cgroup(path: &Path) -> Result<OwnedFd, LimitsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|err| LimitsError::Directory {
        path: path.into(),
        err: err.into(),
    })
}

/// Writes the limits and attaches the device filter.
pub(crate) fn apply(cgroup: &Path, resources: Option<&LinuxResources>) -> Result<(), LimitsError> {
    for (file, value) in resources.map(values).unwrap_or_default() {
        orlop_sys::cgroup::set(cgroup, &file, &value).map_err(|err| LimitsError::Write {
            path: cgroup.join(&file),
            value,
            err,
        })?;
    }
    let rules = resources
        .and_then(|r| r.devices().clone())
        .unwrap_or_default();
    let program = devices::compile(&rules);
    let fd = open_cgroup(cgroup)?;
    orlop_sys::cgroup::load_device_program(&program)
        .and_then(|loaded| orlop_sys::cgroup::attach_device_program(fd.as_fd(), loaded.as_fd()))
        .map_err(|err| LimitsError::Devices {
            path: cgroup.into(),
            err,
        })
}

/// Writes without making the file: a cgroup has it or not.
fn write_value(path: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

/// File names and contents of version 2 for what the specification says in terms of version 1.
fn values(resources: &LinuxResources) -> Vec<(String, String)> {
    let mut values = Vec::new();
    let mut put = |file: &str, value: String| values.push((file.to_owned(), value));
    // -1 means no limit.
    let bytes = |n: i64| {
        if n < 0 {
            "max".to_owned()
        } else {
            n.to_string()
        }
    };
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit() {
            put("memory.max", bytes(limit));
        }
        if let Some(swap) = memory.swap() {
            // The specification counts memory and swap together.
            let limit = memory.limit().unwrap_or(0).max(0);
            put(
                "memory.swap.max",
                if swap < 0 {
                    bytes(swap)
                } else {
                    bytes((swap - limit).max(0))
                },
            );
        }
        if let Some(reservation) = memory.reservation() {
            put("memory.low", bytes(reservation));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if cpu.quota().is_some() || cpu.period().is_some() {
            let quota = cpu
                .quota()
                .filter(|q| *q > 0)
                .map_or_else(|| "max".to_owned(), |q| q.to_string());
            put(
                "cpu.max",
                format!("{quota} {}", cpu.period().unwrap_or(100_000)),
            );
        }
        if let Some(shares) = cpu.shares().filter(|s| *s > 0) {
            // 2..=262144 of version 1 onto 1..=10000 of version 2.
            let shares = shares.clamp(2, 262_144);
            put(
                "cpu.weight",
                (1 + (shares - 2) * 9999 / 262_142).to_string(),
            );
        }
        if let Some(cpus) = cpu.cpus() {
            put("cpuset.cpus", cpus.clone());
        }
        if let Some(mems) = cpu.mems() {
            put("cpuset.mems", mems.clone());
        }
    }
    if let Some(pids) = resources.pids() {
        put(
            "pids.max",
            if pids.limit() <= 0 {
                "max".to_owned()
            } else {
                pids.limit().to_string()
            },
        );
    }
    for (file, value) in resources.unified().iter().flatten() {
        // One file of this cgroup, whatever the name tries.
        if !file.contains('/') && file.contains('.') && !file.starts_with("cgroup.") {
            put(file, value.clone());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{
        LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder,
    };

    #[test]
    fn limits_of_version_1_become_files_of_version_2() {
        let resources = LinuxResourcesBuilder::default()
            .memory(
                LinuxMemoryBuilder::default()
                    .limit(64 << 20)
                    .swap(128_i64 << 20)
                    .build()
                    .unwrap(),
            )
            .cpu(
                LinuxCpuBuilder::default()
                    .quota(150_000)
                    .period(100_000_u64)
                    .shares(1024_u64)
                    .build()
                    .unwrap(),
            )
            .pids(LinuxPidsBuilder::default().limit(64).build().unwrap())
            .build()
            .unwrap();
        let expected = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "67108864"),
            ("cpu.max", "150000 100000"),
            ("cpu.weight", "39"),
            ("pids.max", "64"),
        ];
        assert_eq!(
            values(&resources),
            expected.map(|(f, v)| (f.to_owned(), v.to_owned()))
        );
    }
}
