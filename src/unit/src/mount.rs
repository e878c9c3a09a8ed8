//! `[Mount]`: a file system in its place (`systemd.mount(5)`).

use std::time::Duration;

use crate::service::Service;

/// A mount unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `What=`: a device, a file, a remote name, or a word for file systems that have none.
    pub what: String,
    /// `Where=`, absolute; the unit's name is this path, escaped.
    pub place: String,
    /// `Type=`; `None` lets `mount` find out.
    pub fs_type: Option<String>,
    /// `Options=`, with commas; may be empty.
    pub options: String,
    /// `SloppyOptions=`
    pub sloppy_options: bool,
    /// `LazyUnmount=`
    pub lazy_unmount: bool,
    /// `ReadWriteOnly=`: no attempt to mount it read-only.
    pub read_write_only: bool,
    /// `ForceUnmount=`
    pub force_unmount: bool,
    /// `DirectoryMode=`
    pub directory_mode: u32,
    /// `TimeoutSec=`; `None` waits for ever.
    pub timeout: Option<Duration>,
    /// What `[Mount]` shares with `[Service]`: how its program runs, the cgroup.
    pub execution: Box<Service>,
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            what: String::new(),
            place: String::new(),
            fs_type: None,
            options: String::new(),
            sloppy_options: false,
            lazy_unmount: false,
            read_write_only: false,
            force_unmount: false,
            directory_mode: 0o755,
            timeout: Some(crate::service::DEFAULT_TIMEOUT),
            execution: Box::default(),
        }
    }
}

impl Mount {
    /// Whether an option is among `Options=`.
    #[must_use]
    pub fn has_option(&self, option: &str) -> bool {
        self.options.split(',').any(|o| o.trim() == option)
    }

    /// Whether it needs the network: by its type, or by `_netdev`.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        const TYPES: [&str; 17] = [
            "afs",
            "ceph",
            "cifs",
            "davfs",
            "gfs",
            "gfs2",
            "glusterfs",
            "lustre",
            "ncp",
            "ncpfs",
            "nfs",
            "nfs4",
            "ocfs2",
            "orangefs",
            "pvfs2",
            "smb3",
            "sshfs",
        ];
        let fs_type = self.fs_type.as_deref().unwrap_or_default();
        let fs_type = fs_type.strip_prefix("fuse.").unwrap_or(fs_type);
        self.has_option("_netdev") || TYPES.contains(&fs_type)
    }

    /// Whether another place of the machine is shown at this one.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.has_option("bind")
            || self.has_option("rbind")
            || matches!(self.fs_type.as_deref(), Some("bind" | "rbind"))
    }
}
