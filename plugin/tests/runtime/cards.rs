//! Pods with an interface on each network card: all of them are made or none, and all of them go, whatever is gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_contract::node::route_table;
use sluice_contract::rpc::PodAddress;

use crate::bpf::{DROP, load};
use crate::gated;
use crate::ipamd::{Ipamd, address};
use crate::kill::{MOMENTS, kill_after_answer};
use crate::node::{Cni, HOST_B, Node, POD_B, PodName};

/// The host's interface of pod B's second.
const SECOND_B: &str = "eniceb4ba3e890";

/// An address on the first ENI of a further network card.
fn of_card(card: u8, ip: &str) -> PodAddress {
    let number = u32::from(card);
    PodAddress { interface: card, card: number, table: route_table(number, 0).unwrap(), ..address(ip, 0) }
}

fn two() -> Vec<PodAddress> {
    vec![address("10.0.1.60", 1), of_card(1, "10.0.2.61")]
}

fn annotated(call: Cni) -> Cni {
    let annotations = json!({"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"});
    call.with("runtimeConfig", &json!({"io.kubernetes.cri.pod-annotations": annotations}))
}

fn add(netns: &Path) -> Cni {
    annotated(Cni::on("ADD", "1.1.0", POD_B, "bbb", netns))
}

fn added(node: &Node) -> (Ipamd, PathBuf, Value) {
    let ipamd = node.ipamd();
    ipamd.give(two());
    let netns = node.netns("b");
    let result = node.cni(&add(&netns)).result();
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (4, 2));
    (ipamd, netns, result)
}

/// The rules of further interfaces in pod B.
fn rules_inside(node: &Node) -> Vec<String> {
    let mut rules = Vec::new();
    for family in ["-4", "-6"] {
        for rule in node.ip(&format!("-n b {family} rule")).as_array().unwrap() {
            if rule["priority"] == 1 {
                let text = |key: &str| rule[key].as_str().unwrap().to_owned();
                rules.push(format!("from {} lookup {}", text("src"), text("table")));
            }
        }
    }
    rules
}

fn assert_nothing_inside(node: &Node) {
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1, "nothing but lo is in the sandbox");
    assert_eq!(rules_inside(node), [""; 0]);
}

#[test]
fn each_card_has_its_veth_and_the_pod_a_table_for_it() {
    let node = Node::new();
    let (ipamd, netns, result) = added(&node);
    assert_eq!(ipamd.log(), [format!("add bbb on {HOST_B} for every card")]);
    let names: Vec<&str> =
        result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, [HOST_B, "eth0", SECOND_B, "mNicIf1"]);
    assert_eq!(
        result["ips"],
        json!([
            {"interface": 1, "address": "10.0.1.60/32", "gateway": "169.254.1.1"},
            {"interface": 3, "address": "10.0.2.61/32", "gateway": "169.254.1.2"},
        ])
    );
    assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]));
    assert_eq!(result["sluice.dev/further-attachments"][0]["table"], 10_100);

    assert_eq!(
        node.pod_rules(),
        [
            "512: from all to 10.0.1.60 lookup main",
            "512: from all to 10.0.2.61 lookup main",
            "1536: from 10.0.1.60 to - lookup 2",
            "1536: from 10.0.2.61 to - lookup 10100",
        ]
    );
    assert_eq!(node.pod_routes(), [format!("10.0.1.60 dev {HOST_B}"), format!("10.0.2.61 dev {SECOND_B}")]);
    let routes = |dev: &str, gateway: &str| {
        json!([
            {"dst": "default", "gateway": gateway, "dev": dev, "flags": []},
            {"dst": gateway, "dev": dev, "scope": "link", "flags": []},
        ])
    };
    assert_eq!(node.ip("-n b route"), routes("eth0", "169.254.1.1"));
    assert_eq!(node.ip("-n b route show table 1"), routes("mNicIf1", "169.254.1.2"));
    assert_eq!(rules_inside(&node), ["from 10.0.2.61 lookup 1"]);
    let host_end = node.ip(&format!("link show {SECOND_B}"));
    assert_eq!(host_end[0]["ifalias"], "sluice bbb/mNicIf1@sluice");
    node.sh("ip addr add 10.0.1.10/32 dev lo");
    node.assert_reaches(None, "b", "10.0.1.60");
    node.assert_reaches(None, "b", "10.0.2.61");

    let check = Cni::on("CHECK", "1.1.0", POD_B, "bbb", &netns).with("prevResult", &result);
    node.cni(&check).nothing();
    for (breakage, complaint) in [
        ("ip -n b rule del prio 1", "in the sandbox: rule add 1: from 10.0.2.61/32 lookup 1 (missing)"),
        ("ip -n b route del default table 1", "default via 169.254.1.2 dev mNicIf1 table 1 (missing)"),
        ("ip rule del prio 1536 from 10.0.2.61", "rule add 1536: from 10.0.2.61/32 lookup 10100 (missing)"),
        ("ip -n b link del mNicIf1", "the sandbox has no interface mNicIf1"),
    ] {
        node.sh(breakage);
        let (code, text) = node.cni(&check).error();
        assert_eq!(code, 101, "{breakage}");
        assert!(text.contains(complaint), "{breakage}: {text}");
        // The same ADD again mends it.
        assert_eq!(node.cni(&add(&netns)).result(), result, "{breakage}");
        node.cni(&check).nothing();
    }
    // And changes nothing that is right.
    let events = node.monitored(|| assert_eq!(node.cni(&add(&netns)).result(), result));
    assert_eq!(events, [""; 0]);

    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).with("prevResult", &result)).nothing();
    node.assert_clean();
    assert_nothing_inside(&node);
    assert_eq!(ipamd.assigned(), [""; 0]);
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).with("prevResult", &result)).nothing();
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).env("CNI_NETNS", "")).nothing();
    assert_eq!(node.tombstones(), [""; 0]);
}

#[test]
fn both_families_have_their_rules() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![
        address("10.0.1.60", 1),
        address("2001:db8::60", 1),
        of_card(1, "10.0.2.61"),
        of_card(1, "2001:db8::61"),
    ]);
    let netns = node.netns("b");
    // As runtimes make namespaces on hosts without IPv6.
    node.within("b", || {
        for all in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{all}/disable_ipv6"), "1").unwrap();
        }
    });
    node.cni(&add(&netns)).result();
    assert_eq!(rules_inside(&node), ["from 10.0.2.61 lookup 1", "from 2001:db8::61 lookup 1"]);
    node.has_addresses();
    for ip in ["10.0.1.60", "2001:db8::60", "10.0.2.61", "2001:db8::61"] {
        node.assert_reaches(None, "b", ip);
    }
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
    assert_nothing_inside(&node);
}

#[test]
fn a_second_interface_that_cannot_be_made_leaves_no_first() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(two());
    let netns = node.netns("b");
    node.sh("ip -n b link add mNicIf1 type bridge");
    let (code, text) = node.cni(&add(&netns)).error();
    assert_eq!(code, 102, "{text}");
    assert!(text.contains("the sandbox has an interface mNicIf1 already"), "{text}");
    node.assert_clean();
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 2, "lo and what is not ours");
    assert_eq!(ipamd.assigned(), [""; 0]);
    assert_eq!(ipamd.log().last().unwrap(), "del bbb add_failed");
    node.sh("ip -n b link del mNicIf1");
    node.cni(&add(&netns)).result();
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();

    // The kernel refuses the last step of the second, after the rules in the pod were made.
    node.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    ipamd.refill(vec![address("10.0.1.60", 1), of_card(1, "10.0.2.61"), of_card(1, "2001:db8::61")]);
    let (code, text) = node.cni(&add(&netns)).error();
    assert_eq!(code, 100, "{text}");
    node.assert_clean();
    assert_nothing_inside(&node);
    assert_eq!(ipamd.log().last().unwrap(), "del bbb add_failed");
}

/// The first interface was there before: its pod may be running, and keeps it and all addresses.
#[test]
fn a_later_add_that_fails_at_the_second_leaves_the_first() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node);
    node.sh("ip -n b link del mNicIf1; ip -n b link add mNicIf1 type bridge");
    assert_eq!(node.cni(&add(&netns)).error().0, 102);
    assert!(node.has_link(HOST_B));
    assert_eq!(ipamd.assigned(), ["10.0.1.60", "10.0.2.61"]);
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
}

#[test]
fn with_ipamd_gone_all_interfaces_go() {
    for (with_result, with_netns, with_name) in
        [(true, true, true), (true, false, true), (false, true, true), (true, true, false), (false, true, false)]
    {
        let case = format!("result {with_result}, namespace {with_netns}, name {with_name}");
        let node = Node::new();
        let (ipamd, netns, result) = added(&node);
        drop(ipamd);
        let mut del = Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns);
        if with_result {
            del = del.with("prevResult", &result);
        }
        if !with_name {
            del = del.with("vethPrefix", &json!("pod"));
        }
        if !with_netns {
            node.remove_netns("b", HOST_B);
            node.wait("the second is gone", || !node.has_link(SECOND_B));
        }
        node.cni(&del).nothing();
        node.assert_clean();
        if with_netns {
            assert_nothing_inside(&node);
        }
        assert_eq!(node.tombstones().len(), 1, "{case}");
        let content: Value = serde_json::from_str(&node.sh("cat /run/sluice/tombstones/*.json")).unwrap();
        assert_eq!(content["attachment"]["ifname"], "eth0", "{case}");
        node.cni(&del).nothing();
        assert_eq!(node.tombstones().len(), 1, "{case}");
    }
}

/// The first interface has gone before: what is left in the sandbox leads to the second.
#[test]
fn a_second_interface_without_a_first_goes_too() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node);
    drop(ipamd);
    node.sh("ip -n b link del eth0");
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    assert!(!node.has_link(SECOND_B));
    assert_nothing_inside(&node);
}

#[test]
fn without_the_pod_and_without_a_result() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node);
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).env("CNI_ARGS", "").env("CNI_NETNS", "")).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

#[test]
fn the_late_del_of_an_old_sandbox_spares_both_interfaces_of_the_new_one() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(two());
    ipamd.give(vec![address("10.0.1.70", 1), of_card(1, "10.0.2.71")]);
    let (old, new) = (node.netns("old"), node.netns("b"));
    let first = node.cni(&annotated(Cni::on("ADD", "1.1.0", POD_B, "old", &old))).result();
    node.cni(&annotated(Cni::on("ADD", "1.1.0", POD_B, "new", &new))).result();
    let expected = [format!("10.0.1.70 dev {HOST_B}"), format!("10.0.2.71 dev {SECOND_B}")];
    assert_eq!(node.pod_routes(), expected);
    for del in [
        Cni::on("DEL", "1.1.0", POD_B, "old", &old).with("prevResult", &first),
        Cni::on("DEL", "1.1.0", POD_B, "old", &old).env("CNI_NETNS", ""),
    ] {
        node.cni(&del).nothing();
        assert_eq!(node.pod_routes(), expected);
        assert_eq!(node.pod_rules().len(), 4);
    }
    assert_eq!(ipamd.assigned(), ["10.0.1.70", "10.0.2.71"]);
}

/// Namespaces that are known by a process's number are another's once the number is used again.
#[test]
fn a_late_del_that_names_the_namespace_of_another_pod_spares_its_rules() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.70", 1), of_card(1, "10.0.2.71")]);
    ipamd.give(two());
    let old = node.netns("old");
    let other = PodName { namespace: "default", name: "other" };
    let first = node.cni(&annotated(Cni::on("ADD", "1.1.0", other, "old", &old))).result();
    let netns = node.netns("b");
    node.cni(&add(&netns)).result();
    let del = Cni::on("DEL", "1.1.0", other, "old", &netns).with("prevResult", &first);
    node.cni(&del).nothing();
    assert_eq!(rules_inside(&node), ["from 10.0.2.61 lookup 1"]);
    // With nobody who says what it has held.
    drop(ipamd);
    node.cni(&del).nothing();
    assert_eq!(rules_inside(&node), ["from 10.0.2.61 lookup 1"]);
    assert_eq!(node.pod_routes(), [format!("10.0.1.60 dev {HOST_B}"), format!("10.0.2.61 dev {SECOND_B}")]);
}

/// A pod's name may end in a dot and a number, so that its first interface is called like a further one of another pod.
#[test]
fn a_pod_whose_first_interface_is_called_like_anothers_second_does_not_replace_it() {
    let like_second = PodName { namespace: "kube-system", name: "coredns-57ff979f67-qqbdh.1" };
    let node = Node::new();
    let (ipamd, netns, _) = added(&node);
    ipamd.give(vec![address("10.0.1.80", 1)]);
    let c = node.netns("c");
    let add_other = Cni::on("ADD", "1.1.0", like_second, "ccc", &c);
    let (code, text) = node.cni(&add_other).error();
    assert_eq!(code, 102, "{text}");
    assert!(
        text.contains(&format!("the host has an interface {SECOND_B} already, that of bbb/mNicIf1@sluice")),
        "{text}"
    );
    assert_eq!(node.pod_routes(), [format!("10.0.1.60 dev {HOST_B}"), format!("10.0.2.61 dev {SECOND_B}")]);
    assert_eq!(ipamd.assigned(), ["10.0.1.60", "10.0.2.61"]);
    node.cni(&Cni::on("DEL", "1.1.0", like_second, "ccc", &c)).nothing();
    assert!(node.has_link(SECOND_B));
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();

    // The other way round, whether it is ours or the VPC CNI's.
    ipamd.refill(vec![address("10.0.1.80", 1)]);
    node.cni(&add_other).result();
    for whose in ["that of ccc/eth0@sluice", "a pod's without mark"] {
        ipamd.give(two());
        let (code, text) = node.cni(&add(&netns)).error();
        assert_eq!(code, 102, "{text}");
        assert!(text.contains(&format!("the host has an interface {SECOND_B} already, {whose}")), "{text}");
        assert!(node.has_link(SECOND_B) && !node.has_link(HOST_B));
        assert_nothing_inside(&node);
        node.sh(&format!("ip link del {SECOND_B}; ip link add {SECOND_B} type veth peer name eth0 netns c"));
    }
    ipamd.refill(two());
    node.sh(&format!("ip link del {SECOND_B}"));
    node.cni(&add(&netns)).result();
}

fn gc(valid: &[&str]) -> Cni {
    let list: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    Cni::new("GC", "1.1.0").with("cni.dev/valid-attachments", &json!(list)).with("cni.dev/attachments", &json!(list))
}

#[test]
fn gc_knows_further_interfaces_by_the_first() {
    for with_ipamd in [true, false] {
        let node = Node::new();
        let (ipamd, _, _) = added(&node);
        node.cni(&gc(&["bbb"])).nothing();
        assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (4, 2));
        if with_ipamd {
            node.cni(&gc(&[])).nothing();
            assert_eq!(ipamd.assigned(), [""; 0]);
        } else {
            drop(ipamd);
            assert_eq!(node.cni(&gc(&[])).error().0, 11);
            assert_eq!(node.tombstones().len(), 1);
        }
        node.assert_clean();
    }
}

#[test]
fn a_node_of_one_card_says_so_and_the_names_are_ours_alone() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let netns = node.netns("b");
    let answer = node.cni(&add(&netns));
    assert_eq!(answer.result()["interfaces"].as_array().unwrap().len(), 2);
    assert!(answer.stderr.contains("ENABLE_MULTI_NIC"), "{answer:?}");
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();

    ipamd.refill(two());
    node.cni(&add(&netns)).result();
    ipamd.log();
    let (code, text) = node.cni(&add(&netns).env("CNI_IFNAME", "mNicIf1")).error();
    assert_eq!(code, 4);
    assert!(text.starts_with("CNI_IFNAME mNicIf1: "), "{text}");
    // The DEL that follows every ADD that failed.
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).env("CNI_IFNAME", "mNicIf1")).nothing();
    assert!(node.has_link(SECOND_B));
    assert_eq!(ipamd.log(), [""; 0]);
}

#[test]
fn every_interface_is_closed_and_the_first_alone_is_limited() {
    let (node, ipamd, netns, id) = gated::node(|| load(&DROP));
    ipamd.refill(two());
    let annotations = json!({"k8s.amazonaws.com/nicConfig": "multi-nic-attachment"});
    let limits = json!({"ingressRate": 8_000_000, "egressRate": 8_000_000});
    let runtime = json!({"io.kubernetes.cri.pod-annotations": annotations, "bandwidth": limits});
    let add = Cni::on("ADD", "1.1.0", POD_B, "bbb", &netns).with("gated", &json!(true));
    node.cni(&add.with("runtimeConfig", &runtime)).result();
    for host in [HOST_B, SECOND_B] {
        assert_eq!(gated::programs_on(&node, host), gated::both(id), "{host}");
    }
    let is_limited = |tc: &str| node.sh(tc).contains("tbf");
    assert!(is_limited(&format!("tc qdisc show dev {HOST_B}")) && is_limited("tc -n b qdisc show dev eth0"));
    assert!(!is_limited(&format!("tc qdisc show dev {SECOND_B}")) && !is_limited("tc -n b qdisc show dev mNicIf1"));
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
}

/// Killed at every moment, an ADD leaves nothing that the same again or a DEL would not put right.
#[test]
fn a_killed_add_converges() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let netns = node.netns("b");
    let del = Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns);
    ipamd.give(two());
    let expected = node.cni(&add(&netns)).result();
    node.cni(&del).nothing();
    ipamd.refill(two());
    let (through, whole) = kill_after_answer(&node, &ipamd, &add(&netns), Duration::from_secs(10));
    assert!(through);
    node.cni(&del).nothing();
    for moment in 0..MOMENTS {
        ipamd.refill(two());
        kill_after_answer(&node, &ipamd, &add(&netns), whole * moment / MOMENTS);
        if moment.is_multiple_of(2) {
            assert_eq!(node.cni(&add(&netns)).result(), expected, "moment {moment}");
            node.cni(&Cni::on("CHECK", "1.1.0", POD_B, "bbb", &netns).with("prevResult", &expected)).nothing();
        }
        node.cni(&del).nothing();
        node.assert_clean();
        assert_nothing_inside(&node);
        assert_eq!(ipamd.assigned(), [""; 0], "moment {moment}");
    }
}
