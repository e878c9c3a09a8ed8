//! The image store: a directory of configurations, unpacked layers and a table of names.
//!
//! docs/image-store.md describes what lies where. Imports take one lock and follow each other; a reader needs none for the
//! table, and holds a shared lock on the layers that it was told of (see [`Image`]) until it has mounted them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;

use crate::digest::{Algorithm, Digest};
use crate::layer;
use crate::limits::Limits;
use crate::manifest::{self, Form};
use crate::reference::{InvalidReference, Location, Reference};
use crate::source;
use crate::table::{self, Table};

/// The shortest part of an id that stands for the whole.
const MIN_ID_PREFIX: usize = 4;

/// What an image is known by: the digest of its configuration.
pub type ImageId = Digest;

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or lock of the store cannot be made.
    #[error("cannot prepare {path} of the image store")]
    Prepare {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another user of the store does not let go.
    #[error("cannot lock {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The table of names.
    #[error(transparent)]
    Table(#[from] table::Error),
    /// The archive or layout.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// What the archive or layout says of itself.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// One layer.
    #[error("image {image}, layer {number} of {count} ({diff_id})")]
    Layer {
        /// The image's name or id.
        image: String,
        /// Its place, from 1 for the lowest.
        number: usize,
        /// How many there are.
        count: usize,
        /// The digest that the configuration gives it.
        diff_id: Digest,
        /// Why.
        #[source]
        source: Box<layer::Error>,
    },
    /// Something cannot be written into the store.
    #[error("cannot write {path}")]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something cannot be removed from the store.
    #[error("cannot remove {path}")]
    Remove {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The name is unknown.
    #[error("no image {name} in the store (load one with `docker load -i FILE`)")]
    NotFound {
        /// As the caller wrote it.
        name: String,
    },
    /// The id is the beginning of several.
    #[error("{name} is the beginning of {count} images' ids")]
    Ambiguous {
        /// As the caller wrote it.
        name: String,
        /// How many.
        count: usize,
    },
    /// The archive holds several images, and none or no known one was asked for.
    #[error("{path} holds {holds}; {wanted}")]
    Choose {
        /// The archive or layout.
        path: PathBuf,
        /// What it holds.
        holds: String,
        /// What was asked for.
        wanted: String,
    },
    /// What the store holds of an image is damaged.
    #[error("image {id} in the store is damaged ({what}): load it again")]
    Damaged {
        /// The image.
        id: Digest,
        /// What is missing or wrong.
        what: String,
    },
    /// The image has several names and is asked to be removed by its id.
    #[error("image {id} has several names ({names}): remove them one by one, or force it")]
    SeveralNames {
        /// The image.
        id: Digest,
        /// Its names.
        names: String,
    },
    /// A container has the image mounted.
    #[error("image {name} is in use by process {pid}")]
    InUse {
        /// As the caller wrote it.
        name: String,
        /// A process in a mount namespace where a layer is mounted.
        pid: u32,
    },
}

/// An image ready to be mounted.
///
/// While it lives, no layer is removed: keep it until they are mounted.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// All its names, in familiar form.
    pub names: Vec<String>,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The directories to stack, lowest first, at least one.
    pub layers: Vec<PathBuf>,
    /// The shared lock on the layers.
    _lease: Arc<File>,
}

/// One row of a list of images.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its id.
    pub id: ImageId,
    /// Its names, in full.
    pub names: Vec<Reference>,
    /// When the image says that it was made (RFC 3339).
    pub created: Option<String>,
    /// When it was imported, in seconds since 1970.
    pub imported_s: u64,
    /// Bytes of file data in its layers.
    pub size_bytes: u64,
}

/// An image store on disk.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) limits: Limits,
}

/// Makes names in `tmp` different within a process.
static WORK_NUMBER: AtomicU64 = AtomicU64::new(0);

impl Store {
    /// Opens the store at `root`, making what is missing.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open_with_limits(root, Limits::default())
    }

    /// The same with other limits than the usual ones.
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open_with_limits(root: impl Into<PathBuf>, limits: Limits) -> Result<Self, Error> {
        let root = root.into();
        let store = Self { root, limits };
        for folder in ["", "configs", "layers", "tmp"] {
            let path = store.root.join(folder);
            // Only root may look inside: layers hold set-id programs as their images have them.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| Error::Prepare { path, source })?;
        }
        Ok(store)
    }

    /// Finds an image by name or id, or in the archive or layout that a transport names; that is imported first.
    ///
    /// # Errors
    /// When there is no such image, or it cannot be imported.
    pub fn resolve(&self, reference: &str) -> Result<Image, Error> {
        let (path, form, selector) = match Location::parse(reference) {
            Location::Store(name) => {
                let lease = self.lease()?;
                let table = self.read_table()?;
                let id = self.find(&table, &name)?;
                return self.image(&table, id, lease);
            }
            Location::DockerArchive { path, name } => (path, Form::Docker, name),
            Location::OciLayout { path, tag } => (path, Form::Oci, tag),
        };
        let lock = self.lock_for_writing()?;
        let id = self.import_one(&path, form, selector.as_deref())?;
        // Taken before the other is released, so that nobody removes the image in between.
        let lease = self.lease()?;
        drop(lock);
        self.image(&self.read_table()?, id, lease)
    }

    /// All images, the last imported first.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let table = self.read_table()?;
        let mut rows: Vec<Listed> = table
            .images
            .iter()
            .map(|(id, row)| Listed {
                id: id.clone(),
                names: table
                    .names_of(id)
                    .filter_map(|name| name.parse().ok())
                    .collect(),
                created: self
                    .config(id)
                    .ok()
                    .and_then(|config| config.created().clone()),
                imported_s: row.imported_s,
                size_bytes: row.size_bytes,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.imported_s));
        Ok(rows)
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// When there is no such image, or the new name is none.
    pub fn tag(&self, reference: &str, name: &str) -> Result<(), Error> {
        let _lock = self.lock_for_writing()?;
        let name: Reference = name.parse()?;
        let mut table = self.read_table()?;
        let id = self.find(&table, reference)?;
        table.names.insert(tagged(&name), id);
        self.write_table(&table)
    }

    fn path_of_table(&self) -> PathBuf {
        self.root.join("table.json")
    }

    pub(crate) fn path_of_config(&self, id: &Digest) -> PathBuf {
        self.root
            .join("configs")
            .join(format!("{}-{}", id.algorithm().as_str(), id.hex()))
    }

    pub(crate) fn path_of_layer(&self, key: &Digest) -> PathBuf {
        self.root.join("layers").join(key.hex())
    }

    pub(crate) fn new_work_path(&self) -> PathBuf {
        let number = WORK_NUMBER.fetch_add(1, Ordering::Relaxed);
        self.root
            .join("tmp")
            .join(format!("{}-{number}", std::process::id()))
    }

    pub(crate) fn read_table(&self) -> Result<Table, Error> {
        Ok(Table::read(&self.path_of_table())?)
    }

    pub(crate) fn write_table(&self, table: &Table) -> Result<(), Error> {
        Ok(table.write(&self.path_of_table(), &self.new_work_path())?)
    }

    /// The right to change the store, held by one process at a time. What a dead one left in `tmp` is cleared away.
    pub(crate) fn lock_for_writing(&self) -> Result<File, Error> {
        let lock = self.lock("lock", FlockOperation::LockExclusive)?;
        let tmp = self.root.join("tmp");
        let stale = fs::read_dir(&tmp).map_err(|source| Error::Prepare {
            path: tmp.clone(),
            source,
        })?;
        for entry in stale.flatten() {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_directory {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(|source| Error::Remove { path, source })?;
        }
        Ok(lock)
    }

    /// The right to find all layers in place for as long as it is held.
    fn lease(&self) -> Result<Arc<File>, Error> {
        self.lock("in-use", FlockOperation::LockShared)
            .map(Arc::new)
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<File, Error> {
        let path = self.root.join(name);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Error::Prepare {
                path: path.clone(),
                source,
            })?;
        // The kernel lets go for a holder that dies; whoever lives is bounded by the limits of one import.
        let mut operation_now = match operation {
            FlockOperation::LockExclusive => FlockOperation::NonBlockingLockExclusive,
            FlockOperation::LockShared => FlockOperation::NonBlockingLockShared,
            other => other,
        };
        loop {
            match rustix::fs::flock(&file, operation_now) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::WOULDBLOCK) if operation_now != operation => {
                    log::info!("waiting for another process that changes the image store");
                    operation_now = operation;
                }
                Err(err) => {
                    return Err(Error::Lock {
                        path,
                        source: err.into(),
                    });
                }
            }
        }
    }

    /// The image that `text` names: by name, by name and digest, or by the beginning of its id.
    pub(crate) fn find(&self, table: &Table, text: &str) -> Result<Digest, Error> {
        let not_found = || Error::NotFound {
            name: text.to_owned(),
        };
        let reference = text.parse::<Reference>();
        if let Ok(reference) = &reference {
            match reference.digest() {
                None => {
                    if let Some(id) = table.names.get(&reference.to_string()) {
                        return Ok(id.clone());
                    }
                }
                // A digest is the stronger name: what the tag says today does not matter.
                Some(digest) => {
                    return table
                        .images
                        .iter()
                        .find(|(id, row)| *id == digest || row.manifests.contains(digest))
                        .map(|(id, _)| id.clone())
                        .ok_or_else(not_found);
                }
            }
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() >= MIN_ID_PREFIX && prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            let mut matches = table
                .images
                .keys()
                .filter(|id| id.hex().starts_with(prefix));
            match (matches.next(), matches.count()) {
                (Some(id), 0) => return Ok(id.clone()),
                (Some(_), more) => {
                    return Err(Error::Ambiguous {
                        name: text.to_owned(),
                        count: more + 1,
                    });
                }
                (None, _) => {}
            }
        } else {
            reference?;
        }
        Err(not_found())
    }

    fn config(&self, id: &Digest) -> Result<ImageConfiguration, Error> {
        let damaged = |what: String| Error::Damaged {
            id: id.clone(),
            what,
        };
        let bytes = fs::read(self.path_of_config(id))
            .map_err(|err| damaged(format!("its configuration: {err}")))?;
        if Digest::of(id.algorithm(), &bytes) != *id {
            return Err(damaged(
                "its configuration does not match its digest".to_owned(),
            ));
        }
        serde_json::from_slice(&bytes).map_err(|err| damaged(format!("its configuration: {err}")))
    }

    pub(crate) fn layer_keys(&self, id: &Digest) -> Result<Vec<Digest>, Error> {
        let config = self.config(id)?;
        let diff_ids = config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|text| text.parse())
            .collect::<Result<Vec<Digest>, _>>()
            .map_err(|err| Error::Damaged {
                id: id.clone(),
                what: err.to_string(),
            })?;
        Ok(chain(diff_ids.iter()))
    }

    fn image(&self, table: &Table, id: Digest, lease: Arc<File>) -> Result<Image, Error> {
        let config = self.config(&id)?;
        let layers: Vec<PathBuf> = self
            .layer_keys(&id)?
            .iter()
            .map(|key| self.path_of_layer(key))
            .collect();
        if let Some(missing) = layers.iter().find(|layer| !layer.is_dir()) {
            return Err(Error::Damaged {
                id,
                what: format!("{} is missing", missing.display()),
            });
        }
        let names = table
            .names_of(&id)
            .filter_map(|name| Some(name.parse::<Reference>().ok()?.familiar()))
            .collect();
        Ok(Image {
            id,
            names,
            config,
            layers,
            _lease: lease,
        })
    }
}

/// What a name is in the table: tags only; a digest needs no entry.
pub(crate) fn tagged(name: &Reference) -> String {
    match name.tag() {
        Some(tag) => format!("{}:{tag}", name.repository()),
        None => name.to_string(),
    }
}

/// The chain ids of layers (image-spec, config.md, "Layer ChainID"): what a layer is on top of those below it.
pub(crate) fn chain<'d>(diff_ids: impl Iterator<Item = &'d Digest>) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => Digest::of(Algorithm::Sha256, format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}
