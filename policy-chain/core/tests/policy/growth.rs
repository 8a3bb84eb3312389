//! What a policy with many parts takes grows as their number does.

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::settings::Settings;

use crate::cost::{Cost, cost};

const FEW: usize = if cfg!(debug_assertions) { 1_000 } else { 8_000 };
/// How many times as many the others are; what grows with the square takes so many times more for each.
const TIMES: usize = 4;

fn policy(blocks: usize, shape: &str) -> Value {
    let block = |number: usize| format!("{}.{}.{}.1/32", 20 + (number >> 16), (number >> 8) & 255, number & 255);
    let all: Vec<String> = (0..blocks).map(block).collect();
    let (api, kind, spec) = match shape {
        "blocks" => {
            let peers: Vec<Value> = all.iter().map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
            ("networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}, "ingress": [{"from": peers}]}))
        }
        "exceptions" => {
            let peer = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": all}});
            ("networking.k8s.io/v1", "NetworkPolicy", json!({"podSelector": {}, "ingress": [{"from": [peer]}]}))
        }
        // Each begins one port behind the one before, and all end together: a port has as many lists as its number says.
        "lists" => {
            let rule = |number: usize| {
                let ports = json!([{"port": (number + 1).to_string(), "endPort": 65_535, "protocol": "TCP"}]);
                json!({"toPorts": [{"ports": ports, "rules": {"http": [{"method": "GET"}]}}]})
            };
            let rules: Vec<Value> = (0..blocks).map(rule).collect();
            ("cilium.io/v2", "CiliumNetworkPolicy", json!({"endpointSelector": {}, "ingress": rules}))
        }
        _ => {
            let set: Vec<Value> = all.iter().map(|cidr| json!({"cidr": cidr})).collect();
            let spec = json!({"endpointSelector": {}, "egress": [{"toCIDRSet": set}]});
            ("cilium.io/v2", "CiliumNetworkPolicy", spec)
        }
    };
    json!({"apiVersion": api, "kind": kind, "metadata": {"namespace": "a", "name": "p"}, "spec": spec})
}

fn read(value: &Value) -> Object {
    sluice_policy_core::parse::object(value).object.unwrap()
}

/// What it takes until the policy is in force, and until it is gone.
fn taken(blocks: usize, shape: &str) -> Cost {
    let mut engine = Engine::new(Settings { node: Some("n1".into()), ..Settings::default() });
    engine.apply(Event::Upsert(read(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": "p"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    }))));
    engine.commit();
    let Object::Policy(policy) = read(&policy(blocks, shape)) else { panic!("{shape}") };
    let id = policy.id().clone();
    let ((), cost) = cost(|| {
        engine.apply(Event::Upsert(Object::Policy(policy)));
        let update = engine.commit();
        assert!(update.operations.len() >= blocks, "{shape}");
        engine.apply(Event::Delete(ObjectId::Policy(id)));
        engine.commit();
    });
    assert_eq!(engine.image().peers.len(), 0, "{shape}");
    cost
}

#[test]
fn many_parts_take_as_much_more_as_they_are_more() {
    for shape in ["blocks", "exceptions", "set", "lists"] {
        // The better of two: what else the machine does only ever adds.
        let least = |blocks| {
            let (one, other) = (taken(blocks, shape), taken(blocks, shape));
            Cost { nanoseconds: one.nanoseconds.min(other.nanoseconds), bytes: one.bytes }
        };
        let (few, many) = (least(FEW), least(FEW * TIMES));
        println!("{shape}: {few:?} {many:?}");
        assert!(many.nanoseconds < few.nanoseconds * (2 * TIMES) as u64, "{shape}: {few:?} {many:?}");
        assert!(many.bytes < few.bytes * (TIMES + 2), "{shape}: {few:?} {many:?}");
    }
}
