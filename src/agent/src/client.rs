//! The store, by etcd's v3 API: what the agent needs of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use orlop_store::proto::etcdserverpb as pb;
use orlop_store::proto::mvccpb::{Event, KeyValue};
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::request_op::Request;
use pb::watch_client::WatchClient;
use tokio_stream::StreamExt as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::connect::{HTTP2, Opener, Target, TlsFlags};
use crate::metrics::Counts;

/// How long a request may take; etcd's own clients take 5 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection on which nothing is heard for this long is asked, and given up when it stays silent as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Keys in one answer.
const PAGE: i64 = 1000;
/// The longest message that is read.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// An endpoint is none, or its certificates cannot be used.
    #[error("the store's endpoint {endpoint}: {reason}")]
    Endpoint {
        /// Which.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// There is no endpoint.
    #[error("no endpoint of the store is given")]
    NoEndpoint,
    /// A request failed.
    #[error("{operation} at {endpoint}: {}", .status.message())]
    Request {
        /// Which.
        operation: &'static str,
        /// Where.
        endpoint: String,
        /// The answer.
        status: Box<Status>,
    },
    /// No answer came in time.
    #[error("{operation} at {endpoint}: no answer in {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout {
        /// Which.
        operation: &'static str,
        /// Where.
        endpoint: String,
    },
    /// A watch has ended.
    #[error("the watch at {endpoint} has ended: {reason}")]
    Watch {
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug)]
pub enum Condition {
    /// The key is not there.
    Absent(String),
    /// The key is there and was made at this revision.
    CreatedAt(String, i64),
    /// The key has this value.
    Value(String, String),
}

/// A write.
#[derive(Clone, Debug)]
pub enum Write {
    /// Sets a key, bound to a lease unless that is 0.
    Put(String, String, i64),
    /// Deletes a key.
    Delete(String),
}

/// A client that goes on to the next endpoint when one does not answer.
#[derive(Debug)]
pub struct Client {
    channels: Vec<(String, Channel)>,
    current: Mutex<usize>,
    requests: Counts,
}

/// The changes of keys with a prefix.
#[derive(Debug)]
pub struct Watch {
    endpoint: String,
    answers: Streaming<pb::WatchResponse>,
    // The stream of requests ends when this is dropped, and the watch with it.
    _requests: tokio::sync::mpsc::Sender<pb::WatchRequest>,
}

impl Client {
    /// Takes the store's client URLs, and the certificates for those at `https://`; connections are made when they are
    /// needed. Must be called within a runtime.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`], [`ClientError::NoEndpoint`].
    pub fn new(endpoints: &[String], tls: &TlsFlags) -> Result<Self, ClientError> {
        let channels = endpoints
            .iter()
            .map(|url| {
                let wrong = |reason| ClientError::Endpoint {
                    endpoint: url.clone(),
                    reason,
                };
                let target = Target::new(url, tls, HTTP2).map_err(wrong)?;
                let endpoint = Endpoint::from_shared(format!("http://{}", target.authority()))
                    .map_err(|err| wrong(err.to_string()))?
                    .connect_timeout(CONNECT_TIMEOUT)
                    .http2_keep_alive_interval(KEEP_ALIVE)
                    .keep_alive_timeout(KEEP_ALIVE)
                    .keep_alive_while_idle(true);
                let opener = Opener(Arc::new(target));
                Ok((url.clone(), endpoint.connect_with_connector_lazy(opener)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if channels.is_empty() {
            return Err(ClientError::NoEndpoint);
        }
        Ok(Self {
            channels,
            current: Mutex::new(0),
            requests: Counts::default(),
        })
    }

    /// What was asked of the store, by kind.
    pub(crate) fn requests(&self) -> &Counts {
        &self.requests
    }

    fn channel(&self) -> Option<(String, Channel)> {
        let current = self.current.lock().map_or(0, |current| *current);
        self.channels
            .get(current % self.channels.len().max(1))
            .cloned()
    }

    fn go_on(&self) {
        if let Ok(mut current) = self.current.lock() {
            *current = (*current + 1) % self.channels.len().max(1);
        }
    }

    /// Makes a request in bounded time; one that fails for the endpoint's sake moves on to the next.
    async fn request<T, F>(
        &self,
        operation: &'static str,
        make: impl FnOnce(Channel) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let Some((endpoint, channel)) = self.channel() else {
            return Err(ClientError::NoEndpoint);
        };
        let begun = Instant::now();
        let result = tokio::time::timeout(REQUEST_TIMEOUT, make(channel)).await;
        let is_answered = matches!(result, Ok(Ok(_)));
        self.requests.add(operation, is_answered, begun.elapsed());
        match result {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => {
                if !matches!(
                    status.code(),
                    Code::InvalidArgument | Code::NotFound | Code::OutOfRange
                ) {
                    self.go_on();
                }
                Err(ClientError::Request {
                    operation,
                    endpoint,
                    status: Box::new(status),
                })
            }
            Err(_) => {
                self.go_on();
                Err(ClientError::Timeout {
                    operation,
                    endpoint,
                })
            }
        }
    }

    /// All keys with a prefix, and the revision at which they were so.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn read_all(&self, prefix: &str) -> Result<(Vec<KeyValue>, i64), ClientError> {
        let range_end = after_prefix(prefix);
        let mut key = prefix.as_bytes().to_vec();
        let mut revision = 0;
        let mut all: Vec<KeyValue> = Vec::new();
        loop {
            let request = pb::RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                revision,
                ..Default::default()
            };
            let answer = self
                .request("read", |channel| async {
                    let mut kv =
                        KvClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                    kv.range(request).await
                })
                .await?
                .into_inner();
            if revision == 0 {
                revision = answer.header.map_or(0, |header| header.revision);
            }
            let more = answer.more;
            all.extend(answer.kvs);
            match all.last() {
                Some(last) if more => {
                    key.clone_from(&last.key);
                    key.push(0);
                }
                _ => return Ok((all, revision)),
            }
        }
    }

    /// Writes all or nothing. Gives whether the conditions held, and the revision.
    ///
    /// # Errors
    /// [`ClientError`]; the writes may have been carried out all the same when no answer came.
    pub async fn transact(
        &self,
        conditions: &[Condition],
        writes: &[Write],
    ) -> Result<(bool, i64), ClientError> {
        let request = pb::TxnRequest {
            compare: conditions.iter().map(Condition::compare).collect(),
            success: writes.iter().map(Write::operation).collect(),
            failure: Vec::new(),
        };
        let answer = self
            .request("write", |channel| async {
                KvClient::new(channel).txn(request).await
            })
            .await?
            .into_inner();
        let revision = answer.header.map_or(0, |header| header.revision);
        Ok((answer.succeeded, revision))
    }

    /// A new lease that lives `ttl` without being kept alive.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn grant(&self, ttl: Duration) -> Result<i64, ClientError> {
        let request = pb::LeaseGrantRequest {
            ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            id: 0,
        };
        let answer = self
            .request("grant a lease", |channel| async {
                LeaseClient::new(channel).lease_grant(request).await
            })
            .await?;
        Ok(answer.into_inner().id)
    }

    /// Keeps a lease alive; false when it has ended.
    ///
    /// # Errors
    /// [`ClientError`]: nobody who leads the store has answered.
    pub async fn keep_alive(&self, lease: i64) -> Result<bool, ClientError> {
        let request = pb::LeaseKeepAliveRequest { id: lease };
        self.request("keep a lease alive", |channel| async {
            let requests = tokio_stream::once(request);
            let answers = LeaseClient::new(channel).lease_keep_alive(requests).await?;
            match answers.into_inner().next().await {
                Some(answer) => Ok(answer?.ttl > 0),
                None => Err(Status::unavailable("the stream has ended")),
            }
        })
        .await
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(&self, lease: i64) -> Result<(), ClientError> {
        let request = pb::LeaseRevokeRequest { id: lease };
        self.request("end a lease", |channel| async {
            LeaseClient::new(channel).lease_revoke(request).await
        })
        .await
        .map(drop)
    }

    /// Watches all keys with a prefix from a revision on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn watch(&self, prefix: &str, from: i64) -> Result<Watch, ClientError> {
        let (requests, outgoing) = tokio::sync::mpsc::channel(1);
        let create = pb::WatchCreateRequest {
            key: prefix.as_bytes().to_vec(),
            range_end: after_prefix(prefix),
            start_revision: from,
            ..Default::default()
        };
        let create = pb::watch_request::RequestUnion::CreateRequest(create);
        let request = pb::WatchRequest {
            request_union: Some(create),
        };
        let endpoint = self.channel().map(|(url, _)| url).unwrap_or_default();
        let sender = requests.clone();
        let answers = self
            .request("watch", |channel| async move {
                let _ = sender.send(request).await;
                let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
                let mut client =
                    WatchClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
                client.watch(outgoing).await
            })
            .await?;
        Ok(Watch {
            endpoint,
            answers: answers.into_inner(),
            _requests: requests,
        })
    }
}

impl Watch {
    /// The next changes, and the revision up to which all are known.
    ///
    /// # Errors
    /// [`ClientError::Watch`]: all keys must be read anew.
    pub async fn next(&mut self) -> Result<(Vec<Event>, i64), ClientError> {
        let ended = |reason: String| ClientError::Watch {
            endpoint: self.endpoint.clone(),
            reason,
        };
        match self.answers.next().await {
            Some(Ok(answer)) if answer.canceled => Err(ended(answer.cancel_reason)),
            Some(Ok(answer)) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                Ok((answer.events, revision))
            }
            Some(Err(status)) => Err(ended(status.message().to_owned())),
            None => Err(ended("the connection was closed".to_owned())),
        }
    }
}

impl Condition {
    fn compare(&self) -> pb::Compare {
        let (key, target, union) = match self {
            Self::Absent(key) => (key, CompareTarget::Create, TargetUnion::CreateRevision(0)),
            Self::CreatedAt(key, revision) => (
                key,
                CompareTarget::Create,
                TargetUnion::CreateRevision(*revision),
            ),
            Self::Value(key, value) => (
                key,
                CompareTarget::Value,
                TargetUnion::Value(value.clone().into_bytes()),
            ),
        };
        pb::Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: key.clone().into_bytes(),
            range_end: Vec::new(),
            target_union: Some(union),
        }
    }
}

impl Write {
    fn operation(&self) -> pb::RequestOp {
        let request = match self {
            Self::Put(key, value, lease) => Request::RequestPut(pb::PutRequest {
                key: key.clone().into_bytes(),
                value: value.clone().into_bytes(),
                lease: *lease,
                ..Default::default()
            }),
            Self::Delete(key) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.clone().into_bytes(),
                ..Default::default()
            }),
        };
        pb::RequestOp {
            request: Some(request),
        }
    }
}

/// The first key behind all that begin with `prefix` (etcd's `clientv3.GetPrefixRangeEnd`).
fn after_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}
