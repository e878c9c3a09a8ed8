//! What becomes of a member whose log is damaged before its end, or its state: entries that it has acknowledged are lost, so
//! it must not go on as if it had them. It puts its data aside and is let in anew, as a machine with an empty disk is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::bootstrap::First;
use super::join::{self, Answer};
use super::tls::PeerTls;
use super::{Bootstrap, BootstrapError, ServeError, Settings, peers};
use crate::command::Change;
use crate::consensus::MemberChange;
use crate::disk::{Directory, Disk};
use crate::node::NodeError;
use crate::proto::etcdserverpb::Member;
use crate::state::{Genesis, STATE_FILE, SUSPECT_FILE, State, StateError, WHILE_OPENING};
use crate::wal::{Owner, Wal};

/// Where the damaged data is kept, in the data directory. As long as it is there and there is no state, this machine must
/// not make a cluster: it had one.
pub const ASIDE: &str = "damaged";
/// The lock of the directory, which stays.
const LOCK: &str = "lock";

/// The first members, as they were found at a discovery URL. It stays: it says whom to ask.
pub const DISCOVERY_FILE: &str = "discovery";
/// In it: whose the data was, for a member that is let in without a token. Lines of a word and its value: `cluster` and
/// `member` with an id in hexadecimal, and for each URL of another member `peer`.
const LOST_FILE: &str = "member";
/// Pause between two rounds of asking to be let in anew.
const AGAIN: Duration = Duration::from_secs(1);
/// Rounds in which nobody knows the member after which it takes itself for removed: one that is being let in is unknown for a
/// moment.
const UNKNOWN_ROUNDS: u32 = 10;
/// What [`SUSPECT_FILE`] holds after a panic of a member that had been opened.
const WHILE_RUNNING: u8 = b'r';
/// Whether the member is being opened.
static OPENING: AtomicBool = AtomicBool::new(false);

/// Told when a read meets damage in the state.
static MET: Notify = Notify::const_new();

/// A read has met an error in the state.
pub(super) fn met(err: &StateError) {
    if err.is_damage() {
        MET.notify_one();
    }
}

/// Until a read has met damage in the state.
pub(super) async fn until_met() {
    MET.notified().await;
}

/// Has the whole state looked at when it is opened next.
pub(super) fn suspect(data_dir: &Path) {
    if let Err(err) = fs::write(data_dir.join(SUSPECT_FILE), [WHILE_RUNNING]) {
        log::warn!("leave word for the next start: {err}");
    }
}

/// Has the whole state of a directory looked at when a member is opened in it next, if there is one.
pub fn look_at_state(data_dir: &Path) {
    // Word that was left before may say more.
    if data_dir.join(STATE_FILE).exists() && !data_dir.join(SUSPECT_FILE).exists() {
        suspect(data_dir);
    }
}

/// Lets a panic leave word for the next start: damage in the state's file may be found by its library in this way alone.
pub(super) fn note_panics(data_dir: &Path) {
    let path = data_dir.join(SUSPECT_FILE);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let first = if OPENING.load(Ordering::Relaxed) {
            WHILE_OPENING
        } else {
            WHILE_RUNNING
        };
        // Without it the next start may end in the same way, and says so again.
        let _ = fs::write(&path, [first]);
        before(info);
    }));
}

/// Opens the member; a panic on the way is told from later ones.
pub(super) fn opening<T>(open: impl FnOnce() -> T) -> T {
    OPENING.store(true, Ordering::Relaxed);
    let opened = open();
    OPENING.store(false, Ordering::Relaxed);
    opened
}

/// A member whose data was put aside, as it is known to the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Lost {
    cluster: u64,
    member: u64,
    /// URLs of other members.
    peers: Vec<String>,
}

impl Lost {
    fn encode(&self) -> String {
        let mut out = format!("cluster {:x}\nmember {:x}\n", self.cluster, self.member);
        for url in &self.peers {
            out.push_str(&format!("peer {url}\n"));
        }
        out
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lost = Self::default();
        for (word, value) in text.lines().filter_map(|line| line.split_once(' ')) {
            match word {
                "cluster" => lost.cluster = u64::from_str_radix(value, 16).ok()?,
                "member" => lost.member = u64::from_str_radix(value, 16).ok()?,
                "peer" => lost.peers.push(value.to_owned()),
                _ => {}
            }
        }
        (lost.cluster != 0 && lost.member != 0).then_some(lost)
    }

    fn read(aside: &Path) -> Option<Self> {
        Self::decode(&fs::read_to_string(aside.join(LOST_FILE)).ok()?)
    }

    fn write(&self, aside: &Path) -> io::Result<()> {
        let mut file = File::create(aside.join(LOST_FILE))?;
        io::Write::write_all(&mut file, self.encode().as_bytes())?;
        file.sync_all()
    }
}

/// The settings of a start, and what the member was if its data is aside: a machine whose data was put aside joins, whatever
/// its settings say of making clusters.
pub(super) fn settle(
    disk: &dyn Disk,
    settings: &Settings,
) -> Result<(Settings, Option<Lost>), ServeError> {
    let mut settings = settings.clone();
    let exists = State::exists(disk).map_err(NodeError::from)?;
    let aside = settings.data_dir.join(ASIDE);
    if exists || !aside.exists() {
        return Ok((settings, None));
    }
    settings.bootstrap.never_founds();
    let lost = Lost::read(&aside).filter(|_| settings.bootstrap.joining().is_none());
    Ok((settings, lost))
}

/// The other members that the settings name.
fn configured_peers(settings: &Settings) -> Vec<String> {
    let mut urls: Vec<String> = match &settings.bootstrap {
        Bootstrap::Alone => Vec::new(),
        Bootstrap::New { members, .. }
        | Bootstrap::Existing { members }
        | Bootstrap::Proxy { members } => {
            members.iter().flat_map(|(_, urls)| urls.clone()).collect()
        }
        Bootstrap::Join(joining) => {
            let own = join::own_urls(settings, joining);
            let mut seeds = joining.seeds.clone();
            seeds.retain(|url| !own.contains(url));
            seeds
        }
    };
    urls.retain(|url| !settings.peer_urls.contains(url));
    urls
}

/// Puts damaged data aside, so that the next start fetches it from the other members. Any other error is given back, and so
/// is damage that no one can make good, with what to do.
pub(super) fn put_aside(
    disk: &Arc<Directory>,
    settings: &Settings,
    err: NodeError,
) -> Result<(), ServeError> {
    let path = settings.data_dir.clone();
    if err.is_of_another_version() {
        return Err(ServeError::OtherVersion { path, err });
    }
    if !err.is_damage() {
        return Err(err.into());
    }
    let aside = path.join(ASIDE);
    let dyn_disk = Arc::clone(disk) as Arc<dyn Disk>;
    let state = match &err {
        NodeError::State(_) => None,
        _ => opening(|| State::open(dyn_disk, settings.options.cache_bytes)).ok(),
    };
    let mut peers = configured_peers(settings);
    let (owner, members) = match &state {
        Some(state) => (Some(state.owner), state.roster.members.clone()),
        None => {
            let known = Lost::read(&aside).map(|lost| Owner {
                cluster: lost.cluster,
                member: lost.member,
            });
            (Wal::legible_owner(&**disk).or(known), Vec::new())
        }
    };
    let is_legible = state.is_some();
    drop(state);
    let Some(owner) = owner else {
        return Err(ServeError::DamagedAlone { path, err });
    };
    let mut others: BTreeSet<u64> = members.iter().map(|m| m.id).collect();
    let mut voters: BTreeSet<u64> = members
        .iter()
        .filter(|m| !m.is_learner)
        .map(|m| m.id)
        .collect();
    peers.extend(
        members
            .into_iter()
            .filter(|m| m.id != owner.member)
            .flat_map(|m| m.peer_ur_ls),
    );
    // The state may lag behind the log by some seconds, in which others may have come.
    for entry in Wal::legible_changes(&**disk) {
        match Change::decode(&entry.context) {
            Ok((_, change)) => match change.kind {
                MemberChange::Remove(id) => {
                    others.remove(&id);
                    voters.remove(&id);
                }
                kind @ (MemberChange::AddLearner(id) | MemberChange::Promote(id)) => {
                    others.insert(id);
                    if matches!(kind, MemberChange::Promote(_)) {
                        voters.insert(id);
                    }
                    if id != owner.member {
                        peers.extend(change.member.peer_ur_ls);
                    }
                }
            },
            Err(err) => log::warn!("entry {} of the log: {err}", entry.index),
        }
    }
    others.remove(&owner.member);
    peers.sort_unstable();
    peers.dedup();
    let all = voters.len();
    voters.remove(&owner.member);
    // Without the state only the settings tell of the first members; those of a token tell just of some.
    let (is_alone, can_decide) = if is_legible {
        (others.is_empty(), voters.len() * 2 > all)
    } else {
        let count = others.len().max(configured_peers(settings).len());
        (
            count == 0,
            count > 1 || settings.bootstrap.joining().is_some(),
        )
    };
    if is_alone {
        return Err(ServeError::DamagedAlone { path, err });
    }
    if !can_decide {
        return Err(ServeError::DamagedOfTwo { path, err });
    }
    log::error!(
        "{:#}: the data is put aside in {}, and the state is fetched from the other members",
        Chain(&err),
        aside.display()
    );
    let lost = Lost {
        cluster: owner.cluster,
        member: owner.member,
        peers,
    };
    move_all(disk, &path, &aside, &lost).map_err(|err| ServeError::DataDir { path, err })
}

/// Asks the other members until one lets this one in anew.
///
/// # Errors
/// [`BootstrapError::Removed`]: they do not know it any more.
pub(super) async fn ask_to_replace(
    settings: &Settings,
    tls: Option<&PeerTls>,
    lost: &Lost,
) -> Result<First, BootstrapError> {
    let said = Member {
        id: lost.member,
        name: settings.name.clone(),
        peer_ur_ls: settings.peer_urls.clone(),
        ..Member::default()
    };
    let mut urls = configured_peers(settings);
    urls.extend(lost.peers.iter().cloned());
    urls.retain(|url| !settings.peer_urls.contains(url));
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut unknown = 0;
    while unknown < UNKNOWN_ROUNDS {
        let mut is_unknown = false;
        let mut is_known = false;
        for url in &urls {
            let what = match peers::ask_to_replace(url, tls, lost.cluster, &said).await {
                Ok(said) => match said.answer {
                    Answer::Member(member) => {
                        log::info!("{url} lets this machine in anew, as member {member:x}");
                        let genesis = Genesis {
                            cluster: lost.cluster,
                            member,
                            members: Vec::new(),
                        };
                        return Ok(First {
                            genesis,
                            others: said.members,
                        });
                    }
                    Answer::Removed => {
                        is_unknown = true;
                        format!("{url} does not know member {:x}", lost.member)
                    }
                    Answer::Later | Answer::Proxy => {
                        is_known = true;
                        format!(
                            "{url} cannot let this machine in now: a majority of the members must be there"
                        )
                    }
                },
                Err(err) => format!("asking {url} to let this machine in anew: {err}"),
            };
            if told.get(url) != Some(&what) {
                log::warn!("{what}");
                told.insert(url.clone(), what);
            }
        }
        unknown = if is_unknown && !is_known {
            unknown + 1
        } else {
            0
        };
        tokio::time::sleep(AGAIN).await;
    }
    Err(BootstrapError::Removed)
}

/// An error with its causes.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(err) = cause {
            write!(f, ": {err}")?;
            cause = err.source();
        }
        Ok(())
    }
}

/// The state goes last: should the power go before, the log is missing, which is damage too, and this begins again.
fn move_all(disk: &Directory, path: &Path, aside: &Path, lost: &Lost) -> io::Result<()> {
    let mut names = disk.list()?;
    names.retain(|name| ![LOCK, ASIDE, DISCOVERY_FILE].contains(&name.as_str()));
    names.sort_unstable_by_key(|name| name == STATE_FILE);
    if names.iter().any(|name| name.starts_with("wal-")) && aside.exists() {
        // What was put aside before has been replaced since.
        fs::remove_dir_all(aside)?;
    }
    fs::create_dir_all(aside)?;
    lost.write(aside)?;
    for name in names {
        if name == STATE_FILE {
            disk.sync_names()?;
            File::open(aside)?.sync_all()?;
        }
        fs::rename(path.join(&name), aside.join(&name))?;
    }
    disk.sync_names()?;
    File::open(aside)?.sync_all()
}
