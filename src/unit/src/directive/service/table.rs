//! The rows of `[Service]`.

use super::super::{Directive, common, exec, ignored, refused, set, silent};
use super::{
    absolute, account, cpu_weight, directories, exit_status, input, input_text, is_account,
    kill_mode, memory, mode, notify_access, restart, service_type, shares_as_weight, signal, slice,
    standard, weight, word, working_directory,
};
use crate::problem::Severity;
use crate::service::{
    CpuWeight, DEFAULT_RESTART_DELAY, Input, OomPolicy, Output, Preserve, Restart, Service,
};
use crate::value::{Signal, parse_bool, parse_count_limit, parse_permyriad, parse_span};

const SANDBOX: &str = "it confines the processes";
const SCHEDULER: &str = "the scheduler's defaults hold";
const CREDENTIALS: &str = "the service expects the credential";
const DEVICES: &str = "it restricts devices or networks";

pub(in crate::directive) static SERVICE: &[Directive] = &[
    ignored("AllowedCPUs", "all processors are used"),
    ignored("AllowedMemoryNodes", "all memory nodes are used"),
    refused("AmbientCapabilities", SANDBOX),
    refused("AppArmorProfile", SANDBOX),
    refused("BPFProgram", DEVICES),
    refused("BindPaths", SANDBOX),
    refused("BindReadOnlyPaths", SANDBOX),
    silent("BlockIOAccounting"),
    set("BlockIOWeight", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.io_weight,
            "a weight from 10 to 1000",
            |t| shares_as_weight(t, 500),
        );
    }),
    refused("BusName", "Type=dbus; there is no message bus"),
    silent("CPUAccounting"),
    ignored("CPUAffinity", "all processors are used"),
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
    ignored("CPUSchedulingPolicy", SCHEDULER),
    ignored("CPUSchedulingPriority", SCHEDULER),
    ignored("CPUSchedulingResetOnFork", SCHEDULER),
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
    set("CacheDirectory", |d, a, r| {
        directories(&mut d.service.cache_directory, a, r)
    }),
    set("CacheDirectoryMode", |d, a, r| {
        mode(&mut d.service.cache_directory.mode, 0o755, a, r)
    }),
    refused("Capabilities", SANDBOX),
    refused("CapabilityBoundingSet", SANDBOX),
    set("ConfigurationDirectory", |d, a, r| {
        directories(&mut d.service.configuration_directory, a, r)
    }),
    set("ConfigurationDirectoryMode", |d, a, r| {
        mode(&mut d.service.configuration_directory.mode, 0o755, a, r)
    }),
    ignored("CoredumpFilter", "the kernel's default holds"),
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
    refused("DeviceAllow", DEVICES),
    refused("DevicePolicy", DEVICES),
    ignored("DisableControllers", "all controllers stay enabled"),
    refused("DynamicUser", SANDBOX),
    set("Environment", exec::environment),
    set("EnvironmentFile", exec::environment_file),
    set("ExecCondition", |d, a, r| {
        exec::commands(&mut d.service.exec_condition, a, r)
    }),
    refused("ExecPaths", SANDBOX),
    set("ExecReload", |d, a, r| {
        exec::commands(&mut d.service.exec_reload, a, r)
    }),
    ignored(
        "ExecSearchPath",
        "bare program names are looked up in the usual directories",
    ),
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
    ignored("ExitType", "the service ends with its main process"),
    refused("ExtensionDirectories", SANDBOX),
    refused("ExtensionImages", SANDBOX),
    set("FailureAction", common::failure_action),
    ignored(
        "FileDescriptorStoreMax",
        "no descriptors are kept over a restart",
    ),
    ignored(
        "FileDescriptorStorePreserve",
        "no descriptors are kept over a restart",
    ),
    set("FinalKillSignal", |d, a, r| {
        signal(&mut d.service.final_kill_signal, Signal::KILL, a, r)
    }),
    set("Group", |d, a, r| account(&mut d.service.group, a, r)),
    set("GuessMainPID", |d, a, r| {
        r.option(a, &mut d.written.guess_main_pid, "a boolean", parse_bool)
    }),
    silent("IOAccounting"),
    ignored("IODeviceWeight", "IOWeight= holds for all devices"),
    ignored("IOReadBandwidthMax", "there is no limit"),
    ignored("IOReadIOPSMax", "there is no limit"),
    ignored("IOSchedulingClass", SCHEDULER),
    ignored("IOSchedulingPriority", SCHEDULER),
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
    refused("IPCNamespacePath", SANDBOX),
    refused("IPEgressFilterPath", DEVICES),
    refused("IPIngressFilterPath", DEVICES),
    set("IgnoreSIGPIPE", |d, a, r| {
        r.bool(a, &mut d.service.ignore_sigpipe, true)
    }),
    refused("ImportCredential", CREDENTIALS),
    refused("InaccessibleDirectories", SANDBOX),
    refused("InaccessiblePaths", SANDBOX),
    silent("KeyringMode"),
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
    refused("LoadCredential", CREDENTIALS),
    refused("LoadCredentialEncrypted", CREDENTIALS),
    refused("LockPersonality", SANDBOX),
    ignored("LogExtraFields", "the journal's own fields are kept"),
    ignored("LogFilterPatterns", "all lines are kept"),
    ignored("LogLevelMax", "all lines are kept"),
    refused("LogNamespace", "the journal is one"),
    ignored("LogRateLimitBurst", "the journal's own limit holds"),
    ignored("LogRateLimitIntervalSec", "the journal's own limit holds"),
    set("LogsDirectory", |d, a, r| {
        directories(&mut d.service.logs_directory, a, r)
    }),
    set("LogsDirectoryMode", |d, a, r| {
        mode(&mut d.service.logs_directory.mode, 0o755, a, r)
    }),
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
    refused("MemoryDenyWriteExecute", SANDBOX),
    set("MemoryHigh", |d, a, r| {
        memory(&mut d.service.resources.memory_high, a, r)
    }),
    ignored("MemoryKSM", "pages are not merged"),
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
    refused("MountAPIVFS", SANDBOX),
    refused("MountFlags", SANDBOX),
    refused("MountImages", SANDBOX),
    ignored("NUMAMask", "all memory nodes are used"),
    ignored("NUMAPolicy", "the kernel's policy holds"),
    refused("NetworkNamespacePath", SANDBOX),
    set("Nice", |d, a, r| {
        r.option(a, &mut d.service.nice, "a number from -20 to 19", |t| {
            t.parse().ok().filter(|nice| (-20..=19).contains(nice))
        });
    }),
    refused("NoExecPaths", SANDBOX),
    refused("NoNewPrivileges", SANDBOX),
    ignored("NonBlocking", "no sockets are passed"),
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
    set("OOMScoreAdjust", |d, a, r| {
        r.option(
            a,
            &mut d.service.oom_score_adjust,
            "a number from -1000 to 1000",
            |t| {
                t.parse()
                    .ok()
                    .filter(|adjust| (-1000..=1000).contains(adjust))
            },
        );
    }),
    refused("OpenFile", "no descriptors are passed"),
    refused("PAMName", "there is no PAM"),
    set("PIDFile", |d, a, r| {
        r.option(a, &mut d.service.pid_file, "a path", |t| {
            Some(if t.starts_with('/') {
                t.to_owned()
            } else {
                format!("/run/{t}")
            })
        });
    }),
    set("PassEnvironment", |d, a, r| {
        exec::environment_names(&mut d.service.pass_environment, false, a, r)
    }),
    refused(
        "PermissionsStartOnly",
        "write + before the commands that need privileges",
    ),
    refused("Personality", SANDBOX),
    refused("PrivateDevices", SANDBOX),
    refused("PrivateIPC", SANDBOX),
    refused("PrivateMounts", SANDBOX),
    refused("PrivateNetwork", SANDBOX),
    refused("PrivatePIDs", SANDBOX),
    refused("PrivateTmp", SANDBOX),
    refused("PrivateUsers", SANDBOX),
    refused("ProcSubset", SANDBOX),
    refused("ProtectClock", SANDBOX),
    refused("ProtectControlGroups", SANDBOX),
    refused("ProtectHome", SANDBOX),
    refused("ProtectHostname", SANDBOX),
    refused("ProtectKernelLogs", SANDBOX),
    refused("ProtectKernelModules", SANDBOX),
    refused("ProtectKernelTunables", SANDBOX),
    refused("ProtectProc", SANDBOX),
    refused("ProtectSystem", SANDBOX),
    refused("ReadOnlyDirectories", SANDBOX),
    refused("ReadOnlyPaths", SANDBOX),
    refused("ReadWriteDirectories", SANDBOX),
    refused("ReadWritePaths", SANDBOX),
    ignored("RebootArgument", "a reboot takes no argument"),
    ignored("ReloadSignal", "Type=notify-reload uses SIGHUP"),
    set("RemainAfterExit", |d, a, r| {
        r.bool(a, &mut d.service.remain_after_exit, false)
    }),
    ignored("RemoveIPC", "IPC objects stay"),
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
    set("RestartKillSignal", |d, a, r| {
        r.option(
            a,
            &mut d.written.restart_kill_signal,
            "a signal",
            Signal::parse,
        );
    }),
    ignored("RestartMaxDelaySec", "the delay stays RestartSec="),
    silent("RestartMode"),
    set("RestartPreventExitStatus", |d, a, r| {
        exit_status(&mut d.service.restart_prevent_exit_status, a, r)
    }),
    set("RestartSec", |d, a, r| {
        r.duration(a, &mut d.service.restart_delay, DEFAULT_RESTART_DELAY);
    }),
    ignored("RestartSteps", "the delay stays RestartSec="),
    refused("RestrictAddressFamilies", SANDBOX),
    refused("RestrictFileSystems", SANDBOX),
    refused("RestrictNamespaces", SANDBOX),
    refused("RestrictNetworkInterfaces", DEVICES),
    refused("RestrictRealtime", SANDBOX),
    refused("RestrictSUIDSGID", SANDBOX),
    refused("RootDirectory", SANDBOX),
    refused("RootDirectoryStartOnly", SANDBOX),
    refused("RootEphemeral", SANDBOX),
    refused("RootHash", SANDBOX),
    refused("RootHashSignature", SANDBOX),
    refused("RootImage", SANDBOX),
    refused("RootImageOptions", SANDBOX),
    refused("RootVerity", SANDBOX),
    set("RuntimeDirectory", |d, a, r| {
        directories(&mut d.service.runtime_directory, a, r)
    }),
    set("RuntimeDirectoryMode", |d, a, r| {
        mode(&mut d.service.runtime_directory.mode, 0o755, a, r)
    }),
    set("RuntimeDirectoryPreserve", |d, a, r| {
        r.value(
            a,
            &mut d.service.runtime_directory_preserve,
            Preserve::No,
            "a boolean or restart",
            |t| match t {
                "restart" => Some(Preserve::Restart),
                _ => parse_bool(t).map(|yes| if yes { Preserve::Yes } else { Preserve::No }),
            },
        );
    }),
    set("RuntimeMaxSec", |d, a, r| {
        r.span(a, &mut d.written.runtime_max)
    }),
    ignored("RuntimeRandomizedExtraSec", "RuntimeMaxSec= holds exactly"),
    refused("SELinuxContext", SANDBOX),
    refused("SecureBits", SANDBOX),
    set("SendSIGHUP", |d, a, r| {
        r.bool(a, &mut d.service.send_sighup, false)
    }),
    set("SendSIGKILL", |d, a, r| {
        r.bool(a, &mut d.service.send_sigkill, true)
    }),
    refused("SetCredential", CREDENTIALS),
    refused("SetCredentialEncrypted", CREDENTIALS),
    ignored("SetLoginEnvironment", "set the variables with Environment="),
    set("Slice", slice),
    refused("SmackProcessLabel", SANDBOX),
    refused("SocketBindAllow", DEVICES),
    refused("SocketBindDeny", DEVICES),
    ignored("Sockets", "no sockets are passed"),
    set("StandardError", |d, a, r| {
        standard(&mut d.service.standard_error, Output::Inherit, a, r)
    }),
    set("StandardInput", |d, a, r| {
        r.value(
            a,
            &mut d.service.standard_input,
            Input::Null,
            "one of null tty tty-force tty-fail data file:PATH",
            input,
        );
    }),
    set("StandardInputText", input_text),
    set("StandardOutput", |d, a, r| {
        standard(&mut d.service.standard_output, Output::Journal, a, r)
    }),
    set("StartLimitAction", common::start_limit_action),
    set("StartLimitBurst", common::start_limit_burst),
    set("StartLimitInterval", common::start_limit_interval),
    ignored("StartupCPUWeight", "CPUWeight= holds from the start"),
    ignored("StartupIOWeight", "IOWeight= holds from the start"),
    set("StateDirectory", |d, a, r| {
        directories(&mut d.service.state_directory, a, r)
    }),
    set("StateDirectoryMode", |d, a, r| {
        mode(&mut d.service.state_directory.mode, 0o755, a, r)
    }),
    set("SuccessExitStatus", |d, a, r| {
        exit_status(&mut d.service.success_exit_status, a, r)
    }),
    set("SupplementaryGroups", |d, a, r| {
        if a.value.text.is_empty() {
            d.service.supplementary_groups.clear();
        }
        for word in r.words(a, Severity::Error).unwrap_or_default() {
            if is_account(&word.text) {
                d.service.supplementary_groups.push(word.text);
            } else {
                r.refuse(a, word.offset, &format!("{:?} is not a group", word.text));
            }
        }
    }),
    silent("SysVStartPriority"),
    silent("SyslogFacility"),
    set("SyslogIdentifier", |d, a, r| {
        r.option(a, &mut d.service.syslog_identifier, "a name", |t| {
            Some(t.to_owned())
        });
    }),
    silent("SyslogLevel"),
    silent("SyslogLevelPrefix"),
    refused("SystemCallArchitectures", SANDBOX),
    refused("SystemCallErrorNumber", SANDBOX),
    refused("SystemCallFilter", SANDBOX),
    ignored("SystemCallLog", "no calls are logged"),
    ignored("TTYColumns", "the terminal keeps its size"),
    set("TTYPath", |d, a, r| {
        let default = Service::default().tty_path;
        r.value(
            a,
            &mut d.service.tty_path,
            default,
            "an absolute path",
            absolute,
        );
    }),
    set("TTYReset", |d, a, r| {
        r.bool(a, &mut d.service.tty_reset, false)
    }),
    ignored("TTYRows", "the terminal keeps its size"),
    set("TTYVHangup", |d, a, r| {
        r.bool(a, &mut d.service.tty_vhangup, false)
    }),
    silent("TTYVTDisallocate"),
    silent("TasksAccounting"),
    set("TasksMax", |d, a, r| {
        r.option(
            a,
            &mut d.service.resources.tasks_max,
            "a number, a share such as 10%, or infinity",
            parse_count_limit,
        );
    }),
    refused("TemporaryFileSystem", SANDBOX),
    ignored("TimeoutAbortSec", "TimeoutStopSec= holds"),
    set("TimeoutSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_start);
        d.written.timeout_stop = d.written.timeout_start;
    }),
    ignored("TimeoutStartFailureMode", "the processes are terminated"),
    set("TimeoutStartSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_start)
    }),
    ignored("TimeoutStopFailureMode", "the processes are killed"),
    set("TimeoutStopSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_stop)
    }),
    ignored("TimerSlackNSec", SCHEDULER),
    set("Type", |d, a, r| match &*a.value.text {
        "dbus" => r.refuse(a, 0, "dbus is not supported: there is no message bus"),
        _ => r.option(
            a,
            &mut d.written.service_type,
            "one of simple exec forking oneshot notify notify-reload idle",
            service_type,
        ),
    }),
    set("UMask", |d, a, r| mode(&mut d.service.umask, 0o022, a, r)),
    refused("USBFunctionDescriptors", "USB functions"),
    refused("USBFunctionStrings", "USB functions"),
    set("UnsetEnvironment", |d, a, r| {
        exec::environment_names(&mut d.service.unset_environment, true, a, r)
    }),
    set("User", |d, a, r| account(&mut d.service.user, a, r)),
    silent("UtmpIdentifier"),
    silent("UtmpMode"),
    set("WatchdogSec", |d, a, r| r.span(a, &mut d.written.watchdog)),
    set("WatchdogSignal", |d, a, r| {
        signal(&mut d.service.watchdog_signal, Signal::ABRT, a, r)
    }),
    set("WorkingDirectory", working_directory),
];
