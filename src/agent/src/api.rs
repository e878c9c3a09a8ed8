//! fleet's HTTP API, version 1, and what fleet lacked.
use std::net::SocketAddr;
use std::sync::Arc;
use crate::agent::{AgentError, Settings, Shared};
pub(crate) struct Faces;
impl Faces { pub(crate) fn addresses(&self) -> Vec<SocketAddr> { Vec::new() } }
pub(crate) async fn bind(_: &Settings) -> Result<Faces, AgentError> { Ok(Faces) }
pub(crate) async fn serve(_: Faces, _: Arc<Shared>) -> Result<(), AgentError> { std::future::pending().await }
