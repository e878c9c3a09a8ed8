//! `SystemCallFilter=`: from names and sets to numbers.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod table;

/// What a call that the filter catches answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The process is killed, with SIGSYS.
    Kill,
    /// This error (`errno(3)`).
    Error(u16),
}

/// The calls that a service may, or may not, make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemCallFilter {
    /// The list holds what is allowed; otherwise what is caught.
    pub allow_list: bool,
    /// By number on x86-64. In a list of what is caught, the call's own answer; `None` is that of
    /// [`crate::Confinement::system_call_answer`].
    pub calls: BTreeMap<u32, Option<Answer>>,
}

/// The number of a call on x86-64.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let index = table::NUMBERS
        .binary_search_by(|(n, _)| (*n).cmp(name))
        .ok()?;
    table::NUMBERS.get(index).map(|(_, number)| *number)
}

/// The name of a call on x86-64.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    let mut rows = table::NUMBERS.iter();
    rows.find(|(_, n)| *n == number).map(|(name, _)| *name)
}

/// The numbers that a name or `@set` stands for; empty for a call that only other architectures have, `None` when nobody knows it.
#[must_use]
pub fn resolve(name_or_set: &str) -> Option<Vec<u32>> {
    if !name_or_set.starts_with('@') {
        return match number(name_or_set) {
            Some(number) => Some(vec![number]),
            None => table::ELSEWHERE
                .binary_search(&name_or_set)
                .is_ok()
                .then(Vec::new),
        };
    }
    if name_or_set == "@known" {
        return Some(table::NUMBERS.iter().map(|(_, number)| *number).collect());
    }
    // A set holds names and sets that hold names: two levels.
    let mut numbers = Vec::new();
    for member in set(name_or_set)? {
        let inner = set(member);
        let names = inner.unwrap_or(std::slice::from_ref(member));
        numbers.extend(names.iter().filter_map(|name| number(name)));
    }
    Some(numbers)
}

fn set(name: &str) -> Option<&'static [&'static str]> {
    let index = table::SETS.binary_search_by(|(n, _)| (*n).cmp(name)).ok()?;
    table::SETS.get(index).map(|(_, members)| *members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_of_a_set_is_known_and_the_tables_are_sorted() {
        assert!(table::NUMBERS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(table::ELSEWHERE.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(table::SETS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for (set_name, members) in table::SETS {
            for member in *members {
                let nested =
                    set(member).is_some_and(|inner| inner.iter().all(|m| set(m).is_none()));
                assert!(number(member).is_some() || nested, "{set_name}: {member}");
            }
        }
    }

    #[test]
    fn sets_and_names_become_numbers() {
        assert_eq!(resolve("read"), Some(vec![0]));
        assert_eq!((number("openat2"), name(437)), (Some(437), Some("openat2")));
        assert_eq!(resolve("mmap2"), Some(vec![]));
        assert_eq!(
            (resolve("no_such_call"), resolve("@no-such-set")),
            (None, None)
        );
        let service = resolve("@system-service").unwrap();
        assert!(service.contains(&0) && !service.contains(&number("reboot").unwrap()));
    }
}
