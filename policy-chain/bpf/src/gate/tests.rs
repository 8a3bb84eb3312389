//! Against the real kernel: each test has network, mounts and a file system of BPF objects of its own (root).

mod maps;
mod packets;
mod pods;
mod programs;

use std::collections::BTreeMap;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use sluice_contract::cni::chain;
use sluice_hostnet::netns::{NamespaceThread, ThreadSpec};
use sluice_policy_core::cluster::{Event, ObjectId};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::compile::image::{Identity, Image};
use sluice_policy_core::settings::Settings as Compile;
use sluice_policy_core::{manifest, parse};

use super::*;
use crate::layout::{AddressPrefix, Decision, Frontend, Peer, RowPrefix};

const ROOT: &str = "/mnt/sluice/1";

/// Runs a test on a node of its own.
fn on_a_node<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let node = NamespaceThread::spawn(ThreadSpec::new_node("gate", "gate")).unwrap();
    node.run_blocking(|| async {
        mount(Some("bpf"), "/mnt", Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        test().await;
    })
    .unwrap();
}

/// Small maps: a test has no need for 100,000 flows.
fn config() -> GateConfig {
    GateConfig { root: ROOT.into(), limits: BTreeMap::from([("connections", 4096)]) }
}

fn open() -> (Gate, Found) {
    Gate::open(&config()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn key(name: &str) -> PodKey {
    PodKey { namespace: "shop".into(), name: name.into() }
}

fn interface(index: u32, addresses: &[&str]) -> Interface {
    Interface {
        index,
        name: IfName::new("eni0").unwrap(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        first: true,
        any_source: false,
        bridge: None,
    }
}

/// A compiler and the gates that do what it says.
struct Node {
    engine: Engine,
    gate: Gate,
}

impl Node {
    fn new(gate: Gate) -> Self {
        Self { engine: Engine::new(Compile { node: Some("n1".into()), ..Compile::default() }), gate }
    }

    fn tell(&mut self, yaml: &str) {
        for document in manifest::documents(yaml).unwrap() {
            let parsed = parse::object(&document);
            assert_eq!(parsed.issues, [], "{document}");
            self.engine.apply(Event::Upsert(parsed.object.unwrap()));
        }
        self.commit();
    }

    fn delete(&mut self, id: ObjectId) {
        self.engine.apply(Event::Delete(id));
        self.commit();
    }

    fn commit(&mut self) {
        for operation in self.engine.commit().operations {
            self.gate.apply(&operation).unwrap();
        }
    }
}

fn pod(name: &str, address: &str, labels: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {labels}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, ports: [{{containerPort: 80, name: web}}]}}]}}, \
         status: {{phase: Running, podIPs: [{address}]}}}}\n---\n"
    )
}

/// All that the maps hold of an image, but the gates.
fn read_back(gate: &Gate) -> Image {
    let mut image = Image::default();
    for (map, prefixes) in [("names", &mut image.names), ("ipcache", &mut image.ipcache)] {
        gate.maps
            .read(map, |key: AddressPrefix, identity: u32| {
                prefixes.set(keys::net(&key).unwrap(), Some(Identity(identity)));
            })
            .unwrap();
    }
    let frontends = &mut image.frontends;
    gate.maps
        .read("frontends", |key: Frontend, identity: u32| {
            frontends.insert(keys::frontend_key(&key), Identity(identity));
        })
        .unwrap();
    let peers = &mut image.peers;
    gate.maps
        .read("peers", |key: Peer, row: u32| {
            peers.insert((PolicyId(key.policy), Identity(key.identity)), RowId(row));
        })
        .unwrap();
    let mut rows: BTreeMap<RowId, BTreeMap<_, _>> = BTreeMap::new();
    gate.maps
        .read("rows", |key: RowPrefix, decision: u32| {
            let (row, ports) = keys::port_prefix(&key).unwrap();
            rows.entry(row).or_default().insert(ports, sluice_policy_core::compile::image::DecisionId(decision));
        })
        .unwrap();
    let row = |entries: BTreeMap<_, _>| Arc::new(RowEntries { entries: entries.into_iter().collect() });
    image.rows = rows.into_iter().map(|(id, entries)| (id, row(entries))).collect();
    image
}

fn decisions(gate: &Gate) -> BTreeMap<u32, Decision> {
    let mut decisions = BTreeMap::new();
    gate.maps
        .read("decisions", |id: u32, decision: Decision| {
            decisions.insert(id, decision);
        })
        .unwrap();
    decisions
}

fn entries(gate: &Gate) -> BTreeMap<u32, layout::Endpoint> {
    let mut endpoints = BTreeMap::new();
    gate.maps
        .read("endpoints", |index: u32, entry: layout::Endpoint| {
            endpoints.insert(index, entry);
        })
        .unwrap();
    endpoints
}

/// The maps hold what the image says, and nothing else.
fn assert_equal(gate: &Gate, image: &Image) {
    let held = read_back(gate);
    let names = |image: &Image| image.names.iter().collect::<BTreeMap<_, _>>();
    assert_eq!(names(&held), names(image));
    let ipcache = |image: &Image| image.ipcache.iter().collect::<BTreeMap<_, _>>();
    assert_eq!(ipcache(&held), ipcache(image));
    assert_eq!(held.frontends, image.frontends);
    assert_eq!(held.peers, image.peers);
    assert_eq!(held.rows, image.rows);
    let expected: BTreeMap<u32, Decision> =
        image.decisions.iter().map(|(id, judgement)| (id.0, keys::decision(judgement))).collect();
    assert_eq!(decisions(gate), expected);
}

fn pins(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
