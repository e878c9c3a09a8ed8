//! Three machines that are one: an application of two tiers, and the loss of the machine that serves its page.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};

use super::Steps;
use crate::cluster::{self, Cluster};
use crate::guest::BOOT_PATIENCE;
use crate::image::{self, Options, Products, Project};
use crate::process;

/// The cloud-config of all three.
const CONFIGURATION: &str = "configs/cluster.yaml";

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// From the cut of the power to the page of another machine, by the host's clock.
    pub page_away: Duration,
    /// From the cut to the leader's decision, by the guests' clocks, which show whole seconds here.
    pub decided_after_s: u64,
    /// From the decision to the page's first line in its log, by the guests' clocks.
    pub started_after_s: u64,
    /// The machine that had the page first, and the one that has it now, by number.
    pub moved: (usize, usize),
}

/// Tells the story to its end. The machines run on.
///
/// # Errors
/// A step fails.
pub fn tell(
    steps: &Steps,
    project: &Project,
    products: &Products,
    name: &str,
) -> Result<(Cluster, Figures)> {
    let user_data = std::fs::read(project.path(CONFIGURATION))
        .with_context(|| format!("read {CONFIGURATION}"))?;
    let mut cluster = Cluster::new(project, name, products, 3, &user_data)?;
    let told = in_order(steps, &mut cluster);
    match told {
        Ok(figures) => Ok((cluster, figures)),
        Err(error) => {
            let words = cluster.last_words();
            Err(error.context(words))
        }
    }
}

/// Boots the three machines, says how to get in, and keeps them until the end of the input.
///
/// # Errors
/// The image cannot be built, or a guest does not start.
pub fn keep(project: &Project, options: &Options) -> Result<()> {
    let products = image::image(project, options)?;
    let user_data = std::fs::read(project.path(CONFIGURATION))
        .with_context(|| format!("read {CONFIGURATION}"))?;
    let mut cluster = Cluster::new(project, "cluster", &products, 3, &user_data)?;
    for member in 0..3 {
        cluster.switch_on(member)?;
        println!("{}", cluster.ssh(member)?.command_line());
    }
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).context("read the input")?;
    cluster.power_off()
}

fn in_order(steps: &Steps, cluster: &mut Cluster) -> Result<Figures> {
    steps.step("three machines are switched on", || {
        (0..3).try_for_each(|member| cluster.switch_on(member))
    })?;
    steps.step("core can log in to each", || {
        (0..3).try_for_each(|member| cluster.guest(member)?.wait_for_ssh().map(drop))
    })?;
    let machines = steps.step("they have found each other", || {
        cluster.until(0, "fleetctl list-machines", |text| {
            text.lines().count() == 4 && text.matches("10.77.0.").count() == 3
        })
    })?;
    steps.show(&machines);
    let voters = steps.step("each has a vote in the store", || {
        cluster.until_voters(0, 3)
    })?;
    steps.show(&voters);
    let started = steps.step("fleetctl has started the counter and the page", || {
        cluster.ssh(0)?.run(
            "cd /etc/application && fleetctl start counter.service page.service && fleetctl list-units",
        )
    })?;
    steps.show(&started);
    let (first, page) = steps.step("the page is there", || cluster.page())?;
    steps.show(&page);
    let asked = cluster.on().into_iter().find(|member| *member != first);
    let asked = asked.context("no other machine")?;
    let why = cluster.ssh(asked)?.run("fleetctl why page")?;
    let (_, number) = cluster::placement(&why)?;
    steps.show(&why);

    let cut = Instant::now();
    let cut_at = seconds();
    cluster.cut_power(first)?;
    let (second, page) = steps.step(
        "the power of the machine that served it was cut, and the page is back from another",
        || cluster.page(),
    )?;
    let page_away = cut.elapsed();
    steps.show(&page);
    ensure!(second != first, "a machine without power serves a page");
    steps.show(&format!(
        "the page was away for {:.1} s",
        page_away.as_secs_f64()
    ));
    let decided = cluster.said("place page.service on ", cut_at)?;
    let up = cluster.spans("page.service")?;
    let up = up.iter().find(|span| span.member == second);
    let up = up.context("the page's second machine has no log of it")?;
    let (decided_after_s, started_after_s) = (
        decided.saturating_sub(cut_at),
        up.from.saturating_sub(decided),
    );
    steps.show(&format!(
        "{decided_after_s} s until the leader decided, {started_after_s} s until the container ran"
    ));
    let why = cluster.ssh(asked)?.run("fleetctl why page")?;
    let (place, next_number) = cluster::placement(&why)?;
    steps.show(&why);
    ensure!(
        next_number > number,
        "the fencing number was {number} and is {next_number}"
    );

    steps.step("the first machine is back", || {
        cluster.switch_on(first)?;
        cluster.guest(first)?.wait_for_ssh()?;
        cluster.until(asked, "fleetctl list-machines", |text| {
            text.lines().count() == 4
        })
    })?;
    steps.step("it runs nothing of what was moved away", || {
        stays_away(cluster, first)
    })?;
    let why = cluster.ssh(asked)?.run("fleetctl why page")?;
    ensure!(
        cluster::placement(&why)? == (place, next_number),
        "the return of a machine moved the page:\n{why}"
    );
    let spans = steps.step("the logs of all machines were read", || {
        cluster.spans("page.service")
    })?;
    for span in &spans {
        steps.show(&format!(
            "machine {} had the page from second {} to {}",
            span.member, span.from, span.to
        ));
    }
    cluster::ran_once(&spans)?;
    let list = cluster
        .ssh(first)?
        .run("fleetctl list-machines && fleetctl list-units")?;
    steps.show(&list);
    steps.show("nothing ran twice");
    Ok(Figures {
        page_away,
        decided_after_s,
        started_after_s,
        moved: (first, second),
    })
}

/// Seconds since the epoch, as the guests have them from the host.
fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// For as long as a unit would take to start there.
fn stays_away(cluster: &mut Cluster, member: usize) -> Result<()> {
    let ssh = cluster.ssh(member)?;
    // Its agent has heard of the cluster: it lists it.
    process::poll("its agent", Instant::now() + BOOT_PATIENCE, || {
        Ok(ssh
            .run("fleetctl list-machines --no-legend")
            .ok()
            .filter(|list| list.lines().count() == 3))
    })?;
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let said = ssh.output("systemctl is-active page.service")?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(
            !said.starts_with("active"),
            "the page runs on a machine that has lost it"
        );
    }
    Ok(())
}
