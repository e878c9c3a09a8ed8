//! Tells whether a build's inputs are those of the last time, by their contents.

use std::path::Path;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// A hash over everything that a build depends on.
#[derive(Debug)]
pub(super) struct Stamp {
    hash: Sha256,
}

impl Stamp {
    pub(super) fn new() -> Self {
        Self {
            hash: Sha256::new(),
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.hash.update(text.len().to_le_bytes());
        self.hash.update(text);
    }

    pub(super) fn file(&mut self, path: &Path) -> Result<()> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        self.hash.update(bytes.len().to_le_bytes());
        self.hash.update(&bytes);
        Ok(())
    }

    /// All files below a directory, with their names and modes.
    pub(super) fn tree(&mut self, directory: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        let mut entries: Vec<_> = std::fs::read_dir(directory)
            .with_context(|| format!("list {}", directory.display()))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        for path in entries {
            let metadata = std::fs::symlink_metadata(&path)
                .with_context(|| format!("look at {}", path.display()))?;
            self.text(&path.file_name().unwrap_or_default().to_string_lossy());
            self.text(&format!("{:o}", metadata.permissions().mode()));
            if metadata.is_dir() {
                self.tree(&path)?;
            } else if metadata.is_file() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    fn hex(&self) -> String {
        self.hash
            .clone()
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(super) fn is_in(&self, path: &Path) -> bool {
        std::fs::read_to_string(path).is_ok_and(|text| text.trim_end() == self.hex())
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.hex() + "\n").with_context(|| format!("write {}", path.display()))
    }
}
