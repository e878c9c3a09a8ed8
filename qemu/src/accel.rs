//! Which accelerator QEMU can really use here.

use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::process::{self, Owned};

/// How the guest's processor is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor's own virtualisation.
    Kvm,
    /// Translation, which works everywhere.
    Tcg,
}

impl Accel {
    /// The name for QEMU's `-accel`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// KVM where a guest gets to print something with it in two seconds, otherwise TCG.
///
/// That `/dev/kvm` can be opened says little: on hosts that are guests themselves the first instruction may never end.
/// Looked at once a process.
pub fn probe() -> Accel {
    static FOUND: OnceLock<Accel> = OnceLock::new();
    *FOUND.get_or_init(|| if kvm_runs() { Accel::Kvm } else { Accel::Tcg })
}

fn kvm_runs() -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let mut command = process::bound("qemu-system-x86_64");
    // Without graphics the firmware greets on the serial line.
    command.args([
        "-accel",
        "kvm",
        "-cpu",
        "max",
        "-M",
        "q35,sata=off,graphics=off",
        "-m",
        "64",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
    ]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let Ok(child) = process::spawn(command) else {
        return false;
    };
    let mut child = Owned(child);
    let Some(mut output) = child.0.stdout.take() else {
        return false;
    };
    let (sender, printed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut first = [0; 1];
        let _ = sender.send(std::io::Read::read_exact(&mut output, &mut first).is_ok());
    });
    let deadline = Instant::now() + Duration::from_secs(2);
    printed
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .unwrap_or(false)
}
