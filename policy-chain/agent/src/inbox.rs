//! What reaches the daemon's loop from plugins and people, and the handle by which it is sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use sluice_contract::proxy::Resolution;
use sluice_contract::proxy::record::Records;
use sluice_contract::rpc::{PolicyCall, PolicyOutcome, Refusal};
use sluice_daemon::rpc::{Incident, Service};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::view::{NamesView, View};

/// The name in greetings and refusals.
pub(crate) const SOFTWARE: &str = "sluice-policyd";

/// Inputs that may wait for the loop at once; senders wait when it is full.
const INBOX_LIMIT: usize = 1024;

/// The number of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u64);

/// A reply. Nothing has to be undone if it cannot be written: the runtime sends a DEL then.
pub(crate) type Answer = sluice_daemon::rpc::Answer<PolicyOutcome, ()>;

/// An input of the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// A request of a plugin.
    Call(Box<Asked>),
    /// The socket of a request has closed before its reply.
    Withdrawn(Token),
    /// Somebody wants to look at the state.
    Look(oneshot::Sender<View>),
    /// An interface that may be an uplink is new, or has an address.
    NetworkChanged {
        /// Whether it is the VLAN of a pod's branch ENI, whose ADD is under way.
        of_pod: bool,
    },
    /// A filter or a qdisc of the interface with this index was taken away.
    HooksChanged(u32),
    /// The AWS VPC CNI's daemon serves this node no longer.
    AwsNodeGone,
    /// A veth is new or has changed.
    VethChanged,
    /// An interface of the host is gone.
    LinkGone(u32),
    /// All interfaces that the host has now, by index.
    Links(BTreeMap<u32, String>),
    /// The proxy has seen names resolve, and wants to know when the gates know it.
    Resolved(Vec<Resolution>, oneshot::Sender<Known>),
    /// Somebody wants to look at the names.
    LookAtNames(oneshot::Sender<NamesView>),
    /// What a proxy has done with requests.
    Requested(Records),
    /// Somebody wants all objects that are known, as manifests.
    LookAtObjects(oneshot::Sender<Vec<Value>>),
    /// Somebody wants to know the nodes of the cluster.
    LookAtNodes(oneshot::Sender<Nodes>),
}

/// The nodes of the cluster by name, each with its addresses.
pub(crate) type Nodes = BTreeMap<String, Vec<IpAddr>>;

/// What became of resolutions, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// The gates know their addresses.
    pub(crate) kept: Vec<u64>,
    /// There was no room for them, or no rule means their names.
    pub(crate) dropped: Vec<u64>,
}

/// A request and where its reply goes.
#[derive(Debug)]
pub(crate) struct Asked {
    /// The request's number.
    pub(crate) token: Token,
    /// What is asked.
    pub(crate) call: PolicyCall,
    /// When it was asked.
    pub(crate) since: Instant,
    /// The reply is due then.
    pub(crate) deadline: Instant,
    /// Where the reply goes.
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// Sends inputs to the loop.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Input>,
    tokens: Arc<AtomicU64>,
}

/// The refusal of a daemon that is on its way out.
pub(crate) fn stopping() -> Refusal {
    sluice_daemon::rpc::stopping(SOFTWARE)
}

impl Handle {
    /// A handle and the receiving end of its inputs.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Input>) {
        let (inbox, inputs) = mpsc::channel(INBOX_LIMIT);
        (Self { inbox, tokens: Arc::default() }, inputs)
    }

    /// Asks; the reply comes by the receiver.
    pub(crate) async fn ask(&self, call: PolicyCall, deadline: Instant) -> (Token, oneshot::Receiver<Answer>) {
        let (answer, reply) = oneshot::channel();
        let token = Token(self.tokens.fetch_add(1, Ordering::Relaxed));
        let asked = Asked { token, call, since: Instant::now(), deadline, answer };
        self.send(Input::Call(Box::new(asked))).await;
        (token, reply)
    }

    /// Sends an input. When the loop has ended, nobody is interested any more.
    pub(crate) async fn send(&self, input: Input) {
        if self.inbox.send(input).await.is_err() {
            tracing::debug!("the daemon has ended before an input");
        }
    }

    /// Looks at the names; none when the loop does not answer.
    pub(crate) async fn look_at_names(&self) -> Option<NamesView> {
        let (sender, view) = oneshot::channel();
        self.send(Input::LookAtNames(sender)).await;
        tokio::time::timeout(Duration::from_secs(2), view).await.ok()?.ok()
    }

    /// All objects that are known, as manifests; none when the loop does not answer.
    pub(crate) async fn look_at_objects(&self) -> Option<Vec<Value>> {
        let (sender, objects) = oneshot::channel();
        self.send(Input::LookAtObjects(sender)).await;
        tokio::time::timeout(Duration::from_secs(5), objects).await.ok()?.ok()
    }

    /// Looks at the nodes of the cluster; none when the loop does not answer.
    pub(crate) async fn look_at_nodes(&self) -> Option<Nodes> {
        let (sender, nodes) = oneshot::channel();
        self.send(Input::LookAtNodes(sender)).await;
        tokio::time::timeout(Duration::from_secs(2), nodes).await.ok()?.ok()
    }

    /// Looks at the state; none when the loop does not answer.
    pub(crate) async fn look(&self) -> Option<View> {
        let (sender, view) = oneshot::channel();
        self.send(Input::Look(sender)).await;
        tokio::time::timeout(Duration::from_secs(2), view).await.ok()?.ok()
    }
}

/// What the socket's server asks.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    pub(crate) handle: Handle,
    pub(crate) metrics: Arc<Metrics>,
}

impl Service for Plugins {
    type Call = PolicyCall;
    type Outcome = PolicyOutcome;
    type Granted = ();
    type Token = Token;

    const SOFTWARE: &'static str = SOFTWARE;

    async fn ask(&self, call: PolicyCall, deadline: Instant) -> (Token, oneshot::Receiver<Answer>) {
        self.handle.ask(call, deadline).await
    }

    async fn withdrawn(&self, token: Token) {
        self.handle.send(Input::Withdrawn(token)).await;
    }

    async fn undelivered(&self, _token: Token, (): ()) {}

    fn incident(&self, incident: Incident) {
        match incident {
            Incident::Error(part) => self.metrics.error(part),
            Incident::Rejected(why) => self.metrics.rejected(why),
            Incident::Refused(code) => self.metrics.refused(code),
            Incident::Undelivered => self.metrics.error("reply"),
        }
    }
}
