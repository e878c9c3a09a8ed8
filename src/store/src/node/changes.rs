//! Who takes part: changes, promotion of learners that have caught up, alarms of members without room, handing leadership on.

use super::{Node, NodeError, Output, Reply};
use crate::command::{Change, Command};
use crate::consensus::{BadChange, Consensus, MemberChange};
use crate::peer::{Proposal, Refusal};
use crate::proto::etcdserverpb::alarm_request::AlarmAction;
use crate::proto::etcdserverpb::{AlarmRequest, AlarmType, Member};
use crate::refused::Refused;
use crate::roster::MAX_VOTERS;

/// Ticks between two looks at learners and alarms.
const LOOK_TICKS: u64 = 5;
/// A learner has caught up when it has nine tenths of the leader's log, as in etcd.
const CAUGHT_UP_PERCENT: u64 = 90;

impl<T> Node<T> {
    /// Lets consensus know of a change that the state has made.
    pub(super) fn follow_change(&mut self, change: MemberChange) -> Result<(), NodeError> {
        let members = self.consensus.apply_change(change)?;
        if let MemberChange::Remove(id) = change {
            self.sending.remove(&id);
            self.removed |= id == self.owner.member;
        }
        // The state may be some changes of the same batch ahead; those come next.
        let known = |id: &u64| members.voters.contains(id) || members.learners.contains(id);
        let (MemberChange::AddLearner(id) | MemberChange::Promote(id)) = change else {
            return Ok(());
        };
        if known(&id) {
            Ok(())
        } else {
            let reason = "consensus did not take it".to_owned();
            Err(BadChange { change, reason }.into())
        }
    }

    /// Whether the leader can make a change without endangering the cluster.
    pub(super) fn check_change(&self, change: &Change) -> Result<(), Refusal> {
        let progress = self.consensus.progress();
        match change.kind {
            MemberChange::AddLearner(_) => Ok(()),
            MemberChange::Promote(id) => {
                let last = self.consensus.last_index();
                let ready = progress.iter().any(|p| {
                    p.member == id && p.active && p.matched * 100 >= last * CAUGHT_UP_PERCENT
                });
                // An id that is no learner is refused when it comes out of the log.
                let learner = self.state.roster.member(id).is_some_and(|m| m.is_learner);
                if ready || !learner {
                    Ok(())
                } else {
                    Err(Refusal::LearnerNotReady)
                }
            }
            MemberChange::Remove(id) => {
                let mut left = self.state.roster.ids().voters;
                left.retain(|voter| *voter != id);
                let there = left
                    .iter()
                    .filter(|voter| {
                        **voter == self.owner.member
                            || progress.iter().any(|p| p.member == **voter && p.active)
                    })
                    .count();
                if there > left.len() / 2 || left.is_empty() {
                    Ok(())
                } else {
                    Err(Refusal::NotEnoughStarted)
                }
            }
        }
    }

    pub(super) fn transfer(&mut self, to: u64, ticket: T) {
        let standing = self.consensus.standing();
        let is_voter = self.state.roster.ids().voters.contains(&to);
        let result = if !standing.leads {
            Err(Refused::NotLeader)
        } else if !is_voter {
            Err(Refused::BadTransferee)
        } else if to == self.owner.member {
            Ok(Reply::Transferred)
        } else if self.transferring.is_some() {
            Err(Refused::TransferTimedOut)
        } else {
            self.consensus.transfer(to);
            self.transferring = Some((to, self.now, ticket));
            return;
        };
        self.outputs.push(Output::Reply { ticket, result });
    }

    pub(super) fn tick_changes(&mut self) {
        let standing = self.consensus.standing();
        if let Some((to, since, ticket)) = self.transferring.take() {
            if standing.leader == to {
                let result = Ok(Reply::Transferred);
                self.outputs.push(Output::Reply { ticket, result });
            } else if self.now.saturating_sub(since) > self.election_time() * 2 {
                let result = Err(Refused::TransferTimedOut);
                self.outputs.push(Output::Reply { ticket, result });
            } else {
                self.transferring = Some((to, since, ticket));
            }
        }
        if !self.ticks.is_multiple_of(LOOK_TICKS) {
            return;
        }
        if self.serving_term.is_some() {
            self.promote_one();
        }
        self.tell_alarm();
    }

    /// Gives a vote to the first learner that wants one and has caught up.
    fn promote_one(&mut self) {
        let roster = &self.state.roster;
        if roster.promote.is_empty() || roster.ids().voters.len() >= MAX_VOTERS {
            return;
        }
        let next = roster.promote.iter().copied().map(|id| Change {
            kind: MemberChange::Promote(id),
            promote: false,
            member: Member::default(),
        });
        let ready: Option<Change> = next
            .into_iter()
            .find(|change| self.check_change(change).is_ok());
        if let Some(change) = ready {
            self.ask_for_own(Proposal::Change(change));
        }
    }

    /// Raises this member's alarm in the log when it is full, and clears it when there is room.
    fn tell_alarm(&mut self) {
        let this = self.owner.member;
        let raised = (this, AlarmType::Nospace as i32);
        let is_raised = self.state.roster.alarms.contains(&raised);
        if self.full == is_raised || self.has_own_request() || (self.is_alone() && !is_raised) {
            return;
        }
        let action = if self.full {
            AlarmAction::Activate
        } else {
            AlarmAction::Deactivate
        };
        self.ask_for_own(Proposal::Command(Command::Alarm(AlarmRequest {
            action: action as i32,
            member_id: this,
            alarm: AlarmType::Nospace as i32,
        })));
    }
}
