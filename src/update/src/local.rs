//! What this machine itself runs, as something that can be installed elsewhere.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use orlop_boot::entries::Version;
use thiserror::Error;

use crate::hex::Hash;
use crate::manifest::{BLOCK_BYTES, Compression, FORMAT, Manifest, PRODUCT, Part, Parts};
use crate::pack::sum;
use crate::payload::Payload;

/// Where the parts of what runs are.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The version.
    pub version: Version,
    /// What `uname -m` says.
    pub architecture: String,
    /// The root hash.
    pub root_hash: Hash,
    /// The kernel image: a file.
    pub uki: PathBuf,
    /// The root: a file or a disk, and where in it, in bytes.
    pub root: (PathBuf, u64),
    /// The hash tree: a file or a disk, and where in it, in bytes.
    pub verity: (PathBuf, u64),
    /// The boot loader: a file.
    pub loader: PathBuf,
}

/// Why it can not be installed elsewhere.
#[derive(Debug, Error)]
pub enum LocalError {
    /// A part can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// There is no hash tree.
    #[error("{0} holds no dm-verity hash tree")]
    NoTree(PathBuf),
}

/// The parts as a payload. They are read once to learn their sums, and again when they are installed.
pub fn open(sources: &Sources) -> Result<Payload<Box<dyn Read>>, LocalError> {
    let open = |path: &PathBuf| File::open(path).map_err(|e| LocalError::Read(path.clone(), e));
    let (tree, tree_at) = &sources.verity;
    let (root_bytes, verity_bytes) =
        sizes(&open(tree)?, *tree_at).ok_or_else(|| LocalError::NoTree(tree.clone()))?;
    let mut whole: Box<dyn Read> = Box::new(io::empty());
    let mut part = |path: &PathBuf, at: u64, most: u64| {
        let error = |e| LocalError::Read(path.clone(), e);
        let mut file = open(path)?;
        file.seek(SeekFrom::Start(at)).map_err(error)?;
        let (bytes, sha256) = sum(&mut (&mut file).take(most)).map_err(error)?;
        file.seek(SeekFrom::Start(at)).map_err(error)?;
        let before = std::mem::replace(&mut whole, Box::new(io::empty()));
        whole = Box::new(before.chain(file.take(bytes)));
        Ok(Part {
            bytes,
            sha256,
            stored_bytes: bytes,
            compression: Compression::None,
        })
    };
    let parts = Parts {
        uki: part(&sources.uki, 0, u64::MAX)?,
        root: part(&sources.root.0, sources.root.1, root_bytes)?,
        verity: part(tree, *tree_at, verity_bytes)?,
        loader: Some(part(&sources.loader, 0, u64::MAX)?),
    };
    let manifest = Manifest {
        format: FORMAT,
        product: PRODUCT.to_owned(),
        version: sources.version.clone(),
        architecture: sources.architecture.clone(),
        channel: String::new(),
        root_hash: sources.root_hash,
        parts,
    };
    Ok(Payload::local(manifest, whole))
}

/// The sizes in bytes of the data and of the tree, from the tree's superblock (veritysetup's on-disk format: sizes of blocks at 64 and 68, blocks of data at 72).
fn sizes(tree: &File, at: u64) -> Option<(u64, u64)> {
    let mut superblock = [0; 512];
    tree.read_exact_at(&mut superblock, at).ok()?;
    let number = |at: usize| Some(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?));
    let is_ours = superblock.starts_with(b"verity\0\0")
        && [64, 68].map(number) == [Some(BLOCK_BYTES as u32); 2];
    let data_blocks = u64::from_le_bytes(*superblock.get(72..)?.first_chunk()?);
    if !is_ours || !(1..1 << 32).contains(&data_blocks) {
        return None;
    }
    // The superblock's own block, and level by level the digests of the level below, 128 in a block.
    let (mut blocks, mut level) = (1, data_blocks);
    while level > 1 {
        level = level.div_ceil(BLOCK_BYTES / 32);
        blocks += level;
    }
    Some((data_blocks * BLOCK_BYTES, blocks * BLOCK_BYTES))
}
