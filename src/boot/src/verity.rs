//! dm-verity: the superblock in front of a hash tree, the root hash, and the partitions that belong to it.
//!
//! The tree's format is veritysetup's (`docs/disk.md` has it byte by byte), so that other tools read our images. Nothing in a
//! superblock is trusted: whatever it says, the kernel lets through only what hashes to the root hash.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use uuid::Uuid;

use crate::little_endian::{u16_at, u32_at, u64_at};

/// The block size of data and tree; the page size, the kernel's most.
pub const BLOCK_BYTES: u32 = 4096;

/// The superblock's size; the tree begins at the next block.
pub const SUPERBLOCK_BYTES: usize = 512;

/// The longest salt.
const LONGEST_SALT: u16 = 256;

/// A SHA-256 root hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootHash(pub [u8; 32]);

/// A text that is no root hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a root hash is 64 hexadecimal digits, not {0:?}")]
pub struct NotARootHash(String);

impl FromStr for RootHash {
    type Err = NotARootHash;

    fn from_str(text: &str) -> Result<Self, NotARootHash> {
        let wrong = || NotARootHash(text.chars().take(80).collect());
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
            let digits = text.get(at..at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootHash({self})")
    }
}

impl RootHash {
    /// The UUID of the data's partition: the hash's first half (Discoverable Partitions Specification, "Root hash").
    #[must_use]
    pub fn data_uuid(&self) -> Uuid {
        let [half, _] = self.halves();
        Uuid::from_bytes(half)
    }

    /// The UUID of the tree's partition: the hash's second half.
    #[must_use]
    pub fn tree_uuid(&self) -> Uuid {
        let [_, half] = self.halves();
        Uuid::from_bytes(half)
    }

    fn halves(&self) -> [[u8; 16]; 2] {
        let mut halves = [[0; 16]; 2];
        for (to, from) in halves.iter_mut().flatten().zip(self.0) {
            *to = from;
        }
        halves
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The tree's own identifier.
    pub uuid: Uuid,
    /// Blocks of data.
    pub data_blocks: u64,
    /// What is hashed before each block.
    pub salt: Vec<u8>,
}

/// Why there is no tree to use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// Something else.
    #[error("there is no hash tree: the signature is missing")]
    Signature,
    /// A format of another kind.
    #[error("the hash tree has another format (version {version}, type {kind}) than 1 and 1")]
    Format {
        /// The superblock's version.
        version: u32,
        /// The hashes' type.
        kind: u32,
    },
    /// Another algorithm or block size.
    #[error("the hash tree is not of SHA-256 in blocks of {BLOCK_BYTES} bytes")]
    Parameters,
    /// A salt that is too long.
    #[error("the hash tree's salt has {0} bytes")]
    Salt(u16),
    /// No data, or more than the partition has.
    #[error("the hash tree is of {blocks} blocks, and its data has room for {room}")]
    Blocks {
        /// What the superblock says.
        blocks: u64,
        /// Blocks of the data's partition.
        room: u64,
    },
}

impl Superblock {
    /// Reads a superblock; `room_bytes` is the size of the data's partition.
    ///
    /// # Errors
    /// A variant a field, in their order.
    pub fn decode(bytes: &[u8], room_bytes: u64) -> Result<Self, SuperblockError> {
        use SuperblockError as E;
        if !bytes.starts_with(b"verity\0\0") || bytes.len() < SUPERBLOCK_BYTES {
            return Err(E::Signature);
        }
        let word = |at| u32_at(bytes, at).unwrap_or_default();
        let (version, kind) = (word(8), word(12));
        if (version, kind) != (1, 1) {
            return Err(E::Format { version, kind });
        }
        let algorithm = bytes.get(32..64).unwrap_or_default();
        if !algorithm.starts_with(b"sha256\0") || (word(64), word(68)) != (BLOCK_BYTES, BLOCK_BYTES)
        {
            return Err(E::Parameters);
        }
        let salt_bytes = u16_at(bytes, 80).unwrap_or_default();
        let salt = bytes.get(88..88 + usize::from(salt_bytes));
        let Some(salt) = salt.filter(|_| salt_bytes <= LONGEST_SALT) else {
            return Err(E::Salt(salt_bytes));
        };
        let blocks = u64_at(bytes, 72).unwrap_or_default();
        let room = room_bytes / u64::from(BLOCK_BYTES);
        if blocks == 0 || blocks > room {
            return Err(E::Blocks { blocks, room });
        }
        let uuid = bytes.get(16..).and_then(|rest| rest.first_chunk());
        Ok(Self {
            uuid: Uuid::from_bytes(*uuid.unwrap_or(&[0; 16])),
            data_blocks: blocks,
            salt: salt.to_vec(),
        })
    }

    /// The bytes of the superblock. A salt is cut to 256 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let salt = self
            .salt
            .get(..usize::from(LONGEST_SALT))
            .unwrap_or(&self.salt);
        let salt_bytes = u16::try_from(salt.len()).unwrap_or(LONGEST_SALT);
        let mut bytes = [0; SUPERBLOCK_BYTES];
        let fields: [(usize, &[u8]); 10] = [
            (0, b"verity\0\0"),
            (8, &1_u32.to_le_bytes()),
            (12, &1_u32.to_le_bytes()),
            (16, self.uuid.as_bytes()),
            (32, b"sha256"),
            (64, &BLOCK_BYTES.to_le_bytes()),
            (68, &BLOCK_BYTES.to_le_bytes()),
            (72, &self.data_blocks.to_le_bytes()),
            (80, &salt_bytes.to_le_bytes()),
            (88, salt),
        ];
        for (at, field) in fields {
            for (to, from) in bytes.iter_mut().skip(at).zip(field) {
                *to = *from;
            }
        }
        bytes
    }

    /// Sectors of 512 bytes that the verified device has.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.data_blocks
            .saturating_mul(u64::from(BLOCK_BYTES) / 512)
    }

    /// The kernel's parameters (`Documentation/admin-guide/device-mapper/verity.rst`) for devices that are named by
    /// `MAJOR:MINOR` or a path. A block that does not verify ends the machine: it reboots, and another slot's turn comes.
    #[must_use]
    pub fn parameters(&self, data: &str, tree: &str, root: &RootHash) -> String {
        let blocks = self.data_blocks;
        let salt = match self.salt.as_slice() {
            [] => "-".to_owned(),
            salt => hex(salt),
        };
        // The tree begins in the block behind the superblock's.
        format!(
            "1 {data} {tree} {BLOCK_BYTES} {BLOCK_BYTES} {blocks} 1 sha256 {root} {salt} 1 panic_on_corruption"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hash_names_both_partitions() {
        let text = "b288ff5a0102030405060708090a0b0c0d0e0f101112131415161718191a1b9d";
        let hash: RootHash = text.parse().unwrap();
        assert_eq!(hash.to_string(), text);
        assert_eq!(
            hash.data_uuid().to_string(),
            "b288ff5a-0102-0304-0506-0708090a0b0c"
        );
        assert_eq!(
            hash.tree_uuid().to_string(),
            "0d0e0f10-1112-1314-1516-1718191a1b9d"
        );
        assert!("b288".parse::<RootHash>().is_err());
        assert!("g".repeat(64).parse::<RootHash>().is_err());
    }

    #[test]
    fn more_data_than_there_is_room_for_is_refused() {
        let superblock = Superblock {
            uuid: Uuid::nil(),
            data_blocks: 3,
            salt: vec![],
        };
        let bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes, 3 * 4096), Ok(superblock));
        let refused = SuperblockError::Blocks { blocks: 3, room: 2 };
        assert_eq!(Superblock::decode(&bytes, 3 * 4096 - 1), Err(refused));
    }

    proptest! {
        #[test]
        fn a_superblock_is_read_as_it_was_written(salt in proptest::collection::vec(any::<u8>(), 0..=256), data_blocks in 1..=u64::MAX / 4096, uuid: u128) {
            let superblock = Superblock { uuid: Uuid::from_u128(uuid), data_blocks, salt };
            prop_assert_eq!(Superblock::decode(&superblock.encode(), u64::MAX), Ok(superblock));
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), is_signed: bool) {
            if is_signed && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(b"verity\0\0\x01\0\0\0\x01\0\0\0");
            }
            let _ = Superblock::decode(&bytes, 1 << 30);
        }
    }
}
