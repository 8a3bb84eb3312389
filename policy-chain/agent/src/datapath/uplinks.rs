//! The interfaces by which pods' packets leave the node: ENIs, and their VLANs. What a pod sent to a Service whose backend
//! is elsewhere is judged there, where the backend can be seen (DESIGN 7).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use sluice_contract::id::IfName;
use sluice_hostnet::desired::View;
use sluice_hostnet::host::{Host, ObserveError};
use sluice_hostnet::netlink::OpenError;
use sluice_hostnet::state::{Family, LinkKind, Observed, RtScope};
use sluice_policy_bpf::filters::{FilterError, Filters, Instead, Missing};
use sluice_policy_bpf::gate::Gate;
use sluice_policy_bpf::links::{LinkError, Links};
use sluice_policy_bpf::programs::Program;
use tokio::task::JoinError;

use super::Tended;
use crate::log::ErrorChain;

/// Interfaces that are no way out whatever addresses they have: what passes a bridge has passed its ports, and the others
/// carry nothing.
const NO_UPLINKS: [&str; 3] = ["bridge", "dummy", "ifb"];

/// Why an uplink cannot be judged on.
#[derive(Debug, thiserror::Error)]
enum UplinkError {
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the task that links its program was lost")]
    Lost(#[from] JoinError),
}

impl UplinkError {
    const fn is_gone(&self) -> bool {
        matches!(self, Self::Filter(FilterError::Gone { .. }) | Self::Link(LinkError::Gone { .. }))
    }
}

/// By what programs are put on uplinks.
#[derive(Debug)]
pub(super) struct Stand<'a> {
    pub(super) gate: &'a Gate,
    pub(super) filters: &'a Filters,
    /// None where the kernel has none.
    pub(super) links: Option<&'a Arc<Mutex<Links>>>,
}

/// The programs on uplinks.
#[derive(Debug)]
pub(super) struct Uplinks {
    host: Host,
    /// Uplinks that were there when it began, as long as they have not the program: what goes by them is not to be lost for that.
    in_use: Option<BTreeSet<u32>>,
    /// Uplinks about which has been complained, until they are well.
    complained: BTreeSet<u32>,
    /// Uplinks that have had the program.
    judged: BTreeSet<u32>,
    /// Uplinks from which what Cilium had left has been taken.
    cleaned: BTreeSet<u32>,
    unseen: bool,
    /// The node's own addresses.
    pub(super) own: BTreeSet<IpAddr>,
}

impl Uplinks {
    pub(super) fn open() -> Result<Self, OpenError> {
        Ok(Self {
            host: Host::current()?,
            in_use: None,
            complained: BTreeSet::new(),
            judged: BTreeSet::new(),
            cleaned: BTreeSet::new(),
            unseen: false,
            own: BTreeSet::new(),
        })
    }

    /// Puts the program on every uplink that lacks it, in the place of that of a process before only if `replace`. `pods` are no
    /// uplinks. Where Cilium's agent does not run (`without_agent`), what it has left there goes.
    pub(super) async fn tend(
        &mut self,
        stand: &Stand<'_>,
        pods: &BTreeSet<u32>,
        replace: bool,
        without_agent: bool,
    ) -> Tended {
        let (uplinks, has_ciliums) = match self.observe().await {
            Ok(observed) => {
                self.own = observed.addresses.iter().map(|address| address.net.addr()).collect();
                // Where Cilium has made pods' interfaces, it serves them, and needs what it has at uplinks.
                let has_ciliums = observed.links.iter().any(|link| link.name.as_str().starts_with("lxc"));
                let is_kept = |index| stand.gate.is_of_another_layout(index, Program::Uplink);
                (uplinks(&observed, pods, is_kept), has_ciliums)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.unseen, true) {
                    tracing::error!(error = %ErrorChain(&error), "the host's interfaces cannot be read");
                }
                return Tended::default();
            }
        };
        self.unseen = false;
        self.complained.retain(|index| uplinks.contains_key(index));
        self.judged.retain(|index| uplinks.contains_key(index));
        self.cleaned.retain(|index| uplinks.contains_key(index));
        let in_use = self.in_use.get_or_insert_with(|| uplinks.keys().copied().collect());
        let mut tended = Tended { lost: 0, replaced: true };
        for (index, name) in uplinks {
            let done = stand.put((index, &name), replace, in_use.contains(&index)).await;
            if !matches!(done, Ok(Some(_))) && stand.gate.is_of_another_layout(index, Program::Uplink) {
                tended.replaced = false;
            }
            match done {
                Ok(None) => {
                    self.complained.remove(&index);
                }
                Ok(Some(put)) => {
                    self.complained.remove(&index);
                    in_use.remove(&index);
                    let is_new = self.judged.insert(index);
                    if without_agent && !has_ciliums && self.cleaned.insert(index) {
                        without_cilium(stand.filters, index, &name).await;
                    }
                    if put && is_new {
                        tracing::info!(interface = %name, "Services are judged on this uplink");
                    } else if put {
                        tended.lost += 1;
                        tracing::error!(interface = %name, "what judges Services on this uplink was taken away; it is back");
                    }
                }
                Err(error) if error.is_gone() => {}
                Err(error) => {
                    if self.complained.insert(index) {
                        tracing::error!(interface = %name, error = %ErrorChain(&error), "an uplink cannot be judged on");
                    }
                }
            }
        }
        tended
    }

    async fn observe(&self) -> Result<Observed, ObserveError> {
        self.host.observe(&View { addresses: BTreeSet::from(Family::ALL), ..View::default() }).await
    }
}

/// Takes away what Cilium has left there. It holds nothing up: the uplink's own program has been put first.
async fn without_cilium(filters: &Filters, index: u32, name: &IfName) {
    match filters.remove_cilium(index).await {
        Ok(0) | Err(FilterError::Gone { .. }) => {}
        Ok(removed) => tracing::info!(interface = %name, removed, "filters that Cilium had left are gone"),
        Err(error) => {
            tracing::warn!(interface = %name, error = %ErrorChain(&error), "filters that Cilium has left stay");
        }
    }
}

impl Stand<'_> {
    /// Whether the program had to be put there; none: that of a process before stays.
    async fn put(
        &self,
        (index, name): (u32, &IfName),
        replace: bool,
        in_use: bool,
    ) -> Result<Option<bool>, UplinkError> {
        let missing = self.filters.check_uplink(index).await?;
        if missing.is_empty() {
            return Ok(Some(false));
        }
        let has_link =
            self.gate.has_link(index, Program::Uplink) || self.gate.is_of_another_layout(index, Program::Uplink);
        if !replace && (has_link || judges(&missing)) {
            return Ok(None);
        }
        // An uplink that is new needs no link, which takes longer to make, and to end.
        if let Some(links) = self.links
            && (in_use || has_link)
            && !self.filters.has_hooks(index).await?
        {
            let Err(error) = link(links, index, name).await else { return Ok(Some(true)) };
            if error.is_gone() {
                return Err(error);
            }
            self.filters.attach_uplink(index).await?;
            tracing::warn!(interface = %name, error = %ErrorChain(&error), "an uplink has a filter, because it could not be linked");
            return Ok(Some(true));
        }
        match (self.filters.attach_uplink(index).await, self.links) {
            (Err(error), Some(links)) if error.is_no_room() => link(links, index, name).await?,
            (attached, _) => attached?,
        }
        Ok(Some(true))
    }
}

/// Gives an uplink its link, on a thread that may wait.
async fn link(links: &Arc<Mutex<Links>>, index: u32, name: &IfName) -> Result<(), UplinkError> {
    let (links, name) = (Arc::clone(links), name.clone());
    let attach = move || links.lock().unwrap_or_else(PoisonError::into_inner).attach_uplink(index, &name);
    Ok(tokio::task::spawn_blocking(attach).await??)
}

/// Whether what is missing is missing only because a process before has put it there, in whatever layout of the maps.
fn judges(missing: &[Missing]) -> bool {
    missing.iter().all(|missing| missing.instead == Instead::Older)
}

/// Hardware and VLANs always; others if they have an address within a subnet, as the host's side of a pod has not. Those that are down
/// only if what they have goes otherwise (`is_kept`).
fn uplinks(observed: &Observed, pods: &BTreeSet<u32>, is_kept: impl Fn(u32) -> bool) -> BTreeMap<u32, IfName> {
    let addressed: BTreeSet<&IfName> = observed
        .addresses
        .iter()
        .filter(|address| address.scope == RtScope::Global && address.net.prefix_len() < address.net.max_prefix_len())
        .map(|address| &address.dev)
        .collect();
    let is_uplink = |kind: &LinkKind, name: &IfName| match kind {
        LinkKind::Physical => true,
        LinkKind::Loopback => false,
        LinkKind::Veth => addressed.contains(name),
        LinkKind::Other(kind) if kind == "vlan" => true,
        LinkKind::Other(kind) => !NO_UPLINKS.contains(&&**kind) && addressed.contains(name),
    };
    observed
        .links
        .iter()
        .filter(|link| !pods.contains(&link.index) && is_uplink(&link.kind, &link.name))
        .filter(|link| link.up || is_kept(link.index))
        .map(|link| (link.index, link.name.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_hostnet::state::{Address, Link};
    use sluice_hostnet::tc::Hook;

    fn link(index: u32, name: &str, kind: LinkKind) -> Link {
        Link {
            index,
            name: IfName::new(name).unwrap(),
            mac: None,
            mtu: 1500,
            up: true,
            kind,
            peer: None,
            peer_netns: None,
            alias: None,
            master: None,
        }
    }

    #[test]
    fn only_the_program_of_a_process_before_judges_in_the_place_of_what_is_missing() {
        let missing = |instead| Missing { hook: Hook::Egress, program: Program::Uplink, instead };
        let foreign = Instead::Other { program: Some(7), name: Some("other".to_owned()) };
        assert!(judges(&[missing(Instead::Older)]));
        for instead in [Instead::Nothing, Instead::Drop, foreign] {
            assert!(!judges(&[missing(instead.clone())]), "{instead:?}");
            assert!(!judges(&[missing(Instead::Older), missing(instead)]));
        }
    }

    #[test]
    fn uplinks_are_told_from_pods_and_from_what_leads_nowhere() {
        let other = |kind: &str| LinkKind::Other(kind.to_owned());
        let links = vec![
            link(1, "lo", LinkKind::Loopback),
            link(2, "ens5", LinkKind::Physical),
            link(3, "vlan.eth.1", other("vlan")),
            link(4, "eth0", LinkKind::Veth),
            link(5, "eni0123456789a", LinkKind::Veth),
            link(6, "veth-ptp", LinkKind::Veth),
            link(7, "kube-ipvs0", other("dummy")),
            link(8, "cni0", other("bridge")),
            link(9, "vxlan0", other("vxlan")),
            link(10, "bound", LinkKind::Veth),
            Link { up: false, ..link(11, "ens6", LinkKind::Physical) },
        ];
        let address = |dev: &str, net: &str| Address::new(IfName::new(dev).unwrap(), net.parse().unwrap());
        let addresses = vec![
            address("lo", "127.0.0.1/8"),
            address("eth0", "10.0.0.4/20"),
            // The gateway that ptp gives the host's side, and a virtual address of kube-proxy.
            address("veth-ptp", "10.1.0.1/32"),
            address("kube-ipvs0", "172.20.0.1/32"),
            address("cni0", "10.2.0.1/24"),
            address("vxlan0", "10.3.0.0/16"),
            address("bound", "10.4.0.1/24"),
        ];
        let observed = Observed { links, addresses, ..Observed::default() };
        let found = |kept| -> Vec<u32> {
            uplinks(&observed, &BTreeSet::from([10]), |index| index == kept).into_keys().collect()
        };
        assert_eq!(found(0), [2, 3, 4, 9]);
        assert_eq!(found(11), [2, 3, 4, 9, 11]);
    }
}
