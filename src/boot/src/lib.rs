//! The initramfs stage: modules, devices, the root, the switch to it.

use std::process::ExitCode;

/// The file whose presence tells that this root is an initramfs.
pub const INITRD_RELEASE: &str = "/etc/initrd-release";

/// Runs the initramfs stage; returns only when it failed.
pub fn run() -> ExitCode {
    ExitCode::FAILURE
}
