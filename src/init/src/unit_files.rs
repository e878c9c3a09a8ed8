//! The unit files of this machine, as the unit loader wants to see them.

use std::fs;

use crate::text;
use orlop_unit::{Entry, EntryKind, SpecifierContext, UnitStore};

/// Where unit files lie, the highest precedence first.
pub const DIRECTORIES: &[&str] = &[
    "/etc/systemd/system",
    "/etc/containers/systemd",
    "/run/systemd/system",
    "/run/fleet/units",
    "/usr/lib/orlop/units",
    "/usr/lib/systemd/system",
];

/// The real file system.
#[derive(Clone, Copy, Debug)]
pub struct Files;

impl UnitStore for Files {
    fn read(&self, path: &str) -> Option<String> {
        text::read(path).ok()
    }

    fn list(&self, directory: &str) -> Vec<Entry> {
        let Ok(entries) = fs::read_dir(directory) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let kind = entry.file_type().ok()?;
                Some(Entry {
                    name: entry.file_name().into_string().ok()?,
                    kind: if kind.is_symlink() {
                        EntryKind::Link
                    } else if kind.is_dir() {
                        EntryKind::Directory
                    } else {
                        EntryKind::File
                    },
                })
            })
            .collect()
    }

    fn link_target(&self, path: &str) -> Option<String> {
        fs::read_link(path)
            .ok()?
            .into_os_string()
            .into_string()
            .ok()
    }
}

/// What specifiers stand for on this machine.
#[must_use]
pub fn specifiers() -> SpecifierContext {
    let line = |path: &str| text::read(path).unwrap_or_default().trim().to_owned();
    let release = text::read("/etc/os-release").unwrap_or_default();
    let field = |key: &str| {
        release
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix('='))
            .map(|v| v.trim_matches('"').to_owned())
            .unwrap_or_default()
    };
    SpecifierContext {
        architecture: "x86-64".to_owned(),
        image_version: field("IMAGE_VERSION"),
        boot_id: line("/proc/sys/kernel/random/boot_id").replace('-', ""),
        build_id: field("BUILD_ID"),
        hostname: line("/proc/sys/kernel/hostname"),
        machine_id: line("/etc/machine-id"),
        image_id: field("IMAGE_ID"),
        os_id: field("ID"),
        pretty_hostname: String::new(),
        kernel_release: line("/proc/sys/kernel/osrelease"),
        version_id: field("VERSION_ID"),
        variant_id: field("VARIANT_ID"),
    }
}
