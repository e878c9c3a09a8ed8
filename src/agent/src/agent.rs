//! The shell around the cores: the role `orlop agent`.

mod assignment;
mod duty;
mod lead;
mod mirror;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orlop_schedule::{MachineId, StoreClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api;
use crate::client::{Client, ClientError};
use crate::connect::TlsFlags;
use crate::facts::Facts;
use crate::metrics::EngineMetrics;
use crate::records::MachineRecord;
use crate::registry::{Change, PRESENCE_TTL, Registry};
use crate::supervisor::Supervisor;

/// What the agent is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The store's client URLs.
    pub endpoints: Vec<String>,
    /// The certificates for those at `https://`.
    pub tls: TlsFlags,
    /// This machine's id.
    pub machine_id: String,
    /// What this machine has.
    pub facts: Facts,
    /// Where units' files go; PID 1 reads it.
    pub units_directory: PathBuf,
    /// Where the last assignment is kept.
    pub state_directory: PathBuf,
    /// The id of this boot.
    pub boot_id: String,
    /// Where fleet's API is served over TCP.
    pub listen: Vec<SocketAddr>,
    /// Whether those who come over TCP may change anything: nobody asks who they are.
    pub listen_for_writes: bool,
    /// The API on a socket in the file system, where whoever may open it may change everything.
    pub socket: Option<PathBuf>,
    /// The group that may open the socket beside its owner.
    pub socket_group: Option<u32>,
    /// Whether this machine may lead the scheduler.
    pub may_lead: bool,
    /// How long the leases live.
    pub timing: Timing,
}

/// How long leases live without being kept alive; they are five times in that.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The machine's: its states and services go with it.
    pub presence_ttl: Duration,
    /// The leader's: the time without a scheduler after its end.
    pub leader_ttl: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            presence_ttl: PRESENCE_TTL,
            leader_ttl: Duration::from_secs(5),
        }
    }
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The runtime cannot be made.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The store's endpoints are wrong.
    #[error("reach the store")]
    Client(#[from] ClientError),
    /// A directory cannot be used.
    #[error("use the directory {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The API cannot be served.
    #[error("serve {address}")]
    Listen {
        /// Where.
        address: String,
        /// The cause.
        #[source]
        err: io::Error,
    },
}

/// What the agent's tasks share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) id: MachineId,
    pub(crate) client: Client,
    pub(crate) supervisor: Arc<dyn Supervisor>,
    state: Mutex<State>,
    /// Counts what has changed in the state.
    changes: watch::Sender<u64>,
    started: Instant,
    pub(crate) engine_metrics: EngineMetrics,
}

/// What is known of the cluster now.
pub(crate) struct State {
    pub(crate) registry: Registry,
    /// Whether the registry follows the store.
    pub(crate) synced: bool,
    /// The store's revision up to which it does.
    pub(crate) revision: i64,
    /// Counts how often all was read anew.
    pub(crate) readings: u64,
    /// What the engine has not yet seen.
    pub(crate) unseen: Vec<Change>,
    clock: StoreClock,
    /// The lease that stands for this machine.
    pub(crate) lease: Option<i64>,
    /// What this machine has.
    pub(crate) facts: MachineRecord,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves the registry as a half of a change at worst: it is read anew in time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes whoever waits for changes.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Notes whether the store has just shown that it has a leader.
    pub(crate) fn heard_store(&self, has_leader: bool) {
        let now = self.started.elapsed();
        let mut state = self.state();
        let elapsed = state.clock.observe(now, has_leader);
        state.registry.set_clock(elapsed);
    }
}

/// Runs until SIGTERM or SIGINT. Units are left alone: a restart of the agent moves nothing.
///
/// # Errors
/// See [`AgentError`].
pub fn run(
    settings: Settings,
    supervisor: Arc<dyn Supervisor>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AgentError::Runtime)?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Runtime)?;
        tokio::select! {
            ended = serve(settings, supervisor, ready) => ended,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    // Steps that PID 1 is taking for us go on without us.
    runtime.shutdown_background();
    ended
}

/// The agent as a future that ends with an error alone. To drop it is to kill the agent.
///
/// # Errors
/// See [`AgentError`].
pub async fn serve(
    settings: Settings,
    supervisor: Arc<dyn Supervisor>,
    ready: impl FnOnce(&[SocketAddr]),
) -> Result<(), AgentError> {
    for path in [&settings.units_directory, &settings.state_directory] {
        std::fs::create_dir_all(path).map_err(|err| AgentError::Directory {
            path: path.clone(),
            err,
        })?;
    }
    let client = Client::new(&settings.endpoints, &settings.tls)?;
    let id = MachineId::new(&settings.machine_id);
    let shared = Arc::new(Shared {
        id,
        client,
        supervisor,
        state: Mutex::new(State {
            registry: Registry::new(settings.timing.presence_ttl),
            synced: false,
            revision: 0,
            readings: 0,
            unseen: Vec::new(),
            clock: StoreClock::default(),
            lease: None,
            facts: settings.facts.look(),
        }),
        changes: watch::Sender::new(0),
        started: Instant::now(),
        settings,
        engine_metrics: EngineMetrics::default(),
    });
    let faces = api::bind(&shared.settings).await?;
    ready(&faces.addresses());
    let may_lead = shared.settings.may_lead;
    tokio::select! {
        () = mirror::follow(&shared) => Ok(()),
        () = duty::keep_presence(&shared) => Ok(()),
        ended = duty::work(&shared) => ended,
        () = lead::campaign(&shared), if may_lead => Ok(()),
        ended = api::serve(faces, Arc::clone(&shared)) => ended,
    }
}

/// The shortest time between two rounds of a task that follows changes: of many at once most are seen together.
pub(crate) const ROUND: Duration = Duration::from_millis(50);

/// A pause that grows with each failure, to at most 2 s.
pub(crate) async fn back_off(failures: &mut u32) {
    let pause = Duration::from_millis(100) * 2_u32.saturating_pow(*failures);
    *failures = failures.saturating_add(1).min(5);
    tokio::time::sleep(pause.min(Duration::from_secs(2))).await;
}

/// An error with all its causes, `a: b: c`.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut next = err.source();
    while let Some(err) = next {
        text.push_str(": ");
        text.push_str(&err.to_string());
        next = err.source();
    }
    text
}

/// Keys and values.
pub(crate) type Values = BTreeMap<String, String>;
