//! The section `[X-Fleet]`: where a unit may be placed and what else the cluster does for it.

use std::collections::BTreeMap;
use std::time::Duration;

use orlop_unit::UnitName;
use orlop_unit::value::{Span, parse_span};

use crate::glob::Pattern;
use crate::needs::{self, Asked};
use crate::options::UnitOption;

/// The section that is read.
const SECTION: &str = "X-Fleet";

/// Something in the section that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whether the unit cannot be used.
    pub fatal: bool,
    /// One sentence.
    pub message: String,
}

/// Which of several machines that fit is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Strategy {
    /// The least loaded.
    #[default]
    Spread,
    /// The most loaded.
    Pack,
}

/// How long a unit's machine may be silent before the unit is placed elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostAfter {
    /// This long, by the [`crate::StoreClock`].
    Span(Duration),
    /// The unit waits for its machine.
    Never,
}

impl Default for LostAfter {
    fn default() -> Self {
        Self::Span(Duration::from_secs(15))
    }
}

/// `Publish=www:80`: what is kept at `/services/NAME/INSTANCE` in the store while the unit runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The service's name.
    pub service: String,
    /// The port at which the unit's machine answers.
    pub port: u16,
}

/// The section, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// `MachineID=`: the machine, by its whole or short id.
    pub machine_id: Option<String>,
    /// `MachineOf=`: units that must be on the same machine.
    pub machine_of: Vec<UnitName>,
    /// `MachineMetadata=`: each key must have one of its values.
    pub metadata: BTreeMap<String, Vec<String>>,
    /// `Conflicts=`: units that may not be on the same machine.
    pub conflicts: Vec<Pattern>,
    /// `Replaces=`: units that leave the machine when this one lands.
    pub replaces: Vec<Pattern>,
    /// `Global=`: one on every machine that can take it.
    pub global: bool,
    /// `Strategy=`.
    pub strategy: Strategy,
    /// `LostAfter=`.
    pub lost_after: LostAfter,
    /// `Publish=`, once a service.
    pub publish: Vec<Publish>,
    /// `PublishValue=`: the value to publish, `{address}`, `{port}`, `{machine}`, `{unit}` and `{service}` replaced.
    pub publish_value: Option<String>,
    /// `Cpus= Memory= Disk= Ports=`.
    pub(crate) asked: Asked,
}

/// What a key does to the constraints.
type Read = fn(&mut Constraints, &str, &mut Vec<Finding>);

/// Every key of the section, its old names included.
const KEYS: &[(&str, Read)] = &[
    ("MachineID", machine_id),
    ("X-ConditionMachineID", machine_id),
    ("X-ConditionMachineBootID", machine_id),
    ("MachineOf", machine_of),
    ("X-ConditionMachineOf", machine_of),
    ("MachineMetadata", metadata),
    ("X-ConditionMachineMetadata", metadata),
    ("Conflicts", |c, value, _| patterns(&mut c.conflicts, value)),
    ("X-Conflicts", |c, value, _| {
        patterns(&mut c.conflicts, value);
    }),
    ("Replaces", |c, value, _| patterns(&mut c.replaces, value)),
    ("Global", |c, value, _| {
        c.global = matches!(
            value.to_ascii_lowercase().as_str(),
            "true" | "yes" | "1" | "on" | "t"
        );
    }),
    ("Strategy", |c, value, findings| match value {
        "spread" => c.strategy = Strategy::Spread,
        "pack" => c.strategy = Strategy::Pack,
        other => refuse(
            findings,
            format!("Strategy is spread or pack, not {other:?}"),
        ),
    }),
    ("LostAfter", |c, value, findings| match parse_span(value) {
        Some(Span::Infinity) => c.lost_after = LostAfter::Never,
        Some(Span::Finite(span)) => c.lost_after = LostAfter::Span(span),
        None => refuse(
            findings,
            format!("LostAfter takes a time or infinity, not {value:?}"),
        ),
    }),
    ("Publish", publish),
    ("PublishValue", |c, value, _| {
        c.publish_value = Some(value.to_owned());
    }),
    ("Cpus", |c, value, findings| {
        match needs::parse_cpus(value) {
            Some(cpus) => c.asked.cpu_milli = Some(cpus),
            None => refuse(
                findings,
                format!("Cpus takes a number such as 0.5, not {value:?}"),
            ),
        }
    }),
    ("Memory", |c, value, findings| {
        match needs::parse_memory(value) {
            Some(memory) => c.asked.memory = Some(memory),
            None => refuse(
                findings,
                format!("Memory takes bytes or a share, 64M or 10%, not {value:?}"),
            ),
        }
    }),
    (
        "Disk",
        |c, value, findings| match orlop_unit::value::parse_bytes(value) {
            Some(disk) => c.asked.disk_bytes = Some(disk),
            None => refuse(
                findings,
                format!("Disk takes bytes such as 2G, not {value:?}"),
            ),
        },
    ),
    ("Ports", |c, value, findings| {
        let ports = c.asked.ports.get_or_insert_default();
        for word in value.split_whitespace() {
            match word.parse() {
                Ok(port) => ports.push(port),
                Err(()) => refuse(
                    findings,
                    format!("Ports takes 80, 53/udp or 10.0.0.1:80, not {word:?}"),
                ),
            }
        }
    }),
];

fn refuse(findings: &mut Vec<Finding>, message: String) {
    findings.push(Finding {
        fatal: true,
        message,
    });
}

fn warn(findings: &mut Vec<Finding>, message: String) {
    findings.push(Finding {
        fatal: false,
        message,
    });
}

/// fleet took the first.
fn machine_id(c: &mut Constraints, value: &str, _: &mut Vec<Finding>) {
    if c.machine_id.is_none() && !value.is_empty() {
        c.machine_id = Some(value.to_owned());
    }
}

fn machine_of(c: &mut Constraints, value: &str, findings: &mut Vec<Finding>) {
    if value.split_whitespace().count() > 1 {
        warn(
            findings,
            "MachineOf with several units in one value: all of them are meant".to_owned(),
        );
    }
    for word in value.split_whitespace() {
        match UnitName::parse(word) {
            Ok(name) => c.machine_of.push(name),
            Err(err) => refuse(findings, format!("MachineOf: {err}")),
        }
    }
}

/// fleet ignored what is not one key and one value, and the unit ran anywhere.
fn metadata(c: &mut Constraints, value: &str, findings: &mut Vec<Finding>) {
    match value.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() && !value.contains('=') => {
            c.metadata
                .entry(key.to_owned())
                .or_default()
                .push(value.to_owned());
        }
        _ => refuse(
            findings,
            format!("MachineMetadata takes KEY=VALUE, not {value:?}"),
        ),
    }
}

fn patterns(list: &mut Vec<Pattern>, value: &str) {
    list.extend(value.split_whitespace().map(Pattern::new));
}

fn publish(c: &mut Constraints, value: &str, findings: &mut Vec<Finding>) {
    let named = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    match value
        .rsplit_once(':')
        .map(|(service, port)| (service, port.parse::<u16>()))
    {
        Some((service, Ok(port))) if port > 0 && named(service) => c.publish.push(Publish {
            service: service.to_owned(),
            port,
        }),
        _ => refuse(
            findings,
            format!("Publish takes SERVICE:PORT, not {value:?}"),
        ),
    }
}

impl Constraints {
    /// Reads the section of the unit `name`.
    pub(crate) fn read(name: &UnitName, options: &[UnitOption]) -> (Self, Vec<Finding>) {
        let mut constraints = Self::default();
        let mut findings = Vec::new();
        // Modern names go first: of a machine's ids the first counts.
        let own = || options.iter().filter(|o| o.section == SECTION);
        let (legacy, modern): (Vec<_>, Vec<_>) = own().partition(|o| o.name.starts_with("X-"));
        for option in modern.into_iter().chain(legacy) {
            let Some((_, read)) = KEYS.iter().find(|(key, _)| *key == option.name) else {
                warn(
                    &mut findings,
                    format!("[{SECTION}] has no key {}", option.name),
                );
                continue;
            };
            for value in values(&option.value) {
                let value = expand(name, value.trim());
                read(&mut constraints, &value, &mut findings);
            }
        }
        constraints.check(name, &mut findings);
        (constraints, findings)
    }

    fn check(&self, name: &UnitName, findings: &mut Vec<Finding>) {
        let set = [
            ("MachineID", self.machine_id.is_some()),
            ("MachineOf", !self.machine_of.is_empty()),
            ("Conflicts", !self.conflicts.is_empty()),
            ("Replaces", !self.replaces.is_empty()),
            ("Global", self.global),
        ];
        let has = |key: &str| set.iter().any(|(k, is_set)| *k == key && *is_set);
        for (one, others) in [
            (
                "MachineID",
                &["MachineOf", "Conflicts", "Global", "Replaces"][..],
            ),
            ("Global", &["MachineOf", "Replaces"]),
            ("Conflicts", &["Replaces"]),
        ] {
            for other in others {
                if has(one) && has(other) {
                    refuse(findings, format!("{one} and {other} cannot go together"));
                }
            }
        }
        for peer in &self.machine_of {
            let excluded = self.conflicts.iter().chain(&self.replaces);
            if peer == name {
                refuse(findings, "MachineOf names the unit itself".to_owned());
            }
            if let Some(pattern) = excluded.into_iter().find(|p| p.matches(peer.as_str())) {
                refuse(
                    findings,
                    format!(
                        "MachineOf={peer} and {:?} can never both be met",
                        pattern.as_str()
                    ),
                );
            }
        }
        if let LostAfter::Span(span) = self.lost_after
            && span.is_zero()
        {
            refuse(findings, "LostAfter must be more than 0".to_owned());
        }
    }
}

/// Several values stand in one line when the whole line begins and ends with a quotation mark.
fn values(text: &str) -> Vec<&str> {
    match text
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
    {
        Some(inner) => inner
            .split('"')
            .step_by(2)
            .filter(|value| !value.is_empty())
            .collect(),
        None => vec![text],
    }
}

/// The four specifiers that the cluster knows; the others are the machine's.
fn expand(name: &UnitName, text: &str) -> String {
    text.replace("%n", name.as_str())
        .replace("%N", name.stem())
        .replace("%p", name.prefix())
        .replace("%i", name.instance().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::parse;

    fn read(name: &str, section: &str) -> (Constraints, Vec<String>) {
        let options = parse(&format!("[X-Fleet]\n{section}\n")).unwrap();
        let (constraints, findings) = Constraints::read(&UnitName::parse(name).unwrap(), &options);
        let fatal = findings.into_iter().filter(|f| f.fatal);
        (constraints, fatal.map(|f| f.message).collect())
    }

    #[test]
    fn values_accumulate_as_in_fleet() {
        let (c, errors) = read(
            "web@2.service",
            "MachineMetadata=\"region=eu\" \"region=us\"\nMachineMetadata=disk=ssd\n\
             Conflicts=web@*.service  %p-old.service\nX-Conflicts=c\nMachineOf=db@%i.service",
        );
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(c.metadata["region"], ["eu", "us"]);
        assert_eq!(c.metadata["disk"], ["ssd"]);
        let conflicts: Vec<_> = c.conflicts.iter().map(Pattern::as_str).collect();
        assert_eq!(conflicts, ["web@*.service", "web-old.service", "c"]);
        assert_eq!(c.machine_of[0].as_str(), "db@2.service");
    }

    #[test]
    fn the_first_machine_id_counts_and_the_modern_name_before_the_old() {
        let (c, _) = read(
            "a.service",
            "X-ConditionMachineBootID=old\nMachineID=one\nMachineID=two",
        );
        assert_eq!(c.machine_id.as_deref(), Some("one"));
    }

    #[test]
    fn what_cannot_go_together_is_refused() {
        for section in [
            "MachineID=a\nGlobal=yes",
            "MachineID=a\nConflicts=b",
            "Global=1\nReplaces=b",
            "Conflicts=a\nReplaces=b",
            "MachineOf=b.service\nConflicts=b*",
            "MachineMetadata=a",
            "MachineMetadata=a=b=c",
            "MachineOf=a.service",
            "Strategy=best",
            "LostAfter=0",
            "Publish=www",
            "Publish=a/b:80",
            "Memory=lots",
            "Ports=http",
        ] {
            assert!(!read("a.service", section).1.is_empty(), "{section}");
        }
        for section in ["Global=true\nConflicts=b", "Global=no\nMachineOf=b.service"] {
            assert!(read("a.service", section).1.is_empty(), "{section}");
        }
    }

    #[test]
    fn services_and_times_are_read() {
        let (c, errors) = read(
            "a.service",
            "Publish=www:80\nPublish=api:8080\nLostAfter=1min\nStrategy=pack",
        );
        assert!(errors.is_empty());
        assert_eq!(c.publish.len(), 2);
        assert_eq!(c.lost_after, LostAfter::Span(Duration::from_secs(60)));
        assert_eq!(c.strategy, Strategy::Pack);
        assert_eq!(
            read("a.service", "LostAfter=infinity").0.lost_after,
            LostAfter::Never
        );
    }
}
