//! Small examples of what the engine promises about identities and revisions: which number an address has, when it gets
//! another one, and when open flows are judged again (DESIGN 6.5).

use std::net::IpAddr;

use sluice_policy_core::cluster::{Event, ObjectId, PodKey};
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::engine::{Engine, Update};
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query, Verdict};
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::settings::Settings;

use crate::sound_objects;

struct Node(Engine);

impl Node {
    fn new() -> Self {
        let mut node = Self(Engine::new(Settings { node: Some("n1".into()), ..Settings::default() }));
        node.tell(&format!("{}---\n{}", pod("db", "10.0.0.1", "{app: db}", "n1"), pod("idle", "10.0.0.2", "{}", "n1")));
        node
    }

    fn tell(&mut self, yaml: &str) -> Update {
        for object in sound_objects(yaml) {
            self.0.apply(Event::Upsert(object));
        }
        self.0.commit()
    }

    fn event(&mut self, event: Event) -> Update {
        self.0.apply(event);
        self.0.commit()
    }

    fn identity(&self, address: &str) -> u32 {
        self.0.image().identity(address.parse().unwrap()).0
    }

    fn revision(&self, pod: &str) -> u64 {
        self.0.image().endpoints[&key(pod)].revision
    }

    fn allows(&self, pod: &str, direction: Direction, peer: &str) -> bool {
        let peer: IpAddr = peer.parse().unwrap();
        let (protocol, port, origin) = (Protocol::TCP, 443, Origin::Forwarded);
        let query = Query { subject: key(pod), direction, peer, protocol, port, origin };
        self.0.judge(&query).verdict == Verdict::Allow
    }
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".into(), name: name.into() }
}

fn pod(name: &str, address: &str, labels: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {labels}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{podIPs: [{{ip: {address}}}]}}\n"
    )
}

/// Lets pods with these labels reach `db`.
fn ingress(name: &str, from: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {from}}}}}]}}]}}\n"
    )
}

fn writes_addresses(update: &Update) -> usize {
    let is_address =
        |operation: &&Operation| matches!(operation, Operation::SetAddress(..) | Operation::RemoveAddress(..));
    update.operations.iter().filter(is_address).count()
}

#[test]
fn a_class_that_is_meant_as_a_whole_keeps_its_number() {
    let mut node = Node::new();
    node.tell(&ingress("web", "{app: web}"));
    for host in 10..15 {
        node.tell(&pod(&format!("web-{host}"), &format!("10.0.1.{host}"), "{app: web, tier: front}", "n2"));
    }
    let web = node.identity("10.0.1.10");
    assert_ne!(web, node.identity("10.0.0.2"), "web is told from a pod that nobody means");
    // All of them are of tier front too: the class is not split, and no address is written.
    let update = node.tell(&ingress("front", "{tier: front}"));
    assert_eq!(writes_addresses(&update), 0, "{update:#?}");
    assert_eq!(node.identity("10.0.1.14"), web);
    // One of them moves: the others stay.
    node.tell(&pod("web-10", "10.0.1.10", "{app: web}", "n2"));
    assert_ne!(node.identity("10.0.1.10"), web);
    assert_eq!(node.identity("10.0.1.11"), web);
    // A predicate that holds for one of four: the larger part keeps the number.
    node.tell(&pod("web-11", "10.0.1.11", "{app: web, tier: front, canary: 'yes'}", "n2"));
    let update = node.tell(&ingress("canary", "{canary: 'yes'}"));
    assert_eq!(writes_addresses(&update), 1, "{update:#?}");
    assert_eq!(node.identity("10.0.1.12"), web);
    assert_ne!(node.identity("10.0.1.11"), web);
    // Once nobody asks for it any more, the two are one again.
    let canary = sound_objects(&ingress("canary", "{canary: 'yes'}")).remove(0);
    node.event(Event::Delete(canary.id()));
    assert_eq!(node.identity("10.0.1.11"), web);
}

/// The address that a block lets out to becomes a pod's that the block does not mean: open flows to it are judged again.
#[test]
fn a_block_whose_address_a_pod_takes_is_judged_again() {
    const EGRESS: &str = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: db}}
  egress:
  - toCIDR: [10.0.1.0/24]
    toPorts: [{ports: [{port: '443', protocol: TCP}]}]
  - toEndpoints: [{matchLabels: {app: web}}]
";
    let mut node = Node::new();
    node.tell(EGRESS);
    assert!(node.allows("db", Direction::Egress, "10.0.1.9"));
    // A pod that is allowed no less than the address was is just somebody new.
    let before = node.revision("db");
    node.tell(&pod("web", "10.0.1.10", "{app: web}", "n2"));
    assert!(node.allows("db", Direction::Egress, "10.0.1.10"));
    assert_eq!(node.revision("db"), before);
    // So is one where nothing passed.
    node.tell(&pod("far", "10.0.2.10", "{}", "n2"));
    assert_eq!(node.revision("db"), before);
    node.tell(&pod("job", "10.0.1.9", "{}", "n2"));
    assert!(!node.allows("db", Direction::Egress, "10.0.1.9"));
    assert!(node.revision("db") > before);
}

#[test]
fn an_address_belongs_to_the_pod_that_has_it_now() {
    let mut node = Node::new();
    node.tell(&ingress("web", "{app: web}"));
    node.tell(&pod("web", "10.0.1.10", "{app: web}", "n2"));
    assert!(node.allows("db", Direction::Ingress, "10.0.1.10"));
    // The pod is gone, and another one gets its address.
    node.event(Event::Delete(ObjectId::Pod(key("web"))));
    assert!(!node.allows("db", Direction::Ingress, "10.0.1.10"));
    node.tell(&pod("job", "10.0.1.10", "{app: job}", "n2"));
    assert!(!node.allows("db", Direction::Ingress, "10.0.1.10"));
    node.tell(&pod("web", "10.0.1.11", "{app: web}", "n2"));
    assert!(node.allows("db", Direction::Ingress, "10.0.1.11"));
    // A pod that has ended holds no address, whatever its status still says (netpol.md 1.4, row 36).
    let ended = pod("web", "10.0.1.11", "{app: web}", "n2").replace("status: {", "status: {phase: Succeeded, ");
    node.tell(&ended);
    assert!(!node.allows("db", Direction::Ingress, "10.0.1.11"));
}

#[test]
fn open_flows_are_judged_again_when_someone_loses_and_not_when_someone_comes() {
    let mut node = Node::new();
    node.tell(&ingress("web", "{app: web}"));
    node.tell(&pod("web", "10.0.1.10", "{app: web}", "n2"));
    let (db, idle) = (node.revision("db"), node.revision("idle"));
    // Someone new, whether allowed or not.
    node.tell(&pod("web-2", "10.0.1.11", "{app: web}", "n2"));
    node.tell(&pod("other", "10.0.1.12", "{app: other}", "n2"));
    assert_eq!(node.revision("db"), db, "additions do not move it");
    // A label that no policy asks for.
    node.tell(&pod("web", "10.0.1.10", "{app: web, version: '2'}", "n2"));
    assert_eq!(node.revision("db"), db);
    // One that loses what let it in.
    node.tell(&pod("web", "10.0.1.10", "{app: batch}", "n2"));
    assert!(node.revision("db") > db);
    assert_eq!(node.revision("idle"), idle, "nothing governs this pod");
    // A pod that is gone: its address is nobody's.
    let db = node.revision("db");
    node.event(Event::Delete(ObjectId::Pod(key("web-2"))));
    assert!(node.revision("db") > db);
    // Another policy.
    let db = node.revision("db");
    node.tell(&ingress("more", "{app: other}"));
    assert!(node.revision("db") > db);
    assert_eq!(node.revision("idle"), idle);
}

/// A gate is looked at anew for several reasons, of which none but its own policy gives it another revision.
#[test]
fn open_flows_are_judged_again_however_else_the_change_concerns_their_pod() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: both, namespace: shop}, \
         spec: {clusterIP: 172.20.0.10, ports: [{port: 80}]}}\n---\n\
         {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: '', port: 80}], \
         metadata: {name: both-a, namespace: shop, labels: {kubernetes.io/service-name: both}}, \
         endpoints: [{addresses: [10.0.0.1]}, {addresses: [10.0.1.10]}]}\n";
    let namespace = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: blue}}}\n";
    let own = format!("---\n{}", pod("db", "10.0.0.1", "{app: db, version: '2'}", "n1"));
    // The peer is a backend of a Service beside the pod; the pod has another label in the same commit; so has its namespace.
    for (what, before, beside) in
        [("Service", service, ""), ("own label", "", own.as_str()), ("namespace's label", "", namespace)]
    {
        let mut node = Node::new();
        node.tell(&format!("{}---\n{before}", ingress("web", "{app: web}")));
        node.tell(&pod("web", "10.0.1.10", "{app: web}", "n2"));
        assert!(node.allows("db", Direction::Ingress, "10.0.1.10"), "{what}");
        let db = node.revision("db");
        let update = node.tell(&format!("{}{beside}", pod("web", "10.0.1.10", "{app: batch}", "n2")));
        assert!(!node.allows("db", Direction::Ingress, "10.0.1.10"), "{what}");
        assert!(node.revision("db") > db, "{what}: {:#?}", update.operations);
    }
}

/// What the proxy needs to know to write names without policyd.
#[test]
fn what_an_address_becomes_by_its_names_is_told() {
    let mut node = Node::new();
    node.tell(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: shop}\n\
         spec: {endpointSelector: {}, egress: [{toFQDNs: [{matchPattern: '*.example.com'}, {matchPattern: 'www.*.com'}]}, \
         {toCIDR: [198.51.100.0/24]}]}\n",
    );
    let patterns: Vec<String> = node.0.name_patterns().iter().map(ToString::to_string).collect();
    assert_eq!(patterns, ["*.example.com", "www.*.com"]);
    assert!(node.0.name_classes().is_empty());
    for (name, address) in
        [("a.example.com", "203.0.113.1"), ("b.example.com", "203.0.113.2"), ("www.example.com", "198.51.100.3")]
    {
        let addresses = vec![address.parse().unwrap()];
        node.event(Event::Resolved { name: Name::new(name).unwrap(), addresses, until: Some(30) });
    }
    let known: Vec<IpAddr> = node.0.cluster().names_ending(30).map(|(_, address)| address).collect();
    assert_eq!((known.len(), node.0.cluster().names_known()), (3, 3));
    assert_eq!(node.0.cluster().names_ending(29).count(), 0);
    let told: Vec<(u32, usize, u32)> =
        node.0.name_classes().iter().map(|class| (class.base.0, class.patterns.len(), class.identity.0)).collect();
    let base = |address| node.0.image().ipcache.longest(address).unwrap().0;
    let expected = [
        (base("203.0.113.1".parse().unwrap()), 1, node.identity("203.0.113.1")),
        (base("198.51.100.3".parse().unwrap()), 2, node.identity("198.51.100.3")),
    ];
    assert_eq!(told.len(), 2, "two addresses of one kind are one");
    assert!(expected.iter().all(|one| told.contains(one)), "{told:?} {expected:?}");
    node.event(Event::Time(30));
    assert!(node.0.name_classes().is_empty());
}

#[test]
fn a_name_that_ends_denies_new_flows_and_leaves_open_ones() {
    let mut node = Node::new();
    node.tell(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: out, namespace: shop}\n\
         spec: {endpointSelector: {}, egress: [{toFQDNs: [{matchName: example.com}]}]}\n",
    );
    let resolved = |until| Event::Resolved {
        name: Name::new("example.com").unwrap(),
        addresses: vec!["203.0.113.7".parse().unwrap()],
        until: Some(until),
    };
    let before = node.revision("db");
    node.event(resolved(30));
    assert!(node.allows("db", Direction::Egress, "203.0.113.7"));
    assert_eq!(node.revision("db"), before, "a new address moves nothing");
    node.event(Event::Time(30));
    assert!(!node.allows("db", Direction::Egress, "203.0.113.7"));
    assert_eq!(node.revision("db"), before, "flows that are open go on");
    // An address that turns out to be a pod's is not the name's any more: that is another matter.
    node.event(resolved(60));
    node.tell(&pod("web", "203.0.113.7", "{app: web}", "n2"));
    assert!(!node.allows("db", Direction::Egress, "203.0.113.7"));
}
