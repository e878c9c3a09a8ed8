//! `member …` and `cluster-health` of the v2 API.

use std::time::Duration;

use serde_json::Value;

use super::http::Http;
use super::{Call, Failure, Outcome, text};
use crate::etcdctl::channel::{Target, TlsFlags};
use crate::etcdctl::print::say;
use crate::etcdctl::text::{Json, quoted};

/// Pause between two looks at the cluster's health.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What the store refuses is said without a head here; that it is not there, as everywhere.
fn plain(err: Failure) -> Failure {
    match err.code {
        2 => err,
        _ => Failure::plain(1, err.message),
    }
}

fn texts(value: &Value, name: &str) -> Vec<String> {
    let list = value.get(name).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn members(http: &Http) -> Result<Vec<Value>, Failure> {
    let answer = http.request("GET", "/v2/members", None)?;
    let (answer, _) = answer.into_json()?;
    let members = answer.get("members").and_then(Value::as_array);
    Ok(members.cloned().unwrap_or_default())
}

fn urls(urls: &[String]) -> (&'static str, String) {
    let object = Json::Object(vec![("peerURLs", Json::texts(urls))]);
    ("application/json", object.text())
}

pub(super) fn member(call: &Call) -> Outcome {
    let words: Vec<&str> = call.given.words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => list(call).map_err(plain),
        ["list", ..] => Err(Failure::plain(1, "No arguments accepted")),
        ["add", name, url] => add(call, name, url).map_err(plain),
        ["add", ..] => Err(Failure::plain(
            1,
            "Provide a name and a single member peerURL",
        )),
        ["remove", id] => remove(call, id).map_err(plain),
        ["remove", ..] => Err(Failure::plain(1, "Provide a single member ID")),
        ["update", id, new] => {
            let new: Vec<String> = new.split(',').map(str::to_owned).collect();
            let path = format!("/v2/members/{id}");
            let answer = call.http.request("PUT", &path, Some(urls(&new)));
            answer.and_then(|a| a.into_json()).map_err(plain)?;
            say(format!("Updated member with ID {id} in cluster\n"));
            Ok(())
        }
        ["update", ..] => Err(Failure::plain(
            1,
            "Provide an ID and a list of comma separated peerURL (0xabcd http://example.com,http://example1.com)",
        )),
        _ => Err(Failure::plain(
            1,
            "member needs one of: list, add, remove, update",
        )),
    }
}

fn list(call: &Call) -> Outcome {
    let members = members(&call.http)?;
    let leader = call.http.request("GET", "/v2/members/leader", None);
    let (leader, _) = leader
        .and_then(|a| a.into_json())
        .map_err(|err| Failure::plain(1, format!("Failed to get leader:  {}", err.message)))?;
    for m in &members {
        let (id, name) = (text(m, "id"), text(m, "name"));
        let peers = texts(m, "peerURLs").join(",");
        if name.is_empty() {
            say(format!("{id}[unstarted]: peerURLs={peers}\n"));
            continue;
        }
        let clients = texts(m, "clientURLs").join(",");
        let leads = id == text(&leader, "id");
        say(format!(
            "{id}: name={name} peerURLs={peers} clientURLs={clients} isLeader={leads}\n"
        ));
    }
    Ok(())
}

fn add(call: &Call, name: &str, url: &str) -> Outcome {
    let body = urls(&[url.to_owned()]);
    let answer = call.http.request("POST", "/v2/members", Some(body))?;
    let (added, _) = answer.into_json()?;
    let id = text(&added, "id");
    say(format!(
        "Added member named {name} with ID {id} to cluster\n"
    ));
    let mut cluster = Vec::new();
    for m in members(&call.http)? {
        let name = if text(&m, "id") == id {
            name
        } else {
            text(&m, "name")
        };
        let urls = texts(&m, "peerURLs");
        cluster.extend(urls.iter().map(|url| format!("{name}={url}")));
    }
    say(format!(
        "\nETCD_NAME={}\nETCD_INITIAL_CLUSTER={}\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
        quoted(name.as_bytes()),
        quoted(cluster.join(",").as_bytes())
    ));
    Ok(())
}

fn remove(call: &Call, id: &str) -> Outcome {
    let members = members(&call.http)?;
    if let Some(m) = members.iter().find(|m| text(m, "name") == id) {
        eprintln!(
            "Found a member named {id}; if this is correct, please use its ID, eg:\n\tetcdctl member remove {}",
            text(m, "id")
        );
    }
    if !members.iter().any(|m| text(m, "id") == id) {
        return Err(Failure::plain(
            1,
            format!("Couldn't find a member in the cluster with an ID of {id}."),
        ));
    }
    let answer = call
        .http
        .request("DELETE", &format!("/v2/members/{id}"), None);
    answer.and_then(|a| a.into_json()).map_err(|err| {
        let why = err.message;
        Failure::plain(
            1,
            format!("Received an error trying to remove member {id}: {why}"),
        )
    })?;
    say(format!("Removed member {id} from cluster\n"));
    Ok(())
}

pub(super) fn health(call: &Call) -> Outcome {
    let members = members(&call.http).map_err(|err| {
        say("cluster may be unhealthy: failed to list members\n");
        Failure::new(4, err.message)
    })?;
    loop {
        let healthy = members.iter().filter(|m| is_healthy(call, m)).count();
        let all = healthy == members.len();
        say(match healthy {
            _ if all => "cluster is healthy\n",
            0 => "cluster is unavailable\n",
            _ => "cluster is degraded\n",
        });
        if !call.given.is_set("forever") {
            return match all {
                true => Ok(()),
                false => Err(Failure::plain(5, "")),
            };
        }
        say("\nnext check after 10 second...\n\n");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Asks a member itself, and says what it said.
fn is_healthy(call: &Call, member: &Value) -> bool {
    let id = text(member, "id");
    let urls = texts(member, "clientURLs");
    if urls.is_empty() {
        say(format!(
            "member {id} is unreachable: no available published client urls\n"
        ));
        return false;
    }
    for url in &urls {
        let path = |name| {
            let value = call.global.get(name);
            (!value.is_empty()).then(|| value.into())
        };
        let tls = TlsFlags {
            authority: path("ca-file"),
            certificate: path("cert-file"),
            key: path("key-file"),
            unverified: false,
        };
        let asked = Target::new(url, &tls, b"http/1.1").and_then(|target| {
            call.http
                .ask_one(&target, "/health")
                .map_err(|err| err.to_string())
        });
        let answer: Option<Value> = match asked {
            Ok(answer) => serde_json::from_slice(&answer.body).ok(),
            Err(err) => {
                say(format!(
                    "failed to check the health of member {id} on {url}: {err}\n"
                ));
                continue;
            }
        };
        let Some(answer) = answer else {
            say(format!(
                "failed to check the health of member {id} on {url}: its answer is no JSON\n"
            ));
            continue;
        };
        let healthy = text(&answer, "health") == "true"
            || answer.get("health").and_then(Value::as_bool) == Some(true);
        let word = if healthy { "healthy" } else { "unhealthy" };
        say(format!(
            "member {id} is {word}: got {word} result from {url}\n"
        ));
        return healthy;
    }
    let urls = urls.join(" ");
    say(format!(
        "member {id} is unreachable: [{urls}] are all unreachable\n"
    ));
    false
}
