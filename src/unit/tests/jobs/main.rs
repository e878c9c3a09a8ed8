//! The job engine: single rules by name, and whole random machines against a small model of what must hold.

mod closure;
mod machines;
mod model;

use orlop_unit::{
    Action, ActiveState, Event, Graph, JobKind, Jobs, LoadState, Loader, MemoryStore, Mode,
    Outcome, Request, SpecifierContext, TransactionError, UnitId, UnitName,
};

/// A machine whose units do at once what they are told, and write down what that was.
struct Machine {
    graph: Graph,
    jobs: Jobs,
    log: Vec<String>,
    failing: Vec<&'static str>,
    skipped: Vec<&'static str>,
}

impl Machine {
    /// `units`: name without suffix, and the lines of its `[Unit]`.
    fn new(units: &[(&str, &str)]) -> Self {
        let mut store = MemoryStore::new();
        for (name, lines) in units {
            let text = format!(
                "[Unit]\nDefaultDependencies=no\n{lines}\n[Service]\nExecStart=/bin/{name}\n"
            );
            store = store.file(&format!("/u/{name}.service"), &text);
        }
        let context = SpecifierContext::default();
        let loader = Loader::new(&["/u"], &store, &context);
        let mut graph = Graph::new();
        for (name, _) in units {
            graph.load(
                &UnitName::parse(&format!("{name}.service")).unwrap(),
                &mut |n| loader.load(n),
            );
        }
        Self {
            graph,
            jobs: Jobs::new(),
            log: Vec::new(),
            failing: Vec::new(),
            skipped: Vec::new(),
        }
    }

    fn id(&self, name: &str) -> UnitId {
        self.graph.find(&format!("{name}.service")).unwrap()
    }

    fn stem(&self, unit: UnitId) -> String {
        self.graph.name(unit).stem().to_owned()
    }

    fn request(&mut self, request: Request, name: &str) -> Result<(), TransactionError> {
        let id = self.id(name);
        self.jobs
            .request(&self.graph, request, id, Mode::Replace)
            .map(|_| ())
    }

    fn run(&mut self) {
        while let Some(run) = self.jobs.next_runnable(&self.graph) {
            let name = self.stem(run.unit);
            let (word, state, outcome) = match run.action {
                Action::Start if self.failing.contains(&name.as_str()) => (
                    "fail",
                    ActiveState::Failed,
                    Outcome::Failed("exit code 1".into()),
                ),
                Action::Start if self.skipped.contains(&name.as_str()) => (
                    "skip",
                    ActiveState::Inactive,
                    Outcome::Skipped("no such path".into()),
                ),
                Action::Start => ("start", ActiveState::Active, Outcome::Done),
                Action::Stop { .. } => ("stop", ActiveState::Inactive, Outcome::Done),
                Action::Reload => ("reload", ActiveState::Active, Outcome::Done),
            };
            self.log.push(format!("{word} {name}"));
            self.graph.set_state(run.unit, state);
            self.jobs.finished(&self.graph, run.job, outcome);
        }
        assert!(self.jobs.is_empty());
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn do_all(&mut self, request: Request, name: &str) -> Vec<String> {
        self.request(request, name).unwrap();
        self.run();
        self.log()
    }

    /// How the jobs ended, and what was left out, as text.
    fn events(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(event) = self.jobs.next_event() {
            out.push(match event {
                Event::Ended {
                    unit,
                    kind,
                    result,
                    cause,
                    ..
                } => format!(
                    "{} {}: {}{}",
                    kind.as_str(),
                    self.stem(unit),
                    result.as_str(),
                    cause.map(|c| format!(" ({c})")).unwrap_or_default()
                ),
                Event::LeftOut { unit, cause } => format!("without {}: {cause}", self.stem(unit)),
                Event::OrderBroken { unit } => format!("order broken at {}", self.stem(unit)),
            });
        }
        out
    }
}

#[test]
fn a_start_brings_up_what_is_needed_in_order() {
    let mut m = Machine::new(&[
        (
            "web",
            "Requires=db\nAfter=db.service\nRequires=db.service\nWants=log.service\nBefore=log.service",
        ),
        ("db", "Wants=disk.service\nAfter=disk.service"),
        ("disk", ""),
        ("log", ""),
    ]);
    assert_eq!(
        m.do_all(Request::Start, "web"),
        ["start disk", "start db", "start web", "start log"]
    );
    assert_eq!(m.do_all(Request::Start, "web"), [""; 0]);
    assert_eq!(m.do_all(Request::Stop, "disk"), ["stop disk"]);
    assert_eq!(m.do_all(Request::Stop, "db"), ["stop web", "stop db"]);
}

#[test]
fn a_failed_requirement_fails_what_needs_it_and_a_failed_wish_does_not() {
    let mut m = Machine::new(&[
        (
            "top",
            "Wants=a.service c.service\nAfter=a.service c.service",
        ),
        ("a", "Requires=b.service\nAfter=b.service"),
        ("b", ""),
        ("c", "Wants=b.service\nAfter=b.service"),
    ]);
    m.failing.push("b");
    assert_eq!(
        m.do_all(Request::Start, "top"),
        ["fail b", "start c", "start top"]
    );
    assert_eq!(
        m.events(),
        [
            "start b: failed (exit code 1)",
            "start a: dependency (it needs b.service, whose job ended with: failed)",
            "start c: done",
            "start top: done",
        ]
    );
}

#[test]
fn a_skipped_requirement_counts_as_there_unless_bound() {
    let units = [
        ("a", "Requires=c.service\nAfter=c.service"),
        ("b", "BindsTo=c.service\nAfter=c.service"),
        ("c", ""),
    ];
    let mut m = Machine::new(&units);
    m.skipped.push("c");
    assert_eq!(m.do_all(Request::Start, "a"), ["skip c", "start a"]);
    assert_eq!(m.do_all(Request::Start, "b"), ["skip c"]);
    assert!(m.events().contains(
        &"start b: dependency (it needs c.service, whose job ended with: skipped)".to_owned()
    ));
}

#[test]
fn a_missing_unit_is_named_when_required_and_left_out_when_wanted() {
    let mut m = Machine::new(&[
        ("a", "Requires=b.service"),
        ("b", "Requires=none.service"),
        ("c", "Wants=b.service none.service\nAfter=b.service"),
    ]);
    assert_eq!(
        m.request(Request::Start, "a").unwrap_err().to_string(),
        "a.service requires none.service: unit not found"
    );
    assert!(m.jobs.is_empty() && m.events().is_empty());
    assert_eq!(m.do_all(Request::Start, "c"), ["start c"]);
    assert_eq!(
        m.events(),
        [
            "without b: it needs none.service, which cannot be started",
            "without none: unit not found",
            "start c: done",
        ]
    );
}

#[test]
fn stops_run_in_reverse_and_before_starts() {
    let mut m = Machine::new(&[
        ("a", ""),
        ("b", "After=a.service"),
        ("c", "Conflicts=a.service b.service\nBefore=a.service"),
    ]);
    m.do_all(Request::Start, "a");
    m.do_all(Request::Start, "b");
    let mut log = m.do_all(Request::Start, "c");
    assert_eq!(log, ["stop b", "stop a", "start c"]);
    log = m.do_all(Request::Start, "a");
    assert_eq!(log[1..], ["start a"], "{log:?}");
    assert_eq!(log[0], "stop c");
}

#[test]
fn a_restart_takes_along_what_needs_the_unit() {
    let mut m = Machine::new(&[
        ("db", ""),
        ("web", "Requires=db.service\nAfter=db.service"),
        ("idle", "Requires=db.service"),
        ("part", "PartOf=db.service"),
    ]);
    m.do_all(Request::Start, "web");
    m.do_all(Request::Start, "part");
    let log = m.do_all(Request::Restart, "db");
    assert_eq!(log.iter().filter(|l| l.ends_with("idle")).count(), 0);
    let at = |what: &str| {
        log.iter()
            .position(|l| l == what)
            .unwrap_or_else(|| panic!("{what} in {log:?}"))
    };
    assert!(
        at("stop web") < at("stop db")
            && at("stop db") < at("start db")
            && at("start db") < at("start web")
    );
    assert!(at("stop part") < at("start part"));
    assert_eq!(m.do_all(Request::Restart, "idle"), ["start idle"]);
    let id = m.id("part");
    m.graph.set_state(id, ActiveState::Inactive);
    assert!(matches!(
        m.request(Request::TryRestart, "part"),
        Err(TransactionError::NotActive(_))
    ));
}

#[test]
fn what_is_bound_stops_when_its_unit_dies_and_what_requires_it_does_not() {
    let mut m = Machine::new(&[
        ("dev", ""),
        ("bound", "BindsTo=dev.service\nAfter=dev.service"),
        ("user", "Requires=dev.service\nAfter=dev.service"),
    ]);
    m.do_all(Request::Start, "bound");
    m.do_all(Request::Start, "user");
    let dev = m.id("dev");
    m.graph.set_state(dev, ActiveState::Failed);
    m.jobs.gone_by_itself(&m.graph, dev);
    m.run();
    assert_eq!(m.log(), ["stop bound"]);
}

#[test]
fn a_requisite_must_be_up_already() {
    let mut m = Machine::new(&[("a", "Requisite=b.service\nAfter=b.service"), ("b", "")]);
    assert_eq!(m.do_all(Request::Start, "a"), [""; 0]);
    assert_eq!(
        m.events(),
        ["start a: dependency (b.service is not active)"]
    );
    m.do_all(Request::Start, "b");
    assert_eq!(m.do_all(Request::Start, "a"), ["start a"]);
    assert_eq!(m.do_all(Request::Stop, "b"), ["stop a", "stop b"]);
}

#[test]
fn a_cycle_is_broken_at_a_wish_and_refused_among_requirements() {
    let mut m = Machine::new(&[
        (
            "top",
            "Wants=a.service b.service c.service\nAfter=a.service b.service c.service",
        ),
        ("a", "After=b.service"),
        ("b", "After=c.service"),
        ("c", "After=a.service"),
    ]);
    let log = m.do_all(Request::Start, "top");
    assert_eq!(log.len(), 3, "{log:?}");
    assert!(log.contains(&"start top".to_owned()));
    let left_out = m
        .events()
        .into_iter()
        .find(|e| e.starts_with("without"))
        .unwrap();
    assert!(
        left_out.contains("ordering cycle")
            && left_out.contains("a.service after b.service after c.service"),
        "{left_out}"
    );

    let mut m = Machine::new(&[
        ("a", "Requires=b.service\nAfter=b.service"),
        ("b", "Requires=a.service\nAfter=a.service"),
    ]);
    assert_eq!(
        m.request(Request::Start, "a").unwrap_err().to_string(),
        "ordering cycle: a.service after b.service after a.service"
    );
}

#[test]
fn conflicting_wishes_leave_one_out_and_conflicting_requirements_are_refused() {
    let mut m = Machine::new(&[
        ("top", "Wants=a.service b.service"),
        ("a", "Conflicts=b.service"),
        ("b", ""),
        ("hard", "Requires=a.service b.service"),
        ("mixed", "Requires=b.service\nWants=a.service"),
    ]);
    assert_eq!(
        m.do_all(Request::Start, "top")
            .iter()
            .filter(|l| l.ends_with(['a', 'b']))
            .count(),
        1
    );
    assert!(
        m.events()
            .iter()
            .any(|e| e == "without b: it conflicts with a.service")
    );
    assert_eq!(
        m.request(Request::Start, "hard").unwrap_err().to_string(),
        "b.service would have to be both started and stopped: it conflicts with a.service"
    );
    let log = m.do_all(Request::Start, "mixed");
    assert!(
        log.contains(&"start b".to_owned()) && log.contains(&"stop a".to_owned()),
        "{log:?}"
    );
}

#[test]
fn a_contrary_request_replaces_a_waiting_job_and_a_like_one_joins_it() {
    let mut m = Machine::new(&[("a", "After=b.service\nWants=b.service"), ("b", "")]);
    let (a, b) = (m.id("a"), m.id("b"));
    let first = m
        .jobs
        .request(&m.graph, Request::Start, a, Mode::Replace)
        .unwrap();
    let run = m.jobs.next_runnable(&m.graph).unwrap();
    assert_eq!((run.unit, run.action), (b, Action::Start));
    m.graph.set_state(b, ActiveState::Activating);
    assert_eq!(
        m.jobs
            .request(&m.graph, Request::Start, a, Mode::Replace)
            .unwrap(),
        first
    );
    assert!(m.jobs.next_runnable(&m.graph).is_none());
    assert_eq!(m.jobs.waits_for(&m.graph, a).collect::<Vec<_>>(), [b]);
    assert!(matches!(
        m.jobs.request(&m.graph, Request::Stop, b, Mode::Fail),
        Err(TransactionError::Destructive {
            pending: JobKind::Start,
            ..
        })
    ));
    let stop = m
        .jobs
        .request(&m.graph, Request::Stop, b, Mode::Replace)
        .unwrap();
    let run = m.jobs.next_runnable(&m.graph).unwrap();
    assert_eq!(
        (run.job, run.unit, run.action),
        (stop, b, Action::Stop { restarting: false })
    );
    m.graph.set_state(b, ActiveState::Inactive);
    m.jobs.finished(&m.graph, run.job, Outcome::Done);
    m.run();
    assert_eq!(m.log(), ["start a"]);
    assert_eq!(
        m.events(),
        [
            "start b: canceled (a stop of the unit took its place)",
            "stop b: done",
            "start a: done"
        ]
    );
}

#[test]
fn a_shutdown_cannot_be_undone() {
    let mut m = Machine::new(&[("down", "Conflicts=a.service\nAfter=a.service"), ("a", "")]);
    m.do_all(Request::Start, "a");
    let down = m.id("down");
    m.jobs
        .request(&m.graph, Request::Start, down, Mode::ReplaceIrreversibly)
        .unwrap();
    assert!(matches!(
        m.request(Request::Start, "a"),
        Err(TransactionError::Irreversible { .. })
    ));
    m.run();
    assert_eq!(m.log(), ["stop a", "start down"]);
}

#[test]
fn isolation_stops_the_rest() {
    let mut m = Machine::new(&[
        ("rescue", "AllowIsolate=yes\nRequires=a.service"),
        ("a", ""),
        ("b", ""),
        ("keep", "IgnoreOnIsolate=yes"),
    ]);
    for name in ["a", "b", "keep"] {
        m.do_all(Request::Start, name);
    }
    let (rescue, a) = (m.id("rescue"), m.id("a"));
    assert!(matches!(
        m.jobs.request(&m.graph, Request::Start, a, Mode::Isolate),
        Err(TransactionError::NotIsolatable(_))
    ));
    m.jobs
        .request(&m.graph, Request::Start, rescue, Mode::Isolate)
        .unwrap();
    m.run();
    let mut log = m.log();
    log.sort();
    assert_eq!(log, ["start rescue", "stop b"]);
}

#[test]
fn a_restart_of_a_unit_that_is_just_starting_begins_anew() {
    let mut m = Machine::new(&[("a", "")]);
    let a = m.id("a");
    let first = m
        .jobs
        .request(&m.graph, Request::Start, a, Mode::Replace)
        .unwrap();
    m.jobs.next_runnable(&m.graph).unwrap();
    m.graph.set_state(a, ActiveState::Activating);
    assert_eq!(
        m.jobs
            .request(&m.graph, Request::Restart, a, Mode::Replace)
            .unwrap(),
        first
    );
    m.run();
    assert_eq!(m.log(), ["stop a", "start a"]);
}

#[test]
fn a_cancelled_start_fails_what_needs_it() {
    let mut m = Machine::new(&[("a", "Requires=b.service\nAfter=b.service"), ("b", "")]);
    m.request(Request::Start, "a").unwrap();
    let b = m.id("b");
    let job = m.jobs.job_of(b).unwrap().id;
    assert!(m.jobs.cancel(&m.graph, job));
    m.run();
    assert_eq!(
        m.events(),
        [
            "start b: canceled (cancelled on request)",
            "start a: dependency (it needs b.service, whose job ended with: canceled)"
        ]
    );
}

#[test]
fn a_reload_needs_an_active_unit_and_spreads() {
    let mut m = Machine::new(&[
        ("a", "PropagatesReloadTo=b.service c.service"),
        ("b", ""),
        ("c", ""),
    ]);
    assert!(matches!(
        m.request(Request::Reload, "a"),
        Err(TransactionError::NotActive(_))
    ));
    m.do_all(Request::Start, "a");
    m.do_all(Request::Start, "b");
    assert_eq!(m.do_all(Request::Reload, "a"), ["reload a", "reload b"]);
}

#[test]
fn masked_and_broken_units_say_so() {
    let store = MemoryStore::new()
        .link("/u/m.service", "/dev/null")
        .file("/u/x.service", "[Service]\nExecStart=./x\n")
        .file("/u/t@.service", "[Service]\nExecStart=/x\n");
    let context = SpecifierContext::default();
    let loader = Loader::new(&["/u"], &store, &context);
    let (mut graph, mut jobs) = (Graph::new(), Jobs::new());
    let mut start = |name: &str| {
        let id = graph.load(&UnitName::parse(name).unwrap(), &mut |n| loader.load(n));
        jobs.request(&graph, Request::Start, id, Mode::Replace)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(start("m.service"), "unit m.service is masked");
    assert_eq!(
        start("x.service"),
        "unit x.service could not be loaded: /u/x.service:2:11: error: ExecStart=: \"./x\" is neither an absolute path nor a bare name"
    );
    assert_eq!(start("n.service"), "unit n.service not found");
    assert_eq!(
        start("t@.service"),
        "t@.service is a template, name an instance of it"
    );
}
