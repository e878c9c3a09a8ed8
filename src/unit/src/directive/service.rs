//! `[Service]` (`systemd.service(5)`, `systemd.exec(5)`, `systemd.kill(5)`, `systemd.resource-control(5)`).

use super::{Draft, Reading};
use crate::name::{UnitName, UnitType};
use crate::problem::Severity;
use crate::service::{
    CpuWeight, Directories, ExitStatusSet, FailureMode, Input, KillMode, NotifyAccess, Output,
    Resource, ResourceLimit, Restart, ServiceType, WorkingDirectory,
};
use crate::syntax::Assignment;
use crate::value::{
    Limit, Signal, Span, parse_bytes, parse_exit_code, parse_memory_limit, parse_mode,
    parse_span_in,
};

mod execution_table;
mod resources_table;
mod service_table;

pub(super) use execution_table::EXECUTION;
pub(super) use resources_table::{CGROUP, KILL};
pub(super) use service_table::SERVICE;

/// Looks a word up in a list of words.
pub(super) fn word<T: Copy>(text: &str, list: &[(&str, T)]) -> Option<T> {
    list.iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
}

fn service_type(text: &str) -> Option<ServiceType> {
    let list = [
        ("simple", ServiceType::Simple),
        ("exec", ServiceType::Exec),
        ("forking", ServiceType::Forking),
        ("oneshot", ServiceType::Oneshot),
        ("notify", ServiceType::Notify),
        ("notify-reload", ServiceType::NotifyReload),
        ("idle", ServiceType::Idle),
    ];
    word(text, &list)
}

fn restart(text: &str) -> Option<Restart> {
    let list = [
        ("no", Restart::No),
        ("always", Restart::Always),
        ("on-success", Restart::OnSuccess),
        ("on-failure", Restart::OnFailure),
        ("on-abnormal", Restart::OnAbnormal),
        ("on-abort", Restart::OnAbort),
        ("on-watchdog", Restart::OnWatchdog),
    ];
    word(text, &list)
}

fn kill_mode(text: &str) -> Option<KillMode> {
    let list = [
        ("control-group", KillMode::ControlGroup),
        ("mixed", KillMode::Mixed),
        ("process", KillMode::Process),
        ("none", KillMode::None),
    ];
    word(text, &list)
}

fn notify_access(text: &str) -> Option<NotifyAccess> {
    let list = [
        ("none", NotifyAccess::None),
        ("main", NotifyAccess::Main),
        ("exec", NotifyAccess::Exec),
        ("all", NotifyAccess::All),
    ];
    word(text, &list)
}

fn failure_mode(slot: &mut FailureMode, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let words = [
        ("terminate", FailureMode::Terminate),
        ("abort", FailureMode::Abort),
        ("kill", FailureMode::Kill),
    ];
    let expected = "one of terminate abort kill";
    reading.value(a, slot, FailureMode::Terminate, expected, |t| {
        word(t, &words)
    });
}

/// A level of `syslog(3)`, by name or number.
fn log_level(text: &str) -> Option<u8> {
    const NAMES: [&str; 8] = [
        "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
    ];
    match text.parse::<u8>() {
        Ok(level) => (level <= 7).then_some(level),
        Err(_) => NAMES
            .iter()
            .position(|name| *name == text)
            .and_then(|level| u8::try_from(level).ok()),
    }
}

fn input(text: &str) -> Option<Input> {
    Some(match text {
        "null" => Input::Null,
        "tty" => Input::Tty,
        "tty-force" => Input::TtyForce,
        "tty-fail" => Input::TtyFail,
        "data" => Input::Data(Vec::new()),
        "socket" => Input::Socket,
        "fd" => Input::Descriptor("stdin".to_owned()),
        _ => match text.split_once(':')? {
            ("file", path) => Input::File(absolute(path)?),
            ("fd", name) => Input::Descriptor(descriptor(name)?),
            _ => return None,
        },
    })
}

fn output(text: &str) -> Option<Output> {
    Some(match text {
        "inherit" => Output::Inherit,
        "null" => Output::Null,
        "journal" | "syslog" => Output::Journal,
        "journal+console" | "syslog+console" => Output::JournalAndConsole,
        "kmsg" | "kmsg+console" => Output::KernelLog,
        "tty" => Output::Tty,
        "socket" => Output::Socket,
        _ => match text.split_once(':')? {
            ("fd", name) => Output::Descriptor(descriptor(name)?),
            ("file", path) => Output::File(absolute(path)?),
            ("append", path) => Output::Append(absolute(path)?),
            ("truncate", path) => Output::Truncate(absolute(path)?),
            _ => return None,
        },
    })
}

fn descriptor(name: &str) -> Option<String> {
    super::socket::descriptor_name(name).filter(|name| !name.is_empty())
}

fn absolute(path: &str) -> Option<String> {
    path.starts_with('/').then(|| path.to_owned())
}

fn weight(text: &str) -> Option<u16> {
    text.parse()
        .ok()
        .filter(|weight| (1..=10_000).contains(weight))
}

fn cpu_weight(text: &str) -> Option<CpuWeight> {
    if text == "idle" {
        Some(CpuWeight::Idle)
    } else {
        weight(text).map(CpuWeight::Weight)
    }
}

/// `CPUShares=` of cgroup v1, 2 to 262144 with 1024 in the middle, as a weight with 100 in the middle.
fn shares_as_weight(text: &str, middle: u64) -> Option<u16> {
    let shares: u64 = text
        .parse()
        .ok()
        .filter(|shares| (2..=262_144).contains(shares))?;
    let weight = shares
        .saturating_mul(100)
        .checked_div(middle)?
        .clamp(1, 10_000);
    u16::try_from(weight).ok()
}

/// `Limit…=`; false when the key is none.
pub(super) fn limit(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) -> bool {
    let Some(name) = a.key.strip_prefix("Limit") else {
        return false;
    };
    let Some((number, measure)) = RESOURCES
        .iter()
        .find(|(n, ..)| *n == name)
        .map(|(_, number, measure)| (*number, *measure))
    else {
        return false;
    };
    let Some((name, ..)) = RESOURCES.iter().find(|(n, ..)| *n == name) else {
        return false;
    };
    let resource = Resource { name, number };
    draft.service.limits.retain(|l| l.resource != resource);
    let mut parsed = None;
    reading.option(
        a,
        &mut parsed,
        "a limit such as 1024, 1K:2K or infinity",
        |text| {
            let (soft, hard) = text.split_once(':').unwrap_or((text, text));
            let (soft, hard) = (measure.parse(soft.trim())?, measure.parse(hard.trim())?);
            let ordered = match (soft, hard) {
                (Some(soft), Some(hard)) => soft <= hard,
                (None, Some(_)) => false,
                (_, None) => true,
            };
            ordered.then_some(ResourceLimit {
                resource,
                soft,
                hard,
            })
        },
    );
    draft.service.limits.extend(parsed);
    true
}

/// What a resource limit counts.
#[derive(Clone, Copy)]
enum Measure {
    Bytes,
    Count,
    Seconds,
    Microseconds,
    Nice,
}

impl Measure {
    /// `Some(None)` is infinity.
    fn parse(self, text: &str) -> Option<Option<u64>> {
        if text == "infinity" {
            return Some(None);
        }
        let span = |default_unit| match parse_span_in(text, default_unit)? {
            Span::Finite(span) => Some(span),
            Span::Infinity => None,
        };
        let value = match self {
            Self::Bytes => parse_bytes(text)?,
            Self::Count => text.parse().ok()?,
            Self::Seconds => {
                let span = span(1_000_000)?;
                span.as_secs()
                    .saturating_add(u64::from(span.subsec_nanos() > 0))
            }
            Self::Microseconds => u64::try_from(span(1)?.as_micros()).ok()?,
            // A signed number is a nice level, which the kernel counts down from 20.
            Self::Nice if text.starts_with(['+', '-']) => {
                let nice: i64 = text.parse().ok().filter(|nice| (-20..=19).contains(nice))?;
                u64::try_from(20i64.checked_sub(nice)?).ok()?
            }
            Self::Nice => text.parse().ok().filter(|n| *n <= 40)?,
        };
        Some(Some(value))
    }
}

/// Name, number and measure of each resource (`getrlimit(2)`).
const RESOURCES: &[(&str, u32, Measure)] = &[
    ("CPU", 0, Measure::Seconds),
    ("FSIZE", 1, Measure::Bytes),
    ("DATA", 2, Measure::Bytes),
    ("STACK", 3, Measure::Bytes),
    ("CORE", 4, Measure::Bytes),
    ("RSS", 5, Measure::Bytes),
    ("NPROC", 6, Measure::Count),
    ("NOFILE", 7, Measure::Count),
    ("MEMLOCK", 8, Measure::Bytes),
    ("AS", 9, Measure::Bytes),
    ("LOCKS", 10, Measure::Count),
    ("SIGPENDING", 11, Measure::Count),
    ("MSGQUEUE", 12, Measure::Bytes),
    ("NICE", 13, Measure::Nice),
    ("RTPRIO", 14, Measure::Count),
    ("RTTIME", 15, Measure::Microseconds),
];

fn exit_status(set: &mut ExitStatusSet, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        *set = ExitStatusSet::default();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        if let Some(code) = parse_exit_code(&word.text) {
            set.codes.push(code);
        } else if let Some(signal) = Signal::parse(&word.text) {
            set.signals.push(signal);
        } else {
            reading.ignore(
                a,
                word.offset,
                &format!("{:?} is neither an exit status nor a signal", word.text),
            );
        }
    }
}

/// Users and groups: running as somebody else than asked for is worse than not running.
pub(super) fn account(slot: &mut Option<String>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        *slot = None;
        return;
    }
    let Some(text) = reading.text(a, Severity::Error) else {
        return;
    };
    if is_account(&text) {
        *slot = Some(text.into_owned());
    } else {
        reading.refuse(
            a,
            0,
            &format!("{text:?} is neither a name nor a number of a user or group"),
        );
    }
}

fn is_account(text: &str) -> bool {
    let number = text.bytes().all(|b| b.is_ascii_digit());
    if number {
        // 65535 and 2^32-1 mean "no change" to the kernel.
        return text
            .parse::<u32>()
            .is_ok_and(|id| id != u32::MAX && id != 0xffff);
    }
    // systemd is as generous with names: accounts of directories elsewhere hold dots, capitals and blanks.
    let negative = text
        .strip_prefix('-')
        .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    !text.is_empty()
        && text.len() <= 256
        && !negative
        && !matches!(text, "." | "..")
        && text.trim() == text
        && !text.contains(|c: char| c.is_control() || matches!(c, ':' | '/'))
}

fn directories(slot: &mut Directories, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        slot.paths.clear();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        let path = word.text.trim_end_matches('/');
        let inside = !path.is_empty()
            && !path.starts_with('/')
            && path.split('/').all(|p| !matches!(p, "" | "." | ".."));
        if inside && !path.contains(':') {
            slot.paths.push(path.to_owned());
        } else {
            reading.ignore(
                a,
                word.offset,
                &format!("{:?} is not a plain relative path", word.text),
            );
        }
    }
}

pub(super) fn mode(slot: &mut u32, default: u32, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    reading.value(a, slot, default, "octal permission bits", parse_mode);
}

fn signal(slot: &mut Signal, default: Signal, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    reading.value(a, slot, default, "a signal", Signal::parse);
}

fn memory(slot: &mut Option<Limit>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    reading.option(
        a,
        slot,
        "a size such as 512M, a share such as 10%, or infinity",
        parse_memory_limit,
    );
}

/// `stream` is the name of the descriptor that `fd` alone means.
fn standard(
    slot: &mut Output,
    default: Output,
    stream: &str,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) {
    reading.value(
        a,
        slot,
        default,
        "one of inherit null journal tty kmsg socket fd file:PATH append:PATH truncate:PATH fd:NAME",
        |text| match text {
            "fd" => Some(Output::Descriptor(stream.to_owned())),
            _ => output(text),
        },
    );
}

fn working_directory(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.service.working_directory = WorkingDirectory::default();
        return;
    }
    let Some(text) = reading.text(a, Severity::Error) else {
        return;
    };
    let (optional, path) = text
        .strip_prefix('-')
        .map_or((false, &*text), |path| (true, path));
    if path == "~" {
        draft.service.working_directory = WorkingDirectory {
            path: None,
            home: true,
            optional,
        };
    } else if path.starts_with('/') {
        draft.service.working_directory = WorkingDirectory {
            path: Some(path.to_owned()),
            home: false,
            optional,
        };
    } else {
        reading.refuse(a, 0, &format!("{path:?} is not an absolute path"));
    }
}

fn slice(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    reading.option(a, &mut draft.service.slice, "the name of a slice", |text| {
        UnitName::parse(text)
            .ok()
            .filter(|name| name.kind() == UnitType::Slice && !name.stem().contains('@'))
    });
}

fn input_text(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    let Some(mut line) = crate::words::unescape(&text) else {
        return reading.ignore(a, 0, "an escape in the text is not known");
    };
    line.push(b'\n');
    add_input(draft, (!text.is_empty()).then_some(line));
}

fn input_data(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let text = &*a.value.text;
    match crate::value::base64(text) {
        Some(data) => add_input(draft, (!text.is_empty()).then_some(data)),
        None => reading.ignore(a, 0, "this is not Base64"),
    }
}

/// Adds to what a service reads; `None` begins anew.
fn add_input(draft: &mut Draft, more: Option<Vec<u8>>) {
    if !matches!(draft.service.standard_input, Input::Data(_)) {
        draft.service.standard_input = Input::Data(Vec::new());
    }
    if let Input::Data(data) = &mut draft.service.standard_input {
        match more {
            Some(more) => data.extend(more),
            None => data.clear(),
        }
    }
}
