//! `orlop confine`: the process that PID 1 starts for a unit that confines its programs, until it is that program.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::process::ExitCode;

use orlop_container::Failure;
use orlop_unit::Launch;

/// The exit code of a start that failed in a way of its own (`EXIT_EXEC` of systemd.exec(5)).
const EXIT_EXEC: u8 = 203;

/// Runs `orlop confine N`, whose description and report follow the `N` descriptors that are the program's own, or
/// `orlop confine --remove DIRECTORY…`, or `orlop confine --remove-ipc USER GROUP`.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    let number = match words.as_slice() {
        ["--remove", directories @ ..] => return remove(directories),
        ["--remove-ipc", user, group] => return remove_ipc(user, group),
        [number] => number.parse::<i32>().ok(),
        _ => None,
    };
    let Some(number) = number.filter(|n| (0..=200).contains(n)) else {
        eprintln!("orlop confine: PID 1 starts this; there is nothing to be done by hand");
        return ExitCode::from(2);
    };
    let first = number.saturating_add(3);
    let report = orlop_sys::inherited::take(first.saturating_add(1));
    let failure = match describe(first) {
        Ok(launch) => orlop_container::confine(&launch),
        Err(err) => Failure {
            step: format!("read what is to be started: {err}"),
            errno: err.raw_os_error().unwrap_or(0),
            exit_code: EXIT_EXEC,
        },
    };
    let mut message = vec![failure.exit_code];
    message.extend(failure.errno.to_ne_bytes());
    message.extend(failure.to_string().bytes().take(2000));
    // With nobody left to listen the exit code has to do.
    let _told = report.map(|pipe| File::from(pipe).write_all(&message));
    ExitCode::from(failure.exit_code)
}

fn describe(number: i32) -> std::io::Result<Launch> {
    let mut file = File::from(orlop_sys::inherited::take(number)?);
    file.rewind()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Removes what units have left, which may take long.
fn remove(directories: &[&str]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for directory in directories {
        if let Err(err) = std::fs::remove_dir_all(directory) {
            eprintln!("orlop confine: cannot remove {directory}: {err}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// Removes what a user's processes left of IPC objects, or a group's, unless one of the user's still runs.
fn remove_ipc(user: &str, group: &str) -> ExitCode {
    let (Ok(user), Ok(group)) = (user.parse(), group.parse()) else {
        return ExitCode::from(2);
    };
    match orlop_container::remove_ipc(user, group) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("orlop confine: cannot remove what user {user} left of IPC objects: {err}");
            ExitCode::FAILURE
        }
    }
}
