//! What a process does on a fault of its own: for PID 1, whose end would be a kernel panic that some kernels stay in for ever.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// Makes a fault of this process, while it is PID 1, a line in the kernel's log and a reboot after `delay_s` seconds. In any other
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
