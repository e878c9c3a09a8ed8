//! From a unit's command to a running process.

mod directories;
mod identity;
mod roles;
mod stdio;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use orlop_sys::process::{Exec, Limit, Spawned};
use orlop_unit::{
    Command, Confinement, Launch, LaunchUser, Scheduling, Service, ServiceResult, Unit,
};

use directories::{
    CONFIGURATION, NAMESPACES, credentials_directory, directories, has_credentials,
    make_directories, own_directories, private_directories,
};
use identity::{Identity, resolve_user};
use stdio::open_stdio;

pub use directories::clean_up;
pub use roles::{start_for_caller, start_program, start_role};
pub use stdio::writes_to_journal;

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
        // PID 1 stands in the root.
        directory: (directory != "/").then(|| string(directory)).transpose()?,
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
            stdio.descriptors(),
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
    let directory = exec.directory.take();
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
        directory: directory.map_or_else(
            || "/".to_owned(),
            |directory| directory.to_string_lossy().into_owned(),
        ),
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
