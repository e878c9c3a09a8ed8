//! `systemd-analyze syscall-filter`: the sets of system calls.

use std::collections::{BTreeMap, BTreeSet};

use orlop_unit::syscall;

use super::systemd_analyze;

#[test]
fn sets_of_system_calls_hold_the_same_calls() {
    let output = systemd_analyze(&["syscall-filter", "--no-pager"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines().map(str::trim_end) {
        let word = line.trim();
        if line.starts_with('@') {
            word.clone_into(&mut current);
        } else if !word.is_empty() && !word.starts_with('#') && !current.is_empty() {
            sets.entry(current.clone())
                .or_default()
                .push(word.to_owned());
        }
    }
    assert!(sets.len() > 20);
    for (set, members) in &sets {
        let mut expected = BTreeSet::new();
        for member in members {
            let numbers = syscall::resolve(member).unwrap_or_else(|| panic!("{set}: {member}"));
            expected.extend(numbers);
        }
        let ours: BTreeSet<u32> = syscall::resolve(set)
            .expect("the set")
            .into_iter()
            .collect();
        if set == "@known" {
            // Ours is of a younger kernel.
            assert!(ours.is_superset(&expected));
        } else {
            assert_eq!(ours, expected, "{set}");
        }
    }
}
