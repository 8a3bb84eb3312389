//! What users stumble over, as far as it is about meaning: each has a fixed answer here, and is told where it is a fault.

use std::fmt::Write as _;

use sluice_policy_core::settings::Settings;

use crate::world::{World, admin, ccnp, cnp, np};

const ISOLATED: &str = "deny by CiliumNetworkPolicy shop/p isolates the pod, and no rule allows this";

/// A policy that only denies is a default deny of its direction, unless it says that it is none.
#[test]
fn cilium_deny_only_isolates() {
    for (direction, arrow) in [("ingress", "<"), ("egress", ">")] {
        let field = if direction == "ingress" { "fromCIDR" } else { "toCIDR" };
        let policy = |more: &str| {
            cnp("p", &format!("endpointSelector: {{}}, {more}{direction}Deny: [{{{field}: [203.0.113.0/24]}}]"))
        };
        World::new(&policy("")).holds(&format!(
            "shop/web-0 {arrow} 203.0.113.1 TCP/80 deny by CiliumNetworkPolicy shop/p, {direction}Deny[0]
             shop/web-0 {arrow} shop/api-0|198.51.100.1 TCP/80 {ISOLATED}"
        ));
        World::new(&policy(&format!("enableDefaultDeny: {{{direction}: false}}, "))).holds(&format!(
            "shop/web-0 {arrow} 203.0.113.1 TCP/80 deny by CiliumNetworkPolicy shop/p, {direction}Deny[0]
             shop/web-0 {arrow} shop/api-0|198.51.100.1 TCP/80 allow by no policy decides"
        ));
        let other = if direction == "ingress" { ">" } else { "<" };
        World::new(&policy(""))
            .holds(&format!("shop/web-0 {other} 203.0.113.1|shop/api-0 TCP/80 allow by no policy decides"));
    }
}

/// `ingress: []` is refused by the API server and enforces nothing (39 policies were so for 101 days): it is told, loudly.
/// `ingress: [{}]` is the default deny.
#[test]
fn cilium_empty_list_of_rules() {
    World::faulty(&cnp("p", "endpointSelector: {}, ingress: []"), &["Refused spec"])
        .holds("shop/web-0 < shop/api-0 TCP/80 allow by no policy decides");
    World::new(&cnp("p", "endpointSelector: {}, ingress: [{}]")).holds(&format!(
        "shop/web-0 < shop/api-0|203.0.113.1 TCP/80 {ISOLATED}
         shop/web-0 > shop/api-0 TCP/80 allow by no policy decides"
    ));
    // enableDefaultDeny counts without rules of the direction, which Cilium passes over (DESIGN 6.7).
    World::new(&cnp("p", "endpointSelector: {}, enableDefaultDeny: {ingress: true}, egress: [{toEntities: [all]}]"))
        .holds(&format!("shop/web-0 < shop/api-0 TCP/80 {ISOLATED}\nshop/web-0 > shop/api-0 TCP/80 allow"));
}

/// "Not of this namespace" and "of none": what has no namespace, the world and nodes, is meant (Network Policies: both
/// operators hold for what lacks the key), of a deny above all; nothing is added to a peer that names the key (reference 2.3).
#[test]
fn cilium_peers_by_the_namespace_that_they_are_not_of() {
    type Write = fn(&str, &str) -> String;
    let outside = "203.0.113.1|10.9.0.2|2001:db8::1";
    let not_shop = "{key: 'k8s:io.kubernetes.pod.namespace', operator: NotIn, values: [shop]}";
    let none = "{key: io.kubernetes.pod.namespace, operator: DoesNotExist}";
    let not_blue = "{key: 'k8s:io.cilium.k8s.namespace.labels.team', operator: NotIn, values: [blue]}";
    // Of shop, of other, outside.
    let cases: [(Write, &str, [bool; 3]); 6] = [
        (cnp, not_shop, [false, true, true]),
        (cnp, none, [false, false, true]),
        (cnp, not_blue, [false, true, true]),
        (ccnp, not_shop, [false, true, true]),
        (ccnp, none, [false, false, true]),
        // Cilium adds "has a namespace" in a cluster-wide policy that names labels of namespaces only.
        (ccnp, not_blue, [false, true, false]),
    ];
    for (policy, peer, [shop, other, world]) in cases {
        let peers = format!("fromEndpoints: [{{matchExpressions: [{peer}]}}]");
        let lines = |meant: &str, others: &str| {
            let say = |is_meant| if is_meant { meant } else { others };
            format!(
                "shop/web-0 < shop/api-0 TCP/80 {}\nshop/web-0 < other/web-0 TCP/80 {}\nshop/web-0 < {outside} TCP/80 {}",
                say(shop),
                say(other),
                say(world)
            )
        };
        World::new(&policy("p", &format!("endpointSelector: {{}}, ingress: [{{{peers}}}]")))
            .holds(&lines("allow", "deny"));
        let deny = format!("endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, ingressDeny: [{{{peers}}}]");
        let world = World::new(&policy("p", &deny));
        world.holds(&lines("deny", "allow"));
        // Its own node is let in all the same: it is not named (DESIGN 6.3).
        world.holds("shop/web-0 <node 10.9.0.1 TCP/80 allow by the pod's own node may always reach it");
    }
    // A label of the pod alone: of the policy's namespace, or of any.
    let peers = "fromEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [api]}]}]";
    let cases: [(Write, &str); 2] = [(cnp, "deny"), (ccnp, "allow")];
    for (policy, other) in cases {
        World::new(&policy("p", &format!("endpointSelector: {{}}, ingress: [{{{peers}}}]"))).holds(&format!(
            "shop/web-0 < shop/web-1 TCP/80 allow\nshop/web-0 < other/web-0 TCP/80 {other}\nshop/web-0 < {outside} TCP/80 deny"
        ));
    }
}

/// A packet that the own node forwarded, with its address: nobody knows who sent it. It is of the world, and in no block of a
/// cilium.io rule but all of its family, which is another word for the world (DESIGN 6.3; reference 2.4).
#[test]
fn cilium_blocks_and_what_the_own_node_masqueraded() {
    let rules = |direction: &str, peers: &str| {
        let more = if direction == "ingress" { "" } else { "enableDefaultDeny: {ingress: false}, " };
        cnp("p", &format!("endpointSelector: {{}}, {more}{direction}: [{{{peers}}}]"))
    };
    for (peers, is_meant) in [
        ("fromCIDR: [10.9.0.0/16]", false),
        ("fromCIDR: [10.9.0.1/32, 10.0.0.0/8]", false),
        ("fromCIDRSet: [{cidr: 0.0.0.0/0, except: [192.0.2.0/24]}]", false),
        ("fromCIDR: ['::/0']", false),
        ("fromCIDR: [0.0.0.0/0]", true),
        ("fromEntities: [world]", true),
        ("fromEntities: [host]", false),
        ("fromNodes: [{}]", false),
    ] {
        let say = |yes: &str, no: &str| format!("shop/web-0 < 10.9.0.1 TCP/80 {}", if is_meant { yes } else { no });
        World::new(&rules("ingress", peers)).holds(&say("allow", "deny"));
        World::new(&rules("ingressDeny", peers)).holds(&say("deny", "allow"));
    }
    // A packet of the node itself is let in, and one to it is to the node.
    World::new(&rules("ingress", "fromCIDR: [10.9.0.0/16]"))
        .holds("shop/web-0 <node 10.9.0.1 TCP/80 allow by the pod's own node may always reach it");
    let settings = Settings { cilium_cidrs_match_managed: true, ..Settings::default() };
    World::with(&settings, &rules("ingress", "fromCIDR: [10.9.0.0/16]"), &[])
        .holds("shop/web-0 < 10.9.0.1 TCP/80 allow");
    // Blocks of NetworkPolicy and ClusterNetworkPolicy are about addresses, whoever has them (DESIGN 6.2).
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]"))
        .holds("shop/web-0 < 10.9.0.1 TCP/80 allow by NetworkPolicy shop/p, ingress[0]");
}

/// A Service without a namespace is one of any namespace, as in Cilium, in cluster-wide policies too.
#[test]
fn cilium_services_of_any_namespace() {
    for (service, allowed, denied) in
        [("serviceName: api", "allow", "deny"), ("serviceName: api, namespace: other", "deny", "allow")]
    {
        World::new(&ccnp(
            "p",
            &format!("endpointSelector: {{}}, egress: [{{toServices: [{{k8sService: {{{service}}}}}]}}]"),
        ))
        .holds(&format!("shop/web-0 > shop/api-0 TCP/1 {allowed}\nshop/web-0 > shop/web-1|203.0.113.1 TCP/1 deny"));
        let deny = format!(
            "endpointSelector: {{}}, enableDefaultDeny: {{egress: false}}, egressDeny: [{{toServices: [{{k8sService: {{{service}}}}}]}}]"
        );
        World::new(&ccnp("p", &deny))
            .holds(&format!("shop/web-0 > shop/api-0 TCP/1 {denied}\nshop/web-0 > shop/web-1|203.0.113.1 TCP/1 allow"));
    }
}

/// An address block: of NetworkPolicy and of cluster policies it matches pods, of cilium.io it does not (DESIGN 6.2).
#[test]
fn ip_blocks_and_pods() {
    let cilium = cnp("p", "endpointSelector: {}, egress: [{toCIDR: [10.9.0.0/16]}]");
    World::new(&cilium).holds(&format!(
        "shop/web-0 > shop/api-0|10.9.0.2|10.9.0.1 TCP/80 {ISOLATED}\nshop/web-0 > 10.9.9.9 TCP/80 allow"
    ));
    let settings = Settings { cilium_cidrs_match_managed: true, ..Settings::default() };
    World::with(&settings, &cilium, &[]).holds(
        "shop/web-0 > shop/api-0|10.9.0.2|10.9.0.1|10.9.9.9 TCP/80 allow by CiliumNetworkPolicy shop/p, egress[0]",
    );
    let network = np("p", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.9.0.0/16}}]}]");
    World::new(&network)
        .holds("shop/web-0 > shop/api-0|10.9.0.2|10.9.0.1|10.9.9.9 TCP/80 allow by NetworkPolicy shop/p, egress[0]");
    let cluster = admin("p", 5, "subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.9.0.0/16]}]}]");
    World::new(&cluster).holds(
        "shop/web-0 > shop/api-0|10.9.0.2|10.9.0.1|10.9.9.9 TCP/80|ICMP/8 deny by ClusterNetworkPolicy p, egress[0]",
    );
}

/// One expression that does not compile took every policy of the pod with it (41314). Here it takes itself: the other
/// expressions of its list, the other rules, and the other policies are in force.
#[test]
fn cilium_41314_one_bad_expression() {
    let bomb = "(a{1,1000}){1,1000}";
    for bad in ["(", "a{1,1000000}", bomb, "(?=a)", "\\\\1", "[z-a]"] {
        let policy = |http: &str| {
            cnp("p", &format!(
                "endpointSelector: {{matchLabels: {{app: api}}}}, ingress: [
                 {{fromEndpoints: [{{}}], toPorts: [{{ports: [{{port: '8080', protocol: TCP}}], rules: {{http: [{http}]}}}}]}},
                 {{fromEntities: [world]}}]"
            ))
        };
        let plain = np("q", "podSelector: {}, ingress: [{ports: [{port: 9090}]}]");
        let some = [policy(&format!("{{path: \"{bad}\"}}, {{path: '/ok'}}")), plain.clone()].concat();
        World::faulty(&some, &["Unusable spec.ingress[0].toPorts[0].rules.http[0].path"]).holds(
            "shop/api-0 < shop/web-0 TCP/8080 redirect else deny
             shop/api-0 < shop/web-0 TCP/8080 GET api /ok pass
             shop/api-0 < shop/web-0 TCP/8080 GET api /aa refuse
             shop/api-0 < 203.0.113.1 TCP/8080 allow by CiliumNetworkPolicy shop/p, ingress[1]
             shop/api-0 < shop/web-0 TCP/9090 allow by NetworkPolicy shop/q, ingress[0]",
        );
        // With none left, the rule allows nothing: neither unproxied nor every request.
        let none = [policy(&format!("{{path: \"{bad}\"}}")), plain].concat();
        World::faulty(&none, &["Unusable spec.ingress[0].toPorts[0].rules.http[0].path"]).holds(
            "shop/api-0 < shop/web-0 TCP/8080 deny
             shop/api-0 < 203.0.113.1 TCP/8080 allow by CiliumNetworkPolicy shop/p, ingress[1]
             shop/api-0 < shop/web-0 TCP/9090 allow by NetworkPolicy shop/q, ingress[0]",
        );
    }
}

/// A range that is none refused the whole update. Here it takes its rule; a deny with it denies its whole direction.
#[test]
fn cilium_one_bad_range() {
    let ports = "toPorts: [{ports: [{port: '90', endPort: 80, protocol: TCP}]}]";
    World::faulty(
        &cnp("p", &format!("endpointSelector: {{}}, ingress: [{{{ports}}}, {{fromEndpoints: [{{matchLabels: {{app: api}}}}]}}]")),
        &["Unusable spec.ingress[0].toPorts[0].ports[0].endPort"],
    )
    .holds(&format!("shop/web-0 < shop/api-0 TCP/80 allow by CiliumNetworkPolicy shop/p, ingress[1]\nshop/web-0 < shop/web-1 TCP/80|TCP/90|TCP/85 {ISOLATED}"));
    World::faulty(
        &cnp("p", &format!("endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, ingressDeny: [{{fromEndpoints: [{{matchLabels: {{app: api}}}}], {ports}}}]")),
        &["Unusable spec.ingressDeny[0].toPorts[0].ports[0].endPort"],
    )
    .holds("shop/web-0 < shop/api-0|shop/web-1|203.0.113.1 TCP/1|UDP/53 deny by CiliumNetworkPolicy shop/p, ingressDeny[0]\nshop/web-0 > shop/api-0 TCP/1 allow");
}

/// Rules for DNS and for HTTP on one port of one peer cannot both be had: neither opens anything.
#[test]
fn cilium_two_protocols_on_one_port() {
    let dns = "{toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchPattern: '*'}]}}]}";
    let http = "{toPorts: [{ports: [{port: '53', protocol: TCP}], rules: {http: [{}]}}]}";
    World::new(&cnp("p", &format!("endpointSelector: {{}}, egress: [{dns}, {http}]"))).holds(&format!(
        "shop/web-0 > 203.0.113.1 TCP/53 {ISOLATED}
         shop/web-0 > 203.0.113.1 UDP/53 redirect else deny
         shop/web-0 > 203.0.113.1 UDP/53 DNS www.example.com pass"
    ));
}

/// Names: the apex, one label, several labels, in either dialect; never pods, whatever resolves to them.
#[test]
fn names_apex_and_wildcards() {
    let table = [
        ("matchName: example.com", [true, false, false]),
        ("matchName: EXAMPLE.com.", [true, false, false]),
        ("matchPattern: '*.example.com'", [false, true, false]),
        ("matchPattern: '**.example.com'", [false, true, true]),
        ("matchPattern: '*'", [true, true, true]),
        ("matchPattern: 'w*.example.com'", [false, true, false]),
        ("matchPattern: '*example.com'", [true, false, false]),
    ];
    let resolve = |world: &mut World| {
        for (name, address) in [
            ("example.com", "203.0.113.1"),
            ("www.example.com", "203.0.113.2"),
            ("a.b.example.com", "203.0.113.3"),
            ("notexample.org", "203.0.113.4"),
        ] {
            world.resolves(name, address);
        }
        world.resolves("www.example.com", "10.9.1.3");
        world.resolves("www.example.com", "10.9.0.2");
    };
    for (selector, expected) in table {
        let mut world =
            World::new(&cnp("p", &format!("endpointSelector: {{}}, egress: [{{toFQDNs: [{{{selector}}}]}}]")));
        world.holds("shop/web-0 > 203.0.113.1|203.0.113.2 TCP/443 deny");
        resolve(&mut world);
        for (address, allowed) in ["203.0.113.1", "203.0.113.2", "203.0.113.3"].iter().zip(expected) {
            world.holds(&format!("shop/web-0 > {address} TCP/443 {}", if allowed { "allow" } else { "deny" }));
        }
        world.holds("shop/web-0 > shop/api-0|10.9.0.2 TCP/443 deny");
        if selector != "matchPattern: '*'" {
            world.holds("shop/web-0 > 203.0.113.4 TCP/443 deny");
        }
    }
    // Cluster policies: `*.` is one label or more, never the apex (NPEP-133).
    for (name, expected) in [("example.com", [true, false, false]), ("'*.example.com'", [false, true, true])] {
        let mut world = World::new(&admin(
            "p",
            5,
            &format!(
                "subject: {{namespaces: {{}}}}, egress: [{{action: Accept, to: [{{domainNames: [{name}]}}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0]}}]}}]"
            ),
        ));
        resolve(&mut world);
        for (address, allowed) in ["203.0.113.1", "203.0.113.2", "203.0.113.3"].iter().zip(expected) {
            world.holds(&format!("shop/web-0 > {address} TCP/443 {}", if allowed { "allow" } else { "deny" }));
        }
        world.holds("shop/web-0 > shop/api-0|10.9.0.2|203.0.113.4 TCP/443 deny");
    }
}

/// S3 and its like: hundreds of addresses of a name, all of which count (NPEP-133 asks for a hundred); and two names at one
/// address share its verdict.
#[test]
fn names_with_many_addresses() {
    let mut world =
        World::new(&cnp("p", "endpointSelector: {}, egress: [{toFQDNs: [{matchPattern: '*.s3.example.com'}]}]"));
    let mut lines = String::new();
    for number in 0..300_u32 {
        let address = std::net::Ipv4Addr::from(0xcb00_7100 + number);
        world.resolves("b.s3.example.com", &address.to_string());
        writeln!(lines, "shop/web-0 > {address} TCP/443 allow by CiliumNetworkPolicy shop/p, egress[0]").unwrap();
    }
    world.resolves("other.example.org", "203.0.113.7");
    world.resolves("other.example.org", "198.51.100.7");
    world.holds(&lines);
    world.holds("shop/web-0 > 198.51.100.7 TCP/443 deny");
}

/// Search lists: a name with the suffixes of the cluster is another name, refused where no rule has it, and the name itself
/// goes on.
#[test]
fn names_and_search_lists() {
    World::new(&cnp("p", "endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '53', protocol: ANY}], rules: {dns: [{matchName: example.com}, {matchPattern: '*.svc.cluster.local'}]}}]}]")).holds(
        "shop/web-0 > 203.0.113.53 UDP/53|TCP/53 DNS example.com pass
         shop/web-0 > 203.0.113.53 UDP/53|TCP/53 DNS EXAMPLE.COM. pass
         shop/web-0 > 203.0.113.53 UDP/53|TCP/53 DNS api.svc.cluster.local pass
         shop/web-0 > 203.0.113.53 UDP/53|TCP/53 DNS example.com.shop.svc.cluster.local refuse
         shop/web-0 > 203.0.113.53 UDP/53|TCP/53 DNS example.com.evil.org refuse",
    );
}

/// "toFQDNs do nothing": names were learned only where a dns rule had the pod's DNS looked at. A rule by name is enough here, in
/// every dialect, and to be looked at restricts nothing.
#[test]
fn a_rule_by_name_alone_has_dns_looked_at() {
    let cilium = cnp(
        "p",
        "endpointSelector: {matchLabels: {app: web}}, egress: [{toEndpoints: [{matchLabels: {app: api}}]}, {toFQDNs: [{matchName: a.example.com}]}]",
    );
    let cluster = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\n\
                   spec: {tier: Admin, priority: 10, subject: {namespaces: {}}, egress: \
                   [{action: Accept, to: [{domainNames: [www.example.com]}]}]}\n";
    World::new(&cilium).holds(
        "shop/web-0 > shop/api-0 UDP/53|TCP/53 redirect else allow
         shop/web-0 > shop/api-0 UDP/53 DNS anything.org pass
         shop/web-0 > shop/api-0 UDP/52|UDP/54|TCP/52|TCP/54|SCTP/53 allow
         shop/web-0 > 203.0.113.53 UDP/53|TCP/53 deny
         shop/api-0 > shop/web-0 UDP/53 allow
         shop/web-0 < shop/api-0 UDP/53 allow",
    );
    World::new(cluster).holds(
        "shop/web-0 > shop/api-0|203.0.113.53 UDP/53|TCP/53 redirect else allow
         shop/web-0 > 203.0.113.53 TCP/443 allow",
    );
}

/// Names that share an address are told apart by the TLS server name.
#[test]
fn names_that_share_an_address() {
    let mut world = World::new(&cnp(
        "p",
        "endpointSelector: {}, egress: [{toFQDNs: [{matchName: a.example.com}], toPorts: [{ports: [{port: '443', protocol: TCP}], serverNames: [a.example.com]}]}]",
    ));
    world.resolves("a.example.com", "203.0.113.7");
    world.resolves("b.example.com", "203.0.113.7");
    world.holds(
        "shop/web-0 > 203.0.113.7 TCP/443 redirect else deny
         shop/web-0 > 203.0.113.7 TCP/443 SNI a.example.com pass
         shop/web-0 > 203.0.113.7 TCP/443 SNI b.example.com refuse
         shop/web-0 > 203.0.113.7 TCP/80 deny",
    );
}

/// A field that is not known makes its rule fail closed, in every dialect, and is told; the rest is in force.
#[test]
fn unknown_fields_fail_closed() {
    World::faulty(
        &np("p", "podSelector: {}, ingress: [{from: [{serviceSelector: {}}]}, {from: [{podSelector: {matchLabels: {app: api}}}]}]"),
        &["Unusable spec.ingress[0].from[0].serviceSelector"],
    )
    .holds("shop/web-0 < shop/api-0 TCP/80 allow by NetworkPolicy shop/p, ingress[1]\nshop/web-0 < shop/web-1|203.0.113.1 TCP/80 deny");
    World::faulty(
        &cnp("p", "endpointSelector: {}, egress: [{toMoons: [luna]}, {toEndpoints: [{matchLabels: {app: api}}]}], egressDeny: [{toCIDR: [203.0.113.0/24]}]"),
        &["Unusable spec.egress[0].toMoons"],
    )
    .holds("shop/web-0 > shop/api-0 TCP/80 allow by CiliumNetworkPolicy shop/p, egress[1]\nshop/web-0 > shop/web-1|198.51.100.1 TCP/80 deny");
    World::faulty(
        &ccnp("p", "endpointSelector: {}, enableDefaultDeny: {egress: false}, egressDeny: [{toMoons: [luna]}]"),
        &["Unusable spec.egressDeny[0].toMoons"],
    )
    .holds("shop/web-0|other/web-0 > shop/api-0|198.51.100.1 TCP/80 deny by CiliumClusterwideNetworkPolicy p, egressDeny[0]\nshop/web-0 < shop/api-0 TCP/80 allow");
    for (action, verdict) in [
        ("Accept", "allow by ClusterNetworkPolicy p, ingress[1]"),
        ("Deny", "deny by ClusterNetworkPolicy p, ingress[0]"),
        ("Pass", "deny by ClusterNetworkPolicy p, ingress[0]"),
    ] {
        World::faulty(
            &admin("p", 5, &format!("subject: {{namespaces: {{}}}}, ingress: [{{action: {action}, from: [{{moons: {{}}}}]}}, {{action: Accept, from: [{{namespaces: {{}}}}]}}]")),
            &["Unusable spec.ingress[0].from[0].moons"],
        )
        .holds(&format!("shop/web-0 < shop/api-0|other/api-0 TCP/80 {verdict}"));
    }
}

/// Which policy dropped it: the reason names one, also where several do, and always the same.
#[test]
fn which_policy_dropped_it() {
    World::new(
        &[np("b", "podSelector: {}"), np("a", "podSelector: {}"), cnp("c", "endpointSelector: {}, ingress: [{}]")]
            .concat(),
    )
    .holds("shop/web-0 < shop/api-0 TCP/80 deny by NetworkPolicy shop/a isolates the pod, and no rule allows this");
    World::new(&[np("a", "podSelector: {}"), cnp("c", "endpointSelector: {}, ingressDeny: [{fromEntities: [world]}, {fromEntities: [all]}]")].concat())
        .holds("shop/web-0 < shop/api-0 TCP/80 deny by CiliumNetworkPolicy shop/c, ingressDeny[1]\nshop/web-0 < 203.0.113.1 TCP/80 deny by CiliumNetworkPolicy shop/c, ingressDeny[0]");
}
