//! What one node of a cluster asks of EC2 for all of them: who is in the security groups that policies name, and which
//! private networks beside the VPC its route tables lead to.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};

use crate::cloud::Api;

/// How many groups are asked about; those of later names are left out and told.
pub const MOST_GROUPS: usize = 500;

/// How many CIDRs may stand for a group. A list that was cut would be a policy that nobody wrote: it is not used.
pub const MOST_CIDRS: usize = 10_000;

/// How many routes are followed. As above.
pub const MOST_ROUTES: usize = 1_000;

/// Network interfaces that a policy names by AWS's words: those in a security group that `ids` and `names` both mean, of
/// instances that carry all of `tags`. At least one of the three says something.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// Tags of the instance; none: interfaces of anything, load balancers and databases among them.
    pub tags: BTreeMap<String, String>,
    /// Ids of security groups; none: any.
    pub ids: BTreeSet<String>,
    /// Names of security groups; none: any.
    pub names: BTreeSet<String>,
    /// The region; none: the node's own.
    pub region: Option<String>,
}

/// An interface that may belong to a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its security groups, id and name.
    pub groups: BTreeSet<(String, String)>,
    /// All that it may send from: addresses of both families, and prefixes.
    pub cidrs: BTreeSet<IpNet>,
}

impl Group {
    /// The call that finds its members.
    #[must_use]
    pub fn api(&self) -> Api {
        if self.tags.is_empty() { Api::DescribeNetworkInterfaces } else { Api::DescribeInstances }
    }

    /// The CIDRs of its members: sorted, without what lies inside others. None are more than [`MOST_CIDRS`].
    #[must_use]
    pub fn cidrs(&self, members: &[Member]) -> Option<Vec<IpNet>> {
        let meant = |(id, name): &(String, String)| {
            (self.ids.is_empty() || self.ids.contains(id)) && (self.names.is_empty() || self.names.contains(name))
        };
        let by_tags_alone = self.ids.is_empty() && self.names.is_empty();
        let belong = members.iter().filter(|member| by_tags_alone || member.groups.iter().any(meant));
        let mut cidrs = IpNet::aggregate(&belong.flat_map(|member| member.cidrs.iter().copied()).collect());
        cidrs.sort_unstable();
        (cidrs.len() <= MOST_CIDRS).then_some(cidrs)
    }
}

/// A route of a VPC's route table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VpcRoute {
    /// Where to.
    pub destination: Ipv4Net,
    /// Id of what it leads to, e.g. `pcx-…`, `tgw-…`, `nat-…`, `local`.
    pub target: String,
}

/// Ids of what leads into private networks, which know the VPC's addresses: a peered VPC, a transit gateway, a VPN or Direct
/// Connect gateway, a local gateway of an Outpost, and the core network of a Cloud WAN, which is named by its ARN.
const PRIVATE: [&str; 5] = ["pcx-", "tgw-", "vgw-", "lgw-", "arn:"];

/// The length of the prefix that the largest private network has (10.0.0.0/8, RFC 1918). What is wider is a part of a default
/// route, as 0.0.0.0/1 and 128.0.0.0/1 are, which some write to have it preferred to another one.
const WIDEST: u8 = 8;

/// The private networks that routes lead to: sorted, without what lies inside others. A default route names no network, and
/// neither does a part of one, which is wider than a /8: what goes by it may well be for the Internet, which does not know pods'
/// addresses. None are more than [`MOST_ROUTES`].
#[must_use]
pub fn private_networks(routes: &[VpcRoute]) -> Option<Vec<Ipv4Net>> {
    let leads = |route: &&VpcRoute| {
        route.destination.prefix_len() >= WIDEST && PRIVATE.iter().any(|prefix| route.target.starts_with(prefix))
    };
    // Not aggregated: two halves of everything would become a default route.
    let found: BTreeSet<Ipv4Net> = routes.iter().filter(leads).map(|route| route.destination.trunc()).collect();
    let inside = |net: &Ipv4Net| found.iter().any(|other| other != net && other.contains(net));
    let outermost: Vec<Ipv4Net> = found.iter().filter(|net| !inside(net)).copied().collect();
    (outermost.len() <= MOST_ROUTES).then_some(outermost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(groups: &[(&str, &str)], cidrs: &[&str]) -> Member {
        Member {
            groups: groups.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        }
    }

    fn texts(values: &[&str]) -> BTreeSet<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn shown(cidrs: Option<Vec<IpNet>>) -> Vec<String> {
        cidrs.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_security_group_has_to_be_meant_by_all_that_is_said_of_it() {
        let members = [
            member(&[("sg-1", "web"), ("sg-2", "db")], &["10.0.0.1/32", "10.0.4.0/28"]),
            member(&[("sg-2", "db")], &["10.0.0.2/32", "2001:db8::2/128"]),
            member(&[], &["10.0.0.3/32"]),
        ];
        let by = |ids: &[&str], names: &[&str]| Group { ids: texts(ids), names: texts(names), ..Group::default() };
        assert_eq!(shown(by(&["sg-1"], &[]).cidrs(&members)), ["10.0.0.1/32", "10.0.4.0/28"]);
        let both = ["10.0.0.1/32", "10.0.0.2/32", "10.0.4.0/28", "2001:db8::2/128"];
        assert_eq!(shown(by(&[], &["db"]).cidrs(&members)), both);
        assert_eq!(shown(by(&["sg-1", "sg-2"], &["db"]).cidrs(&members)), both);
        // sg-1 is there and db is there, but sg-1 is not db.
        assert!(by(&["sg-1"], &["db"]).cidrs(&members).unwrap().is_empty());
        // By tags alone: EC2 has chosen the instances, and each of their interfaces counts.
        let tagged = Group { tags: [("role".to_owned(), "db".to_owned())].into(), ..Group::default() };
        assert_eq!(tagged.cidrs(&members).unwrap().len(), 4, "10.0.0.2 and 10.0.0.3 are one /31");
        assert_eq!((tagged.api(), by(&["a"], &[]).api()), (Api::DescribeInstances, Api::DescribeNetworkInterfaces));
    }

    #[test]
    fn a_list_that_is_too_long_is_not_cut() {
        let most = u32::try_from(MOST_CIDRS).unwrap();
        let apart = (0..=most).map(|number| IpNet::V4(Ipv4Net::from(std::net::Ipv4Addr::from_bits(2 * number))));
        let many = [Member { groups: BTreeSet::new(), cidrs: apart.collect() }];
        assert_eq!(Group { tags: [("a".to_owned(), "b".to_owned())].into(), ..Group::default() }.cidrs(&many), None);
    }

    #[test]
    fn routes_into_private_networks_are_told_from_those_into_the_internet() {
        let route = |destination: &str, target: &str| VpcRoute {
            destination: destination.parse().unwrap(),
            target: target.to_owned(),
        };
        let routes = [
            route("10.0.0.0/16", "local"),
            route("0.0.0.0/0", "tgw-0a"),
            route("0.0.0.0/0", "nat-0a"),
            route("0.0.0.0/1", "tgw-0a"),
            route("128.0.0.0/1", "tgw-0a"),
            route("10.0.0.0/7", "pcx-0a"),
            route("100.0.0.0/8", "lgw-0a"),
            route("172.16.0.0/12", "tgw-0a"),
            route("172.16.4.0/24", "pcx-0a"),
            route("192.168.0.0/24", "vgw-0a"),
            route("192.168.1.0/24", "arn:aws:networkmanager::1:core-network/core-network-0a"),
            route("198.51.100.0/24", "igw-0a"),
            route("203.0.113.0/24", "eni-0a"),
        ];
        let found: Vec<String> = private_networks(&routes).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["100.0.0.0/8", "172.16.0.0/12", "192.168.0.0/24", "192.168.1.0/24"]);
        let many: Vec<VpcRoute> =
            (0..=MOST_ROUTES).map(|n| route(&format!("10.{}.{}.0/24", n / 256, n % 256), "pcx-0a")).collect();
        assert_eq!(private_networks(&many), None);
    }
}
