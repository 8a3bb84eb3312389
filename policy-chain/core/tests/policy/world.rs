//! A cluster of manifests, and lines that say what must become of flows in it.

use std::net::IpAddr;

use sluice_policy_core::cluster::{Cluster, Event, PodKey};
use sluice_policy_core::flow::{Direction, Judgement, Origin, Outcome, Protocol, Query, Verdict};
use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::l7::http::{Field, RawRequest, Request, Version};
use sluice_policy_core::l7::sni::server_name;
use sluice_policy_core::oracle;
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::judge::{Afresh, Compiled, Judge};

use crate::{CLUSTER, objects, sound_objects};

/// What the oracle says, and what images say that came to be in different ways.
#[derive(Debug)]
pub(crate) struct World {
    judges: Vec<(&'static str, Box<dyn Judge>)>,
    cluster: Cluster,
}

impl World {
    /// The cluster of these tests, and these objects, which have no fault.
    pub(crate) fn new(text: &str) -> Self {
        Self::faulty(text, &[])
    }

    /// The same with objects that have faults: these, by severity and path.
    pub(crate) fn faulty(text: &str, expected: &[&str]) -> Self {
        Self::with(&Settings::default(), text, expected)
    }

    /// The same with settings.
    pub(crate) fn with(settings: &Settings, text: &str, expected: &[&str]) -> Self {
        let mut all = sound_objects(CLUSTER);
        let (more, faults) = objects(text);
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            let told = fault.strip_prefix(expected).and_then(|rest| rest.strip_prefix(": "));
            assert!(told.is_some_and(|message| message.len() > 10), "{fault:?} is not {expected:?}");
        }
        all.extend(more);
        let events: Vec<Event> = all.into_iter().map(Event::Upsert).collect();
        let compiled = || Box::new(Compiled::new(settings.clone()));
        let mut world = Self {
            judges: vec![
                ("oracle", Box::new(Afresh::new(settings.clone(), oracle::judge))),
                ("compiled at once", compiled()),
                ("compiled object by object", compiled()),
                ("compiled object by object, the last one first", compiled()),
            ],
            cluster: Cluster::default(),
        };
        let [oracle, at_once, forward, backward] = world.judges.as_mut_slice() else { panic!("four judges") };
        oracle.1.apply(&events);
        at_once.1.apply(&events);
        events.iter().for_each(|event| forward.1.apply(std::slice::from_ref(event)));
        events.iter().rev().for_each(|event| backward.1.apply(std::slice::from_ref(event)));
        events.into_iter().for_each(|event| drop(world.cluster.apply(event)));
        world
    }

    /// Something happens.
    pub(crate) fn happens(&mut self, event: Event) {
        for (_, judge) in &mut self.judges {
            judge.apply(std::slice::from_ref(&event));
        }
        self.cluster.apply(event);
    }

    /// Objects come, or are something else now.
    pub(crate) fn apply(&mut self, text: &str) {
        let (objects, faults) = objects(text);
        assert!(faults.iter().all(|fault| fault.starts_with("Warning")), "{faults:#?}");
        objects.into_iter().for_each(|object| self.happens(Event::Upsert(object)));
    }

    /// Objects go.
    pub(crate) fn delete(&mut self, text: &str) {
        objects(text).0.into_iter().for_each(|object| self.happens(Event::Delete(object.id())));
    }

    /// A name resolves to an address.
    pub(crate) fn resolves(&mut self, name: &str, address: &str) {
        let (name, addresses) = (Name::new(name).unwrap(), vec![address.parse().unwrap()]);
        self.happens(Event::Resolved { name, addresses, until: None });
    }

    /// Asks all judges, which have to agree.
    pub(crate) fn judge(&self, query: &Query) -> Judgement {
        let node = self.cluster.pods.get(&query.subject).and_then(|pod| pod.node.clone());
        let answers: Vec<_> =
            self.judges.iter().map(|(name, judge)| (name, judge.judge(node.as_ref(), query))).collect();
        let (_, expected) = &answers[0];
        for (name, answer) in &answers {
            assert_eq!(answer, expected, "{name} and the oracle, on {query:?}");
        }
        expected.clone()
    }

    /// Holds lines true. A line is `SUBJECT ARROW PEER PROTOCOL/PORT VERDICT [by REASON]`:
    ///
    /// - `shop/web-0 > 10.9.1.3 TCP/80 allow by NetworkPolicy shop/p, egress[0]`; a peer may be a pod, whose first address
    ///   counts, and `|` stands between several subjects, peers, and ports.
    /// - `<` is ingress, `<node` from the pod's own node itself, `<self` and `>self` to itself through a Service.
    /// - `redirect else deny`: it is proxied, and a request that no rule has is refused.
    /// - `GET api /a pass`, `DNS name pass`, `SNI name refuse`: what becomes of a request of a flow that is proxied; `bad` is
    ///   one that has more than one reading.
    pub(crate) fn holds(&self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let mut next = || words.next().unwrap_or_else(|| panic!("{line:?} ends too early"));
            let (subjects, arrow, peers, ports) = (next(), next(), next(), next());
            let rest: Vec<&str> = words.collect();
            for subject in subjects.split('|') {
                for peer in peers.split('|') {
                    for port in ports.split('|') {
                        self.hold(line, &self.query(subject, arrow, peer, port), &rest);
                    }
                }
            }
        }
    }

    pub(crate) fn query(&self, subject: &str, arrow: &str, peer: &str, port: &str) -> Query {
        let (direction, origin) = match arrow {
            ">" => (Direction::Egress, Origin::Forwarded),
            ">self" => (Direction::Egress, Origin::Hairpin),
            "<" => (Direction::Ingress, Origin::Forwarded),
            "<node" => (Direction::Ingress, Origin::OwnNode),
            "<self" => (Direction::Ingress, Origin::Hairpin),
            other => panic!("{other:?} is no arrow"),
        };
        let (protocol, port) = port.split_once('/').expect("PROTOCOL/PORT");
        let protocol = match protocol {
            "TCP" => Protocol::TCP,
            "UDP" => Protocol::UDP,
            "SCTP" => Protocol::SCTP,
            "ICMP" => Protocol::ICMP,
            "ICMPv6" => Protocol::ICMPV6,
            number => Protocol(number.parse().unwrap()),
        };
        Query {
            subject: key(subject),
            direction,
            peer: self.address(peer),
            protocol,
            port: port.parse().unwrap(),
            origin,
        }
    }

    fn address(&self, peer: &str) -> IpAddr {
        if let Ok(address) = peer.parse() {
            return address;
        }
        let pod = self.cluster.pods.get(&key(peer)).unwrap_or_else(|| panic!("no pod {peer}"));
        pod.addresses.iter().next().unwrap()
    }

    fn hold(&self, line: &str, query: &Query, expected: &[&str]) {
        let found = self.judge(query);
        let context = || format!("{line}\n{query:?}\n{found:#?}");
        let (what, reason) = match expected.iter().position(|word| *word == "by") {
            Some(at) => (&expected[..at], Some(expected[at + 1..].join(" "))),
            None => (expected, None),
        };
        match what {
            ["redirect", "else", word] => {
                let Verdict::Redirect(proxied) = &found.verdict else { panic!("{}", context()) };
                let otherwise = matches!(proxied.otherwise, Outcome::Allow(_));
                assert_eq!(if otherwise { "allow" } else { "deny" }, *word, "{}", context());
            }
            [verdict @ ("allow" | "deny" | "defer")] => {
                assert_eq!(found.verdict.as_str(), *verdict, "{}", context());
            }
            [method @ ("GET" | "POST"), host, target, becomes] => {
                assert_eq!(self.request(query, method, host, target), *becomes, "{}", context());
            }
            ["DNS", name, becomes] => {
                let message = Message::Dns { name: Name::new(name).unwrap(), qtype: 1 };
                assert_eq!(outcome(&found, &message), *becomes, "{}", context());
            }
            ["SNI", name, becomes] => {
                let message = Message::ServerName(server_name(name.as_bytes()).unwrap());
                assert_eq!(outcome(&found, &message), *becomes, "{}", context());
            }
            other => panic!("{other:?} says nothing"),
        }
        if let Some(reason) = reason {
            assert_eq!(found.reason.to_string(), reason, "{}", context());
        }
    }

    /// What becomes of an HTTP request, as below, or `bad`.
    pub(crate) fn request(&self, query: &Query, method: &str, host: &str, target: &str) -> &'static str {
        let fields = [Field { name: b"Host", value: host.as_bytes() }];
        let (method, target) = (method.as_bytes(), target.as_bytes());
        match Request::new(RawRequest { version: Version::Http11, method, target, authority: None, fields: &fields }) {
            Err(_) => "bad",
            Ok(request) => outcome(&self.judge(query), &Message::Http(request)),
        }
    }

    /// The policies that are in force.
    pub(crate) fn policies(&self) -> Vec<String> {
        self.cluster.policies.keys().map(ToString::to_string).collect()
    }
}

/// What becomes of a request: `pass`, `refuse`, or `unseen` where the flow is not proxied.
fn outcome(found: &Judgement, message: &Message<'_>) -> &'static str {
    let Verdict::Redirect(proxied) = &found.verdict else { return "unseen" };
    match proxied.outcome(message) {
        Outcome::Allow(_) => "pass",
        Outcome::Deny(_) => "refuse",
    }
}

/// All that there is, as events.
pub(crate) fn events(text: &str) -> Vec<Event> {
    let all = [CLUSTER, text].map(|text| objects(text).0);
    all.into_iter().flatten().map(Event::Upsert).collect()
}

fn document(version: &str, kind: &str, metadata: &str, spec: &str) -> String {
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n")
}

/// A NetworkPolicy shop/NAME.
pub(crate) fn np(name: &str, spec: &str) -> String {
    document("networking.k8s.io/v1", "NetworkPolicy", &format!("name: {name}, namespace: shop"), spec)
}

/// A CiliumNetworkPolicy shop/NAME.
pub(crate) fn cnp(name: &str, spec: &str) -> String {
    document("cilium.io/v2", "CiliumNetworkPolicy", &format!("name: {name}, namespace: shop"), spec)
}

/// A CiliumClusterwideNetworkPolicy.
pub(crate) fn ccnp(name: &str, spec: &str) -> String {
    document("cilium.io/v2", "CiliumClusterwideNetworkPolicy", &format!("name: {name}"), spec)
}

/// A ClusterNetworkPolicy of tier Admin.
pub(crate) fn admin(name: &str, priority: u16, spec: &str) -> String {
    let spec = format!("tier: Admin, priority: {priority}, {spec}");
    document("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", &format!("name: {name}"), &spec)
}

/// A ClusterNetworkPolicy of AWS.
pub(crate) fn aws(name: &str, priority: u16, spec: &str) -> String {
    let spec = format!("tier: Admin, priority: {priority}, {spec}");
    document("networking.k8s.aws/v1alpha1", "ClusterNetworkPolicy", &format!("name: {name}"), &spec)
}

pub(crate) fn key(name: &str) -> PodKey {
    let (namespace, name) = name.split_once('/').expect("NAMESPACE/NAME");
    PodKey { namespace: namespace.into(), name: name.into() }
}
