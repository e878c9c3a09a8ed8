//! `Condition…=` and `Assert…=` (`systemd.unit(5)`, "Conditions and Asserts").

/// What is looked at. The supervisor answers each test; this crate only combines the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is the directive of the same name")]
pub enum Test {
    Architecture,
    Firmware,
    Virtualization,
    Host,
    KernelCommandLine,
    KernelVersion,
    Credential,
    Environment,
    Security,
    Capability,
    AcPower,
    NeedsUpdate,
    FirstBoot,
    PathExists,
    PathExistsGlob,
    PathIsDirectory,
    PathIsSymbolicLink,
    PathIsMountPoint,
    PathIsReadWrite,
    PathIsEncrypted,
    DirectoryNotEmpty,
    FileNotEmpty,
    FileIsExecutable,
    User,
    Group,
    ControlGroupController,
    Memory,
    Cpus,
    CpuFeature,
    OsRelease,
    MemoryPressure,
    CpuPressure,
    IoPressure,
}

impl Test {
    /// Every test with the name that follows `Condition` or `Assert`.
    pub const NAMES: &[(&'static str, Self)] = &[
        ("Architecture", Self::Architecture),
        ("Firmware", Self::Firmware),
        ("Virtualization", Self::Virtualization),
        ("Host", Self::Host),
        ("KernelCommandLine", Self::KernelCommandLine),
        ("KernelVersion", Self::KernelVersion),
        ("Credential", Self::Credential),
        ("Environment", Self::Environment),
        ("Security", Self::Security),
        ("Capability", Self::Capability),
        ("ACPower", Self::AcPower),
        ("NeedsUpdate", Self::NeedsUpdate),
        ("FirstBoot", Self::FirstBoot),
        ("PathExists", Self::PathExists),
        ("PathExistsGlob", Self::PathExistsGlob),
        ("PathIsDirectory", Self::PathIsDirectory),
        ("PathIsSymbolicLink", Self::PathIsSymbolicLink),
        ("PathIsMountPoint", Self::PathIsMountPoint),
        ("PathIsReadWrite", Self::PathIsReadWrite),
        ("PathIsEncrypted", Self::PathIsEncrypted),
        ("DirectoryNotEmpty", Self::DirectoryNotEmpty),
        ("FileNotEmpty", Self::FileNotEmpty),
        ("FileIsExecutable", Self::FileIsExecutable),
        ("User", Self::User),
        ("Group", Self::Group),
        ("ControlGroupController", Self::ControlGroupController),
        ("Memory", Self::Memory),
        ("CPUs", Self::Cpus),
        ("CPUFeature", Self::CpuFeature),
        ("OSRelease", Self::OsRelease),
        ("MemoryPressure", Self::MemoryPressure),
        ("CPUPressure", Self::CpuPressure),
        ("IOPressure", Self::IoPressure),
    ];

    /// The name that follows `Condition` or `Assert`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES
            .iter()
            .find(|(_, test)| *test == self)
            .map_or("", |(name, _)| *name)
    }

    /// Whether the parameter is a path.
    pub(crate) fn takes_path(self) -> bool {
        matches!(
            self,
            Self::PathExists
                | Self::PathExistsGlob
                | Self::PathIsDirectory
                | Self::PathIsSymbolicLink
                | Self::PathIsMountPoint
                | Self::PathIsReadWrite
                | Self::PathIsEncrypted
                | Self::DirectoryNotEmpty
                | Self::FileNotEmpty
                | Self::FileIsExecutable
                | Self::NeedsUpdate
        )
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is looked at.
    pub test: Test,
    /// What it is compared with.
    pub parameter: String,
    /// `!`: must not hold.
    pub negate: bool,
    /// `|`: one of all such conditions is enough.
    pub trigger: bool,
}

/// All conditions (or asserts) of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions(pub Vec<Condition>);

impl Conditions {
    /// Combines the answers of `holds`, which is asked about the bare test (the `!` is applied here).
    ///
    /// `Err` names the condition that was not met: the first plain one, or the last trigger when none held.
    ///
    /// # Errors
    /// The unmet condition.
    pub fn check(&self, mut holds: impl FnMut(Test, &str) -> bool) -> Result<(), &Condition> {
        let mut triggered = None;
        for condition in &self.0 {
            if condition.trigger && triggered == Some(Ok(())) {
                continue;
            }
            let met = holds(condition.test, &condition.parameter) != condition.negate;
            match (condition.trigger, met) {
                (false, true) => {}
                (false, false) => return Err(condition),
                (true, true) => triggered = Some(Ok(())),
                (true, false) => triggered = Some(Err(condition)),
            }
        }
        triggered.unwrap_or(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(parameter: &str, negate: bool, trigger: bool) -> Condition {
        Condition {
            test: Test::PathExists,
            parameter: parameter.into(),
            negate,
            trigger,
        }
    }

    #[test]
    fn all_plain_conditions_and_one_trigger_must_hold() {
        let exists = |_: Test, path: &str| path == "/yes";
        let check = |list: &[Condition]| Conditions(list.to_vec()).check(exists).is_ok();
        assert!(check(&[]));
        assert!(check(&[
            condition("/yes", false, false),
            condition("/no", true, false)
        ]));
        assert!(!check(&[
            condition("/yes", false, false),
            condition("/no", false, false)
        ]));
        assert!(check(&[
            condition("/no", false, true),
            condition("/yes", false, true),
            condition("/no", false, true)
        ]));
        assert!(!check(&[
            condition("/yes", false, false),
            condition("/no", false, true)
        ]));
        assert!(!check(&[condition("/yes", true, true)]));
    }
}
