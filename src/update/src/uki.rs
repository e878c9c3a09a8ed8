//! What a Unified Kernel Image says of itself: the command line in its section `.cmdline` (UAPI Unified Kernel Image specification).

use crate::hex::Hash;

/// The most sections that are looked at.
const MOST_SECTIONS: u16 = 96;

/// The longest command line that is read; the kernel takes 2048 on x86-64 (`COMMAND_LINE_SIZE`).
const LONGEST: u32 = 16 << 10;

/// The command line of the image of which `read` gives `length` bytes at an offset (`None` when it can not). Total.
///
/// Offsets are those of the PE format: at 0x3c where the PE header is; in it the number of sections at 6 and the size of the optional header at
/// 20, behind which sections of 40 bytes follow: name, size in memory at 8, size in the file at 16, offset in the file at 20.
#[must_use]
pub fn command_line(read: &dyn Fn(u64, usize) -> Option<Vec<u8>>) -> Option<String> {
    let dos = read(0, 64)?;
    if !dos.starts_with(b"MZ") {
        return None;
    }
    let pe_at = u64::from(u32_at(&dos, 0x3c)?);
    let pe = read(pe_at, 24)?;
    if !pe.starts_with(b"PE\0\0") {
        return None;
    }
    let sections_at = pe_at + 24 + u64::from(u16_at(&pe, 20)?);
    let count = u16_at(&pe, 6)?.min(MOST_SECTIONS);
    let table = read(sections_at, usize::from(count) * 40)?;
    let section = table
        .chunks_exact(40)
        .find(|section| section.starts_with(b".cmdline"))?;
    let length = u32_at(section, 8)?.min(u32_at(section, 16)?);
    if length > LONGEST {
        return None;
    }
    let text = read(u64::from(u32_at(section, 20)?), length as usize)?;
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(text.len());
    Some(String::from_utf8_lossy(text.get(..end)?).trim().to_owned())
}

/// The value of `roothash=` on a command line. Of several the last counts, as for all of the kernel's words.
#[must_use]
pub fn root_hash(command_line: &str) -> Option<Hash> {
    let mut values = command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("roothash="));
    values.next_back()?.parse().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
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
    let size = (command_line.len() as u32).to_le_bytes();
    put(64 + 24 + 8, &size);
    put(64 + 24 + 16, &size);
    put(64 + 24 + 20, &1024_u32.to_le_bytes());
    put(1024, command_line.as_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(image: &[u8]) -> Option<String> {
        command_line(&|at, length| {
            let at = usize::try_from(at).ok()?;
            Some(image.get(at..at.checked_add(length)?)?.to_vec())
        })
    }

    #[test]
    fn the_command_line_names_the_root() {
        let hash = "ab".repeat(32);
        let line = format!("console=ttyS0 roothash={} roothash={hash}", "cd".repeat(32));
        let found = read(&sample(&line, 0)).unwrap();
        assert_eq!(found, line);
        assert_eq!(root_hash(&found).unwrap().to_string(), hash);
        assert_eq!(root_hash("roothash=abc quiet"), None);
    }

    proptest! {
        #[test]
        fn no_image_makes_it_panic(at in 0_usize..1100, bytes in any::<[u8; 4]>(), length in 0_usize..1100) {
            let mut image = sample("roothash=", 0);
            image.truncate(length);
            for (to, from) in image.iter_mut().skip(at).zip(bytes) { *to = from; }
            let _ = read(&image);
        }
    }
}
