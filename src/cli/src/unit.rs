//! `orlop unit verify FILE…` says what is wrong with unit files, on any machine; `orlop unit directives` lists what is known.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use orlop_init::unit_files::Files;
use orlop_unit::{Command, Loader, Severity, SpecifierContext, Unit, UnitName};

const USAGE: &str = "usage: orlop unit verify [--as-written] FILE…\n       orlop unit directives";

const AS_WRITTEN: &str = "--as-written";

/// Where a machine's own units, drop-ins and templates lie, highest precedence first.
pub(crate) const DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/etc/containers/systemd",
    "/run/systemd/system",
    "/usr/lib/orlop/units",
    "/usr/lib/systemd/system",
];

/// Runs the words after `orlop unit`: 0 when every unit loads, 1 when one does not, 2 for a wrong call.
///
/// With `--as-written` only the files count, not whether PID 1 carries out everything that they ask for.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    if let [word] = args
        && word == "directives"
    {
        return directives();
    }
    let (word, files) = match args.split_first() {
        Some((word, files)) if files.iter().any(|file| file != AS_WRITTEN) => (word, files),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if word != "verify" {
        eprintln!("orlop unit: no command {word:?}\n{USAGE}");
        return ExitCode::from(2);
    }
    let as_written = files.iter().any(|file| file == AS_WRITTEN);
    let mut sound = true;
    for file in files.iter().filter(|file| *file != AS_WRITTEN) {
        match verify(Path::new(file), as_written) {
            Ok(loads) => sound &= loads,
            Err(message) => {
                eprintln!("{}: error: {message}", Path::new(file).display());
                sound = false;
            }
        }
    }
    ExitCode::from(u8::from(!sound))
}

/// Lists what is known of `systemd.directives(7)`, and what comes of it.
fn directives() -> ExitCode {
    for (section, name, state) in orlop_unit::support::directives() {
        println!("{section:<8} {name:<30} {}", state.as_str());
    }
    ExitCode::SUCCESS
}

/// Prints what is wrong with one file; true when its unit would load.
fn verify(file: &Path, as_written: bool) -> Result<bool, String> {
    let path = fs::canonicalize(file).map_err(|err| err.to_string())?;
    let directory = path
        .parent()
        .and_then(Path::to_str)
        .ok_or("the path is not UTF-8")?;
    let name = file
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("this is not a file")?;
    let mut name = UnitName::parse(name).map_err(|err| err.to_string())?;
    if name.is_template() {
        name = name
            .with_instance("instance")
            .map_err(|err| err.to_string())?;
    }
    let directories: Vec<&str> = std::iter::once(directory).chain(DIRECTORIES).collect();
    let context = SpecifierContext::default();
    let mut loader = Loader::new(&directories, &Files, &context);
    if as_written {
        loader = loader.reading_all();
    }
    let loaded = loader.load(&name);
    for problem in &loaded.problems {
        eprintln!("{problem}");
    }
    if loaded.masked {
        eprintln!("{}: warning: the unit is masked", path.display());
        return Ok(true);
    }
    if let Some(unit) = &loaded.unit {
        for program in missing_programs(unit) {
            eprintln!(
                "{}: warning: {program} does not exist on this machine",
                path.display()
            );
        }
    }
    let failed = loaded
        .problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    Ok(loaded.unit.is_some() && !failed)
}

/// The programs of a unit that are named by path and are not there; a container's starter is not looked for.
fn missing_programs(unit: &Unit) -> Vec<&str> {
    let Some(service) = unit.service().filter(|service| service.container.is_none()) else {
        return Vec::new();
    };
    let lists = [
        &service.exec_condition,
        &service.exec_start_pre,
        &service.exec_start,
        &service.exec_start_post,
        &service.exec_reload,
        &service.exec_stop,
        &service.exec_stop_post,
    ];
    let mut seen = HashSet::new();
    let programs = lists
        .into_iter()
        .flatten()
        .map(|Command { program, .. }| program.as_str());
    programs
        .filter(|program| {
            program.starts_with('/') && !Path::new(program).exists() && seen.insert(*program)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_with_its_drop_ins_is_judged_as_pid_1_will() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let good = file("good@.service", "[Service]\nExecStart=/bin/sh -c %i\n");
        let bad = file("bad.service", "[Service]\nExecStart=/bin/sh\n");
        assert_eq!(
            (verify(&good, false), verify(&bad, false)),
            (Ok(true), Ok(true))
        );
        file("bad.service.d/10.conf", "[Service]\nSELinuxContext=x\n");
        assert_eq!(verify(&bad, false), Ok(false));
        let timer = file("good@.timer", "[Timer]\nOnCalendar=%i\nOnBootSec=1\n");
        assert_eq!(verify(&timer, true), Ok(true));
        let timer = file("bad.timer", "[Timer]\nOnCalendar=25:00\n");
        assert_eq!(verify(&timer, true), Ok(false));
        let container = file("web.container", "[Container]\nImage=x\n");
        assert_eq!(verify(&container, false), Ok(true));
        assert!(verify(&file("notes.txt", ""), false).is_err());
        assert!(verify(&directory.path().join("none.service"), false).is_err());
    }
}
