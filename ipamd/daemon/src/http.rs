//! The two HTTP ports: metrics, and introspection on the loopback address. A busy port is tried again, never fatal.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use sluice_daemon::http::health::{self, Health};
use sluice_daemon::http::{METRICS_CONTENT, serve};

use crate::config::{Config, Effect, VARIABLES};
use crate::inbox::Handle;
use crate::metrics::Metrics;

/// What the handlers look at.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) config: Arc<Config>,
}

/// Serves metrics for as long as it is polled.
pub(crate) async fn serve_metrics(address: SocketAddr, pages: Pages) {
    let health = health(&pages);
    let router = Router::new().route("/metrics", get(metrics)).with_state(pages).merge(health);
    serve("metrics", address, router).await;
}

/// Serves introspection for as long as it is polled.
pub(crate) async fn serve_introspection(address: SocketAddr, pages: Pages) {
    let health = health(&pages);
    let router = Router::new()
        .route("/", get(index))
        .route("/v1/enis", get(enis))
        .route("/v1/pool", get(pool))
        .route("/v1/calls", get(calls))
        .route("/v1/ipamd-env-settings", get(daemon_settings))
        .route("/v1/networkutils-env-settings", get(network_settings))
        .with_state(pages)
        .merge(health);
    serve("introspection", address, router).await;
}

/// What a kubelet asks.
fn health(pages: &Pages) -> Router {
    let handle = pages.handle.clone();
    health::pages(move || {
        let handle = handle.clone();
        async move {
            match handle.look().await {
                Some(view) if view.ready => Health::Ready,
                Some(_) => Health::NotReady("no address can be handed out yet\n"),
                None => Health::Silent,
            }
        }
    })
}

async fn metrics(State(pages): State<Pages>) -> Response {
    if let Some(view) = pages.handle.look().await {
        pages.metrics.set_pool(&view.pool);
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT)], pages.metrics.encode()).into_response()
}

async fn index() -> Json<Value> {
    Json(json!({"AvailableCommands": [
        "/v1/enis", "/v1/pool", "/v1/calls", "/v1/ipamd-env-settings", "/v1/networkutils-env-settings"
    ]}))
}

/// VPC CNI's form: data stores by network card, ENIs in them.
async fn enis(State(pages): State<Pages>) -> Response {
    let Some(view) = pages.handle.look().await else { return silent() };
    let mut cards: BTreeMap<u32, BTreeMap<String, Value>> = BTreeMap::new();
    for (id, eni) in &view.enis {
        let cidrs: BTreeMap<String, Value> = eni
            .blocks
            .iter()
            .map(|(net, addresses)| {
                let addresses: BTreeMap<String, Value> = addresses
                    .iter()
                    .map(|(address, known)| {
                        let pod = known
                            .pod
                            .as_ref()
                            .map(|pod| json!({"k8sPodNamespace": pod.namespace, "k8sPodName": pod.name}));
                        (
                            address.to_string(),
                            json!({"Address": address, "State": known.state, "At": known.at, "IPAMMetadata": pod}),
                        )
                    })
                    .collect();
                (net.to_string(), json!({"Cidr": net, "IsPrefix": net.prefix_len() < 32, "IPAddresses": addresses}))
            })
            .collect();
        let described = json!({
            "ID": id, "MAC": eni.mac, "IsPrimary": eni.table == Some(sluice_contract::node::TABLE_MAIN),
            "DeviceNumber": eni.device, "RouteTableID": eni.table, "SubnetID": eni.subnet, "PrimaryIP": eni.primary_ip,
            "Stage": eni.stage, "AvailableIPv4Cidrs": cidrs,
        });
        cards.entry(eni.card).or_default().insert(id.to_string(), described);
    }
    let stores: BTreeMap<String, Value> = cards
        .into_iter()
        .map(|(card, enis)| {
            let (total, assigned) = view.cards.get(&card).copied().unwrap_or_default();
            (card.to_string(), json!({"TotalIPs": total, "AssignedIPs": assigned, "ENIs": enis}))
        })
        .collect();
    Json(stores).into_response()
}

async fn pool(State(pages): State<Pages>) -> Response {
    match pages.handle.look().await {
        Some(view) => Json(view).into_response(),
        None => silent(),
    }
}

async fn calls(State(pages): State<Pages>) -> Response {
    Json(pages.metrics.calls()).into_response()
}

async fn daemon_settings(State(pages): State<Pages>) -> Json<Value> {
    settings(&pages, Effect::Daemon)
}

async fn network_settings(State(pages): State<Pages>) -> Json<Value> {
    settings(&pages, Effect::Network)
}

/// The variables of one kind, and the settings in effect.
fn settings(pages: &Pages, kind: Effect) -> Json<Value> {
    let variables: BTreeMap<&str, Value> = VARIABLES
        .iter()
        .filter(|variable| variable.effect == kind)
        .map(|variable| (variable.name, json!({"default": variable.default, "meaning": variable.meaning})))
        .collect();
    let effective = match kind {
        Effect::Network => serde_json::to_value(&pages.config.network),
        Effect::Daemon | Effect::Later | Effect::Never => serde_json::to_value(&*pages.config),
    };
    Json(json!({"effective": effective.unwrap_or_default(), "variables": variables}))
}

fn silent() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response()
}
