//! Random machines, random requests, random outcomes and delays.
//!
//! The model knows nothing of transactions: it takes the declared edges, watches the steps, and checks the promises.

use std::collections::HashMap;

use orlop_unit::{
    Action, ActiveState, Cause, Event, Graph, JobKind, JobResult, Jobs, Loader, MemoryStore, Mode,
    Outcome, Request, SpecifierContext, UnitId, UnitName,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Ask(Request, usize),
    /// Report one of the running steps.
    Report {
        which: usize,
        good: bool,
    },
    Die(usize),
    Cancel(usize),
}

const RELATIONS: [&str; 11] = [
    "Wants",
    "Requires",
    "Requisite",
    "BindsTo",
    "PartOf",
    "Conflicts",
    "Upholds",
    "PropagatesStopTo",
    "OnFailure",
    "After",
    "Before",
];

fn steps(units: usize) -> impl Strategy<Value = Vec<Step>> {
    let request = prop_oneof![
        4 => Just(Request::Start),
        2 => Just(Request::Stop),
        2 => Just(Request::Restart),
        1 => Just(Request::TryRestart),
        1 => Just(Request::Reload),
    ];
    let step = prop_oneof![
        3 => (request, 0..units).prop_map(|(r, u)| Step::Ask(r, u)),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, good)| Step::Report { which, good }),
        1 => (0..units).prop_map(Step::Die),
        1 => (0..units).prop_map(Step::Cancel),
    ];
    prop::collection::vec(step, 1..40)
}

struct World {
    graph: Graph,
    jobs: Jobs,
    ids: Vec<UnitId>,
    /// `after[a]` holds `b`: `a` is ordered after `b`.
    after: Vec<Vec<usize>>,
    /// `requires[a]` holds `b`: `a` cannot start when `b` fails to.
    requires: Vec<Vec<usize>>,
    /// When each unit's start failed last, and when each job was first seen, in steps of the test.
    failed_at: Vec<usize>,
    seen_at: HashMap<orlop_unit::JobId, usize>,
    now: usize,
    running: Vec<(orlop_unit::Run, usize)>,
    asked: HashMap<orlop_unit::JobId, usize>,
    ended: HashMap<orlop_unit::JobId, usize>,
}

impl World {
    fn new(units: usize, edges: &[(usize, usize, usize)]) -> Self {
        let mut store = MemoryStore::new();
        let mut after = vec![Vec::new(); units];
        let mut requires = after.clone();
        for unit in 0..units {
            let mut text = "[Unit]\nDefaultDependencies=no\n".to_owned();
            for (from, relation, to) in edges
                .iter()
                .filter(|(from, _, to)| *from == unit && from != to)
            {
                text.push_str(&format!("{}=u{to}.service\n", RELATIONS[*relation]));
                match RELATIONS[*relation] {
                    "After" => after[*from].push(*to),
                    "Before" => after[*to].push(*from),
                    "Requires" | "BindsTo" => requires[*from].push(*to),
                    _ => {}
                }
            }
            store = store.file(
                &format!("/u/u{unit}.service"),
                &format!("{text}[Service]\nExecStart=/x\n"),
            );
        }
        let context = SpecifierContext::default();
        let loader = Loader::new(&["/u"], &store, &context);
        let mut graph = Graph::new();
        let ids = (0..units)
            .map(|n| {
                graph.load(
                    &UnitName::parse(&format!("u{n}.service")).unwrap(),
                    &mut |n| loader.load(n),
                )
            })
            .collect();
        Self {
            graph,
            jobs: Jobs::new(),
            ids,
            after,
            requires,
            failed_at: vec![0; units],
            seen_at: HashMap::new(),
            now: 1,
            running: vec![],
            asked: HashMap::new(),
            ended: HashMap::new(),
        }
    }

    fn number(&self, id: UnitId) -> usize {
        self.ids.iter().position(|i| *i == id).unwrap()
    }

    /// Takes all steps that can be taken, and checks each against the model.
    fn pump(&mut self) {
        self.now += 1;
        for job in self.jobs.iter() {
            self.seen_at.entry(job.id).or_insert(self.now);
        }
        while let Some(run) = self.jobs.next_runnable(&self.graph) {
            let unit = self.number(run.unit);
            assert!(
                !self
                    .running
                    .iter()
                    .any(|(r, _)| r.job == run.job && r.action == run.action),
                "the same step twice"
            );
            // Whatever ran for this unit before was cancelled or changed.
            self.running.retain(|(_, u)| *u != unit);
            let goes_up = run.action == Action::Start;
            for other in 0..self.ids.len() {
                let Some(job) = self.jobs.job_of(self.ids[other]) else {
                    continue;
                };
                let theirs_goes_down = matches!(job.kind, JobKind::Stop | JobKind::Restart);
                if self.after[unit].contains(&other) && goes_up {
                    panic!(
                        "u{unit} starts while u{other}, which it is ordered after, has a job: {job:?}"
                    );
                }
                if self.after[other].contains(&unit) {
                    assert!(
                        !theirs_goes_down,
                        "u{unit} goes on while u{other}, ordered after it, still has to go down"
                    );
                }
            }
            if goes_up {
                assert!(!self.graph.state(run.unit).is_up(), "started twice");
                for needed in self.requires[unit]
                    .iter()
                    .filter(|n| self.after[unit].contains(n))
                {
                    assert!(
                        self.failed_at[*needed] < self.seen_at[&run.job],
                        "u{unit} starts though u{needed}, which it requires, failed to"
                    );
                }
            }
            let state = match run.action {
                Action::Start => ActiveState::Activating,
                Action::Stop { .. } => ActiveState::Deactivating,
                Action::Reload => ActiveState::Reloading,
            };
            self.graph.set_state(run.unit, state);
            self.running.push((run, unit));
        }
        while let Some(event) = self.jobs.next_event() {
            match event {
                Event::Ended {
                    job, cause, result, ..
                } => {
                    *self.ended.entry(job).or_default() += 1;
                    assert!(
                        result == JobResult::Done || cause.is_some(),
                        "a job ended badly without a reason"
                    );
                    if let Some(Cause::Dependency {
                        result: Some(JobResult::Done),
                        ..
                    }) = cause
                    {
                        panic!("failed for a dependency that is there");
                    }
                }
                Event::LeftOut { .. } => {}
                Event::OrderBroken { unit } => panic!("stuck at {}", self.graph.name(unit)),
            }
        }
        assert!(
            self.jobs.is_empty() || !self.running.is_empty(),
            "jobs wait and nothing runs: {:?}",
            self.jobs.iter().collect::<Vec<_>>()
        );
    }

    fn report(&mut self, index: usize, good: bool) {
        let (run, _) = self.running.remove(index);
        if self.jobs.get(run.job).is_none_or(|job| !job.running) {
            return;
        }
        let (state, outcome) = match (run.action, good) {
            (Action::Start, true) => (ActiveState::Active, Outcome::Done),
            (Action::Start, false) => (ActiveState::Failed, Outcome::Failed("x".into())),
            (Action::Stop { .. }, true) => (ActiveState::Inactive, Outcome::Done),
            (Action::Stop { .. }, false) => (ActiveState::Failed, Outcome::Done),
            (Action::Reload, true) => (ActiveState::Active, Outcome::Done),
            (Action::Reload, false) => (ActiveState::Active, Outcome::Failed("x".into())),
        };
        if matches!((run.action, good), (Action::Start, false)) {
            let unit = self.number(run.unit);
            self.failed_at[unit] = self.now;
        }
        self.graph.set_state(run.unit, state);
        self.jobs.finished(&self.graph, run.job, outcome);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn order_holds_nothing_runs_twice_and_everything_ends(
        (units, edges, steps) in (2usize..8).prop_flat_map(|units| {
            let edge = (0..units, 0..RELATIONS.len(), 0..units);
            (Just(units), prop::collection::vec(edge, 0..16), steps(units))
        })
    ) {
        let mut world = World::new(units, &edges);
        for step in steps {
            match step {
                Step::Ask(request, unit) => {
                    let id = world.ids[unit];
                    let before: Vec<_> = world.jobs.iter().cloned().collect();
                    match world.jobs.request(&world.graph, request, id, Mode::Replace) {
                        Ok(job) => {
                            *world.asked.entry(job).or_default() += 1;
                        }
                        Err(_) => {
                            let now: Vec<_> = world.jobs.iter().cloned().collect();
                            prop_assert_eq!(before, now, "a refused request changed something");
                        }
                    }
                }
                Step::Report { which, good } if !world.running.is_empty() => {
                    let index = which % world.running.len();
                    world.report(index, good);
                }
                Step::Die(unit) => {
                    let id = world.ids[unit];
                    if world.graph.state(id) == ActiveState::Active && world.jobs.job_of(id).is_none() {
                        world.graph.set_state(id, ActiveState::Failed);
                        world.jobs.gone_by_itself(&world.graph, id);
                    }
                }
                Step::Cancel(unit) => {
                    if let Some(job) = world.jobs.job_of(world.ids[unit]).map(|j| j.id) {
                        world.jobs.cancel(&world.graph, job);
                    }
                }
                Step::Report { .. } => {}
            }
            world.pump();
        }
        let mut rounds = 0;
        while !world.jobs.is_empty() {
            world.report(0, true);
            world.pump();
            rounds += 1;
            prop_assert!(rounds < 1000, "does not end");
        }
        for job in world.asked.keys() {
            prop_assert_eq!(world.ended.get(job), Some(&1), "each job that was given out ends exactly once");
        }
    }
}
