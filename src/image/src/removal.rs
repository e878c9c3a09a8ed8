//! Taking names, images and what they leave behind out of the store.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::store::{Error, ImageId, Store, tagged};
use crate::table::Table;

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

impl Store {
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
    /// Does nothing while an [`crate::Image`] is held anywhere.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect(&self) -> Result<Collected, Error> {
        let _lock = self.lock_for_writing()?;
        self.collect_unused(&self.read_table()?)
    }

    /// What [`Store::collect`] does, under the writing lock.
    pub(crate) fn collect_unused(&self, table: &Table) -> Result<Collected, Error> {
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
        let mut kept_layers = HashSet::new();
        let mut kept_configs = HashSet::new();
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

/// A process in whose mount namespace one of the layers `keys` is part of an overlay.
fn mounting_process(keys: &[String]) -> Option<u32> {
    let mut seen = HashSet::new();
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
