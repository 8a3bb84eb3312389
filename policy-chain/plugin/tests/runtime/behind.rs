//! Behind other primary plugins: real ones, and results as others make them.

use serde_json::{Value, json};

use crate::add::{only_add, pod};
use crate::node::{Cni, Node, gate};

fn ipam() -> Value {
    json!({"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/24"}], [{"subnet": "2001:db8:22::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}]})
}

/// The host's interface of a result, which has no sandbox and is no bridge.
fn host_of(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap().iter();
    let mut hosts = interfaces.filter(|i| i.get("sandbox").is_none() && i["name"] != "cni0");
    hosts.next().unwrap()["name"].as_str().unwrap().to_owned()
}

#[test]
fn behind_ptp_and_bridge_in_every_version_that_they_speak() {
    for conf in [json!({"type": "ptp", "ipam": ipam()}), json!({"type": "bridge", "bridge": "cni0", "ipam": ipam()})] {
        let node = Node::new();
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let policyd = node.policyd();
            let name = format!("p{}", version.replace('.', ""));
            let netns = node.netns(&name);
            let result = node.cni(&Cni::foreign("ADD", version, &netns, &conf)).result();
            let answer = node.cni(&Cni::on("ADD", version, &netns).after(&result));
            assert_eq!(answer.result(), result);
            assert_eq!(answer.stderr, "", "{result}");
            let host = host_of(&result);
            let ips = result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap());
            let ips: Vec<_> = ips.map(|ip| ip.split('/').next().unwrap()).collect();
            assert_eq!(ips.len(), 2);
            assert_eq!(only_add(&policyd).interfaces, [gate(&host, node.index(&host), "eth0", &ips)]);
            if version != "0.3.0" && version != "0.3.1" {
                node.cni(&Cni::on("CHECK", version, &netns).after(&result)).nothing();
            }
            node.cni(&Cni::on("DEL", version, &netns).after(&result)).nothing();
            node.cni(&Cni::foreign("DEL", version, &netns, &conf).after(&result)).nothing();
        }
    }
}

#[test]
fn behind_macvlan_it_refuses_and_says_why() {
    let node = Node::new();
    let policyd = node.policyd();
    let other = node.netns("other");
    // A veth, so that the parent has another end, which is not the macvlan's.
    node.veth("uplink", "other", "far");
    drop(other);
    let netns = node.netns("b");
    let ipam = json!({"type": "host-local", "ranges": [[{"subnet": "10.22.0.0/24"}]]});
    let conf = json!({"type": "macvlan", "master": "uplink", "ipam": ipam});
    let result = node.cni(&Cni::foreign("ADD", "1.0.0", &netns, &conf)).result();
    let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
    let (code, text) = answer.error();
    assert_eq!(code, 7, "{text}");
    let expected = "cannot find the interfaces of b/eth0@sluice: interface eth0 of the sandbox (macvlan) has no interface of \
                    its own on the host, where its policy could be enforced; sluice-policy works behind plugins that make a \
                    veth pair, such as sluice-eni, aws-cni, ptp and bridge";
    assert_eq!(text, expected);
    assert_eq!(policyd.asked(), []);
    let (code, text) = node.cni(&Cni::on("CHECK", "1.0.0", &netns).after(&result)).error();
    assert_eq!(code, 101, "{text}");
    // DEL takes whatever there is.
    node.cni(&Cni::on("DEL", "1.0.0", &netns).after(&result)).nothing();
}

/// What stock aws-cni reports (reference/cilium.md 1.6), with two NICs, and the interface of egress-cni that it does not.
#[test]
fn behind_the_vpc_cni() {
    let node = Node::new();
    let policyd = node.policyd();
    let netns = node.netns("b");
    let first = node.veth("enib5faff8a083", "b", "eth0");
    let second = node.veth("eni1a2b3c4d5e6", "b", "eth1");
    let egress = node.veth("v4host", "b", "v4if0");
    node.sh("ip -n b addr add 10.0.1.60/32 dev eth0; ip -n b addr add 169.254.172.2/22 dev v4if0");
    for version in ["0.4.0", "1.0.0"] {
        let mut result = json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "enib5faff8a083"},
                {"name": "eth0", "mac": "2", "sandbox": netns},
                {"name": "eni1a2b3c4d5e6"},
                {"name": "eth1", "mac": "10101", "sandbox": netns},
                {"name": "dummyb5faff8a083", "mac": "0", "sandbox": "1"},
            ],
            "ips": [
                {"interface": 1, "address": "10.0.1.60/32", "gateway": "10.0.1.1"},
                {"interface": 3, "address": "10.0.2.60/32", "gateway": "10.0.2.1"},
            ],
            "dns": {},
        });
        if version == "0.4.0" {
            result["ips"][0]["version"] = "4".into();
            result["ips"][1]["version"] = "4".into();
            result["routes"] = Value::Null;
        }
        let answer = node.cni(&Cni::on("ADD", version, &netns).after(&result));
        assert_eq!(answer.result(), result);
        assert_eq!(
            answer.stderr,
            "sluice-policy: v4if0 of the sandbox is gated too, though prevResult does not name it\n"
        );
    }
    let expected = [
        gate("enib5faff8a083", first, "eth0", &["10.0.1.60"]),
        gate("eni1a2b3c4d5e6", second, "eth1", &["10.0.2.60"]),
        gate("v4host", egress, "v4if0", &["169.254.172.2"]),
    ];
    for (_, call) in policyd.asked() {
        let sluice_contract::rpc::PolicyCall::Add(add) = call else { panic!("{call:?}") };
        assert_eq!(add.interfaces, expected);
    }
}

/// A further network of a pod has its own list, and takes nothing of the first; CHECK of the first is not disturbed by it.
#[test]
fn a_second_network_of_the_pod_is_its_own() {
    let node = Node::new();
    let (netns, first, result) = pod(&node, "b", "1.0.0");
    let second = node.veth("net1host", "b", "net1");
    let other = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1host"}, {"name": "net1", "sandbox": netns}],
        "ips": [{"interface": 1, "address": "10.9.0.2/24"}]});
    let policyd = node.policyd();
    let add = Cni::on("ADD", "1.0.0", &netns).env("CNI_IFNAME", "net1").with("name", &json!("second")).after(&other);
    let answer = node.cni(&add);
    assert_eq!((answer.result(), answer.stderr.as_str()), (other, ""));
    let asked = only_add(&policyd);
    assert_eq!(asked.attachment.to_string(), "b/net1@second");
    assert_eq!(asked.interfaces, [gate("net1host", second, "net1", &["10.9.0.2"])]);
    drop(policyd);
    let policyd = node.policyd();
    node.cni(&Cni::on("CHECK", "1.0.0", &netns).after(&result)).nothing();
    let sluice_contract::rpc::PolicyCall::Check(check) = policyd.call() else { panic!("{:?}", policyd.call()) };
    assert_eq!(check.interfaces, [gate("enib", first, "eth0", &["10.0.1.60"])]);
}

#[test]
fn what_a_result_leaves_out_is_found_in_the_kernel() {
    let node = Node::new();
    let netns = node.netns("b");
    let index = node.veth("cali1", "b", "eth0");
    node.sh("ip -n b addr add 10.1.0.2/32 dev eth0; ip -n b addr add 2001:db8::2/64 dev eth0 nodad");
    node.sh("touch /run/elsewhere; mount --bind /run/netns/b /run/elsewhere");
    let container = |sandbox: &str| json!({"name": "eth0", "sandbox": sandbox});
    let both: &[&str] = &["10.1.0.2", "2001:db8::2"];
    for (result, addresses) in [
        // Calico: no interface of the sandbox, and addresses that are on none.
        (json!({"interfaces": [{"name": "cali1"}], "ips": [{"address": "10.1.0.2/32"}]}), &both[..1]),
        // No host interface.
        (
            json!({"interfaces": [container("/run/netns/b")], "ips": [{"interface": 0, "address": "10.1.0.2/24"}]}),
            &both[..1],
        ),
        // The sandbox by another path, no addresses.
        (json!({"interfaces": [container("/run/elsewhere")]}), both),
        // Another sandbox's, and one that is gone.
        (json!({"interfaces": [container("/run/netns/other"), container("/proc/self/ns/net")]}), both),
        // Nothing at all.
        (json!({}), both),
        (json!({"interfaces": null, "ips": null}), both),
    ] {
        let policyd = node.policyd();
        let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
        let mut expected = result.clone();
        expected["cniVersion"] = "1.0.0".into();
        assert_eq!(answer.result(), expected);
        assert_eq!(answer.stderr, "", "{result}");
        assert_eq!(only_add(&policyd).interfaces, [gate("cali1", index, "eth0", addresses)], "{result}");
    }
}

#[test]
fn a_result_that_the_kernel_contradicts_is_refused() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let mut other = result.clone();
    other["interfaces"][1]["name"] = "eth7".into();
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&other)).error();
    assert_eq!(code, 7);
    let why = "the sandbox has no interface eth7, which the plugins before this one should have made";
    assert_eq!(text, format!("cannot find the interfaces of b/eth0@sluice: {why}"));
    // No interface has an address.
    let mut bare = result.clone();
    bare["ips"] = json!([]);
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&bare)).error();
    assert_eq!(code, 7);
    assert!(
        text.ends_with("no interface of the sandbox has an address, neither in prevResult nor in the kernel"),
        "{text}"
    );
    assert_eq!(policyd.asked(), []);
    // The host's end has another name: the kernel's word counts, and a person is told.
    node.sh("ip link set enib down; ip link set enib name other0; ip link set other0 up");
    let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
    assert_eq!(answer.result(), result);
    assert_eq!(answer.stderr, "sluice-policy: the host's end of eth0 is other0, which prevResult does not name\n");
    assert_eq!(only_add(&policyd).interfaces, [gate("other0", node.index("other0"), "eth0", &["10.0.1.60"])]);
}

/// A sandbox within a sandbox: the link's other end is not on the host, where another pod's veth has the same numbers.
#[test]
fn the_other_end_in_another_namespace_is_not_mistaken_for_the_hosts() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _other, _middle) = (node.netns("b"), node.netns("other"), node.netns("middle"));
    node.sh("ip -n middle link add name x0 index 500 type veth peer name eth0 index 70 netns b");
    node.sh("ip link add name enib index 500 type veth peer name eth0 index 70 netns other");
    let result = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "enib"}, {"name": "eth0", "sandbox": netns}],
        "ips": [{"interface": 1, "address": "10.0.1.60/32"}]});
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result)).error();
    assert_eq!(code, 7);
    assert!(text.contains("interface eth0 of the sandbox (veth) has no interface of its own on the host"), "{text}");
    // Both ends in the sandbox.
    let netns = node.netns("c");
    node.sh("ip -n c link add eth0 type veth peer name eth1");
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.1.60/32"}]});
    assert_eq!(node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result)).error().0, 7);
    assert_eq!(policyd.asked(), []);
}

/// What another network has put into the sandbox, and cannot be gated, is told and does not stop the pod.
#[test]
fn an_interface_of_another_network_that_cannot_be_gated_is_let_alone() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, index, result) = pod(&node, "b", "1.0.0");
    node.netns("other");
    node.veth("uplink", "other", "far");
    node.sh("ip link add link uplink name net1 netns b type macvlan; ip -n b link add br0 type bridge");
    let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
    assert_eq!(answer.result(), result);
    assert_eq!(answer.stderr, "", "what is down says nothing");
    node.sh("ip -n b link set net1 up");
    let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
    assert_eq!(answer.stderr, "sluice-policy: net1 (macvlan) of the sandbox cannot be gated and is let alone\n");
    for (_, call) in policyd.asked() {
        let sluice_contract::rpc::PolicyCall::Add(add) = call else { panic!("{call:?}") };
        assert_eq!(add.interfaces, [gate("enib", index, "eth0", &["10.0.1.60"])]);
    }
}
