//! A service's run as data, so that another PID 1 can go on with it.

use std::time::Duration;

use orlop_unit::{ProcessEnd, ServiceResult, Signal};
use serde::{Deserialize, Serialize};

use super::{Run, State};

/// How a process ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum End {
    Exited(u8),
    Killed(i32),
    Dumped(i32),
}

/// All that a [`Run`] knows beside its unit; times are of the boot clock, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedRun {
    state: State,
    index: usize,
    main: Option<i32>,
    control: Option<i32>,
    main_end: Option<End>,
    result: String,
    failure: Option<String>,
    restarts: u32,
    started: bool,
    stop_requested: bool,
    start_next: bool,
    restarting: bool,
    has_aborted: bool,
    leaderless: bool,
    had_turn: bool,
    skipped: Option<String>,
    deadline_ns: Option<u64>,
    ends_ns: Option<u64>,
    watchdog_ns: Option<u64>,
    watchdog_interval: Option<Duration>,
    retry_ns: Option<u64>,
}

const RESULTS: [ServiceResult; 11] = [
    ServiceResult::Success,
    ServiceResult::Protocol,
    ServiceResult::Timeout,
    ServiceResult::ExitCode,
    ServiceResult::Signal,
    ServiceResult::CoreDump,
    ServiceResult::Watchdog,
    ServiceResult::ExecCondition,
    ServiceResult::OomKill,
    ServiceResult::StartLimitHit,
    ServiceResult::Resources,
];

impl Run {
    /// What another PID 1 needs to go on.
    #[must_use]
    pub fn save(&self) -> SavedRun {
        SavedRun {
            state: self.state,
            index: self.index,
            main: self.main,
            control: self.control,
            main_end: self.main_end.map(|end| match end {
                ProcessEnd::Exited(code) => End::Exited(code),
                ProcessEnd::Killed(signal) => End::Killed(signal.0),
                ProcessEnd::Dumped(signal) => End::Dumped(signal.0),
            }),
            result: self.result.as_str().to_owned(),
            failure: self.failure.clone(),
            restarts: self.restarts,
            started: self.started,
            stop_requested: self.stop_requested,
            start_next: self.start_next,
            restarting: self.restarting,
            has_aborted: self.has_aborted,
            leaderless: self.leaderless,
            had_turn: self.had_turn,
            skipped: self.skipped.clone(),
            deadline_ns: self.deadline_ns,
            ends_ns: self.ends_ns,
            watchdog_ns: self.watchdog_ns,
            watchdog_interval: self.watchdog_interval,
            retry_ns: self.retry_ns,
        }
    }

    /// Goes on where [`Run::save`] was; a job that ran is to be asked for again.
    pub fn resume(&mut self, saved: SavedRun) {
        self.state = saved.state;
        self.index = saved.index;
        self.main = saved.main;
        self.control = saved.control;
        self.main_end = saved.main_end.map(|end| match end {
            End::Exited(code) => ProcessEnd::Exited(code),
            End::Killed(signal) => ProcessEnd::Killed(Signal(signal)),
            End::Dumped(signal) => ProcessEnd::Dumped(Signal(signal)),
        });
        self.result = RESULTS
            .into_iter()
            .find(|result| result.as_str() == saved.result)
            .unwrap_or_default();
        self.failure = saved.failure;
        self.restarts = saved.restarts;
        self.started = saved.started;
        self.stop_requested = saved.stop_requested;
        self.job = false;
        self.start_next = saved.start_next;
        self.restarting = saved.restarting;
        self.has_aborted = saved.has_aborted;
        self.leaderless = saved.leaderless;
        self.had_turn = saved.had_turn;
        self.skipped = saved.skipped;
        self.deadline_ns = saved.deadline_ns;
        self.ends_ns = saved.ends_ns;
        self.watchdog_ns = saved.watchdog_ns;
        self.watchdog_interval = saved.watchdog_interval;
        self.retry_ns = saved.retry_ns;
    }
}
