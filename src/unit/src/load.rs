//! Finding a unit's files and reading them together (`systemd.unit(5)`, "Unit File Load Path").

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::builtin;
use crate::directive::{self, Draft, Reading};
use crate::name::{UnitName, UnitType};
use crate::problem::{Position, Problem, Problems, Severity};
use crate::quadlet;
use crate::specifier::{Expander, SpecifierContext};
use crate::store::{EntryKind, UnitStore};
use crate::support;
use crate::syntax;
use crate::unit::{Dependency, Relation, Unit};

mod complete;
mod defaults;
mod files;
mod kinds;

pub(crate) use files::Fragment;
pub(crate) use files::alias_of;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: usize = 4 << 20;
/// How many links from name to name are followed.
const MAX_ALIASES: usize = 8;
/// The path that problems of built-in targets bear.
const BUILT_IN: &str = "(built in)";

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
        problems.push(
            &name.as_str().into(),
            Position::default(),
            Severity::Error,
            reason,
        );
        Self {
            unit: None,
            problems: problems.into_list(),
            masked: false,
        }
    }
}

/// Loads units; lists every directory once, so a change on disk needs a new loader.
#[derive(Debug)]
pub struct Loader<'a, S> {
    directories: Vec<String>,
    store: &'a S,
    context: &'a SpecifierContext,
    /// What the supervisor cannot carry out keeps a unit from loading.
    supervised: bool,
    /// For each name in any of the directories: in which (by index, highest precedence first), and what it is there.
    places: HashMap<String, Vec<(usize, EntryKind)>>,
    /// Links between names: from a real name to the others.
    aliases: HashMap<String, Vec<UnitName>>,
    /// What `[Install]` of `.container` files adds to other units.
    installed: HashMap<UnitName, Vec<Dependency>>,
    /// The template that was read last, and its text: where there is one instance there are often more.
    template: RefCell<Option<(String, Arc<str>)>>,
}

impl<'a, S: UnitStore> Loader<'a, S> {
    /// Lists `directories`, highest precedence first. `.container` files may lie in any of them.
    pub fn new(directories: &[&str], store: &'a S, context: &'a SpecifierContext) -> Self {
        let mut loader = Self {
            directories: directories
                .iter()
                .map(|&d| d.trim_end_matches('/').to_owned())
                .collect(),
            store,
            context,
            supervised: true,
            places: HashMap::new(),
            aliases: HashMap::new(),
            installed: HashMap::new(),
            template: RefCell::new(None),
        };
        let mut containers = Vec::new();
        for (index, directory) in loader.directories.iter().enumerate() {
            for entry in store.list(directory) {
                if entry.kind == EntryKind::Link {
                    let target = store.link_target(&format!("{directory}/{}", entry.name));
                    let real = target
                        .as_deref()
                        .and_then(|target| target.rsplit('/').next());
                    if let (Some(real), Ok(alias)) = (real, UnitName::parse(&entry.name))
                        && real != entry.name
                        // Something of that name in a directory above hides the link.
                        && !loader.places.contains_key(&entry.name)
                    {
                        loader
                            .aliases
                            .entry(real.to_owned())
                            .or_default()
                            .push(alias);
                    }
                }
                if entry.name.ends_with(".container") && entry.kind != EntryKind::Directory {
                    containers.push(entry.name.clone());
                }
                loader
                    .places
                    .entry(entry.name)
                    .or_default()
                    .push((index, entry.kind));
            }
        }
        containers.sort_unstable();
        containers.dedup();
        for name in containers {
            loader.install_container(&name);
        }
        loader
    }

    /// Takes all units that are well formed, also those that [`crate::support`] says are not carried out yet.
    #[must_use]
    pub fn reading_all(mut self) -> Self {
        self.supervised = false;
        self
    }

    /// The file system that it reads.
    pub(crate) fn store(&self) -> &'a S {
        self.store
    }

    /// Every unit that has a file of its own, templates included, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = UnitName> {
        self.places
            .iter()
            .filter(|(_, places)| places.iter().any(|(_, kind)| *kind != EntryKind::Directory))
            .filter_map(|(name, _)| UnitName::parse(name).ok())
    }

    /// Loads one unit with its drop-ins; of an alias, the unit that it stands for.
    #[must_use]
    pub fn load(&self, name: &UnitName) -> Loaded {
        let mut problems = Problems::default();
        let mut name = name.clone();
        let mut hops = 0usize;
        let fragment = loop {
            let Some(fragment) = self.fragment(&name) else {
                match builtin::alias(name.as_str()).and_then(|real| UnitName::parse(real).ok()) {
                    Some(real) => name = real,
                    None => break None,
                }
                continue;
            };
            if fragment.kind != EntryKind::Link {
                break Some(fragment);
            }
            let target = self.store.link_target(&fragment.path).unwrap_or_default();
            if target == "/dev/null" {
                return Loaded {
                    masked: true,
                    ..Loaded::default()
                };
            }
            let Some(real) = alias_of(&name, &target) else {
                break Some(fragment);
            };
            hops = hops.saturating_add(1);
            if hops > MAX_ALIASES {
                return Loaded::refused(&name, "its links lead in a circle".to_owned());
            }
            let found = self.fragment(&real).is_some();
            name = real;
            if !found {
                // The link leads out of the directories: its own text counts, under the name that it leads to.
                break Some(fragment);
            }
        };
        let Some(fragment) = fragment else {
            return match builtin::target(name.as_str()) {
                Some(text) => self.read(&name, None, text, problems),
                None if defaults::is_made_by_name(&name) && self.takes(name.kind()) => {
                    self.read(&name, None, "", problems)
                }
                None => Loaded::default(),
            };
        };
        let path: Arc<str> = fragment.path.as_str().into();
        let Some(text) = self.text(&name, &fragment) else {
            problems.push(
                &path,
                Position::default(),
                Severity::Error,
                "cannot be read",
            );
            return Loaded {
                problems: problems.into_list(),
                ..Loaded::default()
            };
        };
        if text.is_empty() {
            return Loaded {
                masked: true,
                ..Loaded::default()
            };
        }
        self.read(&name, Some(&fragment), &text, problems)
    }

    fn text(&self, name: &UnitName, fragment: &Fragment) -> Option<Arc<str>> {
        if name.instance().is_none() {
            return self.store.read(&fragment.path).map(Arc::from);
        }
        if let Some((path, text)) = &*self.template.borrow()
            && *path == fragment.path
        {
            return Some(Arc::clone(text));
        }
        let text: Arc<str> = self.store.read(&fragment.path)?.into();
        *self.template.borrow_mut() = Some((fragment.path.clone(), Arc::clone(&text)));
        Some(text)
    }

    fn read(
        &self,
        name: &UnitName,
        fragment: Option<&Fragment>,
        text: &str,
        mut problems: Problems,
    ) -> Loaded {
        let path: Arc<str> = fragment.map_or(BUILT_IN, |f| f.path.as_str()).into();
        let kind = name.kind();
        if !support::is_read(kind) {
            let message = format!("{} units are not supported", kind.suffix());
            problems.push(&path, Position::default(), Severity::Error, message);
            return Loaded {
                problems: problems.into_list(),
                ..Loaded::default()
            };
        }
        let expander = Expander {
            name,
            fragment: fragment.map_or("", |f| f.path.as_str()),
            context: self.context,
        };
        let mut draft = Draft::default();
        let mut drop_ins = Vec::new();
        let container = fragment.is_some_and(|f| f.container);
        if container {
            draft.container = Some(quadlet::ContainerDraft::default());
        }
        apply_file(&mut draft, expander, &path, text, &mut problems);
        if container {
            self.apply_drop_ins(
                &mut draft,
                expander,
                "container",
                &mut drop_ins,
                &mut problems,
            );
            if let Some(container) = draft.container.take() {
                container.finish(
                    &mut draft,
                    &mut Reading {
                        path: &path,
                        expander,
                        problems: &mut problems,
                    },
                );
            }
        }
        self.apply_drop_ins(
            &mut draft,
            expander,
            name.kind().suffix(),
            &mut drop_ins,
            &mut problems,
        );
        draft.report_pending(&mut problems, self.supervised);
        self.add_linked(&mut draft, name, &mut problems);
        let unit = complete::finish(
            draft,
            name,
            fragment,
            drop_ins,
            self.names_of(name),
            &path,
            &mut problems,
        );
        if !self.takes(kind) {
            let message = format!("{} units are not run by this supervisor", kind.suffix());
            problems.push(&path, Position::default(), Severity::Error, message);
        }
        let failed = problems.failed();
        Loaded {
            unit: unit.filter(|_| !failed),
            problems: problems.into_list(),
            masked: false,
        }
    }

    /// Whether units of that kind, once they are read, can be used.
    fn takes(&self, kind: UnitType) -> bool {
        !self.supervised || support::is_run(kind)
    }

    fn apply_drop_ins(
        &self,
        draft: &mut Draft,
        expander: Expander<'_>,
        suffix: &str,
        applied: &mut Vec<String>,
        problems: &mut Problems,
    ) {
        for file in self.drop_ins(expander.name, suffix) {
            let path: Arc<str> = file.as_str().into();
            let masked = || {
                self.store
                    .link_target(&file)
                    .is_some_and(|target| target == "/dev/null")
            };
            match self.store.read(&file) {
                Some(text) if text.is_empty() => {}
                Some(text) => {
                    apply_file(draft, expander, &path, &text, problems);
                    applied.push(file);
                }
                None if masked() => {}
                None => problems.push(
                    &path,
                    Position::default(),
                    Severity::Warning,
                    "cannot be read, ignored",
                ),
            }
        }
    }

    /// Adds what `.wants`, `.requires` and `.upholds` directories and `.container` files link to this unit.
    fn add_linked(&self, draft: &mut Draft, name: &UnitName, problems: &mut Problems) {
        let template = name.template();
        let aliases = self.names_of(name);
        let names = std::iter::once(name)
            .chain(template.as_ref())
            .chain(&aliases);
        for of in names {
            for (suffix, relation) in [
                ("wants", Relation::Wants),
                ("requires", Relation::Requires),
                ("upholds", Relation::Upholds),
            ] {
                self.add_linked_as(draft, name, &format!("{of}.{suffix}"), relation, problems);
            }
            draft
                .dependencies
                .extend(self.installed.get(of).into_iter().flatten().cloned());
        }
    }

    fn add_linked_as(
        &self,
        draft: &mut Draft,
        name: &UnitName,
        directory: &str,
        relation: Relation,
        problems: &mut Problems,
    ) {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (_, path) in self.subdirectories(directory) {
            for entry in self.store.list(&path) {
                let link = format!("{path}/{}", entry.name);
                seen.entry(entry.name).or_insert(link);
            }
        }
        for (entry, link) in seen {
            if self
                .store
                .link_target(&link)
                .is_some_and(|target| target == "/dev/null")
            {
                continue;
            }
            match UnitName::parse(&entry) {
                Ok(on) if on == *name => {}
                Ok(on) if !on.is_template() => draft.dependencies.push(Dependency { relation, on }),
                Ok(_) => problems.push(
                    &link.as_str().into(),
                    Position::default(),
                    Severity::Warning,
                    "a template cannot be started, ignored",
                ),
                Err(error) => {
                    problems.push(
                        &link.as_str().into(),
                        Position::default(),
                        Severity::Warning,
                        format!("{error}, ignored"),
                    );
                }
            }
        }
    }
}

fn apply_file(
    draft: &mut Draft,
    expander: Expander<'_>,
    path: &Arc<str>,
    text: &str,
    problems: &mut Problems,
) {
    if text.len() > MAX_FILE_BYTES {
        let message = format!("is larger than {MAX_FILE_BYTES} bytes");
        problems.push(path, Position::default(), Severity::Error, message);
        return;
    }
    let assignments = syntax::parse(path, text, problems);
    directive::apply(
        draft,
        &assignments,
        &mut Reading {
            path,
            expander,
            problems,
        },
    );
}

/// Loads one unit; see [`Loader`] for loading several.
pub fn load<S: UnitStore>(
    name: &UnitName,
    directories: &[&str],
    store: &S,
    context: &SpecifierContext,
) -> Loaded {
    Loader::new(directories, store, context).load(name)
}
