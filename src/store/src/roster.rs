//! Who takes part: the members' records, those that were removed, and the alarms.

use prost::Message;

use crate::bytes::{Ended, Reader, put_bytes, put_ids};
use crate::command::Change;
use crate::consensus::{MemberChange, Members};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, Member, MemberListResponse,
};
use crate::refused::Refused;

/// Voters beyond which no member is promoted.
pub const MAX_VOTERS: usize = 5;
/// Learners at one time.
pub const MAX_LEARNERS: usize = 4;
/// Removed members that are remembered, so that they can be told.
const MAX_REMOVED: usize = 1000;

/// The members and their alarms. Same changes, same roster, on every member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Roster {
    /// By id.
    pub members: Vec<Member>,
    /// Learners that get a vote by themselves once they have caught up.
    pub promote: Vec<u64>,
    /// Ids that will never be used again, oldest first.
    pub removed: Vec<u64>,
    /// Raised alarms: member, or 0 for the cluster as a whole, and type.
    pub alarms: Vec<(u64, i32)>,
}

impl Roster {
    /// Of the first members.
    pub fn new(mut members: Vec<Member>) -> Self {
        members.sort_unstable_by_key(|m| m.id);
        Self {
            members,
            ..Self::default()
        }
    }

    /// Who votes and who follows.
    pub fn ids(&self) -> Members {
        let ids = |learner: bool| {
            self.members
                .iter()
                .filter(|m| m.is_learner == learner)
                .map(|m| m.id)
                .collect()
        };
        Members {
            voters: ids(false),
            learners: ids(true),
        }
    }

    /// The record of a member.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|m| m.id == id)
    }

    fn list(&self) -> MemberListResponse {
        MemberListResponse {
            header: None,
            members: self.members.clone(),
        }
    }

    /// The record of the member on a machine.
    pub fn on_machine(&self, machine: &str) -> Option<&Member> {
        self.members
            .iter()
            .find(|m| !machine.is_empty() && m.machine == machine)
    }

    /// Those that have a vote, or will get one by themselves.
    pub fn future_voters(&self) -> usize {
        let voter = |m: &&Member| !m.is_learner || self.promote.contains(&m.id);
        self.members.iter().filter(voter).count()
    }

    /// Whether another member has one of the URLs of `said` for good. Members that are known by their machines say
    /// themselves where they are: of two such, the one that said it last is right.
    fn is_taken(&self, said: &Member) -> bool {
        self.members
            .iter()
            .filter(|m| m.id != said.id && (m.machine.is_empty() || said.machine.is_empty()))
            .any(|m| m.peer_ur_ls.iter().any(|url| said.peer_ur_ls.contains(url)))
    }

    /// Takes the URLs of `said` from the other members that are known by their machines.
    fn take_urls(&mut self, said: &Member) {
        if said.machine.is_empty() {
            return;
        }
        for member in self.members.iter_mut().filter(|m| m.id != said.id) {
            if !member.machine.is_empty() {
                member
                    .peer_ur_ls
                    .retain(|url| !said.peer_ur_ls.contains(url));
            }
        }
    }

    /// Whether a change can be made.
    ///
    /// # Errors
    /// What etcd refuses it with.
    pub fn check(&self, change: &Change) -> Result<(), Refused> {
        let ids = self.ids();
        match change.kind {
            MemberChange::AddLearner(id) => {
                if self.member(id).is_some() || self.removed.contains(&id) {
                    return Err(Refused::MemberExists);
                }
                let said = Member {
                    id,
                    ..change.member.clone()
                };
                if self.is_taken(&said) {
                    return Err(Refused::PeerUrlExists);
                }
                if ids.learners.len() >= MAX_LEARNERS {
                    return Err(Refused::TooManyLearners);
                }
            }
            MemberChange::Promote(id) => {
                let member = self.member(id).ok_or(Refused::MemberNotFound)?;
                if !member.is_learner {
                    return Err(Refused::NotLearner);
                }
            }
            MemberChange::Remove(id) => {
                self.member(id).ok_or(Refused::MemberNotFound)?;
                if ids.voters == [id] {
                    return Err(Refused::NotEnoughStarted);
                }
            }
        }
        Ok(())
    }

    /// Makes a change.
    ///
    /// # Errors
    /// As [`Roster::check`]; nothing has changed then.
    pub fn apply(&mut self, change: &Change) -> Result<MemberListResponse, Refused> {
        self.check(change)?;
        match change.kind {
            MemberChange::AddLearner(id) => {
                let member = Member {
                    id,
                    is_learner: true,
                    ..change.member.clone()
                };
                self.take_urls(&member);
                self.members.push(member);
                self.members.sort_unstable_by_key(|m| m.id);
                if change.promote {
                    self.promote.push(id);
                }
            }
            MemberChange::Promote(id) => {
                for member in self.members.iter_mut().filter(|m| m.id == id) {
                    member.is_learner = false;
                }
                self.promote.retain(|learner| *learner != id);
            }
            MemberChange::Remove(id) => {
                self.members.retain(|m| m.id != id);
                self.promote.retain(|learner| *learner != id);
                self.alarms.retain(|(member, _)| *member != id);
                self.removed.push(id);
                if self.removed.len() > MAX_REMOVED {
                    self.removed.remove(0);
                }
            }
        }
        Ok(self.list())
    }

    /// A member says its name and where its clients are served.
    ///
    /// # Errors
    /// There is no such member.
    pub fn publish(&mut self, said: &Member) -> Result<MemberListResponse, Refused> {
        let member = self.members.iter_mut().find(|m| m.id == said.id);
        let member = member.ok_or(Refused::MemberNotFound)?;
        member.name.clone_from(&said.name);
        member.client_ur_ls.clone_from(&said.client_ur_ls);
        Ok(self.list())
    }

    /// A member is reached at other URLs; it may say on which machine it is.
    ///
    /// # Errors
    /// There is no such member, or another one has such a URL.
    pub fn move_peer(&mut self, said: &Member) -> Result<MemberListResponse, Refused> {
        if self.member(said.id).is_none() {
            return Err(Refused::MemberNotFound);
        }
        if self.is_taken(said) {
            return Err(Refused::PeerUrlExists);
        }
        self.take_urls(said);
        for member in self.members.iter_mut().filter(|m| m.id == said.id) {
            member.peer_ur_ls.clone_from(&said.peer_ur_ls);
            if !said.machine.is_empty() {
                member.machine.clone_from(&said.machine);
            }
        }
        Ok(self.list())
    }

    /// Raises, clears or tells alarms. Member 0 stands for the cluster as a whole.
    pub fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let kind = request.alarm();
        let fits = |(member, alarm): &(u64, i32)| {
            (request.member_id == 0 || *member == request.member_id)
                && (kind == AlarmType::None || *alarm == kind as i32)
        };
        let told: Vec<(u64, i32)> = match request.action() {
            AlarmAction::Get => self.alarms.iter().filter(|a| fits(a)).copied().collect(),
            AlarmAction::Activate => {
                let raised = (request.member_id, kind as i32);
                // Whoever asks for others' alarms fills no room with them.
                let is_known = request.member_id == 0 || self.member(request.member_id).is_some();
                if !self.alarms.contains(&raised) && is_known {
                    self.alarms.push(raised);
                    self.alarms.sort_unstable();
                }
                vec![raised]
            }
            AlarmAction::Deactivate => {
                let (cleared, rest) = self.alarms.iter().partition(|a| fits(a));
                self.alarms = rest;
                cleared
            }
        };
        AlarmResponse {
            header: None,
            alarms: told
                .into_iter()
                .map(|(member_id, alarm)| AlarmMember { member_id, alarm })
                .collect(),
        }
    }

    /// Its bytes (`docs/store-format.md`, "State").
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&(self.members.len() as u32).to_le_bytes());
        for member in &self.members {
            put_bytes(&member.encode_to_vec(), &mut out);
        }
        put_ids(&self.promote, &mut out);
        put_ids(&self.removed, &mut out);
        let (members, kinds): (Vec<u64>, Vec<u64>) = self
            .alarms
            .iter()
            .map(|(member, kind)| (*member, u64::from(kind.unsigned_abs())))
            .unzip();
        put_ids(&members, &mut out);
        put_ids(&kinds, &mut out);
        out
    }

    /// The inverse of [`Roster::encode`]; `None` for other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read(&mut Reader(bytes)).ok().flatten()
    }

    fn read(reader: &mut Reader<'_>) -> Result<Option<Self>, Ended> {
        let mut members = Vec::new();
        for _ in 0..reader.u32()? {
            let Ok(member) = Member::decode(reader.bytes()?) else {
                return Ok(None);
            };
            members.push(member);
        }
        let (promote, removed) = (reader.ids()?, reader.ids()?);
        let (of, kinds) = (reader.ids()?, reader.ids()?);
        let alarms = of
            .into_iter()
            .zip(kinds.into_iter().map(|k| i32::try_from(k).unwrap_or(0)))
            .collect();
        Ok(reader.0.is_empty().then_some(Self {
            members,
            promote,
            removed,
            alarms,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(roster: &mut Roster, action: AlarmAction, member_id: u64) -> Vec<u64> {
        let request = AlarmRequest {
            action: action as i32,
            member_id,
            alarm: AlarmType::Nospace as i32,
        };
        let told = roster.alarm(&request).alarms;
        told.iter().map(|alarm| alarm.member_id).collect()
    }

    #[test]
    fn alarms_are_of_members_or_of_the_whole_cluster() {
        let member = Member {
            id: 7,
            ..Member::default()
        };
        let mut roster = Roster {
            members: vec![member],
            ..Roster::default()
        };
        for id in [0, 7, 8] {
            assert_eq!(ask(&mut roster, AlarmAction::Activate, id), [id]);
        }
        assert_eq!(
            ask(&mut roster, AlarmAction::Get, 0),
            [0, 7],
            "8 is no member"
        );
        assert_eq!(ask(&mut roster, AlarmAction::Deactivate, 7), [7]);
        assert_eq!(ask(&mut roster, AlarmAction::Deactivate, 0), [0]);
        assert!(roster.alarms.is_empty());
    }
}
