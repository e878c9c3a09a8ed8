//! etcd's v2 API over HTTP.

mod form;
mod members;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{ALLOW, CONTENT_TYPE};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::{MethodRouter, any, get};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::shared::Shared;
use crate::command::Command;
use crate::mvcc::Reader;
use crate::mvcc::write::Answer;
use crate::v2::watch::Watch;
use crate::v2::{self, Event, INDEX_CLEARED, Node, RAFT_INTERNAL, V2Error};
use form::{Asked, Form};

/// The longest body of a request, as etcd's.
const MAX_BODY_BYTES: usize = crate::node::MAX_REQUEST_BYTES + (512 << 10);
/// Responses of a stream that wait for the client.
const STREAM: usize = 16;

type Router = axum::Router;

/// Adds the paths.
pub(super) fn add(router: Router, shared: &Arc<Shared>) -> Router {
    let keys = || -> MethodRouter {
        let shared = Arc::clone(shared);
        any(move |request: Request| keys(Arc::clone(&shared), request))
    };
    let router = router
        .route("/v2/keys", keys())
        .route("/v2/keys/", keys())
        .route("/v2/keys/{*path}", keys());
    let machines = Arc::clone(shared);
    let machines = move || {
        let members = machines.members();
        let urls: Vec<&str> = members
            .iter()
            .flat_map(|m| m.client_ur_ls.iter().map(String::as_str))
            .collect();
        std::future::ready(urls.join(", "))
    };
    members::add(router.route("/v2/machines", get(machines)), shared)
}

fn raft_error(err: &tonic::Status) -> V2Error {
    V2Error::new(RAFT_INTERNAL, err.message())
}

/// An answer with what all answers have in common.
fn response(shared: &Shared, status: u16, index: Option<i64>, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let cluster = format!("{:x}", shared.owner.cluster);
    if let Ok(cluster) = HeaderValue::from_str(&cluster) {
        headers.insert("x-etcd-cluster-id", cluster);
    }
    if let Some(index) = index {
        headers.insert("x-etcd-index", index.into());
    }
    response
}

fn success(shared: &Shared, status: u16, index: i64, body: Body) -> Response {
    let mut response = response(shared, status, Some(index), body);
    let standing = shared.status();
    let headers = response.headers_mut();
    headers.insert("x-raft-index", standing.applied_index.into());
    headers.insert("x-raft-term", standing.standing.term.into());
    response
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    #[serde(rename = "errorCode")]
    code: u16,
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cause: &'a str,
    index: i64,
}

fn failure(shared: &Shared, err: &V2Error, index: i64) -> Response {
    let body = ErrorBody {
        code: err.code,
        message: err.message(),
        cause: &err.cause,
        index,
    };
    response(shared, err.status(), Some(index), json(&body))
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Strings and numbers are all that these types hold.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn json(value: &impl Serialize) -> Body {
    Body::from(line(value))
}

async fn keys(shared: Arc<Shared>, request: Request) -> Response {
    let method = request.method().clone();
    let known = [
        Method::HEAD,
        Method::GET,
        Method::PUT,
        Method::POST,
        Method::DELETE,
    ];
    if !known.contains(&method) {
        let mut refused = response(&shared, 405, None, Body::from("Method Not Allowed\n"));
        let allow = HeaderValue::from_static("HEAD,GET,PUT,POST,DELETE");
        refused.headers_mut().insert(ALLOW, allow);
        return refused;
    }
    let asked = match read_form(request).await {
        Ok((path, form)) => Asked::parse(&method, &path, &form),
        Err(err) => Err(err),
    };
    match asked {
        Ok(Asked::Get {
            path,
            recursive,
            quorum,
        }) => show(&shared, &path, recursive, quorum).await,
        Ok(Asked::Watch {
            watch,
            index,
            stream,
        }) => wait(shared, watch, index, stream),
        Ok(Asked::Write { request, silent }) => write(&shared, request, silent).await,
        // Nothing was looked at yet, so there is no index to tell.
        Err(err) => failure(&shared, &err, 0),
    }
}

async fn read_form(request: Request) -> Result<(String, Form), V2Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().strip_prefix("/v2/keys").unwrap_or("/");
    let path = form::decode(path, false);
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|err| V2Error::new(v2::INVALID_FORM, err.to_string()))?;
    let is_form = parts.headers.get(CONTENT_TYPE).is_some_and(|t| {
        t.as_bytes()
            .starts_with(b"application/x-www-form-urlencoded")
    });
    let takes_body = parts.method == Method::PUT || parts.method == Method::POST;
    let body = if is_form && takes_body {
        body
    } else {
        Bytes::new()
    };
    Ok((path, Form::new(&body, parts.uri.query().unwrap_or(""))))
}

async fn write(shared: &Shared, request: v2::Request, silent: bool) -> Response {
    let answer = shared.propose(Command::V2(request)).await;
    let index = *shared.revision.borrow();
    let outcome = match answer {
        Ok(Answer::V2(outcome)) => *outcome,
        Ok(other) => Err(raft_error(&super::kv::mismatch(&other))),
        Err(err) => Err(raft_error(&err)),
    };
    match outcome {
        Ok((mut event, made)) => {
            let at = event.node.as_ref().map_or(index, |n| n.modified_index);
            if let Some(node) = &mut event.node {
                node.expiration = node.ttl.map(|ttl| expiration(ttl.unsigned_abs()));
            }
            let status = if made { 201 } else { 200 };
            if silent && !event.action.ends_with("elete") {
                event.node = None;
                event.prev_node = None;
            }
            success(shared, status, at, json(&event))
        }
        Err(err) => failure(shared, &err, index),
    }
}

async fn show(shared: &Shared, path: &str, recursive: bool, quorum: bool) -> Response {
    let reader = match shared.read(!quorum).await {
        Ok(reader) => reader,
        Err(err) => return failure(shared, &raft_error(&err), *shared.revision.borrow()),
    };
    match reader.view().show(path, recursive) {
        Ok(Ok(mut node)) => {
            let mut known = BTreeMap::new();
            add_times(shared, &mut node, &mut known).await;
            let event = Event {
                action: "get",
                node: Some(node),
                prev_node: None,
            };
            success(shared, 200, reader.revision, json(&event))
        }
        Ok(Err(err)) => failure(shared, &err, reader.revision),
        Err(err) => failure(shared, &raft_error(&err.into()), reader.revision),
    }
}

/// Adds how long nodes still live, as the leader knows it.
async fn add_times(shared: &Shared, node: &mut Node, known: &mut BTreeMap<i64, Option<i64>>) {
    let mut nodes = vec![node];
    while let Some(node) = nodes.pop() {
        if node.lease != 0 {
            let left = match known.get(&node.lease) {
                Some(left) => *left,
                None => {
                    let times = shared.time_to_live(node.lease).await.ok();
                    let times = times.and_then(|(_, times)| times);
                    let left = times.map(|(left, granted)| (left + 1).min(granted));
                    known.insert(node.lease, left);
                    left
                }
            };
            node.ttl = left;
            node.expiration = left.map(|left| expiration(left.unsigned_abs()));
        }
        nodes.extend(node.nodes.iter_mut());
    }
}

/// The time in so many seconds (RFC 3339, UTC).
fn expiration(seconds: u64) -> String {
    let now = SystemTime::now();
    let at = now
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(now)
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (at.as_secs() / 86_400, at.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        at.subsec_nanos()
    )
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are taken to begin in March, so that the leap day is the last one; an era has 400 of them.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    (year, month, day)
}

fn cleared(reader: &Reader, asked: i64) -> V2Error {
    let cause = format!(
        "the requested history has been cleared [{}/{asked}]",
        reader.compact_revision
    );
    V2Error::new(INDEX_CLEARED, cause)
}

/// Answers at once with headers, and with the change when it comes.
fn wait(shared: Arc<Shared>, watch: Watch, index: Option<i64>, stream: bool) -> Response {
    let mut revisions = shared.revision.subscribe();
    let present = *revisions.borrow_and_update();
    let mut from = index.unwrap_or(present + 1);
    match Reader::new(&shared.database) {
        Ok(reader) if from < reader.compact_revision => {
            return failure(&shared, &cleared(&reader, from), present);
        }
        _ => {}
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(STREAM);
    let waiting = Arc::clone(&shared);
    tokio::spawn(async move {
        loop {
            let told = Reader::new(&waiting.database).and_then(|reader| {
                if from < reader.compact_revision {
                    // What was compacted meanwhile cannot be told; the client sees the end of the stream.
                    return Ok(None);
                }
                watch.next(&reader, from).map(Some)
            });
            let event = match told {
                Ok(Some((event, next))) => {
                    from = next;
                    event
                }
                Ok(None) => return,
                Err(err) => {
                    log::error!("a watch of v2: {err}");
                    return;
                }
            };
            match event {
                Some(mut event) => {
                    if let Some(node) = &mut event.node {
                        add_times(&waiting, node, &mut BTreeMap::new()).await;
                    }
                    if sender.send(Bytes::from(line(&event))).await.is_err() || !stream {
                        return;
                    }
                }
                None => tokio::select! {
                    changed = revisions.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                },
            }
        }
    });
    let lines = tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    success(&shared, 200, present, Body::from_stream(lines))
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_778), (2026, 11, 21));
    }
}
