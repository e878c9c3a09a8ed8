//! `[Service]`: what to run, how, and what to do when it ends (`systemd.service(5)`, `systemd.exec(5)`, `systemd.kill(5)`, `systemd.resource-control(5)`).

use std::time::Duration;

use crate::command::Command;
use crate::confinement::Confinement;
use crate::name::UnitName;
use crate::schedule::Scheduling;
use crate::value::{Limit, Signal};

mod outcome;

pub use outcome::{ExitStatusSet, ProcessEnd, ServiceResult};

/// `Type=`: when the service counts as started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// After fork.
    Simple,
    /// After a successful `execve`.
    Exec,
    /// When the first process has exited with 0; it left the main process behind.
    Forking,
    /// When the last `ExecStart=` has exited.
    Oneshot,
    /// On `READY=1`.
    Notify,
    /// As `Notify`; a reload is SIGHUP, and ends with the next `READY=1`.
    NotifyReload,
    /// As `Simple`, but only when no job waits any more, or after 5 s.
    Idle,
    /// Made from a `.container` file: when the starter has handed over the container's first process.
    Container,
}

/// `Restart=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Whatever happened.
    Always,
    /// After a clean end.
    OnSuccess,
    /// After an unclean code or signal, a timeout, the watchdog.
    OnFailure,
    /// As `OnFailure` without unclean codes.
    OnAbnormal,
    /// After an unclean signal.
    OnAbort,
    /// After the watchdog.
    OnWatchdog,
}

/// `KillMode=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KillMode {
    /// Everyone in the cgroup.
    #[default]
    ControlGroup,
    /// The signal to the main process; SIGKILL to the rest when it is gone.
    Mixed,
    /// The main process alone.
    Process,
    /// Nobody.
    None,
}

/// `TimeoutStartFailureMode=` and `TimeoutStopFailureMode=`: what is done when the time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailureMode {
    /// `KillSignal=`, then SIGKILL.
    #[default]
    Terminate,
    /// `WatchdogSignal=`, then SIGKILL.
    Abort,
    /// SIGKILL.
    Kill,
}

/// What the journal is asked for; `None` keeps its own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// `SyslogLevel=`: the level of lines that do not begin with one.
    pub level: Option<u8>,
    /// `SyslogLevelPrefix=`: whether `<N>` before a line is its level.
    pub level_prefix: Option<bool>,
    /// `LogLevelMax=`: lines above this level (0 is the most urgent, 7 the least) are dropped.
    pub level_max: Option<u8>,
    /// `LogRateLimitIntervalSec=`; zero turns the limit off.
    pub rate_limit_interval: Option<Duration>,
    /// `LogRateLimitBurst=`; zero turns the limit off.
    pub rate_limit_burst: Option<u32>,
    /// `StandardOutput=` or `StandardError=` is `journal+console`: the journal shows the lines on the console too.
    pub console: bool,
}

/// `NotifyAccess=`: whose `sd_notify` messages count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NotifyAccess {
    /// Nobody's.
    #[default]
    None,
    /// The main process'.
    Main,
    /// The main and control processes'.
    Exec,
    /// Everyone's in the cgroup.
    All,
}

/// `StandardInput=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Input {
    /// `/dev/null`.
    #[default]
    Null,
    /// The terminal of `TTYPath=`, as controlling terminal; waits for it.
    Tty,
    /// The terminal, taken from whoever has it.
    TtyForce,
    /// The terminal; fails when someone has it.
    TtyFail,
    /// This file.
    File(String),
    /// The bytes of `StandardInputText=`.
    Data(Vec<u8>),
    /// The connection of `Accept=yes`.
    Socket,
    /// The socket, or the descriptor of the store, of that name.
    Descriptor(String),
}

/// `StandardOutput=` and `StandardError=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// The same as the stream before: input for output, output for error.
    Inherit,
    /// `/dev/null`.
    Null,
    /// The journal.
    #[default]
    Journal,
    /// The journal and the console.
    JournalAndConsole,
    /// The kernel log.
    KernelLog,
    /// The terminal of `TTYPath=`.
    Tty,
    /// The connection of `Accept=yes`.
    Socket,
    /// The socket, or the descriptor of the store, of that name.
    Descriptor(String),
    /// A file, written from its start.
    File(String),
    /// A file, appended to.
    Append(String),
    /// A file, emptied first.
    Truncate(String),
}

/// A resource of `setrlimit(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name after `Limit` and after `RLIMIT_`.
    pub name: &'static str,
    /// The number on x86-64 (`include/uapi/asm-generic/resource.h`).
    pub number: u32,
}

/// A `Limit…=` line; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceLimit {
    /// What is limited.
    pub resource: Resource,
    /// The limit that the process may raise up to `hard`.
    pub soft: Option<u64>,
    /// The limit that stays.
    pub hard: Option<u64>,
}

/// `CPUWeight=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuWeight {
    /// `cpu.idle`.
    Idle,
    /// `cpu.weight`, 1 to 10000.
    Weight(u16),
}

/// What goes into the unit's cgroup (v2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// `cpu.weight`.
    pub cpu_weight: Option<CpuWeight>,
    /// `cpu.max`: the share of one CPU in 1/10000; 15000 is one and a half.
    pub cpu_quota_permyriad: Option<u64>,
    /// The period of `cpu.max`.
    pub cpu_quota_period: Option<Duration>,
    /// `memory.min`.
    pub memory_min: Option<Limit>,
    /// `memory.low`.
    pub memory_low: Option<Limit>,
    /// `memory.high`.
    pub memory_high: Option<Limit>,
    /// `memory.max`.
    pub memory_max: Option<Limit>,
    /// `memory.swap.max`.
    pub memory_swap_max: Option<Limit>,
    /// `pids.max`.
    pub tasks_max: Option<Limit>,
    /// `io.weight`, 1 to 10000.
    pub io_weight: Option<u16>,
}

/// One of `StateDirectory=`, `RuntimeDirectory=`, `CacheDirectory=`, `LogsDirectory=`, `ConfigurationDirectory=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Paths relative to the root of its kind.
    pub paths: Vec<String>,
    /// Permission bits.
    pub mode: u32,
}

impl Default for Directories {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            mode: 0o755,
        }
    }
}

/// `RuntimeDirectoryPreserve=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preserve {
    /// Removed when the service stops.
    #[default]
    No,
    /// Kept.
    Yes,
    /// Kept over a restart.
    Restart,
}

/// `EnvironmentFile=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvironmentFile {
    /// Absolute path; may be a glob.
    pub path: String,
    /// `-`: it may be missing.
    pub optional: bool,
}

/// `WorkingDirectory=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// `None` is the root directory.
    pub path: Option<String>,
    /// `~`: the home of `User=`, in place of a path.
    pub home: bool,
    /// `-`: it may be missing.
    pub optional: bool,
}

/// `OOMPolicy=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OomPolicy {
    /// Only log it.
    Continue,
    /// Stop the unit.
    #[default]
    Stop,
    /// Let the kernel kill all of the unit's processes.
    Kill,
}

/// What a `.container` file asks for beside the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerOrigin {
    /// The container's name, as given to `--name`.
    pub name: String,
    /// The image as written.
    pub image: String,
    /// `Notify=yes`: the payload itself says `READY=1`.
    pub payload_notifies: bool,
}

/// A service, every directive checked and typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `Type=`.
    pub service_type: ServiceType,
    /// `ExecCondition=`: exit codes 1 to 254 skip the start without failure.
    pub exec_condition: Vec<Command>,
    /// `ExecStartPre=`.
    pub exec_start_pre: Vec<Command>,
    /// `ExecStart=`: exactly one unless `Type=oneshot`.
    pub exec_start: Vec<Command>,
    /// `ExecStartPost=`.
    pub exec_start_post: Vec<Command>,
    /// `ExecReload=`.
    pub exec_reload: Vec<Command>,
    /// `ExecStop=`: only after a successful start.
    pub exec_stop: Vec<Command>,
    /// `ExecStopPost=`: always.
    pub exec_stop_post: Vec<Command>,
    /// `Environment=`, in order; later wins, and all files win over it.
    pub environment: Vec<(String, String)>,
    /// `EnvironmentFile=`, in order.
    pub environment_files: Vec<EnvironmentFile>,
    /// `PassEnvironment=`.
    pub pass_environment: Vec<String>,
    /// `UnsetEnvironment=`: names, or `NAME=VALUE` for that value alone; applied last.
    pub unset_environment: Vec<String>,
    /// `Restart=`.
    pub restart: Restart,
    /// `RestartSec=`.
    pub restart_delay: Duration,
    /// `RestartSteps=`: after so many restarts in a row the delay is `restart_max_delay`; 0 keeps it as it is.
    pub restart_steps: u32,
    /// `RestartMaxDelaySec=`; `None` keeps the delay as it is.
    pub restart_max_delay: Option<Duration>,
    /// `TimeoutAbortSec=`, or `TimeoutStopSec=`: how long the watchdog's signal may take.
    pub timeout_abort: Option<Duration>,
    /// `TimeoutStartFailureMode=`
    pub timeout_start_failure_mode: FailureMode,
    /// `TimeoutStopFailureMode=`
    pub timeout_stop_failure_mode: FailureMode,
    /// `RuntimeRandomizedExtraSec=`: at most so much is added to `runtime_max`.
    pub runtime_randomized_extra: Duration,
    /// `ExitType=cgroup`: the service lasts as long as any of its processes.
    pub exit_with_cgroup: bool,
    /// `ReloadSignal=` for `Type=notify-reload`.
    pub reload_signal: Signal,
    /// `FileDescriptorStoreMax=`: how many descriptors are kept over a restart.
    pub descriptor_store_max: u32,
    /// `NonBlocking=`: passed sockets have `O_NONBLOCK`.
    pub non_blocking: bool,
    /// `Sockets=`: sockets that are passed beside those of the same name.
    pub sockets: Vec<UnitName>,
    /// `TimeoutStartSec=`; `None` waits for ever.
    pub timeout_start: Option<Duration>,
    /// `TimeoutStopSec=`; `None` waits for ever.
    pub timeout_stop: Option<Duration>,
    /// `RuntimeMaxSec=`; `None` is no limit.
    pub runtime_max: Option<Duration>,
    /// `WatchdogSec=`; `None` is off.
    pub watchdog: Option<Duration>,
    /// `RemainAfterExit=`.
    pub remain_after_exit: bool,
    /// `GuessMainPID=`.
    pub guess_main_pid: bool,
    /// `PIDFile=`, absolute.
    pub pid_file: Option<String>,
    /// `SuccessExitStatus=`.
    pub success_exit_status: ExitStatusSet,
    /// `RestartPreventExitStatus=`.
    pub restart_prevent_exit_status: ExitStatusSet,
    /// `RestartForceExitStatus=`.
    pub restart_force_exit_status: ExitStatusSet,
    /// `NotifyAccess=`, with what `Type=` and `WatchdogSec=` imply.
    pub notify_access: NotifyAccess,
    /// `KillMode=`.
    pub kill_mode: KillMode,
    /// `KillSignal=`.
    pub kill_signal: Signal,
    /// `RestartKillSignal=`, or `KillSignal=`.
    pub restart_kill_signal: Signal,
    /// `FinalKillSignal=`.
    pub final_kill_signal: Signal,
    /// `WatchdogSignal=`.
    pub watchdog_signal: Signal,
    /// `SendSIGHUP=`.
    pub send_sighup: bool,
    /// `SendSIGKILL=`.
    pub send_sigkill: bool,
    /// `OOMPolicy=`.
    pub oom_policy: OomPolicy,
    /// `User=`: a name or a number.
    pub user: Option<String>,
    /// `Group=`: a name or a number.
    pub group: Option<String>,
    /// `SupplementaryGroups=`.
    pub supplementary_groups: Vec<String>,
    /// `WorkingDirectory=`.
    pub working_directory: WorkingDirectory,
    /// `Limit…=`.
    pub limits: Vec<ResourceLimit>,
    /// `Nice=`, -20 to 19.
    pub nice: Option<i8>,
    /// What is asked of the kernel's schedulers.
    pub scheduling: Scheduling,
    /// What is asked of the journal.
    pub logging: Logging,
    /// `OOMScoreAdjust=`, -1000 to 1000.
    pub oom_score_adjust: Option<i16>,
    /// `UMask=`.
    pub umask: u32,
    /// `RuntimeDirectory=` under `/run`.
    pub runtime_directory: Directories,
    /// `RuntimeDirectoryPreserve=`.
    pub runtime_directory_preserve: Preserve,
    /// `StateDirectory=` under `/var/lib`.
    pub state_directory: Directories,
    /// `CacheDirectory=` under `/var/cache`.
    pub cache_directory: Directories,
    /// `LogsDirectory=` under `/var/log`.
    pub logs_directory: Directories,
    /// `ConfigurationDirectory=` under `/etc`.
    pub configuration_directory: Directories,
    /// `StandardInput=`.
    pub standard_input: Input,
    /// `StandardOutput=`.
    pub standard_output: Output,
    /// `StandardError=`.
    pub standard_error: Output,
    /// `TTYPath=`.
    pub tty_path: String,
    /// `TTYReset=`.
    pub tty_reset: bool,
    /// `TTYVHangup=`.
    pub tty_vhangup: bool,
    /// `SyslogIdentifier=`; `None` is the name of the program.
    pub syslog_identifier: Option<String>,
    /// `IgnoreSIGPIPE=`.
    pub ignore_sigpipe: bool,
    /// `RemoveIPC=`: what the user leaves of IPC objects goes with the unit.
    pub remove_ipc: bool,
    /// What goes into the cgroup.
    pub resources: Resources,
    /// `Delegate=`: the unit manages the tree below its own cgroup.
    pub delegate: bool,
    /// `Slice=`; `None` is `system.slice`.
    pub slice: Option<UnitName>,
    /// What the processes may not see and do.
    pub confinement: Confinement,
    /// Set for a unit made from a `.container` file.
    pub container: Option<ContainerOrigin>,
}

/// `DefaultTimeoutStartSec=` and `DefaultTimeoutStopSec=`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);
/// `DefaultRestartSec=`.
pub const DEFAULT_RESTART_DELAY: Duration = Duration::from_millis(100);

impl Default for Service {
    fn default() -> Self {
        Self {
            service_type: ServiceType::Simple,
            exec_condition: Vec::new(),
            exec_start_pre: Vec::new(),
            exec_start: Vec::new(),
            exec_start_post: Vec::new(),
            exec_reload: Vec::new(),
            exec_stop: Vec::new(),
            exec_stop_post: Vec::new(),
            environment: Vec::new(),
            environment_files: Vec::new(),
            pass_environment: Vec::new(),
            unset_environment: Vec::new(),
            restart: Restart::No,
            restart_delay: DEFAULT_RESTART_DELAY,
            restart_steps: 0,
            restart_max_delay: None,
            timeout_abort: Some(DEFAULT_TIMEOUT),
            timeout_start_failure_mode: FailureMode::Terminate,
            timeout_stop_failure_mode: FailureMode::Terminate,
            runtime_randomized_extra: Duration::ZERO,
            exit_with_cgroup: false,
            reload_signal: Signal::HUP,
            descriptor_store_max: 0,
            non_blocking: false,
            sockets: Vec::new(),
            timeout_start: Some(DEFAULT_TIMEOUT),
            timeout_stop: Some(DEFAULT_TIMEOUT),
            runtime_max: None,
            watchdog: None,
            remain_after_exit: false,
            guess_main_pid: true,
            pid_file: None,
            success_exit_status: ExitStatusSet::default(),
            restart_prevent_exit_status: ExitStatusSet::default(),
            restart_force_exit_status: ExitStatusSet::default(),
            notify_access: NotifyAccess::None,
            kill_mode: KillMode::ControlGroup,
            kill_signal: Signal::TERM,
            restart_kill_signal: Signal::TERM,
            final_kill_signal: Signal::KILL,
            watchdog_signal: Signal::ABRT,
            send_sighup: false,
            send_sigkill: true,
            oom_policy: OomPolicy::Stop,
            user: None,
            group: None,
            supplementary_groups: Vec::new(),
            working_directory: WorkingDirectory::default(),
            limits: Vec::new(),
            nice: None,
            scheduling: Scheduling::default(),
            logging: Logging::default(),
            oom_score_adjust: None,
            umask: 0o022,
            runtime_directory: Directories::default(),
            runtime_directory_preserve: Preserve::No,
            state_directory: Directories::default(),
            cache_directory: Directories::default(),
            logs_directory: Directories::default(),
            configuration_directory: Directories::default(),
            standard_input: Input::Null,
            standard_output: Output::Journal,
            standard_error: Output::Inherit,
            tty_path: "/dev/console".to_owned(),
            tty_reset: false,
            tty_vhangup: false,
            syslog_identifier: None,
            ignore_sigpipe: true,
            remove_ipc: false,
            resources: Resources::default(),
            delegate: false,
            slice: None,
            confinement: Confinement::default(),
            container: None,
        }
    }
}
