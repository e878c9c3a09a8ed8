//! What etcd answers to plain HTTP on the client port, as far as health checks and scripts ask for it.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;

use super::shared::Shared;
use super::{CLUSTER_VERSION, ETCD_VERSION};

/// Adds the paths to the services.
pub(super) fn router(services: Router, shared: Arc<Shared>) -> Router {
    let router = super::v2::add(services, &shared);
    let (live, member, measured) = (
        Arc::clone(&shared),
        Arc::clone(&shared),
        Arc::clone(&shared),
    );
    // etcd's: alive as long as the member's thread is, and ready when it can say what holds now.
    let livez = move || {
        std::future::ready(if live.is_stopped() {
            (StatusCode::SERVICE_UNAVAILABLE, "the member has stopped\n")
        } else {
            (StatusCode::OK, "ok\n")
        })
    };
    let readyz = move || {
        let member = Arc::clone(&member);
        async move {
            match member.read(false).await {
                Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
                Err(status) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("[-]linearizable_read failed: {}\n", status.message()),
                ),
            }
        }
    };
    let metrics = move || {
        let text = super::metrics::text(&measured);
        std::future::ready(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
    };
    let health = move || {
        let status = shared.status();
        std::future::ready(if status.serves && !status.full {
            (StatusCode::OK, "{\"health\":\"true\"}")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "{\"health\":\"false\"}")
        })
    };
    let version = || async {
        let body =
            format!("{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\"}}");
        ([(CONTENT_TYPE, "application/json")], body).into_response()
    };
    // Whoever does not speak gRPC is told so in HTTP's words.
    let unknown = |uri: Uri, headers: HeaderMap| async move {
        let grpc = headers
            .get(CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
        if grpc {
            let what = match uri.path().starts_with("/etcdserverpb.Auth/") {
                true => "etcdserver: users and roles are not supported",
                false => "",
            };
            tonic::Status::unimplemented(what).into_http::<tonic::body::Body>()
        } else {
            (StatusCode::NOT_FOUND, "404 page not found\n")
                .into_response()
                .map(tonic::body::Body::new)
        }
    };
    router
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .fallback(unknown)
}
