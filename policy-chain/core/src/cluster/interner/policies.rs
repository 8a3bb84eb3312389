//! What policies have in common: names, keys and values of labels.

use super::Interner;
use crate::model::cilium::{CidrBlock, CiliumPeers, CiliumRule, ServiceSelector};
use crate::model::cluster_network_policy::{ClusterMatch, ClusterPeer, ClusterSubject};
use crate::model::network_policy::{NetworkPeer, NetworkPeers, NetworkRule};
use crate::model::port::{PortTarget, Ports};
use crate::model::selector::{CiliumSelector, LabelSelector, Requirement};
use crate::model::{CiliumPolicy, ClusterNetworkPolicy, NetworkPolicy, Policy, PolicyRef, Text, Usable};

impl Interner {
    /// A policy, in few bytes.
    pub(in crate::cluster) fn policy(&mut self, mut policy: Policy) -> Policy {
        match &mut policy {
            Policy::Network(policy) => self.network(policy),
            Policy::Cluster(policy) => self.cluster(policy),
            Policy::Cilium(policy) => self.cilium(policy),
        }
        policy
    }

    fn share(&mut self, text: &mut Text) {
        *text = self.text(text);
    }

    fn id(&mut self, id: &mut PolicyRef) {
        if let Some(namespace) = &mut id.namespace {
            self.share(namespace);
        }
    }

    fn network(&mut self, policy: &mut NetworkPolicy) {
        self.id(&mut policy.id);
        self.selector(&mut policy.pods);
        for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
            rules.shrink_to_fit();
            for NetworkRule { peers, ports } in usable(rules) {
                self.ports(ports);
                let NetworkPeers::Of(peers) = peers else { continue };
                peers.shrink_to_fit();
                for peer in usable(peers) {
                    match peer {
                        NetworkPeer::Pods { namespaces, pods } => {
                            namespaces.iter_mut().chain([pods]).for_each(|selector| self.selector(selector));
                        }
                        NetworkPeer::IpBlock { except, .. } => except.shrink_to_fit(),
                        NetworkPeer::Names(names) => names.shrink_to_fit(),
                    }
                }
            }
        }
    }

    fn cluster(&mut self, policy: &mut ClusterNetworkPolicy) {
        self.id(&mut policy.id);
        policy.subject.iter_mut().for_each(|subject| self.subject(subject));
        for rules in [&mut policy.ingress, &mut policy.egress] {
            rules.shrink_to_fit();
            for rule in rules {
                rule.name.iter_mut().for_each(|name| self.share(name));
                let Ok(ClusterMatch { peers, ports }) = &mut rule.matches else { continue };
                self.ports(ports);
                peers.shrink_to_fit();
                for peer in peers {
                    match peer {
                        ClusterPeer::Pods(subject) => self.subject(subject),
                        ClusterPeer::Nodes(selector) => self.selector(selector),
                        ClusterPeer::Networks(networks) => networks.shrink_to_fit(),
                        ClusterPeer::Names(names) => names.shrink_to_fit(),
                    }
                }
            }
        }
    }

    fn subject(&mut self, subject: &mut ClusterSubject) {
        match subject {
            ClusterSubject::Namespaces(namespaces) => self.selector(namespaces),
            ClusterSubject::Pods { namespaces, pods } => {
                self.selector(namespaces);
                self.selector(pods);
            }
        }
    }

    fn cilium(&mut self, policy: &mut CiliumPolicy) {
        self.id(&mut policy.id);
        policy.rules.shrink_to_fit();
        for rule in &mut policy.rules {
            let CiliumRule { subject, ingress, ingress_deny, egress, egress_deny, .. } = rule;
            self.endpoints(subject);
            for allows in [ingress, egress] {
                allows.shrink_to_fit();
                for allow in usable(allows) {
                    self.peers(&mut allow.peers);
                    allow.ports.shrink_to_fit();
                    allow.ports.iter_mut().for_each(|ports| self.ports(&mut ports.ports));
                }
            }
            for denies in [ingress_deny, egress_deny] {
                denies.shrink_to_fit();
                for deny in usable(denies) {
                    self.peers(&mut deny.peers);
                    self.ports(&mut deny.ports);
                }
            }
        }
    }

    fn peers(&mut self, peers: &mut CiliumPeers) {
        match peers {
            CiliumPeers::Any | CiliumPeers::Nothing | CiliumPeers::Entities(_) | CiliumPeers::Names(_) => {}
            CiliumPeers::Endpoints(selectors) => {
                selectors.shrink_to_fit();
                selectors.iter_mut().for_each(|selector| self.endpoints(selector));
            }
            CiliumPeers::Cidrs(rules) => {
                rules.shrink_to_fit();
                for rule in rules {
                    match &mut rule.block {
                        CidrBlock::Cidr(_) => {}
                        CidrBlock::Group(name) => self.share(name),
                        CidrBlock::Groups(selector) => self.selector(selector),
                    }
                    rule.except.shrink_to_fit();
                }
            }
            CiliumPeers::Groups(names) => names.iter_mut().for_each(|name| self.share(name)),
            CiliumPeers::Services(services) => {
                for service in services {
                    match service {
                        ServiceSelector::Named { namespace, name } => {
                            namespace.iter_mut().chain([name]).for_each(|text| self.share(text));
                        }
                        ServiceSelector::Labels { namespace, selector } => {
                            namespace.iter_mut().for_each(|text| self.share(text));
                            self.selector(selector);
                        }
                    }
                }
            }
            CiliumPeers::Nodes(selectors) => selectors.iter_mut().for_each(|selector| self.selector(selector)),
        }
    }

    fn endpoints(&mut self, selector: &mut CiliumSelector) {
        selector.requirements.shrink_to_fit();
        selector.requirements.iter_mut().for_each(|one| self.requirement(&mut one.requirement));
    }

    fn selector(&mut self, selector: &mut LabelSelector) {
        selector.requirements.shrink_to_fit();
        selector.requirements.iter_mut().for_each(|one| self.requirement(one));
    }

    fn requirement(&mut self, requirement: &mut Requirement) {
        self.share(&mut requirement.key);
        requirement.values.shrink_to_fit();
        requirement.values.iter_mut().for_each(|value| self.share(value));
    }

    fn ports(&mut self, ports: &mut Ports) {
        let Ports::Of(ports) = ports else { return };
        ports.shrink_to_fit();
        for port in ports {
            if let PortTarget::Named(name) = &mut port.port {
                self.share(name);
            }
        }
    }
}

/// Those that were read.
fn usable<T>(list: &mut [Usable<T>]) -> impl Iterator<Item = &mut T> {
    list.iter_mut().filter_map(|one| one.as_mut().ok())
}
