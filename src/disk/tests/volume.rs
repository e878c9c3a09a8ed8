//! The data volume on real block devices: loop devices, with sgdisk and e2fsck as judges. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orlop_disk::{
    Checked, Error, Found, Refusal, Request, State, ensure_data_volume, inspect, resolve,
};

/// A file as a disk, gone with this value.
struct LoopDisk {
    device: PathBuf,
    target: PathBuf,
    _directory: tempfile::TempDir,
}

impl LoopDisk {
    fn new(size_bytes: u64, sector_bytes: u32) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("disk");
        fs::File::create(&file)
            .and_then(|f| f.set_len(size_bytes))
            .expect("a file");
        let target = directory.path().join("var");
        fs::create_dir(&target).expect("a directory");
        // Asking for any free device would race with others who do, and each attempt holds the device for a moment: far up
        // there are no others, and each process has its own numbers.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = 200 + std::process::id() % 8 * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let output = Command::new("losetup")
            .args(["--partscan", "--sector-size", &sector_bytes.to_string()])
            .args([&device, &file])
            .output();
        if !output.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: loop devices need root and losetup");
            return None;
        }
        Some(Self {
            device,
            target,
            _directory: directory,
        })
    }

    fn request(&self) -> Request {
        Request {
            target: self.target.clone(),
            ..Request::new(&self.device)
        }
    }

    fn unmount(&self) {
        run("umount", &[&self.target]);
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.target).output();
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .output();
    }
}

fn run(program: &str, arguments: &[&Path]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

const MIB: u64 = 1 << 20;

#[test]
fn a_blank_disk_becomes_the_volume_once_and_keeps_its_files() {
    for sector_bytes in [512, 4096] {
        let Some(disk) = LoopDisk::new(64 * MIB + 4096, sector_bytes) else {
            return;
        };
        let first = ensure_data_volume(&disk.request()).expect("the volume is made");
        assert!(first.is_new);
        fs::write(disk.target.join("kept"), "content").expect("the volume can be written");

        let again = ensure_data_volume(&disk.request()).expect("the volume is there");
        assert!(!again.is_new, "a second call finds it mounted");
        disk.unmount();

        // Also with `wipe: true` left in the configuration.
        let request = Request {
            wipe: true,
            ..disk.request()
        };
        let later = ensure_data_volume(&request).expect("the volume is mounted");
        assert!(!later.is_new);
        assert_eq!(later.checked, Checked::NotNeeded);
        assert_eq!(
            fs::read_to_string(disk.target.join("kept")).expect("the file is there"),
            "content"
        );
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let line = mounts
            .lines()
            .find(|l| l.contains(&*disk.target.to_string_lossy()))
            .expect("a mount");
        assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
        disk.unmount();

        let judged = run("sgdisk", &[Path::new("-v"), &disk.device]);
        assert!(String::from_utf8_lossy(&judged.stdout).contains("No problems found"));
        let listed = run("sgdisk", &[Path::new("-i1"), &disk.device]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            listed.contains("4D21B016-B534-45C2-A9FB-5C16E091FD2D"),
            "{listed}"
        );
        assert!(listed.contains("'orlop-var'"), "{listed}");
        run("e2fsck", &[Path::new("-fn"), &later.device]);
    }
}

#[test]
fn a_disk_with_a_filesystem_of_others_is_refused_by_name_until_wipe_is_set() {
    let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
        return;
    };
    run(
        "mke2fs",
        &[
            "-q".as_ref(),
            "-t".as_ref(),
            "ext4".as_ref(),
            "-L".as_ref(),
            "data".as_ref(),
            &disk.device,
        ],
    );
    let before = fs::read(&disk.device).expect("the disk");
    let error = ensure_data_volume(&disk.request()).expect_err("it is refused");
    let text = error.to_string();
    assert!(
        text.contains("an ext4 filesystem labelled \"data\""),
        "{text}"
    );
    assert!(text.contains("wipe: true"), "{text}");
    assert!(matches!(error, Error::Refused(Refusal::Foreign { .. })));
    assert!(
        fs::read(&disk.device).expect("the disk") == before,
        "nothing was written"
    );

    let request = Request {
        wipe: true,
        ..disk.request()
    };
    assert!(
        ensure_data_volume(&request)
            .expect("it is overwritten")
            .is_new
    );
}

#[test]
fn a_disk_that_is_in_use_is_not_wiped() {
    let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
        return;
    };
    run("mke2fs", &["-q".as_ref(), &disk.device]);
    run("mount", &[&disk.device, &disk.target]);
    let request = Request {
        wipe: true,
        ..Request::new(&disk.device)
    };
    let error = ensure_data_volume(&request).expect_err("it is in use");
    assert!(matches!(error, Error::InUse(..)), "{error}");
}

#[test]
fn a_volume_that_was_not_unmounted_is_checked() {
    let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
        return;
    };
    let first = ensure_data_volume(&disk.request()).expect("the volume is made");
    disk.unmount();
    // What a power cut leaves: the superblock says that it is in use.
    run(
        "debugfs",
        &[
            "-w".as_ref(),
            "-R".as_ref(),
            "ssv state 0".as_ref(),
            &first.device,
        ],
    );
    let later = ensure_data_volume(&disk.request()).expect("the volume is mounted");
    assert_eq!(later.checked, Checked::Repaired);
}

#[test]
fn a_damaged_copy_of_the_table_is_written_again() {
    for (name, at) in [("primary", 512), ("backup", 64 * MIB - 512)] {
        let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
            return;
        };
        ensure_data_volume(&disk.request()).expect("the volume is made");
        fs::write(disk.target.join("kept"), "content").expect("the volume can be written");
        disk.unmount();
        let file = fs::File::options()
            .write(true)
            .open(&disk.device)
            .expect("the disk");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], at).expect("a write");
        file.sync_all().expect("a sync");
        drop(file);
        ensure_data_volume(&disk.request()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(disk.target.join("kept").exists());
        disk.unmount();
        let judged = run("sgdisk", &[Path::new("-v"), &disk.device]);
        assert!(
            String::from_utf8_lossy(&judged.stdout).contains("No problems found"),
            "{name}"
        );
    }
}

#[test]
fn a_volume_whose_filesystem_is_gone_is_reported_and_left_alone() {
    let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
        return;
    };
    ensure_data_volume(&disk.request()).expect("the volume is made");
    disk.unmount();
    let file = fs::File::options()
        .write(true)
        .open(&disk.device)
        .expect("the disk");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], MIB).expect("a write");
    drop(file);
    assert!(matches!(
        inspect(&disk.device),
        Ok(Found::Orlop(State::Damaged { .. }))
    ));
    let request = Request {
        wipe: true,
        ..disk.request()
    };
    let error = ensure_data_volume(&request).expect_err("it is left alone");
    assert!(
        matches!(error, Error::Refused(Refusal::Damaged { .. })),
        "{error}"
    );
}

#[test]
fn a_failing_mke2fs_is_shown_with_what_it_said_and_the_next_start_succeeds() {
    let Some(disk) = LoopDisk::new(64 * MIB, 512) else {
        return;
    };
    let script = disk.target.with_file_name("mke2fs");
    fs::write(&script, "#!/bin/sh\necho no room for you >&2\nexit 1\n").expect("a script");
    run("chmod", &["+x".as_ref(), &script]);
    let request = Request {
        mke2fs: script,
        ..disk.request()
    };
    let error = ensure_data_volume(&request)
        .expect_err("it fails")
        .to_string();
    assert!(error.contains("no room for you"), "{error}");
    assert_eq!(
        inspect(&disk.device).expect("a look"),
        Found::Orlop(State::Unfinished)
    );
    assert!(
        ensure_data_volume(&disk.request())
            .expect("it is made")
            .is_new
    );
}

#[test]
fn a_disk_that_is_not_there_is_missed_by_name_and_those_that_are_listed() {
    let error = resolve("serial=no-such-disk", Duration::ZERO).expect_err("no such disk");
    let text = error.to_string();
    assert!(
        text.starts_with("no disk serial=no-such-disk after 0 s; there are "),
        "{text}"
    );
    let there = resolve("/dev/null", Duration::ZERO).expect("a path that is there");
    assert_eq!(there, Path::new("/dev/null"));
    assert!(inspect(&there).is_err(), "a character device is no disk");
}
