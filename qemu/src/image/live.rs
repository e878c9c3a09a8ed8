//! What starts from elsewhere than the machine's own disk: the medium that boots live and installs, and iPXE's script.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use orlop_update::live::{LABEL, WORD};

use super::disk::{EPOCH, fixed_uuid, mtool};
use super::release::{command_line, kernel_version, version};
use super::{Products, Project, copy, run, tree, uki};

/// What is put beside the partition's file, for the FAT's own tables.
const FAT_BYTES: u64 = 1 << 20;

/// The date of the files on the medium, as xorriso has it.
const DATE: &str = "2020010100000000";

/// The words of a live start. Whoever holds the medium holds the machine, so that the shell gives nothing away.
const LIVE_WORDS: &str = "console=tty0 orlop.shell=tty1 orlop.shell=ttyS0";

/// Writes iPXE's script with the kernel command line of the project in it.
pub(super) fn ipxe(project: &Project, products: &Products) -> Result<()> {
    let path = project.path("boot/orlop.ipxe");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let text = text
        .replace("@VERSION@", version().as_str())
        .replace("@CMDLINE@", &project.kernel_command_line()?);
    std::fs::write(&products.ipxe, text)
        .with_context(|| format!("write {}", products.ipxe.display()))
}

/// Makes the medium: a kernel image that firmware starts from a drive (El Torito) as well as from a stick (the EFI system partition
/// of a GUID partition table), and the payload as a file.
pub(super) fn iso(project: &Project, products: &Products, directory: &Path) -> Result<()> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let kernel = read(&products.kernel)?;
    let image = uki::build(&uki::Parts {
        stub: &read(&products.stub)?,
        initrd: &read(&products.initrd)?,
        command_line: &command_line(project, &format!("{LIVE_WORDS} {WORD}"))?,
        kernel_version: &kernel_version(&kernel).context("the kernel's version")?,
        os_release: &tree::os_release(version().as_str()),
        kernel: &kernel,
    })?;
    let work = directory.join("live");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("empty {}", work.display()))?;
    }
    let medium = work.join("medium");
    std::fs::create_dir_all(&medium).with_context(|| format!("make {}", medium.display()))?;
    let loader = work.join("BOOTX64.EFI");
    let bytes = image.len() as u64;
    std::fs::write(&loader, image).with_context(|| format!("write {}", loader.display()))?;
    let esp = work.join("esp");
    std::fs::File::create(&esp)
        .and_then(|file| file.set_len((bytes + FAT_BYTES).next_multiple_of(FAT_BYTES)))
        .with_context(|| format!("make {}", esp.display()))?;
    run(Command::new("/sbin/mkfs.vfat")
        .args([
            "-F",
            "16",
            "-n",
            "ORLOP-LIVE",
            "-i",
            "6f726c70",
            "--invariant",
        ])
        .arg(&esp)
        .stdout(std::process::Stdio::null()))?;
    for name in ["EFI", "EFI/BOOT"] {
        run(mtool("mmd", &esp).arg(format!("::{name}")))?;
    }
    super::disk::copy_to(&esp, &loader, "EFI/BOOT/BOOTX64.EFI")?;
    copy(&products.payload, &medium.join("orlop.update"))?;

    let identifier = fixed_uuid("medium").simple().to_string();
    run(Command::new("xorriso")
        // All times and identifiers that would else be the clock's.
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("TZ", "UTC")
        .args(["-report_about", "WARNING", "-as", "mkisofs"])
        .args(["-iso-level", "3", "-r", "-V", LABEL])
        .args(["--gpt_disk_guid", &identifier])
        .args(["--set_all_file_dates", DATE])
        .args(["-append_partition", "2", "0xef"])
        .arg(&esp)
        .args(["-appended_part_as_gpt", "-partition_offset", "16"])
        .args([
            "-e",
            "--interval:appended_partition_2:all::",
            "-no-emul-boot",
        ])
        .arg("-o")
        .arg(&products.iso)
        .arg(&medium))?;
    std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))
}

/// Compresses the disk for downloads. One thread: its output depends on zstd's version alone.
pub(super) fn compress_disk(products: &Products) -> Result<()> {
    run(Command::new("zstd")
        .args(["-6", "--single-thread", "-q", "-f"])
        .arg(&products.disk)
        .arg("-o")
        .arg(&products.compressed_disk))
}
