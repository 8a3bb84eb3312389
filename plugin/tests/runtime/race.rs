//! Calls that meet: of one attachment, and of two sandboxes of one pod, as a StatefulSet has them.

use std::path::PathBuf;

use crate::ipamd::address;
use crate::node::{Answer, Cni, Node, POD_B};

/// The order of the two is the runtime's; whichever way they meet, the new sandbox has all that is its own.
#[test]
fn the_late_del_of_an_old_sandbox_and_the_add_of_a_new_one_may_meet() {
    let node = Node::new();
    let ipamd = node.ipamd();
    for round in 0..12 {
        let name = |which: &str| format!("{which}{round}");
        let (old, new) = (node.netns(&name("old")), node.netns(&name("new")));
        ipamd.give(vec![address("10.0.1.60", 1)]);
        let first = node.cni(&Cni::on("ADD", "1.0.0", POD_B, &name("old"), &old)).result();
        ipamd.give(vec![address("10.0.1.61", 1)]);
        let del = node.spawn(&Cni::on("DEL", "1.0.0", POD_B, &name("old"), &old).with("prevResult", &first));
        let add = Cni::on("ADD", "1.0.0", POD_B, &name("new"), &new);
        let added = node.cni(&add).result();
        Answer::of(del).nothing();
        node.cni(&Cni::on("CHECK", "1.0.0", POD_B, &name("new"), &new).with("prevResult", &added)).nothing();
        assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
        node.cni(&Cni::on("DEL", "1.0.0", POD_B, &name("new"), &new)).nothing();
        node.assert_clean();
    }
}

#[test]
fn two_adds_of_one_attachment_at_once_make_it_once() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    for _ in 0..12 {
        ipamd.give(vec![address("10.0.1.60", 1)]);
        let answers = [node.spawn(&add), node.spawn(&add)].map(Answer::of);
        let [one, two] = answers.map(|answer| answer.result());
        assert_eq!(one, two);
        node.cni(&Cni::on("CHECK", "1.0.0", POD_B, "bbb", &b).with("prevResult", &one)).nothing();
        assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
        node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
        node.assert_clean();
        assert_eq!(ipamd.assigned(), [""; 0]);
    }
}

/// One of the two is what remains, whole; the other's DEL spares it.
#[test]
fn two_sandboxes_of_one_pod_may_be_added_at_once() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let sandboxes = ["one", "two"].map(|name| (name, node.netns(name)));
    for _ in 0..12 {
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        ipamd.give(vec![address("10.0.1.61", 1)]);
        let call = |verb: &str, (name, netns): &(&str, PathBuf)| Cni::on(verb, "1.0.0", POD_B, name, netns);
        let adds = sandboxes.each_ref().map(|sandbox| node.spawn(&call("ADD", sandbox)));
        let added = adds.map(Answer::of);
        let whole = |at: usize| {
            let check = call("CHECK", &sandboxes[at]);
            added[at].success && node.cni(&check.with("prevResult", &added[at].result())).success
        };
        let live = [whole(0), whole(1)];
        assert_eq!(live.iter().filter(|live| **live).count(), 1, "{live:?} {added:?}");
        assert_eq!(node.pod_routes().len(), 1);
        let (kept, gone) = if live[0] { (0, 1) } else { (1, 0) };
        node.cni(&call("DEL", &sandboxes[gone])).nothing();
        assert!(whole(kept), "{added:?}");
        assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (2, 1));
        node.cni(&call("DEL", &sandboxes[kept])).nothing();
        node.assert_clean();
        assert_eq!(ipamd.assigned(), [""; 0]);
    }
}
