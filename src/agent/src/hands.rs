//! This node's part: from what it is assigned and what is there to the steps to take. Pure.
//!
//! * Without the store there is nothing to do: what runs goes on running.
//! * What is not this node's own is stopped. A node that comes back does that before anything else.
//! * A placement with another fencing number is another placement: what ran for the old one is stopped first.
//! * A unit is started once for a placement and its content; what becomes of it then is its supervisor's business.
//! * A unit that may still run on the machine that it has left is waited for.

use std::collections::{BTreeMap, BTreeSet};

use orlop_schedule::{MachineId, Target, UnitName};

use crate::records::{Assigned, Assignment};
use crate::registry::Registry;

/// What the store wants of this node for one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The placement's fencing number.
    pub fence: u64,
    /// The content's hash.
    pub hash: String,
    /// The content.
    pub text: String,
    /// The file's name.
    pub file: String,
    /// Loaded or launched.
    pub target: Target,
    /// Whether the machine that it has left may not have stopped it yet.
    pub may_run_elsewhere: bool,
}

/// What PID 1 says of a unit that lies in the units' directory or was assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// systemd's `LOAD`.
    pub load: String,
    /// systemd's `ACTIVE`.
    pub active: String,
    /// systemd's `SUB`.
    pub sub: String,
}

impl Observed {
    /// Whether there may be something to stop.
    #[must_use]
    pub fn runs(&self) -> bool {
        !matches!(self.active.as_str(), "" | "inactive" | "failed")
    }
}

/// One step; the steps of one unit are taken in their order, and the first that fails ends them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Stop the unit and wait until it has stopped.
    Stop,
    /// Take the file away and let PID 1 read its files again.
    Remove {
        /// Its name.
        file: String,
    },
    /// Write the file and let PID 1 read its files again.
    Write {
        /// Its name.
        file: String,
        /// What it holds.
        text: String,
        /// What it replaces, under another name.
        instead_of: Option<String>,
    },
    /// Start the unit.
    Start,
}

/// What to do with one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The steps.
    pub steps: Vec<Step>,
    /// What to remember when they have been taken; nothing when the unit is gone.
    pub then: Option<Assigned>,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By unit.
    pub chains: BTreeMap<UnitName, Chain>,
    /// Units that wait for another machine to let them go.
    pub waiting: BTreeSet<UnitName>,
    /// What is not our own is still there: nothing else is done before it has gone.
    pub evicting: bool,
}

/// What the store wants of the node `id`.
#[must_use]
pub fn wanted(registry: &Registry, id: &MachineId) -> BTreeMap<UnitName, Wanted> {
    let mut all = BTreeMap::new();
    for (unit, machines) in &registry.placements {
        let (Some(fence), Some(job)) = (machines.get(id), registry.job(unit)) else {
            continue;
        };
        if job.target == Target::Inactive {
            continue;
        }
        let elsewhere = registry.states.get(unit).into_iter().flatten();
        let may_run_elsewhere = !job.file.constraints.global
            && elsewhere
                .filter(|(machine, _)| *machine != id)
                .any(|(_, state)| state.may_run() && state.fence < *fence);
        all.insert(
            unit.clone(),
            Wanted {
                fence: *fence,
                hash: job.file.hash.clone(),
                text: job.file.text(),
                file: job.file.file_name(unit),
                target: job.target,
                may_run_elsewhere,
            },
        );
    }
    all
}

/// The steps to take. `files` are the names in the units' directory, `busy` the units whose steps are being taken.
///
/// `returning` holds until a plan without evictions was made since the store was last out of reach.
#[must_use]
pub fn plan(
    wanted: &BTreeMap<UnitName, Wanted>,
    last: &Assignment,
    files: &BTreeSet<String>,
    observed: &BTreeMap<UnitName, Observed>,
    busy: &BTreeSet<UnitName>,
    returning: bool,
) -> Plan {
    let mut plan = Plan::default();
    let none = Observed::default();
    let runs = |unit: &UnitName| observed.get(unit).unwrap_or(&none).runs();
    for (unit, file) in ours(last, files) {
        let kept = wanted.get(&unit).is_some_and(|want| {
            last.units
                .get(unit.as_str())
                .is_some_and(|had| had.fence == want.fence)
        });
        if kept {
            continue;
        }
        plan.evicting = true;
        if busy.contains(&unit) {
            continue;
        }
        let mut steps = Vec::new();
        if runs(&unit) {
            steps.push(Step::Stop);
        }
        steps.push(Step::Remove { file });
        plan.chains.insert(unit, Chain { steps, then: None });
    }
    if returning && plan.evicting {
        return plan;
    }
    for (unit, want) in wanted {
        if busy.contains(unit) || plan.chains.contains_key(unit) {
            continue;
        }
        let had = last.units.get(unit.as_str());
        let written = had.filter(|had| had.hash == want.hash && files.contains(&had.file));
        let mut steps = Vec::new();
        let mut then = Assigned {
            fence: want.fence,
            hash: want.hash.clone(),
            file: want.file.clone(),
            launched: written.is_some_and(|had| had.launched),
            error: had.and_then(|had| had.error.clone()),
        };
        if written.is_none() {
            if runs(unit) {
                steps.push(Step::Stop);
            }
            steps.push(Step::Write {
                file: want.file.clone(),
                text: want.text.clone(),
                instead_of: had
                    .map(|had| had.file.clone())
                    .filter(|file| *file != want.file),
            });
            then.error = None;
            // The start comes when this is remembered: an agent that dies in between must not take what it has started
            // for something else.
            let then = Some(then);
            plan.chains.insert(unit.clone(), Chain { steps, then });
            continue;
        }
        match want.target {
            Target::Launched if !then.launched => {
                if want.may_run_elsewhere {
                    plan.waiting.insert(unit.clone());
                } else {
                    // It runs when an agent died before it could remember the start.
                    if !runs(unit) {
                        steps.push(Step::Start);
                    }
                    then.launched = true;
                    then.error = None;
                }
            }
            Target::Loaded if then.launched || runs(unit) => {
                steps.push(Step::Stop);
                then.launched = false;
                then.error = None;
            }
            _ => {}
        }
        if !steps.is_empty() || had != Some(&then) {
            let then = Some(then);
            plan.chains.insert(unit.clone(), Chain { steps, then });
        }
    }
    plan
}

/// Units that were assigned or whose files lie in the directory, with the file's name.
fn ours(last: &Assignment, files: &BTreeSet<String>) -> BTreeMap<UnitName, String> {
    let mut all = BTreeMap::new();
    for file in files {
        if let Ok(unit) = UnitName::parse(file) {
            all.insert(unit, file.clone());
        }
    }
    for (name, assigned) in &last.units {
        if let Ok(unit) = UnitName::parse(name) {
            all.insert(unit, assigned.file.clone());
        }
    }
    all
}

/// What is left of the last assignment in a new boot: nothing runs and no file is there any more.
#[must_use]
pub fn after_boot(last: Assignment, boot_id: &str) -> Assignment {
    if last.boot_id == boot_id {
        return last;
    }
    Assignment {
        boot_id: boot_id.to_owned(),
        units: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A node with a supervisor that does what it is told.
    #[derive(Clone, Debug, Default)]
    struct Node {
        last: Assignment,
        files: BTreeMap<String, String>,
        running: BTreeMap<UnitName, String>,
        starts: Vec<(UnitName, u64)>,
    }

    fn unit(name: &str) -> UnitName {
        UnitName::parse(name).unwrap()
    }

    fn want(fence: u64, text: &str, target: Target) -> Wanted {
        Wanted {
            fence,
            hash: format!("hash of {text}"),
            text: text.to_owned(),
            file: "a.service".to_owned(),
            target,
            may_run_elsewhere: false,
        }
    }

    impl Node {
        fn plan(&self, wanted: &BTreeMap<UnitName, Wanted>, returning: bool) -> Plan {
            let observed = self.running.keys().map(|unit| {
                let observed = Observed {
                    active: "active".into(),
                    ..Observed::default()
                };
                (unit.clone(), observed)
            });
            let files = self.files.keys().cloned().collect();
            let observed = observed.collect();
            plan(
                wanted,
                &self.last,
                &files,
                &observed,
                &BTreeSet::new(),
                returning,
            )
        }

        fn carry_out(&mut self, plan: &Plan) {
            for (unit, chain) in &plan.chains {
                for step in &chain.steps {
                    match step {
                        Step::Stop => {
                            self.running.remove(unit);
                        }
                        Step::Remove { file } => {
                            assert!(!self.running.contains_key(unit), "{unit} lost its file");
                            self.files.remove(file);
                        }
                        Step::Write {
                            file,
                            text,
                            instead_of,
                        } => {
                            instead_of.iter().for_each(|old| {
                                self.files.remove(old);
                            });
                            self.files.insert(file.clone(), text.clone());
                        }
                        Step::Start => {
                            let assigned = chain.then.as_ref().unwrap();
                            let text = self.files[&assigned.file].clone();
                            self.running.insert(unit.clone(), text);
                            self.starts.push((unit.clone(), assigned.fence));
                        }
                    }
                }
                match &chain.then {
                    Some(then) => {
                        let units = &mut self.last.units;
                        units.insert(unit.to_string(), then.clone());
                    }
                    None => {
                        self.last.units.remove(unit.as_str());
                    }
                }
            }
        }

        /// Until there is nothing left to do.
        fn settle(&mut self, wanted: &BTreeMap<UnitName, Wanted>) {
            for round in 0.. {
                let plan = self.plan(wanted, false);
                if plan.chains.is_empty() {
                    return;
                }
                assert!(round < 5, "no end of it: {plan:?}");
                self.carry_out(&plan);
            }
        }
    }

    #[test]
    fn a_unit_that_has_ended_by_itself_is_not_started_again() {
        let mut node = Node::default();
        let wanted = BTreeMap::from([(unit("a.service"), want(1, "x", Target::Launched))]);
        node.settle(&wanted);
        node.running.clear();
        node.settle(&wanted);
        assert_eq!(node.starts.len(), 1);
    }

    #[test]
    fn a_returning_node_stops_what_is_not_its_own_before_anything_else() {
        let mut node = Node::default();
        let old = BTreeMap::from([
            (unit("a.service"), want(1, "x", Target::Launched)),
            (
                unit("b.service"),
                Wanted {
                    file: "b.service".into(),
                    ..want(2, "y", Target::Launched)
                },
            ),
        ]);
        node.settle(&old);
        // Both have been elsewhere; the first has come back.
        let new = BTreeMap::from([
            (unit("a.service"), want(7, "x", Target::Launched)),
            (
                unit("c.service"),
                Wanted {
                    file: "c.service".into(),
                    ..want(8, "z", Target::Launched)
                },
            ),
        ]);
        let plan = node.plan(&new, true);
        assert!(plan.evicting);
        let first: Vec<_> = plan
            .chains
            .iter()
            .map(|(u, c)| (u.as_str(), &c.steps[0]))
            .collect();
        assert_eq!(
            first,
            [("a.service", &Step::Stop), ("b.service", &Step::Stop)]
        );
        node.carry_out(&plan);
        assert!(node.running.is_empty() && node.files.is_empty());
        assert!(!node.plan(&new, true).evicting);
        node.settle(&new);
        assert_eq!(
            node.starts[2..],
            [(unit("a.service"), 7), (unit("c.service"), 8)]
        );
    }

    #[test]
    fn a_unit_that_may_still_run_elsewhere_is_waited_for() {
        let mut node = Node::default();
        let mut wanted = BTreeMap::from([(unit("a.service"), want(3, "x", Target::Launched))]);
        wanted.get_mut("a.service").unwrap().may_run_elsewhere = true;
        node.settle(&wanted);
        assert!(node.starts.is_empty());
        assert!(node.plan(&wanted, false).waiting.contains("a.service"));
        wanted.get_mut("a.service").unwrap().may_run_elsewhere = false;
        node.settle(&wanted);
        assert_eq!(node.starts.len(), 1);
    }

    #[test]
    fn after_a_boot_nothing_counts_as_started() {
        let mut node = Node::default();
        let wanted = BTreeMap::from([(unit("a.service"), want(1, "x", Target::Launched))]);
        node.settle(&wanted);
        node.last.boot_id = "one".into();
        assert_eq!(after_boot(node.last.clone(), "one"), node.last);
        node.last = after_boot(node.last, "two");
        node.files.clear();
        node.running.clear();
        node.settle(&wanted);
        assert_eq!(node.starts.len(), 2);
    }

    proptest! {
        #[test]
        fn whatever_is_wanted_in_turn_comes_about_and_each_thing_starts_once(
            steps in prop::collection::vec(prop::option::of((0..3_u64, 0..2_u8, prop::bool::ANY)), 1..12)
        ) {
            let mut node = Node::default();
            let name = unit("a.service");
            let mut started = BTreeSet::new();
            let mut fence = 0;
            let mut before: Option<(u64, u8, bool)> = None;
            for step in steps {
                let wanted: BTreeMap<_, _> = step.iter().map(|(move_on, text, launched)| {
                    fence += move_on;
                    let target = if *launched { Target::Launched } else { Target::Loaded };
                    (name.clone(), want(fence, &format!("text {text}"), target))
                }).collect();
                let starts = node.starts.len();
                // An agent that dies after any plan was carried out goes on from what it remembers.
                node.settle(&wanted);
                let launched = wanted.values().any(|w| w.target == Target::Launched);
                prop_assert_eq!(node.running.contains_key(&name), launched);
                for want in wanted.values() {
                    prop_assert_eq!(&node.files["a.service"], &want.text);
                    if launched {
                        prop_assert_eq!(&node.running[&name], &want.text);
                    }
                }
                prop_assert_eq!(node.files.is_empty(), wanted.is_empty());
                let now = step.map(|(_, text, launched)| (fence, text, launched));
                let anew = launched && now != before;
                prop_assert_eq!(node.starts.len() - starts, usize::from(anew));
                started.extend(node.starts.iter().cloned());
                before = now;
            }
        }
    }
}
