//! An ADD is killed at every moment of its life; whatever it leaves, the same ADD or a DEL after it converges.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::add::golden;
use crate::ipamd::address;
use crate::node::{Answer, Cni, HOST_B, Node, POD_B};

/// How far apart the moments are. An ADD lives some milliseconds and has about ten steps.
const STEP: Duration = Duration::from_micros(150);

/// What a killed ADD has left: the host's end, its mark, the pod's address, rules, route.
type Left = (bool, bool, bool, usize, usize);

fn kill_after(node: &Node, add: &Cni, life: Duration) -> bool {
    let mut child = node.spawn(add);
    let born = Instant::now();
    while born.elapsed() < life {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    Answer::of(child).success
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
    let mut life = Duration::ZERO;
    // Until five in a row have lived long enough to end by themselves.
    let mut survivors = 0;
    let mut round = 0u32;
    while survivors < 5 {
        survivors = if kill_after(&node, &call("ADD"), life) { survivors + 1 } else { 0 };
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
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        life += STEP;
        round += 1;
        assert!(round < 2000, "an ADD takes longer than {life:?}");
    }
    println!("what {round} killed ADDs had left (host's end, mark, pod's address, rules, route): {seen:?}");
    assert!(seen.len() >= 4, "the moments are too few to say anything: {seen:?}");
}
