//! `member …`, `alarm …` and `move-leader`.

use orlop_store::proto::etcdserverpb as pb;
use pb::alarm_request::AlarmAction;
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;

use super::flags::Flag;
use super::keys::member_of;
use super::print::{Format, Page, header, header_fields, say};
use super::text::{Json, quoted};
use super::{Call, Failure, Outcome, hex_id};

pub(super) const ADD: &[Flag] = &[
    Flag::switch("learner", "it follows, and has no vote"),
    Flag::value(
        "peer-urls",
        "",
        "where the other members reach it, with commas between",
    ),
];
pub(super) const UPDATE: &[Flag] = &[Flag::value(
    "peer-urls",
    "",
    "where the other members reach it, with commas between",
)];

fn member_json(m: &pb::Member) -> Json {
    Json::sparse(vec![
        ("ID", Json::Number(m.id.into())),
        ("name", Json::Text(m.name.clone())),
        ("peerURLs", Json::texts(&m.peer_ur_ls)),
        ("clientURLs", Json::texts(&m.client_ur_ls)),
        ("isLearner", Json::Bool(m.is_learner)),
    ])
}

fn members_json(members: &[pb::Member]) -> Json {
    Json::List(members.iter().map(member_json).collect())
}

/// What a change of members is told with.
fn changed(
    call: &Call,
    id: u64,
    what: &str,
    header_of: &Option<pb::ResponseHeader>,
    members: &[pb::Member],
) -> Outcome {
    let cluster = header_of.unwrap_or_default().cluster_id;
    call.printer()?.show(Page {
        simple: format!("Member {id:16x} {what} cluster {cluster:16x}\n").into(),
        json: Some(Json::sparse(vec![
            ("header", header(header_of)),
            ("members", members_json(members)),
        ])),
        ..Page::default()
    })
}

fn urls(call: &Call) -> Result<Vec<String>, Failure> {
    match call.given.get("peer-urls") {
        "" => Err(Failure::bad_arguments("member peer urls not provided")),
        urls => Ok(urls.split(',').map(str::to_owned).collect()),
    }
}

fn id(call: &Call) -> Result<u64, Failure> {
    match call.given.words.as_slice() {
        [word] => member_of(word),
        _ => Err(Failure::bad_arguments("member ID is not provided")),
    }
}

pub(super) fn add(call: &Call) -> Outcome {
    let name = match call.given.words.as_slice() {
        [] => return Err(Failure::bad_arguments("member name not provided")),
        [name] => name,
        words => {
            let mut text = "too many arguments".to_owned();
            for word in words {
                if word.to_lowercase().starts_with("http") {
                    text += &format!(", did you mean --peer-urls={word}");
                }
            }
            return Err(Failure::bad_arguments(text));
        }
    };
    let request = pb::MemberAddRequest {
        peer_ur_ls: urls(call)?,
        is_learner: call.given.is_set("learner"),
    };
    let r = call.ask(async |channel| ClusterClient::new(channel).member_add(request).await)?;
    let member = r.member.clone().unwrap_or_default();
    let cluster = r.header.unwrap_or_default().cluster_id;
    let id = member.id;
    let printer = call.printer()?;
    printer.show(Page {
        simple: format!("Member {id:16x} added to cluster {cluster:16x}\n").into(),
        json: Some(Json::sparse(vec![
            ("header", header(&r.header)),
            ("member", member_json(&member)),
            ("members", members_json(&r.members)),
        ])),
        ..Page::default()
    })?;
    if printer.format == Format::Simple {
        let mut cluster = Vec::new();
        for m in &r.members {
            let name = if m.id == id { name } else { &m.name };
            cluster.extend(m.peer_ur_ls.iter().map(|url| format!("{name}={url}")));
        }
        let quoted = |text: &str| quoted(text.as_bytes());
        say(format!(
            "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_ADVERTISE_PEER_URLS={}\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
            quoted(name),
            quoted(&cluster.join(",")),
            quoted(call.given.get("peer-urls")),
        ));
    }
    Ok(())
}

pub(super) fn remove(call: &Call) -> Outcome {
    let id = id(call)?;
    let request = pb::MemberRemoveRequest { id };
    let r = call.ask(async |channel| ClusterClient::new(channel).member_remove(request).await)?;
    changed(call, id, "removed from", &r.header, &r.members)
}

pub(super) fn update(call: &Call) -> Outcome {
    let id = id(call)?;
    let request = pb::MemberUpdateRequest {
        id,
        peer_ur_ls: urls(call)?,
    };
    let r = call.ask(async |channel| ClusterClient::new(channel).member_update(request).await)?;
    changed(call, id, "updated in", &r.header, &r.members)
}

pub(super) fn promote(call: &Call) -> Outcome {
    let id = id(call)?;
    let request = pb::MemberPromoteRequest { id };
    let r = call.ask(async |channel| ClusterClient::new(channel).member_promote(request).await)?;
    changed(call, id, "promoted in", &r.header, &r.members)
}

pub(super) fn list(call: &Call) -> Outcome {
    let request = pb::MemberListRequest { linearizable: true };
    let r = call.ask(async |channel| ClusterClient::new(channel).member_list(request).await)?;
    let mut fields = header_fields(&r.header);
    let mut rows = Vec::new();
    for m in &r.members {
        fields += &format!("\"ID\" : {}\n", m.id);
        fields += &format!("\"Name\" : {}\n", quoted(m.name.as_bytes()));
        for url in &m.peer_ur_ls {
            fields += &format!("\"PeerURL\" : {}\n", quoted(url.as_bytes()));
        }
        for url in &m.client_ur_ls {
            fields += &format!("\"ClientURL\" : {}\n", quoted(url.as_bytes()));
        }
        fields += &format!("\"IsLearner\" : {}\n\n", m.is_learner);
        let started = match m.name.is_empty() {
            true => "unstarted",
            false => "started",
        };
        rows.push(vec![
            format!("{:x}", m.id),
            started.to_owned(),
            m.name.clone(),
            m.peer_ur_ls.join(","),
            m.client_ur_ls.join(","),
            m.is_learner.to_string(),
        ]);
    }
    call.printer()?.show(Page {
        simple: lines(&rows).into(),
        fields: Some(fields),
        json: Some(Json::sparse(vec![
            ("header", header(&r.header)),
            ("members", members_json(&r.members)),
        ])),
        table: Some((
            &[
                "ID",
                "Status",
                "Name",
                "Peer Addrs",
                "Client Addrs",
                "Is Learner",
            ],
            rows,
        )),
    })
}

/// The rows of a table, a line each.
pub(super) fn lines(rows: &[Vec<String>]) -> String {
    rows.iter().map(|row| row.join(", ") + "\n").collect()
}

fn alarms(call: &Call, r: &pb::AlarmResponse) -> Outcome {
    let mut simple = String::new();
    let mut fields = header_fields(&r.header);
    let mut all = Vec::new();
    for alarm in &r.alarms {
        let (member, name) = (alarm.member_id, alarm.alarm().as_str_name());
        simple += &match member {
            0 => format!("alarm:{name} \n"),
            _ => format!("memberID:{member} alarm:{name} \n"),
        };
        fields += &format!("\"MemberID\" : {member}\n\"AlarmType\" : {name}\n\n");
        all.push(Json::sparse(vec![
            ("memberID", Json::Number(member.into())),
            ("alarm", Json::Number(alarm.alarm.into())),
        ]));
    }
    call.printer()?.show(Page {
        simple: simple.into(),
        fields: Some(fields),
        json: Some(Json::sparse(vec![
            ("header", header(&r.header)),
            ("alarms", Json::List(all)),
        ])),
        table: None,
    })
}

fn all_alarms(call: &Call) -> Result<pb::AlarmResponse, Failure> {
    let request = pb::AlarmRequest::default();
    call.ask(async |channel| MaintenanceClient::new(channel).alarm(request).await)
}

pub(super) fn alarm_list(call: &Call) -> Outcome {
    if !call.given.words.is_empty() {
        return Err(Failure::bad_arguments(
            "alarm list command accepts no arguments",
        ));
    }
    alarms(call, &all_alarms(call)?)
}

pub(super) fn alarm_disarm(call: &Call) -> Outcome {
    if !call.given.words.is_empty() {
        return Err(Failure::bad_arguments(
            "alarm disarm command accepts no arguments",
        ));
    }
    let mut answer = all_alarms(call)?;
    for alarm in std::mem::take(&mut answer.alarms) {
        let request = pb::AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let r = call.ask(async |channel| MaintenanceClient::new(channel).alarm(request).await)?;
        answer.header = r.header;
        answer.alarms.extend(r.alarms);
    }
    alarms(call, &answer)
}

pub(super) fn move_leader(call: &Call) -> Outcome {
    let [word] = call.given.words.as_slice() else {
        return Err(Failure::bad_arguments(
            "move-leader command needs 1 argument",
        ));
    };
    let target = hex_id(word).ok_or_else(|| {
        Failure::bad_arguments(format!(
            "strconv.ParseUint: parsing {word:?}: invalid syntax"
        ))
    })?;
    for endpoint in &call.client.targets {
        let client = call.client.only(endpoint);
        let request = pb::StatusRequest {};
        let asked =
            client.ask(async |channel| MaintenanceClient::new(channel).status(request).await);
        let status = call.run(asked).map_err(|err| Failure::new(1, err))?;
        if status.header.unwrap_or_default().member_id != status.leader {
            continue;
        }
        let request = pb::MoveLeaderRequest { target_id: target };
        let asked =
            client.ask(async |channel| MaintenanceClient::new(channel).move_leader(request).await);
        let r = call.run(asked).map_err(|err| Failure::new(1, err))?;
        let from = status.leader;
        return call.printer()?.show(Page {
            simple: format!("Leadership transferred from {from:x} to {target:x}\n").into(),
            json: Some(Json::sparse(vec![("header", header(&r.header))])),
            ..Page::default()
        });
    }
    let names: Vec<&str> = call
        .client
        .targets
        .iter()
        .map(|t| t.name.as_str())
        .collect();
    Err(Failure::bad_arguments(format!(
        "no leader endpoint given at [{}]",
        names.join(" ")
    )))
}
