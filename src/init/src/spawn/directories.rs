//! The directories that a unit is given, and what is left of them when it is gone.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use orlop_sys::ipc::Kind;
use orlop_unit::{Directories, Service, Unit};

use super::identity::{Identity, unit_user};
use super::{Failure, start_role};
use crate::text;

/// A kind of directory that services are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryKind {
    pub(super) variable: &'static str,
    pub(super) root: &'static str,
}

pub(super) const CONFIGURATION: DirectoryKind = DirectoryKind {
    variable: "CONFIGURATION_DIRECTORY",
    root: "/etc",
};

pub(super) fn directories(service: &Service) -> [(DirectoryKind, &Directories); 5] {
    let kind = |variable, root| DirectoryKind { variable, root };
    [
        (
            kind("RUNTIME_DIRECTORY", "/run"),
            &service.runtime_directory,
        ),
        (
            kind("STATE_DIRECTORY", "/var/lib"),
            &service.state_directory,
        ),
        (
            kind("CACHE_DIRECTORY", "/var/cache"),
            &service.cache_directory,
        ),
        (kind("LOGS_DIRECTORY", "/var/log"), &service.logs_directory),
        (CONFIGURATION, &service.configuration_directory),
    ]
}

pub(super) fn own_directories(service: &Service) -> impl Iterator<Item = (DirectoryKind, String)> {
    directories(service)
        .into_iter()
        .flat_map(|(kind, directories)| {
            let paths = directories.paths.iter();
            paths.map(move |path| (kind, format!("{}/{path}", kind.root)))
        })
}

pub(super) fn make_directories(service: &Service, user: Option<&Identity>) -> Result<(), Failure> {
    for (kind, directories) in directories(service) {
        for path in &directories.paths {
            let path = format!("{}/{path}", kind.root);
            let made = fs::create_dir_all(&path)
                .and_then(|()| {
                    fs::set_permissions(&path, fs::Permissions::from_mode(directories.mode))
                })
                .and_then(|()| match user {
                    // What a dynamic user is given may have been another's, and is handed over whole by the helper.
                    Some(user) if kind != CONFIGURATION && !service.confinement.dynamic_user => {
                        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))
                    }
                    _ => Ok(()),
                });
            made.map_err(|err| Failure::resources(format!("cannot make {path}: {err}")))?;
        }
    }
    Ok(())
}

/// Removes what a unit that went down leaves behind: what `RuntimeDirectory=` made, and what its processes alone shared.
pub fn clean_up(unit: &Unit, service: &Service, keeps_directories: bool, is_restarting: bool) {
    let paths = service.runtime_directory.paths.iter();
    for path in paths.filter(|_| !keeps_directories) {
        // One that is not empty any more is removed as well, as systemd does; one that is gone needs nothing.
        let _ = fs::remove_dir_all(Path::new("/run").join(path));
    }
    let c = &service.confinement;
    if c.private_network || c.private_ipc {
        for kind in ["net", "ipc"] {
            let path = format!("{NAMESPACES}/{}.{kind}", unit.name.as_str());
            // It may never have come to be.
            let _ = nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&path);
        }
    }
    if has_credentials(service) {
        let path = credentials_directory(unit);
        let _ = nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&path);
    }
    if !is_restarting
        && (service.remove_ipc || c.dynamic_user)
        && let Ok(Some(user)) = unit_user(unit, service)
        && user.uid != 0
        && are_ipc_objects_left()
    {
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        // What stays is in nobody's way until the next boot.
        let _ = start_role(&["confine", "--remove-ipc", &uid, &gid]);
    }
    if c.private_tmp {
        let stamp = orlop_boot::times::now_ns();
        let mut words = vec!["confine".to_owned(), "--remove".to_owned()];
        for path in private_directories(unit) {
            // Out of the way of the next start at once; another process has the time to remove what may be a lot.
            let gone = format!("{path}.{stamp}");
            if fs::rename(&path, &gone).is_ok() {
                words.push(gone);
            }
        }
        if words.len() > 2 {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            // What stays is gone with the next boot from /tmp, and a few files in /var/tmp harm nobody.
            let _ = start_role(&words);
        }
    }
}

/// Whether there are IPC objects of anybody: most machines have none, and to look takes less than another process.
fn are_ipc_objects_left() -> bool {
    // The first line names the columns (proc_sysvipc(5)).
    let is_listed = |list: &str| text::read(list).is_ok_and(|text| text.lines().nth(1).is_some());
    let is_used =
        |directory: &str| fs::read_dir(directory).is_ok_and(|mut all| all.next().is_some());
    Kind::ALL.iter().any(|(_, list)| is_listed(list))
        || ["/dev/shm", "/dev/mqueue"].into_iter().any(is_used)
}

pub(super) fn has_credentials(service: &Service) -> bool {
    let c = &service.confinement;
    !c.load_credential.is_empty() || !c.set_credential.is_empty()
}

/// Where a unit finds its credentials, as the specifier `%d` says it.
pub(super) fn credentials_directory(unit: &Unit) -> String {
    format!("/run/credentials/{}", unit.name.as_str())
}

/// Where the namespaces are that processes of a unit share.
pub(super) const NAMESPACES: &str = "/run/orlop/namespaces";

pub(super) fn private_directories(unit: &Unit) -> [String; 2] {
    ["/tmp", "/var/tmp"].map(|path| format!("{path}/orlop-private/{}", unit.name.as_str()))
}
