//! Directives that are understood and not carried out: a unit that asks for one is told so.

use orlop_unit::{MachineAction, OomPolicy, Preserve, Service, ServiceType, Signal, Unit};

/// Why a unit cannot be started at all: without this it would not be what its author meant.
#[must_use]
pub fn refusal(unit: &Unit) -> Option<&'static str> {
    (unit.service()?.service_type == ServiceType::Forking).then_some(
        "Type=forking is not supported: have the program stay in the foreground, with Type=simple or notify",
    )
}

/// The directives of this unit that have no effect.
#[must_use]
pub fn without_effect(unit: &Unit, service: &Service) -> Vec<&'static str> {
    let asked = [
        ("WatchdogSec=", service.watchdog.is_some()),
        ("OOMPolicy=", service.oom_policy != OomPolicy::default()),
        (
            "RuntimeDirectoryPreserve=",
            service.runtime_directory_preserve != Preserve::default(),
        ),
        ("PassEnvironment=", !service.pass_environment.is_empty()),
        ("SendSIGHUP=", service.send_sighup),
        ("SendSIGKILL=", !service.send_sigkill),
        (
            "RestartKillSignal=",
            service.restart_kill_signal != service.kill_signal,
        ),
        (
            "FinalKillSignal=",
            service.final_kill_signal != Signal::KILL,
        ),
        ("PIDFile=", service.pid_file.is_some()),
        ("IgnoreSIGPIPE=", !service.ignore_sigpipe),
        ("TTYReset=", service.tty_reset),
        ("TTYVHangup=", service.tty_vhangup),
        (
            "FailureAction=",
            unit.failure_action != MachineAction::default(),
        ),
        (
            "SuccessAction=",
            unit.success_action != MachineAction::default(),
        ),
        ("JobTimeoutSec=", unit.job_timeout.is_some()),
        ("StopWhenUnneeded=", unit.stop_when_unneeded),
    ];
    asked
        .into_iter()
        .filter_map(|(directive, is_asked)| is_asked.then_some(directive))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::{MemoryStore, SpecifierContext, UnitName};

    fn load(text: &str) -> std::sync::Arc<Unit> {
        let store = MemoryStore::new().file("/u/x.service", text);
        let name = UnitName::parse("x.service").unwrap();
        let loaded = orlop_unit::load(&name, &["/u"], &store, &SpecifierContext::default());
        std::sync::Arc::new(loaded.unit.unwrap())
    }

    #[test]
    fn what_has_no_effect_is_named_and_nothing_else() {
        let plain = load("[Service]\nExecStart=/bin/a\nRestart=always\nKillMode=mixed\n");
        assert!(without_effect(&plain, plain.service().unwrap()).is_empty());
        assert_eq!(refusal(&plain), None);

        let demanding = load(
            "[Unit]\nFailureAction=reboot\n[Service]\nType=notify\nExecStart=/bin/a\nWatchdogSec=5\nOOMPolicy=kill\n",
        );
        assert_eq!(
            without_effect(&demanding, demanding.service().unwrap()),
            ["WatchdogSec=", "OOMPolicy=", "FailureAction="]
        );
    }

    #[test]
    fn a_service_that_forks_is_refused() {
        let forking = load("[Service]\nType=forking\nExecStart=/bin/a\n");
        assert!(refusal(&forking).is_some_and(|text| text.starts_with("Type=forking")));
    }
}
