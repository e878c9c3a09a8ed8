//! Targets that exist without a file, so that old units which name them find them. A file of the same name wins.

/// Name and text, sorted by name. What a real machine needs of them is in the image's own files.
const TARGETS: &[(&str, &str)] = &[
    (
        "basic.target",
        "[Unit]\nDescription=Basic System\nRequires=sysinit.target\nAfter=sysinit.target sockets.target paths.target timers.target slices.target\nWants=sockets.target paths.target timers.target slices.target\n",
    ),
    (
        "cryptsetup.target",
        "[Unit]\nDescription=Local Encrypted Volumes\nDefaultDependencies=no\n",
    ),
    (
        "final.target",
        "[Unit]\nDescription=Late Shutdown Services\nDefaultDependencies=no\nAfter=shutdown.target umount.target\n",
    ),
    ("getty.target", "[Unit]\nDescription=Login Prompts\n"),
    (
        "graphical.target",
        "[Unit]\nDescription=Graphical Interface\nRequires=multi-user.target\nAfter=multi-user.target\nAllowIsolate=yes\n",
    ),
    (
        "halt.target",
        "[Unit]\nDescription=System Halt\nDefaultDependencies=no\nRequires=shutdown.target umount.target final.target\nAfter=shutdown.target umount.target final.target\nAllowIsolate=yes\n",
    ),
    (
        "local-fs-pre.target",
        "[Unit]\nDescription=Preparation for Local File Systems\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "local-fs.target",
        "[Unit]\nDescription=Local File Systems\nDefaultDependencies=no\nAfter=local-fs-pre.target\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    ("machines.target", "[Unit]\nDescription=Containers\n"),
    (
        "multi-user.target",
        "[Unit]\nDescription=Multi-User System\nRequires=basic.target\nAfter=basic.target\nConflicts=rescue.target\nAllowIsolate=yes\n",
    ),
    (
        "network-online.target",
        "[Unit]\nDescription=Network is Online\nAfter=network.target\n",
    ),
    (
        "network-pre.target",
        "[Unit]\nDescription=Preparation for Network\n",
    ),
    (
        "network.target",
        "[Unit]\nDescription=Network\nAfter=network-pre.target\n",
    ),
    (
        "nss-lookup.target",
        "[Unit]\nDescription=Host and Network Name Lookups\n",
    ),
    (
        "nss-user-lookup.target",
        "[Unit]\nDescription=User and Group Name Lookups\n",
    ),
    (
        "paths.target",
        "[Unit]\nDescription=Path Units\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "poweroff.target",
        "[Unit]\nDescription=System Power Off\nDefaultDependencies=no\nRequires=shutdown.target umount.target final.target\nAfter=shutdown.target umount.target final.target\nAllowIsolate=yes\n",
    ),
    (
        "reboot.target",
        "[Unit]\nDescription=System Reboot\nDefaultDependencies=no\nRequires=shutdown.target umount.target final.target\nAfter=shutdown.target umount.target final.target\nAllowIsolate=yes\n",
    ),
    (
        "remote-fs-pre.target",
        "[Unit]\nDescription=Preparation for Remote File Systems\n",
    ),
    (
        "remote-fs.target",
        "[Unit]\nDescription=Remote File Systems\n",
    ),
    (
        "rescue.target",
        "[Unit]\nDescription=Rescue Mode\nRequires=sysinit.target\nAfter=sysinit.target\nAllowIsolate=yes\n",
    ),
    ("rpcbind.target", "[Unit]\nDescription=RPC Port Mapper\n"),
    (
        "shutdown.target",
        "[Unit]\nDescription=System Shutdown\nDefaultDependencies=no\n",
    ),
    (
        "slices.target",
        "[Unit]\nDescription=Slice Units\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "sockets.target",
        "[Unit]\nDescription=Socket Units\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "swap.target",
        "[Unit]\nDescription=Swaps\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "sysinit.target",
        "[Unit]\nDescription=System Initialization\nDefaultDependencies=no\nWants=local-fs.target\nAfter=local-fs.target\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    ("time-set.target", "[Unit]\nDescription=System Time Set\n"),
    (
        "time-sync.target",
        "[Unit]\nDescription=System Time Synchronized\nAfter=time-set.target\n",
    ),
    (
        "timers.target",
        "[Unit]\nDescription=Timer Units\nDefaultDependencies=no\nConflicts=shutdown.target\nBefore=shutdown.target\n",
    ),
    (
        "umount.target",
        "[Unit]\nDescription=Unmount All File Systems\nDefaultDependencies=no\n",
    ),
];

/// Second names of the targets above.
const ALIASES: &[(&str, &str)] = &[
    ("ctrl-alt-del.target", "reboot.target"),
    ("default.target", "multi-user.target"),
    ("runlevel0.target", "poweroff.target"),
    ("runlevel3.target", "multi-user.target"),
    ("runlevel6.target", "reboot.target"),
];

/// The text of a target that needs no file.
pub(crate) fn target(name: &str) -> Option<&'static str> {
    let index = TARGETS.binary_search_by(|(n, _)| (*n).cmp(name)).ok()?;
    TARGETS.get(index).map(|(_, text)| *text)
}

/// The target that a name stands for when no file bears it.
pub(crate) fn alias(name: &str) -> Option<&'static str> {
    ALIASES
        .iter()
        .find(|(alias, _)| *alias == name)
        .map(|(_, target)| *target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_aliases_lead_into_it() {
        assert!(TARGETS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(ALIASES.iter().all(|(_, name)| target(name).is_some()));
    }
}
