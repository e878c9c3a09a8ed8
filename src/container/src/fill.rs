//! The first use of a named volume: it begins with what the image has at the place where it is mounted.
//!
//! A database's image, for one, counts on the owner and mode that it gave to its data directory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, mkdirat,
    openat, readlinkat, statat, symlinkat,
};

use crate::paths::Root;
use crate::report::{During, Failure};

/// A volume and its place in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The volume's directory on the machine.
    pub volume: PathBuf,
    /// Where the container has it.
    pub destination: PathBuf,
}

/// Deeper trees are refused.
const MAX_DEPTH: u32 = 200;

/// Copies the image's directory into the volume, if there is one and the volume is empty.
pub(crate) fn fill(root: &Root, fill: &Fill) -> Result<(), Failure> {
    let step = || format!("fill the volume {}", fill.volume.display());
    let readable = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let volume =
        rustix::fs::open(&fill.volume, readable | OFlags::NOFOLLOW, Mode::empty()).during(step)?;
    if entries(&volume).during(step)?.next().is_some() {
        return Ok(());
    }
    // An image without the directory has nothing to give.
    let Ok(source) = root.lookup(&fill.destination, readable) else {
        return Ok(());
    };
    copy_directory(&source, &volume, 0).during(step)
}

/// Names in a directory, without `.` and `..`.
fn entries(directory: &OwnedFd) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let names = Dir::read_from(directory)?.filter_map(|entry| match entry {
        Ok(entry) => {
            let name = entry.file_name().to_bytes();
            (name != b"." && name != b"..").then(|| Ok(name.to_vec()))
        }
        Err(error) => Some(Err(error.into())),
    });
    Ok(names)
}

fn copy_directory(source: &OwnedFd, target: &OwnedFd, depth: u32) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(rustix::io::Errno::NAMETOOLONG.into());
    }
    for name in entries(source)? {
        let name = name?;
        let name = Path::new(std::ffi::OsStr::from_bytes(&name));
        let status = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = openat(source, name, flags, Mode::empty())?;
                mkdirat(target, name, Mode::RWXU)?;
                copy_directory(
                    &from,
                    &openat(target, name, flags, Mode::empty())?,
                    depth + 1,
                )?;
            }
            FileType::RegularFile => copy_file(source.as_fd(), target.as_fd(), name)?,
            FileType::Symlink => {
                symlinkat(readlinkat(source, name, Vec::new())?, target, name)?;
                let (uid, gid) = owner(&status);
                chownat(target, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // Pipes, sockets and devices are no data.
            _ => {}
        }
    }
    give(target.as_fd(), &fstat(source)?)
}

fn copy_file(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let from = openat(source, name, read, Mode::empty())?;
    let status = fstat(&from)?;
    let mut to = File::from(openat(target, name, write, Mode::RUSR | Mode::WUSR)?);
    io::copy(&mut File::from(from), &mut to)?;
    give(to.as_fd(), &status)
}

fn owner(status: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(status.st_uid)),
        Some(Gid::from_raw(status.st_gid)),
    )
}

/// Gives the owner first: a change of owner takes the set-id bits away.
fn give(target: BorrowedFd<'_>, status: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(status);
    fchown(target, uid, gid)?;
    Ok(fchmod(
        target,
        Mode::from_raw_mode(status.st_mode & 0o7777),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn an_empty_volume_takes_what_the_image_has_and_keeps_it() {
        let directory = tempfile::tempdir().unwrap();
        let (image, volume) = (
            directory.path().join("image"),
            directory.path().join("volume"),
        );
        fs::create_dir_all(image.join("data/sub")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(image.join("data/sub/file"), "text").unwrap();
        symlink("/etc/passwd", image.join("data/link")).unwrap();
        fs::set_permissions(image.join("data"), fs::Permissions::from_mode(0o1777)).unwrap();
        let root = Root::open(&image).unwrap();
        let wanted = Fill {
            volume: volume.clone(),
            destination: "/data".into(),
        };

        fill(&root, &wanted).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/file")).unwrap(), "text");
        assert_eq!(
            fs::read_link(volume.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(
            fs::metadata(&volume).unwrap().permissions().mode() & 0o7777,
            0o1777
        );

        fs::write(volume.join("sub/file"), "mine").unwrap();
        fill(&root, &wanted).unwrap();
        assert_eq!(fs::read_to_string(volume.join("sub/file")).unwrap(), "mine");
    }
}
