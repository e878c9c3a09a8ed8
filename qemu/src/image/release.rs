//! What is handed out besides kernel and initramfs: the slot, the disks, the sums, the list of what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use orlop_boot::entries::{Counter, Entry, TRIES, Version};
use orlop_boot::little_endian::u16_at;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::disk::{LAYOUT, Slot};
use super::packages::Deb;
use super::{Products, Project, disk, output, qcow2, tree, uki, verity};

/// The file with the sums.
const SUMS: &str = "SHA256SUMS";

/// The version that is built.
#[must_use]
pub fn version() -> Version {
    let version = env!("CARGO_PKG_VERSION").parse();
    version.unwrap_or_else(|err| unreachable!("a crate's version is one of ours: {err}"))
}

/// Makes the slot of `version` in `directory`: hash tree and Unified Kernel Image. `words` are added to the kernel's command
/// line; the root is shared by all versions that are made of the same products, yet each has a root hash of its own.
///
/// # Errors
/// A product cannot be read, or the image cannot be written.
pub fn slot(
    project: &Project,
    products: &Products,
    version: &Version,
    words: &str,
    directory: &Path,
) -> Result<Slot> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let entry = Entry {
        version: version.clone(),
        counter: None,
    };
    let tree = directory.join(format!("root_{version}.verity"));
    let root_hash = verity::make(&products.root, version.as_str(), &tree)?;
    let command_line = command_line(project, &format!("{words} roothash={root_hash}"))?;
    let kernel = read(&products.kernel)?;
    let image = uki::build(&uki::Parts {
        stub: &read(&products.stub)?,
        initrd: &read(&products.disk_initrd)?,
        command_line: &command_line,
        kernel_version: &kernel_version(&kernel).context("the kernel's version")?,
        os_release: &tree::os_release(version.as_str()),
        kernel: &kernel,
    })?;
    let uki = directory.join(entry.file_name());
    std::fs::write(&uki, image).with_context(|| format!("write {}", uki.display()))?;
    Ok(Slot {
        entry: Entry {
            counter: Some(Counter {
                left: TRIES,
                done: 0,
            }),
            ..entry
        },
        uki,
        root: products.root.clone(),
        verity: tree,
        root_hash,
    })
}

/// The project's kernel command line with more words.
pub(super) fn command_line(project: &Project, words: &str) -> Result<String> {
    Ok(format!(
        "{} {}",
        project.kernel_command_line()?,
        words.trim_start()
    ))
}

/// What a bzImage says of itself: `kernel_version` of the setup header (`Documentation/x86/boot.rst`), up to the first blank.
pub(super) fn kernel_version(image: &[u8]) -> Option<String> {
    let at = usize::from(u16_at(image, 0x20e)?) + 0x200;
    let text = image.get(at..)?.split(|b| matches!(b, 0 | b' ')).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Makes the disks with the slot of this version, both as raw file and as qcow2.
pub(super) fn disks(project: &Project, products: &Products, directory: &Path) -> Result<Slot> {
    let slot = slot(project, products, &version(), "", directory)?;
    disk::make(
        &products.disk,
        LAYOUT,
        &products.loader,
        std::slice::from_ref(&slot),
    )?;
    qcow2::write(&products.disk, &products.qcow2)?;
    Ok(slot)
}

/// Writes the SHA-256 sums of all files in `directory`, in sha256sum(1)'s format, to `SHA256SUMS` beside them.
pub(super) fn sums(directory: &Path) -> Result<()> {
    let name = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .with_context(|| format!("list {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && !name(path).starts_with('.') && name(path) != SUMS)
        .collect();
    files.sort();
    let mut text = String::new();
    for file in &files {
        let mut hash = Sha256::new();
        let mut content =
            std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
        std::io::copy(&mut content, &mut hash)
            .with_context(|| format!("read {}", file.display()))?;
        let name = name(file);
        let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        text.push_str(&format!("{digest}  {name}\n"));
    }
    let path = directory.join(SUMS);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// Writes what the image is made of as a CycloneDX 1.5 document: Debian's packages and the crates of the binary.
pub(super) fn bill_of_materials(project: &Project, debs: &[Deb], path: &Path) -> Result<()> {
    let mut components = Vec::new();
    for deb in debs {
        let field = |name: &str| {
            output(
                Command::new("dpkg-deb")
                    .arg("--field")
                    .arg(&deb.archive)
                    .arg(name),
            )
            .map(|text| text.trim().to_owned())
        };
        let (version, architecture) = (field("Version")?, field("Architecture")?);
        let name = &deb.name;
        components.push(json!({
            "type": "library",
            "name": name,
            "version": version,
            "purl": format!("pkg:deb/debian/{name}@{version}?arch={architecture}&distro=bookworm"),
        }));
    }
    for (name, version, license) in crates(project)? {
        components.push(json!({
            "type": "library",
            "name": name,
            "version": version,
            "purl": format!("pkg:cargo/{name}@{version}"),
            "licenses": [{ "expression": license }],
        }));
    }
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "operating-system",
            "name": "orlop",
            "version": version().as_str(),
        }},
        "components": components,
    });
    let text = serde_json::to_string_pretty(&document).context("write JSON")? + "\n";
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The crates that the binary is linked of, sorted: name, version, licence.
fn crates(project: &Project) -> Result<Vec<(String, String, String)>> {
    let text = output(
        Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(&project.root),
    )?;
    let metadata: Value = serde_json::from_str(&text).context("cargo's metadata")?;
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned();
    let text = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let packages: BTreeMap<String, Value> = list(&metadata, "packages")
        .unwrap_or_default()
        .into_iter()
        .map(|package| (text(&package, "id"), package))
        .collect();
    let resolve = metadata.get("resolve").context("cargo resolved nothing")?;
    let nodes: BTreeMap<String, Value> = list(resolve, "nodes")
        .unwrap_or_default()
        .into_iter()
        .map(|node| (text(&node, "id"), node))
        .collect();
    let mut waiting: Vec<String> = packages
        .iter()
        .filter(|(_, package)| text(package, "name") == "orlop")
        .map(|(id, _)| id.clone())
        .collect();
    let mut linked = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !linked.insert(id.clone()) {
            continue;
        }
        let dependencies = nodes.get(&id).and_then(|node| list(node, "deps"));
        for dependency in dependencies.unwrap_or_default() {
            let is_linked = list(&dependency, "dep_kinds")
                .unwrap_or_default()
                .iter()
                .any(|kind| kind.get("kind").is_some_and(Value::is_null));
            if is_linked {
                waiting.push(text(&dependency, "pkg"));
            }
        }
    }
    let mut crates: Vec<_> = linked
        .iter()
        .filter_map(|id| packages.get(id))
        .map(|p| (text(p, "name"), text(p, "version"), text(p, "license")))
        .collect();
    crates.sort();
    Ok(crates)
}

/// The files of the loader's package.
pub(super) fn loader_files(extracted: &Path) -> (PathBuf, PathBuf) {
    let directory = extracted.join("systemd-boot-efi/usr/lib/systemd/boot/efi");
    (
        directory.join("systemd-bootx64.efi"),
        directory.join("linuxx64.efi.stub"),
    )
}
