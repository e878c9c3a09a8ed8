//! `orlop config`: what a configuration means, without and on a machine.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::{fs, iter};

use anyhow::{Context, bail};
use orlop_config::{Base, Input, Kind, Machine, Problem, Severity, compile, load};

const USAGE: &str = "\
Usage: orlop config check FILE…   say what is wrong with configurations, line by line
       orlop config show [FILE…]  print each value and where it was written; without FILE, this machine's
       orlop config keys          list all keys

A FILE named *.toml is the native form, one named meta-data is NoCloud's, and any other is user-data.
check ends with 1 when there is an error, with 0 otherwise, and with 2 when a file cannot be read.";

/// What the machine that runs was compiled to (see `orlop setup`).
const COMPILED: &str = "/run/orlop/machine.json";

/// Files larger than this are no configuration.
const LARGEST_FILE: u64 = 64 << 20;

/// Runs `orlop config` with the arguments after that word.
pub(crate) fn run(args: &[OsString]) -> ExitCode {
    orlop_sys::signal::end_with_closed_pipes();
    let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let result = match words.split_first() {
        _ if words.len() != args.len() => Err(anyhow::anyhow!("arguments have to be UTF-8")),
        Some((&"check", files)) if !files.is_empty() => check(files),
        Some((&"show", files)) => show(files),
        Some((&"keys", [])) => keys(),
        Some((&("help" | "--help" | "-h"), _)) => {
            print(iter::once(USAGE.to_owned())).map(|()| ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("orlop config: {e:#}");
        ExitCode::from(2)
    })
}

fn check(files: &[&str]) -> anyhow::Result<ExitCode> {
    let mut problems = Vec::new();
    // Each for itself: what is wrong with one file is not hidden by the next.
    for file in files {
        let (machine, found) = load(vec![input(file)?]);
        let mut of_file = [found, problems_of(&machine)].concat();
        of_file.sort_by_key(|problem| (problem.source.line, problem.source.column));
        problems.append(&mut of_file);
    }
    print(problems.iter().map(Problem::to_string))?;
    let is_wrong = problems
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    Ok(ExitCode::from(u8::from(is_wrong)))
}

/// What the compilation finds. It needs the image's accounts; off a machine, those of a plain image have to do.
fn problems_of(machine: &Machine) -> Vec<Problem> {
    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ncore:x:500:500::/home/core:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:\nsudo:x:27:\ndocker:x:233:\ncore:x:500:\n";
    let is_orlop = Path::new(COMPILED).exists();
    let text = |path: &str, plain: &str| match fs::read_to_string(path) {
        Ok(text) if is_orlop => text,
        _ => plain.to_owned(),
    };
    let (passwd, group) = (text("/etc/passwd", PASSWD), text("/etc/group", GROUP));
    // Which units the image has is not known here: to be enabled, any may be there.
    let unit = |name: &str| {
        let text = fs::read_to_string(Path::new("/usr/lib/orlop/units").join(name)).ok();
        text.or_else(|| (!is_orlop).then(|| "[Install]\nWantedBy=multi-user.target\n".to_owned()))
    };
    let base = Base {
        passwd: &passwd,
        group: &group,
        unit: &unit,
        ..Base::default()
    };
    compile(machine, &base).problems
}

fn show(files: &[&str]) -> anyhow::Result<ExitCode> {
    let machine = if files.is_empty() {
        let text =
            fs::read_to_string(COMPILED).with_context(|| format!("cannot read {COMPILED}"))?;
        serde_json::from_str(&text).with_context(|| format!("{COMPILED} is damaged"))?
    } else {
        let inputs = files
            .iter()
            .map(|file| input(file))
            .collect::<anyhow::Result<_>>()?;
        let (machine, problems) = load(inputs);
        for problem in problems {
            eprintln!("{problem}");
        }
        machine
    };
    let shown = machine.shown();
    let width = shown
        .iter()
        .map(|value| value.path.len() + value.value.len() + 3)
        .filter(|w| *w <= 60)
        .max();
    print(shown.into_iter().map(|value| {
        let setting = format!("{} = {}", value.path, value.value.escape_debug());
        format!(
            "{setting:<width$}  # {}",
            value.source,
            width = width.unwrap_or(0)
        )
    }))?;
    Ok(ExitCode::SUCCESS)
}

fn keys() -> anyhow::Result<ExitCode> {
    print(
        Machine::keys()
            .into_iter()
            .map(|key| format!("{}: {}\n    {}", key.path, key.wants, key.summary)),
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Reads a file as the kind of input that its name says.
fn input(file: &str) -> anyhow::Result<Input> {
    let path = Path::new(file);
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {file}"))?;
    if metadata.len() > LARGEST_FILE {
        bail!("{file} is larger than {} MiB", LARGEST_FILE >> 20);
    }
    let kind = match (
        path.file_name().and_then(|n| n.to_str()),
        path.extension().and_then(|e| e.to_str()),
    ) {
        (_, Some("toml")) => Kind::Toml,
        (Some("meta-data"), _) => Kind::MetaData,
        (Some("cmdline"), _) => Kind::KernelCommandLine,
        _ => Kind::CloudConfig,
    };
    Ok(Input {
        name: file.to_owned(),
        kind,
        text: fs::read(path).with_context(|| format!("cannot read {file}"))?,
    })
}

/// Prints lines. A reader that has seen enough is no error.
fn print(mut lines: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut written = lines.try_for_each(|line| writeln!(out, "{line}"));
    if written.is_ok() {
        written = out.flush();
    }
    match written {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write"),
        _ => Ok(()),
    }
}
