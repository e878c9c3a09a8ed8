//! `LoadCredential=` and `SetCredential=`: files in memory that the unit's own user alone may read (systemd.exec(5), "Credentials").

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use orlop_sys::mount_api::{self, MountAttributes};
use orlop_unit::Launch;
use orlop_unit::confinement::LoadCredential;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use crate::report::{During as _, Failure};

/// What all credentials of a unit may hold together, as systemd has it.
const MOST_BYTES: usize = 1 << 20;
/// The longest name of a file.
const MOST_NAME_BYTES: usize = 255;
/// Where a credential that is no path is looked for, the first first.
const STORES: [&str; 4] = [
    "/run/credentials/@system",
    "/etc/credstore",
    "/run/credstore",
    "/usr/lib/credstore",
];
/// What a socket that serves a credential may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Puts the unit's credentials where `launch` says, unless an earlier process of the unit did.
pub(super) fn show(launch: &Launch) -> Result<(), Failure> {
    let Some(directory) = &launch.credentials else {
        return Ok(());
    };
    let step = || format!("show credentials in {directory}");
    if orlop_sys::mountinfo::is_mounted(directory) {
        return Ok(());
    }
    let files = gather(launch)?;
    let attributes = MountAttributes::MOUNT_ATTR_NOSUID
        | MountAttributes::MOUNT_ATTR_NODEV
        | MountAttributes::MOUNT_ATTR_NOEXEC;
    // Unlike tmpfs it never goes to a swap device.
    let memory = mount_api::new_filesystem("ramfs", "credentials", &["mode=0700"], attributes)
        .during(step)?;
    let owner = launch
        .user
        .as_ref()
        .map(|user| (Uid::from_raw(user.uid), Gid::from_raw(user.gid)));
    for (name, data) in &files {
        put(&memory, name, data, owner).during(|| format!("write the credential {name}"))?;
    }
    let mode = Mode::from_raw_mode(0o500);
    rustix::fs::chmodat(&memory, ".", mode, AtFlags::empty()).during(step)?;
    if let Some((user, group)) = owner {
        rustix::fs::chownat(&memory, ".", Some(user), Some(group), AtFlags::empty())
            .during(step)?;
    }
    fs::create_dir_all(directory).during(step)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::open(directory.as_str(), flags, Mode::empty()).during(step)?;
    let read_only = MountAttributes::MOUNT_ATTR_RDONLY;
    let none = MountAttributes::empty();
    mount_api::set_attributes(memory.as_fd(), read_only, none, None, false).during(step)?;
    mount_api::attach(memory.as_fd(), target.as_fd()).during(step)
}

fn put(directory: &OwnedFd, name: &str, data: &[u8], owner: Option<(Uid, Gid)>) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o400))?;
    let mut file = File::from(made);
    file.write_all(data)?;
    if let Some((user, group)) = owner {
        rustix::fs::fchown(&file, Some(user), Some(group))?;
    }
    Ok(())
}

/// Credentials by name.
#[derive(Default)]
struct Gathered {
    files: Vec<(String, Vec<u8>)>,
    /// Of the names and what the credentials hold.
    bytes: usize,
}

impl Gathered {
    fn add(&mut self, name: String, data: Vec<u8>) {
        self.bytes = self.bytes.saturating_add(name.len() + data.len());
        self.files.push((name, data));
    }
}

/// Names and contents: what can be loaded, then what is set for the names that are left.
fn gather(launch: &Launch) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let c = &launch.confinement;
    let mut gathered = Gathered::default();
    for load in &c.load_credential {
        let source = Path::new(&load.source);
        if source.is_absolute() && source.is_dir() {
            read_directory(load, source, &load.id, &mut gathered)?;
            continue;
        }
        let is_set = c.set_credential.iter().any(|set| set.id == load.id);
        if let Some(data) = read(load, is_set)? {
            gathered.add(load.id.clone(), data);
        }
    }
    let mut files = gathered.files;
    for set in &c.set_credential {
        if files.iter().all(|(name, _)| *name != set.id) {
            files.push((set.id.clone(), set.data.clone()));
        }
    }
    let bytes: usize = files.iter().map(|(_, data)| data.len()).sum();
    if bytes > MOST_BYTES {
        return Err(Failure::refused(format!(
            "the credentials have {bytes} bytes; {MOST_BYTES} is the most"
        )));
    }
    Ok(files)
}

/// Reads each file below a directory as a credential of its own, called as the directory's with `_` and the file's name behind it.
/// Links are left out.
fn read_directory(
    load: &LoadCredential,
    directory: &Path,
    name: &str,
    gathered: &mut Gathered,
) -> Result<(), Failure> {
    let step = |path: &Path| format!("LoadCredential={}: read {}", load.id, path.display());
    let listed: io::Result<Vec<_>> = fs::read_dir(directory).and_then(Iterator::collect);
    let mut listed = listed.during(|| step(directory))?;
    listed.sort_by_key(fs::DirEntry::file_name);
    for entry in listed {
        let path = entry.path();
        let refused = |why: &str| Failure::refused(format!("{}: {why}", step(&path)));
        let name = match entry.file_name().to_str() {
            Some(part) if !part.contains(|c: char| c == ':' || c.is_control()) => {
                format!("{name}_{part}")
            }
            _ => return Err(refused("no credential can be called so")),
        };
        if name.len() > MOST_NAME_BYTES {
            return Err(refused("the credential's name is too long"));
        }
        let kind = entry.file_type().during(|| step(&path))?;
        if kind.is_dir() {
            // The length of a name bounds the depth, too.
            read_directory(load, &path, &name, gathered)?;
        } else if kind.is_file() {
            gathered.add(name, contents(&path).during(|| step(&path))?);
        }
        if gathered.bytes > MOST_BYTES {
            return Err(refused("that is more than credentials may have"));
        }
    }
    Ok(())
}

/// What a credential holds; `None` where it may be missing: `SetCredential=` stands for it, or it was the machine's to give.
fn read(load: &LoadCredential, is_set: bool) -> Result<Option<Vec<u8>>, Failure> {
    let step = |path: &str| format!("LoadCredential={}: read {path}", load.id);
    if load.source.starts_with('/') {
        return match contents(Path::new(&load.source)) {
            Err(error) if is_set && error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).during(|| step(&load.source)),
        };
    }
    for store in STORES {
        let path = Path::new(store).join(&load.source);
        match contents(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            read => return read.map(Some).during(|| step(&path.display().to_string())),
        }
    }
    Ok(None)
}

/// All of a file, or what a socket sends to whoever connects.
fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    // One byte more than there may be tells too much from enough.
    let most = u64::try_from(MOST_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    if fs::metadata(path)?.file_type().is_socket() {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.take(most).read_to_end(&mut data)?;
    } else {
        File::open(path)?.take(most).read_to_end(&mut data)?;
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(source: &str) -> LoadCredential {
        LoadCredential {
            id: "key".into(),
            source: source.into(),
        }
    }

    #[test]
    fn only_a_path_without_a_default_must_be_there() {
        assert!(read(&load("/gone/key"), false).is_err());
        assert_eq!(read(&load("/gone/key"), true), Ok(None));
        assert_eq!(read(&load("no-such-credential"), false), Ok(None));
    }

    #[test]
    fn a_directory_gives_each_file_below_it() {
        let directory =
            std::env::temp_dir().join(format!("orlop-credentials-{}", std::process::id()));
        fs::create_dir_all(directory.join("inner")).unwrap();
        for (name, text) in [("inner/b", "two"), ("a", "one")] {
            fs::write(directory.join(name), text).unwrap();
        }
        std::os::unix::fs::symlink("a", directory.join("link")).unwrap();
        let mut gathered = Gathered::default();
        read_directory(&load(""), &directory, "key", &mut gathered).unwrap();
        let expected = [("key_a", "one"), ("key_inner_b", "two")];
        assert_eq!(
            gathered.files,
            expected.map(|(name, text)| (name.to_owned(), text.into()))
        );
        fs::write(directory.join("large"), vec![0; MOST_BYTES]).unwrap();
        assert!(read_directory(&load(""), &directory, "key", &mut gathered).is_err());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_socket_gives_what_it_sends() {
        let directory =
            std::env::temp_dir().join(format!("orlop-credential-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let served = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"secret"));
        assert_eq!(contents(&path).unwrap(), b"secret");
        served.join().unwrap().unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
