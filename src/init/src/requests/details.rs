//! What `Show` tells beyond a unit's state: its files' settings, and how it hangs together with others.

use orlop_unit::socket::{Address, Listen};
use orlop_unit::{Edge, Graph, NotifyAccess, ProcessEnd, Restart, ServiceType, UnitId};
use serde_json::{Map, Value, json};

use crate::service::Run;

/// A unit's names, edges, documentation, and what it listens on.
pub(super) fn unit(graph: &Graph, id: UnitId) -> Vec<(&'static str, Value)> {
    let related = |edge: Edge| -> Vec<&str> {
        graph
            .related(id, edge)
            .map(|other| graph.name(other).as_str())
            .collect()
    };
    let mut dependencies = Map::new();
    for (edge, other) in graph.edges(id) {
        let list = dependencies
            .entry(format!("{edge:?}"))
            .or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(json!(graph.name(*other).as_str()));
        }
    }
    let mut details = vec![
        ("dependencies", Value::Object(dependencies)),
        ("triggers", json!(related(Edge::Triggers))),
        ("triggered_by", json!(related(Edge::TriggeredBy))),
    ];
    if let Some(unit) = graph.unit(id) {
        let aliases = unit.aliases.iter().map(|name| name.as_str());
        let names: Vec<&str> = std::iter::once(unit.name.as_str()).chain(aliases).collect();
        details.push(("names", json!(names)));
        details.push(("documentation", json!(unit.documentation)));
        if let orlop_unit::Kind::Socket(socket) = &unit.kind {
            let listen: Vec<String> = socket.listen.iter().map(listen).collect();
            details.push(("listen", json!(listen)));
        }
    }
    details
}

fn listen(listen: &Listen) -> String {
    let address = |address: &Address| match address {
        Address::Port(port) => format!("[::]:{port}"),
        Address::Inet(address) => address.to_string(),
        Address::Path(path) => path.clone(),
        Address::Abstract(name) => format!("@{name}"),
    };
    match listen {
        Listen::Stream(at) | Listen::Datagram(at) | Listen::SequentialPacket(at) => address(at),
        Listen::Fifo(path) | Listen::Special(path) => path.clone(),
        Listen::Netlink { family, group } => format!("{family} {group}"),
    }
}

/// A service's settings, and how its last main process ended.
pub(super) fn service(run: &Run) -> Vec<(&'static str, Value)> {
    let service = run.service();
    let service_type = match service.service_type {
        ServiceType::Simple => "simple",
        ServiceType::Exec => "exec",
        ServiceType::Forking => "forking",
        ServiceType::Oneshot => "oneshot",
        ServiceType::Notify => "notify",
        ServiceType::NotifyReload => "notify-reload",
        ServiceType::Idle => "idle",
        ServiceType::Container => "container",
    };
    let restart = match service.restart {
        Restart::No => "no",
        Restart::Always => "always",
        Restart::OnSuccess => "on-success",
        Restart::OnFailure => "on-failure",
        Restart::OnAbnormal => "on-abnormal",
        Restart::OnAbort => "on-abort",
        Restart::OnWatchdog => "on-watchdog",
    };
    let notify_access = match service.notify_access {
        NotifyAccess::None => "none",
        NotifyAccess::Main => "main",
        NotifyAccess::Exec => "exec",
        NotifyAccess::All => "all",
    };
    let slice = service
        .slice
        .as_ref()
        .map_or("system.slice", |s| s.as_str());
    let mut details = vec![
        ("type", json!(service_type)),
        ("restart", json!(restart)),
        ("notify_access", json!(notify_access)),
        ("user", json!(service.user)),
        ("group", json!(service.group)),
        ("slice", json!(slice)),
    ];
    if let Some(end) = run.main_end {
        // `CLD_EXITED`, `CLD_KILLED`, `CLD_DUMPED` of sigaction(2).
        let (code, status, words) = match end {
            ProcessEnd::Exited(status) => {
                let name = orlop_unit::value::exit_code_name(status);
                let name = name.map_or_else(String::new, |name| format!("/{name}"));
                (
                    1,
                    i32::from(status),
                    format!("code=exited, status={status}{name}"),
                )
            }
            ProcessEnd::Killed(signal) => (2, signal.0, format!("code=killed, signal={signal}")),
            ProcessEnd::Dumped(signal) => (3, signal.0, format!("code=dumped, signal={signal}")),
        };
        details.push(("exec_main_code", json!(code)));
        details.push(("exec_main_status", json!(status)));
        details.push(("main_end", json!(words)));
    }
    details
}
