//! What can be refused without looking at the state.

use super::view::{KeyRange, bounds};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use crate::refused::Refused;

/// Comparisons, or operations in one branch, that a transaction may have (etcd's `--max-txn-ops`).
pub const MAX_TXN_OPERATIONS: usize = 128;
/// Transactions within transactions. etcd has no bound of its own; the operations bound it there in effect.
const MAX_DEPTH: usize = 32;

pub(crate) fn range(request: &RangeRequest) -> Result<(), Refused> {
    if request.key.is_empty() {
        Err(Refused::EmptyKey)
    } else {
        Ok(())
    }
}

pub(crate) fn delete(request: &DeleteRangeRequest) -> Result<(), Refused> {
    if request.key.is_empty() {
        Err(Refused::EmptyKey)
    } else {
        Ok(())
    }
}

pub(crate) fn put(request: &PutRequest) -> Result<(), Refused> {
    if request.key.is_empty() {
        return Err(Refused::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refused::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refused::LeaseProvided);
    }
    Ok(())
}

pub(crate) fn txn(request: &TxnRequest) -> Result<(), Refused> {
    operations(request, MAX_TXN_OPERATIONS, 0)?;
    for branch in [&request.success, &request.failure] {
        writes(branch)?;
    }
    Ok(())
}

fn operations(request: &TxnRequest, allowed: usize, depth: usize) -> Result<(), Refused> {
    let longest = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    if longest > allowed || depth > MAX_DEPTH {
        return Err(Refused::TooManyOperations);
    }
    if request.compare.iter().any(|c| c.key.is_empty()) {
        return Err(Refused::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(r)?,
            Some(Request::RequestPut(r)) => put(r)?,
            Some(Request::RequestDeleteRange(r)) => delete(r)?,
            Some(Request::RequestTxn(r)) => operations(r, allowed - longest, depth + 1)?,
            None => return Err(Refused::KeyNotFound),
        }
    }
    Ok(())
}

/// Whether a transaction writes at all.
pub(crate) fn is_read_only(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(Request::RequestRange(_)) | None => true,
            Some(Request::RequestTxn(inner)) => is_read_only(inner),
            Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
        })
}

/// Whether all reads of a transaction that writes nothing may be old.
pub(crate) fn is_serializable(request: &TxnRequest) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| match &op.request {
            Some(Request::RequestRange(r)) => r.serializable,
            Some(Request::RequestTxn(inner)) => is_serializable(inner),
            _ => true,
        })
}

/// What the operations of one branch put and delete; refuses a key that is put twice, or put and deleted.
///
/// The two branches of a nested transaction exclude each other, so they may share keys, but not with their surroundings.
fn writes(branch: &[RequestOp]) -> Result<Writes<'_>, Refused> {
    let mut all = Writes::default();
    for op in branch {
        if let Some(Request::RequestDeleteRange(r)) = &op.request {
            all.deletes.extend(bounds(&r.key, &r.range_end));
        }
    }
    for op in branch {
        if let Some(Request::RequestTxn(inner)) = &op.request {
            let mut either = writes(&inner.success)?;
            let other = writes(&inner.failure)?;
            either.puts.extend(other.puts);
            either.deletes.extend(other.deletes);
            either.puts.sort_unstable();
            either.puts.dedup();
            let clash =
                either.puts.iter().any(|key| {
                    all.puts.contains(key) || all.deletes.iter().any(|d| within(d, key))
                }) || either
                    .deletes
                    .iter()
                    .any(|d| all.puts.iter().any(|key| within(d, key)));
            if clash {
                return Err(Refused::DuplicateKey);
            }
            all.puts.extend(either.puts);
            all.deletes.extend(either.deletes);
        }
    }
    for op in branch {
        if let Some(Request::RequestPut(r)) = &op.request {
            let key = r.key.as_slice();
            if all.puts.contains(&key) || all.deletes.iter().any(|d| within(d, key)) {
                return Err(Refused::DuplicateKey);
            }
            all.puts.push(key);
        }
    }
    Ok(all)
}

#[derive(Default)]
struct Writes<'a> {
    puts: Vec<&'a [u8]>,
    deletes: Vec<KeyRange<'a>>,
}

fn within(range: &KeyRange<'_>, key: &[u8]) -> bool {
    use std::ops::RangeBounds;
    RangeBounds::<&[u8]>::contains(range, &key)
}
