//! From what the user asked for and what the image says to an OCI runtime specification, with the defaults of Docker.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDevice,
    LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder,
    LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, ProcessBuilder,
    RootBuilder, Spec, SpecBuilder,
};

use crate::capabilities::capability_names;

/// What is mounted where a container wants a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A file or directory of the machine.
    Bind(PathBuf),
    /// Memory, with options of tmpfs such as `size=64m`.
    Tmpfs(Vec<String>),
}

/// A mount that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// What.
    pub source: MountSource,
    /// Where, in the container.
    pub destination: PathBuf,
    /// Whether nothing can be written through it.
    pub read_only: bool,
    /// Further options of the mount: `noexec`, `rslave`, ….
    pub options: Vec<String>,
}

/// A device node of the machine that the container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its path in the container.
    pub path: PathBuf,
    /// Block rather than character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Mode, owner and group of the node.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of `rwm`, what is allowed.
    pub access: String,
}

/// What the user asked for: the flags of `docker run`, parsed.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Host name.
    pub hostname: String,
    /// `--entrypoint`; an empty first word takes the image's away.
    pub entrypoint: Option<Vec<String>>,
    /// Words after the image.
    pub command: Vec<String>,
    /// `NAME=value`; later ones win.
    pub environment: Vec<String>,
    /// `--workdir`.
    pub working_directory: Option<PathBuf>,
    /// Bit n is capability number n.
    pub capabilities: u64,
    /// Whether programs with setuid bits gain nothing.
    pub no_new_privileges: bool,
    /// All devices, no masks, sysfs and cgroups writable.
    pub privileged: bool,
    /// Whether the root cannot be written to.
    pub read_only: bool,
    /// Whether the container has a network namespace of its own.
    pub own_network: bool,
    /// Mounts besides the standard ones.
    pub mounts: Vec<MountRequest>,
    /// `/dev/shm`, in bytes; 64 MiB by default.
    pub shm_size_bytes: Option<u64>,
    /// Namespaced kernel values.
    pub sysctls: BTreeMap<String, String>,
    /// Resource limits of the process.
    pub limits: Vec<PosixRlimit>,
    /// Memory limit.
    pub memory_bytes: Option<i64>,
    /// Memory and swap together, -1 for no limit.
    pub memory_swap_bytes: Option<i64>,
    /// Soft memory limit.
    pub memory_reservation_bytes: Option<i64>,
    /// Processors, in thousandths.
    pub cpu_thousandths: Option<u64>,
    /// Relative weight, 1024 by default.
    pub cpu_shares: Option<u64>,
    /// Processors to run on: `0-3,5`.
    pub cpu_set: Option<String>,
    /// Processes at most; -1 for no limit.
    pub pids: Option<i64>,
    /// -1000..=1000.
    pub oom_score_adjust: Option<i32>,
    /// Device nodes besides the standard ones.
    pub devices: Vec<Device>,
}

/// Paths that show or change the machine: covered in every container.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths that stay visible but cannot be written to.
const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Docker's own default path, for images that set none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Composes the specification.
///
/// # Errors
/// Only when the specification's own types refuse a value.
pub fn compose(
    request: &Request,
    image: Option<&ImageConfiguration>,
) -> Result<Spec, OciSpecError> {
    let config = image.and_then(|image| image.config().as_ref());
    let image_entrypoint = config
        .and_then(|c| c.entrypoint().clone())
        .unwrap_or_default();
    let image_command = config.and_then(|c| c.cmd().clone()).unwrap_or_default();
    let mut arguments = match &request.entrypoint {
        Some(words) => words.iter().filter(|w| !w.is_empty()).cloned().collect(),
        None => image_entrypoint,
    };
    // An entry point of the user's own does not get the arguments that the image meant for another.
    if !request.command.is_empty() {
        arguments.extend(request.command.iter().cloned());
    } else if request.entrypoint.is_none() {
        arguments.extend(image_command);
    }
    let mut environment = Environment::default();
    environment.set(DEFAULT_PATH);
    environment.set(&format!("HOSTNAME={}", request.hostname));
    for entry in config
        .and_then(|c| c.env().as_ref())
        .into_iter()
        .flatten()
        .chain(&request.environment)
    {
        environment.set(entry);
    }
    let working_directory = request
        .working_directory
        .clone()
        .or_else(|| {
            config
                .and_then(|c| c.working_dir().clone())
                .filter(|d| !d.is_empty())
                .map(PathBuf::from)
        })
        .unwrap_or_else(|| PathBuf::from("/"));

    let set: HashSet<Capability> = capability_names(request.capabilities)
        .filter_map(|name| name.trim_start_matches("CAP_").parse().ok())
        .collect();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?;
    let mut process = ProcessBuilder::default()
        .args(arguments)
        .env(environment.0)
        .cwd(working_directory)
        .capabilities(capabilities)
        .rlimits(request.limits.clone())
        .terminal(false)
        .no_new_privileges(request.no_new_privileges);
    if let Some(adjust) = request.oom_score_adjust {
        process = process.oom_score_adj(adjust);
    }

    let kinds = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ];
    let network = request.own_network.then_some(LinuxNamespaceType::Network);
    let namespaces = kinds
        .into_iter()
        .chain(network)
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    let texts = |list: &[&str]| {
        if request.privileged {
            Vec::new()
        } else {
            list.iter().map(|t| (*t).to_owned()).collect()
        }
    };
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .masked_paths(texts(&MASKED_PATHS))
        .readonly_paths(texts(&READ_ONLY_PATHS))
        .sysctl(
            request
                .sysctls
                .clone()
                .into_iter()
                .collect::<std::collections::HashMap<_, _>>(),
        )
        .devices(
            request
                .devices
                .iter()
                .map(node)
                .collect::<Result<Vec<_>, _>>()?,
        )
        .resources(resources(request)?)
        .build()?;
    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(request.read_only)
                .build()?,
        )
        .mounts(mounts(request)?)
        .process(process.build()?)
        .hostname(request.hostname.clone())
        .linux(linux)
        .build()?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None);
    }
    Ok(spec)
}

/// An environment in which a name occurs once.
#[derive(Default)]
struct Environment(Vec<String>);

impl Environment {
    fn set(&mut self, entry: &str) {
        let name = entry.split('=').next().unwrap_or_default();
        let is_same = |old: &&mut String| old.split('=').next() == Some(name);
        match self.0.iter_mut().find(is_same) {
            Some(old) => entry.clone_into(old),
            None => self.0.push(entry.to_owned()),
        }
    }
}

fn mounts(request: &Request) -> Result<Vec<Mount>, OciSpecError> {
    let shm = format!("size={}", request.shm_size_bytes.unwrap_or(64 << 20));
    let api = if request.privileged { "rw" } else { "ro" };
    let standard: [(&str, &str, &[&str]); 7] = [
        ("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        (
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        (
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        (
            "tmpfs",
            "/dev/shm",
            &["nosuid", "noexec", "nodev", "mode=1777", &shm],
        ),
        ("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        ("sysfs", "/sys", &["nosuid", "noexec", "nodev", api]),
        (
            "cgroup",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", api],
        ),
    ];
    let mut mounts = Vec::new();
    for (kind, destination, options) in standard {
        // The user's own mount of the place comes instead.
        if request
            .mounts
            .iter()
            .any(|m| m.destination == std::path::Path::new(destination))
        {
            continue;
        }
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        mounts.push(
            MountBuilder::default()
                .typ(kind)
                .source(kind)
                .destination(destination)
                .options(options)
                .build()?,
        );
    }
    // A mount inside another has to come after it.
    let mut wanted: Vec<&MountRequest> = request.mounts.iter().collect();
    wanted.sort_by_key(|m| m.destination.components().count());
    for mount in wanted {
        let mut options = mount.options.clone();
        options.push(if mount.read_only { "ro" } else { "rw" }.to_owned());
        let builder = MountBuilder::default().destination(&mount.destination);
        mounts.push(match &mount.source {
            MountSource::Bind(path) => {
                options.insert(0, "rbind".to_owned());
                builder.typ("bind").source(path).options(options).build()?
            }
            MountSource::Tmpfs(more) => {
                let mut all = vec!["nosuid".to_owned(), "nodev".to_owned()];
                all.extend(options);
                all.extend(more.iter().cloned());
                builder.typ("tmpfs").source("tmpfs").options(all).build()?
            }
        });
    }
    Ok(mounts)
}

fn resources(request: &Request) -> Result<LinuxResources, OciSpecError> {
    let mut builder = LinuxResourcesBuilder::default().devices(device_rules(request)?);
    if request.memory_bytes.is_some() || request.memory_reservation_bytes.is_some() {
        let mut memory = LinuxMemoryBuilder::default();
        if let Some(limit) = request.memory_bytes {
            // As much swap again, as Docker has it.
            memory = memory
                .limit(limit)
                .swap(request.memory_swap_bytes.unwrap_or(limit.saturating_mul(2)));
        }
        if let Some(reservation) = request.memory_reservation_bytes {
            memory = memory.reservation(reservation);
        }
        builder = builder.memory(memory.build()?);
    }
    if request.cpu_thousandths.is_some()
        || request.cpu_shares.is_some()
        || request.cpu_set.is_some()
    {
        let mut cpu = LinuxCpuBuilder::default();
        if let Some(thousandths) = request.cpu_thousandths {
            let quota = i64::try_from(thousandths.saturating_mul(100)).unwrap_or(i64::MAX);
            cpu = cpu.quota(quota).period(100_000_u64);
        }
        if let Some(shares) = request.cpu_shares {
            cpu = cpu.shares(shares);
        }
        if let Some(set) = &request.cpu_set {
            cpu = cpu.cpus(set.clone());
        }
        builder = builder.cpu(cpu.build()?);
    }
    if let Some(limit) = request.pids {
        builder = builder.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    builder.build()
}

/// Nodes may be made, but of devices only the standard ones, terminals and what the user gave may be opened.
fn device_rules(request: &Request) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow, kind, major: Option<i64>, minor: Option<i64>, access: &str| {
        let mut builder = LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(kind)
            .access(access.to_owned());
        if let Some(major) = major {
            builder = builder.major(major);
        }
        if let Some(minor) = minor {
            builder = builder.minor(minor);
        }
        builder.build()
    };
    use LinuxDeviceType::{A, B, C};
    let mut rules = vec![rule(request.privileged, A, None, None, "rwm")?];
    rules.push(rule(true, C, None, None, "m")?);
    rules.push(rule(true, B, None, None, "m")?);
    // null, zero, full, random, urandom; tty, console, ptmx; the slaves of devpts.
    let standard = [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ];
    for (major, minor) in standard {
        rules.push(rule(true, C, Some(major), Some(minor), "rwm")?);
    }
    rules.push(rule(true, C, Some(136), None, "rwm")?);
    for device in &request.devices {
        let kind = if device.block { B } else { C };
        rules.push(rule(
            true,
            kind,
            Some(device.major.into()),
            Some(device.minor.into()),
            &device.access,
        )?);
    }
    Ok(rules)
}

fn node(device: &Device) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(&device.path)
        .typ(if device.block {
            LinuxDeviceType::B
        } else {
            LinuxDeviceType::C
        })
        .major(i64::from(device.major))
        .minor(i64::from(device.minor))
        .file_mode(device.mode)
        .uid(device.uid)
        .gid(device.gid)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

    fn image() -> ImageConfiguration {
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/start".to_owned()])
            .cmd(vec!["serve".to_owned()])
            .env(vec!["PATH=/bin".to_owned(), "MODE=image".to_owned()])
            .working_dir("/srv".to_owned())
            .build()
            .unwrap();
        let mut image = ImageConfigurationBuilder::default()
            .architecture("amd64")
            .os("linux")
            .config(config);
        image = image.rootfs(
            oci_spec::image::RootFsBuilder::default()
                .diff_ids(Vec::<String>::new())
                .build()
                .unwrap(),
        );
        image.build().unwrap()
    }

    fn arguments(request: &Request) -> Vec<String> {
        compose(request, Some(&image()))
            .unwrap()
            .process()
            .clone()
            .unwrap()
            .args()
            .clone()
            .unwrap()
    }

    #[test]
    fn entry_point_and_command_combine_as_in_docker() {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let mut request = Request::default();
        assert_eq!(arguments(&request), ["/start", "serve"]);
        request.command = words(&["check", "-v"]);
        assert_eq!(arguments(&request), ["/start", "check", "-v"]);
        request.entrypoint = Some(words(&["/bin/sh"]));
        assert_eq!(arguments(&request), ["/bin/sh", "check", "-v"]);
        request.command.clear();
        assert_eq!(arguments(&request), ["/bin/sh"]);
    }

    #[test]
    fn the_users_environment_beats_the_images() {
        let request = Request {
            hostname: "web".into(),
            environment: vec!["MODE=user".into(), "NEW=1".into()],
            ..Request::default()
        };
        let spec = compose(&request, Some(&image())).unwrap();
        let process = spec.process().clone().unwrap();
        assert_eq!(
            process.env().clone().unwrap(),
            ["PATH=/bin", "HOSTNAME=web", "MODE=user", "NEW=1"]
        );
        assert_eq!(process.cwd(), &PathBuf::from("/srv"));
    }

    #[test]
    fn a_users_mount_replaces_the_standard_one_and_inner_mounts_come_last() {
        let bind = |destination: &str| MountRequest {
            source: MountSource::Bind("/srv".into()),
            destination: destination.into(),
            read_only: false,
            options: Vec::new(),
        };
        let request = Request {
            mounts: vec![bind("/data/inner"), bind("/data"), bind("/dev/shm")],
            ..Request::default()
        };
        let spec = compose(&request, None).unwrap();
        let order: Vec<String> = spec
            .mounts()
            .iter()
            .flatten()
            .map(|m| m.destination().display().to_string())
            .collect();
        assert_eq!(order.iter().filter(|d| *d == "/dev/shm").count(), 1);
        let place = |wanted: &str| order.iter().position(|d| d == wanted).unwrap();
        assert!(place("/data") < place("/data/inner"));
    }
}
