//! Nodes that are run in other ways: without EC2, and after the AWS VPC CNI.

use sluice_contract::node::host_veth;
use sluice_vpcsim::model::SceneEni;
use sluice_vpcsim::model::api::{WantIpv4, WantIpv6};

use super::*;

#[tokio::test(start_paused = true)]
async fn with_the_metadata_service_alone_pods_get_what_it_shows_and_ec2_is_never_called() {
    let mut world = World::new("m5.large");
    world.set("ENABLE_IMDS_ONLY_MODE", "true");
    let primary = world.cloud.owned().0[0].clone();
    let instance = primary.attachment.unwrap().instance.unwrap();
    let second = SceneEni {
        subnet: primary.subnet,
        private_ip: None,
        want: WantIpv4 { count: 3, ..WantIpv4::default() },
        want_ipv6: WantIpv6::default(),
        place: Some((instance, 0, 1)),
        tags: BTreeMap::new(),
    };
    world.cloud.model().add_eni(&second).unwrap();
    let node = world.start().await;
    for name in ["a", "b", "c"] {
        let address = node.add(name).await.unwrap();
        assert_eq!(address.device, 1);
        world.pod_runs(name, address.ip);
    }
    let refusal = node.add_within("d", Duration::from_secs(20)).await.unwrap_err();
    assert!(refusal.message.contains("the settings ask for none"), "{refusal:?}");
    assert!(refusal.hint.as_deref().is_some_and(|hint| hint.contains("ENABLE_IMDS_ONLY_MODE")), "{refusal:?}");
    // A day, with a restart in it.
    tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
    node.kill().await;
    let node = world.start().await;
    tokio::time::sleep(Duration::from_secs(12 * 3600)).await;
    let view = node.view().await;
    assert_eq!((view.pool.assigned, view.pool.violations), (3, 0));
    assert_eq!(world.cloud.counts(), BTreeMap::new(), "EC2 is never called");
}

/// The pods of the VPC CNI keep their addresses; who is in no record keeps his, too, and nobody else gets it.
#[tokio::test(start_paused = true)]
async fn the_vpc_cnis_pods_are_taken_over() {
    let mut world = World::new("m5.large");
    world.set("WARM_IP_TARGET", "4");
    let node = world.start().await;
    let mut held = BTreeMap::new();
    for name in ["a", "b", "c"] {
        held.insert(name, node.add(name).await.unwrap());
    }
    node.wait("a settled pool", View::is_settled).await;
    node.kill().await;
    // What the VPC CNI would have left: links named by their pods, its record, and nothing of ours.
    for entry in std::fs::read_dir(world.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
    let record = |name: &str| {
        format!(
            r#"{{"networkName":"aws-cni","containerID":"{name}","ifName":"eth0","ipv4":"{}","metadata":{{"k8sPodNamespace":"default","k8sPodName":"{name}"}}}}"#,
            held[name].ip
        )
    };
    let file = world.dir.path().join("aws-node.json");
    let document = format!(r#"{{"version":"vpc-cni-ipam/1","allocations":[{},{}]}}"#, record("a"), record("b"));
    std::fs::write(&file, document).unwrap();
    world.set("AWS_VPC_K8S_CNI_BACKING_STORE", file.to_str().unwrap());
    for (name, address) in &held {
        let pod = PodRef { namespace: "default".into(), name: (*name).into(), uid: None };
        world.host.state().pods.insert(address.ip, host_veth("eni", &pod, 0).unwrap());
    }
    let node = world.start().await;
    let view = node.wait("its pods", |view| view.pool.assigned == 2 && view.pool.quarantined == 1).await;
    assert_eq!(view.pool.violations, 0);
    let taken: BTreeSet<IpAddr> = held.values().map(|address| address.ip).collect();
    for name in ["x", "y", "z"] {
        let address = node.add(name).await.unwrap();
        assert!(!taken.contains(&address.ip), "{} lives", address.ip);
        world.pod_runs(name, address.ip);
    }
    // Their DEL is told by sandbox and interface, though the network has another name now.
    world.pod_ends(held["a"].ip);
    assert_eq!(node.del("a").await.first().map(|address| address.ip), Some(held["a"].ip));
    world.pod_ends(held["c"].ip);
    node.wait("the quarantine's end", |view| view.pool.quarantined == 0 && view.pool.assigned == 4).await;
}
