//! The power goes in the middle of first starts and of updates: what starts next is the old version or the new one, whole.
//!
//! What a cut loses is told in `orlop_qemu::power`. A moment is a number of bytes written, or of flushes done, so that a seed
//! repeats it on a machine of any speed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use orlop_qemu::guest::{BOOT_PATIENCE, Guest, SSH, Start};
use orlop_qemu::http::server::{Content, Server};
use orlop_qemu::image::{Key, Project};
use orlop_qemu::power::{Cut, PowerDisk};
use orlop_qemu::process;
use orlop_tests::Scenario;
use orlop_tests::random::Random;

use crate::update::{configuration, payload, prepare, said};

/// About what an update writes, and how often it flushes; a moment behind its end is one right after it.
const UPDATE_BYTES: u64 = 44 << 20;
const UPDATE_FLUSHES: u64 = 18;

/// The same of a first start.
const START_BYTES: u64 = 8 << 20;
const START_FLUSHES: u64 = 110;

/// What is tried.
struct Trial {
    hull: Scenario,
    disk: PowerDisk,
    random: Random,
    cuts: u32,
}

impl Trial {
    /// A moment: every second one by flushes, between which most steps are.
    fn moment(&mut self, bytes: u64, flushes: u64) -> Cut {
        match self.random.below(2) {
            0 => Cut::Bytes(self.random.below(bytes)),
            _ => Cut::Flushes(self.random.below(flushes)),
        }
    }

    /// Pulls the plug, and has the disk forget some of what was not flushed.
    fn cut(&mut self, what: &str) {
        let (bytes, flushes) = self.disk.traffic();
        self.hull.cut_power();
        // All, nothing, or a part of it.
        let kept = self.random.below(5) * 25;
        self.cuts += 1;
        println!(
            "cut {}: {what}, after {bytes} bytes and {flushes} flushes; kept are {kept} % of what was not flushed",
            self.cuts
        );
        let random = &mut self.random;
        let restored = self.disk.restore(|| random.below(100) < kept);
        restored.expect("the disk is written");
    }

    /// Switches on, with firmware and loader or without.
    fn switch_on(&mut self) {
        let machine = &mut self.hull.machine;
        machine.start = match self.random.below(2) {
            0 => Start::Firmware,
            _ => Start::Initramfs(machine.products.disk_initrd.clone()),
        };
        self.hull.switch_on();
    }

    /// The machine runs one of `versions`, all of its root can be read, and it is called good. Gives the version.
    fn runs_one_of(&mut self, versions: &[&str]) -> String {
        let mut running = String::new();
        let sentence = format!("{} runs, whole and good", versions.join(" or "));
        self.hull.need(&sentence, |guest| {
            running = wait_until_good(guest)?;
            ensure!(versions.contains(&running.as_str()), "{running} runs");
            // dm-verity lets through nothing else than what was signed.
            guest.ssh()?.run("sudo cat /dev/dm-0 >/dev/null")?;
            Ok(())
        });
        running
    }
}

/// Waits until what runs is blessed, and gives its version.
fn wait_until_good(guest: &mut Guest) -> Result<String> {
    let ssh = guest.ssh()?;
    let mut last = String::new();
    process::poll("a good version", Instant::now() + 2 * BOOT_PATIENCE, || {
        guest.alive()?;
        let output = ssh.output("sudo orlop slots")?;
        last = said(&output);
        let line = last.lines().find(|line| line.contains("running"));
        let line = line.filter(|line| output.status.success() && line.contains(" good "));
        if line.is_none() {
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(line.and_then(|line| line.split(' ').next().map(ToOwned::to_owned)))
    })
    .with_context(|| last)
}

/// Does `work` until the power goes; gives what came of it when it comes to its end before.
fn until_cut<T: Send + 'static>(
    disk: &PowerDisk,
    guest: &mut Guest,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>> {
    let (done, end) = std::sync::mpsc::channel();
    // It ends with the guest.
    std::thread::spawn(move || done.send(work()));
    let deadline = Instant::now() + BOOT_PATIENCE;
    process::poll("the power to go", deadline, || {
        guest.alive()?;
        if disk.is_cut() {
            return Ok(Some(None));
        }
        Ok(end.try_recv().ok().map(Some))
    })
}

/// Cuts first starts and updates, so many of each.
fn cut_power(name: &'static str, starts: u32, updates: u32) {
    let server = Server::start().expect("a server");
    let key = Key::of_project(&Project::here()).expect("a key");
    let mut random = Random::from_environment();
    let mut disk = None;
    let first = Cut::Bytes(random.below(START_BYTES));
    let hull = Scenario::start(name, &configuration(&server.url("/")), |machine| {
        prepare(machine)?;
        let served = PowerDisk::serve(&machine.system_disk())?;
        machine.system_disk_port = Some(served.port);
        machine.ports = vec![SSH];
        served.arm(first);
        disk = Some(served);
        Ok(())
    });
    let mut trial = Trial {
        hull,
        disk: disk.expect("a disk"),
        random,
        cuts: 0,
    };
    for start in 1..=starts {
        let disk = trial.disk.clone();
        trial.hull.check("a first start is begun", |guest| {
            let ssh = guest.ssh()?;
            let deadline = Instant::now() + BOOT_PATIENCE;
            until_cut(&disk, guest, move || ssh.wait(deadline, || Ok(())))?;
            Ok(())
        });
        trial.cut("first start");
        if start < starts {
            let moment = trial.moment(START_BYTES, START_FLUSHES);
            trial.disk.arm(moment);
        }
        trial.switch_on();
    }
    let mut running = trial.runs_one_of(&["0.1.0"]);
    let mut newest = 1;
    for _ in 0..updates {
        // Another version each time the last one was taken.
        let offered = match running == format!("0.{newest}.0") {
            true => {
                newest += 1;
                let version = format!("0.{newest}.0");
                let directory = trial.hull.machine.directory.join("served");
                let path = payload(&trial.hull.machine, &key, &version, &directory);
                let path = path.expect("a payload");
                server.serve(&format!("/{version}"), Content::File(path));
                version
            }
            false => format!("0.{newest}.0"),
        };
        let command = format!(
            "sudo orlop update apply --retry {}",
            server.url(&format!("/{offered}"))
        );
        let moment = trial.moment(UPDATE_BYTES, UPDATE_FLUSHES);
        let disk = trial.disk.clone();
        trial.hull.need("an update is begun", |guest| {
            let ssh = guest.ssh()?;
            disk.arm(moment);
            if let Some(output) = until_cut(&disk, guest, move || ssh.output(&command))? {
                let output = output?;
                ensure!(output.status.success(), "{}", said(&output));
            }
            Ok(())
        });
        trial.cut(&format!("update from {running} to {offered}"));
        trial.switch_on();
        running = trial.runs_one_of(&[&running, &offered]);
    }
    trial.hull.power_off();
    trial.hull.finish();
}

#[test]
fn the_power_goes_at_first_starts_and_updates() {
    cut_power("test-cuts", 2, 4);
}

#[test]
#[ignore = "torture"]
fn torture_the_power_goes_again_and_again() {
    cut_power("test-many-cuts", 8, 36);
}
