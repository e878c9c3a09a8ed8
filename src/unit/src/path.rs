//! `[Path]`: a unit that is started when something appears or changes (`systemd.path(5)`).

use std::time::Duration;

use crate::name::UnitName;

/// What is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Watch {
    /// `PathExists=`
    Exists,
    /// `PathExistsGlob=`
    ExistsGlob,
    /// `PathChanged=`: closed after writing, and what changes names and modes.
    Changed,
    /// `PathModified=`: each write too.
    Modified,
    /// `DirectoryNotEmpty=`
    DirectoryNotEmpty,
}

/// A path unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathUnit {
    /// Each of these starts the unit; paths are absolute.
    pub watches: Vec<(Watch, String)>,
    /// `Unit=`, or the service of the same name.
    pub unit: UnitName,
    /// `MakeDirectory=`: what is watched is made as a directory first.
    pub make_directory: bool,
    /// `DirectoryMode=`
    pub directory_mode: u32,
    /// `TriggerLimitIntervalSec=`; zero turns the limit off.
    pub trigger_limit_interval: Duration,
    /// `TriggerLimitBurst=`
    pub trigger_limit_burst: u32,
}

impl PathUnit {
    /// A unit that watches nothing.
    pub(crate) fn new(unit: UnitName) -> Self {
        Self {
            watches: Vec::new(),
            unit,
            make_directory: false,
            directory_mode: 0o755,
            trigger_limit_interval: Duration::from_secs(2),
            trigger_limit_burst: 200,
        }
    }
}
