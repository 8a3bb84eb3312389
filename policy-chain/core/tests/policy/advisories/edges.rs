//! Cases of the NetworkPolicy API that the vectors of tests/scenarios/policy do not ask, or ask of one dialect only.

use crate::world::{World, admin, cnp, np};

/// A named port is a name and a protocol, of the pod that is dialled: in every dialect.
#[test]
fn named_port_of_another_protocol() {
    let network = |ports: &str| {
        np(
            "p",
            &format!(
                "podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{}}}}], ports: [{ports}]}}]"
            ),
        )
    };
    World::new(&network("{port: dns, protocol: UDP}")).holds("shop/web-0 > shop/api-0 UDP/53 allow\nshop/web-0 > shop/api-0 TCP/53 deny\nshop/web-0 > shop/api-1 UDP/53 deny");
    World::new(&network("{port: dns, protocol: TCP}, {port: dns, protocol: SCTP}, {port: nobody}"))
        .holds("shop/web-0 > shop/api-0 UDP/53|TCP/53|SCTP/53 deny");
    let cluster = admin(
        "p",
        5,
        "subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}], protocols: [{destinationNamedPort: dns}]}]",
    );
    World::new(&cluster).holds("shop/web-0 > shop/api-0 UDP/53 deny\nshop/web-0 > shop/api-0 TCP/53 allow\nshop/web-0 > shop/api-1 UDP/53 allow");
    let cilium = |protocol: &str| {
        cnp(
            "p",
            &format!(
                "endpointSelector: {{}}, egress: [{{toEndpoints: [{{}}], toPorts: [{{ports: [{{port: dns, protocol: {protocol}}}]}}]}}]"
            ),
        )
    };
    World::new(&cilium("ANY")).holds("shop/web-0 > shop/api-0 UDP/53 allow\nshop/web-0 > shop/api-0 TCP/53 deny");
    World::new(&cilium("TCP")).holds("shop/web-0 > shop/api-0 UDP/53|TCP/53 deny");
    // Per pod: `http` is 8080 here and 8081 there; an address without pod has no names.
    World::new(&network("{port: http}")).holds("shop/web-0 > shop/api-0 TCP/8080 allow\nshop/web-0 > shop/api-1 TCP/8081 allow\nshop/web-0 > shop/api-0 TCP/8081 deny\nshop/web-0 > shop/api-1 TCP/8080 deny");
}

/// `ports: [{}]` is every port of TCP, and of TCP only; a rule for SCTP isolates TCP.
#[test]
fn protocols_of_a_port() {
    World::new(&np("p", "podSelector: {}, ingress: [{ports: [{}]}]")).holds(
        "shop/web-0 < shop/api-0|203.0.113.1 TCP/1|TCP/65535 allow\nshop/web-0 < shop/api-0 UDP/53|SCTP/80|ICMP/8 deny",
    );
    World::new(&np("p", "podSelector: {}, ingress: [{ports: [{protocol: SCTP, port: 80}]}]"))
        .holds("shop/web-0 < shop/api-0 SCTP/80 allow\nshop/web-0 < shop/api-0 TCP/80|UDP/80|SCTP/81 deny");
    // Without ports, everything: also what has none.
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]")).holds("shop/web-0 < shop/api-0 TCP/80|UDP/53|SCTP/80|ICMP/8|47/0 allow\nshop/web-0 < other/api-0 TCP/80|ICMP/8|47/0 deny");
    let all = admin("p", 5, "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    World::new(&all).holds("shop/web-0 < shop/api-0 TCP/80|ICMP/8|47/0 deny");
    let tcp = admin(
        "p",
        5,
        "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 1, end: 65535}}}}]}]",
    );
    World::new(&tcp).holds("shop/web-0 < shop/api-0 TCP/80 deny\nshop/web-0 < shop/api-0 UDP/80|ICMP/8|47/0 allow");
}

/// An `endPort` beside a name, below its port, or without one: the rule grants nothing, and the pod is isolated all the same.
#[test]
fn end_port_that_is_none() {
    for (ports, fault) in [
        ("{port: http, endPort: 9000}", "Refused spec.ingress[0].ports[0].endPort"),
        ("{port: 9000, endPort: 8000}", "Refused spec.ingress[0].ports[0].endPort"),
        ("{endPort: 9000}", "Refused spec.ingress[0].ports[0].endPort"),
        ("{port: 0}", "Refused spec.ingress[0].ports[0].port"),
        ("{port: 65536}", "Refused spec.ingress[0].ports[0].port"),
        ("{port: 80, protocol: ICMP}", "Refused spec.ingress[0].ports[0].protocol"),
    ] {
        World::faulty(&np("p", &format!("podSelector: {{}}, ingress: [{{ports: [{ports}]}}, {{from: [{{podSelector: {{matchLabels: {{app: api}}}}}}]}}]")), &[fault])
            .holds("shop/web-0 < shop/api-0 TCP/80 allow by NetworkPolicy shop/p, ingress[1]\nshop/web-0 < shop/web-1 TCP/80|TCP/8080|TCP/8500|TCP/9000|UDP/80 deny");
    }
}

/// `namespaceSelector: {}` is every pod, and nothing that is none: no node, no hostNetwork pod, nobody outside.
#[test]
fn all_namespaces_are_no_outsiders() {
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]")).holds(
        "shop/web-0 < shop/api-0|other/api-0|fd00:9:1::3 TCP/80 allow
         shop/web-0 < 10.9.0.1|10.9.0.2|203.0.113.1|172.20.0.10|2001:db8::1 TCP/80 deny",
    );
    // A hostNetwork pod is its node, to selectors and as a subject.
    World::new(&np("p", "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]")).holds(
        "shop/web-0 < 10.9.0.2 TCP/80 deny
         shop/web-0 < shop/api-1 TCP/80 allow
         shop/agent < 203.0.113.1 TCP/80 allow by the pod is not known
         shop/agent > 203.0.113.1 TCP/80 allow by the pod is not known",
    );
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.9.0.2/32}}]}]"))
        .holds("shop/web-0 < 10.9.0.2 TCP/80 allow\nshop/web-0 < shop/api-1 TCP/80 deny");
}

fn pod(name: &str, labels: &str, more: &str, status: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}{more}}}\nspec: {{nodeName: n1}}\nstatus: {{podIP: 10.9.1.77, {status}}}\n"
    )
}

/// The address of a pod that is finished is the next one's, whoever was told of first; and nobody's in between.
#[test]
fn address_of_a_finished_pod() {
    let old = "creationTimestamp: '2026-01-01T00:00:00Z'";
    let new = "creationTimestamp: '2026-01-02T00:00:00Z'";
    let policy = np(
        "p",
        "podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: job}}}]}]",
    );
    let mut world = World::new(&policy);
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 deny");
    world.apply(&pod("job", "app: job", &format!(", {old}"), "phase: Running"));
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 allow");
    world.apply(&pod("job", "app: job", &format!(", {old}"), "phase: Succeeded"));
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 deny\nshop/job < shop/web-0 TCP/80 allow by the pod is not known");
    // Its successor is seen before it is.
    world.apply(&pod("job", "app: job", &format!(", {old}"), "phase: Running"));
    world.apply(&pod("next", "app: api", &format!(", {new}"), "phase: Running"));
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 deny");
    world.delete(&pod("next", "", "", "phase: Running"));
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 allow");
    world.delete(&pod("job", "", "", "phase: Running"));
    world.holds("shop/web-0 < 10.9.1.77 TCP/80 deny");
}

/// A namespace's labels are replaced, taken away, and the namespace's object goes; a namespace comes after its pods.
#[test]
fn labels_of_a_namespace_change() {
    let other =
        |labels: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: other, labels: {labels}}}}}");
    let policy = |labels: &str| {
        np("p", &format!("podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {labels}}}}}]}}]"))
    };
    let mut world = World::new(&policy("{team: red}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 allow\nshop/web-0 < shop/web-1 TCP/80 deny");
    world.apply(&other("{}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 deny");
    world.apply(&other("{team: red, more: labels}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 allow");
    world.delete(&other("{}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 deny");
    // The label of its name is always there, and cannot be forged.
    let mut world = World::new(&policy("{kubernetes.io/metadata.name: other}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 allow");
    world.apply(&other("{kubernetes.io/metadata.name: shop}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 allow\nshop/web-0 < shop/web-1 TCP/80 deny");
    world.delete(&other("{}"));
    world.holds("shop/web-0 < other/web-0 TCP/80 allow");
    world.apply("{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: late}, spec: {nodeName: n1}, status: {podIP: 10.9.7.1}}");
    let mut world = World::new(&policy("{new: 'yes'}"));
    world.apply("{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: late}, spec: {nodeName: n1}, status: {podIP: 10.9.7.1}}");
    world.holds("shop/web-0 < 10.9.7.1 TCP/80 deny");
    world.apply("{apiVersion: v1, kind: Namespace, metadata: {name: late, labels: {new: 'yes'}}}");
    world.holds("shop/web-0 < 10.9.7.1 TCP/80 allow");
}

/// An address is the same in its IPv4 form and in the IPv6 form that is mapped from it.
#[test]
fn mapped_addresses() {
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}, {podSelector: {matchLabels: {app: api}}}]}]")).holds(
        "shop/web-0 < ::ffff:203.0.113.1|::ffff:10.9.1.3 TCP/80 allow
         shop/web-0 < ::ffff:203.0.114.1|::ffff:10.9.1.2|::203.0.113.1 TCP/80 deny",
    );
    World::new(&np("p", "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]"))
        .holds("shop/web-0 < ::ffff:203.0.113.1 TCP/80 deny\nshop/web-0 < 2001:db8::1 TCP/80 allow");
}

/// A pod reaches its own address under every policy, and others do not reach it by that.
#[test]
fn own_address() {
    let policies = [
        np("p", "podSelector: {}, policyTypes: [Ingress, Egress]"),
        cnp("q", "endpointSelector: {}, ingressDeny: [{fromEntities: [all]}], egressDeny: [{toEntities: [all]}]"),
        admin(
            "r",
            0,
            "subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [0.0.0.0/0, '::/0']}]}], ingress: [{action: Deny, from: [{namespaces: {}}]}]",
        ),
    ];
    World::new(&policies.concat()).holds(
        "shop/web-0 > shop/web-0|fd00:9:1::1 TCP/80|UDP/53|ICMP/8 allow by a pod may always reach itself
         shop/web-0 < shop/web-0|fd00:9:1::1 TCP/80|UDP/53|ICMP/8 allow by a pod may always reach itself
         shop/web-0 > shop/web-1 TCP/80 deny
         shop/web-0 < shop/web-1 TCP/80 deny",
    );
}

/// A CiliumCIDRGroup with a block that is none: which addresses are meant is not known, so a deny by it denies everything, an
/// allow grants nothing by it, and what stands beside the group in an allow counts.
#[test]
fn a_cidr_group_that_cannot_be_used() {
    let group = |blocks: &str| {
        format!(
            "---\n{{apiVersion: cilium.io/v2, kind: CiliumCIDRGroup, metadata: {{name: office, labels: {{of: us}}}}, \
             spec: {{externalCIDRs: {blocks}}}}}\n"
        )
    };
    let (good, bad) = (group("[203.0.113.0/24]"), group("[203.0.113.0/24, 198.51.100.0/33]"));
    let fault = &["Refused spec.externalCIDRs[1]"];
    for used in ["{cidrGroupRef: office}", "{cidrGroupSelector: {matchLabels: {of: us}}}"] {
        let deny = cnp(
            "p",
            &format!(
                "endpointSelector: {{}}, enableDefaultDeny: {{ingress: false}}, \
                 ingressDeny: [{{fromCIDRSet: [{used}], toPorts: [{{ports: [{{port: '80', protocol: TCP}}]}}]}}]"
            ),
        );
        let usable = "shop/web-0 < 203.0.113.1 TCP/80 deny by CiliumNetworkPolicy shop/p, ingressDeny[0]
             shop/web-0 < 203.0.113.1 TCP/81 allow\nshop/web-0 < shop/api-0|192.0.2.1|10.9.0.2 TCP/80 allow";
        let unusable = "shop/web-0 < 203.0.113.1|192.0.2.1|shop/api-0|10.9.0.2 TCP/80|TCP/81|UDP/53|ICMP/8 deny by CiliumNetworkPolicy shop/p, ingressDeny[0]
             shop/web-0 <node 10.9.0.1 TCP/80 allow\nshop/web-0 > 203.0.113.1 TCP/80 allow";
        World::new(&(deny.clone() + &good)).holds(usable);
        let mut world = World::faulty(&(deny + &bad), fault);
        world.holds(unusable);
        // The group is mended, and is gone.
        world.apply(&good);
        world.holds(usable);
        world.delete(&good);
        world.holds("shop/web-0 < 203.0.113.1|192.0.2.1|shop/api-0 TCP/80 allow");
        let allow =
            cnp("p", &format!("endpointSelector: {{}}, egress: [{{toCIDRSet: [{used}, {{cidr: 192.0.2.0/24}}]}}]"));
        World::new(&(allow.clone() + &good)).holds("shop/web-0 > 203.0.113.1|192.0.2.1 TCP/80 allow");
        World::faulty(&(allow + &bad), fault).holds(
            "shop/web-0 > 203.0.113.1|198.51.100.1 TCP/80 deny by CiliumNetworkPolicy shop/p isolates the pod, and no rule allows this
             shop/web-0 > 192.0.2.1 TCP/80 allow by CiliumNetworkPolicy shop/p, egress[0]",
        );
    }
}

/// Reasons name `spec` and the elements of `specs` as they are written, whether both are there or one.
#[test]
fn specs_are_named_as_they_are_written() {
    let policy = |spec: &str, specs: &str| {
        format!(
            "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n{spec}{specs}"
        )
    };
    let one = "spec: {endpointSelector: {}, ingressDeny: [{fromEntities: [world]}]}\n";
    let more = "specs: [{endpointSelector: {}, ingressDeny: [{fromEntities: [remote-node]}]}, {endpointSelector: {}, ingress: [{}, {fromEndpoints: [{}]}]}]\n";
    let name = |rule: &str| format!("by CiliumNetworkPolicy shop/p, {rule}");
    let of_specs = format!(
        "shop/web-0 < 10.9.0.2 TCP/80 deny {}\nshop/web-0 < shop/api-0 TCP/80 allow {}",
        name("specs[0].ingressDeny[0]"),
        name("specs[1].ingress[1]"),
    );
    let of_spec = format!("shop/web-0 < 192.0.2.1 TCP/80 deny {}", name("ingressDeny[0]"));
    World::new(&policy(one, more)).holds(&format!("{of_specs}\n{of_spec}"));
    World::new(&policy("", more)).holds(&of_specs);
    World::new(&policy(one, "")).holds(&of_spec);
}
