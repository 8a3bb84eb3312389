//! An ADD or a DEL is killed at every moment between ipamd's first answer and its end; whatever it leaves, the same again
//! or a DEL after it converges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::add::golden;
use crate::bpf::{DROP, load};
use crate::gated;
use crate::ipamd::{Fault, Ipamd, address};
use crate::node::{Answer, Cni, HOST_B, Node, POD_B};

/// How many moments there are between ipamd's answer and the end of an ADD, which has six steps there.
pub(crate) const MOMENTS: u32 = 40;

/// What a killed ADD has left: the host's end, its mark, the pod's address, rules, route.
type Left = (bool, bool, bool, usize, usize);

/// Whether the call was through before it was killed, and how long it took from ipamd's answer.
pub(crate) fn kill_after_answer(node: &Node, ipamd: &Ipamd, call: &Cni, life: Duration) -> (bool, Duration) {
    let before = ipamd.answers();
    let mut child = node.spawn(call);
    node.wait("ipamd has answered", || ipamd.answers() > before);
    let answered = Instant::now();
    while answered.elapsed() < life && child.try_wait().unwrap().is_none() {
        std::hint::spin_loop();
    }
    let lived = answered.elapsed();
    child.kill().unwrap();
    (Answer::of(child).success, lived)
}

fn left(node: &Node) -> Left {
    let marked = node.ip("link").to_string().contains("sluice bbb/eth0@sluice");
    let addressed = node.ip("-n b addr").to_string().contains("10.0.1.60");
    (node.has_link(HOST_B), marked, addressed, node.pod_rules().len(), node.pod_routes().len())
}

#[test]
fn add_again_converges_and_so_does_del() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let mut seen: BTreeMap<Left, u32> = BTreeMap::new();
    let netns = node.netns("b");
    let call = |verb| Cni::on(verb, "1.1.0", POD_B, "bbb", &netns);
    let expected = golden("1.1.0", "bbb", netns.to_str().unwrap());
    ipamd.give(vec![address("10.0.1.60", 1)]);
    // The quickest of some: a slow one would make the steps too long to hit different moments.
    let whole = (0..5).map(|_| {
        let (through, whole) = kill_after_answer(&node, &ipamd, &call("ADD"), Duration::from_secs(10));
        assert!(through);
        node.cni(&call("DEL")).nothing();
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        whole
    });
    let whole = whole.min().unwrap();
    let mut life = Duration::ZERO;
    // Until five in a row have lived long enough to end by themselves.
    let mut survivors = 0;
    let mut round = 0u32;
    while survivors < 5 {
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        let (through, _) = kill_after_answer(&node, &ipamd, &call("ADD"), life);
        survivors = if through { survivors + 1 } else { 0 };
        *seen.entry(left(&node)).or_default() += 1;
        if round.is_multiple_of(2) {
            assert_eq!(node.cni(&call("ADD")).result(), expected, "after {life:?}");
            node.cni(&call("CHECK").with("prevResult", &expected)).nothing();
            assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1), "after {life:?}");
        }
        node.cni(&call("DEL")).nothing();
        node.assert_clean();
        assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1, "after {life:?}");
        assert_eq!(ipamd.assigned(), [""; 0], "after {life:?}");
        life += whole / MOMENTS;
        round += 1;
        assert!(round < 1000, "an ADD takes longer than {life:?}");
    }
    println!("what {round} killed ADDs had left (host's end, mark, pod's address, rules, route): {seen:?}");
    assert!(seen.len() >= 3, "the moments are too few to say anything: {seen:?}");
}

/// Whatever a killed ADD has left of a pod that is to be gated, nothing leads to it that is open; and the next ADD closes
/// what is half-made.
#[test]
fn a_gated_pod_is_never_left_open() {
    let (node, ipamd, netns, id) = gated::node(|| load(&DROP));
    let call = |verb| Cni::on(verb, "1.1.0", POD_B, "bbb", &netns).with("gated", &json!(true));
    let (through, whole) = kill_after_answer(&node, &ipamd, &call("ADD"), Duration::from_secs(10));
    assert!(through);
    node.cni(&call("DEL")).nothing();
    let mut seen: BTreeMap<(Left, [bool; 2]), u32> = BTreeMap::new();
    for moment in 0..MOMENTS {
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        kill_after_answer(&node, &ipamd, &call("ADD"), whole * moment / MOMENTS);
        let left = left(&node);
        if left.0 {
            let closed = gated::programs(&node).map(|hook| !hook.is_empty());
            *seen.entry((left, closed)).or_default() += 1;
            let up = node.ip(&format!("link show {HOST_B}"))[0]["flags"].as_array().unwrap().contains(&json!("UP"));
            assert!(closed == [true, true] || (!up && left.4 == 0), "{left:?}, up: {up}, closed: {closed:?}");
        }
        node.cni(&call("ADD")).result();
        assert_eq!(gated::programs(&node), gated::both(id));
        node.cni(&call("DEL")).nothing();
        node.assert_clean();
    }
    println!("what killed ADDs had left (host's end, mark, pod's address, rules, route; closed): {seen:?}");
}

#[test]
fn del_again_converges() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let netns = node.netns("b");
    let call = |verb| Cni::on(verb, "1.1.0", POD_B, "bbb", &netns);
    let mut whole = Duration::from_secs(10);
    let mut seen: BTreeMap<(Left, usize), u32> = BTreeMap::new();
    for moment in 0..=MOMENTS {
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        let result = node.cni(&call("ADD")).result();
        // The first lives as long as it likes, and tells how long that is.
        let life = if moment == 0 { whole } else { whole * moment / MOMENTS };
        let (through, lived) = kill_after_answer(&node, &ipamd, &call("DEL").with("prevResult", &result), life);
        if moment == 0 {
            assert!(through);
            whole = lived;
        }
        *seen.entry((left(&node), ipamd.assigned().len())).or_default() += 1;
        // As containerd comes again: with less.
        node.cni(&call("DEL").env("CNI_NETNS", "")).nothing();
        node.assert_clean();
        assert_eq!(ipamd.assigned(), [""; 0], "after {life:?}");
    }
    println!("what killed DELs had left (host's end, mark, pod's address, rules, route; addresses held): {seen:?}");
}

#[test]
fn while_it_waits_for_ipamd_nothing_is_left() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    ipamd.fault(Fault::Hang);
    let netns = node.netns("b");
    let add = Cni::on("ADD", "1.1.0", POD_B, "bbb", &netns);
    let before = ipamd.answers();
    let mut child = node.spawn(&add);
    node.wait("ipamd has the question", || ipamd.waiting());
    child.kill().unwrap();
    assert!(!Answer::of(child).success);
    // The broken connection tells ipamd.
    node.wait("ipamd has let go", || ipamd.answers() > before);
    node.assert_clean();
    node.cni(&add).result();
}
