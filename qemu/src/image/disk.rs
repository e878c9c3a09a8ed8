//! The disk that a machine boots from: EFI system partition, two slots, the start of the data volume. `docs/disk.md` has the
//! layout.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use gptman::{GPT, GPTPartitionEntry};
use orlop_boot::entries::Entry;
use orlop_boot::gpt::{ESP_TYPE, ROOT_TYPE, VAR_TYPE, VERITY_TYPE};
use orlop_boot::trials::{self, Trials};
use orlop_boot::verity::RootHash;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::run;

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// "Read-only" of the Discoverable Partitions Specification.
const READ_ONLY: u64 = 1 << 60;

/// The time of all files on the EFI system partition, 2020-01-01: FAT has none before 1980.
pub(super) const EPOCH: &str = "1577836800";

/// How large the parts are, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// The EFI system partition: room for three images of the largest profile, and more.
    pub esp_mib: u64,
    /// Each root.
    pub root_mib: u64,
    /// Each hash tree; a tree takes 1/127 of its root.
    pub verity_mib: u64,
    /// The data volume until its first start, which makes it all that is left of the disk.
    pub var_mib: u64,
}

/// The layout of every profile.
pub const LAYOUT: Layout = Layout {
    esp_mib: 256,
    root_mib: 256,
    verity_mib: 4,
    var_mib: 16,
};

/// What fills a slot.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The name of its boot entry.
    pub entry: Entry,
    /// The Unified Kernel Image.
    pub uki: PathBuf,
    /// The root.
    pub root: PathBuf,
    /// Its hash tree.
    pub verity: PathBuf,
    /// The hash of both.
    pub root_hash: RootHash,
}

/// Where a part of the disk is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its start.
    pub at: u64,
    /// Its size.
    pub bytes: u64,
}

/// Makes the disk `path` with up to two slots filled, `loader` being systemd-boot. Gives the places of the partitions, by name.
///
/// # Errors
/// A part does not fit, or a tool fails.
pub fn make(
    path: &Path,
    layout: Layout,
    loader: &Path,
    slots: &[Slot],
) -> Result<BTreeMap<String, Place>> {
    ensure!(
        slots.len() <= 2,
        "a disk has two slots, not {}",
        slots.len()
    );
    let esp = path.with_extension("esp");
    make_esp(&esp, layout.esp_mib * MIB, loader, slots)?;

    let mut parts = vec![Part {
        name: "esp",
        kind: ESP_TYPE,
        unique: fixed_uuid("esp"),
        mib: layout.esp_mib,
        attributes: 0,
        content: Some(esp.clone()),
    }];
    for (n, (root, verity)) in [("root-a", "root-a-verity"), ("root-b", "root-b-verity")]
        .into_iter()
        .enumerate()
    {
        let slot = slots.get(n);
        parts.push(Part {
            name: root,
            kind: ROOT_TYPE,
            unique: slot.map_or_else(|| fixed_uuid(root), |slot| slot.root_hash.data_uuid()),
            mib: layout.root_mib,
            attributes: READ_ONLY,
            content: slot.map(|slot| slot.root.clone()),
        });
        parts.push(Part {
            name: verity,
            kind: VERITY_TYPE,
            unique: slot.map_or_else(|| fixed_uuid(verity), |slot| slot.root_hash.tree_uuid()),
            mib: layout.verity_mib,
            attributes: READ_ONLY,
            content: slot.map(|slot| slot.verity.clone()),
        });
    }
    parts.push(Part {
        name: "orlop-var-new",
        kind: VAR_TYPE,
        unique: fixed_uuid("var"),
        mib: layout.var_mib,
        attributes: 0,
        content: None,
    });

    let total = parts.iter().map(|part| part.mib).sum::<u64>() + 2;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    disk.set_len(total * MIB).context("size the disk")?;
    let places = write(&disk, &parts).with_context(|| format!("write {}", path.display()))?;
    let _ = std::fs::remove_file(&esp);
    Ok(places)
}

/// A partition to be.
struct Part {
    name: &'static str,
    kind: Uuid,
    unique: Uuid,
    mib: u64,
    attributes: u64,
    content: Option<PathBuf>,
}

/// Identifiers of what has no root hash: fixed, so that the same inputs give the same disk.
pub(super) fn fixed_uuid(name: &str) -> Uuid {
    let digest: [u8; 32] = Sha256::digest(format!("orlop disk {name}")).into();
    let bytes = digest.first_chunk().copied().unwrap_or_default();
    uuid::Builder::from_random_bytes(bytes).into_uuid()
}

fn write(mut disk: &File, parts: &[Part]) -> Result<BTreeMap<String, Place>> {
    let mut gpt = GPT::new_from(&mut disk, SECTOR, fixed_uuid("disk").to_bytes_le())?;
    let mut at = MIB;
    let mut places = BTreeMap::new();
    for (number, part) in (1..).zip(parts) {
        let place = Place {
            at,
            bytes: part.mib * MIB,
        };
        gpt[number] = GPTPartitionEntry {
            partition_type_guid: part.kind.to_bytes_le(),
            unique_partition_guid: part.unique.to_bytes_le(),
            starting_lba: place.at / SECTOR,
            ending_lba: (place.at + place.bytes) / SECTOR - 1,
            attribute_bits: part.attributes,
            partition_name: part.name.into(),
        };
        if let Some(content) = &part.content {
            copy_sparse(content, disk, place)
                .with_context(|| format!("put {} into {}", content.display(), part.name))?;
        }
        places.insert(part.name.to_owned(), place);
        at += place.bytes;
    }
    GPT::write_protective_mbr_into(&mut disk, SECTOR)?;
    gpt.write_into(&mut disk)?;
    disk.sync_all()?;
    Ok(places)
}

/// Copies what is not zero; the rest of the disk is a hole.
fn copy_sparse(from: &Path, disk: &File, place: Place) -> Result<()> {
    let mut from = File::open(from)?;
    let size = from.seek(SeekFrom::End(0))?;
    ensure!(
        size <= place.bytes,
        "it has {size} bytes, and there is room for {}",
        place.bytes
    );
    from.rewind()?;
    let mut block = vec![0; 64 << 10];
    let mut at = place.at;
    loop {
        let count = from.read(&mut block)?;
        let Some(read) = block.get(..count).filter(|read| !read.is_empty()) else {
            return Ok(());
        };
        if read.iter().any(|byte| *byte != 0) {
            disk.write_all_at(read, at)?;
        }
        at += count as u64;
    }
}

fn make_esp(path: &Path, bytes: u64, loader: &Path, slots: &[Slot]) -> Result<()> {
    let directory = path.with_extension("esp.d");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("empty the partition's directory")?;
    }
    std::fs::create_dir_all(&directory).context("make the partition's directory")?;
    let config = directory.join("loader.conf");
    std::fs::write(&config, LOADER_CONF).context("write loader.conf")?;
    // Written in place by the boot stage, so that it need not find room.
    let record = directory.join("trials.json");
    std::fs::write(&record, Trials::default().encode()).context("write trials.json")?;

    let _ = std::fs::remove_file(path);
    File::create(path)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| format!("make {}", path.display()))?;
    run(Command::new("mkfs.vfat")
        .args([
            "-F",
            "32",
            "-s",
            "4",
            "-n",
            "ORLOP-ESP",
            "-i",
            "6f726c70",
            "--invariant",
        ])
        .arg(path)
        .stdout(std::process::Stdio::null()))?;
    for name in [
        "EFI",
        "EFI/BOOT",
        "EFI/systemd",
        "EFI/Linux",
        "EFI/orlop",
        "loader",
    ] {
        run(mtool("mmd", path).arg(format!("::{name}")))?;
    }
    copy_to(path, loader, "EFI/BOOT/BOOTX64.EFI")?;
    copy_to(path, loader, "EFI/systemd/systemd-bootx64.efi")?;
    copy_to(path, &config, "loader/loader.conf")?;
    copy_to(path, &record, trials::PATH)?;
    for slot in slots {
        copy_to(
            path,
            &slot.uki,
            &format!("{}/{}", orlop_boot::esp::ENTRIES, slot.entry.file_name()),
        )?;
    }
    std::fs::remove_dir_all(&directory).context("remove the partition's directory")
}

/// No menu, unless a key is held; of our entries alone, a version is started unless one picks another; no command lines by hand.
const LOADER_CONF: &str =
    "timeout 0\ndefault orlop_*\neditor no\nauto-entries no\nauto-firmware no\n";

/// One of mtools' programs on a FAT image, at a fixed time.
pub(super) fn mtool(program: &str, image: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("TZ", "UTC")
        .env("MTOOLS_SKIP_CHECK", "1")
        .arg("-i")
        .arg(image);
    command
}

/// Copies a file onto a FAT image.
pub(super) fn copy_to(image: &Path, from: &Path, to: &str) -> Result<()> {
    run(mtool("mcopy", image).arg(from).arg(format!("::{to}")))
        .with_context(|| format!("copy {} to the EFI system partition", from.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(command: &mut Command) -> String {
        let output = command.output().expect("the tool is there");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    #[test]
    fn the_same_slots_give_the_same_disk_which_other_tools_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let layout = Layout {
            // The smallest FAT32 with clusters of 2 KiB.
            esp_mib: 130,
            root_mib: 2,
            verity_mib: 1,
            var_mib: 1,
        };
        for (name, bytes) in [
            ("loader", 3000),
            ("uki", 70_000),
            ("root", 8192),
            ("verity", 4096),
        ] {
            std::fs::write(path(name), vec![b'x'; bytes]).unwrap();
        }
        let root_hash: RootHash =
            "b288ff5a0102030405060708090a0b0c0d0e0f101112131415161718191a1b9d"
                .parse()
                .unwrap();
        let slot = Slot {
            entry: Entry::parse("orlop_1.0+3.efi").unwrap(),
            uki: path("uki"),
            root: path("root"),
            verity: path("verity"),
            root_hash,
        };
        let digest = |name: &str| {
            make(
                &path(name),
                layout,
                &path("loader"),
                std::slice::from_ref(&slot),
            )
            .unwrap();
            Sha256::digest(std::fs::read(path(name)).unwrap())
        };
        assert_eq!(digest("one.raw"), digest("two.raw"));

        let table = output(Command::new("sgdisk").arg("--verify").arg(path("one.raw")));
        assert!(table.contains("No problems found"), "{table}");
        let root = output(Command::new("sgdisk").arg("--info=2").arg(path("one.raw")));
        assert!(
            root.contains("B288FF5A-0102-0304-0506-0708090A0B0C"),
            "{root}"
        );
        assert!(
            root.contains("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"),
            "{root}"
        );
        let image = format!("{}@@1M", path("one.raw").display());
        let entries = output(Command::new("mdir").args(["-b", "-i", &image, "::EFI/Linux"]));
        assert!(entries.contains("orlop_1.0+3.efi"), "{entries}");

        std::fs::write(path("root"), vec![0; 3 << 20]).unwrap();
        let refused = make(&path("three.raw"), layout, &path("loader"), &[slot]).unwrap_err();
        assert!(
            format!("{refused:#}").contains("there is room for 2097152"),
            "{refused:#}"
        );
    }
}
