//! What is opened, written, found again and swept.

use sluice_policy_core::cluster::ObjectKey;
use sluice_policy_core::compile::diff::Operation;
use sluice_policy_core::compile::image::DecisionId;
use sluice_policy_core::compile::row::{PortPrefix, Row};
use sluice_policy_core::flow::{Judgement, Protocol, Reason, Verdict};
use sluice_policy_core::model::PolicyRef;

use super::*;

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: api}}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]
    ports: [{port: 5432}, {port: 8000, endPort: 8010}, {port: web}]
  - from: [{ipBlock: {cidr: '2001:db8::/32'}}]
  egress:
  - to: [{podSelector: {}}]
    ports: [{protocol: UDP, port: 53}]
";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], selector: {app: api}, ports: [{port: 80, targetPort: 8080, name: a}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{name: a, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.0.0.2], conditions: {ready: true}}]
";

fn pods() -> String {
    pod("db", "{ip: 10.0.0.1}, {ip: '2001:db8:1::1'}", "{app: db}", "n1")
        + &pod("api", "{ip: 10.0.0.2}", "{app: api}", "n1")
        + &pod("far", "{ip: 10.0.9.9}", "{app: api}", "n2")
}

#[test]
fn every_operation_is_in_the_maps() {
    on_a_node(|| async {
        let (gate, found) = open();
        assert!(found.is_fresh(), "{found:?}");
        let mut node = Node::new(gate);
        node.gate.bind(&key("db"), interface(7, &["10.0.0.1", "2001:db8:1::1"])).unwrap();
        let steps: [&dyn Fn(&mut Node); 6] = [
            &|node| node.tell(&pods()),
            &|node| node.tell(POLICY),
            &|node| node.tell(SERVICE),
            &|node| node.tell(&pod("api", "{ip: 10.0.0.2}", "{app: other}", "n1")),
            &|node| node.delete(ObjectId::Service(ObjectKey { namespace: "shop".into(), name: "api".into() })),
            &|node| node.delete(ObjectId::Pod(key("far"))),
        ];
        for (number, step) in steps.iter().enumerate() {
            step(&mut node);
            assert_equal(&node.gate, node.engine.image());
            let endpoint = &node.engine.image().endpoints[&key("db")];
            let entry = entries(&node.gate)[&7];
            assert_eq!((entry.ingress, entry.egress), (endpoint.ingress.0, endpoint.egress.0), "after step {number}");
            assert_eq!(node.gate.differences(7).unwrap(), [] as [&str; 0]);
        }
        let image = node.engine.image();
        assert!(image.rows.values().any(|row| row.entries.len() > 3), "the example has rows of several entries");
        assert!(image.decisions.len() > 2, "the example has decisions");
    });
}

#[test]
fn a_decision_says_what_happens_and_what_the_dry_runs_would_do() {
    let judgement = |verdict| Judgement { verdict, reason: Reason::NoPolicy, audit: None };
    let plain = keys::decision(&judgement(Verdict::Deny));
    assert_eq!((plain.verdict, plain.full), (2, 2));
    let audited = Judgement { audit: Some(Box::new(judgement(Verdict::Deny))), ..judgement(Verdict::Allow) };
    let audited = keys::decision(&audited);
    assert_eq!((audited.verdict, audited.full), (1, 2));
}

#[test]
fn a_second_opening_finds_everything_and_goes_on() {
    on_a_node(|| async {
        let (gate, _) = open();
        let mut node = Node::new(gate);
        node.gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        node.tell(&pods());
        node.tell(POLICY);
        node.tell(SERVICE);
        let Node { gate, engine } = node;
        let image = engine.image();
        let (held, before) = (decisions(&gate), entries(&gate));

        let second = Gate::open(&config());
        assert!(matches!(second, Err(OpenError::Held { .. })), "{second:?}");
        let programs: Vec<u32> = Program::ALL.iter().map(|p| gate.programs.id(*p)).collect();
        drop(gate);

        let (gate, found) = open();
        assert_eq!(found.made, [] as [&str; 0]);
        assert_equal(&gate, image);
        assert_eq!((decisions(&gate), entries(&gate)), (held, before.clone()));
        let endpoint = &found.endpoints[&7];
        assert_eq!((endpoint.ingress.0, endpoint.egress.0), (before[&7].ingress, before[&7].egress));
        assert_eq!(endpoint.addresses, ["10.0.0.1", "2001:db8:1::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        let highest = found.highest;
        assert_eq!(highest.row, image.rows.keys().map(|row| row.0).max().unwrap());
        assert_eq!(highest.decision, image.decisions.keys().map(|id| id.0).max().unwrap());
        assert_eq!(highest.policy, image.peers.keys().map(|(policy, _)| policy.0).max().unwrap());
        assert!(image.ipcache.iter().all(|(_, identity)| identity.0 <= highest.identity));
        assert!(image.frontends.values().all(|identity| identity.0 <= highest.identity));
        assert_eq!(found.entries["peers"], image.peers.len());

        // The programs are new ones under the same pins, on the same maps.
        let again: Vec<u32> = Program::ALL.iter().map(|p| gate.programs.id(*p)).collect();
        assert!(programs.iter().zip(&again).all(|(old, new)| old != new), "{programs:?} {again:?}");
        assert_eq!(pins(&Path::new(ROOT).join("programs")), ["drop", "from_pod", "to_pod", "uplink"]);
        let pinned = aya::programs::ProgramInfo::from_pin(Path::new(ROOT).join("programs/from_pod")).unwrap();
        assert_eq!(pinned.id(), gate.programs.id(Program::FromPod));
        let endpoints = aya::maps::MapInfo::from_pin(Path::new(ROOT).join("endpoints")).unwrap().id();
        assert!(pinned.map_ids().unwrap().unwrap().contains(&endpoints));
    });
}

#[test]
fn maps_that_are_lost_are_made_again_and_told() {
    on_a_node(|| async {
        drop(open());
        std::fs::remove_file(Path::new(ROOT).join("connections")).unwrap();
        let (_, found) = open();
        assert_eq!(found.made, ["connections"]);
        assert!(!found.is_fresh());
    });
}

#[test]
fn pinned_maps_keep_their_size() {
    on_a_node(|| async {
        drop(open());
        let larger = GateConfig { limits: BTreeMap::from([("connections", 9999)]), ..config() };
        let (gate, _) = Gate::open(&larger).unwrap();
        assert_eq!(gate.limits().find(|(map, _)| *map == "connections"), Some(("connections", 4096)));
    });
}

#[test]
fn what_is_pinned_by_others_is_refused() {
    on_a_node(|| async {
        drop(open());
        let path = Path::new(ROOT).join("peers");
        std::fs::remove_file(&path).unwrap();
        aya::maps::HashMap::<aya::maps::MapData, u32, u32>::create(8, 0).unwrap().pin(&path).unwrap();
        let error = Gate::open(&config()).unwrap_err();
        assert!(matches!(&error, OpenError::Mismatch { what: "bytes of a key", .. }), "{error}");
        assert!(error.to_string().contains("/mnt/sluice/1/peers is pinned and is not of this layout"), "{error}");
        std::fs::remove_file(&path).unwrap();
        aya::maps::Array::<aya::maps::MapData, u32>::create(8, 0).unwrap().pin(&path).unwrap();
        let error = Gate::open(&config()).unwrap_err();
        assert!(matches!(error, OpenError::Mismatch { what: "type", .. }), "{error}");
    });
}

#[test]
fn without_a_file_system_for_pins_there_is_a_hint() {
    on_a_node(|| async {
        let error = Gate::open(&GateConfig { root: "/run/sluice/bpf/1".into(), ..config() }).unwrap_err();
        assert!(matches!(error, OpenError::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    });
}

fn row(entries: &[(u16, u32)]) -> Arc<RowEntries> {
    let entry = |(port, decision): &(u16, u32)| {
        (PortPrefix { protocol: Some(Protocol::TCP), port: *port, bits: 16 }, DecisionId(*decision))
    };
    Arc::new(Row { entries: entries.iter().map(entry).collect() })
}

#[test]
fn a_full_map_is_told_and_no_half_of_it_is_written() {
    on_a_node(|| async {
        let limits =
            BTreeMap::from([("connections", 1024), ("rows", 4), ("peers", 2), ("ipcache", 2), ("endpoints", 1)]);
        let (mut gate, _) = Gate::open(&GateConfig { limits, ..config() }).unwrap();
        gate.apply(&Operation::SetRow(RowId(1), row(&[(1, 1), (2, 1)]))).unwrap();
        let before = read_back(&gate).rows;
        let error = gate.apply(&Operation::SetRow(RowId(2), row(&[(1, 1), (2, 1), (3, 1)]))).unwrap_err();
        assert!(matches!(error, ApplyError::Full { map: "rows", limit: 4 }), "{error:?}");
        assert_eq!(error.to_string(), "the map rows is full: it holds 4 entries");
        assert_eq!(read_back(&gate).rows, before, "nothing of the row that did not fit");
        gate.apply(&Operation::SetRow(RowId(2), row(&[(1, 1), (2, 1)]))).unwrap();

        for identity in [300, 301] {
            gate.apply(&Operation::SetPeer(PolicyId(1), Identity(identity), RowId(1))).unwrap();
        }
        let error = gate.apply(&Operation::SetPeer(PolicyId(1), Identity(302), RowId(1))).unwrap_err();
        assert!(matches!(error, ApplyError::Full { map: "peers", limit: 2 }), "{error:?}");
        // What is there can still be changed, and makes room when it goes.
        gate.apply(&Operation::SetPeer(PolicyId(1), Identity(300), RowId(2))).unwrap();
        gate.apply(&Operation::RemovePeer(PolicyId(1), Identity(301))).unwrap();
        gate.apply(&Operation::SetPeer(PolicyId(1), Identity(302), RowId(1))).unwrap();

        for net in ["10.0.0.0/8", "10.1.0.0/16"] {
            gate.apply(&Operation::SetAddress(net.parse().unwrap(), Identity(300))).unwrap();
        }
        let error = gate.apply(&Operation::SetAddress("10.2.0.0/16".parse().unwrap(), Identity(300))).unwrap_err();
        assert!(matches!(error, ApplyError::Full { map: "ipcache", limit: 2 }), "{error:?}");

        gate.bind(&key("db"), interface(7, &["10.0.0.1"])).unwrap();
        let error = gate.bind(&key("api"), interface(8, &["10.0.0.2"])).unwrap_err();
        assert!(matches!(error, ApplyError::Full { map: "endpoints", limit: 1 }), "{error:?}");
        assert_eq!(entries(&gate).keys().collect::<Vec<_>>(), [&7], "what has no entry drops");
    });
}

#[test]
fn what_is_gone_need_not_be_there_to_be_removed() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let frontend = ("10.96.0.1".parse().unwrap(), Protocol::TCP, 443);
        for operation in [
            Operation::RemoveAddress("10.0.0.0/8".parse().unwrap()),
            Operation::RemoveName("10.0.0.1/32".parse().unwrap()),
            Operation::RemoveFrontend(frontend),
            Operation::RemovePeer(PolicyId(1), Identity(300)),
            Operation::RemoveRow(RowId(1)),
            Operation::RemoveDecision(DecisionId(1)),
            Operation::RemoveEndpoint(key("db")),
            Operation::SetRevision(key("db"), 9),
        ] {
            gate.apply(&operation).unwrap_or_else(|error| panic!("{operation:?}: {error}"));
        }
    });
}

#[test]
fn a_sweep_leaves_what_the_image_has_and_closes_what_is_nobodys() {
    on_a_node(|| async {
        let (gate, _) = open();
        let mut node = Node::new(gate);
        for (name, index, address) in [("db", 7, "10.0.0.1"), ("api", 8, "10.0.0.2")] {
            node.gate.bind(&key(name), interface(index, &[address])).unwrap();
        }
        node.tell(&pods());
        node.tell(POLICY);
        node.tell(SERVICE);
        drop(node.gate);

        // While nobody looked, the policy and one pod went.
        let (gate, found) = open();
        let mut node = Node::new(gate);
        for (index, _) in found.endpoints {
            let (name, address) = if index == 7 { ("db", "10.0.0.1") } else { ("gone", "10.0.0.2") };
            if name == "db" {
                node.gate.bind(&key(name), interface(index, &[address])).unwrap();
            }
        }
        let image = Image::default();
        assert!(!read_back(&node.gate).peers.is_empty());
        node.tell(&pod("db", "{ip: 10.0.0.1}", "{app: db}", "n1"));
        let swept = node.gate.sweep(node.engine.image()).unwrap();
        assert_equal(&node.gate, node.engine.image());
        assert_eq!(swept.locked, [8], "its pod was not bound");
        assert!(["frontends", "ipcache", "peers", "rows", "decisions"].iter().all(|map| swept.removed[map] > 0));
        let entries = entries(&node.gate);
        assert_eq!(entries[&7].flags, 0);
        assert_eq!(entries[&8].flags, layout::ENDPOINT_LOCKDOWN);
        assert_eq!(node.gate.sweep(node.engine.image()).unwrap(), Swept::default(), "nothing is left to do");
        // A pod that the image lacks is closed as well.
        let swept = node.gate.sweep(&image).unwrap();
        assert_eq!(swept.locked, [7]);
    });
}

#[test]
fn a_policy_that_is_deleted_leaves_nothing() {
    on_a_node(|| async {
        let (gate, _) = open();
        let mut node = Node::new(gate);
        node.tell(&pods());
        let before = read_back(&node.gate);
        node.tell(POLICY);
        let id = node.engine.cluster().policies.keys().next().cloned().unwrap();
        let _: &PolicyRef = &id;
        node.delete(ObjectId::Policy(id));
        let after = read_back(&node.gate);
        assert_equal(&node.gate, node.engine.image());
        assert!(after.peers.len() <= before.peers.len(), "{:?}", after.peers);
    });
}
