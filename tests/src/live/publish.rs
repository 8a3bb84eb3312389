//! How a cluster's objects come to the agents: by a directory of files, or by an API server.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use sluice_policy_core::cluster::ObjectId;
use sluice_vpcsim::policyd::Source;

use super::objects::{MARKER, MARKER_NAMESPACE, Objects, marker};
use super::stage::LiveError;
use super::town::Town;
use crate::apiserver::{ApiServer, TableId, builtin, policy_kinds};
use crate::directory::Directory;

/// Where the API server listens, outside of all nodes (RFC 5737, TEST-NET-1).
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 250)), 6443);

/// Where agents have the cluster from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory of files.
    Directory,
    /// An API server.
    Api,
}

/// The way to the agents.
#[derive(Debug)]
pub struct Publisher {
    /// The directory; with an API server it holds the kubeconfig.
    pub directory: Directory,
    /// The API server.
    pub api: Option<ApiServer>,
    put: BTreeMap<ObjectId, (Value, i64)>,
    /// The revision of the last change of each kind.
    changed: BTreeMap<String, u64>,
}

/// The policies that have to be in force, and of which generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Kind, namespace, name and generation.
    pub policies: Vec<(String, Option<String>, String, i64)>,
    /// Whether there must be no others.
    pub all: bool,
    /// The revision up to which each kind of the API server has to be in force.
    pub read: BTreeMap<String, u64>,
}

impl Publisher {
    /// Makes the directory, and the API server if it is to be one.
    ///
    /// # Errors
    /// [`LiveError`].
    pub async fn new(kind: SourceKind, town: &mut Town) -> Result<Self, LiveError> {
        let directory = Directory::new("live").map_err(LiveError::Write)?;
        let mut publisher = Self { directory, api: None, put: BTreeMap::new(), changed: BTreeMap::new() };
        if kind == SourceKind::Api {
            let net = town.outside(API.ip()).await?.net;
            let bind = move || {
                let listener = std::net::TcpListener::bind(API)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            let bound = tokio::task::spawn_blocking(move || net.run(bind)).await?;
            let bound: io::Result<std::net::TcpListener> = bound.map_err(super::town::TownError::from)?;
            let listener = bound.and_then(tokio::net::TcpListener::from_std).map_err(LiveError::Write)?;
            let kinds = builtin().into_iter().chain(policy_kinds()).collect();
            publisher.api = Some(ApiServer::on(listener, kinds).map_err(LiveError::Write)?);
            let server = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": format!("http://{API}")}}],
                "users": [{"name": "c", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
            publisher.directory.write("kubeconfig", &server.to_string()).map_err(LiveError::Write)?;
        }
        Ok(publisher)
    }

    /// Where an agent finds it.
    #[must_use]
    pub fn source(&self) -> Source {
        match &self.api {
            None => Source::Directory(self.directory.path().to_owned()),
            Some(_) => Source::Kubeconfig(self.directory.path().join("kubeconfig")),
        }
    }

    /// Makes the source hold these objects and nothing else; returns how to see that they are in force.
    ///
    /// # Errors
    /// [`LiveError`]: a file cannot be written, or the API server does not take an object.
    pub fn publish(&mut self, objects: &mut Objects) -> Result<Published, LiveError> {
        let generation = objects.next();
        let name = |value: &Value, key: &str| value.pointer(key).and_then(Value::as_str).map(str::to_owned);
        let marked = ("NetworkPolicy".to_owned(), Some(MARKER_NAMESPACE.to_owned()), MARKER.to_owned(), generation);
        let Some(api) = &self.api else {
            let items: Vec<Value> = objects.all().values().cloned().chain([marker(generation)]).collect();
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
            self.directory.write("cluster.json", &list.to_string()).map_err(LiveError::Write)?;
            return Ok(Published { policies: vec![marked], ..Published::default() });
        };
        let refused = |error: crate::apiserver::ApiError| LiveError::Write(io::Error::other(format!("{error:?}")));
        let gone: Vec<ObjectId> = self.put.keys().filter(|id| !objects.all().contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some((value, _)) = self.put.remove(&id)
                && let Some(table) = table(&value)
            {
                let (namespace, name) = (name(&value, "/metadata/namespace"), name(&value, "/metadata/name"));
                let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
                let revision = api.delete(&table, &namespace, &name).map_err(refused)?;
                self.changed.insert(named(&table), revision);
            }
        }
        for (id, value) in objects.all() {
            if self.put.get(id).is_some_and(|(before, _)| before == value) {
                continue;
            }
            let known = api.put(value.clone()).map_err(refused)?;
            if let Some((table, revision)) = table(value).zip(revision(&known)) {
                self.changed.insert(named(&table), revision);
            }
            self.put.insert(id.clone(), (value.clone(), numbered(&known)));
        }
        let marked = (marked.0, marked.1, marked.2, numbered(&*api.put(marker(generation)).map_err(refused)?));
        let policies = self.put.iter().filter(|(id, _)| matches!(id, ObjectId::Policy(_)));
        let told = policies.map(|(_, (value, generation))| {
            let (kind, namespace) = (name(value, "/kind").unwrap_or_default(), name(value, "/metadata/namespace"));
            (kind, namespace, name(value, "/metadata/name").unwrap_or_default(), *generation)
        });
        Ok(Published { policies: told.chain([marked]).collect(), all: true, read: self.changed.clone() })
    }
}

impl Published {
    /// Whether a view of an agent shows it.
    #[must_use]
    pub fn shows(&self, view: &Value) -> bool {
        let listed = view.get("policies").and_then(Value::as_array).cloned().unwrap_or_default();
        let holds = |(kind, namespace, name, generation): &(String, Option<String>, String, i64)| {
            listed.iter().any(|policy| {
                let text = |key: &str| policy.get(key).and_then(Value::as_str);
                text("kind") == Some(kind)
                    && text("namespace") == namespace.as_deref()
                    && text("name") == Some(name)
                    && policy.get("generation").and_then(Value::as_i64) == Some(*generation)
            })
        };
        let read = |(kind, revision): (&String, &u64)| {
            view.pointer("/read").and_then(|read| read.get(kind)).and_then(Value::as_u64) >= Some(*revision)
        };
        let whole = !self.all || listed.len() == self.policies.len();
        self.policies.iter().all(holds) && whole && self.read.iter().all(read)
    }
}

/// `metadata.resourceVersion`.
fn revision(object: &Value) -> Option<u64> {
    object.pointer("/metadata/resourceVersion")?.as_str()?.parse().ok()
}

/// A kind as agents name it.
fn named(table: &TableId) -> String {
    format!("{}.{}", table.plural, table.group).trim_end_matches('.').to_owned()
}

/// `metadata.generation`, which the server counts.
fn numbered(object: &Value) -> i64 {
    object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default()
}

fn table(value: &Value) -> Option<TableId> {
    let (version, kind) = (value.get("apiVersion")?.as_str()?, value.get("kind")?.as_str()?);
    let kinds = builtin().into_iter().chain(policy_kinds());
    kinds.filter(|known| known.is(version, kind)).map(|known| known.table()).next()
}
