//! What answers look like.

use serde_json::{Value, json};

use super::error::ApiError;
use super::kind::Kind;
use super::store::{Key, Page};

/// How objects are shown: in which version, and whether whole.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    api_version: String,
    kind: String,
    metadata_only: bool,
}

impl Shape {
    /// As a version of a kind; only the metadata, if the `Accept` header asks for it.
    pub(super) fn new(kind: &Kind, version: &str, accept: &str) -> Self {
        Self {
            api_version: kind.api_version(version),
            kind: kind.kind.clone(),
            metadata_only: accept.contains("as=PartialObjectMetadata"),
        }
    }

    /// An object without anything.
    pub(super) fn bare(&self) -> Value {
        let (version, kind) = self.identity();
        json!({"kind": kind, "apiVersion": version})
    }

    fn identity(&self) -> (&str, &str) {
        if self.metadata_only { ("meta.k8s.io/v1", "PartialObjectMetadata") } else { (&self.api_version, &self.kind) }
    }

    /// An object as it stands alone.
    pub(super) fn object(&self, object: &Value) -> Value {
        let mut shown = self.item(object);
        if let Some(fields) = shown.as_object_mut() {
            let (version, kind) = self.identity();
            fields.insert("apiVersion".to_owned(), json!(version));
            fields.insert("kind".to_owned(), json!(kind));
        }
        shown
    }

    /// An object as it stands in a list: without version and kind.
    fn item(&self, object: &Value) -> Value {
        match object {
            Value::Object(_) if self.metadata_only => json!({"metadata": object.get("metadata")}),
            Value::Object(fields) => {
                let shown = fields.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind"));
                Value::Object(shown.map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            other => other.clone(),
        }
    }

    /// A list, as text: its metadata comes before its items, as the real server has it.
    pub(super) fn list(&self, page: &Page) -> String {
        let mut metadata = json!({"resourceVersion": page.revision.to_string()});
        if let (Some((revision, key)), Some(fields)) = (&page.next, metadata.as_object_mut()) {
            fields.insert("continue".to_owned(), json!(token(*revision, key)));
            fields.insert("remainingItemCount".to_owned(), json!(page.remaining));
        }
        let (version, kind) = self.identity();
        let items = page.items.iter().map(|object| self.item(object).to_string()).collect::<Vec<_>>().join(",");
        format!(r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":[{items}]}}"#)
    }
}

/// The token of a continued list.
fn token(revision: u64, key: &Key) -> String {
    format!("{revision}~{}~{}", key.0, key.1)
}

/// Reads a token of a continued list.
pub(super) fn read_token(text: &str) -> Result<(u64, Key), ApiError> {
    let mut parts = text.splitn(3, '~');
    let mut next = || parts.next().map(str::to_owned);
    let mut read = || Some((next()?.parse().ok()?, (next()?, next()?)));
    read().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}

/// `/api`.
pub(super) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `/version`.
pub(super) fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2025-04-23T13:07:12Z", "goVersion": "go1.24.2", "compiler": "gc", "platform": "linux/amd64",
    })
}

/// `/apis`.
pub(super) fn groups(kinds: &[Kind]) -> Value {
    let mut names: Vec<&str> = kinds.iter().map(|kind| kind.group.as_str()).filter(|group| !group.is_empty()).collect();
    names.sort_unstable();
    names.dedup();
    let groups: Vec<Value> = names.into_iter().filter_map(|name| group(kinds, name).ok()).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub(super) fn group(kinds: &[Kind], name: &str) -> Result<Value, ApiError> {
    let mut versions: Vec<&String> = Vec::new();
    for version in kinds.iter().filter(|kind| kind.group == name).flat_map(|kind| &kind.versions) {
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let shown = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let preferred = versions.first().ok_or_else(ApiError::no_such_path)?;
    Ok(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "versions": versions.iter().map(|version| shown(version)).collect::<Vec<_>>(),
        "preferredVersion": shown(preferred),
    }))
}

/// `/api/VERSION` and `/apis/GROUP/VERSION`.
pub(super) fn resources(kinds: &[Kind], group: &str, version: &str) -> Result<Value, ApiError> {
    let of_version = |kind: &&Kind| kind.group == group && kind.versions.iter().any(|one| one == version);
    let kinds: Vec<&Kind> = kinds.iter().filter(of_version).collect();
    let first = kinds.first().ok_or_else(ApiError::no_such_path)?;
    let mut resources = Vec::new();
    for kind in &kinds {
        let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
        let resource = |name: String, verbs: &[&str]| {
            json!({
                "name": name, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": verbs,
            })
        };
        resources.push(resource(kind.plural.clone(), &verbs));
        if kind.status {
            resources.push(resource(format!("{}/status", kind.plural), &["get", "patch", "update"]));
        }
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(version), "resources": resources,
    }))
}
