//! `make demo`: one machine, from nothing to a web page from a container, and once more after a restart; then three that are one.

pub mod three;

use std::io::IsTerminal as _;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::accel::{self, Accel};
use crate::guest::{BOOT_PATIENCE, Guest, Machine, WEB};
use crate::image::{self, Options, Project};

/// Prints a line for each step as it ends.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
    colours: bool,
}

impl Steps {
    /// The time begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            start: Instant::now(),
            colours: std::io::stdout().is_terminal(),
        }
    }

    fn done(&self, since: Instant, text: &str) {
        let (bold, plain) = if self.colours {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        println!(
            "{:7.2} s  {bold}{text}{plain} ({:.2} s)",
            self.start.elapsed().as_secs_f64(),
            since.elapsed().as_secs_f64()
        );
    }

    /// Takes a step and prints what it took.
    ///
    /// # Errors
    /// The step fails.
    pub fn step<T>(&self, text: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
        let since = Instant::now();
        let value = run().with_context(|| format!("step `{text}`"))?;
        self.done(since, text);
        Ok(value)
    }

    fn show(&self, text: &str) {
        for line in text.trim_end().lines() {
            println!("           | {line}");
        }
    }
}

/// Runs the demo to its end.
///
/// # Errors
/// A step fails: the reason first, then, where there is a guest, its console's last lines and where their log lies.
pub fn run(project: &Project, options: &Options) -> Result<()> {
    let steps = Steps::begin();
    let products = steps.step("the image is built", || image::image(project, options))?;
    let accel = steps.step("looked whether KVM works here", || Ok(accel::probe()))?;
    steps.show(match accel {
        Accel::Kvm => "it does",
        Accel::Tcg => "it does not: the guest is emulated",
    });
    let machine = Machine::new(project, "demo", &products)?;
    steps.step(
        "the NoCloud volume holds configs/demo.yaml and the container's image",
        || {
            let user_data = std::fs::read(project.path("configs/demo.yaml"))
                .context("read configs/demo.yaml")?;
            machine.write_seed(project, &user_data)
        },
    )?;
    let mut guest = steps.step("the guest is switched on", || machine.start())?;
    life(&steps, &mut guest)
        .map_err(|error| anyhow!("the demo failed: {error:#}\n{}", guest.last_words()))?;
    drop(guest);
    let (mut cluster, _) = three::tell(&steps, project, &products, "demo")?;
    steps.step("all three powered off in order", || cluster.power_off())?;
    println!("demo: passed; console logs: build/guests/demo*/console.log");
    Ok(())
}

fn life(steps: &Steps, guest: &mut Guest) -> Result<()> {
    let port = guest.port(WEB)?;
    let since = Instant::now();
    first_start(steps, guest, since)?;

    let page = steps.step(
        &format!("the container serves its page, http://127.0.0.1:{port}/"),
        || guest.wait_for_page("/"),
    )?;
    steps.show(&page);
    ensure!(
        page.contains("starts: 1"),
        "the page should say that this is the first start"
    );
    let visit = guest.wait_for_page("/cgi-bin/visit")?;
    steps.show(&visit);
    let visits = number_after(&visit, "visits: ").context("the page counts no visits")?;

    let ssh = steps.step("core can log in by SSH", || guest.wait_for_ssh())?;
    steps.show(&ssh.run("systemctl list-units --no-pager")?);
    steps.show(&ssh.run("grep ' /var ' /proc/mounts")?);
    steps.show(&ssh.run("orlop boot-times")?);

    let since = Instant::now();
    let from = guest.log.text().len();
    // The connection may or may not end before the command does.
    ssh.output("sudo systemctl reboot")?;
    guest.wait_for_console("Linux version", from, BOOT_PATIENCE)?;
    steps.done(since, "the guest restarts");
    let page = steps.step("the page is back", || guest.wait_for_page("/"))?;
    steps.show(&page);
    ensure!(
        page.contains("starts: 2"),
        "the data volume should remember the first start"
    );
    let visit = guest.wait_for_page("/cgi-bin/visit")?;
    steps.show(&visit);
    ensure!(
        number_after(&visit, "visits: ") == Some(visits + 1),
        "the data volume should remember the visits before the restart"
    );
    steps.step(
        "the power button was pressed, and the machine powered off in order",
        || guest.press_power_button(),
    )?;
    Ok(())
}

/// Follows the first start on the console.
fn first_start(steps: &Steps, guest: &mut Guest, since: Instant) -> Result<()> {
    guest.wait_for_console("Linux version", 0, BOOT_PATIENCE)?;
    steps.done(since, "the kernel runs");
    guest.wait_for_console("orlop[1]: ", 0, BOOT_PATIENCE)?;
    steps.done(since, "Orlop runs as PID 1");
    Ok(())
}

/// The number behind `mark`.
fn number_after(text: &str, mark: &str) -> Option<u64> {
    let (_, rest) = text.split_once(mark)?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_ends_where_its_digits_do() {
        assert_eq!(number_after("visits: 12\n", "visits: "), Some(12));
        assert_eq!(number_after("nothing", "visits: "), None);
    }
}
