//! The way between members: one TCP connection a direction, with frames (`docs/store-peers.md`, "Connection").

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::shared::Shared;
use crate::bytes::Reader;
use crate::node::Input;
use crate::peer::PeerMessage;
use crate::proto::etcdserverpb::{Member, MemberListResponse, ResponseHeader};
use crate::roster::Roster;
use crate::wal::Owner;

/// What a connection begins with.
const MAGIC: &[u8; 8] = b"ORLOPEER";
const VERSION: u32 = 1;
/// The caller brings messages.
const BRING: u8 = 1;
/// The caller asks who takes part.
const LIST: u8 = 2;
const HELLO_BYTES: usize = 8 + 4 + 1 + 24;
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
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<HashMap<u64, Lane>>);

impl Lanes {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, or drops it.
    pub(super) fn send(&self, message: &PeerMessage) {
        let lanes = self.lock();
        let Some(lane) = lanes.get(&message.to) else {
            return;
        };
        let frame = frame(&message.encode());
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
                .or_insert_with(|| open(member, owner));
        }
    }

    /// A way to a member that is not in the roster yet, at the given URLs.
    pub(super) fn add(&self, member: &Member, owner: Owner) {
        self.lock()
            .entry(member.id)
            .or_insert_with(|| open(member, owner));
    }
}

fn open(member: &Member, owner: Owner) -> Lane {
    let (frames, receiver) = unbounded_channel();
    let waiting = Arc::default();
    let lane = Lane {
        frames,
        waiting: Arc::clone(&waiting),
        urls: member.peer_ur_ls.clone(),
    };
    tokio::spawn(carry(member.clone(), owner, receiver, waiting));
    lane
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 8);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
    out
}

async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = [0; 8];
    stream.read_exact(&mut head).await?;
    let [a, b, c, d, check @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::other("a frame is too long"));
    }
    // Memory grows with what comes, not with what was promised.
    let mut payload = Vec::new();
    stream.take(length as u64).read_to_end(&mut payload).await?;
    if payload.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
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
    let rest = url.strip_prefix("http://")?.trim_end_matches('/');
    if let Some(port) = rest.strip_prefix("localhost:") {
        return Some(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            port.parse().ok()?,
        ));
    }
    rest.parse().ok()
}

async fn connect(urls: &[String]) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no URL with an address");
    for address in urls.iter().filter_map(|url| address_of(url)) {
        match tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(err)) => failed = err,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

/// Carries messages to one member until its lane is closed.
async fn carry(
    member: Member,
    owner: Owner,
    mut frames: UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
) {
    let mut told = false;
    while let Some(first) = frames.recv().await {
        let Err(err) = carry_on(&member, owner, first, &mut frames, &waiting, &mut told).await
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
    owner: Owner,
    first: Vec<u8>,
    frames: &mut UnboundedReceiver<Vec<u8>>,
    waiting: &AtomicUsize,
    told: &mut bool,
) -> io::Result<()> {
    waiting.fetch_sub(first.len(), Relaxed);
    let stream = connect(&member.peer_ur_ls).await?;
    if std::mem::take(told) {
        log::info!("member {:x} is reached again", member.id);
    }
    let mut stream = BufWriter::with_capacity(64 << 10, stream);
    let hello = hello(BRING, owner.cluster, owner.member, member.id);
    stream.write_all(&hello).await?;
    let mut frame = first;
    loop {
        in_time(stream.write_all(&frame)).await?;
        let next = match frames.try_recv() {
            Ok(next) => Some(next),
            Err(_) => {
                in_time(stream.flush()).await?;
                frames.recv().await
            }
        };
        let Some(next) = next else { return Ok(()) };
        waiting.fetch_sub(next.len(), Relaxed);
        frame = next;
    }
}

async fn in_time(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(WRITE_TIME, write)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Takes connections of other members.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(err) = receive(&shared, stream).await {
                        log::debug!("connection of a member from {address}: {err}");
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

async fn receive(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(64 << 10, stream);
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
    let kind = reader.u8().map_err(short)?;
    let cluster = reader.u64().map_err(short)?;
    let from = reader.u64().map_err(short)?;
    let to = reader.u64().map_err(short)?;
    match kind {
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

async fn bring(shared: &Shared, stream: &mut BufReader<TcpStream>) -> io::Result<()> {
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
pub async fn ask_members(url: &str) -> io::Result<(u64, Vec<Member>)> {
    let ask = async {
        let mut stream = connect(&[url.to_owned()]).await?;
        stream.write_all(&hello(LIST, 0, 0, 0)).await?;
        let payload = read_frame(&mut stream).await?;
        let list = MemberListResponse::decode(payload.as_slice()).map_err(io::Error::other)?;
        let cluster = list.header.map_or(0, |h| h.cluster_id);
        Ok((cluster, list.members))
    };
    tokio::time::timeout(LIST_TIME, ask)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}
