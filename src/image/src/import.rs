//! Bringing images into the store: what is missing is unpacked aside, moved to its place, and then entered in the table.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::digest::Digest;
use crate::layer;
use crate::manifest::{self, Form, Found};
use crate::reference::Reference;
use crate::source::Source;
use crate::store::{Error, ImageId, Store, chain, tagged};
use crate::table::{self, Row};

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its id.
    pub id: ImageId,
    /// The names that it has now through this import, in familiar form.
    pub names: Vec<String>,
}

/// Whether names in an archive replace those in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// They do: the archive was loaded for its names.
    Take,
    /// They do not: the archive was only the place to find an image in.
    Offer,
}

impl Store {
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
        self.add(&source, &found, Naming::Take)
    }

    /// Imports the one image of `path` that `selector` means, without taking names from other images. The caller holds the
    /// writing lock.
    pub(crate) fn import_one(
        &self,
        path: &Path,
        form: Form,
        selector: Option<&str>,
    ) -> Result<ImageId, Error> {
        let source = self.open_source(path)?;
        let found = select(path, manifest::read(&source, form)?, selector)?;
        self.add(&source, std::slice::from_ref(&found), Naming::Offer)?;
        Ok(found.id)
    }

    /// Adds images under the writing lock: all of them, or, after an error, none.
    fn add(
        &self,
        source: &Source,
        images: &[Found],
        naming: Naming,
    ) -> Result<Vec<Imported>, Error> {
        let added = images
            .iter()
            .try_for_each(|found| self.add_content(source, found))
            .and_then(|()| self.enter(images, naming));
        if added.is_err() {
            // Layers that were whole are of no use without the image, and room may be what was missing.
            if let Err(err) = self
                .read_table()
                .and_then(|table| self.collect_unused(&table))
            {
                log::warn!("what an import left behind stays in the image store: {err}");
            }
        }
        added
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

    /// Unpacks the layers of an image that are missing, and keeps its configuration.
    fn add_content(&self, source: &Source, found: &Found) -> Result<(), Error> {
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
        let path = self.path_of_config(&found.id);
        if fs::read(&path).is_ok_and(|bytes| bytes == found.config_bytes) {
            return Ok(());
        }
        table::replace(&path, &self.new_work_path(), &found.config_bytes)
            .map_err(|source| Error::Write { path, source })
    }

    /// Enters images whose content is there in the table, by one write.
    fn enter(&self, images: &[Found], naming: Naming) -> Result<Vec<Imported>, Error> {
        let mut table = self.read_table()?;
        let before = table.clone();
        let mut imported = Vec::new();
        for found in images {
            let row = table.images.entry(found.id.clone()).or_insert_with(|| Row {
                manifests: Vec::new(),
                imported_s: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |now| now.as_secs()),
                // Measured once, here: a list shall not walk trees.
                size_bytes: chain(found.layers.iter().map(|layer| &layer.diff_id))
                    .iter()
                    .map(|key| tree_bytes(&self.path_of_layer(key)))
                    .sum(),
            });
            if let Some(manifest) = found
                .manifest
                .as_ref()
                .filter(|manifest| !row.manifests.contains(manifest))
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
            imported.push(Imported {
                id: found.id.clone(),
                names,
            });
        }
        if table != before {
            self.write_table(&table)?;
        }
        Ok(imported)
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

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
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
