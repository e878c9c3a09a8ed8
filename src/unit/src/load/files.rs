//! Where a unit's files lie, and which of them count.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Loader, MAX_FILE_BYTES};
use crate::directive::{self, Draft, Reading};
use crate::name::{UnitName, UnitType};
use crate::problem::{Problem, Problems};
use crate::quadlet;
use crate::specifier::Expander;
use crate::store::{EntryKind, UnitStore};
use crate::syntax;
use crate::unit::{Dependency, Install, Relation};

/// A unit's main file.
pub(crate) struct Fragment {
    pub(crate) path: String,
    pub(crate) kind: EntryKind,
    pub(crate) container: bool,
}

impl<S: UnitStore> Loader<'_, S> {
    /// The other names under which a unit can be found.
    pub(super) fn names_of(&self, name: &UnitName) -> Vec<UnitName> {
        self.aliases.get(name.as_str()).cloned().unwrap_or_default()
    }

    /// Finds a unit's main file: its own before its template's, a `.service` before a `.container` beside it.
    pub(crate) fn fragment(&self, name: &UnitName) -> Option<Fragment> {
        let template = name.template();
        let names = [Some(name), template.as_ref()];
        names.into_iter().flatten().find_map(|name| {
            let own = self.place(name.as_str());
            let container = match name.kind() {
                UnitType::Service => self.place(&format!("{}.container", name.stem())),
                _ => None,
            };
            match (own, container) {
                (own, Some((index, kind))) if own.is_none_or(|(i, _)| index < i) => {
                    let path = self.path(index, &format!("{}.container", name.stem()))?;
                    Some(Fragment {
                        path,
                        kind,
                        container: true,
                    })
                }
                (Some((index, kind)), _) => Some(Fragment {
                    path: self.path(index, name.as_str())?,
                    kind,
                    container: false,
                }),
                (None, _) => None,
            }
        })
    }

    /// Where a file of that name has the highest precedence.
    fn place(&self, file: &str) -> Option<(usize, EntryKind)> {
        self.places
            .get(file)?
            .iter()
            .copied()
            .find(|(_, kind)| *kind != EntryKind::Directory)
    }

    fn path(&self, index: usize, file: &str) -> Option<String> {
        Some(format!("{}/{file}", self.directories.get(index)?))
    }

    /// The directories of that name, highest precedence first.
    pub(super) fn subdirectories(&self, name: &str) -> impl Iterator<Item = (usize, String)> {
        self.places
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(_, kind)| *kind != EntryKind::File)
            .filter_map(|(index, _)| Some((*index, self.path(*index, name)?)))
    }

    /// The paths of all drop-ins in the order in which they apply.
    ///
    /// Of files with the same name, the one in the directory of the highest precedence counts, and in it the one whose
    /// directory names the unit most exactly; what holds for the whole type comes last. They apply by file name.
    pub(super) fn drop_ins(&self, name: &UnitName, suffix: &str) -> Vec<String> {
        let mut levels = Vec::new();
        let aliases = self.names_of(name);
        for name in std::iter::once(name).chain(&aliases) {
            levels.push(format!("{}.{suffix}.d", name.stem()));
            if let Some(template) = name.template() {
                levels.push(format!("{}.{suffix}.d", template.stem()));
            }
            let mut prefix = name.prefix().trim_end_matches('-');
            while let Some((shorter, _)) = prefix.rsplit_once('-') {
                prefix = shorter.trim_end_matches('-');
                if prefix.is_empty() {
                    break;
                }
                levels.push(format!("{prefix}-.{suffix}.d"));
            }
        }
        let mut exact: Vec<(usize, usize, String)> = Vec::new();
        for (level, directory) in levels.iter().enumerate() {
            exact.extend(
                self.subdirectories(directory)
                    .map(|(index, path)| (index, level, path)),
            );
        }
        exact.sort_unstable();
        let whole_type = format!("{suffix}.d");
        let directories = exact
            .into_iter()
            .map(|(_, _, path)| path)
            .chain(self.subdirectories(&whole_type).map(|(_, path)| path));
        let mut files = BTreeMap::new();
        for directory in directories {
            for entry in self.store.list(&directory) {
                if entry.name.ends_with(".conf") && entry.kind != EntryKind::Directory {
                    let path = format!("{directory}/{}", entry.name);
                    files.entry(entry.name).or_insert(path);
                }
            }
        }
        files.into_values().collect()
    }

    /// Reads who wants a `.container` file: no command enables those, their `[Install]` always holds.
    pub(super) fn install_container(&mut self, file: &str) {
        let Ok(name) = UnitName::parse(file) else {
            return;
        };
        let Some(fragment) = self.fragment(&name).filter(|f| f.container) else {
            return;
        };
        let (install, _) = self.install_section(&name, &fragment);
        let on = match (name.is_template(), &install.default_instance) {
            (false, _) => name,
            (true, Some(instance)) => match name.with_instance(instance) {
                Ok(name) => name,
                Err(_) => return,
            },
            (true, None) => return,
        };
        for (units, relation) in [
            (install.wanted_by, Relation::Wants),
            (install.required_by, Relation::Requires),
            (install.upheld_by, Relation::Upholds),
        ] {
            for unit in units {
                self.installed.entry(unit).or_default().push(Dependency {
                    relation,
                    on: on.clone(),
                });
            }
        }
    }

    /// The `[Install]` of a unit, whatever the rest of its files holds, and what is wrong with it.
    pub(crate) fn install_section(
        &self,
        name: &UnitName,
        fragment: &Fragment,
    ) -> (Install, Vec<Problem>) {
        let mut draft = Draft::default();
        let mut problems = Problems::default();
        let expander = Expander {
            name,
            fragment: &fragment.path,
            context: self.context,
        };
        let suffix = if fragment.container {
            "container"
        } else {
            name.kind().suffix()
        };
        let drop_ins = self.drop_ins(name, suffix);
        for path in std::iter::once(fragment.path.clone()).chain(drop_ins) {
            let Some(text) = self
                .store
                .read(&path)
                .filter(|text| text.len() <= MAX_FILE_BYTES)
            else {
                continue;
            };
            let path: Arc<str> = path.into();
            let mut syntax_problems = Problems::default();
            let mut assignments = syntax::parse(&path, &text, &mut syntax_problems);
            assignments.retain(|a| {
                a.section == "Install"
                    && (!fragment.container || quadlet::is_install_key(a.section, &a.key))
            });
            let mut reading = Reading {
                path: &path,
                expander,
                problems: &mut problems,
            };
            directive::apply(&mut draft, &assignments, &mut reading);
        }
        (draft.install, problems.into_list())
    }
}

/// The unit that a link makes `name` another name of; `None` when it leads to a file of the same name.
pub(crate) fn alias_of(name: &UnitName, target: &str) -> Option<UnitName> {
    let real = UnitName::parse(target.rsplit('/').next()?).ok()?;
    if real == *name || real.kind() != name.kind() || Some(&real) == name.template().as_ref() {
        return None;
    }
    if !real.is_template() {
        return Some(real);
    }
    match name.instance() {
        Some(instance) if !instance.is_empty() => real.with_instance(instance).ok(),
        _ => Some(real),
    }
}
