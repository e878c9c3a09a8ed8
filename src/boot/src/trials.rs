//! What is remembered of starts that did not end well, so that whatever starts next can tell.
//!
//! It decides nothing: the entries' names do. It lies on the EFI system partition as `EFI/orlop/trials.json`, a file of a
//! fixed size that is written in place, so that it can be written when the partition is full. Total: what is no such file is
//! an empty one. `docs/disk.md` has the format.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use crate::entries::Version;
use crate::esp::Esp;

/// Where the file lies.
pub const PATH: &str = "EFI/orlop/trials.json";

/// Its size, the rest being blanks.
pub const BYTES: usize = 8192;

/// Versions that are remembered; the oldest are dropped.
const MOST: usize = 6;

/// The longest reason, in bytes.
const LONGEST_REASON: usize = 600;

/// How far a start came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The boot stage, in the initramfs.
    Boot,
    /// Units, on the verified root.
    Units,
}

/// The starts of one version since it was healthy last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What was started.
    pub version: Version,
    /// How often.
    pub starts: u32,
    /// When the last start began, in seconds since 1970 by the machine's clock.
    pub began_s: u64,
    /// How far it came.
    pub stage: Stage,
    /// Whether nobody has told yet how it ended.
    pub is_open: bool,
    /// Why it ended.
    pub reason: Option<String>,
    /// Whether the reason was told to the operator.
    #[serde(default)]
    pub is_told: bool,
}

/// All that is remembered, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Trials {
    /// One a version.
    pub trials: Vec<Trial>,
}

impl Trials {
    /// Reads what [`Trials::encode`] wrote.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut trials: Self = serde_json::from_slice(bytes).unwrap_or_default();
        let surplus = trials.trials.len().saturating_sub(MOST);
        trials.trials.drain(..surplus);
        trials
    }

    /// The file's contents, [`BYTES`] long.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut kept = self.clone();
        loop {
            let mut bytes = serde_json::to_vec(&kept).unwrap_or_default();
            if bytes.len() < BYTES || kept.trials.is_empty() {
                bytes.resize(BYTES - 1, b' ');
                bytes.push(b'\n');
                return bytes;
            }
            kept.trials.remove(0);
        }
    }

    /// What is remembered of a version.
    #[must_use]
    pub fn of(&self, version: &Version) -> Option<&Trial> {
        self.trials.iter().find(|trial| trial.version == *version)
    }

    fn of_mut(&mut self, version: &Version) -> Option<&mut Trial> {
        self.trials.iter_mut().find(|t| t.version == *version)
    }

    /// A start begins.
    pub fn begin(&mut self, version: &Version, now_s: u64) {
        let before = self.of(version).cloned();
        self.forget(version);
        let trial = match before {
            Some(before) => Trial {
                starts: before.starts.saturating_add(1),
                began_s: now_s,
                stage: Stage::Boot,
                is_open: true,
                is_told: false,
                ..before
            },
            None => Trial {
                version: version.clone(),
                starts: 1,
                began_s: now_s,
                stage: Stage::Boot,
                is_open: true,
                reason: None,
                is_told: false,
            },
        };
        self.trials.push(trial);
        let surplus = self.trials.len().saturating_sub(MOST);
        self.trials.drain(..surplus);
    }

    /// Of starts that have not told how they ended, `words` are known.
    pub fn close(&mut self, words: &str) {
        for trial in &mut self.trials {
            if trial.is_open {
                let stage = match trial.stage {
                    Stage::Boot => "before its root was entered",
                    Stage::Units => "while its units ran",
                };
                trial.is_open = false;
                trial.is_told = false;
                trial.reason = Some(shortened(&format!("{words}, {stage}")));
            }
        }
    }

    /// A start has come to `stage`.
    pub fn reached(&mut self, version: &Version, stage: Stage) {
        if let Some(trial) = self.of_mut(version) {
            trial.stage = stage;
        }
    }

    /// A start has ended because of `reason`; a version that is not remembered is from now on.
    pub fn end(&mut self, version: &Version, reason: &str) {
        if self.of(version).is_none() {
            self.begin(version, 0);
        }
        if let Some(trial) = self.of_mut(version) {
            trial.is_open = false;
            trial.is_told = false;
            trial.reason = Some(shortened(reason));
        }
    }

    /// A version was healthy, or is gone.
    pub fn forget(&mut self, version: &Version) {
        self.trials.retain(|trial| trial.version != *version);
    }

    /// Reads the file; without one nothing is remembered.
    #[must_use]
    pub fn load(esp: &Esp) -> Self {
        fs::read(esp.path(PATH)).map_or_else(|_| Self::default(), |bytes| Self::decode(&bytes))
    }

    /// Writes the file, in place where there is one.
    ///
    /// # Errors
    /// There is none and no room for it, or the disk fails.
    pub fn save(&self, esp: &Esp) -> io::Result<()> {
        let path = esp.path(PATH);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.write_all_at(&self.encode(), 0)?;
        file.set_len(BYTES as u64)?;
        file.sync_all()
    }
}

/// The end of a text, which is where causes stand.
fn shortened(text: &str) -> String {
    let start = text
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| text.len() - at <= LONGEST_REASON);
    text.get(start.unwrap_or(0)..)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn starts_are_counted_until_the_version_is_healthy() {
        let mut trials = Trials::default();
        let two = version("2");
        trials.begin(&two, 10);
        trials.end(&two, "no root");
        trials.begin(&two, 20);
        let trial = trials.of(&two).unwrap();
        assert_eq!((trial.starts, trial.began_s, trial.is_open), (2, 20, true));
        assert_eq!(trial.reason.as_deref(), Some("no root"));
        trials.forget(&two);
        assert_eq!(trials.of(&two), None);
    }

    #[test]
    fn a_full_partition_takes_a_file_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let esp = Esp::of_directory(directory.path());
        let mut trials = Trials::default();
        trials.save(&esp).unwrap();
        let path = directory.path().join(PATH);
        let before = fs::metadata(&path).unwrap();
        trials.end(&version("1"), &"x".repeat(9000));
        trials.save(&esp).unwrap();
        let after = fs::metadata(&path).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
        assert_eq!(Trials::load(&esp), trials);
        assert_eq!(
            trials.trials[0].reason.as_ref().unwrap().len(),
            LONGEST_REASON
        );
    }

    proptest! {
        #[test]
        fn whatever_is_remembered_fits(reasons in proptest::collection::vec(".{0,700}", 0..12)) {
            let mut trials = Trials::default();
            for (n, reason) in reasons.iter().enumerate() {
                trials.end(&version(&format!("1.{n}")), reason);
            }
            let bytes = trials.encode();
            prop_assert_eq!(bytes.len(), BYTES);
            let read = Trials::decode(&bytes);
            prop_assert!(trials.trials.ends_with(&read.trials));
            prop_assert_eq!(reasons.is_empty(), read.trials.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Trials::decode(&bytes);
        }
    }
}
