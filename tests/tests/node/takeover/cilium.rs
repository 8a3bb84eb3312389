//! A node that has Cilium chained behind the VPC CNI is taken over with its pods talking, is cleared of what Cilium has left by the
//! commands of docs/migration.md, and handed back.
//!
//! What is on such a node is as the reference has it (cilium.md 1.5, 1.8; `policy-chain/bpf/src/cilium.rs`): its copy of the VPC CNI's
//! list, real programs by the names of Cilium's at pods' interfaces and ENIs, pins, state, rules, chains, and its veth. They count
//! what they see and let it pass, in Cilium's way: behind a link that says so (`TC_ACT_OK`) no filter is asked.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::{Value, json};
use sluice_contract::node::{BPF_DIR, CONFLIST, RUN_DIR};
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::tc::{Existing, Hook, Program, Slot};
use sluice_hostnet::watch::{Watch, Watched};
use sluice_policy_bpf::links::Links;
use sluice_tests::bed::{Bed, INTERNET, LIMIT, add_pods, ask, run, scene, serve};
use sluice_tests::directory::Directory;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Deployment, GateBinaries, Pod};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::policyd::{Policyd, Source};
use sluice_vpcsim::probe::ECHO_PORT;
use sluice_vpcsim::runtime::Runtime;

use super::{AWS_RULES, Talk, as_aws_node_leaves_it, handed_back, touched};
use crate::install::{add, eventually, exists, flow, sluice};

/// More than the primary ENI holds.
const PODS: usize = 12;

/// What stands for the programs of another, and for one of its maps (MAP).
const PROGRAMS: &str = r#"
struct {
    int (*type)[2];
    unsigned int *key;
    unsigned long long *value;
    int (*max_entries)[1];
} MAP __attribute__((section(".maps"), used));

static void *(*const lookup)(void *map, const void *key) = (void *)1;

static __attribute__((always_inline)) int pass(void)
{
    unsigned int key = 0;
    unsigned long long *seen = lookup(&MAP, &key);
    if (seen)
        __sync_fetch_and_add(seen, 1);
    return 0;
}

#define PROGRAM(name) __attribute__((section("classifier"), used)) int name(void *packet) { return pass(); }

char terms[] __attribute__((section("license"), used)) = "GPL";
"#;

/// Those that a build uses (`policy-chain/bpf/build.rs`).
const COMPILERS: [&str; 7] = ["clang", "clang-14", "clang-15", "clang-16", "clang-17", "clang-18", "clang-19"];

/// The names of programs by hook: at pods' interfaces, and at devices.
const AT_PODS: [(Hook, &str); 2] = [(Hook::Ingress, "cil_from_container"), (Hook::Egress, "cil_to_container")];
const AT_DEVICES: [(Hook, &str); 2] = [(Hook::Ingress, "cil_from_netdev"), (Hook::Egress, "cil_to_netdev")];

const PINS: &str = "/sys/fs/bpf/cilium";
const METRICS: &str = "/sys/fs/bpf/tc/globals/cilium_metrics";
const STATE: &str = "/var/run/cilium";

const AWS_LIST: &str = "/etc/cni/net.d/10-aws.conflist";
const CILIUM_LIST: &str = "/etc/cni/net.d/05-cilium.conflist";

/// What else its agent makes on a node: its state, its veth, what sends packets to its proxy, the rule for local addresses behind
/// that, its chains.
const LEFT: &str = "
mkdir -p /var/run/cilium/state/1000 /var/run/cilium/cgroupv2
mount -t tmpfs -o ro none /var/run/cilium/cgroupv2
echo '{}' > /var/run/cilium/state/1000/ep_config.json
ip link add cilium_host type veth peer name cilium_net
ip link set cilium_host up
ip link set cilium_net up
ip rule add priority 100 lookup local
ip rule delete priority 0 lookup local
ip rule add priority 9 fwmark 0x200/0xf00 lookup 2004
ip route add local default dev lo table 2004
iptables -w -N CILIUM_FORWARD
iptables -w -A CILIUM_FORWARD -o cilium_host -m comment --comment 'cilium: any->cluster on cilium_host forward accept' -j ACCEPT
iptables -w -A FORWARD -m comment --comment 'cilium-feeder: CILIUM_FORWARD' -j CILIUM_FORWARD
";

/// Clients and whoever is far may come in to the server; who is restricted may reach the server, whoever is far, and the Internet.
pub(super) const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: default}
spec:
  podSelector: {matchLabels: {app: server}}
  ingress: [{from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [client, far]}]}}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: restricted, namespace: default}
spec:
  podSelector: {matchLabels: {role: restricted}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [server, far]}]}}, {ipBlock: {cidr: 198.51.100.10/32}}]
";

/// How Cilium attaches its programs: by links since 1.16 where the kernel has them (6.6), else by filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attached {
    Links,
    Filters,
}

/// An interface at which Cilium has programs.
#[derive(Debug, Clone)]
struct Place {
    interface: String,
    index: u32,
    /// Where it pins its links to it.
    pins: PathBuf,
    programs: [(Hook, &'static str); 2],
}

/// Programs that stand for those of another, and the map in which they count what they see.
#[derive(Debug, Clone)]
pub(super) struct StandIns {
    object: PathBuf,
    names: Vec<&'static str>,
    map: &'static str,
    pin: &'static str,
}

impl StandIns {
    /// Compiles them. `pin` is where the other has its map.
    pub(super) fn compiled(
        directory: &Directory,
        names: &[&'static str],
        map: &'static str,
        pin: &'static str,
    ) -> Self {
        let (source, object) = (directory.path().join("programs.c"), directory.path().join("programs.o"));
        let programs: String = names.iter().map(|name| format!("PROGRAM({name})\n")).collect();
        std::fs::write(&source, PROGRAMS.replace("MAP", map) + &programs).unwrap();
        for compiler in COMPILERS {
            let mut command = Command::new(compiler);
            command.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-c"]).arg(&source).arg("-o").arg(&object);
            let Ok(output) = command.output() else { continue };
            assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
            return Self { object, names: names.to_vec(), map, pin };
        }
        panic!("no clang is installed");
    }

    /// Loads them, and pins their map. On the node's thread.
    fn load(&self) -> Ebpf {
        let mut loaded = Ebpf::load_file(&self.object).unwrap();
        for name in &self.names {
            let classifier: &mut SchedClassifier = loaded.program_mut(name).unwrap().try_into().unwrap();
            classifier.load().unwrap();
        }
        std::fs::create_dir_all(Path::new(self.pin).parent().unwrap()).unwrap();
        loaded.map(self.map).unwrap().pin(self.pin).unwrap();
        loaded
    }

    /// Loads them; their descriptors. On the node's thread.
    pub(super) fn descriptors(&self) -> BTreeMap<&'static str, OwnedFd> {
        let mut loaded = self.load();
        let mut found = BTreeMap::new();
        for name in &self.names {
            let classifier: &mut SchedClassifier = loaded.program_mut(name).unwrap().try_into().unwrap();
            found.insert(*name, classifier.fd().unwrap().as_fd().try_clone_to_owned().unwrap());
        }
        found
    }

    /// How many packets they have seen. On the node's thread.
    pub(super) fn seen(&self) -> u64 {
        let seen = MapData::from_pin(self.pin).and_then(Map::from_map_data).unwrap();
        let seen: Array<MapData, u64> = seen.try_into().unwrap();
        seen.get(&0, 0).unwrap()
    }
}

/// Attaches them by links that are pinned. On the node's thread.
fn link(programs: &StandIns, places: &[Place]) {
    let mut loaded = programs.load();
    for place in places {
        std::fs::create_dir_all(&place.pins).unwrap();
        for (hook, name) in place.programs {
            let side = match hook {
                Hook::Ingress => TcAttachType::Ingress,
                Hook::Egress => TcAttachType::Egress,
            };
            let classifier: &mut SchedClassifier = loaded.program_mut(name).unwrap().try_into().unwrap();
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let attached = classifier.attach_with_options(&place.interface, side, options).unwrap();
            let link: FdLink = classifier.take_link(attached).unwrap().try_into().unwrap();
            drop(link.pin(place.pins.join(name)).unwrap());
        }
    }
}

/// The names of programs that links have attached to an interface. On the node's thread. A kernel without such links has none.
pub(super) fn linked(interface: &str) -> Vec<String> {
    let mut names = Vec::new();
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        if let Ok((_, programs)) = SchedClassifier::query_tcx(interface, side) {
            names.extend(programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)));
        }
    }
    names
}

/// Cilium on a node.
struct Cilium {
    node: Arc<Node>,
    netlink: Netlink,
    programs: StandIns,
    places: Vec<Place>,
    attached: Attached,
    _directory: Directory,
}

impl Cilium {
    async fn new(node: &Arc<Node>, attached: Attached) -> Self {
        let directory = Directory::new("cilium").unwrap();
        let names = [AT_PODS, AT_DEVICES].concat().into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        let programs = StandIns::compiled(&directory, &names, "cilium_metrics", METRICS);
        let netlink = Netlink::open_in(node.net()).unwrap();
        let mut places = Vec::new();
        for link in netlink.links().await.unwrap() {
            let interface = link.name.as_str().to_owned();
            let (owner, of_place) = if interface.starts_with("eni") {
                (format!("endpoints/{}", 1000 + link.index), AT_PODS)
            } else if interface.starts_with("eth") {
                (format!("devices/{interface}"), AT_DEVICES)
            } else {
                continue;
            };
            let pins = Path::new(PINS).join(owner).join("links");
            places.push(Place { interface, index: link.index, pins, programs: of_place });
        }
        assert!(places.len() >= PODS + 2, "pods and two ENIs: {places:?}");
        Self { node: Arc::clone(node), netlink, programs, places, attached, _directory: directory }
    }

    /// Its agent puts its programs there.
    async fn attach(&self) {
        let (programs, places) = (self.programs.clone(), self.places.clone());
        if self.attached == Attached::Links {
            return self.node.run(move || link(&programs, &places)).await.unwrap();
        }
        let programs = self.node.run(move || programs.descriptors()).await.unwrap();
        for place in &self.places {
            for (hook, name) in place.programs {
                let called = format!("{name}-{}", place.interface);
                let program = Program { fd: programs[name].as_fd(), name: &called };
                let put = self.netlink.attach(place.index, Slot::GATE, &[(hook, program)], Existing::Replace).await;
                put.unwrap();
            }
        }
    }

    /// The programs at the hooks of an interface, by name.
    async fn at_hooks(&self, place: &Place) -> Vec<String> {
        let mut names = Vec::new();
        for hook in Hook::ALL {
            let filters = self.netlink.filters(place.index, hook).await.unwrap();
            names.extend(filters.into_iter().filter_map(|filter| filter.name));
        }
        let interface = place.interface.clone();
        names.extend(self.node.run(move || linked(&interface)).await.unwrap());
        names
    }

    /// Whether none of its programs is at any interface.
    async fn is_gone(&self) -> bool {
        for place in &self.places {
            if self.at_hooks(place).await.iter().any(|name| name.starts_with("cil_")) {
                return false;
            }
        }
        true
    }

    /// Whether nobody's program is at any interface.
    async fn is_bare(&self) -> bool {
        for place in &self.places {
            if !self.at_hooks(place).await.is_empty() {
                return false;
            }
        }
        true
    }

    /// How many packets its programs have seen.
    async fn seen(&self) -> u64 {
        let programs = self.programs.clone();
        self.node.run(move || programs.seen()).await.unwrap()
    }
}

/// A conflist of these plugins, by the VPC CNI's name.
fn aws_list(plugins: &Value) -> String {
    json!({"cniVersion": "0.4.0", "name": "aws-cni", "disableCheck": true, "plugins": plugins}).to_string()
}

/// The rest of a node that has the VPC CNI, and has never had Sluice; the plugins of its list.
pub(super) async fn with_aws_list(node: &Deployment) -> Value {
    let aws = json!([
        {"name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni", "mtu": "9001", "podSGEnforcingMode": "strict",
            "pluginLogFile": "/var/log/aws-routed-eni/plugin.log", "pluginLogLevel": "DEBUG"},
        {"name": "egress-cni", "type": "egress-cni", "mtu": "9001", "enabled": "false", "nodeIP": "",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "fd00::ac:00/118"}]], "routes": [{"dst": "::/0"}],
                "dataDir": "/run/cni/v4pd/egress-v6-ipam"}},
        {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
    ]);
    run(node, &["rm", CONFLIST, "/opt/cni/bin/sluice-eni"]).await.unwrap();
    node.node().write(AWS_LIST, &aws_list(&aws)).await.unwrap();
    node.node().install(Path::new("/usr/lib/cni/portmap"), Path::new("/opt/cni/bin/portmap")).await.unwrap();
    aws
}

/// The rest of a node that has Cilium behind it.
async fn with_cilium(node: &Deployment) {
    let mut chained = with_aws_list(node).await;
    chained
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "cilium-cni", "chaining-mode": "aws-cni", "enable-debug": false,
        "log-file": "/var/run/cilium/cilium-cni.log"}));
    node.node().write(CILIUM_LIST, &aws_list(&chained)).await.unwrap();
    node.node().write("/opt/cni/bin/cilium-cni", "").await.unwrap();
    run(node, &["sh", "-ec", LEFT]).await.unwrap();
}

/// The block of commands of the guide that has these words.
pub(super) fn guide(words: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migration.md")).unwrap();
    let mut blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    let (commands, _) = blocks.find(|(commands, _)| commands.contains(words)).unwrap();
    commands.to_owned()
}

/// What the cluster has: pods with their addresses, nodes and labels.
pub(super) fn cluster(pods: &[(&Pod, &str, Value)]) -> String {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late", "namespace": "default", "labels": {"app": "stranger"}},
            "spec": {"nodeName": "node-a", "containers": []}, "status": {"phase": "Pending"}}),
    ];
    items.extend(pods.iter().map(|(pod, node, labels)| {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.sandbox.name, "namespace": "default", "labels": labels},
            "spec": {"nodeName": node, "containers": []},
            "status": {"phase": "Running", "podIPs": [{"ip": pod.address}]}})
    }));
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// What doctor says of a check: how it stands, and all of it.
pub(super) async fn finding(node: &Node, check: &str) -> (Value, String) {
    let (_, said) = sluice(node, &["doctor", "--json"]).await;
    let all: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let mut found = all.as_array().unwrap().iter().filter(|finding| finding["check"] == check);
    found.next().map_or((Value::Null, said.clone()), |finding| (finding["standing"].clone(), finding.to_string()))
}

async fn taken_over_and_handed_back(attached: Attached) {
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let (node, other) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    let machine = node.node();
    if attached == Attached::Links && !machine.run(Links::supported).await.unwrap() {
        println!("skipped: the kernel has no links for interfaces (6.6)");
        return;
    }
    let pods = add_pods(node, "default", "p", PODS).await.unwrap();
    let far = other.add("default", "far").await.unwrap();
    let server = &pods[0];
    let mut rest: Vec<&Pod> = pods[1..].iter().collect();
    let mut of_device = |device| {
        let at = rest.iter().position(|pod| bed.device_of(pod.address) == Some(device)).unwrap();
        rest.swap_remove(at)
    };
    let (client, restricted) = (of_device(0), of_device(1));
    let (stranger, idle) = (rest.swap_remove(0), rest.swap_remove(0));
    serve(other, &far).await.unwrap();
    for pod in [server, idle] {
        serve(node, pod).await.unwrap();
    }

    // The node as it is before: aws-node and Cilium serve it, and Cilium's agent ends.
    as_aws_node_leaves_it(&bed, "node-a", &pods.iter().collect::<Vec<_>>()).await;
    with_cilium(node).await;
    let cilium = Cilium::new(machine, attached).await;
    cilium.attach().await;
    let talk = Talk::begin(vec![
        (Arc::clone(node), client.clone(), far.address),
        (Arc::clone(node), client.clone(), server.address),
        (Arc::clone(node), restricted.clone(), far.address),
        (Arc::clone(node), restricted.clone(), INTERNET),
        (Arc::clone(node), restricted.clone(), server.address),
        (Arc::clone(other), far.clone(), server.address),
    ]);
    let (end, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let stream = tokio::spawn({
        let inside = machine.pod(&restricted.sandbox.netns).await.unwrap();
        let (end, came) = (Arc::clone(&end), Arc::clone(&came));
        let target = SocketAddrV4::new(far.address, ECHO_PORT);
        async move { inside.run(move || flow(target, end, came)).await.unwrap() }
    });
    let moves = async |what: &str| {
        let before = came.load(Ordering::Relaxed);
        eventually(what, async || came.load(Ordering::Relaxed) > before + 20).await;
    };
    moves("traffic before").await;
    assert!(cilium.seen().await > 20, "Cilium's programs are not asked");
    for (from, to) in [(stranger, server), (restricted, idle)] {
        ask(node, from, to.address).await.unwrap();
    }

    // Over, as the DaemonSet does it: plugins, daemons, conflist.
    let label = |pod: &Pod| match &pod.sandbox.name {
        name if *name == server.sandbox.name => json!({"app": "server"}),
        name if *name == client.sandbox.name => json!({"app": "client"}),
        name if *name == restricted.sandbox.name => json!({"app": "client", "role": "restricted"}),
        _ => json!({"app": "stranger"}),
    };
    let mut known: Vec<(&Pod, &str, Value)> = pods.iter().map(|pod| (pod, "node-a", label(pod))).collect();
    known.push((&far, "node-b", json!({"app": "far"})));
    let directory = Directory::new("takeover").unwrap();
    directory.write("cluster.json", &cluster(&known)).unwrap();
    directory.write("policies.yaml", POLICIES).unwrap();
    let mut watch = Watch::open(machine.net(), Watched::ALL).await.unwrap();
    let (ok, said) = sluice(machine, &["install", "plugins"]).await;
    assert!(ok, "{said}");
    let source = Source::Directory(directory.path().to_owned());
    let policyd = Policyd::new(Arc::clone(machine), GateBinaries::beside_this_program().unwrap().policyd, source);
    node.start_ipamd().await.unwrap();
    policyd.start().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    let adopted = |view: &Value| view["pool"]["assigned"] == PODS && view["pool"]["quarantined"] == 0;
    let view = node.pool_until("the pods were not taken over", LIMIT, adopted).await.unwrap();
    assert_eq!(view["pool"]["violations"], 0, "{view}");
    let gated = |view: &Value| {
        let gates = view["endpoints"].as_array().cloned().unwrap_or_default();
        let is_done = gates.len() == PODS && gates.iter().all(|gate| !gate["revision"].is_null());
        is_done && view["without_gate"].as_array().is_some_and(Vec::is_empty)
    };
    policyd.until("the pods have no gates", LIMIT, gated).await.unwrap();
    let (ok, said) = sluice(machine, &["install", "conflist"]).await;
    assert!(ok, "{said}");
    let list = run(node, &["cat", CONFLIST]).await.unwrap();
    let list: Value = serde_json::from_str(&list).unwrap();
    let kinds: Vec<&str> =
        list["plugins"].as_array().unwrap().iter().filter_map(|plugin| plugin["type"].as_str()).collect();
    assert_eq!((list["name"].as_str(), kinds), (Some("aws-cni"), vec!["sluice-eni", "sluice-policy", "portmap"]));

    // Cilium's programs have gone, and are asked for nothing; the gates are, and judge.
    eventually("Cilium's programs go", async || cilium.is_gone().await).await;
    for place in cilium.places.iter().filter(|place| place.programs == AT_PODS) {
        let names = cilium.at_hooks(place).await;
        assert!(
            ["from_pod", "to_pod"].iter().all(|gate| names.iter().any(|name| name == gate)),
            "{place:?}: {names:?}"
        );
        let pins = place.pins.clone();
        let pinned = machine.run(move || std::fs::read_dir(pins).map_or(0, Iterator::count)).await.unwrap();
        assert_eq!(pinned, 0, "links of {place:?} are still pinned");
    }
    moves("traffic by the gates").await;
    let seen = cilium.seen().await;
    moves("traffic that Cilium does not see").await;
    assert_eq!(cilium.seen().await, seen, "Cilium's programs are still asked");
    for (from, to) in [(stranger, server), (restricted, idle)] {
        let passed = ask(node, from, to.address).await;
        assert!(passed.is_err(), "{} reaches {}", from.sandbox.name, to.sandbox.name);
    }
    ask(node, stranger, idle.address).await.unwrap();
    let changed = touched(&mut watch, &pods).await;
    assert!(changed.is_empty(), "{changed:?}");

    // What Cilium has left is found, and the guide's commands take it away.
    let (standing, said) = finding(machine, "other CNIs").await;
    assert_eq!(standing, "doubtful", "{said}");
    for left in ["cilium_host", "ip rule 9: table 2004", PINS, METRICS, STATE] {
        assert!(left == PINS && attached == Attached::Filters || said.contains(left), "{left} is not in {said}");
    }
    let (_, said) = finding(machine, "conflist leftovers").await;
    assert!(said.contains(CILIUM_LIST), "{said}");
    let commands = guide("ip link delete cilium_host");
    for _ in 0..2 {
        run(node, &["sh", "-ec", &commands]).await.unwrap();
        moves("traffic while Cilium is cleared away").await;
    }
    let (standing, said) = finding(machine, "other CNIs").await;
    assert_eq!(standing, "well", "{said}");
    for path in [CILIUM_LIST, "/opt/cni/bin/cilium-cni", PINS, METRICS, STATE] {
        assert!(!exists(machine, path).await, "{path} is left");
    }
    let rules = run(node, &["ip", "rule"]).await.unwrap();
    assert!(rules.starts_with("0:\tfrom all lookup local") && !rules.contains("2004"), "{rules}");
    assert_eq!(rules.matches("lookup local").count(), 1, "{rules}");
    let chains = run(node, &["iptables", "-w", "-S"]).await.unwrap();
    assert!(!chains.contains("CILIUM_"), "{chains}");

    // New pods are Sluice's, with gates.
    let runtime = Runtime::start(machine).await.unwrap();
    let late = add(machine, &runtime, "late").await;
    assert!(!pods.iter().any(|pod| pod.address == late.address), "{} belongs to a running pod", late.address);
    assert!(ask(node, &late, server.address).await.is_err(), "a new pod has no policy");
    ask(node, &late, idle.address).await.unwrap();

    // And back. Nothing of ours stays, not on the pod either that was made meanwhile.
    let mut watch = Watch::open(machine.net(), Watched::ALL).await.unwrap();
    node.kill_ipamd().await;
    policyd.stop().await;
    let (ok, said) = sluice(machine, &["handback"]).await;
    assert!(ok && said.starts_with("pods that are the AWS VPC CNI's: 13 (/var/run/aws-node/ipam.json)"), "{said}");
    for time in ["the first time", "again"] {
        let (ok, said) = sluice(machine, &["uninstall"]).await;
        assert!(ok, "{time}: {said}");
    }
    moves("traffic without Sluice").await;
    // The VPC CNI's daemon comes, and then needs the last of it no more.
    let (address, _) = bed.addresses_of("node-a").unwrap();
    machine.write("/run/aws.nft", &AWS_RULES.replace("NODE", &address.to_string())).await.unwrap();
    run(node, &["nft", "-f", "/run/aws.nft"]).await.unwrap();
    run(node, &["nft", "delete", "table", "ip", "sluice"]).await.unwrap();
    moves("traffic by the VPC CNI").await;
    let changed = touched(&mut watch, &pods).await;
    assert!(changed.is_empty(), "{changed:?}");
    let back = handed_back(node).await;
    assert_eq!(back.len(), PODS + 1);
    for pod in pods.iter().chain([&late]) {
        assert_eq!(back.get(&pod.address.to_string()), Some(&pod.sandbox.id));
    }
    for path in ["/opt/cni/bin/sluice-eni", "/opt/cni/bin/sluice-policy", RUN_DIR, BPF_DIR, CONFLIST] {
        assert!(!exists(machine, path).await, "{path} is left");
    }
    assert!(exists(machine, AWS_LIST).await, "others' files stay");
    for line in ["nft list tables", "ip -d link"] {
        let said = run(node, &["sh", "-c", line]).await.unwrap();
        assert!(!said.contains("sluice"), "{said}");
    }
    eventually("no program is at any interface", async || cilium.is_bare().await).await;
    ask(node, stranger, server.address).await.unwrap();

    // Cilium's agent starts again there, and finds room.
    cilium.attach().await;
    eventually("Cilium sees packets", async || cilium.seen().await > 20).await;
    moves("traffic by Cilium").await;
    end.store(true, Ordering::Relaxed);
    let (sent, answered) = stream.await.unwrap();
    let (asked, lost) = talk.end().await;
    println!("{asked} connections, {} lost; {sent} datagrams, {answered} answered", lost.len());
    assert!(lost.is_empty() && asked > 100, "{asked} asked, lost: {lost:?}");
    assert!(sent > 100 && sent == answered, "{} of {sent} datagrams were lost", sent - answered);
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// As Cilium 1.16 and later does it where the kernel has links.
#[tokio::test(flavor = "multi_thread")]
async fn p46_a_node_with_cilium_by_links_is_taken_over_cleared_and_handed_back_without_a_packet_lost() {
    if privileged() {
        Box::pin(taken_over_and_handed_back(Attached::Links)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p46_a_node_with_cilium_by_filters_is_taken_over_cleared_and_handed_back_without_a_packet_lost() {
    if privileged() {
        Box::pin(taken_over_and_handed_back(Attached::Filters)).await;
    }
}
