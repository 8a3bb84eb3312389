//! A real container runtime drives the nodes: Debian's containerd, through CRI, as the kubelet does.

#![cfg(test)]

use std::path::Path;

use sluice_tests::containerd::{Containerd, DEBIAN_CNI, installed};
use sluice_vpcsim::node::Node;

/// Whether a test can start containers here. Where it must be able to (`CI` is set), that it cannot is a failure.
fn may_run() -> bool {
    let obstacle = if nix::unistd::geteuid().is_root() {
        installed().err().map(|error| error.to_string())
    } else {
        Some("containers need root".into())
    };
    let Some(obstacle) = obstacle else { return true };
    assert!(std::env::var_os("CI").is_none(), "{obstacle}");
    println!("skipped: {obstacle}");
    false
}

async fn sandboxes(node: &Node) -> usize {
    node.run(|| std::fs::read_dir("/run/netns").unwrap().count()).await.unwrap()
}

/// A node whose pods get their network from Debian's plugins.
async fn reference_node(name: &str) -> Node {
    let tag = format!("{name}-{}", std::process::id());
    let node = Node::boot(name, &std::env::temp_dir().join(format!("sluice-{tag}")), &tag).await.unwrap();
    for plugin in ["ptp", "host-local"] {
        node.install(&Path::new(DEBIAN_CNI).join(plugin), &Path::new("/opt/cni/bin").join(plugin)).await.unwrap();
    }
    let conflist = r#"{"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "ptp",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}]}"#;
    node.write("/etc/cni/net.d/10-ptp.conflist", conflist).await.unwrap();
    node
}

/// The runtime itself, with plugins that are not ours: what fails here is not the product's fault.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_starts_and_removes_a_pod_with_the_reference_plugins() {
    if !may_run() {
        return;
    }
    let node = reference_node("runtime-ptp").await;
    let containerd = Containerd::start(&node).await.unwrap();
    let a = containerd.run_pod("default", "a").await.unwrap();
    let b = containerd.run_pod("default", "b").await.unwrap();
    assert_eq!(a.addresses[0].to_string(), "10.99.0.2");
    assert_eq!(b.addresses[0].to_string(), "10.99.0.3");
    assert_eq!(containerd.pods().await.unwrap().len(), 2);
    let groups = containerd.cgroups();
    assert!(!groups.is_empty());

    let shell = containerd.run_container(&a, "shell", &["sleep", "1000"]).await.unwrap();
    let ping = containerd.exec(&shell, &["ping", "-c", "1", "-W", "5", "10.99.0.3"]).await.unwrap();
    assert_eq!(ping.status, 0, "{}", ping.text);

    containerd.remove_pod(&a.id).await.unwrap();
    assert_eq!(containerd.pods().await.unwrap(), std::slice::from_ref(&b.id));
    assert_eq!(sandboxes(&node).await, 1);
    containerd.shut_down().await.unwrap();
    assert_eq!(sandboxes(&node).await, 0);
    assert!(groups.iter().all(|group| !group.exists()));
    assert!(node.processes().is_empty(), "{:?}", node.processes());
}

/// A test that fails leaves no container behind either.
#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_is_dropped_takes_its_pods_with_it() {
    if !may_run() {
        return;
    }
    let node = reference_node("runtime-drop").await;
    let dir = node.dir().to_owned();
    let containerd = Containerd::start(&node).await.unwrap();
    containerd.run_pod("default", "left").await.unwrap();
    assert!(node.processes().len() >= 3, "containerd, shim and pause: {:?}", node.processes());
    let groups = containerd.cgroups();
    assert!(!groups.is_empty());
    drop(containerd);
    drop(node);
    assert!(groups.iter().all(|group| !group.exists()));
    assert!(!dir.exists());
}
