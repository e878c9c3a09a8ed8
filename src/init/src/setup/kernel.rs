//! Modules, kernel parameters and the loopback link.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use orlop_boot::modprobe::chain;
use orlop_boot::modules::Loader;

use super::Setup;

const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// Loads the modules whose parameters are set, sizes the table of tracked connections, then sets the parameters.
pub(super) fn apply(setup: &mut Setup) {
    if setup.is_machine && !setup.plan.modules.is_empty() {
        load_modules(setup);
    }
    if let Some(buckets) = setup.plan.conntrack_buckets.clone()
        && let Err(error) = write(&setup.path(HASH_SIZE), &buckets.value.to_string())
    {
        setup.fail(format!(
            "{}: cannot set the hash size of connection tracking to {}: {error}",
            buckets.source, buckets.value
        ));
    }
    for sysctl in setup.plan.sysctls.clone() {
        if let Err(error) = write(&setup.path(&sysctl.path), &sysctl.value) {
            let why = match error.kind() {
                io::ErrorKind::NotFound => "this kernel has no such parameter".to_owned(),
                _ => error.to_string(),
            };
            setup.fail(format!(
                "{}: cannot set the sysctl {} to {:?}: {why}",
                sysctl.source, sysctl.key, sysctl.value
            ));
        }
    }
}

fn load_modules(setup: &mut Setup) {
    let mut loader = match Loader::open(setup.command_line.clone()) {
        Ok(loader) => loader,
        Err(error) => {
            return setup.fail(format!(
                "cannot load {}: {}",
                setup.plan.modules.join(", "),
                chain(&error)
            ));
        }
    };
    for module in setup.plan.modules.clone() {
        if let Err(error) = loader.load(&module) {
            setup.fail(chain(&error));
        }
    }
}

/// One write, as the kernel's files want it, and never a new file. A value that is there already is not written: the hash
/// table would be built anew.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut there = String::new();
    let is_read = File::open(path).and_then(|file| file.take(4096).read_to_string(&mut there));
    if is_read.is_ok() && there.split_whitespace().eq(value.split_whitespace()) {
        return Ok(());
    }
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)?
        .write_all(format!("{value}\n").as_bytes())
}

/// Sets `lo` up.
pub(super) fn loopback(setup: &mut Setup) {
    if setup.is_machine
        && let Err(error) = orlop_sys::loopback::set_up()
    {
        setup.fail(format!("cannot set the loopback link up: {error}"));
    }
}
