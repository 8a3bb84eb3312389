//! What can be said of a policy by itself.

use super::peers::{excepts_all, takes_all_namespaces, takes_outsiders};
use super::values::contradiction;
use super::{Findings, Id, Item, place};
use crate::compile::view::POD_NAMESPACE;
use crate::flow::{Direction, RuleRef};
use crate::model::cilium::{CidrBlock, CidrRule, CiliumPeers, CiliumPolicy, CiliumRule, Entity};
use crate::model::cluster_network_policy::{ClusterPeer, ClusterSubject};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::port::Ports;
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource};
use crate::model::{AUDIT_ANNOTATION, ClusterNetworkPolicy, NetworkPolicy, Policy, Usable};

/// Looks at one policy.
pub(super) fn check(item: &Item<'_>, findings: &mut Findings) {
    let mut of = Of { item, findings };
    if item.policy.audit() {
        let message = "the policy is a dry run: its verdicts are recorded, and traffic passes as if it were not there";
        let hint = format!("remove the annotation {AUDIT_ANNOTATION} to put it in force");
        of.tell(Id::DryRun, "metadata.annotations", message, &hint);
    }
    match item.policy.as_ref() {
        Policy::Network(policy) => of.network(policy),
        Policy::Cluster(policy) => of.cluster(policy),
        Policy::Cilium(policy) => of.cilium(policy),
    }
}

/// The reference of a rule, which is good enough for its path.
pub(super) fn rule_ref(item: &Item<'_>, direction: Direction, spec: u16, deny: bool, index: usize) -> RuleRef {
    let index = u16::try_from(index).unwrap_or(u16::MAX);
    RuleRef { policy: item.policy.id().clone(), direction, spec, deny, index }
}

/// The rules of a direction that can be used, with their indexes.
pub(super) fn usable<T>(rules: &[Usable<T>]) -> impl Iterator<Item = (usize, &T)> {
    rules.iter().enumerate().filter_map(|(index, rule)| Some((index, rule.as_ref().ok()?)))
}

struct Of<'a, 'b> {
    item: &'a Item<'a>,
    findings: &'b mut Findings,
}

impl Of<'_, '_> {
    fn tell(&mut self, id: Id, path: &str, message: &str, hint: &str) {
        self.findings.of(self.item, id, path, message, hint);
    }

    fn rule(&self, direction: Direction, spec: u16, deny: bool, index: usize) -> String {
        place::rule(&rule_ref(self.item, direction, spec, deny, index))
    }

    fn selector(&mut self, path: &str, selector: &LabelSelector) {
        self.contradiction(
            path,
            contradiction(selector.requirements.iter().map(|one| (&LabelSource::Kubernetes, one))),
        );
    }

    fn endpoints(&mut self, path: &str, selector: &CiliumSelector) {
        let wanted = selector.requirements.iter().map(|one| (&one.source, &one.requirement));
        self.contradiction(path, contradiction(wanted));
    }

    /// A peer that may be meant for pods, and holds for others.
    fn wide(&mut self, path: &str, selector: &CiliumSelector) {
        let outsiders = takes_outsiders(selector);
        let namespace = self.item.policy.id().namespace.clone();
        let namespaces = namespace.filter(|_| takes_all_namespaces(selector));
        let message = match (&namespaces, outsiders) {
            (None, false) => return,
            (None, true) => "it holds for the world and for nodes too: they have no such label",
            (Some(_), false) => {
                "a reserved: label takes it out of the policy's namespace: it holds for pods of all namespaces"
            }
            (Some(_), true) => {
                "a reserved: label takes it out of the policy's namespace: it holds for pods of all namespaces, and for the \
                 world and nodes too, which have no such label"
            }
        };
        let hint = match namespaces {
            Some(own) => {
                format!("to mean pods of one namespace only, add matchLabels: {{\"k8s:{POD_NAMESPACE}\": {own}}}")
            }
            None => {
                format!("to mean pods only, add matchExpressions: [{{key: \"k8s:{POD_NAMESPACE}\", operator: Exists}}]")
            }
        };
        self.tell(Id::WideSelector, path, message, &hint);
    }

    fn contradiction(&mut self, path: &str, key: Option<String>) {
        if let Some(key) = key {
            let message =
                format!("the selector asks two things of the label {key} that cannot be together: it selects nothing");
            self.tell(Id::ContradictorySelector, path, &message, "drop one of the two conditions");
        }
    }

    fn except(&mut self, path: &str, cidr: &ipnet::IpNet, except: &[ipnet::IpNet]) {
        if !except.is_empty() && excepts_all(cidr, except) {
            let message = format!("the exceptions leave nothing of {cidr}: the block matches no address");
            self.tell(Id::ExceptEverything, path, &message, "except less, or remove the block");
        }
    }

    fn network(&mut self, policy: &NetworkPolicy) {
        self.selector("spec.podSelector", &policy.pods);
        for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
            for (index, rule) in usable(rules.as_deref().unwrap_or_default()) {
                let path = self.rule(direction, 0, false, index);
                let NetworkPeers::Of(peers) = &rule.peers else { continue };
                for (index, peer) in usable(peers) {
                    let path = format!("{path}.{}[{index}]", place::from_or_to(direction));
                    match peer {
                        NetworkPeer::Pods { namespaces, pods } => {
                            self.selector(&format!("{path}.podSelector"), pods);
                            if let Some(namespaces) = namespaces {
                                self.selector(&format!("{path}.namespaceSelector"), namespaces);
                            }
                        }
                        NetworkPeer::IpBlock { cidr, except } => self.except(&format!("{path}.ipBlock"), cidr, except),
                        NetworkPeer::Names(_) => {}
                    }
                }
            }
        }
    }

    fn subject(&mut self, path: &str, subject: &ClusterSubject) {
        match subject {
            ClusterSubject::Namespaces(namespaces) => self.selector(&format!("{path}.namespaces"), namespaces),
            ClusterSubject::Pods { namespaces, pods } => {
                self.selector(&format!("{path}.pods.namespaceSelector"), namespaces);
                self.selector(&format!("{path}.pods.podSelector"), pods);
            }
        }
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy) {
        if let Some(subject) = &policy.subject {
            self.subject("spec.subject", subject);
        }
        if policy.ingress.is_empty() && policy.egress.is_empty() {
            let message = "the policy has no rules: it decides nothing";
            self.tell(Id::NoRules, "spec", message, "give it rules, or remove it");
        }
        for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
            for (index, rule) in rules.iter().enumerate() {
                let Ok(matches) = &rule.matches else { continue };
                let path = self.rule(direction, 0, false, index);
                for (index, peer) in matches.peers.iter().enumerate() {
                    let path = format!("{path}.{}[{index}]", place::from_or_to(direction));
                    match peer {
                        ClusterPeer::Pods(subject) => self.subject(&path, subject),
                        ClusterPeer::Nodes(nodes) => self.selector(&format!("{path}.nodes"), nodes),
                        ClusterPeer::Networks(_) | ClusterPeer::Names(_) => {}
                    }
                }
            }
        }
    }

    fn cilium(&mut self, policy: &CiliumPolicy) {
        for rule in &policy.rules {
            let spec = rule.number;
            self.endpoints(&place::subject(self.item, spec), &rule.subject);
            let CiliumRule { ingress, ingress_deny, egress, egress_deny, .. } = rule;
            for (direction, allows, denies) in
                [(Direction::Ingress, ingress, ingress_deny), (Direction::Egress, egress, egress_deny)]
            {
                for (index, allow) in usable(allows) {
                    let path = self.rule(direction, spec, false, index);
                    if self.is_empty_rule(&path) {
                        let message = format!(
                            "an empty rule allows nothing: it only puts the endpoints under default deny for {direction} \
                             (an empty rule of a NetworkPolicy would allow everything)"
                        );
                        let hint = format!(
                            "nothing, if that is meant; to allow everything, write {}Entities: [all]",
                            place::from_or_to(direction)
                        );
                        self.tell(Id::EmptyRule, &path, &message, &hint);
                        continue;
                    }
                    self.peers(&path, direction, &allow.peers);
                    for (index, ports) in allow.ports.iter().enumerate() {
                        self.no_port(&format!("{path}.toPorts[{index}]"), &ports.ports);
                    }
                }
                for (index, deny) in usable(denies) {
                    let path = self.rule(direction, spec, true, index);
                    if self.is_empty_rule(&path) {
                        self.tell(
                            Id::MatchesNothing,
                            &path,
                            "an empty rule denies nothing",
                            "say what it denies, or remove it",
                        );
                        continue;
                    }
                    self.peers(&path, direction, &deny.peers);
                }
            }
        }
    }

    fn is_empty_rule(&self, path: &str) -> bool {
        let value = place::value_at(&self.item.document.value, path);
        value.and_then(|value| value.as_object()).is_some_and(|fields| fields.values().all(serde_json::Value::is_null))
    }

    fn no_port(&mut self, path: &str, ports: &Ports) {
        if matches!(ports, Ports::Of(list) if list.is_empty()) {
            self.tell(
                Id::MatchesNothing,
                path,
                "it names no port, so it is for none",
                "name ports, or remove toPorts for every port",
            );
        }
    }

    fn peers(&mut self, rule: &str, direction: Direction, peers: &CiliumPeers) {
        let path = place::cilium_peers(self.item, rule, direction, peers);
        match peers {
            CiliumPeers::Nothing => {
                let message = "the list is empty: it matches nobody, unlike a list that is missing";
                self.tell(Id::MatchesNothing, &path, message, "name peers, or remove the field to match anyone");
            }
            CiliumPeers::Endpoints(selectors) => {
                for (index, selector) in selectors.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    self.endpoints(&path, selector);
                    self.wide(&path, selector);
                }
            }
            CiliumPeers::Nodes(selectors) => {
                for (index, selector) in selectors.iter().enumerate() {
                    self.selector(&format!("{path}[{index}]"), selector);
                }
            }
            CiliumPeers::Entities(entities) if entities.iter().all(|entity| is_nobody(*entity)) => {
                let message = "no address is ever one of these entities: Sluice has no such endpoints";
                self.tell(
                    Id::MatchesNothing,
                    &path,
                    message,
                    "name entities that exist, such as host, cluster or world",
                );
            }
            CiliumPeers::Cidrs(rules) => {
                for (index, CidrRule { block, except }) in rules.iter().enumerate() {
                    if let CidrBlock::Cidr(cidr) = block {
                        self.except(&format!("{path}[{index}]"), cidr, except);
                    }
                }
            }
            CiliumPeers::Any
            | CiliumPeers::Entities(_)
            | CiliumPeers::Services(_)
            | CiliumPeers::Groups(_)
            | CiliumPeers::Names(_) => {}
        }
    }
}

const fn is_nobody(entity: Entity) -> bool {
    match entity {
        Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => true,
        Entity::All
        | Entity::World
        | Entity::WorldIpv4
        | Entity::WorldIpv6
        | Entity::Cluster
        | Entity::Host
        | Entity::RemoteNode
        | Entity::KubeApiserver => false,
    }
}
