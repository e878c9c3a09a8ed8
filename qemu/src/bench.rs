//! `make bench`: boots by counted instructions, and sizes, beside the bars that they have to meet.
//!
//! With `-icount shift=1,sleep=off` the guest's clock is its count of instructions, two nanoseconds each, and idle time is
//! skipped: the figures are the same on a loaded machine as on an idle one. One virtual millisecond is half a million
//! instructions.

mod boots;
mod images;
mod inits;
mod marker;
mod netboot;

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

pub use boots::run_counted;

use crate::guest::Machine;
use crate::image::{self, Options, Products, Project};

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

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Boots of PID 1 alone, beside other inits.
    Boots,
    /// Sizes of what is shipped.
    Sizes,
    /// A start from a disk, and an update.
    Disk,
    /// Memory of Orlop's processes.
    Memory,
    /// Memory of a node that was started over the network.
    Netboot,
    /// The scheduler's decisions.
    Scheduling,
    /// The store beside Debian's etcd.
    Store,
}

impl Part {
    fn figures(self, project: &Project, products: &Products) -> Result<Vec<Figure>> {
        match self {
            Self::Boots => boots::figures(project, products),
            Self::Sizes => images::sizes(products),
            Self::Disk => images::disk(project, products),
            Self::Memory => memory(project, products),
            Self::Netboot => netboot::figure(project, products).map(|figure| vec![figure]),
            Self::Scheduling => scheduling(project),
            Self::Store => store(project),
        }
    }
}

/// Measures `parts`, or all when there are none, and prints each figure with its bar. A part that fails does not keep the others from
/// being measured.
///
/// # Errors
/// A guest does not do what it should, or a bar is missed.
pub fn run(project: &Project, options: &Options, parts: &[Part]) -> Result<()> {
    let products = image::image(project, options)?;
    let parts = if parts.is_empty() {
        Part::value_variants()
    } else {
        parts
    };
    let (mut measured, mut missed, mut failures) = (0, 0, Vec::new());
    for part in parts {
        match part.figures(project, &products) {
            Ok(figures) => {
                for figure in figures {
                    figure.print();
                    measured += 1;
                    missed += usize::from(!figure.meets_its_bar());
                }
            }
            Err(error) => {
                println!("{part:?}: not measured: {error:#}");
                failures.push(format!("{part:?}"));
            }
        }
    }
    ensure!(failures.is_empty(), "not measured: {}", failures.join(", "));
    ensure!(missed == 0, "{missed} of {measured} bars missed");
    println!("bench: all {measured} bars met");
    Ok(())
}

/// What an example of one of the crates prints.
fn example(project: &Project, package: &str, name: &str, arguments: &[&str]) -> Result<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(&project.root)
        .args(["run", "--quiet", "--release", "--package", package])
        .args(["--example", name, "--"])
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "the example `{name}` ended with {}, and printed:\n{text}",
        output.status
    );
    Ok(text)
}

/// What the scheduler takes to decide, in a cluster of 1,000 machines and 20,000 units.
fn scheduling(project: &Project) -> Result<Vec<Figure>> {
    let text = example(project, "orlop-schedule", "pass", &[])?;
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

/// Seconds that each server is under load for one figure.
const STORE_SECONDS: &str = "3";

/// Prints what ours and etcd do in turn: operations a second, events, pauses, memory, starts.
fn store(project: &Project) -> Result<Vec<Figure>> {
    let directory = project.path("build/bench-store");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    let path = directory.display().to_string();
    let text = example(
        project,
        "orlop-store",
        "load",
        &["compare", &path, STORE_SECONDS],
    )?;
    print!("{text}");
    std::fs::remove_dir_all(&directory)
        .with_context(|| format!("remove {}", directory.display()))?;
    let figures: Vec<Figure> = text.lines().filter_map(store_figure).collect();
    ensure!(!figures.is_empty(), "the example `load` compared nothing");
    Ok(figures)
}

/// The bar that a row of the example `load` has, if it has one: `WHAT OURS OTHER RATIO`.
fn store_figure(line: &str) -> Option<Figure> {
    let mut words = line.split_whitespace().rev();
    let mut number = || words.next()?.parse::<f64>().ok();
    let (ratio, _, ours) = (number()?, number()?, number()?);
    let has = |text: &str| line.starts_with(text);
    let (what, value, unit, bar) = if line.contains("64 clients,") || line.contains("256 clients,")
    {
        let (what, _) = line.split_once("  ")?;
        (
            format!("etcd beside ours: {what}"),
            ratio.recip(),
            "of ours",
            0.5,
        )
    } else if has("one put beside one fdatasync") {
        (
            "one put beside one fdatasync".to_owned(),
            ratio,
            "times",
            1.15,
        )
    } else if has("memory, MiB") {
        let what = "memory with a million keys beside etcd's".to_owned();
        (what, ratio, "times", 0.333)
    } else if has("put while a ") {
        let (what, _) = line.split_once("  ")?;
        (format!("longest {what}"), ours, "ms", 50.0)
    } else if has("without a leader, longest") {
        (
            "a cluster of three without a leader".to_owned(),
            ours,
            "ms",
            1000.0,
        )
    } else {
        return None;
    };
    Some(Figure {
        what,
        value,
        unit,
        bar,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
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
    fn rows_of_the_store_have_their_bars() {
        let figure = |line: &str| store_figure(line).map(|figure| (figure.value, figure.bar));
        let puts = "Put, 64 clients, members: 1                         2000       800    2.50";
        assert_eq!(figure(puts), Some((0.4, 0.5)));
        let pause = "put while a compaction runs                           12        40    0.30";
        assert_eq!(figure(pause), Some((12.0, 50.0)));
        let one = "Put, 1 clients, members: 1                          900       800    1.12";
        assert_eq!(figure(one), None);
        assert_eq!(figure("operations a second     ours  etcd ratio"), None);
    }

    #[test]
    fn memory_is_summed_over_all_processes() {
        let figures = resident("/sbin/init = 2048\norlop net = 3072\n").expect("figures");
        assert!((figures[0].value - 2.0).abs() < 1e-9);
        assert!((figures[1].value - 5.0).abs() < 1e-9);
    }
}
