//! Reading a GUID partition table (UEFI 2.10 §5.3). Total: what does not check is no table.

use uuid::Uuid;

/// Entries that a table may have; the specification asks for room for 128.
const MOST_ENTRIES: usize = 1024;

/// A table of which header and entries check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) disk_guid: Uuid,
    /// The used entries.
    pub(crate) entries: Vec<Entry>,
    /// Where the other copy says to be.
    pub(crate) alternate_lba: u64,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From 1.
    pub(crate) number: u32,
    pub(crate) kind: Uuid,
    pub(crate) unique: Uuid,
    pub(crate) first_lba: u64,
    /// Inclusive.
    pub(crate) last_lba: u64,
    pub(crate) attributes: u64,
    pub(crate) name: String,
}

/// What stands where a copy of the table would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Copy {
    /// No table's signature.
    None,
    /// A signature, but sums that do not check.
    Damaged,
    Whole(Table),
}

/// Reads bytes of the disk; `None` beyond its end or when it can not be read.
pub(crate) type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// The copy whose header is at `lba`.
pub(crate) fn read(read: Read<'_>, lba: u64, sector_bytes: u64) -> Copy {
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
pub(crate) fn type_name(kind: Uuid) -> String {
    const NAMES: &[(u128, &str)] = &[
        (0xc12a7328_f81f_11d2_ba4b_00a0c93ec93b, "EFI System"),
        (0x0fc63daf_8483_4772_8e79_3d69d8477de4, "Linux"),
        (0x0657fd6d_a4ab_43c4_84e5_0933c84b4f4f, "Linux swap"),
        (0xe6d6d379_f507_44c2_a23c_238f2a3df928, "Linux LVM"),
        (0xa19d880f_05fc_4d3b_a006_743f0f84911e, "Linux RAID"),
        (0x4f68bce3_e8cd_4db1_96e7_fbcaf984b709, "Linux root"),
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

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
