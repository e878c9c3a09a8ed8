//! How far a destination has got, in a file of its own: `JOURNAL-ID SEQUENCE`.

use std::io;
use std::path::{Path, PathBuf};

use crate::entry::Id;

/// A place in the journal: everything up to and with this record is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) journal: Id,
    pub(super) sequence: u64,
}

/// The file's name is the destination's with every odd character replaced.
fn path(directory: &Path, name: &str) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '_'
        }
    };
    directory.join(format!(
        "{}.cursor",
        name.chars().map(plain).collect::<String>()
    ))
}

/// The destination's cursor; none when there is none that can be read, which sends what was sent again.
pub(super) fn load(directory: &Path, name: &str) -> Option<Cursor> {
    parse(&std::fs::read_to_string(path(directory, name)).ok()?)
}

fn parse(text: &str) -> Option<Cursor> {
    let (journal, sequence) = text.trim_end().split_once(' ')?;
    Some(Cursor {
        journal: Id::parse(journal)?,
        sequence: sequence.parse().ok()?,
    })
}

/// Replaces the destination's cursor. It is not synced: after a power cut what was sent last is sent again.
pub(super) fn save(directory: &Path, name: &str, cursor: Cursor) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = path(directory, name);
    let aside = path.with_extension("new");
    std::fs::write(&aside, format!("{} {}\n", cursor.journal, cursor.sequence))?;
    std::fs::rename(&aside, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_and_nonsense_is_none() {
        let directory = tempfile::TempDir::new().unwrap();
        let (name, other) = ("udp://[::1]:514", "udp://[::1]:515");
        let cursor = Cursor {
            journal: Id([7; 16]),
            sequence: 12,
        };
        save(directory.path(), name, cursor).unwrap();
        assert_eq!(load(directory.path(), name), Some(cursor));
        assert_eq!(load(directory.path(), other), None);
        for text in ["", "x", "00 1", "07070707070707070707070707070707 x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
