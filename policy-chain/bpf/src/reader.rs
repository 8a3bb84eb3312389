//! What the gates know, for the proxy to read: the kernel's maps are the truth about a flow (DESIGN 8).

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError};
use sluice_policy_core::compile::image::DecisionId;
use sluice_policy_core::flow::{Direction, Protocol};

use crate::layout::{
    Address, Connection, ConnectionKey, Decision, ENDPOINT_AUDIT, ENDPOINT_LOCKDOWN, Endpoint, Frontend, OwnAddress,
    Peer, RowPort, Verdict,
};

/// `IDENTITY_*` of `c/judge.h`, as the compiler has them.
const ANY: u32 = 0;
const WORLD: u32 = 2;
/// Bits of the key of a row that count when it is looked up: row, protocol, port.
const ROW_BITS: u32 = 56;

/// Why the maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A map is not pinned there, or is none: policyd makes them when it starts.
    #[error("cannot open the pinned map {path}: has policyd started?")]
    Open {
        /// Its pin.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: Box<MapError>,
    },
    /// The kernel refused a lookup.
    #[error("cannot read the map {map}")]
    Lookup {
        /// Its name.
        map: &'static str,
        /// The kernel's word.
        #[source]
        source: Box<MapError>,
    },
}

impl ReadError {
    /// Whether the maps are not there (yet).
    #[must_use]
    pub fn is_missing(&self) -> bool {
        let Self::Open { source, .. } = self else { return false };
        match &**source {
            MapError::PinError { error: aya::pin::PinError::SyscallError(error), .. } => {
                error.io_error.kind() == io::ErrorKind::NotFound
            }
            MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }
}

/// The pod at whose gate a flow was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Its number, the same for all its interfaces; another for every life of the pod.
    pub endpoint: u32,
    /// Index of the host's side of its interface.
    pub interface: u32,
    /// It is a dry run: whatever the verdict, the flow passes.
    pub audit: bool,
    /// Everything is dropped.
    pub locked: bool,
    /// The endpoint's revision now.
    pub revision: u64,
}

/// What its gate says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowEntry {
    /// The pod.
    pub subject: Subject,
    /// The decision that it passed by, if it is one that decided.
    pub decision: Option<DecisionId>,
    /// What happens to its packets.
    pub verdict: Verdict,
    /// The endpoint's revision when it was judged; another than [`Subject::revision`]: the next packet is judged anew.
    pub revision: u64,
}

/// What policy says of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendEntry {
    /// What happens to packets to it. [`Verdict::Redirect`]: the decision's rules are asked for every request.
    pub verdict: Verdict,
    /// The decision, if it is one that decides.
    pub decision: Option<DecisionId>,
}

/// The pinned maps, opened by their paths, to be read. Each call is a system call or a few; it never waits.
pub struct Reader {
    owners: HashMap<MapData, Address, u32>,
    endpoints: HashMap<MapData, u32, Endpoint>,
    connections: HashMap<MapData, ConnectionKey, Connection>,
    frontends: HashMap<MapData, Frontend, u32>,
    names: LpmTrie<MapData, Address, u32>,
    ipcache: LpmTrie<MapData, Address, u32>,
    peers: HashMap<MapData, Peer, u32>,
    rows: LpmTrie<MapData, RowPort, u32>,
    decisions: HashMap<MapData, u32, Decision>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens the maps that are pinned in `root`.
    ///
    /// # Errors
    /// [`ReadError::Open`].
    pub fn open(root: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            owners: open(root, "owners")?,
            endpoints: open(root, "endpoints")?,
            connections: open(root, "connections")?,
            frontends: open(root, "frontends")?,
            names: open(root, "names")?,
            ipcache: open(root, "ipcache")?,
            peers: open(root, "peers")?,
            rows: open(root, "rows")?,
            decisions: open(root, "decisions")?,
        })
    }

    /// The pod that has an address on this node.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn subject(&self, address: IpAddr) -> Result<Option<Subject>, ReadError> {
        Ok(self.endpoint(address)?.map(|(interface, entry)| subject(interface, &entry)))
    }

    /// What the gate of the flow's pod says of it: the client's if it is an egress flow, else the server's. None: no pod of
    /// this node has the address, or its gate does not know the flow (any more).
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn flow(
        &self,
        direction: Direction,
        protocol: Protocol,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<Option<FlowEntry>, ReadError> {
        let (own, peer) = match direction {
            Direction::Egress => (client, server),
            Direction::Ingress => (server, client),
        };
        let Some((interface, endpoint)) = self.endpoint(own.ip())? else { return Ok(None) };
        let key = ConnectionKey {
            endpoint: endpoint.id,
            own: address(own.ip()),
            peer: address(peer.ip()),
            own_port: own.port(),
            peer_port: peer.port(),
            protocol: protocol.0,
            ..ConnectionKey::default()
        };
        let Some(connection) = found("connections", self.connections.get(&key, 0))? else { return Ok(None) };
        if connection.direction != number(direction) {
            return Ok(None);
        }
        let Some(verdict) = connection.verdict() else { return Ok(None) };
        Ok(Some(FlowEntry {
            subject: subject(interface, &endpoint),
            decision: Some(connection.decision).filter(|decision| *decision != 0).map(DecisionId),
            verdict,
            revision: connection.revision(),
        }))
    }

    /// Whether the node's service proxy translates what goes there, as far as policyd knows.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn is_frontend(&self, protocol: Protocol, server: SocketAddr) -> Result<bool, ReadError> {
        let key = Frontend { address: address(server.ip()), port: server.port(), protocol: protocol.0, unused: 0 };
        Ok(found("frontends", self.frontends.get(&key, 0))?.is_some())
    }

    /// What the egress policy of the pod with the address `own` says of a backend: as its gate would judge a flow straight
    /// to it. None: no pod has the address, or the maps lack what they have to have, and the packet would be dropped.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn judge_backend(
        &self,
        own: IpAddr,
        protocol: Protocol,
        backend: SocketAddr,
    ) -> Result<Option<BackendEntry>, ReadError> {
        let Some((_, endpoint)) = self.endpoint(own)? else { return Ok(None) };
        let allowed = Ok(Some(BackendEntry { verdict: Verdict::Allow, decision: None }));
        let peer = address(backend.ip());
        let itself = |own: &&OwnAddress| own.address == peer;
        let row = if let Some(own) = endpoint.addresses.iter().find(itself) {
            // To itself by way of a Service.
            match own.egress {
                0 => return allowed,
                row => Some(row),
            }
        } else if endpoint.egress == 0 {
            return allowed;
        } else {
            self.row(endpoint.egress, self.identity(peer)?)?
        };
        let Some(row) = row else { return Ok(None) };
        let port = RowPort { row, protocol: protocol.0, port: backend.port().to_be_bytes(), unused: 0 };
        let Some(id) = found("rows", self.rows.get(&Key::new(ROW_BITS, port), 0))? else { return Ok(None) };
        let Some(decision) = found("decisions", self.decisions.get(&id, 0))? else { return Ok(None) };
        let audit = endpoint.flags & ENDPOINT_AUDIT != 0;
        let verdict = Verdict::of(if audit { decision.full } else { decision.verdict });
        Ok(verdict.map(|verdict| BackendEntry { verdict, decision: Some(DecisionId(id)) }))
    }

    /// The verdict of a decision, as it is in force now; none if the number is not in use.
    ///
    /// # Errors
    /// [`ReadError::Lookup`].
    pub fn verdict(&self, decision: DecisionId) -> Result<Option<Verdict>, ReadError> {
        let found = found("decisions", self.decisions.get(&decision.0, 0))?;
        Ok(found.and_then(|decision| Verdict::of(decision.verdict)))
    }

    fn endpoint(&self, own: IpAddr) -> Result<Option<(u32, Endpoint)>, ReadError> {
        let Some(interface) = found("owners", self.owners.get(&address(own), 0))? else { return Ok(None) };
        let entry = found("endpoints", self.endpoints.get(&interface, 0))?;
        Ok(entry.map(|entry| (interface, entry)))
    }

    fn identity(&self, peer: Address) -> Result<u32, ReadError> {
        let key = Key::new(128, peer);
        if let Some(identity) = found("names", self.names.get(&key, 0))? {
            return Ok(identity);
        }
        Ok(found("ipcache", self.ipcache.get(&key, 0))?.unwrap_or(WORLD))
    }

    fn row(&self, policy: u32, identity: u32) -> Result<Option<u32>, ReadError> {
        for identity in [identity, ANY] {
            if let Some(row) = found("peers", self.peers.get(&Peer { policy, identity }, 0))? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}

const fn subject(interface: u32, entry: &Endpoint) -> Subject {
    Subject {
        endpoint: entry.id,
        interface,
        audit: entry.flags & ENDPOINT_AUDIT != 0,
        locked: entry.flags & ENDPOINT_LOCKDOWN != 0,
        revision: entry.revision,
    }
}

pub(crate) fn address(address: IpAddr) -> Address {
    Address::from(address.to_canonical())
}

/// The number that the maps have for a direction.
#[must_use]
pub(crate) const fn number(direction: Direction) -> u8 {
    match direction {
        Direction::Ingress => crate::layout::FlowDirection::Ingress.number(),
        Direction::Egress => crate::layout::FlowDirection::Egress.number(),
    }
}

pub(crate) fn open<T: TryFrom<Map, Error = MapError>>(root: &Path, name: &'static str) -> Result<T, ReadError> {
    let path = root.join(name);
    let opened = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    opened.map_err(|source| ReadError::Open { path, source: Box::new(source) })
}

pub(crate) fn found<T>(map: &'static str, result: Result<T, MapError>) -> Result<Option<T>, ReadError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(source) => Err(ReadError::Lookup { map, source: Box::new(source) }),
    }
}
