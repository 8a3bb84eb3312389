//! What policies say all together is put in force whole, or nothing passes; and what it takes is bounded.

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, Object, ObjectId, PodKey};
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::{Engine, MAX_CONDITIONS, Notice, Update};
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query, Reason, Verdict};
use sluice_policy_core::settings::Settings;

/// Ports of which no two are neighbours.
const PORTS: usize = 10_000;
/// So many blocks see rows that are more than what is put in force.
const BLOCKS: usize = MAX_CONDITIONS / PORTS + 1;

fn object(value: &Value) -> Object {
    sluice_policy_core::parse::object(value).object.unwrap()
}

fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": name, "labels": {"app": name}},
           "spec": {"nodeName": node, "containers": [{"name": "c"}]},
           "status": {"phase": "Running", "podIPs": [{"ip": address}]}})
}

fn policy(name: &str, direction: &str, dry_run: bool, rules: &Value) -> Value {
    let annotations = if dry_run { json!({"sluice.dev/audit": "true"}) } else { json!({}) };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
           "metadata": {"namespace": "a", "name": name, "annotations": annotations},
           "spec": {"podSelector": {"matchLabels": {"app": "p"}}, "policyTypes": [direction],
                    direction.to_lowercase(): rules}})
}

fn odd_ports() -> Value {
    (0..PORTS).map(|number| json!({"port": 2 * number + 1})).collect()
}

fn block(number: usize) -> String {
    format!("192.0.2.{number}/32")
}

/// Each block with an even port of its own, beside the odd ones from anyone.
fn rules(direction: &str, blocks: usize) -> Value {
    let peers = if direction == "Ingress" { "from" } else { "to" };
    let of_block =
        |number: usize| json!({peers: [{"ipBlock": {"cidr": block(number)}}], "ports": [{"port": 2 * number + 2}]});
    std::iter::once(json!({"ports": odd_ports()})).chain((0..blocks).map(of_block)).collect()
}

struct Node(Engine);

impl Node {
    fn new() -> Self {
        let mut node = Self(Engine::new(Settings { node: Some("n1".into()), ..Settings::default() }));
        node.tell(&pod("p", "n1", "10.0.0.1"));
        node.tell(&pod("other", "n1", "10.0.0.2"));
        node
    }

    fn tell(&mut self, value: &Value) -> Update {
        self.0.apply(Event::Upsert(object(value)));
        self.0.commit()
    }

    fn ask(&self, subject: &str, direction: Direction, peer: &str, port: u16) -> (Verdict, Reason) {
        let judged = self.0.judge(&Query {
            subject: PodKey { namespace: "a".into(), name: subject.into() },
            direction,
            peer: peer.parse().unwrap(),
            origin: Origin::Forwarded,
            protocol: Protocol::TCP,
            port,
        });
        (judged.verdict, judged.reason)
    }

    fn entries(&self) -> usize {
        self.0.image().rows.values().map(|row| row.entries.len()).sum()
    }

    fn revision(&self) -> u64 {
        let key = PodKey { namespace: "a".into(), name: "p".into() };
        self.0.image().endpoints.get(&key).unwrap().revision
    }
}

fn told(update: &Update, direction: Direction, policies: &[&str]) -> bool {
    update.notices.iter().any(|notice| match notice {
        Notice::TooLarge { direction: of, policies: told, pods } => {
            let names: Vec<&str> = told.iter().map(|policy| &*policy.name).collect();
            *of == direction && names == policies && pods.iter().map(|pod| &*pod.name).eq(["p"])
        }
        Notice::NamesForgotten(_) => false,
    })
}

/// Ports times blocks: what fits is in force whole, and of what does not nothing is, for the pods and the direction that it
/// is about. A smaller one heals.
#[test]
fn what_is_too_large_lets_nothing_pass() {
    for direction in Direction::BOTH {
        let name = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
        let mut node = Node::new();
        let update = node.tell(&policy("large", name, false, &rules(name, BLOCKS)));
        assert!(told(&update, direction, &["large"]), "{:?}", update.notices);
        // That from itself, by a Service, is a row as ever; the others have not been written.
        assert!(node.entries() < PORTS + 1_000, "{} entries", node.entries());
        let written = update.operations.iter().filter(|operation| matches!(operation, Operation::SetRow(..))).count();
        assert!(written < 5, "{written} rows");
        let closed = (Verdict::Deny, Reason::TooLarge);
        for (peer, port) in [("192.0.2.1", 4), ("192.0.2.1", 1), ("198.51.100.1", 1), ("10.0.0.2", 1)] {
            assert_eq!(node.ask("p", direction, peer, port), closed, "{peer} {port}");
        }
        // Others, and the other direction, are left alone.
        let [other] = Direction::BOTH.into_iter().filter(|other| *other != direction).collect::<Vec<_>>()[..] else {
            panic!("two directions");
        };
        assert_eq!(node.ask("p", other, "198.51.100.1", 2), (Verdict::Allow, Reason::NoPolicy));
        assert_eq!(node.ask("other", direction, "198.51.100.1", 2), (Verdict::Allow, Reason::NoPolicy));
        // What is said no more is paid for no more.
        let before = node.revision();
        let update = node.tell(&policy("large", name, false, &rules(name, BLOCKS - 5)));
        assert_eq!(update.notices, []);
        assert!(node.revision() > before);
        assert!(node.entries() > PORTS * (BLOCKS - 5));
        assert_eq!(node.ask("p", direction, "192.0.2.1", 4).0, Verdict::Allow);
        assert_eq!(node.ask("p", direction, "192.0.2.2", 4).0, Verdict::Deny);
        assert_eq!(node.ask("p", direction, "198.51.100.1", 1).0, Verdict::Allow);
    }
}

/// Whoever comes to policies that are too large already is told so, once; those who were there were told.
#[test]
fn a_pod_that_comes_later_is_told_too() {
    let mut node = Node::new();
    let large = policy("large", "Ingress", false, &rules("Ingress", BLOCKS));
    assert!(told(&node.tell(&large), Direction::Ingress, &["large"]));
    let pods = |update: &Update| -> Vec<String> {
        let told = update.notices.iter().flat_map(|notice| match notice {
            Notice::TooLarge { pods, .. } => pods.clone(),
            Notice::NamesForgotten(_) => Vec::new(),
        });
        told.map(|pod| pod.name.to_string()).collect()
    };
    let mut late = pod("late", "n1", "10.0.0.3");
    late["metadata"]["labels"]["app"] = json!("p");
    late["metadata"]["uid"] = json!("1");
    assert_eq!(pods(&node.tell(&late)), ["late"]);
    assert_eq!(node.ask("late", Direction::Ingress, "192.0.2.1", 4), (Verdict::Deny, Reason::TooLarge));
    late["metadata"]["labels"]["more"] = json!("x");
    assert_eq!(pods(&node.tell(&late)), [] as [&str; 0]);
    assert_eq!(pods(&node.tell(&pod("another", "n1", "10.0.0.4"))), [] as [&str; 0]);
    // Another pod of its name.
    late["metadata"]["uid"] = json!("2");
    assert_eq!(pods(&node.tell(&late)), ["late"]);
}

/// Two policies are too large together, and one that is a dry run restricts nothing even so.
#[test]
fn policies_count_together_and_dry_runs_restrict_nothing() {
    let mut node = Node::new();
    let anyone = json!([{"ports": odd_ports()}]);
    assert_eq!(node.tell(&policy("anyone", "Ingress", false, &anyone)).notices, []);
    let Value::Array(mut blocks) = rules("Ingress", BLOCKS) else { panic!("a list") };
    blocks.remove(0);
    let update = node.tell(&policy("blocks", "Ingress", false, &blocks.into()));
    assert!(told(&update, Direction::Ingress, &["anyone", "blocks"]), "{:?}", update.notices);
    assert_eq!(node.ask("p", Direction::Ingress, "192.0.2.1", 4), (Verdict::Deny, Reason::TooLarge));
    for name in ["anyone", "blocks"] {
        let Object::Policy(policy) = object(&policy(name, "Ingress", false, &json!([]))) else { panic!("a policy") };
        node.0.apply(Event::Delete(ObjectId::Policy(policy.id().clone())));
    }
    node.0.commit();
    let update = node.tell(&policy("dry", "Ingress", true, &rules("Ingress", BLOCKS)));
    assert!(told(&update, Direction::Ingress, &["dry"]), "{:?}", update.notices);
    assert_eq!(node.ask("p", Direction::Ingress, "198.51.100.1", 2), (Verdict::Allow, Reason::TooLarge));
}

/// A program that fitted, and that so many peers come to at once that it does not any more: what was in force is not any more,
/// and open flows are judged again.
#[test]
fn what_was_in_force_is_closed_when_too_many_peers_come() {
    let mut node = Node::new();
    // Each peer but the one that a rule names has that rule.
    let rule = |number: usize| {
        let selector =
            json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [format!("c{number}")]}]});
        json!({"from": [{"podSelector": selector}], "ports": [{"port": 2 * number + 1}]})
    };
    let count = 600;
    let update = node.tell(&policy("p", "Ingress", false, &(0..count).map(rule).collect()));
    assert_eq!(update.notices, []);
    assert_eq!(node.ask("p", Direction::Ingress, "10.0.0.2", 1).0, Verdict::Allow);
    let before = node.revision();
    let client =
        |number: usize| pod(&format!("c{number}"), "n2", &format!("10.0.{}.{}", 1 + number / 200, 1 + number % 200));
    // One by one they are let in as ever: each commit may cost as much as a whole program.
    for number in 0..3 {
        assert_eq!(node.tell(&client(number)).notices, []);
    }
    assert_eq!(node.ask("p", Direction::Ingress, "10.0.1.1", 1).0, Verdict::Deny);
    assert_eq!(node.ask("p", Direction::Ingress, "10.0.1.1", 3).0, Verdict::Allow);
    for number in 3..count {
        node.0.apply(Event::Upsert(object(&client(number))));
    }
    let update = node.0.commit();
    assert!(told(&update, Direction::Ingress, &["p"]), "{:?}", update.notices);
    for (peer, port) in [("10.0.0.2", 1), ("10.0.1.1", 3), ("10.0.2.9", 1)] {
        assert_eq!(node.ask("p", Direction::Ingress, peer, port), (Verdict::Deny, Reason::TooLarge), "{peer}");
    }
    assert!(node.revision() > before);
    assert!(node.entries() < 1_000, "{} entries", node.entries());
    // It is looked at anew with its policies.
    let update = node.tell(&policy("p", "Ingress", false, &(0..3).map(rule).collect()));
    assert_eq!(update.notices, []);
    assert_eq!(node.ask("p", Direction::Ingress, "10.0.1.1", 3).0, Verdict::Allow);
}
