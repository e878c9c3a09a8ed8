//! Commands that want something of units.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use orlop_schedule::{UnitFile, UnitName};
use serde_json::{Value, json};

use super::outcome::{self, Awaited};
use super::{Context, list, text};

/// Suffixes that a name may have already.
const SUFFIXES: &[&str] = &[
    "service",
    "socket",
    "timer",
    "path",
    "device",
    "mount",
    "automount",
    "container",
];

/// The unit that a word means: the file's name, `.service` where it has no suffix of a unit.
pub(super) fn name_of(word: &str) -> Result<UnitName> {
    let base = word.rsplit('/').next().unwrap_or(word);
    let known = base
        .rsplit_once('.')
        .is_some_and(|(_, suffix)| SUFFIXES.contains(&suffix));
    let name = if known {
        base.to_owned()
    } else {
        format!("{base}.service")
    };
    Ok(UnitName::parse(&name)?)
}

fn names(context: &Context) -> Result<Vec<UnitName>> {
    if context.words.is_empty() {
        bail!("No units given");
    }
    context.words.iter().map(|word| name_of(word)).collect()
}

fn stored(context: &Context, unit: &UnitName) -> Result<Option<Value>> {
    context.find(&format!("/units/{unit}"))
}

/// A unit's content as it lies in a file, where there is one: the file itself, or its template's.
fn local(word: &str, unit: &UnitName) -> Result<Option<(String, UnitFile)>> {
    let path = Path::new(word);
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut candidates = vec![path.to_path_buf(), directory.join(unit.as_str())];
    if let Some(template) = unit.template() {
        candidates.push(directory.join(template.as_str()));
        candidates.push(directory.join(format!("{}.container", template.stem())));
    }
    for candidate in candidates {
        if !candidate.is_file() {
            continue;
        }
        let text = fs::read_to_string(&candidate)
            .with_context(|| format!("read {}", candidate.display()))?;
        let file = UnitFile::parse(unit, &text)
            .map_err(|err| anyhow::anyhow!("{}", orlop_journal::writer::chain(&err)))
            .with_context(|| candidate.display().to_string())?;
        return Ok(Some((candidate.display().to_string(), file)));
    }
    Ok(None)
}

fn options(file: &UnitFile) -> Value {
    let option = |o: &orlop_schedule::UnitOption| json!({ "section": o.section, "name": o.name, "value": o.value });
    file.options.iter().map(option).collect()
}

/// Makes a unit known, if it is not yet or `--replace` is given. Gives what is stored then.
fn make_known(
    context: &Context,
    word: &str,
    unit: &UnitName,
    limit: Option<&[&str]>,
) -> Result<Value> {
    let stored_unit = stored(context, unit)?;
    let replace = context.flags.is_set("replace");
    if let Some(known) = stored_unit {
        let Some((path, file)) = local(word, unit)? else {
            return Ok(known);
        };
        let same = list::file(&known).is_some_and(|stored| stored.hash == file.hash);
        if same {
            if limit.is_some() {
                eprintln!("Found same Unit({unit}) in Registry, nothing to do");
            }
            return Ok(known);
        }
        if !replace {
            eprintln!(
                "WARNING: Unit {unit} in registry differs from local unit file {path}. Add --replace to override."
            );
            return Ok(known);
        }
        let state = text(&known, "desiredState");
        if limit.is_some_and(|allowed| !allowed.contains(&state)) {
            bail!(
                "Warning: can not replace Unit({unit}) in state '{state}', use the appropriate command"
            );
        }
        put(context, unit, state, Some(&file))?;
        return stored(context, unit)?.context("the unit is gone again");
    }
    let file = match local(word, unit)? {
        Some((_, file)) => file,
        None => template(context, unit)?,
    };
    put(context, unit, "inactive", Some(&file))?;
    stored(context, unit)?.context("the unit is gone again")
}

/// The content of the template that is stored, for an instance.
fn template(context: &Context, unit: &UnitName) -> Result<UnitFile> {
    let missing = || format!("unable to find unit {unit}: no such unit, file or template");
    let template = unit.template().with_context(missing)?;
    let known = stored(context, &template)?.with_context(missing)?;
    let file = list::file(&known).with_context(missing)?;
    UnitFile::from_options(unit, file.options).map_err(|err| anyhow::anyhow!("{unit}: {err}"))
}

fn put(context: &Context, unit: &UnitName, state: &str, file: Option<&UnitFile>) -> Result<()> {
    for warning in file.into_iter().flat_map(|f| &f.warnings) {
        eprintln!("WARNING: Unit {unit}: {}", warning.message);
    }
    let mut body = json!({ "name": unit.as_str(), "desiredState": state });
    if let (Some(file), Some(map)) = (file, body.as_object_mut()) {
        map.insert("options".to_owned(), options(file));
    }
    context
        .call("PUT", &format!("/units/{unit}"), Some(&body))
        .map(drop)
}

pub(super) fn submit(context: &Context) -> Result<ExitCode> {
    let units = names(context)?;
    for (word, unit) in context.words.iter().zip(&units) {
        make_known(context, word, unit, Some(&["inactive"]))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn load(context: &Context) -> Result<ExitCode> {
    raise(context, Awaited::Loaded)
}

pub(super) fn start(context: &Context) -> Result<ExitCode> {
    raise(context, Awaited::Launched)
}

fn raise(context: &Context, awaited: Awaited) -> Result<ExitCode> {
    let units = names(context)?;
    let mut waited_for = Vec::new();
    for (word, unit) in context.words.iter().zip(units) {
        let limit: Option<&[&str]> = match awaited {
            Awaited::Launched => None,
            _ => Some(&["inactive", "loaded"]),
        };
        let known = make_known(context, word, &unit, limit)?;
        put(context, &unit, awaited.state(), None)?;
        let verb = if awaited == Awaited::Launched {
            "start"
        } else {
            "load"
        };
        if list::file(&known).is_some_and(|file| file.constraints.global) {
            println!("Triggered global unit {unit} {verb}");
        } else if context.flags.is_set("no-block") {
            println!("Triggered unit {unit} {verb}");
        } else {
            waited_for.push(unit);
        }
    }
    outcome::wait(context, &waited_for, awaited)
}

pub(super) fn stop(context: &Context) -> Result<ExitCode> {
    lower(context, Awaited::Stopped)
}

pub(super) fn unload(context: &Context) -> Result<ExitCode> {
    lower(context, Awaited::Inactive)
}

fn lower(context: &Context, awaited: Awaited) -> Result<ExitCode> {
    let mut waited_for = Vec::new();
    let mut done = Vec::new();
    let verb = if awaited == Awaited::Stopped {
        "stop"
    } else {
        "unload"
    };
    for unit in names(context)? {
        let Some(known) = stored(context, &unit)? else {
            bail!("Unit {unit} does not exist.");
        };
        if awaited == Awaited::Stopped && text(&known, "desiredState") == "inactive" {
            bail!("Unable to stop unit {unit} in state inactive");
        }
        put(context, &unit, awaited.state(), None)?;
        if list::file(&known).is_some_and(|file| file.constraints.global) {
            println!("Triggered global unit {unit} {verb}");
        } else if context.flags.is_set("no-block") {
            println!("Triggered unit {unit} {verb}");
        } else {
            waited_for.push(unit.clone());
        }
        done.push(unit.to_string());
    }
    let code = outcome::wait(context, &waited_for, awaited)?;
    if code == ExitCode::SUCCESS {
        let ending = if awaited == Awaited::Stopped {
            "stopped"
        } else {
            "unloaded"
        };
        eprintln!("Successfully {ending} units [{}].", done.join(" "));
    }
    Ok(code)
}

pub(super) fn restart(context: &Context) -> Result<ExitCode> {
    let units = names(context)?;
    for unit in &units {
        let known =
            stored(context, unit)?.with_context(|| format!("Unit {unit} does not exist."))?;
        let state = text(&known, "desiredState");
        if state != "launched" {
            bail!("Unable to restart unit {unit} in state {state}");
        }
    }
    for (state, awaited) in [
        ("loaded", Awaited::Stopped),
        ("launched", Awaited::Launched),
    ] {
        for unit in &units {
            put(context, unit, state, None)?;
        }
        let code = outcome::wait(context, &units, awaited)?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn destroy(context: &Context) -> Result<ExitCode> {
    let units = names(context)?;
    let mut waited_for = Vec::new();
    for unit in &units {
        if stored(context, unit)?.is_none() {
            bail!("Unit {unit} does not exist.");
        }
        context.call("DELETE", &format!("/units/{unit}"), None)?;
        if context.flags.is_set("no-block") {
            println!("Triggered unit {unit} destroy");
        } else {
            waited_for.push(unit.clone());
        }
    }
    outcome::wait(context, &waited_for, Awaited::Destroyed)
}

pub(super) fn cat(context: &Context) -> Result<ExitCode> {
    for unit in names(context)? {
        let known = stored(context, &unit)?.with_context(|| format!("Unit {unit} not found"))?;
        let file = list::file(&known).with_context(|| format!("Unit {unit} cannot be read"))?;
        print!("{}", file.text());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_units_by_their_files() {
        for (word, unit) in [
            ("hello", "hello.service"),
            ("./units/hello.service", "hello.service"),
            ("a.b", "a.b.service"),
            ("web@1", "web@1.service"),
            ("x.timer", "x.timer"),
            ("dir/web.container", "web.service"),
        ] {
            assert_eq!(name_of(word).unwrap().as_str(), unit);
        }
        assert!(name_of("a b").is_err());
    }
}
