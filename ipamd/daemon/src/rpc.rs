//! ipamd behind the socket that the primary plugin speaks to.

use std::sync::Arc;

use sluice_contract::id::Attachment;
use sluice_contract::rpc::{Call, Outcome};
use sluice_daemon::rpc::{Incident, Service};
use sluice_ipamd_core::queue::Token;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::inbox::{Answer, Handle, Input, SOFTWARE};
use crate::metrics::Metrics;

/// What the socket's server asks.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
}

impl Service for Plugins {
    type Call = Call;
    type Outcome = Outcome;
    type Granted = Attachment;
    type Token = Token;

    const SOFTWARE: &'static str = SOFTWARE;

    async fn ask(&self, call: Call, deadline: Instant) -> (Token, oneshot::Receiver<Answer>) {
        self.handle.ask(call, deadline).await
    }

    async fn withdrawn(&self, token: Token) {
        self.handle.send(Input::Withdrawn(token)).await;
    }

    async fn undelivered(&self, token: Token, granted: Attachment) {
        self.handle.send(Input::Undelivered(token, granted)).await;
    }

    fn incident(&self, incident: Incident) {
        match incident {
            Incident::Error(part) => self.metrics.error(part),
            Incident::Rejected(why) => self.metrics.rejected(why),
            Incident::Refused(code) => self.metrics.refused(code),
            Incident::Undelivered => self.metrics.undelivered(),
        }
    }
}
