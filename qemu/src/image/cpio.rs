//! Initramfs archives: cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;

/// An archive in memory. All entries belong to root, all times are 0; directories above an entry are added before it.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

impl Archive {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory unless it is there; paths are relative to the root.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, S_IFDIR | mode, (0, 0), &[]);
        }
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, S_IFREG | mode, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, S_IFLNK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device, which needs no privilege here.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, S_IFCHR | mode, (major, minor), &[]);
    }

    /// The archive with its trailer, padded so that another one may follow.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut self.bytes, 512);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            if !parent.is_empty() && self.directories.insert(parent.to_owned()) {
                self.entry(parent, S_IFDIR | 0o755, (0, 0), &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let links = if mode & S_IFDIR == S_IFDIR { 2 } else { 1 };
        // The kernel's limit too: a file of an initramfs has at most 4 GiB.
        let size = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        pad(&mut self.bytes, 4);
        self.bytes.extend_from_slice(contents);
        pad(&mut self.bytes, 4);
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn gnu_cpios_reader_sees_what_was_put_in() {
        let mut archive = Archive::new();
        archive.file("a/b/file", 0o640, b"hello");
        archive.link("a/link", "b/file");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.directory("a/b", 0o700);
        let mut lister = Command::new("busybox")
            .args(["cpio", "-tv"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        lister
            .stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let listing = String::from_utf8(lister.wait_with_output().unwrap().stdout).unwrap();
        let entries: Vec<(&str, &str)> = listing
            .lines()
            .map(|line| {
                (
                    line.get(..10).unwrap(),
                    line.split_once(":00 ").map_or(line, |(_, name)| name),
                )
            })
            .map(|(mode, name)| (mode, name.rsplit_once(":00 ").map_or(name, |(_, n)| n)))
            .collect();
        assert_eq!(
            entries,
            [
                ("drwxr-xr-x", "a"),
                ("drwxr-xr-x", "a/b"),
                ("-rw-r-----", "a/b/file"),
                ("lrwxrwxrwx", "a/link -> b/file"),
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
            ],
            "{listing}"
        );
    }
}
