//! What a started child does until its program runs.
//!
//! It shares its parent's memory, and the parent goes on meanwhile. So it reads what the [`Plan`] holds, writes to its own stack alone, and calls
//! the kernel without the C library, whose `errno` would be the parent's.

use std::arch::asm;
use std::cell::Cell;
use std::ffi::{CString, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};

use super::{Exec, Limit, MOST_INHERITED, Step};
use crate::clone::{CloneArgs, CloneFlags};

/// The child's stack in units of 16 bytes, the alignment that the ABI wants: 16 KiB.
const STACK: usize = 1024;

/// All that the child reads.
#[derive(Debug)]
pub(super) struct Plan {
    program: CString,
    directory: Option<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    stdio: [i32; 3],
    inherit: Vec<i32>,
    user: Option<(u32, u32, Vec<u32>)>,
    umask: u32,
    nice: i32,
    oom_score_adjust: Option<i32>,
    limits: Vec<Limit>,
    controlling_terminal: bool,
    no_new_privileges: bool,
    passes_report: bool,
    ignored: &'static [i32],
    ignore_broken_pipes: bool,
    /// Variables of the environment that the child completes with its own number.
    pid_texts: Vec<Box<[Cell<u8>]>>,
    report: i32,
    stack: Vec<MaybeUninit<u128>>,
    /// What `argv` and `envp` point into.
    _strings: [Vec<CString>; 2],
}

impl Plan {
    /// Takes over what `exec` holds; its descriptors only have to be open until the child is made, which has its own.
    pub(super) fn new(exec: Exec<'_>, ignored: &'static [i32], report: &OwnedFd) -> Self {
        let mut stack = Vec::with_capacity(STACK);
        stack.resize(STACK, MaybeUninit::uninit());
        let pid_texts: Vec<Box<[Cell<u8>]>> = exec
            .pid_variables
            .iter()
            .map(|name| pid_text(name))
            .collect();
        let mut envp = terminated(&exec.envp);
        envp.pop();
        envp.extend(pid_texts.iter().map(|text| text.as_ptr().cast()));
        envp.push(std::ptr::null());
        Self {
            program: exec.program,
            directory: exec.directory,
            argv: terminated(&exec.argv),
            envp,
            pid_texts,
            ignore_broken_pipes: exec.ignore_broken_pipes,
            stdio: exec.stdio.map(|fd| fd.as_raw_fd()),
            inherit: exec
                .inherit
                .iter()
                .take(MOST_INHERITED)
                .map(|fd| fd.as_raw_fd())
                .collect(),
            user: exec.user,
            umask: exec.umask,
            nice: exec.nice,
            oom_score_adjust: exec.oom_score_adjust,
            limits: exec.limits,
            controlling_terminal: exec.controlling_terminal,
            no_new_privileges: exec.no_new_privileges,
            passes_report: exec.passes_report,
            ignored,
            report: report.as_raw_fd(),
            stack,
            _strings: [exec.argv, exec.envp],
        }
    }
}

/// The most digits of a process' number (`PID_MAX_LIMIT` of `include/linux/threads.h` is 2^22).
const PID_DIGITS: usize = 10;

/// `NAME=`, with room for a number and the end.
fn pid_text(name: &str) -> Box<[Cell<u8>]> {
    let bytes = name.bytes().chain(std::iter::once(b'='));
    let room = std::iter::repeat_n(0, PID_DIGITS + 1);
    bytes.chain(room).map(Cell::new).collect()
}

/// Writes the caller's own number behind each `NAME=`.
fn complete_pid_texts(plan: &Plan) {
    if plan.pid_texts.is_empty() {
        return;
    }
    let mut rest = call(libc::SYS_getpid, []);
    let mut digits = [0_u8; PID_DIGITS];
    let mut count = 0;
    while let Some(digit) = digits.get_mut(count).filter(|_| rest > 0 || count == 0) {
        *digit = b'0'.saturating_add(u8::try_from(rest % 10).unwrap_or(0));
        rest /= 10;
        count += 1;
    }
    for text in &plan.pid_texts {
        let start = text.len().saturating_sub(PID_DIGITS + 1);
        for (to, digit) in text.iter().skip(start).zip(digits.iter().take(count).rev()) {
            to.set(*digit);
        }
    }
}

fn terminated(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain(std::iter::once(std::ptr::null()))
        .collect()
}

/// Makes the child, which starts on the plan's stack; answers its number.
///
/// With [`CloneFlags::MEMORY`] the plan has to live until the child is gone or has its program.
pub(super) fn start(flags: CloneFlags, cgroup: Option<i32>, plan: &Plan) -> io::Result<i32> {
    let mut args = CloneArgs {
        flags: flags.0,
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        stack: plan.stack.as_ptr() as u64,
        stack_size: (plan.stack.len() * size_of::<u128>()) as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CloneFlags::INTO_CGROUP.0;
        args.cgroup = u64::try_from(cgroup).unwrap_or(0);
    }
    let mut result = libc::SYS_clone3;
    // SAFETY: `args` is a whole `clone_args` with a stack that nothing else uses, aligned to 16 bytes at its end. The parent comes back behind
    // the label as from any system call; the child, which has the same registers and the new stack, calls `child`, which does not return.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {plan}",
            "call {child}",
            "ud2",
            "2:",
            plan = in(reg) std::ptr::from_ref(plan).cast::<c_void>(),
            child = in(reg) child as extern "C" fn(*const c_void) -> !,
            inlateout("rax") result,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    match i32::try_from(result) {
        Ok(pid @ 1..) => Ok(pid),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
        Err(_) => Err(io::Error::other("clone3 gave no process number")),
    }
}

/// A system call without the C library: its result, or the negated error number.
fn call<const N: usize>(number: i64, words: [u64; N]) -> i64 {
    let word = |at: usize| words.get(at).copied().unwrap_or(0);
    let mut result = number;
    // SAFETY: the callers pass values, or pointers to memory of the plan and of their own stack that the kernel reads or writes as documented for
    // the call; the kernel keeps all registers but these three.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") word(0),
            in("rsi") word(1),
            in("rdx") word(2),
            in("r10") word(3),
            in("r8") word(4),
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result
}

/// A signed number as a register holds it.
fn signed(value: i32) -> u64 {
    i64::from(value).cast_unsigned()
}

fn pointer<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>() as u64
}

extern "C" fn child(plan: *const c_void) -> ! {
    // SAFETY: the parent passed its plan and keeps it for as long as we read it.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let mut report = plan.report;
    let (step, errno) = become_program(plan, &mut report);
    let [a, b, c, d] = errno.to_ne_bytes();
    let message = [step as u8, a, b, c, d];
    call(
        libc::SYS_write,
        [signed(report), pointer(message.as_ptr()), 5],
    );
    loop {
        call(libc::SYS_exit_group, [u64::from(step as u8)]);
    }
}

fn attempt<const N: usize>(step: Step, number: i64, words: [u64; N]) -> Result<i32, (Step, i32)> {
    let result = i32::try_from(call(number, words)).unwrap_or(i32::MAX);
    if result < 0 {
        Err((step, result.wrapping_neg()))
    } else {
        Ok(result)
    }
}

/// The way to the program. Returns only the step that failed and its error number.
fn become_program(plan: &Plan, report: &mut i32) -> (Step, i32) {
    match prepare(plan, report) {
        Err(failure) => failure,
        Ok(()) => {
            let errno = call(
                libc::SYS_execve,
                [
                    pointer(plan.program.as_ptr()),
                    pointer(plan.argv.as_ptr()),
                    pointer(plan.envp.as_ptr()),
                ],
            );
            (
                Step::Exec,
                i32::try_from(errno.wrapping_neg()).unwrap_or(libc::EINVAL),
            )
        }
    }
}

fn prepare(plan: &Plan, report: &mut i32) -> Result<(), (Step, i32)> {
    default_signals(plan.ignored, plan.ignore_broken_pipes);
    complete_pid_texts(plan);
    attempt(Step::Session, libc::SYS_setsid, [])?;
    *report = move_descriptors(plan)?;
    if plan.controlling_terminal {
        attempt(Step::Session, libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0])?;
    }
    if let Some(adjust) = plan.oom_score_adjust {
        write_oom_score_adjust(adjust)?;
    }
    for limit in &plan.limits {
        let new = libc::rlimit {
            rlim_cur: limit.soft,
            rlim_max: limit.hard,
        };
        attempt(
            Step::Limits,
            libc::SYS_prlimit64,
            [0, u64::from(limit.resource), pointer(&raw const new), 0],
        )?;
    }
    if plan.nice != 0 {
        let whom = u64::from(libc::PRIO_PROCESS);
        attempt(
            Step::Nice,
            libc::SYS_setpriority,
            [whom, 0, signed(plan.nice)],
        )?;
    }
    call(libc::SYS_umask, [u64::from(plan.umask)]);
    if let Some((uid, gid, groups)) = &plan.user {
        let (uid, gid) = (u64::from(*uid), u64::from(*gid));
        let count = groups.len() as u64;
        attempt(
            Step::Group,
            libc::SYS_setgroups,
            [count, pointer(groups.as_ptr())],
        )?;
        attempt(Step::Group, libc::SYS_setresgid, [gid, gid, gid])?;
        attempt(Step::User, libc::SYS_setresuid, [uid, uid, uid])?;
    }
    if let Some(directory) = &plan.directory {
        attempt(
            Step::Directory,
            libc::SYS_chdir,
            [pointer(directory.as_ptr())],
        )?;
    }
    if plan.no_new_privileges {
        attempt(
            Step::NoNewPrivileges,
            libc::SYS_prctl,
            [signed(libc::PR_SET_NO_NEW_PRIVS), 1, 0, 0, 0],
        )?;
    }
    Ok(())
}

/// Signals that are ignored or blocked stay so over execve(2): undo what the parent has set. Handlers are gone with `CLONE_CLEAR_SIGHAND`.
fn default_signals(ignored: &[i32], ignore_broken_pipes: bool) {
    /// `struct sigaction` of the kernel's x86-64 interface: handler, flags, restorer, mask; all zero is the default action.
    const DEFAULT: [u64; 4] = [0; 4];
    /// The size of the kernel's signal sets in bytes.
    const SET: u64 = 8;
    for signal in ignored {
        if ignore_broken_pipes && *signal == libc::SIGPIPE {
            continue;
        }
        call(
            libc::SYS_rt_sigaction,
            [signed(*signal), pointer(DEFAULT.as_ptr()), 0, SET],
        );
    }
    let none = 0_u64;
    call(
        libc::SYS_rt_sigprocmask,
        [signed(libc::SIG_SETMASK), pointer(&raw const none), 0, SET],
    );
}

/// Puts standard input, output, error and the inherited descriptors at 0, 1, 2, 3 …; answers the report pipe's new number.
fn move_descriptors(plan: &Plan) -> Result<i32, (Step, i32)> {
    // Copies lie above all that they are put at, and no higher: the kernel's table has room for the highest number.
    let count = plan.inherit.len() + usize::from(plan.passes_report) + 3;
    let room = i32::try_from(count).unwrap_or(i32::MAX);
    let above = |fd: i32, step: Step| {
        let command = signed(libc::F_DUPFD_CLOEXEC);
        attempt(step, libc::SYS_fcntl, [signed(fd), command, signed(room)])
    };
    let report = above(plan.report, Step::Descriptors)?;
    let mut stdio = [0; 3];
    for (to, from) in stdio.iter_mut().zip(&plan.stdio) {
        *to = above(*from, Step::Stdio)?;
    }
    let mut inherit = [0; MOST_INHERITED];
    for (to, from) in inherit.iter_mut().zip(&plan.inherit) {
        *to = above(*from, Step::Descriptors)?;
    }
    // The copies have no close-on-exec flag.
    for (at, fd) in (0..).zip(stdio) {
        attempt(Step::Stdio, libc::SYS_dup2, [signed(fd), at])?;
    }
    let mut free = 3;
    for (fd, _) in inherit.iter().zip(&plan.inherit) {
        attempt(Step::Descriptors, libc::SYS_dup2, [signed(*fd), free])?;
        free = free.saturating_add(1);
    }
    if plan.passes_report {
        attempt(Step::Descriptors, libc::SYS_dup2, [signed(report), free])?;
    }
    Ok(report)
}

fn write_oom_score_adjust(adjust: i32) -> Result<(), (Step, i32)> {
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
    let flags = signed(libc::O_WRONLY | libc::O_CLOEXEC);
    let path = pointer(c"/proc/self/oom_score_adj".as_ptr());
    let fd = attempt(Step::OomAdjust, libc::SYS_open, [path, flags, 0])?;
    let (start, length) = (pointer(bytes.as_ptr()), bytes.len() as u64);
    attempt(
        Step::OomAdjust,
        libc::SYS_write,
        [signed(fd), start, length],
    )
    .map(|_| ())
}
