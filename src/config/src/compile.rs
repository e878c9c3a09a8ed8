//! The machine as it has to be written: pure, so that every case is a test and `orlop config check` sees it all.

mod files;
mod kernel;
mod store;
mod units;
mod users;

use crate::machine::Machine;
use crate::problem::{Problem, Source, Sourced};
use crate::scalar::Hostname;

/// What compilation has to know of the image.
pub struct Base<'a> {
    /// The image's `/etc/passwd` (passwd(5)).
    pub passwd: &'a str,
    /// The image's `/etc/group` (group(5)).
    pub group: &'a str,
    /// The image's `/etc/shadow` (shadow(5)); empty when it has none.
    pub shadow: &'a str,
    /// The shell of users who name none.
    pub shell: &'a str,
    /// The text of a unit file of the image, by name: `enable: true` for a unit without content reads its `[Install]`.
    pub unit: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Base<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").finish_non_exhaustive()
    }
}

impl Default for Base<'_> {
    fn default() -> Self {
        Self {
            passwd: "root:x:0:0:root:/root:/bin/sh\n",
            group: "root:x:0:\n",
            shadow: "",
            shell: "/bin/sh",
            unit: &|_| None,
        }
    }
}

/// Who owns a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// A directory that has to be there with this owner and these permissions.
///
/// Parents of files that are not planned are root's, 0755.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDirectory {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub owner: Owner,
}

/// A file that has to be written.
#[derive(Clone, PartialEq, Eq)]
pub struct PlannedFile {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// All that it holds, or what is added when `append`.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub owner: Owner,
    /// Whether the content is added to the file's end.
    pub append: bool,
    /// Why it is written.
    pub source: Source,
}

impl std::fmt::Debug for PlannedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a secret.
        write!(
            f,
            "PlannedFile({} {:04o}, {} bytes)",
            self.path,
            self.mode,
            self.content.len()
        )
    }
}

/// A symbolic link that has to be there, in place of anything else of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedLink {
    /// Where the link is.
    pub path: String,
    /// What it points to.
    pub target: String,
}

/// A kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedSysctl {
    /// As it was written, `net.core.somaxconn`.
    pub key: String,
    /// The file, `/proc/sys/net/core/somaxconn`.
    pub path: String,
    /// What is written to it.
    pub value: String,
    /// Where it was asked for.
    pub source: Source,
}

/// All that has to be done before the first unit starts, in the order of the fields.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The machine's name.
    pub hostname: Option<Sourced<Hostname>>,
    /// Kernel modules that the sysctls need.
    pub modules: Vec<String>,
    /// What is written to `/sys/module/nf_conntrack/parameters/hashsize`, before the sysctls.
    pub conntrack_buckets: Option<Sourced<u32>>,
    /// Kernel parameters.
    pub sysctls: Vec<PlannedSysctl>,
    /// Directories, parents first.
    pub directories: Vec<PlannedDirectory>,
    /// Files; a later one of the same path replaces an earlier one or is added to it.
    pub files: Vec<PlannedFile>,
    /// Links, after the files.
    pub links: Vec<PlannedLink>,
    /// What could not be planned.
    pub problems: Vec<Problem>,
}

impl Plan {
    fn file(&mut self, path: &str, content: impl Into<Vec<u8>>, mode: u32, source: &Source) {
        self.files.push(PlannedFile {
            path: path.to_owned(),
            content: content.into(),
            mode,
            owner: Owner::default(),
            append: false,
            source: source.clone(),
        });
    }

    fn link(&mut self, path: String, target: String) {
        let link = PlannedLink { path, target };
        if !self.links.contains(&link) {
            self.links.push(link);
        }
    }
}

/// Compiles `machine` for the image that `base` describes.
#[must_use]
pub fn compile(machine: &Machine, base: &Base<'_>) -> Plan {
    let mut plan = Plan {
        hostname: machine.hostname.clone(),
        ..Plan::default()
    };
    kernel::compile(machine, &mut plan);
    files::identity(machine, &mut plan);
    let accounts = users::compile(machine, base, &mut plan);
    files::compile(machine, &accounts, &mut plan);
    store::compile(machine, &mut plan);
    units::compile(machine, base, &mut plan);
    plan
}
