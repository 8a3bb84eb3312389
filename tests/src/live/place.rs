//! Where the pods of a fixture run, and what a file of vectors is in IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde_json::Value;
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::model::Text;
use sluice_policy_core::vector::schema::{
    Addresses, Endpoint, Family, Fixture, NodeSpec, PodSpec, Row, Step, Suite, Vector,
};

/// Nodes for pods that have none: two, so that probes go within a node and between nodes.
const SPARE: [&str; 2] = ["spare-1", "spare-2"];
/// What stands before an IPv4 address to make it IPv6: prefixes keep their meaning, 96 bits longer.
const V6_PREFIX: u128 = 0xfd64 << 112;

/// The suite with a node for every pod that has an address, and where names matter a pod on every node that asks for them. Pods
/// without node are spread over spare nodes, whose addresses (RFC 5737, TEST-NET-1) no file names.
#[must_use]
pub fn placed(mut suite: Suite) -> Suite {
    for fixture in suite.fixtures.values_mut() {
        place(fixture);
    }
    for vector in &mut suite.vectors {
        for step in &mut vector.steps {
            for (index, pod) in step.create_pod.values_mut().enumerate() {
                settle(pod, index);
            }
        }
    }
    super::names::with_resolvers(&mut suite);
    suite
}

fn place(fixture: &mut Fixture) {
    for (index, pod) in fixture.pods.values_mut().enumerate() {
        settle(pod, index);
    }
    for (name, number) in SPARE.into_iter().zip(1..) {
        let addresses = Addresses {
            v4: Some(Ipv4Addr::new(192, 0, 2, number).into()),
            v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, u16::from(number)).into()),
        };
        let spare = NodeSpec { labels: sluice_policy_core::cluster::Labels::default(), addresses };
        fixture.nodes.entry(Text::from(name)).or_insert(spare);
    }
}

fn settle(pod: &mut PodSpec, index: usize) {
    if pod.node.is_none() {
        pod.node = SPARE.get(index % SPARE.len()).map(|name| Text::from(*name));
    }
}

/// The suite in IPv6: every address and prefix of IPv4 is one of IPv6 with the same meaning, every row that does not ask for
/// a family asks for IPv6. Vectors that speak of IPv6 themselves stay out: their two families would be confused.
#[must_use]
pub fn in_v6(mut suite: Suite) -> Suite {
    suite.vectors.retain(|vector| !speaks_v6(vector));
    for fixture in suite.fixtures.values_mut() {
        let nodes = fixture.nodes.values_mut().map(|node| &mut node.addresses);
        let pods = fixture.pods.values_mut().map(|pod| &mut pod.addresses);
        let externals = fixture.externals.values_mut().map(|external| &mut external.addresses);
        for addresses in nodes.chain(pods).chain(externals) {
            extend(addresses);
        }
        for service in fixture.services.values_mut() {
            for list in [&mut service.cluster_addresses, &mut service.external_addresses, &mut service.endpoints] {
                let more: Vec<IpAddr> = list.iter().filter_map(|address| mapped(*address)).collect();
                list.retain(IpAddr::is_ipv4);
                list.extend(more);
            }
        }
    }
    for step in suite.vectors.iter_mut().flat_map(|vector| &mut vector.steps) {
        step.apply.iter_mut().for_each(rewrite);
        step.create_pod.values_mut().for_each(|pod| extend(&mut pod.addresses));
        for resolution in step.resolve.values_mut() {
            resolution.addresses.iter_mut().for_each(|address| *address = mapped(*address).unwrap_or(*address));
        }
        step.expect.iter_mut().for_each(turn);
    }
    suite
}

fn speaks_v6(vector: &Vector) -> bool {
    let row = |row: &Row| row.family == Family::V6;
    let step = |step: &Step| step.expect.iter().any(row) || step.apply.iter().any(names_v6);
    vector.steps.iter().any(step)
}

fn names_v6(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("::"),
        Value::Array(list) => list.iter().any(names_v6),
        Value::Object(map) => map.values().any(names_v6),
        _ => false,
    }
}

fn turn(row: &mut Row) {
    row.family = Family::V6;
    if row.protocol == Protocol::ICMP {
        row.protocol = Protocol::ICMPV6;
        row.port = if row.port == 8 { 128 } else { row.port };
    }
    for endpoint in row.from.endpoints.iter_mut().chain(&mut row.to.endpoints) {
        if let Endpoint::Address(address) = endpoint {
            *address = mapped(*address).unwrap_or(*address);
        }
    }
}

fn extend(addresses: &mut Addresses) {
    if let Some(v6) = addresses.v4.and_then(mapped) {
        addresses.v6 = Some(v6);
    }
}

fn mapped(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V4(v4) = address else { return None };
    Some(Ipv6Addr::from_bits(V6_PREFIX | u128::from(v4.to_bits())).into())
}

/// Puts IPv6 in the place of every text that is an address or a prefix of IPv4.
fn rewrite(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Ok(net) = text.parse::<Ipv4Net>() {
                // Everything stays everything.
                *text = match (net.prefix_len(), mapped(net.addr().into())) {
                    (0, _) => "::/0".to_owned(),
                    (bits, Some(address)) => format!("{address}/{}", 96 + bits),
                    (_, None) => return,
                };
            } else if let Some(address) = text.parse::<Ipv4Addr>().ok().and_then(|v4| mapped(v4.into())) {
                *text = address.to_string();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(rewrite),
        Value::Object(map) => map.values_mut().for_each(rewrite),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use sluice_policy_core::vector;

    use super::*;

    const FILE: &str = r"
schemaVersion: 1
fixtures:
  f:
    namespaces: {x: {}}
    pods: {x/a: {ip: 10.0.0.1}, x/b: {ip: 10.0.0.2}, x/c: {ip: 10.0.0.3, node: n}}
    nodes: {n: {ip: 10.9.0.1}}
vectors:
- id: one
  fixture: f
  steps:
  - resolve: {a.example: {addresses: [203.0.113.1]}}
    apply:
    - apiVersion: networking.k8s.io/v1
      kind: NetworkPolicy
      metadata: {name: p, namespace: x}
      spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/30]}}]}]}
    expect:
    - {from: x/a, to: 'ip:10.0.0.2', port: 80, verdict: deny}
    - {from: x/a, to: x/b, protocol: ICMP, verdict: deny}
";

    fn suite() -> Suite {
        vector::read(FILE).unwrap()
    }

    #[test]
    fn every_pod_has_a_node_and_those_that_said_so_keep_theirs() {
        let suite = placed(suite());
        let Fixture { pods, nodes, .. } = &suite.fixtures["f"];
        // The resolvers of the vector's names are pods too.
        let own = pods.iter().filter(|(key, _)| &*key.namespace == "x");
        let own: Vec<&str> = own.map(|(_, pod)| pod.node.as_deref().unwrap()).collect();
        assert_eq!(own, ["spare-1", "spare-2", "n"]);
        assert!(pods.values().all(|pod| nodes.contains_key(pod.node.as_ref().unwrap())));
    }

    #[test]
    fn prefixes_mean_the_same_in_ipv6() {
        let suite = in_v6(suite());
        let step = &suite.vectors[0].steps[0];
        let block = &step.apply[0]["spec"]["ingress"][0]["from"][0]["ipBlock"];
        assert_eq!(*block, serde_json::json!({"cidr": "::/0", "except": ["fd64::a00:0/126"]}));
        let b = suite.fixtures["f"].pods.values().nth(1).unwrap().addresses.v6.unwrap();
        assert_eq!(step.expect[0].to.endpoints, [Endpoint::Address(b)]);
        assert_eq!(step.resolve.values().next().unwrap().addresses, ["fd64::cb00:7101".parse::<IpAddr>().unwrap()]);
        assert_eq!((step.expect[1].protocol, step.expect[1].port), (Protocol::ICMPV6, 128));
    }
}
