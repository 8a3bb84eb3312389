//! What the specifications say, row by row. NetworkPolicy and ClusterNetworkPolicy have their vectors besides
//! (`tests/policy/vectors.rs`); here is what no vector of theirs has: Cilium's rules, and what DESIGN decides.

use super::{judge, judge_request};
use crate::cluster::{Cluster, Event, PodKey};
use crate::flow::{Direction, Judgement, Origin, Outcome, Protocol, Query, Reason, Verdict};
use crate::l7::Message;
use crate::l7::dns::Name;
use crate::model::AUDIT_ANNOTATION;
use crate::settings::Settings;
use crate::{manifest, parse};

/// Two namespaces, two nodes, five pods on n1, a Service, the API server, an address outside.
const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b, labels: {team: blue}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {app: cli}},
 status: {addresses: [{type: InternalIP, address: 10.0.1.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {zone: far}},
 status: {addresses: [{type: InternalIP, address: 10.0.1.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: web, labels: {app: web}},
 spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]},
 status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: cli, labels: {app: cli}},
 spec: {nodeName: n1, serviceAccountName: builder, containers: [{name: c}]},
 status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: b, name: cli, labels: {app: cli, io.kubernetes.pod.namespace: a}},
 spec: {nodeName: n1, containers: [{name: c}]}, status: {phase: Running, podIPs: [{ip: 10.0.0.3}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: b, name: web, labels: {app: web}},
 spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]},
 status: {phase: Running, podIPs: [{ip: 10.0.0.4}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: host, labels: {app: cli}},
 spec: {nodeName: n1, hostNetwork: true, containers: [{name: c}]}, status: {phase: Running, podIPs: [{ip: 10.0.1.1}]}}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: web},
 spec: {clusterIPs: [10.96.0.1], ports: [{port: 8000, targetPort: 80, nodePort: 30080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {namespace: a, name: web-1, labels: {kubernetes.io/service-name: web}},
 ports: [{name: "", port: 80, protocol: TCP}],
 endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.0.9], conditions: {ready: false}}]}
---
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: empty},
 spec: {clusterIPs: [10.96.0.2], ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
 metadata: {namespace: default, name: kubernetes, labels: {kubernetes.io/service-name: kubernetes}},
 ports: [{name: https, port: 443, protocol: TCP}], endpoints: [{addresses: [198.51.100.9]}]}
"#;

fn add(cluster: &mut Cluster, text: &str) {
    for document in manifest::documents(text).unwrap() {
        let parsed = parse::object(&document);
        let object = parsed.object.unwrap_or_else(|| panic!("{document}: {:?}", parsed.issues));
        cluster.apply(Event::Upsert(object));
    }
}

fn with(policies: &str) -> Cluster {
    let mut cluster = Cluster::default();
    add(&mut cluster, CLUSTER);
    add(&mut cluster, policies);
    cluster
}

fn settings() -> Settings {
    Settings { node: Some("n1".into()), ..Settings::default() }
}

/// `in a/web 10.0.0.2 80/TCP`; `node` or `hairpin` at its end is the packet's origin.
fn query(text: &str) -> Query {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (namespace, name) = words[1].split_once('/').unwrap();
    let (port, protocol) = words[3].split_once('/').unwrap();
    Query {
        subject: PodKey { namespace: namespace.into(), name: name.into() },
        direction: if words[0] == "in" { Direction::Ingress } else { Direction::Egress },
        peer: words[2].parse().unwrap(),
        protocol: match protocol {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "ICMP" => Protocol::ICMP,
            _ => Protocol::ICMPV6,
        },
        port: port.parse().unwrap(),
        origin: match words.get(4) {
            None => Origin::Forwarded,
            Some(&"node") => Origin::OwnNode,
            Some(_) => Origin::Hairpin,
        },
    }
}

/// Judges each flow; what is expected is the verdict, or the verdict and the reason.
fn table(cluster: &Cluster, rows: &[(&str, &str)]) {
    for (flow, expected) in rows {
        let Judgement { verdict, reason, .. } = judge(cluster, &settings(), &query(flow));
        let found = format!("{}, {reason}", verdict.as_str());
        assert!(found == *expected || verdict.as_str() == *expected, "{flow}: {found}, not {expected}");
    }
}

fn cnp(spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{namespace: a, name: p}}, spec: {spec}}}\n"
    )
}

fn ccnp(spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: cilium.io/v2, kind: CiliumClusterwideNetworkPolicy, metadata: {{name: p}}, spec: {spec}}}\n"
    )
}

fn np(name: &str, spec: &str) -> String {
    format!(
        "\n---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{namespace: a, name: {name}}}, spec: {spec}}}\n"
    )
}

fn kcnp(name: &str, tier: &str, priority: u16, rules: &str) -> String {
    format!(
        "\n---\n{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
         spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{matchLabels: {{team: red}}}}}}, {rules}}}}}\n"
    )
}

/// DESIGN 6: whose gate, own address, own node.
#[test]
fn what_no_policy_is_asked_about() {
    let cluster = with(&np("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"));
    table(
        &cluster,
        &[
            // Only managed pods of this node have a gate here (6.9).
            ("in a/host 10.0.0.2 80/TCP", "allow, the pod is not known"),
            ("in a/nobody 10.0.0.2 80/TCP", "allow, the pod is not known"),
            // "Pods cannot block access to themselves" (6.11), by the other family too.
            ("out a/web 10.0.0.1 80/TCP", "allow, a pod may always reach itself"),
            ("in a/web fd00::1 0/ICMPv6", "allow, a pod may always reach itself"),
            ("out a/web ::ffff:10.0.0.1 80/TCP", "allow, a pod may always reach itself"),
            // Through its Service: never denied by NetworkPolicy (6.11).
            (
                "in a/web 10.0.0.1 80/TCP hairpin",
                "allow, NetworkPolicy a/deny isolates the pod, and no rule allows this",
            ),
            // The own node may always (6.3), SNATed sources and other nodes may not.
            ("in a/web 10.0.1.1 80/TCP node", "allow, the pod's own node may always reach it"),
            ("in a/web 10.0.1.1 80/TCP", "deny"),
            ("in a/web 10.0.1.2 80/TCP", "deny"),
            ("out a/web 10.0.1.1 80/TCP", "deny"),
            ("in b/web 10.0.0.1 80/TCP", "allow, no policy decides"),
        ],
    );
}

/// DESIGN 6.3: only an explicit cilium.io deny of `host` overrides, on its ports.
#[test]
fn the_own_node_is_denied_by_name_only() {
    let rows =
        |denied: &'static str| [("in a/web 10.0.1.1 80/TCP node", denied), ("in a/web 10.0.1.1 81/TCP node", "allow")];
    let ports = "toPorts: [{ports: [{port: \"80\", protocol: TCP}]}]";
    let deny = |peers: &str| with(&cnp(&format!("{{endpointSelector: {{}}, ingressDeny: [{{{peers}, {ports}}}]}}")));
    let by_rule = "deny, CiliumNetworkPolicy a/p, ingressDeny[0]";
    table(&deny("fromEntities: [host]"), &rows(by_rule));
    table(&deny("fromEntities: [world, host]"), &rows(by_rule));
    table(&deny("fromEndpoints: [{matchExpressions: [{key: \"reserved:host\", operator: Exists}]}]"), &rows(by_rule));
    table(&deny("fromEntities: [all]"), &rows("allow"));
    table(&deny("fromEntities: [cluster]"), &rows("allow"));
    table(&deny("fromNodes: [{}]"), &rows("allow"));
    table(&with(&kcnp("p", "Admin", 1, "ingress: [{action: Deny, from: [{namespaces: {}}]}]")), &rows("allow"));
    // One that cannot be used denies everyone else.
    let unusable = with(&cnp("{endpointSelector: {}, ingressDeny: [{fromEntities: [host], novel: 1}]}"));
    table(&unusable, &[("in a/web 10.0.1.1 80/TCP node", "allow"), ("in a/web 192.0.2.1 80/TCP", "deny")]);
}

/// reference/cilium.md 2.2: nil is not empty.
#[test]
fn missing_and_empty_peers() {
    let rows = |pod: &'static str, world: &'static str| {
        [("in a/web 10.0.0.2 80/TCP", pod), ("in a/web 192.0.2.1 80/TCP", world)]
    };
    let allow = |element: &str| with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{element}]}}")));
    table(&allow("{}"), &rows("deny, CiliumNetworkPolicy a/p isolates the pod, and no rule allows this", "deny"));
    table(&allow("{fromEndpoints: []}"), &rows("deny", "deny"));
    table(&allow("{toPorts: [{ports: [{port: \"80\"}]}]}"), &rows("allow", "allow"));
    table(&allow("{fromEndpoints: [{}]}"), &rows("allow", "deny"));
    // CVE-2025-64715: groups that resolve to nothing are nobody.
    table(&allow("{fromCIDRSet: [{cidrGroupRef: gone}]}"), &rows("deny", "deny"));
    // Every endpoint of the policy's namespace, not of others (2.2), whatever they call themselves (CVE-2023-39347).
    table(&allow("{fromEndpoints: [{}]}"), &[("in a/web 10.0.0.3 80/TCP", "deny")]);
}

/// reference/cilium.md 2.3, 2.4: what a selector sees of a peer.
#[test]
fn labels_of_a_peer() {
    let rows = |a: &'static str, b: &'static str, node: &'static str, world: &'static str| {
        [
            ("in a/web 10.0.0.2 80/TCP", a),
            ("in a/web 10.0.0.3 80/TCP", b),
            ("in a/web 10.0.1.2 80/TCP", node),
            ("in a/web 192.0.2.1 80/TCP", world),
        ]
    };
    let from =
        |selector: &str| with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{{fromEndpoints: [{selector}]}}]}}")));
    let (yes, no) = ("allow", "deny");
    table(&from("{matchLabels: {app: cli}}"), &rows(yes, no, no, no));
    table(&from("{matchLabels: {\"k8s:app\": cli, \"k8s:io.kubernetes.pod.namespace\": b}}"), &rows(no, yes, no, no));
    table(&from("{matchLabels: {io.cilium.k8s.namespace.labels.team: blue}}"), &rows(no, yes, no, no));
    table(&from("{matchLabels: {io.cilium.k8s.policy.serviceaccount: builder}}"), &rows(yes, no, no, no));
    table(&from("{matchLabels: {\"container:app\": cli}}"), &rows(no, no, no, no));
    table(&from("{matchLabels: {\"reserved:remote-node\": \"\"}}"), &rows(no, no, yes, no));
    table(&from("{matchLabels: {\"reserved:world\": \"\"}}"), &rows(no, no, no, yes));
    let clusterwide = ccnp("{endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{}]}]}");
    table(&with(&clusterwide), &rows(yes, yes, no, no));
    let nodes =
        |selector: &str| with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{{fromNodes: [{selector}]}}]}}")));
    // CVE-2025-30163: never pods with the same labels.
    table(&nodes("{matchLabels: {app: cli}}"), &rows(no, no, no, no));
    table(&nodes("{matchLabels: {zone: far}}"), &rows(no, no, yes, no));
}

/// reference/cilium.md 2.4, DESIGN 6.2: entities and CIDRs.
#[test]
fn entities_and_blocks() {
    // A pod, the own node, another node, outside, the API server (which is outside too), IPv6 outside.
    let rows = |expected: [bool; 6]| {
        let peers = ["10.0.0.4", "10.0.1.1", "10.0.1.2", "192.0.2.1", "198.51.100.9", "2001:db8::1"];
        peers.into_iter().zip(expected).map(|(peer, allowed)| (format!("out a/web {peer} 80/TCP"), allowed))
    };
    let check = |element: &str, expected: [bool; 6]| {
        let cluster = with(&cnp(&format!("{{endpointSelector: {{}}, egress: [{{{element}}}]}}")));
        for (flow, allowed) in rows(expected) {
            table(&cluster, &[(&flow, if allowed { "allow" } else { "deny" })]);
        }
    };
    let (y, n) = (true, false);
    check("toEntities: [all]", [y, y, y, y, y, y]);
    check("toEntities: [world]", [n, n, n, y, y, y]);
    check("toEntities: [world-ipv4]", [n, n, n, y, y, n]);
    check("toEntities: [world-ipv6]", [n, n, n, n, n, y]);
    check("toEntities: [cluster]", [y, y, y, n, y, n]);
    check("toEntities: [host]", [n, y, n, n, n, n]);
    check("toEntities: [remote-node]", [n, n, y, n, n, n]);
    check("toEntities: [kube-apiserver]", [n, n, n, n, y, n]);
    check("toEntities: [init, ingress, unmanaged, health, none]", [n, n, n, n, n, n]);
    // CIDRs never match pods or nodes (#9209) unless a setting says so.
    check("toCIDR: [0.0.0.0/0]", [n, n, n, y, y, n]);
    check("toCIDRSet: [{cidr: 192.0.2.0/24, except: [192.0.2.0/31]}]", [n, n, n, n, n, n]);
    let cluster = with(&cnp("{endpointSelector: {}, egress: [{toCIDR: [10.0.0.0/8]}]}"));
    let matching = Settings { cilium_cidrs_match_managed: true, ..settings() };
    assert_eq!(judge(&cluster, &matching, &query("out a/web 10.0.0.4 80/TCP")).verdict, Verdict::Allow);
    // ipBlock matches pods (DESIGN 6.2).
    let block = np("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.4/30}}]}]}");
    table(&with(&block), &[("out a/web 10.0.0.4 80/TCP", "allow"), ("out a/web 10.0.0.3 80/TCP", "deny")]);
}

/// reference/cilium.md 2.5, 2.6: default deny, and deny before everything.
#[test]
fn default_deny_and_precedence() {
    let in_ = [("in a/web 10.0.0.2 80/TCP", "allow"), ("in a/web 192.0.2.1 80/TCP", "allow")];
    // A deny alone puts its subjects under default deny; `enableDefaultDeny: false` does not.
    let deny = "ingressDeny: [{fromCIDR: [203.0.113.0/24]}]";
    let rows =
        [("in a/web 192.0.2.1 80/TCP", "deny, CiliumNetworkPolicy a/p isolates the pod, and no rule allows this")];
    table(&with(&cnp(&format!("{{endpointSelector: {{}}, {deny}}}"))), &rows);
    let open = with(&cnp(&format!("{{endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, {deny}}}")));
    table(&open, &in_);
    table(&open, &[("in a/web 203.0.113.1 80/TCP", "deny, CiliumNetworkPolicy a/p, ingressDeny[0]")]);
    // DESIGN 6.7: also without rules in that direction.
    let bare = cnp("{endpointSelector: {}, enableDefaultDeny: {ingress: true}, egress: [{toEntities: [all]}]}");
    table(&with(&bare), &[("in a/web 10.0.0.2 80/TCP", "deny"), ("out a/web 10.0.0.2 80/TCP", "allow")]);
    // "CIDR specificity never beats deny"; CVE-2024-47825: nor does an allow of everyone.
    let specific =
        "ingress: [{fromCIDR: [192.0.2.3/32]}, {fromEntities: [all]}], ingressDeny: [{fromCIDR: [192.0.2.0/24]}]";
    let rows = [("in a/web 192.0.2.3 80/TCP", "deny"), ("in a/web 198.51.100.1 80/TCP", "allow")];
    table(&with(&cnp(&format!("{{endpointSelector: {{}}, {specific}}}"))), &rows);
    table(
        &with(&cnp(&format!("{{endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, {specific}}}"))),
        &rows,
    );
    // A deny of cilium.io beats the allow of a NetworkPolicy.
    let both = cnp("{endpointSelector: {}, ingressDeny: [{fromEndpoints: [{}]}]}")
        + &np("all", "{podSelector: {}, ingress: [{}]}");
    table(&with(&both), &[("in a/web 10.0.0.2 80/TCP", "deny"), ("in a/web 192.0.2.1 80/TCP", "allow")]);
    // GHSA-c66w-hq56-4q97: ICMP of one direction is not allowed by the other.
    let icmp = cnp(
        "{endpointSelector: {}, ingressDeny: [{fromEntities: [all]}], egress: [{icmps: [{fields: [{family: IPv4, type: 8}]}]}]}",
    );
    let rows = [
        ("in a/web 10.0.0.2 8/ICMP", "deny"),
        ("out a/web 10.0.0.2 8/ICMP", "allow"),
        ("out a/web 10.0.0.2 0/ICMP", "deny"),
    ];
    table(&with(&icmp), &rows);
}

/// DESIGN 6.1, 6.7; reference/netpol.md 2.1: tiers.
#[test]
fn tiers() {
    let rule = |action: &str| {
        format!("ingress: [{{action: {action}, from: [{{namespaces: {{matchLabels: {{team: red}}}}}}]}}]")
    };
    let flow = "in a/web 10.0.0.2 80/TCP";
    let deny = np("deny", "{podSelector: {}}");
    let admin = |name: &str, priority, action: &str| kcnp(name, "Admin", priority, &rule(action));
    let baseline = |action: &str| kcnp("base", "Baseline", 1, &rule(action));
    let rows: [(String, &str); 9] = [
        (admin("p", 5, "Accept") + &deny, "allow, ClusterNetworkPolicy p, ingress[0]"),
        (admin("p", 5, "Pass") + &deny, "deny, NetworkPolicy a/deny isolates the pod, and no rule allows this"),
        // Pass skips the rest of its tier.
        (admin("p", 5, "Pass") + &admin("q", 6, "Deny"), "allow, no policy decides"),
        (admin("q", 4, "Deny") + &admin("p", 5, "Accept"), "deny, ClusterNetworkPolicy q, ingress[0]"),
        // Ties: Deny, Pass, Accept, then the name.
        (admin("p", 5, "Accept") + &admin("q", 5, "Deny"), "deny, ClusterNetworkPolicy q, ingress[0]"),
        (
            admin("p", 5, "Accept") + &admin("q", 5, "Pass") + &deny,
            "deny, NetworkPolicy a/deny isolates the pod, and no rule allows this",
        ),
        // Baseline is for what nothing before it decided.
        (baseline("Deny"), "deny, ClusterNetworkPolicy base, ingress[0]"),
        (baseline("Deny") + &np("all", "{podSelector: {}, ingress: [{}]}"), "allow, NetworkPolicy a/all, ingress[0]"),
        (baseline("Pass"), "allow, no policy decides"),
    ];
    for (policies, expected) in rows {
        table(&with(&policies), &[(flow, expected)]);
    }
    // Fail closed: what cannot be used grants nothing, or denies everyone.
    let unknown =
        |action: &str| kcnp("p", "Admin", 1, &format!("ingress: [{{action: {action}, from: [{{novel: {{}}}}]}}]"));
    table(&with(&unknown("Accept")), &[("in a/web 192.0.2.1 80/TCP", "allow, no policy decides")]);
    for action in ["Deny", "Pass"] {
        table(&with(&unknown(action)), &[("in a/web 192.0.2.1 80/TCP", "deny, ClusterNetworkPolicy p, ingress[0]")]);
    }
    // A pod to itself through its Service is judged by ClusterNetworkPolicy (July 2026; DESIGN 6.11).
    table(
        &with(&admin("p", 1, "Deny")),
        &[("in a/web 10.0.0.1 80/TCP hairpin", "deny"), ("in a/web 10.0.0.1 80/TCP", "allow")],
    );
}

/// DESIGN 6.8, 7: a Service is judged by its backends; the port is theirs.
#[test]
fn services() {
    let to_web = |port: u16| {
        np(
            "p",
            &format!(
                "{{podSelector: {{matchLabels: {{app: cli}}}}, policyTypes: [Egress], \
            egress: [{{to: [{{podSelector: {{matchLabels: {{app: web}}}}}}], ports: [{{port: {port}}}]}}]}}"
            ),
        )
    };
    let allowed = [
        ("out a/cli 10.96.0.1 8000/TCP", "defer, the Service's backends decide"),
        ("out a/cli 10.0.1.1 30080/TCP", "defer"),
        ("out a/cli 10.0.0.1 80/TCP", "allow"),
        // Not what the service proxy translates.
        ("out a/cli 10.96.0.1 8001/TCP", "deny"),
        ("out a/cli 10.96.0.1 8000/UDP", "deny"),
        // Without backends: the service proxy refuses.
        ("out a/cli 10.96.0.2 80/TCP", "defer"),
    ];
    table(&with(&to_web(80)), &allowed);
    let denied = "deny, NetworkPolicy a/p isolates the pod, and no rule allows this";
    table(&with(&to_web(8000)), &[("out a/cli 10.96.0.1 8000/TCP", denied), ("out a/cli 10.0.1.1 30080/TCP", denied)]);
    // The backend is the pod itself: NetworkPolicy does not deny it.
    let all = np("p", "{podSelector: {}, policyTypes: [Egress]}");
    table(&with(&all), &[("out a/web 10.96.0.1 8000/TCP", "defer"), ("out a/cli 10.96.0.1 8000/TCP", denied)]);
    let to_service = cnp("{endpointSelector: {}, egress: [{toServices: [{k8sService: {serviceName: web}}]}]}");
    table(&with(&to_service), &[("out a/cli 10.0.0.1 1/UDP", "allow"), ("out a/cli 10.0.0.9 80/TCP", "deny")]);
}

/// A named port is the subject's on ingress, and each destination's on egress (NetworkPolicyPort).
#[test]
fn named_ports() {
    let ports = "ports: [{port: http}]";
    let policy =
        format!("{{podSelector: {{}}, policyTypes: [Ingress, Egress], ingress: [{{{ports}}}], egress: [{{{ports}}}]}}");
    table(
        &with(&np("p", &policy)),
        &[
            ("in a/web 10.0.0.4 80/TCP", "allow"),
            ("in a/web 10.0.0.4 8080/TCP", "deny"),
            ("in a/web 10.0.0.4 80/UDP", "deny"),
            ("in a/cli 10.0.0.4 80/TCP", "deny"),
            ("out a/cli 10.0.0.1 80/TCP", "allow"),
            ("out a/cli 10.0.0.4 8080/TCP", "allow"),
            ("out a/cli 10.0.0.4 80/TCP", "deny"),
            ("out a/cli 192.0.2.1 80/TCP", "deny"),
        ],
    );
}

/// Names: learned, of nobody in the cluster, until they end (reference 2.9, NPEP-133).
#[test]
fn names() {
    let mut cluster = with(&cnp("{endpointSelector: {}, egress: [{toFQDNs: [{matchPattern: \"*.example.com\"}]}]}"));
    let rows =
        |expected: &'static str| [("out a/web 192.0.2.1 80/TCP", expected), ("out a/web 10.0.0.4 80/TCP", "deny")];
    table(&cluster, &rows("deny"));
    let addresses = vec!["192.0.2.1".parse().unwrap(), "10.0.0.4".parse().unwrap()];
    let name = Name::new("www.example.com").unwrap();
    cluster.apply(Event::Resolved { name, addresses, until: Some(10) });
    table(&cluster, &rows("allow"));
    cluster.apply(Event::Time(10));
    table(&cluster, &rows("deny"));
}

fn redirect(cluster: &Cluster, flow: &str) -> Outcome {
    match judge(cluster, &settings(), &query(flow)).verdict {
        Verdict::Redirect(proxied) => proxied.otherwise,
        verdict => panic!("{flow}: {verdict:?}"),
    }
}

/// reference/cilium.md 2.7: application rules.
#[test]
fn application_rules() {
    let ports = |ports: &str, rules: &str| format!("toPorts: [{{ports: [{ports}], {rules}}}]");
    let http = ports("{port: \"80\", protocol: TCP}", "rules: {http: [{method: GET}]}");
    let of_cli = "fromEndpoints: [{matchLabels: {app: cli}}]";
    let flow = "in a/web 10.0.0.2 80/TCP";
    let only = with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{{{of_cli}, {http}}}]}}")));
    assert_eq!(redirect(&only, flow), Outcome::Deny(Reason::Isolated(only.policies.keys().next().unwrap().clone())));
    // Rule 3: another peer is denied, not proxied; rule 4: so is what is denied.
    table(&only, &[("in a/web 192.0.2.1 80/TCP", "deny"), ("in a/web 10.0.0.2 81/TCP", "deny")]);
    // Rules 1 and 2, DESIGN 6.6, CVE-2024-52529: an allow of the peer, whatever its range, lets every request pass; the
    // proxy sees them nonetheless.
    for wide in [
        of_cli.to_owned(),
        format!("{of_cli}, {}", ports("{port: \"1\", endPort: 1000, protocol: TCP}", "")).replace(", }", "}"),
    ] {
        let cluster = with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{{{of_cli}, {http}}}, {{{wide}}}]}}")));
        assert!(matches!(redirect(&cluster, flow), Outcome::Allow(Reason::Rule(_))), "{wide}");
    }
    // CVE-2023-30851: an allow of one peer does not open another's rules.
    let other = format!(
        "{{endpointSelector: {{}}, ingress: [{{{of_cli}, {http}}}, {{fromEndpoints: [{{matchLabels: {{app: web}}}}]}}]}}"
    );
    assert!(matches!(redirect(&with(&cnp(&other)), flow), Outcome::Deny(_)));
    let denied = format!("{{endpointSelector: {{}}, ingress: [{{{of_cli}, {http}}}], ingressDeny: [{{{of_cli}}}]}}");
    table(&with(&cnp(&denied)), &[(flow, "deny")]);
    // An empty list is no rule, a list with an empty rule is for all, and is proxied (2.2).
    let rules = |list: &str| {
        let ports = ports("{port: \"80\", protocol: TCP}", &format!("rules: {{http: {list}}}"));
        with(&cnp(&format!("{{endpointSelector: {{}}, ingress: [{{{of_cli}, {ports}}}]}}")))
    };
    table(&rules("[]"), &[(flow, "allow")]);
    table(&rules("[{}]"), &[(flow, "redirect")]);
    // Rule 7: two parsers on one port.
    let dns = ports("{port: \"80\", protocol: TCP}", "rules: {dns: [{matchPattern: \"*\"}]}");
    let web = ports("{port: \"80\", protocol: TCP}", "rules: {http: [{}]}");
    let mixed = format!("{{endpointSelector: {{}}, egress: [{{{dns}}}, {{{web}}}]}}");
    table(&with(&cnp(&mixed)), &[("out a/web 192.0.2.1 80/TCP", "deny")]);
}

/// Requests: a rule of the flow has it, or the flow would pass without those rules.
#[test]
fn requests() {
    let dns = "toPorts: [{ports: [{port: \"53\", protocol: UDP}], rules: {dns: [{matchPattern: \"*.example.com\"}]}}]";
    let strict = with(&cnp(&format!("{{endpointSelector: {{}}, egress: [{{toEntities: [cluster], {dns}}}]}}")));
    let ask = |cluster: &Cluster, flow: &str, name: &str| {
        let message = Message::Dns { name: Name::new(name).unwrap(), qtype: 1 };
        judge_request(cluster, &settings(), &query(flow), &message)
    };
    let flow = "out a/cli 10.0.0.4 53/UDP";
    assert!(matches!(ask(&strict, flow, "www.example.com"), Some(Outcome::Allow(Reason::Rule(_)))));
    assert!(matches!(ask(&strict, flow, "www.example.org"), Some(Outcome::Deny(Reason::Isolated(_)))));
    assert!(matches!(ask(&strict, "out a/cli 192.0.2.1 53/UDP", "www.example.com"), Some(Outcome::Deny(_))));
    assert_eq!(
        judge_request(&strict, &settings(), &query(flow), &Message::ServerName(Name::new("www.example.com").unwrap())),
        ask(&strict, flow, "www.example.org"),
    );
    // #38676, reference 2.5: `enableDefaultDeny: false` refuses no name.
    let open = with(&cnp(&format!(
        "{{endpointSelector: {{}}, enableDefaultDeny: {{egress: false}}, egress: [{{toEntities: [cluster], {dns}}}]}}"
    )));
    assert_eq!(ask(&open, flow, "www.example.org"), Some(Outcome::Allow(Reason::NoPolicy)));
    // What a Service stands for is asked about its backends.
    assert_eq!(ask(&strict, "out a/cli 10.96.0.2 80/TCP", "www.example.com"), None);
}

/// DESIGN 6.12: dry runs.
#[test]
fn audit() {
    let flow = query("in a/web 10.0.0.2 80/TCP");
    let dry = np("deny", "{podSelector: {}}")
        .replace("name: deny", &format!("name: deny, annotations: {{{AUDIT_ANNOTATION}: \"true\"}}"));
    let found = judge(&with(&dry), &settings(), &flow);
    assert_eq!((found.verdict, found.reason), (Verdict::Allow, Reason::NoPolicy));
    assert_eq!(found.audit.unwrap().verdict, Verdict::Deny);
    // Only what differs is told.
    assert_eq!(judge(&with(&dry), &settings(), &query("in b/web 10.0.0.2 80/TCP")).audit, None);
    let pod = CLUSTER.replace(
        "{namespace: a, name: web, labels: {app: web}}",
        &format!("{{namespace: a, name: web, annotations: {{{AUDIT_ANNOTATION}: \"true\"}}}}"),
    );
    let mut cluster = with(&np("deny", "{podSelector: {}}"));
    add(&mut cluster, &pod);
    let found = judge(&cluster, &settings(), &flow);
    assert_eq!((found.verdict, found.reason), (Verdict::Allow, Reason::NoPolicy));
    assert_eq!(found.audit.unwrap().verdict, Verdict::Deny);
}
