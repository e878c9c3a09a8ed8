//! From what was read of a timer, socket, mount, path or slice to its type: defaults and checks that need the whole.

use crate::directive::Draft;
use crate::mount::Mount;
use crate::name::{UnitName, UnitType, escape_path, unescape_path};
use crate::path::PathUnit;
use crate::socket::{Address, Listen, Socket};
use crate::timer::Timer;
use crate::value::Span;

/// The unit that is started where nothing else is written: the service of the same name.
fn namesake(name: &UnitName) -> Result<UnitName, String> {
    UnitName::parse(&format!("{}.service", name.stem())).map_err(|error| error.to_string())
}

fn triggered(draft: &mut Draft, name: &UnitName) -> Result<UnitName, String> {
    match draft.triggered.take() {
        Some(unit) => Ok(unit),
        None => namesake(name),
    }
}

pub(super) fn timer(draft: &mut Draft, name: &UnitName) -> Result<Timer, String> {
    let unit = triggered(draft, name)?;
    let timer = draft.timer();
    if timer.triggers.is_empty() && !timer.on_clock_change && !timer.on_timezone_change {
        return Err("no On…= line, so it would never elapse".to_owned());
    }
    Ok(Timer {
        unit,
        ..timer.clone()
    })
}

pub(super) fn path(draft: &mut Draft, name: &UnitName) -> Result<PathUnit, String> {
    let unit = triggered(draft, name)?;
    if unit == *name {
        return Err("it would start itself".to_owned());
    }
    let path = draft.path();
    if path.watches.is_empty() {
        return Err("no Path…= or DirectoryNotEmpty= line, so nothing is watched".to_owned());
    }
    Ok(PathUnit {
        unit,
        ..path.clone()
    })
}

pub(super) fn socket(draft: &mut Draft, name: &UnitName) -> Result<Socket, String> {
    let explicit = draft.triggered.take();
    let mut socket = draft.socket().clone();
    if socket.listen.is_empty() {
        return Err("no Listen…= line, so nothing is listened for".to_owned());
    }
    if socket.accept {
        if !socket.listen.iter().all(Listen::accepts) {
            return Err("Accept=yes is only possible for sockets that take connections".to_owned());
        }
        if explicit.is_some() {
            return Err("Service= is not possible with Accept=yes".to_owned());
        }
        if socket.max_connections == 0 {
            return Err("MaxConnections=0 would refuse everybody".to_owned());
        }
    }
    let nodes = socket.listen.iter().filter_map(Listen::path).count();
    if !socket.symlinks.is_empty() && nodes != 1 {
        return Err("Symlinks= asks for exactly one socket in the file system".to_owned());
    }
    socket.service = match explicit {
        Some(service) => service,
        // The instances are named after connections, as they come.
        None if socket.accept => {
            UnitName::parse(&format!("{}@.service", name.prefix())).map_err(|e| e.to_string())?
        }
        None => namesake(name)?,
    };
    if socket.descriptor_name.is_empty() {
        name.as_str().clone_into(&mut socket.descriptor_name);
    }
    let burst = draft.written.trigger_limit_burst;
    socket.trigger_limit_burst = burst.unwrap_or(if socket.accept { 200 } else { 20 });
    if let Some(span) = draft.written.timeout_start {
        socket.timeout = span.timeout();
    }
    socket.execution = Box::new(execution(draft));
    Ok(socket)
}

/// Places that belong to the machine, not to unit files (`file-hierarchy(7)`, "Virtual Kernel File Systems").
const MACHINE_PLACES: [&str; 12] = [
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/proc",
    "/run",
    "/sys",
    "/sys/firmware/efi/efivars",
    "/sys/fs/bpf",
    "/sys/fs/cgroup",
    "/sys/fs/pstore",
    "/sys/fs/smackfs",
    "/sys/kernel/security",
];

pub(super) fn mount(draft: &mut Draft, name: &UnitName) -> Result<Mount, String> {
    let mut mount = std::mem::take(&mut draft.mount);
    if mount.place.is_empty() {
        mount.place = unescape_path(name.stem())
            .ok_or_else(|| format!("{name} is not the escaped form of a path"))?;
    }
    let expected = escape_path(&mount.place);
    if expected != name.stem() {
        return Err(format!(
            "Where={} belongs in a unit of the name {expected}.mount",
            mount.place
        ));
    }
    if MACHINE_PLACES.contains(&mount.place.as_str()) || mount.place.starts_with("/sys/fs/cgroup/")
    {
        return Err(format!(
            "{} belongs to the machine and is not mounted by units",
            mount.place
        ));
    }
    if mount.what.is_empty() {
        return Err("no What=, so there is nothing to mount".to_owned());
    }
    if let Some(span) = draft.written.timeout_start {
        mount.timeout = span.timeout();
    }
    mount.execution = Box::new(execution(draft));
    Ok(mount)
}

/// What runs programs beside services keeps these parts of `[Service]`.
fn execution(draft: &mut Draft) -> crate::Service {
    let mut service = std::mem::take(&mut draft.service);
    let written = &draft.written;
    service.kill_mode = written.kill_mode.unwrap_or_default();
    service.kill_signal = written.kill_signal.unwrap_or(service.kill_signal);
    service.restart_kill_signal = written.restart_kill_signal.unwrap_or(service.kill_signal);
    service.delegate = written.delegate.unwrap_or(service.delegate);
    service.timeout_stop = match written.timeout_stop {
        Some(span) => Span::timeout(span),
        None => service.timeout_stop,
    };
    service.confinement.complete();
    service
}

/// Checks the name of a slice: a path in the tree of cgroups with dashes between its parts.
pub(super) fn check_slice(name: &UnitName) -> Result<(), String> {
    let stem = name.stem();
    let parts = stem.split('-').all(|part| !part.is_empty());
    if stem == "-" || (parts && name.instance().is_none()) {
        Ok(())
    } else {
        Err(format!(
            "{name} names no place in the tree of slices, such as a-b.slice in a.slice"
        ))
    }
}

/// The slice that a slice lies in; the root has none.
pub(super) fn parent_slice(name: &UnitName) -> Option<UnitName> {
    let stem = name.stem();
    if name.kind() != UnitType::Slice || stem == "-" {
        return None;
    }
    let parent = stem.rsplit_once('-').map_or("-", |(parent, _)| parent);
    UnitName::parse(&format!("{parent}.slice")).ok()
}

/// The places in the file system that a socket unit needs the mounts of.
pub(super) fn socket_paths(socket: &Socket) -> impl Iterator<Item = &str> {
    socket.listen.iter().filter_map(|listen| match listen {
        Listen::Stream(Address::Path(path))
        | Listen::Datagram(Address::Path(path))
        | Listen::SequentialPacket(Address::Path(path))
        | Listen::Fifo(path)
        | Listen::Special(path) => Some(path.as_str()),
        _ => None,
    })
}
