//! `[Mount]` (`systemd.mount(5)`).

use super::confinement::plain_path;
use super::service::mode;
use super::{Directive, set};
use crate::problem::Severity;

/// A row for a boolean.
macro_rules! flag {
    ($name:literal, $field:ident) => {
        set($name, |d, a, r| r.bool(a, &mut d.mount.$field, false))
    };
}

pub(super) static MOUNT: &[Directive] = &[
    set("DirectoryMode", |d, a, r| {
        mode(&mut d.mount.directory_mode, 0o755, a, r)
    }),
    flag!("ForceUnmount", force_unmount),
    flag!("LazyUnmount", lazy_unmount),
    set("Options", |d, a, r| {
        let Some(text) = r.text(a, Severity::Warning) else {
            return;
        };
        // Several lines add up.
        if text.is_empty() {
            d.mount.options.clear();
        } else if d.mount.options.is_empty() {
            d.mount.options = text.into_owned();
        } else {
            d.mount.options = format!("{},{text}", d.mount.options);
        }
    }),
    flag!("ReadWriteOnly", read_write_only),
    flag!("SloppyOptions", sloppy_options),
    set("TimeoutSec", |d, a, r| {
        r.span(a, &mut d.written.timeout_start)
    }),
    set("Type", |d, a, r| {
        r.option(a, &mut d.mount.fs_type, "a file system", |t| {
            Some(t.to_owned())
        });
    }),
    set("What", |d, a, r| {
        let what = &mut d.mount.what;
        r.value(a, what, String::new(), "a device", |t| Some(t.to_owned()));
    }),
    set("Where", |d, a, r| {
        let place = &mut d.mount.place;
        r.value(a, place, String::new(), "a plain absolute path", plain_path);
    }),
];
