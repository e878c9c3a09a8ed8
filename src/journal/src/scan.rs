//! Walks through a segment's records with a small window of memory, and past damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::format::{self, Header, HeaderError, Probe};

/// How much is read at once; the window grows to this and the longest record.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes that can be read at an offset: a file, or a slice in tests.
pub trait Source {
    /// Reads into `buffer` from `offset`; 0 at the end.
    ///
    /// # Errors
    /// Those of the medium.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

impl Source for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(self.len());
        let count = buffer.len().min(self.len() - from);
        buffer[..count].copy_from_slice(&self[from..from + count]);
        Ok(count)
    }
}

impl<S: Source> Source for &S {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (*self).read_at(buffer, offset)
    }
}

/// Reads a segment's header; also returns the offset of the first record.
///
/// # Errors
/// The outer error is the medium's, the inner one says what is wrong with the header.
pub fn read_header(source: &impl Source) -> io::Result<Result<(Header, u64), HeaderError>> {
    let mut bytes = Vec::new();
    let mut length = format::HEADER_BYTES;
    loop {
        bytes.resize(length, 0);
        let filled = fill(source, &mut bytes, 0)?;
        let short = filled < bytes.len();
        bytes.truncate(filled);
        match Header::decode(&bytes) {
            // A later writer's longer header.
            Err(HeaderError::Short) if !short && length < format::HEADER_MAX_BYTES => {
                length = format::HEADER_MAX_BYTES;
            }
            Ok((header, length)) => return Ok(Ok((header, length as u64))),
            Err(err) => return Ok(Err(err)),
        }
    }
}

/// What comes next in a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A valid record at that offset, without its padding.
    Record {
        /// Where it begins.
        offset: u64,
        /// Its bytes, for [`format::decode_record`].
        record: &'a [u8],
    },
    /// Bytes that are no record, before a valid one.
    Damage {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Bytes that are no whole record, up to the end: unfinished, or still being written.
    Torn {
        /// Where they begin: the end of the last valid record.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The end, right after a record, at that offset.
    End(u64),
}

/// A place in a segment and the bytes around it.
#[derive(Debug)]
pub struct Scanner<S> {
    source: S,
    mark: [u8; 4],
    /// Bytes of the source from `offset` on.
    window: Vec<u8>,
    /// How many bytes at the window's start are done with.
    done: usize,
    /// Where `window[0]` lies in the source.
    offset: u64,
    last_sequence: Option<u64>,
}

impl<S: Source> Scanner<S> {
    /// Begins at `offset`, where a record should begin, with sequence numbers above `last_sequence`.
    pub fn new(source: S, mark: [u8; 4], offset: u64, last_sequence: Option<u64>) -> Self {
        Self {
            source,
            mark,
            window: Vec::new(),
            done: 0,
            offset,
            last_sequence,
        }
    }

    /// The highest sequence number so far.
    pub fn last_sequence(&self) -> Option<u64> {
        self.last_sequence
    }

    /// The next record, damage or the end. After [`Step::Torn`] and [`Step::End`] it looks again from the same
    /// place, for what has been appended since.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn step(&mut self) -> io::Result<Step<'_>> {
        let start = self.position();
        if let Some(length) = self.look()? {
            return Ok(self.take(length));
        }
        if self.window.len() == self.done {
            self.restart(start);
            return Ok(Step::End(start));
        }
        // What is in the window may be older than what a writer has made of the place since: look afresh.
        self.restart(start);
        if let Some(length) = self.look()? {
            return Ok(self.take(length));
        }
        loop {
            self.done = (self.done + 8).min(self.window.len());
            if self.look()?.is_some() {
                let length = self.position() - start;
                return Ok(Step::Damage {
                    offset: start,
                    length,
                });
            }
            if self.done == self.window.len() {
                let length = self.position() - start;
                self.restart(start);
                return Ok(Step::Torn {
                    offset: start,
                    length,
                });
            }
        }
    }

    /// Goes on at `offset`, where a record should begin.
    pub fn skip_to(&mut self, offset: u64) {
        self.restart(offset);
    }

    fn position(&self) -> u64 {
        self.offset + self.done as u64
    }

    fn restart(&mut self, offset: u64) {
        self.window.clear();
        self.done = 0;
        self.offset = offset;
    }

    fn take(&mut self, length: usize) -> Step<'_> {
        let offset = self.position();
        let from = self.done;
        let record = &self.window[from..from + length];
        self.last_sequence = Some(format::record_sequence(record));
        self.done = from + format::padded(length);
        Step::Record { offset, record }
    }

    /// The length of the valid record at the current place, if there is one. Reads as much as it needs to tell;
    /// leaves at least one byte in the window unless the source ends here.
    fn look(&mut self) -> io::Result<Option<usize>> {
        if self.window.len() == self.done {
            self.more(format::RECORD_HEAD_BYTES)?;
        }
        loop {
            match format::probe(&self.window[self.done..], self.mark) {
                Probe::Record(length) => {
                    let record = &self.window[self.done..self.done + length];
                    let sequence = format::record_sequence(record);
                    if self.last_sequence.is_some_and(|last| sequence <= last) {
                        return Ok(None);
                    }
                    // The last record's padding may not have reached the disk; the next record begins after it anyway.
                    let whole = format::padded(length);
                    if self.window.len() - self.done < whole && !self.more(whole)? {
                        self.window.resize(whole, 0);
                    }
                    return Ok(Some(length));
                }
                Probe::Needs(length) => {
                    if !self.more(length)? {
                        return Ok(None);
                    }
                }
                Probe::Nothing => return Ok(None),
            }
        }
    }

    /// Reads until the window holds `wanted` bytes that are not done with; whether it does.
    fn more(&mut self, wanted: usize) -> io::Result<bool> {
        self.window.drain(..self.done);
        self.offset += self.done as u64;
        self.done = 0;
        let filled = self.window.len();
        if filled >= wanted {
            return Ok(true);
        }
        self.window.resize(wanted.max(CHUNK_BYTES), 0);
        let offset = self.offset + filled as u64;
        let count = fill(&self.source, &mut self.window[filled..], offset);
        self.window.truncate(filled + *count.as_ref().unwrap_or(&0));
        count?;
        Ok(self.window.len() >= wanted)
    }
}

/// Reads until `buffer` is full or the source ends; how much was read.
pub(crate) fn fill(source: &impl Source, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::entry::Entry;
    use crate::format::tests::{HEADER, entries};
    use crate::reader::{DamageKind, Item, read_segment};
    use proptest::prelude::*;

    /// A segment with these entries, and where each of them begins.
    fn segment(entries: &[Entry]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = HEADER.encode().to_vec();
        let mut offsets = Vec::new();
        for entry in entries {
            offsets.push(bytes.len());
            format::encode_record(entry, HEADER.mark, &mut bytes);
        }
        (bytes, offsets)
    }

    fn read(bytes: &[u8]) -> (Vec<Entry>, Vec<DamageKind>) {
        let (mut entries, mut damage) = (Vec::new(), Vec::new());
        for item in read_segment(bytes, Path::new("x.journal")).unwrap() {
            match item {
                Item::Entry(record) => entries.push(record.entry),
                Item::Damage(found) => damage.push(found.kind),
            }
        }
        (entries, damage)
    }

    /// One to nine entries with rising numbers.
    fn many() -> impl Strategy<Value = Vec<Entry>> {
        (1..10u64).prop_flat_map(|count| (1..=count).map(entries).collect::<Vec<_>>())
    }

    /// The entries other than those whose bytes, padding included, the range touches.
    fn untouched(
        entries: &[Entry],
        offsets: &[usize],
        end: usize,
        hit: &std::ops::Range<usize>,
    ) -> Vec<Entry> {
        let ends = offsets.iter().skip(1).copied().chain([end]);
        let spans = offsets.iter().zip(ends);
        let kept = entries
            .iter()
            .zip(spans)
            .filter(|(_, (from, to))| hit.end <= **from || hit.start >= *to);
        kept.map(|(entry, _)| entry.clone()).collect()
    }

    proptest! {
        #[test]
        fn whatever_is_cut_off_all_before_it_is_read(entries in many(), cut in any::<proptest::sample::Index>()) {
            let (bytes, offsets) = segment(&entries);
            let length = 96 + cut.index(bytes.len() - 96);
            let (read, damage) = read(&bytes[..length]);
            let whole = offsets.iter().skip(1).chain([&bytes.len()]).filter(|end| **end <= length).count();
            // Where only padding is cut off, the record is whole all the same.
            prop_assert!(read.len() == whole || read.len() == whole + 1);
            prop_assert_eq!(&read[..], &entries[..read.len()]);
            let rest = offsets.get(read.len()).copied().filter(|offset| *offset < length);
            let expected = rest.map(|offset| DamageKind::Torn {
                offset: offset as u64,
                length: (length - offset) as u64,
            });
            prop_assert_eq!(damage, Vec::from_iter(expected));
        }

        #[test]
        fn a_flipped_byte_costs_at_most_its_own_record(
            entries in many(), at in any::<proptest::sample::Index>(), flip in 1..=255u8,
        ) {
            let (mut bytes, offsets) = segment(&entries);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if at < 96 {
                prop_assert!(read_segment(&bytes, Path::new("x")).is_err());
                return Ok(());
            }
            let (read, damage) = read(&bytes);
            let kept = untouched(&entries, &offsets, bytes.len(), &(at..at + 1));
            if read == entries {
                // Only padding was hit.
                prop_assert_eq!(damage, vec![]);
            } else {
                prop_assert_eq!(read, kept);
                let hit = *offsets.iter().rfind(|offset| **offset <= at).unwrap() as u64;
                match damage.as_slice() {
                    [DamageKind::Records { offset, .. } | DamageKind::Torn { offset, .. }] => {
                        prop_assert_eq!(*offset, hit);
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }

        #[test]
        fn an_overwritten_stretch_costs_what_it_covers(
            entries in many(), from in any::<proptest::sample::Index>(),
            filling in proptest::collection::vec(any::<u8>(), 1..300),
        ) {
            let (mut bytes, offsets) = segment(&entries);
            let from = 96 + from.index(bytes.len() - 96);
            let to = bytes.len().min(from + filling.len());
            bytes[from..to].copy_from_slice(&filling[..to - from]);
            let (read, _) = read(&bytes);
            let kept = untouched(&entries, &offsets, bytes.len(), &(from..to));
            // Padding may have been all that was hit of a record, which is then whole.
            prop_assert!(kept.iter().all(|entry| read.contains(entry)));
            prop_assert!(read.iter().all(|entry| entries.contains(entry)));
            prop_assert!(read.is_sorted_by_key(|entry| entry.sequence));
        }

        #[test]
        fn what_a_program_logs_does_not_pass_for_a_record(inner in entries(5)) {
            let mut forged = Vec::new();
            format::encode_record(&inner, [9, 9, 9, 9], &mut forged);
            let mut outer = Entry::new(6, crate::entry::Transport::Stdout, [&[0; 4], forged.as_slice()].concat());
            outer.sequence = 1;
            let (mut bytes, offsets) = segment(&[outer]);
            bytes[offsets[0] + 8] ^= 1;
            prop_assert_eq!(read(&bytes).0, vec![]);
        }
    }

    #[test]
    fn a_record_that_comes_again_is_damage() {
        let mut entry = Entry::new(6, crate::entry::Transport::Stdout, b"x".to_vec());
        entry.sequence = 1;
        let (mut bytes, offsets) = segment(&[entry.clone()]);
        let again = bytes[offsets[0]..].to_vec();
        bytes.extend_from_slice(&again);
        entry.sequence = 2;
        format::encode_record(&entry, HEADER.mark, &mut bytes);
        let (read, damage) = read(&bytes);
        assert_eq!(
            read.iter().map(|entry| entry.sequence).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(
            damage,
            [DamageKind::Records {
                offset: 96 + again.len() as u64,
                length: again.len() as u64
            }]
        );
    }

    #[test]
    fn the_longest_records_pass_through_the_window() {
        let entries: Vec<Entry> = (1..6)
            .map(|sequence| {
                let message = vec![sequence as u8; format::MESSAGE_MAX_BYTES];
                let mut entry = Entry::new(6, crate::entry::Transport::Stdout, message);
                entry.sequence = sequence;
                entry
            })
            .collect();
        let (mut bytes, offsets) = segment(&entries);
        assert_eq!(read(&bytes), (entries.clone(), vec![]));
        bytes[offsets[1] + 5] = 0xff;
        let (read, damage) = read(&bytes);
        assert_eq!(read.len(), 4);
        assert_eq!(damage.len(), 1);
    }
}
