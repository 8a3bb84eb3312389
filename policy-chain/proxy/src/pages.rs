//! The two HTTP ports: metrics, and introspection on the loopback address.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use serde_json::{Value, json};
use sluice_daemon::http::health::{self, Health};
use sluice_daemon::http::{METRICS_CONTENT, serve};
use sluice_policy_bpf::reader::Reader;
use tokio::time::Instant;

use crate::config::{Config, VARIABLES};
use crate::connections::{Connections, Open};
use crate::metrics::Metrics;
use crate::policy::{Looks, Pushed};
use crate::policyd::Status;
use crate::record::json::{Line, lines};
use crate::record::ring::Ring;
use crate::worker::Flows;

/// Records of one answer, at most.
const MOST: usize = 10_000;

/// Records of one answer, if nothing else is asked for.
const USUAL: usize = 100;

/// How long one that follows is told: less than a connection lives (a minute).
const FOLLOWED: Duration = Duration::from_secs(55);

/// How often one that follows is told what is new.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// What the handlers look at.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    pub(crate) config: Arc<Config>,
    pub(crate) ring: Arc<Ring>,
    pub(crate) policy: Arc<Pushed<Reader>>,
    pub(crate) status: Arc<Status>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) metrics: Arc<Metrics>,
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
        .route("/", get(index))
        .route("/v1/connections", get(connections))
        .route("/v1/policy", get(policy))
        .route("/v1/records", get(records))
        .route("/v1/settings", get(settings))
        .with_state(pages.clone())
        .merge(health(&pages));
    tokio::join!(
        serve_at("metrics", pages.config.metrics_address, metrics_page),
        serve_at("introspection", pages.config.introspection_address, introspection_pages),
    );
}

/// What a kubelet asks. A worker that has ended ends the process; so what answers here lives.
fn health(pages: &Pages) -> Router {
    let metrics = Arc::clone(&pages.metrics);
    health::pages(move || {
        let serving = metrics.serving();
        async move { if serving { Health::Ready } else { Health::NotReady("what gates redirect is not served\n") } }
    })
}

async fn metrics(State(pages): State<Pages>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_CONTENT)], pages.metrics.encode()).into_response()
}

async fn index() -> Json<Value> {
    Json(json!({"AvailableCommands": ["/v1/connections", "/v1/policy", "/v1/records", "/v1/settings"]}))
}

async fn connections(State(pages): State<Pages>, uri: Uri) -> Response {
    let most = match Asked::read(uri.query().unwrap_or_default()) {
        Ok(Asked { after: None, most, follow: false }) => most.unwrap_or(USUAL).min(MOST),
        Ok(_) => {
            return (StatusCode::BAD_REQUEST, "connections have no numbers: most is all that can be asked\n")
                .into_response();
        }
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    };
    let now = SystemTime::now();
    let oldest: Vec<Value> = pages.connections.oldest(most).iter().map(|open| connection(open, now)).collect();
    Json(json!({"open": pages.flows.open.load(Ordering::Relaxed), "oldest": oldest})).into_response()
}

fn connection(open: &Open, now: SystemTime) -> Value {
    let Open { flow, since, rules, backend } = open;
    let looks = match rules.looks {
        Looks::Nothing => "nothing",
        Looks::Http => "HTTP",
        Looks::Tls => "TLS",
        Looks::HttpOrTls => "HTTP or TLS",
        Looks::Dns => "DNS",
    };
    let mut value = json!({
        "pod": rules.pod.to_string(),
        "direction": flow.direction.as_str(),
        "client": flow.client,
        "server": flow.server,
        "protocol": "TCP",
        "looked_at": looks,
        "age_s": now.duration_since(*since).unwrap_or_default().as_secs(),
        "rules": rules.lists.iter().map(|list| &*list.rule).collect::<Vec<_>>(),
        "otherwise": &*rules.otherwise.reason,
    });
    if let (Some(backend), Some(map)) = (backend.filter(|backend| *backend != flow.server), value.as_object_mut()) {
        map.insert("backend".to_owned(), json!(backend));
    }
    value
}

async fn policy(State(pages): State<Pages>) -> Json<Value> {
    Json(json!({
        "process": std::process::id(),
        "serving": pages.metrics.serving(),
        "policyd": pages.status.connected(),
        "version": pages.status.version(),
        "faults": pages.policy.faults(),
        "known": pages.policy.sizes(),
    }))
}

/// What is asked of records.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    /// Records after the one of this number only.
    after: Option<u64>,
    /// So many at most.
    most: Option<usize>,
    /// Lines of JSON, oldest first, and then what comes.
    follow: bool,
}

impl Asked {
    /// Reads a query string. An error says what is wrong with it.
    fn read(query: &str) -> Result<Self, String> {
        let mut asked = Self::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = || format!("{name}={value:?}: it must be a whole number\n");
            match name {
                "after" => asked.after = Some(value.parse().map_err(|_error| wrong())?),
                "most" => asked.most = Some(value.parse().map_err(|_error| wrong())?),
                "follow" => asked.follow = true,
                _ => return Err(format!("{name:?} is none of after, most and follow\n")),
            }
        }
        Ok(asked)
    }
}

async fn records(State(pages): State<Pages>, uri: Uri) -> Response {
    let asked = match Asked::read(uri.query().unwrap_or_default()) {
        Ok(asked) => asked,
        Err(wrong) => return (StatusCode::BAD_REQUEST, wrong).into_response(),
    };
    if asked.follow {
        return follow(Arc::clone(&pages.ring), asked.after.unwrap_or_else(|| pages.ring.last()));
    }
    let mut found = pages.ring.after(asked.after.unwrap_or(0), asked.most.unwrap_or(USUAL).min(MOST));
    found.reverse();
    let newest_first: Vec<Line<'_>> = found.iter().map(Line::from).collect();
    Json(json!(newest_first)).into_response()
}

/// What comes, for a while; a last line says that it ends, and how to go on.
fn follow(ring: Arc<Ring>, after: u64) -> Response {
    let end = Instant::now() + FOLLOWED;
    let coming = stream::unfold(Some((ring, after)), move |state| async move {
        let (ring, after) = state?;
        loop {
            let new = ring.after(after, MOST);
            if let Some((last, _)) = new.last() {
                let text = Bytes::from(lines(&new));
                return Some((Ok::<_, Infallible>(text), Some((ring, *last))));
            }
            if Instant::now() >= end {
                let last = json!({"kind": "end", "reason": "a connection is served for so long", "go_on": format!(
                    "/v1/records?follow&after={after}")});
                return Some((Ok(Bytes::from(format!("{last}\n"))), None));
            }
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    });
    ([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(coming)).into_response()
}

async fn settings(State(pages): State<Pages>) -> Json<Value> {
    let variables: serde_json::Map<String, Value> = VARIABLES
        .iter()
        .map(|variable| (variable.name.to_owned(), json!({"default": variable.default, "meaning": variable.meaning})))
        .collect();
    Json(json!({"effective": &*pages.config, "variables": variables}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_records_is_read_or_refused() {
        assert_eq!(Asked::read(""), Ok(Asked::default()));
        let asked = Asked { after: Some(7), most: Some(3), follow: true };
        assert_eq!(Asked::read("after=7&most=3&follow"), Ok(asked));
        assert!(Asked::read("after=x").unwrap_err().contains("whole number"));
        assert!(Asked::read("before=1").unwrap_err().contains("before"));
    }
}
