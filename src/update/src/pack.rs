//! Making payloads: for the builder of images, and for `orlop update pack`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_boot::entries::Version;
use ruzstd::encoding::{CompressionLevel, compress};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::hex::Hash;
use crate::manifest::{
    BLOCK_BYTES, Compression, FORMAT, LONGEST, Manifest, PRODUCT, Part, Parts, Which,
};
use crate::payload::{HEADER_BYTES, Header, PayloadError, SIGNATURE_BYTES, read_head, signatures};
use crate::signature::{SecretKey, SignatureError};
use crate::storage::root_hash;

/// What a payload is made of.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The version.
    pub version: Version,
    /// `x86_64`.
    pub architecture: String,
    /// The channel, for people.
    pub channel: String,
    /// The root hash of `verity`.
    pub root_hash: Hash,
    /// The Unified Kernel Image, whose command line has the root hash.
    pub uki: PathBuf,
    /// The root filesystem.
    pub root: PathBuf,
    /// Its hash tree.
    pub verity: PathBuf,
    /// The boot loader, systemd-boot, with which a machine can be installed from the payload.
    pub loader: Option<PathBuf>,
}

/// Who compresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compressor {
    /// The program zstd(1) at this level. With `--threads=1` its output depends on its version alone.
    Zstd {
        /// From 1 to 19.
        level: u8,
    },
    /// This program itself; about as well as zstd's level 1.
    BuiltIn,
}

/// Why a payload is not made.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file can not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// zstd fails.
    #[error("zstd cannot compress {0}: {1}")]
    Zstd(PathBuf, String),
    /// The kernel image would boot another root.
    #[error(
        "the command line of {uki} has {found}, not roothash={expected}: it would not boot this root"
    )]
    RootHash {
        /// The image.
        uki: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        expected: Hash,
    },
    /// A part is no whole number of blocks.
    #[error("{0} is no whole number of blocks of {BLOCK_BYTES} bytes")]
    Blocks(PathBuf),
    /// The file is no payload.
    #[error("{0}")]
    Payload(PathBuf, #[source] PayloadError),
    /// A signature does not fit or is none.
    #[error("the signature cannot be added to {0}")]
    Signature(PathBuf, #[source] SignatureError),
    /// No room is left for a signature.
    #[error("{0} has no room for one more signature")]
    NoRoom(PathBuf),
}

/// Writes the payload of `contents` to `path`, signed with `key`, or unsigned, to be signed later with [`add_signature`].
pub fn pack(
    contents: &Contents,
    compressor: &Compressor,
    key: Option<&SecretKey>,
    path: &Path,
) -> Result<Manifest, PackError> {
    let write_error = |e| PackError::Write(path.to_owned(), e);
    check_root_hash(contents)?;
    let stored_path = |which: Which| path.with_extension(format!("{which}.part"));
    let part = |which: Which, source: &Path| {
        let part = compressed(source, &stored_path(which), compressor)?;
        match matches!(which, Which::Root | Which::Verity) && part.bytes % BLOCK_BYTES != 0 {
            true => Err(PackError::Blocks(source.to_owned())),
            false => Ok(part),
        }
    };
    let parts = Parts {
        uki: part(Which::Uki, &contents.uki)?,
        root: part(Which::Root, &contents.root)?,
        verity: part(Which::Verity, &contents.verity)?,
        loader: contents
            .loader
            .as_ref()
            .map(|loader| part(Which::Loader, loader))
            .transpose()?,
    };
    let manifest = Manifest {
        format: FORMAT,
        product: PRODUCT.to_owned(),
        version: contents.version.clone(),
        architecture: contents.architecture.clone(),
        channel: contents.channel.clone(),
        root_hash: contents.root_hash,
        parts,
    };
    let text = manifest.to_text();
    if text.len() > LONGEST {
        return Err(write_error(io::ErrorKind::FileTooLarge.into()));
    }
    let mut area = key
        .map(|key| key.sign(&text, &comment(&manifest)))
        .unwrap_or_default()
        .into_bytes();
    area.resize(SIGNATURE_BYTES, 0);

    let unfinished = path.with_extension("unfinished");
    let mut file = File::create(&unfinished).map_err(write_error)?;
    let header = Header {
        signature_bytes: area.len(),
        manifest_bytes: text.len(),
    }
    .encode();
    [header.as_slice(), &area, &text]
        .iter()
        .try_for_each(|bytes| file.write_all(bytes))
        .map_err(write_error)?;
    for (which, part) in manifest.parts() {
        let stored = stored_path(which);
        let from = match part.compression {
            Compression::Zstd => &stored,
            Compression::None => source(contents, which).unwrap_or(&stored),
        };
        let mut from = File::open(from).map_err(|e| PackError::Read(from.clone(), e))?;
        io::copy(&mut from, &mut file).map_err(write_error)?;
        let _ = fs::remove_file(&stored);
    }
    file.sync_all()
        .and_then(|()| fs::rename(&unfinished, path))
        .map_err(write_error)?;
    Ok(manifest)
}

fn source(contents: &Contents, which: Which) -> Option<&PathBuf> {
    match which {
        Which::Uki => Some(&contents.uki),
        Which::Root => Some(&contents.root),
        Which::Verity => Some(&contents.verity),
        Which::Loader => contents.loader.as_ref(),
    }
}

/// What the signature's trusted comment says.
fn comment(manifest: &Manifest) -> String {
    format!(
        "{PRODUCT} {} {} {}",
        manifest.version, manifest.architecture, manifest.channel
    )
    .trim_end()
    .to_owned()
}

fn check_root_hash(contents: &Contents) -> Result<(), PackError> {
    let path = &contents.uki;
    let file = File::open(path).map_err(|e| PackError::Read(path.clone(), e))?;
    let found = root_hash(&|at, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    });
    match found {
        Some(hash) if hash == contents.root_hash => Ok(()),
        hash => Err(PackError::RootHash {
            uki: path.clone(),
            found: hash.map_or_else(
                || "no roothash=".to_owned(),
                |hash| format!("roothash={hash}"),
            ),
            expected: contents.root_hash,
        }),
    }
}

/// Compresses `source` to `stored`, unless that gains nothing.
fn compressed(source: &Path, stored: &Path, compressor: &Compressor) -> Result<Part, PackError> {
    let read_error = |e| PackError::Read(source.to_owned(), e);
    let write_error = |e| PackError::Write(stored.to_owned(), e);
    let mut file = File::open(source).map_err(read_error)?;
    let (bytes, sha256) = sum(&mut file).map_err(read_error)?;
    file.seek(SeekFrom::Start(0)).map_err(read_error)?;
    match compressor {
        Compressor::BuiltIn => {
            let to = File::create(stored).map_err(write_error)?;
            compress(file, io::BufWriter::new(to), CompressionLevel::Fastest);
        }
        Compressor::Zstd { level } => {
            let failed = |why: String| PackError::Zstd(source.to_owned(), why);
            // The window of 8 MiB (2^23) is what readers accept.
            let output = Command::new("zstd")
                .args([
                    "-q",
                    "-f",
                    "--threads=1",
                    "--zstd=wlog=23",
                    "--no-check",
                    &format!("-{level}"),
                    "-o",
                ])
                .args([stored, source])
                .stdin(Stdio::null())
                .output()
                .map_err(|e| failed(e.to_string()))?;
            if !output.status.success() {
                return Err(failed(
                    String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                ));
            }
        }
    }
    let stored_bytes = fs::metadata(stored).map_err(write_error)?.len();
    // A saving of less than a hundredth is not worth the machines' time.
    if stored_bytes < bytes - bytes / 100 {
        return Ok(Part {
            bytes,
            sha256,
            stored_bytes,
            compression: Compression::Zstd,
        });
    }
    let _ = fs::remove_file(stored);
    Ok(Part {
        bytes,
        sha256,
        stored_bytes: bytes,
        compression: Compression::None,
    })
}

/// Length and sum of what `file` gives.
pub(crate) fn sum(file: &mut dyn Read) -> io::Result<(u64, Hash)> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut chunk)?;
        match chunk.get(..count) {
            Some(read) if !read.is_empty() => {
                hash.update(read);
                bytes += read.len() as u64;
            }
            _ => return Ok((bytes, Hash(hash.finalize().into()))),
        }
    }
}

/// The signed text of the payload at `path`, for signing it elsewhere.
pub fn manifest_text(path: &Path) -> Result<Vec<u8>, PackError> {
    let mut file = File::open(path).map_err(|e| PackError::Read(path.to_owned(), e))?;
    let (_, text) = read_head(&mut file).map_err(|e| PackError::Payload(path.to_owned(), e))?;
    Ok(text)
}

/// Adds a signature of the manifest's text, in minisign's form, to the payload at `path`.
pub fn add_signature(path: &Path, signature: &str) -> Result<(), PackError> {
    let signature_error = |e| PackError::Signature(path.to_owned(), e);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| PackError::Read(path.to_owned(), e))?;
    let (area, _) = read_head(&mut file).map_err(|e| PackError::Payload(path.to_owned(), e))?;
    let mut text = signatures(&area).map_err(signature_error)?.to_owned();
    text.push_str(signature.trim_end());
    text.push('\n');
    crate::signature::check_form(&text).map_err(signature_error)?;
    if text.len() > area.len() {
        return Err(PackError::NoRoom(path.to_owned()));
    }
    let write_error = |e| PackError::Write(path.to_owned(), e);
    file.write_all_at(text.as_bytes(), HEADER_BYTES as u64)
        .and_then(|()| file.sync_all())
        .map_err(write_error)
}
