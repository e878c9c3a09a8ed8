//! Whole requests against a second opinion: a fixed point over the edges as they were written, which knows nothing of jobs.

use std::collections::BTreeSet;

use orlop_unit::{ActiveState, Consequence, Event, Mode, Request, Why};
use proptest::prelude::*;

use super::Machine;

const UNITS: usize = 7;
const NAMES: [&str; UNITS] = ["a", "b", "c", "d", "e", "f", "g"];

/// One written line: unit, directive, other unit.
type Line = (usize, &'static str, usize);

fn lines(directives: &'static [&'static str]) -> impl Strategy<Value = Vec<Line>> {
    let line = (0..UNITS, prop::sample::select(directives), 0..UNITS);
    prop::collection::vec(line, 0..14)
}

fn machine(lines: &[Line]) -> Machine {
    let texts: Vec<String> = (0..UNITS)
        .map(|unit| {
            let own = lines.iter().filter(|(from, ..)| *from == unit);
            own.map(|(_, directive, to)| format!("{directive}={}.service\n", NAMES[*to]))
                .collect()
        })
        .collect();
    let units: Vec<(&str, &str)> = NAMES
        .into_iter()
        .zip(texts.iter().map(String::as_str))
        .collect();
    Machine::new(&units)
}

fn up(machine: &Machine) -> BTreeSet<usize> {
    (0..UNITS)
        .filter(|unit| machine.graph.state(machine.id(NAMES[*unit])).is_up())
        .collect()
}

fn raise(machine: &mut Machine, units: &BTreeSet<usize>) {
    for unit in units {
        let id = machine.id(NAMES[*unit]);
        machine.graph.set_state(id, ActiveState::Active);
    }
}

/// All units that are reached from `start` over lines of these directives, read forwards or backwards.
fn closure(
    start: usize,
    lines: &[Line],
    forwards: &[&str],
    backwards: &[&str],
    through: impl Fn(usize) -> bool,
) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([start]);
    loop {
        let before = reached.len();
        for (from, directive, to) in lines {
            if forwards.contains(directive) && reached.contains(from) && through(*to) {
                reached.insert(*to);
            }
            if backwards.contains(directive) && reached.contains(to) && through(*from) {
                reached.insert(*from);
            }
        }
        if reached.len() == before {
            return reached;
        }
    }
}

fn some_units() -> impl Strategy<Value = BTreeSet<usize>> {
    prop::collection::btree_set(0..UNITS, 0..UNITS)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_start_brings_up_all_that_is_wanted_and_nothing_else(
        lines in lines(&["Wants", "Requires", "BindsTo", "Upholds", "PartOf", "PropagatesStopTo", "OnFailure"]),
        before in some_units(), unit in 0..UNITS,
    ) {
        let mut machine = machine(&lines);
        raise(&mut machine, &before);
        machine.request(Request::Start, NAMES[unit]).unwrap();
        machine.run();
        let wanted = closure(unit, &lines, &["Wants", "Requires", "BindsTo", "Upholds"], &[], |_| true);
        prop_assert_eq!(up(&machine), &before | &wanted);
        let started: Vec<String> = machine.log();
        let expected = wanted.difference(&before).count();
        prop_assert_eq!(started.len(), expected, "each once: {:?}", started);
    }

    #[test]
    fn a_stop_takes_down_all_that_needs_the_unit_and_nothing_else(
        lines in lines(&["Wants", "Requires", "Requisite", "BindsTo", "PartOf", "Upholds", "PropagatesStopTo", "StopPropagatedFrom", "After"]),
        before in some_units(), unit in 0..UNITS,
    ) {
        let mut machine = machine(&lines);
        raise(&mut machine, &before);
        let gone = closure(
            unit, &lines, &["PropagatesStopTo"], &["Requires", "Requisite", "BindsTo", "PartOf", "StopPropagatedFrom"], |_| true,
        );
        // Units that are ordered in a circle cannot all be stopped in order; those requests may be refused.
        if machine.request(Request::Stop, NAMES[unit]).is_ok() {
            machine.run();
            prop_assert_eq!(up(&machine), &before - &gone);
            let stopped = machine.log();
            prop_assert_eq!(stopped.len(), before.intersection(&gone).count(), "each once: {:?}", stopped);
        }
    }

    #[test]
    fn a_restart_leaves_up_what_was_up(
        lines in lines(&["Wants", "Requires", "BindsTo", "PartOf", "Upholds"]),
        before in some_units(), unit in 0..UNITS,
    ) {
        let mut machine = machine(&lines);
        raise(&mut machine, &before);
        machine.request(Request::Restart, NAMES[unit]).unwrap();
        machine.run();
        let now = up(&machine);
        prop_assert!(now.is_superset(&before) && now.contains(&unit));
        let log = machine.log();
        for taken in closure(unit, &lines, &[], &["Requires", "BindsTo", "PartOf"], |u| before.contains(&u)) {
            if before.contains(&taken) {
                let stops = log.iter().filter(|l| **l == format!("stop {}", NAMES[taken])).count();
                prop_assert_eq!(stops, 1, "{} in {:?}", NAMES[taken], log);
            }
        }
    }

    #[test]
    fn units_that_conflict_are_never_both_up_in_the_end(
        lines in lines(&["Wants", "Requires", "Conflicts", "After", "Before"]),
        starts in prop::collection::vec(0..UNITS, 1..5),
    ) {
        let mut machine = machine(&lines);
        for unit in starts {
            if machine.request(Request::Start, NAMES[unit]).is_ok() {
                machine.run();
            }
            let now = up(&machine);
            for (from, directive, to) in &lines {
                let both = *directive == "Conflicts" && from != to && now.contains(from) && now.contains(to);
                prop_assert!(!both, "{} and {}", NAMES[*from], NAMES[*to]);
            }
        }
    }

    #[test]
    fn a_cycle_is_found_exactly_where_there_is_one(
        order in lines(&["After"]), unit in 0..UNITS,
    ) {
        // Everything is required by everything, so that no unit can be left out.
        let mut lines = order.clone();
        for other in 0..UNITS {
            lines.push((unit, "Requires", other));
        }
        let mut machine = machine(&lines);
        let circular = (0..UNITS).any(|start| {
            let nexts = order.iter().filter(|(from, _, to)| *from == start && from != to);
            nexts.into_iter().any(|(_, _, next)| {
                let edges: Vec<Line> = order.iter().filter(|(from, _, to)| from != to).copied().collect();
                closure(*next, &edges, &["After"], &[], |_| true).contains(&start)
            })
        });
        match machine.request(Request::Start, NAMES[unit]) {
            Ok(()) => prop_assert!(!circular),
            Err(error) => {
                prop_assert!(circular, "{}", error);
                // The message walks along lines that were written.
                let text = error.to_string();
                let named: Vec<usize> = text.trim_start_matches("ordering cycle: ").split(" after ")
                    .map(|name| NAMES.iter().position(|n| name == format!("{n}.service")).unwrap()).collect();
                for pair in named.windows(2) {
                    prop_assert!(order.iter().any(|(from, _, to)| (*from, *to) == (pair[0], pair[1])), "{}", text);
                }
            }
        }
    }
}

/// What follows from a change, in short.
fn consequences(machine: &Machine, name: &str, before: ActiveState) -> Vec<(String, Request, Why)> {
    let id = machine.id(name);
    machine
        .jobs
        .consequences(&machine.graph, id, before)
        .into_iter()
        .map(
            |Consequence {
                 unit, request, why, ..
             }| (machine.stem(unit), request, why),
        )
        .collect()
}

#[test]
fn what_failed_and_what_ended_well_start_others() {
    let mut m = Machine::new(&[
        ("a", "OnFailure=b.service\nOnSuccess=c.service"),
        ("b", ""),
        ("c", ""),
    ]);
    let a = m.id("a");
    m.graph.set_state(a, ActiveState::Failed);
    assert_eq!(
        consequences(&m, "a", ActiveState::Active),
        [("b".into(), Request::Start, Why::Failure)]
    );
    m.graph.set_state(a, ActiveState::Inactive);
    assert_eq!(
        consequences(&m, "a", ActiveState::Deactivating),
        [("c".into(), Request::Start, Why::Success)]
    );
    assert_eq!(consequences(&m, "a", ActiveState::Failed), []);
}

#[test]
fn what_is_upheld_comes_back_while_its_upholder_is_up() {
    let mut m = Machine::new(&[("a", "Upholds=b.service"), ("b", "")]);
    let (a, b) = (m.id("a"), m.id("b"));
    assert_eq!(m.do_all(Request::Start, "a").len(), 2);
    m.graph.set_state(b, ActiveState::Failed);
    assert_eq!(
        consequences(&m, "b", ActiveState::Active),
        [("b".into(), Request::Start, Why::Upheld)]
    );
    m.graph.set_state(a, ActiveState::Inactive);
    assert_eq!(consequences(&m, "b", ActiveState::Active), []);
    m.graph.set_state(a, ActiveState::Active);
    assert_eq!(
        consequences(&m, "a", ActiveState::Activating),
        [("b".into(), Request::Start, Why::Upheld)]
    );
    m.request(Request::Stop, "a").unwrap();
    assert_eq!(consequences(&m, "b", ActiveState::Active), []);
}

#[test]
fn what_nobody_needs_any_more_is_stopped() {
    let mut m = Machine::new(&[
        ("a", "Wants=x.service"),
        ("b", "Requires=x.service"),
        ("x", "StopWhenUnneeded=yes"),
    ]);
    m.do_all(Request::Start, "a");
    m.do_all(Request::Start, "b");
    let (a, b) = (m.id("a"), m.id("b"));
    m.graph.set_state(a, ActiveState::Inactive);
    assert_eq!(consequences(&m, "a", ActiveState::Active), []);
    m.graph.set_state(b, ActiveState::Failed);
    assert_eq!(
        consequences(&m, "b", ActiveState::Active),
        [("x".into(), Request::Stop, Why::Unneeded)]
    );
    m.request(Request::Start, "a").unwrap();
    assert_eq!(consequences(&m, "b", ActiveState::Active), []);
}

#[test]
fn a_death_takes_along_what_it_propagates_to_and_a_restart_does_not() {
    let mut m = Machine::new(&[("a", "PropagatesStopTo=b.service"), ("b", "")]);
    m.do_all(Request::Start, "a");
    m.do_all(Request::Start, "b");
    assert_eq!(m.do_all(Request::Restart, "a"), ["stop a", "start a"]);
    let a = m.id("a");
    m.graph.set_state(a, ActiveState::Failed);
    m.jobs.gone_by_itself(&m.graph, a);
    m.run();
    assert_eq!(m.log(), ["stop b"]);
    assert!(
        !std::iter::from_fn(|| m.jobs.next_event()).any(|e| matches!(e, Event::LeftOut { .. }))
    );
    let b = m.id("b");
    assert!(
        m.jobs
            .request(&m.graph, Request::Start, b, Mode::Replace)
            .is_ok()
    );
}
