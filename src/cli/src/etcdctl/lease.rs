//! `lease …`.

use std::time::Duration;

use orlop_store::proto::etcdserverpb as pb;
use pb::lease_client::LeaseClient;
use tonic::transport::Channel;

use super::flags::Flag;
use super::keys::lease_of;
use super::print::{Format, Page, header, header_fields, say};
use super::text::{Json, quoted};
use super::{Call, Failure, Outcome};

pub(super) const TIMETOLIVE: &[Flag] = &[Flag::switch("keys", "tell the keys that it holds")];
pub(super) const KEEP_ALIVE: &[Flag] = &[Flag::switch("once", "renew it once, and end")];

/// The least time between two renewals.
const RENEW_AT_MOST: Duration = Duration::from_millis(500);

/// The header's fields, and more beside them.
fn beside(of: &Option<pb::ResponseHeader>, more: Vec<(&'static str, Json)>) -> Json {
    let mut fields = header(of).into_fields();
    fields.extend(more);
    Json::Object(fields)
}

fn only<'a>(call: &'a Call, what: &str) -> Result<&'a str, Failure> {
    match call.given.words.as_slice() {
        [word] => Ok(word),
        _ => Err(Failure::bad_arguments(what)),
    }
}

pub(super) fn grant(call: &Call) -> Outcome {
    let word = only(call, "lease grant command needs TTL argument")?;
    let ttl = word.parse().map_err(|_| {
        Failure::bad_arguments(format!(
            "bad TTL (strconv.ParseInt: parsing {word:?}: invalid syntax)"
        ))
    })?;
    let request = pb::LeaseGrantRequest { ttl, id: 0 };
    let asked = call.ask(async |channel| LeaseClient::new(channel).lease_grant(request).await);
    let r = asked.map_err(|err| {
        Failure::new(err.code, format!("failed to grant lease ({})", err.message))
    })?;
    let (id, ttl) = (r.id, r.ttl);
    call.printer()?.show(Page {
        simple: format!("lease {id:016x} granted with TTL({ttl}s)\n").into(),
        fields: Some(header_fields(&r.header) + &format!("\"ID\" : {id}\n\"TTL\" : {ttl}\n")),
        json: Some(beside(
            &r.header,
            vec![
                ("ID", Json::Number(id.into())),
                ("TTL", Json::Number(ttl.into())),
                ("Error", Json::Text(r.error)),
            ],
        )),
        table: None,
    })
}

pub(super) fn revoke(call: &Call) -> Outcome {
    let id = lease_of(only(call, "lease revoke command needs 1 argument")?)?;
    let request = pb::LeaseRevokeRequest { id };
    let asked = call.ask(async |channel| LeaseClient::new(channel).lease_revoke(request).await);
    let r = asked.map_err(|err| {
        Failure::new(
            err.code,
            format!("failed to revoke lease ({})", err.message),
        )
    })?;
    call.printer()?.show(Page {
        simple: format!("lease {id:016x} revoked\n").into(),
        fields: Some(header_fields(&r.header)),
        json: Some(Json::sparse(vec![("header", header(&r.header))])),
        table: None,
    })
}

pub(super) fn time_to_live(call: &Call) -> Outcome {
    let word = only(call, "lease timetolive command needs lease ID as argument")?;
    let id = lease_of(word)?;
    let keys = call.given.is_set("keys");
    let request = pb::LeaseTimeToLiveRequest { id, keys };
    let asked =
        call.ask(async |channel| LeaseClient::new(channel).lease_time_to_live(request).await);
    let r = asked.map_err(|err| Failure::new(2, err.message))?;
    let (id, ttl, granted) = (r.id, r.ttl, r.granted_ttl);
    let mut simple = if granted == 0 && ttl == -1 {
        format!("lease {id:016x} already expired\n").into_bytes()
    } else {
        let text = format!("lease {id:016x} granted with TTL({granted}s), remaining({ttl}s)");
        let mut simple = text.into_bytes();
        if keys {
            simple.extend_from_slice(b", attached keys([");
            simple.extend_from_slice(&r.keys.join(&b' '));
            simple.extend_from_slice(b"])");
        }
        simple.push(b'\n');
        simple
    };
    simple.shrink_to_fit();
    let mut fields = header_fields(&r.header)
        + &format!("\"ID\" : {id}\n\"TTL\" : {ttl}\n\"GrantedTTL\" : {granted}\n");
    for key in &r.keys {
        fields += &format!("\"Key\" : {}\n", quoted(key));
    }
    let keys = match r.keys.is_empty() {
        true => Json::Null,
        false => Json::List(r.keys.iter().map(|key| Json::bytes(key)).collect()),
    };
    call.printer()?.show(Page {
        simple,
        fields: Some(fields),
        json: Some(beside(
            &r.header,
            vec![
                ("id", Json::Number(id.into())),
                ("ttl", Json::Number(ttl.into())),
                ("granted-ttl", Json::Number(granted.into())),
                ("keys", keys),
            ],
        )),
        table: None,
    })
}

pub(super) fn list(call: &Call) -> Outcome {
    let request = pb::LeaseLeasesRequest {};
    let asked = call.ask(async |channel| LeaseClient::new(channel).lease_leases(request).await);
    let r = asked.map_err(|err| Failure::new(2, err.message))?;
    let mut simple = format!("found {} leases\n", r.leases.len());
    let mut fields = header_fields(&r.header);
    let mut leases = Vec::new();
    for lease in &r.leases {
        let id = lease.id;
        simple += &format!("{id:016x}\n");
        fields += &format!("\"ID\" : {id}\n");
        leases.push(Json::Object(vec![("id", Json::Number(id.into()))]));
    }
    call.printer()?.show(Page {
        simple: simple.into(),
        fields: Some(fields),
        json: Some(beside(&r.header, vec![("leases", Json::List(leases))])),
        table: None,
    })
}

/// Renews a lease once.
pub(super) async fn renew(
    channel: Channel,
    id: i64,
) -> Result<tonic::Response<pb::LeaseKeepAliveResponse>, tonic::Status> {
    let request = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
    let mut answers = LeaseClient::new(channel)
        .lease_keep_alive(request)
        .await?
        .into_inner();
    let answer = answers.message().await?;
    answer
        .map(tonic::Response::new)
        .ok_or_else(|| tonic::Status::unavailable("the stream has ended"))
}

/// Renews a lease for as long as it lives; `told` hears of each renewal.
pub(super) async fn keep(
    call: &Call,
    id: i64,
    mut told: impl FnMut(&pb::LeaseKeepAliveResponse) -> Outcome,
) -> Outcome {
    loop {
        let asked = call.client.ask(async |channel| renew(channel, id).await);
        let pause = match asked.await {
            Ok(answer) if answer.ttl <= 0 => return Ok(()),
            Ok(answer) => {
                told(&answer)?;
                Duration::from_secs(answer.ttl.unsigned_abs()) / 3
            }
            Err(_) => Duration::ZERO,
        };
        tokio::time::sleep(pause.max(RENEW_AT_MOST)).await;
    }
}

pub(super) fn keep_alive(call: &Call) -> Outcome {
    let word = only(call, "lease keep-alive command needs lease ID as argument")?;
    let id = lease_of(word)?;
    let printer = call.printer()?;
    let show = |r: &pb::LeaseKeepAliveResponse| {
        let (id, ttl) = (r.id, r.ttl);
        printer.show(Page {
            simple: format!("lease {id:016x} keepalived with TTL({ttl})\n").into(),
            fields: Some(header_fields(&r.header) + &format!("\"ID\" : {id}\n\"TTL\" : {ttl}\n")),
            json: Some(beside(
                &r.header,
                vec![
                    ("ID", Json::Number(id.into())),
                    ("TTL", Json::Number(ttl.into())),
                ],
            )),
            table: None,
        })
    };
    if call.given.is_set("once") {
        let asked = call.ask(async |channel| renew(channel, id).await);
        let answer = asked.map_err(|err| Failure::new(2, err.message))?;
        if answer.ttl <= 0 {
            return Err(Failure::new(2, "etcdserver: requested lease not found"));
        }
        return show(&answer);
    }
    call.run(keep(call, id, show))?;
    if printer.format == Format::Simple {
        say(format!("lease {id:016x} expired or revoked.\n"));
    }
    Ok(())
}
