//! `make bench`: boots by counted instructions, and sizes, beside the bars that they have to meet.
//!
//! With `-icount shift=1,sleep=off` the guest's clock is its count of instructions, two nanoseconds each, and idle time is
//! skipped: the figures are the same on a loaded machine as on an idle one. One virtual millisecond is half a million
//! instructions.

mod images;
mod marker;
mod netboot;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::console::Log;
use crate::guest::Machine;
use crate::image::{self, Bare, Options, Products, Project};
use crate::process::{self, Owned};

/// What each service writes; informational, so that it stays off the slow console.
const UP: &str = "bench: a service is up";
/// What the last one writes before it powers off; on the console at any level.
const DOWN: &str = "bench: powering off";

/// Shows the kernel's log and powers off, when everything has come to rest. By signal: a command line's start would be
/// measured with it.
const END: &str = "[Unit]\nDescription=End of the measurement\nAfter=multi-user.target\n\n[Service]\n\
    ExecStart=/bin/sh -c \"sleep 3; dmesg -r >/dev/console; echo '<0>bench: powering off' >/dev/kmsg; kill -PWR 1\"\n";
const SERVICE: &str =
    "[Unit]\nDescription=Measured service %i\n\n[Service]\nExecStart=/usr/bin/marker\n";

/// One figure and its bar.
struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    /// What it must not be above.
    bar: f64,
}

impl Figure {
    fn meets_its_bar(&self) -> bool {
        self.value <= self.bar
    }

    fn print(&self) {
        println!(
            "{:<58} {:9.2} {:<10} bar {:>4} {}",
            self.what,
            self.value,
            self.unit,
            self.bar,
            if self.meets_its_bar() {
                "met"
            } else {
                "MISSED"
            }
        );
    }
}

/// Measures all, prints each figure with its bar.
///
/// # Errors
/// A guest does not do what it should, or a bar is missed.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let products = image::image(project, options)?;
    let mut figures = Vec::new();
    let one = boot(project, &products, 1)?;
    figures.push(one.figure(
        "PID 1's start to a service's first instruction",
        one.first_ms,
        60.0,
    ));
    let fifty = boot(project, &products, 50)?;
    figures.push(fifty.figure("PID 1's start to 50 services", fifty.last_ms, 150.0));
    figures.push(fifty.figure("power-off with 50 services", fifty.down_ms, 300.0));
    for figure in &figures {
        figure.print();
    }
    let from = figures.len();
    let bytes = std::fs::metadata(&products.binary)
        .with_context(|| format!("look at {}", products.binary.display()))?
        .len();
    figures.push(Figure {
        what: "the binary".to_owned(),
        value: mebibytes(bytes),
        unit: "MiB",
        bar: 16.0,
    });
    figures.extend(images::sizes(&products)?);
    figures.push(images::update(project, &products)?);
    figures.extend(memory(project, &products)?);
    figures.push(netboot::figure(project, &products)?);
    figures.extend(scheduling(project)?);
    for figure in &figures[from..] {
        figure.print();
    }
    let missed = figures.iter().filter(|f| !f.meets_its_bar()).count();
    ensure!(missed == 0, "{missed} of {} bars missed", figures.len());
    println!("bench: all {} bars met", figures.len());
    Ok(())
}

/// What the scheduler takes to decide, in a cluster of 1,000 machines and 20,000 units.
fn scheduling(project: &Project) -> Result<Vec<Figure>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(&project.root)
        .args(["run", "--quiet", "--release"])
        .args(["--package", "orlop-schedule", "--example", "pass"])
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    [
        (
            "whole",
            "scheduling pass, 1,000 machines, 20,000 units",
            200.0,
        ),
        (
            "incremental",
            "scheduling pass after one change, the slowest",
            5.0,
        ),
    ]
    .into_iter()
    .map(|(word, what, bar)| {
        let value = text.lines().find_map(|line| {
            let (first, value) = line.split_once(' ')?;
            (first == word).then(|| value.parse().ok())?
        });
        Ok(Figure {
            what: what.to_owned(),
            value: value.with_context(|| format!("the example `pass` printed:\n{text}"))?,
            unit: "ms of CPU",
            bar,
        })
    })
    .collect()
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What one boot took, in virtual milliseconds.
struct Boot {
    /// From PID 1's start to the first service's line.
    first_ms: f64,
    /// From PID 1's start to the last service's line.
    last_ms: f64,
    /// From the wish to power off to the kernel's last line.
    down_ms: f64,
}

impl Boot {
    fn figure(&self, what: &str, value: f64, bar: f64) -> Figure {
        Figure {
            what: what.to_owned(),
            value,
            unit: "virtual ms",
            bar,
        }
    }

    /// Reads the times from a console that has the kernel's log on it.
    fn read(console: &str, services: usize) -> Result<Self> {
        let start = times(console, "Run /init as init process")
            .next()
            .context("the kernel's log does not say when it started /init")?;
        let up: Vec<f64> = times(console, UP).collect();
        ensure!(
            up.len() == services,
            "{} of {services} services came up",
            up.len()
        );
        let asked = times(console, DOWN)
            .last()
            .context("nothing asked for the power-off")?;
        let down = times(console, "reboot: Power down")
            .last()
            .context("the guest did not power off")?;
        Ok(Self {
            first_ms: up.iter().copied().fold(f64::INFINITY, f64::min) - start,
            last_ms: up.iter().copied().fold(0.0, f64::max) - start,
            down_ms: down - asked,
        })
    }
}

/// The kernel's time stamps, in milliseconds, of the lines that hold `text`.
fn times<'a>(console: &'a str, text: &'a str) -> impl Iterator<Item = f64> + 'a {
    console
        .lines()
        .filter(move |line| line.contains(text))
        .filter_map(|line| {
            let (stamp, _) = line.split_once('[')?.1.split_once(']')?;
            stamp
                .trim()
                .parse::<f64>()
                .ok()
                .map(|seconds| seconds * 1e3)
        })
}

/// Boots a bare root with `services` services, lets it power itself off, and reads the times.
fn boot(project: &Project, products: &Products, services: usize) -> Result<Boot> {
    let directory = project.path("build/guests/bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let initrd = directory.join(format!("bare-{services}.cpio"));
    let program = marker::program(&format!("<6>{UP}\n"));
    let mut links = vec![(
        "/etc/systemd/system/multi-user.target.wants/bench-end.service".to_owned(),
        "../bench-end.service",
    )];
    for number in 1..=services {
        links.push((
            format!("/etc/systemd/system/multi-user.target.wants/bench@{number}.service"),
            "../bench@.service",
        ));
    }
    // Nothing that a measurement of PID 1 alone does not need.
    for name in ["sshd.service", "docker.service"] {
        links.push((format!("/etc/systemd/system/{name}"), "/dev/null"));
    }
    let links: Vec<(&str, &str)> = links
        .iter()
        .map(|(path, target)| (path.as_str(), *target))
        .collect();
    image::bare(
        project,
        &products.binary,
        &Bare {
            units: &[("bench@.service", SERVICE), ("bench-end.service", END)],
            files: &[("/usr/bin/marker", 0o755, &program)],
            links: &links,
            without_roles: true,
        },
        &initrd,
    )?;
    let log = Log {
        path: directory.join(format!("console-{services}.log")),
    };
    run_counted(&products.kernel, &initrd, &log)
        .and_then(|()| Boot::read(&log.text(), services))
        .with_context(|| {
            format!(
                "the boot with {services} services; the console's last lines:\n{}\nconsole log: {}",
                log.tail(30),
                log.path.display()
            )
        })
}

/// Runs a guest by counted instructions, its root in `initrd`, until it powers off; its serial line goes to `log`.
///
/// # Errors
/// It does not power off by itself.
pub fn run_counted(kernel: &Path, initrd: &Path, log: &Log) -> Result<()> {
    let mut command = process::bound("qemu-system-x86_64");
    command
        .args([
            "-accel",
            "tcg",
            "-icount",
            "shift=1,sleep=off",
            "-M",
            "q35,sata=off",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-device",
            "virtio-rng-pci",
            "-append",
            "console=ttyS0 loglevel=3 printk.devkmsg=on cryptomgr.notests panic=-1 rdinit=/init",
        ])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .arg("-serial")
        .arg(format!("file:{}", log.path.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut guest = Owned(process::spawn(command)?);
    let status = process::poll(
        "the measured guest to power off",
        Instant::now() + Duration::from_secs(300),
        || guest.0.try_wait().context("look after QEMU"),
    )?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

/// Resident memory of PID 1, and of all of Orlop's processes together, in a guest with `configs/demo.yaml`.
fn memory(project: &Project, products: &Products) -> Result<Vec<Figure>> {
    let machine = Machine::new(project, "bench-memory", products)?;
    let user_data =
        std::fs::read(project.path("configs/demo.yaml")).context("read configs/demo.yaml")?;
    machine.write_seed(project, &user_data)?;
    let mut guest = machine.start()?;
    let measured = (|| {
        guest.wait_for_page("/")?;
        let ssh = guest.wait_for_ssh()?;
        // Of a machine at rest: five seconds after the login. Not VmRSS: Linux 6.1 counts it in batches per task, and shows a few pages for a process that has a thousand.
        let text = ssh.run(
            "sudo sh -c 'sleep 5; for p in /proc/[0-9]*; do \
             [ \"$(readlink $p/exe)\" = /usr/bin/orlop ] || continue; \
             echo $(tr \"\\\\0\" \" \" <$p/cmdline) = $(grep -w Rss: $p/smaps_rollup | tr -dc 0-9); done'",
        )?;
        resident(&text)
    })();
    let figures = measured.with_context(|| guest.last_words())?;
    guest.press_power_button()?;
    Ok(figures)
}

/// Reads lines of `COMMAND = KILOBYTES`; the first is PID 1's.
fn resident(text: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut total = 0.0;
    for line in text.lines() {
        let (command, kilobytes) = line
            .rsplit_once(" = ")
            .with_context(|| format!("the guest says {line:?}"))?;
        let mebibytes = kilobytes
            .parse::<f64>()
            .with_context(|| format!("the guest says {line:?}"))?
            / 1024.0;
        total += mebibytes;
        if figures.is_empty() {
            figures.push(Figure {
                what: format!("resident memory of PID 1 ({command})"),
                value: mebibytes,
                unit: "MiB",
                bar: 4.0,
            });
        }
    }
    ensure!(!figures.is_empty(), "the guest shows no process of Orlop");
    figures.push(Figure {
        what: format!(
            "resident memory of all {} processes of Orlop",
            text.lines().count()
        ),
        value: total,
        unit: "MiB",
        bar: 48.0,
    });
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_the_kernels_log() {
        let console = "<6>[    1.198000] Run /init as init process\n\
            <6>[    1.210500] bench: a service is up\n\
            <6>[    1.250000] bench: a service is up\n\
            [    4.300000] bench: powering off\n\
            [    4.400000] reboot: Power down\n";
        let boot = Boot::read(console, 2).expect("times");
        assert!((boot.first_ms - 12.5).abs() < 1e-6);
        assert!((boot.last_ms - 52.0).abs() < 1e-6);
        assert!((boot.down_ms - 100.0).abs() < 1e-6);
    }

    #[test]
    fn a_missing_service_is_no_figure() {
        assert!(Boot::read("[1.0] Run /init as init process\n", 1).is_err());
    }

    #[test]
    fn memory_is_summed_over_all_processes() {
        let figures = resident("/sbin/init = 2048\norlop net = 3072\n").expect("figures");
        assert!((figures[0].value - 2.0).abs() < 1e-9);
        assert!((figures[1].value - 5.0).abs() < 1e-9);
    }
}
