//! What this node does for the cluster: shows that it is there, carries out what it is assigned, and reports.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use orlop_schedule::UnitName;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::{AgentError, ROUND, Shared, Values, assignment, back_off, chain};
use crate::client::{ClientError, Write};
use crate::hands::{self, Chain, Observed, Step};
use crate::keys::Key;
use crate::records::{Assignment, MachineRecord, UnitState};
use crate::services;
use crate::supervisor::{Failure, Supervisor};

/// How often PID 1 is asked what runs.
const LOOK: Duration = Duration::from_secs(1);
/// Keys in one transaction; etcd takes 128.
const BATCH: usize = 100;
/// How long a unit whose step has failed is left alone.
const REST: Duration = Duration::from_secs(5);

/// Keeps the lease that stands for this machine.
pub(super) async fn keep_presence(shared: &Shared) {
    let mut failures = 0;
    loop {
        match register(shared).await {
            Ok(lease) => {
                failures = 0;
                shared.state().lease = Some(lease);
                shared.changed();
                hold(shared, lease).await;
                shared.state().lease = None;
            }
            Err(err) => {
                shared.heard_store(false);
                log::debug!("cannot register: {}", chain(&err));
                back_off(&mut failures).await;
            }
        }
    }
}

async fn register(shared: &Shared) -> Result<i64, ClientError> {
    let lease = shared
        .client
        .grant(shared.settings.timing.presence_ttl)
        .await?;
    let writes = [
        machine_record(shared, shared.settings.facts.look()),
        Write::Put(
            Key::Presence(shared.id.clone()).to_string(),
            shared.settings.boot_id.clone(),
            lease,
        ),
    ];
    shared.client.transact(&[], &writes).await?;
    shared.heard_store(true);
    log::info!("registered as {}", shared.id);
    Ok(lease)
}

/// The write that tells what the machine has, which is what it has from now on.
fn machine_record(shared: &Shared, facts: MachineRecord) -> Write {
    let text = serde_json::to_string(&facts).unwrap_or_default();
    shared.state().facts = facts;
    Write::Put(Key::Machine(shared.id.clone()).to_string(), text, 0)
}

/// Tells what the machine has when that has changed.
async fn renew_facts(shared: &Shared) {
    let found = shared.settings.facts.look();
    let known = shared.state().facts.clone();
    if found == known {
        return;
    }
    let write = machine_record(shared, found);
    if let Err(err) = shared.client.transact(&[], &[write]).await {
        // It is found to be new once more.
        shared.state().facts = known;
        log::debug!("cannot tell what this machine has: {}", chain(&err));
    }
}

/// Until the lease has ended.
async fn hold(shared: &Shared, lease: i64) {
    let mut beat = tokio::time::interval(shared.settings.timing.presence_ttl / 5);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        match shared.client.keep_alive(lease).await {
            Ok(true) => {
                shared.heard_store(true);
                renew_facts(shared).await;
            }
            Ok(false) => {
                log::warn!("the lease of this machine has ended, registering anew");
                return;
            }
            Err(err) => {
                shared.heard_store(false);
                log::debug!("cannot keep the lease alive: {}", chain(&err));
            }
        }
    }
}

/// What has come of a unit's steps.
struct Ended {
    unit: UnitName,
    chain: Chain,
    outcome: Result<(), String>,
    /// The step that failed was the start: what follows is the supervisor's business.
    at_start: bool,
}

/// What is done and known on this node.
struct Duty {
    assignment: Assignment,
    busy: BTreeSet<UnitName>,
    resting: BTreeMap<UnitName, tokio::time::Instant>,
    observed: BTreeMap<UnitName, Observed>,
    /// Why those of the assignment that have failed did so.
    failures: BTreeMap<UnitName, Failure>,
    /// What was written under which lease.
    reported: (i64, Values),
    returning: bool,
    readings: u64,
}

/// Carries out what is assigned, and reports what is.
pub(super) async fn work(shared: &Arc<Shared>) -> Result<(), AgentError> {
    let settings = &shared.settings;
    let last = assignment::read(&settings.state_directory);
    let mut duty = Duty {
        assignment: hands::after_boot(last, &settings.boot_id),
        busy: BTreeSet::new(),
        resting: BTreeMap::new(),
        observed: BTreeMap::new(),
        failures: BTreeMap::new(),
        reported: (0, Values::new()),
        returning: true,
        readings: 0,
    };
    let mut changes = shared.subscribe();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (ended_sender, mut ended) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = changes.changed() => {}
            Some(end) = ended.recv() => {
                duty.note(shared, end)?;
                while let Ok(end) = ended.try_recv() {
                    duty.note(shared, end)?;
                }
            }
        }
        let supervisor = Arc::clone(&shared.supervisor);
        match spawn_blocking(move || supervisor.list()).await {
            Ok(Ok(observed)) => duty.observed = observed,
            Ok(Err(err)) => {
                log::warn!("cannot see what runs: {err}");
                continue;
            }
            Err(_) => continue,
        }
        duty.look_into_failures(shared).await;
        let chains = duty.plan(shared)?;
        for (unit, chain) in chains {
            if chain.steps.is_empty() {
                duty.settle(shared, &unit, &chain)?;
                continue;
            }
            duty.busy.insert(unit.clone());
            let (shared, sender) = (Arc::clone(shared), ended_sender.clone());
            tokio::spawn(async move {
                let end = spawn_blocking(move || take_steps(&shared, unit, chain)).await;
                if let Ok(end) = end {
                    // Nobody listens when the agent ends.
                    let _ = sender.send(end);
                }
            });
        }
        duty.report(shared).await;
        tokio::time::sleep(ROUND).await;
    }
}

impl Duty {
    /// Asks why units have failed, once for each failure.
    async fn look_into_failures(&mut self, shared: &Shared) {
        let observed = &self.observed;
        let has_failed = |unit: &UnitName| observed.get(unit).is_some_and(|o| o.active == "failed");
        self.failures.retain(|unit, _| has_failed(unit));
        let assigned = self.assignment.units.keys();
        let new: Vec<UnitName> = assigned
            .filter_map(|name| UnitName::parse(name).ok())
            .filter(|unit| has_failed(unit) && !self.failures.contains_key(unit))
            .collect();
        for unit in new {
            let (supervisor, asked) = (Arc::clone(&shared.supervisor), unit.clone());
            if let Ok(failure) = spawn_blocking(move || supervisor.failure(&asked)).await {
                self.failures.insert(unit, failure);
            }
        }
    }

    /// The steps that are to be taken now: none while the store is out of reach.
    fn plan(&mut self, shared: &Shared) -> Result<BTreeMap<UnitName, Chain>, AgentError> {
        let wanted = {
            let state = shared.state();
            if !state.synced {
                self.returning = true;
                return Ok(BTreeMap::new());
            }
            if state.readings != self.readings {
                self.readings = state.readings;
                self.returning = true;
            }
            hands::wanted(&state.registry, &shared.id)
        };
        let directory = &shared.settings.units_directory;
        let files = list(directory).map_err(|err| AgentError::Directory {
            path: directory.clone(),
            err,
        })?;
        let now = tokio::time::Instant::now();
        self.resting.retain(|_, until| *until > now);
        let mut left_alone = self.busy.clone();
        left_alone.extend(self.resting.keys().cloned());
        let plan = hands::plan(
            &wanted,
            &self.assignment,
            &files,
            &self.observed,
            &left_alone,
            self.returning,
        );
        self.returning &= plan.evicting;
        Ok(plan.chains)
    }

    /// Remembers what has come of a unit's steps.
    fn note(&mut self, shared: &Shared, end: Ended) -> Result<(), AgentError> {
        self.busy.remove(&end.unit);
        let mut chain = end.chain;
        if let Err(reason) = end.outcome {
            log::warn!("{}: {reason}", end.unit);
            if !end.at_start {
                let until = tokio::time::Instant::now() + REST;
                self.resting.insert(end.unit.clone(), until);
                if let Some(assigned) = self.assignment.units.get_mut(end.unit.as_str()) {
                    assigned.error = Some(reason);
                }
                return Ok(());
            }
            if let Some(then) = &mut chain.then {
                then.error = Some(reason);
            }
        }
        self.settle(shared, &end.unit, &chain)
    }

    fn settle(
        &mut self,
        shared: &Shared,
        unit: &UnitName,
        chain: &Chain,
    ) -> Result<(), AgentError> {
        match &chain.then {
            Some(assigned) => {
                let units = &mut self.assignment.units;
                units.insert(unit.as_str().to_owned(), assigned.clone());
            }
            None => {
                self.assignment.units.remove(unit.as_str());
            }
        }
        let directory = &shared.settings.state_directory;
        assignment::write(directory, &self.assignment).map_err(|err| AgentError::Directory {
            path: assignment::path(directory),
            err,
        })
    }

    /// Writes what has changed since it was reported last.
    async fn report(&mut self, shared: &Shared) {
        let (lease, desired) = {
            let state = shared.state();
            let Some(lease) = state.lease.filter(|_| state.synced) else {
                return;
            };
            (lease, self.values(shared, &state))
        };
        if self.reported.0 != lease {
            self.reported = (lease, Values::new());
            // An earlier agent of this machine may have left some.
            let stale = {
                let state = shared.state();
                let states = state.registry.states.iter();
                states
                    .filter(|(_, machines)| machines.contains_key(&shared.id))
                    .map(|(unit, _)| Key::State(unit.clone(), shared.id.clone()).to_string())
                    .collect::<Vec<_>>()
            };
            for key in stale {
                self.reported.1.insert(key, String::new());
            }
        }
        let known = &self.reported.1;
        let puts = desired
            .iter()
            .filter(|(key, value)| known.get(*key) != Some(value))
            .map(|(key, value)| Write::Put(key.clone(), value.clone(), lease));
        let deletes = known.keys().filter(|key| !desired.contains_key(*key));
        let deletes = deletes.map(|key| Write::Delete(key.clone()));
        let writes: Vec<Write> = deletes.chain(puts).collect();
        for chunk in writes.chunks(BATCH) {
            if let Err(err) = shared.client.transact(&[], chunk).await {
                log::debug!("cannot report: {}", chain(&err));
                return;
            }
            for write in chunk {
                match write {
                    Write::Put(key, value, _) => {
                        self.reported.1.insert(key.clone(), value.clone());
                    }
                    Write::Delete(key) => {
                        self.reported.1.remove(key);
                    }
                }
            }
        }
    }

    /// What the store is to say of this node's units.
    fn values(&self, shared: &Shared, state: &super::State) -> Values {
        let mut values = Values::new();
        let none = Observed::default();
        for (name, assigned) in &self.assignment.units {
            let Ok(unit) = UnitName::parse(name) else {
                continue;
            };
            let observed = self.observed.get(&unit).unwrap_or(&none);
            let failure = self.failures.get(&unit);
            let or =
                |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
            let report = UnitState {
                load: or(&observed.load, "loaded"),
                active: or(&observed.active, "inactive"),
                sub: or(&observed.sub, "dead"),
                hash: assigned.hash.clone(),
                fence: assigned.fence,
                launched: assigned.launched,
                error: assigned.error.clone().or_else(|| {
                    let reason = failure.map(|failure| failure.reason.clone());
                    reason.filter(|reason| !reason.is_empty())
                }),
                log: failure
                    .map(|failure| failure.log.clone())
                    .unwrap_or_default(),
            };
            let key = Key::State(unit.clone(), shared.id.clone()).to_string();
            values.insert(key, serde_json::to_string(&report).unwrap_or_default());
            if matches!(observed.active.as_str(), "active" | "reloading")
                && let Some(job) = state.registry.job(&unit)
            {
                let address = &state.facts.ip;
                values.extend(services::published(&unit, &job.file, &shared.id, address));
            }
        }
        values
    }
}

fn list(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string()
            && !name.ends_with('~')
        {
            names.insert(name);
        }
    }
    Ok(names)
}

/// Takes a unit's steps, on a thread that may block.
fn take_steps(shared: &Shared, unit: UnitName, chain: Chain) -> Ended {
    let mut outcome = Ok(());
    let mut at_start = false;
    for step in &chain.steps {
        at_start = *step == Step::Start;
        outcome = take_step(
            &*shared.supervisor,
            &shared.settings.units_directory,
            &unit,
            step,
        );
        if outcome.is_err() {
            break;
        }
    }
    Ended {
        unit,
        chain,
        outcome,
        at_start,
    }
}

fn take_step(
    supervisor: &dyn Supervisor,
    directory: &Path,
    unit: &UnitName,
    step: &Step,
) -> Result<(), String> {
    let remove = |file: &str| match std::fs::remove_file(directory.join(file)) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(format!(
            "cannot remove {}: {err}",
            directory.join(file).display()
        )),
        _ => Ok(()),
    };
    match step {
        Step::Stop => {
            log::info!("stopping {unit}");
            supervisor.stop(unit)
        }
        Step::Remove { file } => {
            remove(file)?;
            supervisor.reload()
        }
        Step::Write {
            file,
            text,
            instead_of,
        } => {
            if let Some(old) = instead_of {
                remove(old)?;
            }
            let path = directory.join(file);
            assignment::write_file(&path, text.as_bytes(), false)
                .map_err(|err| format!("cannot write {}: {err}", path.display()))?;
            supervisor.reload()
        }
        Step::Start => {
            log::info!("starting {unit}");
            supervisor.start(unit)
        }
    }
}
