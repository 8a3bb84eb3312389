//! DEL converges whatever is gone.

use std::path::Path;

use serde_json::{Value, json};

use crate::ipamd::{Fault, Ipamd, address};
use crate::node::{Cni, HOST_B, Node, POD_B, PodName};
use sluice_contract::rpc::{Refusal, RefusalCode};

fn added(node: &Node, version: &str) -> (Ipamd, std::path::PathBuf, Value) {
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let netns = node.netns("b");
    let result = node.cni(&Cni::on("ADD", version, POD_B, "bbb", &netns)).result();
    assert_eq!(node.pod_rules().len(), 2);
    (ipamd, netns, result)
}

#[test]
fn twice_and_a_third_time_without_anything() {
    let node = Node::new();
    let (ipamd, netns, result) = added(&node, "1.0.0");
    // What containerd does: once with everything, then again without namespace and result.
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &result)).nothing();
    node.assert_clean();
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1);
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).env("CNI_NETNS", "")).nothing();
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "never-added", &netns).env("CNI_ARGS", "").env("CNI_NETNS", "")).nothing();
    assert_eq!(ipamd.assigned(), [""; 0]);
    assert_eq!(node.tombstones(), [""; 0]);
}

#[test]
fn with_the_namespace_gone() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "0.3.1");
    node.remove_netns("b", HOST_B);
    node.cni(&Cni::on("DEL", "0.3.1", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

#[test]
fn without_the_pod_and_without_a_result() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).env("CNI_ARGS", "").env("CNI_NETNS", "")).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

/// The prefix was changed while the pod ran: the pod's own end leads to the host's.
#[test]
fn under_another_name() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "0.3.1");
    drop(ipamd);
    node.cni(&Cni::on("DEL", "0.3.1", POD_B, "bbb", &netns).with("vethPrefix", &json!("pod"))).nothing();
    node.assert_clean();
}

#[test]
fn with_ipamd_gone_it_leaves_a_tombstone_and_nothing_else() {
    for (with_result, with_netns) in [(true, true), (false, true), (true, false)] {
        let node = Node::new();
        let (ipamd, netns, result) = added(&node, "1.0.0");
        drop(ipamd);
        let mut del = Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns);
        if with_result {
            del = del.with("prevResult", &result);
        }
        if !with_netns {
            node.remove_netns("b", HOST_B);
        }
        node.cni(&del).nothing();
        node.assert_clean();
        assert_eq!(node.tombstones().len(), 1);
        let content = node.sh("cat /run/sluice/tombstones/*.json");
        let content: Value = serde_json::from_str(&content).unwrap();
        assert_eq!(
            content,
            json!({"attachment": {"container": "bbb", "ifname": "eth0", "network": "sluice"},
                "pod": {"namespace": POD_B.namespace, "name": POD_B.name, "uid": "uid-1"}, "add_failed": false})
        );
        node.cni(&del).nothing();
        assert_eq!(node.tombstones().len(), 1);
    }
}

#[test]
fn with_an_ipamd_that_cannot_do_it_now_it_leaves_a_tombstone() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    for _ in 0..2 {
        ipamd.fault(Fault::Refuse(Refusal::new(RefusalCode::Storage, "the disk is full")));
    }
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
    assert_eq!(node.tombstones().len(), 1);
}

#[test]
fn with_nowhere_to_leave_a_tombstone_it_fails_so_that_the_runtime_tries_again() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    drop(ipamd);
    let (code, text) =
        node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("runDir", &json!("/proc/x"))).error();
    assert_eq!(code, 5);
    assert!(text.starts_with("cannot leave a tombstone: cannot make /proc/x/tombstones"), "{text}");
    node.assert_clean();
}

#[test]
fn a_result_that_cannot_be_read_is_passed_over() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    let del = Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &json!({"ips": 7}));
    let answer = node.cni(&del);
    answer.nothing();
    assert!(answer.stderr.contains("going on without it: field \"prevResult\""), "{answer:?}");
    node.assert_clean();
    drop(ipamd);
}

#[test]
fn options_that_cannot_be_used_are_passed_over() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    let answer = node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("mtu", &json!("big")));
    answer.nothing();
    assert!(answer.stderr.contains("going on with the defaults: field \"mtu\""), "{answer:?}");
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

/// The address went to another pod after ipamd had let go of it; a DEL that comes again with the old result, while
/// ipamd is away, must not hit it.
#[test]
fn an_address_that_has_found_another_owner_is_let_alone() {
    let node = Node::new();
    let (ipamd, netns, result) = added(&node, "1.0.0");
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns)).nothing();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let other = node.netns("other");
    let pod = PodName { namespace: "default", name: "other" };
    node.cni(&Cni::on("ADD", "1.0.0", pod, "other", &other)).result();
    let (rules, routes) = (node.pod_rules(), node.pod_routes());
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &result)).nothing();
    drop(ipamd);
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &result)).nothing();
    assert_eq!((node.pod_rules(), node.pod_routes()), (rules, routes));
    assert_eq!(Path::new(&netns), netns);
}

/// A pod that the VPC CNI has made, and ipamd adopted: no mark, but its route leads to the address that ipamd holds.
#[test]
fn an_adopted_pod_is_known_by_its_route() {
    let node = Node::new();
    let (ipamd, netns, _) = added(&node, "1.0.0");
    node.sh(&format!("ip link set {HOST_B} alias '' address 06:00:00:00:00:01"));
    let result = json!({"cniVersion": "1.0.0",
        "interfaces": [{"name": HOST_B}, {"name": "eth0", "mac": "2", "sandbox": netns},
            {"name": "dummyb5faff8a083", "mac": "0", "sandbox": "1"}],
        "ips": [{"interface": 1, "address": "10.0.1.60/32"}]});
    let answer = node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &netns).with("prevResult", &result));
    answer.nothing();
    assert_eq!(answer.stderr, "");
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}
