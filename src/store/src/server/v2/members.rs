//! v2's members and stats.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request};
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use axum::routing::{any, get};
use serde::{Deserialize, Serialize};

use super::{Router, json, response};
use crate::command::{Change, Command};
use crate::consensus::MemberChange;
use crate::proto::etcdserverpb as pb;
use crate::server::peers::address_of;
use crate::server::shared::{Shared, random_u64};

const MAX_BODY_BYTES: usize = 64 << 10;

#[derive(Serialize)]
struct Member {
    id: String,
    name: String,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Vec<String>,
}

impl From<&pb::Member> for Member {
    fn from(member: &pb::Member) -> Self {
        Self {
            id: format!("{:x}", member.id),
            name: member.name.clone(),
            peer_urls: member.peer_ur_ls.clone(),
            client_urls: member.client_ur_ls.clone(),
        }
    }
}

#[derive(Serialize)]
struct List {
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Message {
    message: String,
}

#[derive(Deserialize)]
struct Urls {
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
}

#[derive(Serialize)]
struct OwnStats {
    name: String,
    id: String,
    state: &'static str,
    #[serde(rename = "leaderInfo")]
    leader: LeaderInfo,
}

#[derive(Serialize)]
struct LeaderInfo {
    leader: String,
}

pub(super) fn add(router: Router, shared: &Arc<Shared>) -> Router {
    let all = Arc::clone(shared);
    let leader = Arc::clone(shared);
    let one = Arc::clone(shared);
    let own = Arc::clone(shared);
    router
        .route(
            "/v2/members",
            any(move |request: Request| collection(Arc::clone(&all), request)),
        )
        .route(
            "/v2/members/leader",
            get(move || std::future::ready(leading(&leader))),
        )
        .route(
            "/v2/members/{id}",
            any(move |Path(id): Path<String>, request: Request| {
                single(Arc::clone(&one), id, request)
            }),
        )
        .route(
            "/v2/stats/self",
            get(move || std::future::ready(own_stats(&own))),
        )
}

fn message(shared: &Shared, status: u16, message: impl Into<String>) -> Response {
    let message = message.into();
    response(shared, status, None, json(&Message { message }))
}

fn refused(shared: &Shared, err: &tonic::Status) -> Response {
    let status = match err.code() {
        tonic::Code::FailedPrecondition => 409,
        tonic::Code::NotFound => 404,
        _ => 500,
    };
    message(shared, status, err.message())
}

fn leading(shared: &Shared) -> Response {
    let leader = shared.status().standing.leader;
    match shared.roster().member(leader) {
        Some(member) => response(shared, 200, None, json(&Member::from(member))),
        None => message(shared, 503, "During election"),
    }
}

fn own_stats(shared: &Shared) -> Response {
    let this = shared.owner.member;
    let standing = shared.status().standing;
    let stats = OwnStats {
        name: shared
            .roster()
            .member(this)
            .map_or_else(String::new, |m| m.name.clone()),
        id: format!("{this:x}"),
        state: if standing.leads {
            "StateLeader"
        } else {
            "StateFollower"
        },
        leader: LeaderInfo {
            leader: format!("{:x}", standing.leader),
        },
    };
    response(shared, 200, None, json(&stats))
}

/// The URLs in the body of a request, or the answer that says what is wrong with it.
async fn urls(shared: &Shared, request: Request) -> Result<Vec<String>, Response> {
    let is_json = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !is_json {
        let wrong = "Bad Content-Type, accept application/json";
        return Err(message(shared, 415, wrong));
    }
    let body = axum::body::to_bytes(request.into_body(), MAX_BODY_BYTES).await;
    let body = body.map_err(|err| message(shared, 400, err.to_string()))?;
    let urls: Urls =
        serde_json::from_slice(&body).map_err(|err| message(shared, 400, err.to_string()))?;
    let good =
        !urls.peer_urls.is_empty() && urls.peer_urls.iter().all(|url| address_of(url).is_some());
    if good {
        Ok(urls.peer_urls)
    } else {
        Err(message(shared, 400, "URLs must be http://IP:PORT"))
    }
}

async fn collection(shared: Arc<Shared>, request: Request) -> Response {
    if request.method() == Method::GET {
        let members = shared.members().iter().map(Member::from).collect();
        return response(&shared, 200, None, json(&List { members }));
    }
    if request.method() != Method::POST {
        return message(&shared, 405, "Method Not Allowed");
    }
    let peer_urls = match urls(&shared, request).await {
        Ok(urls) => urls,
        Err(answer) => return answer,
    };
    let id = random_u64().max(1);
    let member = pb::Member {
        id,
        peer_ur_ls: peer_urls,
        ..pb::Member::default()
    };
    let change = Change {
        kind: MemberChange::AddLearner(id),
        promote: true,
        member: member.clone(),
    };
    match shared.change(change).await {
        Ok(_) => response(&shared, 201, None, json(&Member::from(&member))),
        Err(err) => refused(&shared, &err),
    }
}

async fn single(shared: Arc<Shared>, id: String, request: Request) -> Response {
    let number = u64::from_str_radix(&id, 16).unwrap_or(0);
    let roster = shared.roster();
    if roster.removed.contains(&number) {
        return message(&shared, 410, format!("Member permanently removed: {id}"));
    }
    if roster.member(number).is_none() {
        return message(&shared, 404, format!("No such member: {id}"));
    }
    if request.method() == Method::DELETE {
        let change = Change {
            kind: MemberChange::Remove(number),
            promote: false,
            member: pb::Member::default(),
        };
        return match shared.change(change).await {
            Ok(_) => response(&shared, 204, None, Body::empty()),
            Err(err) => refused(&shared, &err),
        };
    }
    if request.method() != Method::PUT {
        return message(&shared, 405, "Method Not Allowed");
    }
    let peer_ur_ls = match urls(&shared, request).await {
        Ok(urls) => urls,
        Err(answer) => return answer,
    };
    let said = pb::Member {
        id: number,
        peer_ur_ls,
        ..pb::Member::default()
    };
    match shared.propose(Command::MovePeer(said)).await {
        Ok(_) => response(&shared, 204, None, Body::empty()),
        Err(err) => refused(&shared, &err),
    }
}
