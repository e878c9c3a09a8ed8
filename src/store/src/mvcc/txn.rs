//! Transactions: which branch is taken, and those that write nothing.

use redb::ReadableTable;

use super::table::Pointer;
use super::view::{ReadError, View};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response;
use crate::proto::etcdserverpb::{RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse};
use crate::state::StateError;

/// The operations of the branch that was taken.
pub(super) fn branch(request: &TxnRequest, taken: Option<bool>) -> &[RequestOp] {
    if taken == Some(true) {
        &request.success
    } else {
        &request.failure
    }
}

/// Evaluates a transaction's comparisons and those of the transactions in the branch that they choose, depth first.
pub(super) fn choose<C, H, R>(
    view: &View<'_, C, H, R>,
    request: &TxnRequest,
    path: &mut Vec<bool>,
) -> Result<(), StateError>
where
    C: ReadableTable<&'static [u8], Pointer>,
    H: ReadableTable<(&'static [u8], i64, i64), ()>,
    R: ReadableTable<(i64, i64), &'static [u8]>,
{
    let mut holds = true;
    for compare in &request.compare {
        holds = view.compare(compare)?;
        if !holds {
            break;
        }
    }
    path.push(holds);
    for op in branch(request, Some(holds)) {
        if let Some(Request::RequestTxn(inner)) = &op.request {
            choose(view, inner, path)?;
        }
    }
    Ok(())
}

/// Answers a transaction that writes nothing.
pub(crate) fn read_txn<C, H, R>(
    view: &View<'_, C, H, R>,
    request: &TxnRequest,
) -> Result<TxnResponse, ReadError>
where
    C: ReadableTable<&'static [u8], Pointer>,
    H: ReadableTable<(&'static [u8], i64, i64), ()>,
    R: ReadableTable<(i64, i64), &'static [u8]>,
{
    let mut path = Vec::new();
    choose(view, request, &mut path)?;
    read_branch(view, request, &mut path.into_iter())
}

fn read_branch<C, H, R>(
    view: &View<'_, C, H, R>,
    request: &TxnRequest,
    path: &mut dyn Iterator<Item = bool>,
) -> Result<TxnResponse, ReadError>
where
    C: ReadableTable<&'static [u8], Pointer>,
    H: ReadableTable<(&'static [u8], i64, i64), ()>,
    R: ReadableTable<(i64, i64), &'static [u8]>,
{
    let taken = path.next();
    let mut responses = Vec::new();
    for op in branch(request, taken) {
        let response = match &op.request {
            Some(Request::RequestRange(r)) => Response::ResponseRange(view.range(r)?),
            Some(Request::RequestTxn(r)) => Response::ResponseTxn(read_branch(view, r, path)?),
            _ => continue,
        };
        responses.push(ResponseOp {
            response: Some(response),
        });
    }
    let header = Some(ResponseHeader {
        revision: view.revision,
        ..ResponseHeader::default()
    });
    Ok(TxnResponse {
        header,
        succeeded: taken == Some(true),
        responses,
    })
}
