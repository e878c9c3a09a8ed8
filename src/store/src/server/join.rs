//! Members that find their cluster by a token: who asks to take part, who is let in, and who says that it has moved
//! (`docs/store-peers.md`, "Join").

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Status as GrpcStatus;

use super::bootstrap::{First, alone};
use super::peers::{self, AskError, address_of};
use super::shared::{Shared, random_u64};
use super::tls::PeerTls;
use super::token::Token;
use super::{Settings, peers::PEER_PORT};
use crate::bytes::{Ended, Reader};
use crate::command::{Change, Command};
use crate::consensus::MemberChange;
use crate::proto::etcdserverpb::{Member, MemberListResponse, ResponseHeader};
use crate::refused::Refused;
use crate::roster::MAX_VOTERS;
use crate::state::Genesis;

/// Pause between two rounds of asking.
const AGAIN: Duration = Duration::from_millis(500);
/// Time for which a machine that may found the cluster waits for a member of one that looks for it: members try to reach
/// those that are gone five times a second.
const LISTEN_TIME: Duration = Duration::from_secs(3);
/// Pause between two looks at this machine's own address.
const LOOK: Duration = Duration::from_secs(5);
/// Time that a member may take to let another one in.
const ADMIT_TIME: Duration = Duration::from_secs(8);
/// Time after which it is given up to replace a member; its own patience is shorter, but half of it must not be left behind.
const REPLACE_TIME: Duration = Duration::from_secs(60);

/// TEST-NET-1 (RFC 5737) stands for the rest of the world; nothing is sent.
const WORLD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), PEER_PORT);

/// How a member finds its cluster by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// The cluster's secret.
    pub token: Token,
    /// URLs for peers, of any members.
    pub seeds: Vec<String>,
    /// Whether this machine makes the cluster when no member of one is found; when it is not said, the machine that has
    /// the first seed's address does.
    pub founds: Option<bool>,
    /// What the machine is known by, wherever it is and whatever is on its disk.
    pub machine: String,
}

/// What a machine that asks to take part is told.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// It takes part, as this member.
    Member(u64),
    /// There are enough members: it passes its clients on to them.
    Proxy,
    /// Not now.
    Later,
    /// The member that it was has been removed.
    Removed,
}

/// An answer, and whom to turn to next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    pub(super) answer: Answer,
    pub(super) cluster: u64,
    pub(super) members: Vec<Member>,
}

impl Told {
    /// What one that is in no cluster itself has to say.
    pub(super) fn none() -> Self {
        Self {
            answer: Answer::Later,
            cluster: 0,
            members: Vec::new(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let (outcome, member) = match self.answer {
            Answer::Member(member) => (1, member),
            Answer::Proxy => (2, 0),
            Answer::Later => (3, 0),
            Answer::Removed => (4, 0),
        };
        let list = MemberListResponse {
            header: Some(ResponseHeader {
                cluster_id: self.cluster,
                ..ResponseHeader::default()
            }),
            members: self.members.clone(),
        };
        let mut out = vec![outcome];
        out.extend_from_slice(&u64::to_le_bytes(member));
        out.extend_from_slice(&list.encode_to_vec());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let head = |reader: &mut Reader<'_>| Ok::<_, Ended>((reader.u8()?, reader.u64()?));
        let answer = match head(&mut reader).ok()? {
            (1, member) => Answer::Member(member),
            (2, _) => Answer::Proxy,
            (3, _) => Answer::Later,
            (4, _) => Answer::Removed,
            _ => return None,
        };
        let list = MemberListResponse::decode(reader.0).ok()?;
        Some(Self {
            answer,
            cluster: list.header?.cluster_id,
            members: list.members,
        })
    }
}

/// What a machine without data becomes.
pub(super) enum Found {
    /// A member.
    Member(First),
    /// One that passes its clients on, to the members at these URLs for peers.
    Proxy(Vec<Member>),
}

/// Asks until there is a cluster that this machine takes part in, or makes one.
pub(super) async fn find(
    settings: &Settings,
    joining: &Joining,
    tls: &Option<PeerTls>,
    listeners: &[Arc<TcpListener>],
) -> Found {
    let (caller, called) = watch::channel(Vec::new());
    let callers: Vec<_> = listeners
        .iter()
        .map(|listener| {
            let (listener, caller) = (Arc::clone(listener), caller.clone());
            let token = joining.token.clone();
            tokio::spawn(peers::note_callers(listener, tls.clone(), token, caller))
        })
        .collect();
    let found = ask_around(settings, joining, tls.as_ref(), &called).await;
    for task in callers {
        task.abort();
    }
    found
}

async fn ask_around(
    settings: &Settings,
    joining: &Joining,
    tls: Option<&PeerTls>,
    called: &watch::Receiver<Vec<String>>,
) -> Found {
    let began = Instant::now();
    // Each once for as long as it is so: there are several to ask, twice a second.
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut tell = |whom: &str, what: String| {
        if told.get(whom) != Some(&what) {
            log::info!("{what}");
            told.insert(whom.to_owned(), what);
        }
    };
    loop {
        let own = own_urls(settings, joining);
        let mut urls: Vec<String> = joining.seeds.clone();
        // The last one that called: a cluster that knows this machine.
        let callers = called.borrow().clone();
        urls.extend_from_slice(&callers);
        urls.retain(|url| !own.contains(url));
        if own.is_empty() {
            tell("", "this machine has no address yet".into());
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let said = Member {
            name: settings.name.clone(),
            peer_ur_ls: own.clone(),
            machine: joining.machine.clone(),
            ..Member::default()
        };
        let mut there = false;
        for url in &urls {
            let told = match peers::ask_to_join(url, tls, &joining.token, &said, 0).await {
                Ok(told) => told,
                Err(err) => {
                    there |= matches!(err, AskError::Refused(_));
                    tell(url, format!("asking {url} to take part: {err}"));
                    continue;
                }
            };
            there |= told.cluster != 0;
            match told.answer {
                Answer::Member(member) => {
                    log::info!("{url} takes this machine in as member {member:x}");
                    return Found::Member(First {
                        genesis: Genesis {
                            cluster: told.cluster,
                            member,
                            members: Vec::new(),
                        },
                        others: told.members,
                    });
                }
                Answer::Proxy => return Found::Proxy(told.members),
                Answer::Later if told.cluster == 0 => {
                    tell(url, format!("{url} is in no cluster yet"));
                }
                Answer::Later | Answer::Removed => {
                    tell(url, format!("{url} cannot take it in now"));
                }
            }
        }
        let founds = joining
            .founds
            .unwrap_or_else(|| joining.seeds.first().is_none_or(|url| own.contains(url)));
        if founds && !there && callers.is_empty() && began.elapsed() >= LISTEN_TIME {
            log::info!("no member of a cluster is found: this machine makes one");
            let this = Member {
                peer_ur_ls: own,
                ..said
            };
            return Found::Member(alone(this));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The URLs at which other members reach this machine: what is configured, or the address of it that is among the seeds
/// or from which there is a way to one.
pub(super) fn own_urls(settings: &Settings, joining: &Joining) -> Vec<String> {
    if !settings.peer_urls.is_empty() {
        return settings.peer_urls.clone();
    }
    let addresses = own_addresses();
    let port = settings.peer_listen.first().map_or(PEER_PORT, |a| a.port());
    let is_own = |seed: &&String| {
        address_of(seed).is_some_and(|a| addresses.contains(&a.ip()) && a.port() == port)
    };
    if let Some(url) = joining.seeds.iter().find(is_own) {
        return vec![url.clone()];
    }
    let mut seeds = joining.seeds.iter().filter_map(|url| address_of(url));
    seeds
        .find_map(way_to)
        .or_else(own_address)
        .map(|ip| {
            let scheme = if settings.tls.peers.is_some() {
                "https"
            } else {
                "http"
            };
            format!("{scheme}://{}", SocketAddr::new(ip, port))
        })
        .into_iter()
        .collect()
}

/// The address of this machine from which it reaches the rest of the world; in a network without a way out, the first one
/// that is not for this machine alone.
pub fn own_address() -> Option<IpAddr> {
    way_to(WORLD).or_else(|| {
        let mut addresses = interface_addresses().filter(|(interface, ip)| {
            // The containers' bridge is known to this machine alone.
            !interface.starts_with("orlop") && !is_local(*ip)
        });
        addresses.next().map(|(_, ip)| ip)
    })
}

/// Whether an address means another machine elsewhere: loopback's, and those of one link (RFC 3927, RFC 4291, 2.5.6).
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

/// The address from which the kernel would send there.
fn way_to(address: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(address).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    let of_use = !ip.is_unspecified() && (!ip.is_loopback() || address.ip().is_loopback());
    of_use.then_some(ip)
}

pub(super) fn own_addresses() -> Vec<IpAddr> {
    interface_addresses().map(|(_, ip)| ip).collect()
}

/// The addresses of this machine, each with its interface's name.
fn interface_addresses() -> impl Iterator<Item = (String, IpAddr)> {
    let interfaces = nix::ifaddrs::getifaddrs().ok().into_iter().flatten();
    interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
        Some((interface.interface_name, ip))
    })
}

impl Shared {
    /// A machine asks to take part, or a member says where it is.
    pub(super) async fn admit(&self, said: &Member, cluster: u64) -> Told {
        let answer = if cluster != 0 && cluster != self.owner.cluster {
            log::warn!(
                "machine {} is in cluster {cluster:x}, which has the same token",
                said.machine
            );
            Answer::Later
        } else {
            if said.id != 0 {
                // Without it there may be no leader that could take the news.
                self.redirect(said);
            }
            match tokio::time::timeout(ADMIT_TIME, self.admit_now(said)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(status)) => {
                    log::info!(
                        "machine {} cannot take part now: {}",
                        said.machine,
                        status.message()
                    );
                    Answer::Later
                }
                Err(_) => Answer::Later,
            }
        };
        Told {
            answer,
            cluster: self.owner.cluster,
            members: self.members(),
        }
    }

    async fn admit_now(&self, said: &Member) -> Result<Answer, GrpcStatus> {
        // Only then does the roster hold what was decided before.
        self.read(false).await?;
        let roster = self.roster();
        if said.id != 0 {
            if roster.removed.contains(&said.id) {
                return Ok(Answer::Removed);
            }
            let known = roster.member(said.id);
            if known.is_some_and(|m| m.peer_ur_ls != said.peer_ur_ls || m.machine != said.machine) {
                self.propose(Command::MovePeer(said.clone())).await?;
            }
            return Ok(known.map_or(Answer::Later, |m| Answer::Member(m.id)));
        }
        // Whoever lost its data may have given a vote that it does not know of: it is never the same member again.
        let old = roster.on_machine(&said.machine).cloned();
        let mut voters = roster.future_voters();
        if let Some(old) = &old {
            let voted = !old.is_learner || roster.promote.contains(&old.id);
            voters -= usize::from(voted);
        }
        if voters >= MAX_VOTERS {
            return Ok(Answer::Proxy);
        }
        if let Some(old) = old {
            log::info!(
                "machine {} has lost its data: member {:x} is replaced",
                said.machine,
                old.id
            );
            self.change(Change {
                kind: MemberChange::Remove(old.id),
                promote: false,
                member: Member::default(),
            })
            .await?;
        }
        let id = random_u64().max(1);
        self.change(Change {
            kind: MemberChange::AddLearner(id),
            promote: true,
            member: Member { id, ..said.clone() },
        })
        .await?;
        Ok(Answer::Member(id))
    }
}

impl Shared {
    /// A member without a token has lost its data.
    pub(super) async fn let_in_anew(&self, said: &Member) -> Told {
        let answer = self.replace(said).await.unwrap_or_else(|status| {
            log::warn!(
                "member {:x} has lost its data, and cannot be let in now: {}",
                said.id,
                status.message()
            );
            Answer::Later
        });
        Told {
            answer,
            cluster: self.owner.cluster,
            members: self.members(),
        }
    }

    async fn replace(&self, said: &Member) -> Result<Answer, GrpcStatus> {
        let late = |_| GrpcStatus::unavailable("there is no majority of members");
        // Only then does the roster hold what was decided before.
        tokio::time::timeout(ADMIT_TIME, self.read(false))
            .await
            .map_err(late)??;
        let roster = self.roster();
        // The answer to an earlier question may not have come there.
        let same = |m: &&Member| m.is_learner && m.peer_ur_ls == said.peer_ur_ls;
        let earlier = roster.members.iter().find(same);
        let Some(old) = roster.member(said.id).or(earlier).map(|m| m.id) else {
            return Ok(Answer::Removed);
        };
        let id = random_u64().max(1);
        log::warn!("member {old:x} has lost its data: it is replaced by member {id:x}");
        let changes = [
            Change {
                kind: MemberChange::Remove(old),
                promote: false,
                member: Member::default(),
            },
            Change {
                kind: MemberChange::AddLearner(id),
                promote: true,
                member: Member { id, ..said.clone() },
            },
        ];
        let (gone, there) = (Refused::MemberNotFound, Refused::MemberExists);
        let end = Instant::now() + REPLACE_TIME;
        for (change, done) in changes.into_iter().zip([gone, there]) {
            loop {
                let made = tokio::time::timeout(ADMIT_TIME, self.change(change.clone())).await;
                match made {
                    Ok(Ok(_)) => break,
                    // An earlier attempt came through after all.
                    Ok(Err(status)) if status.message() == done.to_string() => break,
                    Ok(Err(status)) if Instant::now() >= end => return Err(status),
                    Err(err) if Instant::now() >= end => return Err(late(err)),
                    // Half of it must not be left behind.
                    Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
        Ok(Answer::Member(id))
    }
}

/// Lets the others know where this member is, as long as it lives.
pub(super) async fn announce(shared: Arc<Shared>, settings: Settings, joining: Joining) {
    let id = shared.owner.member;
    loop {
        let own = own_urls(&settings, &joining);
        shared.is_at(&own);
        let roster = shared.roster();
        let known = roster
            .member(id)
            .is_some_and(|m| m.peer_ur_ls == own && m.machine == joining.machine);
        let serves = shared.status().serves;
        if known && serves || own.is_empty() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        let said = Member {
            id,
            name: settings.name.clone(),
            peer_ur_ls: own.clone(),
            machine: joining.machine.clone(),
            ..Member::default()
        };
        if serves {
            log::info!("this member is now reached at {}", own.join(","));
            if let Err(err) = shared.propose(Command::MovePeer(said)).await {
                log::warn!("say where this member is: {}", err.message());
            }
        } else {
            let urls = roster.members.iter().filter(|m| m.id != id);
            let mut urls: Vec<&String> = urls.flat_map(|m| &m.peer_ur_ls).collect();
            urls.extend(&joining.seeds);
            for url in urls.into_iter().filter(|url| !own.contains(url)) {
                let cluster = shared.owner.cluster;
                let Ok(told) =
                    peers::ask_to_join(url, shared.peer_tls(), &joining.token, &said, cluster)
                        .await
                else {
                    continue;
                };
                if told.answer == Answer::Removed && told.cluster == cluster {
                    shared.end_removed();
                    return;
                }
                shared.meet(&told);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
