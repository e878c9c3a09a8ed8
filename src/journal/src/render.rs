//! Entries as text: the formats of `journalctl -o`. Pure.

use serde_json::Value;

use crate::entry::Transport;
use crate::reader::Record;
use orlop_unit::Civil;

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `Nov 21 05:10:01 HOST web[17]: text`.
    Short,
    /// The same with microseconds.
    ShortPrecise,
    /// `Sat 2026-11-21 05:10:01 UTC HOST web[17]: text`.
    ShortFull,
    /// `2026-11-21T05:10:01+0000 HOST web[17]: text`.
    ShortIso,
    /// The same with microseconds.
    ShortIsoPrecise,
    /// `[    5.123456] HOST web[17]: text`.
    ShortMonotonic,
    /// `1795237801.123456 HOST web[17]: text`.
    ShortUnix,
    /// Like `ShortFull` with the unit's name in place of the identifier.
    WithUnit,
    /// The time, and all fields below it, indented.
    Verbose,
    /// One JSON object a line.
    Json,
    /// JSON objects over several lines.
    JsonPretty,
    /// systemd's journal export format.
    Export,
    /// The message alone.
    Cat,
}

/// All forms with their names.
pub const FORMATS: [(&str, Format); 13] = [
    ("short", Format::Short),
    ("short-precise", Format::ShortPrecise),
    ("short-full", Format::ShortFull),
    ("short-iso", Format::ShortIso),
    ("short-iso-precise", Format::ShortIsoPrecise),
    ("short-monotonic", Format::ShortMonotonic),
    ("short-unix", Format::ShortUnix),
    ("with-unit", Format::WithUnit),
    ("verbose", Format::Verbose),
    ("json", Format::Json),
    ("json-pretty", Format::JsonPretty),
    ("export", Format::Export),
    ("cat", Format::Cat),
];

impl Format {
    /// The form of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        FORMATS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, format)| *format)
    }

    /// Whether it is for programs: nothing but entries may be between them.
    #[must_use]
    pub fn is_for_programs(self) -> bool {
        matches!(
            self,
            Self::Json | Self::JsonPretty | Self::Export | Self::Cat
        )
    }
}

/// How to print.
#[derive(Clone, Debug)]
pub struct Style {
    /// The form.
    pub format: Format,
    /// The machine's name; left out of the lines when empty.
    pub hostname: String,
    /// Whether urgent lines are coloured.
    pub colour: bool,
    /// Whether control characters of the message are shown as `\xNN`, for a terminal's sake; in the short forms tabs
    /// are then eight spaces, and colours are taken away.
    pub escape: bool,
    /// The only fields to show in the forms that have their names; all when empty.
    pub fields: Vec<String>,
}

/// Fields that are shown whichever are asked for (`--output-fields` in journalctl(1)).
const ALWAYS_SHOWN: [&str; 4] = [
    "__CURSOR",
    "__REALTIME_TIMESTAMP",
    "__MONOTONIC_TIMESTAMP",
    "_BOOT_ID",
];

/// Short names of the months.
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Appends the entry with its newline to `out`.
pub fn render(record: &Record, style: &Style, out: &mut Vec<u8>) {
    let entry = &record.entry;
    let us = entry.realtime_us;
    let civil = Civil::from_us(us);
    let (day, micros) = (civil.day, civil.micros());
    let (hour, minute, second) = (civil.hour(), civil.minute(), civil.second());
    let month = usize::try_from(civil.month.saturating_sub(1)).unwrap_or(0);
    let month = MONTHS.get(month).copied().unwrap_or_default();
    let iso = civil.date_and_time().replace(' ', "T");
    let full = || civil.to_string();
    let time = match style.format {
        Format::Json => return json(record, style, false, out),
        Format::JsonPretty => return json(record, style, true, out),
        Format::Export => return export(record, style, out),
        Format::Verbose => return verbose(record, style, out),
        Format::Cat => {
            push_message(&entry.message, style.escape, false, out);
            out.push(b'\n');
            return;
        }
        Format::Short => format!("{month} {day:02} {hour:02}:{minute:02}:{second:02}"),
        Format::ShortPrecise => {
            format!("{month} {day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}")
        }
        Format::ShortFull | Format::WithUnit => full(),
        Format::ShortIso => format!("{iso}+0000"),
        Format::ShortIsoPrecise => format!("{iso}.{micros:06}+0000"),
        Format::ShortMonotonic => {
            let us = entry.monotonic_us;
            format!("[{:>5}.{:06}]", us / 1_000_000, us % 1_000_000)
        }
        Format::ShortUnix => format!("{}.{:06}", us / 1_000_000, us % 1_000_000),
    };
    out.extend_from_slice(time.as_bytes());
    if !style.hostname.is_empty() {
        out.push(b' ');
        out.extend_from_slice(style.hostname.as_bytes());
    }
    out.push(b' ');
    let identifier = entry.identifier.as_deref().unwrap_or("unknown");
    let name = match &entry.unit {
        Some(unit) if style.format == Format::WithUnit => unit,
        _ => identifier,
    };
    push_message(name.as_bytes(), true, false, out);
    if let Some(pid) = entry.pid {
        out.extend_from_slice(format!("[{pid}]").as_bytes());
    }
    out.extend_from_slice(b": ");
    let colour = match entry.priority {
        _ if !style.colour => "",
        0..=3 => "\x1b[1;31m",
        4 => "\x1b[1;33m",
        5 => "\x1b[1m",
        7 => "\x1b[2m",
        _ => "",
    };
    out.extend_from_slice(colour.as_bytes());
    push_message(&entry.message, style.escape, true, out);
    if !colour.is_empty() {
        out.extend_from_slice(b"\x1b[0m");
    }
    out.push(b'\n');
}

/// Invalid UTF-8 and control characters other than the tab could do anything to a terminal. In a line with something
/// before it, a tab has no place to go to, and a colour would be that of the wrong thing.
fn push_message(message: &[u8], escape: bool, in_line: bool, out: &mut Vec<u8>) {
    if !escape {
        return out.extend_from_slice(message);
    }
    let plain = in_line.then(|| without_colours(message));
    for chunk in plain.as_deref().unwrap_or(message).utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\t' && in_line {
                out.extend_from_slice(b"        ");
            } else if c.is_control() && c != '\t' {
                let mut bytes = [0; 4];
                push_hex(c.encode_utf8(&mut bytes).as_bytes(), out);
            } else {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        push_hex(chunk.invalid(), out);
    }
}

/// The text less its control sequences, `ESC [` parameters letter (ECMA-48 section 5.4).
fn without_colours(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let sequence = rest.strip_prefix(b"\x1b[").and_then(|rest| {
            let end = rest.iter().position(|byte| !matches!(byte, 0x20..=0x3f))?;
            matches!(rest[end], 0x40..=0x7e).then(|| &rest[end + 1..])
        });
        match sequence {
            Some(after) => rest = after,
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
    }
}

/// Where the entry stands, in the form of systemd's cursors.
fn cursor(record: &Record) -> String {
    let entry = &record.entry;
    format!(
        "s={};i={:x};b={};m={:x};t={:x}",
        record.journal, entry.sequence, record.boot, entry.monotonic_us, entry.realtime_us
    )
}

/// The entry's fields under the names that systemd's journal has for them (systemd.journal-fields(7)).
fn fields(record: &Record, style: &Style) -> Vec<(&'static str, Vec<u8>)> {
    let entry = &record.entry;
    let hostname = &style.hostname;
    let cursor = cursor(record);
    let transport = match entry.transport {
        Transport::Other(number) => number.to_string(),
        known => known.name().to_owned(),
    };
    let texts = [
        ("__CURSOR", Some(cursor)),
        ("__REALTIME_TIMESTAMP", Some(entry.realtime_us.to_string())),
        (
            "__MONOTONIC_TIMESTAMP",
            Some(entry.monotonic_us.to_string()),
        ),
        ("__SEQNUM", Some(entry.sequence.to_string())),
        ("__SEQNUM_ID", Some(record.journal.to_string())),
        ("_BOOT_ID", Some(record.boot.to_string())),
        (
            "_MACHINE_ID",
            (!record.machine.is_zero()).then(|| record.machine.to_string()),
        ),
        (
            "_HOSTNAME",
            (!hostname.is_empty()).then(|| hostname.clone()),
        ),
        ("_TRANSPORT", Some(transport)),
        ("PRIORITY", Some(entry.priority.to_string())),
        ("SYSLOG_IDENTIFIER", entry.identifier.clone()),
        ("_SYSTEMD_UNIT", entry.unit.clone()),
        (
            "_SYSTEMD_INVOCATION_ID",
            entry.invocation.map(|id| id.to_string()),
        ),
        ("_PID", entry.pid.map(|pid| pid.to_string())),
        ("_LINE_BREAK", line_break(record).map(str::to_owned)),
        (
            "_KERNEL_SEQUENCE",
            entry.kernel_sequence.map(|number| number.to_string()),
        ),
        ("N_DROPPED", entry.dropped.map(|count| count.to_string())),
    ];
    let mut fields: Vec<(&str, Vec<u8>)> = texts
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?.into_bytes())))
        .collect();
    fields.push(("MESSAGE", entry.message.clone()));
    if !style.fields.is_empty() {
        fields.retain(|(name, _)| {
            ALWAYS_SHOWN.contains(name) || style.fields.iter().any(|wanted| wanted == name)
        });
    }
    fields
}

fn line_break(record: &Record) -> Option<&'static str> {
    if record.entry.continues {
        Some("line-max")
    } else {
        record.entry.unterminated.then_some("eof")
    }
}

/// Whether a value is text that a terminal may see, by the rule of systemd's journal.
fn is_printable(value: &[u8]) -> bool {
    std::str::from_utf8(value).is_ok_and(|text| text.chars().all(|c| c == '\t' || !c.is_control()))
}

/// A value with bytes that are no printable text is an array of them, as in systemd's.
fn json(record: &Record, style: &Style, pretty: bool, out: &mut Vec<u8>) {
    let (open, between, colon, close) = if pretty {
        ("{\n\t", ",\n\t", " : ", "\n}\n")
    } else {
        ("{", ",", ":", "}\n")
    };
    let mut before = open;
    for (name, value) in fields(record, style) {
        let value = match String::from_utf8(value) {
            Ok(text) if is_printable(text.as_bytes()) => Value::from(text),
            Ok(text) => Value::from(text.into_bytes()),
            Err(err) => Value::from(err.into_bytes()),
        };
        out.extend_from_slice(format!("{before}\"{name}\"{colon}{value}").as_bytes());
        before = between;
    }
    out.extend_from_slice(close.as_bytes());
}

fn verbose(record: &Record, style: &Style, out: &mut Vec<u8>) {
    let us = record.entry.realtime_us;
    let civil = Civil::from_us(us);
    let (weekday, time) = (civil.weekday(), civil.date_and_time());
    let (micros, cursor) = (us % 1_000_000, cursor(record));
    out.extend_from_slice(format!("{weekday} {time}.{micros:06} UTC [{cursor}]\n").as_bytes());
    for (name, value) in fields(record, style) {
        // What begins so stands in the line above.
        if name.starts_with("__") {
            continue;
        }
        out.extend_from_slice(format!("    {name}=").as_bytes());
        push_message(&value, style.escape, false, out);
        out.push(b'\n');
    }
}

/// `NAME=value` lines, an empty line after each entry; a value with a control character has its length before it, as 64
/// bits little-endian (systemd's "Journal Export Format").
fn export(record: &Record, style: &Style, out: &mut Vec<u8>) {
    for (name, value) in fields(record, style) {
        out.extend_from_slice(name.as_bytes());
        if is_printable(&value) {
            out.push(b'=');
        } else {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        }
        out.extend_from_slice(&value);
        out.push(b'\n');
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, Id};
    use proptest::prelude::*;

    fn record(message: &[u8]) -> Record {
        let mut entry = Entry::new(6, Transport::Stdout, message.to_vec());
        entry.sequence = 7;
        entry.realtime_us = 1_795_237_801_000_042;
        entry.monotonic_us = 5_123_456;
        entry.unit = Some("web.service".to_owned());
        entry.identifier = Some("web".to_owned());
        entry.pid = Some(17);
        Record {
            journal: Id([1; 16]),
            machine: Id([2; 16]),
            boot: Id([3; 16]),
            entry,
        }
    }

    fn text(message: &[u8], format: Format) -> String {
        let style = Style {
            format,
            hostname: "deck".to_owned(),
            colour: false,
            escape: true,
            fields: Vec::new(),
        };
        let mut out = Vec::new();
        render(&record(message), &style, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_short_form_is_as_systemd_prints_it() {
        for (format, expected) in [
            (Format::Short, "Nov 21 05:10:01 deck web[17]: hi\n"),
            (
                Format::ShortPrecise,
                "Nov 21 05:10:01.000042 deck web[17]: hi\n",
            ),
            (
                Format::ShortFull,
                "Sat 2026-11-21 05:10:01 UTC deck web[17]: hi\n",
            ),
            (
                Format::ShortIso,
                "2026-11-21T05:10:01+0000 deck web[17]: hi\n",
            ),
            (
                Format::ShortIsoPrecise,
                "2026-11-21T05:10:01.000042+0000 deck web[17]: hi\n",
            ),
            (Format::ShortMonotonic, "[    5.123456] deck web[17]: hi\n"),
            (Format::ShortUnix, "1795237801.000042 deck web[17]: hi\n"),
            (
                Format::WithUnit,
                "Sat 2026-11-21 05:10:01 UTC deck web.service[17]: hi\n",
            ),
            (Format::Cat, "hi\n"),
        ] {
            assert_eq!(text(b"hi", format), expected);
        }
    }

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        assert_eq!(
            text(b"\x1b[2J\tsee\0\xff\xc2\x9b", Format::Cat),
            "\\x1b[2J\tsee\\x00\\xff\\xc2\\x9b\n"
        );
    }

    #[test]
    fn in_a_line_tabs_are_spaces_and_colours_are_gone() {
        assert_eq!(
            text(b"\x1b[1;31mbad\x1b[0m\tworse\x1b[", Format::Short),
            "Nov 21 05:10:01 deck web[17]: bad        worse\\x1b[\n"
        );
    }

    #[test]
    fn only_the_wanted_fields_are_shown_and_those_that_place_the_entry() {
        let style = Style {
            format: Format::JsonPretty,
            hostname: "deck".to_owned(),
            colour: false,
            escape: true,
            fields: vec!["MESSAGE".to_owned(), "NONE".to_owned()],
        };
        let mut out = Vec::new();
        render(&record(b"hi \"you\""), &style, &mut out);
        let (journal, boot) = (Id([1; 16]), Id([3; 16]));
        let expected = format!(
            "{{\n\t\"__CURSOR\" : \"s={journal};i=7;b={boot};m=4e2d80;t=660c25f6a7c6a\",\n\
             \t\"__REALTIME_TIMESTAMP\" : \"1795237801000042\",\n\
             \t\"__MONOTONIC_TIMESTAMP\" : \"5123456\",\n\
             \t\"_BOOT_ID\" : \"{boot}\",\n\t\"MESSAGE\" : \"hi \\\"you\\\"\"\n}}\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn json_has_systemds_names_and_bytes_that_are_no_text() {
        let value: Value = serde_json::from_str(&text(b"\xff\x01", Format::Json)).unwrap();
        assert_eq!(value["MESSAGE"], serde_json::json!([255, 1]));
        assert_eq!(value["_SYSTEMD_UNIT"], "web.service");
        assert_eq!(value["PRIORITY"], "6");
        assert_eq!(value["__REALTIME_TIMESTAMP"], "1795237801000042");
        assert_eq!(value["_BOOT_ID"], "03030303030303030303030303030303");
    }

    #[test]
    fn export_frames_what_is_no_line() {
        let style = Style {
            format: Format::Export,
            hostname: String::new(),
            colour: false,
            escape: false,
            fields: Vec::new(),
        };
        let mut out = Vec::new();
        render(&record(b"a\x01b"), &style, &mut out);
        let end = b"MESSAGE\n\x03\0\0\0\0\0\0\0a\x01b\n\n";
        assert!(out.ends_with(end), "{}", String::from_utf8_lossy(&out));
        assert!(String::from_utf8_lossy(&out).contains("\n_SYSTEMD_UNIT=web.service\n"));
    }

    proptest! {
        #[test]
        fn every_entry_has_a_form(message in proptest::collection::vec(any::<u8>(), 0..40), us in any::<u64>()) {
            let mut record = record(&message);
            record.entry.realtime_us = us;
            for (_, format) in FORMATS {
                let style = Style { format, hostname: "h".to_owned(), colour: true, escape: true, fields: Vec::new() };
                let mut out = Vec::new();
                render(&record, &style, &mut out);
                prop_assert!(out.ends_with(b"\n"));
            }
        }
    }
}
