//! A writer of tar streams in POSIX' pax format: ustar headers, with extended records where those are too small.

use std::io::{self, Write};

use crate::tar::{Entry, Kind};

const BLOCK_BYTES: usize = 512;

/// Writes entry after entry. The same entries give the same bytes on every machine.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
}

impl<W: Write> Writer<W> {
    /// Writes to `inner` from where it stands.
    pub fn new(inner: W) -> Self {
        Self { inner }
    }

    /// Appends `entry` with its data; `entry.size` is taken from `data`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn append(&mut self, entry: &Entry, data: &[u8]) -> io::Result<()> {
        let size = data.len() as u64;
        let mut records = Vec::new();
        if entry.path.len() > 100 || !entry.path.is_ascii() {
            add_record(&mut records, b"path", &entry.path);
        }
        if entry.link.len() > 100 || !entry.link.is_ascii() {
            add_record(&mut records, b"linkpath", &entry.link);
        }
        if octal(size, 12).is_none() {
            add_record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, value) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
            if octal(value.into(), 8).is_none() {
                add_record(&mut records, key, value.to_string().as_bytes());
            }
        }
        let mtime = u64::try_from(entry.mtime_s)
            .ok()
            .filter(|&s| octal(s, 12).is_some());
        if mtime.is_none() || entry.mtime_ns != 0 {
            add_record(
                &mut records,
                b"mtime",
                decimal_time(entry.mtime_s, entry.mtime_ns).as_bytes(),
            );
        }
        for (name, value) in &entry.xattrs {
            add_record(
                &mut records,
                &[b"SCHILY.xattr.", name.as_slice()].concat(),
                value,
            );
        }
        if !records.is_empty() {
            self.header(
                b'x',
                b"pax",
                b"",
                records.len() as u64,
                &Entry {
                    mode: 0o644,
                    ..entry.clone()
                },
            )?;
            self.data(&records)?;
        }
        let type_flag = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Character => b'3',
            Kind::Block => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.header(type_flag, &entry.path, &entry.link, size, entry)?;
        self.data(data)
    }

    /// Ends the archive and gives back what was written to.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[0; 2 * BLOCK_BYTES])?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    fn header(
        &mut self,
        type_flag: u8,
        path: &[u8],
        link: &[u8],
        size: u64,
        entry: &Entry,
    ) -> io::Result<()> {
        let mut block = [0; BLOCK_BYTES];
        let mut put = |offset: usize, len: usize, bytes: &[u8]| {
            let bytes = bytes.get(..len.min(bytes.len())).unwrap_or_default();
            if let Some(field) = block.get_mut(offset..offset + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        let number = |value: u64, len: usize| {
            octal(value, len).unwrap_or_else(|| octal(0, len).unwrap_or_default())
        };
        put(0, 100, path);
        put(100, 8, &number(entry.mode.into(), 8));
        put(108, 8, &number(entry.uid.into(), 8));
        put(116, 8, &number(entry.gid.into(), 8));
        put(124, 12, &number(size, 12));
        put(
            136,
            12,
            &number(u64::try_from(entry.mtime_s).unwrap_or(0), 12),
        );
        put(148, 8, b"        ");
        put(156, 1, &[type_flag]);
        put(157, 100, link);
        put(257, 8, b"ustar\x0000");
        put(329, 8, &number(entry.device.0.into(), 8));
        put(337, 8, &number(entry.device.1.into(), 8));
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        let sum = format!("{sum:06o}\0 ");
        if let Some(field) = block.get_mut(148..156) {
            field.copy_from_slice(sum.as_bytes());
        }
        self.inner.write_all(&block)
    }

    fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.inner.write_all(data)?;
        let padding = (BLOCK_BYTES - data.len() % BLOCK_BYTES) % BLOCK_BYTES;
        self.inner
            .write_all([0; BLOCK_BYTES].get(..padding).unwrap_or_default())
    }
}

/// The value in as many octal digits as a field of `len` bytes has beside its NUL, if it fits.
fn octal(value: u64, len: usize) -> Option<Vec<u8>> {
    let digits = format!("{value:0width$o}", width = len - 1);
    (digits.len() < len).then(|| digits.into_bytes())
}

/// Appends `"%d %s=%s\n"`, where the number counts the whole record, itself included.
fn add_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// Seconds and nanoseconds above them as pax' decimal fraction.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (s, 0) => s.to_string(),
        (s, ns) if s >= 0 => format!("{s}.{ns:09}"),
        (s, ns) => format!("-{}.{:09}", -(s + 1), 1_000_000_000 - ns),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tar::{Reader, Stream};

    fn name(max: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1_u8..=255, 1..max).prop_map(|mut name| {
            // A slash at the end would make a file a directory.
            if name.last() == Some(&b'/') {
                name.push(b'a');
            }
            name
        })
    }

    prop_compose! {
        fn entry()(
            path in name(300),
            link in name(300),
            kind in prop::sample::select(vec![
                Kind::File, Kind::HardLink, Kind::Symlink, Kind::Character, Kind::Block, Kind::Directory, Kind::Fifo,
            ]),
            mode in 0_u32..0o10000,
            uid in any::<u32>(),
            gid in any::<u32>(),
            mtime_s in -100_000_000_000_i64..100_000_000_000,
            mtime_ns in prop::option::of(0_u32..1_000_000_000),
            device in (0_u32..1000, 0_u32..1000),
            xattrs in prop::collection::btree_map("(user|security)\\.[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40), 0..3),
        ) -> Entry {
            Entry {
                path,
                link: if matches!(kind, Kind::HardLink | Kind::Symlink) { link } else { Vec::new() },
                kind,
                size: 0,
                mode,
                uid,
                gid,
                mtime_s,
                mtime_ns: mtime_ns.unwrap_or(0),
                device: if matches!(kind, Kind::Character | Kind::Block) { device } else { (0, 0) },
                xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(entries in prop::collection::vec((entry(), prop::collection::vec(any::<u8>(), 0..1500)), 0..5)) {
            let mut writer = Writer::new(Vec::new());
            let mut expected = Vec::new();
            for (entry, data) in entries {
                let data = if entry.kind == Kind::File { data } else { Vec::new() };
                writer.append(&entry, &data).unwrap();
                expected.push((Entry { size: data.len() as u64, ..entry }, data));
            }
            let archive = writer.finish().unwrap();
            let mut reader = Reader::new(Stream(archive.as_slice()));
            for (entry, data) in expected {
                prop_assert_eq!(reader.next_entry().unwrap(), Some(entry));
                let mut got = Vec::new();
                io::Read::read_to_end(&mut reader, &mut got).unwrap();
                prop_assert_eq!(got, data);
            }
            prop_assert_eq!(reader.next_entry().unwrap(), None);
        }

        #[test]
        fn a_damaged_archive_never_makes_the_reader_panic(
            entries in prop::collection::vec((entry(), 0_usize..700), 1..4),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            fix_sums in any::<bool>(),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let mut writer = Writer::new(Vec::new());
            for (entry, length) in &entries {
                writer.append(entry, &vec![7; if entry.kind == Kind::File { *length } else { 0 }]).unwrap();
            }
            let mut archive = writer.finish().unwrap();
            for (at, byte) in flips {
                let at = at.index(archive.len());
                archive[at] = byte;
            }
            if fix_sums {
                // So that the damage gets past the checksum.
                for block in archive.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
                    block[148..156].copy_from_slice(b"        ");
                    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            if let Some(cut) = cut {
                archive.truncate(cut.index(archive.len()));
            }
            let mut reader = Reader::new(Stream(archive.as_slice()));
            let mut count = 0;
            while let Ok(Some(_)) = reader.next_entry() {
                count += 1;
                prop_assert!(count <= archive.len() / 512);
            }
        }
    }
}
