//! What the services share: the way to the member's thread, the state for reading, the watches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use orlop_tls::Io;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tonic::Status as GrpcStatus;

use super::join::Told;
use super::peers::Lanes;
use super::tls::PeerTls;
use super::token::Token;
use super::{ServeError, Settings};
use crate::command::{Change, Command};
use crate::mvcc::Reader;
use crate::mvcc::view::ReadError;
use crate::mvcc::write::Answer;
use crate::node::{Input, Node, Output, Reply, Status};
use crate::proto::etcdserverpb::{Member, MemberListResponse, ResponseHeader, WatchResponse};
use crate::refused::{Code, Refused};
use crate::roster::Roster;
use crate::state::{Database, StateError};
use crate::wal::Owner;
use crate::watch::{Hub, Outgoing, StreamId};

/// The way back to whoever asked.
pub(super) type Ticket = oneshot::Sender<Result<Reply, Refused>>;

/// Requests that may wait for the member; etcd's limit on entries that are committed and not applied.
const MAX_WAITING: usize = 5000;
/// Pause before a member tries again to publish itself.
const PUBLISH_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Shared {
    /// Gone when the server stops; that ends the member's thread.
    inputs: Mutex<Option<mpsc::Sender<Input<Ticket>>>>,
    waiting: AtomicUsize,
    /// Messages of other members that the member's thread has not taken yet.
    pub(super) backlog: Arc<AtomicUsize>,
    pub(super) database: Database,
    pub(super) owner: Owner,
    roster: Mutex<Roster>,
    lanes: Arc<Lanes>,
    removed: tokio::sync::watch::Sender<bool>,
    watches: Mutex<Watches>,
    status: tokio::sync::watch::Sender<Status>,
    /// The last revision that was passed on.
    pub(super) revision: tokio::sync::watch::Sender<i64>,
    clock: Instant,
    pub(super) data_dir: std::path::PathBuf,
    token: Option<Token>,
    /// Clients that come by way of machines without a member.
    tunnels: UnboundedSender<Io>,
}

/// The watches, and where the responses of each stream go.
#[derive(Debug)]
struct Watches {
    hub: Hub,
    streams: HashMap<StreamId, UnboundedSender<WatchResponse>>,
    out: Vec<Outgoing>,
}

/// A random number, for ids and salts.
pub(super) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library takes the keys of this hash (SipHash) from the kernel's random numbers.
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

impl Shared {
    pub(super) fn new(
        node: &Node<Ticket>,
        settings: &Settings,
        lanes: Arc<Lanes>,
        inputs: mpsc::Sender<Input<Ticket>>,
        tunnels: UnboundedSender<Io>,
    ) -> Result<Self, ServeError> {
        let owner = node.owner();
        lanes.follow(node.roster(), owner);
        let compact_revision = Reader::new(&node.database())
            .map_err(crate::node::NodeError::from)?
            .compact_revision;
        let hub = Hub::new(node.revision(), compact_revision);
        Ok(Self {
            inputs: Mutex::new(Some(inputs)),
            waiting: AtomicUsize::new(0),
            backlog: Arc::default(),
            database: node.database(),
            owner,
            roster: Mutex::new(node.roster().clone()),
            lanes,
            removed: tokio::sync::watch::channel(false).0,
            watches: Mutex::new(Watches {
                hub,
                streams: HashMap::new(),
                out: Vec::new(),
            }),
            status: tokio::sync::watch::channel(Status::default()).0,
            revision: tokio::sync::watch::channel(node.revision()).0,
            clock: Instant::now(),
            data_dir: settings.data_dir.clone(),
            token: settings.bootstrap.joining().map(|j| j.token.clone()),
            tunnels,
        })
    }

    /// The secret that lets machines in.
    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Serves a client that came by way of another machine.
    pub(super) fn take_tunnel(&self, stream: Io) {
        // When the server stops, there is no one to serve it any more.
        let _ = self.tunnels.send(stream);
    }

    /// A member is at other URLs than the roster knows.
    pub(super) fn redirect(&self, said: &Member) {
        if self.roster().member(said.id).is_some() {
            self.lanes.redirect(said, self.owner);
        }
    }

    /// How members talk, if with TLS.
    pub(super) fn peer_tls(&self) -> Option<&PeerTls> {
        self.lanes.tls()
    }

    /// Where this member is reached.
    pub(super) fn is_at(&self, urls: &[String]) {
        self.lanes.at(urls);
    }

    /// Heeds what another member told of who takes part, as far as this one knows no better.
    pub(super) fn meet(&self, told: &Told) {
        if told.cluster != self.owner.cluster {
            return;
        }
        for member in &told.members {
            self.lanes.add(member, self.owner);
        }
    }

    /// Another member says that this one has been removed.
    pub(super) fn end_removed(&self) {
        self.removed.send_replace(true);
    }

    /// Where the member stands.
    pub(super) fn status(&self) -> Status {
        *self.status.borrow()
    }

    /// Who takes part, and the alarms.
    pub(super) fn roster(&self) -> Roster {
        self.roster
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The members' records.
    pub(super) fn members(&self) -> Vec<Member> {
        self.roster().members
    }

    /// Becomes true when the member has been removed from the cluster.
    pub(super) fn removed(&self) -> tokio::sync::watch::Receiver<bool> {
        self.removed.subscribe()
    }

    /// Returns when the member takes requests and all members know its name and where its clients are served.
    pub(super) async fn publish(&self, name: &str, client_urls: &[String]) {
        loop {
            // The sender lives in `self`, so this cannot fail.
            let _ = self.status.subscribe().wait_for(|s| s.serves).await;
            let known = self.roster().member(self.owner.member).is_some_and(|m| {
                m.name == name && m.client_ur_ls == client_urls && !client_urls.is_empty()
            });
            if known {
                return;
            }
            let said = Member {
                id: self.owner.member,
                name: name.to_owned(),
                client_ur_ls: client_urls.to_vec(),
                ..Member::default()
            };
            match self.propose(Command::Publish(said)).await {
                Ok(_) => return,
                Err(err) => {
                    log::warn!("publish the name and the client URLs: {}", err.message());
                    tokio::time::sleep(PUBLISH_AGAIN).await;
                }
            }
        }
    }

    /// Gives the member something that has no answer.
    pub(super) fn give(&self, input: Input<Ticket>) {
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inputs) = inputs.as_ref() {
            // The member's thread ends only with the process, which then needs nothing more.
            let _ = inputs.send(input);
        }
    }

    /// Whether no more requests are taken.
    pub(super) fn is_stopped(&self) -> bool {
        let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        inputs.is_none()
    }

    /// Requests that wait for the member.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes no more requests; the member's thread ends.
    pub(super) fn stop(&self) {
        self.inputs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.watches().streams.clear();
    }

    async fn ask(&self, input: impl FnOnce(Ticket) -> Input<Ticket>) -> Result<Reply, GrpcStatus> {
        let (ticket, answer) = oneshot::channel();
        let _waiting = Waiting::new(&self.waiting).ok_or(Refused::TooManyRequests)?;
        {
            let inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
            let inputs = inputs.as_ref().ok_or(Refused::Stopped)?;
            inputs.send(input(ticket)).map_err(|_| Refused::Stopped)?;
        }
        Ok(answer.await.map_err(|_| Refused::Stopped)??)
    }

    /// Changes the state.
    pub(super) async fn propose(&self, command: Command) -> Result<Answer, GrpcStatus> {
        match self
            .ask(|ticket| Input::Propose {
                command: Box::new(command),
                ticket,
            })
            .await?
        {
            Reply::Answer(mut answer) => {
                if let Some(header) = answer.header_mut() {
                    self.complete(header);
                }
                Ok(answer)
            }
            _ => Err(unexpected()),
        }
    }

    /// Changes who takes part.
    pub(super) async fn change(&self, change: Change) -> Result<MemberListResponse, GrpcStatus> {
        match self
            .ask(|ticket| Input::Change {
                change: Box::new(change),
                ticket,
            })
            .await?
        {
            Reply::Answer(Answer::Members(mut response)) => {
                self.complete(response.header.get_or_insert_default());
                Ok(response)
            }
            _ => Err(unexpected()),
        }
    }

    /// Hands leadership to another voter.
    pub(super) async fn transfer(&self, to: u64) -> Result<(), GrpcStatus> {
        self.ask(|ticket| Input::Transfer { to, ticket })
            .await
            .map(|_| ())
    }

    /// A sight of the state; unless it may be old (`serializable`), it holds every change that was acknowledged before.
    pub(super) async fn read(&self, serializable: bool) -> Result<Reader, GrpcStatus> {
        if !serializable {
            self.ask(|ticket| Input::Read { ticket }).await?;
        }
        self.reader().map_err(GrpcStatus::from)
    }

    /// A sight of the state, which may be old.
    pub(super) fn reader(&self) -> Result<Reader, StateError> {
        Reader::new(&self.database)
    }

    /// Starts a lease's clock anew: the revision, and the seconds granted if the lease is there.
    pub(super) async fn renew(&self, id: i64) -> Result<(i64, Option<i64>), GrpcStatus> {
        match self.ask(|ticket| Input::Renew { id, ticket }).await? {
            Reply::Renewed { revision, ttl } => Ok((revision, ttl)),
            _ => Err(unexpected()),
        }
    }

    /// The revision, and the seconds left and granted if the lease is there.
    pub(super) async fn time_to_live(
        &self,
        id: i64,
    ) -> Result<(i64, Option<(i64, i64)>), GrpcStatus> {
        match self.ask(|ticket| Input::TimeToLive { id, ticket }).await? {
            Reply::TimeToLive { revision, times } => Ok((revision, times)),
            _ => Err(unexpected()),
        }
    }

    /// Fills in what all headers have in common.
    pub(super) fn complete(&self, header: &mut ResponseHeader) {
        header.cluster_id = self.owner.cluster;
        header.member_id = self.owner.member;
        header.raft_term = self.status.borrow().standing.term;
    }

    /// A header for a revision.
    pub(super) fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let mut header = ResponseHeader {
            revision,
            ..ResponseHeader::default()
        };
        self.complete(&mut header);
        Some(header)
    }

    /// A header for the present revision.
    pub(super) fn present_header(&self) -> Result<Option<ResponseHeader>, GrpcStatus> {
        Ok(self.header(self.reader()?.revision))
    }

    /// Passes on what the member gave out.
    pub(super) fn pass_on(&self, outputs: Vec<Output<Ticket>>) {
        let mut watches = self.watches();
        for output in outputs {
            match output {
                Output::Reply { ticket, result } => {
                    // Whoever asked may have gone.
                    let _ = ticket.send(result);
                }
                Output::Changed { revision, events } => {
                    let Watches { hub, out, .. } = &mut *watches;
                    if let Err(err) = hub.publish(revision, &events, &|| self.reader(), out) {
                        log::error!("watches at revision {revision}: {err}");
                    }
                    self.revision.send_replace(revision);
                }
                Output::Compacted(revision) => watches.hub.compacted(revision),
                Output::Status(status) => {
                    self.status.send_replace(status);
                }
                Output::Jumped {
                    revision,
                    compact_revision,
                } => {
                    watches.hub.jumped(revision, compact_revision);
                    self.catch_up_all(&mut watches);
                    self.revision.send_replace(revision);
                }
                Output::Roster(roster) => {
                    self.lanes.follow(&roster, self.owner);
                    *self.roster.lock().unwrap_or_else(PoisonError::into_inner) = *roster;
                }
                Output::Removed => {
                    self.removed.send_replace(true);
                }
            }
        }
        self.flush(&mut watches);
    }

    /// A second has passed.
    pub(super) fn tick(&self) {
        let mut watches = self.watches();
        let Watches { hub, out, .. } = &mut *watches;
        hub.tick(self.clock.elapsed(), out);
        self.catch_up_all(&mut watches);
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream of watch responses.
    pub(super) fn open_stream(&self, responses: UnboundedSender<WatchResponse>) -> StreamId {
        let mut watches = self.watches();
        let id = watches.hub.open();
        watches.streams.insert(id, responses);
        id
    }

    /// Ends a stream of watch responses.
    pub(super) fn close_stream(&self, id: StreamId) {
        let mut watches = self.watches();
        watches.hub.close(id);
        watches.streams.remove(&id);
    }

    /// The client has taken a response.
    pub(super) fn drained(&self, id: StreamId) {
        let mut watches = self.watches();
        watches.hub.drained(id);
        if watches.hub.can_catch_up(id) {
            self.catch_up_all(&mut watches);
        }
    }

    /// Does something with the watches and sends what comes of it.
    pub(super) fn with_hub(&self, act: impl FnOnce(&mut Hub, &mut Vec<Outgoing>)) {
        let mut watches = self.watches();
        let Watches { hub, out, .. } = &mut *watches;
        act(hub, out);
        self.catch_up_all(&mut watches);
    }

    /// Feeds what is behind as far as the windows allow.
    fn catch_up_all(&self, watches: &mut Watches) {
        loop {
            let Watches { hub, out, .. } = watches;
            let ids = hub.to_catch_up();
            if ids.is_empty() {
                break;
            }
            let caught_up = self.reader().and_then(|reader| {
                ids.into_iter()
                    .try_for_each(|id| hub.catch_up(id, &reader, out))
            });
            if let Err(err) = caught_up {
                log::error!("watches that are behind: {err}");
                break;
            }
        }
        self.flush(watches);
    }

    fn flush(&self, watches: &mut Watches) {
        for (id, mut response) in watches.out.drain(..) {
            if let Some(header) = &mut response.header {
                self.complete(header);
            }
            if let Some(stream) = watches.streams.get(&id) {
                // A stream that is gone is closed by its own end.
                let _ = stream.send(response);
            }
        }
    }
}

/// One request that waits, as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn unexpected() -> GrpcStatus {
    GrpcStatus::internal("the member gave an answer of another kind")
}

impl From<Refused> for GrpcStatus {
    fn from(refused: Refused) -> Self {
        let code = match refused.code() {
            Code::InvalidArgument => tonic::Code::InvalidArgument,
            Code::NotFound => tonic::Code::NotFound,
            Code::ResourceExhausted => tonic::Code::ResourceExhausted,
            Code::FailedPrecondition => tonic::Code::FailedPrecondition,
            Code::OutOfRange => tonic::Code::OutOfRange,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::DataLoss => tonic::Code::DataLoss,
        };
        Self::new(code, refused.to_string())
    }
}

impl From<StateError> for GrpcStatus {
    fn from(err: StateError) -> Self {
        if let StateError::Behind(_) = err {
            log::warn!("a read is refused: {err}");
            return Refused::TimedOut.into();
        }
        log::error!("the state cannot be read: {err}");
        super::refetch::met(&err);
        Refused::Corrupt.into()
    }
}

impl From<ReadError> for GrpcStatus {
    fn from(err: ReadError) -> Self {
        match err {
            ReadError::Refused(refused) => refused.into(),
            ReadError::State(err) => err.into(),
        }
    }
}
