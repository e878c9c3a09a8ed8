//! The environment of the store's unit: its flags, as etcd's variables.

use super::Plan;
use crate::machine::{Machine, Store};
use crate::problem::{Problem, Source, Sourced};

const PATH: &str = "/run/orlop/store.env";

pub(super) fn compile(machine: &Machine, plan: &mut Plan) {
    let store = &machine.store;
    let mut text = String::new();
    let mut first: Option<Source> = None;
    for (flag, value, source) in values(store) {
        if value.contains(|c: char| c.is_control()) {
            let message = format!("store: the value of {flag} holds a control character");
            plan.problems.push(Problem::error(source, message));
            continue;
        }
        text.push_str(&format!(
            "ETCD_{}={}\n",
            flag.to_uppercase(),
            quoted(&value)
        ));
        first.get_or_insert_with(|| source.clone());
    }
    let Some(source) = first else {
        return;
    };
    // The machine's name is what people know it by.
    if let (None, Some(hostname)) = (&store.name, &machine.hostname) {
        text.push_str(&format!("ETCD_NAME={}\n", quoted(hostname.value.as_str())));
    }
    plan.file(PATH, text, 0o600, &source);
}

fn values(store: &Store) -> Vec<(&'static str, String, &Source)> {
    let one = |value: &'_ Option<Sourced<String>>| value.as_ref().map(|v| v.value.clone());
    let many = |values: &[Sourced<String>]| {
        let values: Vec<&str> = values.iter().map(|v| v.value.as_str()).collect();
        values.join(",")
    };
    let mut out = Vec::new();
    let texts = [
        ("name", &store.name),
        ("initial_cluster_state", &store.initial_cluster_state),
        ("initial_cluster_token", &store.initial_cluster_token),
        ("discovery", &store.discovery),
        ("discovery_fallback", &store.discovery_fallback),
        ("cert_file", &store.cert_file),
        ("key_file", &store.key_file),
        ("trusted_ca_file", &store.trusted_ca_file),
        ("peer_cert_file", &store.peer_cert_file),
        ("peer_key_file", &store.peer_key_file),
        ("peer_trusted_ca_file", &store.peer_trusted_ca_file),
        ("quota_backend_bytes", &store.quota_backend_bytes),
        ("auto_compaction_mode", &store.auto_compaction_mode),
        (
            "auto_compaction_retention",
            &store.auto_compaction_retention,
        ),
    ];
    for (flag, value) in texts {
        if let (Some(text), Some(sourced)) = (one(value), value) {
            out.push((flag, text, &sourced.source));
        }
    }
    let lists = [
        ("join", &store.join),
        ("listen_client_urls", &store.listen_client_urls),
        ("advertise_client_urls", &store.advertise_client_urls),
        ("listen_peer_urls", &store.listen_peer_urls),
        (
            "initial_advertise_peer_urls",
            &store.initial_advertise_peer_urls,
        ),
        ("initial_cluster", &store.initial_cluster),
    ];
    for (flag, values) in lists {
        if let Some(first) = values.first() {
            out.push((flag, many(values), &first.source));
        }
    }
    if let Some(token) = &store.token {
        out.push(("token", token.value.reveal().to_owned(), &token.source));
    }
    let switches = [
        ("bootstrap", &store.bootstrap),
        ("client_cert_auth", &store.client_cert_auth),
        ("peer_client_cert_auth", &store.peer_client_cert_auth),
    ];
    for (flag, value) in switches {
        if let Some(value) = value {
            out.push((flag, value.value.to_string(), &value.source));
        }
    }
    out
}

/// As `EnvironmentFile=` reads it (systemd.exec(5)).
fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}
