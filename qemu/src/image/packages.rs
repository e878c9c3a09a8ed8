//! Debian packages: fetched once with apt, unpacked with dpkg-deb.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::lists::Package;
use super::{output, run};

/// The metapackages that name the kernel's package of the day in their dependencies.
const KERNEL_METAPACKAGES: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-amd64"];

/// A downloaded package.
#[derive(Debug, Clone)]
pub(super) struct Deb {
    pub(super) name: String,
    pub(super) archive: PathBuf,
}

/// Downloads what is not in `directory` yet; a package that is there is used as it is, whatever its version.
pub(super) fn fetch(directory: &Path, wanted: &[Package]) -> Result<Vec<Deb>> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let names: Vec<&str> = wanted.iter().map(|package| package.name.as_str()).collect();
    let mut debs = fetch_names(directory, &names)?;
    let is_meta = |deb: &Deb| KERNEL_METAPACKAGES.contains(&deb.name.as_str());
    if let Some(meta) = debs.iter().position(is_meta) {
        let meta = debs.remove(meta);
        let depends = output(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(&meta.archive)
                .arg("Depends"),
        )?;
        let kernel = depends
            .split([',', ' ', '\n'])
            .find(|word| word.starts_with("linux-image-"))
            .with_context(|| {
                format!("{} depends on no linux-image package: {depends}", meta.name)
            })?;
        debs.extend(fetch_names(directory, &[kernel])?);
    }
    Ok(debs)
}

fn fetch_names(directory: &Path, names: &[&str]) -> Result<Vec<Deb>> {
    let missing = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .filter(|name| find(directory, name).is_none())
            .map(|name| (*name).to_owned())
            .collect()
    };
    let absent = missing(names);
    if !absent.is_empty() && download(directory, &absent).is_err() {
        // The package lists are missing or older than the mirror's contents.
        update()?;
        download(directory, &missing(names))?;
    }
    names
        .iter()
        .map(|name| {
            let archive = find(directory, name)
                .with_context(|| format!("apt-get left no archive of {name}"))?;
            Ok(Deb {
                name: (*name).to_owned(),
                archive,
            })
        })
        .collect()
}

/// The archive of a package, `NAME_VERSION_amd64.deb`; of several the one that was made last.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}_");
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with(&prefix) && file.ends_with(".deb")
        })
        .max_by_key(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
}

fn download(directory: &Path, names: &[String]) -> Result<()> {
    // apt would rather download as its own user, who may not write here.
    run(Command::new("apt-get")
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download"])
        .args(names)
        .current_dir(directory))
    .with_context(|| format!("download {}", names.join(" ")))
}

fn update() -> Result<()> {
    let is_root = output(Command::new("id").arg("-u"))?.trim() == "0";
    let mut command = Command::new(if is_root { "apt-get" } else { "sudo" });
    if !is_root {
        command.arg("apt-get");
    }
    run(command.args(["-qq", "update"])).context("refresh apt's package lists")
}

/// Unpacks each archive into a directory of its own below `directory`, which is emptied first.
pub(super) fn extract(debs: &[Deb], directory: &Path) -> Result<()> {
    if directory.exists() {
        std::fs::remove_dir_all(directory)
            .with_context(|| format!("empty {}", directory.display()))?;
    }
    for deb in debs {
        let target = directory.join(&deb.name);
        std::fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
        run(Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&deb.archive)
            .arg(&target))?;
    }
    Ok(())
}

/// The files of an extracted package that match `pattern`, an absolute path with `*` in its last name; relative to the
/// package's directory.
pub(super) fn matching(package: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let pattern = Path::new(pattern.trim_start_matches('/'));
    let (Some(parent), Some(name)) = (
        pattern.parent(),
        pattern.file_name().and_then(|n| n.to_str()),
    ) else {
        bail!("{} names no file", pattern.display());
    };
    let directory = package.join(parent);
    let mut found: Vec<PathBuf> = std::fs::read_dir(&directory)
        .with_context(|| format!("list {}", directory.display()))?
        .flatten()
        .filter(|entry| orlop_boot::index::matches(name, &entry.file_name().to_string_lossy()))
        .map(|entry| parent.join(entry.file_name()))
        .collect();
    found.sort();
    if found.is_empty() {
        bail!("{} has no file /{}", package.display(), pattern.display());
    }
    Ok(found)
}
