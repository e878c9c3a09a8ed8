//! What etcd answers to plain HTTP on the client port, as far as health checks and scripts ask for it.

use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use axum::routing::get;
use tonic::service::Routes;

use super::shared::Shared;
use super::{CLUSTER_VERSION, ETCD_VERSION};

/// Adds the paths to the services.
pub(super) fn add(services: Routes, shared: Arc<Shared>) -> Routes {
    let router = super::v2::add(services.into_axum_router(), &shared);
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
    let unknown = |headers: HeaderMap| async move {
        let grpc = headers
            .get(CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
        if grpc {
            tonic::Status::unimplemented("").into_http::<tonic::body::Body>()
        } else {
            (StatusCode::NOT_FOUND, "404 page not found\n")
                .into_response()
                .map(tonic::body::Body::new)
        }
    };
    let router = router
        .route("/health", get(health))
        .route("/version", get(version))
        .fallback(unknown);
    Routes::from(router)
}
