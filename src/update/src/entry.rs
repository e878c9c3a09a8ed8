//! Boot entries: Unified Kernel Images in `EFI/Linux/` with a counter in their name (Boot Loader Specification, "Boot counting").
//!
//! `orlop_1.2.3.efi` is good; `orlop_1.2.3+3.efi` has three tries left; `orlop_1.2.3+2-1.efi` two, and one was used.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::version::Version;

/// Where entries lie on the EFI system partition.
pub const DIRECTORY: &str = "EFI/Linux";

/// How many tries a new version gets.
pub const TRIES: u32 = 3;

const PREFIX: &str = "orlop_";
const SUFFIX: &str = ".efi";

/// The name of an entry's file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryName {
    /// The version.
    pub version: Version,
    /// `None` once the version was found good.
    pub tries: Option<Tries>,
}

/// An entry's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tries {
    /// Starts that are left.
    pub left: u32,
    /// Starts that were used.
    pub done: u32,
}

/// A file's name that is no entry of Orlop's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no entry of Orlop's")]
pub struct NotAnEntry(String);

impl EntryName {
    /// The entry of a version that was never started.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self {
            version,
            tries: Some(Tries {
                left: TRIES,
                done: 0,
            }),
        }
    }

    /// Whether the version was found good.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.tries.is_none()
    }

    /// Whether the version used up its tries.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.tries.is_some_and(|tries| tries.left == 0)
    }

    /// The order in which the loader takes entries, the first first: those with tries left before those without, then newer
    /// versions before older ones.
    #[must_use]
    pub fn boot_order(&self, other: &Self) -> Ordering {
        let by_tries = |entry: &Self| {
            entry
                .tries
                .map_or((0, 0), |tries| (u32::MAX - tries.left, tries.done))
        };
        self.has_failed()
            .cmp(&other.has_failed())
            .then_with(|| other.version.cmp(&self.version))
            .then_with(|| by_tries(self).cmp(&by_tries(other)))
    }
}

impl FromStr for EntryName {
    type Err = NotAnEntry;

    fn from_str(name: &str) -> Result<Self, NotAnEntry> {
        let error = || NotAnEntry(name.to_owned());
        let body = name.strip_prefix(PREFIX).ok_or_else(error)?;
        // FAT keeps the case but names are equal without it.
        let (body, suffix) = body
            .split_at_checked(body.len().saturating_sub(SUFFIX.len()))
            .ok_or_else(error)?;
        if !suffix.eq_ignore_ascii_case(SUFFIX) {
            return Err(error());
        }
        let (version, counter) = match body.split_once('+') {
            Some((version, counter)) => (version, Some(counter)),
            None => (body, None),
        };
        let number = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u32>().map_err(|_| error()),
            false => Err(error()),
        };
        let tries = match counter.map(|counter| counter.split_once('-').unwrap_or((counter, "0"))) {
            Some((left, done)) => Some(Tries {
                left: number(left)?,
                done: number(done)?,
            }),
            None => None,
        };
        Ok(Self {
            version: version.parse().map_err(|_| error())?,
            tries,
        })
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.version)?;
        match self.tries {
            Some(Tries { left, done: 0 }) => write!(f, "+{left}")?,
            Some(Tries { left, done }) => write!(f, "+{left}-{done}")?,
            None => {}
        }
        f.write_str(SUFFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_counter_is_read_as_the_specification_has_it() {
        let tries = |name: &str| name.parse::<EntryName>().unwrap().tries;
        assert_eq!(tries("orlop_1.2.3.efi"), None);
        assert_eq!(tries("orlop_1.2.3+3.efi"), Some(Tries { left: 3, done: 0 }));
        assert_eq!(
            tries("orlop_1.2.3+0-3.EFI"),
            Some(Tries { left: 0, done: 3 })
        );
        for name in [
            "orlop_.efi",
            "orlop_1+.efi",
            "orlop_1+x.efi",
            "orlop_1+1-.efi",
            "orlop_1+-1.efi",
            "orlop_1+99999999999.efi",
            "memtest.efi",
            "orlop_1.efi.new",
            "orlop_1+1+1.efi",
        ] {
            assert!(name.parse::<EntryName>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_loader_takes_the_newest_that_has_not_failed() {
        let mut names = [
            "orlop_1.0.efi",
            "orlop_1.2+0-3.efi",
            "orlop_1.1+3.efi",
            "orlop_1.3+0-3.efi",
        ];
        names.sort_by(|a, b| {
            a.parse::<EntryName>()
                .unwrap()
                .boot_order(&b.parse().unwrap())
        });
        assert_eq!(
            names,
            [
                "orlop_1.1+3.efi",
                "orlop_1.0.efi",
                "orlop_1.3+0-3.efi",
                "orlop_1.2+0-3.efi"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_name_that_is_written_reads_the_same(version in "[0-9a-z][0-9a-z.~^-]{0,20}", tries in proptest::option::of((any::<u32>(), any::<u32>()))) {
            let entry = EntryName { version: version.parse().unwrap(), tries: tries.map(|(left, done)| Tries { left, done }) };
            prop_assert_eq!(entry.to_string().parse::<EntryName>().unwrap(), entry);
        }

        #[test]
        fn no_name_makes_it_panic(name in any::<String>(), tail in "orlop_[0-9+.efi-]{0,20}") {
            let _ = (name.parse::<EntryName>(), tail.parse::<EntryName>());
        }
    }
}
