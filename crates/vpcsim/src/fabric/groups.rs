//! Security groups as a VPC's router enforces them: pure, from the rules of each ENI's groups to one table of nftables.
//!
//! A new connection passes if a group of the ENI that sends it lets it out, and a group of the ENI that gets it lets it in (VPC User Guide,
//! "Security group rules"). What belongs to a connection that passed goes on both ways: groups are stateful. The metadata service
//! and what else the router itself serves are not concerned.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;
use sluice_contract::id::{SecurityGroupId, VpcId};
use sluice_hostnet::state::Family;

use crate::model::state::{Permission, State};

/// What the groups of one ENI let pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Guard {
    /// The router's end of its link.
    pub link: String,
    /// What it may send.
    pub egress: Vec<Permit>,
    /// What it may get.
    pub ingress: Vec<Permit>,
}

/// One rule, its peers resolved to addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permit {
    protocol: String,
    from: Option<i32>,
    to: Option<i32>,
    peers: Vec<IpNet>,
}

/// The addresses that stand for each group of a VPC: all that ENIs with the group have.
pub(crate) fn members(state: &State, vpc: &VpcId) -> BTreeMap<SecurityGroupId, Vec<IpNet>> {
    let mut members: BTreeMap<SecurityGroupId, Vec<IpNet>> = BTreeMap::new();
    for eni in state.enis.values().filter(|eni| eni.vpc == *vpc) {
        for group in &eni.groups {
            let addresses = eni.assigned().map(IpNet::V4).chain(eni.assigned_ipv6().map(IpNet::V6));
            members.entry(group.clone()).or_default().extend(addresses.map(|net| net.trunc()));
        }
    }
    members
}

/// What some groups let pass together.
pub(crate) fn guard(
    state: &State,
    link: String,
    groups: &[SecurityGroupId],
    members: &BTreeMap<SecurityGroupId, Vec<IpNet>>,
) -> Guard {
    let resolved = |permission: &Permission| {
        let mut peers: Vec<IpNet> = permission.cidrs.iter().copied().map(IpNet::V4).collect();
        peers.extend(permission.ipv6_cidrs.iter().copied().map(IpNet::V6));
        peers.extend(permission.groups.iter().filter_map(|group| members.get(group)).flatten());
        // Sets of nftables take no address twice.
        let peers = IpNet::aggregate(&peers);
        Permit { protocol: permission.protocol.clone(), from: permission.from_port, to: permission.to_port, peers }
    };
    let mut guard = Guard { link, ..Guard::default() };
    for group in groups.iter().filter_map(|id| state.security_groups.get(id)) {
        guard.egress.extend(group.egress.iter().map(resolved));
        guard.ingress.extend(group.ingress.iter().map(resolved));
    }
    guard
}

/// The script that puts the guards in the place of whatever there is; none for no table at all.
pub(super) fn script(guards: Option<&[Guard]>) -> String {
    let mut script = "table inet vpcsim-groups\ndelete table inet vpcsim-groups\n".to_owned();
    if let Some(guards) = guards {
        // Writing to a String cannot fail.
        let _infallible = write_table(&mut script, guards);
    }
    script
}

fn write_table(out: &mut String, guards: &[Guard]) -> std::fmt::Result {
    writeln!(out, "table inet vpcsim-groups {{")?;
    for Guard { link, egress, ingress } in guards {
        for (direction, permits, peer) in [("out", egress, "daddr"), ("in", ingress, "saddr")] {
            writeln!(out, "  chain {direction}-{link} {{")?;
            for permit in permits {
                for family in Family::ALL {
                    permit.write(out, family, peer)?;
                }
            }
            writeln!(out, "    counter drop\n  }}")?;
        }
    }
    writeln!(out, "  chain forward {{\n    type filter hook forward priority filter - 5; policy accept;")?;
    // What the kernel cannot place in a connection (a fragment of ICMP, a late segment) belongs to one that has passed, or to none.
    writeln!(out, "    ct state established,related accept")?;
    for (direction, name) in [("out", "iifname"), ("in", "oifname")] {
        let jumps = guards.iter().map(|guard| format!("\"{0}\" : jump {direction}-{0}", guard.link));
        let jumps: Vec<String> = jumps.collect();
        if !jumps.is_empty() {
            writeln!(out, "    {name} vmap {{ {} }}", jumps.join(", "))?;
        }
    }
    writeln!(out, "  }}\n}}")
}

impl Permit {
    fn write(&self, out: &mut String, family: Family, peer: &str) -> std::fmt::Result {
        let peers = self.peers.iter().filter(|net| Family::of(net.addr()) == family).map(ToString::to_string);
        let peers: Vec<String> = peers.collect();
        let other = match family {
            Family::V4 => ["icmpv6", "58"],
            Family::V6 => ["icmp", "1"],
        };
        if peers.is_empty() || other.contains(&self.protocol.as_str()) {
            return Ok(());
        }
        let (ip, icmp) = if family == Family::V4 { ("ip", "icmp") } else { ("ip6", "icmpv6") };
        write!(out, "    {ip} {peer} {{ {} }}", peers.join(", "))?;
        // From and to are a range of ports, or type and code; -1 is all (EC2 API Reference, IpPermission).
        let number = |value: Option<i32>| value.filter(|value| *value >= 0);
        match self.protocol.as_str() {
            "-1" => {}
            "icmp" | "1" | "icmpv6" | "58" => {
                write!(out, " meta l4proto {icmp}")?;
                if let Some(kind) = number(self.from) {
                    write!(out, " {icmp} type {kind}")?;
                }
                if let Some(code) = number(self.to) {
                    write!(out, " {icmp} code {code}")?;
                }
            }
            protocol => {
                write!(out, " meta l4proto {protocol}")?;
                if let (Some(from), Some(to)) = (number(self.from), number(self.to)) {
                    write!(out, " th dport {from}-{to}")?;
                }
            }
        }
        writeln!(out, " return")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(protocol: &str, ports: Option<(i32, i32)>, peers: &[&str]) -> Permit {
        let peers = peers.iter().map(|net| net.parse().unwrap()).collect();
        Permit { protocol: protocol.into(), from: ports.map(|(from, _)| from), to: ports.map(|(_, to)| to), peers }
    }

    #[test]
    fn rules_are_written_for_the_families_that_they_have_peers_in() {
        let guard = Guard {
            link: "r1".into(),
            egress: vec![permit("-1", None, &["0.0.0.0/0", "::/0"])],
            ingress: vec![
                permit("tcp", Some((80, 90)), &["10.0.0.0/16", "10.9.0.0/16"]),
                permit("icmp", Some((8, -1)), &["0.0.0.0/0", "::/0"]),
                permit("udp", Some((53, 53)), &[]),
            ],
        };
        assert_eq!(
            script(Some(&[guard])),
            "table inet vpcsim-groups
delete table inet vpcsim-groups
table inet vpcsim-groups {
  chain out-r1 {
    ip daddr { 0.0.0.0/0 } return
    ip6 daddr { ::/0 } return
    counter drop
  }
  chain in-r1 {
    ip saddr { 10.0.0.0/16, 10.9.0.0/16 } meta l4proto tcp th dport 80-90 return
    ip saddr { 0.0.0.0/0 } meta l4proto icmp icmp type 8 return
    counter drop
  }
  chain forward {
    type filter hook forward priority filter - 5; policy accept;
    ct state established,related accept
    iifname vmap { \"r1\" : jump out-r1 }
    oifname vmap { \"r1\" : jump in-r1 }
  }
}
"
        );
        assert_eq!(script(None), "table inet vpcsim-groups\ndelete table inet vpcsim-groups\n");
    }
}
