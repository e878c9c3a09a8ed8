//! Builds what Orlop boots from: kernel, initramfs, the slot with its verified root, disks; and a bare root for tests.
//!
//! Everything comes from Debian packages, the files below `rootfs/` and the binary; the same inputs give the same bytes. A
//! build whose inputs have not changed does nothing.

mod bare;
mod cpio;
mod disk;
mod elf;
mod erofs;
mod initrd;
mod kernel;
mod lists;
mod live;
mod packages;
mod qcow2;
mod release;
mod rival;
mod stamp;
mod tree;
mod uki;
mod update;
mod verity;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

pub use bare::{Bare, bare};
use initrd::Purpose;

pub use cpio::Archive;
pub use disk::{LAYOUT, Layout, Place, Slot, make as make_disk};
pub use initrd::Compression;
pub use release::{slot, version};
pub use rival::{Rival, rival};
pub use update::{Key, list, payload};

/// Where the project's files are and where its products go.
#[derive(Debug, Clone)]
pub struct Project {
    /// The top of the work tree.
    pub root: PathBuf,
}

impl Project {
    /// The project that this program was built from.
    #[must_use]
    pub fn here() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            root: manifest.parent().unwrap_or(manifest).to_owned(),
        }
    }

    /// A path below the work tree.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The words of a list of modules: the common one's, then those of the kind's own, where it has one.
    fn module_names(&self, machine: MachineKind, list: &str) -> Result<Vec<String>> {
        let mut names = lists::names(&self.path("rootfs").join(list))?;
        let own = self.path("rootfs").join(machine.name()).join(list);
        if own.exists() {
            names.extend(lists::names(&own)?);
        }
        Ok(names)
    }

    /// The kernel command line of `boot/cmdline`, its comments left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn kernel_command_line(&self) -> Result<String> {
        let words: Vec<String> = lists::read(&self.path("boot/cmdline"))?
            .into_iter()
            .flat_map(|line| line.words)
            .collect();
        Ok(words.join(" "))
    }
}

/// What kind of machine an image is for: which kernel, and which drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineKind {
    /// Guests.
    Virtual,
    /// Servers.
    Metal,
}

impl MachineKind {
    /// The directory below `rootfs/` with what is its own.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Virtual => "virtual",
            Self::Metal => "metal",
        }
    }
}

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cargo profile of the binary, unless `binary` names one that exists.
    pub build: String,
    /// A binary built elsewhere.
    pub binary: Option<PathBuf>,
    /// What it is built for.
    pub machine: MachineKind,
    /// How the initramfs is compressed.
    pub compression: Compression,
    /// Put the root into the initramfs; without it the boot stage looks for a disk with the root's label.
    pub carry_root: bool,
    /// Carry busybox in the initramfs, for `orlop.rescue`.
    pub rescue: bool,
    /// Where the products go.
    pub output: PathBuf,
}

/// The files that a build leaves.
#[derive(Debug, Clone)]
pub struct Products {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, the root inside.
    pub initrd: PathBuf,
    /// The root by itself, for a disk.
    pub root: PathBuf,
    /// The binary.
    pub binary: PathBuf,
    /// The initramfs for starts from a slot.
    pub disk_initrd: PathBuf,
    /// systemd-boot.
    pub loader: PathBuf,
    /// The stub of Unified Kernel Images.
    pub stub: PathBuf,
    /// The disk, as it is.
    pub disk: PathBuf,
    /// The disk as qcow2.
    pub qcow2: PathBuf,
    /// The disk compressed, for downloads.
    pub compressed_disk: PathBuf,
    /// The medium that boots live and installs.
    pub iso: PathBuf,
    /// iPXE's script, to be served beside kernel and initramfs.
    pub ipxe: PathBuf,
    /// What all of this is made of.
    pub materials: PathBuf,
    /// What brings the version to machines that have another one.
    pub payload: PathBuf,
    /// The list of payloads, `latest.json`; its signature is beside it.
    pub list: PathBuf,
}

/// Builds the image, or finds that it is up to date.
///
/// # Errors
/// A package that cannot be had, a tool that is missing or fails, a list that names what does not exist.
pub fn image(project: &Project, options: &Options) -> Result<Products> {
    let named = |kind: &str| options.output.join(format!("orlop-{}.{kind}", version()));
    let products = Products {
        kernel: options.output.join("vmlinuz"),
        initrd: options.output.join("initrd"),
        root: options.output.join("root.erofs"),
        binary: options.output.join("orlop"),
        disk_initrd: options.output.join("initrd.disk"),
        loader: options.output.join("systemd-bootx64.efi"),
        stub: options.output.join("linuxx64.efi.stub"),
        disk: options.output.join("orlop.raw"),
        qcow2: options.output.join("orlop.qcow2"),
        compressed_disk: options.output.join("orlop.raw.zst"),
        iso: named("iso"),
        ipxe: options.output.join("orlop.ipxe"),
        materials: options.output.join("sbom.cdx.json"),
        payload: named("update"),
        list: options.output.join("latest.json"),
    };
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => step("binary", || build_binary(project, &options.build))?,
    };
    let _lock = lock(project)?;
    let kind = options.machine.name();
    let mut wanted = lists::packages(&project.path(&format!("rootfs/{kind}/packages")))?;
    wanted.extend(lists::packages(&project.path("rootfs/packages"))?);
    let debs = step("packages", || {
        packages::fetch(&project.path("build/debs"), &wanted)
    })?;

    let key = Key::of_project(project)?;

    let mut stamp = stamp::Stamp::new();
    stamp.text(&key.file().1);
    // What builds, not the program that it is linked into: the tests' is another one than ours.
    stamp.file(&project.path("qemu/src/image.rs"))?;
    for sources in ["qemu/src/image", "src/boot/src", "src/update/src"] {
        stamp.tree(&project.path(sources))?;
    }
    stamp.file(&binary)?;
    stamp.tree(&project.path("rootfs"))?;
    stamp.tree(&project.path("boot"))?;
    for deb in &debs {
        stamp.file(&deb.archive)?;
    }
    stamp.text(&format!(
        "{:?}",
        (
            kind,
            options.compression,
            options.rescue,
            options.carry_root
        )
    ));
    let stamp_path = options.output.join(".stamp");
    let outputs = [
        &products.kernel,
        &products.initrd,
        &products.root,
        &products.binary,
        &products.disk_initrd,
        &products.loader,
        &products.stub,
        &products.disk,
        &products.qcow2,
        &products.compressed_disk,
        &products.iso,
        &products.ipxe,
        &products.materials,
        &products.payload,
        &products.list,
    ];
    if outputs.iter().all(|path| path.exists()) && stamp.is_in(&stamp_path) {
        println!("image: {} is up to date", options.output.display());
        return Ok(products);
    }

    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("make {}", options.output.display()))?;
    let _ = std::fs::remove_file(&stamp_path);
    let extracted = project.path(&format!("build/packages/{kind}"));
    step("extract", || packages::extract(&debs, &extracted))?;
    let kernel = step("modules", || kernel::Kernel::open(&extracted))?;
    copy(&kernel.image, &products.kernel)?;
    copy(&binary, &products.binary)?;
    let tree = project.path(&format!("build/root/{kind}"));
    step("tree", || {
        tree::assemble(
            &tree::Sources {
                project,
                machine: options.machine,
                packages: &wanted,
                extracted: &extracted,
                binary: &binary,
                kernel: &kernel,
                key: &key,
            },
            &tree,
        )
    })?;
    step("erofs", || erofs::make(&tree, &products.root))?;
    let sources = initrd::Sources {
        project,
        kernel: &kernel,
        binary: &binary,
        root: &products.root,
        tree: &tree,
    };
    step("initrd", || {
        initrd::make(&sources, options, Purpose::Net, &products.initrd)?;
        initrd::make(&sources, options, Purpose::Disk, &products.disk_initrd)
    })?;
    let (loader, stub) = release::loader_files(&extracted);
    copy(&loader, &products.loader)?;
    copy(&stub, &products.stub)?;
    let slot = step("disk", || {
        release::disks(project, &products, &options.output)
    })?;
    step("update", || {
        payload(&slot, &products.loader, &key, &products.payload)?;
        list(std::slice::from_ref(&products.payload), &key)
    })?;
    step("medium", || {
        live::ipxe(project, &products)?;
        live::iso(project, &products, &options.output)?;
        live::compress_disk(&products)
    })?;
    step("materials", || {
        release::bill_of_materials(project, &debs, &products.materials)?;
        release::sums(&options.output)
    })?;
    stamp.write(&stamp_path)?;
    for path in outputs {
        let size = std::fs::metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .len();
        println!("image: {} {:.1} MiB", path.display(), mebibytes(size));
    }
    Ok(products)
}

/// Waits for the one build at a time that may use `build/`.
fn lock(project: &Project) -> Result<std::fs::File> {
    let path = project.path("build/.lock");
    std::fs::create_dir_all(project.path("build")).context("make build/")?;
    let file = std::fs::File::create(&path).with_context(|| format!("open {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Runs one step and says how long it took.
fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = run().with_context(|| format!("image step `{name}`"))?;
    println!("image: {name:<9} {:6.2} s", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Builds the binary with cargo, in the project's own target directory, and gives its path.
///
/// # Errors
/// Cargo fails.
pub fn build_binary(project: &Project, profile: &str) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    // What cargo told us of ourselves, where it started us: build scripts that ask for it, ring's for one, would run again, and all
    // that depends on them would be built anew, whenever another program of this workspace builds.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_MANIFEST_", "CARGO_PKG_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            command.env_remove(name.as_ref());
        }
    }
    run(command
        .args([
            "build",
            "--quiet",
            "--package",
            "orlop",
            "--profile",
            profile,
        ])
        .current_dir(&project.root))?;
    let directory = if profile == "dev" { "debug" } else { profile };
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project.path("target"), PathBuf::from);
    Ok(target
        .join("x86_64-unknown-linux-gnu")
        .join(directory)
        .join("orlop"))
}

/// Runs a program to its end; its messages go to the terminal.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

/// Runs a program and gives what it printed.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} failed: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no UTF-8"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
