//! Random policies of all dialects, as the parser would have read them.

use std::sync::Arc;

use ipnet::IpNet;
use sluice_policy_core::flow::{Direction, Protocol};
use sluice_policy_core::l7::dns::NamePattern;
use sluice_policy_core::l7::http::{HeaderMatchSpec, HttpRule, HttpRuleSpec, MismatchAction};
use sluice_policy_core::l7::sni::ServerNamePattern;
use sluice_policy_core::model::cilium::{
    Application, CidrBlock, CidrRule, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPorts, CiliumRule, Entity,
    ServiceSelector,
};
use sluice_policy_core::model::cluster_network_policy::{
    Action, BANP_PRIORITY, ClusterMatch, ClusterPeer, ClusterRule, ClusterSubject, ClusterTier,
};
use sluice_policy_core::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use sluice_policy_core::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::model::selector::{
    CiliumRequirement, CiliumSelector, LabelSelector, LabelSource, Operator, Requirement,
};
use sluice_policy_core::model::{
    CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyKind, PolicyRef, Text, Unusable, Usable,
};

use super::Random;
use super::objects::{
    self, ACCOUNTS, APPS, NAMESPACES, PORT_NAMES, ROLES, SECURITY_GROUPS, TEAMS, aws_group, block, one_of, policy_ref,
    port, text,
};

/// A policy of any dialect.
pub(crate) fn policy(random: &mut Random) -> Policy {
    let id = policy_ref(random);
    let audit = random.one_in(7);
    match id.kind {
        PolicyKind::NetworkPolicy | PolicyKind::AwsApplicationNetworkPolicy => {
            Policy::Network(network_policy(random, id, audit))
        }
        PolicyKind::CiliumNetworkPolicy | PolicyKind::CiliumClusterwideNetworkPolicy => {
            // `spec`, `specs`, or both.
            let mut number = u16::from(random.one_in(3));
            let rules = random.list(1, 2, |random| {
                number += 1;
                cilium_rule(random, &id, number - 1)
            });
            Policy::Cilium(CiliumPolicy { id, audit, rules })
        }
        PolicyKind::AdminNetworkPolicy
        | PolicyKind::ClusterNetworkPolicy
        | PolicyKind::AwsClusterNetworkPolicy
        | PolicyKind::BaselineAdminNetworkPolicy => Policy::Cluster(cluster_policy(random, id, audit)),
    }
}

/// One part in twenty cannot be used.
pub(crate) fn usable<T>(random: &mut Random, one: impl FnOnce(&mut Random) -> T) -> Usable<T> {
    usable_but(20, random, one)
}

/// One in so many cannot be used.
pub(crate) fn usable_but<T>(one_in: usize, random: &mut Random, one: impl FnOnce(&mut Random) -> T) -> Usable<T> {
    if random.one_in(one_in) {
        return Err(Unusable { path: "spec.unknown".to_owned(), reason: "this field is not known".to_owned() });
    }
    Ok(one(random))
}

/// Without doubles, which the API refuses in some lists.
fn distinct<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    let mut found = Vec::new();
    for one in list {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

// --- selectors

fn requirement(random: &mut Random, key: &str, values: &[&str]) -> Requirement {
    let mut some: Vec<Text> = random.list(1, 2, |random| one_of(random, values));
    some.sort();
    some.dedup();
    let (operator, values) = match random.below(8) {
        0 | 1 => (Operator::NotIn, some),
        2 => (Operator::Exists, Vec::new()),
        3 => (Operator::DoesNotExist, Vec::new()),
        _ => (Operator::In, some),
    };
    Requirement { key: text(key), operator, values }
}

fn selector(mut requirements: Vec<Requirement>) -> LabelSelector {
    requirements.sort();
    requirements.dedup();
    LabelSelector { requirements }
}

fn pod_selector(random: &mut Random) -> LabelSelector {
    selector(random.list(0, 2, |random| match random.below(3) {
        0 => requirement(random, "role", &ROLES),
        _ => requirement(random, "app", &APPS),
    }))
}

fn namespace_selector(random: &mut Random) -> LabelSelector {
    selector(random.list(0, 2, |random| match random.below(4) {
        0 => requirement(random, "kubernetes.io/metadata.name", &NAMESPACES),
        1 => requirement(random, "env", &["prod"]),
        _ => requirement(random, "team", &TEAMS),
    }))
}

fn node_selector(random: &mut Random) -> LabelSelector {
    selector(random.list(0, 1, |random| match random.below(3) {
        0 => requirement(random, "app", &APPS),
        _ => requirement(random, "zone", &["1", "2"]),
    }))
}

/// One condition of an endpoint selector.
fn cilium_requirement(random: &mut Random) -> CiliumRequirement {
    let (key, values): (&str, &[&str]) = match random.below(12) {
        0 => ("io.cilium.k8s.namespace.labels.team", &TEAMS),
        1 => ("io.cilium.k8s.policy.serviceaccount", &ACCOUNTS),
        2 => ("io.cilium.k8s.policy.cluster", &["default", "other"]),
        3 => ("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", &NAMESPACES),
        4 => ("host", &[""]),
        5 | 6 => ("role", &ROLES),
        _ => ("app", &APPS),
    };
    let source = match random.below(12) {
        0 => LabelSource::Other(text("container")),
        1..=3 => LabelSource::Kubernetes,
        _ => LabelSource::Any,
    };
    CiliumRequirement { source, requirement: requirement(random, key, values) }
}

fn reserved_requirement(random: &mut Random) -> CiliumRequirement {
    let key =
        *random.pick(&["host", "host", "remote-node", "world", "world-ipv4", "world-ipv6", "kube-apiserver", "init"]);
    CiliumRequirement { source: LabelSource::Reserved, requirement: requirement(random, key, &["", "no"]) }
}

const NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";

fn in_namespace(random: &mut Random) -> CiliumRequirement {
    let source = if random.one_in(2) { LabelSource::Any } else { LabelSource::Kubernetes };
    CiliumRequirement { source, requirement: requirement(random, NAMESPACE_LABEL, &NAMESPACES) }
}

/// Whether a condition is about an endpoint's namespace: the label of its name, or its labels.
fn names_namespace(one: &CiliumRequirement) -> bool {
    is_system(one)
        && (&*one.requirement.key == NAMESPACE_LABEL
            || one.requirement.key.starts_with("io.cilium.k8s.namespace.labels."))
}

const fn is_system(one: &CiliumRequirement) -> bool {
    matches!(one.source, LabelSource::Any | LabelSource::Kubernetes)
}

/// A selector with what its policy adds to it (reference 2.3). A subject of a namespaced policy is of its namespace, whatever
/// else was asked; a peer is, unless it says something of namespaces or of `reserved:` labels. Where no namespace is asked
/// for after that, there has to be one: "not of this namespace" does not mean the world.
pub(crate) fn with_namespace(
    mut requirements: Vec<CiliumRequirement>,
    id: &PolicyRef,
    subject: bool,
) -> CiliumSelector {
    let added = |operator, values| CiliumRequirement {
        source: LabelSource::Kubernetes,
        requirement: Requirement { key: text(NAMESPACE_LABEL), operator, values },
    };
    let is_name = |one: &CiliumRequirement| is_system(one) && &*one.requirement.key == NAMESPACE_LABEL;
    let says = requirements.iter().any(|one| one.source == LabelSource::Reserved || is_name(one));
    match &id.namespace {
        Some(own) if subject || (!says && !requirements.iter().any(names_namespace)) => {
            requirements.retain(|one| !is_name(one));
            requirements.push(added(Operator::In, vec![Text::clone(own)]));
        }
        None if !says => requirements.push(added(Operator::Exists, Vec::new())),
        _ => {}
    }
    requirements.sort();
    requirements.dedup();
    CiliumSelector { requirements }
}

fn cilium_subject(random: &mut Random, id: &PolicyRef) -> CiliumSelector {
    let mut requirements: Vec<_> = random.maybe(2, cilium_requirement).into_iter().collect();
    if random.one_in(10) {
        requirements.push(reserved_requirement(random));
    }
    if random.one_in(3) {
        requirements.push(in_namespace(random));
    }
    with_namespace(requirements, id, true)
}

fn cilium_endpoint(random: &mut Random, id: &PolicyRef) -> CiliumSelector {
    let mut requirements = random.list(0, 2, cilium_requirement);
    match random.below(6) {
        0 => {
            requirements = random.list(1, 2, reserved_requirement);
            // A key without a source means a reserved label too.
            if random.one_in(2) {
                let mut one = reserved_requirement(random);
                one.source = LabelSource::Any;
                requirements.push(one);
            }
        }
        1 => requirements.push(reserved_requirement(random)),
        2 | 3 => requirements.push(in_namespace(random)),
        _ => {}
    }
    with_namespace(requirements, id, false)
}

// --- ports

fn range(random: &mut Random) -> PortTarget {
    let first = port(random);
    if random.one_in(2) {
        return PortTarget::Range(first, first);
    }
    let last = port(random);
    PortTarget::Range(first.min(last), first.max(last))
}

fn transport(random: &mut Random) -> ProtocolMatch {
    ProtocolMatch::Exactly(objects::transport(random))
}

fn named(random: &mut Random) -> PortTarget {
    PortTarget::Named(one_of(random, &PORT_NAMES))
}

fn network_ports(random: &mut Random) -> Ports {
    if random.one_in(3) {
        return Ports::Any;
    }
    Ports::Of(random.list(1, 3, |random| {
        let port = match random.below(5) {
            0 => PortTarget::Any,
            1 => named(random),
            _ => range(random),
        };
        PortMatch { protocol: transport(random), port }
    }))
}

fn cluster_ports(random: &mut Random, with_names: bool) -> Ports {
    if random.one_in(3) {
        return Ports::Any;
    }
    Ports::Of(random.list(1, 3, |random| match random.below(5) {
        0 if with_names => PortMatch { protocol: ProtocolMatch::Transport, port: named(random) },
        _ => PortMatch { protocol: transport(random), port: range(random) },
    }))
}

/// The ports of a rule without application rules: all, messages of ICMP, or ports.
fn cilium_ports(random: &mut Random) -> Ports {
    match random.below(8) {
        0 | 1 => Ports::Any,
        2 => Ports::Of(random.list(1, 2, icmp)),
        _ => Ports::Of(ports_of_protocols(random)),
    }
}

fn ports_of_protocols(random: &mut Random) -> Vec<PortMatch> {
    if random.one_in(6) {
        return random.list(1, 2, |random| {
            let protocol = *random.pick(&[Protocol(47), Protocol(2), Protocol(112)]);
            PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Any }
        });
    }
    random.list(1, 3, |random| {
        let protocol = if random.one_in(4) { ProtocolMatch::Transport } else { transport(random) };
        let port = match random.below(5) {
            0 => PortTarget::Any,
            1 => named(random),
            _ => range(random),
        };
        PortMatch { protocol, port }
    })
}

fn icmp(random: &mut Random) -> PortMatch {
    let protocol = *random.pick(&[Protocol::ICMP, Protocol::ICMPV6]);
    let kind = *random.pick(&[0, 8, 128]);
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Range(kind, kind) }
}

// --- NetworkPolicy

fn network_policy(random: &mut Random, id: PolicyRef, audit: bool) -> NetworkPolicy {
    let aws = id.kind == PolicyKind::AwsApplicationNetworkPolicy;
    let mut rules = |direction| {
        (!random.one_in(3))
            .then(|| random.list(0, 3, |random| usable(random, |random| network_rule(random, direction, aws))))
    };
    let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
    // `policyTypes` has one direction at the least.
    let ingress = if egress.is_none() { ingress.or(Some(Vec::new())) } else { ingress };
    let pods = if random.one_in(2) { LabelSelector::default() } else { pod_selector(random) };
    NetworkPolicy { id, audit, pods, ingress, egress }
}

fn network_rule(random: &mut Random, direction: Direction, aws: bool) -> NetworkRule {
    let peers = if random.one_in(5) {
        NetworkPeers::All
    } else {
        NetworkPeers::Of(random.list(1, 2, |random| usable(random, |random| network_peer(random, direction, aws))))
    };
    NetworkRule { peers, ports: network_ports(random) }
}

fn network_peer(random: &mut Random, direction: Direction, aws: bool) -> NetworkPeer {
    match random.below(6) {
        0 if aws && direction == Direction::Egress => NetworkPeer::Names(distinct(random.list(1, 2, domain))),
        0..=2 => {
            let cidr = block(random);
            NetworkPeer::IpBlock { cidr, except: inside(random, cidr) }
        }
        _ => {
            let namespaces = (!random.one_in(3)).then(|| namespace_selector(random));
            NetworkPeer::Pods { namespaces, pods: pod_selector(random) }
        }
    }
}

/// Blocks inside of a block: the API takes no others as its exceptions.
fn inside(random: &mut Random, cidr: IpNet) -> Vec<IpNet> {
    let others = random.list(0, 5, block);
    others.into_iter().filter(|other| *other != cidr && cidr.contains(other)).collect()
}

fn domain(random: &mut Random) -> NamePattern {
    NamePattern::domain(&one_of(random, &["example.com", "*.example.com", "a.example.com", "example.org"])).unwrap()
}

// --- ClusterNetworkPolicy

fn cluster_policy(random: &mut Random, id: PolicyRef, audit: bool) -> ClusterNetworkPolicy {
    let kind = id.kind;
    let tier = match kind {
        PolicyKind::AdminNetworkPolicy => ClusterTier::Admin,
        PolicyKind::BaselineAdminNetworkPolicy => ClusterTier::Baseline,
        _ => *random.pick(&[ClusterTier::Admin, ClusterTier::Baseline]),
    };
    let priority = match kind {
        PolicyKind::BaselineAdminNetworkPolicy => BANP_PRIORITY,
        // Few, so that some have the same.
        _ => *random.pick(&[0, 5, 5, 1000]),
    };
    let subject = match random.below(12) {
        0 => None,
        1..=4 => Some(ClusterSubject::Namespaces(LabelSelector::default())),
        _ => Some(cluster_subject(random)),
    };
    let mut rules = |direction| random.list(0, 3, |random| cluster_rule(random, direction, kind));
    let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
    ClusterNetworkPolicy { id, audit, tier, priority, subject, ingress, egress }
}

fn cluster_subject(random: &mut Random) -> ClusterSubject {
    let namespaces = namespace_selector(random);
    if random.one_in(2) {
        return ClusterSubject::Namespaces(namespaces);
    }
    ClusterSubject::Pods { namespaces, pods: pod_selector(random) }
}

fn cluster_rule(random: &mut Random, direction: Direction, kind: PolicyKind) -> ClusterRule {
    let mut actions = vec![Action::Accept, Action::Deny, Action::Pass];
    if kind == PolicyKind::BaselineAdminNetworkPolicy {
        actions.pop();
    }
    let action = *random.pick(&actions);
    let matches = usable(random, |random| {
        let peers = random.list(1, 2, |random| cluster_peer(random, direction, kind, action));
        let only_pods = peers.iter().all(|peer| matches!(peer, ClusterPeer::Pods(_)));
        ClusterMatch { peers, ports: cluster_ports(random, only_pods) }
    });
    let name = random.maybe(3, |_| text("a rule"));
    ClusterRule { name, action, matches }
}

fn cluster_peer(random: &mut Random, direction: Direction, kind: PolicyKind, action: Action) -> ClusterPeer {
    let egress = direction == Direction::Egress;
    // AWS has them with Pass, too.
    let with_names = match action {
        Action::Accept => egress && kind != PolicyKind::BaselineAdminNetworkPolicy,
        Action::Pass => egress && kind == PolicyKind::AwsClusterNetworkPolicy,
        Action::Deny => false,
    };
    let with_nodes = egress && kind != PolicyKind::AwsClusterNetworkPolicy;
    match random.below(7) {
        0 | 1 if egress => ClusterPeer::Networks(distinct(random.list(1, 2, block))),
        2 if with_nodes => ClusterPeer::Nodes(node_selector(random)),
        3 if with_names => ClusterPeer::Names(distinct(random.list(1, 2, domain))),
        _ => ClusterPeer::Pods(cluster_subject(random)),
    }
}

// --- cilium.io

fn cilium_rule(random: &mut Random, id: &PolicyRef, number: u16) -> CiliumRule {
    let subject = cilium_subject(random, id);
    let mut allows = |direction| {
        random.list(0, 2, |random| {
            usable(random, |random| {
                let peers = cilium_peers(random, direction, id, false);
                let ports = cilium_port_lists(random, direction);
                CiliumAllow { peers: written(peers, ports == [CiliumPorts::any()]), ports }
            })
        })
    };
    let (ingress, egress) = (allows(Direction::Ingress), allows(Direction::Egress));
    let mut denials = |direction| {
        let most = usize::from(random.one_in(2));
        random.list(0, most, |random| {
            usable(random, |random| {
                let peers = cilium_peers(random, direction, id, true);
                let ports = cilium_ports(random);
                CiliumDeny { peers: written(peers, ports == Ports::Any), ports }
            })
        })
    };
    let (ingress_deny, egress_deny) = (denials(Direction::Ingress), denials(Direction::Egress));
    let mut default_deny = |rules: bool| if random.one_in(3) { random.one_in(4) } else { rules };
    CiliumRule {
        number,
        subject,
        default_deny_ingress: default_deny(!ingress.is_empty() || !ingress_deny.is_empty()),
        default_deny_egress: default_deny(!egress.is_empty() || !egress_deny.is_empty()),
        ingress,
        ingress_deny,
        egress,
        egress_deny,
        log: random.maybe(5, |_| text("seen")),
    }
}

/// An element that has neither peers nor ports is nobody.
fn written(peers: CiliumPeers, any_port: bool) -> CiliumPeers {
    if any_port && peers == CiliumPeers::Any { CiliumPeers::Nothing } else { peers }
}

fn cilium_peers(random: &mut Random, direction: Direction, id: &PolicyRef, deny: bool) -> CiliumPeers {
    let egress = direction == Direction::Egress;
    match random.below(14) {
        0 => CiliumPeers::Any,
        1 => CiliumPeers::Nothing,
        2 | 3 => CiliumPeers::Cidrs(random.list(1, 2, cidr_rule)),
        4..=6 => CiliumPeers::Entities(random.list(1, 2, entity)),
        7 if deny && !egress => CiliumPeers::Entities(vec![Entity::Host, entity(random)]),
        7 if egress => CiliumPeers::Services(random.list(1, 2, service_selector)),
        12 if egress => CiliumPeers::Services(random.list(1, 2, service_selector)),
        8 => CiliumPeers::Groups(random.list(1, 2, |random| aws_group(SECURITY_GROUPS[usize::from(random.one_in(4))]))),
        9 => CiliumPeers::Nodes(random.list(1, 2, node_selector)),
        10 | 11 if egress && !deny => CiliumPeers::Names(random.list(1, 2, name_pattern)),
        _ => CiliumPeers::Endpoints(random.list(1, 2, |random| cilium_endpoint(random, id))),
    }
}

fn cidr_rule(random: &mut Random) -> CidrRule {
    let (block, mut except) = match random.below(5) {
        0 => {
            let name = match random.below(3) {
                0 => aws_group(SECURITY_GROUPS[0]),
                _ => one_of(random, &["g0", "g1", "g9"]),
            };
            (CidrBlock::Group(name), random.list(0, 1, block))
        }
        1 => {
            let labels = selector(random.list(0, 1, |random| requirement(random, "team", &TEAMS)));
            (CidrBlock::Groups(labels), random.list(0, 1, block))
        }
        _ => {
            let cidr = block(random);
            (CidrBlock::Cidr(cidr), inside(random, cidr))
        }
    };
    except.sort();
    except.dedup();
    CidrRule { block, except }
}

fn entity(random: &mut Random) -> Entity {
    *random.pick(&[
        Entity::All,
        Entity::All,
        Entity::World,
        Entity::World,
        Entity::WorldIpv4,
        Entity::WorldIpv6,
        Entity::Cluster,
        Entity::Cluster,
        Entity::Host,
        Entity::Host,
        Entity::RemoteNode,
        Entity::KubeApiserver,
        Entity::KubeApiserver,
        Entity::Init,
        Entity::Ingress,
        Entity::Unmanaged,
        Entity::Health,
        Entity::None,
    ])
}

fn service_selector(random: &mut Random) -> ServiceSelector {
    let namespace = random.maybe(3, |random| one_of(random, &NAMESPACES));
    if random.one_in(2) {
        return ServiceSelector::Named { namespace, name: one_of(random, &["s0", "s1", "s2", "kubernetes"]) };
    }
    ServiceSelector::Labels { namespace, selector: pod_selector(random) }
}

const PATTERNS: [&str; 6] = ["example.com", "*.example.com", "**.example.com", "a.example.com", "*", "exam*.com"];

fn name_pattern(random: &mut Random) -> NamePattern {
    NamePattern::cilium(&one_of(random, &PATTERNS)).unwrap()
}

/// The ports of an allowing element: without application rules, or one or two lists of which some have them.
fn cilium_port_lists(random: &mut Random, direction: Direction) -> Vec<CiliumPorts> {
    if random.one_in(3) {
        return vec![CiliumPorts { ports: cilium_ports(random), application: Application::None }];
    }
    random.list(1, 2, |random| match random.below(4) {
        0 => CiliumPorts::of(ports_of_protocols(random)),
        1 if direction == Direction::Egress => {
            let ports = random.list(1, 2, |random| {
                let protocol = *random.pick(&[Protocol::TCP, Protocol::UDP, Protocol::UDP]);
                let port = *random.pick(&[53, 53, 53, 80, 443]);
                PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Range(port, port) }
            });
            CiliumPorts {
                ports: Ports::Of(ports),
                application: Application::Dns(random.list(1, 2, name_pattern).into()),
            }
        }
        _ => {
            let ports = random.list(1, 2, |random| {
                let port = if random.one_in(4) { named(random) } else { range(random) };
                PortMatch { protocol: ProtocolMatch::Exactly(Protocol::TCP), port }
            });
            CiliumPorts { ports: Ports::Of(ports), application: over_tcp(random) }
        }
    })
}

fn over_tcp(random: &mut Random) -> Application {
    if random.one_in(3) {
        let names = random.list(1, 2, |random| ServerNamePattern::new(&one_of(random, &PATTERNS)).unwrap());
        return Application::ServerNames(names.into());
    }
    let rules = random.list(1, 2, |random| {
        let method = random.maybe(2, |random| (*random.pick(&["GET", "POST|PUT"])).to_owned());
        let path = random.maybe(2, |random| (*random.pick(&["/public/.*", "/"])).to_owned());
        let host = random.maybe(4, |random| (*random.pick(&["example.com", r".*\.example\.com"])).to_owned());
        let headers = random.maybe(6, |random| (*random.pick(&["X-Key", "X-Key: 1"])).to_owned());
        let header_matches = random.maybe(6, |random| HeaderMatchSpec {
            name: "X-Key".to_owned(),
            value: random.maybe(2, |_| "1".to_owned()),
            mismatch: *random.pick(&[MismatchAction::Refuse, MismatchAction::Log, MismatchAction::Delete]),
        });
        let (headers, header_matches) = (headers.into_iter().collect(), header_matches.into_iter().collect());
        Arc::new(HttpRule::new(HttpRuleSpec { path, method, host, headers, header_matches }).unwrap())
    });
    Application::Http(rules.into())
}
