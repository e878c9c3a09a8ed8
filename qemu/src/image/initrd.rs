//! The initramfs: the root as it is, then the boot stage compressed.
//!
//! Two archives behind one another. The first holds the root's image, which is compressed inside, so that the kernel copies it
//! instead of inflating it; the second holds the binary as `/init` and the early modules.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::cpio::Archive;
use super::kernel::Kernel;
use super::{Options, Project, lists};

/// How the boot stage's archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Smallest: for distribution.
    Zstd,
    /// Quickest to make and to unpack: for tests.
    Lz4,
}

impl Compression {
    fn command(self) -> Command {
        let (program, arguments): (_, &[&str]) = match self {
            Self::Zstd => ("zstd", &["-19", "-T0", "-q", "-c"]),
            // The kernel reads only the legacy frame.
            Self::Lz4 => ("lz4", &["-l", "-9", "-q", "-c"]),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }
}

/// Where an initramfs is made from.
#[derive(Debug)]
pub(super) struct Sources<'a> {
    pub(super) project: &'a Project,
    pub(super) kernel: &'a Kernel,
    pub(super) binary: &'a Path,
    pub(super) root: &'a Path,
    pub(super) tree: &'a Path,
}

/// What an initramfs is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A start over the network, or from a disk with nothing but a root.
    Net,
    /// A start from a slot.
    Disk,
}

pub(super) fn make(
    sources: &Sources<'_>,
    options: &Options,
    purpose: Purpose,
    path: &Path,
) -> Result<()> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut bytes = Vec::new();
    if options.carry_root && purpose == Purpose::Net {
        let mut carried = Archive::new();
        carried.file(orlop_boot::CARRIED_ROOT, 0o400, read(sources.root)?);
        bytes = carried.finish();
    }

    let mut stage = Archive::new();
    for directory in ["dev", "proc", "sys", "run", "sysroot"] {
        stage.directory(directory, 0o755);
    }
    // The kernel opens it for the standard input and output of the first process, before devtmpfs is mounted.
    stage.character_device("dev/console", 0o600, 5, 1);
    stage.file("init", 0o755, read(sources.binary)?);
    stage.link("sbin/modprobe", "../init");
    stage.file(
        orlop_boot::INITRD_RELEASE,
        0o644,
        read(&sources.tree.join("usr/lib/os-release"))?,
    );
    let mut names = sources
        .project
        .module_names(options.machine, "modules.early")?;
    if purpose == Purpose::Disk {
        names.extend(lists::names(&sources.project.path("rootfs/modules.disk"))?);
    }
    let selection = sources.kernel.select(&names, true)?;
    let directory = sources.kernel.directory();
    for module in selection.index.modules() {
        stage.file(
            &format!("{directory}/{}", module.path),
            0o644,
            read(&sources.kernel.file(&module.path))?,
        );
    }
    stage.file(
        &format!("{directory}/{}", orlop_boot::index::FILE_NAME),
        0o644,
        selection.text.into_bytes(),
    );
    if options.rescue {
        stage.file(
            "bin/busybox",
            0o755,
            read(&sources.tree.join("usr/bin/busybox"))?,
        );
        stage.link("bin/sh", "busybox");
    }
    bytes.extend_from_slice(&compress(stage.finish(), options.compression)?);
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

fn compress(input: Vec<u8>, compression: Compression) -> Result<Vec<u8>> {
    let mut command = compression.command();
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the compressor")?;
    // On a thread of its own: the compressor's output must be read while its input is written.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child
        .wait_with_output()
        .with_context(|| format!("run {program}"))?;
    match writer.join() {
        Ok(written) => written.with_context(|| format!("write to {program}"))?,
        Err(_) => bail!("the writer to {program} panicked"),
    }
    if !output.status.success() {
        bail!("{program} failed: {}", output.status);
    }
    Ok(output.stdout)
}
