//! The `Datapath` seam: the gates in the kernel.
//!
//! Two implementations exist: one over `sluice_policy_bpf::Gate`, and a model for tests that judges
//! packets as the programs do. Both carry out; what is to be done is decided by the engine and the daemon's loop.
//!
//! The promise that all of it stands on: **an interface that was bound once lets nothing pass that its pod's endpoint does
//! not**, whatever happens to this process, until the interface is gone.

pub mod gate;
#[cfg(test)]
pub(crate) mod model;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use sluice_contract::id::IfName;
use sluice_policy_bpf::events::Event;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::Floor;
use sluice_policy_core::compile::image::{Identity, Image};

/// The host's side of one interface of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its index on the host.
    pub index: u32,
    /// Its name on the host.
    pub name: IfName,
    /// The addresses of the pod behind it.
    pub addresses: Vec<IpAddr>,
    /// It is the pod's first. By that one alone may a pod of one family leave in the other.
    pub first: bool,
}

/// A veth of the host's, as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its alias, which tells whose it is where sluice-eni has made it.
    pub alias: Option<String>,
    /// The kernel's number of the namespace that its other end is in; none if that is the host's.
    pub peer_netns: Option<i32>,
    /// The addresses that the host routes by it, each by a route of its own: those of the pod behind it.
    pub addresses: Vec<IpAddr>,
}

/// What the pinned maps held when they were opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Indexes of the host's interfaces that have an entry.
    pub endpoints: BTreeSet<u32>,
    /// The greatest numbers in use, in any map.
    pub floor: Floor,
}

/// Why a write to the kernel's maps failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The map is full.
    #[error("the map {map} is full: it holds {limit} entries")]
    Full {
        /// Its name.
        map: &'static str,
        /// Entries that it can hold.
        limit: u32,
    },
    /// The kernel refused.
    #[error("{action} failed")]
    Kernel {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why an interface could not be attached to or looked at.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no such interface: the pod has gone.
    #[error("the interface {name} (index {index}) is gone")]
    Gone {
        /// Its name.
        name: IfName,
        /// Its index.
        index: u32,
    },
    /// The kernel refused.
    #[error("{action} failed")]
    Kernel {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Something at an interface that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What, in words.
    pub what: String,
    /// It is only that the process before has put the gate there, which judges: by the same maps, or by those of another layout.
    pub older: bool,
}

/// How the uplinks are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tended {
    /// How many had lost what stood there.
    pub lost: usize,
    /// None is judged by what another layout of the maps has pinned alone, and would be open without that.
    pub replaced: bool,
}

/// Something that a gate saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// How long ago it was when it was read.
    pub ago: Duration,
    /// What it was.
    pub event: Event,
}

/// What the maps have for a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldIdentities {
    /// As an address that a name resolved to, which goes before.
    pub name: Option<Identity>,
    /// As an address.
    pub address: Identity,
}

/// The gates of the node.
///
/// Between [`Datapath::bind`] and [`Datapath::attach`], and wherever something is missing, packets are dropped.
pub trait Datapath: Send + 'static {
    /// Carries out an operation. [`Operation::SetEndpoint`] of a pod to which no interface is bound is remembered and
    /// written when one is; it also opens an endpoint that was locked down. [`Operation::RemoveEndpoint`] makes the pod's
    /// interfaces drop.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing was written then.
    fn apply(&mut self, operation: &Operation) -> Result<(), ApplyError>;

    /// Whom the gates take the addresses of a prefix for that are in no longer one; none, if the maps cannot be read.
    fn identities(&self, prefix: &IpNet) -> Option<HeldIdentities>;

    /// The interface belongs to the pod from now on. If the pod's endpoint is not known yet, an entry that the
    /// maps have for the interface already (from before a restart) stays as it is, and one that they have not stays
    /// missing: its packets are dropped. Binding the same again changes nothing but the addresses.
    ///
    /// # Errors
    /// [`ApplyError`]; the interface drops then.
    fn bind(&mut self, pod: &PodKey, interface: &Interface) -> impl Future<Output = Result<(), ApplyError>> + Send;

    /// The interface belongs to nobody from now on: it drops everything for as long as it is there. Programs stay
    /// attached. An interface that is not bound, or gone, is success.
    ///
    /// # Errors
    /// [`ApplyError`].
    fn unbind(&mut self, index: u32) -> Result<(), ApplyError>;

    /// The link of an interface is gone: nothing is kept of it.
    ///
    /// # Errors
    /// [`ApplyError`].
    fn forget(&mut self, index: u32) -> Result<(), ApplyError>;

    /// The pod's interfaces drop everything, established flows too, until the next [`Operation::SetEndpoint`] of the pod.
    ///
    /// # Errors
    /// [`ApplyError`].
    fn lock_down(&mut self, pod: &PodKey) -> Result<(), ApplyError>;

    /// Every entry from before a restart that has not been written since drops everything, until it is: for when the maps
    /// get numbers of which it does not know what they mean. How many they are.
    ///
    /// # Errors
    /// [`ApplyError`].
    fn lock_down_kept(&mut self) -> Result<usize, ApplyError>;

    /// Puts the gate's programs on both directions of an interface that is bound or was, in place of the drop program if that is there.
    /// Programs that are there already stay. Where nothing is there the interface passes no packet in between.
    fn attach(&mut self, interface: &Interface) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// The same for an interface whose pod has been talking without a gate, or by one of a process before: it loses no packet by
    /// that. Where the kernel has no links (before Linux 6.6), or refuses them, it may lose those of a moment.
    fn adopt(&mut self, interface: &Interface) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// The host's interface behind which a pod with this address is, if the host's routes say so, whatever it is called.
    fn behind(&mut self, address: IpAddr) -> impl Future<Output = Option<(u32, IfName)>> + Send;

    /// All veths of the host; none if the kernel does not tell now. All links and routes are read for it.
    fn veths(&mut self) -> impl Future<Output = Option<Vec<Veth>>> + Send;

    /// Makes the flows that the pod behind a bound interface has already known to its gate, so that attaching it breaks none
    /// that its policy allows. What cannot be made known is logged.
    fn seed(&mut self, interface: &Interface) -> impl Future<Output = ()> + Send;

    /// What is missing or foreign at an interface; empty when its gate is as it should be.
    fn check(&mut self, interface: &Interface) -> impl Future<Output = Result<Vec<Difference>, AttachError>> + Send;

    /// Makes the gate of the next interface whose turn has come outlast those who take filters and qdiscs away. The kernel
    /// holds up all other changes to the network's configuration meanwhile: so it is done to one interface at a time, a
    /// while after its gate was put there, with pauses. To be called twice a second. What became of an interface; none:
    /// nothing was to be done, or is not done yet.
    fn promote(&mut self) -> impl Future<Output = Option<Result<IfName, AttachError>>> + Send;

    /// Looks after what stands elsewhere than at pods' interfaces: where the node's uplinks are judged on. To be called
    /// every few seconds, and when interfaces or addresses of the host change. What a process before has put there is replaced
    /// only if `replace`: it may judge by another layout's maps, as the pods' gates do, and those of this process say nothing yet.
    fn tend(&mut self, replace: bool) -> impl Future<Output = Tended> + Send;

    /// The pods to which interfaces are bound, by the numbers that the maps have for them.
    fn endpoints(&self) -> impl Iterator<Item = (u32, &PodKey)> + Clone;

    /// Removes everything from the pinned maps that `image` has not; the entries of interfaces that are not bound, and of
    /// bound ones whose pod has no endpoint in it, drop from then on. After the first whole image has been applied.
    ///
    /// # Errors
    /// [`ApplyError`]; what was not removed is removed by the next call.
    fn sweep(&mut self, image: &Image) -> Result<(), ApplyError>;

    /// Takes away what another layout of the maps has pinned, and with it its programs at interfaces: when this process' programs
    /// stand at all that are bound, or these would stand open. Whether nothing of it is left; if not, another process holds it, and
    /// this is to be called again. Not before [`Tended::replaced`] was said of the uplinks.
    ///
    /// # Errors
    /// [`ApplyError`]; what is left is taken away by the next call.
    fn leave_other_layouts(&mut self) -> Result<bool, ApplyError>;

    /// What the gates have seen since the last call, a bounded number; more may be there.
    fn seen(&mut self) -> Vec<Seen>;

    /// Packets by number of the decision, since the maps were made.
    fn counters(&mut self) -> BTreeMap<u32, u64>;

    /// Packets dropped by cause, since the maps were made.
    fn drops(&mut self) -> BTreeMap<&'static str, u64>;

    /// Forgets flows that have ended, a bounded number at a time. To be called every few seconds.
    fn expire(&mut self);

    /// Which of these addresses pods have open flows with. All of them if that cannot be told.
    fn in_use(&mut self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr>;
}
