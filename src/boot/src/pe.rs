//! Sections of a Unified Kernel Image (UAPI.5), which is a PE executable. Total: what is no such file has no sections.

use crate::little_endian::{u16_at, u32_at};

/// The longest section that is read: texts, not kernels.
const LONGEST: u32 = 64 << 10;

/// Sections that a file may have; the loader's stub has about ten.
const MOST_SECTIONS: u16 = 96;

/// Where a section's contents are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// The name, padded with zeros.
    pub name: [u8; 8],
    /// Bytes in memory: the contents' true length.
    pub size: u32,
    /// Bytes in the file, rounded up.
    pub file_size: u32,
    /// The contents' place in the file.
    pub file_offset: u32,
}

/// The sections of the file that `read` reads; `None` when it is no PE file, or one that ends too soon.
///
/// By the PE format (Microsoft's specification): the offset of `PE\0\0` at 0x3c, then the COFF header with the number of
/// sections at 2 and the optional header's size at 16, then both, then 40 bytes a section.
#[must_use]
pub fn sections(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<Section>> {
    let dos = read(0, 64)?;
    if !dos.starts_with(b"MZ") {
        return None;
    }
    let pe = u64::from(u32_at(&dos, 0x3c)?);
    let header = read(pe, 24)?;
    if !header.starts_with(b"PE\0\0") {
        return None;
    }
    let count = u16_at(&header, 6)?;
    if count > MOST_SECTIONS {
        return None;
    }
    let table = pe + 24 + u64::from(u16_at(&header, 20)?);
    let bytes = read(table, usize::from(count) * 40)?;
    let sections: Vec<Section> = bytes
        .chunks_exact(40)
        .map(|section| {
            Some(Section {
                name: *section.first_chunk()?,
                size: u32_at(section, 8)?,
                file_size: u32_at(section, 16)?,
                file_offset: u32_at(section, 20)?,
            })
        })
        .collect::<Option<_>>()?;
    let is_whole = |section: &Section| {
        let last = u64::from(section.file_offset) + u64::from(section.file_size.saturating_sub(1));
        section.file_size == 0 || read(last, 1).is_some()
    };
    sections.iter().all(is_whole).then_some(sections)
}

/// The text of a section such as `.cmdline`, up to its first zero; `None` when the file has no such section, or only a part
/// of it, or one that is no text.
#[must_use]
pub fn text(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>, name: &str) -> Option<String> {
    let section = sections(read)?.into_iter().find(|section| {
        let end = section.name.iter().position(|b| *b == 0).unwrap_or(8);
        section.name.get(..end) == Some(name.as_bytes())
    })?;
    let length = section.size.min(section.file_size);
    if length > LONGEST {
        return None;
    }
    let mut bytes = read(section.file_offset.into(), length as usize)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    String::from_utf8(bytes).ok()
}

/// The least of an image that has a command line, padded to `length` bytes: for tests of what handles images.
#[doc(hidden)]
#[must_use]
pub fn sample(command_line: &str, length: usize) -> Vec<u8> {
    let mut image = vec![0; length.max(1024 + command_line.len())];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in image.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, b"MZ");
    put(0x3c, &64_u32.to_le_bytes());
    put(64, b"PE\0\0");
    put(64 + 6, &1_u16.to_le_bytes());
    put(64 + 24, b".cmdline");
    let size = u32::try_from(command_line.len()).unwrap_or_default();
    put(64 + 24 + 8, &size.to_le_bytes());
    put(64 + 24 + 16, &size.to_le_bytes());
    put(64 + 24 + 20, &1024_u32.to_le_bytes());
    put(1024, command_line.as_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(file: &[u8]) -> impl Fn(u64, usize) -> Option<Vec<u8>> {
        |at, length| {
            let at = usize::try_from(at).ok()?;
            Some(file.get(at..at.checked_add(length)?)?.to_vec())
        }
    }

    fn file() -> Vec<u8> {
        let mut file = vec![0; 0x200];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file[0x40..0x44].copy_from_slice(b"PE\0\0");
        file[0x46] = 2;
        file[0x54] = 16;
        for (n, name) in [&b".linux\0\0"[..], b".cmdline"].iter().enumerate() {
            let at = 0x68 + n * 40;
            file[at..at + 8].copy_from_slice(name);
            file[at + 8] = 11;
            file[at + 16] = 32;
            file[at + 20..at + 24].copy_from_slice(&0x1c0_u32.to_le_bytes());
        }
        file[0x1c0..0x1cb].copy_from_slice(b"roothash=ab");
        file
    }

    #[test]
    fn a_section_is_found_by_its_whole_name() {
        let file = file();
        assert_eq!(text(&of(&file), ".cmdline").unwrap(), "roothash=ab");
        assert_eq!(text(&of(&file), ".cmd"), None);
    }

    #[test]
    fn a_file_that_ends_too_soon_has_no_text() {
        let file = file();
        assert_eq!(text(&of(&file[..0x1c4]), ".cmdline"), None);
    }

    #[test]
    fn a_file_that_ends_in_another_section_has_no_text() {
        let mut file = file();
        file[0x68 + 20..0x68 + 24].copy_from_slice(&0x1e0_u32.to_le_bytes());
        assert_eq!(text(&of(&file), ".cmdline").unwrap(), "roothash=ab");
        assert_eq!(text(&of(&file[..0x1ff]), ".cmdline"), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(mut file in Just(file()), flips in proptest::collection::vec((0..0x200_usize, any::<u8>()), 0..8), length in 0..0x200_usize) {
            for (at, value) in flips {
                file[at] = value;
            }
            file.truncate(length);
            let _ = text(&of(&file), ".cmdline");
        }
    }
}
