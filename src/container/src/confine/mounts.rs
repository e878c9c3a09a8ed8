//! The mount namespace of a service: the machine's own tree, or that of `RootDirectory=`, with the places of
//! [`super::places`] changed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_sys::mount_api::{self, MountAttributes, Propagation};
use orlop_sys::mountinfo;
use orlop_unit::Launch;
use orlop_unit::confinement::Propagation as MountFlags;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, fstat};
use rustix::io::Errno;

use super::places::{self, Content, Missing, Place, Places};
use super::{private, root};
use crate::paths::{Root, is_directory};
use crate::report::{During as _, Failure};
use crate::rootfs::DEVICE_LINKS;

/// What stands for a file that may not be opened.
const CLOSED_FILE: &str = "/run/orlop/closed";

/// What was there on the machine and is shown in the namespace too, taken before anything is covered.
struct Taken<'a> {
    /// The machine's own tree.
    machine: &'a Root,
    trees: Vec<(PathBuf, OwnedFd)>,
}

impl Taken<'_> {
    fn find(&self, path: &Path) -> Option<&OwnedFd> {
        self.trees.iter().find(|(p, _)| p == path).map(|(_, fd)| fd)
    }
}

/// What a `/dev` of pseudo devices keeps of the machine's.
const DEVICES_KEPT: [&str; 5] = ["pts", "shm", "mqueue", "hugepages", "log"];
/// The pseudo devices: name, major and minor number (`Documentation/admin-guide/devices.txt`).
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Gives this process a mount namespace as `launch` asks for it. Nothing is done where nothing is asked.
pub(super) fn build(launch: &Launch) -> Result<(), Failure> {
    let c = &launch.confinement;
    if c.private_tmp {
        private::make(launch)?;
    }
    let directory = c.root_directory.as_deref().filter(|path| *path != "/");
    let found = |path: &str| std::fs::canonicalize(path).ok();
    let missing = |Missing(path)| Failure::refused(format!("there is no {path}"));
    let mut places = Places::new();
    if directory.is_none() {
        places = places::places(launch, &found, &found).map_err(missing)?;
        if places.is_empty() && !c.private_mounts && c.mount_flags.is_none() {
            return Ok(());
        }
    }
    make_closed_file()?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).during(|| "make a mount namespace")?;
    let machine = Root::open(Path::new("/")).during(|| "open the root")?;
    // What is mounted on the machine later still arrives; nothing gets out.
    propagate(&machine, Propagation::Slave)?;
    let root = match directory {
        None => Root::open(Path::new("/")).during(|| "open the root")?,
        Some(directory) => {
            let launch = root::with_own_paths(launch);
            let sources: Vec<_> = launch.confinement.bind_paths.iter().collect();
            let sources: BTreeMap<&str, _> = sources
                .iter()
                .map(|bind| (bind.source.as_str(), found(&bind.source)))
                .collect();
            let root = root::enter(&machine, directory, c.mount_api_vfs != Some(false))?;
            let source = |path: &str| sources.get(path).cloned().flatten();
            places = places::places(&launch, &source, &found).map_err(missing)?;
            root
        }
    };
    let taken = take(&machine, &places)?;
    for (path, place) in &places {
        change(&root, path, place, &taken)?;
    }
    restrict(&machine, &places)?;
    if directory.is_some() {
        root::leave(&machine)?;
    }
    match c.mount_flags {
        Some(MountFlags::Slave) => Ok(()),
        Some(MountFlags::Private) => propagate(&root, Propagation::Private),
        Some(MountFlags::Shared) | None => propagate(&root, Propagation::Shared),
    }
}

fn propagate(root: &Root, propagation: Propagation) -> Result<(), Failure> {
    let none = MountAttributes::empty();
    mount_api::set_attributes(root.as_fd(), none, none, Some(propagation), true)
        .during(|| "set how mounts travel")
}

fn make_closed_file() -> Result<(), Failure> {
    // Number 0:0 is no device: not even root can open it.
    let (kind, number) = (FileType::CharacterDevice, rustix::fs::makedev(0, 0));
    match rustix::fs::mknodat(rustix::fs::CWD, CLOSED_FILE, kind, Mode::empty(), number) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).during(|| format!("make {CLOSED_FILE}")),
    }
}

/// A copy of the machine's mount at `path`.
pub(super) fn copy_of(machine: &Root, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let found = machine.lookup(path, OFlags::PATH)?;
    mount_api::copy_tree_of(found.as_fd(), recursive)
}

fn take<'a>(machine: &'a Root, places: &Places) -> Result<Taken<'a>, Failure> {
    let mut trees = Vec::new();
    let mut keep = |path: PathBuf, recursive: bool, required: bool| {
        match copy_of(machine, &path, recursive) {
            Ok(tree) => trees.push((path, tree)),
            Err(err) if !required && err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err).during(|| format!("take {}", path.display())),
        }
        Ok(())
    };
    for place in places.values() {
        match &place.content {
            Some(Content::Bind { source, recursive }) => keep(source.clone(), *recursive, true)?,
            Some(Content::Closed) => keep(CLOSED_FILE.into(), false, true)?,
            Some(Content::Devices) => {
                for name in DEVICES_KEPT {
                    keep(Path::new("/dev").join(name), true, false)?;
                }
            }
            _ => {}
        }
    }
    Ok(Taken { machine, trees })
}

fn change(root: &Root, path: &Path, place: &Place, taken: &Taken) -> Result<(), Failure> {
    let name = path.display();
    let target = match (root.lookup(path, OFlags::PATH), &place.content) {
        (Ok(target), _) => target,
        (Err(Errno::NOENT), Some(Content::Temporary { .. })) => root
            .directory(path)
            .during(|| format!("make {name} to mount on it"))?,
        (Err(Errno::NOENT), Some(Content::Bind { source, .. })) => {
            let source = taken.find(source);
            let directory = source.is_some_and(|s| is_directory(s).unwrap_or(false));
            let made = if directory {
                root.directory(path)
            } else {
                root.file(path)
            };
            made.during(|| format!("make {name} to mount on it"))?
        }
        // Something that is covered by now, such as what a new /proc does not have.
        (Err(Errno::NOENT | Errno::NOTDIR), _) if !place.required => return Ok(()),
        (Err(error), _) => return Err(error).during(|| format!("find {name}")),
    };
    match &place.content {
        None if is_mount_point(taken.machine, &target, path)
            .during(|| format!("look at {name}"))? =>
        {
            Ok(())
        }
        None => {
            let copy = mount_api::copy_tree_of(target.as_fd(), true)
                .during(|| format!("take {name} apart from what is above it"))?;
            mount_api::attach(copy.as_fd(), target.as_fd())
                .during(|| format!("mount {name} on itself"))
        }
        Some(Content::Closed) => {
            let closed = if is_directory(&target).during(|| format!("look at {name}"))? {
                let attributes = MountAttributes::MOUNT_ATTR_RDONLY
                    | MountAttributes::MOUNT_ATTR_NOSUID
                    | MountAttributes::MOUNT_ATTR_NODEV
                    | MountAttributes::MOUNT_ATTR_NOEXEC;
                mount_api::new_filesystem("tmpfs", "closed", &["mode=0000"], attributes)
            } else {
                copy(taken, Path::new(CLOSED_FILE))
            };
            let closed = closed.during(|| format!("make what closes {name}"))?;
            mount_api::attach(closed.as_fd(), target.as_fd()).during(|| format!("close {name}"))
        }
        Some(Content::Bind { source, .. }) => {
            let step = || format!("show {} at {name}", source.display());
            let tree = taken
                .find(source)
                .ok_or(Errno::NOENT)
                .map_err(io::Error::from)
                .during(step)?;
            mount_api::attach(tree.as_fd(), target.as_fd()).during(step)
        }
        Some(Content::Temporary { options }) => {
            let (attributes, options) = split(options);
            let tmpfs = mount_api::new_filesystem("tmpfs", "tmpfs", &options, attributes)
                .during(|| format!("make a tmpfs for {name}"))?;
            mount_api::attach(tmpfs.as_fd(), target.as_fd()).during(|| format!("mount on {name}"))
        }
        Some(Content::Processes { options }) => {
            let attributes = MountAttributes::MOUNT_ATTR_NOSUID
                | MountAttributes::MOUNT_ATTR_NODEV
                | MountAttributes::MOUNT_ATTR_NOEXEC;
            let proc = mount_api::new_filesystem("proc", "proc", options, attributes)
                .during(|| "make a /proc of its own")?;
            mount_api::attach(proc.as_fd(), target.as_fd()).during(|| "mount /proc")
        }
        Some(Content::Devices) => devices(root, &target, taken),
    }
}

/// A second copy of what was taken once and may be needed more than once.
fn copy(taken: &Taken, path: &Path) -> io::Result<OwnedFd> {
    match copy_of(taken.machine, path, false) {
        // Covered, by something that closes all of /run.
        Err(_) => taken.find(path).ok_or(Errno::NOENT)?.try_clone(),
        copied => copied,
    }
}

/// Options of tmpfs apart from those of the mount.
fn split(options: &str) -> (MountAttributes, Vec<&str>) {
    let mut attributes = MountAttributes::MOUNT_ATTR_NODEV | MountAttributes::MOUNT_ATTR_NOSUID;
    let mut rest = vec!["mode=0755"];
    for option in options.split(',').filter(|o| !o.is_empty()) {
        match option {
            "ro" => attributes |= MountAttributes::MOUNT_ATTR_RDONLY,
            "rw" => attributes -= MountAttributes::MOUNT_ATTR_RDONLY,
            "noexec" => attributes |= MountAttributes::MOUNT_ATTR_NOEXEC,
            "exec" => attributes -= MountAttributes::MOUNT_ATTR_NOEXEC,
            "nodev" => attributes |= MountAttributes::MOUNT_ATTR_NODEV,
            "dev" => attributes -= MountAttributes::MOUNT_ATTR_NODEV,
            "nosuid" => attributes |= MountAttributes::MOUNT_ATTR_NOSUID,
            "suid" => attributes -= MountAttributes::MOUNT_ATTR_NOSUID,
            "noatime" => attributes |= MountAttributes::MOUNT_ATTR_NOATIME,
            other => rest.push(other),
        }
    }
    (attributes, rest)
}

fn devices(root: &Root, target: &OwnedFd, taken: &Taken) -> Result<(), Failure> {
    let attributes = MountAttributes::MOUNT_ATTR_NOSUID | MountAttributes::MOUNT_ATTR_NOEXEC;
    let options = ["mode=0755", "size=4m", "nr_inodes=64k"];
    let dev = mount_api::new_filesystem("tmpfs", "devices", &options, attributes)
        .during(|| "make a /dev of its own")?;
    for (name, major, minor) in DEVICES {
        let step = || format!("make /dev/{name}");
        let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
        let number = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(&dev, name, kind, mode, number).during(step)?;
        rustix::fs::chmodat(&dev, name, mode, AtFlags::empty()).during(step)?;
    }
    for (name, leads_to) in DEVICE_LINKS {
        rustix::fs::symlinkat(leads_to, &dev, name).during(|| format!("make /dev/{name}"))?;
    }
    mount_api::attach(dev.as_fd(), target.as_fd()).during(|| "mount /dev")?;
    for name in DEVICES_KEPT {
        let path = Path::new("/dev").join(name);
        let Some(tree) = taken.find(&path) else {
            continue;
        };
        let step = || format!("keep {}", path.display());
        let place = if is_directory(tree).during(step)? {
            root.directory(&path)
        } else {
            root.file(&path)
        };
        mount_api::attach(tree.as_fd(), place.during(step)?.as_fd()).during(step)?;
    }
    Ok(())
}

/// What is mounted below this process's root, which may have no `/proc`, as the machine has.
fn mounts(machine: &Root) -> io::Result<Vec<mountinfo::Mount>> {
    let list = Path::new("/proc/thread-self/mountinfo");
    mountinfo::read_from(std::fs::File::from(machine.lookup(list, OFlags::RDONLY)?))
}

/// Whether `opened`, found at `path`, is the root of a mount.
pub(super) fn is_mount_point(machine: &Root, opened: &OwnedFd, path: &Path) -> io::Result<bool> {
    let mount = mount_of(opened)?;
    Ok(mounts(machine)?
        .iter()
        .any(|m| m.id == mount && Path::new(&m.target) == path))
}

fn mount_of(opened: &OwnedFd) -> io::Result<u64> {
    let found = rustix::fs::statx(opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    Ok(found.stx_mnt_id)
}

/// Makes every mount read-only, or closed to execution, that lies where the places say so.
fn restrict(machine: &Root, places: &Places) -> Result<(), Failure> {
    for mount in mounts(machine).during(|| "list what is mounted")? {
        let path = Path::new(&mount.target);
        let (writable, executable) = places::rules_at(places, path);
        let mut set = MountAttributes::empty();
        if writable == Some(false) {
            set |= MountAttributes::MOUNT_ATTR_RDONLY;
        }
        if executable == Some(false) {
            set |= MountAttributes::MOUNT_ATTR_NOEXEC;
        }
        if set.is_empty() {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let step = || format!("restrict {}", path.display());
        let opened = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(opened) => opened,
            // Under another mount, where nobody gets.
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            Err(error) => return Err(error).during(step),
        };
        if mount_of(&opened).during(step)? != mount.id {
            continue;
        }
        mount_api::set_attributes(opened.as_fd(), set, MountAttributes::empty(), None, false)
            .during(step)?;
    }
    Ok(())
}

/// Gives `path` and all in it to a user, if it is somebody else's; links are not followed.
pub(super) fn hand_over(path: &str, uid: u32, gid: u32) -> Result<(), Failure> {
    let step = || format!("give {path} to user {uid}");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty()).during(step)?;
    let found = fstat(&top).during(step)?;
    if found.st_uid == uid && found.st_gid == gid {
        return Ok(());
    }
    let (owner, group) = (
        rustix::fs::Uid::from_raw(uid),
        rustix::fs::Gid::from_raw(gid),
    );
    // The top comes last: its owner says whether the rest is done.
    let mut left = vec![top.try_clone().during(step)?];
    while let Some(directory) = left.pop() {
        for entry in rustix::fs::Dir::read_from(&directory).during(step)? {
            let entry = entry.during(step)?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            let no_links = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(
                &directory,
                entry.file_name(),
                Some(owner),
                Some(group),
                no_links,
            )
            .during(step)?;
            if entry.file_type() == FileType::Directory {
                let flags = flags | OFlags::NOFOLLOW;
                let below = rustix::fs::openat(&directory, entry.file_name(), flags, Mode::empty());
                left.push(below.during(step)?);
            }
        }
    }
    rustix::fs::fchown(&top, Some(owner), Some(group)).during(step)
}
