//! The shell around a member: one thread steps it, one serves etcd's v3 and v2 APIs and a little HTTP on the same port,
//! and carries messages between members.

mod authority;
mod bootstrap;
mod cluster;
mod connections;
mod http;
mod join;
mod kv;
mod lease;
mod maintenance;
mod metrics;
mod peers;
mod proxy;
mod refetch;
mod scrub;
mod shared;
mod tls;
mod token;
mod turns;
mod v2;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::Routes;

use crate::disk::{Directory, Disk};
use crate::node::{Input, Node, NodeError, Options, Outbox, Output};
use crate::proto::etcdserverpb as pb;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;
use crate::state::Syncs;
use bootstrap::First;
use connections::Front;
use join::Found;
use peers::Lanes;
use refetch::Lost;
use shared::{Shared, Ticket};
use tls::PeerTls;

pub(crate) use bootstrap::first_member;
pub use bootstrap::{Bootstrap, BootstrapError, member_id};
pub use join::{Joining, own_address};
pub use peers::{PEER_PORT, address_of};
pub use refetch::{ASIDE, DISCOVERY_FILE, look_at_state};
pub use tls::{MEMBER_NAME, TlsFiles};
pub use token::Token;

/// The version of etcd whose API is answered, as clients ask for it.
pub const ETCD_VERSION: &str = "3.4.23";
/// The version of the API that the cluster as a whole speaks.
pub const CLUSTER_VERSION: &str = "3.4.0";
/// Requests that are gathered for one step.
const GATHER: usize = 4096;
/// How long streams may take to end at a shutdown.
const GRACE: Duration = Duration::from_millis(500);

/// How a member is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The member's name.
    pub name: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// Where clients are served.
    pub listen: Vec<SocketAddr>,
    /// The URLs that clients are told.
    pub client_urls: Vec<String>,
    /// Where other members are listened to.
    pub peer_listen: Vec<SocketAddr>,
    /// The URLs that other members are told.
    pub peer_urls: Vec<String>,
    /// What to be when there is no data yet.
    pub bootstrap: Bootstrap,
    /// Certificates.
    pub tls: Tls,
    /// The machine's own; the seed is drawn anew.
    pub options: Options,
}

/// Where TLS is spoken, and with which certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Where clients are served with TLS, besides [`Settings::listen`].
    pub listen: Vec<SocketAddr>,
    /// For clients; needed when there is an address to serve them on.
    pub clients: Option<TlsFiles>,
    /// For members. Without it they talk without TLS.
    pub peers: Option<TlsFiles>,
}

/// Why the store ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data directory cannot be used.
    #[error("use the data directory {}", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// An address cannot be listened on.
    #[error("listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The cause.
        #[source]
        err: io::Error,
    },
    /// The certificates cannot be used.
    #[error("set up TLS")]
    Tls(#[from] orlop_tls::TlsError),
    /// Members without an authority cannot tell who is one.
    #[error("members need the authority of their certificates (peer-trusted-ca-file)")]
    NoPeerAuthority,
    /// It is not known what the member is to be.
    #[error("begin without data")]
    Bootstrap(#[from] BootstrapError),
    /// What was durable is lost, and there is no other member that has it.
    #[error(
        "the data in {} is damaged, and this is the only member, so that no other one has it: put back a copy of the directory, or move it away and begin from a snapshot (etcdctl snapshot restore)",
        path.display()
    )]
    DamagedAlone {
        /// The directory.
        path: PathBuf,
        /// What is damaged.
        #[source]
        err: NodeError,
    },
    /// What was durable is lost, and without this member the others, mostly one of two, are too few to decide anything.
    #[error(
        "the data in {} is damaged, and the other member cannot let this one in anew, for it takes both to decide that: save the state there (etcdctl snapshot save), and begin from it (etcdctl snapshot restore)",
        path.display()
    )]
    DamagedOfTwo {
        /// The directory.
        path: PathBuf,
        /// What is damaged.
        #[source]
        err: NodeError,
    },
    /// The data is not in the format of this version.
    #[error(
        "the data in {} was written by another version of Orlop: start that version, or move the directory away, and begin from a snapshot (etcdctl snapshot restore) or let other members bring this one up to date: without a token, remove it there and add it anew first (etcdctl member)",
        path.display()
    )]
    OtherVersion {
        /// The directory.
        path: PathBuf,
        /// What it is in.
        #[source]
        err: NodeError,
    },
    /// A read met damage. The next start finds out how far it goes.
    #[error("damage was met in {}: the next start looks at all of it, and fetches it from the other members", .0.display())]
    Damage(PathBuf),
    /// The member was removed from its cluster.
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    /// The runtime cannot be made.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
    /// The member.
    #[error("member")]
    Node(#[from] NodeError),
    /// No thread can be started.
    #[error("start the member's thread")]
    Thread(#[source] io::Error),
    /// The member's thread is gone without an error of its own.
    #[error("the member's thread has ended")]
    Gone,
}

/// A member that is about to serve.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where clients are served: what was asked for, with the ports that were chosen.
    pub listen: Vec<SocketAddr>,
    /// The cluster's id; 0 when clients are passed on to members elsewhere.
    pub cluster: u64,
    /// The member's id; 0 when clients are passed on to members elsewhere.
    pub member: u64,
}

/// An address at which clients are served, and their TLS.
type ClientListener = (Arc<TcpListener>, Option<TlsAcceptor>);

/// Serves until SIGTERM or SIGINT. `ready` is called once requests are answered.
///
/// # Errors
/// See [`ServeError`].
pub fn run(settings: &Settings, ready: impl FnOnce(&Ready)) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let mut ready = Some(ready);
    refetch::note_panics(&settings.data_dir);
    while let Ended::ToBeginAnew = runtime.block_on(serve(settings, &mut ready))? {}
    Ok(())
}

/// How serving has ended.
enum Ended {
    /// It was told to stop.
    Stopped,
    /// The data was damaged and has been put aside.
    ToBeginAnew,
}

async fn serve(
    settings: &Settings,
    ready: &mut Option<impl FnOnce(&Ready)>,
) -> Result<Ended, ServeError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    let mut listeners: Vec<ClientListener> = Vec::new();
    for listener in bind(&settings.listen).await? {
        listeners.push((listener, None));
    }
    if let Some(files) = &settings.tls.clients {
        let acceptor = files.for_clients()?;
        for listener in bind(&settings.tls.listen).await? {
            listeners.push((listener, Some(acceptor.clone())));
        }
    }
    let peer_tls = settings.tls.peers.as_ref().map(TlsFiles::for_peers);
    let peer_tls = peer_tls.transpose()?;
    let peer_listeners = bind(&settings.peer_listen).await?;
    let data_dir = |err| ServeError::DataDir {
        path: settings.data_dir.clone(),
        err,
    };
    let disk = Arc::new(Directory::open(&settings.data_dir).map_err(data_dir)?);
    let clock = Instant::now();
    let options = Options {
        seed: shared::random_u64(),
        syncs: Syncs::Beside,
        ..settings.options.clone()
    };
    let (settings, lost) = &refetch::settle(&*disk, settings)?;
    let first = {
        let begin = begin(
            &disk,
            settings,
            &peer_tls,
            &listeners,
            &peer_listeners,
            lost.as_ref(),
            ready,
        );
        tokio::select! {
            first = begin => first?,
            _ = terminate.recv() => return Ok(Ended::Stopped),
            _ = interrupt.recv() => return Ok(Ended::Stopped),
        }
    };
    let lanes = Arc::new(Lanes::new(peer_tls));
    let outbox = {
        let lanes = Arc::clone(&lanes);
        Outbox::new(move |message| lanes.send(&message))
    };
    let genesis = first.genesis;
    let shared_disk = Arc::clone(&disk) as Arc<dyn Disk>;
    let opened = refetch::opening(|| {
        Node::open(shared_disk, options, clock.elapsed(), outbox, move || {
            genesis
        })
    });
    let node = match opened {
        Ok(node) => node,
        Err(err) => {
            refetch::put_aside(&disk, settings, err)?;
            return Ok(Ended::ToBeginAnew);
        }
    };
    let owner = node.owner();
    for member in first.others {
        lanes.add(&member, owner);
    }
    let (inputs, from_clients) = mpsc::channel();
    let (to_clients, outputs) = unbounded_channel();
    let (tunnels, tunnelled) = unbounded_channel();
    let shared = Arc::new(Shared::new(&node, settings, lanes, inputs, tunnels)?);
    let backlog = Arc::clone(&shared.backlog);
    let thread = std::thread::Builder::new()
        .name("member".into())
        .spawn(move || member_thread(node, clock, &from_clients, &to_clients, &backlog))
        .map_err(ServeError::Thread)?;
    let looked_at = Arc::downgrade(&shared);
    std::thread::Builder::new()
        .name("scrub".into())
        .spawn(move || scrub::run(&looked_at))
        .map_err(ServeError::Thread)?;
    for listener in peer_listeners {
        tokio::spawn(peers::listen(Arc::clone(&shared), listener));
    }
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut dispatcher = tokio::spawn(dispatch(Arc::clone(&shared), outputs));
    let mut served = tokio::task::JoinSet::new();
    let mut listen = Vec::new();
    let front = front(&shared);
    for (listener, tls) in listeners.drain(..) {
        listen.extend(listener.local_addr());
        let clients = connections::clients(listener, tls);
        served.spawn(connections::serve(clients, front.clone(), stopped.clone()));
    }
    let tunnelled = UnboundedReceiverStream::new(tunnelled);
    served.spawn(connections::serve(tunnelled, front, stopped));
    if let Some(joining) = settings.bootstrap.joining() {
        tokio::spawn(join::announce(
            Arc::clone(&shared),
            settings.clone(),
            joining.clone(),
        ));
    }
    let mut removed = shared.removed();
    let published = shared.publish(&settings.name, &settings.client_urls);
    tokio::pin!(published);
    let mut ended = Ok(());
    loop {
        tokio::select! {
            () = &mut published, if ready.is_some() => if let Some(ready) = ready.take() {
                ready(&Ready {
                    listen: listen.clone(),
                    cluster: owner.cluster,
                    member: owner.member,
                });
            },
            _ = terminate.recv() => {
                log::info!("terminated: stopping");
                break;
            }
            _ = interrupt.recv() => {
                log::info!("interrupted: stopping");
                break;
            }
            _ = removed.wait_for(|removed| *removed) => {
                ended = Err(ServeError::Removed);
                break;
            }
            // With others there it is better to be without this one for some seconds; alone it serves what is good.
            () = refetch::until_met(), if shared.members().len() > 2 => {
                refetch::suspect(&settings.data_dir);
                ended = Err(ServeError::Damage(settings.data_dir.clone()));
                break;
            }
            _ = &mut dispatcher => break,
            Some(_) = served.join_next() => return Err(ServeError::Gone),
        }
    }
    let _ = stop.send(true);
    shared.stop();
    // Streams that clients keep open do not hold us up.
    let _ =
        tokio::time::timeout(GRACE, async { while served.join_next().await.is_some() {} }).await;
    served.abort_all();
    match thread.join() {
        Ok(done) => done
            .inspect_err(|err| {
                if err.is_damage() {
                    refetch::suspect(&settings.data_dir);
                }
            })
            .map_err(ServeError::from)
            .and(ended)
            .map(|()| Ended::Stopped),
        Err(_) => Err(ServeError::Gone),
    }
}

/// What the member begins with. A machine for which there is no place serves as a proxy until there is one, and without a token
/// for good.
async fn begin(
    disk: &Directory,
    settings: &Settings,
    tls: &Option<PeerTls>,
    listeners: &[ClientListener],
    peer_listeners: &[Arc<TcpListener>],
    lost: Option<&Lost>,
    ready: &mut Option<impl FnOnce(&Ready)>,
) -> Result<First, ServeError> {
    match bootstrap::first(disk, settings, tls, peer_listeners, lost).await? {
        Found::Member(first) => Ok(first),
        Found::Proxy(members) => {
            log::info!("there are enough members: clients are passed on to them");
            if let Some(ready) = ready.take() {
                let listen = listeners.iter().filter_map(|(l, _)| l.local_addr().ok());
                ready(&Ready {
                    listen: listen.collect(),
                    cluster: 0,
                    member: 0,
                });
            }
            match settings.bootstrap.joining() {
                Some(joining) => Ok(proxy::serve(settings, joining, tls, listeners, members).await),
                None => {
                    match proxy::serve_for_good(disk, settings, tls, listeners, members).await? {}
                }
            }
        }
    }
}

async fn bind(addresses: &[SocketAddr]) -> Result<Vec<Arc<TcpListener>>, ServeError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|err| ServeError::Listen {
                address: *address,
                err,
            })?;
        listeners.push(Arc::new(listener));
    }
    Ok(listeners)
}

/// What answers clients.
fn front(shared: &Arc<Shared>) -> Front {
    let limit = crate::node::MAX_REQUEST_BYTES + (512 << 10);
    let face = || Arc::clone(shared);
    let keyspace = pb::kv_server::KvServer::new(kv::Kv(face())).max_decoding_message_size(limit);
    let grpc = Routes::new(pb::watch_server::WatchServer::new(watch::Watch(face())))
        .add_service(pb::lease_server::LeaseServer::new(lease::Lease(face())))
        .add_service(pb::cluster_server::ClusterServer::new(cluster::Cluster(
            face(),
        )))
        .add_service(pb::maintenance_server::MaintenanceServer::new(
            maintenance::Maintenance(face()),
        ))
        .add_service(LockServer::new(turns::Lock(face())))
        .add_service(ElectionServer::new(turns::Election(face())))
        .add_service(HealthServer::new(maintenance::Health(face())));
    Front {
        keyspace,
        others: http::router(grpc.into_axum_router(), face()),
    }
}

/// Steps the member until there is no one left to ask it, or it cannot go on.
fn member_thread(
    mut node: Node<Ticket>,
    clock: Instant,
    inputs: &mpsc::Receiver<Input<Ticket>>,
    outputs: &UnboundedSender<Vec<Output<Ticket>>>,
    backlog: &AtomicUsize,
) -> Result<(), NodeError> {
    loop {
        let wait = node.next_step().saturating_sub(clock.elapsed());
        let first = match inputs.recv_timeout(wait) {
            Ok(first) => Some(first),
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        };
        let gathered = first.into_iter().chain(inputs.try_iter().take(GATHER));
        let gathered = gathered.inspect(|input| {
            if matches!(input, Input::Receive(_)) {
                backlog.fetch_sub(1, Ordering::Relaxed);
            }
        });
        let out = node.step(clock.elapsed(), gathered)?;
        if !out.is_empty() && outputs.send(out).is_err() {
            break;
        }
    }
    // Whoever still waits has been told that the server stops.
    node.close().map(|_| ())
}

/// Passes on what comes out of the member, in its order.
async fn dispatch(shared: Arc<Shared>, mut outputs: UnboundedReceiver<Vec<Output<Ticket>>>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            out = outputs.recv() => match out {
                Some(out) => shared.pass_on(out),
                None => return,
            },
            _ = tick.tick() => shared.tick(),
        }
    }
}
