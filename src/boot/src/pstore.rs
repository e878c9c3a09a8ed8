//! The last words of a kernel that panicked, which the firmware has kept (`Documentation/ABI/testing/pstore`).

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::modules::Loader;

/// Where the initramfs mounts it; `init` has its own place.
const TARGET: &str = "/run/orlop/pstore";

/// The dump itself, for whoever wants all of it.
pub const DUMP: &str = "/run/orlop/last-words";

/// Bytes that are read of a record, and records.
const LONGEST: usize = 64 << 10;
const MOST: usize = 256;

/// Reads what a panic left, keeps it as [`DUMP`], and makes room for the next; `None` when there was none.
pub(crate) fn take(loader: &mut Loader) -> Option<String> {
    // Without the firmware's runtime services there is nowhere to keep anything.
    if !Path::new("/sys/firmware/efi").exists() || loader.load("efi_pstore").is_err() {
        return None;
    }
    fs::create_dir_all(TARGET).ok()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pstore"), TARGET, Some("pstore"), flags, None::<&str>).ok()?;
    let records = records();
    let text: String = records.iter().map(|(_, text)| text.as_str()).collect();
    for (path, _) in &records {
        let _ = fs::remove_file(path);
    }
    let _ = umount2(TARGET, MntFlags::MNT_DETACH);
    let _ = fs::remove_dir(TARGET);
    let words = summary(&text)?;
    let _ = fs::write(DUMP, &text);
    Some(words)
}

/// The records, in the order of their names: a crash's parts come from its end to its start.
fn records() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(TARGET)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .take(MOST)
        .collect();
    paths.sort();
    paths.reverse();
    paths
        .into_iter()
        .map(|path| {
            let mut bytes = fs::read(&path).unwrap_or_default();
            bytes.truncate(LONGEST);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            (path, text)
        })
        .collect()
}

/// The panic's line, and what was said of the cause before it.
fn summary(text: &str) -> Option<String> {
    let message = |line: &str| {
        // `<0>[    1.234567] text`
        let text = line.split_once("] ").map_or(line, |(_, text)| text);
        text.trim().to_owned()
    };
    let with = |mark: &str| {
        text.lines()
            .filter(|line| line.contains(mark))
            .map(message)
            .next_back()
    };
    let panic = with("Kernel panic - not syncing")?;
    let cause = with("device-mapper: verity").or_else(|| with("orlop[1]: boot: "));
    Some(match cause {
        Some(cause) => format!("{panic} ({cause})"),
        None => panic,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_and_its_cause_are_told() {
        let text = "Panic#1 Part1\n\
            <3>[    2.100000] device-mapper: verity: 254:2: data block 12 is corrupted\n\
            <0>[    2.200000] Kernel panic - not syncing: dm-verity device corrupted\n\
            <4>[    2.300000] CPU: 0 PID: 1 Comm: init Not tainted\n";
        assert_eq!(
            summary(text).unwrap(),
            "Kernel panic - not syncing: dm-verity device corrupted (device-mapper: verity: 254:2: data block 12 is corrupted)"
        );
        assert_eq!(summary("<6>[    0.000000] Linux version"), None);
    }
}
