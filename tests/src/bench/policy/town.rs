//! A cluster that looks like those in use: namespaces of teams, Deployments whose replicas share their labels, StatefulSets
//! and Jobs whose pods have a label of their own, Services with slices.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Event, Object};
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::parse;

use super::{NotRead, Size, policies};

/// Pods of a node.
const PODS_OF_A_NODE: usize = 250;
/// Pods of a namespace, about.
const PODS_OF_A_NAMESPACE: usize = 50;
/// Namespaces of a team, about.
const NAMESPACES_OF_A_TEAM: usize = 5;
/// Endpoints of a slice at most, as Kubernetes has it.
const ENDPOINTS_OF_A_SLICE: usize = 100;
/// Names that were resolved.
const NAMES: usize = 250;
/// The namespace of the ingress controllers.
pub const INGRESS: &str = "ingress-nginx";
/// The namespace of Prometheus.
pub const MONITORING: &str = "monitoring";
/// The namespace of CoreDNS.
pub const SYSTEM: &str = "kube-system";
/// What applications are called.
pub const APPS: [&str; 12] =
    ["web", "api", "worker", "cart", "search", "billing", "auth", "mail", "report", "gateway", "catalog", "session"];
/// What is kept in StatefulSets.
pub const STORES: [&str; 4] = ["postgres", "redis", "kafka", "elastic"];

/// Numbers that only depend on the seed (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`; 0 if `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((number ^ (number >> 31)) >> 33).unwrap_or_default().checked_rem(end).unwrap_or_default()
    }

    /// One of them.
    pub fn one_of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list.get(self.below(list.len())).copied().unwrap_or_default()
    }
}

/// Who makes pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Replicas with the same labels.
    Deployment,
    /// Pods with a name of their own, which is a label too.
    StatefulSet,
    /// Pods of a run, which has an id.
    Job,
}

/// Pods that were made from one template.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Index of its namespace.
    pub namespace: usize,
    /// The value of `app.kubernetes.io/name`.
    pub app: &'static str,
    /// Its name: unique in the namespace.
    pub name: String,
    /// Who makes the pods.
    pub kind: Kind,
    /// The first of its pods.
    pub first: usize,
    /// How many there are.
    pub replicas: usize,
}

/// The cluster.
#[derive(Debug)]
pub struct Town {
    /// How large it is.
    pub size: Size,
    seed: u64,
    /// All workloads, by their first pod.
    pub workloads: Vec<Workload>,
}

/// The name of a node.
#[must_use]
pub fn node_name(index: usize) -> String {
    format!("ip-10-0-{}-{}.eu-central-1.compute.internal", index / 250, index % 250)
}

/// An address: the `index`-th after `base`.
fn address(base: u32, index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(base.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX))))
}

/// A made-up object, as the parser reads it.
///
/// # Errors
/// [`NotRead`] if the parser finds fault with it.
pub fn read(value: &Value) -> Result<Object, NotRead> {
    let parsed = parse::object(value);
    match parsed.object.filter(|_| parsed.issues.is_empty()) {
        Some(object) => Ok(object),
        None => Err(NotRead { object: value.to_string(), issues: format!("{:?}", parsed.issues) }),
    }
}

impl Town {
    /// Lays a cluster out.
    #[must_use]
    pub fn new(size: Size, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let mut workloads: Vec<Workload> = Vec::new();
        let mut first = 0;
        while first < size.pods {
            let (kind, replicas) = match dice.below(100) {
                0..70 => (Kind::Deployment, 2 + dice.below(9)),
                70..85 => (Kind::StatefulSet, 1 + dice.below(5)),
                _ => (Kind::Job, 1 + dice.below(4)),
            };
            let app = if kind == Kind::StatefulSet { dice.one_of(&STORES) } else { dice.one_of(&APPS) };
            let namespace = first / PODS_OF_A_NAMESPACE;
            let replicas = replicas.min(size.pods - first);
            workloads.push(Workload {
                namespace,
                app,
                name: format!("{app}-{}", workloads.len()),
                kind,
                first,
                replicas,
            });
            first += replicas;
        }
        Self { size, seed, workloads }
    }

    /// How many nodes there are.
    #[must_use]
    pub const fn nodes(&self) -> usize {
        self.size.pods.div_ceil(PODS_OF_A_NODE)
    }

    /// How many namespaces there are.
    #[must_use]
    pub const fn namespaces(&self) -> usize {
        self.size.pods.div_ceil(PODS_OF_A_NAMESPACE)
    }

    /// How many teams there are.
    #[must_use]
    pub const fn teams(&self) -> usize {
        self.namespaces().div_ceil(NAMESPACES_OF_A_TEAM)
    }

    /// The name of a namespace.
    #[must_use]
    pub fn namespace(index: usize) -> String {
        match index {
            0 => INGRESS.into(),
            1 => SYSTEM.into(),
            2 => MONITORING.into(),
            _ => format!("team-{}-{index}", index / NAMESPACES_OF_A_TEAM),
        }
    }

    /// The pods of the first node.
    pub fn local(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.size.pods).step_by(self.nodes())
    }

    /// The workload that a pod is of.
    #[must_use]
    pub fn workload(&self, pod: usize) -> Option<&Workload> {
        self.workloads.get(self.workloads.partition_point(|workload| workload.first <= pod).checked_sub(1)?)
    }

    /// All objects, in the order in which a watch that begins tells them: policies last.
    pub fn objects(&self) -> impl Iterator<Item = Result<Object, NotRead>> {
        self.values().map(|value| read(&value))
    }

    /// The same, as an API server has them.
    pub fn values(&self) -> impl Iterator<Item = Value> {
        let namespaces = (0..self.namespaces()).map(namespace_object);
        let nodes = (0..self.nodes()).map(node_object);
        let pods = (0..self.size.pods).map(|pod| self.pod_value(pod, None));
        let services = self.workloads.iter().filter(|workload| workload.kind != Kind::Job).flat_map(service_objects);
        let policies = policies::all(self, self.seed);
        namespaces.chain(nodes).chain(pods).chain(services).chain(api_server()).chain(policies)
    }

    /// What names were seen to resolve to.
    #[must_use]
    pub fn learned(&self) -> Vec<Event> {
        let names = (0..NAMES).map(|index| match index % 2 {
            0 => (index, format!("api-{}.example.com", 1 + index * 2)),
            _ => (index, format!("s3-{index}.eu-central-1.amazonaws.com")),
        });
        let resolved = |(index, name): (usize, String)| {
            let addresses = (0..4).map(|address_of| address(0x3400_0000, index * 16 + address_of)).collect();
            Some(Event::Resolved { name: Name::new(&name).ok()?, addresses, until: None })
        };
        names.filter_map(resolved).collect()
    }

    /// A pod; with `app` in place of its own if one is given. A pod beyond the last is one more of the last workload.
    ///
    /// # Errors
    /// [`NotRead`] if the parser finds fault with it.
    pub fn pod(&self, pod: usize, app: Option<&str>) -> Result<Object, NotRead> {
        read(&self.pod_value(pod, app))
    }

    /// One more pod of a workload, on a node of that number.
    ///
    /// # Errors
    /// [`NotRead`] if the parser finds fault with it.
    pub fn further_pod(&self, workload: &Workload, number: usize, node: usize) -> Result<Object, NotRead> {
        read(&pod_value(workload, workload.app, self.size.pods + number, node))
    }

    /// A pod as an API server has it; as [`Self::pod`]. Of a cluster without pods: null.
    #[must_use]
    pub fn pod_value(&self, pod: usize, app: Option<&str>) -> Value {
        let Some(workload) = self.workload(pod) else { return Value::Null };
        pod_value(workload, app.unwrap_or(workload.app), pod, pod % self.nodes())
    }

    /// The slice of a workload's Service in which the first pod is ready or not.
    ///
    /// # Errors
    /// [`NotRead`] if the parser finds fault with it.
    pub fn slice(workload: &Workload, first_ready: bool) -> Result<Object, NotRead> {
        read(&slice_object(workload, 0, first_ready))
    }
}

fn namespace_object(index: usize) -> Value {
    let stage = ["production", "staging", "development"].get(index % 3).copied().unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": Town::namespace(index), "labels": {
            "kubernetes.io/metadata.name": Town::namespace(index),
            "team": format!("team-{}", index / NAMESPACES_OF_A_TEAM), "environment": stage,
            "pod-security.kubernetes.io/enforce": if index < 3 { "privileged" } else { "restricted" },
        } },
    })
}

fn node_object(index: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": node_name(index), "labels": {
            "topology.kubernetes.io/zone": format!("eu-central-1{}", ['a', 'b', 'c'].get(index % 3).unwrap_or(&'a')),
            "node.kubernetes.io/instance-type": "m5.4xlarge",
        } },
        "status": { "addresses": [{ "type": "InternalIP", "address": address(0x0a00_0000, index + 4) }] },
    })
}

/// The pod's own address: 10.64.0.0/10.
fn pod_address(pod: usize) -> IpAddr {
    address(0x0a40_0000, pod + 4)
}

fn pod_value(workload: &Workload, app: &str, pod: usize, node: usize) -> Value {
    let (store, name) = (workload.kind == Kind::StatefulSet, &workload.name);
    let mut labels = json!({
        "app.kubernetes.io/name": app, "app.kubernetes.io/instance": name,
        "app.kubernetes.io/part-of": format!("product-{}", workload.namespace / 2),
        "tier": if store { "data" } else { "service" },
    });
    let ordinal = pod.wrapping_sub(workload.first);
    let (name, own) = match workload.kind {
        Kind::Deployment => {
            let hash = format!("{:08x}", workload.first.wrapping_mul(2_654_435_761) & 0xffff_ffff);
            (format!("{name}-{hash}-{pod:05x}"), vec![("pod-template-hash", hash)])
        }
        Kind::StatefulSet => {
            let name = format!("{name}-{ordinal}");
            let labels = vec![
                ("statefulset.kubernetes.io/pod-name", name.clone()),
                ("apps.kubernetes.io/pod-index", ordinal.to_string()),
            ];
            (name, labels)
        }
        Kind::Job => {
            let labels = vec![
                ("batch.kubernetes.io/job-name", name.clone()),
                ("batch.kubernetes.io/controller-uid", format!("{:08x}-0000-4000-8000-{pod:012x}", workload.first)),
            ];
            (format!("{name}-{pod:05x}"), labels)
        }
    };
    if let Some(labels) = labels.as_object_mut() {
        labels.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
    }
    let port = port_of(workload);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": Town::namespace(workload.namespace), "name": name,
            "uid": format!("{pod:08x}-0000-4000-8000-{pod:012x}"), "labels": labels,
            "creationTimestamp": format!("2026-11-{:02}T{:02}:{:02}:{:02}Z", 1 + pod / 86_400 % 24, pod / 3_600 % 24, pod / 60 % 60, pod % 60),
        },
        "spec": {
            "nodeName": node_name(node), "serviceAccountName": app,
            "containers": [{ "name": "main", "ports": [
                { "name": if store { "store" } else { "http" }, "containerPort": port },
                { "name": "metrics", "containerPort": 9090 },
            ] }],
        },
        "status": {
            "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }],
            "podIPs": [{ "ip": pod_address(pod) }],
        },
    })
}

/// The port that a workload serves.
#[must_use]
pub fn port_of(workload: &Workload) -> u16 {
    match workload.app {
        "postgres" => 5432,
        "redis" => 6379,
        "kafka" => 9092,
        "elastic" => 9200,
        _ => 8080,
    }
}

fn service_objects(workload: &Workload) -> impl Iterator<Item = Value> + use<> {
    let ip = address(0xac14_0000, workload.first + 16);
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": Town::namespace(workload.namespace), "name": workload.name },
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "selector": { "app.kubernetes.io/instance": workload.name },
            "ports": [
                { "name": "main", "port": if workload.kind == Kind::Deployment { 80 } else { port_of(workload) }, "targetPort": port_of(workload) },
                { "name": "metrics", "port": 9090 },
            ],
        },
    });
    let slices = workload.replicas.div_ceil(ENDPOINTS_OF_A_SLICE);
    let slices: Vec<Value> = (0..slices).map(|slice| slice_object(workload, slice, true)).collect();
    std::iter::once(service).chain(slices)
}

fn slice_object(workload: &Workload, slice: usize, first_ready: bool) -> Value {
    let end = workload.first + workload.replicas;
    let pods = (workload.first..end).skip(slice * ENDPOINTS_OF_A_SLICE).take(ENDPOINTS_OF_A_SLICE);
    let endpoints: Vec<Value> = pods
        .map(|pod| {
            let ready = first_ready || pod != workload.first;
            json!({ "addresses": [pod_address(pod)], "conditions": { "ready": ready } })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": Town::namespace(workload.namespace), "name": format!("{}-{slice}", workload.name),
            "labels": { "kubernetes.io/service-name": workload.name },
        },
        "ports": [
            { "name": "main", "port": port_of(workload), "protocol": "TCP" },
            { "name": "metrics", "port": 9090, "protocol": "TCP" },
        ],
        "endpoints": endpoints,
    })
}

/// The Service of the API servers, of which there are three.
fn api_server() -> [Value; 2] {
    let endpoints: Vec<Value> = (1..4).map(|last| json!({ "addresses": [format!("10.32.0.{last}")] })).collect();
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "default", "name": "kubernetes" },
            "spec": { "clusterIP": "172.31.0.1", "clusterIPs": ["172.31.0.1"],
                "ports": [{ "name": "https", "port": 443, "targetPort": 6443 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "namespace": "default", "name": "kubernetes",
                "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "ports": [{ "name": "https", "port": 6443, "protocol": "TCP" }], "endpoints": endpoints,
        }),
    ]
}
