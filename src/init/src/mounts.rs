//! The kernel's own filesystems that the boot stage did not leave, the links of `/dev`, and the first control groups.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use orlop_boot::modprobe::chain;
use orlop_boot::mounts::{API, Api, When, directory, mount_one};

use crate::cgroup::CONTROLLERS;
use crate::{mountinfo, text};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The groups under which units and containers have theirs.
const SLICES: [&str; 2] = ["system.slice", "machine.slice"];

/// Where the machine's own process goes when the root of its hierarchy may not hold one.
const INIT_GROUP: &str = "init.scope";

/// What POSIX shells and programs expect in `/dev` (systemd's `dev-setup.c` makes the same).
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Mounts what is not mounted yet, and makes `/run/orlop`, the links of `/dev` and the groups of units and containers.
///
/// Returns a line for each thing that is missing now; none of them ends the start.
#[must_use]
pub fn mount_all() -> Vec<String> {
    let mut problems = Vec::new();
    let mut mounted = mounted();
    let mut known = known_filesystems();
    for api in API {
        if mounted.contains(api.target) {
            continue;
        }
        // Asking the kernel to mount what it does not have makes it look for a module.
        if api.when == When::Optional && !known.contains(api.filesystem) {
            continue;
        }
        if let Err(problem) = mount_api(api) {
            problems.extend(problem);
        }
        if api.target == "/proc" {
            mounted = self::mounted();
            known = known_filesystems();
        }
    }
    if let Err(error) = directory("/run/orlop") {
        problems.push(chain(&error));
    }
    for (link, target) in DEVICE_LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                problems.push(format!("cannot make the link {link}: {error}"));
            }
            _ => {}
        }
    }
    make_groups(Path::new(CGROUP_ROOT), &mut problems);
    problems
}

/// An error without a text is one that nobody has to know.
fn mount_api(api: &Api) -> Result<(), Option<String>> {
    let optional = api.when == When::Optional;
    if !Path::new(api.target).is_dir()
        && let Err(error) = directory(api.target)
    {
        return Err((!optional).then(|| chain(&error)));
    }
    match mount_one(api) {
        Ok(()) => Ok(()),
        Err(_) if optional => Err(None),
        Err(error) => Err(Some(chain(&error))),
    }
}

fn mounted() -> HashSet<String> {
    mountinfo::read()
        .into_iter()
        .map(|mount| mount.target)
        .collect()
}

/// The types that the kernel can mount without loading a module (filesystems(5)).
fn known_filesystems() -> HashSet<String> {
    text::read("/proc/filesystems")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.split_whitespace().next_back()?.to_owned()))
        .collect()
}

/// Makes the groups of units and containers, with the controllers that all of them have.
fn make_groups(root: &Path, problems: &mut Vec<String>) {
    if !root.join("cgroup.controllers").exists() {
        return;
    }
    if enable_controllers(root) == Err(nix::errno::Errno::EBUSY) {
        // Not the root of all groups, as in a container: there a group with members may not pass on its controllers.
        let group = root.join(INIT_GROUP);
        let moved =
            fs::create_dir_all(&group).and_then(|()| fs::write(group.join("cgroup.procs"), b"0"));
        if let Err(error) = moved {
            problems.push(format!("cannot move to {}: {error}", group.display()));
        }
    }
    for group in [None].into_iter().chain(SLICES.map(Some)) {
        let path = group.map_or_else(|| root.to_owned(), |group| root.join(group));
        let made = match group {
            Some(_) => fs::create_dir_all(&path),
            None => Ok(()),
        };
        let outcome = made.and_then(|()| enable_controllers(&path).map_err(io::Error::from));
        if let Err(error) = outcome {
            problems.push(format!(
                "the controllers of {} are not enabled: {error}",
                path.display()
            ));
        }
    }
}

/// Enables those controllers for the groups below it that the kernel has; the first error counts, the others go on.
fn enable_controllers(group: &Path) -> Result<(), nix::errno::Errno> {
    let controllers = text::read(group.join("cgroup.controllers")).unwrap_or_default();
    let file = group.join("cgroup.subtree_control");
    let enabled = text::read(&file).unwrap_or_default();
    let mut outcome = Ok(());
    for controller in CONTROLLERS {
        if !controllers.split_whitespace().any(|c| c == controller) {
            continue;
        }
        if enabled.split_whitespace().any(|e| e == controller) {
            continue;
        }
        let written = fs::write(&file, format!("+{controller}"))
            .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default()));
        outcome = outcome.and(written);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filesystem_lies_in_one_that_was_mounted_before_it() {
        for (at, api) in API.iter().enumerate() {
            let parent = Path::new(api.target).parent().unwrap();
            let is_there = |other: &Api| {
                Path::new(other.target) != Path::new("/") && parent.starts_with(other.target)
            };
            assert!(
                parent == Path::new("/") || API[..at].iter().any(is_there),
                "{}",
                api.target
            );
            assert_eq!(
                API.iter()
                    .filter(|other| other.target == api.target)
                    .count(),
                1,
                "{}",
                api.target
            );
        }
    }

    #[test]
    fn what_the_boot_stage_mounts_stands_before_what_init_adds() {
        let first_late = API.iter().position(|api| api.when != When::Early).unwrap();
        assert!(API[first_late..].iter().all(|api| api.when != When::Early));
        assert!(!API.iter().any(|api| api.flags.is_empty()));
    }
}
