//! The container's view of files: overlay, mounts, device nodes, masks, and the change of root.
//!
//! All of it runs in the new mount namespace. The image is hostile until proven otherwise: no path of it is resolved
//! except through [`Root`].

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use orlop_sys::mount_api::{self, MountAttributes, Propagation};
use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fstat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::fill::{Fill, fill};
use crate::paths::{Root, is_directory};
use crate::plan::{Node, Plan, PlannedMount, Source};
use crate::report::{During, Failure};

/// Where the parts of the root come from.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Unpacked layers of the image, lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// Takes what the container writes.
    pub(crate) upper: PathBuf,
    /// Overlayfs' own.
    pub(crate) work: PathBuf,
    /// Where the whole is mounted until the change of root.
    pub(crate) root: PathBuf,
    /// Named volumes to fill before they are mounted.
    pub(crate) volumes: Vec<Fill>,
}

/// Builds everything and makes it the root; the machine's files are out of reach afterwards.
pub(crate) fn build(places: &Places, plan: &Plan) -> Result<Root, Failure> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )
    .during(|| "make the mounts private")?;
    let null = machine_null()?;
    mount_overlay(places)?;
    let root =
        Root::open(&places.root).during(|| format!("open the root {}", places.root.display()))?;
    rustix::process::umask(Mode::empty());
    for volume in &places.volumes {
        fill(&root, volume)?;
    }
    for mount in &plan.mounts {
        add_mount(&root, mount)?;
    }
    add_nodes(&root, &plan.nodes)?;
    add_links(&root);
    for path in &plan.read_only_paths {
        make_read_only(&root, path)?;
    }
    for path in &plan.masked_paths {
        mask(&root, path, &null)?;
    }
    root.directory(&plan.working_directory).during(|| {
        format!(
            "make the working directory {}",
            plan.working_directory.display()
        )
    })?;
    change_root(&root)?;
    if plan.read_only_root {
        mount_api::set_attributes(
            root.as_fd(),
            MountAttributes::MOUNT_ATTR_RDONLY,
            MountAttributes::empty(),
            None,
            false,
        )
        .during(|| "make the root read-only")?;
    }
    Ok(root)
}

/// The machine's `/dev/null`, held by descriptor and known to be it (CVE-2025-31133).
fn machine_null() -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = rustix::fs::open("/dev/null", flags, Mode::empty()).during(|| "open /dev/null")?;
    let status = fstat(&null).during(|| "look at /dev/null")?;
    let is_null = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(null)
    } else {
        Err(Failure::refused(
            "the machine's /dev/null is another device",
        ))
    }
}

fn mount_overlay(places: &Places) -> Result<(), Failure> {
    let open = |path: &Path| {
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .during(|| format!("open the layer {}", path.display()))
    };
    // Named by descriptor, hundreds of layers fit into the one page that the kernel reads, and no name needs escaping.
    let layers = places
        .layers
        .iter()
        .rev()
        .map(|path| open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&places.upper)?, open(&places.work)?);
    let lower = layers
        .iter()
        .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .collect::<Vec<_>>()
        .join(":");
    // What the container writes here does not outlive it, so it need not reach the disk in time: `volatile`.
    let options = format!(
        "lowerdir={lower},upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{},volatile",
        upper.as_raw_fd(),
        work.as_raw_fd()
    );
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount(
        "overlay",
        &places.root,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )
    .during(|| format!("mount the root from {} layers", layers.len()))
}

fn add_mount(root: &Root, mount: &PlannedMount) -> Result<(), Failure> {
    let target_name = mount.destination.display();
    match &mount.source {
        Source::Filesystem {
            kind,
            source,
            options,
        } => {
            // Of an API filesystem everything that follows depends on, so it lands where it says or not at all
            // (CVE-2019-19921, CVE-2023-27561).
            let plain = kind != "tmpfs" || is_api_path(&mount.destination);
            let target = if plain {
                root.plain_directory(&mount.destination)
            } else {
                root.directory(&mount.destination)
            }
            .during(|| format!("mount {kind} on {target_name}"))?;
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            let filesystem = mount_api::new_filesystem(kind, source, &options, mount.set)
                .during(|| format!("make a {kind} for {target_name}"))?;
            mount_api::attach(filesystem.as_fd(), target.as_fd())
                .during(|| format!("mount {kind} on {target_name}"))
        }
        Source::Bind { path, recursive } => {
            let step = || format!("mount {} on {target_name}", path.display());
            let tree = mount_api::copy_tree(path.as_path(), *recursive).during(step)?;
            let propagation = Some(mount.propagation);
            mount_api::set_attributes(tree.as_fd(), mount.set, mount.clear, propagation, true)
                .during(step)?;
            let directory = is_directory(&tree).during(step)?;
            let target = match (is_api_path(&mount.destination), directory) {
                (true, true) => root.plain_directory(&mount.destination),
                (_, true) => root.directory(&mount.destination),
                (_, false) => root.file(&mount.destination),
            };
            mount_api::attach(tree.as_fd(), target.during(step)?.as_fd()).during(step)
        }
    }
}

fn is_api_path(path: &Path) -> bool {
    ["/dev", "/proc", "/sys"]
        .iter()
        .any(|api| path.starts_with(api))
}

fn add_nodes(root: &Root, nodes: &[Node]) -> Result<(), Failure> {
    for node in nodes {
        let step = || format!("make the device {}", node.path.display());
        let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
            return Err(Failure::refused(step()));
        };
        let parent = root.plain_directory(parent).during(step)?;
        let kind = if node.block {
            FileType::BlockDevice
        } else {
            FileType::CharacterDevice
        };
        let device = rustix::fs::makedev(node.major, node.minor);
        match rustix::fs::mknodat(&parent, name, kind, Mode::from_raw_mode(node.mode), device) {
            Ok(()) => {}
            // A /dev of the user's own choice, or the image's where no filesystem was mounted there.
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(error).during(step),
        }
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), flags).during(step)?;
    }
    Ok(())
}

/// The links in `/dev` that programs expect.
pub(crate) const DEVICE_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Makes [`DEVICE_LINKS`]; where the user put something of the same name, that stays.
fn add_links(root: &Root) {
    let Ok(dev) = root.plain_directory(Path::new("/dev")) else {
        return;
    };
    for (name, target) in DEVICE_LINKS {
        let _exists = rustix::fs::symlinkat(target, &dev, name);
    }
}

fn make_read_only(root: &Root, path: &Path) -> Result<(), Failure> {
    let step = || format!("make {} read-only", path.display());
    let Some(target) = existing(root, path).during(step)? else {
        return Ok(());
    };
    let copy = mount_api::copy_tree_of(target.as_fd(), true).during(step)?;
    let read_only = MountAttributes::MOUNT_ATTR_RDONLY;
    mount_api::set_attributes(
        copy.as_fd(),
        read_only,
        MountAttributes::empty(),
        Some(Propagation::Private),
        true,
    )
    .during(step)?;
    mount_api::attach(copy.as_fd(), target.as_fd()).during(step)
}

fn mask(root: &Root, path: &Path, null: &OwnedFd) -> Result<(), Failure> {
    let step = || format!("mask {}", path.display());
    let Some(target) = existing(root, path).during(step)? else {
        return Ok(());
    };
    let cover = if is_directory(&target).during(step)? {
        mount_api::new_filesystem(
            "tmpfs",
            "tmpfs",
            &["size=0", "mode=0755"],
            MountAttributes::MOUNT_ATTR_RDONLY,
        )
    } else {
        mount_api::copy_tree_of(null.as_fd(), false)
    };
    mount_api::attach(cover.during(step)?.as_fd(), target.as_fd()).during(step)
}

/// What is at `path`, no link followed; nothing is no error, since kernels differ in what they have.
fn existing(root: &Root, path: &Path) -> std::io::Result<Option<OwnedFd>> {
    match root.lookup_plain(path, OFlags::PATH) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes `root` the root, and drops the machine's tree from this namespace.
fn change_root(root: &Root) -> Result<(), Failure> {
    rustix::process::fchdir(root.as_fd()).during(|| "enter the new root")?;
    // The old root lands on top of the new one, where it needs no directory of its own; see pivot_root(2).
    rustix::process::pivot_root(".", ".").during(|| "change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(|| "leave the old root")?;
    rustix::process::chdir("/").during(|| "enter the new root")
}

/// Sets what `plan` says of sysctls and the like through a procfs of our own, which no mount of the image's can
/// cover (CVE-2025-52881).
pub(crate) fn write_kernel_values(plan: &Plan) -> Result<(), Failure> {
    if plan.sysctls.is_empty() && plan.oom_score_adjust.is_none() {
        return Ok(());
    }
    let proc = mount_api::new_filesystem("proc", "proc", &[], MountAttributes::empty())
        .during(|| "make a proc")?;
    for (key, value) in &plan.sysctls {
        // Names with a dot of their own, such as those of VLAN links, are written with slashes.
        let path = if key.contains('/') {
            key.clone()
        } else {
            key.replace('.', "/")
        };
        write_at(&proc, &format!("sys/{path}"), value)
            .during(|| format!("set the sysctl {key} to {value}"))?;
    }
    if let Some(adjust) = plan.oom_score_adjust {
        write_at(&proc, "1/oom_score_adj", &adjust.to_string())
            .during(|| format!("set oom_score_adj to {adjust}"))?;
    }
    Ok(())
}

fn write_at(proc: &OwnedFd, path: &str, value: &str) -> std::io::Result<()> {
    use rustix::fs::ResolveFlags;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    let path = std::ffi::OsStr::from_bytes(path.as_bytes());
    let file = rustix::fs::openat2(
        proc,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}
