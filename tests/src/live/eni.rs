//! The ENIs of a town's node: its primary one and, where a pod of the fixture wants it, a second one, routed as VPC CNI
//! routes them. Which packet went by which ENI is counted at the router.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use serde_json::Value;
use sluice_contract::node::{CONNMARK, RULE_FROM_ENI, RULE_PRIMARY_ENI_MARK, TABLE_MAIN, route_table};
use sluice_hostnet::netns::Namespace;
use sluice_policy_core::vector::schema::{Fixture, PodSpec};

use super::town::{TownError, io, ip};

/// The label, and its value, of pods whose addresses are on their node's second ENI.
const SECOND: (&str, &str) = ("eni", "second");
/// What a VPC of two ENIs a node has: beyond it pods have their node's address.
const VPC: &str = "10.0.0.0/8";

/// The router's and the node's addresses on the second link. Those of the first one would not do: the node knows the way to
/// them by the first link, and takes nothing from there that comes by another (`rp_filter`).
const GATEWAY: &str = "169.254.0.5";
const GATE: &str = "169.254.0.6";
/// What reads rules of nftables.
const NFT: [&str; 3] = ["nft", "-f", "-"];

/// One of a node's ENIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Eni {
    /// `eth0`.
    #[default]
    Primary,
    /// `eth1`.
    Second,
}

impl Eni {
    /// The one that a pod's addresses are on.
    #[must_use]
    pub fn of(pod: &PodSpec) -> Self {
        if pod.labels.get(SECOND.0) == Some(SECOND.1) { Self::Second } else { Self::Primary }
    }

    /// Those that the nodes of a fixture have.
    #[must_use]
    pub fn all(fixture: &Fixture) -> &'static [Self] {
        let second = fixture.pods.values().any(|pod| Self::of(pod) == Self::Second);
        if second { &[Self::Primary, Self::Second] } else { &[Self::Primary] }
    }

    /// Its device number.
    #[must_use]
    pub const fn device(self) -> u32 {
        match self {
            Self::Primary => 0,
            Self::Second => 1,
        }
    }

    /// The routing table of what its pods send.
    #[must_use]
    pub fn table(self) -> u32 {
        route_table(0, self.device()).unwrap_or(TABLE_MAIN)
    }

    /// Its name on the node.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "eth0",
            Self::Second => "eth1",
        }
    }

    /// The node's address on its link, as the router needs it for routes.
    #[must_use]
    pub const fn next_hop(self) -> &'static str {
        match self {
            Self::Primary => "169.254.0.2",
            Self::Second => GATE,
        }
    }

    /// The router's end of it, at the node of a number.
    #[must_use]
    pub fn link(self, node: usize) -> String {
        match self {
            Self::Primary => format!("n{node}"),
            Self::Second => format!("m{node}"),
        }
    }

    /// Its own addresses, at the node of a number, IPv4 first. Those of the primary one are the node's.
    #[must_use]
    pub fn own(self, node: usize) -> [IpAddr; 2] {
        let (device, node) = (u16::from(self == Self::Second), u16::try_from(node).unwrap_or(u16::MAX - 1) + 1);
        let [high, low] = node.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 254 + device.to_be_bytes()[1], high, low);
        [v4.into(), Ipv6Addr::new(0xfd00, 0x255, device, 0, 0, 0, 0, node).into()]
    }
}

/// Gives a node its second ENI: the link to the router, its table, and what ipamd has in the host for two.
///
/// # Errors
/// [`TownError`].
pub async fn plug_second(
    router: &Namespace,
    net: &Namespace,
    node: usize,
    primary: &[IpAddr],
    (peer, mtu): (&str, u32),
) -> Result<(), TownError> {
    let (eni, link) = (Eni::Second, Eni::Second.link(node));
    let (name, table) = (eni.name(), eni.table());
    let [v4, v6] = eni.own(node);
    let near = vec![
        format!("link add {link} mtu {mtu} type veth peer name {name} mtu {mtu} netns {peer}"),
        format!("addr add {GATEWAY}/32 dev {link} scope link"),
        format!("addr add fe80::1/64 dev {link} nodad"),
        format!("link set {link} up"),
    ];
    let far = vec![
        format!("addr add {v4}/32 dev {name}"),
        format!("addr add {v6}/128 dev {name} nodad"),
        format!("addr add {GATE}/32 dev {name} scope link"),
        format!("addr add fe80::2/64 dev {name} nodad"),
        format!("link set {name} up"),
        format!("route add {GATEWAY} dev {name} scope link"),
        format!("route add default via {GATEWAY} dev {name} onlink table {table}"),
        format!("route add default via fe80::1 dev {name} table {table}"),
        format!("rule add from {v4} priority {RULE_FROM_ENI} lookup {table}"),
        format!("rule add fwmark {CONNMARK:#x}/{CONNMARK:#x} priority {RULE_PRIMARY_ENI_MARK} lookup main"),
    ];
    let routes = vec![
        format!("route replace {v4} via {GATE} dev {link} onlink"),
        format!("route replace {v6} via fe80::2 dev {link} onlink"),
    ];
    ip(router, near).await?;
    ip(net, far).await?;
    // `rule` takes a family from its option only.
    let rule = format!("rule add from {v6} priority {RULE_FROM_ENI} lookup {table}\n");
    hand_over(net, &["ip", "-6", "-batch", "-"], rule).await?;
    ip(router, routes).await?;
    // Answers to what was translated come by the primary ENI although the pod's route leads out by another.
    let loose = net.clone();
    let write = move || loose.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "2"));
    tokio::task::spawn_blocking(write).await??.map_err(io("a sysctl cannot be written"))?;
    let own = primary.iter().find(|address| address.is_ipv4());
    hand_over(net, &NFT, host_rules(own.copied())).await
}

/// Connections that come in by the primary ENI are answered by it, and what leaves the VPC leaves by it, in its name.
fn host_rules(primary: Option<IpAddr>) -> String {
    let snat = primary.map(|own| {
        format!(
            "  chain leave-vpc {{\n    type nat hook postrouting priority srcnat;\n    oifname \"eth*\" ip daddr != {VPC} fib \
             daddr type != local snat to {own} fully-random\n  }}\n"
        )
    });
    format!(
        "table ip vpc {{
  chain node-port {{
    type filter hook prerouting priority mangle;
    iifname \"eth0\" fib daddr . iif type local ct mark set ct mark or {CONNMARK:#x}
  }}
  chain outbound {{
    type filter hook prerouting priority dstnat + 10;
    iifname \"eni*\" ct state new ip daddr != {VPC} fib daddr type != local ct mark set ct mark or {CONNMARK:#x}
    iifname \"eni*\" ct mark and {CONNMARK:#x} == {CONNMARK:#x} meta mark set meta mark or {CONNMARK:#x}
  }}
{}}}
",
        snat.unwrap_or_default()
    )
}

/// Counts what the router forwards and delivers.
const COUNTERS: &str = "table inet capture {
  set v4 { type ifname . ipv4_addr . ipv4_addr; size 65535; flags dynamic; counter; }
  set v6 { type ifname . ipv6_addr . ipv6_addr; size 65535; flags dynamic; counter; }
  chain in {
    type filter hook prerouting priority raw;
    meta nfproto ipv4 update @v4 { iifname . ip saddr . ip daddr }
    meta nfproto ipv6 update @v6 { iifname . ip6 saddr . ip6 daddr }
  }
}
";

/// Begins to count, at the router, which packets nodes send by which ENI.
///
/// # Errors
/// [`TownError`].
pub async fn count(router: &Namespace) -> Result<(), TownError> {
    hand_over(router, &NFT, COUNTERS.to_owned()).await
}

/// A way that packets took: the router's link at which they came in, source and destination.
pub type Way = (String, IpAddr, IpAddr);

/// How many packets took each way since [`count`].
///
/// # Errors
/// [`TownError`].
pub async fn counted(router: &Namespace) -> Result<BTreeMap<Way, u64>, TownError> {
    let mut ways = BTreeMap::new();
    for set in ["v4", "v6"] {
        let (net, set) = (router.clone(), set.to_owned());
        let list = move || Command::new("nft").args(["-j", "list", "set", "inet", "capture", &set]).output();
        let output = tokio::task::spawn_blocking(move || net.run(list)).await??.map_err(io("nft cannot be run"))?;
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let sets = listed.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
        let elements = sets.iter().filter_map(|entry| entry.pointer("/set/elem")?.as_array().cloned()).flatten();
        ways.extend(elements.filter_map(|element| way(&element)));
    }
    Ok(ways)
}

fn way(element: &Value) -> Option<(Way, u64)> {
    let element = element.get("elem").unwrap_or(element);
    let text = |index: usize| element.pointer(&format!("/val/concat/{index}")).and_then(Value::as_str);
    let packets = element.pointer("/counter/packets").and_then(Value::as_u64)?;
    Some(((text(0)?.to_owned(), text(1)?.parse().ok()?, text(2)?.parse().ok()?), packets))
}

/// Hands lines to a program that changes a namespace.
async fn hand_over(net: &Namespace, program: &'static [&'static str], lines: String) -> Result<(), TownError> {
    use std::io::Write as _;
    let net = net.clone();
    let (name, arguments) = program.split_first().map_or(("nft", program), |(name, arguments)| (*name, arguments));
    let run = move || {
        let mut command = Command::new(name);
        command.args(arguments).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // What it does not read it says why.
            let _unread = stdin.write_all(lines.as_bytes());
        }
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(std::io::Error::other(format!("{said}\n{lines}"))) }
    };
    tokio::task::spawn_blocking(move || net.run(run)).await??.map_err(io(format!("{name} refuses what it is told")))
}
