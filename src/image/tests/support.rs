//! Images and stores to test with, and trees as text to compare.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::image::Config;
use orlop_image::build::{Layer, Recipe};
use orlop_image::decompress::Compression;
use orlop_image::{Limits, Store};

/// A directory for one test, and a store in it.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with_limits(folder.path().join("images"), limits).unwrap();
        Self { folder, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the recipe as an archive and loads it.
    pub(crate) fn load(&self, recipe: &Recipe) -> Result<orlop_image::Image, String> {
        let archive = self.path("image.tar");
        recipe.write_docker_archive(&archive).unwrap();
        let imported = self.store.import(&archive).map_err(|err| chain(&err))?;
        self.store
            .resolve(&imported[0].id.to_string())
            .map_err(|err| chain(&err))
    }

    /// Nothing unfinished lies about and nothing was added.
    pub(crate) fn is_clean(&self) -> bool {
        let is_empty = |name: &str| {
            fs::read_dir(self.path("images").join(name))
                .unwrap()
                .next()
                .is_none()
        };
        self.store.list().unwrap().is_empty() && is_empty("tmp") && is_empty("layers")
    }
}

/// An error with its causes in one line, as the command line prints it.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(err) = next {
        text.push_str(": ");
        text.push_str(&err.to_string());
        next = err.source();
    }
    text
}

pub(crate) fn recipe(layers: Vec<Layer>) -> Recipe {
    Recipe {
        name: "test:1".into(),
        config: Config::default(),
        layers,
        compression: Compression::Gzip,
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a tool that judges us; `None`, loudly, when it is not installed.
pub(crate) fn tool(program: &str, arguments: &[&str], home: &Path) -> Option<()> {
    // A home of its own: skopeo remembers blobs it saw with another compression.
    let output = match Command::new(program)
        .args(arguments)
        .env("HOME", home)
        .output()
    {
        Ok(output) => output,
        Err(err) => {
            eprintln!("SKIPPED: {program} cannot be run: {err}");
            return None;
        }
    };
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(())
}

/// Every path of a tree with kind, mode, owner, time, size or target, attributes and content.
pub(crate) fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    lines.insert("/".to_owned(), describe(root));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            lines.insert(name, describe(&path));
            if path.symlink_metadata().unwrap().is_dir() {
                folders.push(path);
            }
        }
    }
    lines
}

fn describe(path: &Path) -> String {
    let stat = path.symlink_metadata().unwrap();
    let kind = stat.file_type();
    let what = if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("link to {}", fs::read_link(path).unwrap().display())
    } else if kind.is_file() {
        let content = fs::read(path).unwrap();
        format!(
            "file of {} {}",
            stat.nlink(),
            orlop_image::Digest::of(orlop_image::digest::Algorithm::Sha256, &content)
        )
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        format!("device {:?} {}", kind, stat.rdev())
    };
    let mut attributes = Vec::new();
    let mut names = vec![0; 65_536];
    let count = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    for name in names[..count].split(|&b| b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
        attributes.push(format!(
            "{}={:?}",
            String::from_utf8_lossy(name),
            &value[..length]
        ));
    }
    attributes.sort();
    format!(
        "{what} {:o} {}:{} {}.{} {}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec(),
        attributes.join(" ")
    )
}
