//! What the disk takes for the bytes of one put, with no server.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Bytes of the log's block for one put of the load.
const BLOCK_BYTES: usize = 368;
/// Bytes of the file, which is written from its beginning again at its end.
const FILE_BYTES: usize = 4 << 20;

/// A file of its own, which goes with it.
pub(crate) struct Disk {
    file: File,
    path: PathBuf,
    /// Where the next block goes.
    offset: usize,
}

impl Disk {
    /// A new file in `directory`, all of it on the disk.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("sync-test");
        let file = File::create(&path)?;
        file.write_all_at(&vec![0; FILE_BYTES], 0)?;
        file.sync_all()?;
        Ok(Self {
            file,
            path,
            offset: 0,
        })
    }

    /// How long one write of a block and its `fdatasync` take.
    pub(crate) fn sync(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.file
            .write_all_at(&[7; BLOCK_BYTES], self.offset as u64)?;
        self.file.sync_data()?;
        self.offset = (self.offset + BLOCK_BYTES) % (FILE_BYTES - BLOCK_BYTES);
        Ok(begun.elapsed())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Best effort: it is in a directory for the bench.
        let _ = std::fs::remove_file(&self.path);
    }
}
