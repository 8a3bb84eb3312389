//! Defects of the AWS network policy agent and of its controller, and the classes of failures that its own suite accepts.

use std::fmt::Write as _;

use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::Image;
use sluice_policy_core::flow::{Direction, Judgement, Origin, Protocol, Query};
use sluice_policy_core::settings::Settings;

use crate::world::{World, admin, aws, events, key, np};

/// 24 ports for one address, and what is more is dropped in silence. Every port counts, of allows and of denies.
#[test]
fn aws_agent_24_ports() {
    let ports: Vec<u32> = (0..100).map(|number| 1000 + number * 10).collect();
    let list = |one: &dyn Fn(u32) -> String| ports.iter().map(|port| one(*port)).collect::<Vec<_>>().join(", ");
    let all = |arrow: &str, verdict: &str, other: &str| {
        let mut lines = String::new();
        for port in &ports {
            writeln!(lines, "shop/web-0 {arrow} shop/api-0|203.0.113.1 TCP/{port} {verdict}").unwrap();
            writeln!(lines, "shop/web-0 {arrow} shop/api-0|203.0.113.1 TCP/{}|UDP/{port} {other}", port + 1).unwrap();
        }
        lines
    };
    let allow = np(
        "p",
        &format!(
            "podSelector: {{}}, ingress: [{{from: [{{podSelector: {{}}}}, {{ipBlock: {{cidr: 203.0.113.0/24}}}}], ports: [{}]}}]",
            list(&|port| format!("{{port: {port}}}"))
        ),
    );
    World::new(&allow).holds(&all("<", "allow", "deny"));
    // The same in a hundred policies of one port each.
    let each: String = ports
        .iter()
        .map(|port| np(&format!("p{port}"), &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{}}}}, {{ipBlock: {{cidr: 203.0.113.0/24}}}}], ports: [{{port: {port}}}]}}]")))
        .collect();
    World::new(&each).holds(&all(">", "allow", "deny"));
    // Denies of AWS's own policy, which has up to a hundred ports a rule.
    let deny = aws(
        "p",
        1,
        &format!(
            "subject: {{namespaces: {{}}}}, egress: [{{action: Deny, to: [{{networks: [0.0.0.0/0]}}], ports: [{}]}}]",
            list(&|port| format!("{{portNumber: {{protocol: TCP, port: {port}}}}}"))
        ),
    );
    World::new(&deny).holds(&all(">", "deny", "allow"));
}

/// `except` became a deny: an address that another rule allows was dropped (issues 92, 180; controller 121).
#[test]
fn aws_agent_except_union() {
    let block = "{ipBlock: {cidr: 10.9.0.0/16, except: [10.9.1.0/24]}}";
    for other in [
        "{ipBlock: {cidr: 10.9.1.3/32}}",
        "{ipBlock: {cidr: 10.9.1.0/29}}",
        "{ipBlock: {cidr: 10.0.0.0/8}}",
        "{ipBlock: {cidr: 0.0.0.0/0, except: [10.9.1.128/25]}}",
        "{podSelector: {matchLabels: {app: api}}}",
        "{namespaceSelector: {}}",
    ] {
        let together =
            np("p", &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{block}, {other}]}}]"));
        let apart = np(
            "p",
            &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{block}]}}, {{to: [{other}]}}]"),
        );
        let two = [
            np("p", &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{block}]}}]")),
            np("q", &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{other}]}}]")),
        ];
        for policies in [together, apart, two.concat()] {
            let wide = if other.contains("10.0.0.0/8") { "allow" } else { "deny" };
            World::new(&policies).holds(&format!(
                "shop/web-0 > shop/api-0|other/web-0|10.9.2.127 TCP/80|UDP/53 allow
                 shop/web-0 > 10.9.1.200 TCP/80 {wide}"
            ));
        }
    }
}

/// The policy with the `except` goes and comes again, beside an allow of one of the addresses that it leaves out.
#[test]
fn aws_agent_except_survives_deletion() {
    let except = np(
        "p",
        "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/28]}}]}]",
    );
    let one = np("q", "podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.9/32}}]}]");
    let mut world = World::new(&[except.as_str(), one.as_str()].concat());
    for _ in 0..3 {
        world.holds("shop/web-0 > 203.0.113.9|203.0.113.16 TCP/80 allow\nshop/web-0 > 203.0.113.8 TCP/80 deny");
        world.delete(&except);
        world.holds("shop/web-0 > 203.0.113.9 TCP/80 allow\nshop/web-0 > 203.0.113.8|203.0.113.16 TCP/80 deny");
        world.apply(&except);
    }
    world.delete(&one);
    world.holds("shop/web-0 > 203.0.113.16 TCP/80 allow\nshop/web-0 > 203.0.113.8|203.0.113.9 TCP/80 deny");
}

/// Rules of one policy had one priority, and Deny won. The first rule that matches decides, in AWS's kind too.
#[test]
fn aws_agent_rule_order() {
    let namespaces = "{namespaces: {}}";
    let rules = |order: &[&str]| {
        order.iter().map(|action| format!("{{action: {action}, to: [{namespaces}]}}")).collect::<Vec<_>>().join(", ")
    };
    for (order, verdict) in [
        (["Accept", "Deny"], "allow"),
        (["Deny", "Accept"], "deny"),
        (["Pass", "Deny"], "allow"),
        (["Accept", "Pass"], "allow"),
        (["Pass", "Accept"], "allow"),
        (["Deny", "Pass"], "deny"),
    ] {
        for policy in [admin, aws] {
            let reason = if order[0] == "Pass" { "no policy decides" } else { "ClusterNetworkPolicy p, egress[0]" };
            World::new(&policy("p", 5, &format!("subject: {{namespaces: {{}}}}, egress: [{}]", rules(&order))))
                .holds(&format!("shop/web-0 > shop/api-0 TCP/80|UDP/53|ICMP/8 {verdict} by {reason}"));
        }
    }
    // A narrow address behind a wide one is behind it.
    for (first, second, verdict) in [("10.0.0.0/8", "10.9.1.3/32", "deny"), ("10.9.1.3/32", "10.0.0.0/8", "allow")] {
        let (one, other) = if verdict == "deny" { ("Deny", "Accept") } else { ("Accept", "Deny") };
        World::new(&admin("p", 5, &format!("subject: {{namespaces: {{}}}}, egress: [{{action: {one}, to: [{{networks: [{first}]}}]}}, {{action: {other}, to: [{{networks: [{second}]}}]}}]")))
            .holds(&format!("shop/web-0 > shop/api-0 TCP/80 {verdict}\nshop/web-0 > shop/api-1 TCP/80 deny"));
    }
    // Ties of two policies: Deny before Pass before Accept, then by name (DESIGN 6.7).
    for (a, b, verdict, reason) in [
        ("Accept", "Deny", "deny", "ClusterNetworkPolicy b, egress[0]"),
        ("Accept", "Pass", "allow", "no policy decides"),
        ("Pass", "Deny", "deny", "ClusterNetworkPolicy b, egress[0]"),
        ("Deny", "Deny", "deny", "ClusterNetworkPolicy a, egress[0]"),
        ("Accept", "Accept", "allow", "ClusterNetworkPolicy a, egress[0]"),
    ] {
        let policy = |name: &str, action: &str| {
            admin(
                name,
                5,
                &format!("subject: {{namespaces: {{}}}}, egress: [{{action: {action}, to: [{namespaces}]}}]"),
            )
        };
        World::new(&[policy("a", a), policy("b", b)].concat())
            .holds(&format!("shop/web-0 > shop/api-0 TCP/80 {verdict} by {reason}"));
    }
}

/// Peers after the first were looked for in the namespaces of the first.
#[test]
fn aws_agent_second_peer_in_other_namespaces() {
    for policy in [admin, aws] {
        let world = World::new(&policy(
            "p",
            5,
            "subject: {namespaces: {matchLabels: {team: blue}}}, ingress: [
             {action: Accept, from: [
              {pods: {namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {role: admin}}}},
              {pods: {namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: api}}}},
              {namespaces: {matchLabels: {no: one}}}]},
             {action: Deny, from: [{namespaces: {}}]}]",
        ));
        world.holds(
            "shop/api-0 < shop/web-1|other/api-0 TCP/80 allow by ClusterNetworkPolicy p, ingress[0]
             shop/api-0 < shop/web-0|other/web-0|shop/api-1 TCP/80 deny by ClusterNetworkPolicy p, ingress[1]
             shop/api-0 < 203.0.113.1 TCP/80 allow by no policy decides",
        );
    }
}

/// Pods whose names begin alike shared their policies (issues 183, 327, 616, 676); and a pod without owner had none.
#[test]
fn aws_agent_name_prefix() {
    let mut world = World::new(&np(
        "p",
        "podSelector: {matchLabels: {role: admin}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}], egress: []",
    ));
    world.holds(
        "shop/web-1 < shop/api-0 TCP/80 allow by NetworkPolicy shop/p, ingress[0]
         shop/web-1 < shop/web-0 TCP/80 deny
         shop/web-0 < shop/api-0|shop/web-1|other/web-0 TCP/80 allow by no policy decides",
    );
    // A label of one of them changes; the other is as it was.
    world.apply("{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web, role: admin}}, spec: {nodeName: n1}, status: {podIP: 10.9.1.1}}");
    world.apply("{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}}, spec: {nodeName: n1}, status: {podIP: 10.9.1.2}}");
    world.holds(
        "shop/web-0 < shop/api-0 TCP/80 allow by NetworkPolicy shop/p, ingress[0]
         shop/web-0 < shop/web-1 TCP/80 deny
         shop/web-1 < shop/web-0 TCP/80 allow by no policy decides",
    );
}

/// Egress to Services was judged by the virtual address: only with a selector as the policy's, only where the port is the
/// container's, and neither headless nor with endpoints made by hand.
#[test]
fn aws_agent_services() {
    let egress = |to: &str| World::new(&np("p", &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{to}]")));
    // The Service's selector is {app: api}; the policy's is another. The port is 80 here and 8080 or 8081 there.
    let world = egress(
        "{to: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}], ports: [{port: http}]}",
    );
    world.holds(
        "shop/web-0 > 172.20.0.10 TCP/80 defer
         shop/web-0 > shop/api-0 TCP/8080 allow
         shop/web-0 > shop/api-1 TCP/8081 allow
         shop/web-0 > shop/api-0 TCP/80|TCP/8081 deny",
    );
    egress("{to: [{podSelector: {}}], ports: [{port: 80}]}").holds("shop/web-0 > 172.20.0.10 TCP/80 deny");
    egress("{to: [{podSelector: {}}], ports: [{port: 8081}]}").holds("shop/web-0 > 172.20.0.10 TCP/80 defer\nshop/web-0 > shop/api-0 TCP/8081 allow\nshop/web-0 > shop/api-0 TCP/8080 deny");
    // Headless: the client dials the pods.
    egress("{to: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8080}]}")
        .holds("shop/web-0 > shop/api-0|shop/api-1 TCP/8080 allow");
    // Endpoints by hand, outside: the block is theirs, not the Service's.
    egress("{to: [{ipBlock: {cidr: 203.0.113.50/32}}], ports: [{port: 8443}]}")
        .holds("shop/web-0 > 172.20.0.11 TCP/443 defer\nshop/web-0 > 203.0.113.50 TCP/8443 allow");
    egress("{to: [{ipBlock: {cidr: 203.0.113.50/32}}], ports: [{port: 443}]}")
        .holds("shop/web-0 > 172.20.0.11 TCP/443 deny");
    // ExternalName has no address.
    let mut world = egress("{to: [{podSelector: {}}]}");
    world.apply("{apiVersion: v1, kind: Service, metadata: {name: name, namespace: shop}, spec: {type: ExternalName, externalName: www.example.com, clusterIP: 172.20.0.99, ports: [{port: 80}]}}");
    world.holds("shop/web-0 > 172.20.0.99 TCP/80 deny");
}

/// Class (a) of the failures that AWS's suite accepts: `ipBlock` judged against the ClusterIP. Class (b): a block of one
/// family says nothing of the other.
#[test]
fn aws_agent_accepted_failures_ip_block() {
    let egress = |block: &str| {
        World::new(&np(
            "p",
            &format!("podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{{block}}}}}]}}]"),
        ))
    };
    egress("cidr: 10.9.1.3/32").holds("shop/web-0 > 172.20.0.10 TCP/80 defer\nshop/web-0 > shop/api-0 TCP/8080 allow\nshop/web-0 > shop/api-1 TCP/8081 deny");
    egress("cidr: 10.9.0.0/16, except: [10.9.1.4/32, 10.9.1.3/32]").holds("shop/web-0 > 172.20.0.10 TCP/80 deny");
    egress("cidr: 10.9.0.0/16, except: [10.9.1.4/32]")
        .holds("shop/web-0 > 172.20.0.10 TCP/80 defer\nshop/web-0 > shop/api-1 TCP/8081 deny");
    egress("cidr: 172.20.0.0/16").holds("shop/web-0 > 172.20.0.10 TCP/80 deny");
    egress("cidr: 0.0.0.0/0")
        .holds("shop/web-0 > shop/api-0|203.0.113.1 TCP/80 allow\nshop/web-0 > fd00:9:1::3|2001:db8::1 TCP/80 deny");
    egress("cidr: '::/0'")
        .holds("shop/web-0 > shop/api-0|203.0.113.1 TCP/80 deny\nshop/web-0 > fd00:9:1::3|2001:db8::1 TCP/80 allow");
}

/// Class (c): a pod through its own Service. NetworkPolicy does not keep it from itself, the others do (DESIGN 6.11).
#[test]
fn aws_agent_accepted_failures_hairpin() {
    let deny = np("p", "podSelector: {}, policyTypes: [Ingress, Egress]");
    World::new(&deny).holds(
        "shop/web-1 > 172.20.0.12 TCP/80 defer
         shop/web-1 >self shop/web-1 TCP/8080 allow
         shop/web-1 <self shop/web-1 TCP/8080 allow
         shop/web-0 > 172.20.0.12 TCP/80 deny",
    );
    let cluster = admin("p", 5, "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]");
    World::new(&cluster).holds("shop/web-1 <self shop/web-1 TCP/8080 deny\nshop/web-1 < shop/web-1 TCP/8080 allow by a pod may always reach itself");
    let cluster = admin("p", 5, "subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}]}]");
    World::new(&cluster).holds("shop/web-1 >self shop/web-1 TCP/8080 deny\nshop/web-1 > 172.20.0.12 TCP/80 deny\nshop/web-1 > shop/web-1 TCP/8080 allow by a pod may always reach itself");
}

/// Strict mode: a policy for egress alone does not isolate ingress, unless it leaves `policyTypes` out (issue 319).
#[test]
fn aws_agent_egress_only() {
    for (types, ingress) in [
        ("policyTypes: [Egress], ", "allow by no policy decides"),
        ("", "deny by NetworkPolicy shop/p isolates the pod, and no rule allows this"),
    ] {
        World::new(&np("p", &format!("podSelector: {{}}, {types}egress: [{{to: [{{podSelector: {{}}}}]}}]"))).holds(
            &format!(
                "shop/web-0 < shop/api-0|other/api-0|203.0.113.1 TCP/80 {ingress}
             shop/web-0 > shop/api-0 TCP/80 allow
             shop/web-0 > other/api-0 TCP/80 deny"
            ),
        );
    }
}

/// Whatever came with the node's address passed, NodePort traffic from outside among it. Only what the node itself sends
/// does; and that passes under any policy, so that probes do (issue 635).
#[test]
fn aws_agent_node_address() {
    for deny in [
        np("p", "podSelector: {}"),
        admin("p", 5, "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]"),
        [
            np("p", "podSelector: {}"),
            admin("q", 5, "subject: {namespaces: {}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]"),
        ]
        .concat(),
    ] {
        World::new(&deny).holds("shop/web-0 <node 10.9.0.1|fd00:9::1 TCP/8080|UDP/53|ICMP/8 allow by the pod's own node may always reach it");
    }
    World::new(&np("p", "podSelector: {}")).holds("shop/web-0 < 10.9.0.1|10.9.0.2 TCP/8080 deny");
}

/// A policy whose subject or peers change left what it was (issue 643), and CIDRs with host bits were other ones (609).
#[test]
fn aws_agent_stale_after_change() {
    let policy = |subject: &str, block: &str| {
        np("p", &format!("podSelector: {{{subject}}}, ingress: [{{from: [{{ipBlock: {{cidr: {block}}}}}]}}]"))
    };
    let told = "Warning spec.ingress[0].from[0].ipBlock.cidr";
    let mut world = World::faulty(&policy("matchLabels: {role: admin}", "203.0.113.77/24"), &[told]);
    world.holds("shop/web-1 < 203.0.113.1|203.0.113.255 TCP/80 allow\nshop/web-1 < 203.0.114.1 TCP/80 deny\nshop/web-0 < 203.0.114.1 TCP/80 allow");
    world.apply(&policy("matchLabels: {app: api}", "203.0.114.77/24"));
    world.holds("shop/web-1 < 203.0.113.1|203.0.114.1 TCP/80 allow by no policy decides\nshop/api-0 < 203.0.114.1 TCP/80 allow\nshop/api-0 < 203.0.113.1 TCP/80 deny");
    world.delete(&policy("", "0.0.0.0/0"));
    world.holds("shop/api-0 < 203.0.113.1|203.0.114.1 TCP/80 allow by no policy decides");
}

/// A pod was open until its policies were known. When the operations of an update are done one by one, a new gate has its
/// final answers from its first instant on; so has one whose policies change, before and after.
#[test]
fn aws_agent_no_operation_opens_a_gate() {
    let policies = [
        np("p", "podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]"),
        admin("q", 5, "subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [203.0.113.0/24]}]}]"),
    ]
    .concat();
    let mut engine = Engine::new(Settings { node: Some("n1".into()), ..Settings::default() });
    let (mut image, web) = (Image::default(), key("shop/web-0"));
    let answers = |image: &Image, pod: &PodKey| -> Vec<Judgement> {
        let peers = ["10.9.1.3", "10.9.1.2", "10.9.2.1", "203.0.113.1", "10.9.0.1", "fd00:9:1::3"];
        let ask = |direction, peer: &&str| {
            let (subject, peer) = (pod.clone(), peer.parse().unwrap());
            image.judge(&Query {
                subject,
                direction,
                peer,
                protocol: Protocol::TCP,
                port: 80,
                origin: Origin::Forwarded,
            })
        };
        Direction::BOTH.iter().flat_map(|direction| peers.iter().map(|peer| ask(*direction, peer))).collect()
    };
    let (pods, others): (Vec<_>, Vec<_>) =
        events(&policies).into_iter().partition(|event| format!("{event:?}").starts_with("Upsert(Pod"));
    others.into_iter().chain(pods).for_each(|event| engine.apply(event));
    let update = engine.commit();
    let expected = answers(engine.image(), &web);
    let mut began = false;
    for operation in &update.operations {
        began |= matches!(operation, Operation::SetEndpoint(pod, _) if *pod == web);
        image.apply(operation);
        if began {
            assert_eq!(answers(&image, &web), expected, "after {operation:?}");
        }
    }
    assert!(began && expected.iter().any(|one| one.verdict.as_str() == "deny"));
    // The policy is another one.
    let before = expected;
    for event in
        events(&np("p", "podSelector: {}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {}}]}]"))
    {
        engine.apply(event);
    }
    let update = engine.commit();
    let after = answers(engine.image(), &web);
    assert_ne!(before, after);
    for operation in &update.operations {
        image.apply(operation);
        let now = answers(&image, &web);
        for ((before, now), after) in before.iter().zip(&now).zip(&after) {
            assert!(now == before || now == after, "{now:?} after {operation:?}");
        }
    }
    assert_eq!(answers(&image, &web), after);
}
