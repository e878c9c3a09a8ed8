//! Starting a container: from flags and image to a process that runs, and to its end.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use oci_spec::image::ImageConfiguration;
use orlop_container::{
    Cgroup, Container, Created, MountRequest, MountSource, Options, Port, Record, Records, Running,
    Seccomp, compose,
};
use orlop_sys::pidfd::{self, Exit};

use super::flags::{Network, RunFlags, Wanted};
use super::{CONTAINERS, IMAGES, cleanup, files, init, signal_number, volumes};

/// How long a container may take to stop before it is killed, unless told otherwise.
const STOP_TIMEOUT_SECONDS: u64 = 10;

/// Starts what the flags describe; returns what the command exits with.
pub(crate) fn run(flags: &RunFlags) -> Result<u8> {
    let id = new_id()?;
    let short_id = id.get(..12).unwrap_or(&id).to_owned();
    let name = flags.name.clone().unwrap_or_else(|| short_id.clone());
    check_name(&name)?;
    let unit = if flags.detach.0 { None } else { unit_of_ours() };
    let records = Records::new(Records::DIRECTORY);
    make_room(&records, &name, flags.replace.0 || unit.is_some())?;

    let mut wanted = flags.resolve(&short_id)?;
    let hostname = wanted.request.hostname.clone();
    let root = find_root(flags)?;
    let own_files = files::prepare(&records.files_of(&name), flags, &hostname, wanted.network)?;
    add_own_files(&mut wanted, own_files);
    if let Some(mount) = notification_socket(flags)? {
        wanted
            .request
            .environment
            .push(format!("NOTIFY_SOCKET={}", mount.destination.display()));
        wanted.request.mounts.push(mount);
    }
    if flags.init.0 {
        wanted.request.mounts.push(init::mount()?);
    }
    volumes::make_sources(&wanted.request.mounts)?;

    if flags.tty.0 {
        wanted
            .request
            .environment
            .insert(0, "TERM=xterm".to_owned());
    }
    let mut spec = compose(&wanted.request, root.config.as_ref())?;
    if flags.init.0 {
        init::wrap(&mut spec);
    }
    let config = root.config.as_ref().and_then(|c| c.config().as_ref());
    let user = flags
        .user
        .clone()
        .or_else(|| config.and_then(|c| c.user().clone()))
        .unwrap_or_default();
    let working_directory = spec
        .process()
        .as_ref()
        .map(|p| p.cwd().clone())
        .unwrap_or_default();
    let cgroup = cgroup(&name, unit.is_some());
    let container = Container::prepare(
        &spec,
        Options {
            layers: root.layers.clone(),
            directory: Path::new(CONTAINERS).join(&name),
            volumes: wanted.volumes.clone(),
            user: Some(user.clone()),
            groups: flags.group_add.clone(),
            seccomp: if wanted.unconfined {
                Seccomp::Unconfined
            } else {
                Seccomp::Default
            },
            cgroup: cgroup.clone(),
            child_of_our_parent: unit.is_some() || flags.detach.0 && parent_id() == 1,
        },
    )?;

    let mut record = Record {
        name: name.clone(),
        id: id.clone(),
        image: flags.image.clone(),
        command: spec
            .process()
            .as_ref()
            .and_then(|p| p.args().clone())
            .unwrap_or_default(),
        created_unix_seconds: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        user,
        working_directory,
        unit: unit.clone(),
        cgroup: match &cgroup {
            Cgroup::New(path) => Some(path.clone()),
            Cgroup::Own(_) | Cgroup::Inherited => None,
        },
        ports: wanted.publish.iter().map(port).collect(),
        attached: wanted.network == Network::Bridge,
        stop_signal: stop_signal(flags, config)?,
        stop_timeout_seconds: flags.stop_timeout.unwrap_or(STOP_TIMEOUT_SECONDS),
        labels: wanted.labels.clone(),
        remove: flags.rm.0,
        ..Record::default()
    };
    let streams = Streams::arrange(flags, &name, &mut record)?;
    let result = bring_up(flags, container, &wanted, &records, &mut record);
    streams.restore()?;
    let running = match result {
        Ok(running) => running,
        Err(error) => {
            cleanup(&records, &record, true);
            return Err(error);
        }
    };
    // The layers are mounted, and nobody can remove them from under the container any more.
    drop(root);
    if let Some(path) = &flags.cidfile {
        std::fs::write(path, &id).with_context(|| format!("write {}", path.display()))?;
    }
    if flags.detach.0 {
        println!("{id}");
        return Ok(0);
    }
    if unit.is_some() {
        return Ok(0);
    }
    let code = wait_exit_code(&running)?;
    record.exit_code = Some(i32::from(code));
    cleanup(&records, &record, flags.rm.0);
    Ok(code)
}

/// From a prepared container to one that runs, with network, record and the word to PID 1.
fn bring_up(
    flags: &RunFlags,
    container: Container,
    wanted: &Wanted,
    records: &Records,
    record: &mut Record,
) -> Result<Running> {
    // From here on what stops us has to stop the container as well.
    let mut created = container.create()?;
    attach_network(flags, &created, wanted, records, record)?;
    created.wait_ready()?;
    record.pid = created.pid();
    record.start_time_ticks =
        pidfd::start_time_ticks(created.pid()).context("look at the container's first process")?;
    records.save(record)?;
    if record.unit.is_some() {
        orlop_init::client::handoff(created.pidfd()).context("hand the container to PID 1")?;
    }
    Ok(created.start()?)
}

fn attach_network(
    flags: &RunFlags,
    created: &Created,
    wanted: &Wanted,
    records: &Records,
    record: &Record,
) -> Result<()> {
    if wanted.network != Network::Bridge {
        return Ok(());
    }
    let Some(namespace) = created.network_namespace()? else {
        return Ok(());
    };
    let attached = orlop_net::container::attach(&orlop_net::container::Attach {
        name: &record.name,
        netns: namespace.as_fd(),
        publish: &wanted.publish,
    })
    .context("attach to the network")?;
    let addresses = Some((attached.address, attached.gateway));
    let directory = records.files_of(&record.name);
    files::write_hosts(
        &directory,
        flags,
        &wanted.request.hostname,
        wanted.network,
        addresses,
    )
}

/// The root of the container.
struct Root {
    layers: Vec<PathBuf>,
    config: Option<ImageConfiguration>,
    /// Keeps the layers while it lives.
    _image: Option<orlop_image::Image>,
}

fn find_root(flags: &RunFlags) -> Result<Root> {
    if flags.rootfs.0 {
        let path = std::fs::canonicalize(&flags.image).with_context(|| flags.image.clone())?;
        return Ok(Root {
            layers: vec![path],
            config: None,
            _image: None,
        });
    }
    let image = orlop_image::Store::open(IMAGES)?.resolve(&flags.image)?;
    Ok(Root {
        layers: image.layers.clone(),
        config: Some(image.config.clone()),
        _image: Some(image),
    })
}

/// The user's own mounts of these places win.
fn add_own_files(wanted: &mut Wanted, own: Vec<MountRequest>) {
    for mount in own {
        if !wanted
            .request
            .mounts
            .iter()
            .any(|m| m.destination == mount.destination)
        {
            wanted.request.mounts.push(mount);
        }
    }
}

/// The unit whose main process we are, if we are one.
fn unit_of_ours() -> Option<String> {
    if parent_id() != 1 || std::env::var_os("INVOCATION_ID").is_none() {
        return None;
    }
    let cgroup = orlop_sys::cgroup::own().ok()?;
    cgroup
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
}

fn cgroup(name: &str, in_unit: bool) -> Cgroup {
    match (
        in_unit,
        orlop_sys::cgroup::own(),
        orlop_sys::cgroup::mount_point(),
    ) {
        (true, Ok(own), _) => Cgroup::Own(own),
        (_, _, Some(root)) => Cgroup::New(root.join("machine.slice").join(name)),
        _ => Cgroup::Inherited,
    }
}

/// Refuses a name that is taken, or removes what is left of an earlier container of that name.
fn make_room(records: &Records, name: &str, replace: bool) -> Result<()> {
    let Ok(old) = records.load(name) else {
        return Ok(());
    };
    match old.running() {
        Some(process) if replace => {
            stop_process(
                process.as_fd(),
                old.stop_signal,
                Duration::from_secs(old.stop_timeout_seconds),
            )?;
        }
        None if replace || old.remove => {}
        _ => bail!(
            "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove \
             (or rename) that container to be able to reuse that name.",
            old.id
        ),
    }
    cleanup(records, &old, true);
    Ok(())
}

/// Asks a process to stop, and kills it when it does not.
pub(crate) fn stop_process(process: BorrowedFd<'_>, signal: i32, timeout: Duration) -> Result<()> {
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(()),
        other => other,
    };
    gone(pidfd::send_signal(process, signal)).context("signal the container")?;
    if !pidfd::wait_for_exit(process, Some(timeout))? {
        gone(pidfd::send_signal(process, Signal::SIGKILL as i32)).context("kill the container")?;
        if !pidfd::wait_for_exit(process, Some(Duration::from_secs(10)))? {
            bail!("the container did not end 10 s after SIGKILL");
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    let mut characters = name.chars();
    let good = characters.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && characters.all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        && name.len() <= 200;
    if !good {
        bail!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
    }
    Ok(())
}

fn new_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    let mut source = std::fs::File::open("/dev/urandom").context("open /dev/urandom")?;
    std::io::Read::read_exact(&mut source, &mut bytes).context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn port(publish: &orlop_net::container::Publish) -> Port {
    Port {
        host_ip: publish.host_ip.map(Into::into),
        host_port: publish.host_port,
        container_port: publish.container_port,
        protocol: publish.protocol.to_string(),
    }
}

fn stop_signal(flags: &RunFlags, config: Option<&oci_spec::image::Config>) -> Result<i32> {
    let named = flags
        .stop_signal
        .clone()
        .or_else(|| config.and_then(|c| c.stop_signal().clone()));
    named
        .as_deref()
        .map_or(Ok(Signal::SIGTERM as i32), signal_number)
}

/// The socket of sd_notify(3), where the unit has one and `--notify` hands it on.
fn notification_socket(flags: &RunFlags) -> Result<Option<MountRequest>> {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) else {
        return Ok(None);
    };
    match flags.notify.as_deref() {
        Some("container" | "true") if socket.is_absolute() => Ok(Some(MountRequest {
            source: MountSource::Bind(socket),
            destination: "/run/notify".into(),
            read_only: false,
            options: Vec::new(),
        })),
        Some("container" | "true") => bail!("--notify: NOTIFY_SOCKET is no path"),
        _ => Ok(None),
    }
}

/// The standard streams of the container while it is made: its first process inherits ours.
struct Streams {
    own: Option<[std::os::fd::OwnedFd; 2]>,
}

impl Streams {
    fn arrange(flags: &RunFlags, name: &str, record: &mut Record) -> Result<Self> {
        if !flags.interactive.0 {
            let null = std::fs::File::open("/dev/null").context("open /dev/null")?;
            nix::unistd::dup2_stdin(&null).context("redirect standard input")?;
        }
        if !flags.detach.0 {
            return Ok(Self { own: None });
        }
        let own = [
            std::io::stdout().as_fd().try_clone_to_owned()?,
            std::io::stderr().as_fd().try_clone_to_owned()?,
        ];
        let path = Path::new(CONTAINERS).join(name).join("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        nix::unistd::dup2_stdout(&log).context("redirect standard output")?;
        nix::unistd::dup2_stderr(&log).context("redirect standard error")?;
        record.log = Some(path);
        Ok(Self { own: Some(own) })
    }

    fn restore(mut self) -> Result<()> {
        if let Some([output, errors]) = self.own.take() {
            nix::unistd::dup2_stdout(&output).context("restore standard output")?;
            nix::unistd::dup2_stderr(&errors).context("restore standard error")?;
        }
        Ok(())
    }
}

/// Waits as [`wait`] does; what a shell would call the result.
pub(crate) fn wait_exit_code(running: &Running) -> Result<u8> {
    let code = match wait(running)? {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    };
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Waits for the container, handing on the signals that we get.
fn wait(running: &Running) -> Result<Exit> {
    let mut handed_on = SigSet::empty();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGCONT,
        Signal::SIGWINCH,
    ] {
        handed_on.add(signal);
    }
    handed_on.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&handed_on, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        let mut polled = [
            PollFd::new(running.pidfd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match nix::poll::poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the container"),
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            // The container may have ended meanwhile.
            let _gone = running.signal(i32::try_from(signal.ssi_signo).unwrap_or(0));
        }
        if pidfd::has_exited(running.pidfd())? {
            return running.wait().context("wait for the container");
        }
    }
}
