//! `[Unit]` and `[Install]` (`systemd.unit(5)`).

use super::{Directive, Draft, Reading, ignored, plain_words, set, silent};
use crate::condition::{Condition, Test};
use crate::name::UnitName;
use crate::problem::Severity;
use crate::syntax::Assignment;
use crate::unit::{Dependency, MachineAction, Relation, StartLimit, Urgency};

/// Adds the names of a list; such lists cannot be emptied.
fn relate(relation: Relation, draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    for (offset, word) in plain_words(&a.value.text) {
        let Some(on) = reading.unit_name(a, word, offset) else {
            continue;
        };
        if on != *reading.expander.name {
            draft.dependencies.push(Dependency { relation, on });
        }
    }
}

fn names(list: &mut Vec<UnitName>, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        list.clear();
    }
    for (offset, word) in plain_words(&a.value.text) {
        list.extend(reading.unit_name(a, word, offset));
    }
}

fn machine_action(text: &str) -> Option<MachineAction> {
    let (what, urgency) = match text.split_once('-') {
        None => (text, Urgency::Orderly),
        Some((what, "force")) => (what, Urgency::Force),
        Some((what, "immediate")) => (what, Urgency::Immediate),
        Some(_) => return None,
    };
    match what {
        "none" => Some(MachineAction::None),
        "reboot" => Some(MachineAction::Reboot(urgency)),
        "poweroff" => Some(MachineAction::PowerOff(urgency)),
        "exit" => Some(MachineAction::Exit(urgency)),
        _ => None,
    }
}

fn action(a: &Assignment<'_>, reading: &mut Reading<'_>, slot: &mut MachineAction) {
    reading.value(
        a,
        slot,
        MachineAction::None,
        "an action such as reboot or poweroff-force",
        machine_action,
    );
}

pub(super) fn start_limit_interval(
    draft: &mut Draft,
    a: &Assignment<'_>,
    reading: &mut Reading<'_>,
) {
    reading.duration(
        a,
        &mut draft.start_limit.interval,
        StartLimit::default().interval,
    );
}

pub(super) fn start_limit_burst(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    let default = StartLimit::default().burst;
    reading.value(a, &mut draft.start_limit.burst, default, "a number", |t| {
        t.parse().ok()
    });
}

pub(super) fn start_limit_action(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    action(a, reading, &mut draft.start_limit.action);
}

pub(super) fn failure_action(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    action(a, reading, &mut draft.failure_action);
}

/// `Condition…=` and `Assert…=`; false when the key is neither.
pub(super) fn condition(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) -> bool {
    let (list, name) = match (
        a.key.strip_prefix("Condition"),
        a.key.strip_prefix("Assert"),
    ) {
        (Some(name), _) => (&mut draft.conditions, name),
        (_, Some(name)) => (&mut draft.asserts, name),
        _ => return false,
    };
    let Some((_, test)) = Test::NAMES.iter().find(|(n, _)| *n == name) else {
        return false;
    };
    if a.value.text.is_empty() {
        list.0.clear();
        return true;
    }
    let text = &*a.value.text;
    let (trigger, rest) = text
        .strip_prefix('|')
        .map_or((false, text), |rest| (true, rest.trim_start()));
    let (negate, rest) = rest
        .strip_prefix('!')
        .map_or((false, rest), |rest| (true, rest.trim_start()));
    let offset = text.len().saturating_sub(rest.len());
    let Some(parameter) = reading.expand(a, rest, offset, Severity::Warning) else {
        return true;
    };
    if test.takes_path() && !parameter.starts_with('/') {
        reading.ignore(a, offset, &format!("{parameter:?} is not an absolute path"));
        return true;
    }
    list.0.push(Condition {
        test: *test,
        parameter: parameter.into_owned(),
        negate,
        trigger,
    });
    true
}

pub(super) static UNIT: &[Directive] = &[
    set("After", |d, a, r| relate(Relation::After, d, a, r)),
    set("AllowIsolate", |d, a, r| {
        r.bool(a, &mut d.allow_isolate, false)
    }),
    set("Before", |d, a, r| relate(Relation::Before, d, a, r)),
    set("BindTo", |d, a, r| relate(Relation::BindsTo, d, a, r)),
    set("BindsTo", |d, a, r| relate(Relation::BindsTo, d, a, r)),
    silent("CollectMode"),
    set("Conflicts", |d, a, r| relate(Relation::Conflicts, d, a, r)),
    set("DefaultDependencies", |d, a, r| {
        let mut wanted = true;
        r.bool(a, &mut wanted, true);
        d.no_default_dependencies = !wanted;
    }),
    set("Description", |d, a, r| {
        if let Some(text) = r.text(a, Severity::Warning) {
            d.description = text.into_owned();
        }
    }),
    set("Documentation", |d, a, r| {
        if a.value.text.is_empty() {
            d.documentation.clear();
        }
        if let Some(text) = r.text(a, Severity::Warning) {
            d.documentation
                .extend(text.split_whitespace().map(str::to_owned));
        }
    }),
    set("FailureAction", failure_action),
    ignored(
        "FailureActionExitStatus",
        "there is no parent that would see an exit status",
    ),
    set("IgnoreOnIsolate", |d, a, r| {
        r.bool(a, &mut d.ignore_on_isolate, false)
    }),
    ignored(
        "JobRunningTimeoutSec",
        "use JobTimeoutSec= or TimeoutStartSec=",
    ),
    ignored("JobTimeoutAction", "a job that takes too long only fails"),
    ignored(
        "JobTimeoutRebootArgument",
        "a job that takes too long only fails",
    ),
    set("JobTimeoutSec", |d, a, r| r.span(a, &mut d.job_timeout)),
    ignored("JoinsNamespaceOf", "units share no private namespaces"),
    set("OnFailure", |d, a, r| relate(Relation::OnFailure, d, a, r)),
    ignored("OnFailureIsolate", "the other jobs stay"),
    silent("OnFailureJobMode"),
    set("OnSuccess", |d, a, r| relate(Relation::OnSuccess, d, a, r)),
    silent("OnSuccessJobMode"),
    set("PartOf", |d, a, r| relate(Relation::PartOf, d, a, r)),
    set("PropagateReloadFrom", |d, a, r| {
        relate(Relation::ReloadPropagatedFrom, d, a, r)
    }),
    set("PropagateReloadTo", |d, a, r| {
        relate(Relation::PropagatesReloadTo, d, a, r)
    }),
    set("PropagatesReloadTo", |d, a, r| {
        relate(Relation::PropagatesReloadTo, d, a, r)
    }),
    set("PropagatesStopTo", |d, a, r| {
        relate(Relation::PropagatesStopTo, d, a, r)
    }),
    ignored("RebootArgument", "a reboot takes no argument"),
    set("RefuseManualStart", |d, a, r| {
        r.bool(a, &mut d.refuse_manual_start, false)
    }),
    set("RefuseManualStop", |d, a, r| {
        r.bool(a, &mut d.refuse_manual_stop, false)
    }),
    set("ReloadPropagatedFrom", |d, a, r| {
        relate(Relation::ReloadPropagatedFrom, d, a, r)
    }),
    set("Requires", |d, a, r| relate(Relation::Requires, d, a, r)),
    set("RequiresMountsFor", mounts_for),
    ignored("RequiresOverridable", "use Requires="),
    set("Requisite", |d, a, r| relate(Relation::Requisite, d, a, r)),
    ignored("RequisiteOverridable", "use Requisite="),
    silent("SourcePath"),
    set("StartLimitAction", start_limit_action),
    set("StartLimitBurst", start_limit_burst),
    set("StartLimitInterval", start_limit_interval),
    set("StartLimitIntervalSec", start_limit_interval),
    set("StopPropagatedFrom", |d, a, r| {
        relate(Relation::StopPropagatedFrom, d, a, r)
    }),
    set("StopWhenUnneeded", |d, a, r| {
        r.bool(a, &mut d.stop_when_unneeded, false)
    }),
    set("SuccessAction", |d, a, r| {
        action(a, r, &mut d.success_action)
    }),
    ignored(
        "SuccessActionExitStatus",
        "there is no parent that would see an exit status",
    ),
    silent("SurviveFinalKillSignal"),
    set("Upholds", |d, a, r| relate(Relation::Upholds, d, a, r)),
    set("Wants", |d, a, r| relate(Relation::Wants, d, a, r)),
    set("WantsMountsFor", mounts_for),
];

fn mounts_for(draft: &mut Draft, a: &Assignment<'_>, reading: &mut Reading<'_>) {
    if a.value.text.is_empty() {
        draft.requires_mounts_for.clear();
    }
    for word in reading.words(a, Severity::Warning).unwrap_or_default() {
        if word.text.starts_with('/') {
            draft.requires_mounts_for.push(word.text);
        } else {
            reading.ignore(
                a,
                word.offset,
                &format!("{:?} is not an absolute path", word.text),
            );
        }
    }
}

pub(super) static INSTALL: &[Directive] = &[
    set("Alias", |d, a, r| names(&mut d.install.alias, a, r)),
    set("Also", |d, a, r| names(&mut d.install.also, a, r)),
    set("DefaultInstance", |d, a, r| {
        r.option(
            a,
            &mut d.install.default_instance,
            "an instance name",
            |t| Some(t.to_owned()),
        );
    }),
    set("RequiredBy", |d, a, r| {
        names(&mut d.install.required_by, a, r)
    }),
    set("UpheldBy", |d, a, r| names(&mut d.install.upheld_by, a, r)),
    set("WantedBy", |d, a, r| names(&mut d.install.wanted_by, a, r)),
];
