//! How unit files are reached: this crate reads nothing itself.

use std::collections::BTreeMap;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, without the directory.
    pub name: String,
    /// What it is; links are not followed.
    pub kind: EntryKind,
}

/// The file system, as far as units need it. Paths are absolute.
pub trait UnitStore {
    /// The text of a file, links followed; `None` when there is none or it cannot be read. Bytes that are not UTF-8 become U+FFFD.
    fn read(&self, path: &str) -> Option<String>;
    /// The entries of a directory in any order, without `.` and `..`; empty when there is none.
    fn list(&self, directory: &str) -> Vec<Entry>;
    /// What a symbolic link holds; `None` when it is not one.
    fn link_target(&self, path: &str) -> Option<String>;
}

/// A store in memory, for tests and for checking files that are not installed.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    files: BTreeMap<String, Content>,
}

#[derive(Clone, Debug)]
enum Content {
    Text(String),
    Link(String),
}

impl MemoryStore {
    /// A store without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a file.
    #[must_use]
    pub fn file(mut self, path: &str, text: &str) -> Self {
        self.files
            .insert(path.to_owned(), Content::Text(text.to_owned()));
        self
    }

    /// Adds or replaces a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.files
            .insert(path.to_owned(), Content::Link(target.to_owned()));
        self
    }

    /// Takes a file or link away.
    #[must_use]
    pub fn without(mut self, path: &str) -> Self {
        self.files.remove(path);
        self
    }
}

impl UnitStore for MemoryStore {
    fn read(&self, path: &str) -> Option<String> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match self.files.get(&path)? {
                Content::Text(text) => return Some(text.clone()),
                Content::Link(target) if target.starts_with('/') => path = target.clone(),
                Content::Link(target) => {
                    let (directory, _) = path.rsplit_once('/')?;
                    path = format!("{directory}/{target}");
                }
            }
        }
        None
    }

    fn list(&self, directory: &str) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let start = format!("{directory}/");
        for (path, content) in self.files.range(start.clone()..) {
            let Some(rest) = path.strip_prefix(&start) else {
                break;
            };
            let (name, kind) = match (rest.split_once('/'), content) {
                (Some((name, _)), _) => (name, EntryKind::Directory),
                (None, Content::Text(_)) => (rest, EntryKind::File),
                (None, Content::Link(_)) => (rest, EntryKind::Link),
            };
            if entries.last().is_none_or(|last| last.name != name) {
                entries.push(Entry {
                    name: name.to_owned(),
                    kind,
                });
            }
        }
        entries
    }

    fn link_target(&self, path: &str) -> Option<String> {
        match self.files.get(path)? {
            Content::Link(target) => Some(target.clone()),
            Content::Text(_) => None,
        }
    }
}
