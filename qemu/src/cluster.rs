//! Several guests that are one: the same cloud-config for all, a network between them, and an application of two tiers.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest::{Guest, Machine, WEB};
use crate::http;
use crate::image::{Products, Project};
use crate::lan::Lan;
use crate::process;
use crate::ssh::Ssh;

/// What a cluster may take for anything, under emulation on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The machines of a cluster, and the network between them.
#[derive(Debug)]
pub struct Cluster {
    lan: Lan,
    /// The machines, by their number from 0.
    pub members: Vec<Member>,
}

/// One machine of a cluster.
#[derive(Debug)]
pub struct Member {
    /// What is started.
    pub machine: Machine,
    guest: Option<Guest>,
}

/// Seconds since the epoch at which a unit said that it was up: the first and the last of a run without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The machine's number.
    pub member: usize,
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

impl Cluster {
    /// Machines that are off, named `alpha`, `beta` and so on, each with its own disk below `build/guests/NAME-…`.
    ///
    /// # Errors
    /// A machine cannot be prepared.
    pub fn new(
        project: &Project,
        name: &str,
        products: &Products,
        count: usize,
        user_data: &[u8],
    ) -> Result<Self> {
        let lan = Lan::new()?;
        let mut key = None;
        let members = ["alpha", "beta", "gamma", "delta", "epsilon"]
            .into_iter()
            .take(count)
            .map(|host| {
                let mut machine = Machine::new(project, &format!("{name}-{host}"), products)?;
                machine.cable = Some(lan.cable()?);
                machine.cpus = 1;
                // One key opens all.
                machine.key = key.get_or_insert_with(|| machine.key.clone()).clone();
                machine.command_line += &format!(" orlop.hostname={host}");
                machine.write_seed(project, user_data)?;
                Ok(Member {
                    machine,
                    guest: None,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { lan, members })
    }

    /// Switches a machine on.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn switch_on(&mut self, member: usize) -> Result<()> {
        let member = self.members.get_mut(member).context("no such machine")?;
        member.guest = Some(member.machine.start()?);
        Ok(())
    }

    /// Cuts a machine's power.
    ///
    /// # Errors
    /// It is off, or QEMU cannot be killed.
    pub fn cut_power(&mut self, member: usize) -> Result<()> {
        let guest = self.members.get_mut(member).and_then(|m| m.guest.take());
        guest.context("the machine is off")?.cut_power()
    }

    /// Pulls a machine's cable to the others, or plugs it in again.
    pub fn plug(&self, member: usize, is_plugged: bool) {
        let cable = self
            .members
            .get(member)
            .and_then(|m| m.machine.cable.as_ref());
        if let Some(cable) = cable {
            self.lan.plug(cable, is_plugged);
        }
    }

    /// A machine that is on.
    ///
    /// # Errors
    /// It is off.
    pub fn guest(&mut self, member: usize) -> Result<&mut Guest> {
        let guest = self.members.get_mut(member).and_then(|m| m.guest.as_mut());
        guest.with_context(|| format!("machine {member} is off"))
    }

    /// The way into a machine that is on.
    ///
    /// # Errors
    /// It is off.
    pub fn ssh(&mut self, member: usize) -> Result<Ssh> {
        self.guest(member)?.ssh()
    }

    /// The numbers of the machines that are on.
    #[must_use]
    pub fn on(&self) -> Vec<usize> {
        let all = self.members.iter().enumerate();
        all.filter(|(_, member)| member.guest.is_some())
            .map(|(number, _)| number)
            .collect()
    }

    /// Whether the machines that are on are still worth waiting for.
    ///
    /// # Errors
    /// QEMU ended, or a kernel panicked.
    pub fn alive(&mut self) -> Result<()> {
        for member in self.on() {
            self.guest(member)?
                .alive()
                .with_context(|| format!("machine {member}"))?;
        }
        Ok(())
    }

    /// Runs a command on a machine until it succeeds and prints what is wanted; gives what it printed.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`], or a guest dies.
    pub fn until(
        &mut self,
        member: usize,
        command: &str,
        is_right: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let ssh = self.ssh(member)?;
        let mut last = String::new();
        let deadline = Instant::now() + PATIENCE;
        let found = process::poll(&format!("`{command}`"), deadline, || {
            self.alive()?;
            let output = ssh.output(command)?;
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            let is_right = output.status.success() && is_right(&last);
            last += &String::from_utf8_lossy(&output.stderr);
            Ok(is_right.then(|| last.clone()))
        });
        found.with_context(|| format!("it printed:\n{last}"))
    }

    /// Waits until so many members of the store have a vote, as the host's etcdctl sees it by a machine that is on.
    ///
    /// # Errors
    /// They do not within [`PATIENCE`], or there is no etcdctl.
    pub fn until_voters(&mut self, member: usize, count: usize) -> Result<String> {
        let port = orlop_testing::free_port()?;
        let _forwarded = self.ssh(member)?.forward(port, 2379)?;
        let mut last = String::new();
        let deadline = Instant::now() + PATIENCE;
        let found = process::poll("members with a vote", deadline, || {
            self.alive()?;
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &format!("127.0.0.1:{port}")])
                .args([
                    "--dial-timeout=30s",
                    "--command-timeout=30s",
                    "member",
                    "list",
                ])
                .output()
                .context("start etcdctl, of the package etcd-client")?;
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            // The last column is whether it is a learner.
            let voters = last
                .lines()
                .filter(|line| line.ends_with(", false"))
                .count();
            last += &String::from_utf8_lossy(&output.stderr);
            Ok((voters >= count).then(|| last.clone()))
        });
        found.with_context(|| format!("etcdctl printed:\n{last}"))
    }

    /// The page, from whichever machine serves it.
    ///
    /// # Errors
    /// None does within [`PATIENCE`], or a guest dies.
    pub fn page(&mut self) -> Result<(usize, String)> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        let found = process::poll("the page", deadline, || {
            self.alive()?;
            for member in self.on() {
                let port = self.guest(member)?.port(WEB)?;
                match http::get(port, "/") {
                    // The front may be up before the back.
                    Ok(page) if page.contains("visits: ") => return Ok(Some((member, page))),
                    Ok(page) => last = Some(page),
                    Err(_) => {}
                }
            }
            std::thread::sleep(Duration::from_millis(50));
            Ok(None)
        });
        found.with_context(|| format!("the last page: {last:?}"))
    }

    /// The first second since the epoch, not before `from`, at which the agent of a machine that is on said `words`.
    ///
    /// # Errors
    /// None did.
    pub fn said(&mut self, words: &str, from: u64) -> Result<u64> {
        let mut first: Option<u64> = None;
        for member in self.on() {
            let log = self.ssh(member)?.run(
                "journalctl --no-pager --lines=1000 --output=short-unix --unit orlop-agent.service",
            )?;
            let seconds = |line: &str| line.split('.').next()?.trim().parse::<u64>().ok();
            let lines = log.lines().filter(|line| line.contains(words));
            first = lines
                .filter_map(seconds)
                .filter(|second| *second >= from)
                .chain(first)
                .min();
        }
        first.with_context(|| format!("no agent has said {words:?}"))
    }

    /// When a unit was up on each machine that is on, by the seconds in the lines `up SECONDS` of its log.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn spans(&mut self, unit: &str) -> Result<Vec<Span>> {
        let mut spans = Vec::new();
        for member in self.on() {
            let log = self.ssh(member)?.run(&format!(
                "journalctl --no-pager --lines=100000 --output=cat --unit {unit}"
            ))?;
            spans.extend(spans_of(member, &log));
        }
        spans.sort_by_key(|span| (span.from, span.to));
        Ok(spans)
    }

    /// What somebody who looks for a failure's reason wants first.
    #[must_use]
    pub fn last_words(&self) -> String {
        let guests = self.members.iter().filter_map(|m| m.guest.as_ref());
        guests
            .map(Guest::last_words)
            .collect::<Vec<_>>()
            .join("\n\n")
    }

    /// Powers all off in order.
    ///
    /// # Errors
    /// One does not power off.
    pub fn power_off(&mut self) -> Result<()> {
        for member in self.on() {
            self.guest(member)?.press_power_button()?;
            if let Some(member) = self.members.get_mut(member) {
                member.guest = None;
            }
        }
        Ok(())
    }
}

/// The placement of a unit by `fleetctl why`: the machine's address and the fencing number.
///
/// # Errors
/// The unit is nowhere.
pub fn placement(why: &str) -> Result<(String, u64)> {
    let found = why.lines().find_map(|line| {
        let (machine, rest) = line.trim().strip_prefix("on ")?.split_once(", number ")?;
        let number = rest.split([',', '\n']).next()?.parse().ok()?;
        Some((machine.to_owned(), number))
    });
    found.with_context(|| format!("no placement in {why:?}"))
}

fn spans_of(member: usize, log: &str) -> Vec<Span> {
    // A guest that gets little of the host's processor skips seconds; a run that ended is longer away than this.
    const GAP: u64 = 10;
    let mut spans: Vec<Span> = Vec::new();
    let times = log
        .lines()
        .filter_map(|line| line.trim().strip_prefix("up ")?.trim().parse().ok());
    for time in times {
        match spans.last_mut() {
            Some(span) if time >= span.to && time - span.to <= GAP => span.to = time,
            _ => spans.push(Span {
                member,
                from: time,
                to: time,
            }),
        }
    }
    spans
}

/// Whether no two machines had the unit at once.
///
/// # Errors
/// Two had, or none ever.
pub fn ran_once(spans: &[Span]) -> Result<()> {
    ensure!(!spans.is_empty(), "the unit never said that it was up");
    let mut last: BTreeMap<usize, u64> = BTreeMap::new();
    for span in spans {
        for (member, to) in &last {
            if *member != span.member && *to >= span.from {
                bail!(
                    "machine {member} had it until {to}, machine {} from {} on",
                    span.member,
                    span.from
                );
            }
        }
        let to = last.entry(span.member).or_default();
        *to = span.to.max(*to);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_on_two_machines_at_once_is_found() {
        let mut spans = spans_of(0, "up 100\nnoise\nup 101\nup 103\n");
        spans.extend(spans_of(1, "up 120\nup 121\n"));
        assert_eq!(spans.len(), 2);
        ran_once(&spans).expect("one after the other");
        spans.extend(spans_of(2, "up 121\nup 122\n"));
        assert!(ran_once(&spans).is_err());
        assert!(ran_once(&[]).is_err());
    }

    #[test]
    fn the_placement_is_read_from_what_fleetctl_says() {
        let why = "page.service: launched is wanted\n  on 0123abcd.../10.77.0.2, number 7, active (running)\n";
        assert_eq!(
            placement(why).expect("a placement"),
            ("0123abcd.../10.77.0.2".to_owned(), 7)
        );
    }
}
