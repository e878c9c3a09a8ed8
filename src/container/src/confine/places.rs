//! What a service sees of the machine's files: from directives to a list of places, each with what is there and what may be done with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_unit::Launch;
use orlop_unit::confinement::{ConfinedPath, ProtectHome, ProtectProc, ProtectSystem};

/// What is put on a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing that can be opened.
    Closed,
    /// What is at another path of the machine.
    Bind { source: PathBuf, recursive: bool },
    /// A new file system in memory, with these options.
    Temporary { options: String },
    /// `/dev` with the pseudo devices alone.
    Devices,
    /// A new `/proc`, with these options.
    Processes { options: Vec<&'static str> },
}

/// One place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// `None` leaves what is there.
    pub(super) content: Option<Content>,
    /// `Some(false)`: it and what lies below may not be written.
    pub(super) writable: Option<bool>,
    /// `Some(false)`: nothing of it and of what lies below may be executed.
    pub(super) executable: Option<bool>,
    /// It has to be there.
    pub(super) required: bool,
}

/// The places by path; a path comes before those below it.
pub(super) type Places = BTreeMap<PathBuf, Place>;

/// Paths of one directive, and what it says of each.
type Marked<'a> = (&'a [ConfinedPath], fn(&mut Place));

/// A path that has to be there and is not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing(pub(super) String);

struct List<'a> {
    places: Places,
    resolve: &'a dyn Fn(&str) -> Option<PathBuf>,
}

impl List<'_> {
    /// The place of that path, links followed; `None` where there is nothing.
    fn existing(&mut self, path: &str, required: bool) -> Result<Option<&mut Place>, Missing> {
        let Some(path) = (self.resolve)(path) else {
            return if required {
                Err(Missing(path.to_owned()))
            } else {
                Ok(None)
            };
        };
        let place = self.places.entry(path).or_default();
        place.required |= required;
        Ok(Some(place))
    }

    /// The place of that path, which may have to be made.
    fn any(&mut self, path: &str) -> &mut Place {
        let path = (self.resolve)(path).unwrap_or_else(|| path.into());
        let place = self.places.entry(path).or_default();
        place.required = true;
        place
    }

    fn put(&mut self, path: &str, required: bool, content: Content) -> Result<(), Missing> {
        if let Some(place) = self.existing(path, required)? {
            set(&mut place.content, content);
        }
        Ok(())
    }

    fn read_only(&mut self, paths: &[&str]) {
        for path in paths {
            if let Ok(Some(place)) = self.existing(path, false) {
                place.writable = Some(false);
            }
        }
    }

    /// Leaves these as they are, below something that is read-only.
    fn leave(&mut self, paths: &[&str]) {
        for path in paths {
            if let Ok(Some(place)) = self.existing(path, false) {
                place.writable.get_or_insert(true);
            }
        }
    }
}

/// Closed beats everything; otherwise the first one stays.
fn set(slot: &mut Option<Content>, content: Content) {
    if slot.is_none() || content == Content::Closed {
        *slot = Some(content);
    }
}

/// The path as it is in the service's root; `None` where it lies outside of it.
fn inside<'a>(path: &'a ConfinedPath, root: Option<&str>) -> Option<&'a str> {
    match root {
        None | Some("/") => Some(&path.path),
        Some(_) if path.in_root => Some(&path.path),
        Some(root) => match path.path.strip_prefix(root)? {
            "" => Some("/"),
            rest => rest.starts_with('/').then_some(rest),
        },
    }
}

/// The places of a launch. `source` answers where a path leads to on the machine, if anywhere, `resolve` in the root of the
/// service, which may be another.
pub(super) fn places(
    launch: &Launch,
    source: &dyn Fn(&str) -> Option<PathBuf>,
    resolve: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<Places, Missing> {
    let c = &launch.confinement;
    let root = c.root_directory.as_deref();
    let mut list = List {
        places: Places::new(),
        resolve,
    };
    for path in &c.inaccessible_paths {
        if let Some(inner) = inside(path, root) {
            list.put(inner, !path.optional, Content::Closed)?;
        }
    }
    for bind in &c.bind_paths {
        let Some(source) = source(&bind.source) else {
            if bind.optional {
                continue;
            }
            return Err(Missing(bind.source.clone()));
        };
        let place = list.any(&bind.target);
        let recursive = bind.recursive;
        set(&mut place.content, Content::Bind { source, recursive });
        if bind.read_only {
            place.writable = Some(false);
        }
    }
    if c.private_tmp {
        for (path, source) in ["/tmp", "/var/tmp"]
            .into_iter()
            .zip(&launch.private_directories)
        {
            let content = Content::Bind {
                source: Path::new(source).join("tmp"),
                recursive: false,
            };
            set(&mut list.any(path).content, content);
        }
    }
    for tmpfs in &c.temporary_file_systems {
        let place = list.any(&tmpfs.path);
        let options = tmpfs.options.clone();
        set(&mut place.content, Content::Temporary { options });
    }
    if c.private_devices {
        list.put("/dev", true, Content::Devices)?;
    }
    if let Some(content) = processes(c.protect_proc, c.proc_subset_pid) {
        list.put("/proc", true, content)?;
    }
    let marks: [Marked<'_>; 4] = [
        // What is asked to be both is read-only.
        (&c.read_write_paths, |place| place.writable = Some(true)),
        (&c.read_only_paths, |place| place.writable = Some(false)),
        (&c.exec_paths, |place| place.executable = Some(true)),
        (&c.no_exec_paths, |place| place.executable = Some(false)),
    ];
    for (paths, mark) in marks {
        for path in paths {
            if let Some(inner) = inside(path, root)
                && let Some(place) = list.existing(inner, !path.optional)?
            {
                mark(place);
            }
        }
    }
    for path in &launch.directories {
        list.leave(&[path]);
    }
    protect(launch, &mut list);
    // What lies below something closed cannot be reached, and need not be prepared.
    let closed: Vec<PathBuf> = list
        .places
        .iter()
        .filter(|(_, place)| place.content == Some(Content::Closed))
        .map(|(path, _)| path.clone())
        .collect();
    list.places
        .retain(|path, _| !closed.iter().any(|c| path != c && path.starts_with(c)));
    Ok(list.places)
}

fn processes(protect: ProtectProc, only_processes: bool) -> Option<Content> {
    let mut options = Vec::new();
    match protect {
        ProtectProc::Default => {}
        ProtectProc::NoAccess => options.push("hidepid=noaccess"),
        ProtectProc::Invisible => options.push("hidepid=invisible"),
        ProtectProc::Ptraceable => options.push("hidepid=ptraceable"),
    }
    if only_processes {
        options.push("subset=pid");
    }
    (!options.is_empty()).then_some(Content::Processes { options })
}

/// The `Protect…=` directives, as systemd.exec(5) says what each one covers.
fn protect(launch: &Launch, list: &mut List<'_>) {
    let c = &launch.confinement;
    const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
    let close = |list: &mut List<'_>, paths: &[&str]| {
        for path in paths {
            // One that the machine does not have needs no lock.
            let _ = list.put(path, false, Content::Closed);
        }
    };
    if c.protect_kernel_tunables {
        list.read_only(&[
            "/proc/acpi",
            "/proc/apm",
            "/proc/asound",
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/latency_stats",
            "/proc/mtrr",
            "/proc/scsi",
            "/proc/sys",
            "/proc/sysrq-trigger",
            "/proc/timer_stats",
            "/sys",
        ]);
        close(list, &["/proc/kallsyms", "/proc/kcore"]);
        if !c.protect_control_groups {
            list.leave(&["/sys/fs/cgroup"]);
        }
    }
    if c.protect_kernel_modules {
        close(list, &["/usr/lib/modules"]);
    }
    if c.protect_kernel_logs {
        close(list, &["/proc/kmsg", "/dev/kmsg"]);
    }
    if c.protect_control_groups {
        list.read_only(&["/sys/fs/cgroup"]);
    }
    match c.protect_home {
        ProtectHome::No => {}
        ProtectHome::Yes => close(list, &HOMES),
        ProtectHome::ReadOnly => list.read_only(&HOMES),
        ProtectHome::Tmpfs => {
            for path in HOMES {
                let options = "mode=0755,ro".to_owned();
                let _ = list.put(path, false, Content::Temporary { options });
            }
        }
    }
    if c.protect_system >= ProtectSystem::Yes {
        list.read_only(&["/usr", "/boot", "/efi"]);
    }
    if c.protect_system >= ProtectSystem::Full {
        list.read_only(&["/etc"]);
    }
    if c.protect_system == ProtectSystem::Strict {
        list.read_only(&["/"]);
        // The homes are ProtectHome='s, the interfaces of the kernel other directives'.
        list.leave(&["/proc", "/sys", "/dev"]);
        list.leave(&HOMES);
    }
}

/// Whether what is mounted at `path` may be written and executed: the nearest place above decides, each in its own way.
/// `None` leaves it as it is.
pub(super) fn rules_at(places: &Places, path: &Path) -> (Option<bool>, Option<bool>) {
    let above = || path.ancestors().filter_map(|p| places.get(p));
    let writable = above()
        .find(|place| place.writable.is_some() || place.content.is_some())
        .and_then(|place| place.writable);
    let executable = above().find_map(|place| place.executable);
    (writable, executable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::Confinement;
    use orlop_unit::confinement::BindPath;

    fn launch(change: impl FnOnce(&mut Confinement)) -> Launch {
        let mut confinement = Confinement::default();
        change(&mut confinement);
        Launch {
            unit: "x.service".into(),
            program: "/bin/true".into(),
            arguments: vec![],
            user: None,
            directory: "/".into(),
            umask: 0o022,
            ignore_broken_pipes: true,
            limits: vec![],
            scheduling: orlop_unit::Scheduling::default(),
            directories: vec!["/var/lib/x".into()],
            configuration_directories: Vec::new(),
            owns_directories: false,
            private_directories: ["/tmp/p/x".into(), "/var/tmp/p/x".into()],
            namespaces: "/run/n/x".into(),
            credentials: None,
            confinement,
        }
    }

    /// A machine whose `/home` is a link, as ours is, and which has no `/gone`.
    fn resolve(path: &str) -> Option<PathBuf> {
        match path.strip_prefix("/home") {
            Some(rest) => Some(format!("/var/home{rest}").into()),
            None => (!path.starts_with("/gone")).then(|| path.into()),
        }
    }

    fn made(change: impl FnOnce(&mut Confinement)) -> Result<Places, Missing> {
        places(&launch(change), &resolve, &resolve)
    }

    fn path(path: &str, optional: bool) -> ConfinedPath {
        ConfinedPath {
            path: path.into(),
            optional,
            in_root: false,
        }
    }

    fn may_write(places: &Places, path: &str) -> Option<bool> {
        rules_at(places, Path::new(path)).0
    }

    #[test]
    fn strict_leaves_what_belongs_to_others_and_to_the_unit() {
        let places = made(|c| {
            c.protect_system = ProtectSystem::Strict;
            c.private_tmp = true;
            c.read_write_paths.push(path("/srv/data", false));
        })
        .unwrap();
        for closed in ["/", "/var", "/etc", "/srv", "/run/lock", "/var/lib"] {
            assert_eq!(may_write(&places, closed), Some(false), "{closed}");
        }
        for open in [
            "/proc",
            "/sys/fs/cgroup",
            "/dev/pts",
            "/var/home",
            "/srv/data/deep",
            "/var/lib/x",
        ] {
            assert_eq!(may_write(&places, open), Some(true), "{open}");
        }
        assert_eq!(may_write(&places, "/tmp"), None);
    }

    #[test]
    fn a_place_below_a_closed_one_is_forgotten_and_closed_wins() {
        let places = made(|c| {
            c.protect_home = ProtectHome::Yes;
            c.read_only_paths.push(path("/home/core", false));
            c.bind_paths.push(BindPath {
                source: "/srv".into(),
                target: "/root".into(),
                optional: false,
                recursive: true,
                read_only: false,
            });
        })
        .unwrap();
        assert!(!places.contains_key(Path::new("/var/home/core")));
        let closed = Some(Content::Closed);
        assert_eq!(places[Path::new("/var/home")].content, closed);
        assert_eq!(places[Path::new("/root")].content, closed);
    }

    #[test]
    fn only_what_must_be_there_is_missed() {
        let missing = |optional| made(|c| c.read_only_paths.push(path("/gone", optional)));
        assert_eq!(missing(false), Err(Missing("/gone".into())));
        assert_eq!(
            missing(true).map(|places| places.contains_key(Path::new("/gone"))),
            Ok(false)
        );
    }

    #[test]
    fn in_another_root_paths_of_the_machine_are_those_below_it() {
        let in_root = ConfinedPath {
            in_root: true,
            ..path("/etc", false)
        };
        for (path, inner) in [
            (path("/srv/root", false), Some("/")),
            (path("/srv/root/etc", false), Some("/etc")),
            (path("/srv/roots", false), None),
            (path("/etc", false), None),
            (in_root, Some("/etc")),
        ] {
            assert_eq!(inside(&path, Some("/srv/root")), inner, "{path:?}");
        }
        assert_eq!(inside(&path("/etc", false), None), Some("/etc"));
    }

    #[test]
    fn execution_and_writing_are_decided_apart() {
        let places = made(|c| {
            c.no_exec_paths.push(path("/", false));
            c.exec_paths.push(path("/usr", false));
            c.read_only_paths.push(path("/usr", false));
        })
        .unwrap();
        let at = |path: &str| rules_at(&places, Path::new(path));
        assert_eq!(at("/usr/bin"), (Some(false), Some(true)));
        assert_eq!(at("/var"), (None, Some(false)));
    }
}
