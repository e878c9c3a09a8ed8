//! Reading a GUID partition table (UEFI 2.10 §5.3). Total: what does not check is no table.

use uuid::Uuid;

use crate::little_endian::{u32_at, u64_at};

/// The EFI system partition (UEFI 2.10 table 5-7).
pub const ESP_TYPE: Uuid = Uuid::from_u128(0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b);

/// A root for x86-64 (Discoverable Partitions Specification, `SD_GPT_ROOT_X86_64`).
pub const ROOT_TYPE: Uuid = Uuid::from_u128(0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709);

/// The hash tree of such a root (`SD_GPT_ROOT_X86_64_VERITY`).
pub const VERITY_TYPE: Uuid = Uuid::from_u128(0x2c7357ed_ebd2_46d9_aec1_23d437ec2bf5);

/// Variable data (`SD_GPT_VAR`).
pub const VAR_TYPE: Uuid = Uuid::from_u128(0x4d21b016_b534_45c2_a9fb_5c16e091fd2d);

/// Entries that a table may have; the specification asks for room for 128.
const MOST_ENTRIES: usize = 1024;

/// A table of which header and entries check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The disk's own identifier.
    pub disk_guid: Uuid,
    /// The used entries.
    pub entries: Vec<Entry>,
    /// Where the other copy says to be.
    pub alternate_lba: u64,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// From 1.
    pub number: u32,
    /// The partition's type.
    pub kind: Uuid,
    /// The partition's own identifier.
    pub unique: Uuid,
    /// The first sector.
    pub first_lba: u64,
    /// The last sector, which belongs to it.
    pub last_lba: u64,
    /// Attribute bits (UEFI 2.10 table 5-8).
    pub attributes: u64,
    /// The name.
    pub name: String,
}

/// What stands where a copy of the table would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// No table's signature.
    None,
    /// A signature, but sums that do not check.
    Damaged,
    /// The table.
    Whole(Table),
}

/// Reads bytes of the disk; `None` beyond its end or when it can not be read.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// The copy whose header is at `lba`.
#[must_use]
pub fn read(read: Read<'_>, lba: u64, sector_bytes: u64) -> Copy {
    let header = lba.checked_mul(sector_bytes).and_then(|at| read(at, 512));
    match header {
        Some(header) if header.starts_with(b"EFI PART") => {
            match decode(&header, read, lba, sector_bytes) {
                Some(table) => Copy::Whole(table),
                None => Copy::Damaged,
            }
        }
        _ => Copy::None,
    }
}

fn decode(header: &[u8], read: Read<'_>, lba: u64, sector_bytes: u64) -> Option<Table> {
    let header_bytes = u32_at(header, 12)? as usize;
    if !(92..=header.len()).contains(&header_bytes) || u64_at(header, 24)? != lba {
        return None;
    }
    let mut summed = header.get(..header_bytes)?.to_vec();
    summed.get_mut(16..20)?.fill(0);
    if crc32fast::hash(&summed) != u32_at(header, 16)? {
        return None;
    }
    let count = u32_at(header, 80)? as usize;
    let entry_bytes = u32_at(header, 84)? as usize;
    if count > MOST_ENTRIES || !(128..=4096).contains(&entry_bytes) {
        return None;
    }
    let array = read(
        u64_at(header, 72)?.checked_mul(sector_bytes)?,
        count * entry_bytes,
    )?;
    if crc32fast::hash(&array) != u32_at(header, 88)? {
        return None;
    }
    let entries = (1..)
        .zip(array.chunks_exact(entry_bytes))
        .filter_map(|(n, bytes)| entry(n, bytes));
    Some(Table {
        disk_guid: guid(header, 56)?,
        alternate_lba: u64_at(header, 32)?,
        entries: entries.collect(),
    })
}

fn entry(number: u32, bytes: &[u8]) -> Option<Entry> {
    let kind = guid(bytes, 0)?;
    if kind.is_nil() {
        return None;
    }
    let units: Vec<u16> = bytes
        .get(56..128)?
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    Some(Entry {
        number,
        kind,
        unique: guid(bytes, 16)?,
        first_lba: u64_at(bytes, 32)?,
        last_lba: u64_at(bytes, 40)?,
        attributes: u64_at(bytes, 48)?,
        name: String::from_utf16_lossy(&units),
    })
}

/// What people call a partition's type; its GUID where there is no name.
#[must_use]
pub fn type_name(kind: Uuid) -> String {
    const NAMES: &[(u128, &str)] = &[
        (ESP_TYPE.as_u128(), "EFI System"),
        (0x0fc63daf_8483_4772_8e79_3d69d8477de4, "Linux"),
        (0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f, "Linux swap"),
        (0xe6d6d379_f507_44c2_a23c_238f2a3df928, "Linux LVM"),
        (0xa19d880f_05fc_4d3b_a006_743f0f84911e, "Linux RAID"),
        (ROOT_TYPE.as_u128(), "Linux root"),
        (VERITY_TYPE.as_u128(), "Linux root verity"),
        (
            0x4d21b016_b534_45c2_a9fb_5c16e091fd2d,
            "Linux variable data",
        ),
        (0x933ac7e1_2eb4_4f13_b844_0e14e2aef915, "Linux home"),
        (
            0xbc13c2ff_59e6_4262_a352_b275fd6f7172,
            "Linux extended boot",
        ),
        (0x21686148_6449_6e6f_744e_656564454649, "BIOS boot"),
        (0xebd0a0a2_b9e5_4433_87c0_68b6b72699c7, "Windows data"),
        (0xe3c9e316_0b5c_4db8_817d_f92df00215ae, "Windows reserved"),
        (0xde94bba4_06d1_4d40_a16a_bfd50179d6ac, "Windows recovery"),
    ];
    NAMES
        .iter()
        .find(|(guid, _)| *guid == kind.as_u128())
        .map_or_else(|| kind.to_string(), |(_, name)| (*name).to_owned())
}

fn guid(bytes: &[u8], at: usize) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(*bytes.get(at..)?.first_chunk()?))
}
