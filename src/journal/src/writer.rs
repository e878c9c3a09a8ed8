//! The role `orlop journal`: one thread that reads the output of all units and the kernel's log, and stores it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orlop_sys::kmsg::Priority;
use rustix::event::{Timespec, epoll};
use rustix::fs::OFlags;

use crate::clock::{self, Moment};
use crate::control::{self, Control, Received, StreamInfo};
use crate::entry::{Entry, Id, PRIORITY_MAX, Transport};
use crate::kmsg;
use crate::limit::{Dropped, Limit, Limits};
use crate::lines::{Line, Lines, split_priority};
use crate::segments;
use crate::store::{self, Options, Store};

/// The descriptor on which PID 1 gives the journal its socket.
pub const CONTROL_DESCRIPTOR: i32 = 3;

/// What `StandardOutput=journal+console` means.
const CONSOLE: &str = "/dev/console";

const CONTROL: u64 = 0;
const SIGNALS: u64 = 1;
const KERNEL: u64 = 2;
const FIRST_STREAM: u64 = 16;

/// How much is read from one stream before the others have their turn; a pipe holds as much.
const READ_BYTES: usize = 64 * 1024;
/// How many messages of the kernel are read before the streams have their turn.
const KERNEL_MESSAGES_A_TURN: usize = 64;
/// All lines that wait for their newline together; above it they are written in parts.
const PARTIAL_LINES_MAX_BYTES: usize = 512 * 1024;
/// How much of each stream is read before the exit, so that a unit that writes on and on does not keep us.
const DRAIN_MAX_BYTES: usize = 1 << 20;
const EVENTS_A_TURN: usize = 32;

/// What the role is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The journal's directory.
    pub directory: PathBuf,
    /// The most that it takes; by the filesystem's size when not given.
    pub budget_bytes: Option<u64>,
    /// Where the kernel's log is read; not at all when not given.
    pub kernel_log: Option<PathBuf>,
    /// How much each unit may log that has no limit of its own.
    pub limit: Limit,
    /// What was wrong before the role began, for the log.
    pub remark: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            directory: PathBuf::from(segments::DIRECTORY),
            budget_bytes: None,
            kernel_log: Some(PathBuf::from("/dev/kmsg")),
            limit: Limit::default(),
            remark: None,
        }
    }
}

/// What keeps the role from running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not started by PID 1.
    #[error("`orlop journal` is started by PID 1, which gives it a socket")]
    Control(#[source] control::Error),
    /// PID 1 can no longer be heard.
    #[error("lost PID 1")]
    Lost(#[source] control::Error),
    /// Another journal writes to the directory.
    #[error(transparent)]
    Store(store::Error),
    /// Signals cannot be received.
    #[error("set up signals")]
    Signals(#[source] nix::Error),
    /// Events cannot be waited for.
    #[error("set up epoll")]
    Epoll(#[source] io::Error),
    /// Events cannot be waited for any more.
    #[error("wait for events")]
    Wait(#[source] io::Error),
}

/// One unit's output.
#[derive(Debug)]
struct Stream {
    id: u64,
    pipe: OwnedFd,
    unit: String,
    invocation: Option<Id>,
    pid: Option<u32>,
    identifier: String,
    priority: u8,
    priority_prefix: bool,
    priority_max: u8,
    limit: Limit,
    is_shown: bool,
    lines: Lines,
}

impl Stream {
    fn new(info: StreamInfo, pipe: OwnedFd, default: Limit) -> Self {
        let stem = info
            .unit
            .rsplit_once('.')
            .map_or(info.unit.as_str(), |(stem, _)| stem);
        let identifier = info.identifier.filter(|name| !name.is_empty());
        Self {
            id: info.id,
            pipe,
            identifier: identifier.unwrap_or_else(|| stem.to_owned()),
            invocation: info.invocation.as_deref().and_then(Id::parse),
            pid: info.pid,
            priority: info.priority.unwrap_or(6) & 7,
            priority_prefix: info.priority_prefix.unwrap_or(true),
            priority_max: info.priority_max.unwrap_or(PRIORITY_MAX),
            limit: default.with(info.rate_limit_interval_us, info.rate_limit_burst),
            is_shown: info.console,
            unit: info.unit,
            lines: Lines::default(),
        }
    }

    /// The entry for a line of this stream.
    fn entry(&self, line: &Line<'_>, now: Moment) -> Entry {
        let (priority, text) = if self.priority_prefix {
            split_priority(line.text)
        } else {
            (None, line.text)
        };
        let priority = priority.unwrap_or(self.priority);
        let mut entry = Entry::new(priority, Transport::Stdout, text.to_vec());
        entry.realtime_us = now.realtime_us;
        entry.monotonic_us = now.monotonic_us;
        entry.continues = line.continues;
        entry.unterminated = line.unterminated;
        entry.unit = Some(self.unit.clone());
        entry.invocation = self.invocation;
        entry.pid = self.pid;
        entry.identifier = Some(self.identifier.clone());
        entry
    }

    /// Stores a line, unless the unit wants no such lines or has had as many as it may.
    fn keep(&self, line: &Line<'_>, now: Moment, limits: &mut Limits, store: &mut Store) {
        let entry = self.entry(line, now);
        if entry.priority <= self.priority_max
            && limits.admit(&self.unit, self.limit, now.monotonic_us)
        {
            if self.is_shown {
                show(&entry);
            }
            store.push(entry, now);
        }
    }
}

/// Writes a line to the console. One that takes no more, or is not there, keeps nobody waiting: the line is in the journal.
fn show(entry: &Entry) {
    let mut line = entry.identifier.clone().unwrap_or_default().into_bytes();
    line.extend(b": ");
    // What moves a terminal's cursor would hide what others said.
    line.extend(entry.message.iter().map(|byte| match byte {
        b'\t' | b' '..=b'~' | 0x80.. => *byte,
        _ => b'?',
    }));
    line.push(b'\n');
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC).bits();
    let console = File::options()
        .write(true)
        .custom_flags(flags.cast_signed())
        .open(CONSOLE);
    if let Ok(mut console) = console {
        let _ = console.write_all(&line);
    }
}

/// What reading a descriptor that does not wait came to.
enum ReadOutcome {
    Bytes(usize),
    NothingYet,
    Ended,
}

/// Runs the role until PID 1 ends it.
///
/// # Errors
/// What kept it from starting, or from going on. Nothing that is wrong with the disk does.
pub fn run(settings: &Settings) -> Result<(), Error> {
    let mut writer = Writer::start(settings)?;
    if let Err(err) = orlop_sys::notify::tell("READY=1") {
        writer.note(4, &format!("cannot tell the supervisor: {err}"));
    }
    writer.serve()
}

/// All that the role holds.
#[derive(Debug)]
struct Writer {
    epoll: OwnedFd,
    control: Control,
    /// Whether epoll tells when the control socket takes bytes again.
    waits_to_send: bool,
    signals: SignalFd,
    kernel_log: Option<File>,
    /// The kernel sequence up to which messages are stored.
    kernel_sequence: Option<u64>,
    streams: HashMap<u64, Stream>,
    next_token: u64,
    partial_lines_bytes: usize,
    store: Store,
    limit: Limit,
    limits: Limits,
    was_failing: bool,
    buffer: Vec<u8>,
}

impl Writer {
    fn start(settings: &Settings) -> Result<Self, Error> {
        let control = Control::inherit(CONTROL_DESCRIPTOR).map_err(Error::Control)?;
        let mut signals = SigSet::empty();
        [Signal::SIGTERM, Signal::SIGINT]
            .into_iter()
            .for_each(|signal| signals.add(signal));
        signals.thread_block().map_err(Error::Signals)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&signals, flags).map_err(Error::Signals)?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|err| Error::Epoll(err.into()))?;
        watch(&epoll, &control, CONTROL).map_err(Error::Epoll)?;
        watch(&epoll, &signals, SIGNALS).map_err(Error::Epoll)?;
        let mut store = Store::new(Options {
            directory: settings.directory.clone(),
            budget_bytes: settings.budget_bytes,
            machine: segments::machine_id(),
            boot: segments::boot_id(),
        });
        let opened = store.open();
        if let Err(err @ store::Error::Locked(_)) = opened {
            return Err(Error::Store(err));
        }
        let mut writer = Self {
            epoll,
            control,
            waits_to_send: false,
            signals,
            kernel_log: None,
            kernel_sequence: store.kernel_sequence(),
            streams: HashMap::new(),
            next_token: FIRST_STREAM,
            partial_lines_bytes: 0,
            store,
            limit: settings.limit,
            limits: Limits::default(),
            was_failing: false,
            buffer: vec![0; READ_BYTES],
        };
        if let Some(path) = &settings.kernel_log {
            writer.open_kernel_log(path);
        }
        if let Err(err) = opened {
            writer.report_failure(&err);
        }
        if let Some(remark) = &settings.remark {
            writer.note(4, remark);
        }
        Ok(writer)
    }

    fn open_kernel_log(&mut self, path: &std::path::Path) {
        let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits();
        let opened = File::options()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(path)
            .and_then(|file| watch(&self.epoll, &file, KERNEL).map(|()| file));
        match opened {
            Ok(file) => self.kernel_log = Some(file),
            Err(err) => self.note(
                4,
                &format!("no kernel messages: open {}: {err}", path.display()),
            ),
        }
    }

    fn serve(&mut self) -> Result<(), Error> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_A_TURN];
        loop {
            let timeout = self.timeout();
            let (ready, _) = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
                Ok(ready) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(err) => return Err(Error::Wait(err.into())),
            };
            let now = Moment::now();
            let over = self.limits.ended(now.monotonic_us);
            self.tell_limited(&over, now);
            let mut ends = false;
            for event in ready.iter() {
                match event.data.u64() {
                    CONTROL => ends |= self.receive()?,
                    SIGNALS => ends |= matches!(self.signals.read_signal(), Ok(Some(_))),
                    KERNEL => self.read_kernel_log(now, KERNEL_MESSAGES_A_TURN),
                    token => {
                        self.read_stream(token, now);
                    }
                }
            }
            if ends {
                self.drain();
                return Ok(());
            }
            self.settle(now);
        }
    }

    /// How long to wait for events: until something is to be synced or tried again.
    fn timeout(&self) -> Option<Timespec> {
        let deadlines = [self.store.deadline_us(), self.limits.deadline_us()];
        let deadline_us = deadlines.into_iter().flatten().min()?;
        let wait_us = deadline_us.saturating_sub(Moment::now().monotonic_us);
        Timespec::try_from(Duration::from_micros(wait_us)).ok()
    }

    /// Writes what this turn has brought, and only then tells PID 1 of streams that ended.
    fn settle(&mut self, now: Moment) {
        self.store.flush(now);
        self.store.tick(now);
        if let Some(err) = self.store.take_failure() {
            self.report_failure(&err);
        }
        self.was_failing = self.store.is_failing();
        let all_sent = self.control.send_queued();
        if all_sent == self.waits_to_send {
            self.waits_to_send = !all_sent;
            let mut interest = epoll::EventFlags::IN;
            interest.set(epoll::EventFlags::OUT, self.waits_to_send);
            let data = epoll::EventData::new_u64(CONTROL);
            // Without it the rest is sent after the next event, whichever that is.
            let _ = epoll::modify(&self.epoll, &self.control, data, interest);
        }
    }

    /// Takes all packets; whether PID 1 has closed the socket.
    fn receive(&mut self) -> Result<bool, Error> {
        loop {
            match self.control.receive() {
                Ok(Received::Stream(info, pipe)) => self.add_stream(info, pipe),
                Ok(Received::Unknown) => {}
                Ok(Received::Nothing) => return Ok(false),
                Ok(Received::Ended) => return Ok(true),
                Err(err @ control::Error::Receive(_)) => return Err(Error::Lost(err)),
                Err(err) => self.note(3, &chain(&err)),
            }
        }
    }

    fn add_stream(&mut self, info: StreamInfo, pipe: OwnedFd) {
        let known = self
            .streams
            .iter()
            .find(|(_, stream)| stream.id == info.id)
            .map(|(token, _)| *token);
        if let Some(token) = known {
            // The same stream again, or a number used anew: what came before is kept.
            self.finish_stream(token, Moment::now());
        }
        let stream = Stream::new(info, pipe, self.limit);
        let token = self.next_token;
        self.next_token += 1;
        let watched = rustix::fs::fcntl_getfl(&stream.pipe)
            .and_then(|flags| rustix::fs::fcntl_setfl(&stream.pipe, flags | OFlags::NONBLOCK))
            .map_err(io::Error::from)
            .and_then(|()| watch(&self.epoll, &stream.pipe, token));
        if let Err(err) = watched {
            self.note(
                3,
                &format!("the output of {} is not read: {err}", stream.unit),
            );
            self.control.queue_closed(stream.id);
            return;
        }
        self.streams.insert(token, stream);
    }

    /// Reads once from a stream; how much, and whether there may be more.
    fn read_stream(&mut self, token: u64, now: Moment) -> ReadOutcome {
        let Some(stream) = self.streams.get_mut(&token) else {
            return ReadOutcome::Ended;
        };
        let outcome = read(&stream.pipe, &mut self.buffer);
        match outcome {
            ReadOutcome::Bytes(count) => {
                let mut lines = std::mem::take(&mut stream.lines);
                let held = lines.held_bytes();
                let (limits, store) = (&mut self.limits, &mut self.store);
                let mut give = |line: Line<'_>| stream.keep(&line, now, limits, store);
                lines.push(&self.buffer[..count], &mut give);
                let others = self.partial_lines_bytes - held;
                if others + lines.held_bytes() > PARTIAL_LINES_MAX_BYTES {
                    lines.split(&mut give);
                }
                self.partial_lines_bytes = others + lines.held_bytes();
                stream.lines = lines;
            }
            ReadOutcome::NothingYet => {}
            ReadOutcome::Ended => {
                let id = stream.id;
                self.finish_stream(token, now);
                self.control.queue_closed(id);
            }
        }
        outcome
    }

    /// Stores the stream's last, unfinished line and forgets it.
    fn finish_stream(&mut self, token: u64, now: Moment) {
        let Some(mut stream) = self.streams.remove(&token) else {
            return;
        };
        let mut lines = std::mem::take(&mut stream.lines);
        self.partial_lines_bytes -= lines.held_bytes();
        let (limits, store) = (&mut self.limits, &mut self.store);
        lines.finish(|line| stream.keep(&line, now, limits, store));
        // PID 1 still holds the pipe, so closing our descriptor would leave it registered.
        let _ = epoll::delete(&self.epoll, &stream.pipe);
    }

    fn read_kernel_log(&mut self, now: Moment, messages_max: usize) {
        let Some(mut file) = self.kernel_log.take() else {
            return;
        };
        let awake_us = clock::awake_us();
        for _ in 0..messages_max {
            match file.read(&mut self.buffer[..kmsg::RECORD_MAX_BYTES]) {
                Ok(0) => {
                    let _ = epoll::delete(&self.epoll, &file);
                    return;
                }
                Ok(count) => self.store_kernel_message(count, now, awake_us),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has overwritten what was next, and goes on with the oldest that it has; the gap in the
                // numbers tells how many.
                Err(err) if err.raw_os_error() == Some(nix::errno::Errno::EPIPE as i32) => {}
                Err(err) => {
                    let _ = epoll::delete(&self.epoll, &file);
                    self.note(4, &format!("no more kernel messages: {err}"));
                    return;
                }
            }
        }
        self.kernel_log = Some(file);
    }

    fn store_kernel_message(&mut self, count: usize, now: Moment, awake_us: u64) {
        let Some(mut entry) = kmsg::parse(&self.buffer[..count]) else {
            return;
        };
        let Some(sequence) = entry.kernel_sequence else {
            return;
        };
        if self
            .kernel_sequence
            .is_some_and(|stored| sequence <= stored)
        {
            return;
        }
        let missing = self
            .kernel_sequence
            .map_or(0, |stored| sequence - stored - 1);
        if missing > 0 {
            let text = format!("{missing} kernel messages lost: overwritten before they were read");
            let mut told = store::own_entry(4, text, now);
            told.dropped = Some(missing);
            self.store.push(told, now);
        }
        self.kernel_sequence = Some(sequence);
        let age_us = awake_us.saturating_sub(entry.monotonic_us);
        entry.realtime_us = now.realtime_us.saturating_sub(age_us);
        entry.monotonic_us = now.monotonic_us.saturating_sub(age_us);
        self.store.push(entry, now);
    }

    /// Before the exit: what is in the pipes is read, written and synced.
    fn drain(&mut self) {
        // It is on its way out in any case; a supervisor that does not hear of it waits for the exit.
        let _ = orlop_sys::notify::tell("STOPPING=1");
        let _ = self.receive();
        let now = Moment::now();
        let tokens: Vec<u64> = self.streams.keys().copied().collect();
        for token in tokens {
            let mut total = 0;
            while total < DRAIN_MAX_BYTES {
                match self.read_stream(token, now) {
                    ReadOutcome::Bytes(count) => total += count,
                    ReadOutcome::NothingYet | ReadOutcome::Ended => break,
                }
            }
            self.finish_stream(token, now);
        }
        self.read_kernel_log(now, usize::from(u16::MAX));
        let over = self.limits.end_all();
        self.tell_limited(&over, now);
        self.settle(now);
        self.store.sync(now);
        if let Some(err) = self.store.take_failure() {
            self.report_failure(&err);
        }
    }

    /// Says of each unit how much of it was dropped, in words that systemd's journal has for it.
    fn tell_limited(&mut self, dropped: &[Dropped], now: Moment) {
        for Dropped { unit, count } in dropped {
            let text = format!("Suppressed {count} messages from {unit}");
            let mut told = store::own_entry(4, text, now);
            told.dropped = Some(*count);
            told.unit = Some(unit.clone());
            self.store.push(told, now);
        }
    }

    /// Says something about the journal in the journal.
    fn note(&mut self, priority: u8, text: &str) {
        let now = Moment::now();
        self.store
            .push(store::own_entry(priority, text.to_owned(), now), now);
    }

    /// Says that storing fails where it can still be seen, once until it works again. Standard error may be a
    /// pipe that only we read, so it has to be the kernel's log.
    fn report_failure(&mut self, err: &store::Error) {
        if !self.was_failing && self.kernel_log.is_some() {
            let text = format!("{}: {}", store::OWN_UNIT, chain(err));
            orlop_sys::kmsg::write(Priority::Error, "orlop", &text);
        }
        self.was_failing = true;
    }
}

fn watch(epoll: &OwnedFd, source: &impl AsFd, token: u64) -> io::Result<()> {
    let data = epoll::EventData::new_u64(token);
    Ok(epoll::add(epoll, source, data, epoll::EventFlags::IN)?)
}

fn read(pipe: &OwnedFd, buffer: &mut [u8]) -> ReadOutcome {
    loop {
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => return ReadOutcome::Ended,
            Ok(count) => return ReadOutcome::Bytes(count),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return ReadOutcome::NothingYet,
            // A stream that cannot be read is as good as ended.
            Err(_) => return ReadOutcome::Ended,
        }
    }
}

/// An error and its causes: `a: b: c`.
#[must_use]
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
