//! What images weigh, how long a start from a disk takes, and how long an update.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Figure, mebibytes};
use crate::guest::{BOOT_PATIENCE, Guest, Machine, Network, Start};
use crate::http::server::{Content, Server};
use crate::image::{self, Key, Products, Project};
use crate::process;
use crate::system::{SystemDisk, Version};

/// The machine is healthy when the network is, at once.
const CONFIGURATION: &[u8] =
    b"#cloud-config\nhostname: bench\nupdate:\n  healthy: [network-online.target]\n  healthy_for: 0\n";

/// What the kernel says when the loader has handed over to it.
const HANDED_OVER: &str = "EFI stub";

/// The sizes of what is downloaded.
pub(super) fn sizes(products: &Products) -> Result<Vec<Figure>> {
    let size = |path: &Path| {
        std::fs::metadata(path)
            .map(|metadata| metadata.len())
            .with_context(|| format!("look at {}", path.display()))
    };
    let figure = |what: &str, bytes: u64, bar: f64| Figure {
        what: what.to_owned(),
        value: mebibytes(bytes),
        unit: "MiB",
        bar,
    };
    Ok(vec![
        figure(
            "the raw disk, compressed",
            size(&products.compressed_disk)?,
            64.0,
        ),
        figure("the qcow2 disk", size(&products.qcow2)?, 64.0),
        figure(
            "kernel and initramfs for starts over the network",
            size(&products.kernel)? + size(&products.initrd)?,
            56.0,
        ),
        figure("the payload of an update", size(&products.payload)?, 64.0),
        figure("the binary", size(&products.binary)?, 16.0),
    ])
}

/// A start by firmware and loader, and an update by HTTP in the guest that was started: both by the host's clock.
pub(super) fn disk(project: &Project, products: &Products) -> Result<Vec<Figure>> {
    let mut machine = Machine::new(project, "bench-update", products)?;
    machine.data_bytes = None;
    machine.memory_mib = 768;
    machine.network = Network::Open;
    machine.start = Start::Firmware;
    let runs = Version {
        name: "0.0.1",
        tries: Some(3),
        words: "",
    };
    SystemDisk::make(project, &mut machine, &[runs], 64)?;
    machine.write_seed(project, CONFIGURATION)?;
    let server = Server::start()?;
    let version = "0.0.2".parse()?;
    let slots = machine.directory.join("slots");
    let slot = image::slot(project, products, &version, "", &slots)?;
    let payload = slots.join("orlop.update");
    let key = Key::of_project(project)?;
    image::payload(&slot, &products.loader, &key, &payload)?;
    server.serve("/orlop.update", Content::File(payload));
    let mut guest = machine.start()?;
    let measured = measure(&mut guest, &server.url("/orlop.update"));
    let (healthy, applied) = measured.with_context(|| guest.last_words())?;
    guest.press_power_button()?;
    let figure = |what: &str, time: Duration| Figure {
        what: format!("{what} ({})", guest.accel.name()),
        value: time.as_secs_f64(),
        unit: "s",
        bar: 60.0,
    };
    Ok(vec![
        figure("from the loader to a start that is called good", healthy),
        figure("an update by HTTP", applied),
    ])
}

/// The time from the loader to the blessing, and that of the update from `url`.
fn measure(guest: &mut Guest, url: &str) -> Result<(Duration, Duration)> {
    guest.wait_for_console(HANDED_OVER, 0, BOOT_PATIENCE)?;
    let start = Instant::now();
    let ssh = guest.wait_for_ssh()?;
    process::poll("the start to be called good", start + BOOT_PATIENCE, || {
        let slots = ssh.run("sudo orlop slots --json")?;
        Ok(slots.contains("\"orlop_0.0.1.efi\"").then_some(()))
    })?;
    let healthy = start.elapsed();
    let start = Instant::now();
    ssh.run(&format!("sudo orlop update apply {url}"))?;
    Ok((healthy, start.elapsed()))
}
