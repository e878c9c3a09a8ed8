//! Roots of other inits, as their own initramfs: for benchmarks. Programs come from Debian's packages.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::cpio::Archive;
use super::lists::Package;
use super::{Project, output, packages, tree};

/// What a root of another init holds besides busybox and an empty skeleton.
#[derive(Debug, Default)]
pub struct Rival<'a> {
    /// Debian packages that are unpacked, and of which programs are taken.
    pub packages: &'a [&'a str],
    /// Programs, with the libraries that they name: where they are in the packages, or else on this machine.
    pub programs: &'a [&'a str],
    /// Files of this machine that are taken as they are.
    pub copies: &'a [&'a str],
    /// Other files: absolute path, mode, contents.
    pub files: Vec<(String, u32, Vec<u8>)>,
    /// Links: absolute path and target.
    pub links: Vec<(String, String)>,
}

/// Writes an uncompressed archive with `/init`, which `contents` has to hold, to `path`.
///
/// # Errors
/// A package that cannot be had, a program that is not there, a file that cannot be read or written.
pub fn rival(project: &Project, contents: &Rival<'_>, path: &Path) -> Result<()> {
    let _lock = super::lock(project)?;
    let mut wanted = vec!["busybox-static"];
    wanted.extend(contents.packages);
    let wanted: Vec<Package> = wanted
        .iter()
        .map(|name| Package {
            name: (*name).to_owned(),
            files: Vec::new(),
        })
        .collect();
    let debs = packages::fetch(&project.path("build/debs"), &wanted)?;
    let extracted = project.path("build/rival");
    packages::extract(&debs, &extracted)?;
    let unpacked: Vec<PathBuf> = debs.iter().map(|deb| extracted.join(&deb.name)).collect();
    let locate = |file: &str| {
        let inside = unpacked
            .iter()
            .map(|root| root.join(file.trim_start_matches('/')));
        let mut places = inside.chain(std::iter::once(PathBuf::from(file)));
        places
            .find(|place| place.exists())
            .with_context(|| format!("{file} is neither in {wanted:?} nor here"))
    };

    let mut archive = Archive::new();
    for name in ["bin", "sbin", "lib", "lib64"] {
        archive.link(name, &format!("usr/{name}"));
    }
    for name in [
        "dev",
        "etc",
        "proc",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "usr/lib",
        "usr/lib64",
        "var/log",
    ] {
        archive.directory(name, 0o755);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    let put = |archive: &mut Archive, name: &str, mode: u32, bytes: Vec<u8>| {
        let relative = tree::merged(Path::new(name.trim_start_matches('/')));
        archive.file(&relative.to_string_lossy(), mode, bytes);
    };
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let busybox = extracted.join("busybox-static/bin/busybox");
    put(&mut archive, "/usr/bin/busybox", 0o755, read(&busybox)?);
    for (link, target) in tree::busybox_links(&busybox)? {
        archive.link(&link, target);
    }
    let mut libraries = BTreeSet::new();
    for program in contents.programs {
        let file = locate(program)?;
        put(&mut archive, program, 0o755, read(&file)?);
        libraries.extend(needed(&file, &unpacked)?);
    }
    for library in libraries {
        // The name under which it is asked for; links on the way to the file are followed.
        let name = library.to_string_lossy();
        let inside = unpacked
            .iter()
            .find_map(|root| library.strip_prefix(root).ok());
        let name = inside.map_or(name.into_owned(), |p| format!("/{}", p.display()));
        put(&mut archive, &name, 0o755, read(&library)?);
    }
    for copy in contents.copies {
        put(&mut archive, copy, 0o644, read(&locate(copy)?)?);
    }
    for (name, mode, bytes) in &contents.files {
        put(&mut archive, name, *mode, bytes.clone());
    }
    for (link, target) in &contents.links {
        archive.link(
            &tree::merged(Path::new(link.trim_start_matches('/'))).to_string_lossy(),
            target,
        );
    }
    std::fs::write(path, archive.finish()).with_context(|| format!("write {}", path.display()))
}

/// The libraries that a program is linked with, its interpreter among them (ldd(1)).
fn needed(program: &Path, unpacked: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let directories: Vec<String> = unpacked
        .iter()
        .map(|root| root.join("usr/lib/x86_64-linux-gnu").display().to_string())
        .collect();
    let text = output(
        Command::new("ldd")
            .arg(program)
            .env("LD_LIBRARY_PATH", directories.join(":")),
    )?;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        ensure!(
            !line.contains("not found"),
            "{} lacks a library: {line}",
            program.display()
        );
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        if let Some((path, _)) = path.split_once(" (0x")
            && path.starts_with('/')
        {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}
