//! Where the configuration comes from: NoCloud's volume, a web server, the system's disk, the image, the kernel command line, and
//! what was kept on `/var`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use orlop_boot::modprobe::chain;
use orlop_boot::slot::{Booted, with_esp};
use orlop_config::{Base, Input, Kind, Owner, Severity};
use orlop_update::seed;

use super::Setup;
use super::label::{self, Volume};
use super::remote;
use super::replace::replace;
use crate::mountinfo;

/// Where the volume stays mounted: containers' archives may lie on it.
const CIDATA: &str = "/run/orlop/cidata";

/// The volume's label (NoCloud's documentation; FAT labels are often in capitals).
const LABEL: &str = "cidata";

/// How long the volume is waited for where it is expected.
const WAIT: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(10);

/// The most bytes of a file that are read: more than what [`orlop_config::load`] takes, so that it says what is too large.
const MOST_BYTES: u64 = 32 << 20;

/// The directory of the image's own configuration.
const IMAGE: &str = "/usr/share/orlop";

/// Where the last configuration that came from a data source is kept.
const KEPT: &str = "/var/lib/orlop/config";

/// A data source's files: the name, and what it is. In rising precedence.
const FILES: [(&str, Kind); 2] = [
    (seed::META_DATA, Kind::MetaData),
    (seed::USER_DATA, Kind::CloudConfig),
];

/// Reads the configuration from NoCloud's volume; its user-data from a web server, where the command line names one; and without
/// either what the installation put on the system's disk.
pub(super) fn find(setup: &mut Setup) {
    find_no_cloud(setup);
    if let Some(template) = setup.command_line.value(remote::WORD).map(str::to_owned)
        && setup.is_machine
    {
        find_remote(setup, &template);
    }
    if setup.is_machine
        && !setup.has_source
        && let Some(booted) = Booted::read()
    {
        find_installed(setup, &booted);
    }
}

/// Fetches the user-data; that of a volume stays for when it can not be fetched.
fn find_remote(setup: &mut Setup, template: &str) {
    // What is needed to get there: the image's configuration and the command line's.
    let mut inputs = image_inputs(setup);
    inputs.extend(command_line(setup));
    let machine = std::mem::replace(&mut setup.machine, orlop_config::load(inputs).0);
    record(setup);
    setup.machine = machine;
    match remote::fetch(setup, template, MOST_BYTES) {
        Ok((name, text)) => {
            let kind = Kind::CloudConfig;
            setup.inputs.retain(|input| input.kind != kind);
            setup.inputs.push(Input { name, kind, text });
            setup.has_source = true;
        }
        Err(error) => setup.fail(error),
    }
}

fn find_installed(setup: &mut Setup, booted: &Booted) {
    let read = with_esp(booted, |esp, _| {
        Ok(read_files(&esp.path(seed::DIRECTORY), "installed ", setup))
    });
    match read {
        Ok(inputs) => {
            setup.has_source = !inputs.is_empty();
            setup.inputs = inputs;
        }
        Err(error) => setup.fail(format!(
            "the configuration on the EFI system partition: {}",
            chain(&error)
        )),
    }
}

/// Mounts NoCloud's volume and reads what it holds.
fn find_no_cloud(setup: &mut Setup) {
    if setup.is_machine && !mountinfo::is_mounted(CIDATA) {
        let Some((device, kind)) = wait_for_volume(setup) else {
            if setup
                .command_line
                .value("ds")
                .is_some_and(|ds| ds.starts_with("nocloud"))
            {
                setup.fail(format!(
                    "no volume labelled {LABEL} appeared within {} s, which ds=nocloud asks for",
                    WAIT.as_secs()
                ));
            } else {
                log::info!("setup: there is no volume labelled {LABEL}");
            }
            return;
        };
        if let Err(error) = mount_volume(&device, kind) {
            setup.fail(format!(
                "cannot mount {} ({}) on {CIDATA}: {error}",
                device.display(),
                kind.filesystem()
            ));
            return;
        }
        log::info!(
            "setup: the configuration is on {} ({})",
            device.display(),
            kind.filesystem()
        );
    }
    let directory = setup.path(CIDATA);
    setup.inputs = read_files(&directory, "", setup);
    setup.has_source = !setup.inputs.is_empty();
    if setup.is_machine && !setup.has_source {
        setup.fail(format!(
            "the volume at {CIDATA} has neither user-data nor meta-data"
        ));
    }
}

fn mount_volume(device: &Path, kind: label::Kind) -> io::Result<()> {
    fs::create_dir_all(CIDATA)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some(device),
        CIDATA,
        Some(kind.filesystem()),
        flags,
        Some(kind.options()),
    )?;
    Ok(())
}

/// A machine on which nothing says that there is one does not wait.
fn wait_for_volume(setup: &Setup) -> Option<(PathBuf, label::Kind)> {
    let is_expected = setup
        .command_line
        .value("ds")
        .is_some_and(|ds| ds.starts_with("nocloud"));
    let start = Instant::now();
    loop {
        let found = find_volume();
        let may_appear = is_expected || is_disk_missing();
        if found.is_some() || !may_appear || start.elapsed() >= WAIT {
            return found;
        }
        std::thread::sleep(INTERVAL);
    }
}

fn find_volume() -> Option<(PathBuf, label::Kind)> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        // No volume comes on these, and an absent floppy takes seconds to say so.
        .filter(|(name, _)| {
            !["loop", "ram", "zram", "fd", "dm-", "md"]
                .iter()
                .any(|kind| name.starts_with(kind))
        })
        .filter(|(_, path)| {
            fs::read_to_string(path.join("size")).is_ok_and(|size| size.trim_end() != "0")
        })
        .map(|(name, _)| name)
        .collect();
    names.sort();
    names.into_iter().find_map(|name| {
        // A `!` in /sys stands for a directory in /dev (cciss!c0d0).
        let device = Path::new("/dev").join(name.replace('!', "/"));
        let (kind, labels) = label::read(&File::open(&device).ok()?)?;
        labels
            .iter()
            .any(|label| label.eq_ignore_ascii_case(LABEL))
            .then_some((device, kind))
    })
}

/// Whether a virtio device of the type "block" (virtio 1.2 §5) has no disk yet.
fn is_disk_missing() -> bool {
    fs::read_dir("/sys/bus/virtio/devices")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .any(|device| {
            fs::read_to_string(device.join("device")).is_ok_and(|kind| kind.trim_end() == "0x0002")
                && !device.join("block").exists()
        })
}

impl Volume for File {
    fn read(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset).ok()?;
        Some(bytes)
    }
}

/// The data source's files in `directory`, called `before` and their name in messages.
fn read_files(directory: &Path, before: &str, setup: &mut Setup) -> Vec<Input> {
    let mut inputs = Vec::new();
    for (name, kind) in FILES {
        match read_some(&directory.join(name)) {
            Ok(text) => inputs.push(Input {
                name: format!("{before}{name}"),
                kind,
                text,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => setup.fail(format!(
                "cannot read {}: {error}",
                directory.join(name).display()
            )),
        }
    }
    inputs
}

fn read_some(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// Reads the configuration from all sources, says what is wrong with it, and plans.
pub(super) fn load(setup: &mut Setup) {
    let mut inputs = image_inputs(setup);
    inputs.append(&mut setup.inputs.clone());
    inputs.extend(command_line(setup));
    let (machine, mut problems) = orlop_config::load(inputs);
    setup.has_errors = problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    setup.machine = machine;
    let text = |path: &str| fs::read_to_string(setup.path(path)).unwrap_or_default();
    let (passwd, group, shadow) = (text("/etc/passwd"), text("/etc/group"), text("/etc/shadow"));
    let shell = match setup.path("/bin/bash").exists() {
        true => "/bin/bash",
        false => "/bin/sh",
    };
    let unit = |name: &str| {
        let is_name = !name.contains('/');
        is_name.then(|| fs::read_to_string(setup.path("/usr/lib/orlop/units").join(name)).ok())?
    };
    let base = Base {
        passwd: &passwd,
        group: &group,
        shadow: &shadow,
        shell,
        unit: &unit,
    };
    setup.plan = orlop_config::compile(&setup.machine, &base);
    problems.append(&mut setup.plan.problems);
    for problem in problems {
        match problem.severity {
            Severity::Error => setup.fail(problem),
            Severity::Warning => log::warn!("setup: {problem}"),
        }
    }
}

fn command_line(setup: &mut Setup) -> Option<Input> {
    match fs::read(setup.path("/proc/cmdline")) {
        Ok(text) => Some(Input {
            name: "kernel command line".to_owned(),
            kind: Kind::KernelCommandLine,
            text: text.trim_ascii_end().to_owned(),
        }),
        Err(error) => {
            setup.fail(format!("cannot read the kernel command line: {error}"));
            None
        }
    }
}

fn image_inputs(setup: &mut Setup) -> Vec<Input> {
    let mut paths: Vec<PathBuf> = fs::read_dir(setup.path(IMAGE))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    let mut inputs = Vec::new();
    for path in paths {
        match read_some(&path) {
            Ok(text) => inputs.push(Input {
                name: path.display().to_string(),
                kind: Kind::Toml,
                text,
            }),
            Err(error) => setup.fail(format!("cannot read {}: {error}", path.display())),
        }
    }
    inputs
}

/// Keeps what the data source gave on `/var`, or uses what was kept when no source answered.
pub(super) fn keep(setup: &mut Setup) {
    let directory = setup.path(KEPT);
    if !setup.has_source {
        let kept = read_files(&directory, "kept ", setup);
        if !kept.is_empty() {
            log::warn!(
                "setup: no data source answered; the configuration that was kept in {KEPT} is used"
            );
            setup.inputs = kept;
            load(setup);
        }
        return;
    }
    if setup.has_errors {
        log::warn!("setup: the configuration has errors, so the one kept in {KEPT} stays as it is");
        return;
    }
    if let Err(error) = keep_files(&directory, &setup.inputs) {
        setup.fail(format!("cannot keep the configuration in {KEPT}: {error}"));
    }
}

fn keep_files(directory: &Path, inputs: &[Input]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, kind) in FILES {
        let path = directory.join(name);
        match inputs.iter().find(|input| input.kind == kind) {
            Some(input) => {
                replace(&path, &input.text, 0o600, Owner::default())?;
            }
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
    }
    Ok(())
}

/// Writes the configuration for the roles that follow.
pub(super) fn record(setup: &mut Setup) {
    let path = setup.path("/run/orlop/machine.json");
    let written = serde_json::to_vec(&setup.machine)
        .map_err(io::Error::from)
        .and_then(|text| {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            replace(&path, &text, 0o600, Owner::default())
        });
    if let Err(error) = written {
        setup.fail(format!("cannot write /run/orlop/machine.json: {error}"));
    }
}

/// Leaves the data source's files to an installation, which takes them along; a copy on `/var` stays when they have errors.
pub(super) fn leave(setup: &mut Setup) {
    if let Err(error) = keep_files(&setup.path(seed::IN_USE), &setup.inputs) {
        setup.fail(format!("cannot write {}: {error}", seed::IN_USE));
    }
}
