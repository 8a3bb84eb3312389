//! CHECK, STATUS, GC and VERSION.

use serde_json::json;
use sluice_contract::rpc::{PolicyCall, PolicyCheckReply, PolicyOutcome, Refusal, RefusalCode};

use crate::add::{VERSIONS, pod};
use crate::node::{Cni, Node, gate};
use crate::policyd::Instead;

#[test]
fn check_asks_policyd_about_what_is_there_now() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, index, result) = pod(&node, "b", "1.1.0");
    let check = |version: &str| Cni::on("CHECK", version, &netns).after(&result);
    node.cni(&check("1.1.0")).nothing();
    let PolicyCall::Check(asked) = policyd.call() else { panic!("{:?}", policyd.call()) };
    assert_eq!(asked.attachment.to_string(), "b/eth0@sluice");
    assert_eq!(asked.interfaces, [gate("enib", index, "eth0", &["10.0.1.60"])]);
    for version in ["0.4.0", "1.0.0"] {
        node.cni(&check(version)).nothing();
    }
    for version in ["0.3.0", "0.3.1"] {
        let text = format!("CHECK exists since CNI 0.4.0; the configuration says {version}");
        assert_eq!(node.cni(&check(version)).error(), (1, text));
    }
    let differences = vec!["enib has no filter on egress".to_owned(), "revision 6, not 7".to_owned()];
    policyd.instead(Instead::Say(PolicyOutcome::Check(PolicyCheckReply { differences, revision: 7 })));
    let text = "the policy of b/eth0@sluice is not in force: enib has no filter on egress; revision 6, not 7";
    assert_eq!(node.cni(&check("1.0.0")).error(), (101, text.to_owned()));
    policyd.instead(Instead::Refuse(Refusal::new(RefusalCode::UnknownAttachment, "b/eth0@sluice is not known")));
    assert_eq!(node.cni(&check("1.0.0")).error(), (3, "b/eth0@sluice is not known".to_owned()));
    node.sh("ip link del enib");
    let text = "b/eth0@sluice is not as ADD left it: the sandbox has no interface eth0, which the plugins before this one \
                should have made";
    assert_eq!(node.cni(&check("1.0.0")).error(), (101, text.to_owned()));
    node.veth("enib", "b", "eth0");
    drop(policyd);
    assert_eq!(node.cni(&check("1.0.0")).error().0, 11);
}

#[test]
fn status_fails_only_until_policy_has_been_in_force_once() {
    let node = Node::new();
    let status = |version| node.cni(&Cni::new("STATUS", version));
    let text = "policy has not been in force since this node booted: there is no /run/sluice/policy/ready".to_owned();
    assert_eq!(status("1.1.0").error(), (50, text));
    node.sh("mkdir -p /run/sluice/policy; touch /run/sluice/policy/ready");
    // policyd is down all the while.
    status("1.1.0").nothing();
    for version in VERSIONS.iter().filter(|version| **version != "1.1.0") {
        assert_eq!(status(version).error().0, 1);
        assert_eq!(node.cni(&Cni::new("GC", version)).error().0, 1);
    }
    let moved = Cni::new("STATUS", "1.1.0").with("runDir", &json!("/run/other"));
    assert_eq!(node.cni(&moved).error().0, 50);
    node.sh("mkdir -p /run/other/policy; touch /run/other/policy/ready");
    node.cni(&moved).nothing();
}

#[test]
fn gc_tells_policyd_which_attachments_live() {
    let node = Node::new();
    let list = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]);
    let gc = Cni::new("GC", "1.1.0").with("cni.dev/valid-attachments", &list).with("cni.dev/attachments", &list);
    assert_eq!(node.cni(&gc).error().0, 11);
    let policyd = node.policyd();
    node.cni(&gc).nothing();
    let PolicyCall::Gc(asked) = policyd.call() else { panic!("{:?}", policyd.call()) };
    assert_eq!(serde_json::to_value(asked).unwrap(), json!({"network": "sluice", "valid": list}));
    policyd.instead(Instead::Refuse(Refusal::new(RefusalCode::Storage, "the disk is full")));
    assert_eq!(node.cni(&gc).error(), (11, "the disk is full".to_owned()));
    node.cni(&Cni::new("GC", "1.1.0").with("cni.dev/attachments", &json!([]))).nothing();
}

#[test]
fn version_needs_nothing() {
    let node = Node::new();
    for version in VERSIONS {
        // As podman asks.
        let call = Cni::new("VERSION", version).env("CNI_NETNS", "dummy").env("CNI_IFNAME", "dummy");
        let reply = node.cni(&call).result();
        assert_eq!(reply, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    assert_eq!(node.cni(&Cni::new("VERSION", "1.0.0").stdin("")).result()["cniVersion"], "1.1.0");
}
