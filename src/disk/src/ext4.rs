//! The superblock of ext2, ext3 and ext4 (Documentation/filesystems/ext4/super.rst): enough to know whose it is and
//! whether it has to be checked.

use orlop_boot::little_endian::{u16_at, u32_at};

/// Where the superblock lies in the filesystem.
pub(crate) const SUPERBLOCK_AT: u64 = 1024;
/// Its size in bytes.
pub(crate) const SUPERBLOCK_BYTES: usize = 1024;

/// What the superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The volume's label, at most 16 bytes.
    pub label: String,
    /// `ext2`, `ext3` or `ext4`, by the features.
    pub kind: &'static str,
    /// Why it has to be checked before it is mounted, if it has to.
    pub suspicion: Option<&'static str>,
}

impl Superblock {
    /// Decodes the 1024 bytes at 1024, or `None` when they are no superblock.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        const MAGIC: u16 = 0xEF53;
        const VALID: u16 = 1;
        const ERRORS: u16 = 2;
        const ORPHANS: u16 = 4;
        const COMPAT_HAS_JOURNAL: u32 = 0x4;
        const INCOMPAT_RECOVER: u32 = 0x4;
        // Extents, 64bit, meta_bg, MMP, flex_bg: what ext3 does not know.
        const INCOMPAT_EXT4: u32 = 0x40 | 0x80 | 0x100 | 0x200;

        if u16_at(bytes, 0x38)? != MAGIC {
            return None;
        }
        let state = u16_at(bytes, 0x3A)?;
        let mounts = u16_at(bytes, 0x34)?;
        let most_mounts = u16_at(bytes, 0x36)? as i16;
        let compat = u32_at(bytes, 0x5C)?;
        let incompat = u32_at(bytes, 0x60)?;
        let label = bytes.get(0x78..0x88)?;
        let label = label.split(|b| *b == 0).next().unwrap_or_default();
        let suspicion = if state & ERRORS != 0 {
            Some("the kernel found errors in it")
        } else if incompat & INCOMPAT_RECOVER != 0 {
            Some("it was not unmounted")
        } else if state & VALID == 0 || state & ORPHANS != 0 {
            Some("it was not left clean")
        } else if most_mounts > 0 && i32::from(mounts) >= i32::from(most_mounts) {
            Some("it was mounted often without a check")
        } else {
            None
        };
        Some(Self {
            label: String::from_utf8_lossy(label).into_owned(),
            kind: match (incompat & INCOMPAT_EXT4, compat & COMPAT_HAS_JOURNAL) {
                (0, 0) => "ext2",
                (0, _) => "ext3",
                _ => "ext4",
            },
            suspicion,
        })
    }
}
