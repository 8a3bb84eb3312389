//! A real container runtime drives the nodes: Debian's containerd, through CRI, as the kubelet does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_tests::containerd::{Containerd, DEBIAN_CNI, Pod, installed};
use sluice_tests::privileged::{everything, may_run};
use sluice_vpcsim::deployment::{Binaries, Deployment, PLAIN_CONFLIST};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::world::World;

use crate::nics;

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
    if !may_run(installed()) {
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
    if !may_run(installed()) {
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

/// Two nodes with a containerd and an ipamd each.
const SCENE: &str = "
time_scale: 0.1
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    subnets:
      a: {cidr: 10.0.1.0/24}
      b: {cidr: 10.0.2.0/24}
instances:
  node-a: {type: m5.large, subnet: main/a}
  node-b: {type: m5.large, subnet: main/b}
";

/// How long ipamd may take to be ready.
const LIMIT: Duration = Duration::from_secs(60);

/// More pods than the nine addresses of an m5.large's primary ENI; of all tests, as many as an m5.xlarge holds, nearly.
fn size() -> (usize, &'static str) {
    if everything() { (50, "m5.xlarge") } else { (11, "m5.large") }
}

/// Everything that the node's kernel knows of pods, as text.
pub(crate) async fn traces(node: &Node) -> String {
    let mut all = String::new();
    for arguments in [&["-o", "link"][..], &["rule"], &["route", "show", "table", "all"], &["neigh"]] {
        let run = move || std::process::Command::new("ip").args(arguments).output();
        all.push_str(&String::from_utf8(node.run(run).await.unwrap().unwrap().stdout).unwrap());
    }
    all
}

/// A pod with a busybox that serves the pod's name, and can be told to ask others.
struct Voice<'node> {
    containerd: &'node Containerd<'node>,
    pod: Pod,
    container: String,
}

impl<'node> Voice<'node> {
    async fn of(containerd: &'node Containerd<'node>, pod: &Pod) -> Self {
        let serve = ["httpd", "-f", "-p", "8080", "-h", "/etc"];
        let container = containerd.run_container(pod, "web", &serve).await.unwrap();
        Self { containerd, pod: pod.clone(), container }
    }

    /// By ICMP and by TCP.
    async fn reaches(&self, other: &Self) {
        let (from, to, address) = (&self.pod.name, &other.pod.name, other.pod.addresses[0].to_string());
        let ping = ["ping", "-c", "1", "-W", "5", &address];
        let ping = self.containerd.exec(&self.container, &ping).await.unwrap();
        assert_eq!(ping.status, 0, "{from} pings {to}: {}", ping.text);
        // busybox's wget is not to be had: linked statically, it dies of its resolver.
        let ask =
            format!("/bin/busybox printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' | /bin/busybox nc -w 5 {address} 8080");
        let get = self.containerd.exec(&self.container, &["sh", "-c", &ask]).await.unwrap();
        assert_eq!(get.text.trim().lines().last(), Some(to.as_str()), "{from} asks {to}: {}", get.text);
    }
}

/// SPECIFICATION P-09, the whole product under a container runtime: pods that containerd starts have addresses of the
/// VPC, reach each other across nodes and ENIs, and leave nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn p09_pods_that_containerd_starts_have_addresses_of_the_vpc() {
    if !may_run(installed()) {
        return;
    }
    let binaries = Binaries::beside_this_program().unwrap();
    let (pods, instance_type) = size();
    let world = World::up(&SCENE.replace("m5.large", instance_type).parse().unwrap()).await.unwrap();
    let mut deployed = Vec::new();
    for name in ["node-a", "node-b"] {
        let node = world.node(name).unwrap();
        let product = Deployment::install(Arc::clone(node), &binaries, PLAIN_CONFLIST, BTreeMap::new()).await.unwrap();
        product.start_ipamd().await.unwrap();
        deployed.push((node, product, Containerd::start(node).await.unwrap()));
    }
    for (_, product, _) in &deployed {
        let warm = |view: &serde_json::Value| view["ready"] == true && view["pool"]["free"].as_u64() > Some(0);
        product.pool_until("the pool was not warm", LIMIT, warm).await.unwrap();
    }
    let mut all: Vec<Vec<Pod>> = Vec::new();
    for ((_, _, containerd), (prefix, count)) in deployed.iter().zip([("a", pods), ("b", 2)]) {
        let mut pods = Vec::new();
        for i in 0..count {
            pods.push(containerd.run_pod("default", &format!("{prefix}-{i}")).await.unwrap());
        }
        all.push(pods);
    }

    let subnets: Vec<ipnet::IpNet> = ["10.0.1.0/24", "10.0.2.0/24"].map(|cidr| cidr.parse().unwrap()).to_vec();
    let mut addresses = BTreeSet::new();
    for (pods, subnet) in all.iter().zip(&subnets) {
        for pod in pods {
            assert_eq!(pod.addresses.len(), 1, "{pod:?}");
            assert!(subnet.contains(&pod.addresses[0]), "{pod:?} is not in {subnet}");
            assert!(addresses.insert(pod.addresses[0]), "{pod:?} has the address of another");
        }
    }

    // One pod on either kind of ENI, and two on the other node; everyone reaches everyone.
    let traced = traces(deployed[0].0).await;
    let by_secondary = |pod: &&Pod| traced.contains(&format!("from {} lookup 2", pod.addresses[0]));
    let on_secondary = all[0].iter().find(by_secondary).unwrap_or_else(|| panic!("no pod has table 2:\n{traced}"));
    let on_primary = all[0].iter().find(|pod| !by_secondary(pod)).expect("a pod on the primary ENI");
    let mut voices = Vec::new();
    for (node, pod) in [(0, on_primary), (0, on_secondary), (1, &all[1][0]), (1, &all[1][1])] {
        voices.push(Voice::of(&deployed[node].2, pod).await);
    }
    for from in &voices {
        for to in &voices {
            from.reaches(to).await;
        }
    }
    drop(voices);
    assert_eq!(world.dropped().await.unwrap(), [], "the VPC refused packets of a pod");

    let groups: Vec<_> = deployed.iter().flat_map(|(_, _, containerd)| containerd.cgroups()).collect();
    assert!(!groups.is_empty());
    for (node, product, containerd) in deployed {
        assert!(traces(node).await.contains(" eni"), "pods have host interfaces");
        containerd.shut_down().await.unwrap();
        assert_eq!(sandboxes(node).await, 0);
        let left = traces(node).await;
        let lines: Vec<&str> = left
            .lines()
            .filter(|line| {
                line.contains(" eni")
                    || addresses.iter().any(|ip| line.split([' ', '/']).any(|word| word == ip.to_string()))
            })
            .collect();
        assert!(lines.is_empty(), "{}: {lines:#?}", node.name());
        let none = |view: &serde_json::Value| view["pool"]["assigned"] == 0;
        product.pool_until("pods that are gone still had addresses", LIMIT, none).await.unwrap();
    }
    assert!(groups.iter().all(|group| !group.exists()));
}

/// The interfaces that a container sees, the loopback interface apart.
async fn interfaces(containerd: &Containerd<'_>, pod: &Pod) -> BTreeSet<String> {
    let shell = containerd.run_container(pod, "shell", &["sleep", "1000"]).await.unwrap();
    let told = containerd.exec(&shell, &["cat", "/proc/net/dev"]).await.unwrap();
    assert_eq!(told.status, 0, "{}", told.text);
    let names = told.text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned());
    names.filter(|name| name != "lo").collect()
}

/// containerd hands a pod's annotations on to the plugins that declare it, and knows of the first interface alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_containerd_starts_asks_for_an_interface_on_each_network_card_by_its_annotation() {
    if !may_run(installed()) {
        return;
    }
    let binaries = Binaries::beside_this_program().unwrap();
    let world = World::up(&SCENE.replace("m5.large", nics::TWO_CARDS).parse().unwrap()).await.unwrap();
    let node = world.node("node-a").unwrap();
    let settings = nics::SETTINGS.map(|(variable, value)| (variable.to_owned(), value.to_owned())).into();
    let product = Deployment::install(Arc::clone(node), &binaries, PLAIN_CONFLIST, settings).await.unwrap();
    product.start_ipamd().await.unwrap();
    product.ready(LIMIT).await.unwrap();
    let containerd = Containerd::start(node).await.unwrap();
    let begun = Instant::now();
    let both = loop {
        match containerd.run_annotated("default", "both", nics::wanted()).await {
            Ok(pod) => break pod,
            // The first ENI of a card may be on its way; the kubelet tries again.
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
    };
    let plain = containerd.run_pod("default", "plain").await.unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(interfaces(&containerd, &both).await, names(&["eth0", "mNicIf1"]));
    assert_eq!(interfaces(&containerd, &plain).await, names(&["eth0"]));
    assert_eq!((both.addresses.len(), plain.addresses.len()), (1, 1));
    let traced = traces(node).await;
    let further = traced.lines().filter(|line| line.starts_with("1536:") && line.contains(" lookup 101"));
    assert_eq!(further.count(), 1, "one address on the second network card:\n{traced}");

    containerd.shut_down().await.unwrap();
    assert_eq!(sandboxes(node).await, 0);
    let none = |view: &serde_json::Value| view["pool"]["assigned"] == 0;
    product.pool_until("pods that are gone still had addresses", LIMIT, none).await.unwrap();
    let left = traces(node).await;
    let of_pods = |line: &&str| line.contains(" eni") || line.starts_with("512:") || line.starts_with("1536:");
    assert_eq!(left.lines().filter(of_pods).collect::<Vec<_>>(), [] as [&str; 0]);
}
