//! Limits, schedulers and devices of a service's process.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType};
use orlop_unit::Launch;
use orlop_unit::confinement::{Confinement, DeviceAllow, DevicePolicy};
use orlop_unit::schedule::CpuPolicy;
use rustix::process::{Resource, Rlimit};
use rustix::thread::CpuSet;

use super::Step as _;
use crate::report::{During as _, Failure};

const LIMITS: u8 = 205;
const IO_PRIORITY: u8 = 211;
const TIMER_SLACK: u8 = 212;
const SCHEDULER: u8 = 214;
const AFFINITY: u8 = 215;

/// By their numbers (`include/uapi/asm-generic/resource.h`).
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// Sets limits and asks the schedulers.
pub(super) fn apply(launch: &Launch) -> Result<(), Failure> {
    for (number, soft, hard) in &launch.limits {
        let step = || format!("set the limit of resource {number} to {soft}:{hard}");
        let limit = Rlimit {
            current: (*soft != u64::MAX).then_some(*soft),
            maximum: (*hard != u64::MAX).then_some(*hard),
        };
        let index = usize::try_from(*number).unwrap_or(usize::MAX);
        let Some(resource) = RESOURCES.get(index) else {
            return Err(Failure::refused(step())).step(LIMITS);
        };
        rustix::process::setrlimit(*resource, limit)
            .during(step)
            .step(LIMITS)?;
    }
    let s = &launch.scheduling;
    if !s.cpu_affinity.is_empty() {
        let mut set = CpuSet::new();
        for cpu in s.cpu_affinity.iter().map(|cpu| usize::from(*cpu)) {
            if cpu < CpuSet::MAX_CPU {
                set.set(cpu);
            }
        }
        rustix::thread::sched_setaffinity(None, &set)
            .during(|| "CPUAffinity= names no processor of this machine")
            .step(AFFINITY)?;
    }
    if s.cpu_policy.is_some() || s.cpu_priority.is_some() || s.cpu_reset_on_fork {
        let policy = s.cpu_policy.unwrap_or(CpuPolicy::Other);
        let priority = match policy {
            CpuPolicy::Fifo | CpuPolicy::RoundRobin => s.cpu_priority.unwrap_or(1),
            CpuPolicy::Other | CpuPolicy::Batch | CpuPolicy::Idle => 0,
        };
        orlop_sys::schedule::set_policy(policy as u32, priority, s.cpu_reset_on_fork)
            .during(|| "set CPUSchedulingPolicy=")
            .step(SCHEDULER)?;
    }
    if s.io_class.is_some() || s.io_priority.is_some() {
        // A priority alone is one of best effort; a class alone is in the middle of it (systemd.exec(5)).
        let class = s.io_class.map_or(2, |class| class as u32);
        let priority = match class {
            1 | 2 => s.io_priority.unwrap_or(4),
            _ => 0,
        };
        orlop_sys::schedule::set_io_priority(class, priority)
            .during(|| "set IOSchedulingClass=")
            .step(IO_PRIORITY)?;
    }
    if let Some(slack) = s.timer_slack {
        let slack_ns = u64::try_from(slack.as_nanos()).ok();
        rustix::thread::set_current_timer_slack(slack_ns.and_then(std::num::NonZeroU64::new))
            .during(|| "set TimerSlackNSec=")
            .step(TIMER_SLACK)?;
    }
    Ok(())
}

/// Lets the unit's cgroup open the devices that it may, where it asks for a choice.
pub(super) fn restrict_devices(c: &Confinement) -> Result<(), Failure> {
    let allowed_by_clock = DeviceAllow {
        device: "char-rtc".to_owned(),
        read: true,
        write: false,
        make: false,
    };
    let mut allowed: Vec<&DeviceAllow> = c.device_allow.iter().collect();
    if c.protect_clock {
        allowed.push(&allowed_by_clock);
    }
    let is_free = c.device_policy == DevicePolicy::Auto && allowed.is_empty() && !c.private_devices;
    if is_free {
        return Ok(());
    }
    let mut rules = Vec::new();
    if c.device_policy != DevicePolicy::Strict {
        // null zero full random urandom tty ptmx, and pseudo terminals.
        for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
            rules.push(rule(LinuxDeviceType::C, major, Some(minor), "rwm")?);
        }
        for major in 136..=143 {
            rules.push(rule(LinuxDeviceType::C, major, None, "rw")?);
        }
    }
    let known = fs::read_to_string("/proc/devices").unwrap_or_default();
    for device in allowed {
        rules.extend(rules_of(device, &known)?);
    }
    let step = || "restrict devices";
    let program = crate::devices::compile(&rules);
    let cgroup = orlop_sys::cgroup::own().during(step)?;
    // The root alone has no type (cgroups(7)): what is restricted there is restricted for the whole machine.
    if !cgroup.join("cgroup.type").exists() {
        return Err(Failure::refused(format!(
            "{}: the process is in no cgroup of its own",
            step()
        )));
    }
    let cgroup = crate::limits::open_cgroup(&cgroup)
        .map_err(|err| Failure::refused(format!("{}: {err}", step())))?;
    let loaded = orlop_sys::cgroup::load_device_program(&program).during(step)?;
    orlop_sys::cgroup::attach_device_program(cgroup.as_fd(), loaded.as_fd()).during(step)
}

fn rule(
    kind: LinuxDeviceType,
    major: u64,
    minor: Option<u64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, Failure> {
    let number = |n: u64| i64::try_from(n).unwrap_or(-1);
    let mut builder = LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(kind)
        .major(number(major))
        .access(access.to_owned());
    if let Some(minor) = minor {
        builder = builder.minor(number(minor));
    }
    builder
        .build()
        .map_err(|err| Failure::refused(format!("restrict devices: {err}")))
}

/// A device that is not there is not opened either, so it needs no rule.
fn rules_of(device: &DeviceAllow, known: &str) -> Result<Vec<LinuxDeviceCgroup>, Failure> {
    let access: String = [(device.read, 'r'), (device.write, 'w'), (device.make, 'm')]
        .into_iter()
        .filter_map(|(is_set, letter)| is_set.then_some(letter))
        .collect();
    let (kind, class) = match device.device.split_once('-') {
        Some(("char", class)) => (LinuxDeviceType::C, class),
        Some(("block", class)) => (LinuxDeviceType::B, class),
        _ => {
            let Ok(found) = fs::metadata(&device.device) else {
                return Ok(Vec::new());
            };
            let kind = if found.file_type().is_block_device() {
                LinuxDeviceType::B
            } else {
                LinuxDeviceType::C
            };
            let (major, minor) = (
                rustix::fs::major(found.rdev()),
                rustix::fs::minor(found.rdev()),
            );
            let one = rule(kind, major.into(), Some(minor.into()), &access)?;
            return Ok(vec![one]);
        }
    };
    majors(known, kind == LinuxDeviceType::B, class)
        .map(|major| rule(kind, major, None, &access))
        .collect()
}

/// The major numbers of a class in `/proc/devices`, whose name may be a pattern.
fn majors<'a>(known: &'a str, block: bool, class: &'a str) -> impl Iterator<Item = u64> + use<'a> {
    let mut in_block = false;
    known.lines().filter_map(move |line| {
        match line {
            "Character devices:" => in_block = false,
            "Block devices:" => in_block = true,
            _ => {}
        }
        let (number, name) = line.trim_start().split_once(' ')?;
        let fits = orlop_unit::install::fits_pattern(class, name.trim());
        (in_block == block && fits).then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_devices_are_found_by_pattern_and_kind() {
        let known = "Character devices:\n  1 mem\n136 pts\n254 rtc\n\nBlock devices:\n254 virtblk\n  7 loop\n";
        let of = |block, class| majors(known, block, class).collect::<Vec<_>>();
        assert_eq!(of(false, "rtc"), [254]);
        assert_eq!(of(true, "virt*"), [254]);
        assert_eq!(of(true, "pts"), [0; 0]);
    }
}
