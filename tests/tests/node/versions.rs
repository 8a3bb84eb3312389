//! What other versions wrote and said is understood (SPECIFICATION P-45): their frames, their state, the layout of their pinned maps.
//! `tests/versions/VERSION` has what a build of that version said and left on a node.
//!
//! `SLUICE_RECORD_VERSION=DIRECTORY` has this build's recorded there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sluice_contract::node::{
    CONFLIST, GATE_LAYOUT, IPAMD_CHECKPOINT, IPAMD_SOCKET, POLICY_DIR, POLICYD_SOCKET, RUN_DIR,
};
use sluice_contract::rpc::{FRAME_LIMIT, encode};
use sluice_ipamd_core::checkpoint::Checkpoint;
use sluice_ipamd_core::time::Timestamp;
use sluice_policy_bpf::layout::MAPS;
use sluice_tests::bed::{LIMIT, ip, run};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, GateBinaries};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::policyd::{Policyd, Source};
use sluice_vpcsim::runtime::{Runtime, Sandbox};
use sluice_vpcsim::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

const SCENE: &str = "
time_scale: 0.1
vpcs: {main: {cidrs: [10.0.0.0/16], subnets: {nodes: {cidr: 10.0.1.0/24}}}}
instances: {node: {type: m5.large, subnet: main/nodes}}
";

/// All six verbs.
const LIST: &str = r#"{"cniVersion": "1.1.0", "name": "sluice",
    "plugins": [{"type": "sluice-eni", "gated": true}, {"type": "sluice-policy"}]}"#;

const CLUSTER: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {team: a}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: default, labels: {app: web}}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: kept-1, namespace: default, labels: {app: kept}}, spec: {nodeName: node}}
---
{apiVersion: v1, kind: Pod, metadata: {name: kept-2, namespace: default, labels: {app: kept}}, spec: {nodeName: node}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: within, namespace: default}
spec: {podSelector: {}, ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}]}]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: kept}}]
      toPorts: [{ports: [{port: \"8080\", protocol: TCP}], rules: {http: [{method: GET, path: \"/public.*\"}]}}]
  egress:
    - toFQDNs: [{matchPattern: \"*.example.com\"}]
";
/// The policies in it.
const POLICIES: [&str; 2] = ["within", "web"];
/// Pods that are there when the state is recorded.
const KEPT: [&str; 2] = ["kept-1", "kept-2"];

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One question of a plugin with its answer; of each side the greeting, then the message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Exchange {
    socket: PathBuf,
    plugin: Vec<Value>,
    daemon: Vec<Value>,
}

impl Exchange {
    fn call(&self) -> &Value {
        &self.plugin[1]["call"]
    }

    /// What a later version might say that still speaks this one: fields that nobody here knows.
    fn of_a_later_version(mut self) -> Self {
        for side in [&mut self.plugin, &mut self.daemon] {
            side[0]["protocol"]["max"] = json!(1000);
            side.iter_mut().for_each(|frame| frame["moon"] = json!({"phase": [1]}));
        }
        // In the reply, what stands beside `done` would be another outcome.
        let reply = &mut self.daemon[1];
        reply.as_object_mut().unwrap().remove("moon");
        reply["done"]["moon"] = json!(1);
        self
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MapRecord {
    kind: String,
    key: usize,
    value: usize,
    entries: u32,
}

/// The maps of a layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Layout {
    number: u32,
    maps: BTreeMap<String, MapRecord>,
}

impl Layout {
    fn ours() -> Self {
        let record = |map: &sluice_policy_bpf::layout::MapLayout| MapRecord {
            kind: format!("{:?}", map.kind),
            key: map.key,
            value: map.value,
            entries: map.entries,
        };
        Self { number: GATE_LAYOUT, maps: MAPS.iter().map(|map| (map.name.to_owned(), record(map))).collect() }
    }
}

/// What one version left.
#[derive(Debug, Clone)]
struct Version {
    exchanges: Vec<Exchange>,
    layout: Layout,
    /// By path below [`RUN_DIR`].
    state: BTreeMap<String, String>,
}

impl Version {
    fn read(directory: &Path) -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        let mut state = BTreeMap::new();
        for part in ["", "policy"] {
            for entry in std::fs::read_dir(directory.join("state").join(part)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_file() {
                    let name = path.strip_prefix(directory.join("state")).unwrap().to_str().unwrap().to_owned();
                    state.insert(name, text(&path));
                }
            }
        }
        Self {
            exchanges: serde_json::from_str(&text(&directory.join("wire.json"))).unwrap(),
            layout: serde_json::from_str(&text(&directory.join("layout.json"))).unwrap(),
            state,
        }
    }

    fn write(&self, directory: &Path) {
        std::fs::create_dir_all(directory.join("state/policy")).unwrap();
        let pretty = |value: Value| format!("{value:#}\n");
        std::fs::write(directory.join("wire.json"), pretty(json!(self.exchanges))).unwrap();
        std::fs::write(directory.join("layout.json"), pretty(json!(self.layout))).unwrap();
        for (name, text) in &self.state {
            std::fs::write(directory.join("state").join(name), text).unwrap();
        }
    }
}

/// The recorded versions.
fn versions() -> BTreeMap<String, Version> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("versions");
    let found = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    found.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), Version::read(&path))).collect()
}

async fn read(stream: &mut UnixStream) -> Option<Value> {
    let length = stream.read_u32().await.ok().and_then(|length| usize::try_from(length).ok())?;
    assert!(length <= FRAME_LIMIT);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// A greeting and a message.
async fn read_both(stream: &mut UnixStream) -> Option<Vec<Value>> {
    Some(vec![read(stream).await?, read(stream).await?])
}

/// At once, as both sides do it: who does not speak the greeting's versions reads no further.
async fn write_all(stream: &mut UnixStream, frames: &[Value]) {
    let frames: Vec<u8> = frames.iter().flat_map(|frame| encode(frame).unwrap()).collect();
    stream.write_all(&frames).await.unwrap();
}

fn aside(socket: &Path) -> PathBuf {
    socket.with_extension("aside")
}

/// Stands between plugins and the daemon, and writes down what they say, until the socket is the daemon's again.
async fn listen_in(node: &Node, socket: &'static str, seen: Arc<Mutex<Vec<Exchange>>>) {
    let socket = PathBuf::from(socket);
    node.run_async(move || async move {
        std::fs::rename(&socket, aside(&socket)).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        drop(tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(plugin) = read_both(&mut stream).await else { continue };
                let mut behind = UnixStream::connect(aside(&socket)).await.unwrap();
                write_all(&mut behind, &plugin).await;
                let daemon = read_both(&mut behind).await.unwrap();
                write_all(&mut stream, &daemon).await;
                seen.lock().unwrap().push(Exchange { socket: socket.clone(), plugin, daemon });
            }
        }));
    })
    .await
    .unwrap();
}

/// Answers plugins as the daemons of the exchanges did.
async fn answer_as(node: &Node, exchanges: &[Exchange]) {
    for socket in [IPAMD_SOCKET, POLICYD_SOCKET] {
        let known: Vec<Exchange> =
            exchanges.iter().filter(|exchange| exchange.socket == Path::new(socket)).cloned().collect();
        node.run_async(move || async move {
            let _absent = std::fs::remove_file(socket);
            let listener = UnixListener::bind(socket).unwrap();
            drop(tokio::task::spawn_local(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let Some(asked) = read_both(&mut stream).await else { continue };
                    if let Some(known) = known.iter().find(|known| *known.call() == asked[1]["call"]) {
                        write_all(&mut stream, &known.daemon).await;
                    }
                }
            }));
        })
        .await
        .unwrap();
    }
}

/// Says what a plugin said, and answers what the daemon answers.
async fn ask(node: &Node, exchange: &Exchange) -> Vec<Value> {
    let Exchange { socket, plugin, .. } = exchange.clone();
    let asked = node.run_async(move || async move {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        write_all(&mut stream, &plugin).await;
        read_both(&mut stream).await
    });
    let answered = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    answered.unwrap_or_else(|| panic!("no answer to {:?}", exchange.plugin))
}

/// Whether whoever reads `then` can read `now`: the same outcome, every field with the same kind of value.
fn covers(now: &Value, then: &Value, at: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (name, then) in then {
                let at = format!("{at}.{name}");
                let now = now.get(name).unwrap_or_else(|| panic!("{at} is missing"));
                covers(now, then, &at);
                assert!(name != "call" || now == then, "{at}: {now}, and was {then}");
            }
        }
        (Value::Array(now), Value::Array(then)) => {
            assert_eq!(now.is_empty(), then.is_empty(), "{at}: {now:?}, and was {then:?}");
            now.iter().zip(then).for_each(|(now, then)| covers(now, then, at));
        }
        _ => assert_eq!(std::mem::discriminant(now), std::mem::discriminant(then), "{at}: {now}, and was {then}"),
    }
}

/// What a runtime does with one pod.
async fn live(node: &Node, runtime: &Runtime) -> Value {
    let sandbox = node.sandbox("default", "web").await.unwrap();
    let result = runtime.add(node, &sandbox).await.unwrap();
    runtime.check(node, &sandbox).await.unwrap();
    runtime.status(node).await.unwrap();
    runtime.gc(node, &[&sandbox]).await.unwrap();
    runtime.del(node, &sandbox).await.unwrap();
    node.remove_sandbox(&sandbox).await.unwrap();
    result
}

/// What the daemons have written.
async fn state(node: &Node) -> BTreeMap<String, String> {
    node.run(|| {
        let mut files = BTreeMap::from([("ipam.json".to_owned(), std::fs::read_to_string(IPAMD_CHECKPOINT).unwrap())]);
        for entry in std::fs::read_dir(POLICY_DIR).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(RUN_DIR).unwrap().to_str().unwrap().to_owned();
                files.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
        files
    })
    .await
    .unwrap()
}

/// Today's daemons answer what plugins of `version` asked.
async fn answers(deployment: &Deployment, version: &Version) {
    let node = deployment.node();
    let mut of_policyd = None;
    for exchange in &version.exchanges {
        let mut exchange = exchange.clone();
        if let Some(interfaces) = exchange.plugin[1].get_mut("interfaces").and_then(Value::as_array_mut) {
            // The gate stands at a real interface, whose number is this node's.
            for interface in interfaces {
                let host = interface["host"].as_str().unwrap().to_owned();
                if of_policyd.is_none() {
                    let pair = ["ip", "link", "add", &host, "type", "veth", "peer", "name", "inside"];
                    run(deployment, &pair).await.unwrap();
                    of_policyd = Some(host.clone());
                }
                let link = &ip(deployment, None, &["link", "show", "dev", &host]).await.unwrap()[0];
                interface["host_index"] = link["ifindex"].clone();
            }
        }
        let at = format!("{} {}", exchange.socket.display(), exchange.call());
        covers(&json!(ask(node, &exchange).await), &json!(exchange.daemon), &at);
        if exchange.call() != "del" {
            let later = exchange.clone().of_a_later_version();
            covers(&json!(ask(node, &later).await), &json!(exchange.daemon), &format!("later: {at}"));
        }
        let mut foreign = exchange.clone();
        foreign.plugin[0]["protocol"] = json!({"min": 900, "max": 1000});
        assert_eq!(ask(node, &foreign).await[1]["refused"]["code"], "version_skew", "{at}");
    }
    if let Some(host) = of_policyd {
        run(deployment, &["ip", "link", "delete", &host]).await.unwrap();
    }
}

/// Today's plugins understand what daemons of `version` answered. Nothing else answers on the node.
async fn understands(node: &Node, runtime: &Runtime, version: &Version) {
    let added = version.exchanges.iter().find(|exchange| exchange.daemon[1]["done"]["call"] == "add").unwrap();
    let address = format!("{}/32", added.daemon[1]["done"]["addresses"][0]["ip"].as_str().unwrap());
    let later: Vec<Exchange> = version.exchanges.iter().cloned().map(Exchange::of_a_later_version).collect();
    for exchanges in [&version.exchanges, &later] {
        answer_as(node, exchanges).await;
        assert_eq!(live(node, runtime).await["ips"][0]["address"], address.as_str());
    }
    let mut foreign = later;
    for exchange in &mut foreign {
        exchange.daemon[0]["protocol"] = json!({"min": 900, "max": 1000});
    }
    answer_as(node, &foreign).await;
    let sandbox = node.sandbox("default", "web").await.unwrap();
    let error = runtime.add(node, &sandbox).await.unwrap_err().to_string();
    assert!(error.contains("900"), "{error}");
    node.remove_sandbox(&sandbox).await.unwrap();
}

/// Today's daemons read what those of `version` wrote.
async fn reads(node: &Arc<Node>, policyd: PathBuf, version: &Version) {
    let checkpoint = Checkpoint::from_json(version.state["ipam.json"].as_bytes()).unwrap();
    let now = Timestamp::from_millis(u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap());
    let again = Checkpoint::of(&checkpoint.into_state(now).unwrap(), now).to_json().unwrap();
    let again = String::from_utf8(again).unwrap();
    for pod in KEPT {
        assert!(again.contains(pod), "{again}");
    }

    let files = version.state.clone();
    node.run(move || {
        std::fs::remove_dir_all(POLICY_DIR).unwrap();
        std::fs::create_dir(POLICY_DIR).unwrap();
        for (name, text) in files.iter().filter(|(name, _)| name.starts_with("policy/")) {
            std::fs::write(Path::new(RUN_DIR).join(name), text).unwrap();
        }
    })
    .await
    .unwrap();
    // There is no API server: all that it knows is what is written.
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    node.write("/run/kubeconfig", &config.to_string()).await.unwrap();
    let before = node.log_tail(Policyd::LOG, usize::MAX).len();
    let policyd = Policyd::new(Arc::clone(node), policyd, Source::Kubeconfig("/run/kubeconfig".into()));
    policyd.start().await.unwrap();
    let knows = |view: &Value| {
        let named = |name: &str| view["policies"].as_array().into_iter().flatten().any(|policy| policy["name"] == name);
        POLICIES.iter().all(|name| named(name)) && view["pods"] == 1 + KEPT.len()
    };
    policyd.until("what another version wrote was not read", LIMIT, knows).await.unwrap();
    policyd.kill().await;
    let said = node.log_tail(Policyd::LOG, usize::MAX).split_off(before);
    assert!(said.contains("journal=true"), "{said}");
    for line in said.lines() {
        assert!(!line.contains("could not be read") && !line.contains("cannot be read"), "{line}");
    }
}

/// A layout that has another content has another number, so that it is pinned elsewhere.
#[test]
fn p45_pinned_maps_are_as_they_were_in_every_version_of_the_same_layout() {
    let ours = Layout::ours();
    for (name, version) in versions() {
        assert!(version.layout.number != GATE_LAYOUT || version.layout == ours, "of version {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p45_what_other_versions_said_and_wrote_is_understood() {
    if !privileged() {
        return;
    }
    let directory = sluice_tests::directory::Directory::new("versions").unwrap();
    directory.write("all.yaml", CLUSTER).unwrap();
    let (binaries, gate) = (Binaries::beside_this_program().unwrap(), GateBinaries::beside_this_program().unwrap());
    let world = World::up(&SCENE.parse().unwrap()).await.unwrap();
    let node = world.node("node").unwrap();
    let source = Source::Directory(directory.path().to_owned());
    let deployment =
        Deployment::install_gated(Arc::clone(node), &binaries, &gate, BTreeMap::new(), source).await.unwrap();
    node.write(CONFLIST, LIST).await.unwrap();
    let runtime = Runtime::start(node).await.unwrap();
    deployment.start_ipamd().await.unwrap();
    deployment.policyd().unwrap().start().await.unwrap();
    deployment.ready(LIMIT).await.unwrap();
    deployment.policyd().unwrap().ready(LIMIT).await.unwrap();

    if let Some(record) = std::env::var_os("SLUICE_RECORD_VERSION") {
        let kept: Vec<Sandbox> = {
            let mut kept = Vec::new();
            for name in KEPT {
                kept.push(node.sandbox("default", name).await.unwrap());
                runtime.add(node, &kept[kept.len() - 1]).await.unwrap();
            }
            kept
        };
        let state = state(node).await;
        for sandbox in &kept {
            runtime.del(node, sandbox).await.unwrap();
        }
        let seen = Arc::default();
        for socket in [IPAMD_SOCKET, POLICYD_SOCKET] {
            listen_in(node, socket, Arc::clone(&seen)).await;
        }
        live(node, &runtime).await;
        let exchanges = seen.lock().unwrap().clone();
        Version { exchanges, layout: Layout::ours(), state }.write(Path::new(&record));
        return;
    }

    let versions = versions();
    for version in versions.values() {
        answers(&deployment, version).await;
    }
    deployment.end().await;
    for version in versions.values() {
        understands(node, &runtime, version).await;
    }
    for (name, version) in &versions {
        reads(node, gate.policyd.clone(), version).await;
        println!("{name}: {} exchanges, {} files", version.exchanges.len(), version.state.len());
    }
}
