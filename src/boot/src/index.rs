//! The index of kernel modules: which module answers to an alias, and what has to be loaded with it, in which order.
//!
//! It is made when an image is built ([`Catalogue`]) for just the modules that the image ships, and lies beside them as
//! `/usr/lib/modules/VERSION/orlop.index`. The text files that depmod makes would cost more to parse at each of the
//! kernel's calls of modprobe than the load itself. The format is described in `docs/module-index.md`.

mod build;
mod format;
mod modinfo;
mod pattern;

pub use build::{BuildError, Catalogue};
pub use format::DecodeError;
pub use modinfo::{ModinfoError, ModuleInfo};
pub use pattern::{matches, normalise};

/// The name of the index in the directory of a kernel version's modules.
pub const FILE_NAME: &str = "orlop.index";

/// A module as the index holds it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Module {
    /// The kernel's name for it, with underscores.
    pub name: String,
    /// The file, relative to the index's directory.
    pub path: String,
    /// What to load before it, in order: dependencies of dependencies included.
    pub before: Vec<Step>,
    /// What to load after it, in order.
    pub after: Vec<Step>,
}

/// One module in another's load list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The module's number, below [`Index::modules`]' length.
    pub module: usize,
    /// A soft dependency: when it cannot be loaded, the load goes on.
    pub soft: bool,
}

/// A device node that exists so that opening it loads the module behind it (depmod's `modules.devname`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Path below `/dev`.
    pub path: String,
    /// A block device rather than a character device.
    pub block: bool,
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
}

/// The modules of one kernel version that an image ships.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    modules: Vec<Module>,
    /// Normalised patterns and the number of the module that each one picks.
    aliases: Vec<(String, usize)>,
    nodes: Vec<Node>,
    builtin: Vec<String>,
}

impl Index {
    /// All modules; a module's number is its place.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The device nodes to make before their modules are loaded.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A module's number by its name; hyphens and underscores are the same.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<usize> {
        let name = normalise(name);
        self.modules.iter().position(|m| m.name == name)
    }

    /// The numbers of all modules that answer to an alias such as `virtio:d00000002v00001AF4` or `fs-erofs`.
    pub fn by_alias<'a>(&'a self, alias: &str) -> impl Iterator<Item = usize> + use<'a> {
        let alias = normalise(alias);
        self.aliases
            .iter()
            .filter(move |(pattern, _)| matches(pattern, &alias))
            .map(|(_, module)| *module)
    }

    /// What modprobe loads for `word`: the module of that name, else all modules with a matching alias.
    #[must_use]
    pub fn resolve(&self, word: &str) -> Vec<usize> {
        match self.by_name(word) {
            Some(module) => vec![module],
            None => {
                let mut modules: Vec<usize> = self.by_alias(word).collect();
                modules.sort_unstable();
                modules.dedup();
                modules
            }
        }
    }

    /// Whether the kernel itself contains the module of that name.
    #[must_use]
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.binary_search(&normalise(name)).is_ok()
    }
}
