//! The store's table of images and names: one small JSON file, replaced as a whole.
//!
//! Its rename is the point at which an import or a removal has happened; docs/image-store.md describes the format.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The version that this code writes, and the only one that it reads.
const VERSION: u32 = 1;

/// Why the table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the image table {path}")]
    Read {
        /// The table.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not the JSON that it should be.
    #[error("the image table {path} is malformed")]
    Malformed {
        /// The table.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A later version of Orlop wrote it.
    #[error("the image table {path} has version {version}; this program knows version {VERSION}")]
    Version {
        /// The table.
        path: PathBuf,
        /// What stands there.
        version: u32,
    },
    /// It cannot be replaced.
    #[error("cannot write the image table {path}")]
    Write {
        /// The table.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is known of one image beside its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Digests of the OCI manifests under which it came.
    #[serde(default)]
    pub manifests: Vec<Digest>,
    /// When it was imported, in seconds since 1970.
    pub imported_s: u64,
    /// Bytes of file data in its layers.
    pub size_bytes: u64,
}

/// All images, by the digest of their configuration, and all names, in full form, with the image that each stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    version: u32,
    /// The images.
    pub images: BTreeMap<Digest, Row>,
    /// The names.
    pub names: BTreeMap<String, Digest>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }
}

impl Table {
    /// Reads the table; one that is not there is empty.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        let table: Self = serde_json::from_slice(&bytes).map_err(|source| Error::Malformed {
            path: path.to_owned(),
            source,
        })?;
        if table.version != VERSION {
            return Err(Error::Version {
                path: path.to_owned(),
                version: table.version,
            });
        }
        Ok(table)
    }

    /// Replaces the table at `path`, writing it under `work` first; after a crash either the old or the new one is there.
    ///
    /// # Errors
    /// When any step fails; the old table then still stands.
    pub fn write(&self, path: &Path, work: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write {
            path: path.to_owned(),
            source,
        };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(|err| failed(err.into()))?;
        bytes.push(b'\n');
        replace(path, work, &bytes).map_err(failed)
    }

    /// The names of image `id`.
    pub fn names_of(&self, id: &Digest) -> impl Iterator<Item = &str> {
        self.names
            .iter()
            .filter(move |(_, named)| *named == id)
            .map(|(name, _)| name.as_str())
    }
}

/// Writes `bytes` to `work` and renames it to `path`, each step on disk before the next.
pub(crate) fn replace(path: &Path, work: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(work)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(work, path)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Puts the names in a directory on disk.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
