//! What the documents show of the cluster, and what policies name that is not there.
//!
//! Little is known where the files hold policies only, and then little is said. Pods, or workloads that make pods, show
//! their namespace. Pods themselves, as a cluster lists them, show that the files hold all of the cluster.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::peers::selected_kinds;
use super::read::Read;
use super::single::{rule_ref, usable};
use super::values::Labelled;
use super::{Document, Findings, Id, Item, Role, place};
use crate::cluster::{CidrGroup, Cluster, Labels, Pod, PodKey};
use crate::compile::view::{CiliumView, PodView, matches};
use crate::flow::Direction;
use crate::model::cilium::{CidrBlock, CiliumPeers, CiliumPolicy, ServiceSelector};
use crate::model::cluster_network_policy::{ClusterPeer, ClusterSubject};
use crate::model::network_policy::{NetworkPeer, NetworkPeers};
use crate::model::port::{PortTarget, Ports};
use crate::model::selector::{CiliumSelector, LabelSelector};
use crate::model::{ClusterNetworkPolicy, NetworkPolicy, Policy, Text};

/// Pods that are looked at, for all selectors together.
const MAX_LOOKS: usize = 20_000_000;

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Known<'a> {
    cluster: &'a Cluster,
    namespaces: BTreeMap<Text, Labels>,
    /// Those that have pods.
    with_pods: BTreeSet<&'a str>,
    /// Addresses of pods that policies may match.
    addresses: BTreeMap<IpAddr, &'a PodKey>,
    /// Whether all pods are known.
    all_pods: bool,
    /// Whether all namespaces are known, with their labels.
    all_namespaces: bool,
    /// Whether all of the cluster is known.
    whole: bool,
    /// How many pods may still be looked at.
    looks: Cell<usize>,
}

impl<'a> Known<'a> {
    pub(super) fn of(documents: &[Document], read: &'a Read<'_>) -> Self {
        let cluster = &read.cluster;
        let is =
            |document: &Document, kind: &str| document.value.get("kind").and_then(|kind| kind.as_str()) == Some(kind);
        let pods = documents.iter().any(|document| is(document, "Pod"));
        let whole = pods && documents.iter().any(|document| document.role == Role::Cluster);
        let all_pods = whole || (pods && !cluster.namespaces.is_empty());
        let mut namespaces: BTreeMap<Text, Labels> =
            cluster.namespaces.keys().map(|name| (Text::clone(name), cluster.namespace_labels(name))).collect();
        for key in cluster.pods.keys() {
            if !namespaces.contains_key(&key.namespace) {
                namespaces.insert(Text::clone(&key.namespace), cluster.namespace_labels(&key.namespace));
            }
        }
        let with_pods = cluster.pods.keys().map(|key| key.namespace.as_ref()).collect();
        let all_namespaces = all_pods && !cluster.namespaces.is_empty();
        let mut addresses = BTreeMap::new();
        for (key, pod) in cluster.pods.iter().filter(|(_, pod)| !pod.host_network && !pod.finished) {
            addresses.extend(pod.addresses.iter().map(|address| (address, key)));
        }
        Self { cluster, namespaces, with_pods, addresses, all_pods, all_namespaces, whole, looks: Cell::new(MAX_LOOKS) }
    }

    /// The pods that policies may govern or match. They end early where too many were looked at ([`Self::is_exhausted`]).
    fn pods(&self) -> impl Iterator<Item = (&Pod, PodView<'_>)> {
        self.views(self.cluster.pods.values())
    }

    /// Those that may be of a set: of the namespaces that it names.
    fn pods_for<'s>(&'s self, set: &'s Labelled) -> Box<dyn Iterator<Item = (&'s Pod, PodView<'s>)> + 's> {
        let Some(names) = set.namespaces() else { return Box::new(self.pods()) };
        let of = |namespace: &Text| {
            let first = PodKey { namespace: Text::clone(namespace), name: Text::default() };
            let namespace = Text::clone(namespace);
            self.cluster.pods.range(first..).take_while(move |(key, _)| key.namespace == namespace).map(|(_, pod)| pod)
        };
        Box::new(self.views(names.iter().flat_map(of)))
    }

    fn views<'s>(&'s self, pods: impl Iterator<Item = &'s Arc<Pod>>) -> impl Iterator<Item = (&'s Pod, PodView<'s>)> {
        let view = |pod: &'s Pod| {
            let namespace_labels = self.namespaces.get(&pod.key.namespace)?;
            let view = PodView {
                namespace: &pod.key.namespace,
                namespace_labels,
                labels: &pod.labels,
                service_account: &pod.template.service_account,
            };
            Some((pod, view))
        };
        let may_look = |_: &&Pod| {
            let left = self.looks.get();
            self.looks.set(left.saturating_sub(1));
            left > 0
        };
        let managed = |pod: &&Pod| !pod.host_network && !pod.finished;
        pods.map(AsRef::as_ref).take_while(may_look).filter(managed).filter_map(view)
    }

    /// Whether no more pods are looked at: what was not found may be there.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.looks.get() == 0
    }

    /// Why no namespace or pod matches, if it is one condition alone.
    fn why(&self, namespaces: Option<&LabelSelector>, pods: &LabelSelector) -> String {
        if let Some(selector) = namespaces
            && !self.namespaces.values().any(|labels| matches(selector, labels))
        {
            return culprit(selector, &self.namespaces.values().collect::<Vec<_>>()).map_or_else(
                || " (no namespace has all of these labels)".to_owned(),
                |one| format!(" (no namespace has {one})"),
            );
        }
        let labels: Vec<&Labels> = self.pods().map(|(pod, _)| &pod.labels).collect();
        culprit(pods, &labels).map_or_else(String::new, |one| format!(" (no pod has {one})"))
    }

    /// Whether it can be told that no pod is one of these.
    fn shows(&self, pods: &Labelled, by_namespace_labels: bool) -> bool {
        let named = pods.namespaces().is_some_and(|names| names.iter().all(|name| self.with_pods.contains(&**name)));
        if by_namespace_labels { self.all_pods && self.all_namespaces } else { self.all_pods || named }
    }
}

/// Looks for what a policy names and is not there.
pub(super) fn check(item: &Item<'_>, known: &Known<'_>, findings: &mut Findings) {
    if known.cluster.pods.is_empty() && known.cluster.cidr_groups.is_empty() && known.cluster.services.is_empty() {
        return;
    }
    let mut of = Of { item, known, findings, absent: Vec::new() };
    match item.policy.as_ref() {
        Policy::Network(policy) => of.network(policy),
        Policy::Cluster(policy) => of.cluster(policy),
        Policy::Cilium(policy) => of.cilium(policy),
    }
}

struct Of<'a, 'b> {
    item: &'a Item<'a>,
    known: &'a Known<'a>,
    findings: &'b mut Findings,
    /// Peers of the rule that is looked at that are nobody: path, message, hint.
    absent: Vec<(String, String, &'static str)>,
}

/// Whether a pod is selected.
type Selects<'a> = &'a dyn Fn(&PodView<'_>) -> bool;

impl Of<'_, '_> {
    fn tell(&mut self, id: Id, path: &str, message: &str, hint: &str) {
        if self.known.is_exhausted() {
            return;
        }
        self.findings.of(self.item, id, path, message, hint);
    }

    /// Whether a policy governs some pod that is known; tells if it governs none.
    fn subject(
        &mut self,
        spec: u16,
        pods: &Labelled,
        by_namespace_labels: bool,
        selects: Selects<'_>,
        why: &dyn Fn() -> String,
    ) -> bool {
        let known = self.known;
        let some = known.pods_for(pods).any(|(_, view)| selects(&view));
        if !some && (pods.is_empty() || known.shows(pods, by_namespace_labels)) {
            let path = place::subject(self.item, spec);
            let message = format!("the policy selects no pod{}: it does nothing", why());
            let hint = "mend the selector, or remove the policy; pods with hostNetwork are never selected";
            self.tell(Id::SelectsNoPod, &path, &message, hint);
        }
        some
    }

    /// Tells if a peer is no pod that is known.
    fn peer(
        &mut self,
        path: &str,
        pods: &Labelled,
        by_namespace_labels: bool,
        selects: Selects<'_>,
        why: &dyn Fn() -> String,
    ) {
        if pods.is_empty() || !self.known.shows(pods, by_namespace_labels) {
            return;
        }
        if !self.known.pods_for(pods).any(|(_, view)| selects(&view)) {
            let message = format!("no pod is one of these peers{}", why());
            let hint = "mend the selector, or remove the peer; pods with hostNetwork are matched as their node only";
            self.absent.push((path.to_owned(), message, hint));
        }
    }

    /// Tells of the peers of a rule that are nobody. Where some are there, the others may come; where none is, the rule does
    /// nothing.
    fn tell_absent(&mut self, peers: usize) {
        let all = self.absent.len() >= peers;
        for (path, message, hint) in std::mem::take(&mut self.absent) {
            let id = if all { Id::MatchesNothing } else { Id::AbsentPeer };
            let message = if all && peers > 1 { format!("{message}, nor one of the rule's others") } else { message };
            self.tell(id, &path, &message, hint);
        }
    }

    fn network(&mut self, policy: &NetworkPolicy) {
        let own = policy.id.namespace.as_ref();
        let in_own = |view: &PodView<'_>| own.is_some_and(|own| **own == *view.namespace);
        let subject = Labelled::pods_of(own, &policy.pods);
        let selects = |view: &PodView<'_>| in_own(view) && matches(&policy.pods, view.labels);
        let why = || own.map_or_else(String::new, |own| format!(" of namespace {own}"));
        let some = self.subject(0, &subject, false, &selects, &why);
        for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
            for (index, rule) in usable(rules.as_deref().unwrap_or_default()) {
                let path = place::rule(&rule_ref(self.item, direction, 0, false, index));
                self.named_ports(&path, direction, &rule.ports, some.then_some(&subject), &selects);
                let NetworkPeers::Of(peers) = &rule.peers else { continue };
                for (index, peer) in usable(peers) {
                    let path = format!("{path}.{}[{index}]", place::from_or_to(direction));
                    match peer {
                        NetworkPeer::Pods { namespaces: None, pods } => {
                            let set = Labelled::pods_of(own, pods);
                            let selects = |view: &PodView<'_>| in_own(view) && matches(pods, view.labels);
                            self.peer(&format!("{path}.podSelector"), &set, false, &selects, &why);
                        }
                        NetworkPeer::Pods { namespaces: Some(namespaces), pods } => {
                            self.pods_of_namespaces(&path, namespaces, pods);
                        }
                        NetworkPeer::IpBlock { cidr, except } => {
                            self.block(&format!("{path}.ipBlock"), cidr, except, true)
                        }
                        NetworkPeer::Names(_) => {}
                    }
                }
                self.tell_absent(peers.len());
            }
        }
    }

    fn pods_of_namespaces(&mut self, path: &str, namespaces: &LabelSelector, pods: &LabelSelector) {
        let set = Labelled::pods_in(namespaces, pods);
        let selects = |view: &PodView<'_>| matches(namespaces, view.namespace_labels) && matches(pods, view.labels);
        let known = self.known;
        let why = || known.why(Some(namespaces), pods);
        self.peer(path, &set, by_labels(namespaces), &selects, &why);
    }

    fn cluster(&mut self, policy: &ClusterNetworkPolicy) {
        let Some(subject) = &policy.subject else { return };
        let every = LabelSelector::default();
        let parts = |subject: &ClusterSubject| match subject {
            ClusterSubject::Namespaces(namespaces) => (namespaces.clone(), every.clone()),
            ClusterSubject::Pods { namespaces, pods } => (namespaces.clone(), pods.clone()),
        };
        let (namespaces, pods) = parts(subject);
        let selects = |view: &PodView<'_>| matches(&namespaces, view.namespace_labels) && matches(&pods, view.labels);
        let known = self.known;
        let why = || known.why(Some(&namespaces), &pods);
        let subject = Labelled::cluster(subject);
        let some = self.subject(0, &subject, by_labels(&namespaces), &selects, &why);
        for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
            for (index, rule) in rules.iter().enumerate() {
                let Ok(rule) = &rule.matches else { continue };
                let path = place::rule(&rule_ref(self.item, direction, 0, false, index));
                self.named_ports(&path, direction, &rule.ports, some.then_some(&subject), &selects);
                for (index, peer) in rule.peers.iter().enumerate() {
                    let path = format!("{path}.{}[{index}]", place::from_or_to(direction));
                    match peer {
                        ClusterPeer::Pods(subject) => {
                            let (namespaces, pods) = parts(subject);
                            self.pods_of_namespaces(&path, &namespaces, &pods);
                        }
                        ClusterPeer::Networks(networks) => {
                            for (index, cidr) in networks.iter().enumerate() {
                                self.block(&format!("{path}.networks[{index}]"), cidr, &[], true);
                            }
                        }
                        ClusterPeer::Nodes(nodes) => self.nodes(&format!("{path}.nodes"), nodes),
                        ClusterPeer::Names(_) => {}
                    }
                }
                self.tell_absent(rule.peers.len());
            }
        }
    }

    fn nodes(&mut self, path: &str, selector: &LabelSelector) {
        let nodes = &self.known.cluster.nodes;
        if nodes.is_empty() || !self.known.all_pods || Labelled::objects(selector).is_empty() {
            return;
        }
        if !nodes.values().any(|node| matches(selector, &node.labels)) {
            let message = "no node has these labels".to_owned();
            self.absent.push((path.to_owned(), message, "mend the selector, or remove the peer"));
        }
    }

    fn cilium(&mut self, policy: &CiliumPolicy) {
        for rule in &policy.rules {
            let spec = rule.number;
            let selects = |view: &PodView<'_>| CiliumView::Pod(*view).matches(&rule.subject);
            let set = Labelled::endpoints(&rule.subject);
            let some = self.subject(spec, &set, asks_namespace_labels(&rule.subject), &selects, &String::new);
            for direction in Direction::BOTH {
                let (allows, denies) = match direction {
                    Direction::Ingress => (&rule.ingress, &rule.ingress_deny),
                    Direction::Egress => (&rule.egress, &rule.egress_deny),
                };
                for (index, allow) in usable(allows) {
                    let path = place::rule(&rule_ref(self.item, direction, spec, false, index));
                    self.cilium_peers(&path, direction, &allow.peers, false);
                    for ports in &allow.ports {
                        self.named_ports(&path, direction, &ports.ports, some.then_some(&set), &selects);
                    }
                }
                for (index, deny) in usable(denies) {
                    let path = place::rule(&rule_ref(self.item, direction, spec, true, index));
                    self.cilium_peers(&path, direction, &deny.peers, true);
                    self.named_ports(&path, direction, &deny.ports, some.then_some(&set), &selects);
                }
            }
        }
    }

    fn cilium_peers(&mut self, rule: &str, direction: Direction, peers: &CiliumPeers, deny: bool) {
        let path = place::cilium_peers(self.item, rule, direction, peers);
        let element = |index: usize| format!("{path}[{index}]");
        match peers {
            CiliumPeers::Endpoints(selectors) => {
                for (index, selector) in selectors.iter().enumerate() {
                    // It may be for what is no pod.
                    if selected_kinds(selector) != 0 {
                        continue;
                    }
                    let selects = |view: &PodView<'_>| CiliumView::Pod(*view).matches(selector);
                    self.peer(
                        &element(index),
                        &Labelled::endpoints(selector),
                        asks_namespace_labels(selector),
                        &selects,
                        &String::new,
                    );
                }
                self.tell_absent(selectors.len());
            }
            CiliumPeers::Cidrs(rules) => {
                for (index, rule) in rules.iter().enumerate() {
                    match &rule.block {
                        CidrBlock::Cidr(cidr) => self.block(&element(index), cidr, &rule.except, false),
                        CidrBlock::Group(name) => {
                            self.group(&element(index), name);
                            self.usable_groups(&element(index), |group| group.name == *name, deny);
                        }
                        CidrBlock::Groups(selector) => {
                            self.groups(&element(index), selector);
                            self.usable_groups(&element(index), |group| matches(selector, &group.labels), deny);
                        }
                    }
                }
            }
            CiliumPeers::Services(services) => {
                for (index, service) in services.iter().enumerate() {
                    self.service(&element(index), service);
                }
            }
            CiliumPeers::Nodes(selectors) => {
                for (index, selector) in selectors.iter().enumerate() {
                    self.nodes(&element(index), selector);
                }
                self.tell_absent(selectors.len());
            }
            // They are made by the system, when it sees the policy, so that they need not be there.
            CiliumPeers::Groups(names) => {
                for (index, name) in names.iter().enumerate() {
                    self.usable_groups(&element(index), |group| group.name == *name, deny);
                }
            }
            CiliumPeers::Any | CiliumPeers::Nothing | CiliumPeers::Entities(_) | CiliumPeers::Names(_) => {}
        }
    }

    fn group(&mut self, path: &str, name: &str) {
        let groups = &self.known.cluster.cidr_groups;
        if (self.known.whole || !groups.is_empty()) && !groups.contains_key(name) {
            let message = format!("there is no CiliumCIDRGroup {name}: the peer matches nobody");
            self.tell(Id::UnknownCidrGroup, path, &message, "create the group, or mend its name");
        }
    }

    fn groups(&mut self, path: &str, selector: &LabelSelector) {
        let groups = &self.known.cluster.cidr_groups;
        let some = groups.values().any(|group| matches(selector, &group.labels));
        if (self.known.whole || !groups.is_empty()) && !some && !Labelled::objects(selector).is_empty() {
            let message = "no CiliumCIDRGroup has these labels: the peer matches nobody";
            self.tell(Id::UnknownCidrGroup, path, message, "label a group so, or mend the selector");
        }
    }

    /// Tells of the first of these groups that cannot be used.
    fn usable_groups(&mut self, path: &str, meant: impl Fn(&CidrGroup) -> bool, deny: bool) {
        let mut groups = self.known.cluster.cidr_groups.values().filter(|group| meant(group));
        let Some((name, why)) = groups.find_map(|group| Some((&group.name, group.cidrs.as_ref().err()?))) else {
            return;
        };
        let effect = if deny { "the rule denies all of its direction" } else { "it grants nothing" };
        let message = format!("CiliumCIDRGroup {name} cannot be used ({}: {}): {effect}", why.path, why.reason);
        self.tell(Id::Unusable, path, &message, "mend the group");
    }

    fn service(&mut self, path: &str, wanted: &ServiceSelector) {
        let services = &self.known.cluster.services;
        let of = |wanted: Option<&Text>, namespace: &Text| wanted.is_none_or(|wanted| wanted == namespace);
        let (namespace, some, shown) = match wanted {
            ServiceSelector::Named { namespace, name } => {
                let namespace = namespace.as_ref();
                let some = services.keys().any(|key| key.name == *name && of(namespace, &key.namespace));
                (namespace, some, format!("there is no Service {name}"))
            }
            ServiceSelector::Labels { namespace, selector } => {
                let selected = |one: &crate::cluster::Service| {
                    of(namespace.as_ref(), &one.key.namespace) && matches(selector, &one.labels)
                };
                (namespace.as_ref(), services.values().any(selected), "no Service has these labels".to_owned())
            }
        };
        let shows = services.keys().any(|key| namespace == Some(&key.namespace));
        if !some && (self.known.whole || shows) {
            let place = namespace.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
            let message = format!("{shown}{place}: the peer matches nobody");
            self.tell(Id::UnknownService, path, &message, "create the Service, or mend the reference");
        }
    }

    /// Names of ports: on ingress the subject's, of whom some are known, on egress the peers'.
    fn named_ports(
        &mut self,
        rule: &str,
        direction: Direction,
        ports: &Ports,
        subject: Option<&Labelled>,
        selects: Selects<'_>,
    ) {
        let Ports::Of(list) = ports else { return };
        let known = self.known;
        let mut told = BTreeSet::new();
        for one in list {
            let PortTarget::Named(name) = &one.port else { continue };
            let has = |pod: &Pod| {
                pod.template.ports.iter().any(|port| port.name == *name && one.protocol.holds(port.protocol))
            };
            let (shown, found) = match (direction, subject) {
                (Direction::Ingress, None) => (false, false),
                (Direction::Ingress, Some(set)) => {
                    (true, known.pods_for(set).any(|(pod, view)| selects(&view) && has(pod)))
                }
                (Direction::Egress, _) => (known.all_pods, known.all_pods && known.pods().any(|(pod, _)| has(pod))),
            };
            if shown && !found && told.insert(name) {
                let whose = match direction {
                    Direction::Ingress => "none of the pods that the policy selects has",
                    Direction::Egress => "no pod has",
                };
                let message =
                    format!("{whose} a container port of the name {name} and this protocol: it matches nothing");
                let path = place::ports(self.item, rule);
                self.tell(Id::UnknownPortName, &path, &message, "name the container port so, or give its number");
            }
        }
    }

    /// Blocks and the addresses of pods.
    fn block(&mut self, path: &str, cidr: &IpNet, except: &[IpNet], managed: bool) {
        let inside = self.known.addresses.range(cidr.network()..=cidr.broadcast());
        let left_out = |address: &IpAddr| except.iter().any(|one| one.contains(address));
        let Some((_, pod)) = inside.into_iter().find(|(address, _)| !left_out(address)) else { return };
        let (message, hint) = if managed {
            (
                format!("the block holds addresses of pods ({pod} for one): it matches them too"),
                "select pods by labels: their addresses change; to leave them out, except their range",
            )
        } else {
            (
                format!("the block holds addresses of pods ({pod} for one): it does not match them, as in Cilium"),
                "select pods by labels (fromEndpoints, toEndpoints) if they are meant",
            )
        };
        self.tell(Id::BlockHoldsPods, path, &message, hint);
    }
}

/// Whether a selector of namespaces asks for more than their names.
fn by_labels(namespaces: &LabelSelector) -> bool {
    namespaces.requirements.iter().any(|one| &*one.key != crate::cluster::NAMESPACE_NAME_LABEL)
}

/// Whether a selector asks for labels of the pods' namespaces.
fn asks_namespace_labels(selector: &CiliumSelector) -> bool {
    let prefix = crate::cluster::labels::NAMESPACE_LABEL_PREFIX;
    selector.requirements.iter().any(|one| one.requirement.key.starts_with(prefix))
}

/// The first requirement that none of these labels fulfil.
fn culprit(selector: &LabelSelector, labels: &[&Labels]) -> Option<String> {
    use crate::model::selector::Operator;
    let one = selector.requirements.iter().find(|one| {
        let alone = LabelSelector { requirements: vec![(*one).clone()] };
        !labels.iter().any(|labels| matches(&alone, labels))
    })?;
    let values: Vec<&str> = one.values.iter().map(AsRef::as_ref).collect();
    Some(match one.operator {
        Operator::In => format!("{}={}", one.key, values.join("|")),
        Operator::NotIn => format!("{} other than {}", one.key, values.join(", ")),
        Operator::Exists => format!("the label {}", one.key),
        Operator::DoesNotExist => format!("no label {}", one.key),
    })
}
