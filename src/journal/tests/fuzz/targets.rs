//! What a fuzzer calls: hostile bytes go in, and whatever holds of every input is checked.
//!
//! `fuzz/` wraps these for libFuzzer, the tests beside this file drive them with generated input.

use std::path::Path;

use orlop_journal::entry::{Entry, Id};
use orlop_journal::format::{self, HEADER_BYTES, Header, RECORD_HEAD_BYTES};
use orlop_journal::lines::{Lines, split_priority};
use orlop_journal::reader::{Item, Record, read_segment};
use orlop_journal::render::{FORMATS, Style, render};
use orlop_journal::{kmsg, when};

/// A segment as it lies on the disk, and the same bytes with checksums that are right.
pub(crate) fn segment(bytes: &[u8]) {
    read(bytes);
    read(&repaired(bytes));
}

/// Reads and shows all of a segment: what is read comes in order, and is read again when it is written anew.
fn read(bytes: &[u8]) {
    let Ok(items) = read_segment(bytes, Path::new("x.journal")) else {
        return;
    };
    let mut last = None;
    for item in items {
        match item {
            Item::Entry(record) => {
                assert!(last < Some(record.entry.sequence), "numbers rise");
                last = Some(record.entry.sequence);
                written_anew(&record.entry);
                shown(&record);
            }
            Item::Damage(damage) => assert!(!damage.to_string().is_empty()),
        }
    }
}

fn written_anew(entry: &Entry) {
    let mark = [1, 2, 3, 4];
    let mut bytes = Vec::new();
    format::encode_record(entry, mark, &mut bytes);
    let format::Probe::Record(length) = format::probe(&bytes, mark) else {
        panic!("what is written is no record: {entry:?}")
    };
    let again = format::decode_record(&bytes[..length]);
    let mut twice = Vec::new();
    format::encode_record(&again, mark, &mut twice);
    // Once it has been cut to what a record holds, it stays as it is.
    assert_eq!(bytes, twice);
}

fn shown(record: &Record) {
    for (_, format) in FORMATS {
        let style = Style {
            format,
            hostname: "deck".to_owned(),
            colour: true,
            escape: true,
            fields: Vec::new(),
        };
        let mut out = Vec::new();
        render(record, &style, &mut out);
        assert_eq!(out.last(), Some(&b'\n'));
    }
}

/// The bytes with a good header and good checksums, so that a fuzzer gets at what lies behind them.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    const MARK: [u8; 4] = *b"mark";
    let header = Header {
        mark: MARK,
        journal: Id([1; 16]),
        machine: Id([2; 16]),
        boot: Id([3; 16]),
        first_sequence: 1,
        realtime_us: 1,
        monotonic_us: 1,
    };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(bytes);
    let mut at = HEADER_BYTES;
    while let Some(head) = out.get(at..at + RECORD_HEAD_BYTES) {
        let rest = out.len() - at;
        // Two bytes of the input say how long the record is: most lengths of four would be too long.
        let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
        let length = length.clamp(RECORD_HEAD_BYTES, rest);
        out[at..at + 4].copy_from_slice(&MARK);
        out[at + 4..at + 8].copy_from_slice(&(length as u32).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out[at..at + 8]);
        crc.update(&out[at + 12..at + length]);
        out[at + 8..at + 12].copy_from_slice(&crc.finalize().to_le_bytes());
        at += format::padded(length);
    }
    out
}

/// What units and the kernel say, and what a user asks for.
pub(crate) fn text(bytes: &[u8]) {
    if let Some(entry) = kmsg::parse(bytes) {
        assert!(entry.priority <= 7);
        written_anew(&entry);
    }
    let (priority, rest) = split_priority(bytes);
    assert!(priority.is_none_or(|priority| priority <= 7) && bytes.ends_with(rest));
    let mut lines = Lines::default();
    let mut given = 0;
    for chunk in bytes.chunks(7) {
        lines.push(chunk, |line| given += line.text.len());
    }
    lines.finish(|line| given += line.text.len());
    assert!(given <= bytes.len());
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = when::parse(text, 1_795_237_801_000_000);
        let _ = when::parse_span(text);
        let _ = orlop_journal::filter::parse_priorities(text);
        let _ = serde_json::from_str::<orlop_journal::control::Request>(text);
    }
}
