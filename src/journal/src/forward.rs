//! The role `orlop forward`: sends the journal to other machines (`docs/journal-forwarding.md`).
//!
//! It reads the journal's files like any reader, so it cannot hold up the writer, and the journal itself is its queue: on
//! the disk, bounded by the journal's size, and there after a restart. What the journal gave up before it was sent is
//! counted by the gap in the sequence numbers, and told.

pub mod backoff;
mod cursor;
mod loki;
mod send;
mod syslog;
mod tls;

use std::convert::Infallible;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::entry::{Entry, Id, Transport};
use crate::filter::Filter;
use crate::follow::{self, Follower};
use crate::reader::{self, Item, Journal, Record};
use backoff::Backoff;
use cursor::Cursor;
use send::{Failure, Sender};
pub use tls::Tls;

/// Records are sent in batches of at most so many …
const BATCH_RECORDS: usize = 500;
/// … with messages of at most so many bytes together.
const BATCH_BYTES: usize = 256 * 1024;
/// How long a batch waits for more after its first record: a line is on its way within this, and a stream of them is
/// not sent one by one.
const LINGER: Duration = Duration::from_millis(200);

/// How a destination takes records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Syslog messages (RFC 5424), each in a datagram (RFC 5426).
    SyslogUdp,
    /// Syslog messages with their length before them (RFC 6587 section 3.4.1).
    SyslogTcp,
    /// Loki's push API: JSON over HTTP.
    Loki,
}

/// Where the journal goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// What people call it, such as `udp://10.0.0.1:514`.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// The path of the HTTP request.
    pub path: String,
    /// What TLS needs, where it is spoken; datagrams have none.
    pub tls: Option<Tls>,
    /// Only records of this priority and more urgent ones are sent: 0 to 7.
    pub priority_max: u8,
}

/// What the role is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The journal's directory.
    pub directory: PathBuf,
    /// Where it is kept how far each destination has got.
    pub cursors: PathBuf,
    /// This machine's name, which goes with each record.
    pub hostname: String,
    /// The boot with whose records a new destination begins.
    pub boot: Id,
    /// The pause after a first failure; it doubles up to [`Settings::retry_max`].
    pub retry_min: Duration,
    /// The longest pause.
    pub retry_max: Duration,
    /// Finds the addresses of a name; the error is for people.
    pub resolve: fn(&str) -> Result<Vec<IpAddr>, String>,
}

/// What ends the role.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to do.
    #[error("no destination is configured")]
    Nowhere,
    /// The journal cannot be read.
    #[error("read the journal")]
    Read(#[from] reader::Error),
    /// The journal cannot be followed.
    #[error("follow the journal")]
    Follow(#[from] follow::Error),
    /// A thread cannot be started.
    #[error("start a thread for {0}")]
    Thread(String, #[source] std::io::Error),
    /// A thread has ended without an error, which it never does.
    #[error("a thread has panicked")]
    Panicked,
}

/// Sends to all destinations, each at its own pace, until the journal cannot be read any more.
///
/// # Errors
/// The first one of any destination; never one of the network.
pub fn run(settings: &Settings, destinations: &[Destination]) -> Result<Infallible, Error> {
    let (ended, first) = std::sync::mpsc::channel();
    for destination in destinations {
        let (settings, ended) = (settings.clone(), ended.clone());
        let (name, destination) = (destination.name.clone(), destination.clone());
        let work = move || {
            let Err(err) = Forwarder::new(settings, destination).and_then(Forwarder::forward);
            // Whoever listens ends with the first one.
            let _ = ended.send(err);
        };
        std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(work)
            .map_err(|err| Error::Thread(name, err))?;
    }
    drop(ended);
    if destinations.is_empty() {
        return Err(Error::Nowhere);
    }
    Err(first.recv().unwrap_or(Error::Panicked))
}

/// Counts what a destination has missed. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    /// The last record that was read.
    at: Option<Cursor>,
    /// Records that were gone before they were read, and not told of yet.
    lost: u64,
}

impl Progress {
    /// Notes a record; false when it was there before, or is older than what is wanted.
    fn see(&mut self, record: &Record, boot: Id) -> bool {
        let sequence = record.entry.sequence;
        match self.at {
            // A new destination begins with this boot.
            None if record.boot != boot => return false,
            Some(at) if at.journal == record.journal => {
                if sequence <= at.sequence {
                    return false;
                }
                self.lost = self.lost.saturating_add(sequence - at.sequence - 1);
            }
            _ => {}
        }
        self.at = Some(Cursor {
            journal: record.journal,
            sequence,
        });
        true
    }
}

/// One destination's thread.
struct Forwarder {
    settings: Settings,
    destination: Destination,
    follower: Follower,
    progress: Progress,
    sender: Sender,
    backoff: Backoff,
    /// Set while it fails, so that it is said once.
    is_failing: bool,
}

impl Forwarder {
    fn new(settings: Settings, destination: Destination) -> Result<Self, Error> {
        let mut follower = Follower::new(&settings.directory, Filter::default())?;
        let at = cursor::load(&settings.cursors, &destination.name);
        let newest = Journal::open(&settings.directory)?.newest_id();
        if let Some(at) = at.filter(|at| newest.is_none_or(|newest| newest == at.journal)) {
            follower.start_after(at.sequence);
        }
        Ok(Self {
            sender: Sender::new(destination.clone(), settings.hostname.clone()),
            backoff: Backoff::new(settings.retry_min, settings.retry_max),
            progress: Progress { at, lost: 0 },
            settings,
            destination,
            follower,
            is_failing: false,
        })
    }

    fn forward(mut self) -> Result<Infallible, Error> {
        loop {
            let batch = self.next_batch()?;
            if !batch.is_empty() {
                self.deliver(&batch);
            }
            if let Some(at) = self.progress.at
                && let Err(err) = cursor::save(&self.settings.cursors, &self.destination.name, at)
            {
                // What was sent will be sent again after a restart, and nothing worse.
                self.say(4, &format!("cannot note how far it has got: {err}"));
            }
        }
    }

    /// Waits for a record, and takes what comes with it.
    fn next_batch(&mut self) -> Result<Vec<Record>, Error> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut item = self.follower.next(None)?;
        std::thread::sleep(LINGER);
        while let Some(next) = item {
            // Damage is for whoever reads the journal on the machine.
            if let Item::Entry(record) = next
                && self.progress.see(&record, self.settings.boot)
            {
                if self.progress.lost > 0 {
                    batch.push(self.loss(&record));
                }
                if record.entry.priority <= self.destination.priority_max {
                    bytes += record.entry.message.len();
                    batch.push(record);
                }
            }
            if batch.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                break;
            }
            item = self.follower.try_next()?;
        }
        Ok(batch)
    }

    /// The record that tells of the lost ones, before `next`.
    fn loss(&mut self, next: &Record) -> Record {
        let lost = std::mem::take(&mut self.progress.lost);
        let noun = if lost == 1 { "message" } else { "messages" };
        let text = format!(
            "{lost} {noun} not forwarded: the journal gave them up before they could be sent"
        );
        self.say(4, &text);
        let mut entry = Entry::new(4, Transport::Orlop, text.into_bytes());
        entry.realtime_us = next.entry.realtime_us;
        entry.monotonic_us = next.entry.monotonic_us;
        entry.sequence = next.entry.sequence - 1;
        entry.identifier = Some("orlop-forward".to_owned());
        entry.unit = Some("orlop-forward.service".to_owned());
        entry.dropped = Some(lost);
        Record {
            entry,
            ..next.clone()
        }
    }

    /// Sends until it is taken, however long that is.
    fn deliver(&mut self, batch: &[Record]) {
        loop {
            match self.sender.send(batch, self.settings.resolve) {
                Ok(()) => {
                    if std::mem::take(&mut self.is_failing) {
                        self.say(6, "it works again");
                    }
                    self.backoff.reset();
                    return;
                }
                Err(Failure::Refused(why)) => {
                    // The same would be refused again, and nothing after it ever be sent.
                    let count = batch.len();
                    self.say(3, &format!("{count} messages dropped: {why}"));
                    return;
                }
                Err(Failure::Failed(why)) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        self.say(4, &format!("{why}; trying on"));
                    }
                    std::thread::sleep(self.backoff.pause());
                }
            }
        }
    }

    /// To the journal, by way of standard error.
    fn say(&self, priority: u8, text: &str) {
        eprintln!("<{priority}>{}: {text}", self.destination.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(journal: u8, boot: u8, sequence: u64) -> Record {
        let mut entry = Entry::new(6, Transport::Stdout, Vec::new());
        entry.sequence = sequence;
        Record {
            journal: Id([journal; 16]),
            machine: Id([1; 16]),
            boot: Id([boot; 16]),
            entry,
        }
    }

    #[test]
    fn a_new_destination_begins_with_this_boot_and_a_gap_is_counted() {
        let boot = Id([2; 16]);
        let mut progress = Progress::default();
        assert!(!progress.see(&record(1, 1, 4), boot));
        assert!(progress.see(&record(1, 2, 5), boot));
        assert!(!progress.see(&record(1, 2, 5), boot), "sent before");
        assert!(progress.see(&record(1, 2, 6), boot));
        assert_eq!(progress.lost, 0);
        assert!(progress.see(&record(1, 2, 10), boot));
        assert_eq!(progress.lost, 3);
        // Another journal's numbers say nothing of this one's.
        assert!(progress.see(&record(9, 2, 1), boot));
        assert_eq!(progress.lost, 3);
    }
}
