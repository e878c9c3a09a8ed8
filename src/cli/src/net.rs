//! `orlop net`: the role that keeps the machine's links.

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use orlop_net::role::{self, online};
use orlop_sys::notify::Supervisor;

use crate::stderr;

/// Where roles find the configuration and leave what others read.
const RUN: &str = "/run/orlop";

/// Runs the role until it cannot go on, or waits for what it does. `--run DIRECTORY` takes another directory than `/run/orlop`, for tests.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    const USAGE: &str = "usage: orlop net [--run DIRECTORY] [--wait-online SECONDS]";
    let mut directory = PathBuf::from(RUN);
    let mut patience = None;
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match (word.to_str(), words.next()) {
            (Some("--run"), Some(value)) => directory = PathBuf::from(value),
            (Some("--wait-online"), Some(value)) => {
                let Some(seconds) = value.to_str().and_then(|text| text.parse().ok()) else {
                    eprintln!("--wait-online: {} is no number of seconds", value.display());
                    return ExitCode::from(2);
                };
                patience = Some(Duration::from_secs(seconds));
            }
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    stderr::install();
    let error: Box<dyn Error> = match patience {
        Some(patience) => match online::wait(&directory, patience) {
            Ok(addresses) => {
                log::info!("online: {addresses}");
                return ExitCode::SUCCESS;
            }
            Err(err) => err.into(),
        },
        None => match Supervisor::from_environment() {
            Ok(supervisor) => {
                let Err(err) = role::run(&directory, supervisor);
                err.into()
            }
            Err(err) => err.into(),
        },
    };
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    log::error!("{line}");
    ExitCode::FAILURE
}
