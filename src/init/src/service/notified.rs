//! What a service says of itself while it runs (sd_notify(3)), and what the kernel says of its memory.

use orlop_unit::{OomPolicy, Outcome, ServiceResult};

use super::{Action, Phase, Run, State, after};

impl Run {
    pub(super) fn ready(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        match self.state {
            State::Awaiting if !self.waits_for_hand_over() && !self.seeks_main() => {
                self.start_post(now_ns, actions);
            }
            State::Reloading => self.stay_up(Outcome::Done, now_ns, actions),
            _ => {}
        }
    }

    /// It reads its configuration again by itself.
    pub(super) fn reloading(&mut self, now_ns: u64) {
        if self.state == State::Running {
            self.state = State::Reloading;
            self.deadline_ns = after(now_ns, self.start_timeout());
        }
    }

    /// It ends by itself: nobody signals it, but it has to be gone in time.
    pub(super) fn stopping(&mut self, now_ns: u64) {
        if matches!(self.state, State::Running | State::Reloading) && !self.job {
            self.state = State::Terminating;
            self.deadline_ns = after(now_ns, self.service.timeout_stop);
        }
    }

    pub(super) fn keep_alive(&mut self, now_ns: u64) {
        let is_up = matches!(
            self.state,
            State::Running | State::Reloading | State::Commands(Phase::Reload)
        );
        if is_up {
            self.watchdog_ns = after(now_ns, self.watchdog().filter(|time| !time.is_zero()));
        }
    }

    pub(super) fn watchdog_bites(&mut self, why: &str, now_ns: u64, actions: &mut Vec<Action>) {
        let is_up = matches!(
            self.state,
            State::Running | State::Reloading | State::Commands(Phase::Reload)
        );
        if !is_up {
            return;
        }
        let text = format!("the watchdog ends it: {why}");
        actions.push(Action::Log(true, text.clone()));
        self.blame(ServiceResult::Watchdog, text.clone());
        self.fail_reload(text, actions);
        self.abort(now_ns, actions);
    }

    /// A reload that ran has no end of its own any more.
    fn fail_reload(&mut self, text: String, actions: &mut Vec<Action>) {
        let reloads = matches!(
            self.state,
            State::Reloading | State::Commands(Phase::Reload)
        );
        if reloads && std::mem::take(&mut self.job) {
            actions.push(Action::Report(self.active_state(), Outcome::Failed(text)));
        }
    }

    /// The kernel has killed a process of the service for lack of memory (`OOMPolicy=`).
    pub(super) fn out_of_memory_within(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let text =
            "a process of it was killed by the kernel because it used more memory than it may";
        actions.push(Action::Log(true, text.to_owned()));
        let lives = matches!(
            self.state,
            State::Commands(Phase::StartPre | Phase::Start | Phase::StartPost | Phase::Reload)
                | State::Awaiting
                | State::Running
                | State::Reloading
                | State::Exited
        );
        if !lives || self.service.oom_policy == OomPolicy::Continue {
            return;
        }
        self.blame(ServiceResult::OomKill, text.to_owned());
        self.fail_reload(text.to_owned(), actions);
        match self.service.oom_policy {
            OomPolicy::Kill => self.begin_to_kill(now_ns, actions),
            _ => self.terminate(now_ns, actions),
        }
    }
}
