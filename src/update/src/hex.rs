//! SHA-256 sums and root hashes, written as 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use orlop_boot::verity::RootHash;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// A SHA-256 sum; dm-verity's root hash is one too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

/// A text that is no hash.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not 64 hexadecimal digits")]
pub struct HashError;

impl Hash {
    /// The UUID of the root partition that belongs to this root hash: its first half (Discoverable Partitions Specification, "root
    /// hash").
    #[must_use]
    pub fn root_uuid(&self) -> Uuid {
        RootHash(self.0).data_uuid()
    }

    /// The UUID of the partition with the hash tree: the second half.
    #[must_use]
    pub fn verity_uuid(&self) -> Uuid {
        RootHash(self.0).tree_uuid()
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let hash: RootHash = text.parse().map_err(|_| HashError)?;
        Ok(Self(hash.0))
    }
}

impl TryFrom<String> for Hash {
    type Error = HashError;

    fn try_from(text: String) -> Result<Self, HashError> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The halves in the order in which `systemd-gpt-auto-generator` and `veritysetup` users write them.
    #[test]
    fn the_halves_of_a_root_hash_name_the_partitions() {
        let hash: Hash = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef"
            .parse()
            .unwrap();
        assert_eq!(
            hash.root_uuid().to_string(),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
        assert_eq!(
            hash.verity_uuid().to_string(),
            "01234567-89ab-cdef-0123-456789abcdef"
        );
        assert!("0".repeat(63).parse::<Hash>().is_err());
        assert!("g".repeat(64).parse::<Hash>().is_err());
        assert!("é".repeat(32).parse::<Hash>().is_err());
    }
}
