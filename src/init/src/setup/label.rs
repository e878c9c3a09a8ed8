//! The label of a FAT or ISO 9660 volume, read from its own structures. Total: no contents make it panic or read without end.

/// Reads bytes of a volume at an offset; `None` when it has fewer.
pub(crate) trait Volume {
    /// The `length` bytes at `offset`.
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>>;
}

/// What the volume is to mount(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fat,
    Iso9660,
}

impl Kind {
    pub(crate) fn filesystem(self) -> &'static str {
        match self {
            Self::Fat => "vfat",
            Self::Iso9660 => "iso9660",
        }
    }

    /// Options that keep the volume's secrets to root.
    pub(crate) fn options(self) -> &'static str {
        match self {
            Self::Fat => "umask=077",
            Self::Iso9660 => "mode=0400,dmode=0500",
        }
    }
}

/// The labels by which `volume` may be known, and its kind; nothing when it is neither.
///
/// FAT has two places for the label that programs do not keep alike, so both count.
pub(crate) fn read(volume: &dyn Volume) -> Option<(Kind, Vec<String>)> {
    if let Some(label) = iso9660(volume) {
        return Some((Kind::Iso9660, vec![label]));
    }
    fat(volume).map(|labels| (Kind::Fat, labels))
}

/// The primary volume descriptor is in sector 16, its volume identifier at 40 (ECMA-119 §8.4).
fn iso9660(volume: &dyn Volume) -> Option<String> {
    const PRIMARY: u8 = 1;
    let descriptor = volume.read(16 * 2048, 72)?;
    if descriptor.first() != Some(&PRIMARY) || descriptor.get(1..6) != Some(b"CD001") {
        return None;
    }
    descriptor.get(40..72).map(text)
}

/// The boot sector's fields that lead to the labels (Microsoft's FAT specification, "BPB").
fn fat(volume: &dyn Volume) -> Option<Vec<String>> {
    let sector = volume.read(0, 512)?;
    let short = |at: usize| {
        let bytes = sector.get(at..)?.first_chunk()?;
        Some(u64::from(u16::from_le_bytes(*bytes)))
    };
    let long = |at: usize| {
        let bytes = sector.get(at..)?.first_chunk()?;
        Some(u64::from(u32::from_le_bytes(*bytes)))
    };
    let bytes_per_sector = short(11)?;
    let sectors_per_cluster = u64::from(*sector.get(13)?);
    let copies = u64::from(*sector.get(16)?);
    let is_fat = sector.get(510..512) == Some(&[0x55, 0xAA])
        && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
        && sectors_per_cluster.is_power_of_two()
        && matches!(copies, 1 | 2);
    if !is_fat {
        return None;
    }
    let reserved = short(14)?;
    let root_entries = short(17)?;
    // FAT32 has its size of a table at 36, and its root directory in clusters.
    let is_fat32 = short(22)? == 0;
    let table_sectors = if is_fat32 { long(36)? } else { short(22)? };
    let mut labels = Vec::new();
    // Behind the signature 0x29 stand a serial number and the label.
    let signature_at = if is_fat32 { 66_usize } else { 38 };
    let label_at = signature_at.saturating_add(5);
    if sector.get(signature_at) == Some(&0x29)
        && let Some(label) = sector.get(label_at..label_at.saturating_add(11))
    {
        labels.push(text(label));
    }
    let first_data = copies
        .saturating_mul(table_sectors)
        .saturating_add(reserved);
    let (root_sector, entries) = if is_fat32 {
        let cluster = long(44)?.saturating_sub(2);
        let first = first_data.saturating_add(cluster.saturating_mul(sectors_per_cluster));
        // Its first cluster alone: mkfs and mtools put the label in front.
        let bytes = sectors_per_cluster.saturating_mul(bytes_per_sector);
        (first, bytes.div_euclid(ENTRY_BYTES))
    } else {
        (first_data, root_entries)
    };
    let bytes = usize::try_from(entries.min(MOST_ENTRIES).saturating_mul(ENTRY_BYTES)).ok()?;
    if let Some(directory) = volume.read(root_sector.saturating_mul(bytes_per_sector), bytes) {
        labels.extend(label_entry(&directory));
    }
    Some(labels)
}

/// A directory entry's size, and the most of them that are looked at.
const ENTRY_BYTES: u64 = 32;
const MOST_ENTRIES: u64 = 512;

/// The entry whose attributes are those of a label and not of a part of a long name.
fn label_entry(directory: &[u8]) -> Option<String> {
    const LABEL: u8 = 0x08;
    const LONG_NAME: u8 = 0x0F;
    const DELETED: u8 = 0xE5;
    directory
        .chunks_exact(ENTRY_BYTES as usize)
        .take_while(|entry| entry.first() != Some(&0))
        .filter(|entry| entry.first() != Some(&DELETED))
        .find(|entry| {
            entry
                .get(11)
                .is_some_and(|a| a & LONG_NAME != LONG_NAME && a & LABEL != 0)
        })
        .and_then(|entry| entry.get(..11))
        .map(text)
}

/// A label is padded with spaces.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches([' ', '\0'])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Volume for Vec<u8> {
        fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(offset).ok()?;
            Some(self.get(start..start.checked_add(length)?)?.to_vec())
        }
    }

    fn fat16(in_boot_sector: &[u8; 11], in_root: &[u8; 11]) -> Vec<u8> {
        let mut volume = vec![0; 64 * 1024];
        volume[11..13].copy_from_slice(&512_u16.to_le_bytes());
        volume[13] = 4;
        volume[14..16].copy_from_slice(&1_u16.to_le_bytes());
        volume[16] = 2;
        volume[17..19].copy_from_slice(&512_u16.to_le_bytes());
        volume[22..24].copy_from_slice(&4_u16.to_le_bytes());
        volume[38] = 0x29;
        volume[43..54].copy_from_slice(in_boot_sector);
        volume[510] = 0x55;
        volume[511] = 0xAA;
        let root = 512 * (1 + 2 * 4);
        volume[root..root + 11].copy_from_slice(in_root);
        volume[root + 11] = 0x08;
        volume
    }

    fn iso(label: &[u8]) -> Vec<u8> {
        let mut volume = vec![b' '; 34 * 1024];
        volume[32768] = 1;
        volume[32769..32774].copy_from_slice(b"CD001");
        volume[32808..32808 + label.len()].copy_from_slice(label);
        volume
    }

    #[test]
    fn both_places_of_a_fat_label_count() {
        let (kind, labels) = read(&fat16(b"NO NAME    ", b"CIDATA     ")).unwrap();
        assert_eq!(
            (kind, labels),
            (Kind::Fat, vec!["NO NAME".to_owned(), "CIDATA".to_owned()])
        );
    }

    #[test]
    fn an_iso_gives_its_volume_identifier() {
        assert_eq!(
            read(&iso(b"cidata")),
            Some((Kind::Iso9660, vec!["cidata".to_owned()]))
        );
    }

    #[test]
    fn other_disks_have_no_label() {
        assert_eq!(read(&vec![0; 64 * 1024]), None);
        assert_eq!(read(&Vec::new()), None);
        // A partition table has the same signature.
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xAA]);
        assert_eq!(read(&mbr), None);
    }

    #[test]
    fn a_volume_made_by_mkfs_is_read() {
        for bits in ["12", "16", "32"] {
            let directory = tempfile::tempdir().unwrap();
            let image = directory.path().join("volume");
            let size: u64 = if bits == "12" { 4 << 20 } else { 64 << 20 };
            std::fs::File::create(&image)
                .unwrap()
                .set_len(size)
                .unwrap();
            let made = std::process::Command::new("/usr/sbin/mkfs.vfat")
                .args(["-F", bits, "-n", "CIDATA"])
                .arg(&image)
                .output();
            // A machine without dosfstools tests what is above.
            let Ok(made) = made else { return };
            assert!(made.status.success(), "{made:?}");
            let (kind, labels) = read(&std::fs::read(&image).unwrap()).unwrap();
            assert_eq!(kind, Kind::Fat);
            assert_eq!(labels, ["CIDATA", "CIDATA"], "FAT{bits}");
        }
    }

    proptest! {
        #[test]
        fn no_boot_sector_makes_it_panic(patches in proptest::collection::vec((0_usize..512, any::<u8>()), 0..40), length in 0_usize..70_000) {
            let mut volume = fat16(b"CIDATA     ", b"CIDATA     ");
            for (at, byte) in patches {
                volume[at] = byte;
            }
            volume.truncate(length);
            let _ = read(&volume);
        }

        #[test]
        fn no_bytes_make_it_panic(volume in proptest::collection::vec(any::<u8>(), 0..40_000)) {
            let _ = read(&volume);
        }
    }
}
