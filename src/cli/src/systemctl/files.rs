//! What `systemctl` does with unit files: links that start units, lists, contents, drop-ins.
//!
//! The files are looked at and changed here, by whoever may; PID 1 only reads them again afterwards.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};

use orlop_init::unit_files::{DIRECTORIES, Files, specifiers};
use orlop_unit::install::fits_pattern;
use orlop_unit::{
    Change, FileState, InstallError, Installer, Loader, Plan, Preset, Presets, UnitName,
    UnitStore as _,
};

use super::Options;

/// Where links and drop-ins are made, and with `--runtime`.
const PERSISTENT: &str = "/etc/systemd/system";
const RUNTIME: &str = "/run/systemd/system";
/// Where presets are, the highest precedence first (systemd.preset(5)).
const PRESETS: [&str; 4] = [
    "/etc/systemd/system-preset",
    "/run/systemd/system-preset",
    "/usr/lib/orlop/system-preset",
    "/usr/lib/systemd/system-preset",
];
/// systemctl(1)'s exit code for what is not so.
const NOT_SO: u8 = 1;

fn parse(units: &[String]) -> Result<Vec<UnitName>, String> {
    let parse = |name: &String| UnitName::parse(name).map_err(|err| format!("{name}: {err}"));
    units.iter().map(parse).collect()
}

/// `enable`, `disable`, `reenable`, `mask`, `unmask` and `preset`; answers whether something was changed.
pub(super) fn install(verb: &str, units: &[String], options: &Options) -> Result<bool, ExitCode> {
    let say = |text: &dyn std::fmt::Display| {
        eprintln!("Failed to {verb} unit: {text}");
        ExitCode::FAILURE
    };
    if units.is_empty() {
        eprintln!("Too few arguments.");
        return Err(ExitCode::FAILURE);
    }
    let names = parse(units).map_err(|err| say(&err))?;
    let context = specifiers();
    let loader = Loader::new(DIRECTORIES, &Files, &context);
    let directory = if options.runtime { RUNTIME } else { PERSISTENT };
    let installer = Installer::new(&loader, directory);
    let plan = match verb {
        "enable" => installer.enable(&names, options.force),
        "disable" => installer.disable(&names),
        "reenable" => installer.disable(&names).and_then(|mut plan| {
            let mut again = installer.enable(&names, true)?;
            plan.changes.append(&mut again.changes);
            Ok(plan)
        }),
        "mask" => Ok(installer.mask(&names)),
        "unmask" => Ok(installer.unmask(&names)),
        _ => installer.preset(&names, &presets()),
    };
    let plan = plan.map_err(|err| match err {
        InstallError::NotFound(name) => say(&format!("Unit file {name} does not exist.")),
        InstallError::Masked(name) => say(&format!("Unit file {name} is masked.")),
        other => say(&other),
    })?;
    carry_out(&plan, directory, options.quiet).map_err(|err| say(&err))?;
    for failure in &plan.failures {
        say(failure);
    }
    if !plan.failures.is_empty() {
        return Err(ExitCode::FAILURE);
    }
    let kept = fs::metadata(directory).is_ok() && directory == PERSISTENT;
    if kept && !plan.changes.is_empty() && !options.quiet && !is_on_a_disk(directory) {
        eprintln!(
            "This holds until the next boot, when /etc is made anew: the configuration's coreos.units keeps it (enable, mask)."
        );
    }
    Ok(!plan.changes.is_empty())
}

/// Whether what is written there is there after a boot.
fn is_on_a_disk(directory: &str) -> bool {
    use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
    statfs(directory)
        .is_ok_and(|found| ![OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC].contains(&found.filesystem_type()))
}

fn carry_out(plan: &Plan, directory: &str, quiet: bool) -> Result<(), String> {
    for note in &plan.notes {
        eprintln!("{note}");
    }
    for change in &plan.changes {
        let fail = |path: &str, err: io::Error| match err.kind() {
            io::ErrorKind::PermissionDenied => format!("{path}: {err}: try it with sudo"),
            _ => format!("{path}: {err}"),
        };
        match change {
            Change::Link { path, target } => {
                let parent = Path::new(path).parent().unwrap_or(Path::new(directory));
                let made = fs::create_dir_all(parent)
                    .and_then(|()| match fs::remove_file(path) {
                        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
                        _ => Ok(()),
                    })
                    .and_then(|()| symlink(target, path));
                made.map_err(|err| fail(path, err))?;
                if !quiet {
                    eprintln!("Created symlink {path} → {target}.");
                }
            }
            Change::Remove { path } => {
                fs::remove_file(path).map_err(|err| fail(path, err))?;
                if !quiet {
                    eprintln!("Removed \"{path}\".");
                }
                // One with other links in it stays.
                if let Some(parent) = Path::new(path)
                    .parent()
                    .filter(|p| *p != Path::new(directory))
                {
                    let _ = fs::remove_dir(parent);
                }
            }
        }
    }
    Ok(())
}

/// The presets of this machine: a file hides one of the same name in a directory below.
fn presets() -> Presets {
    let mut presets = Presets::default();
    let mut files: Vec<(String, &str)> = Vec::new();
    for directory in PRESETS {
        for entry in Files.list(directory) {
            if entry.name.ends_with(".preset") && files.iter().all(|(name, _)| *name != entry.name)
            {
                files.push((entry.name, directory));
            }
        }
    }
    files.sort();
    for (name, directory) in files {
        let path = format!("{directory}/{name}");
        for line in presets.add(&Files.read(&path).unwrap_or_default()) {
            eprintln!("{path}:{line}: this line says nothing");
        }
    }
    presets
}

/// `is-enabled`: 0 where any of the units is.
pub(super) fn is_enabled(units: &[String], options: &Options) -> ExitCode {
    let context = specifiers();
    let loader = Loader::new(DIRECTORIES, &Files, &context);
    let mut any = false;
    for unit in units {
        match state(&loader, unit) {
            None | Some((FileState::NotFound, _)) => {
                eprintln!("Failed to get unit file state for {unit}: No such file or directory")
            }
            Some((state, word)) => {
                any |= state.is_success();
                if !options.quiet {
                    println!("{word}");
                }
            }
        }
    }
    if any {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_SO)
    }
}

/// A unit's state as a file, with its word.
fn state(loader: &Loader<'_, Files>, unit: &str) -> Option<(FileState, &'static str)> {
    let name = UnitName::parse(unit).ok()?;
    let of = |directory| Installer::new(loader, directory).state(&name);
    let persistent = of(PERSISTENT);
    let runtime = of(RUNTIME);
    Some(match (persistent, runtime) {
        (FileState::Masked, _) if runtime_mask(unit) => (persistent, "masked-runtime"),
        (FileState::Disabled, FileState::Enabled) => (runtime, "enabled-runtime"),
        (state, _) => (state, state.as_str()),
    })
}

/// The state of one unit's file in a word, for `status` and `show`; empty where there is no file.
pub(super) fn state_word(unit: &str) -> &'static str {
    let context = specifiers();
    let loader = Loader::new(DIRECTORIES, &Files, &context);
    match state(&loader, unit) {
        None | Some((FileState::NotFound, _)) => "",
        Some((_, word)) => word,
    }
}

fn runtime_mask(unit: &str) -> bool {
    let is_masked = |directory| {
        Files
            .link_target(&format!("{directory}/{unit}"))
            .is_some_and(|target| target == "/dev/null")
    };
    is_masked(RUNTIME) && !is_masked(PERSISTENT)
}

/// What the presets say of a unit, in a word.
pub(super) fn preset_word(unit: &str) -> &'static str {
    word_of(&presets(), unit)
}

fn word_of(presets: &Presets, unit: &str) -> &'static str {
    match UnitName::parse(unit).map(|name| presets.decide(&name)) {
        Ok(Preset::Enable(_)) => "enabled",
        Ok(Preset::Disable) => "disabled",
        Ok(Preset::Ignore) => "ignored",
        Err(_) => "",
    }
}

/// `list-unit-files`.
pub(super) fn list(patterns: &[String], options: &Options) -> ExitCode {
    let context = specifiers();
    let loader = Loader::new(DIRECTORIES, &Files, &context);
    let presets = presets();
    let mut rows = Vec::new();
    for name in loader.names() {
        let name = name.as_str();
        let fits = patterns.is_empty() || patterns.iter().any(|p| fits_pattern(p, name));
        let Some((_, state)) = state(&loader, name).filter(|_| fits && options.has_type(name))
        else {
            continue;
        };
        if !options.states.is_empty() && !options.states.iter().any(|s| s == state) {
            continue;
        }
        let preset = match state {
            "static" | "alias" | "generated" => "-",
            _ => word_of(&presets, name),
        };
        rows.push([name.to_owned(), state.to_owned(), preset.to_owned()]);
    }
    rows.sort();
    rows.dedup();
    let count = rows.len();
    super::list::table(&["UNIT FILE", "STATE", "PRESET"], &rows, options);
    if !options.no_legend {
        println!("\n{count} unit files listed.");
    }
    ExitCode::SUCCESS
}

/// The files that make up a unit: its own, then its drop-ins.
fn files_of(name: &UnitName) -> Vec<String> {
    let context = specifiers();
    let loader = Loader::new(DIRECTORIES, &Files, &context);
    let loaded = loader.load(name);
    let mut files: Vec<String> = Vec::new();
    if let Some(unit) = &loaded.unit {
        files.extend(unit.fragment.iter().map(ToString::to_string));
        files.extend(unit.drop_ins.iter().map(ToString::to_string));
    } else {
        // One that does not load is looked at all the more.
        for directory in DIRECTORIES {
            let path = format!("{directory}/{name}");
            if files.is_empty() && Files.read(&path).is_some() {
                files.push(path);
            }
        }
        files.extend(
            loaded
                .problems
                .iter()
                .map(|problem| problem.path.to_string()),
        );
        let mut seen = std::collections::BTreeSet::new();
        files.retain(|path| seen.insert(path.clone()));
    }
    files
}

/// `cat`.
pub(super) fn cat(units: &[String]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let mut is_first = true;
    for unit in units {
        let files = UnitName::parse(unit).map_or_else(|_| Vec::new(), |name| files_of(&name));
        if files.is_empty() {
            eprintln!("No files found for {unit}.");
            code = ExitCode::FAILURE;
        }
        for path in files {
            let Some(text) = Files.read(&path) else {
                continue;
            };
            if !std::mem::take(&mut is_first) {
                println!();
            }
            println!("# {path}");
            print!("{text}");
            if !text.ends_with('\n') && !text.is_empty() {
                println!();
            }
        }
    }
    code
}

/// `edit`: a drop-in, or with `--full` a copy of the whole file in `/etc`. Answers whether something was written.
pub(super) fn edit(units: &[String], options: &Options) -> Result<bool, ExitCode> {
    let fail = |text: String| {
        eprintln!("systemctl: {text}");
        ExitCode::FAILURE
    };
    let directory = if options.runtime { RUNTIME } else { PERSISTENT };
    let mut written = false;
    for unit in units {
        let name = UnitName::parse(unit).map_err(|err| fail(format!("{unit}: {err}")))?;
        let files = files_of(&name);
        if files.is_empty() && !options.force {
            return Err(fail(format!("No files found for {unit}.")));
        }
        let path = if options.full {
            format!("{directory}/{unit}")
        } else {
            let file = options.drop_in.as_deref().unwrap_or("override.conf");
            format!("{directory}/{unit}.d/{file}")
        };
        let before = match (Files.read(&path), options.full) {
            (Some(text), _) => text,
            (None, true) => files
                .first()
                .and_then(|f| Files.read(f))
                .unwrap_or_default(),
            (None, false) => String::new(),
        };
        let after = if options.stdin {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .map_err(|err| fail(format!("standard input: {err}")))?;
            text
        } else {
            edited(&path, &before).map_err(fail)?
        };
        if after.trim().is_empty() {
            eprintln!("systemctl: {path}: nothing was written, it stays as it was");
            continue;
        }
        let parent = Path::new(&path).parent().unwrap_or(Path::new(directory));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, after))
            .map_err(|err| fail(format!("{path}: {err}")))?;
        eprintln!("Successfully installed edited file '{path}'.");
        written = true;
    }
    Ok(written)
}

/// What the user's editor makes of a text.
fn edited(path: &str, text: &str) -> Result<String, String> {
    let copy = format!("/run/orlop-edit-{}.conf", std::process::id());
    let fail = |err: io::Error| format!("{copy}: {err}");
    let mut file = fs::File::create_new(&copy).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    drop(file);
    let editor = ["SYSTEMD_EDITOR", "EDITOR", "VISUAL"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| "vi".to_owned());
    let ended = Command::new("/bin/sh")
        .args(["-c", &format!("{editor} \"$0\""), &copy])
        .status();
    let result = match ended {
        Ok(status) if status.success() => fs::read_to_string(&copy).map_err(fail),
        Ok(status) => Err(format!("{editor}: {status}: {path} stays as it was")),
        Err(err) => Err(format!("{editor}: {err}")),
    };
    let _ = fs::remove_file(&copy);
    result
}
