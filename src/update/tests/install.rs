//! Installing on a disk that is a file, judged by other people's tools where the machine has them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_update::apply::{apply, read_table};
use orlop_update::install::{InstallError, Layout, Permission, Target, install, look, permit};
use orlop_update::local::{self, Sources};
use orlop_update::payload::Payload;
use orlop_update::signature::{Keyring, SecretKey};
use orlop_update::slots::Options;
use orlop_update::storage::{DeviceDisk, Disk};
use tempfile::TempDir;

use crate::world::{LOADER, Machine, Release, open};

struct Blank {
    directory: TempDir,
    path: PathBuf,
}

fn blank() -> Blank {
    // In memory where that is possible: these tests sync a lot.
    let directory = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let path = directory.path().join("disk");
    File::create(&path)
        .unwrap()
        .set_len(Layout::of(512).least_bytes() + (5 << 20))
        .unwrap();
    Blank { directory, path }
}

fn put(payload: &[u8], key: &SecretKey, disk: &mut dyn Disk) -> Result<String, InstallError> {
    let files = [("EFI/orlop/trials.json".to_owned(), b"{}".to_vec())];
    install(open(payload, key), "x86_64", disk, &files, &mut |_| {}).map(|entry| entry.file_name())
}

/// What a program says; `None` when it is not there.
fn run(program: &str, arguments: &[&str]) -> Option<(bool, Vec<u8>)> {
    match Command::new(program)
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
    {
        Ok(output) => Some((
            output.status.success(),
            [output.stdout, output.stderr].concat(),
        )),
        Err(e) => {
            eprintln!("skipped: {program} cannot be run: {e}");
            None
        }
    }
}

/// The EFI system partition as a file of its own.
fn extract_esp(disk: &Path, to: &Path) {
    let from = File::open(disk).unwrap();
    let to = File::create(to).unwrap();
    let bytes = Layout::of(512).esp_bytes;
    to.set_len(bytes).unwrap();
    let mut chunk = vec![0; 1 << 20];
    for at in (0..bytes).step_by(chunk.len()) {
        from.read_exact_at(&mut chunk, at + (1 << 20)).unwrap();
        if chunk.iter().any(|byte| *byte != 0) {
            to.write_all_at(&chunk, at).unwrap();
        }
    }
}

/// The installation is whole: its table, its filesystem, its files and its slot.
fn judge(disk: &Blank, release: &Release) {
    let esp = disk.directory.path().join("esp");
    extract_esp(&disk.path, &esp);
    let (esp, path) = (esp.to_str().unwrap(), disk.path.to_str().unwrap());
    if let Some((is_clean, said)) = run("fsck.vfat", &["-n", "-v", esp]) {
        assert!(is_clean, "{}", String::from_utf8_lossy(&said));
    }
    if let Some((_, said)) = run("sgdisk", &["-v", path]) {
        assert!(
            String::from_utf8_lossy(&said).contains("No problems found"),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    let entry = format!("::EFI/Linux/orlop_{}+3.efi", release.version);
    for (name, expected) in [
        (entry.as_str(), release.uki.as_slice()),
        ("::EFI/BOOT/BOOTX64.EFI", LOADER),
        ("::efi/systemd/systemd-bootx64.efi", LOADER),
        (
            "::loader/loader.conf",
            b"timeout 0\ndefault orlop_*\neditor no\nauto-entries no\nauto-firmware no\n",
        ),
        ("::EFI/orlop/trials.json", b"{}"),
    ] {
        let Some((_, contents)) = run("mtype", &["-i", esp, name]) else {
            break;
        };
        assert!(
            contents == expected,
            "{name}: {}",
            String::from_utf8_lossy(&contents)
        );
    }
    let device = DeviceDisk::open(&disk.path, false).unwrap();
    let table = read_table(&device).unwrap();
    assert!(table.is_whole());
    let names: Vec<&str> = table
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "esp",
            "root-a",
            "root-a-verity",
            "root-b",
            "root-b-verity",
            "orlop-var-new"
        ]
    );
    assert_eq!(
        table.named("root-a").unwrap().unique,
        release.root_hash.root_uuid()
    );
    let mut root = vec![0; release.root.len()];
    device
        .read_at(&mut root, table.named("root-a").unwrap().start_bytes)
        .unwrap();
    assert!(root == release.root);
    let end = table
        .entries
        .last()
        .map(|var| var.start_bytes + var.size_bytes)
        .unwrap();
    assert!(
        device.size_bytes() - end <= 2 << 20,
        "the data volume takes what is left"
    );
}

#[test]
fn an_installed_disk_is_what_others_understand_and_can_be_updated() {
    let key = SecretKey::generate().unwrap();
    let (release, newer) = (Release::new("1.0"), Release::new("1.1"));
    let disk = blank();
    let mut device = DeviceDisk::open(&disk.path, true).unwrap();
    assert_eq!(look(&disk.path, &device).unwrap(), Target::Free);
    assert_eq!(
        put(&release.payload(&key), &key, &mut device).unwrap(),
        "orlop_1.0+3.efi"
    );
    judge(&disk, &release);
    assert_eq!(look(&disk.path, &device).unwrap(), Target::Installed);

    let Machine {
        mut esp, running, ..
    } = Machine::new(&release);
    let bytes = newer.payload(&key);
    let applied = apply(
        open(&bytes, &key),
        &mut device,
        &mut esp,
        &running,
        Options::default(),
        &mut |_| {},
    )
    .unwrap();
    assert_eq!(applied.slot, "b");
    let table = read_table(&device).unwrap();
    assert_eq!(
        table.named("root-b-verity").unwrap().unique,
        newer.root_hash.verity_uuid()
    );
}

#[test]
fn what_others_made_is_named_and_kept() {
    let disk = blank();
    let file = File::options().write(true).open(&disk.path).unwrap();
    let permit_on = |target: &Target, permission| {
        permit(Path::new("/dev/vdb"), target, permission).map_err(|e| e.to_string())
    };
    let wipe = Permission {
        wipe: true,
        wipe_data_volume: false,
    };

    file.write_all_at(b"XFSB", 0).unwrap();
    let target = look(&disk.path, &DeviceDisk::open(&disk.path, false).unwrap()).unwrap();
    let said = permit_on(&target, Permission::default()).unwrap_err();
    assert_eq!(
        said,
        "/dev/vdb holds an XFS filesystem; `wipe` lets the installation overwrite it"
    );
    permit_on(&target, wipe).unwrap();

    let said = permit_on(&Target::Installed, Permission::default()).unwrap_err();
    assert!(
        said.starts_with("Orlop is installed on /dev/vdb already"),
        "{said}"
    );
    permit_on(&Target::Installed, wipe).unwrap();
    assert!(
        permit_on(&Target::DataVolume, wipe)
            .unwrap_err()
            .contains("--wipe-data-volume")
    );
    permit_on(
        &Target::DataVolume,
        Permission {
            wipe_data_volume: true,
            ..wipe
        },
    )
    .unwrap();
}

#[test]
fn what_can_not_be_installed_is_refused_before_a_write() {
    let key = SecretKey::generate().unwrap();
    let release = Release::new("1.0");
    let bytes = release.payload(&key);
    let disk = blank();
    let mut device = DeviceDisk::open(&disk.path, true).unwrap();
    let error = install(open(&bytes, &key), "riscv64", &mut device, &[], &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "it is for x86_64; this machine is riscv64"
    );

    let path = disk.directory.path().join("payload");
    let contents = orlop_update::pack::Contents {
        loader: None,
        ..release.contents(disk.directory.path())
    };
    orlop_update::pack::pack(
        &contents,
        &orlop_update::pack::Compressor::BuiltIn,
        Some(&key),
        &path,
    )
    .unwrap();
    let error = put(&fs::read(path).unwrap(), &key, &mut device).unwrap_err();
    assert!(matches!(error, InstallError::NoLoader), "{error}");
    assert_eq!(look(&disk.path, &device).unwrap(), Target::Free);

    File::options()
        .write(true)
        .open(&disk.path)
        .unwrap()
        .set_len(100 << 20)
        .unwrap();
    let mut device = DeviceDisk::open(&disk.path, true).unwrap();
    assert!(matches!(
        put(&bytes, &key, &mut device).unwrap_err(),
        InstallError::TooSmall { .. }
    ));
    assert_eq!(look(&disk.path, &device).unwrap(), Target::Free);
}

/// Cut after any write, the disk is nobody's or known as unfinished, and the next attempt finishes it.
#[test]
fn an_installation_that_is_cut_short_is_done_again() {
    let key = SecretKey::generate().unwrap();
    let release = Release::new("1.0");
    let bytes = release.payload(&key);
    let mut cut = 0;
    loop {
        let disk = blank();
        let device = DeviceDisk::open(&disk.path, true).unwrap();
        let mut failing = Failing {
            device,
            writes: cut,
        };
        if put(&bytes, &key, &mut failing).is_ok() {
            break;
        }
        let mut device = DeviceDisk::open(&disk.path, true).unwrap();
        let target = look(&disk.path, &device).unwrap();
        if target == Target::Installed {
            // A copy of the table or the removal of the mark was missing: it boots.
            let image = format!("{}@@1M", disk.path.display());
            let mtype = run("mtype", &["-i", &image, "::EFI/Linux/orlop_1.0+3.efi"]);
            assert!(mtype.is_none_or(|(_, contents)| contents == release.uki));
            cut += 1;
            continue;
        }
        permit(&disk.path, &target, Permission::default())
            .unwrap_or_else(|e| panic!("cut {cut}: {e}"));
        if cut % 7 == 0 {
            put(&bytes, &key, &mut device).unwrap();
        }
        if cut == 7 {
            judge(&disk, &release);
        }
        if target == Target::Unfinished {
            // Somebody started from it all the same, and the data volume was made.
            let table = read_table(&device).unwrap();
            let var = table.entries.last().unwrap();
            device.write_at(&[1], var.start_bytes + 1024).unwrap();
            assert_eq!(look(&disk.path, &device).unwrap(), Target::Installed);
        }
        cut += 1;
    }
    assert!(cut > 15, "{cut}");
}

#[derive(Debug)]
struct Failing {
    device: DeviceDisk,
    writes: usize,
}

impl Disk for Failing {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn sector_bytes(&self) -> u64 {
        self.device.sector_bytes()
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.device.read_at(into, at)
    }
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.writes = self
            .writes
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("the power is off"))?;
        self.device.write_at(bytes, at)
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What runs can be put on another disk without a payload.
#[test]
fn the_running_version_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let mut release = Release::new("1.0");
    // A superblock for one level of hashes: 16 blocks of data.
    release.verity[..8].copy_from_slice(b"verity\0\0");
    for at in [64, 68] {
        release.verity[at..at + 4].copy_from_slice(&4096_u32.to_le_bytes());
    }
    release.verity[72..80].copy_from_slice(&16_u64.to_le_bytes());
    let mut contents = release.contents(directory.path());
    // Partitions are longer than what they hold.
    for path in [&mut contents.root, &mut contents.verity] {
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
    }
    let sources = Sources {
        version: contents.version,
        architecture: contents.architecture,
        root_hash: contents.root_hash,
        uki: contents.uki,
        root: (contents.root, 0),
        verity: (contents.verity.clone(), 0),
        loader: contents.loader.unwrap(),
    };
    let disk = blank();
    let mut device = DeviceDisk::open(&disk.path, true).unwrap();
    let files = [("EFI/orlop/trials.json".to_owned(), b"{}".to_vec())];
    install(
        local::open(&sources).unwrap(),
        "x86_64",
        &mut device,
        &files,
        &mut |_| {},
    )
    .unwrap();
    judge(&disk, &release);
    fs::write(&contents.verity, b"no tree").unwrap();
    assert!(
        local::open(&sources)
            .err()
            .unwrap()
            .to_string()
            .contains("no dm-verity hash tree")
    );
    assert!(Payload::open(io::empty(), &Keyring::default()).is_err());
}
