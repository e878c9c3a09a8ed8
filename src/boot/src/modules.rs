//! Loading kernel modules by name or alias.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use thiserror::Error;

use crate::cmdline::CommandLine;
use crate::index::{DecodeError, FILE_NAME, Index};

/// What may go wrong with modules.
#[derive(Debug, Error)]
pub enum ModuleError {
    /// uname(2) failed.
    #[error("cannot tell the kernel's version")]
    KernelVersion(#[source] Errno),
    /// The index could not be read.
    #[error("cannot read the module index {path}")]
    ReadIndex {
        /// The index.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The index is damaged.
    #[error("module index {path}")]
    DecodeIndex {
        /// The index.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: DecodeError,
    },
    /// No module has the name or alias.
    #[error("no module is known as {word}")]
    Unknown {
        /// What was asked for.
        word: String,
    },
    /// The command line's blacklist names the module.
    #[error("module {module} is on the kernel command line's blacklist")]
    Blacklisted {
        /// The module.
        module: String,
    },
    /// The module's file could not be opened.
    #[error("cannot open module {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the module.
    #[error("cannot load module {module}")]
    Load {
        /// The module.
        module: String,
        /// `ENODEV`: its hardware is not there.
        #[source]
        source: Errno,
    },
}

impl ModuleError {
    /// Whether it only says that a driver found no hardware, which is no fault.
    #[must_use]
    pub fn is_absent_hardware(&self) -> bool {
        matches!(
            self,
            Self::Load {
                source: Errno::ENODEV,
                ..
            }
        )
    }
}

/// Loads modules of the running kernel from the index beside them.
#[derive(Debug)]
pub struct Loader {
    directory: PathBuf,
    index: Index,
    command_line: CommandLine,
    /// Modules that are known to be in the kernel.
    loaded: HashSet<usize>,
}

impl Loader {
    /// Reads the index of the running kernel below `/usr/lib/modules`.
    ///
    /// # Errors
    /// The index is missing or damaged.
    pub fn open(command_line: CommandLine) -> Result<Self, ModuleError> {
        let kernel = nix::sys::utsname::uname().map_err(ModuleError::KernelVersion)?;
        let directory = Path::new("/usr/lib/modules").join(kernel.release());
        let path = directory.join(FILE_NAME);
        let text = std::fs::read_to_string(&path).map_err(|source| ModuleError::ReadIndex {
            path: path.clone(),
            source,
        })?;
        let index =
            Index::decode(&text).map_err(|source| ModuleError::DecodeIndex { path, source })?;
        Ok(Self {
            directory,
            index,
            command_line,
            loaded: HashSet::new(),
        })
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Loads the modules that `word`, a name or an alias, means, with all that they need. One that is loaded already is a
    /// success, and so is one that the kernel contains.
    ///
    /// # Errors
    /// No module of that name or alias, or the first module that could not be loaded.
    pub fn load(&mut self, word: &str) -> Result<(), ModuleError> {
        let modules = self.index.resolve(word);
        if modules.is_empty() && !self.index.is_builtin(word) {
            return Err(ModuleError::Unknown {
                word: word.to_owned(),
            });
        }
        // As modprobe(8): the blacklist hides aliases, it does not forbid the name.
        let by_name = self.index.by_name(word).is_some();
        let mut result = Ok(());
        for module in modules {
            let outcome = self.load_module(module, by_name);
            if result.is_ok() {
                result = outcome;
            }
        }
        result
    }

    /// Loads the drivers of a device, by its modalias. No driver is no error: few devices need one of the image's.
    ///
    /// # Errors
    /// The first module that could not be loaded.
    pub fn load_for_device(&mut self, modalias: &str) -> Result<(), ModuleError> {
        let modules: Vec<usize> = self.index.by_alias(modalias).collect();
        modules
            .into_iter()
            .try_for_each(|module| self.load_module(module, false))
    }

    fn load_module(&mut self, number: usize, by_name: bool) -> Result<(), ModuleError> {
        if self.loaded.contains(&number) {
            return Ok(());
        }
        let Some(module) = self.index.modules().get(number) else {
            return Ok(());
        };
        if !by_name && self.command_line.is_blacklisted(&module.name) {
            return Err(ModuleError::Blacklisted {
                module: module.name.clone(),
            });
        }
        let (before, after) = (module.before.clone(), module.after.clone());
        for step in before {
            let outcome = self.insert(step.module, "");
            if !step.soft {
                outcome?;
            }
        }
        self.insert(number, "")?;
        for step in after {
            let outcome = self.insert(step.module, "");
            if !step.soft {
                outcome?;
            }
        }
        Ok(())
    }

    /// Loads one module file with arguments, after its dependencies.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load_with_arguments(&mut self, name: &str, arguments: &str) -> Result<(), ModuleError> {
        let Some(number) = self.index.by_name(name) else {
            return self.load(name);
        };
        let before = self
            .index
            .modules()
            .get(number)
            .map(|m| m.before.clone())
            .unwrap_or_default();
        for step in before {
            let outcome = self.insert(step.module, "");
            if !step.soft {
                outcome?;
            }
        }
        self.insert(number, arguments)?;
        self.load(name)
    }

    /// Hands one file to the kernel unless it has that module already.
    fn insert(&mut self, number: usize, more_arguments: &str) -> Result<(), ModuleError> {
        if self.loaded.contains(&number) {
            return Ok(());
        }
        let Some(module) = self.index.modules().get(number) else {
            return Ok(());
        };
        if !is_live(&module.name) {
            let path = self.directory.join(&module.path);
            let file = File::open(&path).map_err(|source| ModuleError::Open { path, source })?;
            let mut arguments = self.command_line.module_arguments(&module.name);
            if !more_arguments.is_empty() {
                arguments.push(' ');
                arguments.push_str(more_arguments);
            }
            // The command line cannot hold a NUL byte.
            let arguments = CString::new(arguments).unwrap_or_default();
            match finit_module(file, &arguments, ModuleInitFlags::empty()) {
                // EEXIST: somebody else was quicker.
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(source) => {
                    return Err(ModuleError::Load {
                        module: module.name.clone(),
                        source,
                    });
                }
            }
        }
        self.loaded.insert(number);
        Ok(())
    }
}

/// Whether the module is in the kernel and initialised.
///
/// Asking costs far less than a second `finit_module`, which would check the signature before it sees the name. A module
/// still initialising counts as absent: the kernel makes the second loader wait.
fn is_live(name: &str) -> bool {
    let directory = Path::new("/sys/module").join(name);
    match std::fs::read(directory.join("initstate")) {
        Ok(state) => state.starts_with(b"live"),
        // What the kernel contains has a directory without a state.
        Err(_) => directory.exists(),
    }
}
