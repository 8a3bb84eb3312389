//! Hubble's services: `observer.Observer` and `peer.Peer`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use prost_types::Timestamp;
use sluice_hubble::OBSERVER_PORT;
use sluice_hubble::filter::Filters;
use sluice_hubble::mask::Mask;
use sluice_hubble::observer::get_flows_response::ResponseTypes;
use sluice_hubble::observer::observer_server::Observer as Service;
use sluice_hubble::observer::{
    GetAgentEventsRequest, GetAgentEventsResponse, GetDebugEventsRequest, GetDebugEventsResponse, GetFlowsRequest,
    GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest, GetNodesResponse, Namespace,
    Node as NodeMessage, ServerStatusRequest, ServerStatusResponse, Tls as NodeTls,
};
use sluice_hubble::peer::peer_server::Peer;
use sluice_hubble::peer::{ChangeNotification, ChangeNotificationType, NotifyRequest, Tls as PeerTls};
use sluice_hubble::relay::NodeState;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::record::{Record, What};
use super::tls::server_name;
use super::{Flows, Node};
use crate::inbox::Handle;

/// Streams at once, of all clients.
const STREAMS: usize = 64;

/// Answers of a stream that may wait for its client; the ring waits for nobody.
const AHEAD: usize = 128;

/// Records that are looked at in one go.
const AT_ONCE: usize = 256;

/// How often it is looked which nodes there are, for those who want to know.
const PEERS_EVERY: Duration = Duration::from_secs(5);

/// How long a namespace is told after the last flow of one of its pods was seen (Hubble has an hour).
const NAMESPACE_FOR: Duration = Duration::from_secs(3600);

/// The services.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    flows: Flows,
    node: Arc<Node>,
    handle: Handle,
    begun: Instant,
    streams: Arc<Semaphore>,
    /// Whether the port has TLS, so that the peers' do.
    tls: bool,
}

/// What a stream carries.
type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Observer {
    /// Services over these flows. With `tls`, peers are told of with the names of their certificates.
    pub(crate) fn new(flows: Flows, node: Node, handle: Handle, tls: bool) -> Self {
        let streams = Arc::new(Semaphore::new(STREAMS));
        Self { flows, node: Arc::new(node), handle, begun: Instant::now(), streams, tls }
    }

    fn uptime(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn stream<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
    ) -> Result<Answers<T>, Status>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permit = Arc::clone(&self.streams).try_acquire_owned().map_err(|_full| {
            Status::resource_exhausted(format!("{STREAMS} streams are open; end one of them first"))
        })?;
        let (to, from) = mpsc::channel(AHEAD);
        let work = work(to);
        tokio::spawn(async move {
            work.await;
            drop(permit);
        });
        let next = |mut from: mpsc::Receiver<_>| async move { from.recv().await.map(|item| (item, from)) };
        Ok(Box::pin(futures_util::stream::unfold(from, next)))
    }
}

/// What is asked of flows.
struct Asked {
    filters: Filters,
    mask: Option<Mask>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    /// So many; none: all.
    number: Option<usize>,
    first: bool,
    follow: bool,
}

fn time(stamp: Option<Timestamp>) -> Result<Option<SystemTime>, Status> {
    let read =
        |stamp: Timestamp| SystemTime::try_from(stamp).map_err(|_unread| Status::invalid_argument("a time is none"));
    stamp.map(read).transpose()
}

impl Asked {
    fn read(request: GetFlowsRequest) -> Result<Self, Status> {
        let filters = Filters::new(&request.whitelist, &request.blacklist)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        #[expect(deprecated, reason = "older clients ask by it")]
        let mask = request.field_mask.or_else(|| request.experimental.and_then(|experimental| experimental.field_mask));
        let mask = mask.filter(|mask| !mask.paths.is_empty());
        let mask = mask.map(|mask| Mask::new(mask.paths.iter().map(String::as_str))).transpose();
        let asked = Self {
            filters,
            mask: mask.map_err(|error| Status::invalid_argument(error.to_string()))?,
            since: time(request.since)?,
            until: time(request.until)?,
            number: usize::try_from(request.number).ok().filter(|number| *number > 0),
            first: request.first,
            follow: request.follow,
        };
        if asked.first && asked.follow {
            return Err(Status::invalid_argument("first and follow exclude each other"));
        }
        Ok(asked)
    }

    fn in_time(&self, record: &Record) -> bool {
        self.since.is_none_or(|since| record.time >= since) && self.until.is_none_or(|until| record.time <= until)
    }

    /// The answer for a record; none: it is not asked for.
    fn answer(&self, record: &Record, node: &Node) -> Option<GetFlowsResponse> {
        if !self.in_time(record) {
            return None;
        }
        let mut response = node.response(record);
        if let Some(ResponseTypes::Flow(flow)) = &mut response.response_types {
            if !self.filters.passes(flow) {
                return None;
            }
            if let Some(mask) = &self.mask {
                // A flow of this build is one that the mask knows.
                *flow = mask.apply(flow).ok()?;
            }
        }
        Some(response)
    }

    fn is_asked_for(&self, record: &Record, node: &Node) -> bool {
        let flow = |record| node.flow(record).is_some_and(|flow| self.filters.passes(&flow));
        self.in_time(record) && flow(record)
    }
}

/// The answers of one request, until all has been said, or nobody listens any more.
async fn tell(asked: Asked, flows: Flows, node: Arc<Node>, to: mpsc::Sender<Result<GetFlowsResponse, Status>>) {
    let mut changed = flows.watch();
    let mut after = 0;
    let mut left = asked.number;
    // The last so many are found from the end.
    if let (Some(number), false) = (asked.number, asked.first) {
        let (kept, _) = flows.after(0, usize::MAX);
        let last = kept.last().map_or(0, |record| record.number);
        let found: Vec<&Arc<Record>> =
            kept.iter().rev().filter(|record| asked.is_asked_for(record, &node)).take(number).collect();
        for record in found.into_iter().rev() {
            if let Some(answer) = asked.answer(record, &node)
                && to.send(Ok(answer)).await.is_err()
            {
                return;
            }
        }
        if !asked.follow {
            return;
        }
        (after, left) = (last, None);
    } else if asked.follow && asked.since.is_none() && asked.number.is_none() {
        // From now on.
        after = *changed.borrow_and_update();
    }
    let mut begun = after > 0;
    loop {
        changed.mark_unchanged();
        let (records, gone) = flows.after(after, AT_ONCE);
        // What had gone before the first look is nobody's loss.
        if gone > 0 && begun && to.send(Ok(node.missed(gone, SystemTime::now()))).await.is_err() {
            return;
        }
        begun = true;
        for record in &records {
            after = record.number;
            if asked.follow && asked.until.is_some_and(|until| record.time > until) {
                return;
            }
            let Some(answer) = asked.answer(record, &node) else { continue };
            let counts = matches!(record.what, What::Packet(_) | What::Request(_));
            if to.send(Ok(answer)).await.is_err() {
                return;
            }
            if counts && let Some(left) = &mut left {
                *left -= 1;
                if *left == 0 {
                    return;
                }
            }
        }
        if !records.is_empty() {
            // Whoever asks for very much does not keep the others from being served.
            tokio::task::yield_now().await;
            continue;
        }
        if !asked.follow {
            return;
        }
        tokio::select! {
            () = to.closed() => return,
            changed = changed.changed() => if changed.is_err() { return },
        }
    }
}

#[tonic::async_trait]
impl Service for Observer {
    type GetFlowsStream = Answers<GetFlowsResponse>;
    type GetAgentEventsStream = Answers<GetAgentEventsResponse>;
    type GetDebugEventsStream = Answers<GetDebugEventsResponse>;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Self::GetFlowsStream>, Status> {
        let asked = Asked::read(request.into_inner())?;
        let (flows, node) = (self.flows.clone(), Arc::clone(&self.node));
        self.stream(|to| tell(asked, flows, node, to)).map(Response::new)
    }

    async fn get_agent_events(
        &self,
        _request: Request<GetAgentEventsRequest>,
    ) -> Result<Response<Self::GetAgentEventsStream>, Status> {
        Err(Status::unimplemented("Sluice has no agent events: see the Events of policies and pods, and the log"))
    }

    async fn get_debug_events(
        &self,
        _request: Request<GetDebugEventsRequest>,
    ) -> Result<Response<Self::GetDebugEventsStream>, Status> {
        Err(Status::unimplemented("Sluice has no debug events"))
    }

    async fn get_nodes(&self, _request: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let counts = self.flows.counts(SystemTime::now());
        let address = self.peers().await?.remove(&self.node.name).map(|address| address.to_string());
        let node = NodeMessage {
            name: self.node.name.clone(),
            version: version(),
            address: address.unwrap_or_default(),
            state: NodeState::NodeConnected.into(),
            tls: self.tls.then(|| NodeTls { enabled: true, server_name: server_name(&self.node.name) }),
            uptime_ns: self.uptime(),
            num_flows: count(counts.kept),
            max_flows: count(counts.limit),
            seen_flows: counts.seen,
        };
        Ok(Response::new(GetNodesResponse { nodes: vec![node] }))
    }

    async fn get_namespaces(
        &self,
        _request: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let since = SystemTime::now().checked_sub(NAMESPACE_FOR);
        let (kept, _) = self.flows.after(0, usize::MAX);
        let lately = kept.iter().filter(|record| since.is_none_or(|since| record.time >= since));
        let parties = lately.flat_map(|record| match &record.what {
            What::Packet(packet) => vec![&packet.own, &packet.peer],
            What::Request(requested) => vec![&requested.client, &requested.server],
            What::Lost { .. } => Vec::new(),
        });
        let names: BTreeSet<String> =
            parties.filter_map(|party| party.pod.as_ref().map(|pod| pod.namespace.to_string())).collect();
        let namespaces = names.into_iter().map(|namespace| Namespace { cluster: String::new(), namespace }).collect();
        Ok(Response::new(GetNamespacesResponse { namespaces }))
    }

    async fn server_status(
        &self,
        _request: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let counts = self.flows.counts(SystemTime::now());
        Ok(Response::new(ServerStatusResponse {
            num_flows: count(counts.kept),
            max_flows: count(counts.limit),
            seen_flows: counts.seen,
            uptime_ns: self.uptime(),
            num_connected_nodes: Some(1),
            num_unavailable_nodes: Some(0),
            unavailable_nodes: Vec::new(),
            version: version(),
            flows_rate: counts.rate,
        }))
    }
}

fn version() -> String {
    format!("sluice-policyd {}", env!("CARGO_PKG_VERSION"))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Observer {
    /// The observers of the cluster, by node.
    async fn peers(&self) -> Result<BTreeMap<String, SocketAddr>, Status> {
        let nodes = self.handle.look_at_nodes().await;
        let nodes = nodes.ok_or_else(|| Status::unavailable("policyd's loop does not answer; ask again"))?;
        let first = |addresses: Vec<IpAddr>| addresses.first().map(|address| SocketAddr::new(*address, OBSERVER_PORT));
        Ok(nodes.into_iter().filter_map(|(name, addresses)| Some((name, first(addresses)?))).collect())
    }
}

#[tonic::async_trait]
impl Peer for Observer {
    type NotifyStream = Answers<ChangeNotification>;

    async fn notify(&self, _request: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let observer = self.clone();
        let work = |to: mpsc::Sender<_>| async move {
            let mut told = BTreeMap::new();
            while !to.is_closed() {
                // A loop that does not answer now does so the next time.
                if let Ok(peers) = observer.peers().await {
                    for change in changes(&told, &peers, observer.tls) {
                        if to.send(Ok(change)).await.is_err() {
                            return;
                        }
                    }
                    told = peers;
                }
                tokio::select! {
                    () = to.closed() => return,
                    () = tokio::time::sleep(PEERS_EVERY) => {}
                }
            }
        };
        self.stream(work).map(Response::new)
    }
}

/// What has changed, by name.
pub(super) fn changes(
    old: &BTreeMap<String, SocketAddr>,
    new: &BTreeMap<String, SocketAddr>,
    tls: bool,
) -> Vec<ChangeNotification> {
    let change = |name: &String, address: &SocketAddr, what: ChangeNotificationType| ChangeNotification {
        name: name.clone(),
        address: address.to_string(),
        r#type: what.into(),
        // All nodes of a cluster are set up alike.
        tls: tls.then(|| PeerTls { server_name: server_name(name) }),
    };
    let gone = old.iter().filter(|(name, _)| !new.contains_key(*name));
    let gone = gone.map(|(name, address)| change(name, address, ChangeNotificationType::PeerDeleted));
    let there = new.iter().filter_map(|(name, address)| match old.get(name) {
        None => Some(change(name, address, ChangeNotificationType::PeerAdded)),
        Some(before) if before != address => Some(change(name, address, ChangeNotificationType::PeerUpdated)),
        Some(_) => None,
    });
    gone.chain(there).collect()
}
