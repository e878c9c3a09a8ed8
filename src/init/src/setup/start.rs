//! What became of earlier starts: told to the operator, and remembered no longer than it is needed.

use std::collections::BTreeMap;

use orlop_boot::entries::{Entry, Standing, Version};
use orlop_boot::modprobe::chain;
use orlop_boot::slot::Booted;
use orlop_boot::trials::{Stage, Trials};

use super::Setup;

/// Notes that the verified root was entered, and tells which versions failed and why.
pub(super) fn tell(setup: &mut Setup) {
    if !setup.is_machine {
        return;
    }
    let Some(booted) = Booted::read() else {
        return;
    };
    let told = orlop_boot::slot::with_esp(&booted, |esp, entries| {
        let mut trials = Trials::load(esp);
        let before = trials.clone();
        if booted.is_on_trial() {
            trials.reached(&booted.version, Stage::Units);
        } else {
            trials.forget(&booted.version);
        }
        let failures = failures(&booted.version, &entries, &mut trials);
        if trials != before
            && let Err(err) = trials.save(esp)
        {
            log::warn!("setup: cannot keep what became of earlier starts: {err}");
        }
        Ok(failures)
    });
    match told {
        // Errors, so that the console has them.
        Ok(failures) => {
            for (version, reason) in &failures {
                log::error!("setup: version {version} was given up: {reason}");
            }
            if !failures.is_empty() {
                log::error!("setup: version {} runs instead", booted.version);
            }
        }
        Err(err) => setup.fail(format!("cannot look at the slots: {}", chain(&err))),
    }
}

/// The versions that failed, other than the one that runs, with their reasons: those that were not told yet.
fn failures(
    running: &Version,
    entries: &[Entry],
    trials: &mut Trials,
) -> BTreeMap<Version, String> {
    let bad = entries
        .iter()
        .filter(|entry| entry.standing() == Standing::Bad && entry.version != *running);
    for entry in bad {
        if trials.of(&entry.version).is_none() {
            trials.end(
                &entry.version,
                "it never got to its boot stage: its kernel, its initramfs or its first process failed",
            );
        }
    }
    let mut failures = BTreeMap::new();
    for trial in &mut trials.trials {
        if trial.version == *running || trial.is_told {
            continue;
        }
        if let Some(reason) = &trial.reason {
            failures.insert(trial.version.clone(), reason.clone());
            trial.is_told = true;
        }
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn each_failure_is_told_once() {
        let entries: Vec<Entry> = ["orlop_1.efi", "orlop_2+0-3.efi", "orlop_3+0-3.efi"]
            .iter()
            .filter_map(|name| Entry::parse(name))
            .collect();
        let mut trials = Trials::default();
        trials.begin(&version("2"), 1);
        trials.end(&version("2"), "no network");
        let told = failures(&version("1"), &entries, &mut trials);
        assert_eq!(told[&version("2")], "no network");
        assert!(told[&version("3")].starts_with("it never got to"));
        assert!(failures(&version("1"), &entries, &mut trials).is_empty());
    }
}
