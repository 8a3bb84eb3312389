//! What sluice-eni asks ipamd.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_contract::cni::chain;
use sluice_contract::rpc::{
    AddReply, AddRequest, Call, CheckRequest, DelReply, DelRequest, GcReply, GcRequest, Outcome,
};
use sluice_hostnet::plugin::{Client, ClientError};

/// The daemon's name.
const DAEMON: &str = "ipamd";

/// ipamd, until a deadline.
#[derive(Debug)]
pub(crate) struct Ipamd<'a> {
    /// Its socket.
    pub(crate) socket: &'a Path,
    /// When every answer must be there.
    pub(crate) deadline: Instant,
    /// How long a daemon that is gone is waited for: one that restarts is back within a second.
    pub(crate) patience: Duration,
}

impl Ipamd<'_> {
    /// Asks for addresses.
    pub(crate) fn add(&self, request: AddRequest) -> Result<AddReply, ClientError> {
        match self.ask(Call::Add(request))? {
            Outcome::Add(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "add" }),
        }
    }

    /// Gives addresses back.
    pub(crate) fn del(&self, request: DelRequest) -> Result<DelReply, ClientError> {
        match self.ask(Call::Del(request))? {
            Outcome::Del(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "del" }),
        }
    }

    /// Asks for the addresses that an attachment has.
    pub(crate) fn check(&self, request: CheckRequest) -> Result<AddReply, ClientError> {
        match self.ask(Call::Check(request))? {
            Outcome::Add(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "check" }),
        }
    }

    /// Has everything given back that is not in a list.
    pub(crate) fn gc(&self, request: GcRequest) -> Result<GcReply, ClientError> {
        match self.ask(Call::Gc(request))? {
            Outcome::Gc(reply) => Ok(reply),
            _ => Err(ClientError::Unexpected { daemon: DAEMON, asked: "gc" }),
        }
    }

    fn ask(&self, call: Call) -> Result<Outcome, ClientError> {
        let Self { socket, deadline, patience } = *self;
        Client { us: crate::NAME, daemon: DAEMON, socket, deadline, patience }.ask(call)
    }
}

/// One line for standard error about a question that was not answered and does not matter.
pub(crate) fn shrug(what: &str, error: &ClientError) -> String {
    format!("{what}: {}", chain(error))
}
