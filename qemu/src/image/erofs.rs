//! The root as an erofs image with a label.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::run;

/// Fixed, so that the same tree gives the same bytes.
const UUID: &str = "6f726c6f-7000-4000-8000-726f6f740001";

/// `EROFS_SUPER_OFFSET`, `EROFS_BLKSIZ`
const SUPERBLOCK_OFFSET: usize = 1024;
const BLOCK_BYTES: usize = 4096;

/// Makes `image` of the directory `tree`: every file belongs to root, every time is 0.
pub(super) fn make(tree: &Path, image: &Path) -> Result<()> {
    let _ = std::fs::remove_file(image);
    run(Command::new("mkfs.erofs")
        .args([
            "--quiet",
            "--all-root",
            "-T0",
            "-x-1",
            "-zlz4hc,12",
            "-C65536",
            "-U",
            UUID,
        ])
        .arg(image)
        .arg(tree)
        .stdout(std::process::Stdio::null()))?;
    label(image).with_context(|| format!("label {}", image.display()))
}

/// Writes the volume label into the superblock and its checksum anew; Debian 12's mkfs.erofs has no option for it.
fn label(image: &Path) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .context("open it")?;
    let mut block = vec![0; BLOCK_BYTES - SUPERBLOCK_OFFSET];
    file.read_exact_at(&mut block, SUPERBLOCK_OFFSET as u64)
        .context("read its superblock")?;
    set_label(&mut block, orlop_boot::ROOT_LABEL)?;
    file.write_all_at(&block, SUPERBLOCK_OFFSET as u64)
        .context("write its superblock")
}

/// `struct erofs_super_block` (`fs/erofs/erofs_fs.h`): magic at 0, checksum at 4, compatible features at 8 (bit 0: there is a
/// checksum), volume name at 64. The checksum is CRC-32C without final inversion over the rest of the block, its own field 0.
fn set_label(block: &mut [u8], label: &str) -> Result<()> {
    if block.first_chunk() != Some(&0xE0F5_E1E2_u32.to_le_bytes()) {
        bail!("not an erofs superblock");
    }
    let Some(field) = block.get_mut(64..80).filter(|_| label.len() <= 16) else {
        bail!("no room for the label {label}")
    };
    field.fill(0);
    for (to, from) in field.iter_mut().zip(label.bytes()) {
        *to = from;
    }
    let has_checksum = block.get(8).is_some_and(|features| features & 1 != 0);
    if let Some(field) = block.get_mut(4..8) {
        field.fill(0);
    }
    if has_checksum {
        let checksum = crc32c(block).to_le_bytes();
        if let Some(field) = block.get_mut(4..8) {
            field.copy_from_slice(&checksum);
        }
    }
    Ok(())
}

/// CRC-32C (Castagnoli, reflected 0x82F63B78) from all ones, without the final inversion, as the kernel's `crc32c()` is.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standards() {
        // RFC 3720 §B.4 gives the inverted value of 32 zero bytes.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
    }
}
