//! Finding a unit's files and reading them together.

use crate::name::UnitName;
use crate::problem::{Position, Problem, Problems, Severity};
use crate::specifier::SpecifierContext;
use crate::store::UnitStore;
use crate::unit::Unit;

/// What came of loading a unit; with neither a unit nor an error nor `masked`, there is no such unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The unit; `None` when there is no file, it is masked, or a file holds an error.
    pub unit: Option<Unit>,
    /// What was found in its files, in order.
    pub problems: Vec<Problem>,
    /// An empty file or a link to `/dev/null` forbids it.
    pub masked: bool,
}

impl Loaded {
    /// Not loaded, for a reason that lies in no file.
    pub(crate) fn refused(name: &UnitName, reason: String) -> Self {
        let mut problems = Problems::default();
        problems.push(&name.as_str().into(), Position::default(), Severity::Error, reason);
        Self { unit: None, problems: problems.into_list(), masked: false }
    }
}

/// Loads units; lists every directory once, so a change on disk needs a new loader.
#[derive(Debug)]
pub struct Loader<'a, S> {
    directories: Vec<String>,
    store: &'a S,
    context: &'a SpecifierContext,
}

impl<'a, S: UnitStore> Loader<'a, S> {
    /// Lists `directories`, highest precedence first. `.container` files may lie in any of them.
    pub fn new(directories: &[&str], store: &'a S, context: &'a SpecifierContext) -> Self {
        Self { directories: directories.iter().map(|&d| d.to_owned()).collect(), store, context }
    }

    /// Loads one unit with its drop-ins; of an alias, the unit that it stands for.
    #[must_use]
    pub fn load(&self, name: &UnitName) -> Loaded {
        let _ = (&self.directories, self.store, self.context, name);
        Loaded::default()
    }
}

/// Loads one unit; see [`Loader`] for loading several.
pub fn load<S: UnitStore>(name: &UnitName, directories: &[&str], store: &S, context: &SpecifierContext) -> Loaded {
    Loader::new(directories, store, context).load(name)
}
