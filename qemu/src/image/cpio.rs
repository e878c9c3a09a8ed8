//! Initramfs archives: cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeMap;

/// An archive in memory. All entries belong to root, all times are 0. An entry replaces an earlier one of the same path;
/// directories above an entry are there with mode 755 unless they are added with another.
#[derive(Debug, Default)]
pub struct Archive {
    /// By path, relative to the root: sorted, so that a directory comes before what is in it.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Type and permissions, `st_mode`.
    mode: u32,
    /// Major and minor number of a device.
    device: (u32, u32),
    contents: Vec<u8>,
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

    /// Adds a directory. Paths may begin with a slash; they are relative to the root either way.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.add(path, S_IFDIR | mode, (0, 0), Vec::new());
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, mode: u32, contents: Vec<u8>) {
        self.add(path, S_IFREG | mode, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, S_IFLNK | 0o777, (0, 0), target.as_bytes().to_vec());
    }

    /// Adds a character device, which needs no privilege here.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.add(path, S_IFCHR | mode, (major, minor), Vec::new());
    }

    /// The archive with its trailer, padded so that another one may follow.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            write(&mut bytes, path, inode, entry);
        }
        let trailer = Entry {
            mode: 0,
            device: (0, 0),
            contents: Vec::new(),
        };
        write(&mut bytes, "TRAILER!!!", 0, &trailer);
        pad(&mut bytes, 512);
        bytes
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), contents: Vec<u8>) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default().to_owned();
            let directory = Entry {
                mode: S_IFDIR | 0o755,
                device: (0, 0),
                contents: Vec::new(),
            };
            self.entries.entry(parent).or_insert(directory);
        }
        self.entries.insert(
            path.to_owned(),
            Entry {
                mode,
                device,
                contents,
            },
        );
    }
}

fn write(bytes: &mut Vec<u8>, path: &str, inode: u32, entry: &Entry) {
    let links = if entry.mode & S_IFDIR == S_IFDIR {
        2
    } else {
        1
    };
    // The format's limit: a file has at most 4 GiB.
    let size = u32::try_from(entry.contents.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let (major, minor) = entry.device;
    let fields = [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes, 4);
    bytes.extend_from_slice(&entry.contents);
    pad(bytes, 4);
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
        archive.file("a/b/file", 0o644, b"replaced".to_vec());
        archive.file("/a/b/file", 0o640, b"hello".to_vec());
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
                ("drwx------", "a/b"),
                ("-rw-r-----", "a/b/file"),
                ("lrwxrwxrwx", "a/link -> b/file"),
                ("drwxr-xr-x", "dev"),
                ("crw-------", "dev/console"),
            ],
            "{listing}"
        );
    }
}
