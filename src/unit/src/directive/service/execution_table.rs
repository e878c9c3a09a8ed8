//! The rows of everything that runs programs (`systemd.exec(5)`), but for what confines them.

use super::super::{Directive, exec, ignored, refused, set, silent};
use super::{
    absolute, account, directories, input, input_data, input_text, is_account, log_level, mode,
    standard, word, working_directory,
};
use std::time::Duration;

use crate::problem::Severity;
use crate::schedule::{CpuPolicy, IoClass, parse_cpus};
use crate::service::{Input, Output, Preserve, Service};
use crate::value::{Span, parse_bool, parse_span};

const SANDBOX: &str = "it confines the processes";
const CPU_POLICIES: [(&str, CpuPolicy); 5] = [
    ("other", CpuPolicy::Other),
    ("batch", CpuPolicy::Batch),
    ("idle", CpuPolicy::Idle),
    ("fifo", CpuPolicy::Fifo),
    ("rr", CpuPolicy::RoundRobin),
];
const IO_CLASSES: [(&str, IoClass); 8] = [
    ("none", IoClass::None),
    ("realtime", IoClass::RealTime),
    ("best-effort", IoClass::BestEffort),
    ("idle", IoClass::Idle),
    ("0", IoClass::None),
    ("1", IoClass::RealTime),
    ("2", IoClass::BestEffort),
    ("3", IoClass::Idle),
];
const CREDENTIALS: &str = "the service expects the credential";

pub(in crate::directive) static EXECUTION: &[Directive] = &[
    refused("AppArmorProfile", SANDBOX),
    set("CPUAffinity", |d, a, r| {
        let slot = &mut d.service.scheduling.cpu_affinity;
        let mut more = Default::default();
        r.value(
            a,
            &mut more,
            Default::default(),
            "a list of processors",
            parse_cpus,
        );
        if a.value.text.is_empty() {
            slot.clear();
        }
        slot.extend(more);
    }),
    set("CPUSchedulingPolicy", |d, a, r| {
        r.option(
            a,
            &mut d.service.scheduling.cpu_policy,
            "one of other batch idle fifo rr",
            |t| word(t, &CPU_POLICIES),
        );
    }),
    set("CPUSchedulingPriority", |d, a, r| {
        r.option(
            a,
            &mut d.service.scheduling.cpu_priority,
            "a number from 1 to 99",
            |t| t.parse().ok().filter(|n| (1..=99).contains(n)),
        );
    }),
    set("CPUSchedulingResetOnFork", |d, a, r| {
        r.bool(a, &mut d.service.scheduling.cpu_reset_on_fork, false)
    }),
    set("CacheDirectory", |d, a, r| {
        directories(&mut d.service.cache_directory, a, r)
    }),
    set("CacheDirectoryMode", |d, a, r| {
        mode(&mut d.service.cache_directory.mode, 0o755, a, r)
    }),
    refused("Capabilities", SANDBOX),
    set("ConfigurationDirectory", |d, a, r| {
        directories(&mut d.service.configuration_directory, a, r)
    }),
    set("ConfigurationDirectoryMode", |d, a, r| {
        mode(&mut d.service.configuration_directory.mode, 0o755, a, r)
    }),
    ignored("CoredumpFilter", "the kernel's default holds"),
    set("Environment", exec::environment),
    set("EnvironmentFile", exec::environment_file),
    ignored(
        "ExecSearchPath",
        "bare program names are looked up in the usual directories",
    ),
    refused("ExtensionDirectories", SANDBOX),
    refused("ExtensionImages", SANDBOX),
    set("Group", |d, a, r| account(&mut d.service.group, a, r)),
    set("IOSchedulingClass", |d, a, r| {
        r.option(
            a,
            &mut d.service.scheduling.io_class,
            "one of none realtime best-effort idle",
            |t| word(t, &IO_CLASSES),
        );
    }),
    set("IOSchedulingPriority", |d, a, r| {
        r.option(
            a,
            &mut d.service.scheduling.io_priority,
            "a number from 0 to 7",
            |t| t.parse().ok().filter(|n| *n <= 7),
        );
    }),
    refused("IPCNamespacePath", SANDBOX),
    set("IgnoreSIGPIPE", |d, a, r| {
        r.bool(a, &mut d.service.ignore_sigpipe, true)
    }),
    refused("ImportCredential", CREDENTIALS),
    silent("KeyringMode"),
    refused("LoadCredentialEncrypted", CREDENTIALS),
    ignored("LogExtraFields", "the journal's own fields are kept"),
    ignored("LogFilterPatterns", "all lines are kept"),
    set("LogLevelMax", |d, a, r| {
        r.option(
            a,
            &mut d.service.logging.level_max,
            "a level such as warning, or 0 to 7",
            log_level,
        );
    }),
    refused("LogNamespace", "the journal is one"),
    set("LogRateLimitBurst", |d, a, r| {
        r.option(
            a,
            &mut d.service.logging.rate_limit_burst,
            "a number",
            |t| t.parse().ok(),
        );
    }),
    set("LogRateLimitIntervalSec", |d, a, r| {
        let mut span = None;
        r.span(a, &mut span);
        d.service.logging.rate_limit_interval = match span {
            Some(Span::Finite(span)) => Some(span),
            _ => None,
        };
    }),
    set("LogsDirectory", |d, a, r| {
        directories(&mut d.service.logs_directory, a, r)
    }),
    set("LogsDirectoryMode", |d, a, r| {
        mode(&mut d.service.logs_directory.mode, 0o755, a, r)
    }),
    ignored("MemoryKSM", "pages are not merged"),
    refused("MountImages", SANDBOX),
    ignored("NUMAMask", "all memory nodes are used"),
    ignored("NUMAPolicy", "the kernel's policy holds"),
    set("Nice", |d, a, r| {
        r.option(a, &mut d.service.nice, "a number from -20 to 19", |t| {
            t.parse().ok().filter(|nice| (-20..=19).contains(nice))
        });
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
    refused("PAMName", "there is no PAM"),
    set("PassEnvironment", |d, a, r| {
        exec::environment_names(&mut d.service.pass_environment, false, a, r)
    }),
    refused("Personality", SANDBOX),
    refused("PrivatePIDs", SANDBOX),
    set("RemoveIPC", |d, a, r| {
        r.bool(a, &mut d.service.remove_ipc, false);
    }),
    refused("RestrictFileSystems", SANDBOX),
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
    refused("SELinuxContext", SANDBOX),
    refused("SecureBits", SANDBOX),
    refused("SetCredentialEncrypted", CREDENTIALS),
    ignored("SetLoginEnvironment", "set the variables with Environment="),
    refused("SmackProcessLabel", SANDBOX),
    set("StandardError", |d, a, r| {
        standard(
            &mut d.service.standard_error,
            Output::Inherit,
            "stderr",
            a,
            r,
        );
        shown_on_console(&mut d.service);
    }),
    set("StandardInput", |d, a, r| {
        let before = std::mem::take(&mut d.service.standard_input);
        r.value(
            a,
            &mut d.service.standard_input,
            Input::Null,
            "one of null tty tty-force tty-fail data socket fd file:PATH fd:NAME",
            input,
        );
        // The text may have come first.
        if let (Input::Data(_), Input::Data(_)) = (&d.service.standard_input, &before) {
            d.service.standard_input = before;
        }
    }),
    set("StandardInputData", input_data),
    set("StandardInputText", input_text),
    set("StandardOutput", |d, a, r| {
        standard(
            &mut d.service.standard_output,
            Output::Journal,
            "stdout",
            a,
            r,
        );
        shown_on_console(&mut d.service);
    }),
    set("StateDirectory", |d, a, r| {
        directories(&mut d.service.state_directory, a, r)
    }),
    set("StateDirectoryMode", |d, a, r| {
        mode(&mut d.service.state_directory.mode, 0o755, a, r)
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
    silent("SyslogFacility"),
    set("SyslogIdentifier", |d, a, r| {
        r.option(a, &mut d.service.syslog_identifier, "a name", |t| {
            Some(t.to_owned())
        });
    }),
    set("SyslogLevel", |d, a, r| {
        r.option(
            a,
            &mut d.service.logging.level,
            "a level such as warning, or 0 to 7",
            log_level,
        );
    }),
    set("SyslogLevelPrefix", |d, a, r| {
        r.option(
            a,
            &mut d.service.logging.level_prefix,
            "yes or no",
            crate::value::parse_bool,
        );
    }),
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
    set("TimerSlackNSec", |d, a, r| {
        // A number without unit counts nanoseconds.
        r.option(
            a,
            &mut d.service.scheduling.timer_slack,
            "a time span",
            |t| match t.parse::<u64>() {
                Ok(ns) => Some(Duration::from_nanos(ns)),
                Err(_) => match parse_span(t)? {
                    Span::Finite(span) => Some(span),
                    Span::Infinity => None,
                },
            },
        );
    }),
    set("UMask", |d, a, r| mode(&mut d.service.umask, 0o022, a, r)),
    set("UnsetEnvironment", |d, a, r| {
        exec::environment_names(&mut d.service.unset_environment, true, a, r)
    }),
    set("User", |d, a, r| account(&mut d.service.user, a, r)),
    silent("UtmpIdentifier"),
    silent("UtmpMode"),
    set("WorkingDirectory", working_directory),
];

/// Both outputs are one stream on its way to the journal.
fn shown_on_console(service: &mut Service) {
    let outputs = [&service.standard_output, &service.standard_error];
    service.logging.console = outputs.contains(&&Output::JournalAndConsole);
}
