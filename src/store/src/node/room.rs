//! Room: on the disk, in the log, in the state; checkpoints, compaction, and what happens when there is none.

use std::time::Duration;

use super::{AutoCompaction, Node, NodeError, Output, Reply};
use crate::command::Command;
use crate::consensus::Consensus;
use crate::peer::Proposal;
use crate::proto::etcdserverpb::CompactionRequest;

/// Log written since the last checkpoint that makes the next one due.
const CHECKPOINT_BYTES: usize = 4 << 20;
/// Time after which a checkpoint that found no room is tried again.
const RETRY_TIME: Duration = Duration::from_secs(1);
/// Part of a segment in the log that only deletions, compactions and the member's own entries may use.
const LOG_RESERVE_PART: usize = 16;
/// Part of a segment in the log that only the member's own entries may use.
const OWN_RESERVE_PART: usize = 64;
/// Free space below which nothing that grows is taken: what a checkpoint may have to write.
const DISK_RESERVE_BYTES: u64 = 16 << 20;
/// Records that a compaction looks at in one step.
const COMPACT_RECORDS: usize = 1000;
/// Entries in memory, in bytes, that are kept for members that lag behind.
const KEEP_BYTES: usize = 8 << 20;
/// The same while a state is on its way to a member, which will want what came after it.
const KEEP_SENDING_BYTES: usize = 64 << 20;

/// Ticks between two looks at what can be given up.
const LOOK_TICKS: u64 = 10;
/// Samples of the age of revisions within the time that they are kept.
const AGE_SAMPLES: u32 = 10;

impl<T> Node<T> {
    /// Whether the log has room for what the member itself must write.
    pub(super) fn has_own_room(&self) -> bool {
        let reserve = self.options.segment_bytes / OWN_RESERVE_PART;
        self.wal.room_bytes() > self.queued_bytes + reserve / 2
    }

    /// Room in the log that requests must leave.
    pub(super) fn reserve_bytes(&self, grows: bool) -> usize {
        let part = if grows {
            LOG_RESERVE_PART
        } else {
            OWN_RESERVE_PART
        };
        self.options.segment_bytes / part
    }

    /// The database broke off for want of room: go back to what is durable and apply the log again. No one notices,
    /// since the same entries give the same state.
    pub(super) fn recover(&mut self) -> Result<(), NodeError> {
        log::warn!("no room left for the state: applying the log again from the last checkpoint");
        let (target, _) = self.state.applied;
        self.full = true;
        self.broke_off = Some(self.now);
        self.state.reopen()?;
        let entries = self.consensus.entries_after(self.state.applied.0, target);
        self.state.apply(&entries)?;
        self.state.commit()?;
        Ok(())
    }

    /// Commits what was applied, before the member itself reads it.
    pub(super) fn commit(&mut self) -> Result<(), NodeError> {
        match self.state.commit() {
            Err(err) if err.is_full() => self.recover(),
            other => Ok(other?),
        }
    }

    pub(super) fn compact(&mut self) -> Result<(), NodeError> {
        let before = self.state.live_bytes;
        match self.state.compact_some(COMPACT_RECORDS) {
            Err(err) if err.is_full() => self.recover()?,
            other => other?,
        }
        // What is removed is written with the next checkpoint, as what is added is: one for all of it would keep puts waiting.
        let freed = before.saturating_sub(self.state.live_bytes);
        self.unsaved_bytes += usize::try_from(freed).unwrap_or(0);
        self.unsaved_since.get_or_insert(self.now);
        let done = self.state.compacted;
        for (revision, ticket, answer) in std::mem::take(&mut self.compacting) {
            if revision <= done {
                self.outputs.push(Output::Reply {
                    ticket,
                    result: Ok(Reply::Answer(answer)),
                });
            } else {
                self.compacting.push((revision, ticket, answer));
            }
        }
        Ok(())
    }

    fn is_over_quota(&self) -> bool {
        u64::try_from(self.state.live_bytes).unwrap_or(0) > self.options.quota_bytes
    }

    /// As the leader, compacts what is old enough; over the quota all that is not the present.
    pub(super) fn give_up_old(&mut self) {
        if self.serving_term.is_none() {
            self.ages.clear();
            return;
        }
        if !self.ticks.is_multiple_of(LOOK_TICKS) || self.state.compacts() {
            return;
        }
        let revision = self.state.revision;
        let target = match self.options.auto_compaction {
            AutoCompaction::Never => return,
            _ if self.is_over_quota() => revision,
            AutoCompaction::Count(count) => revision - count,
            AutoCompaction::Age(age) => {
                let newest = self.ages.back().map(|(at, _)| *at);
                if newest.is_none_or(|at| self.now.saturating_sub(at) >= age / AGE_SAMPLES) {
                    self.ages.push_back((self.now, revision));
                }
                let mut old = 0;
                while let Some((at, revision)) = self.ages.front().copied()
                    && self.now.saturating_sub(at) >= age
                {
                    old = revision;
                    self.ages.pop_front();
                }
                old
            }
        };
        // Each compaction is an entry of the log: one for a few revisions would be a waste.
        let enough = match self.options.auto_compaction {
            AutoCompaction::Count(count) if !self.is_over_quota() => (count / 10).max(1),
            _ => 1,
        };
        if target - self.state.compact_revision >= enough && !self.has_own_request() {
            let revision = target;
            let physical = false;
            let request = CompactionRequest { revision, physical };
            self.ask_for_own(Proposal::Command(Command::Compact(request)));
        }
    }

    pub(super) fn is_short_of_room(&self) -> Result<bool, NodeError> {
        Ok(self.disk.free_bytes().map_err(NodeError::Free)? < DISK_RESERVE_BYTES)
    }

    pub(super) fn look_for_room(&mut self) -> Result<(), NodeError> {
        let full = self.is_over_quota()
            || self.broke_off.is_some()
            || self.is_short_of_room()?
            || !self.wal.prepare()?;
        if full != self.full {
            if full {
                log::warn!(
                    "no room: writes are refused until there is ({} bytes of records)",
                    self.state.live_bytes
                );
            } else {
                log::info!("there is room again: writes are taken");
            }
        }
        self.full = full;
        Ok(())
    }

    pub(super) fn checkpoint_if_due(&mut self) -> Result<(), NodeError> {
        let after = |since: Option<Duration>, time| {
            since.is_some_and(|since| self.now.saturating_sub(since) >= time)
        };
        let due = match self.broke_off {
            Some(since) => after(Some(since), RETRY_TIME),
            None => {
                after(self.unsaved_since, self.options.checkpoint_time)
                    || self.unsaved_bytes >= CHECKPOINT_BYTES
            }
        };
        let ahead = self.state.is_saving() && self.unsaved_bytes < 2 * CHECKPOINT_BYTES;
        if !due || ahead || !self.state.is_dirty() || self.is_short_of_room()? {
            return Ok(());
        }
        // Where the disk is slower than what is written, whoever writes has to wait for it.
        self.settle()?;
        self.checkpoint()?;
        if self.broke_off.is_some() {
            // Whoever waits for room wants to know at once.
            self.settle()?;
        }
        Ok(())
    }

    /// Begins a checkpoint.
    pub(super) fn checkpoint(&mut self) -> Result<(), NodeError> {
        match self.state.checkpoint() {
            Err(err) if err.is_full() => return self.recover(),
            other => other?,
        }
        self.unsaved_bytes = 0;
        self.unsaved_since = None;
        Ok(())
    }

    /// Waits until the checkpoint that has begun is durable.
    pub(super) fn settle(&mut self) -> Result<(), NodeError> {
        match self.state.settle() {
            Err(err) if err.is_full() => return self.recover(),
            other => other?,
        }
        self.follow_checkpoint()
    }

    /// Gives up the log that is not needed any more once a checkpoint is durable.
    pub(super) fn follow_checkpoint(&mut self) -> Result<(), NodeError> {
        match self.state.saved() {
            Err(err) if err.is_full() => return self.recover(),
            Err(err) => return Err(err.into()),
            Ok(false) => return Ok(()),
            Ok(true) => {}
        }
        if self.broke_off.take().is_some() {
            self.look_for_room()?;
        }
        let durable = self.state.durable.0;
        let forget = self.not_needed(durable);
        self.consensus.forget(forget);
        self.wal.trim(forget)?;
        Ok(())
    }

    /// Up to which entry the log can be forgotten, when the state up to `durable` is.
    fn not_needed(&self, durable: u64) -> u64 {
        let Some((first, last)) = self.consensus.kept().filter(|_| !self.is_alone()) else {
            return durable;
        };
        let bytes = self.consensus.kept_bytes();
        let sending = self.sending.values().map(|s| s.mark().index).min();
        let limit = if sending.is_some() {
            KEEP_SENDING_BYTES
        } else {
            KEEP_BYTES
        };
        // Entries are taken to be of like size: this is about memory, not about being right.
        let most = if bytes > limit {
            (last - first + 1) * limit as u64 / bytes as u64
        } else {
            u64::MAX
        };
        let wanted = match sending {
            Some(mark) => self.options.keep_entries.max(last.saturating_sub(mark)),
            None => self.options.keep_entries,
        };
        durable.min(last.saturating_sub(wanted.min(most)))
    }
}
