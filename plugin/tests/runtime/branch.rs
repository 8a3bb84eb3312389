//! Pods with security groups of their own. Where the kernel has VLANs, what an ADD makes and a DEL takes away; where it has
//! none, that the ADD says so and leaves nothing. The messages are held fast by goldens in `crates/hostnet/src/branch`.

use serde_json::Value;
use sluice_contract::id::{MacAddr, VlanId};
use sluice_contract::node::branch::{self, Mode};
use sluice_contract::rpc::{Branch, PodAddress};

use crate::ipamd::address;
use crate::node::{Cni, Node, POD_B};

const TRUNK: &str = "02:00:00:00:00:0a";
const STRICT_B: &str = "vlanb5faff8a083";

fn of_branch(ip: &str, mode: Mode) -> PodAddress {
    let vlan = VlanId::new(7).unwrap();
    PodAddress {
        eni_mac: MacAddr([2, 0, 0, 0, 0, 0x30]),
        table: branch::table(vlan),
        branch: Some(Branch { vlan, trunk_mac: TRUNK.parse().unwrap(), gateway: "10.0.2.1".parse().unwrap(), mode }),
        ..address(ip, 3)
    }
}

fn trunk(node: &Node) {
    node.sh(&format!(
        "ip link add trunk mtu 9001 address {TRUNK} type veth peer name wire mtu 9001; ip link set wire up"
    ));
}

/// The rules of strict mode.
fn strict_rules(node: &Node) -> Vec<String> {
    let text = |rule: &Value, key: &str| rule.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
    let rules = node.ip("-4 rule");
    let strict = rules.as_array().unwrap().iter().filter(|rule| rule["priority"] == 10);
    strict.map(|rule| format!("iif {} lookup {}", text(rule, "iif"), text(rule, "table"))).collect()
}

#[test]
fn before_the_trunk_shows_an_add_fails_and_says_what_it_waits_for() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![of_branch("10.0.2.30", Mode::Strict)]);
    let b = node.netns("b");
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "bbb", &b)).error();
    assert_eq!(code, 100);
    assert!(text.contains(&format!("no link has the MAC address {TRUNK} of the node's trunk ENI")), "{text}");
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
    node.assert_clean();
    assert_eq!(ipamd.assigned(), Vec::<String>::new());
}

#[test]
fn an_add_makes_the_branch_or_says_that_the_kernel_has_no_vlans() {
    for mode in [Mode::Strict, Mode::Standard] {
        let node = Node::new();
        let ipamd = node.ipamd();
        ipamd.give(vec![of_branch("10.0.2.30", mode)]);
        trunk(&node);
        let b = node.netns("b");
        let probe =
            "ip link add link trunk name probe type vlan id 9 2>/dev/null && ip link del probe && echo yes || echo no";
        let has_vlans = node.sh(probe).trim() == "yes";
        let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
        let answer = node.cni(&add);
        if has_vlans {
            let result = answer.result();
            assert_eq!(result["sluice.dev/attachment"]["vlan"], 7);
            let table: Vec<String> = node.sh("ip route show table 107").lines().map(|l| l.trim().to_owned()).collect();
            assert_eq!(table[..2], ["default via 10.0.2.1 dev vlan.eth.7", "10.0.2.1 dev vlan.eth.7 scope link"]);
            let host = result["interfaces"][0]["name"].as_str().unwrap();
            match mode {
                Mode::Strict => {
                    assert_eq!(host, STRICT_B);
                    assert_eq!(table[2..], [format!("10.0.2.30 dev {STRICT_B} scope link")]);
                    let rules = ["iif vlan.eth.7 lookup 107".to_owned(), format!("iif {STRICT_B} lookup 107")];
                    assert_eq!((strict_rules(&node), node.pod_rules()), (rules.to_vec(), vec![]));
                }
                Mode::Standard => {
                    assert_eq!(table.len(), 2);
                    assert_eq!((strict_rules(&node).len(), node.pod_rules().len()), (0, 2));
                }
            }
            // Once more, and nothing is another.
            assert_eq!(node.cni(&add).result(), result);
            let check = Cni::on("CHECK", "1.0.0", POD_B, "bbb", &b).with("prevResult", &result);
            node.cni(&check).nothing();
        } else {
            let (code, text) = answer.error();
            assert_eq!(code, 100);
            assert!(text.contains("this node's kernel has no VLANs"), "{text}");
            assert!(text.contains("8021q"), "{text}");
            assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1, "nothing but lo is in the sandbox");
        }
        node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
        node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
        assert_eq!(strict_rules(&node), Vec::<String>::new());
        node.sh("ip link del trunk");
        node.assert_clean();
        assert_eq!(ipamd.assigned(), Vec::<String>::new());
    }
}
