//! What stands under `/_vpcsim/`; the table of it is with [`super`].

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::http::{self, Body};
use crate::live::LiveModel;
use crate::model::behaviour::Span;
use crate::model::{CallRecord, Fault};

#[derive(Serialize)]
struct Calls {
    total: u64,
    counts: BTreeMap<String, u64>,
    calls: Vec<CallRecord>,
}

/// Settings that can be changed while the model lives; what is absent stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    time_scale: Option<f64>,
    throttle: Option<bool>,
    describe_lag_millis: Option<u64>,
    imds_lag_millis: Option<u64>,
    /// Shortest and longest time from AttachNetworkInterface to the link.
    link_millis: Option<(u64, u64)>,
    /// Shortest and longest time from DetachNetworkInterface to the free ENI.
    detach_millis: Option<(u64, u64)>,
}

pub(super) fn handle(live: &LiveModel, method: &Method, path: &str, query: &str, body: &[u8]) -> Response<Body> {
    match (method, path) {
        (&Method::GET, "health") => {
            let now = u64::try_from(live.now().as_millis()).unwrap_or(u64::MAX);
            http::json(StatusCode::OK, &serde_json::json!({ "now_millis": now }))
        }
        (&Method::GET, "calls") => {
            let since = match query.strip_prefix("since=").map(str::parse) {
                None => 0,
                Some(Ok(since)) => since,
                Some(Err(_)) => return http::text(StatusCode::BAD_REQUEST, "since must be the number of a call"),
            };
            let calls = live.with(|model, _| {
                let log = model.log();
                let calls = log.records().filter(|record| record.number > since).cloned().collect();
                Calls { total: log.total(), counts: log.counts().clone(), calls }
            });
            http::json(StatusCode::OK, &calls)
        }
        (&Method::GET, "state") => {
            let (state, _) = live.snapshot();
            http::json(StatusCode::OK, &*state)
        }
        (&Method::GET, "faults") => {
            let faults = live.with(|model, _| model.faults().to_vec());
            http::json(StatusCode::OK, &faults)
        }
        (&Method::POST, "faults") => match serde_json::from_slice::<Fault>(body) {
            Err(error) => http::text(StatusCode::BAD_REQUEST, error.to_string()),
            Ok(fault) => match live.with(|model, _| model.add_fault(fault)) {
                Ok(()) => http::text(StatusCode::OK, "set"),
                Err(error) => http::text(StatusCode::BAD_REQUEST, error.message),
            },
        },
        (&Method::DELETE, "faults") => {
            live.with(|model, _| model.clear_faults());
            http::text(StatusCode::OK, "cleared")
        }
        (&Method::POST, "settings") => match serde_json::from_slice::<Change>(body) {
            Err(error) => http::text(StatusCode::BAD_REQUEST, error.to_string()),
            Ok(change) => change.apply(live),
        },
        _ => http::text(StatusCode::NOT_FOUND, "there is no such thing under /_vpcsim/"),
    }
}

impl Change {
    fn apply(self, live: &LiveModel) -> Response<Body> {
        if self.time_scale.is_some_and(|scale| !scale.is_finite() || scale < 0.0) {
            return http::text(StatusCode::BAD_REQUEST, "time_scale must be 0 or more");
        }
        live.with(|model, _| {
            let settings = model.settings_mut();
            settings.time_scale = self.time_scale.unwrap_or(settings.time_scale);
            settings.throttle = self.throttle.unwrap_or(settings.throttle);
            settings.describe_lag = self.describe_lag_millis.map_or(settings.describe_lag, Duration::from_millis);
            let span = |(shortest, longest)| Span::from_millis(shortest, longest);
            settings.link = self.link_millis.map_or(settings.link, span);
            settings.detach = self.detach_millis.map_or(settings.detach, span);
            settings.imds_lag = self.imds_lag_millis.map_or(settings.imds_lag, Duration::from_millis);
        });
        http::text(StatusCode::OK, "changed")
    }
}
