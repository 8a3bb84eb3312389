//! The EC2 API over HTTP, as aws-sdk-ec2, the AWS CLI and boto3 speak it: the Query protocol (a form is posted, XML comes
//! back). Signatures are not checked.
//!
//! Beside it stands what tests and the demo ask of a simulator and EC2 has no call for, as JSON:
//!
//! | request | answer |
//! |---|---|
//! | `GET /_vpcsim/health` | `{"now_millis": …}` |
//! | `GET /_vpcsim/calls?since=N` | the call log after call `N`, the total, and counts by action |
//! | `GET /_vpcsim/state` | everything that exists |
//! | `GET`, `POST`, `DELETE /_vpcsim/faults` | the faults set; sets one ([`Fault`](crate::model::Fault)); takes all away |
//! | `POST /_vpcsim/settings` | changes `time_scale`, `throttle`, `describe_lag_millis`, `imds_lag_millis`, and by `[shortest, longest]` `link_millis` and `detach_millis` |

mod admin;
mod decode;
mod encode;
mod form;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
mod xml;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;

use crate::http::{self, Body};
use crate::live::LiveModel;
use crate::model::api::Action;
use crate::model::{ApiError, CallFailure};
use encode::Context;
use form::Form;

/// The largest request that is read. The largest that EC2 itself needs is a few hundred ids.
const LARGEST_REQUEST: usize = 1 << 20;

/// The EC2 API of a model. Clones serve the same one.
#[derive(Debug, Clone)]
pub struct Ec2 {
    live: LiveModel,
    requests: Arc<AtomicU64>,
}

impl Ec2 {
    /// The API of `live`.
    #[must_use]
    pub fn new(live: LiveModel) -> Self {
        Self { live, requests: Arc::new(AtomicU64::new(0)) }
    }

    /// Serves until the future is dropped. The listener may have been opened in any network namespace.
    pub async fn serve(self, listener: TcpListener) {
        http::serve(listener, move |request, peer| {
            let api = self.clone();
            async move { api.handle(request, peer).await }
        })
        .await;
    }

    /// Answers one HTTP request; nothing when no answer is ever to come.
    async fn handle(&self, request: Request<hyper::body::Incoming>, peer: SocketAddr) -> Option<Response<Body>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let body = match http::read(body, LARGEST_REQUEST).await {
            Ok(body) => body,
            Err(error) => return Some(http::text(error.status(), error.to_string())),
        };
        if let Some(rest) = path.strip_prefix("/_vpcsim/") {
            return Some(admin::handle(&self.live, &head.method, rest, &query, &body));
        }
        let parameters = match head.method {
            Method::POST => body,
            Method::GET => Bytes::from(query),
            _ => return Some(http::text(StatusCode::METHOD_NOT_ALLOWED, "POST a form or GET with a query")),
        };
        self.call(&parameters, &peer.ip().to_string()).await
    }

    /// Answers one call of the Query protocol.
    async fn call(&self, parameters: &[u8], caller: &str) -> Option<Response<Body>> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let request_id = format!("00000000-0000-4000-8000-{number:012x}");
        let (action, request) = match self.read(parameters) {
            Ok(read) => read,
            Err((action, error)) => {
                self.live.refused(caller, &action, &error);
                return Some(failure(&request_id, &error));
            }
        };
        let outcome = self.live.call(caller, request).await;
        match outcome.result {
            Err(CallFailure::NoAnswer) => None,
            Err(CallFailure::Api(error)) => Some(failure(&request_id, &error)),
            Ok(reply) => {
                let (state, settings) = self.live.with(|model, _| (model.snapshot(), model.settings().clone()));
                let context = Context { state: &state, settings: &settings, at: outcome.seen_at };
                let xml = encode::response(action.as_str(), &request_id, &reply, context);
                Some(http::content(StatusCode::OK, "text/xml;charset=UTF-8", xml))
            }
        }
    }

    fn read(&self, parameters: &[u8]) -> Result<(Action, crate::model::Request), (String, ApiError)> {
        let mut form = Form::parse(parameters).map_err(|error| (String::new(), error))?;
        let name = form.take("Action").unwrap_or_default();
        let version = form.take("Version");
        let named = |error| (name.clone(), error);
        if name.is_empty() {
            let message = "The request must contain the parameter Action";
            return Err(named(ApiError::client("MissingAction", message)));
        }
        let Ok(action) = Action::from_str(&name) else {
            let short: String = name.chars().take(80).collect();
            let message = format!("The action {short} is not valid for this web service.");
            return Err(named(ApiError::client("InvalidAction", message)));
        };
        if version.as_deref() != Some(encode::VERSION) {
            let message = format!("The version must be {}.", encode::VERSION);
            return Err(named(ApiError::client("NoSuchVersion", message)));
        }
        let dry_run = form.flag("DryRun").map_err(named)?;
        let (state, _) = self.live.snapshot();
        let request = decode::decode(action, form, &state).map_err(named)?;
        if dry_run {
            let message = "Request would have succeeded, but DryRun flag is set.";
            return Err(named(ApiError::with_status("DryRunOperation", message, 412)));
        }
        Ok((action, request))
    }
}

fn failure(request_id: &str, error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    http::content(status, "text/xml;charset=UTF-8", encode::error(request_id, error))
}
