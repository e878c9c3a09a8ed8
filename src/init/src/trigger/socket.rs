//! When a socket unit starts its service: pure (systemd.socket(5)).

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_unit::{ActiveState, Kind, Socket as Directives, Unit, UnitId};

use super::Rate;

/// Where the socket unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Not started.
    Dead,
    /// Somebody may come.
    Listening,
    /// Its service has the sockets.
    Running,
    /// It could not listen, or was triggered too often.
    Failed,
}

/// A socket unit's run.
#[derive(Clone, Debug)]
pub struct Socket {
    unit: Arc<Unit>,
    /// Where it is.
    pub state: State,
    /// Why it failed.
    pub failure: Option<String>,
    /// Connections so far (`Accept=yes`).
    pub accepted: u64,
    /// The instances that serve connections, with the address of the other side where it has one.
    pub connections: BTreeMap<UnitId, Option<String>>,
    rate: Rate,
}

/// What to do about somebody who has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start the service, which takes it from there.
    Start,
    /// Accept the connection for an instance of its own.
    Accept,
    /// Too many in too short a time: the unit has failed.
    TooOften,
    /// Nothing.
    Wait,
}

impl Socket {
    /// A socket unit that is not started; `None` when the unit is none.
    #[must_use]
    pub fn new(unit: &Arc<Unit>) -> Option<Self> {
        matches!(unit.kind, Kind::Socket(_)).then(|| Self {
            unit: Arc::clone(unit),
            state: State::Dead,
            failure: None,
            accepted: 0,
            connections: BTreeMap::new(),
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
    pub fn directives(&self) -> Option<&Directives> {
        match &self.unit.kind {
            Kind::Socket(socket) => Some(socket),
            _ => None,
        }
    }

    /// Takes the unit's files as they are now; what is listened for changes with the next start.
    pub fn replace_unit(&mut self, unit: &Arc<Unit>) {
        if matches!(unit.kind, Kind::Socket(_)) {
            self.unit = Arc::clone(unit);
        }
    }

    /// The state of the unit.
    #[must_use]
    pub fn active_state(&self) -> ActiveState {
        match self.state {
            State::Dead => ActiveState::Inactive,
            State::Listening | State::Running => ActiveState::Active,
            State::Failed => ActiveState::Failed,
        }
    }

    /// The sub-state, in systemd's words.
    #[must_use]
    pub fn sub_state(&self) -> &'static str {
        match self.state {
            State::Dead => "dead",
            State::Listening => "listening",
            State::Running => "running",
            State::Failed => "failed",
        }
    }

    /// Its descriptors are open. `service_is_up` when the service runs without them: it is not started again.
    pub fn listen(&mut self, service_is_up: bool) {
        self.failure = None;
        self.state = if service_is_up {
            State::Running
        } else {
            State::Listening
        };
    }

    /// A stop.
    pub fn stop(&mut self) {
        self.state = State::Dead;
    }

    /// It cannot go on.
    pub fn fail(&mut self, why: String) {
        self.state = State::Failed;
        self.failure = Some(why);
    }

    /// Somebody has come.
    pub fn comes(&mut self, now_ns: u64) -> Verdict {
        let unit = Arc::clone(&self.unit);
        let (Kind::Socket(directives), State::Listening) = (&unit.kind, self.state) else {
            return Verdict::Wait;
        };
        let (interval, burst) = (
            directives.trigger_limit_interval,
            directives.trigger_limit_burst,
        );
        if !self.rate.takes(now_ns, interval, burst) {
            self.fail(format!(
                "triggered more than {burst} times in {} s",
                interval.as_secs_f64()
            ));
            return Verdict::TooOften;
        }
        if directives.accept {
            return Verdict::Accept;
        }
        self.state = State::Running;
        Verdict::Start
    }

    /// Whether a connection from `source` finds room (`MaxConnections=`, `MaxConnectionsPerSource=`).
    #[must_use]
    pub fn has_room(&self, source: Option<&str>) -> bool {
        let Some(directives) = self.directives() else {
            return false;
        };
        let most = usize::try_from(directives.max_connections).unwrap_or(usize::MAX);
        let from_there = self
            .connections
            .values()
            .filter(|other| other.is_some() && other.as_deref() == source)
            .count();
        let most_from_there = directives
            .max_connections_per_source
            .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        self.connections.len() < most && from_there < most_from_there
    }

    /// The service's state has changed: whether it is down.
    pub fn service_changed(&mut self, is_down: bool, is_up: bool) {
        if self.directives().is_some_and(|d| d.accept) {
            return;
        }
        match self.state {
            State::Running if is_down => self.state = State::Listening,
            State::Listening if is_up => self.state = State::Running,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_unit::{Graph, MemoryStore, SpecifierContext, UnitName};

    fn socket(directives: &str) -> Socket {
        let store = MemoryStore::new().file("/u/x.socket", &format!("[Socket]\n{directives}"));
        let context = SpecifierContext::default();
        let loader = orlop_unit::Loader::new(&["/u"], &store, &context).reading_all();
        let loaded = loader.load(&UnitName::parse("x.socket").unwrap());
        Socket::new(&Arc::new(loaded.unit.expect(directives))).unwrap()
    }

    #[test]
    fn a_service_is_started_once_and_again_when_it_is_down() {
        let mut socket = socket("ListenStream=80\n");
        assert_eq!(socket.comes(0), Verdict::Wait);
        socket.listen(false);
        assert_eq!(socket.comes(0), Verdict::Start);
        assert_eq!(socket.comes(0), Verdict::Wait);
        socket.service_changed(false, true);
        assert_eq!(socket.sub_state(), "running");
        socket.service_changed(true, false);
        assert_eq!(socket.comes(1), Verdict::Start);
    }

    #[test]
    fn a_service_that_does_not_take_what_comes_is_given_up() {
        let mut socket = socket("ListenStream=80\nTriggerLimitBurst=2\n");
        socket.listen(false);
        for at in 0..2 {
            assert_eq!(socket.comes(at), Verdict::Start);
            socket.service_changed(true, false);
        }
        assert_eq!(socket.comes(3), Verdict::TooOften);
        assert_eq!(socket.active_state(), ActiveState::Failed);
    }

    #[test]
    fn connections_find_room_up_to_their_limits() {
        let mut socket =
            socket("ListenStream=80\nAccept=yes\nMaxConnections=3\nMaxConnectionsPerSource=2\n");
        let mut graph = Graph::new();
        socket.listen(false);
        assert_eq!(socket.comes(0), Verdict::Accept);
        for (at, source) in ["a", "a", "b"].into_iter().enumerate() {
            assert!(socket.has_room(Some(source)), "{source}");
            let name = UnitName::parse(&format!("x{at}.service")).unwrap();
            let id = graph.load(&name, &mut |_| orlop_unit::Loaded::default());
            socket.connections.insert(id, Some(source.to_owned()));
            assert!(!socket.has_room(Some("a")) || at == 0);
        }
        assert!(!socket.has_room(Some("c")));
    }
}
