//! `make run`: a guest of one's own, its console on this terminal.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::guest::{Machine, Network, SSH, Serial};
use crate::image::{self, Options, Project};

/// Starts a guest with the cloud-config at `config` and stays until it powers off. Its data disk is kept for the next time
/// under the same configuration's name.
///
/// # Errors
/// The image cannot be built, the configuration cannot be read, QEMU fails.
pub fn run(project: &Project, options: &Options, config: &Path, ports: &[u16]) -> Result<()> {
    let products = image::image(project, options)?;
    let user_data = std::fs::read(config).with_context(|| format!("read {}", config.display()))?;
    let name = config
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut machine = Machine::kept(project, &format!("run-{name}"), &products)?;
    machine.serial = Serial::Terminal;
    machine.network = Network::Open;
    for port in ports {
        if !machine.ports.contains(port) {
            machine.ports.push(*port);
        }
    }
    // A person reads this console: warnings only, and a shell on it.
    machine.command_line = format!("{} orlop.shell=ttyS0", project.kernel_command_line()?);
    machine.write_seed(project, &user_data)?;
    let mut guest = machine.start()?;
    for port in &machine.ports {
        println!("run: 127.0.0.1:{} leads to port {port}", guest.port(*port)?);
    }
    if machine.ports.contains(&SSH) {
        println!("run: {}", guest.ssh()?.command_line());
    }
    println!(
        "run: data disk {}, console log {}",
        machine.data_disk().display(),
        guest.log.path.display()
    );
    println!("run: `sudo poweroff` ends the guest; Ctrl-A X switches it off");
    let status = guest.wait()?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}
