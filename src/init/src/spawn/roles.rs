//! Programs that are started for no unit: roles of this very program, and what somebody asks for who may.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use orlop_sys::process::Exec;

use super::{SEARCH_PATH, find_program, string, strings};

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
    let directory = Some(string(directory).map_err(|failure| failure.text)?);
    let exec = Exec {
        envp,
        directory,
        ..Exec::new(program_text, arguments, stdio.map(|fd| fd.as_fd()))
    };
    orlop_sys::process::spawn_detached(exec).map_err(|err| format!("cannot start {program}: {err}"))
}
