//! The last assignment, on disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::records::Assignment;

const FILE: &str = "assignment.json";

/// Where it is kept.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// What was assigned last; nothing when there is none, or one that cannot be read.
pub(super) fn read(directory: &Path) -> Assignment {
    let text = match fs::read(path(directory)) {
        Ok(text) => text,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Assignment::default(),
        Err(err) => {
            log::warn!("cannot read {}: {err}", path(directory).display());
            return Assignment::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|err| {
        log::warn!("cannot read {}: {err}", path(directory).display());
        Assignment::default()
    })
}

/// Writes it so that a crash leaves the old one or the new one.
pub(super) fn write(directory: &Path, assignment: &Assignment) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(assignment)?;
    write_file(&path(directory), &text, true)
}

/// Writes a file aside and puts it in its place, on disk when it is to be `durable`.
pub(super) fn write_file(path: &Path, text: &[u8], durable: bool) -> io::Result<()> {
    let aside = path.with_extension("new~");
    let mut file = File::create(&aside)?;
    file.write_all(text)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&aside, path)?;
    if durable && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}
