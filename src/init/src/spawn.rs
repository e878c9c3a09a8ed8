//! From a unit's command to a running process.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use orlop_sys::process::{Exec, Limit, Spawned};
use orlop_unit::{
    Command, Confinement, Directories, Input, Launch, LaunchUser, Output, Scheduling, Service,
    ServiceResult, Unit,
};

use crate::accounts;

/// The search path for programs named without one, and the environment's `PATH`.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What services have without `LimitNOFILE=`, whatever PID 1 has: programs that still use select(2) take harm above 1024, and others may
/// raise it themselves (systemd-system.conf(5), `DefaultLimitNOFILE=`).
const DESCRIPTORS: Limit = Limit {
    resource: nix::libc::RLIMIT_NOFILE,
    soft: 1024,
    hard: 524_288,
};

/// Why a process could not be started.
#[derive(Debug)]
pub struct Failure {
    /// What it means for the service.
    pub result: ServiceResult,
    /// What happened, in words.
    pub text: String,
}

impl Failure {
    fn resources(text: String) -> Self {
        Self {
            result: ServiceResult::Resources,
            text,
        }
    }
}

/// What the supervisor adds to a unit's own settings.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// The invocation's id, 32 hexadecimal digits.
    pub invocation: &'a str,
    /// The notification socket, where the unit may use it.
    pub notify_socket: Option<&'a str>,
    /// The main process, for commands beside it.
    pub main: Option<i32>,
    /// Further variables, such as `SERVICE_RESULT`.
    pub variables: Vec<(String, String)>,
    /// Where standard output and error go when they go to the journal; `None` is nowhere.
    pub journal: Option<BorrowedFd<'a>>,
    /// Descriptors from number 3 on.
    pub inherit: &'a [BorrowedFd<'a>],
    /// The names of those that are passed as `LISTEN_FDS`; they come first.
    pub descriptor_names: Option<&'a [String]>,
    /// The connection of `Accept=yes`, for `StandardInput=socket`.
    pub connection: Option<BorrowedFd<'a>>,
    /// The interval of the watchdog, where the service has to keep to it.
    pub watchdog: Option<std::time::Duration>,
    /// The opened cgroup.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Starts `command` of `unit`.
///
/// # Errors
/// [`Failure`]; what fails after the clone arrives through [`Spawned::start`].
pub fn start(
    unit: &Unit,
    service: &Service,
    command: &Command,
    around: &Surroundings<'_>,
) -> Result<Spawned, Failure> {
    let user = resolve_user(unit, service, command)?;
    let environment = environment(unit, service, user.as_ref(), around)?;
    let arguments = if command.flags.no_expansion {
        std::iter::once(
            command
                .argv0
                .clone()
                .unwrap_or_else(|| command.program.clone()),
        )
        .chain(command.words.iter().cloned())
        .collect()
    } else {
        command.expand(environment.as_slice())
    };
    let root = service.confinement.root_directory.as_deref();
    let root = root.filter(|_| !command.flags.full_privileges);
    let program = find_program(root.unwrap_or_default(), &command.program)?;
    make_directories(service, user.as_ref())?;
    let stdio = open_stdio(service, around)?;
    let directory = match (
        &service.working_directory.path,
        service.working_directory.home,
    ) {
        (_, true) => user.as_ref().map_or("/root", |u| u.home.as_str()),
        (Some(path), false)
            if !service.working_directory.optional
                || Path::new(&format!("{}{path}", root.unwrap_or_default())).is_dir() =>
        {
            path.as_str()
        }
        _ => "/",
    };
    if around.inherit.len() > orlop_sys::process::MOST_INHERITED {
        let text = format!(
            "{} descriptors are more than can be passed on",
            around.inherit.len()
        );
        return Err(Failure::resources(text));
    }
    let mut pid_variables = Vec::new();
    if around.descriptor_names.is_some() {
        pid_variables.push("LISTEN_PID");
    }
    if around.watchdog.is_some() {
        pid_variables.push("WATCHDOG_PID");
    }
    let envp = strings(environment.iter().map(|(k, v)| format!("{k}={v}")))?;
    // The later one of a kind counts.
    let limits: Vec<Limit> = std::iter::once(DESCRIPTORS)
        .chain(service.limits.iter().map(|l| Limit {
            resource: l.resource.number,
            soft: l.soft.unwrap_or(u64::MAX),
            hard: l.hard.unwrap_or(u64::MAX),
        }))
        .collect();
    let mut exec = Exec {
        envp,
        pid_variables,
        inherit: around.inherit,
        cgroup: around.cgroup,
        directory: string(directory)?,
        user: user.as_ref().map(|u| (u.uid, u.gid, u.groups.clone())),
        umask: service.umask,
        nice: service.nice.map_or(0, i32::from),
        oom_score_adjust: service.oom_score_adjust.map(i32::from),
        limits,
        controlling_terminal: stdio.is_terminal,
        no_new_privileges: service.confinement.no_new_privileges && !command.flags.full_privileges,
        ignore_broken_pipes: service.ignore_sigpipe,
        ..Exec::new(
            string(&program)?,
            strings(arguments.iter().map(String::as_str))?,
            [stdio.input.as_fd(), stdio.output(), stdio.error()],
        )
    };
    let started = if needs_helper(service, command) {
        let launch = launch(
            unit,
            service,
            command,
            user.as_ref(),
            &mut exec,
            &program,
            arguments,
        );
        let description = describe(&launch)?;
        let mut inherit = around.inherit.to_vec();
        inherit.push(description.as_fd());
        exec.program = c"/proc/self/exe".to_owned();
        exec.argv = strings(["orlop", "confine", &around.inherit.len().to_string()].iter())?;
        exec.passes_report = true;
        orlop_sys::process::spawn(Exec {
            inherit: &inherit,
            ..exec
        })
    } else {
        orlop_sys::process::spawn(exec)
    };
    started.map_err(|err| Failure::resources(format!("cannot start {program}: {err}")))
}

/// Whether a process of ours has to prepare the program's: for all that takes more than a few system calls.
fn needs_helper(service: &Service, command: &Command) -> bool {
    let confines = service
        .confinement
        .parts()
        .iter()
        .any(|part| !matches!(*part, "NoNewPrivileges" | "SystemCallErrorNumber"));
    (confines && !command.flags.full_privileges)
        || has_credentials(service)
        || service.scheduling != Scheduling::default()
}

/// What the helper does in place of the child: it still needs root, the machine's files and no limits.
fn launch(
    unit: &Unit,
    service: &Service,
    command: &Command,
    user: Option<&Identity>,
    exec: &mut Exec<'_>,
    program: &str,
    arguments: Vec<String>,
) -> Launch {
    exec.user = None;
    exec.no_new_privileges = false;
    let directory = std::mem::replace(&mut exec.directory, c"/".to_owned());
    let limits = std::mem::take(&mut exec.limits);
    let confinement = if command.flags.full_privileges {
        Confinement {
            load_credential: service.confinement.load_credential.clone(),
            set_credential: service.confinement.set_credential.clone(),
            ..Confinement::default()
        }
    } else {
        service.confinement.clone()
    };
    let own = |is_configuration: bool| {
        own_directories(service)
            .filter(|(kind, _)| (*kind == CONFIGURATION) == is_configuration)
            .map(|(_, path)| path)
            .collect()
    };
    Launch {
        unit: unit.name.as_str().to_owned(),
        program: program.to_owned(),
        arguments,
        user: user.map(|u| LaunchUser {
            uid: u.uid,
            gid: u.gid,
            groups: u.groups.clone(),
        }),
        directory: directory.to_string_lossy().into_owned(),
        umask: std::mem::replace(&mut exec.umask, 0o022),
        ignore_broken_pipes: service.ignore_sigpipe,
        limits: limits
            .iter()
            .map(|l| (l.resource, l.soft, l.hard))
            .collect(),
        scheduling: service.scheduling.clone(),
        directories: own(false),
        configuration_directories: own(true),
        owns_directories: confinement.dynamic_user,
        private_directories: private_directories(unit),
        namespaces: format!("{NAMESPACES}/{}", unit.name.as_str()),
        credentials: has_credentials(service).then(|| credentials_directory(unit)),
        confinement,
    }
}

/// The description as a file in memory, for the helper to read.
fn describe(launch: &Launch) -> Result<OwnedFd, Failure> {
    let made = || -> io::Result<OwnedFd> {
        let text = serde_json::to_vec(launch)?;
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::memfd_create("launch", flags)?);
        file.write_all(&text)?;
        Ok(file.into())
    };
    made().map_err(|err| Failure::resources(format!("cannot describe the start: {err}")))
}

fn string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::resources(format!("{text:?} holds a NUL")))
}

fn strings(texts: impl Iterator<Item = impl AsRef<str>>) -> Result<Vec<CString>, Failure> {
    texts.map(|t| string(t.as_ref())).collect()
}

#[derive(Debug)]
struct Identity {
    name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
    shell: String,
}

fn resolve_user(
    unit: &Unit,
    service: &Service,
    command: &Command,
) -> Result<Option<Identity>, Failure> {
    if command.flags.full_privileges || command.flags.keep_user {
        return Ok(None);
    }
    unit_user(unit, service)
}

/// Who the unit's processes are, unless a command says otherwise; `None` is root.
fn unit_user(unit: &Unit, service: &Service) -> Result<Option<Identity>, Failure> {
    if service.confinement.dynamic_user {
        let name = service.user.as_deref();
        let stem = unit.name.prefix().trim_end_matches('@');
        if let Some(user) = dynamic_user(name.unwrap_or(stem))? {
            return with_groups(service, user).map(Some);
        }
    }
    if service.user.is_none() && service.group.is_none() {
        return Ok(None);
    }
    let wanted = service.user.as_deref().unwrap_or("0");
    let user = accounts::user(wanted).ok_or_else(|| Failure {
        result: ServiceResult::ExitCode,
        text: format!("User={wanted}: there is no such user (status 217/USER)"),
    })?;
    let gid = match &service.group {
        Some(name) => find_group(name)?,
        None => user.gid,
    };
    with_groups(
        service,
        Identity {
            uid: user.uid,
            gid,
            groups: accounts::groups_of(&user.name),
            home: user.home,
            shell: user.shell,
            name: user.name,
        },
    )
    .map(Some)
}

fn find_group(name: &str) -> Result<u32, Failure> {
    accounts::group(name).ok_or_else(|| Failure {
        result: ServiceResult::ExitCode,
        text: format!("Group={name}: there is no such group (status 216/GROUP)"),
    })
}

fn with_groups(service: &Service, mut user: Identity) -> Result<Identity, Failure> {
    for name in &service.supplementary_groups {
        user.groups.push(find_group(name)?);
    }
    user.groups.push(user.gid);
    Ok(user)
}

/// The numbers that `DynamicUser=` takes (systemd's `UIDS-GIDS.md`).
const DYNAMIC: std::ops::RangeInclusive<u32> = 61_184..=65_519;
/// Which of them are given to whom: a file for each, with the name. They are kept while the machine is up.
const DYNAMIC_USERS: &str = "/run/orlop/dynamic-users";

/// The user of that name, made for the time that the machine is up; `None` when the machine has one of that name of its own.
///
/// The number follows from the name, so that it is the same at the next boot unless another name has it.
fn dynamic_user(name: &str) -> Result<Option<Identity>, Failure> {
    if accounts::named_user(name) {
        return Ok(None);
    }
    let none = |what: String| Failure::resources(format!("DynamicUser=: {what}"));
    fs::create_dir_all(DYNAMIC_USERS).map_err(|err| none(format!("{DYNAMIC_USERS}: {err}")))?;
    let size = DYNAMIC
        .end()
        .saturating_sub(*DYNAMIC.start())
        .saturating_add(1);
    // FNV-1a: it only has to spread names.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    for step in 0..size {
        let offset = hash.wrapping_add(step).checked_rem(size).unwrap_or(0);
        let uid = DYNAMIC.start().saturating_add(offset);
        let path = format!("{DYNAMIC_USERS}/{uid}");
        match fs::read_to_string(&path) {
            Ok(owner) if owner == name => {}
            Ok(_) => continue,
            Err(_) if accounts::named_user(&uid.to_string()) => continue,
            Err(_) => fs::write(&path, name).map_err(|err| none(format!("{path}: {err}")))?,
        }
        return Ok(Some(Identity {
            name: name.to_owned(),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".to_owned(),
            shell: "/usr/sbin/nologin".to_owned(),
        }));
    }
    Err(none("no number is left".to_owned()))
}

/// Builds the environment in systemd.exec(5)'s order: the manager's, `Environment=`, `EnvironmentFile=`; then what is unset.
fn environment(
    unit: &Unit,
    service: &Service,
    user: Option<&Identity>,
    around: &Surroundings<'_>,
) -> Result<Vec<(String, String)>, Failure> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| {
        list.retain(|(n, _)| n != name);
        list.push((name.to_owned(), value.to_owned()));
    };
    set("PATH", SEARCH_PATH);
    set("LANG", "C.UTF-8");
    set("INVOCATION_ID", around.invocation);
    set("ORLOP_UNIT", unit.name.as_str());
    if let Some(user) = user {
        set("USER", &user.name);
        set("LOGNAME", &user.name);
        set("HOME", &user.home);
        set("SHELL", &user.shell);
    }
    if let Some(socket) = around.notify_socket {
        set("NOTIFY_SOCKET", socket);
    }
    if let Some(pid) = around.main {
        set("MAINPID", &pid.to_string());
    }
    if let Some(file) = &service.pid_file {
        set("PIDFILE", file);
    }
    if let Some(names) = around.descriptor_names {
        set("LISTEN_FDS", &names.len().to_string());
        set("LISTEN_FDNAMES", &names.join(":"));
    }
    if has_credentials(service) {
        set("CREDENTIALS_DIRECTORY", &credentials_directory(unit));
    }
    if let Some(time) = around.watchdog {
        set("WATCHDOG_USEC", &time.as_micros().to_string());
    }
    for name in &service.pass_environment {
        if let Ok(value) = std::env::var(name) {
            set(name, &value);
        }
    }
    for (kind, directories) in directories(service) {
        if !directories.paths.is_empty() {
            let paths: Vec<String> = directories
                .paths
                .iter()
                .map(|p| format!("{}/{p}", kind.root))
                .collect();
            set(kind.variable, &paths.join(":"));
        }
    }
    for (name, value) in &around.variables {
        set(name, value);
    }
    for (name, value) in &service.environment {
        set(name, value);
    }
    for file in &service.environment_files {
        let text = match fs::read_to_string(&file.path) {
            Ok(text) => text,
            Err(_) if file.optional => continue,
            Err(err) => {
                return Err(Failure::resources(format!(
                    "EnvironmentFile={}: {err}",
                    file.path
                )));
            }
        };
        for (name, value) in orlop_unit::parse_environment_file(&text) {
            set(&name, &value);
        }
    }
    for unset in &service.unset_environment {
        match unset.split_once('=') {
            Some((name, value)) => list.retain(|(n, v)| n != name || v != value),
            None => list.retain(|(n, _)| n != unset),
        }
    }
    Ok(list)
}

/// The path of a program as it is below `root`, which is empty for the machine's own.
fn find_program(root: &str, name: &str) -> Result<String, Failure> {
    if name.contains('/') {
        return Ok(name.to_owned());
    }
    SEARCH_PATH
        .split(':')
        .map(|directory| format!("{directory}/{name}"))
        .find(|path| {
            fs::metadata(format!("{root}{path}"))
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .ok_or_else(|| Failure {
            result: ServiceResult::ExitCode,
            text: format!(
                "cannot execute {name}: it is in none of {SEARCH_PATH} (status 203/EXEC)"
            ),
        })
}

/// A kind of directory that services are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DirectoryKind {
    variable: &'static str,
    root: &'static str,
}

const CONFIGURATION: DirectoryKind = DirectoryKind {
    variable: "CONFIGURATION_DIRECTORY",
    root: "/etc",
};

fn directories(service: &Service) -> [(DirectoryKind, &Directories); 5] {
    let kind = |variable, root| DirectoryKind { variable, root };
    [
        (
            kind("RUNTIME_DIRECTORY", "/run"),
            &service.runtime_directory,
        ),
        (
            kind("STATE_DIRECTORY", "/var/lib"),
            &service.state_directory,
        ),
        (
            kind("CACHE_DIRECTORY", "/var/cache"),
            &service.cache_directory,
        ),
        (kind("LOGS_DIRECTORY", "/var/log"), &service.logs_directory),
        (CONFIGURATION, &service.configuration_directory),
    ]
}

fn own_directories(service: &Service) -> impl Iterator<Item = (DirectoryKind, String)> {
    directories(service)
        .into_iter()
        .flat_map(|(kind, directories)| {
            let paths = directories.paths.iter();
            paths.map(move |path| (kind, format!("{}/{path}", kind.root)))
        })
}

fn make_directories(service: &Service, user: Option<&Identity>) -> Result<(), Failure> {
    for (kind, directories) in directories(service) {
        for path in &directories.paths {
            let path = format!("{}/{path}", kind.root);
            let made = fs::create_dir_all(&path)
                .and_then(|()| {
                    fs::set_permissions(&path, fs::Permissions::from_mode(directories.mode))
                })
                .and_then(|()| match user {
                    // What a dynamic user is given may have been another's, and is handed over whole by the helper.
                    Some(user) if kind != CONFIGURATION && !service.confinement.dynamic_user => {
                        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))
                    }
                    _ => Ok(()),
                });
            made.map_err(|err| Failure::resources(format!("cannot make {path}: {err}")))?;
        }
    }
    Ok(())
}

/// Removes what a unit that went down leaves behind: what `RuntimeDirectory=` made, and what its processes alone shared.
pub fn clean_up(unit: &Unit, service: &Service, keeps_directories: bool, is_restarting: bool) {
    let paths = service.runtime_directory.paths.iter();
    for path in paths.filter(|_| !keeps_directories) {
        // One that is not empty any more is removed as well, as systemd does; one that is gone needs nothing.
        let _ = fs::remove_dir_all(Path::new("/run").join(path));
    }
    let c = &service.confinement;
    if c.private_network || c.private_ipc {
        for kind in ["net", "ipc"] {
            let path = format!("{NAMESPACES}/{}.{kind}", unit.name.as_str());
            // It may never have come to be.
            let _ = nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&path);
        }
    }
    if has_credentials(service) {
        let path = credentials_directory(unit);
        let _ = nix::mount::umount2(path.as_str(), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&path);
    }
    if !is_restarting
        && (service.remove_ipc || c.dynamic_user)
        && let Ok(Some(user)) = unit_user(unit, service)
        && user.uid != 0
    {
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        // What stays is in nobody's way until the next boot.
        let _ = start_role(&["confine", "--remove-ipc", &uid, &gid]);
    }
    if c.private_tmp {
        let stamp = orlop_boot::times::now_ns();
        let mut words = vec!["confine".to_owned(), "--remove".to_owned()];
        for path in private_directories(unit) {
            // Out of the way of the next start at once; another process has the time to remove what may be a lot.
            let gone = format!("{path}.{stamp}");
            if fs::rename(&path, &gone).is_ok() {
                words.push(gone);
            }
        }
        if words.len() > 2 {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            // What stays is gone with the next boot from /tmp, and a few files in /var/tmp harm nobody.
            let _ = start_role(&words);
        }
    }
}

fn has_credentials(service: &Service) -> bool {
    let c = &service.confinement;
    !c.load_credential.is_empty() || !c.set_credential.is_empty()
}

/// Where a unit finds its credentials, as the specifier `%d` says it.
fn credentials_directory(unit: &Unit) -> String {
    format!("/run/credentials/{}", unit.name.as_str())
}

/// Where the namespaces are that processes of a unit share.
const NAMESPACES: &str = "/run/orlop/namespaces";

fn private_directories(unit: &Unit) -> [String; 2] {
    ["/tmp", "/var/tmp"].map(|path| format!("{path}/orlop-private/{}", unit.name.as_str()))
}

struct Stdio {
    input: OwnedFd,
    output: Option<OwnedFd>,
    error: Option<OwnedFd>,
    is_terminal: bool,
}

impl Stdio {
    fn output(&self) -> BorrowedFd<'_> {
        self.output.as_ref().unwrap_or(&self.input).as_fd()
    }

    fn error(&self) -> BorrowedFd<'_> {
        self.error
            .as_ref()
            .map_or_else(|| self.output(), |e| e.as_fd())
    }
}

fn open(path: &str, options: &mut OpenOptions) -> Result<OwnedFd, Failure> {
    options
        .custom_flags(libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|err| Failure::resources(format!("cannot open {path}: {err}")))
}

fn null() -> Result<OwnedFd, Failure> {
    open("/dev/null", File::options().read(true).write(true))
}

/// Whether anything that the service's processes write goes to the journal.
#[must_use]
pub fn writes_to_journal(service: &Service) -> bool {
    let journal = |output: &Output| matches!(output, Output::Journal | Output::JournalAndConsole);
    journal(&service.standard_output) || journal(&service.standard_error)
}

fn open_stdio(service: &Service, around: &Surroundings<'_>) -> Result<Stdio, Failure> {
    let terminal = || open(&service.tty_path, File::options().read(true).write(true));
    let (input, is_terminal) = match &service.standard_input {
        Input::Null => (null()?, false),
        Input::Tty | Input::TtyForce | Input::TtyFail => (terminal()?, true),
        Input::File(path) => (open(path, File::options().read(true))?, false),
        Input::Data(bytes) => (data(bytes)?, false),
        Input::Descriptor(name) => (named(around, "StandardInput", name)?, false),
        Input::Socket => match around.connection {
            Some(fd) => (
                fd.try_clone_to_owned().map_err(|err| {
                    Failure::resources(format!("cannot copy a descriptor: {err}"))
                })?,
                false,
            ),
            None => {
                return Err(Failure::resources(
                    "StandardInput=socket: it was not started by exactly one socket".to_owned(),
                ));
            }
        },
    };
    let is_socket = matches!(service.standard_input, Input::Socket | Input::Descriptor(_));
    let duplicate = |fd: BorrowedFd<'_>| {
        fd.try_clone_to_owned()
            .map_err(|err| Failure::resources(format!("cannot copy a descriptor: {err}")))
    };
    let stream =
        |output: &Output, inherited: Option<BorrowedFd<'_>>| -> Result<Option<OwnedFd>, Failure> {
            Ok(Some(match output {
                Output::Inherit => match inherited {
                    Some(fd) => duplicate(fd)?,
                    None => return Ok(None),
                },
                Output::Null => null()?,
                Output::Journal | Output::JournalAndConsole => match around.journal {
                    Some(fd) => duplicate(fd)?,
                    None => null()?,
                },
                Output::KernelLog => open("/dev/kmsg", File::options().write(true))?,
                Output::Tty => terminal()?,
                Output::Socket => match around.connection {
                    Some(fd) => duplicate(fd)?,
                    None => {
                        return Err(Failure::resources(
                            "StandardOutput=socket: it was not started by exactly one socket"
                                .to_owned(),
                        ));
                    }
                },
                Output::Descriptor(name) => named(around, "StandardOutput", name)?,
                Output::File(path) => open(path, File::options().write(true).create(true))?,
                Output::Append(path) => open(path, File::options().append(true).create(true))?,
                Output::Truncate(path) => open(
                    path,
                    File::options().write(true).create(true).truncate(true),
                )?,
            }))
        };
    let output = match (&service.standard_output, is_terminal) {
        // A terminal as input is the output as well, unless something else is asked for (systemd.exec(5)).
        (Output::Journal, true) => stream(&Output::Tty, None)?,
        (Output::Journal, false) if is_socket => None,
        (output, _) => stream(output, None)?,
    };
    let error = stream(&service.standard_error, None)?;
    Ok(Stdio {
        input,
        output,
        error,
        is_terminal,
    })
}

/// A copy of the first descriptor of that name that the unit's sockets pass, or that it gave into keeping.
fn named(around: &Surroundings<'_>, directive: &str, name: &str) -> Result<OwnedFd, Failure> {
    let names = around.descriptor_names.unwrap_or_default();
    let index = names.iter().position(|n| n == name);
    let Some(fd) = index.and_then(|index| around.inherit.get(index)) else {
        return Err(Failure::resources(format!(
            "{directive}=fd:{name}: no socket of the unit has that name"
        )));
    };
    fd.try_clone_to_owned()
        .map_err(|err| Failure::resources(format!("cannot copy a descriptor: {err}")))
}

/// A pipe that holds `bytes`; more than a pipe takes is refused rather than waited for.
fn data(bytes: &[u8]) -> Result<OwnedFd, Failure> {
    let made = || -> io::Result<OwnedFd> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let written = nix::unistd::write(&write, bytes)?;
        if written < bytes.len() {
            return Err(io::Error::other("longer than 64 KiB"));
        }
        Ok(read)
    };
    made().map_err(|err| Failure::resources(format!("StandardInputText=: {err}")))
}

/// Starts a role of this very program as a child, with the kernel's log as its output.
///
/// # Errors
/// Those of opening what it needs and of clone3(2).
pub fn start_role(words: &[&str]) -> io::Result<i32> {
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    let argv = std::iter::once(Ok(c"orlop".to_owned()))
        .chain(words.iter().map(|w| CString::new(*w)))
        .collect::<Result<Vec<CString>, _>>()?;
    start_with(c"/proc/self/exe".to_owned(), argv, &null)
}

/// Starts a small program of the image that nobody waits for; the first word is its path.
///
/// # Errors
/// Those of opening what it needs and of clone3(2).
pub fn start_program(words: &[&str]) -> io::Result<i32> {
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    let argv = words
        .iter()
        .map(|w| CString::new(*w))
        .collect::<Result<Vec<CString>, _>>()?;
    let program = argv.first().cloned().unwrap_or_default();
    start_with(program, argv, &null)
}

fn start_with(program: CString, argv: Vec<CString>, null: &OwnedFd) -> io::Result<i32> {
    let path = CString::new(format!("PATH={SEARCH_PATH}"))?;
    let exec = Exec {
        envp: vec![path],
        ..Exec::new(program, argv, [null.as_fd(); 3])
    };
    orlop_sys::process::spawn_detached(exec)
}

/// Starts a program as root for somebody who may act as root.
///
/// # Errors
/// What is wrong, in words.
pub fn start_for_caller(
    argv: &[String],
    environment: &[String],
    directory: &str,
    stdio: [&OwnedFd; 3],
) -> Result<i32, String> {
    let name = argv.first().ok_or("no program is named")?;
    let program = find_program("", name).map_err(|failure| failure.text)?;
    let fixed = [
        format!("PATH={SEARCH_PATH}"),
        "HOME=/root".to_owned(),
        "USER=root".to_owned(),
        "LOGNAME=root".to_owned(),
    ];
    // What could change how a program is loaded stays with the caller.
    let passed = environment.iter().filter(|e| {
        ["TERM=", "LANG=", "LC_", "ETCDCTL_", "SUDO_"]
            .iter()
            .any(|p| e.starts_with(p))
    });
    let envp = strings(fixed.iter().chain(passed)).map_err(|failure| failure.text)?;
    let arguments = strings(argv.iter()).map_err(|failure| failure.text)?;
    let program_text = string(&program).map_err(|failure| failure.text)?;
    let directory = string(directory).map_err(|failure| failure.text)?;
    let exec = Exec {
        envp,
        directory,
        ..Exec::new(program_text, arguments, stdio.map(|fd| fd.as_fd()))
    };
    orlop_sys::process::spawn_detached(exec).map_err(|err| format!("cannot start {program}: {err}"))
}
