//! Debian's kernel: its image, and the modules that Orlop ships of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use orlop_boot::index::{Catalogue, Index, ModuleInfo};

/// A kernel as its package has it.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// What `uname -r` will say.
    pub(super) version: String,
    modules: PathBuf,
    catalogue: Catalogue,
}

/// Modules to ship, and their index.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) index: Index,
    /// The index's text.
    pub(super) text: String,
}

impl Kernel {
    /// Finds the one kernel among the extracted packages and reads what each of its modules says of itself.
    pub(super) fn open(extracted: &Path) -> Result<Self> {
        let package = only(extracted, "linux-image-")?;
        let modules = only(&package.join("lib/modules"), "")?;
        let version = modules
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut catalogue = Catalogue::default();
        let mut files = Vec::new();
        find_modules(&modules, Path::new(""), &mut files)?;
        for relative in files {
            let path = modules.join(&relative);
            let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let info =
                ModuleInfo::read(&bytes).with_context(|| format!("module {}", path.display()))?;
            catalogue.add(&relative.to_string_lossy(), info);
        }
        let builtin = modules.join("modules.builtin");
        catalogue.add_builtin(
            &std::fs::read_to_string(&builtin)
                .with_context(|| format!("read {}", builtin.display()))?,
        );
        let modinfo = modules.join("modules.builtin.modinfo");
        catalogue.add_builtin_modinfo(
            &std::fs::read(&modinfo).with_context(|| format!("read {}", modinfo.display()))?,
        );
        Ok(Self {
            image: package.join("boot").join(format!("vmlinuz-{version}")),
            version,
            modules,
            catalogue,
        })
    }

    /// Picks the named modules with all that they need. The early selection leaves out what the kernel contains.
    pub(super) fn select(&self, names: &[String], early: bool) -> Result<Selection> {
        let chosen: BTreeSet<String> = self.catalogue.closure(names.iter().map(String::as_str))?;
        let index = self.catalogue.index(&chosen, !early)?;
        let text = index.encode();
        Ok(Selection { index, text })
    }

    /// The file of a module of an index.
    pub(super) fn file(&self, relative: &str) -> PathBuf {
        self.modules.join(relative)
    }

    /// Where modules lie in a root.
    pub(super) fn directory(&self) -> String {
        format!("usr/lib/modules/{}", self.version)
    }
}

/// The only entry of `directory` whose name begins with `prefix`.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .with_context(|| format!("list {}", directory.display()))?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    match (entries.pop(), entries.is_empty()) {
        (Some(entry), true) => Ok(entry),
        (Some(_), false) => bail!("{} has more than one {prefix}*", directory.display()),
        (None, _) => bail!("{} has no {prefix}*", directory.display()),
    }
}

fn find_modules(top: &Path, relative: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let directory = top.join(relative);
    for entry in
        std::fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?
    {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let path = relative.join(entry.file_name());
        let kind = entry
            .file_type()
            .with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            find_modules(top, &path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            found.push(path);
        }
    }
    Ok(())
}
