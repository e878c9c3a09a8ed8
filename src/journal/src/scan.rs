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
