//! `orlop install`: Orlop on a disk, from a payload or from what runs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Parser;
use orlop_boot::esp::{ENTRIES, Esp};
use orlop_boot::trials::{self, Trials};
use orlop_config::{Input, Kind, Severity};
use orlop_sys::blkdev;
use orlop_update::apply::read_table;
use orlop_update::install::{Permission, Target, install, look, permit};
use orlop_update::live;
use orlop_update::local::{self, Sources};
use orlop_update::payload::Payload;
use orlop_update::seed;
use orlop_update::slots::Slot;
use orlop_update::storage::{DeviceDisk, Disk as _, MountedEsp, read_files};
use orlop_update::system::{self, KEYS, Lock, RECORD, Record};

use crate::progress::Meter;
use crate::{stderr, systemctl, update};

/// How long a disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(30);

/// Put Orlop on a disk: all of what is on it is lost.
#[derive(Parser)]
#[command(name = "orlop install", no_binary_name = true)]
struct Arguments {
    /// The whole disk: /dev/…, serial=…, model=… or size=… (20GiB, largest, smallest).
    #[arg(required_unless_present = "configured")]
    disk: Option<String>,
    /// The payload: a file or an http:// URL. Otherwise what runs, what the live medium has, or what update.url offers.
    #[arg(long, value_name = "SOURCE")]
    from: Option<String>,
    /// The cloud-config that the disk's starts are configured by, in place of what this machine was configured by.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overwrite what others made, and an installation of Orlop with its data.
    #[arg(long)]
    wipe: bool,
    /// Overwrite a data volume of Orlop's.
    #[arg(long)]
    wipe_data_volume: bool,
    /// Reboot when it is done.
    #[arg(long)]
    reboot: bool,
    /// Do what the configuration says under `install`, unless it is done, and reboot.
    #[arg(long, conflicts_with_all = ["disk", "from", "config", "wipe", "wipe_data_volume"])]
    configured: bool,
    /// Trust the keys (*.pub) of another directory.
    #[arg(long, value_name = "DIRECTORY", default_value = KEYS)]
    keys: PathBuf,
    /// Another record of what runs than the boot stage's.
    #[arg(long, value_name = "FILE", default_value = RECORD)]
    record: PathBuf,
}

/// Runs `orlop install` with the arguments after that word.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return update::refuse(&error),
    };
    stderr::install();
    let done = match arguments.configured {
        true => configured(arguments),
        false => by_hand(&arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("orlop install: {error:#}");
        ExitCode::from(2)
    })
}

/// What `install` of the configuration asks for, once.
fn configured(mut arguments: Arguments) -> anyhow::Result<ExitCode> {
    let wanted = update::configuration()?.install;
    let Some(name) = wanted.disk.map(|disk| disk.value.to_string()) else {
        return Ok(ExitCode::SUCCESS);
    };
    if Record::read(&arguments.record)?.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    let device = orlop_disk::resolve(&name, DISK_WAIT)?;
    let disk = DeviceDisk::open(&device, false)
        .with_context(|| format!("cannot open {}", device.display()))?;
    if look(&device, &disk)? == Target::Installed {
        // A firmware that starts from the network first would have it installed for ever.
        log::info!(
            "install: Orlop is on {} already; this start is from memory all the same",
            device.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    drop(disk);
    arguments.disk = Some(name);
    arguments.from = wanted.from.map(|from| from.value);
    arguments.wipe = wanted.wipe.is_some_and(|wipe| wipe.value);
    arguments.reboot = true;
    by_hand(&arguments)
}

fn by_hand(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let name = arguments.disk.as_deref().context("no disk is named")?;
    let device = orlop_disk::resolve(name, DISK_WAIT)?;
    let record = Record::read(&arguments.record)?;
    if let Some(record) = &record
        && fs::canonicalize(&record.disk).ok() == fs::canonicalize(&device).ok()
    {
        bail!(
            "this machine runs from {}; `orlop update` brings newer versions to it",
            device.display()
        );
    }
    refuse_if_in_use(&device)?;
    let _lock = Lock::take()?;
    let open_error = || format!("cannot open {}", device.display());
    let mut disk = DeviceDisk::open(&device, true).with_context(open_error)?;
    let target = look(&device, &disk)?;
    let permission = Permission {
        wipe: arguments.wipe,
        wipe_data_volume: arguments.wipe_data_volume,
    };
    permit(&device, &target, permission)?;

    let mut files = vec![(trials::PATH.to_owned(), Trials::default().encode())];
    files.extend(configuration_files(arguments)?);

    let mut meter = Meter::new();
    let payload = payload(arguments, record.as_ref(), &mut meter)?;
    let version = payload.manifest().version.clone();
    eprintln!(
        "installing {version} on {} ({:.1} GiB)",
        device.display(),
        gib(disk.size_bytes())
    );
    install(
        payload,
        system::architecture(),
        &mut disk,
        &files,
        &mut |progress| meter.show(progress),
    )?;
    // The kernel may take its time to see them; nothing here needs them.
    if let Err(error) = blkdev::reread_partitions(disk.file())
        && is_block_device(&device)
    {
        log::warn!(
            "install: the kernel does not read the partition table of {}: {error}",
            device.display()
        );
    }
    println!("{version} is on {}", device.display());
    match arguments.reboot {
        true => Ok(systemctl::end("reboot", &[])),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// The configuration that goes along, for the EFI system partition.
fn configuration_files(arguments: &Arguments) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    if let Some(path) = &arguments.config {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let input = Input {
            name: path.display().to_string(),
            kind: Kind::CloudConfig,
            text: text.clone(),
        };
        let (_, problems) = orlop_config::load(vec![input]);
        let mut errors = problems.iter().filter(|p| p.severity == Severity::Error);
        if let Some(error) = errors.next() {
            bail!("the configuration has errors: {error}; `orlop config check` lists them all");
        }
        return Ok(vec![seed::file(seed::USER_DATA, text)]);
    }
    let files = seed::files(Path::new(seed::IN_USE))
        .with_context(|| format!("cannot read {}", seed::IN_USE))?;
    if files.is_empty() {
        eprintln!(
            "warning: this machine has no configuration to take along and there is no --config: without a volume labelled \
             cidata nobody will get into what is installed"
        );
    }
    Ok(files)
}

/// What is installed: what is named, what runs, what the medium has, what the channel offers.
fn payload(
    arguments: &Arguments,
    record: Option<&Record>,
    meter: &mut Meter,
) -> anyhow::Result<Payload<Box<dyn Read>>> {
    let source = match (&arguments.from, record) {
        (Some(source), _) => source.clone(),
        (None, Some(record)) => return running(record),
        (None, None) if live::is_live() => {
            live::ensure_mounted()?;
            live::PAYLOAD.to_owned()
        }
        (None, None) => update::offer(None, None, &update::keyring(&arguments.keys)?)
            .context("nothing to install: there is no --from")?
            .1
            .to_string(),
    };
    update::open(&source, &update::keyring(&arguments.keys)?, meter)
}

/// What runs, read from its own disk.
fn running(record: &Record) -> anyhow::Result<Payload<Box<dyn Read>>> {
    let disk = DeviceDisk::open(&record.disk, false)
        .with_context(|| format!("cannot open {}", record.disk.display()))?;
    let table = read_table(&disk)
        .with_context(|| format!("{} has no partition table", record.disk.display()))?;
    let slot = Slot::both(&table)?
        .into_iter()
        .find(|slot| slot.holds(&record.root_hash));
    let slot = slot.context("neither slot holds what runs")?;
    let esp = Esp::mount(&record.esp)?;
    let files = MountedEsp::open(&esp.path(""))
        .and_then(|entries| read_files(&entries))
        .context("cannot read the boot entries")?;
    let image = files
        .into_iter()
        .find(|file| file.root_hash == Some(record.root_hash));
    let image =
        image.context("the kernel image of what runs is not on the EFI system partition")?;
    let sources = Sources {
        version: record.version.clone(),
        architecture: system::architecture().to_owned(),
        root_hash: record.root_hash,
        uki: esp.path(&format!("{ENTRIES}/{}", image.name)),
        root: (record.disk.clone(), slot.root.start_bytes),
        verity: (record.disk.clone(), slot.verity.start_bytes),
        loader: esp.path("EFI/BOOT/BOOTX64.EFI"),
    };
    // The files stay open when the partition is unmounted lazily.
    Ok(local::open(&sources)?)
}

fn is_block_device(device: &Path) -> bool {
    fs::metadata(device).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// `O_EXCL` on a block device fails while it or a partition is mounted or held (open(2)).
fn refuse_if_in_use(device: &Path) -> anyhow::Result<()> {
    if is_block_device(device) {
        let mut options = File::options();
        options.read(true).custom_flags(nix::libc::O_EXCL);
        options
            .open(device)
            .with_context(|| format!("{} is in use", device.display()))?;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_or_the_configuration_is_named_but_not_both() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
        let parse = |words: &[&str]| Arguments::try_parse_from(words);
        assert!(parse(&["/dev/vdb", "--wipe", "--from", "x", "--config", "y"]).is_ok());
        assert!(parse(&["--configured"]).is_ok());
        assert!(parse(&[]).is_err() && parse(&["--configured", "/dev/vdb"]).is_err());
        assert!(parse(&["--configured", "--wipe"]).is_err());
    }
}
