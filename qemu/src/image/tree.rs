//! The root tree: static files, Debian's files, the binary, kernel modules, links.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use super::lists::{self, Package};
use super::{Key, MachineKind, Project, copy, elf, output, packages};

/// Modes that git does not keep.
const PRIVATE_FILES: [&str; 1] = ["etc/shadow"];

/// Where a tree is made from.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    pub(super) project: &'a Project,
    pub(super) machine: MachineKind,
    pub(super) packages: &'a [Package],
    pub(super) extracted: &'a Path,
    pub(super) binary: &'a Path,
    pub(super) kernel: &'a Kernel,
    pub(super) key: &'a Key,
}

/// Makes the tree anew in `root`.
pub(super) fn assemble(sources: &Sources<'_>, root: &Path) -> Result<()> {
    if root.exists() {
        std::fs::remove_dir_all(root).with_context(|| format!("empty {}", root.display()))?;
    }
    std::fs::create_dir_all(root).with_context(|| format!("make {}", root.display()))?;
    let project = sources.project;

    for (path, mode) in lists::pairs(&project.path("rootfs/directories"))? {
        let mode = u32::from_str_radix(&mode, 8)
            .with_context(|| format!("rootfs/directories: mode of {path}"))?;
        let target = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
        set_mode(&target, mode)?;
    }
    copy_tree(&project.path("rootfs/files"), root)?;
    for path in PRIVATE_FILES {
        set_mode(&root.join(path), 0o600)?;
    }
    write(
        root,
        "usr/lib/os-release",
        &os_release(env!("CARGO_PKG_VERSION")),
    )?;
    let (name, text) = sources.key.file();
    write(root, &name, &text)?;
    install_packages(sources, root)?;
    install(sources.binary, &root.join("usr/bin/orlop"), 0o755)?;
    install_modules(sources, root)?;
    for (path, target) in lists::pairs(&project.path("rootfs/links"))? {
        link(root, &path, &target)?;
    }
    link_busybox(root)?;
    check_libraries(root)
}

/// `/bin/sh` as a path below the merged `/usr`.
pub(super) fn merged(path: &Path) -> PathBuf {
    let first = path
        .components()
        .next()
        .map(|c| c.as_os_str().to_string_lossy().into_owned());
    match first.as_deref() {
        Some("bin" | "sbin" | "lib" | "lib64") => Path::new("usr").join(path),
        _ => path.to_owned(),
    }
}

fn install_packages(sources: &Sources<'_>, root: &Path) -> Result<()> {
    for package in sources.packages {
        let directory = sources.extracted.join(&package.name);
        for pattern in &package.files {
            for relative in packages::matching(&directory, pattern)? {
                let from = directory.join(&relative);
                let to = root.join(merged(&relative));
                let metadata = std::fs::symlink_metadata(&from)
                    .with_context(|| format!("look at {}", from.display()))?;
                if metadata.is_symlink() {
                    let target = std::fs::read_link(&from)
                        .with_context(|| format!("read link {}", from.display()))?;
                    make_parent(&to)?;
                    symlink(&target, &to).with_context(|| format!("link {}", to.display()))?;
                } else {
                    let executable = metadata.permissions().mode() & 0o111 != 0;
                    install(&from, &to, if executable { 0o755 } else { 0o644 })?;
                }
            }
        }
    }
    Ok(())
}

fn install_modules(sources: &Sources<'_>, root: &Path) -> Result<()> {
    let mut names = sources.project.module_names(sources.machine, "modules")?;
    names.extend(
        sources
            .project
            .module_names(sources.machine, "modules.early")?,
    );
    let selection = sources.kernel.select(&names, false)?;
    let directory = sources.kernel.directory();
    for module in selection.index.modules() {
        install(
            &sources.kernel.file(&module.path),
            &root.join(&directory).join(&module.path),
            0o644,
        )?;
    }
    write(
        root,
        &format!("{directory}/{}", orlop_boot::index::FILE_NAME),
        &selection.text,
    )
}

/// Links busybox's applets, where nothing of that name is there yet.
fn link_busybox(root: &Path) -> Result<()> {
    for (path, target) in busybox_links(&root.join("usr/bin/busybox"))? {
        let name = Path::new(&path).file_name().unwrap_or_default();
        let exists = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|d| std::fs::symlink_metadata(root.join(d).join(name)).is_ok());
        if !exists {
            link(root, &path, target)?;
        }
    }
    Ok(())
}

/// The links for busybox's applets, from its own list: path relative to the root, and target.
pub(super) fn busybox_links(busybox: &Path) -> Result<Vec<(String, &'static str)>> {
    // Package tools, module tools and other inits have no place here.
    const NOT_OURS: [&str; 13] = [
        "busybox",
        "depmod",
        "dpkg",
        "dpkg-deb",
        "init",
        "insmod",
        "linuxrc",
        "mdev",
        "rpm",
        "rpm2cpio",
        "run-init",
        "switch_root",
        "uevent",
    ];
    let list = output(Command::new(busybox).arg("--list-full"))?;
    let paths = list.lines().map(|applet| merged(Path::new(applet)));
    Ok(paths
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            path.starts_with("usr") && !NOT_OURS.contains(&name.as_ref())
        })
        .map(|path| {
            let target = if path.starts_with("usr/sbin") {
                "../bin/busybox"
            } else {
                "busybox"
            };
            (path.to_string_lossy().into_owned(), target)
        })
        .collect())
}

/// Every library that an executable of the tree needs must be in the tree.
fn check_libraries(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    find_files(root, &mut files)?;
    let names: BTreeSet<_> = files
        .iter()
        .filter(|path| path.to_string_lossy().contains("/lib"))
        .filter_map(|path| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        })
        .collect();
    for path in &files {
        if path.is_symlink() || path.extension().is_some_and(|extension| extension == "ko") {
            continue;
        }
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        for library in elf::needed(&bytes).unwrap_or_default() {
            if !names.contains(&library) {
                bail!(
                    "{} needs {library}, which is not in the tree",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

pub(super) fn find_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?
    {
        let entry = entry.with_context(|| format!("list {}", directory.display()))?;
        let kind = entry
            .file_type()
            .with_context(|| format!("look at {}", entry.path().display()))?;
        if kind.is_dir() {
            find_files(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let mut files = Vec::new();
    find_files(from, &mut files)?;
    for file in files {
        let relative = file.strip_prefix(from).unwrap_or(&file);
        let metadata =
            std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?;
        let executable = metadata.permissions().mode() & 0o100 != 0;
        install(
            &file,
            &to.join(relative),
            if executable { 0o755 } else { 0o644 },
        )?;
    }
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_parent(to)?;
    copy(from, to)?;
    set_mode(to, mode)
}

fn write(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    make_parent(&path)?;
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    set_mode(&path, 0o644)
}

fn link(root: &Path, path: &str, target: &str) -> Result<()> {
    let path = root.join(path.trim_start_matches('/'));
    make_parent(&path)?;
    symlink(target, &path).with_context(|| format!("link {}", path.display()))
}

/// Makes the directory of a path, mode 755 whatever the caller's umask.
fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else {
        return Ok(());
    };
    if parent.exists() {
        return Ok(());
    }
    make_parent(parent)?;
    std::fs::create_dir(parent).with_context(|| format!("make {}", parent.display()))?;
    set_mode(parent, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}

/// os-release(5).
pub(super) fn os_release(version: &str) -> String {
    format!(
        "NAME=Orlop\nID=orlop\nPRETTY_NAME=\"Orlop {version}\"\nVERSION=\"{version}\"\nVERSION_ID={version}\nANSI_COLOR=\"0;36\"\n"
    )
}
