//! What becomes of a member whose log is damaged before its end: entries that it has acknowledged are lost, so it must not
//! go on as if it had them. It puts its data aside and is let in anew, as a machine with an empty disk is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{ServeError, Settings};
use crate::command::Change;
use crate::consensus::MemberChange;
use crate::disk::{Directory, Disk};
use crate::node::NodeError;
use crate::state::{STATE_FILE, State};
use crate::wal::{Wal, WalError};

/// Where the damaged data is kept, in the data directory. As long as it is there and there is no state, this machine must
/// not make a cluster: it had one.
const ASIDE: &str = "damaged";
/// The lock of the directory, which stays.
const LOCK: &str = "lock";

impl NodeError {
    /// Whether what was durable is not there any more.
    fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Wal(WalError::Damaged { .. })
                | Self::LogEndsEarly { .. }
                | Self::LogBeginsLate { .. }
                | Self::LogMissing
        )
    }
}

/// The settings of a start: a machine whose data was put aside joins, whatever its settings say of making clusters.
pub(super) fn settle(disk: &dyn Disk, settings: &Settings) -> Result<Settings, ServeError> {
    let mut settings = settings.clone();
    let exists = State::exists(disk).map_err(NodeError::from)?;
    if !exists && settings.data_dir.join(ASIDE).exists() {
        settings.bootstrap.never_founds();
    }
    Ok(settings)
}

/// Puts damaged data aside, so that the next start fetches it from the other members. Any other error is given back, and so
/// is damage that no one can make good, with what to do.
pub(super) fn put_aside(
    disk: &Arc<Directory>,
    settings: &Settings,
    err: NodeError,
) -> Result<(), ServeError> {
    if !err.is_damage() {
        return Err(err.into());
    }
    let path = settings.data_dir.clone();
    let dyn_disk = Arc::clone(disk) as Arc<dyn Disk>;
    let Ok(state) = State::open(dyn_disk, settings.options.cache_bytes) else {
        return Err(ServeError::DamagedAlone { path, err });
    };
    let member = state.owner.member;
    let mut members: BTreeSet<u64> = state.roster.members.iter().map(|m| m.id).collect();
    drop(state);
    // The state may lag behind the log by some seconds, in which others may have come.
    for entry in Wal::legible_changes(&**disk) {
        match Change::decode(&entry.context) {
            Ok((_, change)) => match change.kind {
                MemberChange::Remove(id) => {
                    members.remove(&id);
                }
                MemberChange::AddLearner(id) | MemberChange::Promote(id) => {
                    members.insert(id);
                }
            },
            Err(err) => log::warn!("entry {} of the log: {err}", entry.index),
        }
    }
    members.remove(&member);
    if members.is_empty() {
        return Err(ServeError::DamagedAlone { path, err });
    }
    if settings.bootstrap.joining().is_none() {
        return Err(ServeError::DamagedMember { path, member, err });
    }
    let aside = path.join(ASIDE);
    log::error!(
        "{:#}: the data is put aside in {}, and the state is fetched from the other members",
        Chain(&err),
        aside.display()
    );
    move_all(disk, &path, &aside).map_err(|err| ServeError::DataDir { path, err })
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
fn move_all(disk: &Directory, path: &Path, aside: &PathBuf) -> io::Result<()> {
    let mut names = disk.list()?;
    names.retain(|name| name != LOCK && name != ASIDE);
    names.sort_unstable_by_key(|name| name == STATE_FILE);
    if names.iter().any(|name| name.starts_with("wal-")) && aside.exists() {
        // What was put aside before has been replaced since.
        fs::remove_dir_all(aside)?;
    }
    fs::create_dir_all(aside)?;
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
