//! Versions and their order (UAPI Version Format Specification), which the boot loader uses too.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most characters of a version: its entry's name has to fit into 255 UTF-16 units with room to spare.
const LONGEST: usize = 64;

/// A version that can be part of a boot entry's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

/// Why a text is no version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no version: 1 to {LONGEST} letters, digits and . - ~ ^ _, a letter or digit first"
)]
pub struct VersionError(String);

impl Version {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b".-~^_".contains(&b);
        let starts_well = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if starts_well && text.len() <= LONGEST && text.bytes().all(is_allowed) {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String = text.chars().take(LONGEST).collect();
            Err(VersionError(shown))
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
        f.pad(&self.0)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    /// `1.0~rc1 < 1.0 < 1.0.1 < 1.1 < 1.10`. Versions that the specification calls equal but are written differently, such as `1.0` and `1.00`,
    /// are ordered by their text, so that the order agrees with equality.
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.0.as_bytes(), other.0.as_bytes()).then_with(|| self.0.cmp(&other.0))
    }
}

/// The specification's comparison, segment by segment.
fn compare(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        // What means nothing to the specification: here the underscore.
        while let Some(rest) = a.strip_prefix(b"_") {
            a = rest;
        }
        while let Some(rest) = b.strip_prefix(b"_") {
            b = rest;
        }
        // A pre-release is older than what it leads to, even than the end.
        if let Some(order) = separator(&mut a, &mut b, b'~') {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for byte in [b'-', b'^', b'.'] {
            if let Some(order) = separator(&mut a, &mut b, byte) {
                return order;
            }
        }
        let is_number = [a, b]
            .iter()
            .any(|rest| rest.first().is_some_and(u8::is_ascii_digit));
        let order = if is_number {
            let (a, b) = (
                segment(&mut a, u8::is_ascii_digit),
                segment(&mut b, u8::is_ascii_digit),
            );
            // A number is newer than letters.
            let is_there = (!a.is_empty()).cmp(&!b.is_empty());
            let (a, b) = (without_zeros(a), without_zeros(b));
            is_there.then(a.len().cmp(&b.len())).then_with(|| a.cmp(b))
        } else {
            let a = segment(&mut a, u8::is_ascii_alphabetic);
            a.cmp(segment(&mut b, u8::is_ascii_alphabetic))
        };
        if order.is_ne() {
            return order;
        }
    }
}

/// Passes `byte` where both begin with it; when only one does, that one is older.
fn separator(a: &mut &[u8], b: &mut &[u8], byte: u8) -> Option<Ordering> {
    match (a.strip_prefix(&[byte]), b.strip_prefix(&[byte])) {
        (Some(rest_a), Some(rest_b)) => {
            (*a, *b) = (rest_a, rest_b);
            None
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn segment<'a>(rest: &mut &'a [u8], is_in: fn(&u8) -> bool) -> &'a [u8] {
    let length = rest.iter().take_while(|byte| is_in(byte)).count();
    let (segment, after) = rest.split_at(length);
    *rest = after;
    segment
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    digits.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// The specification's own examples and the usual traps.
    #[test]
    fn versions_are_ordered_as_the_specification_has_them() {
        for rising in [
            &["1.0~rc1", "1.0", "1.0.1", "1.1", "1.10"][..],
            &["11~rc1", "11"],
            &[
                "122.1",
                "123~rc1-1",
                "123",
                "123-a",
                "123-a.1",
                "123-1",
                "123-1.1",
                "123^post1",
                "123.a-1",
                "123.1-1",
                "123a-1",
                "124-1",
            ],
            &["2026.9.30", "2026.10.1"],
            &["a", "1"],
        ] {
            for pair in rising.windows(2) {
                assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
            }
        }
    }

    #[test]
    fn what_would_break_an_entry_name_is_no_version() {
        for text in ["", "1+2", "../1", "1 2", ".1", "é", &"1".repeat(65)] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_total(texts in proptest::array::uniform3("[0-9a-b.~^_-]{0,6}")) {
            let [a, b, c] = texts.map(|text| version(&format!("0{text}")));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a == b, a.cmp(&b).is_eq());
            let mut sorted = [a, b, c];
            sorted.sort();
            prop_assert!(sorted[0] <= sorted[1] && sorted[1] <= sorted[2] && sorted[0] <= sorted[2]);
        }
    }
}
