//! How a service's run ended, and what follows from that.

use std::time::Duration;

use super::{Restart, Service, ServiceType};
use crate::value::Signal;

/// How a service's run ended; `SERVICE_RESULT` for the stop commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceResult {
    /// Cleanly.
    #[default]
    Success,
    /// It did not keep to its `Type=` (no `READY=1`, no PID file).
    Protocol,
    /// A start or stop took too long.
    Timeout,
    /// With an unclean code.
    ExitCode,
    /// By an unclean signal.
    Signal,
    /// By a signal, leaving a core.
    CoreDump,
    /// No sign of life in `WatchdogSec=`.
    Watchdog,
    /// `ExecCondition=` said no.
    ExecCondition,
    /// The kernel's OOM killer.
    OomKill,
    /// Started too often.
    StartLimitHit,
    /// The supervisor could not make what it needed (a fork, a cgroup, a file).
    Resources,
}

impl ServiceResult {
    /// The word that `SERVICE_RESULT` and status lines use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Protocol => "protocol",
            Self::Timeout => "timeout",
            Self::ExitCode => "exit-code",
            Self::Signal => "signal",
            Self::CoreDump => "core-dump",
            Self::Watchdog => "watchdog",
            Self::ExecCondition => "exec-condition",
            Self::OomKill => "oom-kill",
            Self::StartLimitHit => "start-limit-hit",
            Self::Resources => "resources",
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// `exit(code)`.
    Exited(u8),
    /// Killed by a signal.
    Killed(Signal),
    /// Killed by a signal, with a core.
    Dumped(Signal),
}

/// Exit codes and signals (`SuccessExitStatus=` and the like).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitStatusSet {
    /// Codes of `exit`.
    pub codes: Vec<u8>,
    /// Signals.
    pub signals: Vec<Signal>,
}

impl ExitStatusSet {
    /// Whether `end` is in it.
    #[must_use]
    pub fn contains(&self, end: ProcessEnd) -> bool {
        match end {
            ProcessEnd::Exited(code) => self.codes.contains(&code),
            ProcessEnd::Killed(signal) | ProcessEnd::Dumped(signal) => {
                self.signals.contains(&signal)
            }
        }
    }
}

impl Service {
    /// The result that the end of the main process (`main`) or of a control process means.
    #[must_use]
    pub fn judge(&self, end: ProcessEnd, main: bool) -> ServiceResult {
        let polite = main && self.service_type != ServiceType::Oneshot;
        let clean = match end {
            ProcessEnd::Exited(0) => true,
            ProcessEnd::Killed(Signal::HUP | Signal::INT | Signal::TERM | Signal::PIPE)
                if polite =>
            {
                true
            }
            _ => main && self.success_exit_status.contains(end),
        };
        match end {
            _ if clean => ServiceResult::Success,
            ProcessEnd::Exited(_) => ServiceResult::ExitCode,
            ProcessEnd::Killed(_) => ServiceResult::Signal,
            ProcessEnd::Dumped(_) => ServiceResult::CoreDump,
        }
    }

    /// How long to wait before a restart; `restart` is how many there are in a row with this one, from 1.
    ///
    /// With `RestartSteps=` the delay grows by the same factor each time, up to `RestartMaxDelaySec=`.
    #[must_use]
    pub fn delay_before_restart(&self, restart: u32) -> Duration {
        let (first, steps) = (self.restart_delay, self.restart_steps);
        let Some(last) = self.restart_max_delay.filter(|last| *last > first) else {
            return first;
        };
        if steps == 0 || restart <= 1 {
            return first;
        }
        if restart > steps {
            return last;
        }
        // Zero has no multiples: growth begins at the smallest delay there is.
        let (from, to) = (first.as_secs_f64().max(1e-6), last.as_secs_f64());
        let part = f64::from(restart.saturating_sub(1)) / f64::from(steps);
        Duration::try_from_secs_f64(from * (to / from).powf(part))
            .unwrap_or(last)
            .min(last)
    }

    /// Whether the service is started again after a run that ended in `result`, nobody having asked it to stop.
    ///
    /// `main` is how the main process ended, where there was one.
    #[must_use]
    pub fn restarts_after(&self, result: ServiceResult, main: Option<ProcessEnd>) -> bool {
        use ServiceResult as R;
        if result == R::ExecCondition || result == R::StartLimitHit {
            return false;
        }
        if main.is_some_and(|end| self.restart_prevent_exit_status.contains(end)) {
            return false;
        }
        if main.is_some_and(|end| self.restart_force_exit_status.contains(end)) {
            return true;
        }
        match self.restart {
            Restart::No => false,
            Restart::Always => true,
            Restart::OnSuccess => result == R::Success,
            Restart::OnFailure => result != R::Success,
            Restart::OnAbnormal => !matches!(result, R::Success | R::ExitCode),
            Restart::OnAbort => matches!(result, R::Signal | R::CoreDump),
            Restart::OnWatchdog => result == R::Watchdog,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_follows_the_table_of_the_manual() {
        use Restart::*;
        use ServiceResult as R;
        let rows = [
            (R::Success, [true, true, false, false, false, false]),
            (R::ExitCode, [true, false, true, false, false, false]),
            (R::Signal, [true, false, true, true, true, false]),
            (R::CoreDump, [true, false, true, true, true, false]),
            (R::Timeout, [true, false, true, true, false, false]),
            (R::Watchdog, [true, false, true, true, false, true]),
            (R::StartLimitHit, [false; 6]),
        ];
        for (result, expected) in rows {
            for (restart, wanted) in [
                Always, OnSuccess, OnFailure, OnAbnormal, OnAbort, OnWatchdog,
            ]
            .into_iter()
            .zip(expected)
            {
                let service = Service {
                    restart,
                    ..Service::default()
                };
                assert_eq!(
                    service.restarts_after(result, None),
                    wanted,
                    "{restart:?} after {result:?}"
                );
            }
        }
    }

    #[test]
    fn prevent_and_force_lists_override_the_policy() {
        let service = Service {
            restart: Restart::Always,
            restart_prevent_exit_status: ExitStatusSet {
                codes: vec![23],
                signals: vec![],
            },
            ..Service::default()
        };
        assert!(!service.restarts_after(ServiceResult::ExitCode, Some(ProcessEnd::Exited(23))));
        assert!(service.restarts_after(ServiceResult::ExitCode, Some(ProcessEnd::Exited(24))));
        let service = Service {
            restart_force_exit_status: ExitStatusSet {
                codes: vec![],
                signals: vec![Signal::TERM],
            },
            ..Service::default()
        };
        assert!(service.restarts_after(
            ServiceResult::Success,
            Some(ProcessEnd::Killed(Signal::TERM))
        ));
    }

    #[test]
    fn a_polite_signal_is_clean_except_for_oneshot() {
        let mut service = Service::default();
        assert_eq!(
            service.judge(ProcessEnd::Killed(Signal::TERM), true),
            ServiceResult::Success
        );
        service.service_type = ServiceType::Oneshot;
        assert_eq!(
            service.judge(ProcessEnd::Killed(Signal::TERM), true),
            ServiceResult::Signal
        );
        service.success_exit_status.codes.push(75);
        assert_eq!(
            service.judge(ProcessEnd::Exited(75), true),
            ServiceResult::Success
        );
        assert_eq!(
            service.judge(ProcessEnd::Exited(75), false),
            ServiceResult::ExitCode
        );
    }

    #[test]
    fn delays_before_restarts_grow_up_to_the_longest() {
        let mut service = Service {
            restart_delay: Duration::from_secs(1),
            restart_steps: 4,
            restart_max_delay: Some(Duration::from_secs(16)),
            ..Service::default()
        };
        let delays: Vec<u64> = (1..7)
            .map(|n| service.delay_before_restart(n).as_millis() as u64)
            .collect();
        assert_eq!(delays, [1000, 2000, 4000, 8000, 16_000, 16_000]);
        service.restart_max_delay = None;
        assert_eq!(service.delay_before_restart(9), Duration::from_secs(1));
    }
}
