//! A root that is its own initramfs and has no initramfs stage: PID 1 is `init` at once. For benchmarks and tests.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::{Project, lists, packages, tree};

/// What a bare root holds besides the skeleton of `rootfs/`.
#[derive(Debug, Default)]
pub struct Bare<'a> {
    /// Unit files below `/etc/systemd/system`: name and text.
    pub units: &'a [(&'a str, &'a str)],
    /// Other files: absolute path, mode, contents.
    pub files: &'a [(&'a str, u32, &'a [u8])],
    /// Other links: absolute path and target, such as a unit in a `.wants` directory.
    pub links: &'a [(&'a str, &'a str)],
    /// The units of the image's own roles that it keeps.
    pub roles: &'a [&'a str],
}

/// Writes an uncompressed archive of Orlop, busybox, the skeleton and `contents` to `path`.
///
/// # Errors
/// A package that cannot be had, a file that cannot be read or written.
pub fn bare(project: &Project, binary: &Path, contents: &Bare<'_>, path: &Path) -> Result<()> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let _lock = super::lock(project)?;
    let wanted = vec![lists::Package {
        name: "busybox-static".to_owned(),
        files: Vec::new(),
    }];
    let debs = packages::fetch(&project.path("build/debs"), &wanted)?;
    let extracted = project.path("build/bare");
    packages::extract(&debs, &extracted)?;
    let busybox = extracted.join("busybox-static/bin/busybox");

    let mut archive = Archive::new();
    for (directory, mode) in lists::pairs(&project.path("rootfs/directories"))? {
        let mode = u32::from_str_radix(&mode, 8)
            .with_context(|| format!("rootfs/directories: mode of {directory}"))?;
        archive.directory(&directory, mode);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.link("init", "usr/bin/orlop");
    archive.file("usr/bin/orlop", 0o755, read(binary)?);
    archive.file("usr/bin/busybox", 0o755, read(&busybox)?);
    // What is linked later replaces the same name: poweroff and others are Orlop's.
    for (link, target) in tree::busybox_links(&busybox)? {
        archive.link(&link, target);
    }
    for (link, target) in lists::pairs(&project.path("rootfs/links"))? {
        // Its only shell is busybox's.
        if link != "/usr/bin/sh" {
            archive.link(&link, &target);
        }
    }
    let skeleton = project.path("rootfs/files");
    let mut files = Vec::new();
    tree::find_files(&skeleton, &mut files)?;
    files.sort();
    for file in files {
        let relative = file
            .strip_prefix(&skeleton)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        let role = relative.strip_prefix("usr/lib/orlop/units/");
        if role.is_some_and(|r| r.starts_with("orlop-") && !contents.roles.contains(&r)) {
            continue;
        }
        archive.file(
            &relative,
            if relative == "etc/shadow" {
                0o600
            } else {
                0o644
            },
            read(&file)?,
        );
    }
    archive.file(
        "usr/lib/os-release",
        0o644,
        tree::os_release(env!("CARGO_PKG_VERSION")).into_bytes(),
    );
    for (name, text) in contents.units {
        archive.file(
            &format!("etc/systemd/system/{name}"),
            0o644,
            text.as_bytes().to_vec(),
        );
    }
    for (path, mode, bytes) in contents.files {
        archive.file(&merged(path), *mode, bytes.to_vec());
    }
    for (path, target) in contents.links {
        archive.link(&merged(path), target);
    }
    std::fs::write(path, archive.finish()).with_context(|| format!("write {}", path.display()))
}

/// An archive's links are not followed while it is unpacked: `/bin` has to be said as `/usr/bin`.
fn merged(path: &str) -> String {
    let path = Path::new(path.trim_start_matches('/'));
    tree::merged(path).to_string_lossy().into_owned()
}
