//! Custom networking on nodes: pods in another subnet than their nodes.

use ipnet::Ipv4Net;
use sluice_tests::bed::{Bed, INTERNET, add_pods, ask, scene, serve};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;

/// The scene of [`scene`], with a subnet for pods in a second CIDR of the VPC.
fn scene_with_pods_subnet() -> String {
    scene(0.1)
        .replace("cidrs: [10.0.0.0/16]", "cidrs: [10.0.0.0/16, 100.64.0.0/16]")
        .replace("subnets: {nodes:", "subnets: {pods: {cidr: 100.64.0.0/20}, nodes:")
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_in_the_subnet_of_the_eni_config_and_reach_each_other_and_the_internet() {
    if !privileged() {
        return;
    }
    let directory = Directory::new("custom").unwrap();
    let path = directory.path().to_str().unwrap();
    let settings = [("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"), ("SLUICE_CLUSTER_DIR", path)];
    let bed = Bed::up(&scene_with_pods_subnet(), &settings).await.unwrap();
    let subnet = bed.world.look(|model, _| {
        let found = model.state().subnets.values().find(|subnet| subnet.cidr.addr().octets()[0] == 100);
        found.unwrap().id.clone()
    });
    let node = |name: &str| {
        format!("kind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: us-east-1a}}}}\n---\n")
    };
    let config = format!("kind: ENIConfig\nmetadata: {{name: default}}\nspec: {{subnet: {subnet}}}\n");
    directory.write("cluster.yaml", &(node("node-a") + &node("node-b") + &config)).unwrap();

    let cidr: Ipv4Net = "100.64.0.0/20".parse().unwrap();
    let mut pods = Vec::new();
    for name in ["node-a", "node-b"] {
        let node = bed.node(name).unwrap();
        for pod in add_pods(node, "default", "p", 2).await.unwrap() {
            assert!(cidr.contains(&pod.address) && bed.device_of(pod.address) != Some(0), "{}", pod.result);
            serve(node, &pod).await.unwrap();
            pods.push((name, pod));
        }
    }
    for (name, from) in &pods {
        let node = bed.node(name).unwrap();
        for (_, to) in pods.iter().filter(|(_, to)| to.address != from.address) {
            assert_eq!(ask(node, from, to.address).await.unwrap(), from.address);
        }
        let (_, public) = bed.addresses_of(name).unwrap();
        assert_eq!(ask(node, from, INTERNET).await.unwrap(), public, "by the primary ENI");
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}
