//! Keys that other systems know, with what to do here instead.

use crate::field::unknown_key;
use crate::node::{Node, Reader, Value};

/// Keys of coreos-cloudinit that stand elsewhere in the native form.
const MOVED: [(&str, &str); 4] = [
    ("fleet", "fleet"),
    ("units", "units"),
    ("etcd2", "store"),
    ("etcd", "store"),
];

/// Keys of coreos-cloudinit and cloud-init that are understood but have no effect, and what to do instead.
const NO_EFFECT: &[(&str, &str)] = &[
    ("bootcmd", "write a oneshot unit under units instead"),
    ("runcmd", "write a oneshot unit under units instead"),
    (
        "packages",
        "the image is immutable: run the program in a container",
    ),
    ("package_update", "the image is immutable"),
    ("package_upgrade", "the image is immutable"),
    (
        "coreos.write_files",
        "write_files stands at the top, not below coreos",
    ),
    (
        "coreos.hostname",
        "hostname stands at the top, not below coreos",
    ),
    ("coreos.users", "users stands at the top, not below coreos"),
    (
        "coreos.ssh_authorized_keys",
        "ssh_authorized_keys stands at the top, not below coreos",
    ),
    (
        "fleet.agent_ttl",
        "write LostAfter= in the [X-Fleet] section of units instead",
    ),
    (
        "fleet.engine_reconcile_interval",
        "changes are acted on as they come",
    ),
    (
        "fleet.etcd_key_prefix",
        "the keys are those of docs/fleet-keys.md",
    ),
    (
        "fleet.etcd_request_timeout",
        "requests are made again until they are done",
    ),
    (
        "fleet.verbosity",
        "the log is that of fleet.service: journalctl -u fleet",
    ),
    ("fleet.verify_units", "units are not signed"),
    (
        "store.discovery_srv",
        "names in DNS are not asked for: give store.token and store.join, or store.discovery",
    ),
    (
        "store.proxy",
        "with store.token a machine passes its clients on when there are five members, and with store.discovery when its places are taken",
    ),
    ("store.data_dir", "the data is in /var/lib/orlop/store"),
    ("fqdn", "use hostname"),
    ("mounts", "write a .mount unit under units instead"),
    ("ntp", "the clock is set by Orlop itself"),
    (
        "users.sudo",
        "add the user to the group sudo under groups instead",
    ),
    ("users.lock_passwd", "logins over SSH take keys alone"),
    (
        "users.ssh_import_id",
        "write the keys under ssh_authorized_keys",
    ),
    (
        "users.coreos_ssh_import_github",
        "write the keys under ssh_authorized_keys",
    ),
    ("write_files.source", "write the content here"),
];

/// What to do instead of using the key at `path`.
pub(crate) fn hint(path: &str) -> Option<&'static str> {
    NO_EFFECT
        .iter()
        .find(|(key, _)| *key == path)
        .map(|(_, hint)| *hint)
}

/// Lifts what stands below `coreos:` to where the native form has it, and reports the rest.
pub(crate) fn lift_coreos(root: &mut Node, reader: &mut Reader<'_>) {
    let Value::Map(entries) = &mut root.value else {
        return;
    };
    let mut lifted = Vec::new();
    entries.retain_mut(|entry| {
        if entry.key != "coreos" {
            return true;
        }
        reader.within("coreos", |reader| {
            match std::mem::replace(&mut entry.node.value, Value::Null) {
                Value::Null => {}
                Value::Map(below) => {
                    for mut key in below {
                        match MOVED.iter().find(|(from, _)| *from == key.key) {
                            Some((_, to)) => {
                                key.key = (*to).to_owned();
                                lifted.push(key);
                            }
                            None => unknown_key(&key, &MOVED.map(|(from, _)| from), reader),
                        }
                    }
                }
                value => {
                    entry.node.value = value;
                    reader.wrong_type(&entry.node, "a mapping");
                }
            }
        });
        false
    });
    entries.append(&mut lifted);
}
