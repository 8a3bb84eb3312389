//! GC takes away what is in no list, from the kernel and from ipamd.

use serde_json::{Value, json};

use crate::ipamd::address;
use crate::node::{Cni, Node, PodName};

const PODS: [(PodName, &str, &str); 3] = [
    (PodName { namespace: "default", name: "a" }, "aaa", "10.0.1.20"),
    (PodName { namespace: "default", name: "b" }, "bbb", "10.0.1.60"),
    (PodName { namespace: "default", name: "c" }, "ccc", "10.0.1.61"),
];

fn gc(valid: &[&str]) -> Cni {
    let list: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
    Cni::new("GC", "1.1.0").with("cni.dev/valid-attachments", &json!(list)).with("cni.dev/attachments", &json!(list))
}

fn three_pods(node: &Node) -> crate::ipamd::Ipamd {
    let ipamd = node.ipamd();
    for (pod, container, ip) in PODS {
        ipamd.give(vec![address(ip, 1)]);
        let netns = node.netns(pod.name);
        node.cni(&Cni::on("ADD", "1.1.0", pod, container, &netns)).result();
    }
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (6, 3));
    ipamd
}

#[test]
fn what_is_not_listed_goes_and_what_is_listed_stays() {
    let node = Node::new();
    let ipamd = three_pods(&node);
    node.cni(&gc(&["aaa", "bbb", "ccc"])).nothing();
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (6, 3));
    node.cni(&gc(&["aaa", "unknown"])).nothing();
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
    assert_eq!(ipamd.assigned(), ["10.0.1.20"]);
    node.cni(&gc(&["aaa"])).nothing();
    node.cni(&gc(&[])).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

#[test]
fn another_network_is_let_alone() {
    let node = Node::new();
    let ipamd = three_pods(&node);
    node.cni(&gc(&[]).with("name", &json!("other"))).nothing();
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (6, 3));
    assert_eq!(ipamd.assigned().len(), 3);
}

#[test]
fn with_the_namespaces_gone_the_ledger_tells_what_is_left() {
    let node = Node::new();
    let ipamd = three_pods(&node);
    for (pod, ..) in PODS {
        let host = node.pod_routes()[0].rsplit(' ').next().unwrap().to_owned();
        node.remove_netns(pod.name, &host);
    }
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (6, 0));
    node.cni(&gc(&[])).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

#[test]
fn what_ipamd_has_forgotten_is_known_by_its_mark() {
    let node = Node::new();
    let ipamd = three_pods(&node);
    ipamd.forget();
    node.cni(&gc(&["aaa"])).nothing();
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
}

#[test]
fn with_ipamd_gone_it_does_what_it_can_and_says_so() {
    let node = Node::new();
    drop(three_pods(&node));
    let (code, text) = node.cni(&gc(&["aaa"])).error();
    assert_eq!(code, 11);
    assert!(text.contains("ipamd does not listen"), "{text}");
    assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
    assert_eq!(node.tombstones().len(), 2);
}

/// An id that is too long for an alias leaves a hash as mark, and an ADD that was killed early none: neither tells
/// whose it is, so that ipamd's word has to.
#[test]
fn what_its_mark_does_not_tell_is_known_from_the_ledger() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let long = "c".repeat(253);
    for (name, container, ip) in [("a", long.as_str(), "10.0.1.20"), ("b", "bbb", "10.0.1.60")] {
        ipamd.give(vec![address(ip, 1)]);
        let netns = node.netns(name);
        let add = Cni::on("ADD", "1.1.0", PodName { namespace: "default", name: "x" }, container, &netns);
        node.cni(&add.env("CNI_ARGS", &format!("K8S_POD_NAME={name};K8S_POD_NAMESPACE=default"))).result();
    }
    let unmarked = node.pod_routes()[1].rsplit(' ').next().unwrap().to_owned();
    node.sh(&format!("ip link set {unmarked} alias ''; ip link set {unmarked} down"));
    node.cni(&gc(&[])).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}

/// A pod that the VPC CNI has made, and ipamd adopted, has no mark at all.
#[test]
fn an_adopted_pod_is_known_by_its_route() {
    let node = Node::new();
    let ipamd = three_pods(&node);
    let links: Vec<String> =
        node.pod_routes().iter().map(|route| route.rsplit(' ').next().unwrap().to_owned()).collect();
    for (at, link) in links.iter().enumerate() {
        node.sh(&format!("ip link set {link} alias '' address 06:00:00:00:00:0{at}"));
    }
    node.cni(&gc(&["aaa", "bbb"])).nothing();
    let left = node.pod_routes();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(
        (node.pod_rules().len(), left[0].starts_with("10.0.1.20 "), left[1].starts_with("10.0.1.60 ")),
        (4, true, true)
    );
    assert_eq!(links.iter().filter(|link| node.has_link(link)).count(), 2);
    assert_eq!(ipamd.assigned(), ["10.0.1.20", "10.0.1.60"]);
}
