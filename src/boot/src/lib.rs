//! The initramfs stage: modules, devices, the root, the switch to it.
//!
//! The stage reads top to bottom in `stage.rs`. What it shares with the running system, and with the builder of images, is
//! the [`index`] of kernel modules and the [`modprobe`] applet over it.

pub mod cmdline;
pub mod coldplug;
pub mod devices;
pub mod disks;
pub mod entries;
pub mod esp;
pub mod failure;
pub mod gate;
pub mod gpt;
pub mod index;
pub mod little_endian;
pub mod menu;
pub mod modprobe;
pub mod modules;
pub mod mounts;
pub mod pe;
pub mod pstore;
pub mod slot;
pub mod times;
pub mod trials;
pub mod verity;

mod root;
mod stage;
mod switch;

pub use stage::run;

/// The file whose presence tells that this root is an initramfs.
pub const INITRD_RELEASE: &str = "/etc/initrd-release";

/// The erofs volume label by which a root on a disk is known.
pub const ROOT_LABEL: &str = "orlop-root";

/// After so many seconds without food the watchdog resets the machine.
pub const WATCHDOG_TIMEOUT_S: u32 = 60;

/// Where a netboot initrd carries the root, as an erofs image.
pub const CARRIED_ROOT: &str = "/root.erofs";
