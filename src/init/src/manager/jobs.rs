//! Jobs: from a request to its answer.

use orlop_boot::times;
use orlop_sys::kmsg::Priority;
use orlop_unit::{
    Action as JobAction, ActiveState, Event, JobId, JobResult, Mode, Outcome, Request,
    Run as Runnable, UnitId,
};

use super::{Answer, Manager, random_id};
use crate::conditions;
use crate::service::{Input, Run};
use crate::streams::JOURNAL_UNIT;

impl Manager {
    /// Makes the jobs of a request; `connection` waits for the answer.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn request(
        &mut self,
        request: Request,
        id: UnitId,
        mode: Mode,
        connection: Option<u64>,
    ) -> Result<(), String> {
        let job = self
            .jobs
            .request(&self.graph, request, id, mode)
            .map_err(|err| err.to_string())?;
        if let Some(connection) = connection {
            self.waiting.entry(job).or_default().push(connection);
        }
        self.dirty.extend(self.jobs.iter().map(|job| job.unit));
        self.turn();
        Ok(())
    }

    /// Begins all jobs that can begin, and tells what has ended.
    ///
    /// The journal begins last of them: nothing waits for it, what others write meanwhile is kept, and it has the kernel's whole log to read first.
    pub(super) fn turn(&mut self) {
        loop {
            let mut journal = None;
            while let Some(run) = self.jobs.next_runnable(&self.graph) {
                let is_journal = self.graph.name(run.unit).as_str() == JOURNAL_UNIT;
                if is_journal && run.action == JobAction::Start {
                    journal = Some(run);
                } else {
                    self.begin(run.job, run.unit, run.action);
                    self.hear_oldest_starts();
                }
            }
            // What the others led to may have taken its job away.
            let is_current =
                |run: &Runnable| self.jobs.job_of(run.unit).is_some_and(|j| j.id == run.job);
            if let Some(run) = journal.filter(is_current) {
                self.begin(run.job, run.unit, run.action);
                continue;
            }
            let mut any = false;
            while let Some(event) = self.jobs.next_event() {
                any = true;
                self.tell(event);
            }
            if !any && !self.let_idle_go() {
                break;
            }
        }
        if !self.boot_times.is_empty() {
            times::append(&std::mem::take(&mut self.boot_times));
        }
    }

    pub(super) fn begin(&mut self, job: JobId, id: UnitId, action: JobAction) {
        let now_ns = times::now_ns();
        let Some(entry) = self.entries.get_mut(id.index()) else {
            self.jobs.finished(
                &self.graph,
                job,
                Outcome::Failed("the unit is not loaded".to_owned()),
            );
            return;
        };
        entry.job = Some(job);
        entry.job_began_ns = now_ns;
        self.dirty.insert(id);
        let starting = action == JobAction::Start;
        if starting && let Some(outcome) = self.unmet(id) {
            self.report(id, self.graph.state(id), outcome);
            return;
        }
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        let Some(run) = entry.run.as_mut() else {
            self.begin_without_processes(id, action);
            return;
        };
        if starting && is_mounted_already(run) {
            self.feed(id, Input::Adopted);
            return;
        }
        let input = match action {
            JobAction::Start => {
                let limit = run.unit().start_limit;
                let window_ns = u64::try_from(limit.interval.as_nanos()).unwrap_or(u64::MAX);
                entry
                    .starts_ns
                    .retain(|t| now_ns.saturating_sub(*t) < window_ns);
                let count = u32::try_from(entry.starts_ns.len()).unwrap_or(u32::MAX);
                if !run.can_begin() {
                    Input::Start
                } else if window_ns > 0 && limit.burst > 0 && count >= limit.burst {
                    Input::LimitHit(format!(
                        "started {} times in {} s, which is the limit; `systemctl reset-failed` lifts it",
                        limit.burst,
                        limit.interval.as_secs()
                    ))
                } else {
                    entry.starts_ns.push_back(now_ns);
                    if run.active_state().is_down() {
                        entry.invocation = random_id();
                        entry.status = None;
                        entry.failure = None;
                    }
                    Input::Start
                }
            }
            JobAction::Stop { restarting } => Input::Stop { restarting },
            JobAction::Reload => Input::Reload,
        };
        self.feed(id, input);
    }

    /// Why a start is skipped or fails before it begins.
    pub(super) fn unmet(&self, id: UnitId) -> Option<Outcome> {
        let unit = self.graph.unit(id)?;
        if let Err(condition) = unit.conditions.check(conditions::holds) {
            let negation = if condition.negate { "!" } else { "" };
            return Some(Outcome::Skipped(format!(
                "Condition{}={negation}{} is not met",
                condition.test.name(),
                condition.parameter
            )));
        }
        if let Err(condition) = unit.asserts.check(conditions::holds) {
            return Some(Outcome::Failed(format!(
                "Assert{}={} is not met",
                condition.test.name(),
                condition.parameter
            )));
        }
        None
    }

    pub(super) fn report(&mut self, id: UnitId, state: ActiveState, outcome: Outcome) {
        let (state, outcome) = self.still_mounted(id).unwrap_or((state, outcome));
        let Some(entry) = self.entries.get_mut(id.index()) else {
            return;
        };
        if let Outcome::Failed(text) | Outcome::TimedOut(text) = &outcome {
            entry.failure = Some(text.clone());
        }
        if entry.run.is_none() {
            entry.since_ns = times::now_ns();
        }
        let Some(job) = entry.job.take() else {
            self.graph.set_state(id, state);
            return;
        };
        if self.booting && state.is_up() && entry.run.is_some() {
            let line = times::line(self.graph.name(id).as_str(), entry.job_began_ns);
            self.boot_times.push_str(&line);
        }
        self.graph.set_state(id, state);
        self.jobs.finished(&self.graph, job, outcome);
        self.follow(id);
    }

    pub(super) fn tell(&mut self, event: Event) {
        match event {
            Event::Ended {
                job,
                unit,
                kind,
                result,
                cause,
            } => {
                self.dirty.insert(unit);
                if kind == orlop_unit::JobKind::Start && result != JobResult::Done {
                    // Its state may not have changed at all, and whoever triggered it waits.
                    self.tell_triggers(unit);
                }
                let message = cause.map_or_else(String::new, |c| c.to_string());
                match result {
                    JobResult::Done => {
                        let service = self.entry(unit).is_some_and(|e| e.run.is_some());
                        let description =
                            self.graph.unit(unit).map_or("", |u| u.description.as_str());
                        let verb = match kind {
                            orlop_unit::JobKind::Start => "started",
                            orlop_unit::JobKind::Stop => "stopped",
                            orlop_unit::JobKind::Restart => "restarted",
                            orlop_unit::JobKind::Reload => "reloaded",
                        };
                        let priority = if service {
                            Priority::Info
                        } else {
                            Priority::Debug
                        };
                        self.log(priority, unit, &format!("{verb} ({description})"));
                    }
                    JobResult::Skipped => {
                        self.log(Priority::Info, unit, &format!("skipped: {message}"))
                    }
                    JobResult::Canceled => self.log(
                        Priority::Info,
                        unit,
                        &format!("{}: cancelled: {message}", kind.as_str()),
                    ),
                    JobResult::Failed | JobResult::TimedOut | JobResult::Dependency => {
                        // What the service said of itself when it happened is not said again.
                        let run = self.entry(unit).and_then(|e| e.run.as_ref());
                        let text = match run.filter(|r| r.failure.as_ref() == Some(&message)) {
                            Some(run) => format!("failed with result {}", run.result.as_str()),
                            None => format!("failed: {message}"),
                        };
                        self.log(Priority::Error, unit, &format!("{} {text}", kind.as_str()));
                    }
                }
                for connection in self.waiting.remove(&job).unwrap_or_default() {
                    self.answers.push(Answer {
                        connection,
                        result: result.as_str(),
                        message: message.clone(),
                    });
                }
            }
            Event::LeftOut { unit, cause } => {
                self.log(Priority::Warning, unit, &format!("left out: {cause}"));
            }
            Event::OrderBroken { unit } => {
                self.log(
                    Priority::Warning,
                    unit,
                    "goes first, because units wait for each other in a circle",
                );
            }
        }
    }

    /// Answers that have become due.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Stops every unit that is still up, but the journal, without regard to dependencies.
    pub fn stop_rest(&mut self) {
        let rest: Vec<UnitId> = self
            .graph
            .ids()
            .filter(|id| {
                !self.graph.state(*id).is_down() && self.graph.name(*id).as_str() != JOURNAL_UNIT
            })
            .filter(|id| self.entry(*id).is_some_and(|e| e.run.is_some()))
            .collect();
        for id in rest {
            if let Err(err) =
                self.jobs
                    .request(&self.graph, Request::Stop, id, Mode::ReplaceIrreversibly)
            {
                self.log(
                    Priority::Warning,
                    id,
                    &format!("cannot be stopped in order: {err}"),
                );
            }
        }
        self.turn();
    }
}

/// Whether it is a mount unit whose place is taken: it is up then without doing anything.
fn is_mounted_already(run: &Run) -> bool {
    match &run.unit().kind {
        orlop_unit::Kind::Mount(mount) => {
            run.can_begin() && crate::mountinfo::is_mounted(&mount.place)
        }
        _ => false,
    }
}
