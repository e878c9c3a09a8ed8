//! Which shared libraries an executable needs.

/// The names in the `DT_NEEDED` entries of a 64-bit little-endian ELF file; `None` when it is no such file.
///
/// A static executable has none. Offsets are those of elf(5); total, like every reader of files that others made.
pub(super) fn needed(elf: &[u8]) -> Option<Vec<String>> {
    const SHT_DYNAMIC: u32 = 6;
    const DT_NEEDED: u64 = 1;
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(elf, 40)?).ok()?;
    let count = usize::from(u16_at(elf, 60)?);
    let section = |number: usize| {
        elf.get(table.checked_add(number.checked_mul(64)?)?..)?
            .get(..64)
    };
    let contents = |header: &[u8]| {
        let start = usize::try_from(u64_at(header, 24)?).ok()?;
        elf.get(start..start.checked_add(usize::try_from(u64_at(header, 32)?).ok()?)?)
    };
    let Some(dynamic) = (0..count)
        .filter_map(section)
        .find(|header| u32_at(header, 4) == Some(SHT_DYNAMIC))
    else {
        return Some(Vec::new());
    };
    let strings = contents(section(usize::try_from(u32_at(dynamic, 40)?).ok()?)?)?;
    let names = contents(dynamic)?
        .chunks_exact(16)
        .filter(|entry| u64_at(entry, 0) == Some(DT_NEEDED))
        .filter_map(|entry| {
            let name = strings.get(usize::try_from(u64_at(entry, 8)?).ok()?..)?;
            let end = name.iter().position(|b| *b == 0)?;
            String::from_utf8(name.get(..end)?.to_vec()).ok()
        })
        .collect();
    Some(names)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_executable_needs_the_c_library_and_a_script_is_none() {
        let shell = std::fs::read("/bin/sh").unwrap();
        assert!(
            needed(&shell)
                .unwrap()
                .iter()
                .any(|name| name.starts_with("libc.so"))
        );
        assert_eq!(needed(b"#!/bin/sh\n"), None);
        assert_eq!(needed(b"\x7fELF\x02\x01"), None);
    }
}
