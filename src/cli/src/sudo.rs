//! `sudo`: asks PID 1 to run a program as root for a member of the groups `sudo` or `wheel`; no set-user-ID file is needed.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use orlop_init::client::{Client, Error};
use serde_json::{Value, json};

/// Runs `sudo`.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    let mut words: Vec<String> = args
        .iter()
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    while words
        .first()
        .is_some_and(|w| matches!(w.as_str(), "-n" | "-E" | "-H" | "--"))
    {
        words.remove(0);
    }
    match words.first().map(String::as_str) {
        Some("-i" | "-s") => words = vec!["/bin/bash".to_owned(), "-l".to_owned()],
        Some(option) if option.starts_with('-') => {
            eprintln!("sudo: unknown option {option}; usage: sudo [-i] [PROGRAM ARGUMENT…]");
            return ExitCode::from(2);
        }
        Some(_) => {}
        None => {
            eprintln!("sudo: usage: sudo [-i] [PROGRAM ARGUMENT…]");
            return ExitCode::from(2);
        }
    }
    match ask(&words) {
        Ok(code) => ExitCode::from(code),
        Err(Error::Refused { message, .. }) => {
            eprintln!("sudo: {message}");
            ExitCode::FAILURE
        }
        Err(err) => {
            eprintln!("sudo: {}", orlop_journal::writer::chain(&err));
            ExitCode::FAILURE
        }
    }
}

fn ask(words: &[String]) -> Result<u8, Error> {
    let mut client = Client::connect()?;
    let environment: Vec<String> = std::env::vars().map(|(k, v)| format!("{k}={v}")).collect();
    let directory = std::env::current_dir()
        .map_or_else(|_| "/".to_owned(), |d| d.to_string_lossy().into_owned());
    let parameters = json!({ "argv": words, "environment": environment, "directory": directory });
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    client.send(
        "Run",
        &parameters,
        &[input.as_fd(), output.as_fd(), error.as_fd()],
    )?;
    let answer = client.receive()?;
    let code = answer.get("code").and_then(Value::as_u64).unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}
