//! What a payload says of itself before its parts: the signed text.

use orlop_boot::entries::Version;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::hex::Hash;

/// The format that this reader knows. A change that it must not overlook has another number.
pub const FORMAT: u32 = 1;

/// What payloads are for.
pub const PRODUCT: &str = "orlop";

/// The longest manifest in bytes.
pub const LONGEST: usize = 64 << 10;

/// The largest part in bytes; a disk's slots are smaller.
const LARGEST_PART: u64 = 16 << 30;

/// What dm-verity hashes at a time, and the filesystem's block.
pub const BLOCK_BYTES: u64 = 4096;

/// A payload's manifest.
///
/// Fields that this reader does not know are left aside; one that must not be has a higher `format`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// [`PRODUCT`].
    pub product: String,
    /// The version that it brings.
    pub version: Version,
    /// `x86_64`, as `uname -m` says it.
    pub architecture: String,
    /// For which channel it was made; for people.
    #[serde(default)]
    pub channel: String,
    /// The root hash of the dm-verity tree.
    pub root_hash: Hash,
    /// The parts.
    pub parts: Parts,
}

/// A payload's parts, which follow in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// The Unified Kernel Image.
    pub uki: Part,
    /// The root filesystem.
    pub root: Part,
    /// Its hash tree.
    pub verity: Part,
    /// The boot loader, for installing; an update leaves the one that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loader: Option<Part>,
}

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// The Unified Kernel Image.
    Uki,
    /// The root filesystem.
    Root,
    /// Its hash tree.
    Verity,
    /// The boot loader.
    Loader,
}

impl Which {
    /// All, in the order in which they follow the manifest. The kernel image comes first so that an EFI system partition that is full
    /// is met before a slot is touched.
    pub const ALL: [Self; 4] = [Self::Uki, Self::Root, Self::Verity, Self::Loader];

    /// The name in the manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uki => "uki",
            Self::Root => "root",
            Self::Verity => "verity",
            Self::Loader => "loader",
        }
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its size in bytes.
    pub bytes: u64,
    /// The sum of these bytes.
    pub sha256: Hash,
    /// The size in the payload, in bytes.
    pub stored_bytes: u64,
    /// How it is stored.
    pub compression: Compression,
}

/// How a part is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    None,
    /// One zstd frame (RFC 8878) with a window of 8 MiB at most.
    Zstd,
}

/// Why a manifest is of no use.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// No manifest at all.
    #[error("the manifest is not understood")]
    Json(#[source] serde_json::Error),
    /// Made for a later Orlop.
    #[error(
        "the payload has format {0}; this version of Orlop knows {FORMAT}. Update to a version in between first"
    )]
    Format(u64),
    /// Something else.
    #[error("the payload is for {0:?}, not for {PRODUCT}")]
    Product(String),
    /// A part's size can not be.
    #[error(
        "the manifest says that {part} has {bytes} bytes ({stored_bytes} stored), which cannot be"
    )]
    Size {
        /// The part.
        part: Which,
        /// The size.
        bytes: u64,
        /// The size in the payload.
        stored_bytes: u64,
    },
}

impl Manifest {
    /// Reads a manifest. To be called only with a text whose signature was verified.
    pub fn parse(text: &[u8]) -> Result<Self, ManifestError> {
        /// What is read first, since the rest of another format may be anything.
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let head: Head = serde_json::from_slice(text).map_err(ManifestError::Json)?;
        if head.format != u64::from(FORMAT) {
            return Err(ManifestError::Format(head.format));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(ManifestError::Json)?;
        if manifest.product != PRODUCT {
            return Err(ManifestError::Product(manifest.product));
        }
        for (which, part) in manifest.parts() {
            let is_whole =
                !matches!(which, Which::Root | Which::Verity) || part.bytes % BLOCK_BYTES == 0;
            let is_stored = match part.compression {
                Compression::None => part.stored_bytes == part.bytes,
                Compression::Zstd => (1..=LARGEST_PART).contains(&part.stored_bytes),
            };
            if !is_whole || !is_stored || !(1..=LARGEST_PART).contains(&part.bytes) {
                let (bytes, stored_bytes) = (part.bytes, part.stored_bytes);
                return Err(ManifestError::Size {
                    part: which,
                    bytes,
                    stored_bytes,
                });
            }
        }
        Ok(manifest)
    }

    /// The text that is signed.
    ///
    /// # Panics
    /// Never: every field can be written as JSON.
    #[must_use]
    pub fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// The parts that there are, in their order.
    pub fn parts(&self) -> impl Iterator<Item = (Which, &Part)> {
        let parts = &self.parts;
        let all = [
            Some(&parts.uki),
            Some(&parts.root),
            Some(&parts.verity),
            parts.loader.as_ref(),
        ];
        Which::ALL
            .into_iter()
            .zip(all)
            .filter_map(|(which, part)| Some((which, part?)))
    }

    /// The bytes of all parts together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts().map(|(_, part)| part.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        let part = Part {
            bytes: 8192,
            sha256: Hash([7; 32]),
            stored_bytes: 99,
            compression: Compression::Zstd,
        };
        Manifest {
            format: FORMAT,
            product: PRODUCT.to_owned(),
            version: "1.2.3".parse().unwrap(),
            architecture: "x86_64".to_owned(),
            channel: "stable".to_owned(),
            root_hash: Hash([1; 32]),
            parts: Parts {
                uki: part.clone(),
                root: part.clone(),
                verity: part.clone(),
                loader: Some(part),
            },
        }
    }

    #[test]
    fn a_manifest_that_is_written_reads_the_same_and_unknown_fields_are_left_aside() {
        let text = String::from_utf8(sample().to_text()).unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), sample());
        let more = text.replacen('{', "{\"released\": 7,", 1);
        assert_eq!(Manifest::parse(more.as_bytes()).unwrap(), sample());
    }

    #[test]
    fn another_format_product_or_impossible_size_is_told() {
        let parse = |change: fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            Manifest::parse(&manifest.to_text())
                .unwrap_err()
                .to_string()
        };
        assert!(parse(|m| m.format = 2).contains("format 2"));
        assert!(
            Manifest::parse(b"{\"format\": 2}")
                .unwrap_err()
                .to_string()
                .contains("format 2")
        );
        assert!(parse(|m| m.product = "other".to_owned()).contains("other"));
        assert!(parse(|m| m.parts.root.bytes = 0).contains("root has 0 bytes"));
        assert!(parse(|m| m.parts.root.bytes = 4097).contains("4097"));
        assert!(parse(|m| m.parts.uki.compression = Compression::None).contains("uki"));
        let twice =
            String::from_utf8(sample().to_text())
                .unwrap()
                .replacen("\"uki\":", "\"root\":", 1);
        assert!(matches!(
            Manifest::parse(twice.as_bytes()),
            Err(ManifestError::Json(_))
        ));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in any::<Vec<u8>>()) {
            prop_assert!(Manifest::parse(&text).is_err());
        }
    }
}
