//! The image store: a directory of configurations, unpacked layers and a table of names.
//!
//! docs/image-store.md describes what lies where. Imports take one lock and follow each other; a reader needs none for the
//! table, and holds a shared lock on the layers that it was told of (see [`Image`]) until it has mounted them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;

use crate::digest::{Algorithm, Digest};
use crate::layer;
use crate::limits::Limits;
use crate::manifest::{self, Form, Found};
use crate::reference::{InvalidReference, Location, Reference};
use crate::source::{self, Source};
use crate::table::{self, Row, Table};

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

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its id.
    pub id: ImageId,
    /// The names that it has now through this import, in familiar form.
    pub names: Vec<String>,
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

/// What [`Store::remove`] took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone, in familiar form.
    pub untagged: Vec<String>,
    /// The image, if that was its last name.
    pub deleted: Option<ImageId>,
}

/// What [`Store::collect`] took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layer directories that no image has any more.
    pub layers: usize,
    /// Configurations that no image has any more.
    pub configurations: usize,
}

/// An image store on disk.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    limits: Limits,
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

    /// Loads every image of the archive or layout at `path` that is for this machine, with all its names.
    ///
    /// Layers that are already there are not unpacked again.
    ///
    /// # Errors
    /// When the archive is damaged, hostile or does not fit; the store is then as it was.
    pub fn import(&self, path: &Path) -> Result<Vec<Imported>, Error> {
        let _lock = self.lock_for_writing()?;
        let source = self.open_source(path)?;
        let found = manifest::read(&source, Form::Any)?;
        found
            .iter()
            .map(|found| self.add(&source, found, Naming::Take))
            .collect()
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
        let source = self.open_source(&path)?;
        let found = select(&path, manifest::read(&source, form)?, selector.as_deref())?;
        let imported = self.add(&source, &found, Naming::Offer)?;
        // Taken before the other is released, so that nobody removes the image in between.
        let lease = self.lease()?;
        drop(lock);
        self.image(&self.read_table()?, imported.id, lease)
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

    /// Removes a name; with its last name, or by its id, the image, and the layers that no other image has.
    ///
    /// # Errors
    /// When there is no such image, a container has it mounted, or it has several names and is named by its id without
    /// `force`.
    pub fn remove(&self, reference: &str, force: bool) -> Result<Removed, Error> {
        let _lock = self.lock_for_writing()?;
        let mut table = self.read_table()?;
        let id = self.find(&table, reference)?;
        let mut removed = Removed::default();
        let name = reference
            .parse::<Reference>()
            .ok()
            .map(|name| tagged(&name));
        let familiar = |name: &str| {
            name.parse::<Reference>()
                .map_or(name.to_owned(), |r| r.familiar())
        };
        match name.filter(|name| table.names.get(name) == Some(&id)) {
            Some(name) => {
                table.names.remove(&name);
                removed.untagged.push(familiar(&name));
            }
            None => {
                let names: Vec<String> = table.names_of(&id).map(str::to_owned).collect();
                if names.len() > 1 && !force {
                    let names = names
                        .iter()
                        .map(|name| familiar(name))
                        .collect::<Vec<_>>()
                        .join(", ");
                    return Err(Error::SeveralNames { id, names });
                }
                for name in names {
                    table.names.remove(&name);
                    removed.untagged.push(familiar(&name));
                }
            }
        }
        if table.names_of(&id).next().is_none() {
            if let Some(pid) = self.mounted_by(&self.layer_keys(&id).unwrap_or_default()) {
                return Err(Error::InUse {
                    name: reference.to_owned(),
                    pid,
                });
            }
            table.images.remove(&id);
            removed.deleted = Some(id);
        }
        self.write_table(&table)?;
        self.collect_unused(&table)?;
        Ok(removed)
    }

    /// Removes layers and configurations that no image in the table has: what interrupted imports and removals left.
    ///
    /// Does nothing while an [`Image`] is held anywhere.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect(&self) -> Result<Collected, Error> {
        let _lock = self.lock_for_writing()?;
        self.collect_unused(&self.read_table()?)
    }

    fn path_of_table(&self) -> PathBuf {
        self.root.join("table.json")
    }

    fn path_of_config(&self, id: &Digest) -> PathBuf {
        self.root
            .join("configs")
            .join(format!("{}-{}", id.algorithm().as_str(), id.hex()))
    }

    fn path_of_layer(&self, key: &Digest) -> PathBuf {
        self.root.join("layers").join(key.hex())
    }

    fn new_work_path(&self) -> PathBuf {
        let number = WORK_NUMBER.fetch_add(1, Ordering::Relaxed);
        self.root
            .join("tmp")
            .join(format!("{}-{number}", std::process::id()))
    }

    fn read_table(&self) -> Result<Table, Error> {
        Ok(Table::read(&self.path_of_table())?)
    }

    fn write_table(&self, table: &Table) -> Result<(), Error> {
        Ok(table.write(&self.path_of_table(), &self.new_work_path())?)
    }

    /// The right to change the store, held by one process at a time. What a dead one left in `tmp` is cleared away.
    fn lock_for_writing(&self) -> Result<File, Error> {
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
        loop {
            match rustix::fs::flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(err) => {
                    return Err(Error::Lock {
                        path,
                        source: err.into(),
                    });
                }
            }
        }
    }

    fn open_source(&self, path: &Path) -> Result<Source, Error> {
        Ok(Source::open(path, self.limits.layer_bytes, || {
            self.spool()
        })?)
    }

    /// A file without a name, gone when it is closed.
    fn spool(&self) -> io::Result<File> {
        let path = self.new_work_path();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    }

    /// Unpacks what is missing of an image and enters it in the table. The caller holds the writing lock.
    fn add(&self, source: &Source, found: &Found, naming: Naming) -> Result<Imported, Error> {
        let keys = chain(found.layers.iter().map(|layer| &layer.diff_id));
        for (index, key) in keys.iter().enumerate() {
            if !self.path_of_layer(key).is_dir() {
                self.add_layer(
                    source,
                    found,
                    index,
                    key,
                    keys.get(..index).unwrap_or_default(),
                )?;
            }
        }
        let config_path = self.path_of_config(&found.id);
        if !fs::read(&config_path).is_ok_and(|bytes| bytes == found.config_bytes) {
            table::replace(&config_path, &self.new_work_path(), &found.config_bytes).map_err(
                |source| Error::Write {
                    path: config_path,
                    source,
                },
            )?;
        }
        let mut table = self.read_table()?;
        let before = table.clone();
        if !table.images.contains_key(&found.id) {
            // Measured once, here: a list shall not walk trees.
            let size_bytes = keys
                .iter()
                .map(|key| tree_bytes(&self.path_of_layer(key)))
                .sum();
            let imported_s = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |t| t.as_secs());
            table.images.insert(
                found.id.clone(),
                Row {
                    manifests: Vec::new(),
                    imported_s,
                    size_bytes,
                },
            );
        }
        if let (Some(row), Some(manifest)) = (table.images.get_mut(&found.id), &found.manifest)
            && !row.manifests.contains(manifest)
        {
            row.manifests.push(manifest.clone());
        }
        let mut names = Vec::new();
        for name in &found.names {
            let full = tagged(name);
            if naming == Naming::Take || !table.names.contains_key(&full) {
                table.names.insert(full, found.id.clone());
                names.push(name.familiar());
            }
        }
        if table != before {
            self.write_table(&table)?;
        }
        Ok(Imported {
            id: found.id.clone(),
            names,
        })
    }

    /// Unpacks one layer aside and moves it to its place.
    fn add_layer(
        &self,
        source: &Source,
        found: &Found,
        index: usize,
        key: &Digest,
        lowers: &[Digest],
    ) -> Result<(), Error> {
        let Some(layer) = found.layers.get(index) else {
            return Ok(());
        };
        let work = self.new_work_path();
        let prepare = |source| Error::Prepare {
            path: work.clone(),
            source,
        };
        DirBuilder::new()
            .mode(0o700)
            .create(&work)
            .map_err(prepare)?;
        let lowers = lowers
            .iter()
            .map(|key| self.path_of_layer(key))
            .map(|path| open_directory(&path).map_err(|source| Error::Prepare { path, source }))
            .collect::<Result<Vec<_>, _>>()?;
        let root = open_directory(&work).map_err(prepare)?;
        let synced = root.try_clone().map_err(prepare)?;
        let spool = self.spool().map_err(prepare)?;
        let unpacked = layer::unpack(source, layer, root, &lowers, spool, &self.limits);
        unpacked.map_err(|source| {
            // Room for whoever comes next; if it fails, the next writer clears it away.
            let _ = fs::remove_dir_all(&work);
            Error::Layer {
                image: found.label(),
                number: index + 1,
                count: found.layers.len(),
                diff_id: layer.diff_id.clone(),
                source: Box::new(source),
            }
        })?;
        let path = self.path_of_layer(key);
        let write = |source| Error::Write {
            path: path.clone(),
            source,
        };
        // One sync for the whole file system costs far less than one for each of a layer's thousands of files.
        rustix::fs::syncfs(&synced).map_err(|err| write(err.into()))?;
        fs::rename(&work, &path).map_err(write)?;
        table::sync_directory(&self.root.join("layers")).map_err(write)
    }

    /// The image that `text` names: by name, by name and digest, or by the beginning of its id.
    fn find(&self, table: &Table, text: &str) -> Result<Digest, Error> {
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

    fn layer_keys(&self, id: &Digest) -> Result<Vec<Digest>, Error> {
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

    fn collect_unused(&self, table: &Table) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let in_use = self.root.join("in-use");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&in_use)
            .map_err(|source| Error::Prepare {
                path: in_use.clone(),
                source,
            })?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // A container is being prepared: the next removal finds the same again.
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(collected),
            Err(err) => {
                return Err(Error::Lock {
                    path: in_use,
                    source: err.into(),
                });
            }
        }
        let mut kept_layers = std::collections::HashSet::new();
        let mut kept_configs = std::collections::HashSet::new();
        for id in table.images.keys() {
            // An image whose configuration is damaged keeps nothing: it has to be loaded again anyway.
            kept_layers.extend(
                self.layer_keys(id)
                    .unwrap_or_default()
                    .iter()
                    .map(|key| self.path_of_layer(key)),
            );
            kept_configs.insert(self.path_of_config(id));
        }
        for path in paths_in(&self.root.join("layers"))? {
            let key = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default()
                .to_owned();
            if kept_layers.contains(&path) || mounting_process(&[key]).is_some() {
                continue;
            }
            // Out of its place first, so that a half-removed layer is never taken for a whole one.
            let work = self.new_work_path();
            fs::rename(&path, &work).map_err(|source| Error::Remove {
                path: path.clone(),
                source,
            })?;
            fs::remove_dir_all(&work).map_err(|source| Error::Remove { path: work, source })?;
            collected.layers += 1;
        }
        for path in paths_in(&self.root.join("configs"))? {
            if !kept_configs.contains(&path) {
                fs::remove_file(&path).map_err(|source| Error::Remove { path, source })?;
                collected.configurations += 1;
            }
        }
        Ok(collected)
    }

    fn mounted_by(&self, keys: &[Digest]) -> Option<u32> {
        // The lowest layers are shared with other images; the topmost stands for this one.
        let top = keys.last()?.hex().to_owned();
        mounting_process(&[top])
    }
}

/// Whether names in an archive replace those in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// They do: the archive was loaded for its names.
    Take,
    /// They do not: the archive was only the place to find an image in.
    Offer,
}

/// What a name is in the table: tags only; a digest needs no entry.
fn tagged(name: &Reference) -> String {
    match name.tag() {
        Some(tag) => format!("{}:{tag}", name.repository()),
        None => name.to_string(),
    }
}

/// The one image of `found` that is meant.
fn select(path: &Path, found: Vec<Found>, selector: Option<&str>) -> Result<Found, Error> {
    let holds = match found.len() {
        1 => found.first().map(Found::label).unwrap_or_default(),
        count => format!(
            "{count} images ({})",
            found
                .iter()
                .map(Found::label)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let choose = |wanted: String| Error::Choose {
        path: path.to_owned(),
        holds,
        wanted,
    };
    let Some(selector) = selector else {
        let mut found = found;
        return match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(choose(
                "name one after the path, as in PATH:NAME".to_owned(),
            )),
        };
    };
    let name = selector.parse::<Reference>().ok();
    let mut matches = found.into_iter().filter(|image| {
        image.ref_name.as_deref() == Some(selector)
            || name.as_ref().is_some_and(|name| image.names.contains(name))
    });
    match (matches.next(), matches.next()) {
        (Some(image), None) => Ok(image),
        (Some(_), Some(_)) => Err(choose(format!("several of them are {selector}"))),
        (None, _) => Err(choose(format!("none of them is {selector}"))),
    }
}

/// The chain ids of layers (image-spec, config.md, "Layer ChainID"): what a layer is on top of those below it.
fn chain<'d>(diff_ids: impl Iterator<Item = &'d Digest>) -> Vec<Digest> {
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

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

fn paths_in(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Prepare {
        path: folder.to_owned(),
        source,
    };
    fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

/// Bytes of the regular files in a tree.
fn tree_bytes(root: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
                _ => {}
            }
        }
    }
    bytes
}

/// A process in whose mount namespace one of the layers `keys` is part of an overlay.
fn mounting_process(keys: &[String]) -> Option<u32> {
    let mut seen = std::collections::HashSet::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace) {
            continue;
        }
        let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        let is_user = |line: &str| {
            line.contains(" - overlay ") && keys.iter().any(|key| line.contains(key.as_str()))
        };
        if mounts.lines().any(is_user) {
            return Some(pid);
        }
    }
    None
}
