//! A call in a few words, and half a call.

use super::api::{Request, WantIpv4, WantIpv6};

impl Request {
    /// The parameters that a reader of the call log looks for.
    pub(super) fn summary(&self) -> String {
        match self {
            Self::AssignPrivateIpAddresses(r) => format!("{} {}", r.eni, r.want.summary()),
            Self::UnassignPrivateIpAddresses(r) => {
                format!("{} {}", r.eni, list(r.addresses.iter().map(ToString::to_string), &r.prefixes))
            }
            Self::AssignIpv6Addresses(r) => format!("{} {}", r.eni, r.want.summary()),
            Self::UnassignIpv6Addresses(r) => {
                format!("{} {}", r.eni, list(r.addresses.iter().map(ToString::to_string), &r.prefixes))
            }
            Self::CreateNetworkInterface(r) => {
                format!("{} {} {}", r.subnet, r.want.summary(), r.want_ipv6.summary()).trim_end().to_owned()
            }
            Self::AttachNetworkInterface(r) => {
                format!("{} to {} card {} device {}", r.eni, r.instance, r.card, r.device)
            }
            Self::DetachNetworkInterface(r) => r.attachment.to_string(),
            Self::DeleteNetworkInterface(r) => r.eni.to_string(),
            Self::ModifyNetworkInterfaceAttribute(r) => format!("{} {:?}", r.eni, r.attribute),
            Self::RunInstances(r) => format!("{} x {} in {}", r.max, r.instance_type, r.subnet),
            Self::CreateTags(r) => format!("{} {:?}", r.resources.join(" "), r.tags),
            Self::DescribeNetworkInterfaces(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeInstances(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeSubnets(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeRouteTables(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeVpcs(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeSecurityGroups(r) => describe(r.ids.iter().map(ToString::to_string), &r.filters),
            Self::DescribeInstanceTypes(r) => describe(r.ids.iter().map(|name| name.0.clone()), &r.filters),
            Self::DescribeTags(r) => describe(std::iter::empty(), &r.filters),
            Self::AuthorizeSecurityGroupEgress(_)
            | Self::AuthorizeSecurityGroupIngress(_)
            | Self::RevokeSecurityGroupEgress(_)
            | Self::RevokeSecurityGroupIngress(_)
            | Self::CreateSecurityGroup(_)
            | Self::CreateSubnet(_)
            | Self::CreateVpc(_)
            | Self::DeleteTags(_)
            | Self::TerminateInstances(_) => format!("{self:?}"),
        }
    }

    /// The same call asking for half as much: what a fault with a partial effect leaves behind.
    pub(super) fn halved(&self) -> Self {
        let mut half = self.clone();
        match &mut half {
            Self::AssignPrivateIpAddresses(r) => r.want.halve(),
            Self::AssignIpv6Addresses(r) => r.want.halve(),
            Self::CreateNetworkInterface(r) => {
                r.want.halve();
                r.want_ipv6.halve();
            }
            Self::UnassignPrivateIpAddresses(r) => {
                halve_list(&mut r.addresses);
                halve_list(&mut r.prefixes);
            }
            Self::UnassignIpv6Addresses(r) => {
                halve_list(&mut r.addresses);
                halve_list(&mut r.prefixes);
            }
            Self::CreateTags(r) => {
                let keep = r.tags.len().div_ceil(2);
                r.tags = std::mem::take(&mut r.tags).into_iter().take(keep).collect();
            }
            Self::RunInstances(r) => {
                r.max = r.max.div_ceil(2).max(1);
                r.min = 1;
            }
            _ => {}
        }
        half
    }
}

fn halve_list<T>(list: &mut Vec<T>) {
    if list.len() > 1 {
        list.truncate(list.len() / 2);
    }
}

fn halve_count(count: &mut u32) {
    if *count > 1 {
        *count /= 2;
    }
}

fn list(addresses: impl Iterator<Item = String>, prefixes: &[impl ToString]) -> String {
    addresses.chain(prefixes.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" ")
}

fn describe(ids: impl Iterator<Item = String>, filters: &[super::api::Filter]) -> String {
    let filters = filters.iter().map(|filter| format!("{}={}", filter.name, filter.values.join(",")));
    ids.chain(filters).collect::<Vec<_>>().join(" ")
}

impl WantIpv4 {
    fn summary(&self) -> String {
        match self {
            Self { count, .. } if *count > 0 => format!("addresses={count}"),
            Self { prefix_count, .. } if *prefix_count > 0 => format!("prefixes={prefix_count}"),
            _ => list(self.addresses.iter().map(ToString::to_string), &self.prefixes),
        }
    }

    fn halve(&mut self) {
        halve_list(&mut self.addresses);
        halve_list(&mut self.prefixes);
        halve_count(&mut self.count);
        halve_count(&mut self.prefix_count);
    }
}

impl WantIpv6 {
    fn summary(&self) -> String {
        match self {
            Self { count, .. } if *count > 0 => format!("ipv6-addresses={count}"),
            Self { prefix_count, .. } if *prefix_count > 0 => format!("ipv6-prefixes={prefix_count}"),
            _ => list(self.addresses.iter().map(ToString::to_string), &self.prefixes),
        }
    }

    fn halve(&mut self) {
        halve_list(&mut self.addresses);
        halve_list(&mut self.prefixes);
        halve_count(&mut self.count);
        halve_count(&mut self.prefix_count);
    }
}
