//! The way between members: one TCP connection a direction, with frames (`docs/store-peers.md`, "Connection").

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use orlop_tls::Io;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::join::Told;
use super::shared::Shared;
use super::tls::PeerTls;
use super::token::{self, Token};
use crate::bytes::Reader;
use crate::node::Input;
use crate::peer::PeerMessage;
use crate::proto::etcdserverpb::{Member, MemberListResponse, ResponseHeader};
use crate::roster::Roster;
use crate::wal::Owner;

/// What a connection begins with.
const MAGIC: &[u8; 8] = b"ORLOPEER";
const VERSION: u32 = 2;
/// The caller brings messages.
const BRING: u8 = 1;
/// The caller asks who takes part.
const LIST: u8 = 2;
/// The caller asks to take part, or says where it is.
const JOIN: u8 = 3;
/// The caller brings a client.
const CLIENT: u8 = 4;
/// A member that has lost its data asks to be let in anew, where there is no token.
const REPLACE: u8 = 5;
/// Where members listen to each other unless configured otherwise.
pub const PEER_PORT: u16 = 2380;
/// Time that a request to take part may take: some entries have to be written.
const JOIN_TIME: Duration = Duration::from_secs(15);
/// URLs of one caller that are heeded.
const MAX_URLS: usize = 16;
/// Time that a client's way to a member may take to open.
const OPEN_TIME: Duration = Duration::from_secs(5);
const HELLO_BYTES: usize = 8 + 4 + 1 + 24;
/// Length and checksum of what follows.
const FRAME_HEAD_BYTES: usize = 8;
/// Memory that a frame is given at once.
const READ_BYTES: usize = 1 << 20;
/// Frames that are shorter are gathered before they are written.
const GATHERED_BYTES: usize = 4 << 10;
/// The longest frame: a message with its entries, and some.
const MAX_FRAME_BYTES: usize = 80 << 20;
/// Bytes that may wait for one member; what comes on top is dropped, as a network may.
const MAX_WAITING_BYTES: usize = 128 << 20;
/// Messages of other members that may wait for the member's thread.
const MAX_BACKLOG: usize = 1024;
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);
const CONNECT_TIME: Duration = Duration::from_secs(2);
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Pause between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(200);
/// Time that a question for the members may take.
const LIST_TIME: Duration = Duration::from_secs(3);

/// The messages that wait for one member.
#[derive(Debug, Clone)]
struct Lane {
    frames: UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
    urls: Vec<String>,
}

/// The ways to all other members.
#[derive(Debug)]
pub(super) struct Lanes {
    tls: Option<PeerTls>,
    lanes: Mutex<HashMap<u64, Lane>>,
    /// Where this member is reached, as far as it knows.
    own: Arc<Mutex<Vec<String>>>,
}

impl Lanes {
    pub(super) fn new(tls: Option<PeerTls>) -> Self {
        Self {
            tls,
            lanes: Mutex::default(),
            own: Arc::default(),
        }
    }

    pub(super) fn tls(&self) -> Option<&PeerTls> {
        self.tls.as_ref()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where this member is reached: connections begin with it from now on.
    pub(super) fn at(&self, urls: &[String]) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = urls.to_vec();
    }

    fn open(&self, member: &Member, owner: Owner) -> Lane {
        let (frames, receiver) = unbounded_channel();
        let waiting = Arc::default();
        let lane = Lane {
            frames,
            waiting: Arc::clone(&waiting),
            urls: member.peer_ur_ls.clone(),
        };
        let caller = Caller {
            owner,
            tls: self.tls.clone(),
            urls: Arc::clone(&self.own),
        };
        tokio::spawn(carry(member.clone(), caller, receiver, waiting));
        lane
    }

    /// Sends a message, or drops it.
    pub(super) fn send(&self, message: &PeerMessage) {
        let lanes = self.lock();
        let Some(lane) = lanes.get(&message.to) else {
            return;
        };
        let frame = frame_of(|out| message.encode_to(out));
        if lane.waiting.fetch_add(frame.len(), Relaxed) > MAX_WAITING_BYTES {
            lane.waiting.fetch_sub(frame.len(), Relaxed);
            return;
        }
        // The task ends only when the lane is taken out of the table.
        let _ = lane.frames.send(frame);
    }

    /// Opens the lanes of the members there are now, and closes the others.
    pub(super) fn follow(&self, roster: &Roster, owner: Owner) {
        if roster.members.is_empty() {
            // It joins, and knows the others only by what it was told.
            return;
        }
        let mut lanes = self.lock();
        lanes.retain(|id, lane| {
            roster
                .member(*id)
                .is_some_and(|m| m.peer_ur_ls == lane.urls)
        });
        for member in roster.members.iter().filter(|m| m.id != owner.member) {
            lanes
                .entry(member.id)
                .or_insert_with(|| self.open(member, owner));
        }
    }

    /// A way to a member that is not in the roster yet, at the given URLs.
    pub(super) fn add(&self, member: &Member, owner: Owner) {
        if member.id != owner.member {
            self.lock()
                .entry(member.id)
                .or_insert_with(|| self.open(member, owner));
        }
    }

    /// A member says that it is at other URLs than the roster knows.
    pub(super) fn redirect(&self, member: &Member, owner: Owner) {
        if member.id == owner.member {
            return;
        }
        let mut lanes = self.lock();
        if lanes
            .get(&member.id)
            .is_none_or(|lane| lane.urls != member.peer_ur_ls)
        {
            lanes.insert(member.id, self.open(member, owner));
        }
    }
}

/// Who calls.
#[derive(Debug)]
struct Caller {
    owner: Owner,
    tls: Option<PeerTls>,
    urls: Arc<Mutex<Vec<String>>>,
}

impl Caller {
    /// What its connections begin with: a machine that has lost everything learns from it where its cluster is.
    fn greeting(&self, to: u64) -> Vec<u8> {
        let mut out = hello(BRING, self.owner.cluster, self.owner.member, to);
        let urls = self.urls.lock().unwrap_or_else(PoisonError::into_inner);
        out.extend_from_slice(&frame(urls.join(",").as_bytes()));
        out
    }
}

pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    frame_of(|out| out.extend_from_slice(payload))
}

/// A frame around what `write` appends.
fn frame_of(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; FRAME_HEAD_BYTES];
    write(&mut out);
    let (head, payload) = out.split_at_mut(FRAME_HEAD_BYTES);
    let (length, check) = head.split_at_mut(4);
    length.copy_from_slice(&(payload.len() as u32).to_le_bytes());
    check.copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out
}

pub(super) async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; FRAME_HEAD_BYTES];
    stream.read_exact(&mut head).await?;
    let [a, b, c, d, check @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("a frame is too long"));
    }
    // Memory grows with what comes, not with what was promised.
    let mut payload = Vec::new();
    while payload.len() < length {
        let read = payload.len();
        payload.resize(length.min(read + READ_BYTES), 0);
        stream.read_exact(&mut payload[read..]).await?;
    }
    if crc32fast::hash(&payload) != u32::from_le_bytes(check) {
        return Err(io::Error::other("a frame's checksum is another"));
    }
    Ok(payload)
}

fn hello(kind: u8, cluster: u64, from: u64, to: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.push(kind);
    for number in [cluster, from, to] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out
}

/// The addresses of a member. Names are not resolved here: a member's URL must have an address.
pub fn address_of(url: &str) -> Option<SocketAddr> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))?
        .trim_end_matches('/');
    if let Some(port) = rest.strip_prefix("localhost:") {
        return Some(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            port.parse().ok()?,
        ));
    }
    rest.parse().ok()
}

/// Calls whoever is at one of these URLs, by TLS at `https://` ones.
pub(super) async fn connect(urls: &[String], tls: Option<&PeerTls>) -> io::Result<Io> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no URL with an address");
    for url in urls {
        let Some(address) = address_of(url) else {
            continue;
        };
        let stream = match tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => {
                failed = err;
                continue;
            }
            Err(_) => {
                failed = io::ErrorKind::TimedOut.into();
                continue;
            }
        };
        stream.set_nodelay(true)?;
        if url.starts_with("http://") {
            return Ok(Io::Plain(stream));
        }
        let Some(tls) = tls else {
            failed = io::Error::other("it wants TLS, for which there is no certificate here");
            continue;
        };
        match tls.connect(stream, address).await {
            Ok(stream) => return Ok(stream),
            Err(err) => failed = err,
        }
    }
    Err(failed)
}

/// A connection of another member, by TLS if there is any.
async fn accepted(stream: TcpStream, from: SocketAddr, tls: Option<&PeerTls>) -> io::Result<Io> {
    stream.set_nodelay(true)?;
    match tls {
        None => Ok(Io::Plain(stream)),
        Some(tls) => tls.accept(stream, from).await,
    }
}

/// Carries messages to one member until its lane is closed.
async fn carry(
    member: Member,
    caller: Caller,
    mut frames: UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
) {
    let mut told = false;
    while let Some(first) = frames.recv().await {
        let Err(err) = carry_on(&member, &caller, first, &mut frames, &waiting, &mut told).await
        else {
            return;
        };
        if !told {
            log::warn!("member {:x} cannot be reached: {err}", member.id);
            told = true;
        }
        tokio::time::sleep(AGAIN).await;
        // What has waited meanwhile is old; consensus sends anew what still counts.
        while let Ok(frame) = frames.try_recv() {
            waiting.fetch_sub(frame.len(), Relaxed);
        }
    }
}

/// Carries messages over one connection until it breaks, or the lane is closed.
async fn carry_on(
    member: &Member,
    caller: &Caller,
    first: Vec<u8>,
    frames: &mut UnboundedReceiver<Vec<u8>>,
    waiting: &AtomicUsize,
    told: &mut bool,
) -> io::Result<()> {
    waiting.fetch_sub(first.len(), Relaxed);
    let stream = connect(&member.peer_ur_ls, caller.tls.as_ref()).await?;
    if std::mem::take(told) {
        log::info!("member {:x} is reached again", member.id);
    }
    let mut stream = BufWriter::with_capacity(GATHERED_BYTES, stream);
    stream.write_all(&caller.greeting(member.id)).await?;
    let mut frame = first;
    loop {
        in_time(stream.write_all(&frame)).await?;
        let next = match frames.try_recv() {
            Ok(next) => Some(next),
            Err(_) => {
                in_time(stream.flush()).await?;
                // Written to a connection whose other end is gone, the next message would be lost, and it may be a vote.
                tokio::select! {
                    next = frames.recv() => next,
                    err = broken(stream.get_mut()) => return Err(err),
                }
            }
        };
        let Some(next) = next else { return Ok(()) };
        waiting.fetch_sub(next.len(), Relaxed);
        frame = next;
    }
}

/// Returns when the other end is gone: it never says anything.
async fn broken(stream: &mut Io) -> io::Error {
    match stream.read(&mut [0]).await {
        Ok(0) => io::ErrorKind::ConnectionReset.into(),
        Ok(_) => io::Error::other("it talks where it is talked to"),
        Err(err) => err,
    }
}

async fn in_time(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(WRITE_TIME, write)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Takes connections of other members.
pub(super) async fn listen(shared: Arc<Shared>, listener: Arc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(err) = receive(&shared, stream, address).await {
                        let level = if err.kind() == io::ErrorKind::PermissionDenied {
                            log::Level::Warn
                        } else {
                            log::Level::Debug
                        };
                        log::log!(level, "connection of a member from {address}: {err}");
                    }
                });
            }
            Err(err) => {
                log::warn!("accept a member's connection: {err}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// What a connection began with.
struct Hello {
    kind: u8,
    cluster: u64,
    from: u64,
    to: u64,
}

async fn read_hello(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Hello> {
    let mut bytes = [0; HELLO_BYTES];
    tokio::time::timeout(LIST_TIME, stream.read_exact(&mut bytes))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    let mut reader = Reader(&bytes);
    let short = |_| io::Error::from(io::ErrorKind::UnexpectedEof);
    let magic = reader.take(8).map_err(short)?;
    let version = reader.u32().map_err(short)?;
    if magic != MAGIC || version != VERSION {
        return Err(io::Error::other("it is no member of this version"));
    }
    Ok(Hello {
        kind: reader.u8().map_err(short)?,
        cluster: reader.u64().map_err(short)?,
        from: reader.u64().map_err(short)?,
        to: reader.u64().map_err(short)?,
    })
}

/// Notes where members of a cluster call from, for a machine that is in none yet; says so to those that look for one too.
pub(super) async fn note_callers(
    listener: Arc<TcpListener>,
    tls: Option<PeerTls>,
    token: Token,
    caller: tokio::sync::watch::Sender<Vec<String>>,
) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let (caller, tls, token) = (caller.clone(), tls.clone(), token.clone());
        tokio::spawn(async move {
            let Ok(mut stream) = accepted(stream, from, tls.as_ref()).await else {
                return;
            };
            match read_hello(&mut stream).await.map(|hello| hello.kind) {
                Ok(BRING) => {}
                Ok(JOIN) => {
                    // One that hangs up asks again.
                    let _ = tokio::time::timeout(OPEN_TIME, say_none(&mut stream, &token)).await;
                    return;
                }
                _ => return,
            }
            let urls = tokio::time::timeout(LIST_TIME, read_frame(&mut stream)).await;
            if let Ok(Ok(urls)) = urls {
                let urls = String::from_utf8_lossy(&urls);
                let urls = urls.split(',').filter(|url| address_of(url).is_some());
                caller.send_replace(urls.take(MAX_URLS).map(str::to_owned).collect());
            }
        });
    }
}

/// Says to one that asks to take part that there is no cluster here: silence would be taken for one that does not let it in.
async fn say_none(stream: &mut Io, token: &Token) -> io::Result<()> {
    let asked = token::take(stream, token, JOIN).await?;
    asked.answer(stream, token, &Told::none().encode()).await
}

async fn receive(shared: &Shared, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    let stream = accepted(stream, from, shared.peer_tls()).await?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let Hello {
        kind,
        cluster,
        from,
        to,
    } = read_hello(&mut stream).await?;
    match kind {
        JOIN | CLIENT => {
            let token = shared
                .token()
                .ok_or_else(|| io::Error::other("this member has no token"))?;
            let asked = tokio::time::timeout(OPEN_TIME, token::take(&mut stream, token, kind))
                .await
                .map_err(|_| io::ErrorKind::TimedOut)??;
            if kind == CLIENT {
                asked.answer(&mut stream, token, &[]).await?;
                shared.take_tunnel(stream.into_inner());
                return Ok(());
            }
            let said = Member::decode(asked.body.as_slice()).map_err(io::Error::other)?;
            let told = shared.admit(&said, cluster).await;
            asked.answer(&mut stream, token, &told.encode()).await
        }
        REPLACE if cluster == shared.owner.cluster && shared.token().is_none() => {
            let said = in_list_time(read_frame(&mut stream)).await?;
            let said = Member::decode(said.as_slice()).map_err(io::Error::other)?;
            let told = shared.let_in_anew(&said).await;
            stream.write_all(&frame(&told.encode())).await?;
            stream.flush().await
        }
        LIST => {
            let list = MemberListResponse {
                header: Some(ResponseHeader {
                    cluster_id: shared.owner.cluster,
                    ..ResponseHeader::default()
                }),
                members: shared.members(),
            };
            stream.write_all(&frame(&list.encode_to_vec())).await?;
            stream.flush().await
        }
        BRING if cluster == shared.owner.cluster && to == shared.owner.member => {
            read_frame(&mut stream).await?;
            let ended = bring(shared, &mut stream).await;
            shared.give(Input::Lost(from));
            ended
        }
        BRING => Err(io::Error::other(format!(
            "it wants member {to:x} of cluster {cluster:x}"
        ))),
        _ => Err(io::Error::other("it wants something unknown")),
    }
}

async fn bring(shared: &Shared, stream: &mut BufReader<Io>) -> io::Result<()> {
    loop {
        let payload = read_frame(stream).await?;
        let message = PeerMessage::decode(&payload).map_err(io::Error::other)?;
        // A member whose disk is slow lets the others wait instead of filling its memory.
        while shared.backlog.load(Relaxed) >= MAX_BACKLOG {
            tokio::time::sleep(BACKLOG_PAUSE).await;
        }
        shared.backlog.fetch_add(1, Relaxed);
        shared.give(Input::Receive(Box::new(message)));
    }
}

/// Asks a member who takes part: the cluster's id, and the members.
///
/// # Errors
/// It cannot be reached, or does not answer so.
pub(super) async fn ask_members(
    url: &str,
    tls: Option<&PeerTls>,
) -> io::Result<(u64, Vec<Member>)> {
    let ask = async {
        let mut stream = connect(&[url.to_owned()], tls).await?;
        stream.write_all(&hello(LIST, 0, 0, 0)).await?;
        let payload = read_frame(&mut stream).await?;
        let list = MemberListResponse::decode(payload.as_slice()).map_err(io::Error::other)?;
        let cluster = list.header.map_or(0, |h| h.cluster_id);
        Ok((cluster, list.members))
    };
    in_list_time(ask).await
}

async fn in_list_time<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(LIST_TIME, read)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Asks a member of `cluster` to let in anew the one that is `said`, which has lost its data.
pub(super) async fn ask_to_replace(
    url: &str,
    tls: Option<&PeerTls>,
    cluster: u64,
    said: &Member,
) -> Result<Told, AskError> {
    let said = frame(&said.encode_to_vec());
    let ask = async {
        let mut stream = connect(&[url.to_owned()], tls)
            .await
            .map_err(AskError::Connect)?;
        let talk = async {
            stream.write_all(&hello(REPLACE, cluster, 0, 0)).await?;
            stream.write_all(&said).await?;
            stream.flush().await?;
            read_frame(&mut stream).await
        };
        talk.await.map_err(AskError::Closed)
    };
    let answer = tokio::time::timeout(JOIN_TIME, ask)
        .await
        .map_err(|_| AskError::Connect(io::ErrorKind::TimedOut.into()))??;
    Told::decode(&answer).ok_or(AskError::Version)
}

/// Why a member's answer did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It is not reached.
    #[error("it cannot be reached: {0}")]
    Connect(io::Error),
    /// It is there, and does not talk.
    #[error("it does not accept the token, or is no member yet: {0}")]
    Refused(io::Error),
    /// It is there, and hangs up.
    #[error("it is of another cluster or version, wants a token, or is no member yet: {0}")]
    Closed(io::Error),
    /// It said something that is no answer.
    #[error("its answer is of another version")]
    Version,
}

async fn prove(
    url: &str,
    tls: Option<&PeerTls>,
    token: &Token,
    kind: u8,
    cluster: u64,
    body: &[u8],
) -> Result<(Io, Vec<u8>), AskError> {
    let mut stream = connect(&[url.to_owned()], tls)
        .await
        .map_err(AskError::Connect)?;
    let talk = async {
        stream.write_all(&hello(kind, cluster, 0, 0)).await?;
        token::ask(&mut stream, token, kind, body).await
    };
    let answer = talk.await.map_err(AskError::Refused)?;
    Ok((stream, answer))
}

/// Asks a member to take part in its cluster, or says to it where this member of `cluster` is.
pub(super) async fn ask_to_join(
    url: &str,
    tls: Option<&PeerTls>,
    token: &Token,
    said: &Member,
    cluster: u64,
) -> Result<Told, AskError> {
    let said = said.encode_to_vec();
    let asked = prove(url, tls, token, JOIN, cluster, &said);
    let (_, answer) = tokio::time::timeout(JOIN_TIME, asked)
        .await
        .map_err(|_| AskError::Connect(io::ErrorKind::TimedOut.into()))??;
    Told::decode(&answer).ok_or(AskError::Version)
}

/// Opens a way for a client to a member.
pub(super) async fn open_tunnel(
    urls: &[String],
    tls: Option<&PeerTls>,
    token: &Token,
) -> Result<Io, AskError> {
    let mut failed = AskError::Connect(io::ErrorKind::NotFound.into());
    for url in urls {
        match tokio::time::timeout(OPEN_TIME, prove(url, tls, token, CLIENT, 0, &[])).await {
            Ok(Ok((stream, _))) => return Ok(stream),
            Ok(Err(err)) => failed = err,
            Err(_) => failed = AskError::Connect(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(failed)
}
