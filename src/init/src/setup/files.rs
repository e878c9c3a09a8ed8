//! The files, directories and links of the plan.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use orlop_config::{Owner, PlannedDirectory, PlannedFile, PlannedLink};

use super::Setup;
use super::replace::replace;

/// The most symbolic links on the way to one file, as the kernel's own limit (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Writes all of the plan; what can not be written is a line each.
pub(super) fn apply(setup: &mut Setup) {
    let plan = std::mem::take(&mut setup.plan);
    for directory in homes(setup).iter().chain(&plan.directories) {
        if let Err(error) = make_directory(&setup.root, directory) {
            setup.fail(format!("cannot make {}: {error}", directory.path));
        }
    }
    for (at, file) in plan.files.iter().enumerate() {
        if plan
            .files
            .iter()
            .take(at)
            .any(|earlier| earlier.path == file.path)
        {
            continue;
        }
        // All that is planned for one path is written at once, so that a second run finds it as it is.
        let all: Vec<&PlannedFile> = plan
            .files
            .iter()
            .filter(|other| other.path == file.path)
            .collect();
        if let Err(error) = write_file(&setup.root, &all) {
            setup.fail(format!(
                "{}: cannot write {}: {error}",
                file.source, file.path
            ));
        }
    }
    for link in &plan.links {
        if let Err(error) = make_link(&setup.root, link) {
            setup.fail(format!("cannot make the link {}: {error}", link.path));
        }
    }
}

/// The image's users have no homes in it, since `/home` is on `/var`.
fn homes(setup: &Setup) -> Vec<PlannedDirectory> {
    let passwd = fs::read_to_string(setup.path("/etc/passwd")).unwrap_or_default();
    let home = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let owner = Owner {
            uid: fields.next()?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        };
        let path = fields.nth(1)?.to_owned();
        let is_home = path.starts_with("/home/") && !path.split('/').any(|part| part == "..");
        is_home.then_some(PlannedDirectory {
            path,
            mode: 0o750,
            owner,
        })
    };
    passwd
        .lines()
        .filter_map(home)
        .filter(|home| fs::symlink_metadata(setup.path(&home.path)).is_err())
        .collect()
}

fn make_directory(root: &Path, directory: &PlannedDirectory) -> io::Result<()> {
    let path = resolve(root, Path::new(&directory.path))?;
    match fs::create_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let metadata = fs::symlink_metadata(&path)?;
    if !metadata.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let owner = directory.owner;
    if (metadata.uid(), metadata.gid()) != (owner.uid, owner.gid) {
        lchown(&path, Some(owner.uid), Some(owner.gid))?;
    }
    if metadata.mode() & 0o7777 != directory.mode {
        fs::set_permissions(&path, Permissions::from_mode(directory.mode))?;
    }
    Ok(())
}

fn write_file(root: &Path, planned: &[&PlannedFile]) -> io::Result<()> {
    let Some(last) = planned.last() else {
        return Ok(());
    };
    let path = entry(root, &last.path)?;
    let start = planned.iter().rposition(|file| !file.append);
    let mut content = match start {
        Some(_) => Vec::new(),
        None => match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => fs::read(&path)?,
            Ok(_) => {
                return Err(io::Error::other(
                    "it is no plain file that could be added to",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        },
    };
    for file in planned.iter().skip(start.unwrap_or(0)) {
        // What an earlier boot added to a file on the data volume is not added again.
        if start.is_some() || !contains(&content, &file.content) {
            content.extend_from_slice(&file.content);
        }
    }
    replace(&path, &content, last.mode, last.owner)?;
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

fn make_link(root: &Path, link: &PlannedLink) -> io::Result<()> {
    let path = entry(root, &link.path)?;
    if fs::read_link(&path).is_ok_and(|target| target == Path::new(&link.target)) {
        return Ok(());
    }
    let mut aside = OsString::from(".");
    aside.push(path.file_name().unwrap_or(OsStr::new("link")));
    aside.push(".new");
    let aside = path.with_file_name(aside);
    // What an interrupted run left; when something else is there, the link says so.
    let _ = fs::remove_file(&aside);
    symlink(&link.target, &aside)?;
    fs::rename(&aside, &path).inspect_err(|_| {
        // The rename's error is the one to tell.
        let _ = fs::remove_file(&aside);
    })
}

/// Where the last part of `path` is, without following it: its directory is made when it is not there.
fn entry(root: &Path, path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = resolve(root, directory)?;
    if !directory.is_dir() {
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    }
    Ok(directory.join(name))
}

/// The place of the machine's absolute `path` below `root` with the symbolic links on the way followed, and the directories on
/// the way made.
///
/// Only links that root made are followed: files are written with root's rights, also below homes, whose owners could lead
/// them elsewhere.
fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut left: VecDeque<OsString> = parts(path).collect();
    let mut place = PathBuf::new();
    let mut links = 0_usize;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            place.pop();
            continue;
        }
        let next = place.join(&part);
        let there = root.join(&next);
        match fs::symlink_metadata(&there) {
            Ok(metadata) if metadata.is_symlink() => {
                links = links.saturating_add(1);
                if links > MOST_LINKS {
                    return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
                }
                if metadata.uid() != 0 {
                    let why = format!("/{} is a link of another user's", next.display());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                }
                let target = fs::read_link(&there)?;
                if target.is_absolute() {
                    place = PathBuf::new();
                }
                for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(part);
                }
            }
            Ok(_) => place = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !left.is_empty() {
                    fs::create_dir(&there)?;
                    fs::set_permissions(&there, Permissions::from_mode(0o755))?;
                }
                place = next;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(root.join(place))
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        _ => None,
    })
}
