//! A node that was started over the network: the memory that it takes for itself.

use anyhow::{Context as _, Result};

use super::Figure;
use crate::guest::Machine;
use crate::image::{Products, Project};
use crate::seed::Seed;

/// Memory of the machine in MiB: the least that it has to start in.
const MEMORY_MIB: u32 = 384;

/// Memory at rest.
pub(super) fn figure(project: &Project, products: &Products) -> Result<Figure> {
    Ok(Figure {
        what: "memory of an idle node in memory, programs and tmpfs".to_owned(),
        value: memory(project, products)?,
        unit: "MiB",
        bar: 64.0,
    })
}

/// What programs have to themselves (`AnonPages`) and what lies in tmpfs, the root's image being one of it (`Shmem`): all that the kernel
/// can not take back (Documentation/filesystems/proc.rst).
fn memory(project: &Project, products: &Products) -> Result<f64> {
    let mut machine = Machine::new(project, "bench-netboot", products)?;
    machine.data_bytes = None;
    machine.memory_mib = MEMORY_MIB;
    machine.write_seed_with(&Seed {
        user_data: b"#cloud-config\nhostname: idle\n".to_vec(),
        keys: vec![machine.key.public.clone()],
        files: Vec::new(),
    })?;
    let mut guest = machine.start()?;
    let measured = (|| {
        let ssh = guest.wait_for_ssh()?;
        let text = ssh.run("sleep 10; cat /proc/meminfo")?;
        Ok::<f64, anyhow::Error>(kibibytes(&text, "AnonPages:")? + kibibytes(&text, "Shmem:")?)
    })();
    let kibibytes = measured.with_context(|| guest.last_words())?;
    guest.press_power_button()?;
    Ok(kibibytes / 1024.0)
}

/// The value of a line of `/proc/meminfo`.
fn kibibytes(text: &str, key: &str) -> Result<f64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next());
    value
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("/proc/meminfo has no {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let text = "ShmemHugePages:       7 kB\nShmem:             40960 kB\n";
        assert!((kibibytes(text, "Shmem:").expect("a value") - 40960.0).abs() < 1e-9);
        assert!(kibibytes(text, "AnonPages:").is_err());
    }
}
