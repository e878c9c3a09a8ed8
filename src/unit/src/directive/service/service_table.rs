//! The rows that `[Service]` alone has (`systemd.service(5)`).

use std::time::Duration;

use super::super::{Directive, common, exec, ignored, plain_words, refused, set, silent};
use super::{exit_status, failure_mode, notify_access, restart, service_type, signal, word};
use crate::name::UnitType;
use crate::problem::Severity;
use crate::service::{DEFAULT_RESTART_DELAY, OomPolicy, Restart};
use crate::value::{Signal, parse_bool};

const SANDBOX: &str = "it confines the processes";

pub(in crate::directive) static SERVICE: &[Directive] = &[
    set("BusName", |d, a, r| {
        d.written.bus_name = !a.value.text.is_empty();
        if d.written.bus_name {
            let message = "BusName= is not supported: there is no message bus to have a name on";
            r.report(a.key_at, Severity::Warning, message);
        }
    }),
    set("ExecCondition", |d, a, r| {
        exec::commands(&mut d.service.exec_condition, a, r)
    }),
    set("ExecReload", |d, a, r| {
        exec::commands(&mut d.service.exec_reload, a, r)
    }),
    set("ExecStart", |d, a, r| {
        exec::commands(&mut d.service.exec_start, a, r)
    }),
    set("ExecStartPost", |d, a, r| {
        exec::commands(&mut d.service.exec_start_post, a, r)
    }),
    set("ExecStartPre", |d, a, r| {
        exec::commands(&mut d.service.exec_start_pre, a, r)
    }),
    set("ExecStop", |d, a, r| {
        exec::commands(&mut d.service.exec_stop, a, r)
    }),
    set("ExecStopPost", |d, a, r| {
        exec::commands(&mut d.service.exec_stop_post, a, r)
    }),
    set("ExitType", |d, a, r| {
        r.value(
            a,
            &mut d.service.exit_with_cgroup,
            false,
            "one of main cgroup",
            |t| word(t, &[("main", false), ("cgroup", true)]),
        );
    }),
    set("FailureAction", common::failure_action),
    set("FileDescriptorStoreMax", |d, a, r| {
        r.value(a, &mut d.service.descriptor_store_max, 0, "a number", |t| {
            t.parse().ok()
        });
    }),
    ignored(
        "FileDescriptorStorePreserve",
        "no descriptors are kept over a restart",
    ),
    set("GuessMainPID", |d, a, r| {
        r.option(a, &mut d.written.guess_main_pid, "a boolean", parse_bool)
    }),
    set("NonBlocking", |d, a, r| {
        r.bool(a, &mut d.service.non_blocking, false)
    }),
    set("NotifyAccess", |d, a, r| {
        r.option(
            a,
            &mut d.written.notify_access,
            "one of none main exec all",
            notify_access,
        );
    }),
    set("OOMPolicy", |d, a, r| {
        r.value(
            a,
            &mut d.service.oom_policy,
            OomPolicy::Stop,
            "one of continue stop kill",
            |t| {
                word(
                    t,
                    &[
                        ("continue", OomPolicy::Continue),
                        ("stop", OomPolicy::Stop),
                        ("kill", OomPolicy::Kill),
                    ],
                )
            },
        );
    }),
    refused("OpenFile", "no descriptors are passed"),
    set("PIDFile", |d, a, r| {
        r.option(a, &mut d.service.pid_file, "a path", |t| {
            Some(if t.starts_with('/') {
                t.to_owned()
            } else {
                format!("/run/{t}")
            })
        });
    }),
    set("PermissionsStartOnly", |d, a, r| {
        r.bool(a, &mut d.written.permissions_start_only, false)
    }),
    ignored("RebootArgument", "a reboot takes no argument"),
    set("ReloadSignal", |d, a, r| {
        signal(&mut d.service.reload_signal, Signal::HUP, a, r)
    }),
    set("RemainAfterExit", |d, a, r| {
        r.bool(a, &mut d.service.remain_after_exit, false)
    }),
    set("Restart", |d, a, r| {
        r.value(
            a,
            &mut d.service.restart,
            Restart::No,
            "one of no always on-success on-failure on-abnormal on-abort on-watchdog",
            restart,
        );
    }),
    set("RestartForceExitStatus", |d, a, r| {
        exit_status(&mut d.service.restart_force_exit_status, a, r)
    }),
    set("RestartMaxDelaySec", |d, a, r| {
        r.span(a, &mut d.written.restart_max_delay)
    }),
    silent("RestartMode"),
    set("RestartPreventExitStatus", |d, a, r| {
        exit_status(&mut d.service.restart_prevent_exit_status, a, r)
    }),
    set("RestartSec", |d, a, r| {
        r.duration(a, &mut d.service.restart_delay, DEFAULT_RESTART_DELAY);
    }),
    set("RestartSteps", |d, a, r| {
        r.value(a, &mut d.service.restart_steps, 0, "a number", |t| {
            t.parse().ok()
        });
    }),
    refused("RootDirectoryStartOnly", SANDBOX),
    set("RuntimeMaxSec", |d, a, r| {
        r.span(a, &mut d.written.runtime_max)
    }),
    set("RuntimeRandomizedExtraSec", |d, a, r| {
        r.duration(a, &mut d.service.runtime_randomized_extra, Duration::ZERO);
    }),
    set("Sockets", |d, a, r| {
        for (offset, word) in plain_words(&a.value.text) {
            match r.unit_name(a, word, offset) {
                Some(name) if name.kind() == UnitType::Socket => d.service.sockets.push(name),
                Some(name) => r.ignore(a, offset, &format!("{name} is no socket")),
                None => {}
            }
        }
    }),
    set("StartLimitAction", common::start_limit_action),
    set("StartLimitBurst", common::start_limit_burst),
    set("StartLimitInterval", common::start_limit_interval),
    set("SuccessExitStatus", |d, a, r| {
        exit_status(&mut d.service.success_exit_status, a, r)
    }),
    silent("SysVStartPriority"),
    set("TimeoutAbortSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_abort)
    }),
    set("TimeoutSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_start);
        d.written.timeout_stop = d.written.timeout_start;
    }),
    set("TimeoutStartFailureMode", |d, a, r| {
        failure_mode(&mut d.service.timeout_start_failure_mode, a, r)
    }),
    set("TimeoutStartSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_start)
    }),
    set("TimeoutStopFailureMode", |d, a, r| {
        failure_mode(&mut d.service.timeout_stop_failure_mode, a, r)
    }),
    set("TimeoutStopSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_stop)
    }),
    set("Type", |d, a, r| match &*a.value.text {
        "dbus" => r.refuse(a, 0, "dbus is not supported: there is no message bus"),
        _ => r.option(
            a,
            &mut d.written.service_type,
            "one of simple exec forking oneshot notify notify-reload idle",
            service_type,
        ),
    }),
    refused("USBFunctionDescriptors", "USB functions"),
    refused("USBFunctionStrings", "USB functions"),
    set("WatchdogSec", |d, a, r| r.span(a, &mut d.written.watchdog)),
];
