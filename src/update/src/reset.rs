//! Factory reset: what is kept on `/var` goes, all of it or named parts; the image stays.
//!
//! It is asked for while the machine runs, by a mark on the data volume, or by the boot entry's `orlop.reset=`, and done at the next
//! start before anything uses `/var`. Cut short, it goes on at the start after that: the mark is the last thing to go.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// The mark, below `/var`: a [`Scope`] as text.
pub const MARK: &str = "lib/orlop/reset";

/// The word on the kernel command line: `orlop.reset=all`, `orlop.reset=keep:ssh,home`, `orlop.reset=only:containers`.
pub const WORD: &str = "orlop.reset";

/// The longest mark in bytes.
const LONGEST: u64 = 4096;

/// What can be named: a name, paths below `/var`, and what is lost.
pub const PARTS: &[(&str, &[&str], &str)] = &[
    (
        "cache",
        &["cache", "tmp", "spool"],
        "what can be made again",
    ),
    (
        "config",
        &["lib/orlop/config"],
        "the configuration that is kept for when its source is down",
    ),
    (
        "containers",
        &["lib/orlop/containers"],
        "containers and their writable layers",
    ),
    ("home", &["home"], "home directories"),
    ("images", &["lib/orlop/images"], "container images"),
    ("journal", &["lib/orlop/journal", "log"], "logs"),
    (
        "machine-id",
        &["lib/orlop/machine-id"],
        "the machine's identity",
    ),
    ("opt", &["opt"], "/opt"),
    ("srv", &["srv"], "/srv"),
    ("ssh", &["lib/orlop/ssh"], "the SSH server's host keys"),
    (
        "store",
        &["lib/orlop/store"],
        "the member of the clustered store",
    ),
];

/// What a filesystem needs itself.
const LOST_AND_FOUND: &str = "lost+found";

/// What goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Everything but these parts.
    Keep(Vec<String>),
    /// These parts.
    Only(Vec<String>),
}

/// Why nothing is reset, or not all of it.
#[derive(Debug, Error)]
pub enum ResetError {
    /// No scope.
    #[error("{0:?} says not what to reset: all, keep:PART,… or only:PART,…")]
    Form(String),
    /// An unknown part.
    #[error("there is no part {name:?}; there are {known}")]
    Part {
        /// The name.
        name: String,
        /// What can be named.
        known: String,
    },
    /// The mark can not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// The mark can not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// Something can not be removed.
    #[error("cannot remove {0}")]
    Remove(PathBuf, #[source] io::Error),
}

impl Scope {
    /// A scope of named parts.
    pub fn new(keep: &[String], only: &[String]) -> Result<Self, ResetError> {
        for name in keep.iter().chain(only) {
            if !PARTS.iter().any(|(part, ..)| part == name) {
                let known: Vec<&str> = PARTS.iter().map(|(part, ..)| *part).collect();
                return Err(ResetError::Part {
                    name: name.clone(),
                    known: known.join(", "),
                });
            }
        }
        match (keep, only) {
            ([], []) => Ok(Self::All),
            (keep, []) => Ok(Self::Keep(keep.to_vec())),
            ([], only) => Ok(Self::Only(only.to_vec())),
            _ => Err(ResetError::Form("keep and only".to_owned())),
        }
    }
}

impl FromStr for Scope {
    type Err = ResetError;

    fn from_str(text: &str) -> Result<Self, ResetError> {
        let list = |names: &str| names.split(',').map(str::to_owned).collect::<Vec<String>>();
        match text.split_once(':') {
            None if text == "all" => Ok(Self::All),
            Some(("keep", names)) => Self::new(&list(names), &[]),
            Some(("only", names)) => Self::new(&[], &list(names)),
            _ => Err(ResetError::Form(text.chars().take(200).collect())),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Keep(parts) => write!(f, "keep:{}", parts.join(",")),
            Self::Only(parts) => write!(f, "only:{}", parts.join(",")),
        }
    }
}

/// The paths of parts below `/var`.
fn paths(parts: &[String]) -> Vec<PathBuf> {
    let named = PARTS
        .iter()
        .filter(|(name, ..)| parts.iter().any(|part| part == name));
    named
        .flat_map(|(_, paths, _)| paths.iter().map(PathBuf::from))
        .collect()
}

/// Has the next start reset `scope` of what is mounted at `var`.
pub fn request(var: &Path, scope: &Scope) -> Result<(), ResetError> {
    let mark = var.join(MARK);
    let error = |e| ResetError::Write(mark.clone(), e);
    let new = mark.with_extension("new");
    let directory = mark.parent().unwrap_or(var);
    fs::create_dir_all(directory).map_err(error)?;
    File::create(&new)
        .and_then(|mut file| {
            file.write_all(format!("{scope}\n").as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&new, &mark))
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(error)
}

/// Takes a request back. Says whether there was one.
pub fn cancel(var: &Path) -> Result<bool, ResetError> {
    let mark = var.join(MARK);
    match fs::remove_file(&mark).and_then(|()| File::open(mark.parent().unwrap_or(var))?.sync_all())
    {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(ResetError::Remove(mark, e)),
    }
}

/// What the mark on `var` asks for, if there is one.
pub fn requested(var: &Path) -> Result<Option<Scope>, ResetError> {
    let mark = var.join(MARK);
    let mut text = String::new();
    let read = File::open(&mark)
        .and_then(|file| io::Read::read_to_string(&mut io::Read::take(file, LONGEST), &mut text));
    match read {
        Ok(_) => text.trim().parse().map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ResetError::Read(mark, e)),
    }
}

/// What was reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// What was asked for.
    pub scope: Scope,
    /// By whom: the mark or the command line.
    pub by_command_line: bool,
    /// What was removed.
    pub removed: Vec<PathBuf>,
}

/// Does what is asked for, once a start: to be called when `var` is mounted and nothing uses it yet. `word` is the value of [`WORD`] on the
/// kernel command line, `run` a directory that is new at each start (`/run/orlop`).
///
/// A second call in the same start does nothing, also when a reset was asked for in between.
///
/// # Errors
/// What is asked for is not understood (nothing is removed), or something can not be removed (the rest is, and the mark stays).
pub fn at_boot(var: &Path, word: Option<&str>, run: &Path) -> Result<Option<Done>, ResetError> {
    let looked = run.join("reset-looked");
    match File::options().write(true).create_new(true).open(&looked) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(ResetError::Write(looked, e)),
    }
    let scope = match word {
        Some(word) => Some(word.parse()?),
        None => requested(var)?,
    };
    let Some(scope) = scope else { return Ok(None) };
    let removed = execute(var, &scope)?;
    Ok(Some(Done {
        scope,
        by_command_line: word.is_some(),
        removed,
    }))
}

/// Removes `scope` from `var`, and the mark last. Gives what was removed.
pub fn execute(var: &Path, scope: &Scope) -> Result<Vec<PathBuf>, ResetError> {
    let device = fs::metadata(var)
        .map_err(|e| ResetError::Read(var.to_owned(), e))?
        .dev();
    let mut sweep = Sweep {
        var,
        device,
        removed: Vec::new(),
        failure: None,
    };
    match scope {
        Scope::All => sweep.all_but(Path::new(""), &[PathBuf::from(MARK)]),
        Scope::Keep(parts) => sweep.all_but(
            Path::new(""),
            &[paths(parts), vec![PathBuf::from(MARK)]].concat(),
        ),
        Scope::Only(parts) => paths(parts).iter().for_each(|path| sweep.remove(path)),
    }
    let synced = File::open(var).and_then(|directory| Ok(nix::unistd::syncfs(directory)?));
    synced.map_err(|e| ResetError::Write(var.to_owned(), e))?;
    match sweep.failure {
        Some(failure) => Err(failure),
        None => {
            cancel(var)?;
            Ok(sweep.removed)
        }
    }
}

/// Removing, that goes on after what can not be removed.
#[derive(Debug)]
struct Sweep<'a> {
    var: &'a Path,
    /// The filesystem of `/var`: what is mounted below is not ours to remove.
    device: u64,
    removed: Vec<PathBuf>,
    failure: Option<ResetError>,
}

impl Sweep<'_> {
    /// Removes what is in `directory` but not `keep`; paths are relative to `/var`.
    fn all_but(&mut self, directory: &Path, keep: &[PathBuf]) {
        let names: Result<Vec<_>, _> = fs::read_dir(self.var.join(directory))
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        let names = match names {
            Ok(names) => names,
            Err(e) => return self.fail(directory, e),
        };
        for name in names {
            let path = directory.join(&name);
            if keep.contains(&path) || (directory == Path::new("") && name == LOST_AND_FOUND) {
                continue;
            }
            // A link to a directory is not one.
            let is_directory =
                fs::symlink_metadata(self.var.join(&path)).is_ok_and(|meta| meta.is_dir());
            match is_directory && keep.iter().any(|kept| kept.starts_with(&path)) {
                true => self.all_but(&path, keep),
                false => self.remove(&path),
            }
        }
    }

    /// Removes a file or a directory with all that is in it, on this filesystem.
    fn remove(&mut self, path: &Path) {
        let full = self.var.join(path);
        let meta = match fs::symlink_metadata(&full) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return,
            Err(e) => return self.fail(path, e),
        };
        if meta.dev() != self.device {
            return self.fail(path, io::ErrorKind::CrossesDevices.into());
        }
        let removed = match meta.is_dir() {
            // Does not follow links.
            true => fs::remove_dir_all(&full),
            false => fs::remove_file(&full),
        };
        match removed {
            Ok(()) => self.removed.push(path.to_owned()),
            Err(e) => self.fail(path, e),
        }
    }

    fn fail(&mut self, path: &Path, error: io::Error) {
        let error = ResetError::Remove(self.var.join(path), error);
        match &self.failure {
            None => self.failure = Some(error),
            Some(_) => log::error!("reset: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Var(tempfile::TempDir);

    impl Var {
        fn new() -> Self {
            let var = Self(tempfile::tempdir().unwrap());
            for file in [
                "lib/orlop/ssh/key",
                "lib/orlop/containers/a/b",
                "lib/orlop/images/i",
                "lib/orlop/machine-id",
                "lib/other/x",
                "home/core/.profile",
                "log/x",
                "lost+found/1",
            ] {
                let path = var.0.path().join("var").join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            fs::create_dir(var.0.path().join("run")).unwrap();
            fs::write(var.0.path().join("outside"), "x").unwrap();
            std::os::unix::fs::symlink("../../outside", var.path().join("home/link")).unwrap();
            std::os::unix::fs::symlink("../home", var.path().join("log/link")).unwrap();
            var
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("var")
        }

        fn has(&self, path: &str) -> bool {
            self.path().join(path).exists()
        }

        fn boot(&self, word: Option<&str>) -> Result<Option<Done>, ResetError> {
            let run = self.0.path().join("run");
            let _ = fs::remove_file(run.join("reset-looked"));
            at_boot(&self.path(), word, &run)
        }
    }

    #[test]
    fn everything_goes_but_what_is_kept() {
        let var = Var::new();
        assert!(var.boot(None).unwrap().is_none(), "nobody asked");
        request(
            &var.path(),
            &Scope::Keep(vec!["ssh".to_owned(), "machine-id".to_owned()]),
        )
        .unwrap();
        let done = var.boot(None).unwrap().unwrap();
        assert!(!done.by_command_line);
        assert!(
            var.has("lib/orlop/ssh/key")
                && var.has("lib/orlop/machine-id")
                && var.has("lost+found/1")
        );
        for gone in [
            "lib/orlop/containers",
            "lib/orlop/images",
            "lib/other",
            "home",
            "log",
            MARK,
        ] {
            assert!(!var.has(gone), "{gone}");
        }
        assert!(
            var.0.path().join("outside").exists(),
            "links are not followed"
        );
        assert!(var.boot(None).unwrap().is_none(), "it is done once");
        request(&var.path(), &Scope::All).unwrap();
        var.boot(None).unwrap().unwrap();
        assert!(!var.has("lib/orlop/ssh") && var.has("lost+found/1"));
    }

    #[test]
    fn only_what_is_named_goes() {
        let var = Var::new();
        var.boot(Some("only:containers,journal")).unwrap().unwrap();
        assert!(!var.has("lib/orlop/containers") && !var.has("log"));
        assert!(var.has("lib/orlop/images/i") && var.has("home/core/.profile"));
    }

    #[test]
    fn a_machine_that_runs_is_not_reset() {
        let var = Var::new();
        let run = var.0.path().join("run");
        assert!(var.boot(None).unwrap().is_none());
        request(&var.path(), &Scope::All).unwrap();
        assert!(
            at_boot(&var.path(), Some("all"), &run).unwrap().is_none(),
            "setup ran again"
        );
        assert!(var.has("home/core/.profile"));
        assert_eq!(requested(&var.path()).unwrap(), Some(Scope::All));
        assert!(cancel(&var.path()).unwrap() && !cancel(&var.path()).unwrap());
        assert!(var.boot(None).unwrap().is_none());
    }

    #[test]
    fn what_is_not_understood_removes_nothing() {
        let var = Var::new();
        for word in [
            "",
            "everything",
            "only:",
            "keep:sshd",
            "only:../etc",
            "all:ssh",
        ] {
            assert!(var.boot(Some(word)).is_err(), "{word}");
        }
        assert!(
            "keep:sshd"
                .parse::<Scope>()
                .unwrap_err()
                .to_string()
                .contains("containers, home")
        );
        fs::write(var.path().join(MARK), "al").unwrap();
        assert!(var.boot(None).is_err());
        assert!(var.has("home/core/.profile"));
        for text in ["all", "keep:ssh,home", "only:store"] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
    }

    /// A mark that is half removed, or a reset that was cut short, is done at the next start.
    #[test]
    fn a_reset_that_was_cut_short_goes_on() {
        let var = Var::new();
        request(&var.path(), &Scope::All).unwrap();
        fs::remove_dir_all(var.path().join("home")).unwrap();
        var.boot(None).unwrap().unwrap();
        assert!(!var.has("lib/orlop/images") && !var.has(MARK));
    }
}
