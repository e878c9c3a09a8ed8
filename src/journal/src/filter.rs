//! Which entries are wanted. Pure.

use orlop_unit::install::fits_pattern;
use regex::bytes::Regex;

use crate::entry::{Entry, Id, PRIORITY_NAMES, Transport};

/// All of what is set must hold; of the units and of the identifiers any one.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Patterns of full unit names; see [`unit_pattern`].
    pub units: Vec<String>,
    /// Identifiers.
    pub identifiers: Vec<String>,
    /// The least and the greatest number of a priority.
    pub priorities: Option<(u8, u8)>,
    /// One boot.
    pub boot: Option<Id>,
    /// One invocation of a unit.
    pub invocation: Option<Id>,
    /// Only the kernel's log.
    pub kernel_only: bool,
    /// Not before, µs since 1970-01-01 UTC.
    pub since_us: Option<u64>,
    /// Not after, µs since 1970-01-01 UTC.
    pub until_us: Option<u64>,
    /// In the message.
    pub pattern: Option<Regex>,
}

impl Filter {
    /// Whether the entry, of that boot, is wanted.
    #[must_use]
    pub fn wants(&self, boot: Id, entry: &Entry) -> bool {
        self.boot.is_none_or(|wanted| wanted == boot)
            && self.since_us.is_none_or(|since| entry.realtime_us >= since)
            && self.until_us.is_none_or(|until| entry.realtime_us <= until)
            && self
                .priorities
                .is_none_or(|(from, to)| (from..=to).contains(&entry.priority))
            && (!self.kernel_only || entry.transport == Transport::Kernel)
            && (self.invocation.is_none() || self.invocation == entry.invocation)
            && (self.units.is_empty() || is_any(&self.units, entry.unit.as_deref(), fits_pattern))
            && (self.identifiers.is_empty()
                || is_any(&self.identifiers, entry.identifier.as_deref(), |a, b| {
                    a == b
                }))
            && self
                .pattern
                .as_ref()
                .is_none_or(|pattern| pattern.is_match(&entry.message))
    }
}

fn is_any(wanted: &[String], value: Option<&str>, matches: impl Fn(&str, &str) -> bool) -> bool {
    value.is_some_and(|value| wanted.iter().any(|wanted| matches(wanted, value)))
}

/// The endings that make a name a full unit name.
const UNIT_TYPES: [&str; 11] = [
    ".service",
    ".target",
    ".mount",
    ".timer",
    ".socket",
    ".path",
    ".slice",
    ".scope",
    ".swap",
    ".automount",
    ".device",
];

/// The pattern for what a user calls a unit: `.service` is added where no type is, a Quadlet file's
/// `.container` stands for the service that it becomes, and a template (`web@`) for all its instances.
#[must_use]
pub fn unit_pattern(name: &str) -> String {
    let stem = name.strip_suffix(".container").unwrap_or(name);
    let (stem, kind) = match UNIT_TYPES.iter().find(|kind| stem.ends_with(**kind)) {
        Some(kind) => (&stem[..stem.len() - kind.len()], *kind),
        None => (stem, ".service"),
    };
    let all = if stem.ends_with('@') { "*" } else { "" };
    format!("{stem}{all}{kind}")
}

/// The priorities that `-p` asks for: a name or number and all more urgent ones, or `FROM..TO`.
#[must_use]
pub fn parse_priorities(text: &str) -> Option<(u8, u8)> {
    match text.split_once("..") {
        Some((from, to)) => {
            let (from, to) = (parse_priority(from)?, parse_priority(to)?);
            Some((from.min(to), from.max(to)))
        }
        None => Some((0, parse_priority(text)?)),
    }
}

fn parse_priority(text: &str) -> Option<u8> {
    let name = match text {
        "panic" => "emerg",
        "error" => "err",
        "warn" => "warning",
        other => other,
    };
    let by_name = PRIORITY_NAMES.iter().position(|known| *known == name);
    let number = by_name.or_else(|| text.parse().ok())?;
    u8::try_from(number).ok().filter(|number| *number <= 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_calls_a_unit_finds_it() {
        for (asked, unit, found) in [
            ("web", "web.service", true),
            ("web.service", "web.service", true),
            ("web.container", "web.service", true),
            ("multi-user.target", "multi-user.target", true),
            ("web@a", "web@a.service", true),
            ("web@", "web@a.service", true),
            ("web@.service", "web@b.service", true),
            ("web@*", "web@b.service", true),
            ("w?b", "web.service", true),
            ("*", "web.service", true),
            ("a.b", "a.b.service", true),
            ("web", "webb.service", false),
            ("web@a", "web@b.service", false),
            ("*b*b", "web.service", false),
        ] {
            assert_eq!(
                fits_pattern(&unit_pattern(asked), unit),
                found,
                "{asked} {unit}"
            );
        }
    }

    #[test]
    fn priorities_have_names_numbers_and_ranges() {
        assert_eq!(parse_priorities("err"), Some((0, 3)));
        assert_eq!(parse_priorities("4"), Some((0, 4)));
        assert_eq!(parse_priorities("warning..err"), Some((3, 4)));
        assert_eq!(parse_priorities("loud"), None);
        assert_eq!(parse_priorities("8"), None);
        assert_eq!(parse_priorities("3..x"), None);
    }

    #[test]
    fn all_conditions_must_hold() {
        let boot = Id([1; 16]);
        let mut entry = Entry::new(3, Transport::Stdout, b"Connection refused".to_vec());
        entry.unit = Some("web.service".to_owned());
        entry.realtime_us = 100;
        let base = Filter {
            units: vec!["db.service".to_owned(), "web.service".to_owned()],
            priorities: Some((0, 3)),
            boot: Some(boot),
            since_us: Some(100),
            until_us: Some(100),
            pattern: Regex::new("refu+sed$").ok(),
            ..Filter::default()
        };
        assert!(base.wants(boot, &entry));
        assert!(!base.wants(Id([2; 16]), &entry));
        for other in [
            Filter {
                units: vec!["db.service".to_owned()],
                ..base.clone()
            },
            Filter {
                identifiers: vec!["web".to_owned()],
                ..base.clone()
            },
            Filter {
                priorities: Some((0, 2)),
                ..base.clone()
            },
            Filter {
                since_us: Some(101),
                ..base.clone()
            },
            Filter {
                until_us: Some(99),
                ..base.clone()
            },
            Filter {
                kernel_only: true,
                ..base.clone()
            },
            Filter {
                invocation: Some(boot),
                ..base.clone()
            },
            Filter {
                pattern: Regex::new("accepted").ok(),
                ..base.clone()
            },
        ] {
            assert!(!other.wants(boot, &entry), "{other:?}");
        }
    }
}
