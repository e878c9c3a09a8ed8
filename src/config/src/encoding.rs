//! Base64 and gzip, with bounds.

use std::io::Read;

use thiserror::Error;

/// Bytes that compressed configuration, or the content of one file, may have when it is unpacked.
pub(crate) const LARGEST: u64 = 16 << 20;

/// Why encoded data could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("not base64: character {0} is none of its alphabet")]
    Alphabet(usize),
    #[error("not base64: it is cut off")]
    CutOff,
    #[error("not gzip: {0}")]
    Gzip(String),
    #[error("unpacks to more than {} MiB", LARGEST >> 20)]
    TooLarge,
}

/// Base64 (RFC 4648 §4 and §5), white space ignored, padding optional.
pub(crate) fn base64(text: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held, mut padded) = (0_u32, 0_u32, false);
    for (i, b) in text.bytes().enumerate() {
        let six = match b {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'=' => {
                padded = true;
                continue;
            }
            _ if padded => return Err(Error::Alphabet(i + 1)),
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err(Error::Alphabet(i + 1)),
        };
        bits = bits << 6 | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    // One character alone holds six bits, which is no byte.
    if held == 6 {
        Err(Error::CutOff)
    } else {
        Ok(bytes)
    }
}

/// Whether `bytes` begin as a gzip file does (RFC 1952 §2.3.1).
pub(crate) fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Unpacks all members of a gzip file.
pub(crate) fn gunzip(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(LARGEST + 1)
        .read_to_end(&mut unpacked)
        .map_err(|e| Error::Gzip(e.to_string()))?;
    if unpacked.len() as u64 > LARGEST {
        return Err(Error::TooLarge);
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_and_without_padding_and_line_ends() {
        assert_eq!(base64("aGVs\nbG8="), Ok(b"hello".to_vec()));
        assert_eq!(base64("aGVsbG8"), Ok(b"hello".to_vec()));
        assert_eq!(base64(""), Ok(Vec::new()));
        assert_eq!(base64("aGVsb"), Err(Error::CutOff));
        assert_eq!(base64("aG$s"), Err(Error::Alphabet(3)));
        assert_eq!(base64("aG=sa"), Err(Error::Alphabet(4)));
    }
}
