//! How much memory a cluster's objects take, counted at the allocator.

use std::sync::Arc;

use sluice_policy_core::cluster::{Cluster, Event, Labels, NamedPort, Object, Pod, PodKey, PodTemplate};
use sluice_policy_core::flow::Protocol;

use crate::allocator::held;

/// A pod as one of a Deployment with three replicas, and a label that no other pod has.
fn pod(number: u32) -> Pod {
    let (deployment, replica) = (number / 3, number % 3);
    let hash = format!("{:09x}", deployment.wrapping_mul(2_654_435_761));
    let labels = [
        ("app.kubernetes.io/name".to_owned(), format!("service-{}", deployment % 500)),
        ("app.kubernetes.io/part-of".to_owned(), format!("product-{}", deployment % 50)),
        ("pod-template-hash".to_owned(), hash.clone()),
        ("team".to_owned(), format!("team-{}", deployment % 20)),
        ("example.com/shard".to_owned(), format!("shard-{number:06}")),
    ];
    let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
    Pod {
        key: PodKey {
            namespace: format!("namespace-{}", deployment % 200).into(),
            name: format!("service-{}-{hash}-{replica:05x}", deployment % 500).into(),
        },
        uid: (&*format!("{number:08x}-0000-4000-8000-{number:012x}")).into(),
        created: (&*format!("2026-11-25T{:02}:{:02}:{:02}Z", number / 3600 % 24, number / 60 % 60, number % 60)).into(),
        labels: Labels::new(labels.map(|(key, value)| (key.into(), value.into()))),
        template: Arc::new(PodTemplate {
            service_account: format!("service-{}", deployment % 500).into(),
            ports: [
                NamedPort { name: "http".into(), protocol: Protocol::TCP, port: 8080 },
                NamedPort { name: "metrics".into(), protocol: Protocol::TCP, port: 9090 },
            ]
            .into(),
            visible: Box::default(),
        }),
        node: Some(format!("ip-10-0-{}-{}.eu-central-1.compute.internal", number / 30 / 250, number / 30 % 250).into()),
        host_network: false,
        finished: false,
        addresses: vec![address.into()].into(),
        ready: true,
        audit: false,
    }
}

#[test]
fn a_hundred_thousand_pods_take_at_most_30_mib() {
    let bytes_of = |pods: u32, updates: u32| {
        let before = held();
        let mut cluster = Cluster::default();
        for number in 0..pods {
            cluster.apply(Event::Upsert(Object::Pod(pod(number))));
        }
        assert_eq!(cluster.pods.len(), pods as usize);
        // A second look at a pod, as after a new LIST, adds nothing; and neither does a change.
        let first = held() - before;
        for number in 0..updates {
            cluster.apply(Event::Upsert(Object::Pod(pod(number))));
            cluster.apply(Event::Upsert(Object::Pod(Pod { ready: false, ..pod(number) })));
        }
        (first, held() - before)
    };
    let (tenth, _) = bytes_of(10_000, 0);
    let (first, again) = bytes_of(100_000, 10_000);
    println!(
        "10,000 pods: {tenth} bytes; 100,000 pods: {first} bytes, {} each; after updates: {again}",
        first / 100_000
    );
    assert!(first <= 30 * 1024 * 1024, "100,000 pods take {first} bytes");
    assert!(again <= first + first / 50, "100,000 pods take {again} bytes after an update each, {first} before");
    assert!(first <= tenth * 11, "ten times the pods take {first} bytes, not ten times {tenth}");
}
