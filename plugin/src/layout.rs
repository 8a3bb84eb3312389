//! What an attachment looks like in the kernel and to the runtime: pure, from what ipamd says.
//!
//! Each interface of a pod is laid out by itself, the first as the only one of most pods. What comes by a further one
//! is answered by it; the pod's own connections leave by the first.

use std::collections::BTreeSet;
use std::iter;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;
use sluice_contract::cni::{
    ATTACHMENT_KEY, AddResult, Bandwidth, EniAttachment, FURTHER_ATTACHMENTS_KEY, Interface, IpConfig,
    Route as CniRoute,
};
use sluice_contract::id::{Attachment, IfName, InvalidId, MacAddr};
use sluice_contract::node::veth::{self, End};
use sluice_contract::node::{RULE_POD_INTERFACE, TABLE_MAIN, branch, nic, pod_gateway_v4, pod_gateway_v6, pod_table};
use sluice_contract::rpc::{AddReply, PodAddress};
use sluice_hostnet::branch::{BranchError, PodBranch, rules_of_address};
use sluice_hostnet::desired::{Desired, LinkSettings};
use sluice_hostnet::shape::Limit;
use sluice_hostnet::state::{Address, Family, Neighbour, Route, Rule, Sysctl, SysctlKey, host_prefix};

/// The smallest MTU of a link with IPv6, in bytes (RFC 8200, section 5).
const MTU_MIN_V6: u32 = 1280;
/// The settings of IPv6 on the host's end of a pod that has addresses of it: those of the VPC CNI, and no detection of duplicates. Nobody else is on the
/// link, and the host could not ask for its pod before it has an address of the link.
const HOST_SYSCTLS: [(&str, u8); 4] = [("accept_ra", 0), ("accept_redirects", 1), ("forwarding", 0), ("accept_dad", 0)];
/// Of a pod that has none: with an address of the link there would be routes of its own, groups to be joined and neighbours to be found
/// for every pod, and nobody who speaks it.
const HOST_SYSCTLS_WITHOUT: [(&str, u8); 1] = [("disable_ipv6", 1)];
/// The most addresses of one interface; more is a fault of the daemon.
const ADDRESSES_MAX: usize = 64;

/// Why ipamd's answer cannot be made real.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    /// No address at all.
    #[error("ipamd gave {attachment} no address")]
    NoAddress {
        /// For whom.
        attachment: Attachment,
    },
    /// More than anyone needs.
    #[error("ipamd gave {attachment} {count} addresses; at most {ADDRESSES_MAX} are set up")]
    TooMany {
        /// For whom.
        attachment: Attachment,
        /// How many.
        count: usize,
    },
    /// An interface that the attachment cannot have.
    #[error("ipamd gave {attachment} {ip} for interface {interface} of the pod, which it cannot have")]
    NoSuchInterface {
        /// For whom.
        attachment: Attachment,
        /// The address.
        ip: IpAddr,
        /// The interface.
        interface: u8,
    },
    /// A pod with security groups of its own has one interface.
    #[error("ipamd gave {attachment} a branch ENI beside interfaces on further network cards")]
    BranchBeside {
        /// For whom.
        attachment: Attachment,
    },
    /// The host's end would have a name that no link can have.
    #[error("the host's interface of {attachment} cannot be named")]
    HostName {
        /// For whom.
        attachment: Attachment,
        /// What is wrong.
        #[source]
        source: InvalidId,
    },
    /// The branch ENI cannot be made real.
    #[error("ipamd's answer for {attachment} contradicts itself")]
    Branch {
        /// For whom.
        attachment: Attachment,
        /// What is wrong.
        #[source]
        source: BranchError,
    },
    /// The MTU is too small for IPv6.
    #[error("MTU {mtu} is too small for the pod's IPv6 address {ip}: it must be at least {MTU_MIN_V6}")]
    Mtu {
        /// The address.
        ip: IpAddr,
        /// The MTU in bytes.
        mtu: u32,
    },
}

/// One interface of a pod: names, addresses and what follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Whose it is.
    pub(crate) attachment: Attachment,
    /// Which of the pod's interfaces it is, from 0.
    pub(crate) index: u8,
    /// The host's end.
    pub(crate) host: IfName,
    /// The host end's MAC address.
    pub(crate) host_mac: MacAddr,
    /// The pod end's MAC address.
    pub(crate) pod_mac: MacAddr,
    /// MTU of both ends in bytes.
    pub(crate) mtu: u32,
    /// The addresses.
    pub(crate) addresses: Vec<PodAddress>,
    /// The address by which the pod leaves in the family that it has none of those in.
    pub(crate) egress: Option<IpAddr>,
    /// The branch ENI that the addresses are of, where the pod has security groups of its own.
    pub(crate) branch: Option<PodBranch>,
    /// Limits of its traffic.
    pub(crate) bandwidth: Bandwidth,
    /// Whether IPv6 is switched off in the whole pod.
    pub(crate) disable_ipv6: bool,
}

/// The layouts of `reply`, one an interface: that of `first`, and those on further network cards. `mtu` is the
/// conflist's, which comes before ipamd's. `host` is what the first one's host end is called, unless the pod's branch
/// ENI gives it another name; `further` names the others.
pub(crate) fn layouts(
    first: &Attachment,
    host: &IfName,
    further: impl Fn(&Attachment) -> Result<IfName, InvalidId>,
    mtu: Option<u32>,
    reply: AddReply,
) -> Result<Vec<Layout>, LayoutError> {
    let AddReply { addresses: mut rest, mtu: given, mut egress, disable_ipv6 } = reply;
    let mtu = mtu.unwrap_or(given);
    let all = rest.iter().map(|address| address.ip).chain(egress);
    if let Some(ip) = all.filter(IpAddr::is_ipv6).find(|_| mtu < MTU_MIN_V6) {
        return Err(LayoutError::Mtu { ip, mtu });
    }
    if rest.iter().any(|address| address.branch.is_some()) && rest.iter().any(|address| address.interface > 0) {
        return Err(LayoutError::BranchBeside { attachment: first.clone() });
    }
    let mut layouts = Vec::with_capacity(1);
    for (index, attachment) in (0u8..).zip(iter::once(first.clone()).chain(nic::further(first))) {
        if index > 0 && rest.is_empty() {
            break;
        }
        let (own, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|address| address.interface == index);
        rest = others;
        let host = if index == 0 {
            host.clone()
        } else {
            let failed = |source| LayoutError::HostName { attachment: attachment.clone(), source };
            further(&attachment).map_err(failed)?
        };
        // The pod's way out in the other family is the first's, and there is one of them.
        layouts.push(Layout::new(attachment, index, host, mtu, own, egress.take())?);
    }
    // It is the whole pod's: one interface says it, and none if another has such an address.
    let has_v6 = layouts.iter().any(Layout::has_v6);
    if let Some(first) = layouts.first_mut() {
        first.disable_ipv6 = disable_ipv6 && !has_v6;
    }
    match rest.first() {
        None => Ok(layouts),
        Some(&PodAddress { ip, interface, .. }) => {
            Err(LayoutError::NoSuchInterface { attachment: first.clone(), ip, interface })
        }
    }
}

impl Layout {
    fn new(
        attachment: Attachment,
        index: u8,
        host: IfName,
        mtu: u32,
        addresses: Vec<PodAddress>,
        egress: Option<IpAddr>,
    ) -> Result<Self, LayoutError> {
        if addresses.is_empty() {
            return Err(LayoutError::NoAddress { attachment });
        }
        if addresses.len() > ADDRESSES_MAX {
            return Err(LayoutError::TooMany { attachment, count: addresses.len() });
        }
        let branch = match PodBranch::of(&addresses) {
            Ok(branch) => branch,
            Err(source) => return Err(LayoutError::Branch { attachment, source }),
        };
        Ok(Self {
            host_mac: veth::mac(End::Host, &attachment),
            pod_mac: veth::mac(End::Pod, &attachment),
            attachment,
            index,
            host: match &branch {
                Some(own) => branch::host_name(&host, own.mode),
                None => host,
            },
            mtu,
            addresses,
            egress,
            branch,
            bandwidth: Bandwidth::default(),
            disable_ipv6: false,
        })
    }

    /// The limits of what the host sends to the pod, and of what the pod sends.
    pub(crate) fn limits(&self) -> (Option<Limit>, Option<Limit>) {
        let Bandwidth { ingress_rate, ingress_burst, egress_rate, egress_burst } = self.bandwidth;
        let limit = |rate, burst| Limit::of_bits(rate, burst, self.mtu);
        (limit(ingress_rate, ingress_burst), limit(egress_rate, egress_burst))
    }

    /// Whether it has an IPv6 address.
    pub(crate) fn has_v6(&self) -> bool {
        self.all().any(|ip| ip.is_ipv6())
    }

    /// Every address that it has.
    pub(crate) fn all(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.ip).chain(self.egress)
    }

    /// What the pod's namespace must have (reference: the VPC CNI's driver, in its order).
    pub(crate) fn pod(&self) -> Desired {
        let dev = &self.attachment.ifname;
        let table = pod_table(self.index);
        let mut desired = Desired {
            links: vec![LinkSettings { dev: dev.clone(), up: Some(true), mtu: Some(self.mtu) }],
            rules: self.pod_rules(),
            ..Desired::default()
        };
        desired.addresses.extend(self.all().map(|ip| Address::new(dev.clone(), host_prefix(ip))));
        for family in families(self.all()) {
            let gateway = gateway(family, self.index);
            desired.routes.push(Route::on_link(table, host_prefix(gateway), dev.clone()));
            desired.routes.push(Route::default_via(table, gateway, dev.clone()));
            desired.neighbours.push(Neighbour::permanent(dev.clone(), gateway, self.host_mac));
            if family == Family::V6 {
                // Runtimes make namespaces in which IPv6 is switched off.
                let names = ["net/ipv6/conf/lo/disable_ipv6".to_owned(), format!("net/ipv6/conf/{dev}/disable_ipv6")];
                desired.sysctls.extend(names.into_iter().filter_map(|name| sysctl(&name, 0)));
            }
        }
        if self.disable_ipv6 {
            // `all` switches it off where it is, `default` where interfaces come later.
            let names = ["all", "default", "lo"].map(|name| format!("net/ipv6/conf/{name}/disable_ipv6"));
            desired.sysctls.extend(names.iter().filter_map(|name| sysctl(name, 1)));
        }
        desired
    }

    /// The rules in the pod's namespace, by which a further interface answers what came by it. They name no link, so
    /// that they do not go with it.
    pub(crate) fn pod_rules(&self) -> Vec<Rule> {
        if self.index == 0 {
            return Vec::new();
        }
        let rule = |ip| Rule::from(RULE_POD_INTERFACE, host_prefix(ip), pod_table(self.index));
        self.all().map(rule).collect()
    }

    /// What the host must have before anything of a branch ENI's pod: the way out.
    pub(crate) fn uplink(&self) -> Option<Desired> {
        self.branch.as_ref().map(|branch| branch.uplink(&self.host, self.mtu))
    }

    /// What the host must have before the pod can be reached: the link's settings and the rules.
    pub(crate) fn host(&self) -> Desired {
        let settings: &[(&str, u8)] = match self.mtu {
            // A link that is too small for IPv6 has no such settings.
            ..MTU_MIN_V6 => &[],
            _ if self.has_v6() => &HOST_SYSCTLS,
            _ => &HOST_SYSCTLS_WITHOUT,
        };
        let conf = |(name, value): &(&str, u8)| sysctl(&format!("net/ipv6/conf/{}/{name}", self.host), *value);
        let branch = self.branch.as_ref();
        let own = branch.map(|branch| branch.host_sysctls(&self.host)).unwrap_or_default();
        Desired {
            links: vec![LinkSettings { dev: self.host.clone(), up: Some(true), mtu: None }],
            rules: branch.map_or_else(|| rules(&self.addresses), |branch| branch.rules(&self.host)),
            sysctls: settings.iter().filter_map(conf).chain(own).collect(),
            ..Desired::default()
        }
    }

    /// [`Self::host`] where the pod's link is there already: at the ADD before it may have had no address of IPv6.
    pub(crate) fn host_again(&self) -> Desired {
        let mut host = self.host();
        if self.has_v6() {
            host.sysctls.splice(0..0, sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", self.host), 0));
        }
        host
    }

    /// What lets the host reach the pod; last of all.
    pub(crate) fn host_routes(&self) -> Desired {
        let route = |ip| Route::on_link(TABLE_MAIN, host_prefix(ip), self.host.clone());
        let routes = match &self.branch {
            Some(branch) => branch.pod_routes(&self.host).into_iter().chain(self.egress.map(route)).collect(),
            None => self.all().map(route).collect(),
        };
        Desired { routes, ..Desired::default() }
    }

    /// What the runtime is told of its host's end and of its own.
    fn interfaces(&self, netns: &Path) -> [Interface; 2] {
        let mtu = Some(self.mtu);
        let host = Interface { mtu, ..Interface::new(self.host.as_str(), self.host_mac) };
        let pod = Interface {
            mtu,
            sandbox: Some(netns.to_string_lossy().into_owned()),
            ..Interface::new(self.attachment.ifname.as_str(), self.pod_mac)
        };
        [host, pod]
    }

    /// What the chain is told of what lies behind it.
    fn eni(&self) -> Option<Value> {
        let attachment = self.addresses.first().map(|address| EniAttachment::of(&self.host, address));
        // Plain structs with string keys cannot fail to become a value.
        attachment.and_then(|attachment| serde_json::to_value(attachment).ok())
    }
}

/// What the runtime is told: nothing of the address for egress alone, at which nobody else reaches the pod, and of
/// routes those of the first interface, by which the pod's own connections leave.
pub(crate) fn result(layouts: &[Layout], netns: &Path) -> AddResult {
    let mut result = AddResult::default();
    for layout in layouts {
        result.interfaces.extend(layout.interfaces(netns));
        // The pod's end is the last one so far.
        let interface = result.interfaces.len().checked_sub(1);
        let ip = |address: &PodAddress| IpConfig {
            interface,
            address: host_prefix(address.ip),
            gateway: Some(gateway(Family::of(address.ip), layout.index)),
        };
        result.ips.extend(layout.addresses.iter().map(ip));
    }
    let Some((first, further)) = layouts.split_first() else { return result };
    let route = |family: Family| CniRoute::new(family.everything(), Some(gateway(family, first.index)));
    result.routes.extend(families(first.addresses.iter().map(|address| address.ip)).into_iter().map(route));
    result.extra.extend(first.eni().map(|eni| (ATTACHMENT_KEY.to_owned(), eni)));
    if !further.is_empty() {
        let enis = further.iter().filter_map(Layout::eni).collect();
        result.extra.insert(FURTHER_ATTACHMENTS_KEY.to_owned(), Value::Array(enis));
    }
    result
}

fn families(addresses: impl Iterator<Item = IpAddr>) -> BTreeSet<Family> {
    addresses.map(Family::of).collect()
}

/// The rules of addresses. Those of a branch ENI in strict mode have none of their own; what is deleted twice does no harm.
pub(crate) fn rules(addresses: &[PodAddress]) -> Vec<Rule> {
    addresses.iter().flat_map(|address| rules_of_address(address.ip, address.table)).collect()
}

/// The next hop of a pod's `index`-th interface.
const fn gateway(family: Family, index: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(pod_gateway_v4(index)),
        Family::V6 => IpAddr::V6(pod_gateway_v6(index)),
    }
}

/// None only for a name that is no sysctl, which no interface's name can lead to.
fn sysctl(name: &str, value: u8) -> Option<Sysctl> {
    SysctlKey::new(name).ok().map(|key| Sysctl::new(key, value))
}

#[cfg(test)]
mod tests;
