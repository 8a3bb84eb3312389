//! What the proxy's namespaces need of the kernel's programs (DESIGN 8).
//!
//! ```text
//! pod's gate --REDIRECT--> [proxies] link of the direction --> namespace: sk_lookup --> [listeners] socket
//! pod's gate <-- in the pod's name, or in that of its peer -- host's end of the link: from_ingress, from_egress
//! ```
//!
//! The proxy's process loads and attaches them, on the maps that policyd has pinned. All of it stays when the process goes: the
//! programs on the links go on answering for what is gone, and the next process puts its sockets in.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, SockMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SchedClassifier, SkLookup};
use aya::{Ebpf, EbpfError, EbpfLoader};
use sluice_contract::id::MacAddr;
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::tc::{self, Existing, Hook, Slot, TcError};
use sluice_policy_core::flow::Direction;

use crate::gate::replace_pin;
use crate::layout::{self, LISTENER_EGRESS, LISTENER_IPV6, LISTENER_UDP};
use crate::object::PROXY;
use crate::reader::number;

/// Directory of the proxy's pins, below the layout's.
const PINS: &str = "proxy";

/// Why the proxy's programs could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// policyd has not made its maps yet.
    #[error("the map {path} is not pinned: policyd makes it when it starts")]
    NoMap {
        /// Its pin.
        path: PathBuf,
    },
    /// The maps could not be opened, or the programs not be fitted to this kernel.
    #[error("cannot load the programs of the proxy's namespaces")]
    Object(#[source] Box<EbpfError>),
    /// The object file is not that of this crate.
    #[error("the programs of the proxy's namespaces lack {name}")]
    Missing {
        /// Name of the program or map.
        name: &'static str,
    },
    /// The kernel does not take a program, or does not put it there.
    #[error("the kernel does not take the program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// Its word.
        #[source]
        source: Box<ProgramError>,
    },
    /// The program could not be put on the link.
    #[error("cannot attach {program} to interface {index}")]
    Attach {
        /// Its name.
        program: &'static str,
        /// The host's end of the proxy's link.
        index: u32,
        /// The kernel's word.
        #[source]
        source: TcError,
    },
    /// A link could not be pinned.
    #[error("cannot pin {path}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// A map could not be written.
    #[error("cannot write to the map {map}")]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's word.
        #[source]
        source: Box<MapError>,
    },
}

/// The sockets that take what is redirected. One of each kind stands for the group that it shares its port with
/// (`SO_REUSEPORT`): the kernel chooses among those by the four-tuple.
#[derive(Debug, Clone, Copy)]
pub struct Sockets<'a> {
    /// TCP, listening; for both families, or for IPv4 if `tcp_v6` is another.
    pub tcp: BorrowedFd<'a>,
    /// TCP over IPv6; none: `tcp` takes it, if it is an IPv6 socket.
    pub tcp_v6: Option<BorrowedFd<'a>>,
    /// UDP over IPv4, bound.
    pub udp: Option<BorrowedFd<'a>>,
    /// UDP over IPv6, bound.
    pub udp_v6: Option<BorrowedFd<'a>>,
}

/// The loaded programs, and the maps that say where the proxy is.
pub struct ProxyPrograms {
    object: Ebpf,
    root: PathBuf,
    proxies: Array<MapData, layout::Proxy>,
    listeners: SockMap<MapData>,
}

impl fmt::Debug for ProxyPrograms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyPrograms").field("root", &self.root).finish_non_exhaustive()
    }
}

const fn names(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("from_ingress", "lookup_ingress"),
        Direction::Egress => ("from_egress", "lookup_egress"),
    }
}

impl ProxyPrograms {
    /// Loads the programs on the maps that are pinned in `root`.
    ///
    /// # Errors
    /// [`ProxyError::NoMap`] as long as policyd has not made them; [`ProxyError::Object`], [`ProxyError::Program`].
    pub fn load(root: &Path) -> Result<Self, ProxyError> {
        let mut loader = EbpfLoader::new();
        for map in layout::MAPS {
            let path = root.join(map.name);
            // What is not there would be made, of another size than policyd's.
            if !path.exists() {
                return Err(ProxyError::NoMap { path });
            }
            loader.map_pin_path(map.name, path);
        }
        let mut object = loader.load(PROXY).map_err(|error| ProxyError::Object(Box::new(error)))?;
        for direction in [Direction::Ingress, Direction::Egress] {
            let (from, lookup) = names(direction);
            let failed = |program| move |source| ProxyError::Program { program, source: Box::new(source) };
            classifier(&mut object, from)?.load().map_err(failed(from))?;
            sk_lookup(&mut object, lookup)?.load().map_err(failed(lookup))?;
        }
        let (proxies, listeners) = (take(&mut object, "proxies")?, take(&mut object, "listeners")?);
        Ok(Self { object, root: root.into(), proxies, listeners })
    }

    /// Joins the namespace of a direction: the program on the host's end of its link (`index`, seen by `netlink`), the lookup
    /// of sockets inside, and where the gates send its flows (`mac`: the address of its own end). In the place of an older
    /// process's, without a packet between them that meets none.
    ///
    /// # Errors
    /// [`ProxyError`]. Gates may send flows there or not, then; what is not complete drops them.
    pub async fn join(
        &mut self,
        direction: Direction,
        netlink: &Netlink,
        index: u32,
        mac: MacAddr,
        namespace: &Namespace,
    ) -> Result<(), ProxyError> {
        let (from, lookup) = names(direction);
        let failed = |program| move |source| ProxyError::Program { program, source: Box::new(source) };
        let classifier = classifier(&mut self.object, from)?;
        let descriptor = classifier.fd().map_err(failed(from))?.as_fd();
        let programs = [(Hook::Ingress, tc::Program { fd: descriptor, name: from })];
        let attached = netlink.attach(index, Slot::GATE, &programs, Existing::Replace).await;
        attached.map_err(|source| ProxyError::Attach { program: from, index, source })?;

        let pins = self.root.join(PINS);
        std::fs::create_dir_all(&pins).map_err(|source| ProxyError::Pin { path: pins.clone(), source })?;
        let path = pins.join(lookup);
        let program = sk_lookup(&mut self.object, lookup)?;
        let link = program.attach(namespace).and_then(|id| program.take_link(id)).map_err(failed(lookup))?;
        let link = FdLink::from(link);
        let pinned = replace_pin(&path, |path| link.pin(path).map(drop).map_err(io::Error::other));
        pinned.map_err(|source| ProxyError::Pin { path, source })?;

        let MacAddr(mac) = mac;
        let value = layout::Proxy { index, mac, unused: 0 };
        let written = self.proxies.set(number(direction).into(), value, 0);
        written.map_err(|source| ProxyError::Map { map: "proxies", source: Box::new(source) })
    }

    /// From now on these sockets take what is redirected; those before keep what they have taken. What closes, with its
    /// process or before, takes nothing more by itself.
    ///
    /// # Errors
    /// [`ProxyError::Map`].
    pub fn take_over(&mut self, direction: Direction, sockets: &Sockets<'_>) -> Result<(), ProxyError> {
        let base = if direction == Direction::Egress { LISTENER_EGRESS } else { 0 };
        let wanted = [
            (base, Some(sockets.tcp)),
            (base | LISTENER_IPV6, Some(sockets.tcp_v6.unwrap_or(sockets.tcp))),
            (base | LISTENER_UDP, sockets.udp),
            (base | LISTENER_UDP | LISTENER_IPV6, sockets.udp_v6),
        ];
        for (index, socket) in wanted {
            let Some(socket) = socket else { continue };
            let written = self.listeners.set(index, &socket.as_raw_fd(), 0);
            written.map_err(|source| ProxyError::Map { map: "listeners", source: Box::new(source) })?;
        }
        Ok(())
    }
}

fn classifier<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, ProxyError> {
    let found = object.program_mut(name).and_then(|program| program.try_into().ok());
    found.ok_or(ProxyError::Missing { name })
}

fn sk_lookup<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SkLookup, ProxyError> {
    let found = object.program_mut(name).and_then(|program| program.try_into().ok());
    found.ok_or(ProxyError::Missing { name })
}

fn take<T: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, map: &'static str) -> Result<T, ProxyError> {
    let taken = object.take_map(map).ok_or(ProxyError::Missing { name: map })?;
    T::try_from(taken).map_err(|source| ProxyError::Map { map, source: Box::new(source) })
}
