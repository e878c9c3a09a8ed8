//! The file that brings a version: header, signatures, manifest, parts. `docs/update-payload.md` has it byte by byte.

use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::hex::Hash;
use crate::manifest::{self, Compression, Manifest, ManifestError, Which};
use crate::signature::{Keyring, SignatureError, Signed};

/// What a payload begins with.
pub const MAGIC: &[u8; 8] = b"orlopupd";

/// The header's version.
pub const VERSION: u32 = 1;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 32;

/// Room for signatures, filled up with zeros, so that one can be added without moving what follows.
pub const SIGNATURE_BYTES: usize = 4096;

/// The most memory that a part may ask a decoder to keep, in bytes: what `zstd -19` asks for.
const LARGEST_WINDOW: usize = 8 << 20;

/// What a part's bytes are handed on in.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a payload is refused.
#[derive(Debug, Error)]
pub enum PayloadError {
    /// It can not be read.
    #[error("cannot read the payload")]
    Read(#[source] io::Error),
    /// It ends too soon.
    #[error("the payload ends early, in {0}")]
    Short(&'static str),
    /// It is something else.
    #[error("it is no update payload")]
    NotAPayload,
    /// Its header is of another version.
    #[error("its header has version {0}; this version of Orlop knows {VERSION}")]
    Version(u32),
    /// Its lengths can not be.
    #[error("its header is damaged")]
    Header,
    /// Its signature does not count.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Its manifest is of no use.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A part is not what the manifest says.
    #[error("{part} is damaged: its SHA-256 is {is}, and {expected} is signed")]
    Hash {
        /// The part.
        part: Which,
        /// The sum that it has.
        is: Hash,
        /// The sum that it should have.
        expected: Hash,
    },
    /// A part has another length than the manifest says.
    #[error("{part} is damaged: it does not have the {expected} bytes that are signed")]
    Length {
        /// The part.
        part: Which,
        /// How long it should be.
        expected: u64,
    },
    /// A part can not be decompressed.
    #[error("{part} is damaged: {why}")]
    Compression {
        /// The part.
        part: Which,
        /// What the decoder says.
        why: String,
    },
}

/// A payload whose manifest is verified, to be read from front to back.
#[derive(Debug)]
pub struct Payload<R> {
    manifest: Manifest,
    signed: Option<Signed>,
    inner: R,
    /// How many parts were read.
    read: usize,
}

/// A header's lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) signature_bytes: usize,
    pub(crate) manifest_bytes: usize,
}

impl Header {
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let lengths = [
            VERSION,
            self.signature_bytes as u32,
            self.manifest_bytes as u32,
        ];
        let fields = MAGIC
            .iter()
            .copied()
            .chain(lengths.into_iter().flat_map(u32::to_le_bytes));
        for (to, from) in bytes.iter_mut().zip(fields) {
            *to = from;
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, PayloadError> {
        let number = |at: usize| {
            let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        if !bytes.starts_with(MAGIC) {
            return Err(PayloadError::NotAPayload);
        }
        if number(8) != VERSION {
            return Err(PayloadError::Version(number(8)));
        }
        let (signature_bytes, manifest_bytes) = (number(12) as usize, number(16) as usize);
        let is_possible = signature_bytes <= SIGNATURE_BYTES && manifest_bytes <= manifest::LONGEST;
        if !is_possible || bytes.get(20..) != Some(&[0; HEADER_BYTES - 20]) {
            return Err(PayloadError::Header);
        }
        Ok(Self {
            signature_bytes,
            manifest_bytes,
        })
    }
}

/// The signatures' text, without the zeros behind it.
pub(crate) fn signatures(area: &[u8]) -> Result<&str, SignatureError> {
    let end = area
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(area.len());
    let text = area.get(..end).unwrap_or_default();
    std::str::from_utf8(text).map_err(|_| SignatureError::Form)
}

fn fill(from: &mut impl Read, into: &mut [u8], place: &'static str) -> Result<(), PayloadError> {
    from.read_exact(into).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => PayloadError::Short(place),
        _ => PayloadError::Read(e),
    })
}

/// The signatures' area and the manifest's text, nothing of it verified.
pub(crate) fn read_head(inner: &mut impl Read) -> Result<(Vec<u8>, Vec<u8>), PayloadError> {
    let mut header = [0; HEADER_BYTES];
    let mut magic = [0; MAGIC.len()];
    fill(inner, &mut magic, "its header")?;
    if &magic != MAGIC {
        return Err(PayloadError::NotAPayload);
    }
    let (start, rest) = header.split_at_mut(MAGIC.len());
    start.copy_from_slice(&magic);
    fill(inner, rest, "its header")?;
    let header = Header::decode(&header)?;
    let mut area = vec![0; header.signature_bytes];
    fill(inner, &mut area, "its signature")?;
    let mut text = vec![0; header.manifest_bytes];
    fill(inner, &mut text, "its manifest")?;
    Ok((area, text))
}

impl<R: Read> Payload<R> {
    /// Reads as far as the manifest and verifies it.
    pub fn open(mut inner: R, keys: &Keyring) -> Result<Self, PayloadError> {
        let (area, text) = read_head(&mut inner)?;
        let signed = keys.verify(&text, signatures(&area)?)?;
        let manifest = Manifest::parse(&text)?;
        Ok(Self {
            manifest,
            signed: Some(signed),
            inner,
            read: 0,
        })
    }

    /// The manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What is on this machine already, its parts one behind another as `manifest` says.
    pub(crate) fn local(manifest: Manifest, inner: R) -> Self {
        Self {
            manifest,
            signed: None,
            inner,
            read: 0,
        }
    }

    /// Who signed it; nobody signs what is on this machine already.
    #[must_use]
    pub fn signed(&self) -> Option<&Signed> {
        self.signed.as_ref()
    }

    /// Hands the next part's bytes to `sink`, in order and at most a MiB at a time, and verifies them. Until it returns, they are not
    /// verified.
    ///
    /// # Errors
    /// What is wrong with the part, or what `sink` gives. After an error the payload is of no more use.
    pub fn next_part<E: From<PayloadError>>(
        &mut self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<Which>, E> {
        let Some((which, part)) = self.manifest.parts().nth(self.read) else {
            return Ok(None);
        };
        let part = part.clone();
        self.read += 1;
        let mut stored = (&mut self.inner).take(part.stored_bytes);
        let mut left = part.bytes;
        let mut hash = Sha256::new();
        let mut take = |bytes: &[u8]| {
            let length = bytes.len() as u64;
            left = left.checked_sub(length).ok_or(PayloadError::Length {
                part: which,
                expected: part.bytes,
            })?;
            hash.update(bytes);
            sink(bytes)
        };
        match part.compression {
            Compression::None => copy(&mut stored, &mut take, PayloadError::Read)?,
            Compression::Zstd => {
                let wrong = |why: String| PayloadError::Compression { part: which, why };
                let decoder =
                    StreamingDecoder::new_with_max_window_size(&mut stored, LARGEST_WINDOW as u64);
                let mut decoder = decoder.map_err(|e| wrong(e.to_string()))?;
                copy(&mut decoder, &mut take, |e| wrong(e.to_string()))?;
            }
        }
        if left != 0 && stored.limit() != 0 {
            return Err(PayloadError::Short("a part").into());
        }
        if left != 0 || stored.limit() != 0 {
            return Err(PayloadError::Length {
                part: which,
                expected: part.bytes,
            }
            .into());
        }
        let is = Hash(hash.finalize().into());
        if is != part.sha256 {
            return Err(PayloadError::Hash {
                part: which,
                is,
                expected: part.sha256,
            }
            .into());
        }
        Ok(Some(which))
    }
}

fn copy<E: From<PayloadError>>(
    from: &mut impl Read,
    take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    error: impl Fn(io::Error) -> PayloadError,
) -> Result<(), E> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        // Full chunks, since a decoder gives as little as a block at a time.
        let mut filled = 0;
        while let Some(rest) = chunk.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match from.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(error(e).into()),
            }
        }
        match chunk.get(..filled) {
            Some(bytes) if !bytes.is_empty() => take(bytes)?,
            _ => return Ok(()),
        }
    }
}
