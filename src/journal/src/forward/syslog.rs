//! Records as syslog messages (RFC 5424). Pure.

use crate::entry::{Entry, Transport};
use crate::reader::Record;
use orlop_unit::Civil;

/// Messages for a datagram are cut to this; RFC 5426 section 3.2 lets a receiver stop at less.
pub(super) const DATAGRAM_MAX_BYTES: usize = 8192;

/// Facilities (RFC 5424 section 6.2.1).
const KERNEL: u8 = 0;
const DAEMON: u8 = 3;

/// The name of our structured data. The number is the one that RFC 5612 gives for documentation: Orlop has none.
const DATA_ID: &str = "orlop@32473";

/// One message, without framing: what RFC 5424 section 6 calls SYSLOG-MSG.
pub(super) fn message(record: &Record, hostname: &str) -> Vec<u8> {
    let entry = &record.entry;
    let facility = match entry.transport {
        Transport::Kernel => KERNEL,
        _ => DAEMON,
    };
    let priority = facility * 8 + entry.priority;
    let time = timestamp(entry.realtime_us);
    let host = printable(hostname, 255);
    let name = printable(entry.identifier.as_deref().unwrap_or_default(), 48);
    let process = entry.pid.map_or("-".to_owned(), |pid| pid.to_string());
    let data = data(record, entry);
    let mut out = format!("<{priority}>1 {time} {host} {name} {process} - {data} ").into_bytes();
    out.extend_from_slice(&entry.message);
    out
}

/// The message with its length in octets before it (RFC 6587 section 3.4.1).
pub(super) fn counted(message: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{} ", message.len()).as_bytes());
    out.extend_from_slice(message);
}

fn timestamp(us: u64) -> String {
    let civil = Civil::from_us(us);
    if civil.year > 9999 {
        return "-".to_owned();
    }
    let time = civil.date_and_time().replace(' ', "T");
    format!("{time}.{:06}Z", civil.micros())
}

/// A header field: printable ASCII without spaces, `-` when there is nothing.
fn printable(text: &str, length_max: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .take(length_max)
        .collect();
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn data(record: &Record, entry: &Entry) -> String {
    let invocation = entry.invocation.map(|id| id.to_string());
    let values = [
        ("unit", entry.unit.clone()),
        ("invocation", invocation),
        ("boot", Some(record.boot.to_string())),
        ("machine", Some(record.machine.to_string())),
        ("sequence", Some(entry.sequence.to_string())),
    ];
    let mut data = format!("[{DATA_ID}");
    for (name, value) in values {
        let Some(value) = value else { continue };
        data.push_str(&format!(" {name}=\""));
        for c in value.chars() {
            // Section 6.3.3.
            if matches!(c, '"' | '\\' | ']') {
                data.push('\\');
            }
            data.push(c);
        }
        data.push('"');
    }
    data.push(']');
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Id;
    use proptest::prelude::*;

    fn record(message: &[u8]) -> Record {
        let mut entry = Entry::new(3, Transport::Stdout, message.to_vec());
        entry.sequence = 7;
        entry.realtime_us = 1_795_237_801_000_042;
        entry.unit = Some("we\"b].service".to_owned());
        entry.identifier = Some("web server".to_owned());
        entry.pid = Some(17);
        Record {
            journal: Id([1; 16]),
            machine: Id([2; 16]),
            boot: Id([3; 16]),
            entry,
        }
    }

    #[test]
    fn a_message_has_all_fields_of_the_header() {
        let text = String::from_utf8(message(&record(b"it's \xc3\xa9"), "deck")).unwrap();
        let (boot, machine) = ("03".repeat(16), "02".repeat(16));
        assert_eq!(
            text,
            format!(
                "<27>1 2026-11-21T05:10:01.000042Z deck web?server 17 - [orlop@32473 unit=\"we\\\"b\\].service\" \
                 boot=\"{boot}\" machine=\"{machine}\" sequence=\"7\"] it's é"
            )
        );
        let mut kernel = record(b"");
        kernel.entry.transport = Transport::Kernel;
        kernel.entry.pid = None;
        kernel.entry.identifier = None;
        let text = String::from_utf8(message(&kernel, "")).unwrap();
        assert!(
            text.starts_with("<3>1 2026-11-21T05:10:01.000042Z - - - - ["),
            "{text}"
        );
    }

    #[test]
    fn the_length_counts_octets() {
        let mut out = Vec::new();
        counted("é\n".as_bytes(), &mut out);
        counted(b"", &mut out);
        assert_eq!(out, "3 é\n0 ".as_bytes());
    }

    proptest! {
        #[test]
        fn headers_are_printable_whatever_is_in_them(
            host in "\\PC{0,300}", identifier in prop::option::of("\\PC{0,80}"), us in any::<u64>(),
            text in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut record = record(&text);
            record.entry.identifier = identifier;
            record.entry.realtime_us = us;
            let bytes = message(&record, &host);
            prop_assert!(bytes.ends_with(&text));
            let words: Vec<&[u8]> = bytes.splitn(8, |byte| *byte == b' ').collect();
            prop_assert_eq!(words.len(), 8);
            for word in &words[..6] {
                prop_assert!(!word.is_empty() && word.iter().all(u8::is_ascii_graphic));
            }
            prop_assert_eq!(words[6], b"[orlop@32473");
        }
    }
}
