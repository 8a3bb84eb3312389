//! What stands at the far end of an ENI's link: an instance as its DHCP client leaves it, or a NAT gateway.

use std::sync::Arc;

use ipnet::{Ipv4Net, Ipv6Net};
use sluice_contract::id::IfName;
use sluice_hostnet::desired::LinkSettings;
use sluice_hostnet::netns::{Namespace, NamespaceThread};
use sluice_hostnet::plan::{Op, Planned};
use sluice_hostnet::state::{Address, Protocol, Route, TABLE_MAIN};

use super::JUMBO;
use super::project::Plug;
use super::router::{ROUTER_V6, first_router_address};
use super::wire::{FabricError, Wire, execute, start, visit};

/// The name of a machine's first link.
pub(super) const FIRST_LINK: &str = "eth0";

/// A NAT gateway forwards out of the link that packets came in by, and says nothing about it.
const NAT_SYSCTLS: [(&str, &str); 5] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// Sets a primary ENI up as a DHCP client does on boot: the MTU of a VPC, the address with the subnet's prefix, and
/// the default route by the subnet's router; the same of IPv6, where it has an address.
fn dhcp(dev: &IfName, plug: &Plug) -> Vec<Planned> {
    let settings = |up, mtu| LinkSettings { dev: dev.clone(), up, mtu };
    let net = Ipv4Net::new(plug.primary, plug.subnet.prefix_len()).unwrap_or_else(|_| plug.primary.into());
    let mut ops = vec![
        Op::SetLink { to: settings(Some(true), Some(JUMBO)), before: settings(Some(false), None) },
        Op::AddAddress(Address::new(dev.clone(), net.into())),
    ];
    if let Some(router) = first_router_address(plug.subnet) {
        let mut route = Route::default_via(TABLE_MAIN, router.into(), dev.clone()).with_source(plug.primary.into());
        route.protocol = Protocol::DHCP;
        ops.push(Op::SetRoute { route, before: None });
    }
    if let Some(address) = plug.ipv6 {
        // DHCPv6 gives the address alone, and the router's advertisements the default route.
        ops.push(Op::AddAddress(Address::new(dev.clone(), Ipv6Net::from(address).into())));
        let mut route = Route::default_via(TABLE_MAIN, ROUTER_V6.into(), dev.clone());
        route.protocol = Protocol::RA;
        ops.push(Op::SetRoute { route, before: None });
    }
    ops.into_iter().map(|op| Planned::new(op, "DHCP")).collect()
}

/// Configures the primary ENI, called `link`, in a machine's namespace.
pub(super) async fn configure(machine: &Namespace, link: &str, plug: &Plug) -> Result<(), FabricError> {
    let place = plug.eni.as_str();
    let dev = IfName::new(link).map_err(|source| FabricError::Name { place: place.into(), source })?;
    execute(place, &visit(place, machine)?, &dhcp(&dev, plug)).await
}

/// The namespace of a NAT gateway.
#[derive(Debug)]
pub(super) struct NatGateway {
    thread: Arc<NamespaceThread>,
    wire: Wire,
}

impl NatGateway {
    pub(super) async fn start(plug: &Plug) -> Result<Self, FabricError> {
        let thread = start(plug.eni.as_str(), &NAT_SYSCTLS).await?;
        let wire = Wire::open(plug.eni.as_str(), Arc::clone(&thread))?;
        Ok(Self { thread, wire })
    }

    pub(super) fn net(&self) -> &Namespace {
        self.thread.net()
    }

    /// Takes its link up; all that passes gets its private address, which the Internet gateway then makes public.
    pub(super) async fn configure(&self, plug: &Plug) -> Result<(), FabricError> {
        let dev = IfName::new(FIRST_LINK).map_err(|source| self.wire.bad_name(source))?;
        self.wire.apply(dhcp(&dev, plug)).await?;
        let nat = format!(
            "table ip nat {{\n chain out {{\n type nat hook postrouting priority srcnat; policy accept;\n snat to {}\n }}\n}}\n",
            plug.primary
        );
        self.wire.nft(nat).await
    }
}
