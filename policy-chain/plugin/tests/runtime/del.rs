//! DEL succeeds whatever is gone, and does not wait for long.

use serde_json::{Value, json};
use sluice_contract::rpc::{PolicyCall, Refusal, RefusalCode};

use crate::add::pod;
use crate::node::{Cni, Node};
use crate::policyd::Instead;

fn told() -> Value {
    json!({"attachment": {"container": "b", "ifname": "eth0", "network": "sluice"},
        "pod": {"namespace": "default", "name": "web-0", "uid": "uid-1"}})
}

#[test]
fn policyd_is_told_and_an_attachment_that_it_does_not_know_is_gone() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let del = Cni::on("DEL", "1.0.0", &netns).after(&result);
    let answer = node.cni(&del);
    answer.nothing();
    assert_eq!(answer.stderr, "");
    let PolicyCall::Del(asked) = policyd.call() else { panic!("{:?}", policyd.call()) };
    assert_eq!(serde_json::to_value(asked).unwrap(), told());
    policyd.instead(Instead::Refuse(Refusal::new(RefusalCode::UnknownAttachment, "unknown")));
    // As containerd comes again: with less.
    node.cni(&del.env("CNI_NETNS", "").env("CNI_ARGS", "").with("prevResult", &Value::Null)).nothing();
    assert_eq!(policyd.asked().len(), 2);
    assert_eq!(node.tombstones(), [] as [Value; 0]);
}

#[test]
fn in_every_version_and_with_anything_as_a_result() {
    let node = Node::new();
    let policyd = node.policyd();
    for version in crate::add::VERSIONS {
        let netns = std::path::Path::new("/run/netns/gone");
        node.cni(&Cni::on("DEL", version, netns).after(&json!({"ips": 7}))).nothing();
        node.cni(&Cni::on("DEL", version, netns)).nothing();
    }
    assert_eq!(policyd.asked().len(), 10);
}

#[test]
fn with_policyd_gone_or_at_a_loss_it_leaves_a_tombstone() {
    let node = Node::new();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let del = Cni::on("DEL", "1.0.0", &netns).after(&result);
    for instead in [
        None,
        Some(Instead::Hang),
        Some(Instead::Garbage),
        Some(Instead::Ancient),
        Some(Instead::Refuse(Refusal::new(RefusalCode::NotReady, "starting"))),
        Some(Instead::Refuse(Refusal::new(RefusalCode::BadRequest, "what?"))),
    ] {
        let policyd = instead.is_some().then(|| node.policyd());
        if let (Some(policyd), Some(instead)) = (&policyd, instead) {
            policyd.instead(instead);
        }
        let answer = node.cni(&del);
        answer.nothing();
        assert!(answer.stderr.starts_with("sluice-policy: leaving a tombstone: "), "{answer:?}");
        assert_eq!(node.tombstones(), [told()]);
        node.cni(&del).nothing();
        node.sh("rm -f /run/sluice/policy/tombstones/*.json");
    }
}

#[test]
fn with_nowhere_to_leave_a_tombstone_it_still_succeeds() {
    let node = Node::new();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let answer = node.cni(&Cni::on("DEL", "1.0.0", &netns).after(&result).with("runDir", &json!("/proc/x")));
    answer.nothing();
    let text = "policyd will know from the interface's end alone: cannot leave a tombstone: cannot make /proc/x/policy";
    assert!(answer.stderr.contains(text), "{answer:?}");
}

#[test]
fn options_that_cannot_be_used_are_passed_over() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, _) = pod(&node, "b", "1.0.0");
    let answer = node.cni(&Cni::on("DEL", "1.0.0", &netns).with("policyWaitSeconds", &json!("long")));
    answer.nothing();
    assert!(answer.stderr.contains("going on with the defaults: field \"policyWaitSeconds\""), "{answer:?}");
    assert_eq!(policyd.asked().len(), 1);
}
