//! Random policies: every row is what the decision procedure says, on each port, and is no longer than it must be.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::direct::{Packet, judge};
use super::world::*;
use crate::cluster::{NamedPort, PodTemplate, Visible};
use crate::compile::predicate::Predicate;
use crate::compile::program::{Networks, PeerFacts, Program, Selected};
use crate::compile::row::{PortPrefix, Row};
use crate::flow::{AppProtocol, Direction, Judgement, Origin, Protocol};
use crate::l7::dns::NamePattern;
use crate::model::cilium::{
    Application, CidrBlock, CidrRule, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPorts, Entity, ServiceSelector,
};
use crate::model::cluster_network_policy::{Action, ClusterMatch, ClusterPeer, ClusterSubject, ClusterTier};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::LabelSelector;
use crate::model::{Policy, Usable};
use crate::settings::Settings;

const PROTOCOLS: [Protocol; 7] = [Protocol(0), Protocol::ICMP, TCP, UDP, GRE, SCTP, Protocol(255)];

/// Every port at which something may change, and its neighbours.
const PORTS: [u16; 22] =
    [0, 1, 2, 7, 8, 9, 52, 53, 54, 79, 80, 81, 442, 443, 444, 1023, 1024, 8080, 8081, 32768, 65534, 65535];

fn a_port() -> impl Strategy<Value = u16> {
    select(vec![0, 1, 8, 53, 80, 443, 1024, 8080, 32768, 65535])
}

fn a_protocol() -> impl Strategy<Value = ProtocolMatch> {
    prop_oneof![
        4 => select(PROTOCOLS.to_vec()).prop_map(ProtocolMatch::Exactly),
        4 => Just(ProtocolMatch::Exactly(TCP)),
        1 => Just(ProtocolMatch::Transport),
    ]
}

fn a_target() -> impl Strategy<Value = PortTarget> {
    prop_oneof![
        1 => Just(PortTarget::Any),
        4 => a_port().prop_map(|port| PortTarget::Range(port, port)),
        2 => (a_port(), a_port()).prop_map(|(one, other)| PortTarget::Range(one.min(other), one.max(other))),
        1 => select(vec!["http", "dns"]).prop_map(|name| PortTarget::Named(name.into())),
    ]
}

fn some_ports() -> impl Strategy<Value = Ports> {
    let condition = (a_protocol(), a_target()).prop_map(|(protocol, port)| PortMatch { protocol, port });
    prop_oneof![1 => Just(Ports::Any), 5 => vec(condition, 0..4).prop_map(Ports::Of)]
}

fn some_named() -> impl Strategy<Value = Vec<NamedPort>> {
    let one = (select(vec!["http", "dns"]), select(vec![TCP, UDP, SCTP]), a_port());
    vec(one.prop_map(|(name, protocol, number)| port(name, protocol, number)), 0..3)
}

/// What is to be seen; ports that touch among it.
fn some_visible() -> impl Strategy<Value = Box<[Visible]>> {
    let what = select(vec![
        (TCP, AppProtocol::Http),
        (TCP, AppProtocol::Tls),
        (TCP, AppProtocol::Dns),
        (UDP, AppProtocol::Dns),
    ]);
    let one = (select(Direction::BOTH.to_vec()), what, select(vec![1, 8, 52, 53, 54, 80, 81, 443, 65534, 65535]));
    let key = |(direction, (protocol, application), port): (_, (_, _), u16)| ((direction, protocol, port), application);
    vec(one.prop_map(key), 0..5).prop_map(|list| {
        let distinct: BTreeMap<_, _> = list.into_iter().collect();
        let visible = |((direction, protocol, port), application)| Visible { direction, protocol, port, application };
        distinct.into_iter().map(visible).collect()
    })
}

fn usable<T: std::fmt::Debug + Clone>(strategy: impl Strategy<Value = T>) -> impl Strategy<Value = Usable<T>> {
    prop_oneof![8 => strategy.prop_map(Ok), 1 => Just(()).prop_map(|()| unusable())]
}

fn a_name() -> NamePattern {
    NamePattern::name("example.com").unwrap()
}

fn a_network_policy() -> impl Strategy<Value = Policy> {
    let peer = select(vec![
        np_peer("a"),
        np_peer("b"),
        NetworkPeer::Pods { namespaces: Some(LabelSelector::default()), pods: labelled("app", "a") },
        NetworkPeer::IpBlock { cidr: net("10.0.0.0/8"), except: vec![] },
        NetworkPeer::IpBlock { cidr: net("10.0.0.0/8"), except: vec![net("10.1.0.0/16")] },
        NetworkPeer::Names(vec![a_name()]),
    ]);
    let peers = prop_oneof![1 => Just(NetworkPeers::All), 5 => vec(usable(peer), 0..3).prop_map(NetworkPeers::Of)];
    let rules = vec(usable((peers, some_ports())), 0..3);
    (rules, name(), any::<bool>()).prop_map(|(rules, name, audit)| {
        let mut policy = network(&name, []);
        let rules: Vec<_> = rules
            .into_iter()
            .map(|rule| rule.map(|(peers, ports)| crate::model::network_policy::NetworkRule { peers, ports }))
            .collect();
        (policy.ingress, policy.egress) = (Some(rules.clone()), Some(rules));
        policy.audit = audit;
        Policy::Network(policy)
    })
}

fn a_cluster_policy() -> impl Strategy<Value = Policy> {
    let peer = select(vec![
        cluster_peer("a"),
        cluster_peer("b"),
        ClusterPeer::Pods(ClusterSubject::Namespaces(LabelSelector::default())),
        ClusterPeer::Networks(vec![net("10.0.0.0/8"), net("11.0.0.0/8")]),
        ClusterPeer::Nodes(LabelSelector::default()),
        ClusterPeer::Names(vec![a_name()]),
    ]);
    let matches = (vec(peer, 1..3), some_ports()).prop_map(|(peers, ports)| ClusterMatch { peers, ports });
    let action = select(vec![Action::Accept, Action::Deny, Action::Pass]);
    let tier = select(vec![ClusterTier::Admin, ClusterTier::Baseline]);
    let rules = vec((action, usable(matches)), 0..4);
    (tier, 0..3_u16, name(), rules, weighted()).prop_map(|(tier, priority, name, rules, audit)| {
        let mut policy = cluster(tier, priority, &name, rules);
        policy.audit = audit;
        Policy::Cluster(policy)
    })
}

fn a_cilium_policy() -> impl Strategy<Value = Policy> {
    let cidr = |text: &str, except: &[&str]| CidrRule {
        block: CidrBlock::Cidr(net(text)),
        except: except.iter().map(|text| net(text)).collect(),
    };
    let peers = select(vec![
        CiliumPeers::Any,
        CiliumPeers::Nothing,
        endpoints("a"),
        CiliumPeers::Endpoints(vec![app("a"), app("b")]),
        CiliumPeers::Cidrs(vec![cidr("10.0.0.0/8", &[]), cidr("11.0.0.0/8", &["11.1.0.0/16"])]),
        CiliumPeers::Entities(vec![Entity::World, Entity::Health]),
        CiliumPeers::Entities(vec![Entity::Host]),
        CiliumPeers::Entities(vec![Entity::All, Entity::Host]),
        CiliumPeers::Services(vec![ServiceSelector::Named { namespace: Some("shop".into()), name: "db".into() }]),
        CiliumPeers::Groups(vec!["none".into()]),
        CiliumPeers::Nodes(vec![LabelSelector::default()]),
        CiliumPeers::Names(vec![a_name()]),
    ]);
    let application = prop_oneof![
        3 => Just(Application::None),
        2 => Just(Application::Http([].into())),
        1 => Just(Application::ServerNames([].into())),
        1 => Just(Application::Dns([].into())),
    ];
    let ports = (some_ports(), application).prop_map(|(ports, application)| CiliumPorts { ports, application });
    let allow = (peers.clone(), vec(ports, 1..3)).prop_map(|(peers, ports)| CiliumAllow { peers, ports });
    let deny = (peers, some_ports()).prop_map(|(peers, ports)| CiliumDeny { peers, ports });
    let spec = (vec(usable(allow), 0..4), vec(usable(deny), 0..2), any::<bool>())
        .prop_map(|(allows, denies, closed)| if closed { spec(allows, denies) } else { open(spec(allows, denies)) });
    (vec(spec, 1..3), name(), weighted()).prop_map(|(rules, name, audit)| {
        let mut policy = cilium(&name, rules);
        policy.audit = audit;
        Policy::Cilium(policy)
    })
}

fn name() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "c", "d", "e", "f"]).prop_map(String::from)
}

fn weighted() -> impl Strategy<Value = bool> {
    prop_oneof![3 => Just(false), 1 => Just(true)]
}

fn some_policies() -> impl Strategy<Value = Vec<Selected>> {
    let policy = prop_oneof![a_network_policy(), a_cluster_policy(), a_cilium_policy()];
    vec(policy, 0..7).prop_map(|mut policies| {
        policies.sort_by(|one, other| one.id().cmp(other.id()));
        policies.dedup_by(|one, other| one.id() == other.id());
        policies.into_iter().map(selected).collect()
    })
}

fn an_origin() -> impl Strategy<Value = Origin> {
    prop_oneof![4 => Just(Origin::Forwarded), 1 => Just(Origin::OwnNode), 2 => Just(Origin::Hairpin)]
}

/// Ports at which an answer of the row may change.
fn corners(row: &Row<Judgement>) -> Vec<(Protocol, u16)> {
    let mut corners: BTreeSet<(Protocol, u16)> = (0..=255).map(|number| (Protocol(number), 0)).collect();
    for (prefix, _) in &row.entries {
        if let Some(protocol) = prefix.protocol {
            let size = 1_u32 << (16 - u32::from(prefix.bits));
            let behind = u32::from(prefix.port) + size;
            corners.insert((protocol, prefix.port));
            corners.extend(u16::try_from(behind).ok().map(|behind| (protocol, behind)));
        }
    }
    corners.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_row_is_the_decision_procedure(
        policies in some_policies(),
        direction in select(Direction::BOTH.to_vec()),
        origin in an_origin(),
        own in some_named(),
        theirs in some_named(),
        seed in vec(any::<bool>(), 32),
        turn in 0..7_usize,
        visible in some_visible(),
    ) {
        let subject = PodTemplate { visible: visible.clone(), ..template(&own) };
        let compile = |policies: &[Selected]| {
            Program::new(direction, policies, &subject, &|_| Networks::default(), &Settings::default())
        };
        let program = compile(&policies);
        let mut turned = policies.clone();
        turned.rotate_left(turn.min(policies.len()));
        prop_assert_eq!(&compile(&turned), &program);

        let predicates = program.predicates();
        prop_assert!(predicates.windows(2).all(|pair| pair[0] < pair[1]));
        // The own node is host, whatever else it is.
        let sure = |predicate: &Predicate| origin == Origin::OwnNode && *predicate == Predicate::Entity(Entity::Host);
        let holding = predicates.iter().zip(seed.iter().cycle());
        let truth: BTreeSet<Predicate> =
            holding.filter(|(one, holds)| **holds || sure(one)).map(|(one, _)| one.clone()).collect();
        let holds = |index: usize| truth.contains(&predicates[index]);
        let row = program.row(&PeerFacts { holds: &holds, named_ports: &theirs, origin });

        prop_assert_eq!(row.entries[0].0, PortPrefix::ANY);
        prop_assert!(row.entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let named = match direction {
            Direction::Ingress => &own,
            Direction::Egress => &theirs,
        };
        for protocol in PROTOCOLS {
            for port in PORTS {
                let packet = Packet { direction, origin, truth: &truth, named, visible: &visible, protocol, port };
                prop_assert_eq!(row.get(protocol, port), Some(&judge(&policies, &packet)), "{} {}", protocol, port);
            }
        }
        let corners = corners(&row);
        for left_out in 0..row.entries.len() {
            let mut shorter = row.clone();
            shorter.entries.remove(left_out);
            let same = corners.iter().all(|&(protocol, port)| shorter.get(protocol, port) == row.get(protocol, port));
            prop_assert!(!same, "{:?} is not needed", row.entries[left_out]);
        }
        if program.is_open() {
            prop_assert_eq!(row.entries.len(), 1);
        }
    }
}
