//! Layer compression, told by the first bytes and never by a name or a media type.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::FrameDecoder;

/// The largest zstd window that is accepted, in bytes. `zstd --ultra -21` needs this much; it bounds the decoder's memory.
const MAX_ZSTD_WINDOW_BYTES: u64 = 64 * 1024 * 1024;

/// How much is read from the compressed stream at a time.
const BUFFER_BYTES: usize = 64 * 1024;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames, skippable ones among them.
    Zstd,
    /// bzip2, any number of streams.
    Bzip2,
    /// xz, which is recognised only to say so.
    Xz,
}

impl Compression {
    /// Tells the compression from the first bytes (six are enough).
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // zstd:chunked and pzstd put a skippable frame first (RFC 8878 §3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// The uncompressed bytes of `inner`, whatever its compression.
///
/// # Errors
/// When the first bytes cannot be read, or are those of xz.
pub fn reader<'a>(inner: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut inner = BufReader::with_capacity(BUFFER_BYTES, inner);
    let compression = Compression::sniff(inner.fill_buf()?);
    Ok(match compression {
        Compression::None => Box::new(inner),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
        Compression::Zstd => Box::new(ZstdReader::new(inner)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(inner)),
        Compression::Xz => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "xz compression is not supported",
            ));
        }
    })
}

/// All frames of a zstd stream, one after the other.
struct ZstdReader<R> {
    inner: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(inner: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW_BYTES);
        Self {
            inner,
            decoder,
            in_frame: false,
        }
    }

    /// Passes skippable frames and starts the next real one; `false` at the end of the stream.
    fn start_frame(&mut self) -> io::Result<bool> {
        loop {
            if self.inner.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            self.inner.read_exact(&mut magic)?;
            if matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                let mut length = [0; 4];
                self.inner.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                let skipped = io::copy(&mut self.inner.by_ref().take(length), &mut io::sink())?;
                if skipped != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            self.decoder
                .reset(magic.as_slice().chain(&mut self.inner))
                .map_err(invalid)?;
            return Ok(true);
        }
    }

    /// Compares the checksum at the frame's end, where it has one.
    fn end_frame(&mut self) -> io::Result<()> {
        match (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        ) {
            (Some(stored), Some(counted)) if stored != counted => {
                Err(invalid("zstd frame with a wrong checksum"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame {
                if !self.start_frame()? {
                    return Ok(0);
                }
                self.in_frame = true;
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(
                        &mut self.inner,
                        ruzstd::decoding::BlockDecodingStrategy::UptoBlocks(1),
                    )
                    .map_err(invalid)?;
            }
            let count = self.decoder.read(buf)?;
            if count > 0 {
                return Ok(count);
            }
            self.end_frame()?;
            self.in_frame = false;
        }
    }
}

fn invalid(err: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}
