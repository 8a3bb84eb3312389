//! What decided, how often: a property over random cases says nothing of what they never reach.

use std::collections::BTreeMap;

use sluice_policy_core::cluster::Cluster;
use sluice_policy_core::flow::{Direction, Judgement, Origin, Outcome, Proxied, Query, Reason, RuleRef, Verdict};
use sluice_policy_core::model::cilium::{Application, CidrBlock, CiliumPeers};
use sluice_policy_core::model::cluster_network_policy::{ClusterPeer, ClusterRule};
use sluice_policy_core::model::network_policy::{NetworkPeer, NetworkPeers};
use sluice_policy_core::model::port::{PortTarget, Ports, ProtocolMatch};
use sluice_policy_core::model::{Policy, Text, Usable};

/// What has to come up.
pub(crate) const WANTED: &[&str] = &[
    "NetworkPolicy peers: all",
    "NetworkPolicy peers: pods of the namespace",
    "NetworkPolicy peers: pods of namespaces",
    "NetworkPolicy peers: block",
    "NetworkPolicy peers: block with exceptions",
    "NetworkPolicy ports: all",
    "NetworkPolicy ports: any",
    "NetworkPolicy ports: one",
    "NetworkPolicy ports: range",
    "NetworkPolicy ports: named",
    "ApplicationNetworkPolicy peers: all",
    "ApplicationNetworkPolicy peers: pods of the namespace",
    "ApplicationNetworkPolicy peers: pods of namespaces",
    "ApplicationNetworkPolicy peers: block",
    "ApplicationNetworkPolicy peers: block with exceptions",
    "ApplicationNetworkPolicy ports: all",
    "ApplicationNetworkPolicy ports: any",
    "ApplicationNetworkPolicy ports: one",
    "ApplicationNetworkPolicy ports: range",
    "ApplicationNetworkPolicy ports: named",
    "ApplicationNetworkPolicy peers: names",
    "AdminNetworkPolicy peers: pods",
    "AdminNetworkPolicy peers: networks",
    "AdminNetworkPolicy peers: nodes",
    "AdminNetworkPolicy peers: names",
    "AdminNetworkPolicy ports: all",
    "AdminNetworkPolicy ports: one",
    "AdminNetworkPolicy ports: range",
    "AdminNetworkPolicy ports: named of any transport",
    "ClusterNetworkPolicy peers: pods",
    "ClusterNetworkPolicy peers: networks",
    "ClusterNetworkPolicy peers: nodes",
    "ClusterNetworkPolicy peers: names",
    "ClusterNetworkPolicy ports: all",
    "ClusterNetworkPolicy ports: one",
    "ClusterNetworkPolicy ports: range",
    "ClusterNetworkPolicy ports: named of any transport",
    "BaselineAdminNetworkPolicy peers: pods",
    "BaselineAdminNetworkPolicy peers: networks",
    "BaselineAdminNetworkPolicy peers: nodes",
    "BaselineAdminNetworkPolicy ports: all",
    "BaselineAdminNetworkPolicy ports: one",
    "BaselineAdminNetworkPolicy ports: range",
    "BaselineAdminNetworkPolicy ports: named of any transport",
    "AdminNetworkPolicy: Admin Accept",
    "AdminNetworkPolicy: Admin Deny",
    "AdminNetworkPolicy: Admin Deny, unusable",
    "AdminNetworkPolicy: Admin Pass, unusable",
    "ClusterNetworkPolicy: Admin Accept",
    "ClusterNetworkPolicy: Admin Deny",
    "ClusterNetworkPolicy: Admin Deny, unusable",
    "ClusterNetworkPolicy: Admin Pass, unusable",
    "ClusterNetworkPolicy: Baseline Accept",
    "ClusterNetworkPolicy: Baseline Deny",
    "ClusterNetworkPolicy: Baseline Deny, unusable",
    "ClusterNetworkPolicy: Baseline Pass, unusable",
    "BaselineAdminNetworkPolicy: Baseline Accept",
    "BaselineAdminNetworkPolicy: Baseline Deny",
    "BaselineAdminNetworkPolicy: Baseline Deny, unusable",
    "CiliumNetworkPolicy allow: any",
    "CiliumNetworkPolicy allow: endpoints",
    "CiliumNetworkPolicy allow: cidrs",
    "CiliumNetworkPolicy allow: groups",
    "CiliumNetworkPolicy allow: nodes",
    "CiliumNetworkPolicy allow: services",
    "CiliumNetworkPolicy allow: names",
    "CiliumNetworkPolicy allow: entity All",
    "CiliumNetworkPolicy allow: entity World",
    "CiliumNetworkPolicy allow: entity WorldIpv4",
    "CiliumNetworkPolicy allow: entity WorldIpv6",
    "CiliumNetworkPolicy allow: entity Cluster",
    "CiliumNetworkPolicy allow: entity Host",
    "CiliumNetworkPolicy allow: entity RemoteNode",
    "CiliumNetworkPolicy allow: entity KubeApiserver",
    "CiliumNetworkPolicy deny: any",
    "CiliumNetworkPolicy deny: endpoints",
    "CiliumNetworkPolicy deny: cidrs",
    "CiliumNetworkPolicy deny: groups",
    "CiliumNetworkPolicy deny: nodes",
    "CiliumNetworkPolicy deny: services",
    "CiliumNetworkPolicy deny: entity All",
    "CiliumNetworkPolicy deny: entity World",
    "CiliumNetworkPolicy deny: entity Cluster",
    "CiliumNetworkPolicy deny: entity Host",
    "CiliumNetworkPolicy deny: entity KubeApiserver",
    "CiliumNetworkPolicy application: none",
    "CiliumNetworkPolicy application: http",
    "CiliumNetworkPolicy application: dns",
    "CiliumNetworkPolicy application: server names",
    "CiliumNetworkPolicy ports: all",
    "CiliumNetworkPolicy ports: any",
    "CiliumNetworkPolicy ports: one",
    "CiliumNetworkPolicy ports: range",
    "CiliumNetworkPolicy ports: named",
    "CiliumNetworkPolicy ports: any of any transport",
    "CiliumNetworkPolicy ports: one of any transport",
    "CiliumNetworkPolicy ports: range of any transport",
    "CiliumNetworkPolicy ports: named of any transport",
    "CiliumNetworkPolicy: deny, unusable",
    "CiliumNetworkPolicy deny: group that cannot be used",
    "CiliumClusterwideNetworkPolicy allow: any",
    "CiliumClusterwideNetworkPolicy allow: endpoints",
    "CiliumClusterwideNetworkPolicy allow: cidrs",
    "CiliumClusterwideNetworkPolicy allow: groups",
    "CiliumClusterwideNetworkPolicy allow: nodes",
    "CiliumClusterwideNetworkPolicy allow: services",
    "CiliumClusterwideNetworkPolicy allow: names",
    "CiliumClusterwideNetworkPolicy allow: entity All",
    "CiliumClusterwideNetworkPolicy allow: entity World",
    "CiliumClusterwideNetworkPolicy allow: entity WorldIpv4",
    "CiliumClusterwideNetworkPolicy allow: entity WorldIpv6",
    "CiliumClusterwideNetworkPolicy allow: entity Cluster",
    "CiliumClusterwideNetworkPolicy allow: entity Host",
    "CiliumClusterwideNetworkPolicy allow: entity RemoteNode",
    "CiliumClusterwideNetworkPolicy allow: entity KubeApiserver",
    "CiliumClusterwideNetworkPolicy deny: any",
    "CiliumClusterwideNetworkPolicy deny: endpoints",
    "CiliumClusterwideNetworkPolicy deny: cidrs",
    "CiliumClusterwideNetworkPolicy deny: groups",
    "CiliumClusterwideNetworkPolicy deny: nodes",
    "CiliumClusterwideNetworkPolicy deny: services",
    "CiliumClusterwideNetworkPolicy deny: entity All",
    "CiliumClusterwideNetworkPolicy deny: entity World",
    "CiliumClusterwideNetworkPolicy deny: entity Cluster",
    "CiliumClusterwideNetworkPolicy deny: entity Host",
    "CiliumClusterwideNetworkPolicy deny: entity KubeApiserver",
    "CiliumClusterwideNetworkPolicy application: none",
    "CiliumClusterwideNetworkPolicy application: http",
    "CiliumClusterwideNetworkPolicy application: dns",
    "CiliumClusterwideNetworkPolicy application: server names",
    "CiliumClusterwideNetworkPolicy ports: all",
    "CiliumClusterwideNetworkPolicy ports: any",
    "CiliumClusterwideNetworkPolicy ports: one",
    "CiliumClusterwideNetworkPolicy ports: range",
    "CiliumClusterwideNetworkPolicy ports: named",
    "CiliumClusterwideNetworkPolicy ports: any of any transport",
    "CiliumClusterwideNetworkPolicy ports: one of any transport",
    "CiliumClusterwideNetworkPolicy ports: range of any transport",
    "CiliumClusterwideNetworkPolicy ports: named of any transport",
    "CiliumClusterwideNetworkPolicy: deny, unusable",
    "CiliumClusterwideNetworkPolicy deny: group that cannot be used",
    "allow: isolated, namespaced",
    "allow: no policy",
    "allow: own address",
    "allow: own node",
    "allow: rule",
    "allow: unknown",
    "defer: service",
    "deny: isolated, clusterwide",
    "deny: isolated, namespaced",
    "deny: rule",
    "redirect: rule",
    "ingress, forwarded: allow",
    "ingress, forwarded: deny",
    "ingress, forwarded: redirect",
    "ingress, hairpin: allow",
    "ingress, hairpin: deny",
    "ingress, hairpin: redirect",
    "egress, forwarded: allow",
    "egress, forwarded: deny",
    "egress, forwarded: redirect",
    "egress, hairpin: allow",
    "egress, hairpin: deny",
    "egress, hairpin: redirect",
    "egress, forwarded: defer",
    "ingress, own node: allow",
    "ingress, own node: deny",
    "pod audit: deny instead of allow",
    "pod audit: redirect instead of redirect",
    "policy audit: allow instead of allow",
    "policy audit: allow instead of deny",
    "policy audit: deny instead of allow",
    "policy audit: deny instead of defer",
    "policy audit: deny instead of deny",
    "policy audit: deny instead of redirect",
    "policy audit: redirect instead of allow",
    "policy audit: redirect instead of deny",
    "policy audit: redirect instead of redirect",
    "policy audit: defer instead of deny",
    "redirect by several rules",
    "redirect, else allow by hairpin",
    "redirect, else allow by rule",
    "redirect, else allow to a service",
    "redirect, else allow without policy",
    "redirect, else deny by baseline",
    "redirect, else deny by isolation",
    "ingress seen: HTTP",
    "ingress seen: TLS",
    "egress seen: HTTP",
    "egress seen: DNS",
    "egress seen: TLS",
];

/// What has to come up of requests.
pub(crate) const WANTED_OF_REQUESTS: &[&str] = &[
    "dns: allow by a rule",
    "dns: allow otherwise",
    "dns: deny",
    "http: allow by a rule",
    "http: allow otherwise",
    "http: deny",
    "server name: allow by a rule",
    "server name: allow otherwise",
    "server name: deny",
];

/// Counts by name.
#[derive(Debug, Default)]
pub(crate) struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    fn add(&mut self, name: impl Into<String>) {
        *self.0.entry(name.into()).or_default() += 1;
    }

    /// Counts an answer, and the rules that made it.
    pub(crate) fn note(&mut self, cluster: &Cluster, query: &Query, judgement: &Judgement) {
        self.verdict(cluster, query, judgement, "");
        if let Some(audit) = &judgement.audit {
            let of_pod = cluster.pods.get(&query.subject).is_some_and(|pod| pod.audit);
            let whose = if of_pod { "pod audit" } else { "policy audit" };
            self.add(format!("{whose}: {} instead of {}", audit.verdict.as_str(), judgement.verdict.as_str()));
        }
    }

    fn verdict(&mut self, cluster: &Cluster, query: &Query, judgement: &Judgement, prefix: &str) {
        let verdict = judgement.verdict.as_str();
        let reason = match &judgement.reason {
            Reason::Rule(_) => "rule",
            Reason::Isolated(policy) => match policy.namespace {
                Some(_) => "isolated, namespaced",
                None => "isolated, clusterwide",
            },
            Reason::NoPolicy => "no policy",
            Reason::OwnNode => "own node",
            Reason::OwnAddress => "own address",
            Reason::Service => "service",
            Reason::TooLarge => "too large",
            Reason::Unknown => "unknown",
        };
        self.add(format!("{prefix}{verdict}: {reason}"));
        let origin = match query.origin {
            Origin::Forwarded => "forwarded",
            Origin::OwnNode => "own node",
            Origin::Hairpin => "hairpin",
        };
        self.add(format!("{prefix}{}, {origin}: {verdict}", query.direction));
        if let Reason::Rule(rule) = &judgement.reason {
            self.rule(cluster, rule);
        }
        if let Verdict::Redirect(proxied) = &judgement.verdict {
            let otherwise = match &proxied.otherwise {
                Outcome::Allow(Reason::Rule(_)) => "allow by rule",
                Outcome::Allow(Reason::NoPolicy) => "allow without policy",
                Outcome::Allow(Reason::Service) => "allow to a service",
                Outcome::Allow(Reason::Isolated(_)) => "allow by hairpin",
                Outcome::Allow(_) => "allow otherwise",
                Outcome::Deny(Reason::Rule(_)) => "deny by baseline",
                Outcome::Deny(_) => "deny by isolation",
            };
            self.add(format!("redirect, else {otherwise}"));
            if proxied.lists.is_empty()
                && let Some(see) = proxied.see
            {
                self.add(format!("{} seen: {see}", query.direction));
            }
            if proxied.lists.len() > 1 {
                self.add("redirect by several rules");
            }
        }
    }

    fn rule(&mut self, cluster: &Cluster, rule: &RuleRef) {
        let index = usize::from(rule.index);
        let ingress = rule.direction == Direction::Ingress;
        match &**cluster.policies.get(&rule.policy).expect("a reason names a policy that is there") {
            Policy::Network(policy) => {
                let rules = if ingress { &policy.ingress } else { &policy.egress };
                let found = rules.as_ref().unwrap()[index].as_ref().expect("one that cannot be used grants nothing");
                let dialect = policy.id.kind.as_str();
                self.ports(dialect, &found.ports);
                match &found.peers {
                    NetworkPeers::All => self.add(format!("{dialect} peers: all")),
                    NetworkPeers::Of(peers) => {
                        for peer in peers.iter().flatten() {
                            let kind = match peer {
                                NetworkPeer::Pods { namespaces: None, .. } => "pods of the namespace",
                                NetworkPeer::Pods { .. } => "pods of namespaces",
                                NetworkPeer::IpBlock { except, .. } if except.is_empty() => "block",
                                NetworkPeer::IpBlock { .. } => "block with exceptions",
                                NetworkPeer::Names(_) => "names",
                            };
                            self.add(format!("{dialect} peers: {kind}"));
                        }
                    }
                }
            }
            Policy::Cluster(policy) => {
                let rules = if ingress { &policy.ingress } else { &policy.egress };
                let ClusterRule { action, matches, .. } = &rules[index];
                let dialect = policy.id.kind.as_str();
                let usable = if matches.is_ok() { "" } else { ", unusable" };
                self.add(format!("{dialect}: {:?} {action:?}{usable}", policy.tier));
                let Ok(matches) = matches else { return };
                self.ports(dialect, &matches.ports);
                for peer in &matches.peers {
                    let kind = match peer {
                        ClusterPeer::Pods(_) => "pods",
                        ClusterPeer::Networks(_) => "networks",
                        ClusterPeer::Nodes(_) => "nodes",
                        ClusterPeer::Names(_) => "names",
                    };
                    self.add(format!("{dialect} peers: {kind}"));
                }
            }
            Policy::Cilium(policy) => {
                let dialect = policy.id.kind.as_str();
                let spec = policy.rule(rule.spec).unwrap();
                if rule.deny {
                    let rules = if ingress { &spec.ingress_deny } else { &spec.egress_deny };
                    let Ok(found) = &rules[index] else {
                        return self.add(format!("{dialect}: deny, unusable"));
                    };
                    if uses_unusable_group(cluster, &found.peers) {
                        return self.add(format!("{dialect} deny: group that cannot be used"));
                    }
                    self.ports(dialect, &found.ports);
                    self.cilium_peers(&format!("{dialect} deny"), &found.peers);
                } else {
                    let rules: &[Usable<_>] = if ingress { &spec.ingress } else { &spec.egress };
                    let found = rules[index].as_ref().expect("one that cannot be used grants nothing");
                    self.cilium_peers(&format!("{dialect} allow"), &found.peers);
                    for ports in &found.ports {
                        self.ports(dialect, &ports.ports);
                        let application = match &ports.application {
                            Application::None => "none",
                            Application::Http(_) => "http",
                            Application::Dns(_) => "dns",
                            Application::ServerNames(_) => "server names",
                        };
                        self.add(format!("{dialect} application: {application}"));
                    }
                }
            }
        }
    }

    fn ports(&mut self, dialect: &str, ports: &Ports) {
        let Ports::Of(ports) = ports else { return self.add(format!("{dialect} ports: all")) };
        for port in ports {
            let protocol = if port.protocol == ProtocolMatch::Transport { " of any transport" } else { "" };
            let kind = match &port.port {
                PortTarget::Any => "any",
                PortTarget::Range(first, last) if first == last => "one",
                PortTarget::Range(..) => "range",
                PortTarget::Named(_) => "named",
            };
            self.add(format!("{dialect} ports: {kind}{protocol}"));
        }
    }

    fn cilium_peers(&mut self, what: &str, peers: &CiliumPeers) {
        match peers {
            CiliumPeers::Any => self.add(format!("{what}: any")),
            CiliumPeers::Nothing => self.add(format!("{what}: nothing")),
            CiliumPeers::Endpoints(_) => self.add(format!("{what}: endpoints")),
            CiliumPeers::Cidrs(_) => self.add(format!("{what}: cidrs")),
            CiliumPeers::Entities(entities) => {
                for entity in entities {
                    self.add(format!("{what}: entity {entity:?}"));
                }
            }
            CiliumPeers::Services(_) => self.add(format!("{what}: services")),
            CiliumPeers::Groups(_) => self.add(format!("{what}: groups")),
            CiliumPeers::Nodes(_) => self.add(format!("{what}: nodes")),
            CiliumPeers::Names(_) => self.add(format!("{what}: names")),
        }
    }

    /// Counts what becomes of a request.
    pub(crate) fn note_request(&mut self, kind: &str, outcome: &Outcome, proxied: &Proxied) {
        self.add(match outcome {
            Outcome::Deny(_) => format!("{kind}: deny"),
            allow if *allow == proxied.otherwise => format!("{kind}: allow otherwise"),
            Outcome::Allow(_) => format!("{kind}: allow by a rule"),
        });
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for (name, count) in other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// All counts, one a line.
    pub(crate) fn report(&self) -> String {
        self.0.iter().map(|(name, count)| format!("{count:9} {name}\n")).collect()
    }

    /// Fails if one of these did not come up so often.
    pub(crate) fn assert_at_least(&self, least: u64, names: &[&str]) {
        let count = |name: &str| self.0.get(name).copied().unwrap_or_default();
        let rare: Vec<_> = names.iter().filter(|name| count(name) < least).collect();
        assert!(rare.is_empty(), "less than {least} times: {rare:#?}\n{}", self.report());
    }
}

fn uses_unusable_group(cluster: &Cluster, peers: &CiliumPeers) -> bool {
    let named = |name: &Text| cluster.cidr_groups.get(name).is_some_and(|group| group.cidrs.is_err());
    match peers {
        CiliumPeers::Groups(names) => names.iter().any(named),
        CiliumPeers::Cidrs(rules) => rules.iter().any(|rule| match &rule.block {
            CidrBlock::Cidr(_) => false,
            CidrBlock::Group(name) => named(name),
            // Which of them have the labels is not asked again.
            CidrBlock::Groups(_) => cluster.cidr_groups.values().any(|group| group.cidrs.is_err()),
        }),
        _ => false,
    }
}
