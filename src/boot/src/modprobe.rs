//! The applet `modprobe`, which the kernel itself runs as `/sbin/modprobe -q -- ALIAS` (`kernel/kmod.c`).

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use crate::cmdline::CommandLine;
use crate::modules::{Loader, ModuleError};

const USAGE: &str = "usage: modprobe [-q] [-n] NAME [PARAMETER=VALUE…]
       modprobe -a [-q] [-n] NAME…
       modprobe -r NAME…
Loads the kernel modules that have NAME as name or alias, with what they need.
  -q  no message for a name that is not known     -a  every argument is a NAME
  -n  print what would be loaded                  -r  unload";

/// What the words of the command ask for.
#[derive(Debug, PartialEq, Eq, Default)]
struct Request {
    quiet: bool,
    all: bool,
    dry_run: bool,
    remove: bool,
    words: Vec<String>,
}

impl Request {
    fn parse(arguments: &[OsString]) -> Option<Self> {
        let mut request = Self::default();
        let mut options = true;
        for argument in arguments {
            let argument = argument.to_str()?;
            match argument {
                "--" if options => options = false,
                "--quiet" if options => request.quiet = true,
                "--all" if options => request.all = true,
                "--dry-run" | "--show" if options => request.dry_run = true,
                "--remove" if options => request.remove = true,
                "--verbose" if options => {}
                letters if options && letters.starts_with('-') && letters.len() > 1 => {
                    for letter in letters.chars().skip(1) {
                        match letter {
                            'q' => request.quiet = true,
                            'a' => request.all = true,
                            'n' => request.dry_run = true,
                            'r' => request.remove = true,
                            // Busybox's and kmod's -b (obey the blacklist for names) and -v, -s change nothing here.
                            'b' | 'v' | 's' => {}
                            _ => return None,
                        }
                    }
                }
                word => request.words.push(word.to_owned()),
            }
        }
        (!request.words.is_empty()).then_some(request)
    }
}

/// Runs the applet with the arguments after its name. 0: all is loaded.
#[must_use]
pub fn run(arguments: &[OsString]) -> ExitCode {
    let Some(request) = Request::parse(arguments) else {
        complain(USAGE);
        return ExitCode::from(2);
    };
    let loader = CommandLine::read()
        .map_err(|error| format!("cannot read /proc/cmdline: {error}"))
        .and_then(|line| Loader::open(line).map_err(|error| chain(&error)));
    let mut loader = match loader {
        Ok(loader) => loader,
        Err(message) => {
            complain(&format!("modprobe: {message}"));
            return ExitCode::FAILURE;
        }
    };
    let (words, parameters) = match request.words.split_at_checked(1) {
        Some((first, rest)) if !request.all && !request.remove => (first, rest.join(" ")),
        _ => (request.words.as_slice(), String::new()),
    };
    let mut code = ExitCode::SUCCESS;
    for word in words {
        let outcome = if request.remove {
            remove(&loader, word)
        } else if request.dry_run {
            show(&loader, word);
            Ok(())
        } else if parameters.is_empty() {
            loader.load(word).map_err(Failure::from)
        } else {
            loader
                .load_with_arguments(word, &parameters)
                .map_err(Failure::from)
        };
        if let Err(failure) = outcome {
            if !(request.quiet && failure.unknown) {
                complain(&format!("modprobe: {}", failure.text));
            }
            code = ExitCode::FAILURE;
        }
    }
    code
}

struct Failure {
    text: String,
    unknown: bool,
}

impl From<ModuleError> for Failure {
    fn from(error: ModuleError) -> Self {
        Self {
            text: chain(&error),
            unknown: matches!(error, ModuleError::Unknown { .. }),
        }
    }
}

fn remove(loader: &Loader, word: &str) -> Result<(), Failure> {
    let modules = loader.index().resolve(word);
    if modules.is_empty() {
        return Err(ModuleError::Unknown {
            word: word.to_owned(),
        }
        .into());
    }
    for module in modules
        .iter()
        .filter_map(|number| loader.index().modules().get(*number))
    {
        let failure = |error: String| Failure {
            text: format!("cannot unload {}: {error}", module.name),
            unknown: false,
        };
        let name = std::ffi::CString::new(module.name.as_str())
            .map_err(|error| failure(error.to_string()))?;
        nix::kmod::delete_module(&name, nix::kmod::DeleteModuleFlags::O_NONBLOCK)
            .map_err(|error| failure(error.desc().to_lowercase()))?;
    }
    Ok(())
}

fn show(loader: &Loader, word: &str) {
    let modules = loader.index().modules();
    for module in loader
        .index()
        .resolve(word)
        .iter()
        .filter_map(|number| modules.get(*number))
    {
        let before = module
            .before
            .iter()
            .filter_map(|step| modules.get(step.module));
        let after = module
            .after
            .iter()
            .filter_map(|step| modules.get(step.module));
        for module in before.chain([module]).chain(after) {
            let _ = writeln!(std::io::stdout(), "insmod {}", module.path);
        }
    }
}

/// The kernel gives its helper no standard error that leads anywhere: then the kernel's log is the place.
fn complain(text: &str) {
    if std::env::args_os()
        .next()
        .is_some_and(|name| name == "/sbin/modprobe")
    {
        orlop_sys::kmsg::write(orlop_sys::kmsg::Priority::Warning, "orlop", text);
    } else {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// An error with its causes, `a: b: c`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Request> {
        Request::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_kernels_call_is_understood() {
        let request = parse("-q -- net-pf-10").unwrap();
        assert!(request.quiet);
        assert_eq!(request.words, ["net-pf-10"]);
    }

    #[test]
    fn letters_may_stand_together_and_words_after_the_dashes_are_names() {
        let request = parse("-qa a -- -n").unwrap();
        assert!(request.quiet && request.all && !request.dry_run);
        assert_eq!(request.words, ["a", "-n"]);
    }

    #[test]
    fn without_a_name_or_with_a_strange_option_it_is_a_mistake() {
        assert_eq!(parse("-q"), None);
        assert_eq!(parse("-z loop"), None);
    }
}
