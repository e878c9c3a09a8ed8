//! Starting a program: one clone3(2) straight into its cgroup, then only system calls until execve(2).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use crate::clone::{CloneArgs, CloneFlags};

/// A resource limit, setrlimit(2).
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// One of libc's `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// The hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// What to run, and as what.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The program's path.
    pub program: &'a CStr,
    /// Its arguments, `argv[0]` first.
    pub argv: &'a [CString],
    /// Its environment, `KEY=value`.
    pub envp: &'a [CString],
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Descriptors that the program finds from number 3 on.
    pub inherit: &'a [BorrowedFd<'a>],
    /// The directory of the cgroup (version 2) that it starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The working directory; one that is missing fails the start.
    pub directory: &'a CStr,
    /// User, group and supplementary groups; `None` keeps root.
    pub user: Option<(u32, u32, &'a [u32])>,
    /// The file mode creation mask.
    pub umask: u32,
    /// The nice value, -20 to 19.
    pub nice: i32,
    /// The out-of-memory killer's adjustment, -1000 to 1000.
    pub oom_score_adjust: Option<i32>,
    /// Resource limits to set.
    pub limits: &'a [Limit],
    /// Whether standard input, a terminal, becomes the controlling terminal of the new session.
    pub controlling_terminal: bool,
    /// Whether execve(2) may not grant privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
}

/// The step of a start that failed; the numbers are systemd.exec(5)'s exit codes for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// The working directory.
    Directory = 200,
    /// The nice value.
    Nice = 201,
    /// Passing descriptors on.
    Descriptors = 202,
    /// execve(2) itself.
    Exec = 203,
    /// A resource limit.
    Limits = 205,
    /// The out-of-memory adjustment.
    OomAdjust = 206,
    /// Standard input, output or error.
    Stdio = 208,
    /// The group or the supplementary groups.
    Group = 216,
    /// The user.
    User = 217,
    /// The new session or its terminal.
    Session = 220,
    /// The flag against new privileges.
    NoNewPrivileges = 227,
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Directory,
        Self::Nice,
        Self::Descriptors,
        Self::Exec,
        Self::Limits,
        Self::OomAdjust,
        Self::Stdio,
        Self::Group,
        Self::User,
        Self::Session,
        Self::NoNewPrivileges,
    ];

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| *s as u8 == code)
    }

    /// The step in words, to follow "cannot".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Directory => "change to the working directory",
            Self::Nice => "set the nice value",
            Self::Descriptors => "pass on descriptors",
            Self::Exec => "execute",
            Self::Limits => "set a resource limit",
            Self::OomAdjust => "set the out-of-memory adjustment",
            Self::Stdio => "set up standard input and output",
            Self::Group => "change to the group",
            Self::User => "change to the user",
            Self::Session => "open a session",
            Self::NoNewPrivileges => "forbid new privileges",
        }
    }
}

/// Why a started child never became its program.
#[derive(Debug)]
pub struct StartFailure {
    /// What failed.
    pub step: Step,
    /// How it failed.
    pub err: io::Error,
}

/// A child that is on its way to its program.
#[derive(Debug)]
pub struct Spawned {
    /// Its process number; it stays taken until the parent has waited for it.
    pub pid: i32,
    /// Closes without data when the program runs; else holds a message for [`start_result`].
    pub status: OwnedFd,
}

/// Reads the outcome of a start from [`Spawned::status`], which must be readable.
///
/// # Errors
/// `WouldBlock` while there is none yet, and other errors of read(2).
pub fn start_result(status: BorrowedFd<'_>) -> io::Result<Result<(), StartFailure>> {
    let mut message = [0_u8; 5];
    let read = nix::unistd::read(status, &mut message)?;
    if read == 0 {
        return Ok(Ok(()));
    }
    let [code, errno @ ..] = message;
    Ok(Err(StartFailure {
        step: Step::from_code(code).unwrap_or(Step::Exec),
        err: io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
    }))
}

/// Starts `exec` as a child in a session of its own, with all signals at their defaults and unblocked.
///
/// Must be called by a process with one thread: between clone3(2) and execve(2) the child works on a copy of its memory.
///
/// # Errors
/// Those of pipe2(2) and clone3(2); what fails in the child arrives through [`Spawned::status`].
pub fn spawn(exec: &Exec<'_>) -> io::Result<Spawned> {
    let argv: Vec<*const libc::c_char> = terminated(exec.argv);
    let envp: Vec<*const libc::c_char> = terminated(exec.envp);
    let (status, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    rustix::io::ioctl_fionbio(&status, true)?;
    let mut args = CloneArgs {
        flags: CloneFlags::CLEAR_SIGNAL_HANDLERS.0,
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = exec.cgroup {
        args.flags |= CloneFlags::INTO_CGROUP.0;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(0);
    }
    let ignored = ignored_signals();
    // SAFETY: `args` is a whole `clone_args` without a stack: the child goes on here on a copy of this memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        0 => {
            let mut report = report.as_raw_fd();
            let (step, errno) = become_program(exec, ignored, &argv, &envp, &mut report);
            let [a, b, c, d] = errno.to_ne_bytes();
            let message = [step as u8, a, b, c, d];
            // SAFETY: write(2) reads the five bytes of `message`.
            unsafe { libc::write(report, message.as_ptr().cast(), message.len()) };
            // SAFETY: _exit(2) runs nothing of the parent's copy.
            unsafe { libc::_exit(i32::from(step as u8)) }
        }
        pid if pid > 0 => Ok(Spawned {
            pid: i32::try_from(pid).unwrap_or(i32::MAX),
            status,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EINVAL)
}

/// The child's way to its program: system calls alone. Returns only the step that failed and its error number.
fn become_program(
    exec: &Exec<'_>,
    ignored: &[libc::c_int],
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    report: &mut libc::c_int,
) -> (Step, i32) {
    macro_rules! attempt {
        ($step:expr, $call:expr) => {
            // SAFETY: one system call on values and pointers that live until execve(2); see the callers' arguments.
            if unsafe { $call } < 0 {
                return ($step, errno());
            }
        };
    }
    default_signals(ignored);
    attempt!(Step::Session, libc::setsid());
    match move_descriptors(exec, *report) {
        Ok(moved) => *report = moved,
        Err(failure) => return failure,
    }
    if exec.controlling_terminal {
        attempt!(Step::Session, libc::ioctl(0, libc::TIOCSCTTY, 0));
    }
    if let Some(adjust) = exec.oom_score_adjust
        && let Err(errno) = write_oom_score_adjust(adjust)
    {
        return (Step::OomAdjust, errno);
    }
    for limit in exec.limits {
        let rlimit = libc::rlimit {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        attempt!(
            Step::Limits,
            libc::setrlimit(limit.resource, &raw const rlimit)
        );
    }
    if exec.nice != 0 {
        attempt!(
            Step::Nice,
            libc::setpriority(libc::PRIO_PROCESS, 0, exec.nice)
        );
    }
    // SAFETY: umask(2) cannot fail and takes a value.
    unsafe { libc::umask(exec.umask) };
    if let Some((uid, gid, groups)) = exec.user {
        attempt!(Step::Group, libc::setgroups(groups.len(), groups.as_ptr()));
        attempt!(Step::Group, libc::setresgid(gid, gid, gid));
        attempt!(Step::User, libc::setresuid(uid, uid, uid));
    }
    attempt!(Step::Directory, libc::chdir(exec.directory.as_ptr()));
    if exec.no_new_privileges {
        attempt!(
            Step::NoNewPrivileges,
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        );
    }
    attempt!(
        Step::Exec,
        libc::execve(exec.program.as_ptr(), argv.as_ptr(), envp.as_ptr())
    );
    (Step::Exec, libc::EINVAL)
}

/// The signals that this process ignores, as it found them or as Rust's runtime set them; looked up once, at the first start.
fn ignored_signals() -> &'static [libc::c_int] {
    static IGNORED: OnceLock<Vec<libc::c_int>> = OnceLock::new();
    IGNORED.get_or_init(|| {
        (1..=libc::SIGRTMAX())
            .filter(|signal| {
                let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
                // SAFETY: sigaction(2) writes the present action to `action` and changes nothing.
                let asked =
                    unsafe { libc::sigaction(*signal, std::ptr::null(), action.as_mut_ptr()) };
                // SAFETY: zeroed memory is a valid `sigaction`, and the kernel has written over it.
                asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
            })
            .collect()
    })
}

/// Signals that are ignored or blocked stay so over execve(2): undo what the parent has set. Handlers are gone with `CLONE_CLEAR_SIGHAND`.
fn default_signals(ignored: &[libc::c_int]) {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset(3) initialises the set it is given.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    for signal in ignored {
        // SAFETY: setting a default disposition takes no memory.
        unsafe { libc::signal(*signal, libc::SIG_DFL) };
    }
    // SAFETY: `none` was initialised above; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
}

/// Puts standard input, output, error and the inherited descriptors at 0, 1, 2, 3 …; answers the report pipe's new number.
fn move_descriptors(exec: &Exec<'_>, report: libc::c_int) -> Result<libc::c_int, (Step, i32)> {
    const ROOM: libc::c_int = 64;
    let above = |fd: libc::c_int, step: Step| {
        // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC takes values alone.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, ROOM) };
        if copy < 0 {
            Err((step, errno()))
        } else {
            Ok(copy)
        }
    };
    let place = |fd: libc::c_int, at: libc::c_int, step: Step| {
        // SAFETY: dup2(2) takes values alone; the copy has no close-on-exec flag.
        if unsafe { libc::dup2(fd, at) } < 0 {
            Err((step, errno()))
        } else {
            Ok(())
        }
    };
    let report = above(report, Step::Descriptors)?;
    let mut stdio = [0; 3];
    for (to, from) in stdio.iter_mut().zip(exec.stdio) {
        *to = above(from.as_raw_fd(), Step::Stdio)?;
    }
    let mut inherit = [0; 16];
    for (to, from) in inherit.iter_mut().zip(exec.inherit) {
        *to = above(from.as_raw_fd(), Step::Descriptors)?;
    }
    for (at, fd) in (0..).zip(stdio) {
        place(fd, at, Step::Stdio)?;
    }
    for (at, (fd, _)) in (3..).zip(inherit.iter().zip(exec.inherit)) {
        place(*fd, at, Step::Descriptors)?;
    }
    Ok(report)
}

fn write_oom_score_adjust(adjust: i32) -> Result<(), i32> {
    let mut text = [0_u8; 12];
    let mut at = text.len();
    let mut rest = adjust.unsigned_abs();
    loop {
        at = at.saturating_sub(1);
        if let Some(digit) = text.get_mut(at) {
            *digit = b'0'.saturating_add(u8::try_from(rest % 10).unwrap_or(0));
        }
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if adjust < 0 {
        at = at.saturating_sub(1);
        if let Some(sign) = text.get_mut(at) {
            *sign = b'-';
        }
    }
    let bytes = text.get(at..).unwrap_or_default();
    // SAFETY: open(2) reads a string that ends in NUL.
    let fd = unsafe {
        libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: write(2) reads `bytes.len()` bytes of `bytes`.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    if written < 0 { Err(errno()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn run<'a>(
        program: &'a CStr,
        argv: &'a [CString],
        null: &'a std::fs::File,
        change: impl FnOnce(&mut Exec<'a>),
    ) -> (String, Option<StartFailure>) {
        let (read, write) = std::io::pipe().unwrap();
        let mut exec = Exec {
            program,
            argv,
            envp: &[],
            stdio: [null.as_fd(); 3],
            inherit: &[],
            cgroup: None,
            directory: c"/",
            user: None,
            umask: 0o022,
            nice: 0,
            oom_score_adjust: None,
            limits: &[],
            controlling_terminal: false,
            no_new_privileges: false,
        };
        change(&mut exec);
        let [input, ..] = exec.stdio;
        let spawned = spawn(&Exec {
            stdio: [input, write.as_fd(), write.as_fd()],
            ..exec
        })
        .unwrap();
        drop(write);
        let output = std::io::read_to_string(read).unwrap();
        let failure = start_result(spawned.status.as_fd()).unwrap().err();
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(spawned.pid), None).unwrap();
        (output, failure)
    }

    fn arguments(words: &[&str]) -> Vec<CString> {
        words.iter().map(|w| CString::new(*w).unwrap()).collect()
    }

    #[test]
    fn a_program_runs_in_a_session_of_its_own_with_its_settings() {
        let script = "umask; ulimit -n; cat /proc/self/oom_score_adj; read pid rest < /proc/self/stat; set -- $rest; test $4 = $$ || echo session $4; pwd";
        let limits = [Limit {
            resource: libc::RLIMIT_NOFILE,
            soft: 77,
            hard: 77,
        }];
        let argv = arguments(&["sh", "-c", script]);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (output, failure) = run(c"/bin/sh", &argv, &null, |exec| {
            exec.umask = 0o077;
            exec.oom_score_adjust = Some(500);
            exec.limits = &limits;
            exec.directory = c"/usr";
        });
        assert!(failure.is_none(), "{failure:?}");
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.first(), Some(&"0077"));
        assert_eq!(lines.get(1), Some(&"77"));
        assert_eq!(lines.get(2), Some(&"500"));
        assert_eq!(lines.last(), Some(&"/usr"));
    }

    #[test]
    fn a_missing_program_is_told_apart_from_one_that_exits() {
        let argv = arguments(&["x"]);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (_, failure) = run(c"/no/such/program", &argv, &null, |_| {});
        let failure = failure.unwrap();
        assert_eq!(failure.step, Step::Exec);
        assert_eq!(failure.err.raw_os_error(), Some(libc::ENOENT));
        let (_, failure) = run(c"/bin/true", &argv, &null, |exec| {
            exec.directory = c"/no/such/directory"
        });
        assert_eq!(failure.unwrap().step, Step::Directory);
    }
}
