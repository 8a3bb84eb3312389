//! Sluice comes to a node that has another CNI plugin's list, is upgraded under traffic, and goes again (SPECIFICATION P-40).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use sluice_contract::node::{CONFLIST, GATE_DIR};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, GateBinaries, Pod};
use sluice_vpcsim::node::{Node, Program};
use sluice_vpcsim::policyd::Source;
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::runtime::Runtime;
use sluice_vpcsim::world::World;
use tokio::net::UdpSocket;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

const SCENE: &str = "
time_scale: 0.1
vpcs: {main: {cidrs: [10.0.0.0/16], subnets: {nodes: {cidr: 10.0.1.0/24}}}}
instances: {node: {type: m5.large, subnet: main/nodes}}
";

/// Two pods that may talk to each other.
const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: default}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: server, namespace: default}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: passing, namespace: default}, spec: {nodeName: node}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: within, namespace: default}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}
";

/// What the node had before: a list of neither the VPC CNI's nor Cilium's.
const BEFORE: &str = "/etc/cni/net.d/10-before.conflist";
const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "before", "plugins": [{"type": "before"}]}"#;

const LIMIT: Duration = Duration::from_secs(30);

const PLUGINS: [&str; 2] = ["sluice-eni", "sluice-policy"];
const DAEMONS: [&str; 2] = ["sluice-ipamd", "sluice-policyd"];

/// Two layouts of pinned maps: this build's, and one that it does not know.
const LAYOUT: &str = GATE_DIR;
const OTHER_LAYOUT: &str = "/sys/fs/bpf/sluice/4000000000";

/// Binaries of two versions, and the cluster.
struct Builds(Directory);

impl Builds {
    fn new() -> Self {
        let directory = Directory::new("install").unwrap();
        std::fs::create_dir(directory.path().join("cluster")).unwrap();
        directory.write("cluster/all.yaml", CLUSTER).unwrap();
        Self(directory)
    }

    /// The binaries of another version: those in the directory that `SLUICE_OLD_BINARIES` names, else the ones of this build, the
    /// plugins with a byte behind them that nobody reads.
    fn other(&self) -> PathBuf {
        if let Some(old) = std::env::var_os("SLUICE_OLD_BINARIES") {
            return old.into();
        }
        let directory = self.0.path().join("other");
        std::fs::create_dir_all(&directory).unwrap();
        for name in PLUGINS {
            let mut content = std::fs::read(Binaries::find(name).unwrap()).unwrap();
            content.push(b'\n');
            std::fs::write(directory.join(name), content).unwrap();
        }
        for name in DAEMONS {
            symlink(Binaries::find(name).unwrap(), directory.join(name)).unwrap();
        }
        directory
    }

    /// Where a daemon is started from.
    fn daemon(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// From now on daemons are started as `from` has them.
    fn switch(&self, from: &Path) {
        for name in DAEMONS {
            let link = self.0.path().join("next");
            symlink(from.join(name), &link).unwrap();
            std::fs::rename(link, self.daemon(name)).unwrap();
        }
    }
}

/// Runs `sluice` on the node: whether it succeeded, and all that it said.
pub(super) async fn sluice(node: &Node, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(Binaries::find("sluice").unwrap());
    command.args(words).stdin(std::process::Stdio::null());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let output = timeout(LIMIT, node.spawn(command).await.unwrap().wait_with_output()).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned());
    (output.status.success(), text.concat())
}

pub(super) async fn exists(node: &Node, path: impl AsRef<Path>) -> bool {
    let path = path.as_ref().to_owned();
    node.run(move || std::fs::symlink_metadata(path).is_ok()).await.unwrap()
}

pub(super) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One flow of numbered datagrams, each of which is answered, until it is told to end. How many went out, and how many came back.
pub(super) async fn flow(to: SocketAddrV4, end: Arc<AtomicBool>, came: Arc<AtomicU64>) -> (u64, u64) {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.connect(to).await.unwrap();
    let (mut sent, mut text) = (0_u64, [0; 128]);
    while !end.load(Ordering::Relaxed) {
        sent += u64::from(socket.send(b"?").await.is_ok());
        let wait = Instant::now() + Duration::from_millis(2);
        while tokio::time::timeout_at(wait, socket.recv(&mut text)).await.is_ok_and(|got| got.is_ok()) {
            came.fetch_add(1, Ordering::Relaxed);
        }
    }
    while timeout(Duration::from_millis(500), socket.recv(&mut text)).await.is_ok_and(|got| got.is_ok()) {
        came.fetch_add(1, Ordering::Relaxed);
    }
    (sent, came.load(Ordering::Relaxed))
}

pub(super) async fn add(node: &Arc<Node>, runtime: &Runtime, name: &str) -> Pod {
    let sandbox = node.sandbox("default", name).await.unwrap();
    let begun = std::time::Instant::now();
    let result = runtime.add(node, &sandbox).await.unwrap();
    let address: Ipv4Addr = result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap();
    Pod { sandbox, address, ipv6: None, result, took: begun.elapsed() }
}

#[tokio::test(flavor = "multi_thread")]
async fn p40_a_node_is_installed_upgraded_and_left_without_a_lost_packet_or_anything_of_ours() {
    if !privileged() {
        return;
    }
    let builds = Builds::new();
    let built = Binaries::beside_this_program().unwrap();
    let (ours, other) = (built.eni.parent().unwrap().to_owned(), builds.other());
    let binaries = Binaries { ipamd: builds.daemon("sluice-ipamd"), ..built };
    let policy = GateBinaries::beside_this_program().unwrap().policy;
    let gate = GateBinaries { policyd: builds.daemon("sluice-policyd"), policy };
    // The node begins with the other version.
    builds.switch(&other);
    let from = other.display().to_string();
    let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let node = Arc::clone(world.node("node").unwrap());
    node.write(BEFORE, LIST).await.unwrap();
    let source = Source::Directory(builds.0.path().join("cluster"));
    // The daemons are whoever's to run; the rest is not in place yet.
    let daemons =
        Deployment::install_gated(Arc::clone(&node), &binaries, &gate, BTreeMap::new(), source).await.unwrap();
    node.run(|| {
        for path in [CONFLIST, "/opt/cni/bin/sluice-eni", "/opt/cni/bin/sluice-policy"] {
            std::fs::remove_file(path).unwrap();
        }
    })
    .await
    .unwrap();

    // Plugins first; the list not before both daemons are ready, and only when it can be used.
    let (ok, said) = sluice(&node, &["install", "conflist", "--wait", "0"]).await;
    assert!(!ok && said.contains("sluice-ipamd has not been ready since the node booted"), "{said}");
    let (ok, said) = sluice(&node, &["install", "plugins", "--from", &from]).await;
    assert!(ok && said.contains("/opt/cni/bin/sluice-policy is in place"), "{said}");
    let args = ["install", "conflist", "--stay"].map(str::to_owned).to_vec();
    let path = Binaries::find("sluice").unwrap();
    let program = Program { name: "install".into(), path, args, env: BTreeMap::new() };
    let mut keeper = node.start(&program).await.unwrap();
    daemons.start_ipamd().await.unwrap();
    daemons.ready(LIMIT).await.unwrap();
    eventually("it waits for policyd", async || node.log_tail("install", 5).contains("waiting: sluice-policyd")).await;
    assert!(!exists(&node, CONFLIST).await);
    daemons.policyd().unwrap().start().await.unwrap();
    eventually("the conflist", async || exists(&node, CONFLIST).await).await;
    let list: Value =
        serde_json::from_str(&node.run(|| std::fs::read_to_string(CONFLIST).unwrap()).await.unwrap()).unwrap();
    assert_eq!(list["name"], "sluice", "the list that was there is another network's, and is not taken over");

    // Pods, and traffic between them while everything is replaced.
    let runtime = Runtime::start(&node).await.unwrap();
    let (server, client) = (add(&node, &runtime, "server").await, add(&node, &runtime, "client").await);
    let target = SocketAddrV4::new(server.address, ECHO_PORT);
    let inside = node.pod(&server.sandbox.netns).await.unwrap();
    inside.run(move || probe::serve_in_background(target)).await.unwrap().unwrap();
    let (end, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let traffic = tokio::spawn({
        let inside = node.pod(&client.sandbox.netns).await.unwrap();
        let (end, came) = (Arc::clone(&end), Arc::clone(&came));
        async move { inside.run(move || flow(target, end, came)).await.unwrap() }
    });
    let moves = async |what: &str| {
        let before = came.load(Ordering::Relaxed);
        eventually(what, async || came.load(Ordering::Relaxed) > before + 20).await;
    };
    moves("traffic before").await;
    let passes = async |with: &str| {
        let pod = add(&node, &runtime, "passing").await;
        moves(with).await;
        runtime.del(&node, &pod.sandbox).await.unwrap();
        node.remove_sandbox(&pod.sandbox).await.unwrap();
    };
    // Up to this version, back to the other one, and up again: plugins, then each daemon. Last, the maps are of another layout.
    for (from, across_layouts) in [(&ours, false), (&other, false), (&ours, true)] {
        let text = from.display().to_string();
        let (ok, said) = sluice(&node, &["install", "plugins", "--from", &text]).await;
        assert!(ok && said.contains("sluice-eni is in place"), "{said}");
        passes("next plugins, last daemons").await;
        builds.switch(from);
        daemons.kill_ipamd().await;
        daemons.policyd().unwrap().stop().await;
        moves("traffic without daemons").await;
        if across_layouts {
            node.run(|| std::fs::rename(LAYOUT, OTHER_LAYOUT).unwrap()).await.unwrap();
        }
        daemons.start_ipamd().await.unwrap();
        daemons.policyd().unwrap().start().await.unwrap();
        daemons.ready(LIMIT).await.unwrap();
        daemons.policyd().unwrap().ready(LIMIT).await.unwrap();
        passes("the next ones").await;
    }
    assert!(!exists(&node, OTHER_LAYOUT).await, "{}", node.log_tail("policyd", 40));

    // Somebody takes the list away; and somebody adds a plugin, which stays.
    node.run(|| std::fs::remove_file(CONFLIST).unwrap()).await.unwrap();
    eventually("it is put back", async || exists(&node, CONFLIST).await).await;
    keeper.kill().await.unwrap();
    node.run(|| {
        std::fs::write("/opt/cni/bin/mine", "#!/bin/sh\necho '{\"supportedVersions\": [\"1.0.0\"]}'\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions("/opt/cni/bin/mine", mode).unwrap();
        let mut list: Value = serde_json::from_str(&std::fs::read_to_string(CONFLIST).unwrap()).unwrap();
        list["plugins"].as_array_mut().unwrap().push(serde_json::json!({"type": "mine"}));
        std::fs::write(CONFLIST, list.to_string()).unwrap();
    })
    .await
    .unwrap();
    let (ok, said) = sluice(&node, &["install", "conflist"]).await;
    assert!(ok, "{said}");
    assert!(node.run(|| std::fs::read_to_string(CONFLIST).unwrap()).await.unwrap().contains("\"mine\""));

    // It does not go under running daemons, nor under pods; new pods are the other plugin's from here on.
    let (ok, said) = sluice(&node, &["uninstall"]).await;
    assert!(!ok && said.contains("sluice-ipamd and sluice-policyd still run"), "{said}");
    daemons.end().await;
    let (ok, said) = sluice(&node, &["uninstall"]).await;
    assert!(!ok && said.contains("2 pods of this node still have addresses"), "{said}");
    assert!(!exists(&node, CONFLIST).await && exists(&node, "/opt/cni/bin/sluice-eni").await);
    moves("traffic without a conflist").await;
    end.store(true, Ordering::Relaxed);
    let (sent, came) = traffic.await.unwrap();
    println!("{sent} datagrams sent, {came} answered");
    assert!(sent > 100 && sent == came, "{} of {sent} datagrams were lost", sent - came);

    // The pods end: their DELs need plugins and no daemon. Then nothing of ours is left.
    for pod in [client, server] {
        runtime.del(&node, &pod.sandbox).await.unwrap();
        node.remove_sandbox(&pod.sandbox).await.unwrap();
    }
    let (ok, said) = sluice(&node, &["uninstall"]).await;
    assert!(ok, "{said}");
    for path in ["/opt/cni/bin/sluice-eni", "/opt/cni/bin/sluice-policy", "/run/sluice", "/sys/fs/bpf/sluice", CONFLIST]
    {
        assert!(!exists(&node, path).await, "{path} is left; {said}");
    }
    assert_eq!(
        node.run(|| std::fs::read_to_string(BEFORE).unwrap()).await.unwrap(),
        LIST,
        "others' files stay as they are"
    );
    let left = async |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(std::process::Stdio::piped());
        let output = node.spawn(command).await.unwrap().wait_with_output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(left(&["nft", "list", "tables"]).await, "");
    let rules = left(&["ip", "rule", "show"]).await;
    assert_eq!(rules.lines().count(), 3, "local, main and default: {rules}");
    for device in ["eth0", "eth1"] {
        for hook in ["ingress", "egress"] {
            assert_eq!(left(&["tc", "filter", "show", "dev", device, hook]).await, "", "{device} {hook}");
        }
    }
    assert!(!left(&["ip", "-d", "link"]).await.contains("sluice"));
    let (ok, said) = sluice(&node, &["uninstall"]).await;
    assert!(ok, "a second time finds nothing: {said}");
}
