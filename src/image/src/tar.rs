//! A reader of tar streams: ustar, GNU long names and pax headers (POSIX.1-2024, `pax`, "ustar Interchange Format").
//!
//! It is written for hostile input: everything it keeps in memory has a limit, and no input makes it panic. It follows what
//! image tools agree on rather than every dialect: sparse files, multi-volume archives and unknown types are errors.

use std::io::{self, Read};

const BLOCK_BYTES: usize = 512;

/// The most bytes that one pax header or GNU long name may have.
pub const MAX_EXTENSION_BYTES: u64 = 1024 * 1024;

/// The most extension headers that may stand before one entry: `x`, `L` and `K`, with some patience.
const MAX_EXTENSIONS: u32 = 16;

/// The longest path or link target, in bytes (`PATH_MAX`, include/uapi/linux/limits.h).
pub const MAX_PATH_BYTES: usize = 4096;

/// Why a stream is no archive that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream could not be read, or its compression is broken.
    #[error("cannot read the archive at byte {at}")]
    Read {
        /// Offset in the uncompressed archive.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The stream ends inside a header or inside an entry's data.
    #[error("the archive is cut off at byte {at}")]
    Truncated {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// A header's checksum is wrong.
    #[error("no tar header at byte {at} (wrong checksum)")]
    Checksum {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// A header field holds no number, or one out of range.
    #[error("the tar header at byte {at} has a bad {field}")]
    Field {
        /// Offset in the uncompressed archive.
        at: u64,
        /// The field's name in POSIX.
        field: &'static str,
    },
    /// A pax header is not made of `length key=value` records.
    #[error("the pax header at byte {at} is malformed")]
    Pax {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// An extension header is larger than [`MAX_EXTENSION_BYTES`], or there are too many of them.
    #[error(
        "the extension headers at byte {at} are larger than {MAX_EXTENSION_BYTES} bytes or too many"
    )]
    ExtensionTooLarge {
        /// Offset in the uncompressed archive.
        at: u64,
    },
    /// A kind of entry that no image has.
    #[error("the entry at byte {at} is {what}, which is not supported")]
    Unsupported {
        /// Offset in the uncompressed archive.
        at: u64,
        /// What it is.
        what: String,
    },
}

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file with data.
    File,
    /// Another name for an earlier entry.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One member of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands in the archive; may be absolute or hold `..`.
    pub path: Vec<u8>,
    /// The target of a link, empty otherwise.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of data that follow; 0 for all but files.
    pub size: u64,
    /// Permission bits with set-id and sticky bits (0..=0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime_s: i64,
    /// Nanoseconds on top (0..1e9).
    pub mtime_ns: u32,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stream that can leave bytes out, by seeking where it can.
pub trait Skip: Read {
    /// Passes over `count` bytes; fewer is [`io::ErrorKind::UnexpectedEof`].
    ///
    /// # Errors
    /// Those of reading.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// A stream where skipping is reading.
#[derive(Debug)]
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Skip for Stream<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(count), &mut io::sink())?;
        if skipped == count {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Reads entry after entry; between two calls of [`Reader::next_entry`] it is a [`Read`] of the entry's data.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Bytes taken from `inner`.
    position: u64,
    /// Data of the current entry not yet read.
    data_left: u64,
    /// Padding after that data.
    padding: u64,
    ended: bool,
}

/// What pax headers and GNU long names say about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Skip> Reader<R> {
    /// Reads from the current position of `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            position: 0,
            data_left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Where the next byte comes from: after [`Reader::next_entry`] the offset of the entry's data.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream behind, positioned after what was read: for what follows the end of the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end. What is left of the last entry's data is skipped.
    ///
    /// # Errors
    /// When the stream fails or holds no archive that can be used.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        let mut extensions = Extensions::default();
        let mut extension_count = 0;
        let mut extension_bytes = 0_u64;
        loop {
            self.skip_rest()?;
            let at = self.position;
            let Some(block) = self.read_block()? else {
                if extension_count > 0 {
                    return Err(Error::Truncated { at });
                }
                self.ended = true;
                return Ok(None);
            };
            // One empty block ends the archive for every tool in use; the second is often missing.
            if block.iter().all(|&b| b == 0) {
                self.ended = true;
                return Ok(None);
            }
            let header = Header { block: &block, at };
            header.verify()?;
            let type_flag = header.byte(156);
            match type_flag {
                b'x' | b'g' | b'L' | b'K' => {
                    let size = header.unsigned(124, 12, "size")?;
                    extension_count += 1;
                    extension_bytes = extension_bytes.saturating_add(size);
                    if extension_bytes > MAX_EXTENSION_BYTES || extension_count > MAX_EXTENSIONS {
                        return Err(Error::ExtensionTooLarge { at });
                    }
                    let data = self.read_extension(size)?;
                    match type_flag {
                        b'x' => extensions.add_pax(&data, at)?,
                        b'L' => extensions.path = Some(until_nul(&data).to_vec()),
                        b'K' => extensions.link = Some(until_nul(&data).to_vec()),
                        // Global records hold comments (git archive); image tools ignore them, and so do we.
                        _ => {}
                    }
                }
                _ => {
                    let entry = header.entry(extensions)?;
                    self.data_left = entry.size;
                    self.padding = padding_of(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let count = self.data_left.saturating_add(self.padding);
        (self.data_left, self.padding) = (0, 0);
        if count == 0 {
            return Ok(());
        }
        let at = self.position;
        self.inner
            .skip(count)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Truncated { at },
                _ => Error::Read { at, source },
            })?;
        self.position = self.position.saturating_add(count);
        Ok(())
    }

    /// A block, or `None` when the stream ends before it.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, Error> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Truncated { at: self.position }),
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Error::Read {
                        at: self.position,
                        source,
                    });
                }
            }
        }
        Ok(Some(block))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        self.data_left = size;
        self.padding = padding_of(size);
        let mut data = Vec::new();
        let at = self.position;
        self.read_to_end(&mut data)
            .map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Error::Truncated { at },
                _ => Error::Read { at, source },
            })?;
        Ok(data)
    }
}

impl<R: Read> Read for Reader<R> {
    /// Data of the current entry. A stream that ends too early is [`io::ErrorKind::UnexpectedEof`].
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf
            .len()
            .min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(buf.get_mut(..want).unwrap_or_default())?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        self.data_left -= count as u64;
        Ok(count)
    }
}

fn padding_of(size: u64) -> u64 {
    (BLOCK_BYTES as u64 - size % BLOCK_BYTES as u64) % BLOCK_BYTES as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// A 512-byte header block; offsets and lengths below are those of POSIX' table "ustar Header Block".
struct Header<'a> {
    block: &'a [u8; BLOCK_BYTES],
    at: u64,
}

impl Header<'_> {
    fn byte(&self, offset: usize) -> u8 {
        self.block.get(offset).copied().unwrap_or(0)
    }

    fn field(&self, offset: usize, len: usize) -> &[u8] {
        self.block.get(offset..offset + len).unwrap_or_default()
    }

    fn verify(&self) -> Result<(), Error> {
        let stored = self
            .unsigned(148, 8, "checksum")
            .map_err(|_| Error::Checksum { at: self.at })?;
        let counted = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let bytes = || self.block.iter().enumerate().map(|(i, &b)| counted(i, b));
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old tools summed signed characters.
        let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
        if stored == unsigned || i64::try_from(stored) == Ok(signed) {
            return Ok(());
        }
        Err(Error::Checksum { at: self.at })
    }

    /// A number in octal digits, or big-endian binary with the first bit set (GNU and star, "base-256").
    fn number(&self, offset: usize, len: usize, field: &'static str) -> Result<i64, Error> {
        let bytes = self.field(offset, len);
        let bad = || Error::Field { at: self.at, field };
        if let Some((&first, rest)) = bytes.split_first()
            && first & 0x80 != 0
        {
            // The sign is the bit below the marker.
            let mut value = if first & 0x40 == 0 {
                i128::from(first & 0x3f)
            } else {
                i128::from(first) - 0x100
            };
            for &byte in rest {
                value = value
                    .checked_mul(256)
                    .and_then(|v| v.checked_add(i128::from(byte)))
                    .ok_or_else(bad)?;
            }
            return i64::try_from(value).map_err(|_| bad());
        }
        let mut value = 0_i64;
        let digits = until_nul(bytes);
        for &byte in digits.trim_ascii() {
            let digit = match byte {
                b'0'..=b'7' => i64::from(byte - b'0'),
                _ => return Err(bad()),
            };
            value = value
                .checked_mul(8)
                .and_then(|v| v.checked_add(digit))
                .ok_or_else(bad)?;
        }
        Ok(value)
    }

    fn unsigned(&self, offset: usize, len: usize, field: &'static str) -> Result<u64, Error> {
        u64::try_from(self.number(offset, len, field)?)
            .map_err(|_| Error::Field { at: self.at, field })
    }

    fn small(&self, offset: usize, len: usize, field: &'static str) -> Result<u32, Error> {
        u32::try_from(self.number(offset, len, field)?)
            .map_err(|_| Error::Field { at: self.at, field })
    }

    /// The path of `name` and `prefix`.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        // GNU headers ("ustar  ") keep times where ustar has the prefix; star ones end theirs earlier.
        let prefix = match self.field(257, 6) {
            b"ustar\0" if self.field(508, 4) == b"tar\0" => until_nul(self.field(345, 131)),
            b"ustar\0" => until_nul(self.field(345, 155)),
            _ => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    fn entry(&self, extensions: Extensions) -> Result<Entry, Error> {
        let at = self.at;
        let path = extensions.path.unwrap_or_else(|| self.path());
        let link = extensions
            .link
            .unwrap_or_else(|| until_nul(self.field(157, 100)).to_vec());
        let unsupported = |what: String| Error::Unsupported { at, what };
        let kind = match self.byte(156) {
            // Archives from before POSIX mark directories by the slash alone.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(unsupported("a sparse file".to_owned())),
            other => return Err(unsupported(format!("of type {:?}", char::from(other)))),
        };
        if path.len() > MAX_PATH_BYTES || path.contains(&0) {
            return Err(Error::Field { at, field: "path" });
        }
        if link.len() > MAX_PATH_BYTES || link.contains(&0) {
            return Err(Error::Field {
                at,
                field: "linkname",
            });
        }
        // Only files have data, whatever the size field of the others says.
        let size = match (kind, extensions.size) {
            (Kind::File, Some(size)) => size,
            (Kind::File, None) => self.unsigned(124, 12, "size")?,
            _ => 0,
        };
        if i64::try_from(size).is_err() {
            return Err(Error::Field { at, field: "size" });
        }
        let (mtime_s, mtime_ns) = match extensions.mtime {
            Some(mtime) => mtime,
            None => (self.number(136, 12, "mtime")?, 0),
        };
        let device = match kind {
            Kind::Character | Kind::Block => (
                self.small(329, 8, "devmajor")?,
                self.small(337, 8, "devminor")?,
            ),
            _ => (0, 0),
        };
        Ok(Entry {
            path,
            link: if matches!(kind, Kind::HardLink | Kind::Symlink) {
                link
            } else {
                Vec::new()
            },
            kind,
            size,
            mode: (self.number(100, 8, "mode")? & 0o7777) as u32,
            uid: extensions
                .uid
                .map_or_else(|| self.small(108, 8, "uid"), Ok)?,
            gid: extensions
                .gid
                .map_or_else(|| self.small(116, 8, "gid"), Ok)?,
            mtime_s,
            mtime_ns,
            device,
            xattrs: extensions.xattrs,
        })
    }
}

impl Extensions {
    /// Adds the records of a pax extended header: `"%d %s=%s\n", length, key, value`.
    fn add_pax(&mut self, mut data: &[u8], at: u64) -> Result<(), Error> {
        let bad = || Error::Pax { at };
        while !data.is_empty() {
            let space = data
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or_else(bad)?;
            let length = data.get(..space).and_then(ascii_number).ok_or_else(bad)?;
            let length = usize::try_from(length).map_err(|_| bad())?;
            if length <= space + 1 {
                return Err(bad());
            }
            let record = data
                .get(space + 1..length)
                .and_then(|r| r.strip_suffix(b"\n"))
                .ok_or_else(bad)?;
            data = data.get(length..).ok_or_else(bad)?;
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            let (key, value) = record.split_at(equals);
            self.add_record(key, value.get(1..).unwrap_or_default())
                .ok_or_else(bad)?;
        }
        Ok(())
    }

    /// `None` when the value is not what its key demands. An empty value takes the record back.
    fn add_record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = |value: &[u8]| (!value.contains(&0)).then(|| value.to_vec());
        match key {
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => match key {
                b"path" => self.path = None,
                b"linkpath" => self.link = None,
                b"size" => self.size = None,
                b"uid" => self.uid = None,
                b"gid" => self.gid = None,
                b"mtime" => self.mtime = None,
                _ => {}
            },
            b"path" => self.path = Some(text(value)?),
            b"linkpath" => self.link = Some(text(value)?),
            b"size" => self.size = Some(ascii_number(value)?),
            b"uid" => self.uid = Some(u32::try_from(ascii_number(value)?).ok()?),
            b"gid" => self.gid = Some(u32::try_from(ascii_number(value)?).ok()?),
            b"mtime" => self.mtime = Some(decimal_time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => return None,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.add_xattr(text(name)?, value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    self.add_xattr(text(&percent_decode(name)?)?, base64_decode(value)?);
                }
            }
        }
        Some(())
    }

    fn add_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        // Archivers write both forms of one attribute; SCHILY's and LIBARCHIVE's mean the same.
        match self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.xattrs.push((name, value)),
        }
    }
}

fn ascii_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &b| {
        value.checked_mul(10)?.checked_add(u64::from(b - b'0'))
    })
}

/// Seconds with a fraction, perhaps negative, as (floor, nanoseconds).
fn decimal_time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(ascii_number(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0_u32, |value, i| {
        value * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, ns) => (whole, ns),
        (true, 0) => (-whole, 0),
        (true, ns) => (-whole - 1, 1_000_000_000 - ns),
    })
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(*bytes.next()?).to_digit(16)?;
            let low = char::from(*bytes.next()?).to_digit(16)?;
            out.push((high * 16 + low) as u8);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// RFC 4648 §4, padding optional as libarchive leaves it out.
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for &byte in text.iter().filter(|b| !matches!(b, b'=' | b'\n')) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}
