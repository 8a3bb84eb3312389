//! The two HTTP ports: metrics, and introspection on the loopback address.

mod node;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use sluice_daemon::aws_node;
use sluice_daemon::http::health::{self, Health};
use sluice_daemon::http::{METRICS_CONTENT, serve};

use crate::config::{Config, VARIABLES};
use crate::flows::{Flows, Node};
use crate::inbox::Handle;
use crate::metrics::Metrics;

/// What the handlers look at.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
    pub(crate) flows: Flows,
    pub(crate) flow_node: Node,
}

/// Serves both ports for as long as it is polled.
pub(crate) async fn serve_pages(pages: Pages) {
    let serve_at = |what, address: Option<SocketAddr>, router: Router| async move {
        if let Some(address) = address {
            serve(what, address, router).await;
        }
    };
    let metrics_page = Router::new().route("/metrics", get(metrics)).with_state(pages.clone()).merge(health(&pages));
    let introspection_pages = Router::new()
        .route("/", get(node::root))
        .route("/v1/flows", get(node::flows))
        .route("/v1/node", get(node::node))
        .route("/v1/names", get(names))
        .route("/v1/objects", get(objects))
        .route("/v1/policy", get(policy))
        .route("/v1/settings", get(settings))
        .with_state(pages.clone())
        .merge(health(&pages));
    tokio::join!(
        serve_at("metrics", pages.config.metrics_address, metrics_page),
        serve_at("introspection", pages.config.introspection_address, introspection_pages),
    );
}

/// What a kubelet asks.
fn health(pages: &Pages) -> Router {
    let handle = pages.handle.clone();
    health::pages(move || {
        let handle = handle.clone();
        async move {
            match handle.look().await {
                Some(view) if view.aws_node => Health::NotReady(aws_node::SERVES),
                Some(view) if view.serving => Health::Ready,
                Some(_) => Health::NotReady("the cluster's policies are not known yet\n"),
                None => Health::Silent,
            }
        }
    })
}

async fn metrics(State(pages): State<Pages>) -> Response {
    if let Some(view) = pages.handle.look().await {
        pages.metrics.set(&view);
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT)], pages.metrics.encode()).into_response()
}

async fn policy(State(pages): State<Pages>) -> Response {
    match pages.handle.look().await {
        Some(view) => Json(view).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response(),
    }
}

async fn names(State(pages): State<Pages>) -> Response {
    match pages.handle.look_at_names().await {
        Some(view) => Json(view).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response(),
    }
}

async fn objects(State(pages): State<Pages>) -> Response {
    match pages.handle.look_at_objects().await {
        Some(objects) => Json(objects).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response(),
    }
}

async fn settings(State(pages): State<Pages>) -> Json<Value> {
    let variables: serde_json::Map<String, Value> = VARIABLES
        .iter()
        .map(|variable| (variable.name.to_owned(), json!({"default": variable.default, "meaning": variable.meaning})))
        .collect();
    Json(json!({"effective": &*pages.config, "variables": variables}))
}
