//! ADD: the result comes back as it was, and not before policyd has answered.

use std::path::Path;

use serde_json::{Value, json};
use sluice_contract::rpc::{PolicyAdd, PolicyCall, PolicyOutcome, Refusal, RefusalCode};

use crate::node::{Answer, Cni, Node, gate};
use crate::policyd::{Instead, Policyd};

pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A sandbox with what sluice-eni makes in it; the number of its host interface, and a result in the shape of a version,
/// with keys that no specification has.
pub(crate) fn pod(node: &Node, name: &str, version: &str) -> (std::path::PathBuf, u32, Value) {
    let netns = node.netns(name);
    let host = format!("eni{name}");
    let index = node.veth(&host, name, "eth0");
    let mut result = json!({
        "cniVersion": version,
        "interfaces": [
            {"name": host, "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": netns},
        ],
        "ips": [{"interface": 1, "address": "10.0.1.60/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {"nameservers": ["10.0.0.2"]},
        "sluice.dev/attachment": {"hostInterface": host, "table": 2},
        "unheardOf": [1, null],
    });
    match version {
        "0.3.0" | "0.3.1" | "0.4.0" => result["ips"][0]["version"] = "4".into(),
        "1.1.0" => {
            result["interfaces"][1]["mtu"] = 9001.into();
            result["routes"][0]["priority"] = 7.into();
        }
        _ => {}
    }
    (netns, index, result)
}

pub(crate) fn only_add(policyd: &Policyd) -> PolicyAdd {
    match policyd.call() {
        PolicyCall::Add(add) => add,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_result_comes_back_unchanged_in_every_version() {
    for version in VERSIONS {
        let node = Node::new();
        let policyd = node.policyd();
        let (netns, index, result) = pod(&node, "b", version);
        let answer = node.cni(&Cni::on("ADD", version, &netns).after(&result));
        assert_eq!(answer.result(), result, "{version}");
        assert_eq!(answer.stderr, "");
        let asked = policyd.asked();
        assert!((1..=2000).contains(&asked[0].0), "{asked:?}");
        let add = only_add(&policyd);
        assert_eq!(add.interfaces, [gate("enib", index, "eth0", &["10.0.1.60"])]);
        assert_eq!(add.attachment.to_string(), "b/eth0@sluice");
        assert_eq!((add.pod.to_string(), add.pod.uid.as_deref()), ("default/web-0".to_owned(), Some("uid-1")));
        assert_eq!(Path::new(&add.netns), netns);
        assert!(policyd.greetings()[0].software.starts_with("sluice-policy "), "{:?}", policyd.greetings());
    }
}

#[test]
fn each_interface_of_a_pod_has_its_gate_in_the_order_of_the_result() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, first, mut result) = pod(&node, "b", "1.0.0");
    let second = node.veth("enib1", "b", "mNicIf1");
    let interfaces = result["interfaces"].as_array_mut().unwrap();
    interfaces.extend([json!({"name": "enib1"}), json!({"name": "mNicIf1", "sandbox": netns})]);
    let ip = json!({"interface": 3, "address": "10.0.2.61/32", "gateway": "169.254.1.2"});
    result["ips"].as_array_mut().unwrap().push(ip);
    let answer = node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result));
    assert_eq!(answer.result(), result);
    assert_eq!(answer.stderr, "");
    let gates = [gate("enib", first, "eth0", &["10.0.1.60"]), gate("enib1", second, "mNicIf1", &["10.0.2.61"])];
    assert_eq!(only_add(&policyd).interfaces, gates);
}

#[test]
fn nothing_is_said_before_policyd_has_answered() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    policyd.instead(Instead::Hold);
    let mut child = node.spawn(&Cni::on("ADD", "1.0.0", &netns).after(&result).with("policyWaitSeconds", &json!(60)));
    node.wait("policyd has the question", || !policyd.asked().is_empty());
    assert!(child.try_wait().unwrap().is_none(), "it did not wait");
    policyd.release();
    assert_eq!(Answer::of(child).result(), result);
}

#[test]
fn refusals_keep_their_cause_and_no_result_is_handed_on() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let add = Cni::on("ADD", "1.0.0", &netns).after(&result);
    for (code, name, number) in [
        (RefusalCode::PolicyNotReady, "policy_not_ready", 11),
        (RefusalCode::NotReady, "not_ready", 11),
        (RefusalCode::QueueFull, "queue_full", 11),
        (RefusalCode::BadRequest, "bad_request", 119),
    ] {
        let refusal = Refusal::new(code, "default/web-0 is not known").hint("see `sluice status`");
        policyd.instead(Instead::Refuse(refusal));
        let answer = node.cni(&add);
        assert_eq!(answer.error(), (number, "default/web-0 is not known; see `sluice status`".to_owned()));
        assert_eq!(answer.details(), format!("code {name}"));
    }
    assert_eq!(node.cni(&add).result(), result);
}

#[test]
fn a_policyd_that_is_gone_is_waited_for_and_then_named() {
    let node = Node::new();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let add = Cni::on("ADD", "1.0.0", &netns).after(&result).with("policyWaitSeconds", &json!(1));
    let (code, text) = node.cni(&add).error();
    assert_eq!(code, 11);
    assert!(text.starts_with("policyd does not listen on /run/sluice/policyd.sock; see"), "{text}");
    // It comes back in time.
    let child = node.spawn(&add.with("policyWaitSeconds", &json!(60)));
    let policyd = node.policyd();
    assert_eq!(Answer::of(child).result(), result);
    drop(policyd);
}

#[test]
fn a_policyd_that_restarts_is_asked_again() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    policyd.instead(Instead::Close);
    policyd.instead(Instead::Close);
    assert_eq!(node.cni(&Cni::on("ADD", "1.0.0", &netns).after(&result)).result(), result);
    assert_eq!(policyd.asked().len(), 3);
}

#[test]
fn an_answer_that_cannot_be_used_is_named() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    let add = Cni::on("ADD", "1.0.0", &netns).after(&result).with("policyWaitSeconds", &json!(1));
    for (instead, number, start) in [
        (Instead::Garbage, 11, "policyd on /run/sluice/policyd.sock gave no answer: a frame of 4294967295 bytes is"),
        (Instead::Say(PolicyOutcome::Del), 119, "policyd answered another question than add"),
        (Instead::Ancient, 113, "policyd (policyd 99) speaks protocol 90 to 91, this plugin 1 to 1"),
        (Instead::Hang, 11, "policyd on /run/sluice/policyd.sock gave no answer within "),
    ] {
        policyd.instead(instead);
        let (code, text) = node.cni(&add).error();
        assert_eq!(code, number, "{text}");
        assert!(text.starts_with(start), "{text}");
    }
    node.wait("the broken connection tells policyd", || policyd.withdrawn() == 1);
}

#[test]
fn an_add_that_is_killed_while_it_waits_has_withdrawn() {
    let node = Node::new();
    let policyd = node.policyd();
    let (netns, _, result) = pod(&node, "b", "1.0.0");
    policyd.instead(Instead::Hang);
    let mut child = node.spawn(&Cni::on("ADD", "1.0.0", &netns).after(&result).with("policyWaitSeconds", &json!(60)));
    node.wait("policyd has the question", || !policyd.asked().is_empty());
    child.kill().unwrap();
    assert!(!Answer::of(child).success);
    node.wait("the broken connection tells policyd", || policyd.withdrawn() == 1);
}
