//! What changes in a network namespace, as it changes.
//!
//! The stream is bounded by the socket's buffer in the kernel: it is read only while somebody asks for the next event.
//! Who is too slow gets [`Event::Lost`], and must look again at the whole.

mod filter;
mod nft;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_proto::{Connection, ConnectionHandle, NetlinkCodec};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, SocketAddr, TokioSocket};
use rtnetlink::MulticastGroup;
use sluice_contract::id::MacAddr;

use crate::host::Host;
use crate::netlink::decode::{decode_address, decode_neighbour, decode_route, decode_rule};
use crate::netlink::encode::link_numbered;
use crate::netlink::{LinkError, Names, OpenError, configure, decode_link};
use crate::netns::Namespace;
use crate::state::{Address, Link, LinkKind, Neighbour, Route, Rule};

pub use nft::{NftEvent, NftWatch};

/// What to watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watched {
    /// Addresses.
    pub addresses: bool,
    /// Routes of every table but `local`, which the kernel keeps by itself.
    pub routes: bool,
    /// Rules.
    pub rules: bool,
    /// Permanent and proxy neighbours.
    pub neighbours: bool,
    /// What is taken off the hooks of links: filters and qdiscs.
    pub hooks: bool,
}

impl Watched {
    /// Links only. They are always watched: the rest is told by their names.
    pub const LINKS: Self = Self { addresses: false, routes: false, rules: false, neighbours: false, hooks: false };
    /// All that [`Observed`](crate::state::Observed) tells of.
    pub const ALL: Self = Self { addresses: true, routes: true, rules: true, neighbours: true, hooks: false };

    fn groups(self) -> u32 {
        let both = |watched: bool, v4, v6| watched.then_some([v4, v6]).into_iter().flatten();
        std::iter::once(MulticastGroup::Link)
            .chain(both(self.addresses, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr))
            .chain(both(self.routes, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route))
            .chain(both(self.rules, MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule))
            .chain(self.neighbours.then_some(MulticastGroup::Neigh))
            .chain(self.hooks.then_some(MulticastGroup::Tc))
            .fold(0, |groups, group| groups | 1 << (group as u32 - 1))
    }
}

/// Which way something changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// It is new, or different from before.
    New,
    /// It is gone.
    Gone,
}

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link.
    Link(Change, Link),
    /// An address.
    Address(Change, Address),
    /// A route.
    Route(Change, Route),
    /// A rule.
    Rule(Change, Rule),
    /// A permanent or proxy neighbour.
    Neighbour(Change, Neighbour),
    /// A filter or a qdisc of the link with this index is gone.
    Hooks(u32),
    /// A route or a rule that our types cannot say.
    Other(Change),
    /// Events were lost: what is there must be read anew.
    Lost,
}

/// A watch on one network namespace.
pub struct Watch {
    connection: Connection<RouteNetlinkMessage>,
    requests: ConnectionHandle<RouteNetlinkMessage>,
    messages: Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>,
    names: Names,
    links: Vec<Link>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("links", &self.names).finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches `namespace` from now on.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open(namespace: &Namespace, watched: Watched) -> Result<Self, OpenError> {
        Self::open_but(namespace, watched, None).await
    }

    /// The same, without the steps by which links come up whose names begin with `pods`: these are told of when they are new, go
    /// down, and are gone. A node has hundreds of them, and each changes some times before its pod has it.
    ///
    /// # Errors
    /// [`OpenError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub async fn open_for_node(namespace: &Namespace, watched: Watched, pods: &str) -> Result<Self, OpenError> {
        Self::open_but(namespace, watched, Some(pods)).await
    }

    async fn open_but(namespace: &Namespace, watched: Watched, pods: Option<&str>) -> Result<Self, OpenError> {
        let runtime = tokio::runtime::Handle::current();
        let socket = namespace.run(|| {
            let _guard = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            configure(&mut socket)?;
            socket.socket_mut().bind(&SocketAddr::new(0, watched.groups()))?;
            Ok(socket)
        });
        let socket = socket.map_err(OpenError::Namespace)?.map_err(OpenError::Socket)?;
        let (mut connection, requests, messages) =
            netlink_proto::from_socket_with_codec::<RouteNetlinkMessage, TokioSocket, NetlinkCodec>(socket);
        connection.set_forward_done(true);
        let mut watch =
            Self { connection, requests, messages: Box::pin(messages), names: Names::new(), links: Vec::new() };
        watch.read_links().await;
        // Not before: the answer with all links may begin with one of them.
        let socket = watch.connection.socket_mut().socket_mut();
        filter::attach(socket, pods).map_err(OpenError::Socket)?;
        Ok(watch)
    }

    /// The links that were there when the watch began.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Waits for the next event; none when the socket has failed. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let message = poll_fn(|context| self.poll_message(context)).await?;
            if let Some(event) = self.event(message) {
                return Some(event);
            }
        }
    }

    /// Every event up to now: of all changes that had been made when this was called, and perhaps of some made since.
    pub async fn settle(&mut self) -> Vec<Event> {
        let (messages, is_whole) = self.messages_so_far().await;
        let mut events: Vec<Event> = messages.into_iter().filter_map(|message| self.event(message)).collect();
        if !is_whole {
            events.push(Event::Lost);
        }
        events
    }

    /// What has come, and whether the socket lives.
    async fn messages_so_far(&mut self) -> (Vec<NetlinkMessage<RouteNetlinkMessage>>, bool) {
        // The answer to a question stands in the socket behind the events that came before it.
        let mut messages = Vec::new();
        let Some(answer) = self.ask(NLM_F_REQUEST, 1) else { return (messages, false) };
        let mut answer = Box::pin(answer);
        let mut answered = false;
        loop {
            let message = poll_fn(|context| {
                if let Poll::Ready(message) = self.poll_message(context) {
                    return Poll::Ready(Some(message));
                }
                answered = answered || answer.as_mut().poll_next(context).is_ready();
                if answered { Poll::Ready(None) } else { Poll::Pending }
            })
            .await;
            match message {
                Some(Some(message)) => messages.push(message),
                Some(None) => return (messages, false),
                None => return (messages, true),
            }
        }
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<NetlinkMessage<RouteNetlinkMessage>>> {
        if let Poll::Ready(message) = self.messages.as_mut().poll_next(context) {
            return Poll::Ready(message.map(|(message, _)| message));
        }
        let closed = Pin::new(&mut self.connection).poll(context).is_ready();
        match self.messages.as_mut().poll_next(context) {
            Poll::Ready(message) => Poll::Ready(message.map(|(message, _)| message)),
            Poll::Pending if closed => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn ask(&self, flags: u16, index: u32) -> Option<impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>> {
        let mut question = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link_numbered(index)));
        question.header.flags = flags;
        self.requests.request(question, SocketAddr::new(0, 0)).ok()
    }

    /// Learns the names of the links that are there already. A link that changes meanwhile comes as an event too.
    async fn read_links(&mut self) {
        let Some(mut answers) = self.ask(NLM_F_REQUEST | NLM_F_DUMP, 0) else { return };
        loop {
            let answer = poll_fn(|context| {
                if let Poll::Ready(answer) = answers.poll_next_unpin(context) {
                    return Poll::Ready(answer);
                }
                let closed = Pin::new(&mut self.connection).poll(context).is_ready();
                match answers.poll_next_unpin(context) {
                    Poll::Pending if closed => Poll::Ready(None),
                    answer => answer,
                }
            })
            .await;
            match answer.map(|answer| answer.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message))) => {
                    if let Some(link) = decode_link(&message) {
                        self.names.insert(link.index, link.name.clone());
                        self.links.push(link);
                    }
                }
                Some(NetlinkPayload::InnerMessage(_)) => {}
                _ => return,
            }
        }
    }

    fn event(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Event> {
        let message = match message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Some(Event::Lost),
            _ => return None,
        };
        let names = &self.names;
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                let link = decode_link(&message)?;
                self.names.insert(link.index, link.name.clone());
                Some(Event::Link(Change::New, link))
            }
            RouteNetlinkMessage::DelLink(message) => {
                let link = decode_link(&message)?;
                self.names.remove(&link.index);
                Some(Event::Link(Change::Gone, link))
            }
            RouteNetlinkMessage::NewAddress(message) => {
                decode_address(&message, names).map(|address| Event::Address(Change::New, address))
            }
            RouteNetlinkMessage::DelAddress(message) => {
                decode_address(&message, names).map(|address| Event::Address(Change::Gone, address))
            }
            RouteNetlinkMessage::NewRoute(message) => {
                let other = Event::Other(Change::New);
                Some(decode_route(&message, names).map_or(other, |route| Event::Route(Change::New, route)))
            }
            RouteNetlinkMessage::DelRoute(message) => {
                let other = Event::Other(Change::Gone);
                Some(decode_route(&message, names).map_or(other, |route| Event::Route(Change::Gone, route)))
            }
            RouteNetlinkMessage::NewRule(message) => {
                let other = Event::Other(Change::New);
                Some(decode_rule(&message).map_or(other, |rule| Event::Rule(Change::New, rule)))
            }
            RouteNetlinkMessage::DelRule(message) => {
                let other = Event::Other(Change::Gone);
                Some(decode_rule(&message).map_or(other, |rule| Event::Rule(Change::Gone, rule)))
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                decode_neighbour(&message, names).map(|neighbour| Event::Neighbour(Change::New, neighbour))
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                decode_neighbour(&message, names).map(|neighbour| Event::Neighbour(Change::Gone, neighbour))
            }
            RouteNetlinkMessage::DelTrafficFilter(message) | RouteNetlinkMessage::DelQueueDiscipline(message) => {
                Some(Event::Hooks(message.header.index.cast_unsigned()))
            }
            _ => None,
        }
    }
}

/// Why a link did not show.
#[derive(Debug, thiserror::Error)]
pub enum WaitForLinkError {
    /// The namespace could not be watched.
    #[error("cannot watch the namespace's links")]
    Watch(#[source] OpenError),
    /// The links could not be read.
    #[error("cannot read the links")]
    Links(#[source] LinkError),
    /// It did not show in time.
    #[error("no link with the address {mac} within {} ms: is the network interface attached?", waited.as_millis())]
    Timeout {
        /// The address that was waited for.
        mac: MacAddr,
        /// How long.
        waited: Duration,
    },
}

impl Host {
    /// Waits until a link with an Ethernet address is there: an ENI shows seconds after it is attached. Links that
    /// copy their parent's address (VLAN, macvlan) do not count.
    ///
    /// # Errors
    /// [`WaitForLinkError`].
    pub async fn wait_for_link(&self, mac: MacAddr, within: Duration) -> Result<Link, WaitForLinkError> {
        let is_it = |link: &Link| link.mac == Some(mac) && matches!(link.kind, LinkKind::Physical | LinkKind::Veth);
        let search = async {
            let mut watch = Watch::open(self.namespace(), Watched::LINKS).await.map_err(WaitForLinkError::Watch)?;
            if let Some(link) = watch.links().iter().find(|link| is_it(link)) {
                return Ok(link.clone());
            }
            loop {
                match watch.next().await {
                    Some(Event::Link(Change::New, link)) if is_it(&link) => return Ok(link),
                    Some(Event::Lost) => {
                        let links = self.netlink().links().await.map_err(WaitForLinkError::Links)?;
                        if let Some(link) = links.into_iter().find(|link| is_it(link)) {
                            return Ok(link);
                        }
                    }
                    Some(_) => {}
                    None => {
                        watch = Watch::open(self.namespace(), Watched::LINKS).await.map_err(WaitForLinkError::Watch)?;
                        if let Some(link) = watch.links().iter().find(|link| is_it(link)) {
                            return Ok(link.clone());
                        }
                    }
                }
            }
        };
        tokio::time::timeout(within, search).await.unwrap_or(Err(WaitForLinkError::Timeout { mac, waited: within }))
    }
}

#[cfg(test)]
mod tests;
