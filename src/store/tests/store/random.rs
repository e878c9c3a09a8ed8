//! Numbers and commands drawn from a seed.

use orlop_store::command::Command;
use orlop_store::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use orlop_store::proto::etcdserverpb::request_op::Request;
use orlop_store::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};

/// SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Draws commands about few keys, so that they meet.
pub(crate) struct Commands<'a> {
    pub(crate) random: &'a mut Random,
    /// The present revision, near which revisions are drawn.
    pub(crate) revision: i64,
    /// The time to live of granted leases, in seconds.
    pub(crate) ttl: i64,
}

impl Commands<'_> {
    pub(crate) fn key(&mut self) -> Vec<u8> {
        const KEYS: [&[u8]; 9] = [
            b"a",
            b"ab",
            b"a\0",
            b"b",
            b"b\xff",
            b"c",
            b"cc",
            b"d",
            b"\xff\xff",
        ];
        KEYS[self.random.below(9) as usize].to_vec()
    }

    fn range(&mut self) -> (Vec<u8>, Vec<u8>) {
        let key = self.key();
        match self.random.below(4) {
            0 => (key, vec![0]),
            1 => (vec![0], vec![0]),
            2 => (key, self.key()),
            _ => (key, Vec::new()),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let length = if self.random.once_in(40) {
            self.random.below(300_000)
        } else {
            self.random.below(20)
        };
        vec![self.random.next() as u8; length as usize]
    }

    fn lease(&mut self) -> i64 {
        if self.random.once_in(2) {
            0
        } else {
            1 + self.random.below(4) as i64
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.random.once_in(10);
        let ignore_lease = self.random.once_in(10);
        PutRequest {
            key: self.key(),
            value: if ignore_value {
                Vec::new()
            } else {
                self.value()
            },
            lease: if ignore_lease { 0 } else { self.lease() },
            prev_kv: self.random.once_in(2),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        let (key, range_end) = self.range();
        DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.random.once_in(2),
        }
    }

    fn near_revision(&mut self) -> i64 {
        if self.random.once_in(2) {
            0
        } else {
            (self.revision + 2 - self.random.below(30) as i64).max(0)
        }
    }

    pub(crate) fn range_request(&mut self) -> RangeRequest {
        let (key, range_end) = self.range();
        let revision = self.near_revision();
        let filtered = self.random.once_in(6);
        let bound = |random: &mut Random, revision: i64| {
            if filtered && random.once_in(2) {
                revision.max(2) - random.below(5) as i64
            } else {
                0
            }
        };
        RangeRequest {
            key,
            range_end,
            limit: if self.random.once_in(2) {
                0
            } else {
                self.random.below(5) as i64
            },
            revision,
            sort_order: self.random.below(3) as i32,
            sort_target: if self.random.once_in(2) {
                0
            } else {
                self.random.below(5) as i32
            },
            serializable: false,
            keys_only: self.random.once_in(5),
            count_only: self.random.once_in(8),
            min_mod_revision: bound(self.random, self.revision - 5),
            max_mod_revision: bound(self.random, self.revision),
            min_create_revision: bound(self.random, self.revision - 5),
            max_create_revision: bound(self.random, self.revision),
        }
    }

    fn compare(&mut self) -> Compare {
        let (key, range_end) = self.range();
        let number = if self.random.once_in(2) {
            self.random.below(3) as i64
        } else {
            self.revision - self.random.below(5) as i64
        };
        let target = CompareTarget::try_from(self.random.below(5) as i32).unwrap_or_default();
        let union = match target {
            CompareTarget::Version => TargetUnion::Version(number),
            CompareTarget::Create => TargetUnion::CreateRevision(number),
            CompareTarget::Mod => TargetUnion::ModRevision(number),
            CompareTarget::Value => TargetUnion::Value(self.value()),
            CompareTarget::Lease => TargetUnion::Lease(number),
        };
        let result = CompareResult::try_from(self.random.below(4) as i32).unwrap_or_default();
        let target_union = Some(union).filter(|_| !self.random.once_in(10));
        Compare {
            result: result as i32,
            target: target as i32,
            key,
            range_end,
            target_union,
        }
    }

    /// A transaction whose writes do not clash: no key is put or deleted twice.
    pub(crate) fn txn(&mut self, depth: u32) -> TxnRequest {
        let compare = (0..self.random.below(3)).map(|_| self.compare()).collect();
        let mut free: Vec<Vec<u8>> = (0..4).map(|i| vec![b'a' + i]).collect();
        let branch = |this: &mut Self, free: &mut Vec<Vec<u8>>| {
            (0..this.random.below(4))
                .filter_map(|_| {
                    let request = match this.random.below(5) {
                        0 | 1 => Request::RequestPut(PutRequest {
                            key: free.pop()?,
                            ..this.put()
                        }),
                        2 => Request::RequestDeleteRange(DeleteRangeRequest {
                            key: free.pop()?,
                            ..DeleteRangeRequest::default()
                        }),
                        3 if depth > 0 => {
                            let mut inner = this.txn(depth - 1);
                            inner.success.retain(is_read);
                            inner.failure.retain(is_read);
                            Request::RequestTxn(inner)
                        }
                        _ => Request::RequestRange(this.range_request()),
                    };
                    Some(RequestOp {
                        request: Some(request),
                    })
                })
                .collect()
        };
        let success = branch(self, &mut free.clone());
        let failure = branch(self, &mut free);
        TxnRequest {
            compare,
            success,
            failure,
        }
    }

    pub(crate) fn command(&mut self) -> Command {
        match self.random.below(20) {
            0..=7 => Command::Put(self.put()),
            8..=11 => Command::DeleteRange(self.delete()),
            12..=15 => Command::Txn(self.txn(2)),
            16 => Command::Compact(CompactionRequest {
                revision: self.near_revision(),
                physical: self.random.once_in(2),
            }),
            17 | 18 => Command::LeaseGrant(LeaseGrantRequest {
                ttl: self.ttl,
                id: 1 + self.random.below(4) as i64,
            }),
            _ => Command::LeaseRevoke(LeaseRevokeRequest {
                id: 1 + self.random.below(4) as i64,
            }),
        }
    }
}

fn is_read(op: &RequestOp) -> bool {
    match &op.request {
        Some(Request::RequestTxn(_) | Request::RequestRange(_)) => true,
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) | None => false,
    }
}
