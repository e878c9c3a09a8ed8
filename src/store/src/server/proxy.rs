//! A machine without a member: its clients are passed on to members, until it becomes one itself if it has a token.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_tls::Io;
use tokio::io::copy_bidirectional;
use tokio::sync::Notify;

use super::bootstrap::First;
use super::connections::accept;
use super::join::{Answer, Joining, own_addresses, own_urls};
use super::peers::{self, AskError, address_of, connect, open_tunnel};
use super::tls::{PeerTls, TlsFiles};
use super::token::Token;
use super::{ClientListener, ServeError, Settings};
use crate::disk::Disk;
use crate::proto::etcdserverpb::Member;
use crate::state::Genesis;

/// Pause between two questions whether there is a place for a member now.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Pause between two questions who the members are (etcd's `--proxy-refresh-interval`), and while nobody answers it at first.
const REFRESH: Duration = Duration::from_secs(30);
const FIND_AGAIN: Duration = Duration::from_secs(1);
/// Where the members of a machine without a token were last, which asks there first: a URL for peers a line.
const FILE: &str = "proxy";
const NEW_FILE: &str = "proxy.new";
const MAX_FILE_BYTES: u64 = 64 << 10;

/// The members, the one that answered last first.
#[derive(Debug)]
struct Members {
    all: Mutex<Vec<Member>>,
    /// Told when none of them takes a client.
    missed: Notify,
}

impl Members {
    fn new(members: Vec<Member>) -> Arc<Self> {
        Arc::new(Self {
            all: Mutex::new(members),
            missed: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Member>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Member> {
        self.lock().clone()
    }

    fn set(&self, members: Vec<Member>) {
        if !members.is_empty() {
            *self.lock() = members;
        }
    }

    fn prefer(&self, id: u64) {
        self.lock().sort_by_key(|m| m.id != id);
    }
}

/// Passes clients on until this machine is let in as a member.
pub(super) async fn serve(
    settings: &Settings,
    joining: &Joining,
    tls: &Option<PeerTls>,
    listeners: &[ClientListener],
    members: Vec<Member>,
) -> First {
    let known = Members::new(members);
    let road = Road::Tunnel {
        token: joining.token.clone(),
        tls: tls.clone(),
    };
    let place = ask_for_a_place(settings, joining, tls.as_ref(), &known);
    pass_on_until(place, &known, road, listeners).await
}

/// Passes clients on to members without a token, for as long as this process lives.
pub(super) async fn serve_for_good(
    disk: &dyn Disk,
    settings: &Settings,
    tls: &Option<PeerTls>,
    listeners: &[ClientListener],
    members: Vec<Member>,
) -> Result<Infallible, ServeError> {
    keep(disk, &members);
    let known = Members::new(members);
    // Members know clients by the authority that they are known by themselves; if none is said, the one among members.
    let with_authority = |files: &&TlsFiles| files.authority.is_some();
    let files = settings.tls.clients.as_ref().filter(with_authority);
    let own = listeners.iter().filter_map(|(l, _)| l.local_addr().ok());
    let road = Road::Client {
        tls: match files {
            Some(files) => Some(files.for_peers()?),
            None => tls.clone(),
        },
        own: own.collect(),
    };
    let follow = async {
        loop {
            // One that is new, or has moved, may be known to the others by now.
            let _ = tokio::time::timeout(REFRESH, known.missed.notified()).await;
            tokio::time::sleep(FIND_AGAIN).await;
            let before: Vec<String> = peer_urls(&known.all()).collect();
            if let Some(members) = ask_around(&before, tls.as_ref()).await {
                if peer_urls(&members).any(|url| !before.contains(&url)) {
                    keep(disk, &members);
                }
                known.set(members);
            }
        }
    };
    Ok(pass_on_until(follow, &known, road, listeners).await)
}

/// The members of a cluster, once one of them answers at these URLs for peers, or where they were last.
pub(super) async fn find_members(
    disk: &dyn Disk,
    urls: impl Iterator<Item = String>,
    tls: Option<&PeerTls>,
) -> Vec<Member> {
    let mut all = kept(disk);
    all.extend(urls);
    let mut told = false;
    loop {
        if let Some(members) = ask_around(&all, tls).await {
            return members;
        }
        if !std::mem::replace(&mut told, true) {
            log::warn!("no member answers at {}; trying again", all.join(","));
        }
        tokio::time::sleep(FIND_AGAIN).await;
    }
}

/// Whom the first one that answers takes for the members, if they serve clients already.
async fn ask_around(urls: &[String], tls: Option<&PeerTls>) -> Option<Vec<Member>> {
    for url in urls {
        match peers::ask_members(url, tls).await {
            Ok((_, members)) if members.iter().any(|m| !m.client_ur_ls.is_empty()) => {
                return Some(members);
            }
            Ok(_) => log::debug!("{url}: no member serves clients yet"),
            Err(err) => log::debug!("{url}: {err}"),
        }
    }
    None
}

fn keep(disk: &dyn Disk, members: &[Member]) {
    let text: String = peer_urls(members).map(|url| url + "\n").collect();
    let write = || {
        let file = disk.open(NEW_FILE, true)?;
        file.set_len(text.len() as u64)?;
        file.write(0, text.as_bytes())?;
        file.sync()?;
        disk.rename(NEW_FILE, FILE)?;
        disk.sync_names()
    };
    if let Err(err) = write() {
        log::warn!("keep where the members are in the file {FILE}: {err}");
    }
}

fn kept(disk: &dyn Disk) -> Vec<String> {
    let read = || {
        let file = disk.open(FILE, false)?;
        let mut bytes = vec![0; file.size()?.min(MAX_FILE_BYTES) as usize];
        file.read(0, &mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    // Without it the configured ones are asked.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let urls = text.lines().filter(|url| address_of(url).is_some());
    urls.map(str::to_owned).collect()
}

fn peer_urls(members: &[Member]) -> impl Iterator<Item = String> {
    members.iter().flat_map(|m| m.peer_ur_ls.clone())
}

/// Passes clients on until something else has come to its end.
async fn pass_on_until<T>(
    end: impl Future<Output = T>,
    known: &Arc<Members>,
    road: Road,
    listeners: &[ClientListener],
) -> T {
    let way = Arc::new(Way {
        known: Arc::clone(known),
        road,
    });
    let tasks: Vec<_> = listeners
        .iter()
        .cloned()
        .map(|(listener, client_tls)| {
            let way = Arc::clone(&way);
            let pass_on = move |client| {
                let way = Arc::clone(&way);
                async move { drop(tokio::spawn(async move { way.pass_on(client).await })) }
            };
            tokio::spawn(async move { accept(&listener, client_tls, pass_on).await })
        })
        .collect();
    let ended = end.await;
    // Clients that are connected keep their way; new ones are the member's.
    for task in tasks {
        task.abort();
    }
    ended
}

async fn ask_for_a_place(
    settings: &Settings,
    joining: &Joining,
    tls: Option<&PeerTls>,
    known: &Members,
) -> First {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let said = Member {
            name: settings.name.clone(),
            peer_ur_ls: own_urls(settings, joining),
            machine: joining.machine.clone(),
            ..Member::default()
        };
        for url in peer_urls(&known.all()).chain(joining.seeds.clone()) {
            let Ok(told) = peers::ask_to_join(&url, tls, &joining.token, &said, 0).await else {
                continue;
            };
            if let Answer::Member(member) = told.answer {
                log::info!("there is a place: this machine becomes member {member:x}");
                let genesis = Genesis {
                    cluster: told.cluster,
                    member,
                    members: Vec::new(),
                };
                return First {
                    genesis,
                    others: told.members,
                };
            }
            known.set(told.members);
            break;
        }
    }
}

/// Where a member takes clients that are passed on.
enum Road {
    /// Where it listens to members, for those who know the token.
    Tunnel { token: Token, tls: Option<PeerTls> },
    /// At its URLs for clients, as a client.
    Client {
        tls: Option<PeerTls>,
        /// Where this machine listens to clients itself.
        own: Vec<SocketAddr>,
    },
}

impl Road {
    async fn open(&self, member: &Member) -> Result<Io, AskError> {
        match self {
            Self::Tunnel { token, tls } => {
                open_tunnel(&member.peer_ur_ls, tls.as_ref(), token).await
            }
            Self::Client { tls, own } => {
                let urls = client_urls(member, own);
                if urls.is_empty() {
                    let why = "it advertises no client URL that can be reached from here";
                    return Err(AskError::Connect(io::Error::other(why)));
                }
                let stream = connect(&urls, tls.as_ref()).await;
                stream.map_err(AskError::Connect)
            }
        }
    }
}

/// The URLs for clients at which a member is reached from this machine, of which `own` are where it listens to clients itself.
/// A member that nobody has told better says that it is at `localhost`, which is another place here.
fn client_urls(member: &Member, own: &[SocketAddr]) -> Vec<String> {
    let is_local = |url: &String| address_of(url).is_some_and(|a| a.ip().is_loopback());
    let is_here = member.peer_ur_ls.iter().any(is_local);
    let is_own = |address: SocketAddr| {
        own.iter().any(|own| {
            let any = own.ip().is_unspecified() && own_addresses().contains(&address.ip());
            own.port() == address.port() && (own.ip() == address.ip() || any)
        })
    };
    let mut urls = member.client_ur_ls.clone();
    urls.retain(|url| (is_here || !is_local(url)) && !address_of(url).is_some_and(is_own));
    urls
}

/// How clients get to a member.
struct Way {
    known: Arc<Members>,
    road: Road,
}

impl Way {
    async fn pass_on(&self, mut client: Io) {
        for member in self.known.all() {
            match self.road.open(&member).await {
                Ok(mut stream) => {
                    self.known.prefer(member.id);
                    // Either end may break at any time; the other one sees it.
                    let _ = copy_bidirectional(&mut client, &mut stream).await;
                    return;
                }
                Err(err) => log::warn!("pass a client on to member {:x}: {err}", member.id),
            }
        }
        self.known.missed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Directory;

    #[test]
    fn clients_are_never_passed_on_to_where_they_came_from() {
        let urls = |peer: &str, clients: &[&str], own: &str| {
            let member = Member {
                peer_ur_ls: vec![peer.into()],
                client_ur_ls: clients.iter().map(|&url| url.into()).collect(),
                ..Member::default()
            };
            client_urls(&member, &[own.parse().expect("an address")])
        };
        let (far, near) = ("http://10.255.0.1:2380", "http://127.0.0.1:2380");
        let given = ["http://localhost:2379", "http://10.255.0.1:2379"];
        assert_eq!(urls(far, &given, "127.0.0.1:4001"), given[1..]);
        assert_eq!(urls(far, &given, "10.255.0.1:2379"), [""; 0]);
        assert_eq!(urls(near, &given[..1], "127.0.0.1:4001"), given[..1]);
        assert_eq!(urls(near, &given[..1], "127.0.0.1:2379"), [""; 0]);
        assert_eq!(urls(near, &given[..1], "0.0.0.0:2379"), [""; 0]);
    }

    #[test]
    fn where_the_members_were_last_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = Directory::open(directory.path()).expect("it can be used");
        assert_eq!(kept(&disk), [""; 0]);
        for peers in [
            &["http://10.0.0.1:2380", "https://10.0.0.2:2380"][..],
            &["http://[::1]:1"],
        ] {
            let member = |&url| Member {
                peer_ur_ls: vec![String::from(url)],
                ..Member::default()
            };
            keep(&disk, &peers.iter().map(member).collect::<Vec<_>>());
            assert_eq!(kept(&disk), peers);
        }
        std::fs::write(directory.path().join(FILE), b"\xff\nhttp://a:1\n")
            .expect("it can be written");
        assert_eq!(kept(&disk), [""; 0]);
    }
}
