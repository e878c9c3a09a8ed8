//! One layer from its source to a directory: uncompressed, measured, hashed and unpacked in one pass.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use crate::decompress;
use crate::digest::{Digest, HashingReader};
use crate::limits::Limits;
use crate::manifest::Layer;
use crate::source::{self, Source};
use crate::tar;
use crate::unpack::{self, Summary};

/// Why a layer is not used. The caller adds which layer of which image it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The member is not there.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The member cannot be read, or its compression is broken.
    #[error("cannot read {member:?}")]
    Read {
        /// The member of the archive or layout.
        member: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes of the blob are not those that the manifest names.
    #[error("the blob does not match its digest: expected {expected}, got {got}")]
    BlobMismatch {
        /// By the manifest.
        expected: Digest,
        /// Of the bytes there are.
        got: Digest,
    },
    /// The uncompressed tar is not the one that the configuration names.
    #[error("the uncompressed layer does not match its diff_id: expected {expected}, got {got}")]
    DiffIdMismatch {
        /// By the configuration.
        expected: Digest,
        /// Of the bytes there are.
        got: Digest,
    },
    /// The tar holds something that cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] unpack::Error),
}

/// Unpacks `layer` of `source` into the empty directory `root`; see [`unpack::unpack`].
///
/// # Errors
/// When the layer is not what its digests say, or cannot be unpacked; the directory is then to be thrown away.
pub fn unpack(
    source: &Source,
    layer: &Layer,
    root: OwnedFd,
    lowers: &[OwnedFd],
    spool: File,
    limits: &Limits,
) -> Result<Summary, Error> {
    let read = |source| Error::Read {
        member: layer.member.clone(),
        source,
    };
    let section = source.section(&layer.member)?;
    if let Some(expected) = &layer.blob {
        // Before the decompressor sees a byte: the manifest vouches for these and no others.
        let mut hashing = HashingReader::new(section.clone(), expected.algorithm());
        copy_to_nowhere(&mut hashing).map_err(read)?;
        let (got, _) = hashing.finish();
        if got != *expected {
            return Err(Error::BlobMismatch {
                expected: expected.clone(),
                got,
            });
        }
    }
    let compressed_bytes = Cell::new(0);
    let counted = Counted {
        inner: section,
        bytes: &compressed_bytes,
    };
    let uncompressed = decompress::reader(counted).map_err(read)?;
    let limited = Limited {
        inner: uncompressed,
        compressed_bytes: &compressed_bytes,
        bytes: 0,
        limits,
    };
    let hashing = HashingReader::new(limited, layer.diff_id.algorithm());
    let mut reader = tar::Reader::new(tar::Stream(hashing));
    let unpacked = unpack::unpack(&mut reader, root, lowers, spool, limits);
    // What follows the end of the archive belongs to the digest too. After an error the rest is read only to tell damage
    // from a tar that is bad in itself.
    let mut rest = reader.into_inner().0;
    let drained = copy_to_nowhere(&mut rest);
    let (got, _) = rest.finish();
    match unpacked {
        Err(unpack::Error::Tar(_) | unpack::Error::Read { .. } | unpack::Error::Refused { .. })
            if drained.is_ok() && got != layer.diff_id => {}
        Err(err) => return Err(err.into()),
        Ok(summary) => {
            drained.map_err(read)?;
            if got == layer.diff_id {
                return Ok(summary);
            }
        }
    }
    Err(Error::DiffIdMismatch {
        expected: layer.diff_id.clone(),
        got,
    })
}

fn copy_to_nowhere(from: &mut impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
}

/// Counts what is read.
struct Counted<'c, R> {
    inner: R,
    bytes: &'c Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}

/// Fails when more comes out than [`Limits`] allow for what went in.
struct Limited<'c, R> {
    inner: R,
    compressed_bytes: &'c Cell<u64>,
    bytes: u64,
    limits: &'c Limits,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.bytes += count as u64;
        let too_large = |text| Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        if self.bytes > self.limits.layer_bytes {
            return too_large(format!(
                "it uncompresses to more than {} bytes",
                self.limits.layer_bytes
            ));
        }
        let allowed = self
            .compressed_bytes
            .get()
            .saturating_mul(self.limits.ratio);
        if self.bytes > self.limits.ratio_floor_bytes.max(allowed) {
            return too_large(format!(
                "it uncompresses to more than {} times its size",
                self.limits.ratio
            ));
        }
        Ok(count)
    }
}
