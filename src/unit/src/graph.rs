//! The units that are known, how they relate, and what state each is in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::load::Loaded;
use crate::name::{UnitName, escape_path};
use crate::problem::{Problem, Severity};
use crate::unit::{Kind, Relation, Unit};

/// How many units one machine may have: templates that name each other must not fill the memory.
pub const MAX_UNITS: usize = 16_384;

/// A unit's place in the [`Graph`]; stays the same for the graph's life, so a supervisor can use it as an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UnitId(u32);

impl UnitId {
    /// The index, from 0, without gaps.
    #[must_use]
    pub fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// What the supervisor says a unit is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActiveState {
    /// Not running.
    #[default]
    Inactive,
    /// On its way up, waiting for a restart included.
    Activating,
    /// Up.
    Active,
    /// Up, reading its configuration again.
    Reloading,
    /// On its way down.
    Deactivating,
    /// Not running, and the last run ended badly.
    Failed,
}

impl ActiveState {
    /// Up: active or reloading.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Active | Self::Reloading)
    }

    /// Down: nothing of it runs.
    #[must_use]
    pub fn is_down(self) -> bool {
        matches!(self, Self::Inactive | Self::Failed)
    }

    /// The word that status lines use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Reloading => "reloading",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        }
    }
}

/// What became of a unit's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadState {
    /// The unit can be used.
    Loaded(Arc<Unit>),
    /// There is no file of that name.
    NotFound,
    /// It was made unstartable by an empty file or a link to `/dev/null`.
    Masked,
    /// Its files hold an error: the first one.
    Failed(Problem),
}

/// [`Relation`]s seen from both ends; "this … the other".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "each is the relation of the same name or its reverse"
)]
pub enum Edge {
    Wants,
    WantedBy,
    Requires,
    RequiredBy,
    Requisite,
    RequisiteOf,
    BindsTo,
    BoundBy,
    PartOf,
    ConsistsOf,
    Upholds,
    UpheldBy,
    Conflicts,
    ConflictedBy,
    After,
    Before,
    OnFailure,
    OnFailureOf,
    OnSuccess,
    OnSuccessOf,
    PropagatesReloadTo,
    ReloadPropagatedFrom,
    PropagatesStopTo,
    StopPropagatedFrom,
    Triggers,
    TriggeredBy,
}

impl Relation {
    /// The edge at this unit and the one at the other.
    fn edges(self) -> (Edge, Edge) {
        match self {
            Self::Wants => (Edge::Wants, Edge::WantedBy),
            Self::Requires => (Edge::Requires, Edge::RequiredBy),
            Self::Requisite => (Edge::Requisite, Edge::RequisiteOf),
            Self::BindsTo => (Edge::BindsTo, Edge::BoundBy),
            Self::PartOf => (Edge::PartOf, Edge::ConsistsOf),
            Self::Upholds => (Edge::Upholds, Edge::UpheldBy),
            Self::Conflicts => (Edge::Conflicts, Edge::ConflictedBy),
            Self::After => (Edge::After, Edge::Before),
            Self::Before => (Edge::Before, Edge::After),
            Self::OnFailure => (Edge::OnFailure, Edge::OnFailureOf),
            Self::OnSuccess => (Edge::OnSuccess, Edge::OnSuccessOf),
            Self::PropagatesReloadTo => (Edge::PropagatesReloadTo, Edge::ReloadPropagatedFrom),
            Self::ReloadPropagatedFrom => (Edge::ReloadPropagatedFrom, Edge::PropagatesReloadTo),
            Self::PropagatesStopTo => (Edge::PropagatesStopTo, Edge::StopPropagatedFrom),
            Self::Triggers => (Edge::Triggers, Edge::TriggeredBy),
            Self::TriggeredBy => (Edge::TriggeredBy, Edge::Triggers),
            Self::StopPropagatedFrom => (Edge::StopPropagatedFrom, Edge::PropagatesStopTo),
        }
    }
}

#[derive(Debug)]
struct Node {
    name: UnitName,
    load: LoadState,
    state: ActiveState,
    edges: Vec<(Edge, UnitId)>,
    /// Forgotten: the place is free for another unit.
    is_vacant: bool,
}

/// All known units; grows by [`Graph::load`].
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    by_name: HashMap<UnitName, UnitId>,
    vacant: Vec<UnitId>,
    problems: Vec<Problem>,
}

/// The function that finds a unit's files, normally [`crate::Loader::load`].
pub type Source<'a> = &'a mut dyn FnMut(&UnitName) -> Loaded;

impl Graph {
    /// A graph without units.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many units are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no unit is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Every unit, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = UnitId> + use<> {
        (0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)).map(UnitId)
    }

    /// The unit of that name or alias, if it was loaded before.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<UnitId> {
        self.by_name.get(name).copied()
    }

    /// Finds a unit and everything that it names, loading what is not known yet.
    ///
    /// The result always exists; [`Graph::load_state`] tells whether it can be used. What was wrong with the files is
    /// given by [`Graph::take_problems`].
    pub fn load(&mut self, name: &UnitName, source: Source<'_>) -> UnitId {
        let mut fresh = VecDeque::new();
        let id = self.ensure(name, source, &mut fresh);
        self.connect_all(fresh, source);
        id
    }

    /// Reads every known unit again; states stay, [`crate::Jobs::graph_changed`] must follow.
    pub fn reload(&mut self, source: Source<'_>) {
        let mut fresh = VecDeque::new();
        let (mut names, mut aliases) = (Vec::new(), Vec::new());
        // Which other names lead to a unit may have changed too.
        self.by_name = self
            .ids()
            .filter(|id| !self.is_vacant(*id))
            .map(|id| (self.name(id).clone(), id))
            .collect();
        for id in self.ids() {
            let Some(node) = self.nodes.get_mut(id.index()) else {
                continue;
            };
            if node.is_vacant {
                continue;
            }
            node.edges.clear();
            let loaded = source(&node.name);
            let real = loaded.unit.as_ref().map(|u| u.name.clone());
            match real {
                // What had its own file is now only a name of another unit.
                Some(real) if real != node.name && !node.state.is_up() => {
                    node.load = LoadState::NotFound;
                    aliases.push((node.name.clone(), real));
                }
                _ => {
                    let own = loaded.unit.iter().filter(|unit| unit.name == node.name);
                    let others = own.flat_map(|unit| &unit.aliases);
                    names.extend(others.map(|alias| (alias.clone(), id)));
                    node.load = load_state(loaded, &mut self.problems);
                }
            }
            fresh.push_back(id);
        }
        for (alias, id) in names {
            self.by_name.entry(alias).or_insert(id);
        }
        for (alias, real) in aliases {
            let id = self.ensure(&real, source, &mut fresh);
            self.by_name.insert(alias, id);
        }
        self.connect_all(fresh, source);
    }

    /// Reads the files of one known unit again, which had none before; [`crate::Jobs::graph_changed`] must follow.
    pub fn load_again(&mut self, id: UnitId, source: Source<'_>) {
        let Some(node) = self.nodes.get_mut(id.index()) else {
            return;
        };
        let loaded = source(&node.name);
        let real = loaded.unit.as_ref().map(|unit| unit.name.clone());
        if let Some(real) = real.filter(|real| *real != node.name) {
            // It is another name of a unit that may be known: what asked for this one finds that from now on.
            let alias = node.name.clone();
            let other = self.load(&real, source);
            self.by_name.insert(alias, other);
            return;
        }
        node.load = load_state(loaded, &mut self.problems);
        self.connect_all(VecDeque::from([id]), source);
    }

    /// Forgets a unit that no other one names in its files, and that is down; whether it is forgotten. Its place goes to the next
    /// unit that is loaded.
    pub fn forget(&mut self, id: UnitId) -> bool {
        let Some(node) = self.nodes.get(id.index()) else {
            return false;
        };
        if node.is_vacant || !node.state.is_down() || self.is_named(id) {
            return false;
        }
        let others: HashSet<UnitId> = node.edges.iter().map(|(_, other)| *other).collect();
        for other in others {
            if let Some(node) = self.nodes.get_mut(other.index()) {
                node.edges.retain(|(_, to)| *to != id);
            }
        }
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.edges.clear();
            node.load = LoadState::NotFound;
            node.state = ActiveState::Inactive;
            node.is_vacant = true;
        }
        self.by_name.retain(|_, of| *of != id);
        self.vacant.push(id);
        true
    }

    /// Whether another unit's file names this one.
    fn is_named(&self, id: UnitId) -> bool {
        let names: Vec<&UnitName> = self
            .by_name
            .iter()
            .filter(|(_, of)| **of == id)
            .map(|(name, _)| name)
            .collect();
        self.edges(id).iter().any(|(_, other)| {
            self.unit(*other)
                .is_some_and(|unit| unit.dependencies.iter().any(|d| names.contains(&&d.on)))
        })
    }

    /// Whether the place of that index belongs to no unit since [`Graph::forget`].
    #[must_use]
    pub fn is_vacant(&self, id: UnitId) -> bool {
        self.nodes.get(id.index()).is_none_or(|node| node.is_vacant)
    }

    fn ensure(
        &mut self,
        name: &UnitName,
        source: Source<'_>,
        fresh: &mut VecDeque<UnitId>,
    ) -> UnitId {
        if let Some(id) = self.by_name.get(name) {
            return *id;
        }
        let loaded = if self.nodes.len() < MAX_UNITS || !self.vacant.is_empty() {
            source(name)
        } else {
            Loaded::refused(name, format!("more than {MAX_UNITS} units"))
        };
        let real = loaded
            .unit
            .as_ref()
            .map_or_else(|| name.clone(), |u| u.name.clone());
        if real != *name
            && let Some(id) = self.by_name.get(&real)
        {
            let id = *id;
            self.by_name.insert(name.clone(), id);
            return id;
        }
        let aliases = loaded
            .unit
            .as_ref()
            .map(|u| u.aliases.clone())
            .unwrap_or_default();
        let load = load_state(loaded, &mut self.problems);
        let node = Node {
            name: real.clone(),
            load,
            state: ActiveState::Inactive,
            edges: Vec::new(),
            is_vacant: false,
        };
        let next = UnitId(u32::try_from(self.nodes.len()).unwrap_or(u32::MAX));
        let id = self.vacant.pop().unwrap_or(next);
        match self.nodes.get_mut(id.index()) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        for alias in aliases {
            self.by_name.entry(alias).or_insert(id);
        }
        self.by_name.insert(name.clone(), id);
        self.by_name.insert(real, id);
        fresh.push_back(id);
        id
    }

    fn connect_all(&mut self, mut fresh: VecDeque<UnitId>, source: Source<'_>) {
        let mut targets = Vec::new();
        while let Some(id) = fresh.pop_front() {
            let Some(unit) = self.unit(id).cloned() else {
                continue;
            };
            if unit.default_dependencies && unit.kind == Kind::Target {
                targets.push(id);
            }
            for dependency in &unit.dependencies {
                let other = self.ensure(&dependency.on, source, &mut fresh);
                self.connect(id, dependency.relation, other);
            }
            for name in mounts_of(&unit.requires_mounts_for) {
                // Most directories are not mounted by a unit: what has no file gets no place here either.
                if !self.by_name.contains_key(&name) && source(&name) == Loaded::default() {
                    continue;
                }
                let mount = self.ensure(&name, source, &mut fresh);
                if self.load_state(mount) != &LoadState::NotFound {
                    self.connect(id, Relation::Requires, mount);
                    self.connect(id, Relation::After, mount);
                }
            }
        }
        for target in targets {
            self.order_after_members(target);
        }
    }

    /// A target is reached when its members are, unless a member is ordered after it or opted out.
    fn order_after_members(&mut self, target: UnitId) {
        let mut ordered: HashSet<UnitId> = self
            .edges(target)
            .iter()
            .filter(|(edge, _)| matches!(edge, Edge::After | Edge::Before))
            .map(|(_, other)| *other)
            .collect();
        let members: Vec<UnitId> = self
            .edges(target)
            .iter()
            .filter(|(edge, _)| {
                matches!(
                    edge,
                    Edge::Wants | Edge::Requires | Edge::Requisite | Edge::BindsTo
                )
            })
            .map(|(_, other)| *other)
            .collect();
        for member in members {
            let willing = self
                .unit(member)
                .is_some_and(|unit| unit.default_dependencies);
            if willing && ordered.insert(member) {
                self.connect(target, Relation::After, member);
            }
        }
    }

    fn connect(&mut self, from: UnitId, relation: Relation, to: UnitId) {
        if from == to {
            return;
        }
        let (here, there) = relation.edges();
        if let Some(node) = self.nodes.get_mut(from.index()) {
            node.edges.push((here, to));
        }
        if let Some(node) = self.nodes.get_mut(to.index()) {
            node.edges.push((there, from));
        }
    }

    /// The unit's real name; of an unknown id, an arbitrary valid name.
    #[must_use]
    pub fn name(&self, id: UnitId) -> &UnitName {
        static UNKNOWN: std::sync::LazyLock<UnitName> = std::sync::LazyLock::new(UnitName::unknown);
        self.nodes
            .get(id.index())
            .map_or(&UNKNOWN, |node| &node.name)
    }

    /// The unit, if its files are good.
    #[must_use]
    pub fn unit(&self, id: UnitId) -> Option<&Arc<Unit>> {
        match self.load_state(id) {
            LoadState::Loaded(unit) => Some(unit),
            _ => None,
        }
    }

    /// What became of the unit's files.
    #[must_use]
    pub fn load_state(&self, id: UnitId) -> &LoadState {
        self.nodes
            .get(id.index())
            .map_or(&LoadState::NotFound, |node| &node.load)
    }

    /// What the supervisor said last.
    #[must_use]
    pub fn state(&self, id: UnitId) -> ActiveState {
        self.nodes
            .get(id.index())
            .map_or(ActiveState::Inactive, |node| node.state)
    }

    /// Notes what a unit is doing now. To be called before [`crate::Jobs::finished`] for the same change.
    pub fn set_state(&mut self, id: UnitId, state: ActiveState) {
        if let Some(node) = self.nodes.get_mut(id.index()) {
            node.state = state;
        }
    }

    /// All edges of a unit; the same one may appear more than once.
    #[must_use]
    pub fn edges(&self, id: UnitId) -> &[(Edge, UnitId)] {
        self.nodes.get(id.index()).map_or(&[], |node| &node.edges)
    }

    /// The units at the other end of one kind of edge.
    pub fn related(&self, id: UnitId, edge: Edge) -> impl Iterator<Item = UnitId> {
        self.edges(id)
            .iter()
            .filter(move |(e, _)| *e == edge)
            .map(|(_, other)| *other)
    }

    /// What was found in the files since the last call.
    pub fn take_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }
}

/// The mount units that paths could lie in: that of each path and of all directories above it.
fn mounts_of(paths: &[String]) -> impl Iterator<Item = UnitName> {
    paths.iter().flat_map(|path| {
        std::iter::successors(Some(path.as_str()), |path| {
            path.rsplit_once('/')
                .map(|(parent, _)| parent)
                .filter(|parent| !parent.is_empty())
        })
        .filter_map(|path| UnitName::parse(&format!("{}.mount", escape_path(path))).ok())
    })
}

fn load_state(loaded: Loaded, problems: &mut Vec<Problem>) -> LoadState {
    let first_error = loaded
        .problems
        .iter()
        .find(|p| p.severity == Severity::Error)
        .cloned();
    problems.extend(loaded.problems);
    match (loaded.unit, first_error) {
        _ if loaded.masked => LoadState::Masked,
        (Some(unit), None) => LoadState::Loaded(Arc::new(unit)),
        (_, Some(problem)) => LoadState::Failed(problem),
        (None, None) => LoadState::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Edge, Loader, MemoryStore, SpecifierContext};

    fn name(text: &str) -> UnitName {
        UnitName::parse(text).unwrap()
    }

    #[test]
    fn what_nobody_names_is_forgotten_and_its_place_taken_again() {
        let store = MemoryStore::new()
            .file(
                "/u/a.service",
                "[Unit]\nDefaultDependencies=no\nWants=b.service\n[Service]\nExecStart=/bin/a\n",
            )
            .file(
                "/u/c@.service",
                "[Unit]\nDefaultDependencies=no\nAfter=a.service\n[Service]\nExecStart=/bin/c\n",
            );
        let context = SpecifierContext::default();
        let loader = Loader::new(&["/u"], &store, &context);
        let mut graph = Graph::new();
        let a = graph.load(&name("a.service"), &mut |n| loader.load(n));
        let b = graph.find("b.service").unwrap();
        assert!(!graph.forget(b), "a.service names it");
        let c = graph.load(&name("c@1.service"), &mut |n| loader.load(n));
        assert!(graph.related(a, Edge::Before).eq([c]));
        graph.set_state(c, ActiveState::Active);
        assert!(!graph.forget(c), "it is up");
        graph.set_state(c, ActiveState::Inactive);
        assert!(graph.forget(c));
        assert_eq!(graph.find("c@1.service"), None);
        assert_eq!(graph.related(a, Edge::Before).next(), None);
        let size = graph.len();
        let again = graph.load(&name("c@2.service"), &mut |n| loader.load(n));
        assert_eq!((again, graph.len()), (c, size));
        assert!(!graph.is_vacant(again));
    }

    #[test]
    fn a_name_that_gets_a_file_of_its_own_is_no_alias_any_more() {
        let own = "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/own\n";
        let image = MemoryStore::new()
            .file("/usr/sshd.service", own)
            .link("/usr/ssh.service", "sshd.service")
            .file(
                "/etc/x.service",
                "[Unit]\nDefaultDependencies=no\nWants=ssh.service\n[Service]\nExecStart=/bin/x\n",
            );
        let debian = image
            .clone()
            .file("/lib/ssh.service", own)
            .link("/etc/ssh.service", "/lib/ssh.service");
        let context = SpecifierContext::default();
        let loader = |store| Loader::new(&["/etc", "/usr"], store, &context);
        let mut graph = Graph::new();
        let before = loader(&image);
        let x = graph.load(&name("x.service"), &mut |n| before.load(n));
        let sshd = graph.load(&name("sshd.service"), &mut |n| before.load(n));
        assert!(graph.related(x, Edge::Wants).eq([sshd]));
        let after = loader(&debian);
        graph.reload(&mut |n| after.load(n));
        let ssh = graph.find("ssh.service").unwrap();
        assert_ne!(ssh, sshd);
        assert!(graph.related(x, Edge::Wants).eq([ssh]));
        assert!(graph.unit(sshd).unwrap().aliases.is_empty());
        // And back again.
        graph.reload(&mut |n| before.load(n));
        assert_eq!(graph.find("ssh.service"), Some(sshd));
        assert!(graph.related(x, Edge::Wants).eq([sshd]));
    }

    #[test]
    fn a_unit_that_gets_its_file_late_is_read_alone() {
        let store = MemoryStore::new().file(
            "/u/a.service",
            "[Unit]\nDefaultDependencies=no\nWants=b.service\n[Service]\nExecStart=/bin/a\n",
        );
        let context = SpecifierContext::default();
        let loader = Loader::new(&["/u"], &store, &context);
        let mut graph = Graph::new();
        let a = graph.load(&name("a.service"), &mut |n| loader.load(n));
        let b = graph.find("b.service").unwrap();
        assert_eq!(graph.load_state(b), &LoadState::NotFound);
        let store = store.file(
            "/u/b.service",
            "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/b\n",
        );
        let loader = Loader::new(&["/u"], &store, &context);
        let mut read = Vec::new();
        graph.load_again(b, &mut |n| {
            read.push(n.to_string());
            loader.load(n)
        });
        assert_eq!(read, ["b.service"]);
        assert!(graph.unit(b).is_some());
        assert!(graph.related(a, Edge::Wants).eq([b]));
    }
}
