//! The HTTP ports: metrics, introspection on the loopback address, and health, which is served from the start on. A busy port is tried
//! again, never fatal.

use std::collections::BTreeMap;
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
use tokio::sync::watch;

use crate::config::{Effect, VARIABLES};
use crate::inbox::{Handle, InForce};
use crate::metrics::Metrics;

/// What the handlers look at.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
}

/// How far the start has come.
#[derive(Debug, Clone)]
pub(crate) enum Stage {
    /// The AWS VPC CNI's daemon serves the node.
    AwsNode,
    /// The state is read.
    Starting,
    /// The loop runs.
    Running(Handle),
}

/// Serves health alone for as long as it is polled, whatever the stage.
pub(crate) async fn serve_health(address: SocketAddr, stage: watch::Receiver<Stage>) {
    let pages = health::pages(move || {
        let stage = stage.borrow().clone();
        async move {
            match stage {
                Stage::AwsNode => Health::NotReady(aws_node::SERVES),
                Stage::Starting => Health::NotReady("ipamd is starting\n"),
                Stage::Running(handle) => of_loop(&handle).await,
            }
        }
    });
    serve("health", address, pages).await;
}

/// Serves metrics for as long as it is polled.
pub(crate) async fn serve_metrics(address: SocketAddr, pages: Pages) {
    let health = health(&pages);
    let router = Router::new().route("/metrics", get(metrics)).with_state(pages).merge(health);
    serve("metrics", address, router).await;
}

/// Serves introspection for as long as it is polled.
pub(crate) async fn serve_introspection(address: SocketAddr, pages: Pages) {
    serve("introspection", address, introspection(pages)).await;
}

fn introspection(pages: Pages) -> Router {
    let health = health(&pages);
    Router::new()
        .route("/", get(index))
        .route("/v1/enis", get(enis))
        .route("/v1/eni-configs", get(eni_configs))
        .route("/v1/pool", get(pool))
        .route("/v1/calls", get(calls))
        .route("/v1/ipamd-env-settings", get(daemon_settings))
        .route("/v1/networkutils-env-settings", get(network_settings))
        .with_state(pages)
        .merge(health)
}

/// What a kubelet asks.
fn health(pages: &Pages) -> Router {
    let handle = pages.handle.clone();
    health::pages(move || {
        let handle = handle.clone();
        async move { of_loop(&handle).await }
    })
}

async fn of_loop(handle: &Handle) -> Health {
    match handle.look().await {
        Some(view) if view.ready => Health::Ready,
        Some(_) => Health::NotReady("no address can be handed out yet\n"),
        None => Health::Silent,
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    if let Some(view) = pages.handle.look().await {
        pages.metrics.set_pool(&view.pool);
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT)], pages.metrics.encode()).into_response()
}

async fn index() -> Json<Value> {
    Json(json!({"AvailableCommands": [
        "/v1/enis", "/v1/eni-configs", "/v1/pool", "/v1/calls", "/v1/ipamd-env-settings",
        "/v1/networkutils-env-settings"
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

/// The `spec` of the node's ENIConfig, as VPC CNI has it, and beside it the object's name; an empty object where there is none.
async fn eni_configs(State(pages): State<Pages>) -> Response {
    let Some(in_force) = pages.handle.in_force().await else { return silent() };
    let spec = in_force.eni_config.map_or_else(
        || json!({}),
        |config| json!({"name": config.name, "securityGroups": config.security_groups, "subnet": config.subnet}),
    );
    Json(spec).into_response()
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

async fn daemon_settings(State(pages): State<Pages>) -> Response {
    settings(&pages, Effect::Daemon).await
}

async fn network_settings(State(pages): State<Pages>) -> Response {
    settings(&pages, Effect::Network).await
}

/// The variables of one kind, and the settings in effect: the loop's own, which the cluster may have changed since the start.
async fn settings(pages: &Pages, kind: Effect) -> Response {
    let Some(InForce { config, .. }) = pages.handle.in_force().await else { return silent() };
    let variables: BTreeMap<&str, Value> = VARIABLES
        .iter()
        .filter(|variable| variable.effect == kind)
        .map(|variable| (variable.name, json!({"default": variable.default, "meaning": variable.meaning})))
        .collect();
    let effective = match kind {
        Effect::Network => serde_json::to_value(&config.network),
        Effect::Daemon | Effect::Later | Effect::Never => serde_json::to_value(&config),
    };
    Json(json!({"effective": effective.unwrap_or_default(), "variables": variables})).into_response()
}

fn silent() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not answer\n").into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::inbox::{INBOX_LIMIT, Input};

    /// Status and body of a page.
    async fn get(address: SocketAddr, path: &'static str) -> (u16, String) {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// The pages of a daemon whose loop takes no inputs: it has hung, or is gone.
    async fn of_a_hung_daemon(handle: Handle) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages = Pages { handle, metrics: Arc::new(Metrics::new()) };
        let router = introspection(pages);
        let served = tokio::spawn(async move { axum::serve(listener, router).await });
        let pages = ["/livez", "/readyz", "/v1/pool", "/v1/enis", "/v1/eni-configs", "/v1/ipamd-env-settings"];
        let asked = pages.map(|page| (page, tokio::spawn(get(address, page))));
        for (page, answer) in asked {
            let silent = (503, "the daemon's loop does not answer\n".to_owned());
            assert_eq!(answer.await.unwrap(), silent, "{page}");
        }
        // What needs no loop is answered.
        assert_eq!(get(address, "/v1/calls").await, (200, "{}".to_owned()));
        served.abort();
    }

    #[tokio::test]
    async fn a_loop_that_does_not_take_its_inputs_is_neither_alive_nor_ready() {
        let (handle, _inputs) = Handle::new();
        of_a_hung_daemon(handle).await;
    }

    /// Requests of plugins have filled its inbox: whoever asks after it must not wait for room.
    #[tokio::test]
    async fn nor_is_one_whose_inputs_have_no_room_left() {
        let (handle, _inputs) = Handle::new();
        for _ in 0..INBOX_LIMIT {
            handle.send(Input::Look(tokio::sync::oneshot::channel().0)).await;
        }
        of_a_hung_daemon(handle).await;
    }

    #[tokio::test]
    async fn nor_is_one_that_has_ended() {
        let (handle, inputs) = Handle::new();
        drop(inputs);
        of_a_hung_daemon(handle).await;
    }
}
