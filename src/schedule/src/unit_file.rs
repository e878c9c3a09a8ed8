//! A unit as it was submitted.

use std::sync::Arc;

use orlop_unit::{MemoryStore, Service, Severity, SpecifierContext, UnitName};

use crate::constraints::{Constraints, Finding};
use crate::needs::Needs;
use crate::options::{self, ParseError, UnitOption};

/// Where the loader is told that the file lies: where machines have it.
const DIRECTORY: &str = "/run/fleet/units";

/// Why a text is no unit of the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// It has no options.
    #[error("cannot be read")]
    Parse(#[from] ParseError),
    /// The section `[X-Fleet]` is wrong; one sentence a fault.
    #[error("{}", .0.join("; "))]
    Constraints(Vec<String>),
}

/// A unit's content, and what the cluster reads in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFile {
    /// The options in their order.
    pub options: Vec<UnitOption>,
    /// The hash of the canonical text.
    pub hash: String,
    /// Where it may be placed.
    pub constraints: Constraints,
    /// What it takes there.
    pub needs: Needs,
    /// What is odd about it: keys that nobody knows, and what PID 1 of a machine will say.
    pub warnings: Vec<Finding>,
}

impl UnitFile {
    /// Reads the content of the unit `name`, whose instance is put in where the section `[X-Fleet]` asks for it.
    ///
    /// # Errors
    /// [`FileError`] says all that is wrong.
    pub fn parse(name: &UnitName, text: &str) -> Result<Self, FileError> {
        Self::from_options(name, options::parse(text)?)
    }

    /// The same for options that came without their text.
    ///
    /// # Errors
    /// [`FileError::Constraints`].
    pub fn from_options(name: &UnitName, options: Vec<UnitOption>) -> Result<Self, FileError> {
        let (constraints, findings) = Constraints::read(name, &options);
        let (fatal, mut warnings): (Vec<_>, Vec<_>) = findings.into_iter().partition(|f| f.fatal);
        if !fatal.is_empty() {
            return Err(FileError::Constraints(
                fatal.into_iter().map(|f| f.message).collect(),
            ));
        }
        warnings.extend(ignored_install(&options));
        let service = load(name, &options, &mut warnings);
        let needs = Needs::derive(&constraints.asked, service.as_deref());
        Ok(Self {
            hash: options::hash(&options),
            options,
            constraints,
            needs,
            warnings,
        })
    }

    /// The canonical text, which is what machines get.
    #[must_use]
    pub fn text(&self) -> String {
        options::canonical(&self.options)
    }

    /// The name of the file on a machine: a Quadlet's content needs its own suffix.
    #[must_use]
    pub fn file_name(&self, name: &UnitName) -> String {
        file_name(name, &self.options)
    }

    /// The option's last value.
    #[must_use]
    pub fn value(&self, section: &str, key: &str) -> Option<&str> {
        let mut own = self.options.iter().rev();
        own.find(|o| o.section == section && o.name == key)
            .map(|o| o.value.as_str())
    }

    /// Whether the unit has a section.
    #[must_use]
    pub fn has_section(&self, section: &str) -> bool {
        self.options.iter().any(|o| o.section == section)
    }
}

/// fleet enabled units that had this section; here the cluster alone says where a unit starts, and when.
fn ignored_install(options: &[UnitOption]) -> Option<Finding> {
    let mut keys: Vec<&str> = options
        .iter()
        .filter(|o| o.section == "Install")
        .map(|o| o.name.as_str())
        .collect();
    keys.dedup();
    (!keys.is_empty()).then(|| Finding {
        fatal: false,
        message: format!(
            "[Install] is ignored ({}): units of the cluster are not enabled, `fleetctl start` starts them",
            keys.join(", ")
        ),
    })
}

fn file_name(name: &UnitName, options: &[UnitOption]) -> String {
    if options.iter().any(|o| o.section == "Container") {
        format!("{}.container", name.stem())
    } else {
        name.as_str().to_owned()
    }
}

/// The unit as PID 1 will see it; a template is looked at through an instance.
fn load(
    name: &UnitName,
    options: &[UnitOption],
    warnings: &mut Vec<Finding>,
) -> Option<Arc<Service>> {
    let file = format!("{DIRECTORY}/{}", file_name(name, options));
    let store = MemoryStore::new().file(&file, &options::canonical(options));
    let instance = if name.is_template() {
        name.with_instance("instance").ok()?
    } else {
        name.clone()
    };
    let context = SpecifierContext::default();
    let loaded = orlop_unit::load(&instance, &[DIRECTORY], &store, &context);
    warnings.extend(loaded.problems.into_iter().map(|problem| {
        let what = match problem.severity {
            Severity::Warning => "machines will warn",
            Severity::Error => "machines will refuse it",
        };
        Finding {
            fatal: false,
            message: format!("{what}: {}", problem.message),
        }
    }));
    loaded.unit.and_then(|unit| unit.service().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::Amount;

    fn parse(name: &str, text: &str) -> UnitFile {
        UnitFile::parse(&UnitName::parse(name).unwrap(), text).unwrap()
    }

    #[test]
    fn needs_come_from_the_section_and_else_from_the_limits() {
        let unit = parse(
            "web.service",
            "[Service]\nExecStart=/usr/bin/docker run -p 80:8080 nginx\nMemoryMax=64M\nCPUQuota=50%\n",
        );
        assert_eq!(unit.needs.memory, Amount::Bytes(64 << 20));
        assert_eq!(unit.needs.cpu_milli, 500);
        assert_eq!(unit.needs.ports, ["80".parse().unwrap()]);
        let unit = parse(
            "web.service",
            "[Service]\nExecStart=/usr/bin/docker run -p 80:8080 nginx\nMemoryMax=64M\nCPUQuota=50%\n\
             [X-Fleet]\nMemory=10%\nCpus=2\nPorts=81 82/udp\nDisk=1G\n",
        );
        assert_eq!(unit.needs.memory, Amount::Share(1000));
        assert_eq!(unit.needs.cpu_milli, 2000);
        assert_eq!(
            unit.needs.ports,
            ["81".parse().unwrap(), "82/udp".parse().unwrap()]
        );
        assert_eq!(unit.needs.disk_bytes, 1 << 30);
    }

    #[test]
    fn a_quadlet_is_a_service_with_its_ports() {
        let unit = parse(
            "web.container",
            "[Container]\nImage=nginx\nPublishPort=8080:80\nMemory=32m\n",
        );
        assert_eq!(unit.needs.ports, ["8080".parse().unwrap()]);
        assert_eq!(unit.needs.memory, Amount::Bytes(32 << 20));
        let name = UnitName::parse("web.container").unwrap();
        assert_eq!(
            (name.as_str(), unit.file_name(&name).as_str()),
            ("web.service", "web.container")
        );
    }

    #[test]
    fn what_an_install_section_asks_for_is_told_to_be_ignored() {
        let unit = parse(
            "web.service",
            "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=a.service\nWantedBy=b.service\nAlias=c.service\n",
        );
        let warnings: Vec<&str> = unit.warnings.iter().map(|w| w.message.as_str()).collect();
        assert!(
            matches!(warnings[..], [one] if one.starts_with("[Install] is ignored (WantedBy, Alias)")),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_template_is_looked_at_as_an_instance() {
        let unit = parse(
            "web@.service",
            "[Service]\nExecStart=/bin/echo %i\nMemoryMax=1G\n",
        );
        assert_eq!(unit.needs.memory, Amount::Bytes(1 << 30));
        assert!(unit.warnings.is_empty(), "{:?}", unit.warnings);
    }
}
