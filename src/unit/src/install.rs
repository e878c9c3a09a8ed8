//! `[Install]`: the links that enabling, disabling and masking make and remove, as plans that somebody else carries out
//! (`systemctl(1)`, `systemd.unit(5)`, "\[Install\] Section Options").

use std::collections::{BTreeSet, VecDeque};

use crate::load::{Fragment, Loader};
use crate::name::UnitName;
use crate::store::{EntryKind, UnitStore};
use crate::unit::Install;

mod preset;

pub use preset::{Preset, Presets, fits_pattern};

/// One step of a plan; directories that a link needs are made along with it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A symbolic link comes into being, in place of one that leads elsewhere.
    Link {
        /// Where, absolute.
        path: String,
        /// What it holds.
        target: String,
    },
    /// A symbolic link goes.
    Remove {
        /// Where, absolute.
        path: String,
    },
}

/// What a command would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; what is so already is not in it.
    pub changes: Vec<Change>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
    /// What cannot be done of it; the rest is done all the same, and the command fails.
    pub failures: Vec<InstallError>,
}

/// Why a command is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// There is no file for it.
    #[error("unit {0} not found")]
    NotFound(UnitName),
    /// It is masked.
    #[error("unit {0} is masked")]
    Masked(UnitName),
    /// A template has no instance, and no `DefaultInstance=`.
    #[error("{0} is a template without DefaultInstance=, name an instance of it")]
    Template(UnitName),
    /// `Alias=` names a unit of another type, or only one of the two is a template.
    #[error("{unit} cannot have the alias {alias}, which is another kind of name")]
    Alias {
        /// The unit.
        unit: UnitName,
        /// Its wish.
        alias: UnitName,
    },
    /// A file or a link to something else is in the way.
    #[error("{path} exists and {what}")]
    Exists {
        /// The place.
        path: String,
        /// What it is.
        what: String,
    },
    /// A Quadlet file, which is enabled by being there.
    #[error("{0} is made from a .container file, whose [Install] section always holds")]
    Generated(UnitName),
}

/// What `systemctl is-enabled` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Links for it are there.
    Enabled,
    /// It can be enabled, and is not.
    Disabled,
    /// It has no `[Install]`: others start it.
    Static,
    /// It has only `Also=`, and what that names may be enabled.
    Indirect,
    /// The name is a link to another unit.
    Alias,
    /// It must not be started.
    Masked,
    /// Made from a `.container` file.
    Generated,
    /// There is no file.
    NotFound,
}

impl FileState {
    /// The word that `systemctl` uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::Static => "static",
            Self::Indirect => "indirect",
            Self::Alias => "alias",
            Self::Masked => "masked",
            Self::Generated => "generated",
            Self::NotFound => "not-found",
        }
    }

    /// Whether `systemctl is-enabled` ends with 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(
            self,
            Self::Enabled | Self::Static | Self::Indirect | Self::Alias | Self::Generated
        )
    }
}

/// The suffixes of directories whose links start units, with the `[Install]` list that asks for them.
type Wanting = (&'static str, fn(&Install) -> &Vec<UnitName>);
const WANTING: [Wanting; 3] = [
    ("wants", |install| &install.wanted_by),
    ("requires", |install| &install.required_by),
    ("upholds", |install| &install.upheld_by),
];

/// How many units `Also=` may bring along.
const MAX_ALSO: usize = 256;

/// Plans the commands for one directory of links.
#[derive(Debug)]
pub struct Installer<'a, 'b, S> {
    loader: &'a Loader<'b, S>,
    directory: &'a str,
}

impl<'a, 'b, S: UnitStore> Installer<'a, 'b, S> {
    /// `directory` is where links are made: `/etc/systemd/system`, or `/run/systemd/system` for `--runtime`.
    pub fn new(loader: &'a Loader<'b, S>, directory: &'a str) -> Self {
        Self { loader, directory }
    }

    /// `systemctl enable`; with `force`, links that lead elsewhere are replaced.
    ///
    /// # Errors
    /// [`InstallError`] names a unit that is not there, is masked, or is none that is enabled: nothing is done then.
    pub fn enable(&self, names: &[UnitName], force: bool) -> Result<Plan, InstallError> {
        let mut plan = Plan::default();
        for (name, fragment, install) in self.with_also(names, &mut plan)? {
            self.enable_one(&name, &fragment, &install, force, &mut plan);
        }
        plan.changes.dedup();
        Ok(plan)
    }

    /// `systemctl disable`: all links to the units go, also those that no `[Install]` asks for.
    ///
    /// # Errors
    /// As [`Installer::enable`].
    pub fn disable(&self, names: &[UnitName]) -> Result<Plan, InstallError> {
        let mut plan = Plan::default();
        let mut units = BTreeSet::new();
        for (name, _, _) in self.with_also(names, &mut plan)? {
            units.insert(name);
        }
        for (path, entry, target) in self.links() {
            let leads_to = target.rsplit('/').next().unwrap_or_default();
            let named = |name: &UnitName| {
                let instance_of = UnitName::parse(&entry)
                    .ok()
                    .and_then(|entry| entry.template())
                    .is_some_and(|template| template == *name);
                entry == name.as_str()
                    || instance_of
                    || (leads_to == name.as_str() && name.instance().is_none_or(str::is_empty))
            };
            if target != "/dev/null" && units.iter().any(named) {
                plan.changes.push(Change::Remove { path });
            }
        }
        Ok(plan)
    }

    /// `systemctl mask`: also for units that do not exist.
    #[must_use]
    pub fn mask(&self, names: &[UnitName]) -> Plan {
        let mut plan = Plan::default();
        for name in names {
            self.link(name.as_str(), "/dev/null", true, &mut plan);
        }
        plan
    }

    /// `systemctl unmask`.
    #[must_use]
    pub fn unmask(&self, names: &[UnitName]) -> Plan {
        let mut plan = Plan::default();
        for name in names {
            let path = format!("{}/{name}", self.directory);
            if self.loader.store().link_target(&path).as_deref() == Some("/dev/null") {
                plan.changes.push(Change::Remove { path });
            }
        }
        plan
    }

    /// `systemctl preset`: enables or disables as the distribution's presets say.
    ///
    /// # Errors
    /// As [`Installer::enable`].
    pub fn preset(&self, names: &[UnitName], presets: &Presets) -> Result<Plan, InstallError> {
        let mut plan = Plan::default();
        for name in names {
            let one = std::slice::from_ref(name);
            let more = match presets.decide(name) {
                Preset::Enable(instances) if name.is_template() && !instances.is_empty() => {
                    let instances: Vec<UnitName> = instances
                        .iter()
                        .filter_map(|instance| name.with_instance(instance).ok())
                        .collect();
                    self.enable(&instances, true)?
                }
                Preset::Enable(_) => self.enable(one, true)?,
                Preset::Disable => self.disable(one)?,
                Preset::Ignore => Plan::default(),
            };
            plan.changes.extend(more.changes);
            plan.notes.extend(more.notes);
            plan.failures.extend(more.failures);
        }
        Ok(plan)
    }

    /// `systemctl is-enabled`.
    #[must_use]
    pub fn state(&self, name: &UnitName) -> FileState {
        let (real, fragment) = match self.find(name) {
            Ok(found) => found,
            Err(InstallError::Masked(_)) => return FileState::Masked,
            Err(_) => return FileState::NotFound,
        };
        if fragment.container {
            return FileState::Generated;
        }
        if real != *name {
            return FileState::Alias;
        }
        let (install, _) = self.loader.install_section(name, &fragment);
        let linked = self.links().any(|(path, entry, target)| {
            let leads_to = target.rsplit('/').next().unwrap_or_default();
            let wanting = path.rsplit('/').nth(1).is_some_and(|directory| {
                WANTING
                    .iter()
                    .any(|(suffix, _)| directory.ends_with(&format!(".{suffix}")))
            });
            target != "/dev/null"
                && (if wanting {
                    let of_template = name.is_template() && leads_to == name.as_str();
                    entry == name.as_str() || of_template
                } else {
                    leads_to == name.as_str() && entry != name.as_str()
                })
        });
        let asks =
            !install.alias.is_empty() || WANTING.iter().any(|(_, list)| !list(&install).is_empty());
        match (linked, asks) {
            (true, _) => FileState::Enabled,
            (false, true) => FileState::Disabled,
            (false, false) if install.also.is_empty() => FileState::Static,
            (false, false) => FileState::Indirect,
        }
    }

    /// The real unit of a name, and its file.
    fn find(&self, name: &UnitName) -> Result<(UnitName, Fragment), InstallError> {
        let mut name = name.clone();
        // As many hops as a loader follows; one that runs in a circle has no file.
        for _ in 0..8 {
            let Some(fragment) = self.loader.fragment(&name) else {
                return Err(InstallError::NotFound(name));
            };
            let target = match fragment.kind {
                EntryKind::Link => self.loader.store().link_target(&fragment.path),
                _ => None,
            };
            let empty = || self.loader.store().read(&fragment.path).as_deref() == Some("");
            match target.as_deref() {
                Some("/dev/null") => return Err(InstallError::Masked(name)),
                None if empty() => return Err(InstallError::Masked(name)),
                Some(target) => match crate::load::alias_of(&name, target) {
                    Some(real) if self.loader.fragment(&real).is_some() => name = real,
                    _ => return Ok((name, fragment)),
                },
                None => return Ok((name, fragment)),
            }
        }
        Err(InstallError::NotFound(name))
    }

    /// The units with their `[Install]`, and those that `Also=` brings along.
    fn with_also(
        &self,
        names: &[UnitName],
        plan: &mut Plan,
    ) -> Result<Vec<(UnitName, Fragment, Install)>, InstallError> {
        let mut seen: BTreeSet<UnitName> = names.iter().cloned().collect();
        let mut queue: VecDeque<UnitName> = names.iter().cloned().collect();
        let mut out = Vec::new();
        while let Some(name) = queue.pop_front() {
            let (name, fragment) = match self.find(&name) {
                Ok(found) => found,
                // Only what was named itself stops the command.
                Err(error) if !names.contains(&name) => {
                    plan.notes.push(format!("Also=: {error}, ignored"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            if fragment.container {
                return Err(InstallError::Generated(name));
            }
            let (install, _) = self.loader.install_section(&name, &fragment);
            for also in &install.also {
                if seen.len() < MAX_ALSO && seen.insert(also.clone()) {
                    queue.push_back(also.clone());
                }
            }
            out.push((name, fragment, install));
        }
        Ok(out)
    }

    fn enable_one(
        &self,
        name: &UnitName,
        fragment: &Fragment,
        install: &Install,
        force: bool,
        plan: &mut Plan,
    ) {
        let asks =
            !install.alias.is_empty() || WANTING.iter().any(|(_, list)| !list(install).is_empty());
        if !asks {
            if install.also.is_empty() {
                plan.notes.push(format!(
                    "{name} has no [Install] section: it is started by others, and enabling it does nothing"
                ));
            }
            return;
        }
        for alias in &install.alias {
            let alike = alias.kind() == name.kind()
                && alias.is_template() == name.is_template()
                && alias.instance().is_some() == name.instance().is_some();
            if !alike {
                plan.failures.push(InstallError::Alias {
                    unit: name.clone(),
                    alias: alias.clone(),
                });
                continue;
            }
            self.link(alias.as_str(), &fragment.path, force, plan);
        }
        let wanted = WANTING.iter().any(|(_, list)| !list(install).is_empty());
        if !wanted {
            return;
        }
        let linked = match (name.is_template(), &install.default_instance) {
            (false, _) => Some(name.clone()),
            (true, Some(instance)) => name.with_instance(instance).ok(),
            (true, None) => None,
        };
        let Some(linked) = linked else {
            plan.failures.push(InstallError::Template(name.clone()));
            return;
        };
        for (suffix, list) in WANTING {
            for by in list(install) {
                let place = format!("{by}.{suffix}/{linked}");
                self.link(&place, &fragment.path, true, plan);
            }
        }
    }

    /// Plans a link at a place below the directory.
    fn link(&self, place: &str, target: &str, force: bool, plan: &mut Plan) {
        let path = format!("{}/{place}", self.directory);
        if path == target {
            return;
        }
        let store = self.loader.store();
        let in_the_way = match store.link_target(&path) {
            Some(old) if old == target => return,
            Some(old) => (!force).then(|| format!("leads to {old}")),
            None => store.read(&path).map(|_| "is a file".to_owned()),
        };
        match in_the_way {
            Some(what) => plan.failures.push(InstallError::Exists { path, what }),
            None => plan.changes.push(Change::Link {
                path,
                target: target.to_owned(),
            }),
        }
    }

    /// Every link in the directory and in the directories of links in it: its path, its own name, what it holds.
    fn links(&self) -> impl Iterator<Item = (String, String, String)> {
        let store = self.loader.store();
        let link = |directory: &str, name: String| {
            let path = format!("{directory}/{name}");
            let target = store.link_target(&path)?;
            Some((path, name, target))
        };
        let mut out = Vec::new();
        for entry in store.list(self.directory) {
            match entry.kind {
                EntryKind::Link => out.extend(link(self.directory, entry.name)),
                EntryKind::Directory
                    if WANTING
                        .iter()
                        .any(|(suffix, _)| entry.name.ends_with(&format!(".{suffix}"))) =>
                {
                    let directory = format!("{}/{}", self.directory, entry.name);
                    let entries = store.list(&directory).into_iter();
                    out.extend(entries.filter_map(|entry| link(&directory, entry.name)));
                }
                _ => {}
            }
        }
        out.sort();
        out.into_iter()
    }
}
