//! The instance metadata service, version 2: a token first, then plain text by path.
//!
//! [`Imds`] serves it over HTTP. The tree of an instance is made by [`tree`] out of the model's state, as late as
//! [`Settings::imds_lag`](crate::model::Settings) says; who asks is known by the source address of the packet.

#[cfg(test)]
mod tests;
mod tokens;
pub mod tree;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sluice_contract::id::{InstanceId, VpcId};
use tokio::net::TcpListener;

use crate::http::{self, Body};
use crate::live::LiveModel;
use crate::model::{FaultEffect, State};
use tokens::Tokens;

/// The request header with a token's lifetime in seconds.
pub const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// The request header with a token.
pub const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
/// The longest lifetime of a token: six hours.
pub const LONGEST_TTL: u64 = 21_600;

/// How the metadata service knows which instance asks.
#[derive(Debug, Clone)]
enum Asker {
    /// The holder of the packet's source address in this VPC.
    Source(VpcId),
    /// Always this one.
    Fixed(InstanceId),
    /// The one that was launched first, of those that are not gone.
    First,
}

/// The metadata service of a VPC, or of one instance. Clones share their tokens.
#[derive(Debug, Clone)]
pub struct Imds {
    live: LiveModel,
    asker: Asker,
    tokens: Arc<Mutex<Tokens>>,
}

/// A request, without HTTP.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, still escaped.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// An answer, without HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: String,
    /// A token's lifetime in seconds, told back with it.
    pub ttl: Option<u64>,
}

impl Imds {
    /// For the instances of a VPC, told apart by the source address.
    #[must_use]
    pub fn of_vpc(live: LiveModel, vpc: VpcId) -> Self {
        Self { live, asker: Asker::Source(vpc), tokens: Arc::default() }
    }

    /// For one instance, whoever asks.
    #[must_use]
    pub fn of_instance(live: LiveModel, instance: InstanceId) -> Self {
        Self { live, asker: Asker::Fixed(instance), tokens: Arc::default() }
    }

    /// For the instance that was launched first, whoever asks; for a model that is empty at first.
    #[must_use]
    pub fn of_first_instance(live: LiveModel) -> Self {
        Self { live, asker: Asker::First, tokens: Arc::default() }
    }

    /// Serves until the future is dropped. The listener may have been opened in any network namespace.
    pub async fn serve(self, listener: TcpListener) {
        http::serve(listener, move |request: Request<Incoming>, peer| {
            let service = self.clone();
            async move { service.respond(&request, peer).await }
        })
        .await;
    }

    async fn respond(&self, request: &Request<Incoming>, peer: SocketAddr) -> Option<Response<Body>> {
        match self.live.with(|model, _| model.imds_asked()) {
            None => {}
            Some(FaultEffect::Slow { millis }) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Some(FaultEffect::TimeoutBeforeEffect | FaultEffect::TimeoutAfterEffect) => return None,
            Some(FaultEffect::Error { message, status, .. }) => {
                let status = status.and_then(|status| StatusCode::from_u16(status).ok());
                return Some(http::text(status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), message));
            }
            Some(FaultEffect::PartialEffect) => return Some(http::text(StatusCode::INTERNAL_SERVER_ERROR, "")),
        }
        let query = Query { method: request.method(), path: request.uri().path(), headers: request.headers() };
        let answer = self.answer(query, peer.ip());
        let mut response = http::text(answer.status, answer.body);
        if let Some(ttl) = answer.ttl {
            response.headers_mut().insert(TTL_HEADER, HeaderValue::from(ttl));
        }
        Some(response)
    }

    /// Answers a request that came from `source`.
    #[must_use]
    pub fn answer(&self, query: Query<'_>, source: IpAddr) -> Answer {
        let (truth, seen, at, now, settings) = self.live.with(|model, now| {
            let (seen, at) = model.seen(now, model.imds_lag());
            (model.snapshot(), seen, at, now, model.settings().clone())
        });
        let Some(instance) = self.instance(&truth, source) else {
            return refuse(StatusCode::NOT_FOUND, "no instance has the address that this request came from");
        };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = authorize(&mut tokens, &instance, query, now) {
            return answer;
        }
        // An instance that has only just been launched is known to its own metadata service.
        let (state, at) = if seen.instances.contains_key(&instance) { (&*seen, at) } else { (&*truth, now) };
        let Some(tree) = tree::of(state, &settings, &instance, at) else {
            return refuse(StatusCode::NOT_FOUND, "Not Found");
        };
        match http::unescape(query.path.as_bytes(), false).and_then(|path| tree::look_up(&tree, &path)) {
            Some(body) => Answer { status: StatusCode::OK, body, ttl: None },
            None => refuse(StatusCode::NOT_FOUND, "Not Found"),
        }
    }

    fn instance(&self, state: &State, source: IpAddr) -> Option<InstanceId> {
        let vpc = match &self.asker {
            Asker::Fixed(instance) => return Some(instance.clone()),
            Asker::First => {
                let here = state.instances.values().filter(|instance| instance.terminated_at.is_none());
                return Some(here.min_by_key(|instance| instance.launched)?.id.clone());
            }
            Asker::Source(vpc) => vpc,
        };
        let eni = match source {
            IpAddr::V4(address) => state.holder(vpc, address),
            IpAddr::V6(address) => {
                state.enis.values().find(|eni| eni.vpc == *vpc && eni.assigned_ipv6().any(|net| net.contains(&address)))
            }
        }?;
        eni.attachment.as_ref()?.instance.clone()
    }
}

/// Answers what is not a request for a path, and refuses who has no token (EC2 User Guide, "How Instance Metadata Service
/// Version 2 works").
fn authorize(tokens: &mut Tokens, instance: &InstanceId, query: Query<'_>, now: Duration) -> Option<Answer> {
    let header = |name: &str| query.headers.get(name).and_then(|value| value.to_str().ok());
    // A packet that went through a proxy did not come from the instance.
    if query.headers.contains_key("x-forwarded-for") {
        return Some(refuse(StatusCode::FORBIDDEN, "Forbidden"));
    }
    let wants_token = query.path == "/latest/api/token";
    match *query.method {
        Method::PUT if wants_token => {
            let ttl = header(TTL_HEADER).and_then(|ttl| ttl.parse().ok()).filter(|ttl| (1..=LONGEST_TTL).contains(ttl));
            let Some(ttl) = ttl else {
                return Some(refuse(StatusCode::BAD_REQUEST, "Bad Request: the TTL must be 1 to 21600 seconds"));
            };
            let body = tokens.issue(instance, now.saturating_add(Duration::from_secs(ttl)), now);
            Some(Answer { status: StatusCode::OK, body, ttl: Some(ttl) })
        }
        Method::GET | Method::HEAD if wants_token => Some(refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")),
        Method::GET | Method::HEAD => {
            let known = header(TOKEN_HEADER).is_some_and(|token| tokens.holds(instance, token, now));
            (!known).then(|| refuse(StatusCode::UNAUTHORIZED, "Unauthorized"))
        }
        _ => Some(refuse(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")),
    }
}

fn refuse(status: StatusCode, why: &str) -> Answer {
    Answer { status, body: why.to_owned(), ttl: None }
}
