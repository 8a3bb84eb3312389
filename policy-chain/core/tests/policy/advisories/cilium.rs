//! Security advisories of Cilium, and of Envoy where Cilium's HTTP rules rest on it.

use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::settings::Settings;

use crate::world::{World, ccnp, cnp, events, np};

const HTTP_GET_A: &str =
    "toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{method: GET, path: /a}]}}]";

/// GHSA-2h44-x2wx-49f4: HTTP rules for several selectors in one list, and an allow of everything for one of them, became an
/// allow of every request for all of them.
#[test]
fn cve_2023_30851_an_allow_of_one_peer_does_not_open_the_others_http_rules() {
    let world = World::new(&cnp(
        "p",
        &format!(
            "endpointSelector: {{matchLabels: {{role: admin}}}}, egress: [
             {{toEndpoints: [{{matchLabels: {{app: api}}}}, {{matchLabels: {{app: web, io.kubernetes.pod.namespace: other}}}}], {HTTP_GET_A}}},
             {{toEndpoints: [{{matchLabels: {{app: api}}}}]}}]"
        ),
    ));
    world.holds(
        "shop/web-1 > shop/api-0 TCP/8080 redirect else allow by CiliumNetworkPolicy shop/p, egress[0]
         shop/web-1 > shop/api-0 TCP/8080 POST api /b pass
         shop/web-1 > shop/api-0 TCP/9090 allow by CiliumNetworkPolicy shop/p, egress[1]
         shop/web-1 > other/web-0 TCP/8080 redirect else deny
         shop/web-1 > other/web-0 TCP/8080 GET web /a pass
         shop/web-1 > other/web-0 TCP/8080 POST web /a|/b refuse
         shop/web-1 > other/web-0 TCP/9090 deny",
    );
    // The same of ingress, with the allow in a policy of another dialect.
    let world = World::new(
        &[
            cnp(
                "p",
                &format!(
                    "endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [{{fromEndpoints: [{{}}, {{matchLabels: {{io.kubernetes.pod.namespace: other}}}}], {HTTP_GET_A}}}]"
                ),
            ),
            np("q", "podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: admin}}}]}]"),
        ]
        .concat(),
    );
    world.holds(
        "shop/api-0 < shop/web-1 TCP/8080 redirect else allow
         shop/api-0 < shop/web-0|other/web-0 TCP/8080 redirect else deny
         shop/api-0 < shop/web-0|other/web-0 TCP/8080 GET api /a pass
         shop/api-0 < shop/web-0|other/web-0 TCP/8080 GET api /b refuse",
    );
}

fn pod(namespace: &str, name: &str, labels: &str, address: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec: {{nodeName: n1}}
status: {{podIP: {address}}}
"
    )
}

/// GHSA-gj2r-phwg-6rww: who may update a pod gave it the label of another namespace, and it left the policies of its own.
#[test]
fn cve_2023_39347_no_label_of_a_pod_moves_it_out_of_its_policies() {
    let forged = "app: web, io.kubernetes.pod.namespace: other, io.cilium.k8s.namespace.labels.team: red, \
                  io.cilium.k8s.policy.serviceaccount: web, io.cilium.k8s.policy.cluster: far";
    let mut world = World::new(
        &[
            cnp("deny", "endpointSelector: {}, ingress: [{}], egress: [{}]"),
            ccnp(
                "reds",
                "endpointSelector: {matchLabels: {app: api, io.kubernetes.pod.namespace: other}}, ingress: [
                 {fromEndpoints: [{matchLabels: {io.cilium.k8s.namespace.labels.team: red}}], toPorts: [{ports: [{port: '1', protocol: TCP}]}]},
                 {fromEndpoints: [{matchLabels: {io.kubernetes.pod.namespace: other}}], toPorts: [{ports: [{port: '2', protocol: TCP}]}]},
                 {fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.serviceaccount: web}}], toPorts: [{ports: [{port: '3', protocol: TCP}]}]},
                 {fromEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: far, io.kubernetes.pod.namespace: shop}}], toPorts: [{ports: [{port: '4', protocol: TCP}]}]}]",
            ),
        ]
        .concat(),
    );
    let closed = "shop/web-9 < other/web-0 TCP/80 deny by CiliumNetworkPolicy shop/deny isolates the pod, and no rule allows this
         shop/web-9 > other/web-0 TCP/80 deny
         other/api-0 < 10.9.1.9 TCP/1|TCP/2|TCP/3|TCP/4 deny
         other/api-0 < other/web-0 TCP/1|TCP/2 allow
         other/api-0 < shop/web-0 TCP/3 allow";
    // From the first day on, and by an update.
    world.apply(&pod("shop", "web-9", forged, "10.9.1.9"));
    world.holds(closed);
    world.apply(&pod("shop", "web-9", "app: web", "10.9.1.9"));
    world.holds(closed);
    world.apply(&pod("shop", "web-9", forged, "10.9.1.9"));
    world.holds(closed);
}

/// GHSA-4xp2-w642-7mcx: a selector with a requirement on a reserved label was not held to its policy's namespace.
#[test]
fn cve_2023_41333_no_reserved_label_lets_a_policy_out_of_its_namespace() {
    for (key, source) in [("reserved:init", "reserved:init"), ("any:init", "any:init"), ("init", "init")] {
        let world = World::new(&cnp(
            "p",
            &format!(
                "endpointSelector: {{matchExpressions: [{{key: '{key}', operator: DoesNotExist}}]}}, \
                 ingressDeny: [{{fromEntities: [all]}}], egress: [{{toEntities: [all]}}]"
            ),
        ));
        world.holds(
            "shop/web-0|shop/api-0 < other/web-0 TCP/80 deny by CiliumNetworkPolicy shop/p, ingressDeny[0]
             other/web-0|other/api-0 < shop/web-0 TCP/80 allow by no policy decides
             other/web-0 > shop/api-0 TCP/80 allow by no policy decides",
        );
        assert_eq!(world.policies(), ["CiliumNetworkPolicy shop/p"], "{source}");
    }
    // A peer with such a key is a peer of the policy's namespace no more; it is no pod either, for pods have no such label.
    let world = World::new(&cnp(
        "p",
        "endpointSelector: {}, ingress: [{fromEndpoints: [{matchExpressions: [{key: 'reserved:host', operator: Exists}]}]}]",
    ));
    world.holds(
        "shop/web-0 < shop/api-0|other/web-0|203.0.113.1 TCP/80 deny
         shop/web-0 < 10.9.0.2 TCP/80 deny",
    );
}

/// The same of peers: a `reserved:` key takes them out of the policy's namespace (reference 2.3), and what lacks the label is
/// everyone else, the world and nodes among them. It is so for denies as for allows, and `sluice policy check` tells it.
#[test]
fn cve_2023_41333_a_peer_without_a_reserved_label_is_everyone_without_it() {
    let everyone = "shop/api-0|other/web-0|203.0.113.1|10.9.0.2|2001:db8::1";
    for policy in [cnp, ccnp] {
        let peer = "fromEndpoints: [{matchExpressions: [{key: 'reserved:init', operator: DoesNotExist}]}]";
        World::new(&policy("p", &format!("endpointSelector: {{}}, ingress: [{{{peer}}}]")))
            .holds(&format!("shop/web-0 < {everyone} TCP/80 allow"));
        let deny = format!("endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, ingressDeny: [{{{peer}}}]");
        World::new(&policy("p", &deny)).holds(&format!("shop/web-0 < {everyone} TCP/80 deny"));
        // Without a source it asks for a label of the pod as well, and the policy's namespace is added.
        let peer = "fromEndpoints: [{matchExpressions: [{key: init, operator: DoesNotExist}]}]";
        World::new(&policy("p", &format!("endpointSelector: {{}}, ingress: [{{{peer}}}]")))
            .holds("shop/web-0 < shop/api-0 TCP/80 allow\nshop/web-0 < 203.0.113.1|10.9.0.2 TCP/80 deny");
    }
}

/// HTTP rules were in force now and then. What an image says does not depend on how it came to be: here in which order the
/// objects came, and with which others between commits.
#[test]
fn cve_2024_28248_http_rules_are_in_force_whatever_the_order_of_events() {
    let policies = [
        cnp(
            "http",
            &format!(
                "endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [{{fromEndpoints: [{{}}], {HTTP_GET_A}}}]"
            ),
        ),
        cnp(
            "plain",
            "endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEndpoints: [{matchLabels: {role: admin}}]}]",
        ),
        np("np", "podSelector: {}, ingress: [{ports: [{port: 9090}]}]"),
        ccnp(
            "all",
            "endpointSelector: {}, ingressDeny: [{fromEntities: [world]}], enableDefaultDeny: {ingress: false}",
        ),
    ];
    let mut events = events(&policies.concat());
    let world = World::new(&policies.concat());
    let asked: Vec<_> = ["shop/web-0", "shop/web-1", "other/web-0", "203.0.113.1"]
        .iter()
        .map(|peer| world.query("shop/api-0", "<", peer, "TCP/8080"))
        .collect();
    let expected: Vec<_> = asked.iter().map(|query| world.judge(query)).collect();
    let verdicts: Vec<_> = expected.iter().map(|judgement| judgement.verdict.as_str()).collect();
    assert_eq!(verdicts, ["redirect", "redirect", "deny", "deny"]);
    let mut seed = 1_u64;
    for _ in 0..60 {
        for last in (1..events.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let other = usize::try_from(seed >> 33).unwrap() % (last + 1);
            events.swap(last, other);
        }
        let mut engine = Engine::new(Settings { node: Some("n1".into()), ..Settings::default() });
        for (index, event) in events.iter().enumerate() {
            engine.apply(event.clone());
            if seed >> (index % 30) & 1 == 1 {
                engine.commit();
            }
        }
        engine.commit();
        // A restart of the API server's watch tells everything again.
        events.iter().for_each(|event| engine.apply(event.clone()));
        assert_eq!(engine.commit().operations, []);
        let found: Vec<_> = asked.iter().map(|query| engine.judge(query)).collect();
        assert_eq!(found, expected);
    }
}

/// GHSA-3wwx-63fv-pfq6: a deny of a broad prefix was not in force for a narrower prefix or a name that another rule
/// allows, beside `enableDefaultDeny: false` or an allow of everything.
#[test]
fn cve_2024_47825_a_deny_of_a_broad_prefix_beats_every_narrower_allow() {
    let allows = [
        "{toCIDR: [203.0.113.8/29]}",
        "{toCIDRSet: [{cidr: 203.0.113.9/32}]}",
        "{toFQDNs: [{matchPattern: '*.example.com'}]}",
        "{toEntities: [all]}",
        "{toEntities: [world]}, {toCIDR: [203.0.113.9/32]}",
        "{toFQDNs: [{matchName: www.example.com}]}, {toCIDR: [203.0.113.9/32]}, {toEntities: [all, world]}",
    ];
    let denies = [
        "{toCIDR: [203.0.113.0/24]}",
        "{toCIDRSet: [{cidr: 203.0.0.0/16, except: [203.0.114.0/24]}]}",
        "{toCIDR: [0.0.0.0/0]}",
    ];
    for allow in allows {
        for deny in denies {
            for default_deny in ["enableDefaultDeny: {egress: false}, ", "enableDefaultDeny: {egress: true}, ", ""] {
                let rules = |rules: &str| format!("endpointSelector: {{}}, {default_deny}{rules}");
                let one = cnp("p", &rules(&format!("egressDeny: [{deny}], egress: [{allow}]")));
                let two = [
                    cnp("p", &rules(&format!("egressDeny: [{deny}]"))),
                    ccnp("q", &rules(&format!("egress: [{allow}]"))),
                ];
                for policies in [one, two.concat()] {
                    let mut world = World::new(&policies);
                    world.resolves("www.example.com", "203.0.113.9");
                    world.holds(
                        "shop/web-0 > 203.0.113.9 TCP/443|UDP/53|ICMP/8 deny by CiliumNetworkPolicy shop/p, egressDeny[0]
                         shop/web-0 > 203.0.113.200 TCP/443 deny by CiliumNetworkPolicy shop/p, egressDeny[0]",
                    );
                    // A CIDR is not about pods, and a deny of it not either.
                    let pods = if allow.contains("all") || default_deny.contains("false") { "allow" } else { "deny" };
                    world.holds(&format!("shop/web-0 > shop/api-0 TCP/443 {pods}"));
                }
            }
        }
    }
}

/// GHSA-xg58-75qf-9r67: an allow of a range of ports took the traffic past the HTTP rules of a port in the range. Rules
/// never narrow an allow of the same peer (DESIGN 6.6), but the traffic is proxied: it is seen, and headers are set.
#[test]
fn cve_2024_52529_a_range_of_ports_does_not_pass_by_the_proxy() {
    for (range, first, last) in [
        ("port: '8000', endPort: 9000", 8000, 9000),
        ("port: '8080', endPort: 8080", 8080, 8080),
        ("port: '0'", 1, 65535),
    ] {
        for peer in ["fromEndpoints: [{matchLabels: {app: web}}]", "fromEntities: [cluster]", "fromEntities: [all]"] {
            let world = World::new(&cnp(
                "p",
                &format!(
                    "endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [
                     {{{peer}, toPorts: [{{ports: [{{{range}, protocol: TCP}}]}}]}},
                     {{fromEndpoints: [{{matchLabels: {{app: web}}}}], {HTTP_GET_A}}}]"
                ),
            ));
            world.holds(&format!(
                "shop/api-0 < shop/web-0 TCP/8080 redirect else allow by CiliumNetworkPolicy shop/p, ingress[1]
                 shop/api-0 < shop/web-0 TCP/8080 GET api /b pass
                 shop/api-0 < shop/web-0 UDP/8080|ICMP/8 deny
                 shop/api-0 < shop/web-0 TCP/{} {}
                 shop/api-0 < shop/web-0 TCP/{} {}",
                first,
                if first == 8080 { "redirect else allow" } else { "allow by CiliumNetworkPolicy shop/p, ingress[0]" },
                last,
                if last == 8080 { "redirect else allow" } else { "allow by CiliumNetworkPolicy shop/p, ingress[0]" },
            ));
        }
    }
    // An allow of another peer changes nothing for this one.
    let world = World::new(&cnp(
        "p",
        &format!(
            "endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [
             {{fromEndpoints: [{{matchLabels: {{role: admin}}}}], toPorts: [{{ports: [{{port: '1', endPort: 65535, protocol: TCP}}]}}]}},
             {{fromEndpoints: [{{matchLabels: {{app: web}}}}], {HTTP_GET_A}}}]"
        ),
    ));
    world.holds(
        "shop/api-0 < shop/web-1 TCP/8080 redirect else allow
         shop/api-0 < shop/web-0 TCP/8080 redirect else deny",
    );
}

/// GHSA-24qp-4xx8-3jvj: no egress policy was in force towards the addresses of load balancers that the cluster serves
/// itself. Every address that the service proxy translates is judged by its backends (DESIGN 6.8).
#[test]
fn cve_2025_30162_egress_to_load_balancer_addresses_is_judged_by_the_backends() {
    let dialled = "172.20.0.10 TCP/80|203.0.113.80 TCP/80|10.9.0.1 TCP/30080";
    let holds = |policies: &[String], expected: &str| {
        let world = World::new(&policies.concat());
        for address in dialled.split('|') {
            world.holds(&format!("shop/web-0 > {address} {expected}"));
        }
    };
    let denied = "toPorts: [{ports: [{port: '1', endPort: 65535, protocol: TCP}]}]";
    holds(
        &[np("p", "podSelector: {}, policyTypes: [Egress]")],
        "deny by NetworkPolicy shop/p isolates the pod, and no rule allows this",
    );
    holds(
        &[cnp(
            "p",
            &format!(
                "endpointSelector: {{}}, egressDeny: [{{toEndpoints: [{{matchLabels: {{app: api}}}}], {denied}}}]"
            ),
        )],
        "deny by CiliumNetworkPolicy shop/p, egressDeny[0]",
    );
    // The virtual address opens nothing, by any kind of rule.
    holds(
        &[np(
            "p",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.80/32}}, {ipBlock: {cidr: 172.20.0.0/16}}]}]",
        )],
        "deny",
    );
    holds(
        &[cnp(
            "p",
            "endpointSelector: {}, egress: [{toEntities: [world]}, {toCIDR: [203.0.113.80/32, 172.20.0.0/16]}]",
        )],
        "deny",
    );
    // One backend that may be reached is enough for the gate; where the backend is seen, the same policy is asked again.
    holds(
        &[np(
            "p",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {track: canary}}}]}]",
        )],
        "defer by the Service's backends decide",
    );
    holds(
        &[np(
            "p",
            "podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}]",
        )],
        "deny",
    );
}

/// GHSA-c6pf-2v8j-96mc: `fromNodes` and `toNodes` matched pods that have the labels of the nodes.
#[test]
fn cve_2025_30163_rules_for_nodes_are_not_for_pods_with_the_same_labels() {
    for labels in ["{app: api}", "{}"] {
        let world = World::new(&cnp(
            "p",
            &format!(
                "endpointSelector: {{matchLabels: {{app: web}}}}, ingress: [{{fromNodes: [{{matchLabels: {labels}}}]}}], egress: [{{toNodes: [{{matchLabels: {labels}}}]}}]"
            ),
        ));
        world.holds(
            "shop/web-0 < 10.9.0.2 TCP/80 allow
             shop/web-0 > 10.9.0.2 TCP/80 allow
             shop/web-0 < shop/api-0|shop/api-1|other/api-0|203.0.113.1 TCP/80 deny
             shop/web-0 > shop/api-0|shop/api-1|other/api-0|203.0.113.1 TCP/80 deny",
        );
    }
}

/// A group of peers that resolves to nothing was left out of the rule, and what was left allowed everyone.
#[test]
fn cve_2025_64715_what_resolves_to_nothing_is_nobody() {
    let nobody = [
        ("egress", "toGroups: [{aws: {securityGroupsIds: [sg-0]}}]"),
        ("egress", "toGroups: []"),
        ("egress", "toCIDRSet: [{cidrGroupRef: nowhere}]"),
        ("egress", "toCIDRSet: [{cidrGroupSelector: {matchLabels: {no: one}}}]"),
        ("egress", "toCIDRSet: []"),
        ("egress", "toServices: [{k8sService: {serviceName: nowhere}}]"),
        ("egress", "toServices: [{k8sServiceSelector: {selector: {matchLabels: {no: one}}}}]"),
        ("egress", "toServices: []"),
        ("egress", "toFQDNs: [{matchName: nowhere.example.com}]"),
        ("egress", "toFQDNs: []"),
        ("egress", "toEndpoints: []"),
        ("egress", "toEntities: []"),
        ("egress", "toNodes: []"),
        ("egress", "toCIDR: []"),
        ("ingress", "fromGroups: [{aws: {securityGroupsIds: [sg-0]}}]"),
        ("ingress", "fromGroups: []"),
        ("ingress", "fromCIDRSet: [{cidrGroupRef: nowhere}]"),
        ("ingress", "fromEndpoints: []"),
        ("ingress", "fromEntities: []"),
        ("ingress", "fromNodes: []"),
        ("ingress", "fromCIDR: []"),
    ];
    for (direction, peers) in nobody {
        for ports in ["", ", toPorts: [{ports: [{port: '80', protocol: TCP}]}]"] {
            let world = World::new(&cnp("p", &format!("endpointSelector: {{}}, {direction}: [{{{peers}{ports}}}]")));
            let arrow = if direction == "egress" { ">" } else { "<" };
            world.holds(&format!(
                "shop/web-0 {arrow} shop/api-0|other/api-0|203.0.113.1|10.9.0.2|2001:db8::1 TCP/80 deny by CiliumNetworkPolicy shop/p isolates the pod, and no rule allows this"
            ));
            // A deny of nobody denies nobody.
            if peers.starts_with("toFQDNs") {
                continue;
            }
            let deny = cnp(
                "p",
                &format!(
                    "endpointSelector: {{}}, enableDefaultDeny: {{{direction}: false}}, {direction}Deny: [{{{peers}{ports}}}]"
                ),
            );
            World::new(&deny)
                .holds(&format!("shop/web-0 {arrow} shop/api-0|203.0.113.1 TCP/80 allow by no policy decides"));
        }
    }
}

/// GHSA-hxv8-4j4r-cqgv: ingress policy was skipped where a pod dialled a Service with HTTP rules and a backend on its node.
/// What the gate of the client says is no word about the backend's gate, which sees the client itself.
#[test]
fn cve_2026_33726_the_backends_own_gate_is_asked_whatever_the_clients_says() {
    let world = World::new(
        &[
            cnp("client", &format!("endpointSelector: {{matchLabels: {{app: web}}}}, egress: [{{toEndpoints: [{{matchLabels: {{app: api}}}}], {HTTP_GET_A}}}]")),
            cnp("server", "endpointSelector: {matchLabels: {app: api}}, ingress: [{fromEndpoints: [{matchLabels: {role: admin}}]}]"),
        ]
        .concat(),
    );
    world.holds(
        "shop/web-0|shop/web-1 > 172.20.0.10 TCP/80 redirect else deny
         shop/web-0|shop/web-1 > shop/api-0 TCP/8080 redirect else deny
         shop/api-0 < shop/web-0 TCP/8080 deny by CiliumNetworkPolicy shop/server isolates the pod, and no rule allows this
         shop/api-0 < shop/web-1 TCP/8080 allow by CiliumNetworkPolicy shop/server, ingress[0]",
    );
}

/// GHSA-fm8w-2m5w-9j7r: an `ipBlock` alone gained a selector of every pod.
#[test]
fn cve_2026_56743_an_ip_block_is_its_addresses_and_no_pods() {
    let world = World::new(&np(
        "p",
        "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]",
    ));
    world.holds(
        "shop/web-0 < 203.0.113.1 TCP/80 allow by NetworkPolicy shop/p, ingress[0]
         shop/web-0 > 203.0.113.1 TCP/80 allow by NetworkPolicy shop/p, egress[0]
         shop/web-0 < shop/api-0|other/api-0|203.0.114.0|10.9.0.2|2001:db8::1 TCP/80 deny
         shop/web-0 > shop/api-0|other/api-0|203.0.114.0|10.9.0.2|2001:db8::1 TCP/80 deny",
    );
}

/// An echo passed an ingress deny because egress to the same peer was allowed.
#[test]
fn ghsa_c66w_hq56_4q97_an_echo_is_judged_in_its_own_direction() {
    for ingress in [
        "ingressDeny: [{fromEntities: [all]}]",
        "ingressDeny: [{fromEndpoints: [{matchLabels: {app: api}}], icmps: [{fields: [{family: IPv4, type: EchoRequest}]}]}]",
        "ingress: [{}]",
    ] {
        let world = World::new(&cnp(
            "p",
            &format!("endpointSelector: {{matchLabels: {{app: web}}}}, {ingress}, egress: [{{toEntities: [all]}}]"),
        ));
        world.holds(
            "shop/web-0 > shop/api-0 ICMP/8|TCP/80 allow by CiliumNetworkPolicy shop/p, egress[0]
             shop/web-0 < shop/api-0 ICMP/8 deny",
        );
    }
}

/// CVE-2019-9901, CVE-2021-29492, CVE-2021-32779: the path that was matched was not the path that the server saw.
#[test]
fn envoy_cve_2019_9901_cve_2021_29492_cve_2021_32779_one_reading_of_a_path() {
    let world = World::new(&cnp(
        "p",
        "endpointSelector: {matchLabels: {app: api}}, ingress: [{toPorts: [{ports: [{port: '8080', protocol: TCP}], rules: {http: [{path: '/public/.*'}, {path: '/admin', host: 'a[.]b'}]}}]}]",
    ));
    // No matter whether it is normalised or refused as having two readings: nothing but /public/ is ever reached.
    let query = world.query("shop/api-0", "<", "shop/web-0", "TCP/8080");
    for target in [
        "/public/../private",
        "/public/./../private",
        "/public/%2e%2e/private",
        "/public/%2E%2E/private",
        "/public/.%2e/private",
        "/public/..%2fprivate",
        "/public/..%2Fprivate",
        "/public/..%5cprivate",
        "/public\\..\\private",
        "/public/..\\private",
        "/public/%2e%2e%2fprivate",
        "/public/a/../../private",
        "//public/../private",
        "/private#/public/",
        "/private?/public/",
        "/private;/public/",
        "/private%23/public/",
        "/private%3f/public/",
        "/Public/a",
        "/public",
    ] {
        let becomes = world.request(&query, "GET", "api", target);
        assert!(matches!(becomes, "refuse" | "bad"), "{target}: {becomes}");
    }
    world.holds(
        "shop/api-0 < shop/web-0 TCP/8080 GET api /public/a pass
         shop/api-0 < shop/web-0 TCP/8080 GET api /private/../public/a pass
         shop/api-0 < shop/web-0 TCP/8080 GET api /public/a?b=/../../c pass
         shop/api-0 < shop/web-0 TCP/8080 GET a.b /admin pass
         shop/api-0 < shop/web-0 TCP/8080 GET axb /admin refuse",
    );
}
