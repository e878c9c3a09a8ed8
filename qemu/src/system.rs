//! System disks for guests: slots of chosen versions, and what may befall them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use orlop_boot::entries::{Counter, Entry};

use crate::guest::Machine;
use crate::image::{self, LAYOUT, Place, Project, Slot};

/// A version to be put on a disk.
#[derive(Debug, Clone)]
pub struct Version<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its tries; nothing: it is good.
    pub tries: Option<u32>,
    /// What its kernel command line has besides the usual.
    pub words: &'a str,
}

/// The disk of a machine that is not running.
#[derive(Debug)]
pub struct SystemDisk {
    path: PathBuf,
    places: BTreeMap<String, Place>,
    /// What is in the slots, A first.
    pub slots: Vec<Slot>,
}

impl SystemDisk {
    /// Makes the machine's disk with up to two versions; `grow_mib` MiB are left for the data volume to grow.
    ///
    /// # Errors
    /// A slot cannot be built, or the disk cannot be written.
    pub fn make(
        project: &Project,
        machine: &mut Machine,
        versions: &[Version<'_>],
        grow_mib: u64,
    ) -> Result<Self> {
        let directory = machine.directory.join("slots");
        let slots = versions
            .iter()
            .map(|version| {
                let number = version.name.parse().context("a version")?;
                let slot = image::slot(
                    project,
                    &machine.products,
                    &number,
                    version.words,
                    &directory,
                )?;
                Ok(Slot {
                    entry: Entry {
                        version: number,
                        counter: version.tries.map(|left| Counter { left, done: 0 }),
                    },
                    ..slot
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let path = machine.system_disk();
        let places = image::make_disk(&path, LAYOUT, &machine.products.loader, &slots)?;
        let disk = File::options()
            .write(true)
            .open(&path)
            .context("open the disk")?;
        let size = disk.metadata().context("look at the disk")?.len();
        disk.set_len(size + (grow_mib << 20))
            .context("grow the disk")?;
        machine.has_system_disk = true;
        Ok(Self {
            path,
            places,
            slots,
        })
    }

    /// Where a partition is.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn place(&self, partition: &str) -> Result<Place> {
        let place = self.places.get(partition).copied();
        place.with_context(|| format!("the disk has no partition {partition}"))
    }

    /// Turns one bit of a partition around.
    ///
    /// # Errors
    /// There is no such partition, or the disk cannot be written.
    pub fn flip(&self, partition: &str, offset: u64) -> Result<()> {
        let at = self.place(partition)?.at + offset;
        let disk = self.open()?;
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).context("read the byte")?;
        disk.write_all_at(&[byte[0] ^ 1], at)
            .context("write the byte")
    }

    /// Damages the primary partition table, after the backup was put to the disk's end, where firmware looks for it.
    ///
    /// # Errors
    /// sgdisk fails, or the disk cannot be written.
    pub fn damage_table(&self) -> Result<()> {
        self.sgdisk("--move-second-header")?;
        self.open()?
            .write_all_at(&[0; 512], 512)
            .context("write zeros")
    }

    fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options
            .open(&self.path)
            .with_context(|| format!("open {}", self.path.display()))
    }

    /// Gives a partition another identifier, so that nobody finds it: `sgdisk` writes both tables.
    ///
    /// # Errors
    /// sgdisk fails.
    pub fn lose(&self, number: u32) -> Result<()> {
        self.sgdisk(&format!("--partition-guid={number}:R"))
    }

    fn sgdisk(&self, option: &str) -> Result<()> {
        let output = Command::new("sgdisk")
            .arg(option)
            .arg(&self.path)
            .output()
            .context("start sgdisk")?;
        ensure!(
            output.status.success(),
            "sgdisk: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Puts a file onto the EFI system partition.
    ///
    /// # Errors
    /// mcopy fails.
    pub fn put(&self, from: &Path, to: &str) -> Result<()> {
        let status = self
            .mtool("mcopy")?
            .arg("-o")
            .arg(from)
            .arg(format!("::{to}"))
            .status();
        ensure!(
            status.context("start mcopy")?.success(),
            "mcopy cannot write {to}"
        );
        Ok(())
    }

    /// The names of the boot entries, sorted.
    ///
    /// # Errors
    /// mdir fails.
    pub fn entries(&self) -> Result<Vec<String>> {
        let output = self
            .mtool("mdir")?
            .args(["-b", "::EFI/Linux"])
            .output()
            .context("start mdir")?;
        ensure!(
            output.status.success(),
            "mdir: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut names: Vec<String> = listing
            .lines()
            .filter_map(|line| line.rsplit('/').next())
            .map(ToOwned::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Fills the EFI system partition until not a cluster is left.
    ///
    /// # Errors
    /// The files cannot be made.
    pub fn fill_esp(&self) -> Result<()> {
        let file = self.path.with_extension("filler");
        let mut size = 128_u64 << 20;
        let mut number = 0;
        while size >= 2048 {
            File::create(&file)
                .and_then(|f| f.set_len(size))
                .context("make a filler")?;
            number += 1;
            let status = self
                .mtool("mcopy")?
                .arg(&file)
                .arg(format!("::filler.{number}"))
                .stderr(Stdio::null())
                .status()
                .context("start mcopy")?;
            // What did not fit was begun: mtools leaves no part of it.
            if !status.success() {
                size /= 2;
            }
        }
        std::fs::remove_file(&file).context("remove the filler")
    }

    fn mtool(&self, program: &str) -> Result<Command> {
        let esp = self.place("esp")?;
        let mut command = Command::new(program);
        command
            .env("MTOOLS_SKIP_CHECK", "1")
            .arg("-i")
            .arg(format!("{}@@{}", self.path.display(), esp.at))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// The first `percent` of a slot's image, as one that was cut off.
    ///
    /// # Errors
    /// The image cannot be read, or the part written.
    pub fn cut_image(slot: &Slot, percent: usize, to: &Path) -> Result<()> {
        let image =
            std::fs::read(&slot.uki).with_context(|| format!("read {}", slot.uki.display()))?;
        let kept = image.get(..image.len() / 100 * percent).unwrap_or_default();
        File::create(to)
            .and_then(|mut file| file.write_all(kept))
            .with_context(|| format!("write {}", to.display()))
    }
}
