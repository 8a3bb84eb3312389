//! What sluice-policy asks policyd.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::rpc::{
    GcRequest, PolicyAdd, PolicyAddReply, PolicyCall, PolicyCheck, PolicyCheckReply, PolicyDel, PolicyOutcome,
};
use sluice_hostnet::plugin::{Client, ClientError};

/// The daemon's name.
const DAEMON: &str = "policyd";

/// policyd, until a deadline.
#[derive(Debug)]
pub(crate) struct Policyd<'a> {
    /// Its socket.
    pub(crate) socket: &'a Path,
    /// When every answer must be there.
    pub(crate) deadline: Instant,
    /// How long a daemon that is gone is waited for.
    pub(crate) patience: Duration,
}

impl Policyd<'_> {
    /// Has the policy put in force.
    pub(crate) fn add(&self, request: PolicyAdd) -> Result<PolicyAddReply, ClientError> {
        match self.ask(PolicyCall::Add(request))? {
            PolicyOutcome::Add(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "add" }),
        }
    }

    /// Tells that an attachment is gone.
    pub(crate) fn del(&self, request: PolicyDel) -> Result<(), ClientError> {
        match self.ask(PolicyCall::Del(request))? {
            PolicyOutcome::Del => Ok(()),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "del" }),
        }
    }

    /// Asks whether the policy is in force.
    pub(crate) fn check(&self, request: PolicyCheck) -> Result<PolicyCheckReply, ClientError> {
        match self.ask(PolicyCall::Check(request))? {
            PolicyOutcome::Check(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "check" }),
        }
    }

    /// Tells which attachments live.
    pub(crate) fn gc(&self, request: GcRequest) -> Result<(), ClientError> {
        match self.ask(PolicyCall::Gc(request))? {
            PolicyOutcome::Gc => Ok(()),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "gc" }),
        }
    }

    fn ask(&self, call: PolicyCall) -> Result<PolicyOutcome, ClientError> {
        let Self { socket, deadline, patience } = *self;
        Client { us: crate::NAME, daemon: DAEMON, socket, deadline, patience }.ask(call)
    }
}
