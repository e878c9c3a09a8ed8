//! What is handed to the process that confines itself and then becomes a service's program.

use serde::{Deserialize, Serialize};

use crate::confinement::Confinement;
use crate::schedule::Scheduling;

/// Who the program runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchUser {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// A program, and all that is done to the process before it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The unit's name.
    pub unit: String,
    /// The program's absolute path.
    pub program: String,
    /// Its arguments, `argv[0]` first.
    pub arguments: Vec<String>,
    /// `None` stays root.
    pub user: Option<LaunchUser>,
    /// The working directory.
    pub directory: String,
    /// `UMask=`.
    pub umask: u32,
    /// Whether `SIGPIPE` is ignored.
    pub ignore_broken_pipes: bool,
    /// Resource limits: the number of `RLIMIT_*`, soft, hard; `u64::MAX` is none.
    pub limits: Vec<(u32, u64, u64)>,
    /// What is asked of the schedulers.
    pub scheduling: Scheduling,
    /// The unit's own directories, absolute; they stay writable.
    pub directories: Vec<String>,
    /// Those of `ConfigurationDirectory=`, which are root's.
    pub configuration_directories: Vec<String>,
    /// The directories are handed over to the user with all that is in them, whoever had them before.
    pub owns_directories: bool,
    /// What is shown as `/tmp` and `/var/tmp` with `PrivateTmp=`: the directory `tmp` in each of these, of which the last two
    /// components are made where they are missing, for root alone.
    pub private_directories: [String; 2],
    /// Where the processes' common namespaces are kept: this with `.net` or `.ipc` behind it.
    pub namespaces: String,
    /// Where the unit's credentials are shown, when it has any.
    pub credentials: Option<String>,
    /// The rest.
    pub confinement: Confinement,
}
