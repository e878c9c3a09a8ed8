//! The role `orlop journal` as a process of its own, with this program as PID 1.
//!
//! The role blocks signals for its thread, so it must be the only one: this program has no test harness of threads, and
//! starts itself with the word `role`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_journal::entry::Transport;
use orlop_journal::filter::Filter;
use orlop_journal::follow::Follower;
use orlop_journal::limit::Limit;
use orlop_journal::reader::{Direction, Item, Journal, Record};
use orlop_journal::{control, writer};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use serde_json::json;
use tempfile::TempDir;

/// No answer within this is a failure, not slowness.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

const TESTS: &[(&str, fn())] = &[
    (
        "a_line_is_filed_with_all_that_is_known_of_it",
        a_line_is_filed_with_all_that_is_known_of_it,
    ),
    (
        "the_end_of_a_stream_is_told_when_all_of_it_is_written",
        the_end_of_a_stream_is_told_when_all_of_it_is_written,
    ),
    (
        "a_killed_journal_loses_only_what_it_was_reading",
        a_killed_journal_loses_only_what_it_was_reading,
    ),
    (
        "a_stopped_journal_reads_the_pipes_empty_first",
        a_stopped_journal_reads_the_pipes_empty_first,
    ),
    ("a_full_disk_blocks_no_unit", a_full_disk_blocks_no_unit),
    (
        "a_wrong_packet_is_noted_and_nothing_else",
        a_wrong_packet_is_noted_and_nothing_else,
    ),
    (
        "a_stream_without_newlines_is_kept_in_parts",
        a_stream_without_newlines_is_kept_in_parts,
    ),
    (
        "the_kernels_log_is_kept_once_over_a_restart",
        the_kernels_log_is_kept_once_over_a_restart,
    ),
    (
        "what_a_unit_logs_above_its_limit_is_counted_and_told",
        what_a_unit_logs_above_its_limit_is_counted_and_told,
    ),
    (
        "without_its_socket_it_says_what_is_missing",
        without_its_socket_it_says_what_is_missing,
    ),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "role") {
        return role(&words[1..]);
    }
    let patterns: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, test) in TESTS {
        if words.iter().any(|word| word == "--list") {
            println!("{name}: test");
        } else if patterns.is_empty()
            || patterns
                .iter()
                .any(|pattern| name.contains(pattern.as_str()))
        {
            test();
            println!("test {name} ... ok");
        }
    }
}

/// What the child does: `role DIRECTORY KERNEL_LOG`.
fn role(words: &[String]) {
    let settings = writer::Settings {
        directory: PathBuf::from(&words[0]),
        budget_bytes: None,
        kernel_log: words.get(1).map(PathBuf::from),
        // Tests log more than a unit may.
        limit: Limit {
            interval_us: 0,
            burst: 0,
        },
        remark: None,
    };
    if let Err(err) = writer::run(&settings) {
        eprintln!("{}", writer::chain(&err));
        std::process::exit(1);
    }
}

/// A running journal and PID 1's end of its socket.
struct Running {
    child: Child,
    socket: OwnedFd,
}

impl Running {
    /// Starts the role and waits until it is ready.
    fn start(directory: &Path, kernel_log: Option<&str>) -> Self {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::sockopt::set_socket_timeout(
            &ours,
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_TIMEOUT),
        )
        .unwrap();
        let runtime = TempDir::new().unwrap();
        let notify_path = runtime.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path).unwrap();
        notify.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        let child = role_command(directory, kernel_log)
            .env("NOTIFY_SOCKET", &notify_path)
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let mut state = [0; 64];
        let length = notify.recv(&mut state).expect("the journal gets ready");
        assert_eq!(&state[..length], b"READY=1");
        Self {
            child,
            socket: ours,
        }
    }

    fn send(&self, packet: &[u8], descriptor: Option<&OwnedFd>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let flags = SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(packet)], &mut ancillary, flags).unwrap();
    }

    fn add(&self, id: u64, unit: &str, pipe: &OwnedFd) {
        let stream = json!({"stream": {
            "id": id, "unit": unit, "invocation": "0123456789abcdef0123456789abcdef", "pid": 123, "identifier": "web",
        }});
        self.send(stream.to_string().as_bytes(), Some(pipe));
    }

    /// Waits for the next stream that is told to be closed.
    fn closed(&self) -> u64 {
        let mut packet = [0; 256];
        let (_, length) = rustix::net::recv(&self.socket, &mut packet, RecvFlags::empty())
            .expect("the journal tells of a stream's end");
        let reply: control::Reply = serde_json::from_slice(&packet[..length]).unwrap();
        reply.closed
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

/// This program as the role, with its standard input as descriptor 3.
fn role_command(directory: &Path, kernel_log: Option<&str>) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .arg("role")
        .arg(directory)
        .args(kernel_log);
    command
}

fn pipe() -> (OwnedFd, fs::File) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (reader, fs::File::from(writer))
}

fn read_all(directory: &Path) -> Vec<Record> {
    let journal = Journal::open(directory).unwrap();
    journal
        .entries(&Filter::default(), Direction::Forward)
        .map(|item| match item.unwrap() {
            Item::Entry(record) => record,
            Item::Damage(damage) => panic!("{damage}"),
        })
        .collect()
}

fn texts(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8_lossy(&record.entry.message).into_owned())
        .collect()
}

fn a_line_is_filed_with_all_that_is_known_of_it() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let (reader, mut writer) = pipe();
    journal.add(7, "web@1.service", &reader);
    writer
        .write_all(b"<3>failed\n<debug>no priority\nlast")
        .unwrap();
    drop(writer);
    assert_eq!(journal.closed(), 7);
    let records = read_all(directory.path());
    assert_eq!(texts(&records), ["failed", "<debug>no priority", "last"]);
    let entry = &records[0].entry;
    assert_eq!(entry.unit.as_deref(), Some("web@1.service"));
    assert_eq!(
        entry.invocation.unwrap().to_string(),
        "0123456789abcdef0123456789abcdef"
    );
    assert_eq!(
        (entry.pid, entry.identifier.as_deref()),
        (Some(123), Some("web"))
    );
    assert_eq!((entry.priority, entry.transport), (3, Transport::Stdout));
    assert_eq!(records[1].entry.priority, 6);
    assert!(!records[1].entry.unterminated && records[2].entry.unterminated);
    assert_eq!(records[0].boot, orlop_journal::segments::boot_id());
    let now = orlop_journal::clock::Moment::now();
    assert!(
        entry.realtime_us <= now.realtime_us && now.realtime_us - entry.realtime_us < 60_000_000
    );
    assert!(
        entry.monotonic_us <= now.monotonic_us
            && now.monotonic_us - entry.monotonic_us < 60_000_000
    );
    journal.stop();
}

fn the_end_of_a_stream_is_told_when_all_of_it_is_written() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let mut expected = BTreeMap::new();
    for id in 0..50 {
        let (reader, mut writer) = pipe();
        journal.add(id, &format!("unit{id}.service"), &reader);
        for number in 0..20 {
            writeln!(writer, "{id} says {number}").unwrap();
        }
        expected.insert(id, 20);
    }
    for _ in 0..50 {
        let id = journal.closed();
        let unit = format!("unit{id}.service");
        let filter = Filter {
            units: vec![unit],
            ..Filter::default()
        };
        let reader = Journal::open(directory.path()).unwrap();
        let count = reader.entries(&filter, Direction::Forward).count();
        assert_eq!(expected.remove(&id), Some(count), "stream {id}");
    }
    journal.stop();
}

fn a_killed_journal_loses_only_what_it_was_reading() {
    const LINES: usize = 60_000;
    const KILLS: usize = 4;
    let directory = TempDir::new().unwrap();
    let (reader, writer) = pipe();
    let unit = std::thread::spawn(move || {
        // Small writes, as programs make them.
        let mut writer = std::io::BufWriter::with_capacity(300, writer);
        for number in 0..LINES {
            writeln!(writer, "line {number:08} of {LINES}").unwrap();
        }
    });
    let mut journal = Running::start(directory.path(), None);
    let mut follower = Follower::new(directory.path(), Filter::default()).unwrap();
    for round in 1..=KILLS {
        journal.add(1, "busy.service", &reader);
        // In the middle of its work: some of what it stores has been seen.
        for _ in 0..LINES / 10 {
            let item = follower.next(None).unwrap();
            assert!(
                matches!(item, Some(Item::Entry(_))),
                "round {round}: {item:?}"
            );
        }
        journal.kill();
        journal = Running::start(directory.path(), None);
    }
    journal.add(1, "busy.service", &reader);
    assert_eq!(journal.closed(), 1);
    unit.join().unwrap();
    journal.stop();
    let mut next = 0;
    let mut broken = 0;
    let mut lost = 0;
    for text in texts(&read_all(directory.path())) {
        let number = text
            .strip_prefix("line ")
            .and_then(|rest| rest.strip_suffix(&format!(" of {LINES}")))
            .filter(|number| number.len() == 8)
            .and_then(|number| number.parse::<usize>().ok());
        match number {
            Some(number) => {
                assert!(number >= next, "{number} after {next}");
                lost += number - next;
                next = number + 1;
            }
            // The line of which the killed one had read the first part.
            None => broken += 1,
        }
    }
    assert_eq!(next, LINES);
    assert!(broken <= KILLS, "{broken} broken lines");
    let pipe_lines = 64 * 1024 / "line 00000000 of 60000\n".len() + 2;
    assert!(lost <= KILLS * pipe_lines, "{lost} lines lost");
}

fn a_stopped_journal_reads_the_pipes_empty_first() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let pipes: Vec<_> = (0..5).map(|_| pipe()).collect();
    for (id, (reader, _)) in pipes.iter().enumerate() {
        journal.add(id as u64, "web.service", reader);
    }
    for (_, writer) in &pipes {
        for number in 0..1000 {
            writeln!(&*writer, "number {number}").unwrap();
        }
        write!(&*writer, "and a last word").unwrap();
    }
    journal.stop();
    let texts = texts(&read_all(directory.path()));
    assert_eq!(texts.len(), 5 * 1001);
    assert_eq!(
        texts
            .iter()
            .filter(|text| *text == "and a last word")
            .count(),
        5
    );
    // What comes while none is there waits in the pipe for the next one.
    writeln!(&pipes[0].1, "later").unwrap();
    let journal = Running::start(directory.path(), None);
    journal.add(0, "web.service", &pipes[0].0);
    drop(pipes);
    assert_eq!(journal.closed(), 0);
    assert_eq!(
        self::texts(&read_all(directory.path())).last().unwrap(),
        "later"
    );
    journal.stop();
}

fn a_full_disk_blocks_no_unit() {
    let disk = TempDir::new().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    match rustix::mount::mount("tmpfs", disk.path(), "tmpfs", flags, Some(c"size=256k")) {
        Ok(()) => {}
        Err(rustix::io::Errno::PERM) => {
            eprintln!("not run: it needs the right to mount");
            return;
        }
        Err(err) => panic!("mount a tmpfs: {err}"),
    }
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![1; 128 << 10]).unwrap();
    let directory = disk.path().join("journal");
    let journal = Running::start(&directory, None);
    let (reader, mut writer) = pipe();
    journal.add(1, "loud.service", &reader);
    // Many times what the disk and the pipe hold.
    const LINES: u64 = 20_000;
    for number in 0..LINES {
        writeln!(writer, "{number} {}", "x".repeat(90)).unwrap();
    }
    fs::remove_file(&filler).unwrap();
    let mut follower = Follower::new(&directory, Filter::default()).unwrap();
    let mut dropped = 0;
    let mut kept = 0;
    while kept + dropped < LINES {
        let Some(Item::Entry(record)) = follower.next(None).unwrap() else {
            panic!("no entry")
        };
        match record.entry.dropped {
            Some(count) => {
                dropped += count;
                assert_eq!(record.entry.unit.as_deref(), Some("orlop-journal.service"));
            }
            None => kept += 1,
        }
    }
    assert_eq!(kept + dropped, LINES);
    assert!(dropped > LINES / 2, "{dropped} dropped");
    drop(writer);
    assert_eq!(journal.closed(), 1);
    journal.stop();
    rustix::mount::unmount(disk.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn a_wrong_packet_is_noted_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let (reader, mut writer) = pipe();
    journal.send(b"{\"stream\":", None);
    journal.send(b"{\"stream\":{\"id\":1,\"unit\":\"a.service\"}}", None);
    journal.send(b"{\"later\":true}", None);
    journal.send(&[b' '; 32 * 1024], Some(&reader));
    journal.send(
        b"{\"stream\":{\"id\":2,\"unit\":\"b.service\",\"colour\":\"red\"}}",
        Some(&reader),
    );
    writeln!(writer, "hello").unwrap();
    drop(writer);
    assert_eq!(journal.closed(), 2);
    let records = read_all(directory.path());
    let texts = texts(&records);
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert!(texts[0].contains("cannot be read"), "{texts:?}");
    assert!(
        texts[1].contains("stream 1 of a.service came with 0 descriptors"),
        "{texts:?}"
    );
    assert!(texts[2].contains("longer than"), "{texts:?}");
    assert_eq!(records[3].entry.identifier.as_deref(), Some("b"));
    journal.stop();
}

fn a_stream_without_newlines_is_kept_in_parts() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let (reader, mut writer) = pipe();
    journal.add(1, "dump.service", &reader);
    let bytes: Vec<u8> = (0..1_000_000u32)
        .map(|n| (n % 251) as u8)
        .filter(|byte| *byte != b'\n')
        .collect();
    writer.write_all(&bytes).unwrap();
    drop(writer);
    assert_eq!(journal.closed(), 1);
    let records = read_all(directory.path());
    let read: Vec<u8> = records
        .iter()
        .flat_map(|record| record.entry.message.clone())
        .collect();
    assert!(read == bytes, "{} of {} bytes", read.len(), bytes.len());
    let (last, parts) = records.split_last().unwrap();
    assert!(parts.iter().all(|record| record.entry.continues));
    assert!(last.entry.unterminated);
    journal.stop();
}

fn the_kernels_log_is_kept_once_over_a_restart() {
    if fs::File::open("/dev/kmsg").is_err() {
        eprintln!("not run: /dev/kmsg cannot be read");
        return;
    }
    let directory = TempDir::new().unwrap();
    Running::start(directory.path(), Some("/dev/kmsg")).stop();
    let first = read_all(directory.path()).len();
    Running::start(directory.path(), Some("/dev/kmsg")).stop();
    Running::start(directory.path(), Some("/dev/kmsg")).kill();
    Running::start(directory.path(), Some("/dev/kmsg")).stop();
    let records = read_all(directory.path());
    assert!(first > 0 && records.len() >= first);
    let numbers: Vec<u64> = records
        .iter()
        .filter_map(|record| record.entry.kernel_sequence)
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
}

fn what_a_unit_logs_above_its_limit_is_counted_and_told() {
    let directory = TempDir::new().unwrap();
    let journal = Running::start(directory.path(), None);
    let (reader, mut writer) = pipe();
    let stream = json!({"stream": {
        "id": 1, "unit": "loud.service", "priority": 5, "priority_max": 5,
        "rate_limit_interval_us": 3_600_000_000_u64, "rate_limit_burst": 10,
    }});
    journal.send(stream.to_string().as_bytes(), Some(&reader));
    let (other, mut quiet) = pipe();
    journal.add(2, "quiet.service", &other);
    for number in 0..100 {
        writeln!(writer, "line {number}\n<7>not wanted").unwrap();
        writeln!(quiet, "heard {number}").unwrap();
    }
    drop((writer, quiet));
    assert_eq!(journal.closed() + journal.closed(), 3);
    // The interval is longer than the test: the rest is told at the journal's end.
    journal.stop();
    let records = read_all(directory.path());
    let of = |unit: &str| -> Vec<String> {
        let of_unit = records
            .iter()
            .filter(|r| r.entry.unit.as_deref() == Some(unit));
        texts(&of_unit.cloned().collect::<Vec<_>>())
    };
    let mut expected: Vec<String> = (0..10).map(|number| format!("line {number}")).collect();
    expected.push("Suppressed 90 messages from loud.service".to_owned());
    assert_eq!(of("loud.service"), expected);
    assert_eq!(of("quiet.service").len(), 100);
    let told = records.iter().find(|r| r.entry.dropped.is_some()).unwrap();
    assert_eq!((told.entry.dropped, told.entry.priority), (Some(90), 4));
    assert!(
        records
            .iter()
            .all(|r| r.entry.message != b"line 0" || r.entry.priority == 5)
    );
}

fn without_its_socket_it_says_what_is_missing() {
    let directory = TempDir::new().unwrap();
    for (input, expected) in [
        (
            Stdio::null(),
            "descriptor 3 is not a sequenced-packet socket",
        ),
        (
            Stdio::piped(),
            "descriptor 3 is not a sequenced-packet socket",
        ),
    ] {
        let output = role_command(directory.path(), None)
            .stdin(input)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(expected), "{told}");
        assert!(told.contains("started by PID 1"), "{told}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
