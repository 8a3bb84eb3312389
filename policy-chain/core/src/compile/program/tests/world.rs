//! Policies in few words, and answers in fewer.

use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::{NamedPort, PodTemplate};
use crate::compile::predicate::{Namespaces, Predicate};
use crate::compile::program::{Networks, PeerFacts, Program, Selected};
use crate::compile::row::Row;
use crate::flow::{Direction, Judgement, ListRef, Origin, Outcome, Protocol, Reason, RuleRef, Verdict};
use crate::model::cilium::{Application, CiliumAllow, CiliumDeny, CiliumPeers, CiliumPorts, CiliumRule};
use crate::model::cluster_network_policy::{
    Action, ClusterMatch, ClusterPeer, ClusterRule, ClusterSubject, ClusterTier,
};
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};
use crate::model::selector::{CiliumRequirement, CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};
use crate::model::{
    CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyKind, PolicyRef, Text, Unusable, Usable,
};
use crate::settings::Settings;

pub(super) const TCP: Protocol = Protocol::TCP;
pub(super) const UDP: Protocol = Protocol::UDP;
pub(super) const SCTP: Protocol = Protocol::SCTP;
pub(super) const GRE: Protocol = Protocol(47);

pub(super) fn reference(kind: PolicyKind, namespace: Option<&str>, name: &str) -> PolicyRef {
    PolicyRef { kind, namespace: namespace.map(Text::from), name: name.into() }
}

pub(super) fn unusable<T>() -> Usable<T> {
    Err(Unusable { path: "spec".into(), reason: "not known".into() })
}

// Ports.

pub(super) fn ports(list: impl IntoIterator<Item = PortMatch>) -> Ports {
    Ports::Of(list.into_iter().collect())
}

pub(super) fn range(protocol: Protocol, first: u16, last: u16) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Range(first, last) }
}

pub(super) fn one(protocol: Protocol, port: u16) -> PortMatch {
    range(protocol, port, port)
}

pub(super) fn all_of(protocol: Protocol) -> PortMatch {
    PortMatch { protocol: ProtocolMatch::Exactly(protocol), port: PortTarget::Any }
}

pub(super) fn named(protocol: ProtocolMatch, name: &str) -> PortMatch {
    PortMatch { protocol, port: PortTarget::Named(name.into()) }
}

pub(super) fn tcp(port: u16) -> Ports {
    ports([one(TCP, port)])
}

pub(super) fn port(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, port }
}

// Selectors.

pub(super) fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
    Requirement { key: key.into(), operator, values: values.iter().map(|value| (*value).into()).collect() }
}

pub(super) fn labelled(key: &str, value: &str) -> LabelSelector {
    LabelSelector { requirements: vec![requirement(key, Operator::In, &[value])] }
}

pub(super) fn cilium_selector(list: &[(LabelSource, &str, Operator, &[&str])]) -> CiliumSelector {
    let requirements = list.iter().map(|(source, key, operator, values)| CiliumRequirement {
        source: source.clone(),
        requirement: requirement(key, *operator, values),
    });
    CiliumSelector { requirements: requirements.collect() }
}

pub(super) fn app(value: &'static str) -> CiliumSelector {
    CiliumSelector {
        requirements: vec![CiliumRequirement {
            source: LabelSource::Any,
            requirement: requirement("app", Operator::In, &[value]),
        }],
    }
}

pub(super) fn host_selector() -> CiliumSelector {
    cilium_selector(&[(LabelSource::Reserved, "host", Operator::Exists, &[])])
}

pub(super) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

// Peers. `a` and `b` are pods; each dialect has its own way to mean them, and its own predicate.

pub(super) fn np_peer(app: &str) -> NetworkPeer {
    NetworkPeer::Pods { namespaces: None, pods: labelled("app", app) }
}

pub(super) fn np_peers(app: &str) -> NetworkPeers {
    NetworkPeers::Of(vec![Ok(np_peer(app))])
}

pub(super) fn np_pods(app: &str) -> Predicate {
    Predicate::Pods { namespaces: Namespaces::Named("shop".into()), pods: labelled("app", app) }
}

pub(super) fn cluster_peer(app: &str) -> ClusterPeer {
    ClusterPeer::Pods(ClusterSubject::Pods { namespaces: LabelSelector::default(), pods: labelled("app", app) })
}

pub(super) fn cluster_pods(app: &str) -> Predicate {
    Predicate::Pods { namespaces: Namespaces::Labelled(LabelSelector::default()), pods: labelled("app", app) }
}

pub(super) fn endpoints(value: &'static str) -> CiliumPeers {
    CiliumPeers::Endpoints(vec![app(value)])
}

/// All ways to mean the pod `a` (or `b`).
pub(super) fn pod(app_name: &'static str) -> Vec<Predicate> {
    vec![np_pods(app_name), cluster_pods(app_name), Predicate::Endpoints(app(app_name))]
}

// Policies: the same rules in both directions.

pub(super) fn selected(policy: Policy) -> Selected {
    let specs = match &policy {
        Policy::Cilium(policy) => (0..).zip(&policy.rules).map(|(index, _)| index).collect(),
        Policy::Network(_) | Policy::Cluster(_) => Vec::new(),
    };
    Selected { policy: Arc::new(policy), specs }
}

pub(super) fn network(name: &str, rules: impl IntoIterator<Item = (NetworkPeers, Ports)>) -> NetworkPolicy {
    let rules: Vec<_> = rules.into_iter().map(|(peers, ports)| Ok(NetworkRule { peers, ports })).collect();
    NetworkPolicy {
        id: reference(PolicyKind::NetworkPolicy, Some("shop"), name),
        audit: false,
        pods: LabelSelector::default(),
        ingress: Some(rules.clone()),
        egress: Some(rules),
    }
}

pub(super) fn cluster(
    tier: ClusterTier,
    priority: u16,
    name: &str,
    rules: impl IntoIterator<Item = (Action, Usable<ClusterMatch>)>,
) -> ClusterNetworkPolicy {
    let rules: Vec<_> =
        rules.into_iter().map(|(action, matches)| ClusterRule { name: None, action, matches }).collect();
    ClusterNetworkPolicy {
        id: reference(PolicyKind::ClusterNetworkPolicy, None, name),
        audit: false,
        tier,
        priority,
        subject: Some(ClusterSubject::Namespaces(LabelSelector::default())),
        ingress: rules.clone(),
        egress: rules,
    }
}

/// A rule for the pod `app`.
pub(super) fn rule(action: Action, app: &str, ports: Ports) -> (Action, Usable<ClusterMatch>) {
    (action, Ok(ClusterMatch { peers: vec![cluster_peer(app)], ports }))
}

pub(super) fn cilium(name: &str, rules: impl IntoIterator<Item = CiliumRule>) -> CiliumPolicy {
    CiliumPolicy {
        id: reference(PolicyKind::CiliumNetworkPolicy, Some("shop"), name),
        audit: false,
        rules: (0..).zip(rules).map(|(number, rule)| CiliumRule { number, ..rule }).collect(),
    }
}

/// A spec; with default deny, as rules without `enableDefaultDeny` have it.
pub(super) fn spec(
    allows: impl IntoIterator<Item = Usable<CiliumAllow>>,
    denies: impl IntoIterator<Item = Usable<CiliumDeny>>,
) -> CiliumRule {
    let allows: Vec<_> = allows.into_iter().collect();
    let denies: Vec<_> = denies.into_iter().collect();
    CiliumRule {
        number: 0,
        subject: CiliumSelector::default(),
        default_deny_ingress: true,
        default_deny_egress: true,
        ingress: allows.clone(),
        ingress_deny: denies.clone(),
        egress: allows,
        egress_deny: denies,
        log: None,
    }
}

/// `enableDefaultDeny: {ingress: false, egress: false}`.
pub(super) fn open(rule: CiliumRule) -> CiliumRule {
    CiliumRule { default_deny_ingress: false, default_deny_egress: false, ..rule }
}

pub(super) fn allow(peers: CiliumPeers, ports: Ports, application: Application) -> Usable<CiliumAllow> {
    Ok(CiliumAllow { peers, ports: vec![CiliumPorts { ports, application }] })
}

pub(super) fn plain(peers: CiliumPeers, ports: Ports) -> Usable<CiliumAllow> {
    allow(peers, ports, Application::None)
}

pub(super) fn http(peers: CiliumPeers, ports: Ports) -> Usable<CiliumAllow> {
    allow(peers, ports, Application::Http([].into()))
}

pub(super) fn dns(peers: CiliumPeers, ports: Ports) -> Usable<CiliumAllow> {
    allow(peers, ports, Application::Dns([].into()))
}

pub(super) fn deny(peers: CiliumPeers, ports: Ports) -> Usable<CiliumDeny> {
    Ok(CiliumDeny { peers, ports })
}

// Questions and answers.

pub(super) fn program(direction: Direction, policies: impl IntoIterator<Item = Policy>) -> Program {
    let policies: Vec<_> = policies.into_iter().map(selected).collect();
    Program::new(direction, &policies, &template(&[]), &|_| Networks::default(), &Settings::default())
}

/// What a pod with these named ports has in common with others like it.
pub(super) fn template(ports: &[NamedPort]) -> PodTemplate {
    PodTemplate { service_account: "default".into(), ports: ports.into(), visible: Box::default() }
}

pub(super) fn ingress(policies: impl IntoIterator<Item = Policy>) -> Program {
    program(Direction::Ingress, policies)
}

pub(super) fn row(program: &Program, peer: &[Predicate], named_ports: &[NamedPort], origin: Origin) -> Row<Judgement> {
    let holds = |index: usize| peer.contains(&program.predicates()[index]);
    program.row(&PeerFacts { holds: &holds, named_ports, origin })
}

/// What happens to a packet of a peer, in short.
pub(super) fn ask(program: &Program, peer: &[Predicate], protocol: Protocol, port: u16) -> String {
    say(row(program, peer, &[], Origin::Forwarded).get(protocol, port).unwrap())
}

/// `allow db[0]`; `redirect api[0] else deny isolated api`; `allow nothing (dry run: deny audit![0])`.
pub(super) fn say(judgement: &Judgement) -> String {
    let mut text = match &judgement.verdict {
        Verdict::Redirect(proxied) => {
            assert_eq!(judgement.reason, Reason::Rule(proxied.lists.first().unwrap().at.rule.clone()));
            let rules: Vec<String> = proxied.lists.iter().map(|list| listed(&list.at)).collect();
            let otherwise = match &proxied.otherwise {
                Outcome::Allow(reason) => format!("allow {}", why(reason)),
                Outcome::Deny(reason) => format!("deny {}", why(reason)),
            };
            format!("redirect {} else {otherwise}", rules.join(" "))
        }
        verdict => format!("{} {}", verdict.as_str(), why(&judgement.reason)),
    };
    if let Some(audit) = &judgement.audit {
        text.push_str(&format!(" (dry run: {})", say(audit)));
    }
    text
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::Rule(rule) => short(rule),
        Reason::Isolated(policy) => format!("isolated {}", policy.name),
        Reason::NoPolicy => "nothing".into(),
        Reason::OwnNode => "own node".into(),
        other => other.to_string(),
    }
}

/// The first element of `toPorts` is not named.
fn listed(at: &ListRef) -> String {
    let element = if at.element > 0 { format!(".{}", at.element) } else { String::new() };
    format!("{}{element}", short(&at.rule))
}

fn short(rule: &RuleRef) -> String {
    let spec = if rule.spec > 0 { format!("/{}", rule.spec) } else { String::new() };
    let deny = if rule.deny { "!" } else { "" };
    format!("{}{spec}{deny}[{}]", rule.policy.name, rule.index)
}
