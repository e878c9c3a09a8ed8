//! Ours beside Debian's `journalctl`: entries go to it in the export format, which `systemd-journal-remote` makes a
//! journal of, and come out as text of every form.
//!
//! `ORLOP_JOURNAL_REMOTE` names that program where the package `systemd-journal-remote` is not installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_journal::entry::{Entry, Id, Transport};
use orlop_journal::reader::Record;
use orlop_journal::render::{FORMATS, Format, Style, render};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const RECORDS: usize = 300;

fn remote() -> Option<PathBuf> {
    let named = std::env::var_os("ORLOP_JOURNAL_REMOTE").map(PathBuf::from);
    let usual = PathBuf::from("/lib/systemd/systemd-journal-remote");
    named.or_else(|| usual.exists().then_some(usual))
}

/// Priority, whether it is the kernel's, text; unit, identifier, process; realtime and monotonic time.
type Generated = (
    (u8, bool, String),
    Option<String>,
    Option<String>,
    Option<u32>,
    (u64, u64),
);

fn records() -> Vec<Record> {
    let text = prop_oneof![
        4 => "[ -~]{0,60}",
        2 => "(\t|[a-zé日本 ]|\\[[0-9;]{1,5}m){0,20}",
        1 => "(\u{1b}\\[[0-9;]{0,5}m|[a-z]){0,12}",
    ];
    let entry = (
        (0..8u8, any::<bool>(), text),
        prop::option::of("[a-z][a-z0-9@-]{0,12}\\.service"),
        prop::option::of("[a-z][a-z0-9]{0,8}"),
        prop::option::of(1..4_000_000u32),
        (0..3_000_000_000_000_000u64, 0..100_000_000_000u64),
    );
    let entries = prop::collection::vec(entry, RECORDS);
    let mut runner = TestRunner::deterministic();
    let entries = entries.new_tree(&mut runner).unwrap().current();
    let record = |(number, entry): (usize, Generated)| {
        let ((priority, is_kernel, text), unit, identifier, pid, (realtime_us, monotonic_us)) =
            entry;
        let transport = if is_kernel {
            Transport::Kernel
        } else {
            Transport::Stdout
        };
        let mut entry = Entry::new(priority, transport, text.into_bytes());
        entry.sequence = number as u64 + 1;
        entry.realtime_us = 1_000_000_000_000_000 + realtime_us;
        entry.monotonic_us = monotonic_us;
        entry.unit = unit;
        entry.identifier = identifier;
        entry.pid = pid;
        Record {
            journal: Id([1; 16]),
            machine: Id([2; 16]),
            boot: Id([3; 16]),
            entry,
        }
    };
    let mut records: Vec<Record> = entries.into_iter().enumerate().map(record).collect();
    records.sort_by_key(|record| record.entry.realtime_us);
    records
}

fn ours(records: &[Record], format: Format) -> Vec<u8> {
    let style = Style {
        format,
        hostname: "deck".to_owned(),
        colour: false,
        escape: format != Format::Cat,
        fields: Vec::new(),
    };
    let mut out = Vec::new();
    for record in records {
        render(record, &style, &mut out);
    }
    out
}

fn theirs(directory: &Path, format: &str) -> Vec<u8> {
    let output = Command::new("journalctl")
        .args(["--quiet", "--no-pager", "--directory"])
        .arg(directory)
        .args(["--output", format])
        .envs([("TZ", "UTC"), ("LC_ALL", "C.UTF-8")])
        .stderr(Stdio::inherit())
        .output()
        .expect("run journalctl");
    assert!(output.status.success());
    output.stdout
}

/// The fields of every entry in the export format, sorted, without those that the other journal makes itself.
fn exported(text: &[u8]) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(text);
    let entries = text.trim_end().split("\n\n").map(|entry| {
        let own = ["__CURSOR=", "__SEQNUM=", "__SEQNUM_ID=", "_MACHINE_ID="];
        let mut lines: Vec<String> = entry
            .lines()
            .filter(|line| !own.iter().any(|name| line.starts_with(name)))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    });
    entries.collect()
}

fn objects(text: &[u8]) -> Vec<serde_json::Value> {
    let objects = serde_json::Deserializer::from_slice(text).into_iter();
    let mut objects: Vec<serde_json::Value> = objects.map(|object| object.unwrap()).collect();
    for object in &mut objects {
        let object = object.as_object_mut().unwrap();
        for own in ["__CURSOR", "__SEQNUM", "__SEQNUM_ID", "_MACHINE_ID"] {
            object.remove(own);
        }
    }
    objects
}

#[test]
fn every_form_is_as_debians_journalctl_prints_it() {
    let Some(remote) = remote() else {
        eprintln!("not run: systemd-journal-remote is not there");
        return;
    };
    let records = records();
    let directory = tempfile::TempDir::new().unwrap();
    let export = directory.path().join("entries.export");
    std::fs::write(&export, ours(&records, Format::Export)).unwrap();
    let made = Command::new(remote)
        .arg("--output")
        .arg(directory.path().join("remote.journal"))
        .arg(&export)
        .output()
        .expect("run systemd-journal-remote");
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    assert!(
        told.contains(&format!("Finishing after writing {RECORDS} entries")),
        "{told}"
    );
    for (name, format) in FORMATS {
        let (ours, theirs) = (ours(&records, format), theirs(directory.path(), name));
        match format {
            Format::Export => assert_eq!(exported(&ours), exported(&theirs)),
            Format::Json | Format::JsonPretty => assert_eq!(objects(&ours), objects(&theirs)),
            // Its fields come in the order of writing, and with the cursor that it makes.
            Format::Verbose => {}
            _ => {
                let (ours, theirs) = (
                    String::from_utf8_lossy(&ours),
                    String::from_utf8_lossy(&theirs),
                );
                for (ours, theirs) in ours.lines().zip(theirs.lines()) {
                    assert_eq!(ours, theirs, "{name}");
                }
                assert_eq!(ours.lines().count(), theirs.lines().count(), "{name}");
            }
        }
    }
}
