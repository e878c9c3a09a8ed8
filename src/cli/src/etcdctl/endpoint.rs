//! `endpoint …` and `defrag`: what is asked of each endpoint by itself.

use std::sync::Arc;
use std::time::Instant;

use orlop_store::proto::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;

use super::channel::Target;
use super::flags::Flag;
use super::keys::client;
use super::members::lines;
use super::print::{Format, Page, header, header_fields, say};
use super::text::{Json, bytes_for_reading, quoted, time};
use super::{Call, Failure, Outcome};

const CLUSTER: Flag = Flag::switch("cluster", "all endpoints of the cluster's members");
pub(super) const ENDPOINT: &[Flag] = &[CLUSTER];
pub(super) const HASHKV: &[Flag] = &[CLUSTER, Flag::value("rev", "0", "up to this revision")];
pub(super) const DEFRAG: &[Flag] = &[
    CLUSTER,
    Flag::value("data-dir", "", "a data directory that no store uses"),
];

/// The endpoints that were given, or those of all members.
fn endpoints(call: &Call) -> Result<Vec<Arc<Target>>, Failure> {
    if !call.given.is_set("cluster") {
        return Ok(call.client.targets.clone());
    }
    let request = pb::MemberListRequest { linearizable: true };
    let asked = call.ask(async |channel| ClusterClient::new(channel).member_list(request).await);
    let listed = asked.map_err(|err| {
        let why = err.message;
        Failure::new(
            1,
            format!("failed to fetch endpoints from etcd cluster member list: {why}"),
        )
    })?;
    let urls = listed.members.iter().flat_map(|m| &m.client_ur_ls);
    urls.map(|url| call.target(url)).collect()
}

pub(super) fn health(call: &Call) -> Outcome {
    let printer = call.printer()?;
    let mut fields = String::new();
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    let mut healthy = true;
    let endpoints = endpoints(call)?;
    let asked = call.run(async {
        let mut asked = Vec::new();
        for target in &endpoints {
            let one = call.client.only(target);
            asked.push(tokio::spawn(async move {
                let began = Instant::now();
                let request = pb::RangeRequest {
                    key: b"health".to_vec(),
                    ..pb::RangeRequest::default()
                };
                let answer = one.ask(async |channel| client(channel).range(request).await);
                let answer = answer.await.map(|_| ());
                (answer, began.elapsed())
            }));
        }
        let mut answers = Vec::new();
        for answer in asked {
            // A task that panics ends the process in a release; here it is not healthy.
            answers.push(answer.await.map_err(|err| err.to_string()));
        }
        answers
    });
    for (target, answer) in endpoints.iter().zip(asked) {
        let (answer, took) = match answer {
            Ok((answer, took)) => (answer, took),
            Err(err) => (Err(err), std::time::Duration::ZERO),
        };
        let (name, took) = (target.name.as_str(), time(took));
        let error = answer.err().unwrap_or_default();
        let good = error.is_empty();
        healthy &= good;
        if printer.format == Format::Simple {
            if good {
                eprintln!("{name} is healthy: successfully committed proposal: took = {took}");
            } else {
                eprintln!("{name} is unhealthy: failed to commit proposal: {error}");
            }
        }
        let quoted_name = quoted(name.as_bytes());
        fields += &format!(
            "\"Endpoint\" : {quoted_name}\n\"Health\" : {good}\n\"Took\" : {took}\n\"Error\" : {error}\n\n"
        );
        let mut object = vec![
            ("endpoint", Json::Text(name.to_owned())),
            ("health", Json::Bool(good)),
            ("took", Json::Text(took.clone())),
        ];
        if !good {
            object.push(("error", Json::Text(error.clone())));
        }
        all.push(Json::Object(object));
        rows.push(vec![name.to_owned(), good.to_string(), took, error]);
    }
    printer.show(Page {
        simple: Vec::new(),
        fields: Some(fields),
        json: Some(Json::List(all)),
        table: Some((&["endpoint", "health", "took", "error"], rows)),
    })?;
    match healthy {
        true => Ok(()),
        false => Err(Failure::new(1, "unhealthy cluster")),
    }
}

pub(super) fn status(call: &Call) -> Outcome {
    let mut fields = String::new();
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    let mut failed = None;
    for target in endpoints(call)? {
        let one = call.client.only(&target);
        let request = pb::StatusRequest {};
        let asked = one.ask(async |channel| MaintenanceClient::new(channel).status(request).await);
        let name = target.name.as_str();
        let r = match call.run(asked) {
            Ok(r) => r,
            Err(err) => {
                eprintln!("Failed to get the status of endpoint {name} ({err})");
                failed = Some(err);
                continue;
            }
        };
        let member = r.header.unwrap_or_default().member_id;
        fields += &header_fields(&r.header);
        fields += &format!(
            "\"Version\" : {}\n\"DBSize\" : {}\n\"Leader\" : {}\n\"IsLearner\" : {}\n\"RaftIndex\" : {}\n\"RaftTerm\" : {}\n\"RaftAppliedIndex\" : {}\n\"Errors\" : [{}]\n\"Endpoint\" : {}\n\n",
            quoted(r.version.as_bytes()),
            r.db_size,
            r.leader,
            r.is_learner,
            r.raft_index,
            r.raft_term,
            r.raft_applied_index,
            r.errors.join(" "),
            quoted(name.as_bytes()),
        );
        let number = |n: u64| Json::Number(n.into());
        let status = Json::sparse(vec![
            ("header", header(&r.header)),
            ("version", Json::Text(r.version.clone())),
            ("dbSize", Json::Number(r.db_size.into())),
            ("leader", number(r.leader)),
            ("raftIndex", number(r.raft_index)),
            ("raftTerm", number(r.raft_term)),
            ("raftAppliedIndex", number(r.raft_applied_index)),
            ("errors", Json::texts(&r.errors)),
            ("dbSizeInUse", Json::Number(r.db_size_in_use.into())),
            ("isLearner", Json::Bool(r.is_learner)),
        ]);
        all.push(Json::Object(vec![
            ("Endpoint", Json::Text(name.to_owned())),
            ("Status", status),
        ]));
        rows.push(vec![
            name.to_owned(),
            format!("{member:x}"),
            r.version.clone(),
            bytes_for_reading(r.db_size.unsigned_abs()),
            (r.leader == member).to_string(),
            r.is_learner.to_string(),
            r.raft_term.to_string(),
            r.raft_index.to_string(),
            r.raft_applied_index.to_string(),
            r.errors.join(", "),
        ]);
    }
    call.printer()?.show(Page {
        simple: lines(&rows).into(),
        fields: Some(fields),
        json: Some(Json::List(all)),
        table: Some((
            &[
                "endpoint",
                "ID",
                "version",
                "db size",
                "is leader",
                "is learner",
                "raft term",
                "raft index",
                "raft applied index",
                "errors",
            ],
            rows,
        )),
    })?;
    match failed {
        None => Ok(()),
        Some(_) => Err(Failure::plain(1, "")),
    }
}

pub(super) fn hash_kv(call: &Call) -> Outcome {
    let revision = call.given.number("rev")?;
    let mut fields = String::new();
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    let mut failed = None;
    for target in endpoints(call)? {
        let one = call.client.only(&target);
        let request = pb::HashKvRequest { revision };
        let asked = one.ask(async |channel| MaintenanceClient::new(channel).hash_kv(request).await);
        let name = target.name.as_str();
        let r = match call.run(asked) {
            Ok(r) => r,
            Err(err) => {
                eprintln!("Failed to get the hash of endpoint {name} ({err})");
                failed = Some(err);
                continue;
            }
        };
        fields += &header_fields(&r.header);
        let quoted_name = quoted(name.as_bytes());
        fields += &format!("\"Endpoint\" : {quoted_name}\n\"Hash\" : {}\n\n", r.hash);
        let hash = Json::sparse(vec![
            ("header", header(&r.header)),
            ("hash", Json::Number(r.hash.into())),
            ("compact_revision", Json::Number(r.compact_revision.into())),
        ]);
        all.push(Json::Object(vec![
            ("Endpoint", Json::Text(name.to_owned())),
            ("HashKV", hash),
        ]));
        rows.push(vec![name.to_owned(), r.hash.to_string()]);
    }
    call.printer()?.show(Page {
        simple: lines(&rows).into(),
        fields: Some(fields),
        json: Some(Json::List(all)),
        table: Some((&["endpoint", "hash"], rows)),
    })?;
    failed.map_or(Ok(()), |err| Err(Failure::new(1, err)))
}

pub(super) fn defrag(call: &Call) -> Outcome {
    if !call.given.get("data-dir").is_empty() {
        return Err(Failure::bad_arguments(
            "--data-dir is not supported: the store uses its free pages again by itself",
        ));
    }
    let mut failed = false;
    for target in endpoints(call)? {
        let one = call.client.only(&target);
        let request = pb::DefragmentRequest {};
        let asked =
            one.ask(async |channel| MaintenanceClient::new(channel).defragment(request).await);
        let name = target.name.as_str();
        match call.run(asked) {
            Ok(_) => say(format!("Finished defragmenting etcd member[{name}]\n")),
            Err(err) => {
                eprintln!("Failed to defragment etcd member[{name}] ({err})");
                failed = true;
            }
        }
    }
    match failed {
        true => Err(Failure::plain(1, "")),
        false => Ok(()),
    }
}
