//! The messages of the wire, generated from `proto/` (see `tests/generated.rs`).
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated code; the meaning of each field stands in proto/"
)]

#[rustfmt::skip]
#[path = "proto/etcdserverpb.rs"]
pub mod etcdserverpb;
#[rustfmt::skip]
#[path = "proto/mvccpb.rs"]
pub mod mvccpb;
/// The health protocol of gRPC.
#[rustfmt::skip]
#[path = "proto/grpc.health.v1.rs"]
pub mod health;
#[rustfmt::skip]
#[path = "proto/v3lockpb.rs"]
pub mod v3lockpb;
#[rustfmt::skip]
#[path = "proto/v3electionpb.rs"]
pub mod v3electionpb;
