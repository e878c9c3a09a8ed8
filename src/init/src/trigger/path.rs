//! When a path unit starts its unit: pure (systemd.path(5)).

use std::sync::Arc;

use orlop_unit::{ActiveState, Kind, PathUnit, Unit, Watch};

use super::Rate;

/// Where the path unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Not started.
    Dead,
    /// Waiting for something to appear or change.
    Waiting,
    /// Its unit runs.
    Running,
    /// It triggered too often.
    Failed,
}

/// A path unit's run.
#[derive(Clone, Debug)]
pub struct Path {
    unit: Arc<Unit>,
    /// Where it is.
    pub state: State,
    /// Which of the watched paths existed when they were looked at last.
    existed: Vec<bool>,
    rate: Rate,
}

/// What comes of looking at the paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing to do.
    Wait,
    /// The unit is to be started.
    Start,
    /// It was started too often in too short a time.
    TooOften,
}

impl Path {
    /// A path unit that is not started; `None` when the unit is none.
    #[must_use]
    pub fn new(unit: &Arc<Unit>) -> Option<Self> {
        matches!(unit.kind, Kind::Path(_)).then(|| Self {
            unit: Arc::clone(unit),
            state: State::Dead,
            existed: Vec::new(),
            rate: Rate::default(),
        })
    }

    /// The unit as it was when this was made or last replaced.
    #[must_use]
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The directives.
    #[must_use]
    pub fn directives(&self) -> Option<&PathUnit> {
        match &self.unit.kind {
            Kind::Path(path) => Some(path),
            _ => None,
        }
    }

    /// Takes the unit's files as they are now.
    pub fn replace_unit(&mut self, unit: &Arc<Unit>) {
        if matches!(unit.kind, Kind::Path(_)) {
            self.unit = Arc::clone(unit);
            self.existed.clear();
        }
    }

    /// The state of the unit.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self.state {
            State::Dead => ActiveState::Inactive,
            State::Waiting | State::Running => ActiveState::Active,
            State::Failed => ActiveState::Failed,
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        match self.state {
            State::Dead => "dead",
            State::Waiting => "waiting",
            State::Running => "running",
            State::Failed => "failed",
        }
    }

    /// Looks at the paths. `exists` tells of each watched path, in order, whether what it is watched for holds; `changed` is
    /// whether one that is watched for changes has changed; at a start what is there already is no change.
    pub fn look(
        &mut self,
        exists: Vec<bool>,
        changed: bool,
        is_start: bool,
        now_ns: u64,
    ) -> Verdict {
        let unit = Arc::clone(&self.unit);
        let Kind::Path(directives) = &unit.kind else {
            return Verdict::Wait;
        };
        if is_start {
            self.state = State::Waiting;
        }
        let appeared = directives
            .watches
            .iter()
            .enumerate()
            .any(|(at, (watch, _))| {
                let holds = exists.get(at).copied().unwrap_or(false);
                match watch {
                    Watch::Exists | Watch::ExistsGlob | Watch::DirectoryNotEmpty => holds,
                    Watch::Changed | Watch::Modified => {
                        !is_start && self.existed.get(at).is_some_and(|before| *before != holds)
                    }
                }
            });
        self.existed = exists;
        if self.state != State::Waiting || !(appeared || changed) {
            return Verdict::Wait;
        }
        let (interval, burst) = (
            directives.trigger_limit_interval,
            directives.trigger_limit_burst,
        );
        if !self.rate.takes(now_ns, interval, burst) {
            self.state = State::Failed;
            return Verdict::TooOften;
        }
        self.state = State::Running;
        Verdict::Start
    }

    /// The unit that it started is down again; the paths are to be looked at.
    pub fn unit_ended(&mut self) -> bool {
        let ran = self.state == State::Running;
        if ran {
            self.state = State::Waiting;
        }
        ran
    }

    /// A stop.
    pub fn stop(&mut self) {
        self.state = State::Dead;
        self.existed.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::{MemoryStore, SpecifierContext, UnitName};

    fn path(directives: &str) -> Path {
        let store = MemoryStore::new().file("/u/x.path", &format!("[Path]\n{directives}"));
        let context = SpecifierContext::default();
        let loader = orlop_unit::Loader::new(&["/u"], &store, &context).reading_all();
        let loaded = loader.load(&UnitName::parse("x.path").unwrap());
        Path::new(&Arc::new(loaded.unit.expect(directives))).unwrap()
    }

    #[test]
    fn what_exists_starts_the_unit_again_until_it_is_gone() {
        let mut path = path("PathExists=/a\n");
        assert_eq!(path.look(vec![false], false, true, 0), Verdict::Wait);
        assert_eq!(path.look(vec![true], false, false, 1), Verdict::Start);
        assert_eq!(path.look(vec![true], false, false, 2), Verdict::Wait);
        assert!(path.unit_ended());
        assert_eq!(path.look(vec![true], false, false, 3), Verdict::Start);
        assert!(path.unit_ended());
        assert_eq!(path.look(vec![false], false, false, 4), Verdict::Wait);
    }

    #[test]
    fn what_was_there_before_is_no_change() {
        let mut path = path("PathChanged=/a\n");
        assert_eq!(path.look(vec![true], false, true, 0), Verdict::Wait);
        assert_eq!(path.look(vec![true], true, false, 1), Verdict::Start);
        assert!(path.unit_ended());
        assert_eq!(path.look(vec![false], false, false, 2), Verdict::Start);
    }

    #[test]
    fn what_triggers_without_end_is_given_up() {
        let mut path = path("PathExists=/a\nTriggerLimitBurst=3\n");
        path.look(vec![false], false, true, 0);
        for at in 0..3 {
            assert_eq!(path.look(vec![true], false, false, at), Verdict::Start);
            path.unit_ended();
        }
        assert_eq!(path.look(vec![true], false, false, 4), Verdict::TooOften);
        assert_eq!(path.active_state(), ActiveState::Failed);
    }
}
