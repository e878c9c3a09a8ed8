//! `[Service]` and `[Unit]`.

use std::time::Duration;

use orlop_unit::schedule::{CpuPolicy, IoClass};
use orlop_unit::service::FailureMode;
use orlop_unit::{
    CpuWeight, Input, KillMode, Limit, MachineAction, NotifyAccess, OomPolicy, Output, Preserve,
    Restart, Service, ServiceType, Signal, Unit,
};

use super::{good, service};

type Row<T> = (&'static str, fn(&T) -> bool);

#[test]
fn service_directives_have_their_effect() {
    const S: fn(u64) -> Duration = Duration::from_secs;
    let rows: &[Row<Service>] = &[
        ("Type=exec", |s| s.service_type == ServiceType::Exec),
        ("Type=forking\nPIDFile=a.pid", |s| {
            s.pid_file.as_deref() == Some("/run/a.pid")
        }),
        ("Type=notify-reload", |s| {
            s.notify_access == NotifyAccess::Main
        }),
        ("Type=idle", |s| s.service_type == ServiceType::Idle),
        ("Type=oneshot\nRemainAfterExit=yes", |s| {
            s.remain_after_exit && s.timeout_start.is_none()
        }),
        ("GuessMainPID=no", |s| !s.guess_main_pid),
        ("NotifyAccess=all", |s| s.notify_access == NotifyAccess::All),
        ("WatchdogSec=20", |s| {
            s.watchdog == Some(S(20)) && s.notify_access == NotifyAccess::Main
        }),
        ("WatchdogSignal=SIGUSR1", |s| {
            s.watchdog_signal == Signal(10)
        }),
        ("Restart=on-abnormal\nRestartSec=5min 20s", |s| {
            s.restart == Restart::OnAbnormal && s.restart_delay == S(320)
        }),
        ("RestartSteps=3\nRestartMaxDelaySec=1h", |s| {
            s.restart_steps == 3 && s.restart_max_delay == Some(S(3600))
        }),
        ("TimeoutStartSec=0", |s| s.timeout_start.is_none()),
        ("TimeoutSec=5", |s| {
            (s.timeout_start, s.timeout_stop) == (Some(S(5)), Some(S(5)))
        }),
        ("TimeoutStopSec=7", |s| {
            (s.timeout_stop, s.timeout_abort) == (Some(S(7)), Some(S(7)))
        }),
        ("TimeoutAbortSec=infinity", |s| s.timeout_abort.is_none()),
        (
            "TimeoutStartFailureMode=kill\nTimeoutStopFailureMode=abort",
            |s| {
                (s.timeout_start_failure_mode, s.timeout_stop_failure_mode)
                    == (FailureMode::Kill, FailureMode::Abort)
            },
        ),
        ("RuntimeMaxSec=1d\nRuntimeRandomizedExtraSec=1h", |s| {
            (s.runtime_max, s.runtime_randomized_extra) == (Some(S(86_400)), S(3600))
        }),
        ("SuccessExitStatus=TEMPFAIL 250 SIGKILL", |s| {
            s.success_exit_status.codes == [75, 250]
                && s.success_exit_status.signals == [Signal::KILL]
        }),
        (
            "RestartPreventExitStatus=1 6\nRestartForceExitStatus=SIGABRT",
            |s| {
                s.restart_prevent_exit_status.codes == [1, 6]
                    && s.restart_force_exit_status.signals == [Signal::ABRT]
            },
        ),
        (
            "KillMode=mixed\nKillSignal=INT\nSendSIGHUP=yes\nSendSIGKILL=no",
            |s| {
                (s.kill_mode, s.kill_signal, s.restart_kill_signal)
                    == (KillMode::Mixed, Signal::INT, Signal::INT)
                    && s.send_sighup
                    && !s.send_sigkill
            },
        ),
        ("RestartKillSignal=SIGQUIT\nFinalKillSignal=SIGTERM", |s| {
            (s.restart_kill_signal, s.final_kill_signal) == (Signal(3), Signal::TERM)
        }),
        ("ReloadSignal=USR1", |s| s.reload_signal == Signal(10)),
        ("ExitType=cgroup", |s| s.exit_with_cgroup),
        ("FileDescriptorStoreMax=16", |s| {
            s.descriptor_store_max == 16
        }),
        ("NonBlocking=yes", |s| s.non_blocking),
        ("Sockets=b.socket c.socket", |s| s.sockets.len() == 2),
        ("OOMPolicy=continue\nOOMScoreAdjust=-500", |s| {
            s.oom_policy == OomPolicy::Continue && s.oom_score_adjust == Some(-500)
        }),
        ("User=www-data\nGroup=33\nSupplementaryGroups=a b", |s| {
            s.user.as_deref() == Some("www-data")
                && s.group.as_deref() == Some("33")
                && s.supplementary_groups.len() == 2
        }),
        ("WorkingDirectory=-/srv", |s| {
            s.working_directory.path.as_deref() == Some("/srv") && s.working_directory.optional
        }),
        ("WorkingDirectory=~", |s| s.working_directory.home),
        ("Environment=\"A=x y\" B=1\nEnvironment=C=3", |s| {
            s.environment.len() == 3 && s.environment[0].1 == "x y"
        }),
        ("Environment=A=1\nEnvironment=", |s| {
            s.environment.is_empty()
        }),
        ("EnvironmentFile=-/etc/default/%p", |s| {
            s.environment_files[0].path == "/etc/default/a" && s.environment_files[0].optional
        }),
        ("PassEnvironment=LANG\nUnsetEnvironment=A B=2", |s| {
            s.pass_environment == ["LANG"] && s.unset_environment.len() == 2
        }),
        ("LimitNOFILE=1024:4096", |s| {
            (s.limits[0].soft, s.limits[0].hard) == (Some(1024), Some(4096))
        }),
        ("LimitCPU=1m\nLimitRTTIME=5ms", |s| {
            s.limits[0].hard == Some(60) && s.limits[1].hard == Some(5000)
        }),
        ("Nice=-5", |s| s.nice == Some(-5)),
        ("UMask=0027", |s| s.umask == 0o27),
        (
            "CPUSchedulingPolicy=rr\nCPUSchedulingPriority=50\nCPUSchedulingResetOnFork=yes",
            |s| {
                s.scheduling.cpu_policy == Some(CpuPolicy::RoundRobin)
                    && s.scheduling.cpu_priority == Some(50)
                    && s.scheduling.cpu_reset_on_fork
            },
        ),
        ("CPUAffinity=0-2 5\nCPUAffinity=7", |s| {
            s.scheduling.cpu_affinity.len() == 5
        }),
        ("CPUAffinity=0-2\nCPUAffinity=", |s| {
            s.scheduling.cpu_affinity.is_empty()
        }),
        ("IOSchedulingClass=idle\nIOSchedulingPriority=0", |s| {
            s.scheduling.io_class == Some(IoClass::Idle) && s.scheduling.io_priority == Some(0)
        }),
        ("TimerSlackNSec=50", |s| {
            s.scheduling.timer_slack == Some(Duration::from_nanos(50))
        }),
        ("SyslogLevel=notice\nSyslogLevelPrefix=no", |s| {
            s.logging.level == Some(5) && s.logging.level_prefix == Some(false)
        }),
        (
            "LogLevelMax=warning\nLogRateLimitIntervalSec=0\nLogRateLimitBurst=5",
            |s| {
                s.logging.level_max == Some(4)
                    && s.logging.rate_limit_interval == Some(Duration::ZERO)
                    && s.logging.rate_limit_burst == Some(5)
            },
        ),
        (
            "RuntimeDirectory=a b/c\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=restart",
            |s| {
                s.runtime_directory.paths == ["a", "b/c"]
                    && s.runtime_directory.mode == 0o700
                    && s.runtime_directory_preserve == Preserve::Restart
            },
        ),
        (
            "StateDirectory=a\nCacheDirectory=b\nLogsDirectory=c\nConfigurationDirectory=d",
            |s| {
                [
                    &s.state_directory,
                    &s.cache_directory,
                    &s.logs_directory,
                    &s.configuration_directory,
                ]
                .iter()
                .all(|d| d.paths.len() == 1)
            },
        ),
        ("StandardInput=tty\nTTYPath=/dev/tty1\nTTYReset=yes", |s| {
            s.standard_input == Input::Tty && s.tty_path == "/dev/tty1"
        }),
        (
            "StandardInputText=a\nStandardInput=data\nStandardInputText=b",
            |s| s.standard_input == Input::Data(b"a\nb\n".to_vec()),
        ),
        (
            "StandardInput=fd:asked\nStandardOutput=fd:told\nStandardError=fd",
            |s| {
                s.standard_input == Input::Descriptor("asked".into())
                    && s.standard_output == Output::Descriptor("told".into())
                    && s.standard_error == Output::Descriptor("stderr".into())
            },
        ),
        ("StandardInputData=aGVs bG8=\nStandardInputData=IQ==", |s| {
            s.standard_input == Input::Data(b"hello!".to_vec())
        }),
        ("StandardInput=fd", |s| {
            s.standard_input == Input::Descriptor("stdin".into())
        }),
        ("RemoveIPC=yes", |s| s.remove_ipc),
        ("StandardInput=data\nStandardInputText=a", |s| {
            s.standard_input == Input::Data(b"a\n".to_vec())
        }),
        (
            "StandardOutput=append:/var/log/x\nStandardError=inherit",
            |s| s.standard_output == Output::Append("/var/log/x".into()),
        ),
        ("StandardOutput=journal+console", |s| {
            s.standard_output == Output::JournalAndConsole && s.logging.console
        }),
        ("SyslogIdentifier=x\nIgnoreSIGPIPE=no", |s| {
            s.syslog_identifier.as_deref() == Some("x") && !s.ignore_sigpipe
        }),
        (
            "MemoryMax=1G\nMemoryHigh=50%\nMemoryMin=1M\nMemoryLow=2M\nMemorySwapMax=0",
            |s| {
                let r = s.resources;
                r.memory_max == Some(Limit::Value(1 << 30))
                    && r.memory_high == Some(Limit::Share { permyriad: 5000 })
                    && r.memory_min == Some(Limit::Value(1 << 20))
                    && r.memory_low == Some(Limit::Value(2 << 20))
                    && r.memory_swap_max == Some(Limit::Value(0))
            },
        ),
        (
            "CPUWeight=idle\nCPUQuota=20%\nCPUQuotaPeriodSec=10ms",
            |s| {
                s.resources.cpu_weight == Some(CpuWeight::Idle)
                    && s.resources.cpu_quota_permyriad == Some(2000)
                    && s.resources.cpu_quota_period == Some(Duration::from_millis(10))
            },
        ),
        ("IOWeight=500\nTasksMax=infinity", |s| {
            s.resources.io_weight == Some(500) && s.resources.tasks_max == Some(Limit::Infinity)
        }),
        ("Slice=apps-web.slice\nDelegate=yes", |s| {
            s.slice
                .as_ref()
                .is_some_and(|n| n.as_str() == "apps-web.slice")
                && s.delegate
        }),
        (
            "ExecCondition=/bin/a\nExecStartPre=-/bin/b\nExecStartPost=+/bin/c\nExecReload=/bin/d $MAINPID\nExecStop=/bin/e\nExecStopPost=!/bin/f",
            |s| {
                s.exec_condition.len() == 1
                    && s.exec_start_pre[0].flags.ignore_failure
                    && s.exec_start_post[0].flags.full_privileges
                    && s.exec_reload[0].words == ["$MAINPID"]
                    && s.exec_stop.len() == 1
                    && s.exec_stop_post[0].flags.keep_user
            },
        ),
    ];
    let rows = rows.iter().chain(&[(
        "User=1\nPermissionsStartOnly=yes\nExecStop=/bin/a",
        (|s| s.exec_stop[0].flags.full_privileges && !s.exec_start[0].flags.full_privileges)
            as fn(&Service) -> bool,
    )]);
    for (lines, holds) in rows {
        assert!(holds(&service(lines)), "{lines}");
    }
}

#[test]
fn unit_directives_have_their_effect() {
    use orlop_unit::Relation as R;
    let rows: &[Row<Unit>] = &[
        ("Description=a %n", |u| u.description == "a a.service"),
        ("Documentation=man:a(1) https://b", |u| {
            u.documentation.len() == 2
        }),
        ("Wants=b.service c.service", |u| {
            u.related(R::Wants).count() == 2
        }),
        (
            "Requires=b.service\nRequisite=c.service\nBindsTo=d.service",
            |u| u.related(R::Requisite).count() == 1 && u.related(R::BindsTo).count() == 1,
        ),
        (
            "PartOf=b.service\nUpholds=c.service\nConflicts=d.service",
            |u| {
                u.related(R::PartOf).count() == 1
                    && u.related(R::Upholds).count() == 1
                    && u.related(R::Conflicts).count() == 2
            },
        ),
        ("OnFailure=b@%n.service\nOnSuccess=c.service", |u| {
            u.related(R::OnFailure)
                .next()
                .is_some_and(|n| n.as_str() == "b@a.service.service")
        }),
        (
            "PropagatesStopTo=b.service\nStopPropagatedFrom=c.service\nPropagatesReloadTo=d.service\nReloadPropagatedFrom=e.service",
            |u| {
                [
                    R::PropagatesStopTo,
                    R::StopPropagatedFrom,
                    R::PropagatesReloadTo,
                    R::ReloadPropagatedFrom,
                ]
                .iter()
                .all(|r| u.related(*r).count() == 1)
            },
        ),
        ("DefaultDependencies=no", |u| u.dependencies.is_empty()),
        ("RequiresMountsFor=/srv/a /var/b", |u| {
            u.requires_mounts_for.len() == 2
        }),
        (
            "StartLimitIntervalSec=1min\nStartLimitBurst=3\nStartLimitAction=reboot",
            |u| {
                u.start_limit.burst == 3
                    && u.start_limit.interval == Duration::from_secs(60)
                    && u.start_limit.action != MachineAction::None
            },
        ),
        ("FailureAction=poweroff-force\nSuccessAction=exit", |u| {
            u.failure_action != MachineAction::None && u.success_action != MachineAction::None
        }),
        ("JobTimeoutSec=5", |u| {
            u.job_timeout == Some(Duration::from_secs(5))
        }),
        (
            "RefuseManualStart=yes\nRefuseManualStop=yes\nStopWhenUnneeded=yes\nAllowIsolate=yes\nIgnoreOnIsolate=yes",
            |u| {
                u.refuse_manual_start
                    && u.refuse_manual_stop
                    && u.stop_when_unneeded
                    && u.allow_isolate
                    && u.ignore_on_isolate
            },
        ),
        (
            "ConditionPathExists=!/a\nAssertPathExists=/b\nConditionMemory=>=1G",
            |u| u.conditions.0.len() == 2 && u.asserts.0.len() == 1,
        ),
    ];
    for (lines, holds) in rows {
        let text = format!("[Unit]\n{lines}\n[Service]\nExecStart=/bin/true\n");
        assert!(holds(&good("a.service", &text)), "{lines}");
    }
}
