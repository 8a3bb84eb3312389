//! Whom the host's routes lead to.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteType};
use nix::errno::Errno;

use super::{Netlink, NetlinkError, encode};
use crate::state::{Family, host_prefix};

impl Netlink {
    /// The index of the link by which the host reaches an address, if a route of that address alone says so; none if it goes
    /// by a wider route, or by none.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn link_behind(&self, address: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let prefix = host_prefix(address);
        let mut question = RouteMessage::default();
        question.header.address_family = encode::family(Family::of(address));
        question.header.destination_prefix_length = prefix.prefix_len();
        // The entry of the table, not what the kernel makes of it for this address.
        question.header.flags = RouteFlags::FibMatch;
        question.attributes.push(RouteAttribute::Destination(address.into()));
        let found = match self.get(RouteNetlinkMessage::GetRoute(question)).await {
            Ok(RouteNetlinkMessage::NewRoute(found)) => found,
            Ok(_) => return Err(NetlinkError::Unexpected),
            Err(error) => match error.errno() {
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => return Ok(None),
                _ => return Err(error),
            },
        };
        let alone = found.header.destination_prefix_length == prefix.prefix_len();
        if !alone || found.header.kind != RouteType::Unicast {
            return Ok(None);
        }
        Ok(found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        }))
    }
}

/// Against the real kernel, in a namespace made for it (root).
#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::host::Host;
    use crate::netns::Namespace;

    #[tokio::test]
    async fn a_route_of_an_address_alone_leads_to_its_link() {
        let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
        for arguments in [
            "link set lo up",
            "link add veth0 type veth peer name veth1",
            "link set veth0 up",
            "address add 169.254.1.1/32 dev veth0",
            "address add 10.0.0.9/32 dev veth0",
            "route add 10.0.0.7/32 dev veth0",
            "route add 10.1.0.0/16 dev veth0",
            "route add blackhole 10.0.0.8/32",
            "-6 route add 2001:db8::7/128 dev veth0",
        ] {
            let run = || Command::new("ip").args(arguments.split_whitespace()).status();
            assert!(host.namespace().run(run).unwrap().unwrap().success(), "ip {arguments}");
        }
        let link = host.netlink().link_by_name(&"veth0".parse().unwrap()).await.unwrap().unwrap().index;
        for (address, expected) in [
            ("10.0.0.7", Some(link)),
            ("2001:db8::7", Some(link)),
            ("10.0.0.8", None),
            ("10.0.0.9", None),
            ("10.1.0.7", None),
            ("192.0.2.1", None),
            ("2001:db8::8", None),
        ] {
            assert_eq!(host.netlink().link_behind(address.parse().unwrap()).await.unwrap(), expected, "{address}");
        }
    }
}
