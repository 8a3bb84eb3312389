//! Makes a failing case small: leaves out whatever it fails without.

use std::sync::Arc;

use sluice_policy_core::cluster::{CidrGroup, Event, Labels, Object};
use sluice_policy_core::flow::Query;
use sluice_policy_core::model::cilium::{CiliumAllow, CiliumPeers, CiliumRule};
use sluice_policy_core::model::cluster_network_policy::ClusterRule;
use sluice_policy_core::model::network_policy::{NetworkPeers, NetworkRule};
use sluice_policy_core::model::port::Ports;
use sluice_policy_core::model::{Policy, Text, Usable};
use sluice_policy_core::settings::Settings;

/// A cluster, by what happened to it, and a flow.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) settings: Settings,
    pub(crate) events: Vec<Event>,
    /// After how many events the engine brings its image up to date; none: once, after the last.
    pub(crate) commit_every: Option<usize>,
    pub(crate) query: Query,
}

/// The smallest case that is found by leaving things out.
pub(crate) fn shrink(mut case: Case, fails: &dyn Fn(&Case) -> bool) -> Case {
    // Each round leaves something out, so that this ends.
    loop {
        let before = format!("{case:?}").len();
        halves(&mut case, fails);
        parts(&mut case, fails);
        if format!("{case:?}").len() >= before {
            return case;
        }
    }
}

/// Drops events, many at once first.
fn halves(case: &mut Case, fails: &dyn Fn(&Case) -> bool) {
    let mut size = case.events.len();
    while size > 0 {
        let mut start = 0;
        while start < case.events.len() {
            let mut smaller = case.clone();
            smaller.events.drain(start..(start + size).min(case.events.len()));
            if fails(&smaller) {
                *case = smaller;
            } else {
                start += size;
            }
        }
        size /= 2;
    }
}

/// Makes single events simpler.
fn parts(case: &mut Case, fails: &dyn Fn(&Case) -> bool) {
    for index in 0..case.events.len() {
        'again: loop {
            for event in simpler(&case.events[index]) {
                let mut smaller = case.clone();
                smaller.events[index] = event;
                if fails(&smaller) {
                    *case = smaller;
                    continue 'again;
                }
            }
            break;
        }
    }
}

fn simpler(event: &Event) -> Vec<Event> {
    let objects = match event {
        Event::Upsert(Object::Policy(policy)) => policies(policy).into_iter().map(Object::Policy).collect(),
        Event::Upsert(object) => objects(object),
        Event::Resolved { name, addresses, until } => {
            return without_one(addresses)
                .into_iter()
                .map(|addresses| Event::Resolved { name: name.clone(), addresses, until: *until })
                .collect();
        }
        Event::Delete(_) | Event::Time(_) => Vec::new(),
    };
    objects.into_iter().map(Event::Upsert).collect()
}

/// The list without each of its elements.
fn without_one<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    (0..list.len())
        .map(|index| {
            let mut list = list.to_vec();
            list.remove(index);
            list
        })
        .collect()
}

fn labels(labels: &Labels) -> Vec<Labels> {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| (Text::clone(key), Text::from(value))).collect();
    without_one(&pairs).into_iter().map(Labels::new).collect()
}

fn objects(object: &Object) -> Vec<Object> {
    let mut found = Vec::new();
    match object {
        Object::Namespace(one) => {
            found.extend(labels(&one.labels).into_iter().map(|labels| {
                let mut one = one.clone();
                one.labels = labels;
                Object::Namespace(one)
            }));
        }
        Object::Pod(pod) => {
            let mut add = |change: &dyn Fn(&mut sluice_policy_core::cluster::Pod)| {
                let mut simple = pod.clone();
                change(&mut simple);
                if simple != *pod {
                    found.push(Object::Pod(simple));
                }
            };
            for some in labels(&pod.labels) {
                add(&move |pod| pod.labels = some.clone());
            }
            for some in without_one(&pod.addresses.to_vec()) {
                add(&move |pod| pod.addresses = some.clone().into());
            }
            for some in without_one(&pod.template.ports) {
                add(&move |pod| Arc::make_mut(&mut pod.template).ports = some.clone().into());
            }
            add(&|pod| pod.audit = false);
            add(&|pod| pod.ready = false);
            add(&|pod| pod.created = "".into());
            add(&|pod| Arc::make_mut(&mut pod.template).service_account = "default".into());
        }
        Object::Node(node) => {
            for some in without_one(&node.addresses) {
                let mut node = node.clone();
                node.addresses = some;
                found.push(Object::Node(node));
            }
            for some in labels(&node.labels) {
                let mut node = node.clone();
                node.labels = some;
                found.push(Object::Node(node));
            }
        }
        Object::Service(service) => {
            for some in without_one(&service.addresses.to_vec()) {
                let mut service = service.clone();
                service.addresses = some.into();
                found.push(Object::Service(service));
            }
            for some in without_one(&service.ports) {
                let mut service = service.clone();
                service.ports = some.into();
                found.push(Object::Service(service));
            }
        }
        Object::EndpointSlice(slice) => {
            for some in without_one(&slice.ports) {
                let mut slice = slice.clone();
                slice.ports = some.into();
                found.push(Object::EndpointSlice(slice));
            }
            for some in without_one(&slice.ready.iter().collect::<Vec<_>>()) {
                let mut slice = slice.clone();
                slice.ready = some.into_iter().collect();
                found.push(Object::EndpointSlice(slice));
            }
        }
        Object::CidrGroup(group) => {
            for some in group.cidrs.iter().flat_map(|cidrs| without_one(cidrs)) {
                found.push(Object::CidrGroup(CidrGroup { cidrs: Ok(some), ..group.clone() }));
            }
        }
        Object::Policy(_) => {}
    }
    found
}

fn policies(policy: &Policy) -> Vec<Policy> {
    let mut found = Vec::new();
    match policy {
        Policy::Network(policy) => {
            let mut add = |change: &dyn Fn(&mut sluice_policy_core::model::NetworkPolicy)| {
                let mut simple = policy.clone();
                change(&mut simple);
                found.push(Policy::Network(simple));
            };
            for some in policy.ingress.iter().flat_map(|rules| lists(rules, network_rules)) {
                add(&move |policy| policy.ingress = Some(some.clone()));
            }
            for some in policy.egress.iter().flat_map(|rules| lists(rules, network_rules)) {
                add(&move |policy| policy.egress = Some(some.clone()));
            }
            if policy.audit {
                add(&|policy| policy.audit = false);
            }
            for some in without_one(&policy.pods.requirements) {
                add(&move |policy| policy.pods.requirements.clone_from(&some));
            }
            if policy.ingress.is_some() && policy.egress.is_some() {
                add(&|policy| policy.ingress = None);
                add(&|policy| policy.egress = None);
            }
        }
        Policy::Cluster(policy) => {
            let mut add = |change: &dyn Fn(&mut sluice_policy_core::model::ClusterNetworkPolicy)| {
                let mut simple = policy.clone();
                change(&mut simple);
                found.push(Policy::Cluster(simple));
            };
            for some in lists(&policy.ingress, cluster_rules) {
                add(&move |policy| policy.ingress.clone_from(&some));
            }
            for some in lists(&policy.egress, cluster_rules) {
                add(&move |policy| policy.egress.clone_from(&some));
            }
            if policy.audit {
                add(&|policy| policy.audit = false);
            }
        }
        Policy::Cilium(policy) => {
            for rules in lists(&policy.rules, cilium_rules) {
                let mut policy = policy.clone();
                policy.rules = rules;
                found.push(Policy::Cilium(policy));
            }
            if policy.audit {
                let mut policy = policy.clone();
                policy.audit = false;
                found.push(Policy::Cilium(policy));
            }
        }
    }
    found
}

/// The list without each of its elements, then with each of them simpler.
fn lists<T: Clone>(list: &[T], simpler: fn(&T) -> Vec<T>) -> Vec<Vec<T>> {
    let mut found = without_one(list);
    for (index, one) in list.iter().enumerate() {
        for simple in simpler(one) {
            let mut list = list.to_vec();
            list[index] = simple;
            found.push(list);
        }
    }
    found
}

fn port_lists(ports: &Ports) -> Vec<Ports> {
    match ports {
        Ports::Any => Vec::new(),
        Ports::Of(list) if list.len() > 1 => without_one(list).into_iter().map(Ports::Of).collect(),
        Ports::Of(_) => vec![Ports::Any],
    }
}

fn network_rules(rule: &Usable<NetworkRule>) -> Vec<Usable<NetworkRule>> {
    let Ok(rule) = rule else { return Vec::new() };
    let mut found = Vec::new();
    if let NetworkPeers::Of(peers) = &rule.peers {
        let fewer = without_one(peers).into_iter().filter(|peers| !peers.is_empty());
        found.extend(fewer.map(|peers| Ok(NetworkRule { peers: NetworkPeers::Of(peers), ports: rule.ports.clone() })));
    }
    let ports = port_lists(&rule.ports);
    found.extend(ports.into_iter().map(|ports| Ok(NetworkRule { peers: rule.peers.clone(), ports })));
    found
}

fn cluster_rules(rule: &ClusterRule) -> Vec<ClusterRule> {
    let Ok(matches) = &rule.matches else { return Vec::new() };
    let mut found = Vec::new();
    let mut add = |change: &dyn Fn(&mut sluice_policy_core::model::cluster_network_policy::ClusterMatch)| {
        let mut simple = matches.clone();
        change(&mut simple);
        found.push(ClusterRule { matches: Ok(simple), ..rule.clone() });
    };
    for some in without_one(&matches.peers).into_iter().filter(|peers| !peers.is_empty()) {
        add(&move |matches| matches.peers.clone_from(&some));
    }
    for some in port_lists(&matches.ports) {
        add(&move |matches| matches.ports = some.clone());
    }
    found
}

fn cilium_rules(rule: &CiliumRule) -> Vec<CiliumRule> {
    let mut found = Vec::new();
    let mut add = |change: &dyn Fn(&mut CiliumRule)| {
        let mut simple = rule.clone();
        change(&mut simple);
        found.push(simple);
    };
    for some in lists(&rule.ingress, allows) {
        add(&move |rule| rule.ingress.clone_from(&some));
    }
    for some in lists(&rule.egress, allows) {
        add(&move |rule| rule.egress.clone_from(&some));
    }
    for some in without_one(&rule.ingress_deny) {
        add(&move |rule| rule.ingress_deny.clone_from(&some));
    }
    for some in without_one(&rule.egress_deny) {
        add(&move |rule| rule.egress_deny.clone_from(&some));
    }
    for some in without_one(&rule.subject.requirements) {
        add(&move |rule| rule.subject.requirements.clone_from(&some));
    }
    found
}

fn allows(allow: &Usable<CiliumAllow>) -> Vec<Usable<CiliumAllow>> {
    let Ok(allow) = allow else { return Vec::new() };
    let mut found = Vec::new();
    for ports in without_one(&allow.ports).into_iter().filter(|ports| !ports.is_empty()) {
        found.push(Ok(CiliumAllow { peers: allow.peers.clone(), ports }));
    }
    let peers = match &allow.peers {
        CiliumPeers::Endpoints(list) => without_one(list).into_iter().map(CiliumPeers::Endpoints).collect(),
        CiliumPeers::Cidrs(list) => without_one(list).into_iter().map(CiliumPeers::Cidrs).collect(),
        CiliumPeers::Entities(list) => without_one(list).into_iter().map(CiliumPeers::Entities).collect(),
        CiliumPeers::Names(list) => without_one(list).into_iter().map(CiliumPeers::Names).collect(),
        _ => Vec::new(),
    };
    found.extend(peers.into_iter().map(|peers| Ok(CiliumAllow { peers, ports: allow.ports.clone() })));
    for (index, ports) in allow.ports.iter().enumerate() {
        for some in port_lists(&ports.ports) {
            let mut allow = allow.clone();
            allow.ports[index].ports = some;
            found.push(Ok(allow));
        }
    }
    found
}
