//! The policies of the made-up cluster: of ten, eight are NetworkPolicies, one is Cilium's, one is a ClusterNetworkPolicy.

use serde_json::{Value, json};
use sluice_policy_core::cluster::Object;

use super::NotRead;
use super::town::{Dice, INGRESS, Kind, MONITORING, SYSTEM, Town, Workload, port_of, read};

/// Labels of namespaces and pods that policies select by.
const APP: &str = "app.kubernetes.io/name";
const INSTANCE: &str = "app.kubernetes.io/instance";
const NAMESPACE: &str = "kubernetes.io/metadata.name";
/// ClusterNetworkPolicies that are for all namespaces; the others are each for those of a team.
const FOR_ALL: usize = 4;
/// A ClusterNetworkPolicy's priority is below this.
const PRIORITIES: usize = 1_000;

/// Every policy, in the order in which they are told.
pub(super) fn all(town: &Town, seed: u64) -> impl Iterator<Item = Value> {
    let mut dice = Dice::new(seed ^ 0x706f_6c69_6379);
    (0..town.size.policies).map(move |index| {
        let (round, turn) = (index / 10, index % 10);
        match turn {
            9 => cluster(town, round, &mut dice),
            8 => cilium(town, round, &mut dice),
            _ => network(town, round * 8 + turn, &mut dice),
        }
    })
}

/// A policy that lets one application of a namespace reach another on a port.
///
/// # Errors
/// [`NotRead`] if the parser finds fault with it.
pub fn app_to_app(name: &str, to: &Workload, from: &str, port: usize) -> Result<Object, NotRead> {
    read(&json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": Town::namespace(to.namespace), "name": name },
        "spec": {
            "podSelector": { "matchLabels": { APP: to.app } },
            "ingress": [{
                "from": [{ "podSelector": { "matchLabels": { APP: from } } }],
                "ports": [{ "port": port, "protocol": "TCP" }],
            }],
        },
    }))
}

/// Some workload of a namespace, of that kind if there is one.
fn someone<'t>(town: &'t Town, namespace: usize, kind: Kind, dice: &mut Dice) -> Option<&'t Workload> {
    let start = town.workloads.partition_point(|workload| workload.namespace < namespace);
    let end = town.workloads.partition_point(|workload| workload.namespace <= namespace);
    let here = town.workloads.get(start..end)?;
    let of_kind: Vec<&Workload> = here.iter().filter(|workload| workload.kind == kind).collect();
    let any = here.get(dice.below(here.len()));
    of_kind.get(dice.below(of_kind.len())).copied().or(any)
}

fn network(town: &Town, number: usize, dice: &mut Dice) -> Value {
    let (namespace, round) = (number % town.namespaces(), number / town.namespaces());
    let spec = match round {
        0 => json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
        1 => json!({
            "podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [{ "podSelector": {} }] }], "egress": [{ "to": [{ "podSelector": {} }] }],
        }),
        2 => json!({
            "podSelector": {}, "policyTypes": ["Egress"],
            "egress": [{
                "to": [{
                    "namespaceSelector": { "matchLabels": { NAMESPACE: SYSTEM } },
                    "podSelector": { "matchLabels": { APP: "api" } },
                }],
                "ports": [{ "port": 53, "protocol": "UDP" }, { "port": 53, "protocol": "TCP" }],
            }],
        }),
        _ => network_of_app(town, namespace, number, dice).unwrap_or_else(|| json!({ "podSelector": {} })),
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": { "namespace": Town::namespace(namespace), "name": format!("policy-{number}") }, "spec": spec,
    })
}

fn network_of_app(town: &Town, namespace: usize, number: usize, dice: &mut Dice) -> Option<Value> {
    let kind = dice.below(100);
    let app = someone(town, namespace, Kind::Deployment, dice)?;
    let select = |app: &Workload| json!({ "matchLabels": { APP: app.app } });
    Some(match kind {
        // From the ingress controllers.
        0..15 => json!({
            "podSelector": select(app),
            "ingress": [{
                "from": [{ "namespaceSelector": { "matchLabels": { NAMESPACE: INGRESS } } }], "ports": [{ "port": "http" }],
            }],
        }),
        // Prometheus.
        15..25 => json!({
            "podSelector": {},
            "ingress": [{
                "from": [{ "namespaceSelector": { "matchLabels": { NAMESPACE: MONITORING } } }], "ports": [{ "port": 9090 }],
            }],
        }),
        // The Internet, but not the cluster and not the metadata service.
        25..37 => json!({
            "podSelector": select(app), "policyTypes": ["Egress"],
            "egress": [{
                "to": [{ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "169.254.169.254/32", "172.16.0.0/12"] } }],
                "ports": [{ "port": 443 }],
            }],
        }),
        // A partner's network.
        37..50 => {
            let (high, low) = (number / 250 % 250, number % 250);
            json!({
                "podSelector": select(app), "policyTypes": ["Egress"],
                "egress": [{
                    "to": [{ "ipBlock": { "cidr": format!("100.{high}.{low}.0/24"), "except": [format!("100.{high}.{low}.128/25")] } }],
                    "ports": [{ "port": 443 }, { "port": 8443 }],
                }],
            })
        }
        // A store, from one application of the namespace.
        50..75 => {
            let store = someone(town, namespace, Kind::StatefulSet, dice)?;
            json!({
                "podSelector": { "matchLabels": { INSTANCE: store.name } },
                "ingress": [{ "from": [{ "podSelector": select(app) }], "ports": [{ "port": port_of(store) }] }],
            })
        }
        // Another team's application.
        _ => {
            let other = dice.below(town.namespaces());
            let peer = someone(town, other, Kind::Deployment, dice)?;
            json!({
                "podSelector": select(app),
                "ingress": [{
                    "from": [{
                        "namespaceSelector": { "matchLabels": { NAMESPACE: Town::namespace(other) } },
                        "podSelector": select(peer),
                    }],
                    "ports": [{ "port": 8080 }, { "port": 8443, "endPort": 8450 }],
                }],
            })
        }
    })
}

fn cilium(town: &Town, round: usize, dice: &mut Dice) -> Value {
    let namespace = dice.below(town.namespaces());
    let app = someone(town, namespace, Kind::Deployment, dice);
    let (name, app) = (app.map_or("web", |app| app.name.as_str()), app.map_or("web", |app| app.app));
    let dns = json!({
        "toEndpoints": [{ "matchLabels": { "k8s:io.kubernetes.pod.namespace": SYSTEM, APP: "api" } }],
        "toPorts": [{ "ports": [{ "port": "53", "protocol": "ANY" }], "rules": { "dns": [{ "matchPattern": "*" }] } }],
    });
    let spec = match round % 4 {
        0 => json!({
            "endpointSelector": { "matchLabels": { APP: app } },
            "ingress": [{
                "fromEndpoints": [{ "matchLabels": { APP: dice.one_of(&super::town::APPS) } }],
                "toPorts": [{
                    "ports": [{ "port": "8080", "protocol": "TCP" }],
                    "rules": { "http": [{ "method": "GET", "path": "/v1/.*" }, { "method": "POST", "path": "/v1/items" }] },
                }],
            }],
        }),
        1 => json!({
            "endpointSelector": { "matchLabels": { INSTANCE: name } },
            "egress": [
                dns,
                {
                    "toFQDNs": [{ "matchName": format!("api-{round}.example.com") }, { "matchPattern": "*.amazonaws.com" }],
                    "toPorts": [{ "ports": [{ "port": "443", "protocol": "TCP" }] }],
                },
            ],
        }),
        2 => json!({
            "endpointSelector": { "matchLabels": { APP: app } },
            "ingress": [{ "fromEntities": ["host", "remote-node"] }],
            "egress": [{ "toEntities": ["kube-apiserver"] }, { "toEntities": ["world"], "toPorts": [{ "ports": [{ "port": "443", "protocol": "TCP" }] }] }],
        }),
        _ => json!({
            "endpointSelector": { "matchLabels": { APP: app } },
            "enableDefaultDeny": { "ingress": false, "egress": false },
            "egressDeny": [{ "toCIDR": ["169.254.169.254/32"] }],
            "ingressDeny": [{ "fromEndpoints": [{ "matchLabels": { "tier": "data" } }] }],
        }),
    };
    json!({
        "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy",
        "metadata": { "namespace": Town::namespace(namespace), "name": format!("cilium-{round}") }, "spec": spec,
    })
}

fn cluster(town: &Town, round: usize, dice: &mut Dice) -> Value {
    let team = |number: usize| json!({ "matchLabels": { "team": format!("team-{number}") } });
    let (one, other) = (dice.below(town.teams()), dice.below(town.teams()));
    let ports = json!([{ "tcp": { "destinationPort": { "number": 8080 } } }]);
    let monitoring = json!({ "namespaces": { "matchLabels": { NAMESPACE: MONITORING } } });
    let (tier, subject, rules) = match round {
        0 => ("Admin", json!({}), json!({ "ingress": [{ "action": "Accept", "from": [monitoring] }] })),
        1 => (
            "Admin",
            json!({}),
            json!({ "egress": [{ "action": "Deny", "to": [{ "networks": ["169.254.169.254/32"] }] }] }),
        ),
        2 => (
            "Admin",
            json!({ "matchLabels": { "environment": "production" } }),
            json!({ "ingress": [
                { "action": "Pass", "from": [{ "namespaces": { "matchLabels": { "environment": "production" } } }] },
                { "action": "Deny", "from": [{ "namespaces": { "matchLabels": { "environment": "development" } } }] },
            ] }),
        ),
        3 => ("Baseline", json!({}), json!({ "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }] })),
        _ if round.is_multiple_of(2) => (
            "Admin",
            team(one),
            json!({ "ingress": [{ "action": "Accept", "from": [{ "namespaces": team(other) }], "protocols": ports }] }),
        ),
        _ => {
            ("Baseline", team(one), json!({ "egress": [{ "action": "Deny", "to": [{ "namespaces": team(other) }] }] }))
        }
    };
    let priority = if round < FOR_ALL { round } else { FOR_ALL + round % (PRIORITIES - FOR_ALL) };
    let mut spec = json!({ "tier": tier, "priority": priority, "subject": { "namespaces": subject } });
    if let (Some(spec), Value::Object(rules)) = (spec.as_object_mut(), rules) {
        spec.extend(rules);
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": format!("cluster-{round}") }, "spec": spec,
    })
}
