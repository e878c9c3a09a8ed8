//! Whole machines: the built-in targets, a thousand units, a reload.

use super::*;

#[test]
fn the_default_target_comes_up_on_built_in_targets_alone() {
    let store = MemoryStore::new()
        .file("/u/a.service", "[Service]\nExecStart=/x\n")
        .link("/u/multi-user.target.wants/a.service", "../a.service");
    let context = SpecifierContext::default();
    let loader = Loader::new(&["/u"], &store, &context);
    let mut graph = Graph::new();
    let target = graph.load(&UnitName::parse("default.target").unwrap(), &mut |n| {
        loader.load(n)
    });
    assert!(graph.take_problems().is_empty());
    let mut m = Machine {
        graph,
        jobs: Jobs::new(),
        log: vec![],
        failing: vec![],
        skipped: vec![],
    };
    m.jobs
        .request(&m.graph, Request::Start, target, Mode::Replace)
        .unwrap();
    m.run();
    let log = m.log();
    assert!(m.events().iter().all(|e| e.ends_with(": done")));
    let at = |what: &str| {
        log.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("{what} in {log:?}"))
    };
    assert!(
        at("start sysinit") < at("start basic")
            && at("start basic") < at("start a")
            && at("start a") < at("start multi-user")
    );
    let down = m.graph.find("shutdown.target").unwrap();
    m.jobs
        .request(&m.graph, Request::Start, down, Mode::ReplaceIrreversibly)
        .unwrap();
    m.run();
    let log = m.log();
    let at = |what: &str| {
        log.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("{what} in {log:?}"))
    };
    assert!(
        at("stop multi-user") < at("stop a")
            && at("stop a") < at("stop basic")
            && at("stop basic") < at("stop sysinit")
    );
    assert_eq!(log.last().unwrap(), "start shutdown");
}

#[test]
fn a_thousand_units_in_a_row_under_one_target_all_come_up() {
    let mut store = MemoryStore::new();
    for n in 0..1000 {
        let after = if n > 0 {
            format!("After=s{}.service", n - 1)
        } else {
            String::new()
        };
        store = store
            .file(
                &format!("/u/s{n}.service"),
                &format!("[Unit]\n{after}\n[Service]\nExecStart=/x\n"),
            )
            .link(&format!("/u/multi-user.target.wants/s{n}.service"), "x");
    }
    let context = SpecifierContext::default();
    let loader = Loader::new(&["/u"], &store, &context);
    let mut graph = Graph::new();
    let target = graph.load(&UnitName::parse("multi-user.target").unwrap(), &mut |n| {
        loader.load(n)
    });
    let mut jobs = Jobs::new();
    jobs.request(&graph, Request::Start, target, Mode::Replace)
        .unwrap();
    let mut steps = 0;
    while let Some(run) = jobs.next_runnable(&graph) {
        graph.set_state(run.unit, ActiveState::Active);
        jobs.finished(&graph, run.job, Outcome::Done);
        steps += 1;
    }
    assert!(steps >= 1000 && jobs.is_empty());
}

#[test]
fn reloading_keeps_states_and_learns_new_order() {
    let context = SpecifierContext::default();
    let unit = |after: &str| {
        format!("[Unit]\nDefaultDependencies=no\nAfter={after}\n[Service]\nExecStart=/x\n")
    };
    let old = MemoryStore::new()
        .file("/u/a.service", &unit(""))
        .file("/u/b.service", &unit(""));
    let new = MemoryStore::new()
        .file("/u/a.service", &unit("b.service"))
        .file("/u/b.service", &unit("a.service"));
    let (mut graph, mut jobs) = (Graph::new(), Jobs::new());
    let loader = Loader::new(&["/u"], &old, &context);
    let [a, b] = ["a.service", "b.service"]
        .map(|n| graph.load(&UnitName::parse(n).unwrap(), &mut |n| loader.load(n)));
    jobs.request(&graph, Request::Start, a, Mode::Replace)
        .unwrap();
    jobs.request(&graph, Request::Start, b, Mode::Replace)
        .unwrap();
    let loader = Loader::new(&["/u"], &new, &context);
    graph.reload(&mut |n| loader.load(n));
    jobs.graph_changed(&graph);
    assert!(matches!(graph.load_state(a), LoadState::Loaded(unit) if unit.dependencies.len() == 1));
    // The two wait for each other now; neither may hang.
    let mut started = 0;
    while let Some(run) = jobs.next_runnable(&graph) {
        graph.set_state(run.unit, ActiveState::Active);
        jobs.finished(&graph, run.job, Outcome::Done);
        started += 1;
    }
    assert_eq!((started, jobs.len()), (2, 0));
    assert!(
        std::iter::from_fn(|| jobs.next_event()).any(|e| matches!(e, Event::OrderBroken { .. }))
    );
}
