//! ClientToken: a repeated call answers with what the first one did (EC2 Developer Guide, "Ensuring idempotency").

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::api::{InstanceWithEnis, Reply, Request};
use super::error::ApiError;
use super::state::State;

/// Tokens that are remembered; the oldest go first.
const KEPT_TOKENS: usize = 10_000;
/// How long a token is remembered.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);
const LONGEST_TOKEN: usize = 64;

#[derive(Debug)]
struct Seen {
    request: Request,
    reply: Reply,
    until: Duration,
}

#[derive(Debug, Default)]
pub(super) struct ClientTokens {
    seen: BTreeMap<(&'static str, String), Seen>,
    order: VecDeque<(&'static str, String)>,
}

fn key(request: &Request) -> Option<(&'static str, String)> {
    let token = match request {
        Request::CreateNetworkInterface(request) => request.client_token.as_ref(),
        Request::RunInstances(request) => request.client_token.as_ref(),
        _ => None,
    }?;
    Some((request.action().as_str(), token.clone()))
}

impl ClientTokens {
    /// The answer of an earlier call with the same token, as things stand now.
    pub(super) fn replay(&self, request: &Request, state: &State, now: Duration) -> Result<Option<Reply>, ApiError> {
        let Some(key) = key(request) else { return Ok(None) };
        if key.1.is_empty() || key.1.len() > LONGEST_TOKEN || !key.1.is_ascii() {
            return Err(ApiError::invalid_parameter("clientToken", &key.1, "It must have 1 to 64 ASCII characters."));
        }
        let Some(seen) = self.seen.get(&key).filter(|seen| now < seen.until) else { return Ok(None) };
        if seen.request != *request {
            return Err(ApiError::client(
                "IdempotentParameterMismatch",
                "The request uses the same client token as a previous, but non-identical request.",
            ));
        }
        Ok(Some(match &seen.reply {
            Reply::NetworkInterface(eni) => match state.enis.get(&eni.id) {
                Some(current) => Reply::NetworkInterface(Box::new(current.clone())),
                None => seen.reply.clone(),
            },
            Reply::Launched(reservation, instances) => {
                let current = instances.iter().map(|old| InstanceWithEnis {
                    instance: state.instances.get(&old.instance.id).unwrap_or(&old.instance).clone(),
                    enis: state.attached(&old.instance.id).into_iter().cloned().collect(),
                });
                Reply::Launched(reservation.clone(), current.collect())
            }
            other => other.clone(),
        }))
    }

    /// Remembers a call that had its effect.
    pub(super) fn keep(&mut self, request: &Request, reply: &Reply, now: Duration) {
        let Some(key) = key(request) else { return };
        if self.order.len() >= KEPT_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        let seen = Seen { request: request.clone(), reply: reply.clone(), until: now.saturating_add(KEPT_FOR) };
        if self.seen.insert(key.clone(), seen).is_none() {
            self.order.push_back(key);
        }
    }
}
