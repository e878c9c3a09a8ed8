//! Boot entries by their file names, which are all that is kept about slots: `orlop_VERSION+LEFT-DONE.efi`.
//!
//! The names are those of the Boot Loader Specification (UAPI.1), "Boot counting": `+LEFT` are the tries that an entry has
//! left, `-DONE` those that it had. An entry without a counter is good; one with no tries left is bad. systemd-boot reads and
//! counts them down; without it [`choose`] decides as it does.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What every entry of ours begins with.
const PREFIX: &str = "orlop_";
const SUFFIX: &str = ".efi";

/// The tries that a new entry gets.
pub const TRIES: u32 = 3;

/// The longest version.
const LONGEST_VERSION: usize = 64;

/// A version that may be a part of an entry's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VersionError {
    /// Nothing, or too much.
    #[error("a version has 1 to {LONGEST_VERSION} characters")]
    Length,
    /// A character that a version does not have.
    #[error("a version has no {0:?}: only letters, digits and . - ~ ^ _")]
    Character(char),
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        if text.is_empty() || text.len() > LONGEST_VERSION {
            return Err(VersionError::Length);
        }
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-~^_".contains(c);
        match text.chars().find(|c| !is_allowed(*c)) {
            Some(other) => Err(VersionError::Character(other)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, VersionError> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Version {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Older before newer; versions that mean the same, `1.0` and `1.00`, by their text.
impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_versions(&self.0, &other.0).then_with(|| self.0.cmp(&other.0))
    }
}

/// Which of two versions is older, by the Version Format Specification (UAPI.10): the comparison of every loader that follows
/// the Boot Loader Specification.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        a = a.trim_start_matches(|c| !is_meaningful(c));
        b = b.trim_start_matches(|c| !is_meaningful(c));
        // What is before a release, `1.0~rc1`, is older than the release: even than its end.
        if let Some(order) = separator(&mut a, &mut b, '~') {
            return order;
        }
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        for mark in ['-', '^', '.'] {
            if let Some(order) = separator(&mut a, &mut b, mark) {
                return order;
            }
        }
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let order = if is_number(a) || is_number(b) {
            // A number is newer than letters. Compared by length first: they may be longer than any integer.
            let (x, y) = (
                take(&mut a, char::is_numeric),
                take(&mut b, char::is_numeric),
            );
            let has_digits = (!x.is_empty()).cmp(&!y.is_empty());
            let (x, y) = (x.trim_start_matches('0'), y.trim_start_matches('0'));
            has_digits
                .then(x.len().cmp(&y.len()))
                .then_with(|| x.cmp(y))
        } else {
            let (x, y) = (
                take(&mut a, char::is_alphabetic),
                take(&mut b, char::is_alphabetic),
            );
            x.cmp(y)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn is_meaningful(c: char) -> bool {
    c.is_ascii_alphanumeric() || "~-^.".contains(c)
}

/// The text before a mark is older where only one of both stands at it; a mark at both is passed.
fn separator(a: &mut &str, b: &mut &str, mark: char) -> Option<Ordering> {
    let (x, y) = (a.strip_prefix(mark), b.strip_prefix(mark));
    match (x, y) {
        (Some(x), Some(y)) => (*a, *b) = (x, y),
        (Some(_), None) => return Some(Ordering::Less),
        (None, Some(_)) => return Some(Ordering::Greater),
        (None, None) => {}
    }
    None
}

/// Takes the ASCII characters of a kind from the start.
fn take<'a>(text: &mut &'a str, is_kind: fn(char) -> bool) -> &'a str {
    let end = text
        .find(|c: char| !(c.is_ascii() && is_kind(c)))
        .unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

/// How an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It was healthy once.
    Good,
    /// It has tries left.
    OnTrial,
    /// It has none left.
    Bad,
}

/// The counter of an entry that was not healthy yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Tries left.
    pub left: u32,
    /// Tries had.
    pub done: u32,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it boots.
    pub version: Version,
    /// Nothing: it is good.
    pub counter: Option<Counter>,
}

impl Entry {
    /// The entry of a version that was never started.
    #[must_use]
    pub fn new(version: Version) -> Self {
        let counter = Counter {
            left: TRIES,
            done: 0,
        };
        Self {
            version,
            counter: Some(counter),
        }
    }

    /// Reads a file name; `None` when it is no entry of ours. Upper and lower case of the suffix are the same, as on the file
    /// system that the name is from.
    #[must_use]
    pub fn parse(file_name: &str) -> Option<Self> {
        let stem_length = file_name.len().checked_sub(SUFFIX.len())?;
        let (stem, suffix) = file_name.split_at_checked(stem_length)?;
        if !suffix.eq_ignore_ascii_case(SUFFIX) {
            return None;
        }
        let rest = stem.strip_prefix(PREFIX)?;
        let (version, counter) = match rest.split_once('+') {
            None => (rest, None),
            Some((version, counter)) => {
                let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
                let counter = Counter {
                    left: number(left)?,
                    done: number(done)?,
                };
                (version, Some(counter))
            }
        };
        Some(Self {
            version: version.parse().ok()?,
            counter,
        })
    }

    /// The name of its file.
    #[must_use]
    pub fn file_name(&self) -> String {
        let version = &self.version;
        match self.counter {
            None => format!("{PREFIX}{version}{SUFFIX}"),
            Some(Counter { left, done: 0 }) => format!("{PREFIX}{version}+{left}{SUFFIX}"),
            Some(Counter { left, done }) => format!("{PREFIX}{version}+{left}-{done}{SUFFIX}"),
        }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match self.counter {
            None => Standing::Good,
            Some(Counter { left: 0, .. }) => Standing::Bad,
            Some(_) => Standing::OnTrial,
        }
    }

    /// The entry with one try less; a good one, and one without tries, stay as they are.
    #[must_use]
    pub fn counted_down(&self) -> Self {
        let counter = self
            .counter
            .map(|counter| match counter.left.checked_sub(1) {
                Some(left) => Counter {
                    left,
                    done: counter.done.saturating_add(1),
                },
                None => counter,
            });
        Self {
            version: self.version.clone(),
            counter,
        }
    }

    /// The entry without its counter.
    #[must_use]
    pub fn blessed(&self) -> Self {
        Self {
            version: self.version.clone(),
            counter: None,
        }
    }

    /// The entry without tries, so that another one is booted.
    #[must_use]
    pub fn condemned(&self) -> Self {
        let done = self.counter.map_or(1, |counter| counter.done.max(1));
        Self {
            version: self.version.clone(),
            counter: Some(Counter { left: 0, done }),
        }
    }
}

/// At most nine digits, as the loader takes them.
fn number(text: &str) -> Option<u32> {
    let is_number = (1..=9).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// The entry that is booted: of those with tries left and the good ones the newest; where all are bad, the newest of them,
/// since trying again beats standing still.
#[must_use]
pub fn choose(entries: &[Entry]) -> Option<&Entry> {
    let rank = |entry: &Entry| entry.standing() != Standing::Bad;
    entries.iter().max_by(|a, b| {
        rank(a)
            .cmp(&rank(b))
            .then_with(|| a.version.cmp(&b.version))
            .then_with(|| {
                // The same version twice: the good one, else the one with more tries.
                let tries = |entry: &Entry| entry.counter.map_or(u32::MAX, |c| c.left);
                tries(a).cmp(&tries(b))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str) -> Entry {
        Entry::parse(name).unwrap()
    }

    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        // The example of UAPI.10, from old to new.
        let ordered = [
            "~1",
            "",
            "ab",
            "abb",
            "abc",
            "0001",
            "002",
            "12",
            "122",
            "122.9",
            "123~rc1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-a1.1",
            "123-3",
            "123-3.1",
            "123^patch1",
            "123^1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(
                compare_versions(pair[0], pair[1]),
                Ordering::Less,
                "{pair:?}"
            );
            assert_eq!(
                compare_versions(pair[1], pair[0]),
                Ordering::Greater,
                "{pair:?}"
            );
        }
        assert_eq!(compare_versions("1_2_3", "12.3"), Ordering::Less);
        assert_eq!(compare_versions("1.00", "1.0"), Ordering::Equal);
    }

    #[test]
    fn a_counter_goes_down_to_bad_and_away_when_blessed() {
        let fresh = entry("orlop_1.2.3+3.efi");
        assert_eq!(fresh.standing(), Standing::OnTrial);
        let names: Vec<String> = std::iter::successors(Some(fresh), |e| Some(e.counted_down()))
            .take(5)
            .map(|e| e.file_name())
            .collect();
        assert_eq!(
            names,
            [
                "orlop_1.2.3+3.efi",
                "orlop_1.2.3+2-1.efi",
                "orlop_1.2.3+1-2.efi",
                "orlop_1.2.3+0-3.efi",
                "orlop_1.2.3+0-3.efi"
            ]
        );
        assert_eq!(entry("orlop_1.2.3+0-3.EFI").standing(), Standing::Bad);
        assert_eq!(
            entry("orlop_1.2.3+1-2.efi").blessed().file_name(),
            "orlop_1.2.3.efi"
        );
        assert_eq!(
            entry("orlop_1.2.3.efi").condemned().file_name(),
            "orlop_1.2.3+0-1.efi"
        );
    }

    #[test]
    fn other_files_are_no_entries() {
        for name in [
            "",
            ".efi",
            "orlop_.efi",
            "orlop_1+.efi",
            "orlop_1+x.efi",
            "orlop_1+1-.efi",
            "orlop_1+1-2-3.efi",
            "orlop_1+1234567890.efi",
            "linux_1.efi",
            "orlop_1.2",
            "orlop_a/b.efi",
            "orlop_\u{e9}.efi",
            "\u{e9}fi",
        ] {
            assert_eq!(Entry::parse(name), None, "{name}");
        }
    }

    #[test]
    fn the_newest_that_is_not_bad_is_booted() {
        let chosen = |names: &[&str]| {
            let entries: Vec<Entry> = names.iter().map(|n| entry(n)).collect();
            choose(&entries).map(Entry::file_name)
        };
        assert_eq!(chosen(&[]), None);
        assert_eq!(
            chosen(&["orlop_9.efi", "orlop_10+3.efi"]).unwrap(),
            "orlop_10+3.efi"
        );
        assert_eq!(
            chosen(&["orlop_9.efi", "orlop_10+0-3.efi"]).unwrap(),
            "orlop_9.efi"
        );
        assert_eq!(
            chosen(&["orlop_9+0-3.efi", "orlop_10+0-3.efi"]).unwrap(),
            "orlop_10+0-3.efi"
        );
        assert_eq!(
            chosen(&["orlop_9+1.efi", "orlop_9.efi"]).unwrap(),
            "orlop_9.efi"
        );
    }

    prop_compose! {
        fn any_entry()(version in "[0-9a-z.~^_-]{1,8}", counter in proptest::option::of((0..9_u32, 0..9_u32))) -> Entry {
            Entry {
                version: version.parse().unwrap(),
                counter: counter.map(|(left, done)| Counter { left, done }),
            }
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_it_panic(name in any::<String>()) {
            if let Some(entry) = Entry::parse(&name) {
                prop_assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
            }
        }

        #[test]
        fn a_name_is_read_as_it_was_written(entry in any_entry()) {
            prop_assert_eq!(Entry::parse(&entry.file_name()), Some(entry));
        }

        #[test]
        fn versions_have_one_order(a in "[0-9a-c.~^_-]{0,6}", b in "[0-9a-c.~^_-]{0,6}", c in "[0-9a-c.~^_-]{0,6}") {
            prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            let mut sorted = [&a, &b, &c];
            sorted.sort_by(|x, y| compare_versions(x, y));
            prop_assert_ne!(compare_versions(sorted[0], sorted[2]), Ordering::Greater);
        }

        #[test]
        fn trying_ends_at_a_good_entry_when_there_is_one(mut entries in proptest::collection::vec(any_entry(), 1..5)) {
            // Each boot fails: however they stand, a good one is reached in as many boots as there are tries.
            let has_good = entries.iter().any(|e| e.standing() == Standing::Good);
            let tries: u32 = entries.iter().filter_map(|e| e.counter).map(|c| c.left).sum();
            for _ in 0..tries {
                let chosen = choose(&entries).cloned().unwrap();
                let at = entries.iter().position(|e| *e == chosen).unwrap();
                entries[at] = chosen.counted_down();
            }
            let last = choose(&entries).unwrap();
            prop_assert!(!has_good || last.standing() == Standing::Good);
        }
    }
}
