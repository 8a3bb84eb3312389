use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;

use super::*;
use crate::l7::dns::Name;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())))
}

fn pod(name: &str, addresses: &[&str], set: Labels) -> Pod {
    Pod {
        key: PodKey { namespace: "shop".into(), name: name.into() },
        uid: Uid::default(),
        created: Created::default(),
        labels: set,
        template: Arc::new(PodTemplate {
            service_account: "default".into(),
            ports: Box::default(),
            visible: Box::default(),
        }),
        node: None,
        host_network: false,
        finished: false,
        addresses: addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect(),
        ready: true,
        audit: false,
    }
}

fn resolved(name: &str, addresses: impl IntoIterator<Item = IpAddr>, until: Option<u64>) -> Event {
    Event::Resolved { name: Name::new(name).unwrap(), addresses: addresses.into_iter().collect(), until }
}

fn v4(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

/// Names and what is known of them, as text.
fn known(cluster: &Cluster) -> Vec<String> {
    let entry = |name: &Name, address: &IpAddr, until: &Option<u64>| match until {
        Some(until) => format!("{} {address} {until}", name.as_str()),
        None => format!("{} {address} never", name.as_str()),
    };
    let all = cluster.names.iter();
    all.flat_map(|(name, known)| known.iter().map(|(address, until)| entry(name, address, until))).collect()
}

#[test]
fn times_of_the_api() {
    let table = [
        ("1970-01-01T00:00:00Z", Some(0)),
        ("1970-01-01T00:00:01.999Z", Some(1)),
        ("1969-12-31T23:59:59Z", Some(-1)),
        ("2000-02-29T12:00:00Z", Some(951_825_600)),
        ("2000-03-01T00:00:00Z", Some(951_868_800)),
        ("2026-11-25T21:15:41Z", Some(1_795_641_341)),
        ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
        ("", None),
        ("2026-11-25", None),
        ("2026-11-25T21:15:41", None),
        ("2026-13-25T21:15:41Z", None),
        ("2026-11-25T24:15:41Z", None),
        ("2026-11-25T21:15:41.Z", None),
        ("+026-11-25T21:15:41Z", None),
        ("2026-11-25T21:15:41+00:00", None),
        ("é026-11-25T21:15:41Z", None),
    ];
    for (text, seconds) in table {
        assert_eq!(Created::parse(text), seconds.map(Created::at), "{text}");
    }
    assert!(Created::default() < Created::at(i64::MIN), "no time at all is the oldest");
    assert_eq!(Created::at(951_825_600).seconds(), Some(951_825_600));
    assert_eq!([i64::MIN, -1, i64::MAX].map(|at| Created::at(at).seconds()), [Some(0), Some(0), Some(4_294_967_294)]);
}

#[test]
fn uids_are_shown_as_they_were_read() {
    for text in [
        "",
        "a",
        "3f1c2b4d-0000-4abc-8def-0123456789ab",
        "3F1C2B4D-0000-4ABC-8DEF-0123456789AB",
        "0123456789abcdef0123456789abcdef",
        "3f1c2b4d-0000-4abc-8def_0123456789ab",
        "é1c2b4d-0000-4abc-8def-0123456789ab",
    ] {
        assert_eq!(Uid::from(text).to_string(), text);
        assert_eq!(Uid::from(text).is_empty(), text.is_empty());
    }
}

#[test]
fn addresses_are_canonical() {
    let addresses: Addresses =
        ["::ffff:10.0.0.1", "10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()).into_iter().collect();
    assert_eq!(addresses.iter().map(|address| address.to_string()).collect::<Vec<_>>(), ["10.0.0.1", "fd00::1"]);
    for (net, expected) in [
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("fd00::1/64", "fd00::/64"),
        ("10.1.2.3/8", "10.0.0.0/8"),
    ] {
        assert_eq!(canonical_net(net.parse().unwrap()).to_string(), expected);
    }
    let mapped = || vec!["::ffff:10.0.0.1".parse().unwrap(), v4(0x0a00_0001)];
    let key = ObjectKey { namespace: "a".into(), name: "b".into() };
    let mut cluster = Cluster::default();
    let service = Service {
        key: key.clone(),
        labels: Labels::default(),
        addresses: mapped().into(),
        ports: Arc::default(),
        selector: None,
    };
    cluster.apply(Event::Upsert(Object::Service(service)));
    cluster.apply(Event::Upsert(Object::Node(Node {
        name: "n".into(),
        labels: Labels::default(),
        addresses: mapped(),
    })));
    cluster.apply(Event::Upsert(Object::EndpointSlice(EndpointSlice {
        key: key.clone(),
        service: None,
        ports: Arc::default(),
        ready: mapped().into_iter().collect(),
    })));
    cluster.apply(resolved("a", mapped(), None));
    let expected = vec![v4(0x0a00_0001)];
    assert_eq!(cluster.services[&key].addresses.to_vec(), expected);
    assert_eq!(cluster.nodes["n"].addresses, expected);
    assert_eq!(cluster.slices[&key].ready.iter().collect::<Vec<_>>(), expected);
    assert_eq!(known(&cluster), ["a 10.0.0.1 never"]);
}

#[test]
fn a_namespace_has_its_name() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.namespace_labels("shop"), labels(&[(NAMESPACE_NAME_LABEL, "shop")]));
    for given in [labels(&[("a", "b")]), labels(&[("a", "b"), (NAMESPACE_NAME_LABEL, "forged")])] {
        cluster.apply(Event::Upsert(Object::Namespace(Namespace { name: "shop".into(), labels: given })));
        assert_eq!(cluster.namespace_labels("shop"), labels(&[("a", "b"), (NAMESPACE_NAME_LABEL, "shop")]));
    }
    cluster.apply(Event::Delete(ObjectId::Namespace("shop".into())));
    assert_eq!(cluster.namespace_labels("shop"), labels(&[(NAMESPACE_NAME_LABEL, "shop")]));
}

#[test]
fn what_changes_nothing_is_told() {
    let mut cluster = Cluster::default();
    let first = || Event::Upsert(Object::Pod(pod("a", &["10.0.0.1"], labels(&[("app", "a")]))));
    let other = Event::Upsert(Object::Pod(pod("a", &["10.0.0.2"], labels(&[("app", "a")]))));
    let delete = || Event::Delete(ObjectId::Pod(PodKey { namespace: "shop".into(), name: "a".into() }));
    let answers: Vec<Applied> =
        [delete(), first(), first(), other, first(), delete(), delete()].map(|event| cluster.apply(event)).into();
    use Applied::{Nothing, Object as Changed};
    assert_eq!(answers, [Nothing, Changed, Nothing, Changed, Changed, Changed, Nothing]);
}

#[test]
fn names_live_until_their_latest_end() {
    let (a, b) = (v4(1), v4(2));
    let name = |name: &str| Applied::Names([Name::new(name).unwrap()].into());
    let mut cluster = Cluster::default();
    let steps: Vec<(Event, Applied, &[&str])> = vec![
        (resolved("x", [a, b], Some(10)), name("x"), &["x 0.0.0.1 10", "x 0.0.0.2 10"]),
        (resolved("x", [a], Some(5)), Applied::Nothing, &["x 0.0.0.1 10", "x 0.0.0.2 10"]),
        (resolved("x", [a], Some(20)), Applied::Nothing, &["x 0.0.0.1 20", "x 0.0.0.2 10"]),
        (Event::Time(9), Applied::Nothing, &["x 0.0.0.1 20", "x 0.0.0.2 10"]),
        (Event::Time(10), name("x"), &["x 0.0.0.1 20"]),
        (Event::Time(3), Applied::Nothing, &["x 0.0.0.1 20"]),
        (resolved("y", [a], Some(10)), Applied::Nothing, &["x 0.0.0.1 20"]),
        (resolved("y", [a], None), name("y"), &["x 0.0.0.1 20", "y 0.0.0.1 never"]),
        (resolved("y", [a], Some(30)), Applied::Nothing, &["x 0.0.0.1 20", "y 0.0.0.1 never"]),
        (resolved("z", [], Some(30)), Applied::Nothing, &["x 0.0.0.1 20", "y 0.0.0.1 never"]),
        (Event::Time(u64::MAX), name("x"), &["y 0.0.0.1 never"]),
    ];
    for (event, applied, expected) in steps {
        let shown = format!("{event:?}");
        assert_eq!(cluster.apply(event), applied, "{shown}");
        assert_eq!(known(&cluster), expected, "{shown}");
    }
}

#[test]
fn a_name_has_a_limit() {
    let limit = u32::try_from(MAX_ADDRESSES_OF_A_NAME).unwrap();
    let mut cluster = Cluster::default();
    cluster.apply(resolved("x", (0..limit).map(v4), Some(100)));
    assert_eq!((cluster.names_overflowed, known(&cluster).len()), (0, MAX_ADDRESSES_OF_A_NAME));
    // What ends first goes, be it new or old.
    cluster.apply(resolved("x", [v4(limit)], Some(50)));
    assert!(!known(&cluster).contains(&"x 0.0.3.232 50".to_owned()));
    cluster.apply(resolved("x", [v4(limit)], Some(200)));
    let after = known(&cluster);
    assert!(after.contains(&"x 0.0.3.232 200".to_owned()) && !after.contains(&"x 0.0.0.0 100".to_owned()));
    assert_eq!((cluster.names_overflowed, after.len()), (2, MAX_ADDRESSES_OF_A_NAME));
}

#[test]
fn all_names_have_a_limit() {
    let (limit, each) = (u32::try_from(MAX_ADDRESSES_OF_NAMES).unwrap(), 512);
    let mut cluster = Cluster::default();
    for number in 0..limit / each {
        cluster.apply(resolved(&format!("n{number:03}"), (0..each).map(v4), Some(u64::from(1_000 + number))));
    }
    assert_eq!((cluster.names_overflowed, known(&cluster).len()), (0, MAX_ADDRESSES_OF_NAMES));
    let changed = cluster.apply(resolved("late", [v4(1), v4(2)], Some(9_000)));
    assert_eq!(changed, Applied::Names(["late", "n000"].map(|name| Name::new(name).unwrap()).into()));
    assert_eq!((cluster.names_overflowed, known(&cluster).len()), (2, MAX_ADDRESSES_OF_NAMES));
    assert_eq!(cluster.names[&Name::new("n000").unwrap()].len(), 510);
    assert_eq!(cluster.names[&Name::new("late").unwrap()].len(), 2);
}

#[test]
fn equal_parts_are_one() {
    let mut cluster = Cluster::default();
    for number in 0..100 {
        let set = labels(&[("app", "shop"), ("tier", "web"), ("unique", &format!("value-{number}"))]);
        cluster.apply(Event::Upsert(Object::Pod(pod(&format!("p{number:03}"), &[], set))));
    }
    let pods: Vec<&Arc<Pod>> = cluster.pods.values().collect();
    for pair in pods.windows(2) {
        let same = |key: &str| std::ptr::eq(pair[0].labels.get(key).unwrap(), pair[1].labels.get(key).unwrap());
        assert!(same("app") && same("tier") && !same("unique"), "{pair:?}");
        assert!(Arc::ptr_eq(&pair[0].key.namespace, &pair[1].key.namespace));
    }
    assert_eq!(pods[99].labels, labels(&[("app", "shop"), ("tier", "web"), ("unique", "value-99")]));
}

/// Values that only one object has stand beside what it shares with others, whatever they are.
#[test]
fn values_of_one_object_are_told_apart() {
    let mut cluster = Cluster::default();
    let of = |number: usize| {
        let odd = ["".to_owned(), format!("\0{number}"), format!("a\0{number}\0"), number.to_string()];
        let [a, b, c, d] = std::array::from_fn(|index| odd[(number + index) % 4].clone());
        labels(&[("a", &a), ("b", &b), ("c", &c), ("d", &d), ("e", "same")])
    };
    for number in 0..200 {
        cluster.apply(Event::Upsert(Object::Pod(pod(&format!("p{number:03}"), &[], of(number)))));
    }
    for (number, pod) in cluster.pods.values().enumerate() {
        assert_eq!(pod.labels, of(number), "{number}");
        for (key, value) in of(number).iter() {
            assert_eq!(pod.labels.get(key), Some(value), "{number}");
        }
        assert_eq!(pod.labels.get("f"), None);
    }
}

fn pairs() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map("[ab]{1,2}", "[a-d]{0,3}", 0..6)
}

fn of(map: &BTreeMap<String, String>) -> Labels {
    Labels::new(map.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())))
}

#[derive(Debug, Clone)]
enum Write {
    Upsert(u8, Object),
    Delete(u8, ObjectId),
}

/// A write of one of a few objects of every kind, with a number that says which.
fn write() -> impl Strategy<Value = Write> {
    (0..14_u8, any::<bool>(), pairs(), 0..4_u32).prop_map(|(which, upsert, map, number)| {
        let name: Text = format!("o{}", which % 2).into();
        let key = ObjectKey { namespace: "shop".into(), name: Arc::clone(&name) };
        let set = of(&map);
        let id = PolicyRef {
            kind: crate::model::PolicyKind::NetworkPolicy,
            namespace: Some("shop".into()),
            name: Arc::clone(&name),
        };
        let (object, id) = match which / 2 {
            0 => (Object::Namespace(Namespace { name: Arc::clone(&name), labels: set }), ObjectId::Namespace(name)),
            1 => {
                let pod = pod(&name, &[&format!("10.0.0.{number}")], set);
                (Object::Pod(pod.clone()), ObjectId::Pod(pod.key))
            }
            2 => (
                Object::Node(Node { name: Arc::clone(&name), labels: set, addresses: vec![v4(number)] }),
                ObjectId::Node(name),
            ),
            3 => (
                Object::Service(Service {
                    key: key.clone(),
                    labels: set,
                    addresses: vec![v4(number)].into(),
                    ports: Arc::default(),
                    selector: None,
                }),
                ObjectId::Service(key),
            ),
            4 => (
                Object::EndpointSlice(EndpointSlice {
                    key: key.clone(),
                    service: None,
                    ports: Arc::default(),
                    ready: [v4(number)].into_iter().filter(|_| number % 2 == 0).collect(),
                }),
                ObjectId::EndpointSlice(key),
            ),
            5 => (
                Object::CidrGroup(CidrGroup { name: Arc::clone(&name), labels: set, cidrs: Ok(vec![]) }),
                ObjectId::CidrGroup(name),
            ),
            _ => {
                let value = serde_json::json!({
                    "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                    "metadata": {"namespace": "shop", "name": &*name},
                    "spec": {"podSelector": {"matchLabels": map}, "policyTypes": ["Ingress"]},
                });
                (crate::parse::object(&value).object.unwrap(), ObjectId::Policy(id))
            }
        };
        if upsert { Write::Upsert(which, object) } else { Write::Delete(which, id) }
    })
}

proptest! {
    #[test]
    fn only_the_last_writes_count(writes in proptest::collection::vec(write(), 0..60)) {
        let event = |write: &Write| match write {
            Write::Upsert(_, object) => Event::Upsert(object.clone()),
            Write::Delete(_, id) => Event::Delete(id.clone()),
        };
        let mut all = Cluster::default();
        let mut last = BTreeMap::new();
        for write in &writes {
            let before = all.clone();
            let applied = all.apply(event(write));
            prop_assert_eq!(applied == Applied::Nothing, all == before);
            prop_assert_eq!(all.apply(event(write)), Applied::Nothing, "applying twice is applying once");
            let (Write::Upsert(which, _) | Write::Delete(which, _)) = write;
            last.insert(*which, write.clone());
        }
        let mut few = Cluster::default();
        for write in last.values() {
            few.apply(event(write));
        }
        prop_assert_eq!(all, few);
    }

    #[test]
    fn labels_are_a_map_however_they_are_held(maps in proptest::collection::vec(pairs(), 1..80), unique in any::<bool>()) {
        let hash = |labels: &Labels| {
            let mut hasher = DefaultHasher::new();
            labels.hash(&mut hasher);
            hasher.finish()
        };
        let mut interner = interner::Interner::default();
        let mut before: Option<(BTreeMap<String, String>, Labels)> = None;
        for (number, mut map) in maps.into_iter().enumerate() {
            if unique {
                map.insert("ab-unique".to_owned(), number.to_string());
            }
            let plain = of(&map);
            let held = interner.labels(&plain);
            prop_assert_eq!(&held, &plain);
            prop_assert_eq!(hash(&held), hash(&plain));
            prop_assert_eq!(held.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>(), map.clone().into_iter().collect::<Vec<_>>());
            for key in ["a", "b", "aa", "ab", "ba", "bb", "ab-unique", ""] {
                prop_assert_eq!(held.get(key).map(ToString::to_string), map.get(key).cloned(), "{}", key);
            }
            if let Some((map_before, held_before)) = &before {
                prop_assert_eq!(held_before.cmp(&held), map_before.iter().cmp(map.iter()));
                prop_assert_eq!(*held_before == held, *map_before == map);
            }
            before = Some((map, held));
        }
    }

    #[test]
    fn names_stay_within_what_was_told(events in proptest::collection::vec((0..3_u8, 0..4_u32, proptest::option::of(0..20_u64), any::<bool>()), 0..60)) {
        let mut cluster = Cluster::default();
        let mut told: BTreeMap<(u8, u32), Option<u64>> = BTreeMap::new();
        let mut now = 0;
        for (name, address, time, is_time) in events {
            if let (true, Some(time)) = (is_time, time) {
                now = now.max(time);
                cluster.apply(Event::Time(time));
            } else if time.is_none_or(|until| until > now) {
                cluster.apply(resolved(&format!("n{name}"), [v4(address)], time));
                let end = told.entry((name, address)).or_insert(Some(0));
                *end = end.zip(time).map(|(old, new)| old.max(new));
            } else {
                prop_assert_eq!(cluster.apply(resolved(&format!("n{name}"), [v4(address)], time)), Applied::Nothing);
            }
            told.retain(|_, until| until.is_none_or(|until| until > now));
            let expected: Vec<String> = told.iter().map(|((name, address), until)| {
                format!("n{name} {} {}", v4(*address), until.map_or("never".to_owned(), |until| until.to_string()))
            }).collect();
            prop_assert_eq!(known(&cluster), expected);
        }
    }
}

#[test]
fn keys_of_cilium_cannot_be_forged() {
    for (key, forged) in [
        ("app", false),
        ("io.kubernetes.pod.namespace", true),
        ("io.kubernetes.pod.namespaces", false),
        ("io.cilium.k8s.policy.serviceaccount", true),
        ("io.cilium.k8s.namespace.labels.team", true),
        ("io.cilium.k8sx", false),
    ] {
        assert_eq!(labels::is_forged(key), forged, "{key}");
    }
    for key in [labels::SERVICE_ACCOUNT, labels::CLUSTER, labels::NAMESPACE_LABEL_PREFIX, labels::POD_NAMESPACE] {
        assert!(labels::is_forged(key));
    }
}
