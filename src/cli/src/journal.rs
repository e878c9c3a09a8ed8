//! `orlop journal`: the role that writes the journal.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use orlop_config::Machine;
use orlop_journal::{limit::Limit, segments, writer};

use crate::journalctl::parse_size;

/// The compiled configuration.
const MACHINE: &str = "/run/orlop/machine.json";

/// Collect the output of all units and the kernel's log in the journal. Started by PID 1.
#[derive(Debug, Parser)]
#[command(name = "orlop journal", disable_help_subcommand = true)]
struct WriterArguments {
    /// Where to keep it
    #[arg(long, value_name = "DIRECTORY", default_value = segments::DIRECTORY)]
    directory: PathBuf,
    /// The most that it takes: bytes, or with K, M or G; a tenth of the filesystem, at most 256M, when not given
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// The compiled configuration, of which the key `journal` counts
    #[arg(long, value_name = "FILE", default_value = MACHINE)]
    machine: PathBuf,
    /// Leave the kernel's log alone
    #[arg(long)]
    no_kernel: bool,
}

/// Runs `orlop journal` with the arguments after the word.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let name = OsString::from("orlop journal");
    let arguments = match WriterArguments::try_parse_from(std::iter::once(&name).chain(arguments)) {
        Ok(arguments) => arguments,
        Err(err) => {
            // To a closed output, there is nobody to tell.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(1));
        }
    };
    let mut settings = writer::Settings {
        directory: arguments.directory,
        ..Default::default()
    };
    // The log must not depend on the configuration: what is wrong with it is said in it.
    match machine(&arguments.machine) {
        Ok(machine) => configure(&mut settings, &machine),
        Err(why) => settings.remark = Some(why),
    }
    if let Some(size) = arguments.size {
        settings.budget_bytes = parse_size(&size);
        if settings.budget_bytes.is_none() {
            eprintln!("orlop journal: {size:?} is no size; give bytes, or a number with K, M or G");
            return ExitCode::from(2);
        }
    }
    if arguments.no_kernel {
        settings.kernel_log = None;
    }
    match writer::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("orlop journal: {}", writer::chain(&err));
            ExitCode::FAILURE
        }
    }
}

/// Reads the compiled configuration.
///
/// # Errors
/// Why it cannot be read, in words.
pub(crate) fn machine(path: impl AsRef<Path>) -> Result<Machine, String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|err| format!("read {}: {err}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|err| format!("read {}: {err}", path.display()))
}

fn configure(settings: &mut writer::Settings, machine: &Machine) {
    let journal = &machine.journal;
    if let Some(size) = &journal.max_size_mib {
        settings.budget_bytes = Some(u64::from(size.value) << 20);
    }
    let interval = journal.rate_limit_interval.as_ref();
    settings.limit = Limit::default().with(
        interval.map(|seconds| u64::from(seconds.value) * 1_000_000),
        journal.rate_limit_burst.as_ref().map(|burst| burst.value),
    );
}
