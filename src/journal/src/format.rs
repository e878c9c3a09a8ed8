//! The bytes of a segment's header and records, as `docs/journal-format.md` describes them. Pure.

use crate::entry::{Entry, Id, Transport};

/// What a segment begins with.
pub const MAGIC: [u8; 8] = *b"ORLOPJNL";
/// The version that this program writes, and the only one that it reads.
pub const VERSION: u16 = 1;
/// The header's length as written here; a later writer's may be longer.
pub const HEADER_BYTES: usize = 96;
/// The longest header that a reader takes.
pub const HEADER_MAX_BYTES: usize = 4096;
/// The length of a record without fields.
pub const RECORD_HEAD_BYTES: usize = 40;
/// The longest record, padding not counted.
pub const RECORD_MAX_BYTES: usize = 65_536;
/// The longest message in one record; a longer line is split.
pub const MESSAGE_MAX_BYTES: usize = 48 * 1024;
/// The longest unit name or identifier that is stored; the rest is cut off.
pub const NAME_MAX_BYTES: usize = 255;

const FLAG_CONTINUES: u16 = 1 << 0;
const FLAG_UNTERMINATED: u16 = 1 << 1;

const TAG_MESSAGE: u16 = 1;
const TAG_UNIT: u16 = 2;
const TAG_INVOCATION: u16 = 3;
const TAG_PID: u16 = 4;
const TAG_IDENTIFIER: u16 = 5;
const TAG_KERNEL_SEQUENCE: u16 = 6;
const TAG_DROPPED: u16 = 7;

/// A segment's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// With which each record begins; not zero.
    pub mark: [u8; 4],
    /// Which journal's sequence numbers these are.
    pub journal: Id,
    /// The machine that wrote it.
    pub machine: Id,
    /// The boot in which it was written.
    pub boot: Id,
    /// The first record's sequence number.
    pub first_sequence: u64,
    /// When it was begun, µs since 1970-01-01 UTC.
    pub realtime_us: u64,
    /// The same moment, µs of `CLOCK_BOOTTIME`.
    pub monotonic_us: u64,
}

/// Why a header cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends before its header does.
    #[error("the file ends within its header")]
    Short,
    /// The first eight bytes are others.
    #[error("not a journal segment: wrong magic")]
    Magic,
    /// A later format.
    #[error("written in version {0} of the format, this program reads version {VERSION}")]
    Version(u16),
    /// A length that no writer writes.
    #[error("header length {0} is out of range")]
    Length(u16),
    /// Changed since it was written.
    #[error("header checksum mismatch")]
    Checksum,
    /// Records would begin with zeros, as does empty space.
    #[error("the mark is zero")]
    Mark,
}

impl Header {
    /// The bytes to begin a segment with.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(HEADER_BYTES as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.mark);
        out.extend_from_slice(&[0; 4]);
        for id in [self.journal, self.machine, self.boot] {
            out.extend_from_slice(&id.0);
        }
        for number in [self.first_sequence, self.realtime_us, self.monotonic_us] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let checksum = header_checksum(&out);
        out[12..16].copy_from_slice(&checksum.to_le_bytes());
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&out);
        header
    }

    /// Reads the header at the start of `bytes`; also returns its length, where the first record begins.
    ///
    /// # Errors
    /// A [`HeaderError`] when `bytes` does not begin with a whole, valid header of a known version.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), HeaderError> {
        let magic = bytes.get(..8).ok_or(HeaderError::Short)?;
        if magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        let version = u16_at(bytes, 8).ok_or(HeaderError::Short)?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let length = u16_at(bytes, 10).ok_or(HeaderError::Short)?;
        let length_bytes = usize::from(length);
        if !(HEADER_BYTES..=HEADER_MAX_BYTES).contains(&length_bytes) || length_bytes % 8 != 0 {
            return Err(HeaderError::Length(length));
        }
        let bytes = bytes.get(..length_bytes).ok_or(HeaderError::Short)?;
        if u32_at(bytes, 12) != Some(header_checksum(bytes)) {
            return Err(HeaderError::Checksum);
        }
        let short = HeaderError::Short;
        let mark = array_at(bytes, 16).ok_or(short.clone())?;
        if mark == [0; 4] {
            return Err(HeaderError::Mark);
        }
        let header = Self {
            mark,
            journal: Id(array_at(bytes, 24).ok_or(short.clone())?),
            machine: Id(array_at(bytes, 40).ok_or(short.clone())?),
            boot: Id(array_at(bytes, 56).ok_or(short.clone())?),
            first_sequence: u64_at(bytes, 72).ok_or(short.clone())?,
            realtime_us: u64_at(bytes, 80).ok_or(short.clone())?,
            monotonic_us: u64_at(bytes, 88).ok_or(short)?,
        };
        Ok((header, length_bytes))
    }
}

/// Appends `entry` and its padding to `out`. Values longer than the format allows are cut.
pub fn encode_record(entry: &Entry, mark: [u8; 4], out: &mut Vec<u8>) {
    let start = out.len();
    let mut flags = 0;
    if entry.continues {
        flags |= FLAG_CONTINUES;
    }
    if entry.unterminated {
        flags |= FLAG_UNTERMINATED;
    }
    out.extend_from_slice(&mark);
    out.extend_from_slice(&[0; 8]);
    out.push(entry.priority & 7);
    out.push(entry.transport.number());
    out.extend_from_slice(&flags.to_le_bytes());
    for number in [entry.sequence, entry.realtime_us, entry.monotonic_us] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    if let Some(unit) = &entry.unit {
        push_field(out, TAG_UNIT, cut(unit, NAME_MAX_BYTES));
    }
    if let Some(invocation) = entry.invocation {
        push_field(out, TAG_INVOCATION, &invocation.0);
    }
    if let Some(pid) = entry.pid {
        push_field(out, TAG_PID, &pid.to_le_bytes());
    }
    if let Some(identifier) = &entry.identifier {
        push_field(out, TAG_IDENTIFIER, cut(identifier, NAME_MAX_BYTES));
    }
    if let Some(sequence) = entry.kernel_sequence {
        push_field(out, TAG_KERNEL_SEQUENCE, &sequence.to_le_bytes());
    }
    if let Some(dropped) = entry.dropped {
        push_field(out, TAG_DROPPED, &dropped.to_le_bytes());
    }
    let message = &entry.message[..entry.message.len().min(MESSAGE_MAX_BYTES)];
    push_field(out, TAG_MESSAGE, message);
    let length = (out.len() - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    let checksum = record_checksum(&out[start..]);
    out[start + 8..start + 12].copy_from_slice(&checksum.to_le_bytes());
    out.resize(start + padded(out.len() - start), 0);
}

/// A record's length with its padding.
#[must_use]
pub fn padded(length_bytes: usize) -> usize {
    length_bytes.next_multiple_of(8)
}

/// What stands at a place where a record should begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Probe {
    /// A valid record of that length, padding not counted.
    Record(usize),
    /// As far as the bytes go it could be one; this many bytes are needed to tell.
    Needs(usize),
    /// No record.
    Nothing,
}

/// Looks for a record of a segment with that mark at the start of `bytes`.
#[must_use]
pub fn probe(bytes: &[u8], mark: [u8; 4]) -> Probe {
    let known = bytes.len().min(4);
    if bytes[..known] != mark[..known] {
        return Probe::Nothing;
    }
    let Some(length) = u32_at(bytes, 4) else {
        return Probe::Needs(RECORD_HEAD_BYTES);
    };
    let length = length as usize;
    if !(RECORD_HEAD_BYTES..=RECORD_MAX_BYTES).contains(&length) {
        return Probe::Nothing;
    }
    let Some(record) = bytes.get(..length) else {
        return Probe::Needs(length);
    };
    if u32_at(record, 8) != Some(record_checksum(record)) || !fields_fit(record) {
        return Probe::Nothing;
    }
    Probe::Record(length)
}

/// The sequence number of a record that [`probe`] found.
#[must_use]
pub fn record_sequence(record: &[u8]) -> u64 {
    u64_at(record, 16).unwrap_or(0)
}

/// The kernel sequence of a record that [`probe`] found, without decoding the rest.
#[must_use]
pub fn record_kernel_sequence(record: &[u8]) -> Option<u64> {
    Fields(record.get(RECORD_HEAD_BYTES..)?)
        .find(|(tag, _)| *tag == TAG_KERNEL_SEQUENCE)
        .and_then(|(_, value)| Some(u64::from_le_bytes(value.try_into().ok()?)))
}

/// The entry in a record that [`probe`] found. Total: what is missing reads as zero or absent.
#[must_use]
pub fn decode_record(record: &[u8]) -> Entry {
    let flags = u16_at(record, 14).unwrap_or(0);
    let mut entry = Entry::new(
        record.get(12).unwrap_or(&0) & 7,
        Transport::from_number(*record.get(13).unwrap_or(&0)),
        Vec::new(),
    );
    entry.continues = flags & FLAG_CONTINUES != 0;
    entry.unterminated = flags & FLAG_UNTERMINATED != 0;
    entry.sequence = u64_at(record, 16).unwrap_or(0);
    entry.realtime_us = u64_at(record, 24).unwrap_or(0);
    entry.monotonic_us = u64_at(record, 32).unwrap_or(0);
    let mut message = None;
    for (tag, value) in Fields(record.get(RECORD_HEAD_BYTES..).unwrap_or_default()) {
        match tag {
            TAG_MESSAGE => first(&mut message, Some(value)),
            TAG_UNIT => first(&mut entry.unit, text(value)),
            TAG_INVOCATION => first(&mut entry.invocation, value.try_into().ok().map(Id)),
            TAG_PID => first(
                &mut entry.pid,
                value.try_into().ok().map(u32::from_le_bytes),
            ),
            TAG_IDENTIFIER => first(&mut entry.identifier, text(value)),
            TAG_KERNEL_SEQUENCE => first(
                &mut entry.kernel_sequence,
                value.try_into().ok().map(u64::from_le_bytes),
            ),
            TAG_DROPPED => first(
                &mut entry.dropped,
                value.try_into().ok().map(u64::from_le_bytes),
            ),
            _ => {}
        }
    }
    entry.message = message.unwrap_or_default().to_vec();
    entry
}

/// If a tag occurs twice, the first counts.
fn first<T>(slot: &mut Option<T>, value: Option<T>) {
    if slot.is_none() {
        *slot = value;
    }
}

fn text(value: &[u8]) -> Option<String> {
    Some(String::from_utf8_lossy(value).into_owned())
}

/// The first `max_bytes` bytes of `text`, without half a character.
fn cut(text: &str, max_bytes: usize) -> &[u8] {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

/// `value` is at most 48 KiB long, so its length fits.
fn push_field(out: &mut Vec<u8>, tag: u16, value: &[u8]) {
    out.extend_from_slice(&tag.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
}

/// The fields that begin at the start of the slice, up to the first that does not fit.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = u16_at(self.0, 0)?;
        let length = usize::from(u16_at(self.0, 2)?);
        let value = self.0.get(4..4 + length)?;
        self.0 = &self.0[4 + length..];
        Some((tag, value))
    }
}

fn fields_fit(record: &[u8]) -> bool {
    let mut fields = Fields(record.get(RECORD_HEAD_BYTES..).unwrap_or_default());
    while fields.next().is_some() {}
    fields.0.is_empty()
}

fn header_checksum(header: &[u8]) -> u32 {
    checksum(&[&header[..12], &header[16..]])
}

fn record_checksum(record: &[u8]) -> u32 {
    checksum(&[&record[..8], &record[12..]])
}

fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.get(..N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_le_bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const HEADER: Header = Header {
        mark: [0xe5, 1, 2, 3],
        journal: Id([1; 16]),
        machine: Id([2; 16]),
        boot: Id([3; 16]),
        first_sequence: 1,
        realtime_us: 5,
        monotonic_us: 6,
    };

    /// Any entry that a writer may store; with that sequence number.
    pub(crate) fn entries(sequence: u64) -> impl Strategy<Value = Entry> {
        let names = || proptest::option::of("[a-zé@.-]{0,20}");
        let times = (any::<u64>(), any::<u64>(), 0..=7u8, any::<u8>());
        let flags = (any::<bool>(), any::<bool>());
        let numbers = proptest::option::of(any::<u64>());
        let fields = (
            names(),
            names(),
            any::<Option<[u8; 16]>>(),
            any::<Option<u32>>(),
        );
        let message = proptest::collection::vec(any::<u8>(), 0..200);
        (times, flags, fields, (numbers.clone(), numbers), message).prop_map(
            move |(times, flags, fields, numbers, message)| Entry {
                sequence,
                realtime_us: times.0,
                monotonic_us: times.1,
                priority: times.2,
                transport: Transport::from_number(times.3),
                continues: flags.0,
                unterminated: flags.1,
                unit: fields.0,
                identifier: fields.1,
                invocation: fields.2.map(Id),
                pid: fields.3,
                kernel_sequence: numbers.0,
                dropped: numbers.1,
                message,
            },
        )
    }

    #[test]
    fn a_header_is_laid_out_as_documented() {
        let bytes = HEADER.encode();
        assert_eq!(&bytes[..12], b"ORLOPJNL\x01\0\x60\0");
        assert_eq!(bytes[16..24], [0xe5, 1, 2, 3, 0, 0, 0, 0]);
        assert_eq!(bytes[24..72], [[1; 16], [2; 16], [3; 16]].concat());
        assert_eq!(
            bytes[72..96],
            [
                1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0
            ]
        );
        assert_eq!(Header::decode(&bytes), Ok((HEADER, 96)));
    }

    #[test]
    fn a_record_is_laid_out_as_documented() {
        let mut entry = Entry::new(3, Transport::Stdout, b"hi".to_vec());
        entry.sequence = 9;
        entry.unterminated = true;
        entry.unit = Some("a.service".to_owned());
        entry.pid = Some(0x0102);
        let mut bytes = Vec::new();
        encode_record(&entry, HEADER.mark, &mut bytes);
        let fields = b"\x02\0\x09\0a.service\x04\0\x04\0\x02\x01\0\0\x01\0\x02\0hi";
        assert_eq!(bytes[..8], [0xe5, 1, 2, 3, 67, 0, 0, 0]);
        assert_eq!(bytes[12..24], [3, 1, 2, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[40..67], fields);
        assert_eq!(bytes.len(), 72);
        // CRC-32 of IEEE 802.3, bit by bit.
        let covered = [&bytes[..8], &bytes[12..67]].concat();
        let crc = covered.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        });
        assert_eq!(bytes[8..12], (!crc).to_le_bytes());
    }

    #[test]
    fn fields_of_a_later_writer_are_passed_over() {
        let entry = Entry::new(6, Transport::Kernel, b"text".to_vec());
        let mut bytes = Vec::new();
        encode_record(&entry, HEADER.mark, &mut bytes);
        let fields = b"\xff\x7f\x03\0new\x02\0\x01\0u\x02\0\x01\0v\x04\0\x02\0no";
        bytes.splice(40..40, fields.iter().copied());
        bytes.truncate(40 + fields.len() + 8);
        let length = bytes.len() as u32;
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        let checksum = record_checksum(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(probe(&bytes, HEADER.mark), Probe::Record(bytes.len()));
        let read = decode_record(&bytes);
        assert_eq!(read.unit.as_deref(), Some("u"), "the first of two counts");
        assert_eq!(read.pid, None, "a value of the wrong length is absent");
        assert_eq!(read.message, b"text");
    }

    #[test]
    fn a_header_that_is_longer_or_newer_is_told_apart() {
        let mut longer = HEADER.encode().to_vec();
        longer.extend_from_slice(&[7; 8]);
        longer[10] = 104;
        let checksum = header_checksum(&longer);
        longer[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&longer), Ok((HEADER, 104)));
        let mut newer = HEADER.encode();
        newer[8] = 2;
        assert_eq!(Header::decode(&newer), Err(HeaderError::Version(2)));
        assert_eq!(Header::decode(&longer[..100]), Err(HeaderError::Short));
    }

    #[test]
    fn values_that_are_too_long_are_cut() {
        let mut entry = Entry::new(6, Transport::Stdout, vec![b'x'; 100_000]);
        entry.unit = Some("é".repeat(200));
        let mut bytes = Vec::new();
        encode_record(&entry, HEADER.mark, &mut bytes);
        let Probe::Record(length) = probe(&bytes, HEADER.mark) else {
            panic!("no record")
        };
        let read = decode_record(&bytes[..length]);
        assert_eq!(read.message.len(), MESSAGE_MAX_BYTES);
        assert_eq!(read.unit, Some("é".repeat(127)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entry in entries(77)) {
            let mut bytes = Vec::new();
            encode_record(&entry, HEADER.mark, &mut bytes);
            let Probe::Record(length) = probe(&bytes, HEADER.mark) else {
                panic!("no record")
            };
            prop_assert_eq!(bytes.len(), padded(length));
            prop_assert_eq!(decode_record(&bytes[..length]), entry);
        }

        #[test]
        fn any_bytes_are_taken(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::decode(&bytes);
            let _ = probe(&bytes, HEADER.mark);
            let _ = decode_record(&bytes);
            for (to, from) in bytes.iter_mut().zip([HEADER.mark, 100u32.to_le_bytes()].concat()) {
                *to = from;
            }
            let _ = probe(&bytes, HEADER.mark);
            let _ = record_kernel_sequence(&bytes);
        }
    }
}
