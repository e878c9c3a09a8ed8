//! `/var`: the data volume, or memory where there is none.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use orlop_boot::modprobe::chain;
use orlop_boot::slot::Booted;
use orlop_disk::{Found, Request, State};
use orlop_update::live;

use super::Setup;
use crate::mountinfo;

const VAR: &str = "/var";

/// How long the configured disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// What has to be in `/var`, with its permissions when it is made.
const DIRECTORIES: &[(&str, u32)] = &[
    ("/var/lib", 0o755),
    ("/var/lib/orlop", 0o755),
    ("/var/lib/orlop/config", 0o700),
    ("/var/lib/orlop/store", 0o700),
    ("/var/lib/orlop/images", 0o700),
    ("/var/lib/orlop/containers", 0o700),
    ("/var/lib/orlop/journal", 0o755),
    ("/var/lib/orlop/ssh", 0o700),
    ("/var/log", 0o755),
    ("/var/tmp", 0o1777),
    ("/var/home", 0o755),
    ("/var/opt", 0o755),
    ("/var/srv", 0o755),
    ("/var/cache", 0o755),
    ("/var/empty", 0o755),
    ("/var/spool", 0o755),
];

/// Whose members may read the journal.
const JOURNAL_GROUP: &str = "systemd-journal";

/// Names that old programs use.
const LINKS: &[(&str, &str)] = &[("/var/run", "../run"), ("/var/lock", "../run/lock")];

/// Mounts the data volume. When that is not possible, one line says why and `/var` is in memory, so that the machine comes up
/// and the operator can look.
pub(super) fn mount_var(setup: &mut Setup) {
    if !setup.is_machine {
        return;
    }
    if let Some(name) = setup.machine.data.disk.clone() {
        let outcome = orlop_disk::resolve(&name.value.to_string(), DISK_WAIT)
            .map_err(|error| chain(&error))
            .and_then(|device| {
                ensure(
                    device,
                    setup
                        .machine
                        .data
                        .wipe
                        .as_ref()
                        .is_some_and(|wipe| wipe.value),
                )
            });
        match outcome {
            Ok(()) => return,
            Err(why) => setup.fail(format!(
                "the data volume ({}): {why}; /var is in memory",
                name.source
            )),
        }
    } else if !setup.has_source
        // Who starts a live medium may want to look at the disks, or install on them.
        && !setup.command_line.has(live::WORD)
        && let Some(device) = only_volume()
    {
        // Without a data source nothing names the disk, and the configuration to use then is kept on it.
        log::warn!(
            "setup: no data source answered; {} holds a data volume, which is used",
            device.display()
        );
        match ensure(device, false) {
            Ok(()) => return,
            Err(why) => setup.fail(format!("the data volume: {why}; /var is in memory")),
        }
    }
    if mountinfo::is_mounted(VAR) {
        return;
    }
    // Without a disk of its own the data volume is on the disk that the machine was started from.
    if setup.machine.data.disk.is_none()
        && let Some(booted) = Booted::read()
    {
        match ensure_with(orlop_disk::ensure_system_volume, booted.disk, false) {
            Ok(()) => return,
            Err(why) => setup.fail(format!("the data volume: {why}; /var is in memory")),
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if let Err(error) = mount(
        Some("var"),
        VAR,
        Some("tmpfs"),
        flags,
        Some("mode=755,size=50%"),
    ) {
        setup.fail(format!("cannot mount memory on /var: {}", error.desc()));
    }
}

fn ensure(device: PathBuf, wipe: bool) -> Result<(), String> {
    ensure_with(orlop_disk::ensure_data_volume, device, wipe)
}

fn ensure_with(
    ensure: fn(&Request) -> Result<orlop_disk::Mounted, orlop_disk::Error>,
    device: PathBuf,
    wipe: bool,
) -> Result<(), String> {
    let request = Request {
        wipe,
        ..Request::new(device)
    };
    let mounted = ensure(&request).map_err(|error| chain(&error))?;
    if mounted.checked == orlop_disk::Checked::Repaired {
        log::warn!(
            "setup: the filesystem on {} had errors, which were repaired",
            mounted.device.display()
        );
    }
    Ok(())
}

/// The only disk that holds a finished data volume.
fn only_volume() -> Option<PathBuf> {
    let mut volumes = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| !entry.path().join("partition").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            !["loop", "ram", "zram", "fd", "sr", "dm-"]
                .iter()
                .any(|kind| name.starts_with(kind))
        })
        .map(|name| Path::new("/dev").join(name.replace('!', "/")))
        .filter(|device| {
            matches!(
                orlop_disk::inspect(device),
                Ok(Found::Orlop(State::Complete { .. }))
            )
        });
    let volume = volumes.next()?;
    volumes.next().is_none().then_some(volume)
}

/// Makes what programs expect in `/var`. What is there stays as it is.
pub(super) fn make_directories(setup: &mut Setup) {
    for (path, mode) in DIRECTORIES {
        if let Err(error) = make_directory(&setup.path(path), *mode) {
            setup.fail(format!("cannot make {path}: {error}"));
        }
    }
    if let Err(error) = make_directory(&setup.path("/run/lock"), 0o1777) {
        setup.fail(format!("cannot make /run/lock: {error}"));
    }
    if let Err(error) = share_journal(&setup.path("/var/lib/orlop/journal")) {
        setup.fail(format!(
            "cannot let {JOURNAL_GROUP} read the journal: {error}"
        ));
    }
    for (path, target) in LINKS {
        match symlink(target, setup.path(path)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                setup.fail(format!("cannot make the link {path}: {error}"));
            }
            _ => {}
        }
    }
}

/// Files in the journal's directory belong to its group, so that its members can read them without being root.
fn share_journal(path: &Path) -> io::Result<()> {
    let Some(group) = crate::accounts::group(JOURNAL_GROUP) else {
        return Ok(());
    };
    let meta = fs::metadata(path)?;
    if meta.gid() == group && meta.mode() & 0o2000 != 0 {
        return Ok(());
    }
    std::os::unix::fs::chown(path, None, Some(group))?;
    fs::set_permissions(path, Permissions::from_mode(0o2755))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        // The process's mask may have taken bits away.
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
