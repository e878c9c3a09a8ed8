//! `RootDirectory=`: another directory as the root of a service, with what of the machine belongs to any root.

use std::os::fd::AsFd as _;
use std::path::Path;

use orlop_sys::mount_api::{self, MountAttributes};
use orlop_unit::Launch;
use orlop_unit::confinement::BindPath;
use rustix::fs::OFlags;
use rustix::mount::UnmountFlags;

use super::mounts::{copy_of, is_mount_point};
use crate::paths::Root;
use crate::report::{During as _, Failure};

/// The kernel's interfaces, shown as the machine has them (`MountAPIVFS=`).
const INTERFACES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// `launch` with what the unit is given by us bound to where it is told to look: its directories, its credentials, the
/// notification socket.
pub(super) fn with_own_paths(launch: &Launch) -> Launch {
    let bind = |path: &str, read_only: bool| BindPath {
        source: path.to_owned(),
        target: path.to_owned(),
        optional: false,
        recursive: true,
        read_only,
    };
    let mut launch = launch.clone();
    let directories = launch.directories.iter();
    let mut own: Vec<BindPath> = directories
        .chain(&launch.configuration_directories)
        .map(|path| bind(path, false))
        .collect();
    own.extend(launch.credentials.iter().map(|path| bind(path, true)));
    if let Ok(socket) = std::env::var("NOTIFY_SOCKET")
        && socket.starts_with('/')
    {
        own.push(bind(&socket, true));
    }
    launch.confinement.bind_paths.extend(own);
    launch
}

/// Makes `directory` the root of this process. The machine's tree stays below `machine` until [`leave`].
pub(super) fn enter(machine: &Root, directory: &str, interfaces: bool) -> Result<Root, Failure> {
    let step = || format!("make {directory} the root (RootDirectory=)");
    let path = Path::new(directory);
    let found = machine
        .lookup(path, OFlags::PATH | OFlags::DIRECTORY)
        .during(step)?;
    // A root has to be a mount (pivot_root(2)).
    let tree = mount_api::copy_tree_of(found.as_fd(), true).during(step)?;
    mount_api::attach(tree.as_fd(), found.as_fd()).during(step)?;
    rustix::process::fchdir(&tree).during(step)?;
    rustix::process::pivot_root(".", ".").during(step)?;
    rustix::process::chdir("/").during(step)?;
    let root = Root::open(Path::new("/")).during(step)?;
    if !interfaces {
        return Ok(root);
    }
    for name in INTERFACES {
        let step = || format!("show {name} in {directory} (MountAPIVFS=)");
        let path = Path::new(name);
        let place = root.directory(path).during(step)?;
        if !is_mount_point(machine, &place, path).during(step)? {
            let tree = copy_of(machine, path, true).during(step)?;
            mount_api::attach(tree.as_fd(), place.as_fd()).during(step)?;
        }
    }
    let step = || format!("make a /run in {directory} (MountAPIVFS=)");
    let path = Path::new("/run");
    let place = root.directory(path).during(step)?;
    if !is_mount_point(machine, &place, path).during(step)? {
        let attributes = MountAttributes::MOUNT_ATTR_NOSUID | MountAttributes::MOUNT_ATTR_NODEV;
        let run =
            mount_api::new_filesystem("tmpfs", "tmpfs", &["mode=0755"], attributes).during(step)?;
        mount_api::attach(run.as_fd(), place.as_fd()).during(step)?;
    }
    Ok(root)
}

/// Drops the machine's tree from this namespace.
pub(super) fn leave(machine: &Root) -> Result<(), Failure> {
    let step = || "leave the machine's root";
    rustix::process::fchdir(machine.as_fd()).during(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(step)?;
    rustix::process::chdir("/").during(step)
}
