//! What is known of each container: one file `NAME.json` a container, in memory that a reboot clears.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use orlop_sys::pidfd;
use serde::{Deserialize, Serialize};

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Address of the machine; all if unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<std::net::IpAddr>,
    /// Port of the machine.
    pub host_port: u16,
    /// Port in the container.
    pub container_port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The name that the user knows.
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// The first process, in the machine's PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot: with `pid` the name of one process for good.
    pub start_time_ticks: u64,
    /// The image as the user named it.
    pub image: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Who it runs as, as the user or the image named it.
    pub user: String,
    /// Where it started.
    pub working_directory: PathBuf,
    /// Seconds since 1970.
    pub created_unix_seconds: u64,
    /// The unit that it is the main process of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its cgroup, if it was made for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Published ports.
    pub ports: Vec<Port>,
    /// Whether the bridge holds an address for it.
    pub attached: bool,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// How long it may take, before it is killed.
    pub stop_timeout_seconds: u64,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Whether everything of it goes when it ends.
    pub remove: bool,
    /// What it exited with, where somebody waited for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Where its output goes, if to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
}

impl Record {
    /// The first process, if it still runs; never another one that got its number.
    #[must_use]
    pub fn running(&self) -> Option<OwnedFd> {
        let process = pidfd::open(self.pid).ok()?;
        let same = pidfd::start_time_ticks(self.pid).ok()? == self.start_time_ticks;
        let runs = !pidfd::has_exited(std::os::fd::AsFd::as_fd(&process)).ok()?;
        (same && runs).then_some(process)
    }
}

/// Why the records could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file.
    #[error("{}: {err}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What happened.
        err: io::Error,
    },
    /// A record that cannot be read.
    #[error("{}: {err}", path.display())]
    Format {
        /// Its path.
        path: PathBuf,
        /// Why.
        err: serde_json::Error,
    },
    /// No container of that name.
    #[error("No such container: {0}")]
    Unknown(String),
}

/// The directory of records.
#[derive(Debug, Clone)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Where a running system has them.
    pub const DIRECTORY: &str = "/run/orlop/containers";

    /// The records in `directory`.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// A directory for small files that belong to the container as long as it exists.
    #[must_use]
    pub fn files_of(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// Writes a record so that a reader sees the old one or the new one.
    pub fn save(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path(&record.name);
        let fail = |err| StateError::File {
            path: path.clone(),
            err,
        };
        std::fs::create_dir_all(&self.directory).map_err(fail)?;
        let text = serde_json::to_vec(record).map_err(|err| StateError::Format {
            path: path.clone(),
            err,
        })?;
        let aside = self
            .directory
            .join(format!(".{}.{}", record.name, std::process::id()));
        std::fs::write(&aside, text).map_err(fail)?;
        std::fs::rename(&aside, &path).map_err(fail)
    }

    /// The record of that very name.
    pub fn load(&self, name: &str) -> Result<Record, StateError> {
        read(&self.path(name)).map_err(|error| match error {
            StateError::File { err, .. } if err.kind() == io::ErrorKind::NotFound => {
                StateError::Unknown(name.into())
            }
            other => other,
        })
    }

    /// The record that a user means: by name, or by the beginning of its id if that is unique.
    pub fn find(&self, text: &str) -> Result<Record, StateError> {
        let all = self.all()?;
        if let Some(record) = all.iter().find(|r| r.name == text || r.id == text) {
            return Ok(record.clone());
        }
        let mut by_id = all
            .into_iter()
            .filter(|r| !text.is_empty() && r.id.starts_with(text));
        match (by_id.next(), by_id.next()) {
            (Some(record), None) => Ok(record),
            _ => Err(StateError::Unknown(text.into())),
        }
    }

    /// All records, oldest first; what cannot be read is left out.
    pub fn all(&self) -> Result<Vec<Record>, StateError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(err) => {
                return Err(StateError::File {
                    path: self.directory.clone(),
                    err,
                });
            }
        };
        let mut records: Vec<Record> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "json"))
            .filter_map(|path| read(&path).inspect_err(|error| log::warn!("{error}")).ok())
            .collect();
        records.sort_by(|a, b| {
            (a.created_unix_seconds, &a.name).cmp(&(b.created_unix_seconds, &b.name))
        });
        Ok(records)
    }

    /// Forgets a container; nothing to forget is no error.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        for (path, result) in [
            (self.path(name), std::fs::remove_file(self.path(name))),
            (
                self.files_of(name),
                std::fs::remove_dir_all(self.files_of(name)),
            ),
        ] {
            match result {
                Err(err) if err.kind() != io::ErrorKind::NotFound => {
                    return Err(StateError::File { path, err });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Record, StateError> {
    let text = std::fs::read(path).map_err(|err| StateError::File {
        path: path.into(),
        err,
    })?;
    serde_json::from_slice(&text).map_err(|err| StateError::Format {
        path: path.into(),
        err,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, id: &str) -> Record {
        Record {
            name: name.into(),
            id: id.into(),
            ..Record::default()
        }
    }

    #[test]
    fn a_container_is_found_by_name_and_by_a_unique_beginning_of_its_id() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path());
        records.save(&record("web", "abc1")).unwrap();
        records.save(&record("db", "abd2")).unwrap();
        assert_eq!(records.find("web").unwrap().id, "abc1");
        assert_eq!(records.find("abd").unwrap().name, "db");
        assert_eq!(
            records.find("ab").unwrap_err().to_string(),
            "No such container: ab"
        );
        records.remove("web").unwrap();
        records.remove("web").unwrap();
        assert!(records.load("web").is_err());
    }

    #[test]
    fn a_recycled_number_is_not_the_container() {
        let own = std::process::id() as i32;
        let start_time_ticks = pidfd::start_time_ticks(own).unwrap();
        let live = Record {
            pid: own,
            start_time_ticks,
            ..Record::default()
        };
        assert!(live.running().is_some());
        assert!(
            Record {
                start_time_ticks: start_time_ticks + 1,
                ..live
            }
            .running()
            .is_none()
        );
    }
}
