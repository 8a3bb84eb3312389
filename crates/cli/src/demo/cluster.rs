//! The demo's Kubernetes: a directory of objects, which the policy agents of both nodes read.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, PodKey};
use sluice_policy_core::parse;
use sluice_vpcsim::probe::ECHO_PORT;

/// Namespace and name of a policy that concerns nobody; its generation says what is in force.
pub(crate) const MARKER: (&str, &str) = ("sluice-demo", "step");

/// A pod as Kubernetes knows it.
#[derive(Debug, Clone)]
struct Known {
    node: String,
    app: &'static str,
    address: Option<Ipv4Addr>,
}

/// The objects, and the directory.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: PathBuf,
    generation: i64,
    nodes: BTreeMap<String, Ipv4Addr>,
    pods: BTreeMap<PodKey, Known>,
    /// Policies, Services, EndpointSlices.
    pub(crate) more: Vec<Value>,
}

impl Cluster {
    /// An empty cluster whose directory is made now, and goes with it.
    pub(crate) fn new(tag: &str) -> io::Result<Self> {
        let directory = std::env::temp_dir().join(format!("sluice-demo-{tag}"));
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory, generation: 0, nodes: BTreeMap::new(), pods: BTreeMap::new(), more: Vec::new() })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn node(&mut self, name: &str, address: Ipv4Addr) {
        self.nodes.insert(name.to_owned(), address);
    }

    /// A pod, which must be known before it starts; its address comes later, as a kubelet reports it.
    pub(crate) fn pod(&mut self, key: PodKey, node: &str, app: &'static str) {
        self.pods.insert(key, Known { node: node.to_owned(), app, address: None });
    }

    pub(crate) fn started(&mut self, key: &PodKey, address: Ipv4Addr) {
        if let Some(pod) = self.pods.get_mut(key) {
            pod.address = Some(address);
        }
    }

    fn objects(&self) -> Vec<Value> {
        let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}});
        let node = |(name, address): (&String, &Ipv4Addr)| {
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": address.to_string()}]}})
        };
        let pod = |(key, pod): (&PodKey, &Known)| {
            let ips: Vec<Value> = pod.address.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": &*key.name, "namespace": &*key.namespace, "labels": {"app": pod.app}},
                "spec": {"nodeName": pod.node,
                    "containers": [{"name": "echo", "ports": [{"name": "http", "containerPort": ECHO_PORT}]}]},
                "status": {"phase": "Running", "podIPs": ips, "conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let mut objects: Vec<Value> = ["shop", "guest", "burst"].map(namespace).into();
        objects.extend(self.nodes.iter().map(node));
        objects.extend(self.pods.iter().map(pod));
        objects.extend(self.more.iter().cloned());
        objects
    }

    /// What a compiler is told to know the same.
    pub(crate) fn events(&self) -> Vec<Event> {
        self.objects().iter().filter_map(|value| parse::object(value).object).map(Event::Upsert).collect()
    }

    /// Writes everything in one go; returns the generation of the marker.
    pub(crate) fn write(&mut self) -> io::Result<i64> {
        self.generation += 1;
        let (namespace, name) = MARKER;
        let marker = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace, "generation": self.generation},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
        let mut items = self.objects();
        items.push(marker);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let hidden = self.directory.join("cluster.json.new");
        std::fs::write(&hidden, list.to_string())?;
        std::fs::rename(hidden, self.directory.join("cluster.json"))?;
        Ok(self.generation)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nobody reads it any more; what stays is a small file in the temporary directory.
        let _stays = std::fs::remove_dir_all(&self.directory);
    }
}
