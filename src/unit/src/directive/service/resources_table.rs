//! The rows of what is killed (`systemd.kill(5)`) and of what has a cgroup (`systemd.resource-control(5)`).

use super::super::{Directive, ignored, refused, set, silent};
use super::{cpu_weight, kill_mode, memory, shares_as_weight, signal, slice, weight};
use crate::service::CpuWeight;
use crate::value::{Signal, parse_bool, parse_count_limit, parse_permyriad, parse_span};

const DEVICES: &str = "it restricts devices or networks";

pub(in crate::directive) static KILL: &[Directive] = &[
    set("FinalKillSignal", |d, a, r| {
        signal(&mut d.service.final_kill_signal, Signal::KILL, a, r)
    }),
    set("KillMode", |d, a, r| {
        r.option(
            a,
            &mut d.written.kill_mode,
            "one of control-group mixed process none",
            kill_mode,
        );
    }),
    set("KillSignal", |d, a, r| {
        r.option(a, &mut d.written.kill_signal, "a signal", Signal::parse)
    }),
    set("RestartKillSignal", |d, a, r| {
        r.option(
            a,
            &mut d.written.restart_kill_signal,
            "a signal",
            Signal::parse,
        );
    }),
    set("SendSIGHUP", |d, a, r| {
        r.bool(a, &mut d.service.send_sighup, false)
    }),
    set("SendSIGKILL", |d, a, r| {
        r.bool(a, &mut d.service.send_sigkill, true)
    }),
    set("WatchdogSignal", |d, a, r| {
        signal(&mut d.service.watchdog_signal, Signal::ABRT, a, r)
    }),
];

pub(in crate::directive) static CGROUP: &[Directive] = &[
    ignored("AllowedCPUs", "all processors are used"),
    ignored("AllowedMemoryNodes", "all memory nodes are used"),
    refused("BPFProgram", DEVICES),
    silent("BlockIOAccounting"),
    set("BlockIOWeight", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.io_weight,
            "a weight from 10 to 1000",
            |t| shares_as_weight(t, 500),
        );
    }),
    silent("CPUAccounting"),
    set("CPUQuota", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.cpu_quota_permyriad,
            "a percentage such as 150%",
            |t| parse_permyriad(t).filter(|quota| *quota > 0),
        );
    }),
    set("CPUQuotaPeriodSec", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.cpu_quota_period,
            "a time span",
            |t| parse_span(t)?.timeout(),
        );
    }),
    set("CPUShares", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.cpu_weight,
            "a number from 2 to 262144",
            |t| shares_as_weight(t, 1024).map(CpuWeight::Weight),
        );
    }),
    set("CPUWeight", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.cpu_weight,
            "a weight from 1 to 10000, or idle",
            cpu_weight,
        );
    }),
    set("Delegate", |d, a, r| {
        // A list of controllers delegates as well; all that are enabled come along.
        r.option(
            a,
            &mut d.written.delegate,
            "a boolean or a list of controllers",
            |t| {
                parse_bool(t).or_else(|| {
                    t.split_whitespace()
                        .all(|w| w.bytes().all(|b| b.is_ascii_lowercase()))
                        .then_some(true)
                })
            },
        );
    }),
    ignored(
        "DelegateSubgroup",
        "the processes start in the unit's own cgroup",
    ),
    ignored("DisableControllers", "all controllers stay enabled"),
    silent("IOAccounting"),
    ignored("IODeviceWeight", "IOWeight= holds for all devices"),
    ignored("IOReadBandwidthMax", "there is no limit"),
    ignored("IOReadIOPSMax", "there is no limit"),
    set("IOWeight", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.io_weight,
            "a weight from 1 to 10000",
            weight,
        );
    }),
    ignored("IOWriteBandwidthMax", "there is no limit"),
    ignored("IOWriteIOPSMax", "there is no limit"),
    silent("IPAccounting"),
    refused("IPAddressAllow", DEVICES),
    refused("IPAddressDeny", DEVICES),
    refused("IPEgressFilterPath", DEVICES),
    refused("IPIngressFilterPath", DEVICES),
    ignored(
        "ManagedOOMMemoryPressure",
        "the kernel alone acts when memory is short",
    ),
    ignored(
        "ManagedOOMMemoryPressureLimit",
        "the kernel alone acts when memory is short",
    ),
    ignored(
        "ManagedOOMPreference",
        "the kernel alone acts when memory is short",
    ),
    ignored(
        "ManagedOOMSwap",
        "the kernel alone acts when memory is short",
    ),
    silent("MemoryAccounting"),
    set("MemoryHigh", |d, a, r| {
        memory(&mut d.service.resources.memory_high, a, r)
    }),
    set("MemoryLimit", |d, a, r| {
        memory(&mut d.service.resources.memory_max, a, r)
    }),
    set("MemoryLow", |d, a, r| {
        memory(&mut d.service.resources.memory_low, a, r)
    }),
    set("MemoryMax", |d, a, r| {
        memory(&mut d.service.resources.memory_max, a, r)
    }),
    set("MemoryMin", |d, a, r| {
        memory(&mut d.service.resources.memory_min, a, r)
    }),
    ignored(
        "MemoryPressureThresholdSec",
        "the service is not told of memory pressure",
    ),
    ignored(
        "MemoryPressureWatch",
        "the service is not told of memory pressure",
    ),
    set("MemorySwapMax", |d, a, r| {
        memory(&mut d.service.resources.memory_swap_max, a, r)
    }),
    ignored("MemoryZSwapMax", "there is no limit"),
    refused("RestrictNetworkInterfaces", DEVICES),
    set("Slice", slice),
    refused("SocketBindAllow", DEVICES),
    refused("SocketBindDeny", DEVICES),
    ignored("StartupCPUWeight", "CPUWeight= holds from the start"),
    ignored("StartupIOWeight", "IOWeight= holds from the start"),
    silent("TasksAccounting"),
    set("TasksMax", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.tasks_max,
            "a number, a share such as 10%, or infinity",
            parse_count_limit,
        );
    }),
];
