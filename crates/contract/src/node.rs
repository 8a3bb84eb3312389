//! The fixed names and numbers on a node: paths, priorities of rules, route tables, marks (DESIGN 2).
//!
//! They are those of the AWS VPC CNI, so that a node can be taken over from it and handed back with its pods running.

pub mod branch;
pub mod egress;
pub mod nic;
pub mod veth;

use std::net::{Ipv4Addr, Ipv6Addr};

use sha1::{Digest, Sha1};

use crate::id::{IfName, PodRef};

/// Directory of the runtime state: a tmpfs, gone with the pods when the node reboots.
pub const RUN_DIR: &str = "/run/sluice";
/// The socket on which ipamd serves the primary plugin.
pub const IPAMD_SOCKET: &str = "/run/sluice/ipamd.sock";
/// The sockets in [`RUN_DIR`] at which root asks and sets what a daemon logs.
pub const LOG_SOCKETS: [&str; 3] = ["ipamd-log.sock", "policyd-log.sock", "proxy-log.sock"];
/// The ledger's checkpoint.
pub const IPAMD_CHECKPOINT: &str = "/run/sluice/ipam.json";
/// Where the plugin leaves a DEL that ipamd could not be told of: one file an attachment.
pub const TOMBSTONE_DIR: &str = "/run/sluice/tombstones";
/// A mark that ipamd leaves when it has become ready for the first time since the node booted; STATUS of the plugin
/// looks at nothing else (DESIGN 5).
pub const IPAMD_READY: &str = "/run/sluice/ready";
/// The socket on which policyd serves the chained plugin.
pub const POLICYD_SOCKET: &str = "/run/sluice/policyd.sock";
/// The socket on which policyd tells flows, by Hubble's protocol.
pub const HUBBLE_SOCKET: &str = "/run/sluice/hubble.sock";
/// TCP port on which it does, Hubble's.
pub const HUBBLE_PORT: u16 = 4244;
/// The socket on which policyd tells the proxy what its decisions mean.
pub const PROXY_SOCKET: &str = "/run/sluice/policyd-proxy.sock";
/// What policyd told the proxy last: a proxy that starts while policyd is away goes on with it.
pub const PROXY_SNAPSHOT: &str = "/run/sluice/policy/proxy.json";
/// Directory of policyd's own state: checkpoint, snapshot, ready mark, tombstones.
pub const POLICY_DIR: &str = "/run/sluice/policy";
/// A mark that policyd leaves when policy is in force for the first time since the node booted; STATUS of the chained
/// plugin looks at nothing else (DESIGN 5).
pub const POLICYD_READY: &str = "/run/sluice/policy/ready";
/// Where the chained plugin leaves a DEL that policyd could not be told of: one file an attachment.
pub const POLICY_TOMBSTONE_DIR: &str = "/run/sluice/policy/tombstones";
/// Our directory in the file system of BPF objects; in it, one directory a layout.
pub const BPF_DIR: &str = "/sys/fs/bpf/sluice";
/// The layout of pinned maps and programs. A change of any key, value or meaning raises it.
pub const GATE_LAYOUT: u32 = 1;
/// Where the pins of [`GATE_LAYOUT`] are: maps by name, `programs/`, `links/`.
pub const GATE_DIR: &str = "/sys/fs/bpf/sluice/1";
/// The pinned program that drops every packet: what the primary plugin puts on both hooks of a pod's host interface
/// before anything can reach the pod.
pub const DROP_PROGRAM: &str = "/sys/fs/bpf/sluice/1/programs/drop";
/// Priority of the gate's tc filters, the lowest number: before all others.
pub const GATE_FILTER_PRIORITY: u16 = 1;
/// Handle of the gate's tc filters: with interface, hook and priority it names the filter, so that one program replaces
/// another in one step.
pub const GATE_FILTER_HANDLE: u32 = 1;
/// TCP port of policyd's Prometheus metrics, on all addresses.
pub const POLICYD_METRICS_PORT: u16 = 9962;
/// TCP port of policyd's introspection, on the loopback address only.
pub const POLICYD_INTROSPECTION_PORT: u16 = 61680;
/// The conflist that `sluice install` writes; runtimes load the first by name.
pub const CONFLIST: &str = "/etc/cni/net.d/00-sluice.conflist";
/// TCP port of ipamd's Prometheus metrics, on all addresses.
pub const IPAMD_METRICS_PORT: u16 = 61678;
/// TCP port of ipamd's introspection, on the loopback address only.
pub const IPAMD_INTROSPECTION_PORT: u16 = 61679;
/// TCP port of ipamd's health pages, on the loopback address only. The two others are the AWS VPC CNI's too, whose daemon answers there
/// with success, whatever is asked, for as long as it serves the node.
pub const IPAMD_HEALTH_PORT: u16 = 61681;

/// TCP port of the proxy's Prometheus metrics, on all addresses.
pub const PROXY_METRICS_PORT: u16 = 9963;
/// TCP port of the proxy's introspection, on the loopback address only.
pub const PROXY_INTROSPECTION_PORT: u16 = 61682;

/// Priority, in a pod's own namespace, of `from ADDRESS lookup INDEX`: what a further interface is asked by, it answers by.
pub const RULE_POD_INTERFACE: u32 = 1;
/// Priority of `to POD lookup main`: traffic to a local pod, before anything else that might divert it.
pub const RULE_TO_POD: u32 = 512;
/// Priority of `fwmark 0x80/0x80 lookup main`: connections that belong to the primary ENI.
pub const RULE_PRIMARY_ENI_MARK: u32 = 1024;
/// Priority of `to CIDR lookup main` for services that live outside the VPC.
pub const RULE_EXTERNAL_SERVICE: u32 = 1535;
/// Priority of `from POD lookup TABLE`: a pod's traffic leaves by the ENI that holds its address.
pub const RULE_FROM_POD: u32 = 1536;
/// Priority of `from ENI-PRIMARY-ADDRESS lookup TABLE`.
pub const RULE_FROM_ENI: u32 = 32765;
/// The kernel's main route table.
pub const TABLE_MAIN: u32 = 254;
/// Mark (and mask) of connections that must leave by the primary ENI; `AWS_VPC_K8S_CNI_CONNMARK` changes it.
pub const CONNMARK: u32 = 0x80;
/// Default prefix of a pod's host interface; `AWS_VPC_K8S_CNI_VETHPREFIX` changes it.
pub const VETH_PREFIX: &str = "eni";
/// How the names of network cards and of VPC CNI's VLANs begin (systemd.net-naming-scheme(7); reference/vpc-cni.md 4.1).
const CARDS: [&str; 6] = ["eno", "enp", "ens", "enx", "eth", "vlan"];
/// Names of other links of a node, or how they begin: the loopback interface, and those of our proxies.
const OTHERS: [&str; 2] = ["lo", "sluice-"];

/// What [`is_veth_prefix`] asks for, in words.
pub const VETH_PREFIX_RULE: &str =
    "it must have 1 to 4 letters and digits, by which no link is meant that is not a pod's, as by en, eth, lo or vlan";

/// Whether pods' host interfaces can be told by this beginning of their names: what has another link's name beginning with
/// it as well would have that link taken for a pod's, whose packets have to come from the pod's address.
#[must_use]
pub fn is_veth_prefix(prefix: &str) -> bool {
    let is_plain = (1..=4).contains(&prefix.len()) && prefix.bytes().all(|b| b.is_ascii_alphanumeric());
    // Of a card either may be the longer one: `e` is meant by eth0, and so is `eth0`.
    let is_card = CARDS.iter().any(|card| card.starts_with(prefix) || prefix.starts_with(*card));
    is_plain && !is_card && !OTHERS.iter().any(|other| other.starts_with(prefix))
}

/// Default MTU of ENIs and pods, in bytes: what a VPC carries.
pub const MTU: u32 = 9001;

/// The IPv4 next hop of a pod's `index`-th interface: 169.254.1.1 for the first. It is on no interface; a permanent
/// neighbour entry names the host's end of the veth.
#[must_use]
pub const fn pod_gateway_v4(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(169, 254, 1, index + 1)
}

/// The IPv6 next hop of a pod's `index`-th interface: fe80::1 for the first.
#[must_use]
pub const fn pod_gateway_v6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, index as u16 + 1)
}

/// Device numbers that have route tables, 0 to 99: those of further network cards begin a hundred apart, and on card 0 a
/// higher one would have the table of a VLAN ([`branch::table`]) or of the kernel.
pub const DEVICES: u32 = 100;

/// More network cards than any instance has.
const MOST_CARDS: u32 = 1000;

/// The route table of an ENI: main for the primary ENI, `device + 1` for others on network card 0, and
/// `10000 + 100 * card + device` on further cards. None for a device number from [`DEVICES`] on, and for
/// a card that no instance has.
#[must_use]
pub const fn route_table(card: u32, device: u32) -> Option<u32> {
    match (card, device) {
        (0, 0) => Some(TABLE_MAIN),
        (_, DEVICES..) | (MOST_CARDS.., _) => None,
        (0, device) => Some(device + 1),
        (card, device) => Some(10_000 + 100 * card + device),
    }
}

/// The route table, in a pod's own namespace, of its `index`-th interface: main for the first.
#[must_use]
pub const fn pod_table(index: u8) -> u32 {
    match index {
        0 => TABLE_MAIN,
        // `as`: `From` is not const.
        index => index as u32,
    }
}

/// The part of a host interface's name that tells pods apart: the first 11 hexadecimal digits of
/// `sha1("NAMESPACE.NAME")`, with `.INDEX` behind the name for a pod's further interfaces.
#[must_use]
pub fn veth_hash(pod: &PodRef, index: u8) -> String {
    let mut name = format!("{}.{}", pod.namespace, pod.name);
    if index > 0 {
        name.push('.');
        name.push_str(&index.to_string());
    }
    let mut digits = hex(&Sha1::digest(name.as_bytes()));
    digits.truncate(11);
    digits
}

/// The host's interface of a pod.
///
/// # Errors
/// When `prefix` is longer than the four characters that `IFNAMSIZ` leaves beside the hash.
pub fn host_veth(prefix: &str, pod: &PodRef, index: u8) -> Result<IfName, crate::id::InvalidId> {
    IfName::new(format!("{prefix}{}", veth_hash(pod, index)))
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|digit| DIGITS.get(usize::from(digit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str) -> PodRef {
        PodRef { namespace: namespace.into(), name: name.into(), uid: None }
    }

    #[test]
    fn a_prefix_means_no_link_of_the_node() {
        for prefix in [VETH_PREFIX, "gan", "veth", "a", "eni1", "lop"] {
            assert!(is_veth_prefix(prefix), "{prefix}");
        }
        for prefix in
            ["", "e", "en", "ens", "ens5", "et", "eth", "eth0", "l", "lo", "v", "vla", "vlan", "slui", "abcde", "a-b"]
        {
            assert!(!is_veth_prefix(prefix), "{prefix}");
        }
    }

    /// The vectors of reference/vpc-cni.md 4.1.
    #[test]
    fn host_interface_names_are_those_of_the_vpc_cni() {
        for (namespace, name, index, hash) in [
            ("kube-system", "coredns-57ff979f67-qqbdh", 0, "b5faff8a083"),
            ("kube-system", "coredns-57ff979f67-8ns9b", 0, "9571956a6cc"),
            ("default", "sample-pod", 0, "cc21c2d7785"),
            ("default", "sample-pod", 1, "a0b7655f3c9"),
            ("", "", 0, "3a52ce78095"),
            ("", "", 1, "ce799470a46"),
        ] {
            assert_eq!(veth_hash(&pod(namespace, name), index), hash, "{namespace}/{name}#{index}");
        }
        assert_eq!(host_veth("eni", &pod("default", "sample-pod"), 0).unwrap().as_str(), "enicc21c2d7785");
        assert!(host_veth("toolong", &pod("default", "sample-pod"), 0).is_err());
    }

    #[test]
    fn route_tables_are_those_of_the_vpc_cni() {
        for (card, device, table) in
            [(0, 0, 254), (0, 1, 2), (0, 14, 15), (0, 99, 100), (1, 0, 10_100), (3, 2, 10_302), (31, 99, 13_199)]
        {
            assert_eq!(route_table(card, device), Some(table));
        }
    }

    /// VPC CNI panics at device 100. 253 would have had the table `main`, and 100 on card 1 that of card 2.
    #[test]
    fn a_device_or_a_card_beyond_all_numbers_has_no_table() {
        for (card, device) in [(0, 100), (0, 253), (0, u32::MAX), (1, 100), (1, u32::MAX), (u32::MAX, 0)] {
            assert_eq!(route_table(card, device), None, "card {card}, device {device}");
        }
        for card in 0..32 {
            let tables: Vec<_> = (0..DEVICES).filter_map(|device| route_table(card, device)).collect();
            assert_eq!(tables.len(), 100);
            assert!(tables[1..].is_sorted() && tables[99] < route_table(card + 1, 0).unwrap());
        }
    }

    #[test]
    fn the_pins_are_those_of_the_layout() {
        assert_eq!(GATE_DIR, format!("{BPF_DIR}/{GATE_LAYOUT}"));
        assert_eq!(DROP_PROGRAM, format!("{GATE_DIR}/programs/drop"));
    }

    #[test]
    fn gateways_count_up_with_the_interface() {
        assert_eq!(pod_gateway_v4(0).to_string(), "169.254.1.1");
        assert_eq!(pod_gateway_v4(1).to_string(), "169.254.1.2");
        assert_eq!(pod_gateway_v6(0).to_string(), "fe80::1");
    }
}
