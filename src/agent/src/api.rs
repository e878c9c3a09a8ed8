//! fleet's HTTP API, version 1 (reads from the registry, writes to the store), and what fleet lacked: `why`.

mod machines;
mod page;
mod units;

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::agent::{AgentError, Settings, Shared};
use crate::client::{Condition, Write};
use crate::metrics;

/// How long an answer waits until the registry has seen what was written.
const CATCH_UP: Duration = Duration::from_secs(3);
/// What fleet said when it had no etcd.
const NO_STORE: &str = "fleet server unable to communicate with etcd";

/// The sockets on which the API is served.
pub(crate) struct Faces {
    tcp: Vec<TcpListener>,
    unix: Option<UnixListener>,
}

impl Faces {
    /// The addresses of those with one.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp
            .iter()
            .filter_map(|l| l.local_addr().ok())
            .collect()
    }
}

pub(crate) async fn bind(settings: &Settings) -> Result<Faces, AgentError> {
    let failed = |address: String| move |err| AgentError::Listen { address, err };
    let mut tcp = Vec::new();
    for address in &settings.listen {
        let listener = TcpListener::bind(address).await;
        tcp.push(listener.map_err(failed(address.to_string()))?);
    }
    let mut unix = None;
    if let Some(path) = &settings.socket {
        let open = || {
            match std::fs::remove_file(path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            std::os::unix::fs::chown(path, None, settings.socket_group)?;
            std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
            Ok(listener)
        };
        unix = Some(open().map_err(failed(path.display().to_string()))?);
    }
    Ok(Faces { tcp, unix })
}

/// Serves until a listener breaks.
pub(crate) async fn serve(faces: Faces, shared: Arc<Shared>) -> Result<(), AgentError> {
    let mut servers = JoinSet::new();
    let may_write = shared.settings.listen_for_writes;
    for listener in faces.tcp {
        let address = listener
            .local_addr()
            .map_or_else(|_| String::new(), |a| a.to_string());
        let router = router(Arc::clone(&shared), may_write);
        servers.spawn(async move { (address, axum::serve(listener, router).await) });
    }
    if let Some(listener) = faces.unix {
        let router = router(Arc::clone(&shared), true);
        servers
            .spawn(async move { ("the socket".to_owned(), axum::serve(listener, router).await) });
    }
    match servers.join_next().await {
        Some(Ok((address, Err(err)))) => Err(AgentError::Listen { address, err }),
        // Without a listener there is nothing to serve, and a server ends by an error alone.
        _ => std::future::pending().await,
    }
}

/// What a handler gets.
#[derive(Clone)]
struct Face {
    shared: Arc<Shared>,
    may_write: bool,
}

fn router(shared: Arc<Shared>, may_write: bool) -> Router {
    let face = Face { shared, may_write };
    let api = || {
        Router::new()
            .route("/units", get(list_units))
            .route(
                "/units/{name}",
                get(get_unit).put(put_unit).delete(delete_unit),
            )
            .route("/state", get(list_states))
            .route("/state/{name}", get(get_states))
            .route("/machines", get(list_machines).patch(patch_machines))
            .route("/why/{name}", get(why))
            .route("/discovery", get(discovery))
    };
    Router::new()
        .nest("/fleet/v1", api())
        .nest("/v1-alpha", api())
        .route("/metrics", get(show_metrics))
        .route("/readyz", get(readyz))
        .fallback(|| async { Refusal::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .method_not_allowed_fallback(|| async {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "that cannot be done here")
        })
        .with_state(face)
}

/// Whether this machine is one of the cluster now: it follows the store, which holds its lease.
async fn readyz(State(face): State<Face>) -> Response {
    let state = face.shared.state();
    let reason = if !state.synced {
        "the store does not answer"
    } else if state.lease.is_none() {
        "the machine is not registered"
    } else {
        return answer(&json!({ "ready": true }));
    };
    let body = json!({ "ready": false, "reason": reason });
    (StatusCode::SERVICE_UNAVAILABLE, answer(&body)).into_response()
}

/// An error as fleet's clients expect it.
#[derive(Debug)]
struct Refusal {
    code: StatusCode,
    message: String,
}

impl Refusal {
    fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.code.as_u16();
        let body = json!({ "error": { "code": code, "message": self.message } });
        (self.code, answer(&body)).into_response()
    }
}

/// A body with the headers that fleet sent.
fn answer(body: &Value) -> Response {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("fleetd/", env!("CARGO_PKG_VERSION"))),
    );
    (headers, body.to_string()).into_response()
}

type Answer = Result<Response, Refusal>;

impl Face {
    /// Refuses while the registry does not follow the store.
    fn read<T>(&self, read: impl FnOnce(&crate::agent::State) -> T) -> Result<T, Refusal> {
        let state = self.shared.state();
        if !state.synced {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, NO_STORE));
        }
        Ok(read(&state))
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        if self.may_write {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "changes are taken on the socket /run/fleet.sock alone",
        ))
    }

    /// Writes, and waits until the registry knows of it; whether the conditions held.
    async fn write(&self, conditions: &[Condition], writes: &[Write]) -> Result<bool, Refusal> {
        let shared = &self.shared;
        let written = shared.client.transact(conditions, writes).await;
        let (done, revision) = written.map_err(|err| {
            log::warn!("cannot write: {}", crate::agent::chain(&err));
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, NO_STORE)
        })?;
        let mut changes = shared.subscribe();
        let caught_up = async {
            while shared.state().revision < revision {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // A registry that lags behind answers late, not wrongly: what was written is written.
        let _ = tokio::time::timeout(CATCH_UP, caught_up).await;
        Ok(done)
    }
}

async fn list_units(State(face): State<Face>, RawQuery(query): RawQuery) -> Answer {
    let page = page::Page::parse(query.as_deref()).map_err(Refusal::bad)?;
    let all = face.read(|state| units::list(&state.registry))?;
    Ok(answer(&page.cut("units", all)))
}

async fn get_unit(State(face): State<Face>, Path(name): Path<String>) -> Answer {
    let unit = units::parse_name(&name)?;
    let found = face.read(|state| units::one(&state.registry, &unit))?;
    let found = found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "unit does not exist"))?;
    Ok(answer(&found))
}

async fn put_unit(
    State(face): State<Face>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    face.check_writable()?;
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if kind != Some("application/json") {
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "application/json is expected",
        ));
    }
    let unit = units::parse_name(&name)?;
    let put = units::Put::parse(&unit, &body)?;
    let plan = face.read(|state| put.plan(&state.registry, &unit))??;
    face.write(&[], &plan.writes).await?;
    Ok(plan.code.into_response())
}

async fn delete_unit(State(face): State<Face>, Path(name): Path<String>) -> Answer {
    face.check_writable()?;
    let unit = units::parse_name(&name)?;
    let known = face.read(|state| state.registry.units.contains_key(&unit))?;
    if !known {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "unit does not exist"));
    }
    face.write(&[], &units::destroy(&unit)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_states(State(face): State<Face>, RawQuery(query): RawQuery) -> Answer {
    let page = page::Page::parse(query.as_deref()).map_err(Refusal::bad)?;
    let value = |key: &str| page::value(query.as_deref(), key);
    let (machine, unit) = (value("machineID"), value("unitName"));
    let all =
        face.read(|state| units::states(&state.registry, machine.as_deref(), unit.as_deref()))?;
    Ok(answer(&page.cut("states", all)))
}

async fn get_states(State(face): State<Face>, Path(name): Path<String>) -> Answer {
    let unit = units::parse_name(&name)?;
    let all = face.read(|state| units::states(&state.registry, None, Some(unit.as_str())))?;
    Ok(answer(&json!({ "states": all })))
}

async fn list_machines(State(face): State<Face>, RawQuery(query): RawQuery) -> Answer {
    let page = page::Page::parse(query.as_deref()).map_err(Refusal::bad)?;
    let all = face.read(|state| machines::list(&state.registry))?;
    Ok(answer(&page.cut("machines", all)))
}

async fn patch_machines(State(face): State<Face>, body: Bytes) -> Answer {
    face.check_writable()?;
    let changes = machines::parse_patch(&body)?;
    // Another's change in between is seen and taken in.
    for _ in 0..4 {
        let (conditions, writes) = face.read(|state| machines::patch(&state.registry, &changes))?;
        if face.write(&conditions, &writes).await? {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
    }
    Err(Refusal::new(
        StatusCode::CONFLICT,
        "the metadata is being changed by others too",
    ))
}

async fn why(State(face): State<Face>, Path(name): Path<String>) -> Answer {
    let unit = units::parse_name(&name)?;
    let why = face.read(|state| units::why(&state.registry, &unit))?;
    Ok(answer(&why))
}

async fn discovery(State(_): State<Face>) -> Response {
    let methods = |path: &str, methods: &[&Method]| {
        let methods: Vec<&str> = methods.iter().map(|m| m.as_str()).collect();
        json!({ "path": path, "methods": methods })
    };
    answer(&json!({
        "kind": "discovery#restDescription",
        "name": "fleet",
        "version": "v1",
        "title": "fleet API",
        "basePath": "/fleet/v1/",
        "resources": [
            methods("units", &[&Method::GET]),
            methods("units/{unitName}", &[&Method::GET, &Method::PUT, &Method::DELETE]),
            methods("state", &[&Method::GET]),
            methods("state/{unitName}", &[&Method::GET]),
            methods("machines", &[&Method::GET, &Method::PATCH]),
            methods("why/{unitName}", &[&Method::GET]),
        ],
    }))
}

async fn show_metrics(State(face): State<Face>) -> Response {
    let state = face.shared.state();
    let registry = &state.registry;
    let placements: usize = registry
        .placements
        .values()
        .map(std::collections::BTreeMap::len)
        .sum();
    let mut text = String::new();
    for (name, help, value) in [
        (
            "orlop_fleet_machines",
            "Machines that are heard.",
            registry.present.len(),
        ),
        (
            "orlop_fleet_units",
            "Units that are known.",
            registry.units.len(),
        ),
        ("orlop_fleet_placements", "Units on machines.", placements),
        (
            "orlop_fleet_store_reachable",
            "Whether the store is followed.",
            usize::from(state.synced),
        ),
    ] {
        metrics::gauge(&mut text, name, help, value as u64);
    }
    drop(state);
    metrics::engine(&mut text, &face.shared.engine_metrics);
    metrics::registry(&mut text, face.shared.client.requests());
    // Prometheus' text format, version 0.0.4.
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, text).into_response()
}
