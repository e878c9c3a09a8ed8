//! The hash tree over a root, in veritysetup's format (see `docs/disk.md`).

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use orlop_boot::verity::{BLOCK_BYTES, RootHash, Superblock};
use sha2::{Digest as _, Sha256};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Digests in a block of the tree.
const DIGESTS: usize = BLOCK / 32;

/// Writes the superblock and the tree for the file `data` to `tree`, and gives the root hash. The salt is a hash of `seed` and of
/// the data, so that the same inputs give the same bytes, and two versions of the same data different root hashes.
pub(super) fn make(data: &Path, seed: &str, tree: &Path) -> Result<RootHash> {
    let mut content = Vec::new();
    File::open(data)
        .and_then(|file| BufReader::new(file).read_to_end(&mut content))
        .with_context(|| format!("read {}", data.display()))?;
    let (bytes, root) = build(&content, seed)?;
    std::fs::write(tree, bytes).with_context(|| format!("write {}", tree.display()))?;
    Ok(root)
}

fn build(content: &[u8], seed: &str) -> Result<(Vec<u8>, RootHash)> {
    ensure!(
        !content.is_empty() && content.len().is_multiple_of(BLOCK),
        "a verified root is of whole blocks, not of {} bytes",
        content.len()
    );
    let salt: [u8; 32] = Sha256::new()
        .chain_update(seed)
        .chain_update([0])
        .chain_update(Sha256::digest(content))
        .finalize()
        .into();
    let uuid = salt.first_chunk().copied().unwrap_or_default();
    let superblock = Superblock {
        uuid: uuid::Builder::from_random_bytes(uuid).into_uuid(),
        data_blocks: (content.len() / BLOCK) as u64,
        salt: salt.to_vec(),
    };
    let digest = |block: &[u8]| -> [u8; 32] {
        Sha256::new()
            .chain_update(salt)
            .chain_update(block)
            .finalize()
            .into()
    };
    // From the leaves up, until one block is left; its digest is the root hash.
    let mut levels = Vec::new();
    let mut digests: Vec<[u8; 32]> = content.chunks_exact(BLOCK).map(digest).collect();
    while digests.len() > 1 {
        let level: Vec<u8> = digests
            .chunks(DIGESTS)
            .flat_map(|digests| {
                let mut block = digests.concat();
                block.resize(BLOCK, 0);
                block
            })
            .collect();
        digests = level.chunks_exact(BLOCK).map(digest).collect();
        levels.push(level);
    }
    let mut bytes = superblock.encode().to_vec();
    bytes.resize(BLOCK, 0);
    // The root's level comes first.
    for level in levels.iter().rev() {
        bytes.extend_from_slice(level);
    }
    let root = digests.first().copied().context("no blocks, no hash")?;
    Ok((bytes, RootHash(root)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn content(blocks: usize) -> Vec<u8> {
        (0..blocks * BLOCK)
            .map(|n| (n * 7 + n / 4096) as u8)
            .collect()
    }

    #[test]
    fn the_same_input_gives_the_same_tree() {
        let content = content(3);
        assert_eq!(build(&content, "1").unwrap(), build(&content, "1").unwrap());
        assert_ne!(
            build(&content, "1").unwrap().1,
            build(&content, "2").unwrap().1
        );
        assert!(build(&content[1..], "1").is_err());
    }

    #[test]
    fn veritysetup_verifies_our_tree() {
        let directory = tempfile::tempdir().unwrap();
        let (data, tree) = (directory.path().join("data"), directory.path().join("tree"));
        // One level, exactly full; two levels; three.
        for blocks in [2, 128, 129, 128 * 128 + 1] {
            std::fs::write(&data, content(blocks)).unwrap();
            let root = make(&data, "1", &tree).unwrap();
            let output = Command::new("veritysetup")
                .args(["verify", "--debug"])
                .args([&data, &tree])
                .arg(root.to_string())
                .output()
                .expect("veritysetup, of the package cryptsetup-bin");
            assert!(
                output.status.success(),
                "{blocks} blocks: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
