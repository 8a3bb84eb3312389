//! What is kept of a flow.

use std::sync::Arc;
use std::time::SystemTime;

use sluice_contract::proxy::record::Record as Request;
use sluice_policy_bpf::events::Event;
use sluice_policy_core::flow::Judgement;

use super::parties::{Party, ServiceName};

/// A flow, or what tells of flows that are missing.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// Grows by one with every record.
    pub(crate) number: u64,
    /// When it was.
    pub(crate) time: SystemTime,
    /// What it was.
    pub(crate) what: What,
}

/// What a record tells.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// A gate judged a packet.
    Packet(Box<Packet>),
    /// The proxy judged a request.
    Request(Box<Requested>),
    /// So many events did not become flows.
    Lost {
        /// Where they were lost.
        at: LostAt,
        /// How many.
        count: u64,
    },
}

/// Where events are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostAt {
    /// The kernel's ring was full.
    Kernel,
    /// There were more than policyd reads at once.
    Reading,
    /// The proxy had more than it tells at once.
    Proxy,
}

/// A packet at a gate, and who its ends were then.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    /// What the gate said.
    pub(crate) event: Event,
    /// Name of the host's interface.
    pub(crate) interface: Option<Arc<str>>,
    /// The decision that it names, if it was known.
    pub(crate) judgement: Option<Arc<Judgement>>,
    /// The pod.
    pub(crate) own: Arc<Party>,
    /// The other end: the backend, where the flow was judged there.
    pub(crate) peer: Arc<Party>,
    /// The Service that the pod dialled.
    pub(crate) service: Option<Arc<ServiceName>>,
}

/// A request at the proxy, and who its ends were then.
#[derive(Debug, Clone)]
pub(crate) struct Requested {
    /// What the proxy said.
    pub(crate) request: Request,
    /// The client.
    pub(crate) client: Arc<Party>,
    /// The server: the backend, where the client dialled a Service.
    pub(crate) server: Arc<Party>,
    /// The Service that the client dialled.
    pub(crate) service: Option<Arc<ServiceName>>,
}
