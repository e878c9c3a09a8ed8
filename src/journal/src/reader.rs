//! Reads a journal's files. Needs no writer, and does not disturb one.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::entry::{Entry, Id};
use crate::filter::Filter;
use crate::format::{self, Header, HeaderError};
use crate::scan::{self, Scanner, Step};
use crate::segments::{self, SegmentFile};

/// What keeps a journal from being read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be read.
    #[error("list {0}")]
    List(PathBuf, #[source] io::Error),
    /// A segment cannot be opened.
    #[error("open {0}")]
    Open(PathBuf, #[source] io::Error),
    /// A segment cannot be read.
    #[error("read {0}")]
    Read(PathBuf, #[source] io::Error),
}

impl Error {
    /// What the operating system said.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        let (Self::List(_, err) | Self::Open(_, err) | Self::Read(_, err)) = self;
        err.kind()
    }
}

/// A place in a segment that cannot be read, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// What is wrong.
    pub kind: DamageKind,
}

impl Damage {
    /// The file ends before its header does: so does one that is just being begun.
    pub(crate) fn is_short_header(&self) -> bool {
        self.kind == DamageKind::Header(HeaderError::Short)
    }
}

/// What is wrong with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DamageKind {
    /// Nothing of it can be read.
    Header(HeaderError),
    /// That many bytes from that offset on are no records; others follow.
    Records {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The rest of it, that many bytes from that offset on, is no record.
    Torn {
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match &self.kind {
            DamageKind::Header(err) => write!(f, "{path}: not read: {err}"),
            DamageKind::Records { offset, length } => {
                write!(
                    f,
                    "{path}: damaged: {length} bytes at offset {offset} are left out"
                )
            }
            DamageKind::Torn { offset, length } => {
                write!(
                    f,
                    "{path}: ends in {length} bytes at offset {offset} that are no whole entry"
                )
            }
        }
    }
}

/// An entry with what its segment knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The journal that counts its sequence number.
    pub journal: Id,
    /// The machine that wrote it.
    pub machine: Id,
    /// The boot in which it was written.
    pub boot: Id,
    /// The entry.
    pub entry: Entry,
}

/// What reading yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A wanted entry.
    Entry(Record),
    /// Something that could not be read; what is readable around it is yielded all the same.
    Damage(Damage),
}

/// One boot in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Its id.
    pub id: Id,
    /// The first entry's time, µs since 1970-01-01 UTC.
    pub first_us: u64,
    /// The last entry's time.
    pub last_us: u64,
}

/// From which end to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Oldest first.
    Forward,
    /// Newest first.
    Reverse,
}

/// A segment whose header could be read.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    pub(crate) first_record: u64,
}

impl Segment {
    pub(crate) fn record(&self, bytes: &[u8]) -> Record {
        Record {
            journal: self.header.journal,
            machine: self.header.machine,
            boot: self.header.boot,
            entry: format::decode_record(bytes),
        }
    }

    pub(crate) fn damage(&self, kind: DamageKind) -> Item {
        Item::Damage(Damage {
            path: self.path.clone(),
            kind,
        })
    }

    pub(crate) fn scanner(&self, file: File) -> Scanner<File> {
        Scanner::new(file, self.header.mark, self.first_record, None)
    }
}

/// The segments of a directory as they are at one moment.
#[derive(Debug)]
pub struct Journal {
    segments: Vec<Segment>,
    unreadable: Vec<Damage>,
    disk_bytes: u64,
    newest: Option<PathBuf>,
}

impl Journal {
    /// Looks at all segments of the directory.
    ///
    /// # Errors
    /// When the directory or a segment cannot be opened; a damaged segment is no error.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let files =
            segments::list(directory).map_err(|err| Error::List(directory.to_owned(), err))?;
        let mut journal = Self {
            segments: Vec::new(),
            unreadable: Vec::new(),
            disk_bytes: 0,
            newest: files.last().map(|file| file.path.clone()),
        };
        for file in files {
            let is_newest = Some(&file.path) == journal.newest.as_ref();
            journal.disk_bytes += file.bytes;
            match open_segment(&file)? {
                Opened::Gone => {}
                Opened::Segment(segment, _) => journal.segments.push(segment),
                // It is being begun at this moment.
                Opened::Damaged(damage) if is_newest && damage.is_short_header() => {}
                Opened::Damaged(damage) => journal.unreadable.push(damage),
            }
        }
        Ok(journal)
    }

    /// The id of the newest segment's journal, to whose numbers new entries add.
    #[must_use]
    pub fn newest_id(&self) -> Option<Id> {
        self.segments.last().map(|segment| segment.header.journal)
    }

    /// What the segments take on the disk, in bytes.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Whether it may be no damage at all but an entry that is being written at this moment.
    #[must_use]
    pub fn may_be_unfinished(&self, damage: &Damage) -> bool {
        matches!(damage.kind, DamageKind::Torn { .. }) && Some(&damage.path) == self.newest.as_ref()
    }

    /// The ids of all boots, oldest first.
    #[must_use]
    pub fn boot_ids(&self) -> Vec<Id> {
        let mut ids: Vec<Id> = Vec::new();
        for segment in self.in_order() {
            if !ids.contains(&segment.header.boot) {
                ids.push(segment.header.boot);
            }
        }
        ids
    }

    /// All boots that have an entry, oldest first.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn boots(&self) -> Result<Vec<Boot>, Error> {
        let mut boots = Vec::new();
        for id in self.boot_ids() {
            let filter = Filter {
                boot: Some(id),
                ..Filter::default()
            };
            let time = |direction| {
                self.entries(&filter, direction)
                    .find_map(|item| match item {
                        Ok(Item::Entry(record)) => Some(Ok(record.entry.realtime_us)),
                        Ok(Item::Damage(_)) => None,
                        Err(err) => Some(Err(err)),
                    })
            };
            if let (Some(first), Some(last)) = (time(Direction::Forward), time(Direction::Reverse))
            {
                boots.push(Boot {
                    id,
                    first_us: first?,
                    last_us: last?,
                });
            }
        }
        Ok(boots)
    }

    /// The sequence number of the newest entry; 0 when there is none.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn last_sequence(&self) -> Result<u64, Error> {
        for segment in self.segments.iter().rev() {
            let Some(file) = open_if_there(&segment.path)? else {
                continue;
            };
            let mut scanner = segment.scanner(file);
            loop {
                match scanner
                    .step()
                    .map_err(|err| Error::Read(segment.path.clone(), err))?
                {
                    Step::End(_) | Step::Torn { .. } => break,
                    Step::Record { .. } | Step::Damage { .. } => {}
                }
            }
            if let Some(sequence) = scanner.last_sequence() {
                return Ok(sequence);
            }
        }
        Ok(0)
    }

    /// The wanted entries.
    #[must_use]
    pub fn entries<'a>(&'a self, filter: &'a Filter, direction: Direction) -> Entries<'a> {
        let mut journals: BTreeMap<Id, VecDeque<&Segment>> = BTreeMap::new();
        for segment in &self.segments {
            if filter.boot.is_none_or(|boot| boot == segment.header.boot) {
                journals
                    .entry(segment.header.journal)
                    .or_default()
                    .push_back(segment);
            }
        }
        let chains = journals.into_values().map(|mut segments| {
            if direction == Direction::Reverse {
                segments.make_contiguous().reverse();
            }
            Chain {
                filter,
                direction,
                segments,
                current: None,
                head: None,
            }
        });
        Entries {
            direction,
            unreadable: self.unreadable.iter(),
            chains: chains.collect(),
        }
    }

    /// The last `count` wanted entries, oldest first, and what is damaged on the way to them.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn last(&self, filter: &Filter, count: usize) -> Result<Vec<Item>, Error> {
        let mut items = Vec::new();
        let mut found = 0;
        if count > 0 {
            for item in self.entries(filter, Direction::Reverse) {
                let item = item?;
                found += usize::from(matches!(item, Item::Entry(_)));
                items.push(item);
                if found == count {
                    break;
                }
            }
        }
        items.reverse();
        Ok(items)
    }

    /// By time between journals, by number within one.
    fn in_order(&self) -> Vec<&Segment> {
        let mut begun: BTreeMap<Id, u64> = BTreeMap::new();
        for Segment { header, .. } in &self.segments {
            begun.entry(header.journal).or_insert(header.realtime_us);
        }
        let mut segments: Vec<&Segment> = self.segments.iter().collect();
        segments.sort_by_key(|segment| {
            let header = &segment.header;
            (
                begun.get(&header.journal).copied(),
                header.journal,
                header.first_sequence,
            )
        });
        segments
    }
}

/// What became of opening a segment.
pub(crate) enum Opened {
    /// It can be read.
    Segment(Segment, File),
    /// Its header cannot.
    Damaged(Damage),
    /// It has been removed meanwhile.
    Gone,
}

pub(crate) fn open_segment(file: &SegmentFile) -> Result<Opened, Error> {
    let path = &file.path;
    let Some(opened) = open_if_there(path)? else {
        return Ok(Opened::Gone);
    };
    let header = scan::read_header(&opened).map_err(|err| Error::Read(path.clone(), err))?;
    let path = path.clone();
    Ok(match header {
        Ok((header, first_record)) => {
            let segment = Segment {
                path,
                header,
                first_record,
            };
            Opened::Segment(segment, opened)
        }
        Err(err) => Opened::Damaged(Damage {
            path,
            kind: DamageKind::Header(err),
        }),
    })
}

fn open_if_there(path: &Path) -> Result<Option<File>, Error> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        // The writer has removed the oldest to make room.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(Error::Open(path.to_owned(), err)),
    }
}

/// The wanted entries of a [`Journal`], and what is damaged.
#[derive(Debug)]
pub struct Entries<'a> {
    direction: Direction,
    unreadable: std::slice::Iter<'a, Damage>,
    chains: Vec<Chain<'a>>,
}

impl Iterator for Entries<'_> {
    type Item = Result<Item, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(damage) = self.unreadable.next() {
            return Some(Ok(Item::Damage(damage.clone())));
        }
        if let [only] = self.chains.as_mut_slice() {
            return only.advance();
        }
        let mut best: Option<(usize, u64)> = None;
        for index in 0..self.chains.len() {
            let time = match self.chains[index].head() {
                None => continue,
                Some(Ok(Item::Entry(record))) => record.entry.realtime_us,
                Some(_) => return self.chains[index].advance(),
            };
            let is_better = best.is_none_or(|(_, other)| match self.direction {
                Direction::Forward => time < other,
                Direction::Reverse => time > other,
            });
            if is_better {
                best = Some((index, time));
            }
        }
        best.and_then(|(index, _)| self.chains[index].advance())
    }
}

/// The segments of one journal id, one after the other.
#[derive(Debug)]
struct Chain<'a> {
    filter: &'a Filter,
    direction: Direction,
    /// Those that are still to be read, in the direction's order.
    segments: VecDeque<&'a Segment>,
    current: Option<(&'a Segment, Walk)>,
    head: Option<Result<Item, Error>>,
}

/// The way through one segment.
#[derive(Debug)]
enum Walk {
    Forward(Scanner<File>),
    Reverse {
        file: File,
        damage: Vec<DamageKind>,
        /// Offset and length of the wanted records that are still to be given out.
        records: Vec<(u64, u32)>,
    },
}

impl Chain<'_> {
    fn head(&mut self) -> Option<&Result<Item, Error>> {
        if self.head.is_none() {
            self.head = self.read();
        }
        self.head.as_ref()
    }

    fn advance(&mut self) -> Option<Result<Item, Error>> {
        self.head.take().or_else(|| self.read())
    }

    fn read(&mut self) -> Option<Result<Item, Error>> {
        loop {
            let Some((segment, walk)) = &mut self.current else {
                let segment = self.segments.pop_front()?;
                match begin_walk(segment, self.direction, self.filter) {
                    Ok(Some(walk)) => self.current = Some((segment, walk)),
                    Ok(None) => {}
                    Err(err) => return Some(Err(err)),
                }
                continue;
            };
            match walk.next(segment, self.filter) {
                Ok(Some(item)) => return Some(Ok(item)),
                Ok(None) => self.current = None,
                Err(err) => {
                    let err = Error::Read(segment.path.clone(), err);
                    self.current = None;
                    return Some(Err(err));
                }
            }
        }
    }
}

fn begin_walk(
    segment: &Segment,
    direction: Direction,
    filter: &Filter,
) -> Result<Option<Walk>, Error> {
    let Some(file) = open_if_there(&segment.path)? else {
        return Ok(None);
    };
    if direction == Direction::Forward {
        return Ok(Some(Walk::Forward(segment.scanner(file))));
    }
    let mut damage = Vec::new();
    let mut records = Vec::new();
    let mut scanner = Scanner::new(&file, segment.header.mark, segment.first_record, None);
    loop {
        match scanner
            .step()
            .map_err(|err| Error::Read(segment.path.clone(), err))?
        {
            Step::Record { offset, record } => {
                if filter.wants(segment.header.boot, &format::decode_record(record)) {
                    records.push((offset, record.len() as u32));
                }
            }
            Step::Damage { offset, length } => damage.push(DamageKind::Records { offset, length }),
            Step::Torn { offset, length } => {
                damage.push(DamageKind::Torn { offset, length });
                break;
            }
            Step::End(_) => break,
        }
    }
    Ok(Some(Walk::Reverse {
        file,
        damage,
        records,
    }))
}

impl Walk {
    fn next(&mut self, segment: &Segment, filter: &Filter) -> io::Result<Option<Item>> {
        match self {
            Self::Forward(scanner) => loop {
                match scanner.step()? {
                    Step::Record { record, .. } => {
                        let record = segment.record(record);
                        if filter.wants(record.boot, &record.entry) {
                            return Ok(Some(Item::Entry(record)));
                        }
                    }
                    Step::Damage { offset, length } => {
                        return Ok(Some(segment.damage(DamageKind::Records { offset, length })));
                    }
                    Step::Torn { offset, length } => {
                        let item = segment.damage(DamageKind::Torn { offset, length });
                        // Told once: the next step begins, and ends, at the end of the file.
                        scanner.skip_to(offset + length);
                        return Ok(Some(item));
                    }
                    Step::End(_) => return Ok(None),
                }
            },
            Self::Reverse {
                file,
                damage,
                records,
            } => {
                if let Some(kind) = damage.pop() {
                    return Ok(Some(segment.damage(kind)));
                }
                let Some((offset, length)) = records.pop() else {
                    return Ok(None);
                };
                let mut bytes = vec![0; length as usize];
                let filled = scan::fill(file, &mut bytes, offset)?;
                bytes.truncate(filled);
                Ok(Some(Item::Entry(segment.record(&bytes))))
            }
        }
    }
}

/// Reads all of a segment that is at hand as bytes: for checks and for tests.
///
/// # Errors
/// The header's; damage behind it is in the items.
pub fn read_segment(bytes: &[u8], path: &Path) -> Result<Vec<Item>, HeaderError> {
    let (header, first_record) = Header::decode(bytes)?;
    let segment = Segment {
        path: path.to_owned(),
        header,
        first_record: first_record as u64,
    };
    let mut scanner = Scanner::new(bytes, segment.header.mark, segment.first_record, None);
    let mut items = Vec::new();
    // A slice cannot fail to be read.
    while let Ok(step) = scanner.step() {
        match step {
            Step::Record { record, .. } => items.push(Item::Entry(segment.record(record))),
            Step::Damage { offset, length } => {
                items.push(segment.damage(DamageKind::Records { offset, length }));
            }
            Step::Torn { offset, length } => {
                items.push(segment.damage(DamageKind::Torn { offset, length }));
                break;
            }
            Step::End(_) => break,
        }
    }
    Ok(items)
}
