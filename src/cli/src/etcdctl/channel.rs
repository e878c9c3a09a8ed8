//! Requests to the store, by any of its endpoints, with a time limit.

use std::sync::Arc;
use std::time::Duration;

use orlop_agent::connect::Opener;
pub(super) use orlop_agent::connect::{Target, TlsFlags};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::Failure;

/// Pause before the endpoints are tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// The way to a store.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) targets: Vec<Arc<Target>>,
    /// What a short command may take.
    pub(super) timeout: Duration,
    pub(super) dial_timeout: Duration,
    pub(super) keep_alive: (Duration, Duration),
}

/// What etcd's client says when the time is up.
const EXCEEDED: &str = "context deadline exceeded";

impl Client {
    /// The same client for one of the endpoints alone.
    pub(super) fn only(&self, target: &Arc<Target>) -> Self {
        Self {
            targets: vec![Arc::clone(target)],
            ..self.clone()
        }
    }

    async fn dial(&self, target: &Arc<Target>) -> Result<Channel, String> {
        let uri = format!("http://{}", target.authority());
        let endpoint = Endpoint::from_shared(uri).map_err(|err| err.to_string())?;
        let endpoint = endpoint
            .http2_keep_alive_interval(self.keep_alive.0.max(Duration::from_secs(10)))
            .keep_alive_timeout(self.keep_alive.1);
        let dialled = endpoint.connect_with_connector(Opener(Arc::clone(target)));
        match tokio::time::timeout(self.dial_timeout, dialled).await {
            Err(_) => Err(format!("no connection in {:?}", self.dial_timeout)),
            Ok(Err(err)) => {
                let mut cause: &dyn std::error::Error = &err;
                while let Some(next) = cause.source() {
                    cause = next;
                }
                Err(cause.to_string())
            }
            Ok(Ok(channel)) => Ok(channel),
        }
    }

    /// A connection to the first endpoint that takes one; asks until there is one. `why` is told why there is none yet.
    pub(super) async fn channel(&self, mut why: impl FnMut(String)) -> Channel {
        loop {
            for target in &self.targets {
                match self.dial(target).await {
                    Ok(channel) => return channel,
                    Err(err) => why(format!("{}: {err}", target.name)),
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// A connection that may be waited for as long as it takes; what is in the way is said once.
    pub(super) async fn patient_channel(&self) -> Channel {
        let mut said = false;
        let why = |why| {
            if !std::mem::replace(&mut said, true) {
                eprintln!("etcdctl: {why}; trying again");
            }
        };
        self.channel(why).await
    }

    /// Asks, once, within the time of a command.
    pub(super) async fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, String> {
        self.ask_for(self.timeout, ask).await
    }

    /// Asks within a time of its own.
    pub(super) async fn ask_for<T>(
        &self,
        timeout: Duration,
        ask: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, String> {
        let mut last = None;
        let asked = async {
            let channel = self.channel(|why| last = Some(why)).await;
            last = None;
            ask(channel).await
        };
        let outcome = tokio::time::timeout(timeout, asked).await;
        match outcome {
            Err(_) => {
                if let Some(why) = last {
                    eprintln!("etcdctl: {why}");
                }
                Err(EXCEEDED.to_owned())
            }
            Ok(answer) => answer
                .map(tonic::Response::into_inner)
                .map_err(|status| text_of(&status)),
        }
    }
}

/// What etcd's client says of an answer.
pub(super) fn text_of(status: &Status) -> String {
    let message = status.message();
    match status.code() {
        _ if message.starts_with("etcdserver: ") => message.to_owned(),
        Code::DeadlineExceeded => EXCEEDED.to_owned(),
        code => format!("rpc error: code = {code:?} desc = {message}"),
    }
}

impl Failure {
    /// An endpoint or a certificate cannot be used.
    pub(super) fn bad_arguments(message: impl Into<String>) -> Self {
        Self::new(128, message)
    }
}
