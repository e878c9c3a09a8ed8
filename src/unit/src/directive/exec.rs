//! `Exec…=` and the environment.

use super::{Draft, Reading};
use crate::command::{Command, CommandFlags};
use crate::problem::Severity;
use crate::service::EnvironmentFile;
use crate::syntax::Assignment;
use crate::words::{Word, Words, is_space};

/// Reads one line of commands; the empty value empties the list. What cannot be run makes the unit fail to load, unless
/// `-` stands before it: then the line is passed over from there on.
pub(super) fn commands(list: &mut Vec<Command>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        list.clear();
        return;
    }
    let mut words = Words::new(&a.value.text);
    while let Some(first) = next(&mut words, a, reading, Severity::Error) {
        let Some(first) = first else { return };
        if first.plain && first.text == ";" {
            continue;
        }
        let Some(command) = command(first, &mut words, a, reading) else {
            return;
        };
        list.push(command);
    }
    for offset in words.unknown_escapes {
        reading.report(
            a.value.position(offset),
            Severity::Warning,
            "unknown escape, kept as it is",
        );
    }
}

/// The next word, specifiers replaced; `Some(None)` was reported.
fn next(
    words: &mut Words<'_>,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
    severity: Severity,
) -> Option<Option<Word>> {
    let word = match words.next()? {
        Ok(word) => word,
        Err(error) => {
            reading.fail(a, error.offset(), error.message(), severity);
            return Some(None);
        }
    };
    let text = reading
        .expand(a, &word.text, word.offset, severity)
        .map(std::borrow::Cow::into_owned);
    Some(text.map(|text| Word { text, ..word }))
}

/// Whether the unquoted word `mark` comes next.
fn at_mark(words: &mut Words<'_>, mark: &str) -> bool {
    let Some(rest) = words.rest().strip_prefix(mark) else {
        return false;
    };
    let ends = rest.chars().next().is_none_or(is_space);
    if ends {
        words.skip(mark.chars().count());
    }
    ends
}

fn command(
    first: Word,
    words: &mut Words<'_>,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) -> Option<Command> {
    let mut flags = CommandFlags::default();
    let mut takes_argv0 = false;
    let mut bangs = 0u8;
    let mut program = first.text.as_str();
    loop {
        let mut rest = program.chars();
        let flag = match rest.next() {
            Some('-') => &mut flags.ignore_failure,
            Some('@') => &mut takes_argv0,
            Some(':') => &mut flags.no_expansion,
            Some('+') => &mut flags.full_privileges,
            Some('!') if bangs < 2 => {
                bangs = bangs.saturating_add(1);
                program = rest.as_str();
                continue;
            }
            Some('|') => {
                reading.refuse(
                    a,
                    first.offset,
                    "the prefix | (run through a login shell) is not supported",
                );
                return None;
            }
            _ => break,
        };
        if std::mem::replace(flag, true) {
            let severity = severity_of(flags);
            reading.fail(a, first.offset, "a prefix stands twice", severity);
            return None;
        }
        program = rest.as_str();
    }
    flags.keep_user = bangs > 0;
    let severity = severity_of(flags);
    if flags.full_privileges && flags.keep_user {
        let message = "only one of the prefixes + ! !! can be used";
        reading.fail(a, first.offset, message, severity);
        return None;
    }
    if let Some(reason) = unusable_program(program) {
        let message = format!("{program:?} {reason}");
        reading.fail(a, first.offset, &message, severity);
        return None;
    }
    let program = program.to_owned();
    let mut argv0 = None;
    if takes_argv0 {
        match next(words, a, reading, severity) {
            Some(word) => argv0 = Some(word?.text),
            None => {
                let message = "the prefix @ asks for a second word, the program's own name";
                reading.fail(a, first.offset, message, severity);
                return None;
            }
        }
    }
    let mut arguments = Vec::new();
    loop {
        if at_mark(words, ";") {
            break;
        }
        if at_mark(words, "\\;") {
            arguments.push(";".to_owned());
            continue;
        }
        let Some(word) = next(words, a, reading, severity) else {
            break;
        };
        let word = word?;
        if !flags.no_expansion {
            warn_about_variable(&word, a, reading);
        }
        arguments.push(word.text);
    }
    Some(Command {
        program,
        argv0,
        words: arguments,
        flags,
        at: a.value.position(first.offset),
    })
}

/// `-` forgives not only the program's failure but also a command that cannot be run.
fn severity_of(flags: CommandFlags) -> Severity {
    if flags.ignore_failure {
        Severity::Warning
    } else {
        Severity::Error
    }
}

fn unusable_program(program: &str) -> Option<&'static str> {
    if program.is_empty() {
        Some("names no program")
    } else if program.starts_with('$') {
        Some("cannot be a variable: the program is looked up before variables are known")
    } else if program.ends_with('/') {
        Some("is a directory")
    } else if program.contains('/') && !program.starts_with('/') {
        Some("is neither an absolute path nor a bare name")
    } else if program.contains('\0') {
        Some("holds a NUL byte")
    } else {
        None
    }
}

/// `$HOME/x` as a word is looked up as the variable `HOME/x`, which nobody means.
fn warn_about_variable(word: &Word, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let Some(name) = word.text.strip_prefix('$') else {
        return;
    };
    if name.is_empty() || name.starts_with(['$', '{']) || environment_name(name) {
        return;
    }
    let message = format!(
        "{}=: ${name} names no variable and becomes nothing; inside a word, write ${{NAME}}",
        a.key
    );
    reading.report(a.value.position(word.offset), Severity::Warning, message);
}

/// Whether a text can be the name of a variable.
pub(crate) fn environment_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `Environment=`
pub(super) fn environment(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.service.environment.clear();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        match word.text.split_once('=') {
            Some((name, value)) if environment_name(name) => {
                draft
                    .service
                    .environment
                    .push((name.to_owned(), value.to_owned()));
            }
            _ => reading.ignore(
                a,
                word.offset,
                &format!("{:?} is not NAME=VALUE", word.text),
            ),
        }
    }
}

/// `EnvironmentFile=`
pub(super) fn environment_file(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.service.environment_files.clear();
        return;
    }
    let Some(text) = reading.text(a, Severity::Warning) else {
        return;
    };
    let (optional, path) = text
        .strip_prefix('-')
        .map_or((false, &*text), |path| (true, path));
    if path.starts_with('/') {
        draft.service.environment_files.push(EnvironmentFile {
            path: path.to_owned(),
            optional,
        });
    } else {
        reading.ignore(a, 0, &format!("{path:?} is not an absolute path"));
    }
}

/// `PassEnvironment=` and `UnsetEnvironment=`
pub(super) fn environment_names(
    list: &mut Vec<String>,
    with_values: bool,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) {
    if a.value.text.is_empty() {
        list.clear();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        let name = word
            .text
            .split_once('=')
            .filter(|_| with_values)
            .map_or(&*word.text, |(name, _)| name);
        if environment_name(name) {
            list.push(word.text);
        } else {
            reading.ignore(
                a,
                word.offset,
                &format!("{:?} is not the name of a variable", word.text),
            );
        }
    }
}
