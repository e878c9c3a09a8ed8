//! Starting a program: one clone3(2) straight into its cgroup, then only system calls until execve(2).

mod child;

use std::ffi::CString;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use crate::clone::CloneFlags;
use child::{Plan, start};

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

/// The most descriptors that are passed on.
pub const MOST_INHERITED: usize = 128;

/// What to run, and as what.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The program's path.
    pub program: CString,
    /// Its arguments, `argv[0]` first.
    pub argv: Vec<CString>,
    /// Its environment, `KEY=value`.
    pub envp: Vec<CString>,
    /// Standard input, output and error.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Variables that hold the program's own process number; they come behind `envp`.
    pub pid_variables: Vec<&'static str>,
    /// Whether SIGPIPE stays ignored where this process ignores it.
    pub ignore_broken_pipes: bool,
    /// Descriptors that the program finds from number 3 on, at most [`MOST_INHERITED`].
    pub inherit: &'a [BorrowedFd<'a>],
    /// The directory of the cgroup (version 2) that it starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The working directory, where it is not this process's own; one that is missing fails the start.
    pub directory: Option<CString>,
    /// User, group and supplementary groups; `None` keeps root.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// The file mode creation mask.
    pub umask: u32,
    /// The nice value, -20 to 19.
    pub nice: i32,
    /// The out-of-memory killer's adjustment, -1000 to 1000.
    pub oom_score_adjust: Option<i32>,
    /// Resource limits to set.
    pub limits: Vec<Limit>,
    /// Whether standard input, a terminal, becomes the controlling terminal of the new session.
    pub controlling_terminal: bool,
    /// Whether execve(2) may not grant privileges (`PR_SET_NO_NEW_PRIVS`).
    pub no_new_privileges: bool,
    /// Whether the program finds the pipe of [`Start`] behind the last of `inherit`, and goes on telling how the start goes:
    /// it is over when that is closed. What it writes is the step's number, the error's in four bytes, and words.
    pub passes_report: bool,
}

impl<'a> Exec<'a> {
    /// A program of root's in this process's directory, with no environment and every setting at its default.
    #[must_use]
    pub fn new(program: CString, argv: Vec<CString>, stdio: [BorrowedFd<'a>; 3]) -> Self {
        Self {
            program,
            argv,
            envp: Vec::new(),
            pid_variables: Vec::new(),
            ignore_broken_pipes: false,
            stdio,
            inherit: &[],
            cgroup: None,
            directory: None,
            user: None,
            umask: 0o022,
            nice: 0,
            oom_score_adjust: None,
            limits: Vec::new(),
            controlling_terminal: false,
            no_new_privileges: false,
            passes_report: false,
        }
    }
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
    /// What failed, by its number.
    pub code: u8,
    /// How it failed.
    pub err: io::Error,
    /// The whole of it in words, from a program that `passes_report`.
    pub text: Option<String>,
}

impl StartFailure {
    /// The step that failed, if it is one of this module's.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        Step::from_code(self.code)
    }
}

/// The most bytes that one report has.
const REPORT_MAX: usize = 4096;

/// A child that is on its way to its program.
#[derive(Debug)]
pub struct Spawned {
    /// Its process number; it stays taken until the parent has waited for it.
    pub pid: i32,
    /// How its start goes.
    pub start: Start,
}

/// The start of a child: a pipe that closes when the program runs or the child is gone, and what the child works on until then.
#[derive(Debug)]
pub struct Start {
    pipe: OwnedFd,
    failure: Option<StartFailure>,
    /// The child shares our memory and reads this until the pipe is closed.
    plan: ManuallyDrop<Box<Plan>>,
    is_over: bool,
}

impl Start {
    /// The outcome, once the pipe is readable and for as long as it is.
    ///
    /// # Errors
    /// `WouldBlock` while there is none yet, and other errors of read(2).
    pub fn result(&mut self) -> io::Result<Result<(), StartFailure>> {
        loop {
            let mut message = [MaybeUninit::<u8>::uninit(); REPORT_MAX];
            let (message, _) = rustix::io::read(&self.pipe, &mut message)?;
            if message.is_empty() {
                // The end: the program has a memory of its own, or the child has none any more.
                self.is_over = true;
                return Ok(self.failure.take().map_or(Ok(()), Err));
            }
            let Some(([code, errno @ ..], words)) = message.split_first_chunk::<5>() else {
                continue;
            };
            self.failure = Some(StartFailure {
                code: *code,
                err: io::Error::from_raw_os_error(i32::from_ne_bytes(*errno)),
                text: (!words.is_empty()).then(|| String::from_utf8_lossy(words).into_owned()),
            });
        }
    }
}

impl AsFd for Start {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        // A child that is still on its way keeps what it reads: a few kilobytes are lost rather than used after they are freed.
        if self.is_over || self.result().is_ok() {
            // SAFETY: dropped here and nowhere else, and the child does not use it any more.
            unsafe { ManuallyDrop::drop(&mut self.plan) };
        }
    }
}

/// Starts `exec` as a child in a session of its own, with all signals at their defaults and unblocked.
///
/// The child shares this process's memory until execve(2), as with vfork(2), but nobody waits for it: neither page tables nor pages are copied, and
/// a program on a slow disk holds nobody up. It only makes system calls, on a stack of its own. One whose out-of-memory adjustment changes gets
/// a copy of the memory, since the kernel changes that of all who share.
///
/// # Errors
/// Those of pipe2(2) and clone3(2); what fails in the child arrives through [`Start::result`].
pub fn spawn(exec: Exec<'_>) -> io::Result<Spawned> {
    let (pipe, report) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    rustix::io::ioctl_fionbio(&pipe, true)?;
    let mut flags = CloneFlags::CLEAR_SIGNAL_HANDLERS;
    if exec.oom_score_adjust.is_none() {
        flags |= CloneFlags::MEMORY;
    }
    let cgroup = exec.cgroup.map(|fd| fd.as_raw_fd());
    let plan = ManuallyDrop::new(Box::new(Plan::new(exec, ignored_signals(), &report)));
    let pid = start(flags, cgroup, &plan);
    let mut start = Start {
        pipe,
        failure: None,
        plan,
        is_over: false,
    };
    match pid {
        Ok(pid) => Ok(Spawned { pid, start }),
        Err(err) => {
            start.is_over = true;
            Err(err)
        }
    }
}

/// Starts `exec` like [`spawn`], on a copy of our memory and without an account of how its start went: what fails is its exit code.
///
/// # Errors
/// Those of opening `/dev/null` and of clone3(2).
pub fn spawn_detached(exec: Exec<'_>) -> io::Result<i32> {
    let report = OwnedFd::from(std::fs::File::options().write(true).open("/dev/null")?);
    let cgroup = exec.cgroup.map(|fd| fd.as_raw_fd());
    let plan = Plan::new(exec, ignored_signals(), &report);
    start(CloneFlags::CLEAR_SIGNAL_HANDLERS, cgroup, &plan)
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

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::ffi::CStr;

    fn plain<'a>(program: &CStr, argv: &[CString], null: &'a std::fs::File) -> Exec<'a> {
        Exec::new(program.to_owned(), argv.to_vec(), [null.as_fd(); 3])
    }

    fn run<'a>(
        program: &CStr,
        argv: &[CString],
        null: &'a std::fs::File,
        change: impl FnOnce(&mut Exec<'a>),
    ) -> (String, Option<StartFailure>) {
        let (read, write) = std::io::pipe().unwrap();
        let mut exec = plain(program, argv, null);
        change(&mut exec);
        let [input, ..] = exec.stdio;
        let mut spawned = spawn(Exec {
            stdio: [input, write.as_fd(), write.as_fd()],
            ..exec
        })
        .unwrap();
        drop(write);
        let output = std::io::read_to_string(read).unwrap();
        let failure = loop {
            let mut readable = [PollFd::new(spawned.start.as_fd(), PollFlags::POLLIN)];
            poll(&mut readable, PollTimeout::NONE).unwrap();
            match spawned.start.result() {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                result => break result.unwrap().err(),
            }
        };
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(spawned.pid), None).unwrap();
        (output, failure)
    }

    fn arguments(words: &[&str]) -> Vec<CString> {
        words.iter().map(|w| CString::new(*w).unwrap()).collect()
    }

    #[test]
    fn a_program_runs_in_a_session_of_its_own_with_its_settings() {
        let script = "umask; ulimit -n; cat /proc/self/oom_score_adj; read pid rest < /proc/self/stat; set -- $rest; test $4 = $$ || echo session $4; pwd";
        let limits = vec![Limit {
            resource: libc::RLIMIT_NOFILE,
            soft: 77,
            hard: 77,
        }];
        let argv = arguments(&["sh", "-c", script]);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (output, failure) = run(c"/bin/sh", &argv, &null, |exec| {
            exec.umask = 0o077;
            exec.oom_score_adjust = Some(500);
            exec.limits = limits;
            exec.directory = Some(c"/usr".to_owned());
        });
        assert!(failure.is_none(), "{failure:?}");
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines.first(), Some(&"0077"));
        assert_eq!(lines.get(1), Some(&"77"));
        assert_eq!(lines.get(2), Some(&"500"));
        assert_eq!(lines.last(), Some(&"/usr"));
    }

    #[test]
    fn a_program_that_goes_on_with_the_start_tells_how_it_goes() {
        let null = std::fs::File::open("/dev/null").unwrap();
        // Descriptor 3 is what is passed on, 4 the report: status 226, error 2, words.
        let script = "printf '\\342\\002\\000\\000\\000no such place' >&4; exec 4>&-; echo over";
        let argv = arguments(&["sh", "-c", script]);
        let (output, failure) = run(c"/bin/sh", &argv, &null, |exec| {
            exec.passes_report = true;
            exec.inherit = Box::leak(Box::new([null.as_fd()]));
        });
        let failure = failure.unwrap();
        assert_eq!((output.as_str(), failure.code), ("over\n", 226));
        assert_eq!(failure.err.raw_os_error(), Some(2));
        assert_eq!(failure.text.as_deref(), Some("no such place"));
    }

    #[test]
    fn a_program_knows_its_own_number_and_finds_what_is_passed_on() {
        let script = "test $LISTEN_PID = $$ && echo mine; cat /proc/self/fd/3 /proc/self/fd/102; kill -PIPE $$; echo alive";
        let argv = arguments(&["sh", "-c", script]);
        let null = std::fs::File::open("/dev/null").unwrap();
        let texts: Vec<std::io::PipeReader> = (0..100)
            .map(|at| {
                let (read, mut write) = std::io::pipe().unwrap();
                io::Write::write_all(&mut write, format!("{at}\n").as_bytes()).unwrap();
                read
            })
            .collect();
        let inherit: Vec<BorrowedFd<'_>> = texts.iter().map(|read| read.as_fd()).collect();
        let (output, failure) = run(c"/bin/sh", &argv, &null, |exec| {
            exec.pid_variables = vec!["LISTEN_PID", "WATCHDOG_PID"];
            exec.ignore_broken_pipes = true;
            exec.inherit = Box::leak(inherit.clone().into_boxed_slice());
        });
        assert!(failure.is_none(), "{failure:?}");
        assert_eq!(output, "mine\n0\n99\nalive\n");
    }

    #[test]
    fn a_child_that_shares_our_memory_leaves_it_as_it_was() {
        let argv = arguments(&["sh", "-c", "ulimit -n; umask"]);
        let null = std::fs::File::open("/dev/null").unwrap();
        for _ in 0..200 {
            let kept = vec![7_u8; 100_000];
            let (output, failure) = run(c"/bin/sh", &argv, &null, |exec| {
                exec.umask = 0o027;
                exec.limits = vec![Limit {
                    resource: libc::RLIMIT_NOFILE,
                    soft: 99,
                    hard: 99,
                }];
            });
            assert!(failure.is_none(), "{failure:?}");
            assert_eq!(output, "99\n0027\n");
            assert!(kept.iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn a_start_that_nobody_waits_for_is_no_danger() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut pids = Vec::new();
        for _ in 0..50 {
            let spawned = spawn(plain(c"/bin/true", &arguments(&["true"]), &null));
            pids.push(spawned.unwrap().pid);
        }
        for pid in pids {
            let ended = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
            assert!(
                matches!(ended, nix::sys::wait::WaitStatus::Exited(_, 0)),
                "{ended:?}"
            );
        }
    }

    #[test]
    fn a_detached_program_that_is_missing_is_an_exit_code() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let pid = spawn_detached(plain(c"/no/such/program", &arguments(&["x"]), &null));
        let pid = nix::unistd::Pid::from_raw(pid.unwrap());
        let ended = nix::sys::wait::waitpid(pid, None).unwrap();
        assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(pid, 203));
    }

    #[test]
    fn a_missing_program_is_told_apart_from_one_that_exits() {
        let argv = arguments(&["x"]);
        let null = std::fs::File::open("/dev/null").unwrap();
        let (_, failure) = run(c"/no/such/program", &argv, &null, |_| {});
        let failure = failure.unwrap();
        assert_eq!(failure.step(), Some(Step::Exec));
        assert_eq!(failure.err.raw_os_error(), Some(libc::ENOENT));
        let (_, failure) = run(c"/bin/true", &argv, &null, |exec| {
            exec.directory = Some(c"/no/such/directory".to_owned())
        });
        assert_eq!(failure.unwrap().step(), Some(Step::Directory));
    }
}
