//! From a request to a consistent set of jobs.
//!
//! A plan is made by following the edges from the requested unit. What is reached only through `Wants=` (or the like)
//! is *soft*: it may be left out when it cannot be loaded, contradicts something, or closes an ordering cycle. What is
//! reached by requirements alone is *hard*: if it is impossible, so is the request. Whenever something is left out the
//! plan is made anew without it, so that nothing stays in it that only the left-out unit wanted.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::cycle::find_cycle;
use super::vocabulary::write_cycle;
use super::{Cause, Edge, Graph, JobKind, Jobs, Mode, Request, UnitId};
use crate::graph::{ActiveState, LoadState};
use crate::name::UnitName;

/// Why a request cannot be fulfilled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// There is no such unit.
    #[error("unit {0} not found")]
    NotFound(UnitName),
    /// The unit is masked.
    #[error("unit {0} is masked")]
    Masked(UnitName),
    /// Its files hold an error.
    #[error("unit {0} could not be loaded: {1}")]
    NotLoaded(UnitName, String),
    /// `NAME@.TYPE` needs an instance.
    #[error("{0} is a template, name an instance of it")]
    Template(UnitName),
    /// A unit that it requires is impossible.
    #[error("{unit} requires {needed}: {cause}")]
    Dependency {
        /// The requested unit.
        unit: UnitName,
        /// What it requires.
        needed: UnitName,
        /// What is wrong with that.
        cause: Cause,
    },
    /// The same request would have to start and stop this unit.
    #[error("{unit} would have to be both started and stopped{}", because_of(.with.as_ref()))]
    Contradiction {
        /// The unit.
        unit: UnitName,
        /// A unit of the same request that conflicts with it.
        with: Option<UnitName>,
    },
    /// Units that are all required are ordered in a circle.
    #[error("ordering cycle: {}", Circle(.0))]
    Cycle(Vec<UnitName>),
    /// A contrary job exists, and the mode forbids to cancel it.
    #[error("a {} of {unit} is in the way", .pending.as_str())]
    Destructive {
        /// The unit.
        unit: UnitName,
        /// The job that it has.
        pending: JobKind,
    },
    /// A job that cannot be cancelled stands against it, such as a shutdown's.
    #[error("a {} of {unit} cannot be cancelled", .pending.as_str())]
    Irreversible {
        /// The unit.
        unit: UnitName,
        /// The job that it has.
        pending: JobKind,
    },
    /// Only a unit that is up can be reloaded.
    #[error("{0} is not active")]
    NotActive(UnitName),
    /// The unit lacks `AllowIsolate=yes`.
    #[error("{0} does not allow isolation")]
    NotIsolatable(UnitName),
}

fn because_of(with: Option<&UnitName>) -> String {
    with.map(|with| format!(": it conflicts with {with}"))
        .unwrap_or_default()
}

struct Circle<'a>(&'a [UnitName]);

impl fmt::Display for Circle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_cycle(f, self.0)
    }
}

/// What [`Jobs::request`] carries out.
pub(super) struct Plan {
    /// In the order in which units were reached.
    pub(super) jobs: Vec<(UnitId, JobKind)>,
    pub(super) left_out: Vec<(UnitId, Cause)>,
}

/// How badly a job is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Need {
    #[default]
    None,
    /// May be left out.
    Soft,
    /// Without it the request fails.
    Hard,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    start: Need,
    restart: Need,
    reload: Need,
    stop: Need,
    /// Some unit that the plan starts declares `Conflicts=` with this.
    stop_declared: bool,
}

impl Entry {
    fn need(&mut self, kind: JobKind) -> &mut Need {
        match kind {
            JobKind::Start => &mut self.start,
            JobKind::Restart => &mut self.restart,
            JobKind::Reload => &mut self.reload,
            JobKind::Stop => &mut self.stop,
        }
    }

    /// How badly the unit has to be up in the end.
    fn up(self) -> Need {
        self.start.max(self.restart)
    }

    fn kind(self) -> Option<JobKind> {
        if self.stop > Need::None {
            Some(JobKind::Stop)
        } else if self.restart > Need::None {
            Some(JobKind::Restart)
        } else if self.start > Need::None {
            Some(JobKind::Start)
        } else if self.reload > Need::None {
            Some(JobKind::Reload)
        } else {
            None
        }
    }
}

/// A half of what a plan may do with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Up,
    Down,
}

type Bans = HashMap<(UnitId, Side), Cause>;

struct Planner<'a> {
    graph: &'a Graph,
    anchor: UnitId,
    bans: Bans,
    entries: Vec<Entry>,
    /// Units with an entry, in the order in which they were reached.
    reached: Vec<UnitId>,
    queue: VecDeque<(UnitId, JobKind, Need)>,
}

/// Makes the plan for a request.
pub(super) fn plan(
    jobs: &Jobs,
    graph: &Graph,
    request: Request,
    unit: UnitId,
    mode: Mode,
) -> Result<Plan, TransactionError> {
    let state = graph.state(unit);
    let name = || graph.name(unit).clone();
    let kind = match request {
        Request::Start => JobKind::Start,
        Request::Stop => JobKind::Stop,
        Request::Restart => JobKind::Restart,
        Request::TryRestart if state.is_down() => return Err(TransactionError::NotActive(name())),
        Request::TryRestart => JobKind::Restart,
        Request::Reload if !state.is_up() => return Err(TransactionError::NotActive(name())),
        Request::Reload => JobKind::Reload,
    };
    if kind != JobKind::Stop && name().is_template() {
        return Err(TransactionError::Template(name()));
    }
    if mode == Mode::Isolate && !graph.unit(unit).is_none_or(|u| u.allow_isolate) {
        return Err(TransactionError::NotIsolatable(name()));
    }
    let mut planner = Planner {
        graph,
        anchor: unit,
        bans: Bans::new(),
        entries: Vec::new(),
        reached: Vec::new(),
        queue: VecDeque::new(),
    };
    let mut chosen;
    loop {
        planner.expand(kind, mode)?;
        if mode != Mode::IgnoreDependencies && planner.ban_contradiction()? {
            continue;
        }
        chosen = planner.choose(jobs);
        if mode == Mode::Isolate {
            planner.add_isolation(jobs, &mut chosen);
        }
        if mode == Mode::IgnoreDependencies || !planner.ban_cycle(jobs, &chosen)? {
            break;
        }
    }
    check_installed(jobs, graph, &chosen, mode)?;
    let mut left_out: Vec<(UnitId, Cause)> = planner
        .bans
        .into_iter()
        .filter(|((_, side), _)| *side == Side::Up)
        .map(|((unit, _), cause)| (unit, cause))
        .collect();
    left_out.sort_by_key(|(unit, _)| *unit);
    Ok(Plan {
        jobs: chosen,
        left_out,
    })
}

/// Refuses a plan that would cancel what must not be cancelled.
fn check_installed(
    jobs: &Jobs,
    graph: &Graph,
    chosen: &[(UnitId, JobKind)],
    mode: Mode,
) -> Result<(), TransactionError> {
    for (unit, kind) in chosen {
        let Some(job) = jobs.job_of(*unit) else {
            continue;
        };
        if job.kind.merged(*kind).is_some() {
            continue;
        }
        let (unit, pending) = (graph.name(*unit).clone(), job.kind);
        if job.irreversible {
            return Err(TransactionError::Irreversible { unit, pending });
        }
        if mode == Mode::Fail {
            return Err(TransactionError::Destructive { unit, pending });
        }
    }
    Ok(())
}

impl Planner<'_> {
    /// Follows the edges from the requested unit.
    fn expand(&mut self, kind: JobKind, mode: Mode) -> Result<(), TransactionError> {
        loop {
            self.entries.clear();
            self.entries.resize(self.graph.len(), Entry::default());
            self.reached.clear();
            self.queue.clear();
            self.queue.push_back((self.anchor, kind, Need::Hard));
            let mut impossible = Vec::new();
            while let Some((unit, kind, need)) = self.queue.pop_front() {
                self.visit(unit, kind, need, mode, &mut impossible);
            }
            if impossible.is_empty() {
                return Ok(());
            }
            for (unit, cause) in impossible {
                self.ban_up(unit, cause)?;
            }
        }
    }

    fn visit(
        &mut self,
        unit: UnitId,
        kind: JobKind,
        need: Need,
        mode: Mode,
        impossible: &mut Vec<(UnitId, Cause)>,
    ) {
        let side = if kind == JobKind::Stop {
            Side::Down
        } else {
            Side::Up
        };
        if self.bans.contains_key(&(unit, side)) {
            return;
        }
        let Some(entry) = self.entries.get_mut(unit.index()) else {
            return;
        };
        let fresh = entry.kind().is_none();
        let known = entry.need(kind);
        if *known >= need {
            return;
        }
        *known = need;
        if fresh {
            self.reached.push(unit);
        }
        if side == Side::Up
            && let Some(cause) = self.unusable(unit)
        {
            impossible.push((unit, cause));
            return;
        }
        if mode == Mode::IgnoreDependencies {
            return;
        }
        for (edge, other) in self.graph.edges(unit) {
            let state = self.graph.state(*other);
            match (kind, edge) {
                (JobKind::Start | JobKind::Restart, Edge::Requires | Edge::BindsTo) => {
                    self.queue.push_back((*other, JobKind::Start, need));
                }
                (JobKind::Start | JobKind::Restart, Edge::Wants | Edge::Upholds) => {
                    self.queue.push_back((*other, JobKind::Start, Need::Soft));
                }
                (JobKind::Start | JobKind::Restart, Edge::Conflicts) => {
                    if let Some(entry) = self.entries.get_mut(other.index()) {
                        entry.stop_declared = true;
                    }
                    self.queue.push_back((*other, JobKind::Stop, need));
                }
                (JobKind::Start | JobKind::Restart, Edge::ConflictedBy) => {
                    self.queue.push_back((*other, JobKind::Stop, Need::Soft));
                }
                (
                    JobKind::Stop,
                    Edge::RequiredBy
                    | Edge::BoundBy
                    | Edge::RequisiteOf
                    | Edge::ConsistsOf
                    | Edge::PropagatesStopTo,
                ) => self.queue.push_back((*other, JobKind::Stop, need)),
                (
                    JobKind::Restart,
                    Edge::RequiredBy | Edge::BoundBy | Edge::RequisiteOf | Edge::ConsistsOf,
                ) if !state.is_down() => self.queue.push_back((*other, JobKind::Restart, need)),
                (JobKind::Reload, Edge::PropagatesReloadTo) if state.is_up() => {
                    self.queue.push_back((*other, JobKind::Reload, Need::Soft));
                }
                _ => {}
            }
        }
    }

    /// Why a unit cannot be brought up at all.
    fn unusable(&self, unit: UnitId) -> Option<Cause> {
        match self.graph.load_state(unit) {
            LoadState::Loaded(_) => None,
            LoadState::NotFound => Some(Cause::NotFound),
            LoadState::Masked => Some(Cause::Masked),
            LoadState::Failed(problem) => Some(Cause::NotLoaded(problem.to_string())),
        }
    }

    /// Leaves a unit's start out, and the starts of all that require it.
    fn ban_up(&mut self, unit: UnitId, cause: Cause) -> Result<(), TransactionError> {
        if unit == self.anchor {
            return Err(self.refusal(cause));
        }
        let (root, root_cause) = (unit, cause.clone());
        let mut queue = VecDeque::from([(unit, cause)]);
        while let Some((unit, cause)) = queue.pop_front() {
            if self.bans.contains_key(&(unit, Side::Up)) {
                continue;
            }
            let needing: Vec<UnitId> = self
                .graph
                .edges(unit)
                .iter()
                .filter(|(edge, _)| matches!(edge, Edge::RequiredBy | Edge::BoundBy))
                .map(|(_, other)| *other)
                .filter(|other| {
                    self.entries
                        .get(other.index())
                        .is_some_and(|e| e.up() > Need::None)
                })
                .collect();
            for other in needing {
                if other == self.anchor {
                    return Err(TransactionError::Dependency {
                        unit: self.graph.name(other).clone(),
                        needed: self.graph.name(root).clone(),
                        cause: root_cause,
                    });
                }
                let unit = self.graph.name(unit).clone();
                queue.push_back((other, Cause::Dependency { unit, result: None }));
            }
            self.bans.insert((unit, Side::Up), cause);
        }
        Ok(())
    }

    fn refusal(&self, cause: Cause) -> TransactionError {
        let name = self.graph.name(self.anchor).clone();
        match cause {
            Cause::NotFound => TransactionError::NotFound(name),
            Cause::Masked => TransactionError::Masked(name),
            Cause::NotLoaded(text) => TransactionError::NotLoaded(name, text),
            Cause::Cycle(units) => TransactionError::Cycle(units),
            Cause::ConflictsWith(with) => TransactionError::Contradiction {
                unit: name,
                with: Some(with),
            },
            _ => TransactionError::Contradiction {
                unit: name,
                with: None,
            },
        }
    }

    /// Finds a unit that the plan both starts and stops, and leaves one of the two out.
    fn ban_contradiction(&mut self) -> Result<bool, TransactionError> {
        let clashes = || {
            self.reached.iter().copied().filter_map(|unit| {
                let entry = *self.entries.get(unit.index())?;
                (entry.stop > Need::None && entry.up().max(entry.reload) > Need::None)
                    .then_some((unit, entry))
            })
        };
        // Other clashes may only follow from the one that a unit declares.
        let declared = clashes().find(|(_, entry)| entry.stop_declared);
        let Some((unit, entry)) = declared.or_else(|| clashes().next()) else {
            return Ok(false);
        };
        let up = entry.up();
        let planned_conflict = |edge: Edge| {
            self.graph.related(unit, edge).find(|other| {
                self.entries
                    .get(other.index())
                    .is_some_and(|e| e.up() > Need::None)
            })
        };
        if up == Need::Hard && entry.stop == Need::Hard {
            let with =
                planned_conflict(Edge::ConflictedBy).or_else(|| planned_conflict(Edge::Conflicts));
            return Err(TransactionError::Contradiction {
                unit: self.graph.name(unit).clone(),
                with: with.map(|with| self.graph.name(with).clone()),
            });
        }
        // Equal needs: the unit that declares the conflict is the one that was written with the other in mind.
        let keep_stop = entry.stop > up || (entry.stop == up && entry.stop_declared);
        if keep_stop {
            let rival =
                planned_conflict(Edge::ConflictedBy).or_else(|| planned_conflict(Edge::Conflicts));
            let name = self.graph.name(rival.unwrap_or(unit)).clone();
            self.ban_up(unit, Cause::ConflictsWith(name))?;
        } else {
            let declaring: Vec<UnitId> = self
                .graph
                .related(unit, Edge::ConflictedBy)
                .filter(|other| {
                    self.entries
                        .get(other.index())
                        .is_some_and(|e| e.up() > Need::None)
                })
                .collect();
            let name = self.graph.name(unit).clone();
            self.bans
                .insert((unit, Side::Down), Cause::ConflictsWith(name.clone()));
            for other in declaring {
                self.ban_up(other, Cause::ConflictsWith(name.clone()))?;
            }
        }
        Ok(true)
    }

    /// The jobs that are worth having: what is already so, and has no contrary job, needs none.
    fn choose(&self, jobs: &Jobs) -> Vec<(UnitId, JobKind)> {
        let mut chosen = Vec::with_capacity(self.reached.len());
        for unit in &self.reached {
            let Some(kind) = self.entries.get(unit.index()).and_then(|e| e.kind()) else {
                continue;
            };
            let state = self.graph.state(*unit);
            let contrary = jobs
                .job_of(*unit)
                .is_some_and(|job| job.kind.merged(kind).is_none());
            let done = match kind {
                JobKind::Start => state.is_up(),
                JobKind::Stop => state.is_down(),
                JobKind::Restart | JobKind::Reload => false,
            };
            if *unit == self.anchor || contrary || !done {
                chosen.push((*unit, kind));
            }
        }
        chosen
    }

    /// Stops everything that the plan does not bring up.
    fn add_isolation(&self, jobs: &Jobs, chosen: &mut Vec<(UnitId, JobKind)>) {
        for unit in self.graph.ids() {
            let kept = self.graph.unit(unit).is_some_and(|u| u.ignore_on_isolate);
            let planned = self
                .entries
                .get(unit.index())
                .is_some_and(|e| e.kind().is_some());
            let idle =
                self.graph.state(unit) == ActiveState::Inactive && jobs.job_of(unit).is_none();
            if !(kept || planned || idle) {
                chosen.push((unit, JobKind::Stop));
            }
        }
    }

    /// Looks for an ordering cycle among the plan's jobs and those that exist; leaves a soft one of them out.
    ///
    /// Jobs that go down always precede jobs that go up, so each of the two sets must be free of cycles by itself. A
    /// restart is first in one and then in the other.
    fn ban_cycle(
        &mut self,
        jobs: &Jobs,
        chosen: &[(UnitId, JobKind)],
    ) -> Result<bool, TransactionError> {
        let mut kinds: Vec<Option<JobKind>> = vec![None; self.graph.len()];
        for job in jobs.iter() {
            if let Some(slot) = kinds.get_mut(job.unit.index()) {
                *slot = Some(job.kind);
            }
        }
        for (unit, kind) in chosen {
            if let Some(slot) = kinds.get_mut(unit.index()) {
                *slot = Some(slot.and_then(|old| old.merged(*kind)).unwrap_or(*kind));
            }
        }
        for side in [Side::Up, Side::Down] {
            let belongs = |unit: UnitId| match kinds.get(unit.index()).copied().flatten() {
                Some(JobKind::Restart) => true,
                Some(JobKind::Stop) => side == Side::Down,
                Some(_) => side == Side::Up,
                None => false,
            };
            let roots = chosen.iter().map(|(unit, _)| *unit);
            let Some(cycle) = find_cycle(self.graph, roots, belongs) else {
                continue;
            };
            let names: Vec<UnitName> = cycle
                .iter()
                .map(|unit| self.graph.name(*unit).clone())
                .collect();
            let soft = cycle.iter().copied().find(|unit| {
                let planned = chosen.iter().any(|(c, _)| c == unit);
                let hard = self.entries.get(unit.index()).is_some_and(|e| match side {
                    Side::Up => e.up() == Need::Hard,
                    Side::Down => e.stop.max(e.restart) == Need::Hard,
                });
                planned && !hard && *unit != self.anchor
            });
            let Some(unit) = soft else {
                return Err(TransactionError::Cycle(names));
            };
            let restarts = self
                .entries
                .get(unit.index())
                .is_some_and(|e| e.restart > Need::None);
            if side == Side::Up || restarts {
                self.ban_up(unit, Cause::Cycle(names))?;
            } else {
                self.bans.insert((unit, Side::Down), Cause::Cycle(names));
            }
            return Ok(true);
        }
        Ok(false)
    }
}
