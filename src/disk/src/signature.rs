//! What others leave on disks, recognised by their signatures at fixed places.

use crate::ext4::{SUPERBLOCK_AT, SUPERBLOCK_BYTES, Superblock};
use crate::layout::END;
use orlop_boot::little_endian::u32_at;

/// The first and the last MiB of a disk; both are the whole of a smaller one.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
    pub(crate) disk_bytes: u64,
}

/// A signature: where, which bytes, whose.
struct Magic(usize, &'static [u8], &'static str);

/// At fixed offsets from the disk's start. A container (LUKS, LVM, RAID) comes before what it may hold.
const AT_START: &[Magic] = &[
    Magic(0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    Magic(0x4000, b"SKUL\xba\xbe", "a LUKS encrypted volume"),
    Magic(0, b"LABELONE", "an LVM physical volume"),
    Magic(512, b"LABELONE", "an LVM physical volume"),
    Magic(1024, b"LABELONE", "an LVM physical volume"),
    Magic(1536, b"LABELONE", "an LVM physical volume"),
    Magic(0, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    Magic(4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
    Magic(0, b"verity\0\0", "a dm-verity hash tree"),
    Magic(0, b"XFSB", "an XFS filesystem"),
    Magic(0x10040, b"_BHRfS_M", "a btrfs filesystem"),
    Magic(
        0x1018,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        "a bcache device",
    ),
    Magic(1024, b"\xe2\xe1\xf5\xe0", "an erofs filesystem"),
    Magic(1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    Magic(0, b"hsqs", "a squashfs filesystem"),
    Magic(32769, b"CD001", "an iso9660 filesystem"),
    Magic(32769, b"BEA01", "a UDF filesystem"),
    Magic(3, b"NTFS    ", "an NTFS filesystem"),
    Magic(3, b"EXFAT   ", "an exFAT filesystem"),
    Magic(54, b"FAT", "a FAT filesystem"),
    Magic(82, b"FAT32", "a FAT filesystem"),
    Magic(0, b"QFI\xfb", "a QCOW2 image"),
    Magic(4086, b"SWAPSPACE2", "swap space"),
    Magic(4086, b"SWAP-SPACE", "swap space"),
    Magic(8182, b"SWAPSPACE2", "swap space"),
    Magic(16374, b"SWAPSPACE2", "swap space"),
    Magic(65526, b"SWAPSPACE2", "swap space"),
    Magic(65600, b"ReIsEr", "a ReiserFS filesystem"),
];

/// What the ends hold that has a name, if anything.
pub(crate) fn name(ends: &Ends) -> Option<String> {
    let has = |magic: &&Magic| {
        ends.head
            .get(magic.0..)
            .is_some_and(|bytes| bytes.starts_with(magic.1))
    };
    if let Some(magic) = AT_START.iter().find(has) {
        return Some(magic.2.to_owned());
    }
    if let Some(superblock) = superblock(ends) {
        return Some(match superblock.label.as_str() {
            "" => format!("an {} filesystem without a label", superblock.kind),
            label => format!("an {} filesystem labelled {label:?}", superblock.kind),
        });
    }
    if is_raid_at_end(ends) {
        return Some("a Linux RAID member".to_owned());
    }
    if has_zfs(ends) {
        return Some("a ZFS pool member".to_owned());
    }
    mbr(ends)
}

/// The superblock of an ext filesystem on the whole disk.
pub(crate) fn superblock(ends: &Ends) -> Option<Superblock> {
    let at = SUPERBLOCK_AT as usize;
    Superblock::decode(ends.head.get(at..at + SUPERBLOCK_BYTES)?)
}

/// Version 0.90 lies 64 KiB before the end, aligned to 64 KiB; version 1.0 8 KiB before it, aligned to 4 KiB
/// (drivers/md/md.c `calc_dev_sboffset`, `super_1_load`).
fn is_raid_at_end(ends: &Ends) -> bool {
    let old = (ends.disk_bytes & !0xffff).checked_sub(0x1_0000);
    let new = ends.disk_bytes.checked_sub(0x2000).map(|at| at & !0xfff);
    let tail_at = ends.disk_bytes - ends.tail.len() as u64;
    [old, new].into_iter().flatten().any(|at| {
        let offset = at
            .checked_sub(tail_at)
            .and_then(|offset| usize::try_from(offset).ok());
        offset.and_then(|offset| u32_at(&ends.tail, offset)) == Some(0xa92b_4efc)
    })
}

/// An uberblock in the first label's ring, 128 KiB to 256 KiB (OpenZFS `vdev_impl.h`).
fn has_zfs(ends: &Ends) -> bool {
    const UBERBLOCK: u64 = 0x00ba_b10c;
    let ring = ends.head.get(128 << 10..256 << 10).unwrap_or_default();
    ring.chunks_exact(1024).any(|slot| {
        let magic = slot.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        magic.is_some_and(|magic| magic == UBERBLOCK || magic == UBERBLOCK.swap_bytes())
    })
}

/// A master boot record with at least one partition in it.
fn mbr(ends: &Ends) -> Option<String> {
    if ends.head.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let table = ends.head.get(446..510)?;
    let kinds: Vec<u8> = table
        .chunks_exact(16)
        .filter_map(|entry| entry.get(4).copied())
        .filter(|kind| *kind != 0)
        .collect();
    let names: Vec<String> = kinds.iter().map(|kind| mbr_type(*kind)).collect();
    Some(match names.len() {
        0 => "a boot sector".to_owned(),
        1 => format!(
            "an MBR partition table with 1 partition ({})",
            names.join(", ")
        ),
        n => format!(
            "an MBR partition table with {n} partitions ({})",
            names.join(", ")
        ),
    })
}

fn mbr_type(kind: u8) -> String {
    match kind {
        0x05 | 0x0f | 0x85 => "extended".to_owned(),
        0x07 => "NTFS or exFAT".to_owned(),
        0x01 | 0x04 | 0x06 | 0x0b | 0x0c | 0x0e => "FAT".to_owned(),
        0x82 => "Linux swap".to_owned(),
        0x83 => "Linux".to_owned(),
        0x8e => "Linux LVM".to_owned(),
        0xee => "a lost GPT".to_owned(),
        0xef => "EFI System".to_owned(),
        0xfd => "Linux RAID".to_owned(),
        other => format!("type {other:#04x}"),
    }
}

/// Whether all of `bytes` are zero; compared in blocks, since a disk's ends are looked at in every start that finds no table.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    let is_zero = |block: &[u8]| ZEROS.get(..block.len()) == Some(block);
    bytes.chunks(ZEROS.len()).all(is_zero)
}

/// Where the ends hold something without a name, if they do.
pub(crate) fn nameless(ends: &Ends) -> Option<String> {
    let is_used = |bytes: &[u8]| !is_zero(bytes);
    let mib = END >> 20;
    match (is_used(&ends.head), is_used(&ends.tail)) {
        (true, _) => Some(format!("data of an unknown kind in its first {mib} MiB")),
        (false, true) => Some(format!("data of an unknown kind in its last {mib} MiB")),
        (false, false) => None,
    }
}
