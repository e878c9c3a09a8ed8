//! Records of `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`). Pure.

use crate::entry::{Entry, Transport};

/// The longest record that the kernel gives out (`PRINTK_MESSAGE_MAX`, `kernel/printk/internal.h`: 2048, earlier 8192).
pub const RECORD_MAX_BYTES: usize = 8192;

/// The longest name of a unit.
const UNIT_NAME_MAX_BYTES: usize = 255;

/// The endings of unit names.
const UNIT_TYPES: [&str; 11] = [
    "service",
    "target",
    "mount",
    "timer",
    "socket",
    "path",
    "slice",
    "scope",
    "swap",
    "automount",
    "device",
];

/// The entry in one record as it was read, without its realtime; `monotonic_us` is the record's own time, which the
/// kernel takes from `CLOCK_MONOTONIC`. `None` if it is none.
#[must_use]
pub fn parse(record: &[u8]) -> Option<Entry> {
    let semicolon = record.iter().position(|byte| *byte == b';')?;
    let head = std::str::from_utf8(&record[..semicolon]).ok()?;
    let mut numbers = head.split(',');
    let prefix: u32 = numbers.next()?.parse().ok()?;
    let sequence: u64 = numbers.next()?.parse().ok()?;
    let time_us: u64 = numbers.next()?.parse().ok()?;
    // Lines that follow begin with a space and hold the device's keys.
    let text = record[semicolon + 1..]
        .split(|byte| *byte == b'\n')
        .next()?;
    let text = unescape(text);
    let from_kernel = prefix >> 3 == 0;
    let mut entry = if from_kernel {
        kernel_line(text)
    } else {
        user_line(text)
    };
    entry.priority = (prefix & 7) as u8;
    entry.kernel_sequence = Some(sequence);
    entry.monotonic_us = time_us;
    Some(entry)
}

fn kernel_line(text: Vec<u8>) -> Entry {
    let mut entry = Entry::new(0, Transport::Kernel, text);
    entry.identifier = Some("kernel".to_owned());
    entry
}

/// A line that a process wrote to `/dev/kmsg`: `IDENT[PID]: text`, ours with the name of a unit before the text.
fn user_line(text: Vec<u8>) -> Entry {
    let Some((identifier, pid, rest)) = split_tag(&text) else {
        return Entry::new(0, Transport::Kernel, text);
    };
    let identifier = identifier.to_owned();
    let ours = identifier == "orlop" && pid.is_some();
    let transport = if ours {
        Transport::Orlop
    } else {
        Transport::Kernel
    };
    let unit = if ours { leading_unit(rest) } else { None };
    let mut entry = Entry::new(0, transport, rest.to_vec());
    entry.identifier = Some(identifier);
    entry.pid = pid;
    entry.unit = unit;
    entry
}

/// Splits `IDENT[PID]: text` or `IDENT: text`.
fn split_tag(text: &[u8]) -> Option<(&str, Option<u32>, &[u8])> {
    let colon = text.windows(2).take(80).position(|pair| pair == b": ")?;
    let rest = &text[colon + 2..];
    let tag = std::str::from_utf8(&text[..colon]).ok()?;
    if tag.is_empty() || tag.contains(char::is_whitespace) {
        return None;
    }
    let Some((identifier, pid)) = tag.split_once('[') else {
        return Some((tag, None, rest));
    };
    let pid = pid.strip_suffix(']')?.parse().ok()?;
    (!identifier.is_empty()).then_some((identifier, Some(pid), rest))
}

/// The unit that `NAME.TYPE: text` is about.
fn leading_unit(text: &[u8]) -> Option<String> {
    let colon = text
        .windows(2)
        .take(UNIT_NAME_MAX_BYTES + 1)
        .position(|pair| pair == b": ")?;
    let name = std::str::from_utf8(&text[..colon]).ok()?;
    let (stem, kind) = name.rsplit_once('.')?;
    let valid = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    (!stem.is_empty() && stem.chars().all(valid) && UNIT_TYPES.contains(&kind))
        .then(|| name.to_owned())
}

/// Undoes the kernel's `\xNN` for what is not printable.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = rest
            .strip_prefix(b"\\x")
            .and_then(|hex| hex.get(..2))
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                rest = &rest[4..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_of_the_kernel_has_its_number_time_and_priority() {
        let entry =
            parse(b"6,339,5140900,-,caller=T1;NET: Registered\\x09PF_INET\n SUBSYSTEM=net\n")
                .unwrap();
        assert_eq!(entry.priority, 6);
        assert_eq!(entry.kernel_sequence, Some(339));
        assert_eq!(entry.monotonic_us, 5_140_900);
        assert_eq!(entry.transport, Transport::Kernel);
        assert_eq!(entry.identifier.as_deref(), Some("kernel"));
        assert_eq!(entry.message, b"NET: Registered\tPF_INET");
    }

    #[test]
    fn a_line_of_ours_is_filed_under_its_unit() {
        let entry = parse(b"12,7,1,-;orlop[1]: web@a-b.service: failed: exit code 1").unwrap();
        assert_eq!(entry.transport, Transport::Orlop);
        assert_eq!(entry.unit.as_deref(), Some("web@a-b.service"));
        assert_eq!(
            (entry.identifier.as_deref(), entry.pid),
            (Some("orlop"), Some(1))
        );
        assert_eq!(entry.priority, 4);
        assert_eq!(entry.message, b"web@a-b.service: failed: exit code 1");
    }

    #[test]
    fn other_lines_are_not_taken_for_a_units() {
        for (line, unit) in [
            ("14,1,1,-;orlop[1]: mounting /var: ext4", None),
            ("14,1,1,-;orlop[1]: x.conf: no such key", None),
            ("14,1,1,-;orlop[1]: .service: odd", None),
            ("14,1,1,-;orlop[1]: a b.service: odd", None),
            ("14,1,1,-;sshd[4]: web.service: forged", None),
            (
                "6,1,1,-;orlop[1]: web.service: the kernel never says this",
                None,
            ),
            (
                "14,1,1,-;orlop[1]: multi-user.target: reached",
                Some("multi-user.target"),
            ),
        ] {
            assert_eq!(
                parse(line.as_bytes()).unwrap().unit.as_deref(),
                unit,
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_text_of_ours_is_taken(text in "(orlop(\\[[0-9]{0,12}\\]?)?:? ?)?[a-z.:@ ]{0,300}") {
            let record = format!("14,1,2,-;{text}");
            prop_assert!(parse(record.as_bytes()).is_some());
        }
    }
}
