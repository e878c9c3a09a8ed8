//! The loader's menu besides the versions: factory reset, and a shell for recovery.
//!
//! Entries of type #1 (UAPI.1, "Boot Loader Specification") that start the image of a good version with more words on its command
//! line. The loader never takes one by itself: `loader.conf` has it start versions. Under Secure Boot the image's stub takes no command
//! line but its own, and they would be starts like any other.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::entries::{Entry, Standing};
use crate::esp::{ENTRIES, Esp};

/// Where they lie on the EFI system partition.
const DIRECTORY: &str = "loader/entries";

/// An entry to be.
struct Item {
    /// The name of its file; not like a version's.
    file: &'static str,
    title: &'static str,
    /// Behind all versions, whose key is `orlop`.
    sort_key: &'static str,
    /// What the command line has besides the image's own.
    words: &'static str,
}

const RESET: Item = Item {
    file: "orlop-reset.conf",
    title: "Orlop: factory reset, wipes all data",
    sort_key: "orlop-reset",
    words: "orlop.reset=all",
};

const RECOVERY: Item = Item {
    file: "orlop-recovery.conf",
    title: "Orlop: recovery, a root shell on this console",
    sort_key: "orlop-recovery",
    words: "systemd.unit=rescue.target orlop.shell=tty1 orlop.shell=ttyS0",
};

/// Why the menu is not as it should be.
#[derive(Debug, Error)]
pub enum MenuError {
    /// The version's image is damaged.
    #[error("the image of {0} has no command line")]
    CommandLine(String),
    /// An entry can not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// An entry can not be removed.
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] io::Error),
}

/// Makes the menu one of `entry`, which is good; with a shell for recovery only where it is allowed. Writes nothing that is there.
///
/// # Errors
/// An entry is as it was, and why.
pub fn refresh(esp: &Esp, entry: &Entry, allows_recovery: bool) -> Result<(), MenuError> {
    if entry.standing() != Standing::Good {
        return Ok(());
    }
    let file_name = entry.file_name();
    let command_line = esp
        .command_line(entry)
        .ok_or_else(|| MenuError::CommandLine(file_name.clone()))?;
    for (item, is_wanted) in [(RESET, true), (RECOVERY, allows_recovery)] {
        let path = esp.path(DIRECTORY).join(item.file);
        if is_wanted {
            let text = format!(
                "title {}\nsort-key {}\nefi /{ENTRIES}/{file_name}\noptions {} {}\n",
                item.title,
                item.sort_key,
                command_line.trim_end_matches(['\0', '\n', ' ']),
                item.words
            );
            write(&path, text.as_bytes()).map_err(|e| MenuError::Write(path, e))?;
        } else {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(MenuError::Remove(path, e));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Cut short, it is a text that names no image, or none at all: the loader leaves such out.
fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let aside = path.with_extension("new");
    let written = File::create(&aside).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&aside, path)) {
        // What was wrong is told by the write.
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE image (Microsoft's "PE Format") with nothing but a command line.
    fn image(command_line: &str) -> Vec<u8> {
        let mut image = vec![0; 0x200];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &0x40_u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x46, &1_u16.to_le_bytes());
        let section = 0x58;
        let length = u32::try_from(command_line.len()).unwrap();
        put(section, b".cmdline");
        put(section + 8, &length.to_le_bytes());
        put(section + 16, &length.to_le_bytes());
        put(section + 20, &0x200_u32.to_le_bytes());
        image.extend_from_slice(command_line.as_bytes());
        image
    }

    #[test]
    fn the_shell_is_there_only_where_it_is_allowed() {
        let directory = tempfile::tempdir().unwrap();
        let esp = Esp::of_directory(directory.path());
        fs::create_dir_all(directory.path().join(ENTRIES)).unwrap();
        let good = Entry::parse("orlop_1.2.efi").unwrap();
        let text = image("panic=10 roothash=ab");
        fs::write(directory.path().join("EFI/Linux/orlop_1.2.efi"), text).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(DIRECTORY).join(name));
        refresh(&esp, &good, true).unwrap();
        let reset = read("orlop-reset.conf").unwrap();
        assert!(
            reset.ends_with(
                "efi /EFI/Linux/orlop_1.2.efi\noptions panic=10 roothash=ab orlop.reset=all\n"
            ),
            "{reset}"
        );
        assert!(
            read("orlop-recovery.conf")
                .unwrap()
                .contains(" orlop.shell=ttyS0\n")
        );
        refresh(&esp, &good, false).unwrap();
        assert!(read("orlop-recovery.conf").is_err());
        assert_eq!(read("orlop-reset.conf").unwrap(), reset);
    }

    #[test]
    fn a_version_on_trial_has_no_menu() {
        let directory = tempfile::tempdir().unwrap();
        let esp = Esp::of_directory(directory.path());
        refresh(&esp, &Entry::parse("orlop_1.2+3.efi").unwrap(), true).unwrap();
        assert!(!directory.path().join("loader").exists());
        let error = refresh(&esp, &Entry::parse("orlop_1.2.efi").unwrap(), true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the image of orlop_1.2.efi has no command line"
        );
    }
}
