//! The objects, every change of them, and the rules of writing.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::kind::{Kind, TableId};
use super::selector::Filter;

/// Changes of a kind that a watch may begin at; older ones are gone.
const HISTORY: usize = 20_000;

/// Where revisions begin: not at 1, so that nobody takes them for counts.
const FIRST_REVISION: u64 = 1_000;

/// Namespace and name.
pub(super) type Key = (String, String);

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Did {
    Add,
    Modify,
    Delete,
}

/// A change, after which the object was `object`.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) key: Key,
    pub(super) did: Did,
    pub(super) object: Arc<Value>,
    pub(super) before: Option<Arc<Value>>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    /// Changes up to this revision are forgotten.
    compacted: u64,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: u64,
    pub(super) items: Vec<Arc<Value>>,
    /// Where the next page begins: after this key, at this revision.
    pub(super) next: Option<(u64, Key)>,
    pub(super) remaining: usize,
}

/// What a delete asks to be true.
#[derive(Debug, Clone, Default)]
pub(super) struct Preconditions {
    pub(super) uid: Option<String>,
    pub(super) revision: Option<String>,
}

/// All objects.
#[derive(Debug, Clone)]
pub(super) struct Store {
    kinds: Vec<Kind>,
    tables: BTreeMap<TableId, Table>,
    revision: u64,
    uids: u64,
}

impl Store {
    pub(super) fn new(kinds: Vec<Kind>) -> Self {
        Self { kinds, tables: BTreeMap::new(), revision: FIRST_REVISION, uids: 0 }
    }

    pub(super) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The kind of a path, if it is served in this version.
    pub(super) fn kind(&self, table: &TableId, version: &str) -> Result<Kind, ApiError> {
        let is = |kind: &&Kind| kind.table() == *table && kind.versions.iter().any(|one| one == version);
        self.kinds.iter().find(is).cloned().ok_or_else(ApiError::no_such_path)
    }

    /// The kind of an object.
    pub(super) fn kind_of(&self, object: &Value) -> Result<Kind, ApiError> {
        let field = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (field("apiVersion"), field("kind"));
        let found = self.kinds.iter().find(|known| known.is(version, kind)).cloned();
        found.ok_or_else(|| ApiError::bad_request(format!("no kind {kind:?} in version {version:?} is served")))
    }

    pub(super) fn install(&mut self, kind: Kind) {
        self.kinds.retain(|known| known.table() != kind.table());
        self.kinds.push(kind);
    }

    /// The kind goes, and all of its objects with it.
    pub(super) fn uninstall(&mut self, table: &TableId) {
        self.kinds.retain(|known| known.table() != *table);
        let keys: Vec<Key> =
            self.tables.get(table).into_iter().flat_map(|table| table.objects.keys().cloned()).collect();
        for key in keys {
            self.change(table, &key, None);
        }
        self.tables.remove(table);
    }

    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn get(&self, table: &TableId, key: &Key) -> Option<Arc<Value>> {
        self.tables.get(table)?.objects.get(key).map(Arc::clone)
    }

    /// A page of what is selected, as it was at `at` (none: now), after a key, at most `limit` (0: all).
    pub(super) fn list(
        &self,
        table: &TableId,
        filter: &Filter,
        after: Option<&(u64, Key)>,
        limit: usize,
    ) -> Result<Page, ApiError> {
        let empty = Table::default();
        let table = self.tables.get(table).unwrap_or(&empty);
        let at = after.map_or(self.revision, |(revision, _)| *revision);
        if at < table.compacted {
            return Err(ApiError::expired(at, table.compacted));
        }
        let mut objects = Cow::Borrowed(&table.objects);
        for change in table.history.iter().rev().take_while(|change| change.revision > at) {
            match &change.before {
                Some(before) => objects.to_mut().insert(change.key.clone(), Arc::clone(before)),
                None => objects.to_mut().remove(&change.key),
            };
        }
        let first = after.map_or(Bound::Unbounded, |(_, last)| Bound::Excluded(last));
        let rest = objects.range((first, Bound::Unbounded)).filter(|(_, object)| filter.selects(object));
        let rest = rest.map(|(key, object)| (key.clone(), Arc::clone(object)));
        let mut rest = rest.collect::<Vec<_>>().into_iter();
        let taken: Vec<(Key, Arc<Value>)> = rest.by_ref().take(if limit == 0 { usize::MAX } else { limit }).collect();
        let remaining = rest.len();
        let next = taken.last().filter(|_| remaining > 0).map(|(key, _)| (at, key.clone()));
        Ok(Page { revision: at, items: taken.into_iter().map(|(_, object)| object).collect(), next, remaining })
    }

    /// The changes after a revision.
    pub(super) fn changes(&self, table: &TableId, after: u64) -> Result<Vec<Change>, ApiError> {
        let Some(table) = self.tables.get(table) else { return Ok(Vec::new()) };
        if after < table.compacted {
            return Err(ApiError::expired(after, table.compacted));
        }
        let first = table.history.partition_point(|change| change.revision <= after);
        Ok(table.history.range(first..).cloned().collect())
    }

    /// The same objects, at a revision above another one, with nothing remembered of the past.
    pub(super) fn beyond(&self, revision: u64) -> Self {
        let mut store = self.clone();
        store.revision = store.revision.max(revision);
        store.compact();
        store
    }

    /// Forgets all changes up to now: a watch must begin here or later.
    pub(super) fn compact(&mut self) {
        // Whoever is at the present revision is behind afterwards, as after an etcd compaction with writes.
        self.revision += 1;
        for table in self.tables.values_mut() {
            table.history.clear();
            table.compacted = self.revision;
        }
    }

    /// Puts an object as it is, whatever it holds: what an admission would refuse as well. A generation that it has, it keeps.
    pub(super) fn put(&mut self, kind: &Kind, object: Value) -> Arc<Value> {
        let key = key_of(kind, &object);
        let before = self.get(&kind.table(), &key);
        let generation = object.pointer("/metadata/generation").cloned();
        let mut object = self.completed(object, before.as_deref());
        if let Ok(metadata) = metadata(&mut object) {
            if kind.namespaced {
                metadata.insert("namespace".to_owned(), json!(key.0));
            }
            if let Some(generation) = generation {
                metadata.insert("generation".to_owned(), generation);
            }
        }
        self.change(&kind.table(), &key, Some(object))
    }

    /// Puts a value under a key, though it may not even be an object.
    pub(super) fn put_raw(&mut self, kind: &Kind, key: &Key, value: Value) {
        self.change(&kind.table(), key, Some(value));
    }

    pub(super) fn create(&mut self, kind: &Kind, namespace: &str, mut object: Value) -> Result<Arc<Value>, ApiError> {
        self.admit(kind, namespace, &mut object)?;
        let metadata = metadata(&mut object)?;
        let text = |field: Option<&Value>| field.and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut name = text(metadata.get("name"));
        if name.is_empty() {
            let prefix = text(metadata.get("generateName"));
            if prefix.is_empty() {
                return Err(ApiError::invalid("metadata.name: Required value: name or generateName is required"));
            }
            name = format!("{prefix}{:05x}", self.uids + 1);
            metadata.insert("name".to_owned(), json!(name));
        }
        if metadata.contains_key("resourceVersion") {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let key = (namespace.to_owned(), name.clone());
        if self.get(&kind.table(), &key).is_some() {
            return Err(ApiError::exists(&kind.plural, &name));
        }
        if kind.namespaced
            && self.get(&TableId::new("", "namespaces"), &(String::new(), namespace.to_owned())).is_none()
        {
            return Err(ApiError::not_found("namespaces", namespace));
        }
        if kind.status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        let object = self.completed(object, None);
        Ok(self.change(&kind.table(), &key, Some(object)))
    }

    /// Writes an object that is there. `status`: its status only; else all but its status, where the kind has the
    /// subresource.
    pub(super) fn update(
        &mut self,
        kind: &Kind,
        key: &Key,
        mut object: Value,
        status: bool,
    ) -> Result<Arc<Value>, ApiError> {
        let before = self.get(&kind.table(), key).ok_or_else(|| ApiError::not_found(&kind.plural, &key.1))?;
        self.admit(kind, &key.0, &mut object)?;
        let own = |name: &str| before.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).map(str::to_owned);
        let metadata = metadata(&mut object)?;
        if metadata.get("name").and_then(Value::as_str).is_some_and(|name| name != key.1) {
            return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
        }
        match metadata.get("resourceVersion").and_then(Value::as_str).filter(|revision| !revision.is_empty()) {
            Some(revision) if Some(revision) != own("resourceVersion").as_deref() => {
                return Err(ApiError::conflict(&kind.plural, &key.1));
            }
            None if kind.custom => {
                return Err(ApiError::invalid(
                    "metadata.resourceVersion: Invalid value: 0: must be specified for an update",
                ));
            }
            _ => {}
        }
        if metadata.get("uid").and_then(Value::as_str).is_some_and(|uid| Some(uid) != own("uid").as_deref()) {
            return Err(ApiError::precondition(&kind.plural, &key.1));
        }
        Ok(self.write(kind, key, &object, &before, status))
    }

    /// What `update` and `patch` end in.
    pub(super) fn write(
        &mut self,
        kind: &Kind,
        key: &Key,
        object: &Value,
        before: &Arc<Value>,
        status: bool,
    ) -> Arc<Value> {
        let (mut next, with_status) = if status { ((**before).clone(), object) } else { (object.clone(), &**before) };
        if kind.status
            && let Some(fields) = next.as_object_mut()
        {
            match with_status.get("status") {
                Some(found) => fields.insert("status".to_owned(), found.clone()),
                None => fields.remove("status"),
            };
            // Who manages which fields goes with every write; the rest of the metadata with none of the status.
            let managed = object.pointer("/metadata/managedFields").cloned();
            if let Some((managed, metadata)) = managed.zip(fields.get_mut("metadata").and_then(Value::as_object_mut)) {
                metadata.insert("managedFields".to_owned(), managed);
            }
        }
        let next = self.completed(next, Some(before));
        if next == **before {
            return Arc::clone(before);
        }
        let finished = next.pointer("/metadata/deletionTimestamp").is_some() && !has_finalizers(&next);
        let written = self.change(&kind.table(), key, Some(next));
        if finished {
            self.change(&kind.table(), key, None);
        }
        written
    }

    pub(super) fn delete(&mut self, kind: &Kind, key: &Key, only: &Preconditions) -> Result<Arc<Value>, ApiError> {
        let before = self.get(&kind.table(), key).ok_or_else(|| ApiError::not_found(&kind.plural, &key.1))?;
        let field = |path: &str| before.pointer(path).and_then(Value::as_str);
        let differs =
            |wanted: &Option<String>, path: &str| wanted.as_deref().is_some_and(|one| field(path) != Some(one));
        if differs(&only.uid, "/metadata/uid") || differs(&only.revision, "/metadata/resourceVersion") {
            return Err(ApiError::precondition(&kind.plural, &key.1));
        }
        if has_finalizers(&before) {
            let mut next = (*before).clone();
            metadata(&mut next)?.entry("deletionTimestamp").or_insert_with(|| json!(now()));
            return Ok(self.write(kind, key, &next, &before, false));
        }
        let gone = self.change(&kind.table(), key, None);
        if kind.table() == TableId::new("", "namespaces") {
            self.empty_namespace(&key.1);
        }
        Ok(gone)
    }

    /// What the namespace controller does once a namespace is deleted.
    fn empty_namespace(&mut self, namespace: &str) {
        let within: Vec<(TableId, Key)> = self
            .tables
            .iter()
            .flat_map(|(id, table)| table.objects.keys().map(move |key| (id.clone(), key.clone())))
            .filter(|(_, key)| key.0 == namespace)
            .collect();
        for (table, key) in within {
            self.change(&table, &key, None);
        }
    }

    /// Fills in what the path says, and refuses what contradicts it.
    fn admit(&self, kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
        if !object.is_object() || !self.kind_of(object).is_ok_and(|found| found.table() == kind.table()) {
            return Err(ApiError::bad_request(format!("the object provided is no {} of this version", kind.kind)));
        }
        let metadata = metadata(object)?;
        match metadata.get("namespace").and_then(Value::as_str) {
            Some(found) if found != namespace => {
                return Err(ApiError::bad_request("the namespace of the object does not match that of the request"));
            }
            None if kind.namespaced => {
                metadata.insert("namespace".to_owned(), json!(namespace));
            }
            _ => {}
        }
        Ok(())
    }

    /// The object with what the server itself writes: uid, creation, generation. The revision comes with the change.
    fn completed(&mut self, mut object: Value, before: Option<&Value>) -> Value {
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012x}", self.uids);
        let same_spec = before.is_some_and(|before| spec_of(before) == spec_of(&object));
        let Ok(metadata) = metadata(&mut object) else { return object };
        let own = |name: &str| before.and_then(|before| before.pointer(&format!("/metadata/{name}"))).cloned();
        let keep = ["uid", "creationTimestamp"];
        let made = [json!(uid), json!(now())];
        for (name, made) in keep.into_iter().zip(made) {
            if let Some(value) = own(name) {
                metadata.insert(name.to_owned(), value);
            } else {
                metadata.entry(name).or_insert(made);
            }
        }
        let generation = own("generation").and_then(|value| value.as_u64()).unwrap_or_default();
        metadata.insert("generation".to_owned(), json!(if same_spec { generation } else { generation + 1 }));
        if let Some(revision) = own("resourceVersion") {
            metadata.insert("resourceVersion".to_owned(), revision);
        }
        object
    }

    /// Makes a change: a new object, or none in its place. Returns the object as it is now, or as it was last.
    fn change(&mut self, table: &TableId, key: &Key, object: Option<Value>) -> Arc<Value> {
        self.revision += 1;
        let revision = self.revision;
        let table = self.tables.entry(table.clone()).or_default();
        let before = table.objects.get(key).map(Arc::clone);
        let did = match (&object, &before) {
            (None, _) => Did::Delete,
            (Some(_), None) => Did::Add,
            (Some(_), Some(_)) => Did::Modify,
        };
        let mut value = object.or_else(|| before.as_deref().cloned()).unwrap_or_default();
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), json!(revision.to_string()));
        }
        let value = Arc::new(value);
        if did == Did::Delete {
            table.objects.remove(key);
        } else {
            table.objects.insert(key.clone(), Arc::clone(&value));
        }
        if table.history.len() == HISTORY
            && let Some(oldest) = table.history.pop_front()
        {
            table.compacted = oldest.revision;
        }
        table.history.push_back(Change { revision, key: key.clone(), did, object: Arc::clone(&value), before });
        value
    }
}

/// Namespace and name of an object as it stands; empty where it has none.
pub(super) fn key_of(kind: &Kind, object: &Value) -> Key {
    let field = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str).unwrap_or_default();
    let namespace = match field("namespace") {
        _ if !kind.namespaced => "",
        "" => "default",
        namespace => namespace,
    };
    (namespace.to_owned(), field("name").to_owned())
}

fn metadata(object: &mut Value) -> Result<&mut Map<String, Value>, ApiError> {
    let fields = object.as_object_mut().ok_or_else(|| ApiError::bad_request("the body is not an object"))?;
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    metadata.as_object_mut().ok_or_else(|| ApiError::bad_request("metadata is not an object"))
}

/// What a generation counts the changes of.
fn spec_of(object: &Value) -> Map<String, Value> {
    let mut fields = object.as_object().cloned().unwrap_or_default();
    fields.remove("metadata");
    fields.remove("status");
    fields
}

fn has_finalizers(object: &Value) -> bool {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
}

/// The time, as the API server writes it.
pub(super) fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}
