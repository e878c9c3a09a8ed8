//! One guest: its disks, its ports, its life.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::accel::{self, Accel};
use crate::console::{Log, Shell};
use crate::image::{Products, Project};
use crate::lan::Cable;
use crate::process::{self, Owned};
use crate::qmp::Qmp;
use crate::seed::{self, Seed};
use crate::ssh::{Key, Ssh};

/// The guest's port of the SSH server.
pub const SSH: u16 = 22;
/// The guest's port of the sample web page.
pub const WEB: u16 = 80;

/// What a boot may take under emulation on a busy machine: ten times and more of what it does take.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// What an orderly power-off may take.
pub const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// Silence of a kernel that has not come to init yet, after which it hangs. It says something every second even on a busy host.
const KERNEL_PATIENCE: Duration = Duration::from_secs(60);
/// How often a guest is reset for that.
const MOST_RESETS: usize = 2;

/// The data disk's serial number, by which the configurations name it.
const DATA_SERIAL: &str = "orlop-data";
/// The system disk's.
pub const SYSTEM_SERIAL: &str = "orlop-system";

/// The guest's network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// None at all.
    Absent,
    /// QEMU's own, with the way out to the world open.
    Open,
    /// QEMU's own; only the forwarded ports lead in, nothing leads out.
    Closed,
}

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// QEMU loads the kernel and this initramfs.
    Initramfs(PathBuf),
    /// UEFI firmware loads what is on the system disk, on the medium in the drive, or what the network has, in this order; the
    /// command line is that one's.
    Firmware,
    /// The firmware of old PCs, and iPXE of the network card: what the network has.
    Bios,
}

/// Debian's OVMF: its code, and the variables that a new machine begins with.
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Where the serial line goes, beside its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serial {
    /// To a socket, for [`Guest::shell`].
    Socket,
    /// To this terminal.
    Terminal,
}

/// A machine to be started: a directory that holds its disks and logs, and what QEMU is told.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Holds the disks, the key, the logs and the sockets.
    pub directory: PathBuf,
    /// The kernel and the initramfs.
    pub products: Products,
    /// What it starts from.
    pub start: Start,
    /// Whether it has the disk [`Machine::system_disk`] to start from.
    pub has_system_disk: bool,
    /// The port of 127.0.0.1 where the system disk is served ([`crate::power`]); nothing: QEMU reads its file.
    pub system_disk_port: Option<u16>,
    /// The medium in its optical drive, where it has one.
    pub medium: Option<PathBuf>,
    /// What its network tells iPXE to load: a URL.
    pub boot_file: Option<String>,
    /// More words for QEMU.
    pub more: Vec<String>,
    /// Whether it has a watchdog, Intel's 6300ESB.
    pub has_watchdog: bool,
    /// Whether a panic of its kernel is what a test is after.
    pub may_panic: bool,
    /// The kernel command line.
    pub command_line: String,
    /// The guest's ports that are reached through one of the host's.
    pub ports: Vec<u16>,
    /// The network card.
    pub network: Network,
    /// A second card, on a network with other guests.
    pub cable: Option<Cable>,
    /// The serial line.
    pub serial: Serial,
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The data disk's size in bytes; nothing: no data disk.
    pub data_bytes: Option<u64>,
    /// The key for `core`, which [`Machine::write_seed`] puts onto the volume.
    pub key: Key,
}

impl Machine {
    /// A machine below `build/guests/NAME`, made anew: what an earlier run left there is removed.
    ///
    /// # Errors
    /// The directory cannot be made, or ssh-keygen fails.
    pub fn new(project: &Project, name: &str, products: &Products) -> Result<Self> {
        let directory = project.path("build/guests").join(name);
        if directory.exists() {
            std::fs::remove_dir_all(&directory)
                .with_context(|| format!("remove {}", directory.display()))?;
        }
        Self::kept(project, name, products)
    }

    /// A machine below `build/guests/NAME`, with the data disk that an earlier run left there.
    ///
    /// # Errors
    /// As for [`Machine::new`].
    pub fn kept(project: &Project, name: &str, products: &Products) -> Result<Self> {
        let directory = project.path("build/guests").join(name);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        // The log levels up to informational go to the console: it is what a failed run is judged by.
        let command_line = format!("{} loglevel=7", project.kernel_command_line()?);
        Ok(Self {
            key: Key::make(&directory)?,
            directory,
            products: products.clone(),
            start: Start::Initramfs(products.initrd.clone()),
            has_system_disk: false,
            system_disk_port: None,
            medium: None,
            boot_file: None,
            more: Vec::new(),
            has_watchdog: false,
            may_panic: false,
            command_line,
            ports: vec![SSH, WEB],
            network: Network::Closed,
            cable: None,
            serial: Serial::Socket,
            cpus: 2,
            memory_mib: 512,
            data_bytes: Some(1 << 30),
        })
    }

    /// Gives it a new system disk without anything on it, of a size in bytes.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn add_blank_system_disk(&mut self, bytes: u64) -> Result<()> {
        let disk = self.system_disk();
        File::create(&disk)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("make {}", disk.display()))?;
        self.has_system_disk = true;
        Ok(())
    }

    /// The data disk's file.
    #[must_use]
    pub fn data_disk(&self) -> PathBuf {
        self.directory.join("data.raw")
    }

    /// The system disk's file.
    #[must_use]
    pub fn system_disk(&self) -> PathBuf {
        self.directory.join("system.raw")
    }

    /// Writes the NoCloud volume: `user_data` word for word, our key, the sample image as `web.tar`.
    ///
    /// # Errors
    /// The volume cannot be made.
    pub fn write_seed(&self, project: &Project, user_data: &[u8]) -> Result<()> {
        let seed = Seed {
            user_data: user_data.to_vec(),
            keys: vec![self.key.public.clone()],
            files: vec![("web.tar".to_owned(), seed::web_archive(project)?)],
        };
        self.write_seed_with(&seed)
    }

    /// Writes the NoCloud volume with just what `seed` says.
    ///
    /// # Errors
    /// The volume cannot be made.
    pub fn write_seed_with(&self, seed: &Seed) -> Result<()> {
        seed.write(&self.directory.join("cidata.img"))
            .context("make the NoCloud volume")
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// A disk cannot be made, or QEMU does not come up.
    pub fn start(&self) -> Result<Guest> {
        if let Some(size) = self.data_bytes {
            let disk = self.data_disk();
            if !disk.exists() {
                File::create(&disk)
                    .and_then(|file| file.set_len(size))
                    .with_context(|| format!("make {}", disk.display()))?;
            }
        }
        let variables = self.directory.join("variables.fd");
        if self.start == Start::Firmware && !variables.exists() {
            std::fs::copy(OVMF_VARIABLES, &variables)
                .with_context(|| format!("copy {OVMF_VARIABLES}, of the package ovmf"))?;
        }
        // Another program may take a port between our look and QEMU's: try again with others.
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.start_once() {
                Err(error) if attempt < 4 && format!("{error:#}").contains("host forwarding") => {}
                result => return result,
            }
        }
    }

    fn start_once(&self) -> Result<Guest> {
        let accel = accel::probe();
        let ports = match self.network {
            Network::Absent => BTreeMap::new(),
            Network::Open | Network::Closed => free_ports(&self.ports)?,
        };
        for socket in ["serial", "qmp"] {
            let _ = std::fs::remove_file(self.directory.join(socket));
        }
        let log = Log {
            path: self.next_log(),
        };
        let errors = log.path.with_extension("qemu");
        let mut command = process::bound("qemu-system-x86_64");
        // Relative names of sockets: `sun_path` holds 108 bytes, and the work tree may lie deep.
        command
            .current_dir(&self.directory)
            .args(self.arguments(accel, &ports, &log.path));
        if self.serial == Serial::Socket {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        command
            .stderr(File::create(&errors).with_context(|| format!("make {}", errors.display()))?);
        let child = Owned(process::spawn(command)?);
        let mut guest = Guest {
            child,
            log,
            directory: self.directory.clone(),
            accel,
            ports,
            key: self.key.clone(),
            errors,
            may_panic: self.may_panic,
            resets: 0,
        };
        let qmp = self.directory.join("qmp");
        process::poll(
            "QEMU's control socket",
            Instant::now() + Duration::from_secs(60),
            || {
                guest.alive()?;
                Ok(qmp.exists().then_some(()))
            },
        )?;
        Ok(guest)
    }

    /// `console.log` for the first start, `console-2.log` for the second: a failure is looked for in all of them.
    fn next_log(&self) -> PathBuf {
        let mut number = 1_u32;
        loop {
            let name = match number {
                1 => "console.log".to_owned(),
                _ => format!("console-{number}.log"),
            };
            let path = self.directory.join(name);
            if !path.exists() {
                return path;
            }
            number += 1;
        }
    }

    fn arguments(&self, accel: Accel, ports: &BTreeMap<u16, u16>, log: &Path) -> Vec<String> {
        let (memory, cpus) = (self.memory_mib.to_string(), self.cpus.to_string());
        let mut arguments: Vec<String> = [
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-M",
            "q35,sata=off,graphics=off",
            "-cpu",
            "max",
            "-smp",
            &cpus,
            "-m",
            &memory,
            "-accel",
            accel.name(),
            "-device",
            "virtio-rng-pci",
            "-qmp",
            "unix:qmp,server=on,wait=off",
            "-serial",
            "chardev:serial",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        match &self.start {
            Start::Initramfs(initramfs) => {
                add("-kernel", self.products.kernel.display().to_string());
                add("-initrd", initramfs.display().to_string());
                add("-append", self.command_line.clone());
            }
            Start::Firmware => {
                let flash =
                    |unit, options: &str| format!("if=pflash,format=raw,unit={unit},{options}");
                add("-drive", flash(0, &format!("readonly=on,file={OVMF_CODE}")));
                add("-drive", flash(1, "file=variables.fd"));
            }
            Start::Bios => {}
        }
        if self.has_watchdog {
            add("-device", "i6300esb".to_owned());
            add("-action", "watchdog=reset".to_owned());
        }
        // The first: /dev/vda.
        if self.has_system_disk {
            let file = match self.system_disk_port {
                Some(port) => format!("nbd:127.0.0.1:{port}"),
                None => "system.raw".to_owned(),
            };
            add(
                "-drive",
                format!("if=none,id=system,format=raw,discard=unmap,file={file}"),
            );
            add(
                "-device",
                // A kernel that QEMU loads has this place already.
                match self.start {
                    Start::Firmware | Start::Bios => {
                        format!("virtio-blk-pci,drive=system,serial={SYSTEM_SERIAL},bootindex=0")
                    }
                    Start::Initramfs(_) => {
                        format!("virtio-blk-pci,drive=system,serial={SYSTEM_SERIAL}")
                    }
                },
            );
        }
        if let Some(medium) = &self.medium {
            let medium = medium.display();
            add(
                "-drive",
                format!("if=none,id=medium,format=raw,media=cdrom,readonly=on,file={medium}"),
            );
            add("-device", "virtio-scsi-pci,id=scsi".to_owned());
            add(
                "-device",
                "scsi-cd,bus=scsi.0,drive=medium,bootindex=1".to_owned(),
            );
        }
        let log = file_name(log);
        add(
            "-chardev",
            match self.serial {
                Serial::Socket => {
                    format!("socket,id=serial,path=serial,server=on,wait=off,logfile={log}")
                }
                Serial::Terminal => {
                    format!("stdio,id=serial,mux=on,signal=off,logfile={log}")
                }
            },
        );
        // The data disk comes next, as /dev/vda where there is no system disk; cache=writeback keeps flushes honest.
        if self.data_bytes.is_some() {
            add(
                "-drive",
                "if=none,id=data,format=raw,discard=unmap,file=data.raw".to_owned(),
            );
            add(
                "-device",
                format!("virtio-blk-pci,drive=data,serial={DATA_SERIAL}"),
            );
        }
        if self.directory.join("cidata.img").exists() {
            add(
                "-drive",
                "if=none,id=cidata,format=raw,readonly=on,file=cidata.img".to_owned(),
            );
            add("-device", "virtio-blk-pci,drive=cidata".to_owned());
        }
        if self.network != Network::Absent {
            let mut user = "user,id=net".to_owned();
            if self.network == Network::Closed {
                user.push_str(",restrict=on");
            }
            for (guest, host) in ports {
                user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
            }
            let card = match &self.boot_file {
                Some(url) => {
                    user.push_str(&format!(",bootfile={url}"));
                    "virtio-net-pci,netdev=net,bootindex=2"
                }
                None => "virtio-net-pci,netdev=net,romfile=",
            };
            add("-netdev", user);
            add("-device", card.to_owned());
        }
        if let Some(cable) = &self.cable {
            arguments.extend(cable.arguments());
        }
        arguments.extend(self.more.iter().cloned());
        arguments
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// A port of the host that nobody uses for each of the guest's.
fn free_ports(guest: &[u16]) -> Result<BTreeMap<u16, u16>> {
    guest
        .iter()
        .map(|&guest| Ok((guest, orlop_testing::free_port()?)))
        .collect()
}

/// A guest that runs. It ends with its owner.
#[derive(Debug)]
pub struct Guest {
    child: Owned,
    /// What the serial line has said.
    pub log: Log,
    /// The accelerator in use.
    pub accel: Accel,
    directory: PathBuf,
    ports: BTreeMap<u16, u16>,
    key: Key,
    errors: PathBuf,
    may_panic: bool,
    /// How often it was reset because its kernel hung.
    resets: usize,
}

impl Guest {
    /// The host's port that leads to the guest's `port`.
    ///
    /// # Errors
    /// That port is not forwarded.
    pub fn port(&self, port: u16) -> Result<u16> {
        self.ports
            .get(&port)
            .copied()
            .with_context(|| format!("the guest's port {port} is not forwarded"))
    }

    /// The way in for `core`.
    ///
    /// # Errors
    /// The SSH port is not forwarded.
    pub fn ssh(&self) -> Result<Ssh> {
        Ok(Ssh {
            key: self.key.clone(),
            port: self.port(SSH)?,
            agent: None,
        })
    }

    /// The way in, once it is open.
    ///
    /// # Errors
    /// The guest dies or does not let us in.
    pub fn wait_for_ssh(&mut self) -> Result<Ssh> {
        let ssh = self.ssh()?;
        ssh.wait(Instant::now() + BOOT_PATIENCE, || self.alive())?;
        Ok(ssh)
    }

    /// A page of the guest's web server, once it is there.
    ///
    /// # Errors
    /// The guest dies or does not answer.
    pub fn wait_for_page(&mut self, path: &str) -> Result<String> {
        let port = self.port(WEB)?;
        crate::http::wait_for(port, path, Instant::now() + BOOT_PATIENCE, || self.alive())
    }

    /// The shell on the serial line; the kernel command line has to ask for one.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn shell(&self) -> Result<Shell> {
        Shell::open(&self.directory.join("serial"))
    }

    /// Waits until the console has `text` behind its first `from` bytes, and gives the line.
    ///
    /// # Errors
    /// The guest dies or does not say it in `patience`.
    pub fn wait_for_console(
        &mut self,
        text: &str,
        from: usize,
        patience: Duration,
    ) -> Result<String> {
        process::poll(
            &format!("`{text}` on the console"),
            Instant::now() + patience,
            || {
                let said = self.log.text_from(from);
                // A line that is still being written is none yet.
                let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
                if let Some(line) = whole.lines().find(|line| line.contains(text)) {
                    return Ok(Some(line.to_owned()));
                }
                self.alive()?;
                Ok(None)
            },
        )
    }

    /// Whether there is something to wait for.
    ///
    /// # Errors
    /// QEMU ended, or the guest's kernel panicked.
    pub fn alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.0.try_wait().context("look after QEMU")? {
            let said = std::fs::read_to_string(&self.errors).unwrap_or_default();
            bail!("QEMU ended with {status} {}", said.trim());
        }
        if self.may_panic {
            return Ok(());
        }
        let text = self.log.text();
        if let Some(line) = text.lines().find(|line| line.contains("Kernel panic")) {
            bail!("the guest's kernel gave up: {line}");
        }
        self.reset_if_stuck(&text)
    }

    /// Resets a guest whose kernel has said nothing for a minute, and has not begun with anything of ours yet: on a busy host
    /// QEMU's translated processors hang there now and then. What hangs later is left as it is.
    fn reset_if_stuck(&mut self, said: &str) -> Result<()> {
        if self.accel != Accel::Tcg || self.resets >= MOST_RESETS {
            return Ok(());
        }
        let starts = said.matches("] Linux version ").count();
        let begun = said.matches("] Run /init as init process").count();
        if starts <= begun + self.resets {
            return Ok(());
        }
        let silence = std::fs::metadata(&self.log.path)
            .and_then(|log| log.modified())
            .map(|at| at.elapsed().unwrap_or_default());
        if !silence.is_ok_and(|silence| silence > KERNEL_PATIENCE) {
            return Ok(());
        }
        self.resets += 1;
        eprintln!(
            "qemu: the kernel hangs before init, and the guest is reset: {}",
            said.lines().next_back().unwrap_or_default()
        );
        self.qmp()?.execute("system_reset").map(|_| ())
    }

    /// Presses the power button and waits until QEMU has ended by itself.
    ///
    /// # Errors
    /// The guest does not power off in time, or QEMU ends with an error.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.qmp()?.execute("system_powerdown")?;
        self.wait_for_end()
    }

    /// Presses Ctrl, Alt and Delete together on the guest's keyboard.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn press_ctrl_alt_del(&self) -> Result<()> {
        let keys = ["ctrl", "alt", "delete"]
            .map(|key| serde_json::json!({ "type": "qcode", "data": key }));
        let arguments = serde_json::json!({ "keys": keys });
        self.qmp()?.execute_with("send-key", &arguments).map(|_| ())
    }

    /// Waits until QEMU has ended by itself, after something in the guest was told to power off.
    ///
    /// # Errors
    /// It does not end in time, or ends with an error.
    pub fn wait_for_end(&mut self) -> Result<()> {
        let status = self.wait_status(STOP_PATIENCE)?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        let text = self.log.text();
        if !self.may_panic && text.contains("Kernel panic") {
            bail!("the guest's kernel gave up on its way down");
        }
        Ok(())
    }

    fn wait_status(&mut self, patience: Duration) -> Result<ExitStatus> {
        process::poll("the guest to power off", Instant::now() + patience, || {
            self.child.0.try_wait().context("look after QEMU")
        })
    }

    /// Waits without a limit until QEMU ends, for a person at the console.
    ///
    /// # Errors
    /// QEMU cannot be waited for.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.0.wait().context("wait for QEMU")
    }

    /// Cuts the power: nothing in the guest gets to do anything more.
    ///
    /// # Errors
    /// QEMU cannot be killed.
    pub fn cut_power(mut self) -> Result<()> {
        self.child.0.kill().context("kill QEMU")?;
        self.child.0.wait().context("wait for QEMU")?;
        Ok(())
    }

    /// QEMU's control socket.
    ///
    /// # Errors
    /// QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::open(&self.directory.join("qmp"))
    }

    /// What somebody who looks for a failure's reason wants first.
    #[must_use]
    pub fn last_words(&self) -> String {
        format!(
            "the console's last lines:\n{}\nconsole log: {}",
            self.log.tail(30),
            self.log.path.display()
        )
    }
}
