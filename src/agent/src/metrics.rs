//! What is counted, as fleet's monitoring knows it, in Prometheus' text format (version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often something was done, in vain too, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Count {
    done: u64,
    failed: u64,
    took: Duration,
}

impl Count {
    fn add(&mut self, ok: bool, took: Duration) {
        self.done += 1;
        self.failed += u64::from(!ok);
        self.took += took;
    }
}

/// Counts by kind, which many write.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<BTreeMap<&'static str, Count>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, kind: &'static str, ok: bool, took: Duration) {
        self.lock().entry(kind).or_default().add(ok, took);
    }
}

/// The leader's part.
#[derive(Debug, Default)]
pub(crate) struct EngineMetrics {
    /// When this machine began to lead, in seconds since 1970; 0 while it does not.
    leading_since: AtomicU64,
    passes: Mutex<Count>,
    tasks: Counts,
}

impl EngineMetrics {
    pub(crate) fn leads(&self, leads: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = now.map_or(0, |since| since.as_secs());
        self.leading_since
            .store(if leads { since } else { 0 }, Relaxed);
    }

    /// A pass over the cluster: decisions, and their writes.
    pub(crate) fn pass(&self, ok: bool, took: Duration) {
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        passes.add(ok, took);
    }

    /// A unit that was put on a machine, or taken from one.
    pub(crate) fn task(&self, is_placed: bool, ok: bool) {
        let kind = match is_placed {
            true => "AttemptScheduleUnit",
            false => "UnscheduleUnit",
        };
        self.tasks.add(kind, ok, Duration::ZERO);
    }
}

fn begin(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// One value without a label.
pub(crate) fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    begin(text, name, "gauge", help);
    let _ = writeln!(text, "{name} {value}");
}

/// `fleet_engine_…`
pub(crate) fn engine(text: &mut String, metrics: &EngineMetrics) {
    let since = metrics.leading_since.load(Relaxed);
    let help =
        "When this machine began to lead the scheduler, in seconds since 1970; 0 when it does not.";
    gauge(text, "fleet_engine_leader_start_time", help, since);
    let passes = *metrics
        .passes
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    for (name, help, value) in [
        ("count_total", "Passes of the scheduler.", passes.done),
        (
            "failure_count_total",
            "Passes whose writes failed.",
            passes.failed,
        ),
    ] {
        let name = format!("fleet_engine_reconcile_{name}");
        begin(text, &name, "counter", help);
        let _ = writeln!(text, "{name} {value}");
    }
    let name = "fleet_engine_reconcile_duration_second";
    begin(text, name, "summary", "What passes took.");
    let took = passes.took.as_secs_f64();
    let _ = writeln!(text, "{name}_sum {took}\n{name}_count {}", passes.done);
    let tasks = metrics.tasks.lock();
    for (name, help, value) in [
        (
            "count_total",
            "Units put on machines and taken from them.",
            (|c| c.done) as fn(&Count) -> u64,
        ),
        (
            "failure_count_total",
            "The same, where the store did not take it.",
            |c| c.failed,
        ),
    ] {
        let name = format!("fleet_engine_task_{name}");
        begin(text, &name, "counter", help);
        for (kind, count) in tasks.iter() {
            let _ = writeln!(text, "{name}{{type=\"{kind}\"}} {}", value(count));
        }
    }
}

/// `fleet_registry_…`: requests to the store.
pub(crate) fn registry(text: &mut String, requests: &Counts) {
    let requests = requests.lock();
    for (name, help, value) in [
        (
            "count_total",
            "Requests to the store.",
            (|c| c.done) as fn(&Count) -> u64,
        ),
        ("failed_count_total", "Requests that failed.", |c| c.failed),
    ] {
        let name = format!("fleet_registry_operation_{name}");
        begin(text, &name, "counter", help);
        for (kind, count) in requests.iter() {
            let _ = writeln!(text, "{name}{{type=\"{kind}\"}} {}", value(count));
        }
    }
    let name = "fleet_registry_operation_duration_second";
    begin(text, name, "summary", "What requests took.");
    for (kind, count) in requests.iter() {
        let (took, done) = (count.took.as_secs_f64(), count.done);
        let _ = writeln!(text, "{name}_sum{{ops=\"{kind}\"}} {took}");
        let _ = writeln!(text, "{name}_count{{ops=\"{kind}\"}} {done}");
    }
}
