//! The job engine: what runs next, and why something did not.
//!
//! A *job* is "bring this unit up", "… down" and so on; a unit has at most one. [`Jobs::request`] makes a consistent
//! set of them (a transaction), the rest is ordering. The engine knows no time and starts nothing. A supervisor drives
//! it like this:
//!
//! 1. `graph.load(&name, &mut |n| loader.load(n))`, then `jobs.request(&graph, Request::Start, id, Mode::Replace)`.
//! 2. After that and after every later call: `while let Some(run) = jobs.next_runnable(&graph)` begin what it asks
//!    for, and `while let Some(event) = jobs.next_event()` log it, answer waiting clients. When [`Run::action`] is
//!    - [`Action::Start`]: set the state to `Activating`, check conditions, run the commands. The unit may still be
//!      `Deactivating`: let that end first (`ExecStopPost=` included), then start, without reporting its end.
//!    - [`Action::Stop`]: set the state to `Deactivating`, stop it. It may be `Activating` (the start was cancelled).
//!    - [`Action::Reload`]: run `ExecReload=`.
//! 3. When that has ended, first `graph.set_state(…)`, then `jobs.finished(&graph, job, outcome)`. A job that was
//!    cancelled meanwhile is not known any more; reporting it is harmless. A target's start is done at once.
//! 4. When a unit goes down without a job: `graph.set_state(…)`, `jobs.gone_by_itself(&graph, id)`. An automatic
//!    restart is a `Request::Restart` of the supervisor's own, made when `RestartSec=` is over.
//! 5. After each of these, `jobs.consequences(&graph, id, before)` says what `OnFailure=`, `OnSuccess=`, `Upholds=` and
//!    `StopWhenUnneeded=` ask for; the supervisor makes those requests.
//!
//! Each of these calls costs a few steps per edge of the units that it touches.

use std::collections::{BTreeMap, VecDeque};

use crate::graph::{ActiveState, Edge, Graph, UnitId};

mod consequences;
mod cycle;
mod transaction;
mod vocabulary;

pub use consequences::{Consequence, Why};
pub use transaction::TransactionError;
pub use vocabulary::{
    Action, Cause, Event, JobId, JobKind, JobResult, Mode, Outcome, Request, Run,
};

/// A job that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Its unit.
    pub unit: UnitId,
    /// What remains to be done.
    pub kind: JobKind,
    /// What was asked for.
    pub requested: JobKind,
    /// Given to the supervisor, and not yet reported.
    pub running: bool,
    /// No later request can cancel it.
    pub irreversible: bool,
    ignore_order: bool,
    blockers: u32,
}

/// All jobs.
#[derive(Debug, Default)]
pub struct Jobs {
    last_id: u64,
    /// By [`UnitId::index`].
    slots: Vec<Option<Job>>,
    units: BTreeMap<JobId, UnitId>,
    /// Jobs that had no blocker when they were put here; checked again when taken.
    ready: VecDeque<JobId>,
    running: usize,
    events: VecDeque<Event>,
}

impl Jobs {
    /// An engine without jobs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no job waits or runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// How many jobs wait or run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// The job of a unit.
    #[must_use]
    pub fn job_of(&self, unit: UnitId) -> Option<&Job> {
        self.slots.get(unit.index()).and_then(Option::as_ref)
    }

    /// A job by its number.
    #[must_use]
    pub fn get(&self, job: JobId) -> Option<&Job> {
        self.job_of(*self.units.get(&job)?)
    }

    /// All jobs, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Job> {
        self.units.values().filter_map(|unit| self.job_of(*unit))
    }

    /// The units that a waiting job waits for, for a status line.
    pub fn waits_for<'a>(
        &'a self,
        graph: &'a Graph,
        unit: UnitId,
    ) -> impl Iterator<Item = UnitId> + 'a {
        let job = self.job_of(unit).filter(|job| !job.running);
        graph
            .edges(unit)
            .iter()
            .filter(move |(edge, other)| job.is_some_and(|job| self.blocks(job, *edge, *other)))
            .map(|(_, other)| *other)
    }

    /// Makes the jobs that fulfil a request, or says why that is not possible and changes nothing.
    ///
    /// The job that comes back is the unit's; it may have been there before. It always ends with an [`Event::Ended`],
    /// also where nothing was to do.
    ///
    /// # Errors
    /// [`TransactionError`] names the unit that stands in the way.
    pub fn request(
        &mut self,
        graph: &Graph,
        request: Request,
        unit: UnitId,
        mode: Mode,
    ) -> Result<JobId, TransactionError> {
        let plan = transaction::plan(self, graph, request, unit, mode)?;
        self.events.extend(
            plan.left_out
                .into_iter()
                .map(|(unit, cause)| Event::LeftOut { unit, cause }),
        );
        let mut anchor = JobId(self.last_id);
        for (planned, kind) in plan.jobs {
            let id = self.install(graph, planned, kind, mode);
            if planned == unit {
                anchor = id;
            }
        }
        Ok(anchor)
    }

    /// The next step that can be taken now; `None` until something is reported or requested.
    pub fn next_runnable(&mut self, graph: &Graph) -> Option<Run> {
        loop {
            let Some(id) = self.ready.pop_front() else {
                let id = self.stuck()?;
                if let Some(unit) = self.units.get(&id) {
                    self.events.push_back(Event::OrderBroken { unit: *unit });
                }
                match self.take_step(graph, id, true) {
                    Some(run) => return Some(run),
                    None => continue,
                }
            };
            if let Some(run) = self.take_step(graph, id, false) {
                return Some(run);
            }
        }
    }

    /// The oldest job, when all wait and none is free to run: only a change of units can lead there.
    fn stuck(&self) -> Option<JobId> {
        if self.running > 0 {
            return None;
        }
        self.units.keys().next().copied()
    }

    fn take_step(&mut self, graph: &Graph, id: JobId, force: bool) -> Option<Run> {
        let unit = *self.units.get(&id)?;
        let job = self.job_of(unit)?;
        if job.running || (job.blockers > 0 && !force) {
            return None;
        }
        let state = graph.state(unit);
        let action = match job.kind {
            JobKind::Start if state.is_up() => {
                self.end(graph, unit, JobResult::Done, None);
                return None;
            }
            JobKind::Start => {
                if !job.ignore_order
                    && let Some(missing) = missing_requirement(graph, unit)
                {
                    let cause = Cause::NotActive(graph.name(missing).clone());
                    self.end_start(graph, unit, JobResult::Dependency, Some(cause));
                    return None;
                }
                Action::Start
            }
            JobKind::Stop if state.is_down() => {
                self.end(graph, unit, JobResult::Done, None);
                return None;
            }
            JobKind::Stop => Action::Stop { restarting: false },
            JobKind::Restart if state.is_down() => {
                self.change_kind(graph, unit, JobKind::Start);
                return None;
            }
            JobKind::Restart => Action::Stop { restarting: true },
            JobKind::Reload if !state.is_up() => {
                let cause = Cause::NotActive(graph.name(unit).clone());
                self.end(graph, unit, JobResult::Failed, Some(cause));
                return None;
            }
            JobKind::Reload => Action::Reload,
        };
        if let Some(job) = self.slot(unit) {
            job.running = true;
            self.running = self.running.saturating_add(1);
        }
        Some(Run {
            job: id,
            unit,
            action,
        })
    }

    /// Takes note that a step has ended. Jobs that waited for it become runnable, or end because they needed it.
    pub fn finished(&mut self, graph: &Graph, job: JobId, outcome: Outcome) {
        let Some(unit) = self.units.get(&job).copied() else {
            return;
        };
        let Some(job) = self.job_of(unit).filter(|job| job.running) else {
            return;
        };
        let kind = job.kind;
        if kind == JobKind::Restart && outcome == Outcome::Done {
            self.change_kind(graph, unit, JobKind::Start);
            return;
        }
        let (result, cause) = match outcome {
            Outcome::Done => (JobResult::Done, None),
            Outcome::Skipped(text) => (JobResult::Skipped, Some(Cause::Reported(text))),
            Outcome::Failed(text) => (JobResult::Failed, Some(Cause::Reported(text))),
            Outcome::TimedOut(text) => (JobResult::TimedOut, Some(Cause::Reported(text))),
        };
        if kind == JobKind::Start {
            self.end_start(graph, unit, result, cause);
        } else {
            self.end(graph, unit, result, cause);
        }
    }

    /// Takes note that a unit went down (or failed) while it had no job: what is bound to it, or what it propagates its
    /// stop to, is stopped.
    pub fn gone_by_itself(&mut self, graph: &Graph, unit: UnitId) {
        let bound: Vec<UnitId> = graph
            .edges(unit)
            .iter()
            .filter(|(edge, _)| matches!(edge, Edge::BoundBy | Edge::PropagatesStopTo))
            .map(|(_, other)| *other)
            .filter(|other| {
                !matches!(
                    graph.state(*other),
                    ActiveState::Inactive | ActiveState::Failed
                )
            })
            .collect();
        for other in bound {
            if let Err(error) = self.request(graph, Request::Stop, other, Mode::Replace) {
                let cause = Cause::Reported(error.to_string());
                self.events.push_back(Event::LeftOut { unit: other, cause });
            }
        }
    }

    /// Ends a job on request; what needs it ends as well. The supervisor gives up a step that was running.
    pub fn cancel(&mut self, graph: &Graph, job: JobId) -> bool {
        let Some(unit) = self.units.get(&job).copied() else {
            return false;
        };
        match self.job_of(unit).map(|job| job.kind) {
            Some(JobKind::Start) => {
                self.end_start(graph, unit, JobResult::Canceled, Some(Cause::Canceled))
            }
            Some(_) => self.end(graph, unit, JobResult::Canceled, Some(Cause::Canceled)),
            None => return false,
        }
        true
    }

    /// The next thing to log.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Must follow [`Graph::reload`]: counts anew who waits for whom.
    pub fn graph_changed(&mut self, graph: &Graph) {
        let units: Vec<UnitId> = self.units.values().copied().collect();
        for unit in units {
            self.recount(graph, unit);
        }
    }

    fn slot(&mut self, unit: UnitId) -> Option<&mut Job> {
        self.slots.get_mut(unit.index()).and_then(Option::as_mut)
    }

    /// Puts a job in place, merging it with or replacing what is there.
    fn install(&mut self, graph: &Graph, unit: UnitId, kind: JobKind, mode: Mode) -> JobId {
        if let Some(old) = self.job_of(unit) {
            let id = old.id;
            if old.kind == JobKind::Reload && kind == JobKind::Start && graph.state(unit).is_up() {
                return id;
            }
            match old.kind.merged(kind) {
                Some(merged) => {
                    if merged != old.kind {
                        self.change_kind(graph, unit, merged);
                    }
                    if let Some(job) = self.slot(unit) {
                        job.requested = if kind == JobKind::Restart {
                            kind
                        } else {
                            job.requested
                        };
                        job.irreversible |= mode == Mode::ReplaceIrreversibly;
                    }
                    return id;
                }
                None => self.end(
                    graph,
                    unit,
                    JobResult::Canceled,
                    Some(Cause::Replaced(kind)),
                ),
            }
        }
        self.last_id = self.last_id.saturating_add(1);
        let id = JobId(self.last_id);
        let job = Job {
            id,
            unit,
            kind,
            requested: kind,
            running: false,
            irreversible: mode == Mode::ReplaceIrreversibly,
            ignore_order: mode == Mode::IgnoreDependencies,
            blockers: 0,
        };
        if self.slots.len() <= unit.index() {
            self.slots
                .resize_with(unit.index().saturating_add(1), || None);
        }
        if let Some(slot) = self.slots.get_mut(unit.index()) {
            *slot = Some(job);
        }
        self.units.insert(id, unit);
        self.recount(graph, unit);
        self.press_neighbours(graph, unit, true);
        id
    }

    /// Whether the job at the other end of `edge` must end before `job` can go on.
    ///
    /// Of two jobs on ordered units, one that goes down is always first; two that go down run in reverse order.
    fn blocks(&self, job: &Job, edge: Edge, other: UnitId) -> bool {
        let Some(theirs) = self.job_of(other) else {
            return false;
        };
        must_wait(job, edge, theirs)
    }

    /// Counts what a job waits for, and puts it in the queue when that is nothing.
    fn recount(&mut self, graph: &Graph, unit: UnitId) {
        let Some(job) = self.job_of(unit) else { return };
        let count = graph
            .edges(unit)
            .iter()
            .filter(|(edge, other)| self.blocks(job, *edge, *other))
            .count();
        let id = job.id;
        if let Some(job) = self.slot(unit) {
            job.blockers = u32::try_from(count).unwrap_or(u32::MAX);
            if count == 0 && !job.running {
                self.ready.push_back(id);
            }
        }
    }

    /// Adds (or takes away) the weight of a unit's job in the counts of those that wait for it.
    fn press_neighbours(&mut self, graph: &Graph, unit: UnitId, add: bool) {
        let Some(mine) = self.job_of(unit).cloned() else {
            return;
        };
        for (edge, other) in graph.edges(unit) {
            let seen_from_there = match edge {
                Edge::After => Edge::Before,
                Edge::Before => Edge::After,
                _ => continue,
            };
            let Some(theirs) = self.slot(*other) else {
                continue;
            };
            if !must_wait(theirs, seen_from_there, &mine) {
                continue;
            }
            if add {
                theirs.blockers = theirs.blockers.saturating_add(1);
            } else {
                theirs.blockers = theirs.blockers.saturating_sub(1);
                if theirs.blockers == 0 && !theirs.running {
                    let id = theirs.id;
                    self.ready.push_back(id);
                }
            }
        }
    }

    /// Gives a job another aim; it waits again.
    fn change_kind(&mut self, graph: &Graph, unit: UnitId, kind: JobKind) {
        self.press_neighbours(graph, unit, false);
        if let Some(job) = self.slot(unit) {
            job.kind = kind;
            if std::mem::take(&mut job.running) {
                self.running = self.running.saturating_sub(1);
            }
        }
        self.recount(graph, unit);
        self.press_neighbours(graph, unit, true);
    }

    fn end(&mut self, graph: &Graph, unit: UnitId, result: JobResult, cause: Option<Cause>) {
        self.press_neighbours(graph, unit, false);
        let Some(job) = self.slots.get_mut(unit.index()).and_then(Option::take) else {
            return;
        };
        if job.running {
            self.running = self.running.saturating_sub(1);
        }
        self.units.remove(&job.id);
        self.events.push_back(Event::Ended {
            job: job.id,
            unit,
            kind: job.requested,
            result,
            cause,
        });
    }

    /// Ends a start, and the starts of all that need the unit where it did not come up.
    fn end_start(&mut self, graph: &Graph, unit: UnitId, result: JobResult, cause: Option<Cause>) {
        self.end(graph, unit, result, cause);
        if result == JobResult::Done {
            return;
        }
        let mut down = VecDeque::from([(unit, result)]);
        while let Some((unit, result)) = down.pop_front() {
            let needing: Vec<UnitId> = graph
                .edges(unit)
                .iter()
                .filter(|(edge, _)| match result {
                    // A condition that was not met is no failure, except for what cannot be without the unit.
                    JobResult::Skipped => *edge == Edge::BoundBy,
                    _ => matches!(edge, Edge::RequiredBy | Edge::BoundBy | Edge::RequisiteOf),
                })
                .map(|(_, other)| *other)
                .collect();
            for other in needing {
                let waits = self
                    .job_of(other)
                    .is_some_and(|job| !job.running && job.kind == JobKind::Start);
                let ordered = || graph.edges(other).contains(&(Edge::After, unit));
                if !waits || (result == JobResult::Skipped && !ordered()) {
                    continue;
                }
                let cause = Cause::Dependency {
                    unit: graph.name(unit).clone(),
                    result: Some(result),
                };
                self.end(graph, other, JobResult::Dependency, Some(cause));
                down.push_back((other, JobResult::Dependency));
            }
        }
    }
}

/// Whether `job` waits for `theirs`, the job at the other end of its `edge`.
fn must_wait(job: &Job, edge: Edge, theirs: &Job) -> bool {
    if job.ignore_order || theirs.ignore_order {
        return false;
    }
    match edge {
        Edge::After => !job.kind.goes_down(),
        Edge::Before => theirs.kind.goes_down(),
        _ => false,
    }
}

/// A unit that must be up before this one starts, and is not.
fn missing_requirement(graph: &Graph, unit: UnitId) -> Option<UnitId> {
    let mut bound = Vec::new();
    for (edge, other) in graph.edges(unit) {
        if graph.state(*other).is_up() {
            continue;
        }
        match edge {
            Edge::Requisite => return Some(*other),
            Edge::BindsTo => bound.push(*other),
            _ => {}
        }
    }
    bound
        .into_iter()
        .find(|other| graph.edges(unit).contains(&(Edge::After, *other)))
}
