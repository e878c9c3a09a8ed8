//! Picks Orlop's role from the process number, `argv[0]` or the first word.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if std::process::id() == 1 && orlop_cli::is_plain_start(&args) {
        if std::path::Path::new(orlop_boot::INITRD_RELEASE).exists() {
            return orlop_boot::run();
        }
        return orlop_init::run();
    }
    orlop_cli::run(args)
}
