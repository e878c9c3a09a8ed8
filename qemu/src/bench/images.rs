//! What images weigh, and how long an update takes.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::{Figure, mebibytes};
use crate::guest::{Machine, Network, Start};
use crate::http::server::{Content, Server};
use crate::image::{self, Key, Products, Project};
use crate::system::{SystemDisk, Version};

/// The level at which disks are compressed for downloads.
const LEVEL: &str = "-19";

/// The configuration of the machine that is updated: it has to be reached, nothing more.
const CONFIGURATION: &[u8] = b"#cloud-config\nhostname: bench\n";

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
        figure("the raw disk, zstd", compressed(&products.disk)?, 64.0),
        figure("the qcow2 disk, zstd", compressed(&products.qcow2)?, 64.0),
        figure(
            "kernel and initramfs for starts over the network",
            size(&products.kernel)? + size(&products.initrd)?,
            56.0,
        ),
        figure("the payload of an update", size(&products.payload)?, 64.0),
    ])
}

/// The size of a file when it is compressed, in bytes.
fn compressed(path: &Path) -> Result<u64> {
    let mut zstd = Command::new("zstd")
        .args(["-q", "-c", "-T0", LEVEL])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start zstd")?;
    let bytes = match &mut zstd.stdout {
        Some(stdout) => io::copy(stdout, &mut io::sink()).context("read from zstd")?,
        None => 0,
    };
    let status = zstd.wait().context("wait for zstd")?;
    ensure!(status.success(), "zstd {}: {status}", path.display());
    Ok(bytes)
}

/// The time that an update by HTTP takes in a guest, by the host's clock, from the command to its end.
pub(super) fn update(project: &Project, products: &Products) -> Result<Figure> {
    let mut machine = Machine::new(project, "bench-update", products)?;
    machine.data_bytes = None;
    machine.memory_mib = 768;
    machine.network = Network::Open;
    machine.start = Start::Initramfs(products.disk_initrd.clone());
    let runs = Version {
        name: "0.0.1",
        tries: None,
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
    let measured = (|| {
        let ssh = guest.wait_for_ssh()?;
        let start = Instant::now();
        ssh.run(&format!(
            "sudo orlop update apply {}",
            server.url("/orlop.update")
        ))?;
        Ok::<_, anyhow::Error>(start.elapsed())
    })();
    let elapsed = measured.with_context(|| guest.last_words())?;
    guest.press_power_button()?;
    Ok(Figure {
        what: format!("an update by HTTP ({})", guest.accel.name()),
        value: elapsed.as_secs_f64(),
        unit: "s",
        bar: 60.0,
    })
}
