//! What a process does on a fault of its own: for PID 1, whose end would be a kernel panic that some kernels stay in for ever.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Faults of a program, and abort(3).
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];

/// Enough for the handler, which calls nothing deep; a fault of the stack itself needs another one.
const STACK_BYTES: usize = 64 * 1024;

/// Seconds from the line in the log to the reboot.
static DELAY_S: AtomicU32 = AtomicU32::new(10);

/// The descriptor of the state that another PID 1 can go on with; below zero there is none.
static STATE: AtomicI32 = AtomicI32::new(-1);

/// Crashes in a row.
static CRASHES: AtomicU32 = AtomicU32::new(0);

/// After so many crashes in a row the state itself is what is wrong.
const MOST_CRASHES: u32 = 3;

/// Descriptors up to this number are handed over; PID 1's limit is below.
const MOST_DESCRIPTORS: libc::c_int = 65_536;

/// From here on a crash is followed by a new execution of this program with the state of descriptor `state`: its arguments are
/// `--state NUMBER --crashes COUNT`. A number below zero takes that back.
pub fn resume_with(state: i32) {
    STATE.store(state, Ordering::Relaxed);
}

/// How many crashes in a row there were already; none, when the program has run well for a while.
pub fn set_crashes(crashes: u32) {
    CRASHES.store(crashes, Ordering::Relaxed);
}

/// Executes this program again with the state of [`resume_with`]. Returns when there is none, it has crashed too often, or execve(2)
/// fails. For use in signal handlers too.
pub fn resume() {
    let state = STATE.swap(-1, Ordering::Relaxed);
    let crashes = CRASHES.load(Ordering::Relaxed).saturating_add(1);
    if state < 0 || crashes >= MOST_CRASHES {
        return;
    }
    for number in 3..MOST_DESCRIPTORS {
        // SAFETY: F_SETFD takes an integer and touches no memory; a number that is not open yields EBADF.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
    let mut state_text = [0_u8; 12];
    let mut crashes_text = [0_u8; 12];
    write_number(u32::try_from(state).unwrap_or(0), &mut state_text);
    write_number(crashes, &mut crashes_text);
    let arguments = [
        c"/sbin/init".as_ptr(),
        c"--state".as_ptr(),
        state_text.as_ptr().cast(),
        c"--crashes".as_ptr(),
        crashes_text.as_ptr().cast(),
        std::ptr::null(),
    ];
    let none = 0_u64;
    // SAFETY: the kernel reads the 8 bytes of `none`, an empty set: what the handler's own signal blocks would stay blocked.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
    // SAFETY: reads a pointer that the C library set before main and nobody here changes.
    let environment = unsafe { environ };
    // SAFETY: the path and all arguments are C strings that live on; both lists end with a null.
    unsafe {
        libc::execve(
            c"/proc/self/exe".as_ptr(),
            arguments.as_ptr(),
            environment.cast(),
        )
    };
}

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// Writes digits and a final zero.
fn write_number(number: u32, text: &mut [u8; 12]) {
    let mut rest = number;
    let mut length = 1;
    while rest >= 10 {
        rest /= 10;
        length += 1;
    }
    rest = number;
    for place in text.iter_mut().take(length).rev() {
        *place = b'0'.wrapping_add((rest % 10) as u8);
        rest /= 10;
    }
}

/// Makes a fault of this process, while it is PID 1, a line in the kernel's log and, where [`resume_with`] gave no state, a reboot after `delay_s` seconds. In any other
/// process, such as a child before its exec, faults do what they always do.
///
/// # Errors
/// What sigaltstack(2) and sigaction(2) give.
pub fn install(delay_s: u32) -> io::Result<()> {
    DELAY_S.store(delay_s, Ordering::Relaxed);
    // The stack has to be there for as long as the process is.
    let stack: &'static mut [u8] = Box::leak(vec![0; STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: `stack` describes leaked memory of that size, which nothing else uses.
    let result = unsafe { libc::sigaltstack(&raw const stack, std::ptr::null_mut()) };
    nix::errno::Errno::result(result)?;
    for signal in SIGNALS {
        set(signal, handle as Handler as libc::sighandler_t)?;
    }
    Ok(())
}

fn set(signal: libc::c_int, handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: a `sigaction` is plain data, for which zeros are valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
    // SAFETY: the kernel reads one `sigaction`; the handler in it is `handle`, which calls async-signal-safe functions
    // alone, or SIG_DFL.
    let result = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    nix::errno::Errno::result(result)?;
    Ok(())
}

type Handler = extern "C" fn(libc::c_int, *const libc::siginfo_t, *const libc::c_void);

/// Only calls of signal-safety(7) from here on, and no allocation: the fault may have come from within malloc(3).
extern "C" fn handle(
    signal: libc::c_int,
    info: *const libc::siginfo_t,
    _context: *const libc::c_void,
) {
    // SAFETY: getpid(2) takes no memory of ours.
    let pid = unsafe { libc::getpid() };
    if pid != 1 {
        // The instruction faults again, or abort(3) raises it again, and the default ends the process.
        let _ = set(signal, libc::SIG_DFL);
        return;
    }
    if is_sent_by_another(info, pid) {
        // PID 1 does not end because somebody wants it to; without a handler the kernel would have dropped it.
        return;
    }
    write_line(signal);
    resume();
    sync_in_child();
    sleep(DELAY_S.load(Ordering::Relaxed));
    loop {
        // SAFETY: RB_AUTOBOOT takes no memory of ours.
        unsafe { libc::reboot(libc::RB_AUTOBOOT) };
        sleep(10);
    }
}

/// Whether kill(2) of another process is the cause, and no fault or own abort(3) (sigaction(2), `si_code`).
fn is_sent_by_another(info: *const libc::siginfo_t, own: libc::pid_t) -> bool {
    // SAFETY: with SA_SIGINFO the kernel passes a `siginfo_t` that lives as long as the handler runs.
    let info = unsafe { &*info };
    if info.si_code > 0 {
        return false;
    }
    // SAFETY: with a code of a process, that is zero or below, the number of the sender is set.
    let sender = unsafe { info.si_pid() };
    sender != own
}

/// Facility daemon, priority critical, as [`crate::kmsg`] writes it.
fn write_line(signal: libc::c_int) {
    const NAMES: [(libc::c_int, &[u8]); 5] = [
        (libc::SIGSEGV, b"<26>orlop[1]: crash: PID 1 got SIGSEGV\n"),
        (libc::SIGBUS, b"<26>orlop[1]: crash: PID 1 got SIGBUS\n"),
        (libc::SIGILL, b"<26>orlop[1]: crash: PID 1 got SIGILL\n"),
        (libc::SIGFPE, b"<26>orlop[1]: crash: PID 1 got SIGFPE\n"),
        (libc::SIGABRT, b"<26>orlop[1]: crash: PID 1 got SIGABRT\n"),
    ];
    if let Some((_, line)) = NAMES.iter().find(|(number, _)| *number == signal) {
        write(line);
    }
}

fn write(line: &[u8]) {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(c"/dev/kmsg".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: the kernel reads `line.len()` bytes of `line`. The descriptor stays open: the machine ends soon.
        unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
    }
}

/// A disk that does not answer must not keep the machine down.
fn sync_in_child() {
    // SAFETY: clone(2) with no flags but the signal is fork(2) without the C library's handlers, which might wait for a lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: sync(2) takes no memory of ours.
        unsafe { libc::sync() };
        // SAFETY: _exit(2) does not return.
        unsafe { libc::_exit(0) };
    }
}

fn sleep(seconds: u32) {
    let mut left = libc::timespec {
        tv_sec: i64::from(seconds),
        tv_nsec: 0,
    };
    loop {
        let wanted = left;
        // SAFETY: the kernel reads `wanted` and writes `left`, both live locals.
        if unsafe { libc::nanosleep(&raw const wanted, &raw mut left) } == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_the_first_still_dies_of_its_faults() {
        let report = crate::fork::run(std::time::Duration::from_secs(20), |out| {
            let is_installed = install(1).is_ok();
            let _ = nix::unistd::write(&*out, &[u8::from(is_installed)]);
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV);
            // The handler takes the first and gives way to the default.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSEGV);
            let _ = nix::unistd::write(out, b"alive");
        })
        .unwrap();
        assert_eq!(report.said, [1]);
        assert!(report.has_ended);
    }
}
