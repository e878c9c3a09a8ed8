//! Boots of bare roots by counted instructions: Orlop's, and those of other inits on the same kernel.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Figure;
use super::inits::{BUSYBOX, Init, ORLOP, RUNIT, S6, SYSTEMD};
use crate::console::Log;
use crate::image::{Products, Project};
use crate::process::{self, Owned};

/// What each service writes; informational, so that it stays off the slow console.
pub(super) const UP: &str = "bench: a service is up";
/// Written before a service is killed.
const KILL: &str = "bench: killing one";
/// Written before what two files of /proc say of memory.
const MEMORY: &str = "bench: memory";
/// What the last one writes before it powers off; on the console at any level.
const DOWN: &str = "bench: powering off";

/// The shell commands of the last service: when everything has come to rest it kills an old service, looks at the memory, shows
/// the kernel's log, and powers off.
///
/// What is used is what is neither free nor given back when it is needed. The root is none of it: an initramfs is page cache.
pub(super) fn end(power_off: &str) -> String {
    format!(
        "sleep 4; set -- $(pidof marker); echo '<6>{KILL}' >/dev/kmsg; kill -9 $1; sleep 4\n\
         rss=$(grep Rss: /proc/1/smaps_rollup | tr -dc 0-9)\n\
         used=$(awk '/^MemTotal:/ {{ n += $2 }} /^(MemFree|Buffers|Cached|SReclaimable):/ {{ n -= $2 }} END {{ print n }}' /proc/meminfo)\n\
         echo \"<6>{MEMORY} $rss $used\" >/dev/kmsg\n\
         dmesg -r >/dev/console; echo '<0>{DOWN}' >/dev/kmsg; {power_off}\n"
    )
}

/// What one boot took: times in virtual milliseconds, memory in MiB.
#[derive(Debug)]
struct Boot {
    /// From PID 1's start to the first service's line.
    first_ms: f64,
    /// From PID 1's start to the last service's line.
    last_ms: f64,
    /// From a service's kill to the line of the next one in its place.
    restart_ms: f64,
    /// From the wish to power off to the kernel's last line.
    down_ms: f64,
    /// Resident memory of PID 1.
    rss_mib: f64,
    /// Memory that is used in all.
    used_mib: f64,
}

impl Boot {
    /// Reads the figures from a console that has the kernel's log on it.
    fn read(console: &str, services: usize) -> Result<Self> {
        let start = times(console, "Run /init as init process")
            .next()
            .context("the kernel's log does not say when it started /init")?;
        let killed = times(console, KILL)
            .next()
            .context("no service was killed")?;
        let (up, again): (Vec<f64>, Vec<f64>) = times(console, UP).partition(|time| *time < killed);
        ensure!(
            up.len() == services,
            "{} of {services} services came up",
            up.len()
        );
        let again = again
            .first()
            .context("no service came up in the place of the one that was killed")?;
        let memory: Vec<f64> = console
            .lines()
            .find_map(|line| line.split_once(MEMORY))
            .map(|(_, text)| text.split_whitespace().flat_map(str::parse).collect())
            .unwrap_or_default();
        let [rss_kib, used_kib] = memory[..] else {
            bail!("the guest does not say what memory it uses")
        };
        let asked = times(console, DOWN)
            .last()
            .context("nothing asked for the power-off")?;
        let down = times(console, "reboot: Power down")
            .last()
            .context("the guest did not power off")?;
        Ok(Self {
            first_ms: up.iter().copied().fold(f64::INFINITY, f64::min) - start,
            last_ms: up.iter().copied().fold(0.0, f64::max) - start,
            restart_ms: again - killed,
            down_ms: down - asked,
            rss_mib: rss_kib / 1024.0,
            used_mib: used_kib / 1024.0,
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
            let seconds = stamp.trim().parse::<f64>().ok()?;
            Some(seconds * 1e3)
        })
}

/// Boots Orlop and the others with one service and with 50, prints them side by side, and gives what has a bar.
///
/// # Errors
/// A guest does not do what it should.
pub(super) fn figures(project: &Project, products: &Products) -> Result<Vec<Figure>> {
    println!(
        "{:<10} {:>9} {:>9} {:>10} {:>10} {:>9} {:>9}",
        "init", "first ms", "50 up ms", "restart ms", "down ms", "RSS MiB", "used MiB"
    );
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for init in [&ORLOP, &BUSYBOX, &SYSTEMD, &RUNIT, &S6] {
        let both = boot(project, products, init, 1)
            .and_then(|one| Ok((one.first_ms, boot(project, products, init, 50)?)));
        let (first_ms, fifty) = match both {
            Ok(both) => both,
            Err(error) => {
                println!("{:<10} not measured: {error:#}", init.name);
                failed.push(init.name);
                continue;
            }
        };
        println!(
            "{:<10} {first_ms:>9.1} {:>9.1} {:>10.1} {:>10.1} {:>9.2} {:>9.1}",
            init.name,
            fifty.last_ms,
            fifty.restart_ms,
            fifty.down_ms,
            fifty.rss_mib,
            fifty.used_mib
        );
        measured.push((first_ms, fifty));
    }
    ensure!(failed.is_empty(), "without {}", failed.join(", "));
    let many = boot(project, products, &ORLOP, 1000)?;
    let [(first_ms, ours), (_, busybox), ..] = &measured[..] else {
        bail!("nothing was measured")
    };
    let figure = |what: &str, value, unit, bar| Figure {
        what: what.to_owned(),
        value,
        unit,
        bar,
    };
    let time = |what, value, bar| figure(what, value, "virtual ms", bar);
    Ok(vec![
        time(
            "PID 1's start to a service's first instruction",
            *first_ms,
            40.0,
        ),
        time("PID 1's start to 50 services", ours.last_ms, 100.0),
        time(
            "the kill of a service to the next one's start",
            ours.restart_ms,
            5.0,
        ),
        time("power-off with 50 services", ours.down_ms, 200.0),
        figure(
            "resident memory of PID 1 with 50 services",
            ours.rss_mib,
            "MiB",
            4.0,
        ),
        figure(
            "resident memory of PID 1 with 1000 services",
            many.rss_mib,
            "MiB",
            12.0,
        ),
        figure(
            "memory in use beyond that with busybox's init",
            ours.used_mib - busybox.used_mib,
            "MiB",
            4.0,
        ),
    ])
}

/// Boots a bare root with `services` services, lets it power itself off, and reads the figures.
fn boot(project: &Project, products: &Products, init: &Init, services: usize) -> Result<Boot> {
    let directory = project.path("build/guests/bench");
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let initrd = directory.join(format!("{}-{services}.cpio", init.name));
    init.write(project, products, services, &initrd)?;
    let log = Log {
        path: directory.join(format!("console-{}-{services}.log", init.name)),
    };
    run_counted(&products.kernel, &initrd, &log)
        .and_then(|()| Boot::read(&log.text(), services))
        .with_context(|| {
            format!(
                "the boot of {} with {services} services; the console's last lines:\n{}\nconsole log: {}",
                init.name,
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
            "console=ttyS0 loglevel=3 log_buf_len=1M printk.devkmsg=on cryptomgr.notests panic=-1 rdinit=/init",
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
        Instant::now() + Duration::from_secs(600),
        || guest.0.try_wait().context("look after QEMU"),
    )?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "<6>[    1.198000] Run /init as init process\n\
        <6>[    1.210500] bench: a service is up\n\
        <6>[    1.250000] bench: a service is up\n\
        <6>[    4.000000] bench: killing one\n\
        <6>[    4.002500] bench: a service is up\n\
        <6>[    8.000000] bench: memory 1024 20480\n\
        [    8.300000] bench: powering off\n\
        [    8.400000] reboot: Power down\n";

    #[test]
    fn figures_are_read_from_the_kernels_log() {
        let boot = Boot::read(CONSOLE, 2).expect("figures");
        let read = [
            boot.first_ms,
            boot.last_ms,
            boot.restart_ms,
            boot.down_ms,
            boot.rss_mib,
            boot.used_mib,
        ];
        for (read, wanted) in read.iter().zip([12.5, 52.0, 2.5, 100.0, 1.0, 20.0]) {
            assert!((read - wanted).abs() < 1e-6, "{boot:?}");
        }
    }

    #[test]
    fn a_missing_service_is_no_figure() {
        assert!(Boot::read(CONSOLE, 3).is_err());
        let not_again = CONSOLE.replace(
            "[    4.002500] bench: a service",
            "[    4.002500] no service",
        );
        assert!(Boot::read(&not_again, 2).is_err());
    }
}
