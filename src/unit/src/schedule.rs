//! How the kernel shares processors and disks among processes (`sched(7)`, `ioprio_set(2)`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// `CPUSchedulingPolicy=`; the numbers are those of `include/uapi/linux/sched.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum CpuPolicy {
    /// The usual one.
    Other = 0,
    /// Real time, first come first served.
    Fifo = 1,
    /// Real time, in turns.
    RoundRobin = 2,
    /// As the usual one, for work that nobody waits for.
    Batch = 3,
    /// Only when nothing else runs.
    Idle = 5,
}

/// `IOSchedulingClass=`; the numbers are those of `include/uapi/linux/ioprio.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum IoClass {
    /// What the nice level says.
    None = 0,
    /// First.
    RealTime = 1,
    /// By priority.
    BestEffort = 2,
    /// Last.
    Idle = 3,
}

/// What is asked of the schedulers; `None` keeps the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduling {
    /// `CPUSchedulingPolicy=`
    pub cpu_policy: Option<CpuPolicy>,
    /// `CPUSchedulingPriority=`, 1 to 99, for the real-time policies.
    pub cpu_priority: Option<u8>,
    /// `CPUSchedulingResetOnFork=`
    pub cpu_reset_on_fork: bool,
    /// `CPUAffinity=`: numbers of processors; empty is all.
    pub cpu_affinity: BTreeSet<u16>,
    /// `IOSchedulingClass=`
    pub io_class: Option<IoClass>,
    /// `IOSchedulingPriority=`, 0 (first) to 7.
    pub io_priority: Option<u8>,
    /// `TimerSlackNSec=`
    pub timer_slack: Option<Duration>,
}

/// The highest processor number that a list may hold (`CONFIG_NR_CPUS` of the largest kernels).
const MAX_CPU: u16 = 8191;

/// Reads `0 2-5,7` into a set.
pub(crate) fn parse_cpus(text: &str) -> Option<BTreeSet<u16>> {
    let mut set = BTreeSet::new();
    for item in text.split([',', ' ', '\t']).filter(|item| !item.is_empty()) {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |text: &str| text.parse::<u16>().ok().filter(|cpu| *cpu <= MAX_CPU);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_with_commas_spaces_and_ranges() {
        let set = parse_cpus("0 2-4,7").unwrap();
        assert_eq!(set.into_iter().collect::<Vec<_>>(), [0, 2, 3, 4, 7]);
        for bad in ["a", "3-1", "9000", "1-", "-"] {
            assert_eq!(parse_cpus(bad), None, "{bad}");
        }
    }
}
