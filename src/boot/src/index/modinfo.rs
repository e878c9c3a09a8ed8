//! What a kernel module says of itself: the `.modinfo` section of its ELF file.

use thiserror::Error;

/// Why a file is no kernel module.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ModinfoError {
    /// The file does not begin with the header of a 64-bit little-endian ELF object.
    #[error("not a 64-bit little-endian ELF file")]
    NotElf,
    /// A header points outside of the file.
    #[error("the {what} lies outside of the file")]
    Truncated {
        /// Which part.
        what: &'static str,
    },
    /// There is no `.modinfo` section.
    #[error("no .modinfo section")]
    NoModinfo,
    /// The section has no `name=` entry.
    #[error("the .modinfo section has no name")]
    NoName,
}

/// A module's own description.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModuleInfo {
    /// The kernel's name for it, normalised.
    pub name: String,
    /// Aliases as written, `devname:` ones left out.
    pub aliases: Vec<String>,
    /// Names of the modules whose symbols it uses, normalised.
    pub depends: Vec<String>,
    /// Names or aliases that should be loaded before it.
    pub soft_before: Vec<String>,
    /// Names or aliases that should be loaded after it.
    pub soft_after: Vec<String>,
    /// The device node that stands for it (`MODULE_ALIAS("devname:…")`), below `/dev`.
    pub node: Option<String>,
}

impl ModuleInfo {
    /// Reads the description out of an uncompressed `.ko` file. Total: no input makes it panic.
    ///
    /// # Errors
    /// Says what of the file is not as a module's must be.
    pub fn read(elf: &[u8]) -> Result<Self, ModinfoError> {
        let section = modinfo_section(elf)?;
        let mut info = Self::default();
        for entry in section.split(|b| *b == 0) {
            let Some((key, value)) = std::str::from_utf8(entry)
                .ok()
                .and_then(|e| e.split_once('='))
            else {
                continue;
            };
            match key {
                "name" => info.name = super::normalise(value),
                "alias" => match value.strip_prefix("devname:") {
                    Some(node) => info.node = Some(node.to_owned()),
                    None => info.aliases.push(value.to_owned()),
                },
                "depends" => {
                    info.depends = value
                        .split(',')
                        .filter(|d| !d.is_empty())
                        .map(super::normalise)
                        .collect()
                }
                "softdep" => info.add_softdep(value),
                _ => {}
            }
        }
        if info.name.is_empty() {
            Err(ModinfoError::NoName)
        } else {
            Ok(info)
        }
    }

    /// `pre: a b post: c`; words before the first keyword mean nothing (modprobe.d(5)).
    fn add_softdep(&mut self, value: &str) {
        let mut into: Option<&mut Vec<String>> = None;
        for word in value.split_ascii_whitespace() {
            match word {
                "pre:" => into = Some(&mut self.soft_before),
                "post:" => into = Some(&mut self.soft_after),
                name => {
                    if let Some(list) = into.as_deref_mut() {
                        list.push(name.to_owned());
                    }
                }
            }
        }
    }
}

/// Finds the bytes of `.modinfo`. Offsets are those of `Elf64_Ehdr` and `Elf64_Shdr` in elf(5).
fn modinfo_section(elf: &[u8]) -> Result<&[u8], ModinfoError> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        return Err(ModinfoError::NotElf);
    }
    let header = ModinfoError::Truncated { what: "ELF header" };
    let (Some(table), Some(entry_size), Some(count), Some(names)) = (
        u64_at(elf, 40),
        u16_at(elf, 58),
        u16_at(elf, 60),
        u16_at(elf, 62),
    ) else {
        return Err(header);
    };
    let section_header = |number: u16| -> Option<&[u8]> {
        let start = table.checked_add(usize::from(number).checked_mul(usize::from(entry_size))?)?;
        elf.get(start..start.checked_add(64)?)
    };
    let contents = |header: &[u8]| -> Option<&[u8]> {
        let start = u64_at(header, 24)?;
        elf.get(start..start.checked_add(u64_at(header, 32)?)?)
    };
    let names = section_header(names)
        .and_then(contents)
        .ok_or(ModinfoError::Truncated {
            what: "table of section names",
        })?;
    for number in 0..count {
        let header = section_header(number).ok_or(ModinfoError::Truncated {
            what: "section table",
        })?;
        let name = u32_at(header, 0)
            .and_then(|offset| names.get(offset..))
            .unwrap_or_default();
        if name.starts_with(b".modinfo\0") {
            return contents(header).ok_or(ModinfoError::Truncated {
                what: ".modinfo section",
            });
        }
    }
    Err(ModinfoError::NoModinfo)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let value = bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u32::from_le_bytes(*b))?;
    usize::try_from(value).ok()
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<usize> {
    let value = bytes
        .get(offset..)?
        .first_chunk()
        .map(|b| u64::from_le_bytes(*b))?;
    usize::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A minimal ELF object with a table of names and a `.modinfo` section.
    fn elf(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.shstrtab\0.modinfo\0";
        let table = 64 + names.len() + modinfo.len();
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58..60].copy_from_slice(&64_u16.to_le_bytes());
        file[60..62].copy_from_slice(&3_u16.to_le_bytes());
        file[62..64].copy_from_slice(&1_u16.to_le_bytes());
        file.extend_from_slice(names);
        file.extend_from_slice(modinfo);
        for (name, offset, size) in [
            (0_u32, 0, 0),
            (1, 64, names.len()),
            (11, 64 + names.len(), modinfo.len()),
        ] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file
    }

    #[test]
    fn a_module_tells_its_name_aliases_and_dependencies() {
        let info = ModuleInfo::read(&elf(
            b"alias=devname:net/tun\0alias=char-major-10-200\0depends=a-b,c\0softdep=pre: crc32c x post: y\0name=t-un\0",
        ))
        .unwrap();
        assert_eq!(info.name, "t_un");
        assert_eq!(info.aliases, ["char-major-10-200"]);
        assert_eq!(info.depends, ["a_b", "c"]);
        assert_eq!(info.soft_before, ["crc32c", "x"]);
        assert_eq!(info.soft_after, ["y"]);
        assert_eq!(info.node.as_deref(), Some("net/tun"));
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        assert_eq!(ModuleInfo::read(b"#!/bin/sh"), Err(ModinfoError::NotElf));
        assert_eq!(
            ModuleInfo::read(b"\x7fELF\x02\x01"),
            Err(ModinfoError::Truncated { what: "ELF header" })
        );
        assert_eq!(
            ModuleInfo::read(&elf(b"depends=\0")),
            Err(ModinfoError::NoName)
        );
    }

    proptest! {
        #[test]
        fn a_damaged_file_never_makes_it_panic(changes in prop::collection::vec((0_usize..300, any::<u8>()), 1..20), cut in 0_usize..400) {
            let mut file = elf(b"alias=char-major-10-200\0depends=a,b\0softdep=pre: c\0name=m\0");
            for (at, byte) in changes {
                if let Some(target) = file.get_mut(at) {
                    *target = byte;
                }
            }
            file.truncate(cut);
            let _ = ModuleInfo::read(&file);
        }
    }
}
