//! What confines a service (`systemd.exec(5)`). A value that cannot be read is an error: a service that is less confined
//! than its author wrote must not run.

use super::{Directive, Draft, Reading, set};
use crate::confinement::{
    AddressFamilies, Architecture, BindPath, Capabilities, ConfinedPath, Confinement, DeviceAllow,
    DevicePolicy, LoadCredential, Namespaces, Propagation, ProtectHome, ProtectProc, ProtectSystem,
    SetCredential, TemporaryFileSystem,
};
use crate::problem::Severity;
use crate::syntax::Assignment;
use crate::syscall::{self, Answer, SystemCallFilter};
use crate::value::parse_bool;
use crate::words::Word;

impl Reading<'_> {
    /// Sets `slot` from the value; the empty value sets the default, any that cannot be read is refused.
    fn must<T>(
        &mut self,
        a: &Assignment<'_>,
        slot: &mut T,
        default: T,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) {
        if a.value.text.is_empty() {
            *slot = default;
            return;
        }
        let Some(text) = self.text(a, Severity::Error) else {
            return;
        };
        match parse(&text) {
            Some(value) => *slot = value,
            None => self.refuse(a, 0, &format!("{text:?} is not {expected}")),
        }
    }

    fn flag(&mut self, a: &Assignment<'_>, slot: &mut bool) {
        self.must(a, slot, false, "a boolean", parse_bool);
    }

    /// The words of a list, the offset of each being right for messages; refused as a whole when one is broken.
    fn must_words(&mut self, a: &Assignment<'_>) -> Vec<Word> {
        self.words(a, Severity::Error).unwrap_or_default()
    }
}

/// A boolean, or one of further words.
fn bool_or<T>(text: &str, no: T, yes: T, words: &[(&str, T)]) -> Option<T>
where
    T: Copy,
{
    match parse_bool(text) {
        Some(true) => Some(yes),
        Some(false) => Some(no),
        None => super::service::word(text, words),
    }
}

/// An absolute path without `..`, double and trailing slashes gone.
pub(super) fn plain_path(text: &str) -> Option<String> {
    if !text.starts_with('/') || text.split('/').any(|part| part == "..") || text.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    Some(format!("/{}", parts.join("/")))
}

fn optional_path(text: &str) -> Option<ConfinedPath> {
    let (optional, rest) = text.strip_prefix('-').map_or((false, text), |r| (true, r));
    let (in_root, rest) = rest.strip_prefix('+').map_or((false, rest), |r| (true, r));
    Some(ConfinedPath {
        path: plain_path(rest)?,
        optional,
        in_root,
    })
}

fn list<T>(
    list: &mut Vec<T>,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) {
    if a.value.text.is_empty() {
        list.clear();
    }
    for word in reading.must_words(a) {
        match parse(&word.text) {
            Some(item) => list.push(item),
            None => reading.refuse(
                a,
                word.offset,
                &format!("{:?} is not {expected}", word.text),
            ),
        }
    }
}

fn paths(slot: &mut Vec<ConfinedPath>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    list(
        slot,
        a,
        reading,
        "an absolute path without ..",
        optional_path,
    );
}

/// `SOURCE[:TARGET[:rbind|norbind]]`
fn bind(text: &str, read_only: bool) -> Option<BindPath> {
    let (optional, rest) = text.strip_prefix('-').map_or((false, text), |r| (true, r));
    let mut parts = rest.split(':');
    let source = plain_path(parts.next()?)?;
    let target = parts.next().map_or(Some(source.clone()), plain_path)?;
    let recursive = match parts.next() {
        None | Some("rbind" | "") => true,
        Some("norbind") => false,
        Some(_) => return None,
    };
    parts.next().is_none().then_some(BindPath {
        source,
        target,
        optional,
        recursive,
        read_only,
    })
}

fn binds(draft: &mut Draft, read_only: bool, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.bind_paths;
    // systemd keeps one list for both directives, and either resets it.
    list(
        slot,
        a,
        reading,
        "SOURCE[:TARGET[:rbind|norbind]]",
        |text| bind(text, read_only),
    );
}

/// `~` in front turns a list around.
fn inverted(text: &str) -> (bool, &str) {
    text.strip_prefix('~')
        .map_or((false, text), |rest| (true, rest.trim_start()))
}

/// Gathers the flags that a list of names stands for; the rest of the line is refused at the first unknown one.
fn flags<T>(
    text: &str,
    offset: usize,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
    one: impl Fn(&str) -> Option<T>,
) -> Option<Vec<T>> {
    let mut out = Vec::new();
    for (at, name) in super::plain_words(text) {
        let at = at.saturating_add(offset);
        let name = reading.expand(a, name, at, Severity::Error)?;
        match one(&name) {
            Some(flag) => out.push(flag),
            None => {
                reading.refuse(a, at, &format!("{name:?} is not known"));
                return None;
            }
        }
    }
    Some(out)
}

/// The two capability lists: several lines add up, inverted ones take away, and one on the initial value replaces it.
fn merge(current: u64, initial: u64, mask: u64, sum: u64, invert: bool) -> u64 {
    let merged = match (sum == 0 || current == initial, invert) {
        (true, false) => sum,
        (true, true) => !sum,
        (false, false) => current | sum,
        (false, true) => current & !sum,
    };
    merged & mask
}

fn capabilities(
    current: u64,
    initial: u64,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) -> Option<u64> {
    let (invert, names) = inverted(&a.value.text);
    let offset = a.value.text.len().saturating_sub(names.len());
    let list = flags(names, offset, a, reading, Capabilities::one)?;
    let sum = list.iter().fold(0, |sum, one| sum | one.0);
    let all = Capabilities::ALL.0;
    Some(merge(current, initial, all, sum, invert))
}

fn bounding_set(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.capability_bounding_set;
    let all = Capabilities::ALL;
    if let Some(set) = capabilities(slot.unwrap_or(all).0, all.0, a, reading) {
        *slot = Some(Capabilities(set)).filter(|set| *set != all);
    }
}

fn ambient(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.ambient_capabilities;
    if let Some(set) = capabilities(slot.0, 0, a, reading) {
        *slot = Capabilities(set);
    }
}

fn namespaces(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.restrict_namespaces;
    match parse_bool(&a.value.text) {
        Some(true) => *slot = Some(Namespaces(0)),
        Some(false) => *slot = None,
        None if a.value.text.is_empty() => *slot = None,
        None => {
            let (invert, names) = inverted(&a.value.text);
            let offset = a.value.text.len().saturating_sub(names.len());
            let Some(list) = flags(names, offset, a, reading, Namespaces::one) else {
                return;
            };
            let all = u64::from(Namespaces::ALL.0);
            let sum = list.iter().fold(0, |sum, one| sum | u64::from(one.0));
            let current = u64::from(slot.unwrap_or(Namespaces::ALL).0);
            let merged = merge(current, all, all, sum, invert);
            let merged = Namespaces(u32::try_from(merged).unwrap_or(0));
            *slot = Some(merged).filter(|set| *set != Namespaces::ALL);
        }
    }
}

fn address_families(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.restrict_address_families;
    match &*a.value.text {
        "" => *slot = None,
        "none" => {
            *slot = Some(AddressFamilies {
                allow_list: true,
                ..AddressFamilies::default()
            });
        }
        text => {
            let (invert, names) = inverted(text);
            let offset = text.len().saturating_sub(names.len());
            let one = |name: &str| {
                let mut rows = AddressFamilies::NAMES.iter();
                rows.find(|(n, _)| *n == name).map(|(_, number)| *number)
            };
            let Some(list) = flags(names, offset, a, reading, one) else {
                return;
            };
            // The first line decides what the list means, later ones add to it or take away.
            let filter = slot.get_or_insert_with(|| AddressFamilies {
                allow_list: !invert,
                ..AddressFamilies::default()
            });
            for family in list {
                if filter.allow_list != invert {
                    filter.families.insert(family);
                } else {
                    filter.families.remove(&family);
                }
            }
        }
    }
}

fn answer(text: &str) -> Option<Answer> {
    match text {
        "kill" => Some(Answer::Kill),
        _ => crate::errno::parse(text).map(Answer::Error),
    }
}

fn call_filter(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.system_call_filter;
    let text = &*a.value.text;
    if text.is_empty() {
        *slot = None;
        return;
    }
    let (invert, names) = inverted(text);
    let offset = text.len().saturating_sub(names.len());
    // The first line decides what the list means, later ones add to it or take away.
    let filter = slot.get_or_insert_with(|| SystemCallFilter {
        allow_list: !invert,
        calls: syscall::resolve("@default")
            .filter(|_| !invert)
            .into_iter()
            .flatten()
            .map(|number| (number, None))
            .collect(),
    });
    for (at, word) in super::plain_words(names) {
        let at = at.saturating_add(offset);
        let Some(word) = reading.expand(a, word, at, Severity::Error) else {
            return;
        };
        let (name, own) = match word.split_once(':') {
            Some((name, text)) => match answer(text) {
                Some(answer) => (name, Some(answer)),
                None => {
                    reading.refuse(a, at, &format!("{text:?} is neither an error nor kill"));
                    return;
                }
            },
            None => (&*word, None),
        };
        let Some(numbers) = syscall::resolve(name) else {
            let message = format!("{name:?} is no system call, and no set of them");
            if invert || name.starts_with('@') {
                reading.refuse(a, at, &message);
            } else {
                // A call that is not allowed after all confines more, not less.
                reading.ignore(a, at, &message);
            }
            continue;
        };
        for number in numbers {
            if filter.allow_list != invert {
                filter.calls.insert(number, own);
            } else if filter.allow_list && own.is_some() {
                // `~name:EPERM` in a list of allowed calls keeps the entry, with its answer.
                filter.calls.insert(number, own);
            } else {
                filter.calls.remove(&number);
            }
        }
    }
}

fn architectures(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.system_call_architectures;
    if a.value.text.is_empty() {
        *slot = None;
        return;
    }
    const OTHERS: [&str; 20] = [
        "alpha",
        "arc",
        "arm",
        "arm64",
        "ia64",
        "loongarch64",
        "m68k",
        "mips",
        "mips-le",
        "mips64",
        "mips64-le",
        "parisc",
        "parisc64",
        "ppc",
        "ppc64",
        "ppc64-le",
        "riscv64",
        "s390",
        "s390x",
        "sparc",
    ];
    let one = |name: &str| match name {
        "native" | "x86-64" => Some(Architecture::Native),
        "x86" => Some(Architecture::X86),
        "x32" => Some(Architecture::X32),
        _ if OTHERS.contains(&name) => Some(Architecture::Other),
        _ => None,
    };
    if let Some(found) = flags(&a.value.text, 0, a, reading, one) {
        slot.get_or_insert_default().extend(found);
    }
}

fn device_allow(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.device_allow;
    if a.value.text.is_empty() {
        slot.clear();
        return;
    }
    let words = reading.must_words(a);
    let (device, access) = match words.as_slice() {
        [device] => (device, "rwm"),
        [device, access] => (device, access.text.as_str()),
        _ => return reading.refuse(a, 0, "expected is a device and the letters of r, w and m"),
    };
    let name = &device.text;
    let class = name.starts_with("char-") || name.starts_with("block-");
    if !(class || name.starts_with("/dev/")) || !access.chars().all(|c| "rwm".contains(c)) {
        let message =
            "expected is a path in /dev, char-NAME or block-NAME, then letters of r, w and m";
        return reading.refuse(a, device.offset, message);
    }
    slot.push(DeviceAllow {
        device: name.clone(),
        read: access.contains('r'),
        write: access.contains('w'),
        make: access.contains('m'),
    });
}

/// Whether a text can name a file in the credentials' directory.
fn is_credential(id: &str) -> bool {
    !id.is_empty() && id.len() <= 255 && !matches!(id, "." | "..") && !id.contains(['/', '\0', ':'])
}

fn load_credential(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.load_credential;
    if a.value.text.is_empty() {
        slot.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Error) else {
        return;
    };
    let (id, source) = text.split_once(':').unwrap_or((&text, &text));
    let source_is_good = plain_path(source).is_some() || is_credential(source);
    if !is_credential(id) || !source_is_good {
        return reading.refuse(a, 0, "expected is NAME, or NAME:PATH");
    }
    slot.retain(|credential| credential.id != id);
    slot.push(LoadCredential {
        id: id.to_owned(),
        source: source.to_owned(),
    });
}

fn set_credential(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let slot = &mut draft.service.confinement.set_credential;
    if a.value.text.is_empty() {
        slot.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Error) else {
        return;
    };
    let Some((id, data)) = text.split_once(':').filter(|(id, _)| is_credential(id)) else {
        return reading.refuse(a, 0, "expected is NAME:TEXT");
    };
    let Some(data) = crate::words::unescape(data) else {
        return reading.refuse(a, 0, "an escape in the text is not known");
    };
    slot.retain(|credential| credential.id != id);
    slot.push(SetCredential {
        id: id.to_owned(),
        data,
    });
}

fn temporary(text: &str) -> Option<TemporaryFileSystem> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    Some(TemporaryFileSystem {
        path: plain_path(path)?,
        options: options.to_owned(),
    })
}

/// A row for a boolean of [`Confinement`].
macro_rules! flag {
    ($name:literal, $field:ident) => {
        set($name, |d, a, r| {
            r.flag(a, &mut d.service.confinement.$field)
        })
    };
}

/// A row for a list of paths of [`Confinement`].
macro_rules! paths {
    ($name:literal, $field:ident) => {
        set($name, |d, a, r| {
            paths(&mut d.service.confinement.$field, a, r)
        })
    };
}

fn confinement(draft: &mut Draft) -> &mut Confinement {
    &mut draft.service.confinement
}

#[rustfmt::skip]
pub(super) static CONFINEMENT: &[Directive] = &[
    set("AmbientCapabilities", ambient),
    set("BindPaths", |d, a, r| binds(d, false, a, r)),
    set("BindReadOnlyPaths", |d, a, r| binds(d, true, a, r)),
    set("CapabilityBoundingSet", bounding_set),
    set("DeviceAllow", device_allow),
    set("DevicePolicy", |d, a, r| {
        let words = [("auto", DevicePolicy::Auto), ("closed", DevicePolicy::Closed), ("strict", DevicePolicy::Strict)];
        r.must(a, &mut confinement(d).device_policy, DevicePolicy::Auto, "one of auto closed strict",
            |t| super::service::word(t, &words));
    }),
    flag!("DynamicUser", dynamic_user),
    paths!("ExecPaths", exec_paths),
    paths!("InaccessibleDirectories", inaccessible_paths),
    paths!("InaccessiblePaths", inaccessible_paths),
    set("LoadCredential", load_credential),
    flag!("LockPersonality", lock_personality),
    flag!("MemoryDenyWriteExecute", memory_deny_write_execute),
    set("MountAPIVFS", |d, a, r| {
        r.must(a, &mut confinement(d).mount_api_vfs, None, "a boolean", |t| parse_bool(t).map(Some));
    }),
    set("MountFlags", |d, a, r| {
        let words = [("shared", Propagation::Shared), ("slave", Propagation::Slave), ("private", Propagation::Private)];
        r.must(a, &mut confinement(d).mount_flags, None, "one of shared slave private",
            |t| super::service::word(t, &words).map(Some));
    }),
    set("NetworkNamespacePath", |d, a, r| {
        r.must(a, &mut confinement(d).network_namespace_path, None, "an absolute path", |t| plain_path(t).map(Some));
    }),
    paths!("NoExecPaths", no_exec_paths),
    flag!("NoNewPrivileges", no_new_privileges),
    flag!("PrivateDevices", private_devices),
    flag!("PrivateIPC", private_ipc),
    flag!("PrivateMounts", private_mounts),
    flag!("PrivateNetwork", private_network),
    flag!("PrivateTmp", private_tmp),
    flag!("PrivateUsers", private_users),
    set("ProcSubset", |d, a, r| {
        r.must(a, &mut confinement(d).proc_subset_pid, false, "one of all pid",
            |t| super::service::word(t, &[("all", false), ("pid", true)]));
    }),
    flag!("ProtectClock", protect_clock),
    flag!("ProtectControlGroups", protect_control_groups),
    set("ProtectHome", |d, a, r| {
        let words = [("read-only", ProtectHome::ReadOnly), ("tmpfs", ProtectHome::Tmpfs)];
        r.must(a, &mut confinement(d).protect_home, ProtectHome::No, "a boolean, read-only or tmpfs",
            |t| bool_or(t, ProtectHome::No, ProtectHome::Yes, &words));
    }),
    flag!("ProtectHostname", protect_hostname),
    flag!("ProtectKernelLogs", protect_kernel_logs),
    flag!("ProtectKernelModules", protect_kernel_modules),
    flag!("ProtectKernelTunables", protect_kernel_tunables),
    set("ProtectProc", |d, a, r| {
        let words = [
            ("default", ProtectProc::Default), ("noaccess", ProtectProc::NoAccess),
            ("invisible", ProtectProc::Invisible), ("ptraceable", ProtectProc::Ptraceable),
        ];
        r.must(a, &mut confinement(d).protect_proc, ProtectProc::Default,
            "one of default noaccess invisible ptraceable", |t| super::service::word(t, &words));
    }),
    set("ProtectSystem", |d, a, r| {
        let words = [("full", ProtectSystem::Full), ("strict", ProtectSystem::Strict)];
        r.must(a, &mut confinement(d).protect_system, ProtectSystem::No, "a boolean, full or strict",
            |t| bool_or(t, ProtectSystem::No, ProtectSystem::Yes, &words));
    }),
    paths!("ReadOnlyDirectories", read_only_paths),
    paths!("ReadOnlyPaths", read_only_paths),
    paths!("ReadWriteDirectories", read_write_paths),
    paths!("ReadWritePaths", read_write_paths),
    set("RestrictAddressFamilies", address_families),
    set("RestrictNamespaces", namespaces),
    flag!("RestrictRealtime", restrict_realtime),
    flag!("RestrictSUIDSGID", restrict_suid_sgid),
    set("RootDirectory", |d, a, r| {
        r.must(a, &mut confinement(d).root_directory, None, "an absolute path without ..", |t| plain_path(t).map(Some));
    }),
    set("SetCredential", set_credential),
    set("SystemCallArchitectures", architectures),
    set("SystemCallErrorNumber", |d, a, r| {
        r.must(a, &mut confinement(d).system_call_answer, None, "the name of an error, or kill", |t| answer(t).map(Some));
    }),
    set("SystemCallFilter", call_filter),
    set("TemporaryFileSystem", |d, a, r| {
        list(&mut confinement(d).temporary_file_systems, a, r, "PATH[:OPTIONS]", temporary);
    }),
];
