//! `/metrics`: where the member stands, under etcd's names (Prometheus' text format 0.0.4).

use std::fmt::Write as _;

use super::ETCD_VERSION;
use super::shared::Shared;
use crate::state::STATE_FILE;

/// The metrics as text.
pub(super) fn text(shared: &Shared) -> String {
    let status = shared.status();
    let standing = status.standing;
    let roster = shared.roster();
    let size = std::fs::metadata(shared.data_dir.join(STATE_FILE)).map_or(0, |m| m.len());
    let learner = roster
        .member(shared.owner.member)
        .is_some_and(|m| m.is_learner);
    let (voters, learners) = {
        let ids = roster.ids();
        (ids.voters.len(), ids.learners.len())
    };
    // Name, type, what it means, value.
    let all: [(&str, &str, &str, i64); 15] = [
        (
            "etcd_server_has_leader",
            "gauge",
            "Whether the member knows a leader.",
            i64::from(standing.leader != 0),
        ),
        (
            "etcd_server_is_leader",
            "gauge",
            "Whether the member leads.",
            i64::from(standing.leads),
        ),
        (
            "etcd_server_is_learner",
            "gauge",
            "Whether the member has no vote.",
            i64::from(learner),
        ),
        (
            "etcd_server_health_success",
            "gauge",
            "Whether the member takes requests.",
            i64::from(status.serves),
        ),
        (
            "etcd_server_proposals_committed_total",
            "gauge",
            "Last entry that is decided.",
            standing.commit as i64,
        ),
        (
            "etcd_server_proposals_applied_total",
            "gauge",
            "Last entry that is in the state.",
            status.applied_index as i64,
        ),
        (
            "etcd_server_proposals_pending",
            "gauge",
            "Requests that wait for an answer.",
            shared.waiting() as i64,
        ),
        (
            "etcd_server_raft_term",
            "gauge",
            "Term of consensus.",
            standing.term as i64,
        ),
        (
            "etcd_mvcc_db_total_size_in_bytes",
            "gauge",
            "Size of the state's file.",
            size as i64,
        ),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "gauge",
            "Bytes of the state's records.",
            status.live_bytes,
        ),
        (
            "etcd_debugging_mvcc_current_revision",
            "gauge",
            "Present revision.",
            *shared.revision.borrow(),
        ),
        (
            "orlop_store_full",
            "gauge",
            "Whether writes are refused for want of room.",
            i64::from(status.full),
        ),
        (
            "orlop_store_voters",
            "gauge",
            "Members with a vote.",
            voters as i64,
        ),
        (
            "orlop_store_learners",
            "gauge",
            "Members without a vote.",
            learners as i64,
        ),
        (
            "orlop_store_alarms",
            "gauge",
            "Alarms that are raised.",
            roster.alarms.len() as i64,
        ),
    ];
    let mut out = String::new();
    for (name, kind, help, value) in all {
        // Writing into a string cannot fail.
        let _ = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
        );
    }
    let _ = writeln!(
        out,
        "# HELP etcd_server_version Which version is running.\n# TYPE etcd_server_version gauge\n\
         etcd_server_version{{server_version=\"{ETCD_VERSION}\"}} 1"
    );
    out
}
