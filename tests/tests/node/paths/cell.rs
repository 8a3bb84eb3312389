//! The cells of the matrix, and what each of them must show: pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use sluice_policy_core::vector::schema::Family;
use sluice_tests::live::eni::Eni;
use sluice_tests::service_proxy::Backend;

/// How the server is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    PodIp,
    ClusterIp,
    /// A node port with `externalTrafficPolicy: Cluster`, of the server's node or of the other one.
    NodePort(Entry),
    /// A node port with `externalTrafficPolicy: Local`, of the server's node.
    NodePortLocal,
    /// A host on the Internet.
    Internet,
    /// A machine of a peered VPC, to whose addresses pods' are not translated.
    Excluded,
    /// The ClusterIP of a Service that has the client itself behind it, and nobody else.
    Hairpin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Entry {
    Servers,
    Other,
}

impl Way {
    const IN: [Self; 5] = [
        Self::PodIp,
        Self::ClusterIp,
        Self::NodePort(Entry::Servers),
        Self::NodePort(Entry::Other),
        Self::NodePortLocal,
    ];

    const fn number(self) -> u8 {
        match self {
            Self::PodIp => 0,
            Self::ClusterIp => 1,
            Self::NodePort(Entry::Servers) => 2,
            Self::NodePort(Entry::Other) => 3,
            Self::NodePortLocal => 4,
            Self::Internet => 5,
            Self::Excluded => 6,
            Self::Hairpin => 7,
        }
    }
}

/// Where the client is, as the server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    SameNode,
    OtherNode,
    /// For pods' addresses a machine of the peered VPC, else a host on the Internet; and where the server is outside.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) backend: Backend,
    pub(super) way: Way,
    pub(super) place: Place,
    /// The ENI of the client, if that is a pod, and of the server, if that is one.
    pub(super) client: Option<Eni>,
    pub(super) server: Option<Eni>,
    pub(super) family: Family,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, way, place, client, server, family } = self;
        write!(f, "{backend}, {way:?}, {place:?}, from {client:?} to {server:?}, {family:?}")
    }
}

impl Cell {
    fn values(self) -> [u8; 6] {
        let eni = |eni: Option<Eni>| eni.map_or(2, |eni| eni as u8);
        [
            self.backend as u8,
            self.way.number(),
            self.place as u8,
            eni(self.client),
            eni(self.server),
            u8::from(self.family == Family::V6),
        ]
    }

    pub(super) fn pairs(self) -> impl Iterator<Item = (usize, u8, usize, u8)> {
        let values = self.values();
        (0..6).flat_map(move |one| (one + 1..6).map(move |other| (one, values[one], other, values[other])))
    }
}

/// All of them.
pub(super) fn all() -> Vec<Cell> {
    let enis = [Eni::Primary, Eni::Second];
    let mut cells = Vec::new();
    for backend in Backend::ALL {
        for family in [Family::V4, Family::V6] {
            let mut add = |way, place, client, server| {
                cells.push(Cell { backend, way, place, client, server, family });
            };
            for server in enis {
                for way in Way::IN {
                    for client in enis {
                        add(way, Place::SameNode, Some(client), Some(server));
                        add(way, Place::OtherNode, Some(client), Some(server));
                    }
                    // Nobody outside has a route to ClusterIPs.
                    if way != Way::ClusterIp {
                        add(way, Place::Outside, None, Some(server));
                    }
                }
            }
            for client in enis {
                add(Way::Internet, Place::Outside, Some(client), None);
                add(Way::Excluded, Place::Outside, Some(client), None);
                add(Way::Hairpin, Place::SameNode, Some(client), Some(client));
            }
        }
    }
    cells
}

/// As few of them as have every two values together that any of them has: always the one with most that is new.
pub(super) fn slice(cells: &[Cell]) -> Vec<Cell> {
    let mut missing: BTreeSet<_> = cells.iter().flat_map(|cell| cell.pairs()).collect();
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let new = |cell: &&Cell| cell.pairs().filter(|pair| missing.contains(pair)).count();
        let best = *cells.iter().rev().max_by_key(new).unwrap();
        missing = &missing - &best.pairs().collect();
        chosen.push(best);
    }
    chosen.sort_unstable();
    chosen
}

/// A node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    A,
    B,
}

/// Whose addresses there are.
pub(super) trait Addresses {
    /// A pod on an ENI of a node; servers and clients differ.
    fn client(&self, eni: Eni, family: Family) -> IpAddr;
    fn server(&self, node: Node, eni: Eni, family: Family) -> IpAddr;
    /// A node's own address: that of its primary ENI.
    fn node(&self, node: Node, family: Family) -> IpAddr;
    /// An ENI's own address, which masquerading takes.
    fn eni(&self, node: Node, eni: Eni, family: Family) -> IpAddr;
    /// As the Internet sees the node.
    fn public(&self, node: Node, family: Family) -> IpAddr;
    fn internet(&self, family: Family) -> IpAddr;
    fn peer(&self, family: Family) -> IpAddr;
}

/// A way that packets take into the VPC: the ENI, the source and the destination.
pub(super) type Sent = (Node, Eni, IpAddr, IpAddr);

/// What a cell must show.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// The sources that the server may see.
    pub(super) seen: BTreeSet<IpAddr>,
    /// What the nodes' ENIs send.
    pub(super) sent: BTreeSet<Sent>,
}

/// What masquerading takes for a packet to a pod of the node itself: the node's address; of IPv6, whichever of the node's is most like the
/// pod's (RFC 6724, section 5, rule 8).
fn masqueraded(at: &impl Addresses, node: Node, family: Family) -> BTreeSet<IpAddr> {
    match family {
        Family::V4 => [at.node(node, family)].into(),
        Family::V6 => [Eni::Primary, Eni::Second].map(|eni| at.eni(node, eni, family)).into(),
    }
}

impl Cell {
    /// The node of the server. Clients that are pods are on A.
    pub(super) fn servers_node(self) -> Node {
        if self.place == Place::SameNode { Node::A } else { Node::B }
    }

    /// The node whose node port is called.
    pub(super) fn entry(self) -> Node {
        match (self.way, self.servers_node()) {
            (Way::NodePort(Entry::Other), Node::A) => Node::B,
            (Way::NodePort(Entry::Other), Node::B) => Node::A,
            (_, node) => node,
        }
    }

    /// The client's address.
    pub(super) fn from(self, at: &impl Addresses) -> IpAddr {
        match (self.client, self.way) {
            (Some(eni), Way::Hairpin) => at.server(Node::A, eni, self.family),
            (Some(eni), _) => at.client(eni, self.family),
            (None, Way::PodIp) => at.peer(self.family),
            (None, _) => at.internet(self.family),
        }
    }

    pub(super) fn expected(self, at: &impl Addresses) -> Expected {
        let family = self.family;
        let from = self.from(at);
        let node = self.servers_node();
        let mut sent = BTreeSet::new();
        let Some(server_eni) = self.server else {
            let client_eni = self.client.unwrap_or_default();
            // What leaves the VPC leaves in the node's name, by the ENI that has it; IPv6 is not translated.
            let translated = self.way == Way::Internet && family == Family::V4;
            let to = if self.way == Way::Internet { at.internet(family) } else { at.peer(family) };
            let (eni, source) = if translated { (Eni::Primary, at.node(Node::A, family)) } else { (client_eni, from) };
            sent.insert((Node::A, eni, source, to));
            let seen = if translated { at.public(Node::A, family) } else { from };
            return Expected { seen: [seen].into(), sent };
        };
        let server = at.server(node, server_eni, family);
        let entry = self.entry();
        let is_local = |to: Node| self.client.is_some() && to == Node::A;
        match self.way {
            Way::NodePort(_) | Way::NodePortLocal => {
                let called = at.node(entry, family);
                // The question reaches the entry by the client's ENI, and the answer leaves by the one that was called.
                if let Some(eni) = self.client.filter(|_| !is_local(entry)) {
                    sent.insert((Node::A, eni, from, called));
                }
                if !is_local(entry) {
                    sent.insert((entry, Eni::Primary, called, from));
                }
                if self.way == Way::NodePortLocal {
                    return Expected { seen: [from].into(), sent };
                }
                if entry == node {
                    return Expected { seen: masqueraded(at, entry, family), sent };
                }
                // Else that of the ENI that the packet leaves by.
                let by = self.client.filter(|_| is_local(entry)).unwrap_or_default();
                let seen = at.eni(entry, by, family);
                sent.insert((entry, by, seen, server));
                sent.insert((node, server_eni, server, seen));
                Expected { seen: [seen].into(), sent }
            }
            // By its own address it would answer itself past the service proxy. Nothing leaves the node.
            Way::Hairpin => Expected { seen: masqueraded(at, Node::A, family), sent },
            _ => {
                if let Some(eni) = self.client.filter(|_| node != Node::A) {
                    sent.insert((Node::A, eni, from, server));
                }
                if self.place != Place::SameNode {
                    sent.insert((node, server_eni, server, from));
                }
                Expected { seen: [from].into(), sent }
            }
        }
    }
}

#[test]
fn a_slice_has_every_pair_and_is_small() {
    let cells = all();
    assert_eq!(cells.len(), 3 * 2 * (2 * (5 * 4 + 4) + 6));
    let part = slice(&cells);
    let pairs = |cells: &[Cell]| cells.iter().flat_map(|cell| cell.pairs()).collect::<BTreeSet<_>>();
    assert_eq!(pairs(&part), pairs(&cells));
    assert!(part.len() < 40, "{}", part.len());
}
