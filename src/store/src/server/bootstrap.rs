//! What a member is when its directory is empty: one of the first, or one that joins.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use super::join::{self, Found, Joining};
use super::peers::ask_members;
use super::refetch::{self, Lost};
use super::shared::random_u64;
use super::tls::PeerTls;
use super::{Settings, peers, proxy};
use crate::disk::Disk;
use crate::proto::etcdserverpb::Member;
use crate::state::{Genesis, State, StateError};

/// Pause between two rounds of asking the members of a cluster that is to be joined.
const AGAIN: Duration = Duration::from_millis(500);
/// Rounds after which it is given up.
const ROUNDS: u32 = 120;

/// What to be when there is no data yet (etcd's `--initial-cluster` and `--initial-cluster-state`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// The only member of a new cluster.
    Alone,
    /// One of the first members of a new cluster.
    New {
        /// All of them: name and URLs for peers.
        members: Vec<(String, Vec<String>)>,
        /// What tells this cluster from others with the same URLs.
        token: String,
    },
    /// One that has been added to a cluster which is there.
    Existing {
        /// Its members: name and URLs for peers.
        members: Vec<(String, Vec<String>)>,
    },
    /// One that is let in by a token, or makes the cluster.
    Join(Joining),
    /// None: clients are passed on to the members of a cluster.
    Proxy {
        /// Some of them: name and URLs for peers.
        members: Vec<(String, Vec<String>)>,
    },
}

impl Bootstrap {
    /// How the member finds its cluster by itself, if it does.
    pub fn joining(&self) -> Option<&Joining> {
        match self {
            Self::Join(joining) => Some(joining),
            _ => None,
        }
    }

    /// It makes no cluster of its own by itself.
    pub(super) fn never_founds(&mut self) {
        if let Self::Join(joining) = self {
            joining.founds = Some(false);
        }
    }
}

/// Why a member cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The directory cannot be read.
    #[error("look for data")]
    State(#[from] StateError),
    /// The first members do not include this one.
    #[error("the initial cluster has no member with the name {0:?}")]
    NotNamed(String),
    /// The URLs of this member differ from those that the others are told.
    #[error("the initial cluster has other peer URLs for {0:?} than it advertises")]
    OtherUrls(String),
    /// No member of the cluster that is to be joined answers.
    #[error("no member of the cluster answers at its peer URL")]
    NoAnswer(#[source] io::Error),
    /// The cluster does not know this member.
    #[error("the cluster has no member with the peer URLs {}: add it first", .0.join(","))]
    NotAdded(Vec<String>),
    /// The data was damaged and is put aside, and the other members do not know this one any more.
    #[error(
        "the member's data is put aside, and it has been removed from the cluster: add it anew"
    )]
    Removed,
}

/// What a new member begins with.
#[derive(Debug, Default)]
pub(super) struct First {
    pub(super) genesis: Genesis,
    /// The members of a cluster that is joined.
    pub(super) others: Vec<Member>,
}

/// Finds out what a member without data is to be; nothing is asked when there is data.
pub(super) async fn first(
    disk: &dyn Disk,
    settings: &Settings,
    tls: &Option<PeerTls>,
    listeners: &[Arc<TcpListener>],
    lost: Option<&Lost>,
) -> Result<Found, BootstrapError> {
    if State::exists(disk)? {
        return Ok(Found::Member(First::default()));
    }
    if let Some(lost) = lost {
        let first = refetch::ask_to_replace(settings, tls.as_ref(), lost).await?;
        return Ok(Found::Member(first));
    }
    let first = match &settings.bootstrap {
        Bootstrap::Join(joining) => return Ok(join::find(settings, joining, tls, listeners).await),
        Bootstrap::Alone => Ok(alone(Member {
            name: settings.name.clone(),
            peer_ur_ls: settings.peer_urls.clone(),
            ..Member::default()
        })),
        Bootstrap::New { members, token } => {
            first_member(&settings.name, &settings.peer_urls, members, token).map(|genesis| First {
                genesis,
                others: Vec::new(),
            })
        }
        Bootstrap::Existing { members } => added(settings, tls, members).await,
        Bootstrap::Proxy { members } => {
            let urls = members.iter().flat_map(|(_, urls)| urls).cloned();
            let members = proxy::find_members(disk, urls, tls.as_ref()).await;
            return Ok(Found::Proxy(members));
        }
    };
    first.map(Found::Member)
}

/// The only member of a new cluster.
pub(super) fn alone(this: Member) -> First {
    let member = random_u64().max(1);
    First {
        genesis: Genesis {
            cluster: random_u64().max(1),
            member,
            members: vec![Member { id: member, ..this }],
        },
        others: Vec::new(),
    }
}

fn sorted(urls: &[String]) -> Vec<String> {
    let mut urls = urls.to_vec();
    urls.sort_unstable();
    urls
}

/// One of the first members of a new cluster. All of them come to the same ids, without a word between them.
pub(crate) fn first_member(
    name: &str,
    own_urls: &[String],
    members: &[(String, Vec<String>)],
    token: &str,
) -> Result<Genesis, BootstrapError> {
    let (_, urls) = members
        .iter()
        .find(|(n, _)| n == name)
        .ok_or_else(|| BootstrapError::NotNamed(name.to_owned()))?;
    if sorted(urls) != sorted(own_urls) {
        return Err(BootstrapError::OtherUrls(name.to_owned()));
    }
    let records: Vec<Member> = members
        .iter()
        .map(|(name, urls)| Member {
            id: member_id(urls, token),
            name: name.clone(),
            peer_ur_ls: urls.clone(),
            ..Member::default()
        })
        .collect();
    let mut ids: Vec<[u8; 8]> = records.iter().map(|m| m.id.to_le_bytes()).collect();
    ids.sort_unstable();
    let parts: Vec<&[u8]> = ids.iter().map(<[u8; 8]>::as_slice).collect();
    let this = records
        .iter()
        .find(|m| m.name == name)
        .ok_or_else(|| BootstrapError::NotNamed(name.to_owned()))?
        .id;
    Ok(Genesis {
        cluster: id_of(&parts),
        member: this,
        members: records,
    })
}

/// The id of a first member of a cluster: it follows from its URLs for peers and the cluster's token.
pub fn member_id(urls: &[String], token: &str) -> u64 {
    id_of(&[sorted(urls).join(",").as_bytes(), token.as_bytes()])
}

fn id_of(parts: &[&[u8]]) -> u64 {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let hash: [u8; 32] = digest.finalize().into();
    // 0 is no one.
    u64::from_be_bytes(std::array::from_fn(|i| hash[i])).max(1)
}

async fn added(
    settings: &Settings,
    tls: &Option<PeerTls>,
    members: &[(String, Vec<String>)],
) -> Result<First, BootstrapError> {
    let urls: Vec<&String> = members
        .iter()
        .flat_map(|(_, urls)| urls)
        .filter(|url| !settings.peer_urls.contains(url))
        .collect();
    let mut failed = BootstrapError::NotAdded(settings.peer_urls.clone());
    for round in 0..ROUNDS {
        for url in &urls {
            match ask_members(url, tls.as_ref()).await {
                Ok((cluster, others)) => {
                    let same = |m: &&Member| sorted(&m.peer_ur_ls) == sorted(&settings.peer_urls);
                    // A member that has just joined itself knows no one yet.
                    let Some(this) = others.iter().find(same).map(|m| m.id) else {
                        failed = BootstrapError::NotAdded(settings.peer_urls.clone());
                        continue;
                    };
                    let genesis = Genesis {
                        cluster,
                        member: this,
                        members: Vec::new(),
                    };
                    return Ok(First { genesis, others });
                }
                Err(err) => failed = BootstrapError::NoAnswer(err),
            }
        }
        if round == 0 {
            log::warn!("joining the cluster: {failed}; trying again");
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(failed)
}

impl Settings {
    /// The URLs for peers that are not of a form that members can be reached at.
    pub fn bad_peer_urls(&self) -> Vec<&String> {
        let all = match &self.bootstrap {
            Bootstrap::Alone | Bootstrap::Join(_) => Vec::new(),
            Bootstrap::New { members, .. }
            | Bootstrap::Existing { members }
            | Bootstrap::Proxy { members } => members.iter().flat_map(|(_, urls)| urls).collect(),
        };
        all.into_iter()
            .filter(|url| peers::address_of(url).is_none())
            .collect()
    }
}
