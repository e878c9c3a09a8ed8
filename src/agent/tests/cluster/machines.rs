//! Machines whose supervisors are made up, and a log of all that they do.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use orlop_agent::agent::{Settings, Timing, serve};
use orlop_agent::client::{Client, Write};
use orlop_agent::hands::Observed;
use orlop_agent::keys::Key;
use orlop_agent::records::{MachineRecord, OptionRecord, UnitRecord};
use orlop_agent::supervisor::{Failure, Supervisor};
use orlop_schedule::{UnitName, parse};

use crate::store::{Kind, Store, Way};

const PATIENCE: Duration = Duration::from_secs(30);

/// Something that a supervisor did: the machine, the word, the unit.
pub(crate) type Event = (String, &'static str, String);

#[derive(Default)]
struct Processes {
    running: BTreeSet<UnitName>,
    /// Starts of these fail.
    broken: BTreeSet<UnitName>,
}

/// A supervisor whose units are names in a set; it outlives its agents as PID 1 does.
#[derive(Clone)]
pub(crate) struct Made {
    machine: String,
    processes: Arc<Mutex<Processes>>,
    log: Arc<Mutex<Vec<Event>>>,
}

impl Made {
    fn note(&self, word: &'static str, unit: &UnitName) {
        let event = (self.machine.clone(), word, unit.to_string());
        self.log.lock().expect("the log").push(event);
    }

    pub(crate) fn running(&self) -> BTreeSet<String> {
        let processes = self.processes.lock().expect("the processes");
        processes.running.iter().map(UnitName::to_string).collect()
    }

    pub(crate) fn break_unit(&self, unit: &str) {
        let unit = UnitName::parse(unit).expect("a unit's name");
        self.processes
            .lock()
            .expect("the processes")
            .broken
            .insert(unit);
    }
}

impl Supervisor for Made {
    fn list(&self) -> Result<BTreeMap<UnitName, Observed>, String> {
        let processes = self.processes.lock().map_err(|err| err.to_string())?;
        let entry = |unit: &UnitName| {
            let observed = Observed {
                load: "loaded".into(),
                active: "active".into(),
                sub: "running".into(),
            };
            (unit.clone(), observed)
        };
        Ok(processes.running.iter().map(entry).collect())
    }

    fn reload(&self) -> Result<(), String> {
        Ok(())
    }

    fn start(&self, unit: &UnitName) -> Result<(), String> {
        self.note("start", unit);
        let mut processes = self.processes.lock().map_err(|err| err.to_string())?;
        if processes.broken.contains(unit) {
            return Err("exit code 3".to_owned());
        }
        processes.running.insert(unit.clone());
        Ok(())
    }

    fn stop(&self, unit: &UnitName) -> Result<(), String> {
        self.note("stop", unit);
        let mut processes = self.processes.lock().map_err(|err| err.to_string())?;
        processes.running.remove(unit);
        Ok(())
    }

    fn failure(&self, _: &UnitName) -> Failure {
        Failure::default()
    }
}

/// An agent on a thread of its own; to drop it is to kill it.
struct Agent {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // Its panic is the test's.
            thread.join().expect("the agent");
        }
    }
}

pub(crate) struct Machine {
    pub(crate) supervisor: Made,
    pub(crate) way: Way,
    settings: Settings,
    agent: Option<Agent>,
    /// Where its API is.
    pub(crate) api: Option<SocketAddr>,
}

impl Machine {
    pub(crate) fn start_agent(&mut self) {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (ready, addresses) = std::sync::mpsc::channel();
        let settings = self.settings.clone();
        let supervisor = Arc::new(self.supervisor.clone());
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let ready = |addresses: &[SocketAddr]| {
                    ready.send(addresses.to_vec()).expect("the test listens");
                };
                tokio::select! {
                    ended = serve(settings, supervisor, ready) => ended.expect("the agent runs"),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        self.agent = Some(Agent {
            stop: Some(stop),
            thread: Some(thread),
        });
        let addresses = addresses
            .recv_timeout(PATIENCE)
            .expect("the agent is ready");
        self.api = addresses.first().copied();
    }

    pub(crate) fn kill_agent(&mut self) {
        self.agent = None;
    }

    /// As after a loss of power: no processes, no /run, another boot.
    pub(crate) fn reboot(&mut self) {
        self.kill_agent();
        let mut processes = self.supervisor.processes.lock().expect("the processes");
        processes.running.clear();
        drop(processes);
        let _ = std::fs::remove_dir_all(&self.settings.units_directory);
        self.settings.boot_id.push('+');
    }
}

pub(crate) struct Cluster {
    pub(crate) store: Store,
    pub(crate) machines: Vec<Machine>,
    log: Arc<Mutex<Vec<Event>>>,
    client: Client,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

impl Cluster {
    /// Machines m0, m1, … of 1000 MB each.
    pub(crate) fn new(kind: Kind, count: usize) -> Self {
        Self::with(Store::new(kind, false), count)
    }

    /// The same, and the store takes only clients with a certificate.
    pub(crate) fn with_tls(kind: Kind, count: usize) -> Self {
        Self::with(Store::new(kind, true), count)
    }

    fn with(store: Store, count: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let client = runtime
            .block_on(async { Client::new(&[store.url(store.address())], &store.certificates()) })
            .expect("a client");
        let directory = tempfile::tempdir().expect("a directory");
        let log: Arc<Mutex<Vec<Event>>> = Arc::default();
        let machines = (0..count).map(|n| {
            let way = Way::new(store.address());
            let id = format!("m{n}");
            let own = directory.path().join(&id);
            let facts = MachineRecord {
                ip: format!("10.0.0.{n}"),
                metadata: BTreeMap::from([("number".to_owned(), n.to_string())]),
                memory_bytes: 1000 << 20,
                cpu_milli: 4000,
                ..MachineRecord::default()
            };
            Machine {
                supervisor: Made {
                    machine: id.clone(),
                    processes: Arc::default(),
                    log: Arc::clone(&log),
                },
                settings: Settings {
                    endpoints: vec![store.url(way.address())],
                    tls: store.certificates(),
                    machine_id: id,
                    facts: facts.into(),
                    units_directory: own.join("units"),
                    state_directory: own.join("state"),
                    boot_id: "boot".to_owned(),
                    listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
                    listen_for_writes: true,
                    socket: None,
                    socket_group: None,
                    may_lead: true,
                    timing: Timing {
                        presence_ttl: Duration::from_secs(2),
                        leader_ttl: Duration::from_secs(2),
                    },
                },
                way,
                agent: None,
                api: None,
            }
        });
        let mut cluster = Self {
            machines: machines.collect(),
            store,
            log,
            client,
            runtime,
            _directory: directory,
        };
        for machine in &mut cluster.machines {
            machine.start_agent();
        }
        cluster.until("all machines are there", |c| {
            c.keys("/orlop/fleet/presence/").len() == count
        });
        cluster
    }

    pub(crate) fn write(&self, writes: &[Write]) {
        let end = Instant::now() + PATIENCE;
        // The first try after a restart of the store finds the old connection.
        while let Err(err) = self.runtime.block_on(self.client.transact(&[], writes)) {
            assert!(Instant::now() < end, "{err}");
        }
    }

    pub(crate) fn submit(&self, name: &str, section: &str, target: &str) {
        let unit = UnitName::parse(name).expect("a unit's name");
        let text = format!("[Service]\nExecStart=/bin/true\n[X-Fleet]\nLostAfter=3\n{section}\n");
        let options = parse(&text).expect("options");
        let record = UnitRecord {
            options: options.iter().map(OptionRecord::from).collect(),
        };
        let record = serde_json::to_string(&record).expect("JSON");
        self.write(&[
            Write::Put(Key::Unit(unit.clone()).to_string(), record, 0),
            Write::Put(Key::Target(unit).to_string(), target.to_owned(), 0),
        ]);
    }

    pub(crate) fn target(&self, name: &str, target: &str) {
        let unit = UnitName::parse(name).expect("a unit's name");
        self.write(&[Write::Put(
            Key::Target(unit).to_string(),
            target.to_owned(),
            0,
        )]);
    }

    pub(crate) fn destroy(&self, name: &str) {
        let unit = UnitName::parse(name).expect("a unit's name");
        self.write(&[
            Write::Delete(Key::Unit(unit.clone()).to_string()),
            Write::Delete(Key::Target(unit).to_string()),
        ]);
    }

    /// Keys and values with a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> BTreeMap<String, String> {
        let (keys, _) = self
            .runtime
            .block_on(self.client.read_all(prefix))
            .expect("the store answers");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        keys.into_iter()
            .map(|kv| (text(kv.key), text(kv.value)))
            .collect()
    }

    /// A request to the first machine's API: the status and the body.
    pub(crate) fn api(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        self.ask(method, &format!("/fleet/v1{path}"), body)
    }

    /// A request to the first machine: the status and the body.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let address = self.machines[0].api.expect("the first machine serves");
        let mut stream = TcpStream::connect(address).expect("connect to the API");
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream
            .write_all(request.as_bytes())
            .expect("send the request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read the answer");
        let status = answer
            .split_whitespace()
            .nth(1)
            .and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.expect("a status"), body.to_owned())
    }

    /// The machines on which a unit runs.
    pub(crate) fn on(&self, unit: &str) -> Vec<usize> {
        let machines = self.machines.iter().enumerate();
        machines
            .filter(|(_, machine)| machine.supervisor.running().contains(unit))
            .map(|(n, _)| n)
            .collect()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.log.lock().expect("the log").clone()
    }

    /// Looks again and again until something holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < end,
                "{what} does not come about; events: {:#?}",
                self.events()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}
