//! What was told of the objects of one kind, and so what there is to tell: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sluice_cluster::{Objects, Verb, number};
use sluice_policy_core::cluster::{Event, Object, ObjectId, POD_IPS_ANNOTATION, PodKey, Uid};
use sluice_policy_core::model::{PolicyRef, Text};
use sluice_policy_core::parse::{self, Issue, Severity};

use super::kinds::{Kind, MIRROR_ANNOTATION};
use crate::cluster::{Place, Report, Told};

/// Faults that are told of objects without a name, at once; more are counted only.
const MAX_NAMELESS: usize = 16;

/// What is known of an object.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// `metadata.generation`.
    generation: i64,
    /// Whether it was told. One that cannot be read never was.
    told: bool,
    /// Whether faults were told.
    faulty: bool,
}

/// What is kept of a pod of this node, beside what is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Local {
    /// As the runtime knows it (for a mirror pod: that of the static pod).
    pub(super) uid: Uid,
    /// `metadata.uid`.
    pub(super) api_uid: Text,
    /// The annotation [`POD_IPS_ANNOTATION`].
    pub(super) announced: Option<Text>,
}

/// The condition of a policy that we write, as the API has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) status: Text,
    pub(super) reason: Text,
    pub(super) message: Text,
    pub(super) since: Text,
    pub(super) generation: Option<i64>,
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Known {
    kind: &'static Kind,
    node: Text,
    objects: sluice_cluster::Known<ObjectId, Entry>,
    /// Places of faults that name no object.
    nameless: BTreeSet<String>,
    local: BTreeMap<PodKey, Local>,
    seen: BTreeMap<PolicyRef, Seen>,
    /// `metadata.uid` of policies: events are found by it.
    uids: BTreeMap<PolicyRef, Text>,
    /// Objects that could not be read and are not counted yet.
    malformed: u64,
}

impl Known {
    pub(super) fn new(kind: &'static Kind, node: Text) -> Self {
        Self {
            kind,
            node,
            objects: sluice_cluster::Known::default(),
            nameless: BTreeSet::new(),
            local: BTreeMap::new(),
            seen: BTreeMap::new(),
            uids: BTreeMap::new(),
            malformed: 0,
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects.names()
    }

    pub(super) fn local(&self, pod: &PodKey) -> Option<&Local> {
        self.local.get(pod)
    }

    pub(super) fn seen(&self, policy: &PolicyRef) -> Option<&Seen> {
        self.seen.get(policy)
    }

    /// `metadata.uid` of a policy.
    pub(super) fn uid(&self, policy: &PolicyRef) -> Option<&Text> {
        self.uids.get(policy)
    }

    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.objects.get(id).is_some()
    }

    /// An object that was asked for. Whether it is there.
    pub(super) fn looked_up(&mut self, version: &str, object: Value, out: &mut Vec<Told>) -> bool {
        let Some(id) = self.id_of(&object) else { return false };
        let revision = number(&object, "/metadata/resourceVersion");
        // The watch is further than this answer: what is not known by now has been deleted since.
        if revision > self.objects.revision() || revision == 0 {
            self.is(version, object, false, out);
        }
        self.has(&id)
    }

    fn id_of(&self, object: &Value) -> Option<ObjectId> {
        let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (field("/metadata/namespace"), field("/metadata/name"));
        if name.is_empty() || (self.kind.api.namespaced && namespace.is_empty()) {
            return None;
        }
        Some(self.kind.id(namespace, name))
    }

    /// An object is so; `listed`: a list says it.
    fn is(&mut self, version: &str, mut object: Value, listed: bool, out: &mut Vec<Told>) {
        let Some(id) = self.id_of(&object) else {
            self.objects.unreadable();
            self.fault_without_name(&object, out);
            return;
        };
        let revision = number(&object, "/metadata/resourceVersion");
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        if !self.objects.is_news(&id, revision, listed) {
            return;
        }
        let before = self.objects.get(&id).copied();
        if let Some(fields) = object.as_object_mut() {
            // Elements of lists do not say what they are.
            fields.insert("apiVersion".to_owned(), self.kind.api.api_version(version).into());
            fields.insert("kind".to_owned(), self.kind.api.kind.into());
        }
        let parsed = parse::object(&object);
        let told_before = before.is_some_and(|entry| entry.told);
        let faulty_before = before.is_some_and(|entry| entry.faulty);
        let mut entry =
            Entry { generation: generation.unwrap_or_default(), told: told_before, faulty: !parsed.issues.is_empty() };
        match parsed.object {
            Some(found) => {
                self.note(&id, &object);
                let json = json_of(&found, object);
                entry.told = true;
                out.push(Told::Event { event: Event::Upsert(found), json });
            }
            // What it said before holds until it can be read again.
            None => self.malformed += 1,
        }
        // Of a policy, that nothing is wrong is told with each generation: its status says so.
        let policy =
            matches!(id, ObjectId::Policy(_)) && before.is_none_or(|before| before.generation != entry.generation);
        if entry.faulty || faulty_before || policy {
            out.push(report(Place::Object(id.clone()), generation, parsed.issues));
        }
        self.objects.put(id, revision, entry);
    }

    fn remove(&mut self, id: &ObjectId, out: &mut Vec<Told>) {
        let Some(entry) = self.objects.remove(id) else { return };
        match id {
            ObjectId::Pod(key) => drop(self.local.remove(key)),
            ObjectId::Policy(policy) => {
                self.seen.remove(policy);
                self.uids.remove(policy);
            }
            _ => {}
        }
        if entry.told {
            out.push(Told::Event { event: Event::Delete(id.clone()), json: None });
        }
        if entry.faulty {
            out.push(report(Place::Object(id.clone()), None, Vec::new()));
        }
    }

    /// What is kept beside what is told.
    fn note(&mut self, id: &ObjectId, object: &Value) {
        let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).map(Text::from);
        let annotation = |name: &str| object.pointer("/metadata/annotations").and_then(|all| all.get(name)?.as_str());
        match id {
            ObjectId::Pod(key) => {
                if text(object, "/spec/nodeName").is_none_or(|node| node != self.node) {
                    self.local.remove(key);
                    return;
                }
                let api_uid = text(object, "/metadata/uid").unwrap_or_default();
                let uid = annotation(MIRROR_ANNOTATION).map_or_else(|| Uid::from(&*api_uid), Uid::from);
                let announced = annotation(POD_IPS_ANNOTATION).map(Text::from);
                self.local.insert(key.clone(), Local { uid, api_uid, announced });
            }
            ObjectId::Policy(policy) => {
                if let Some(uid) = text(object, "/metadata/uid") {
                    self.uids.insert(policy.clone(), uid);
                }
                let Some(condition) = self.kind.condition else { return };
                let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
                let own = |one: &&Value| one.get("type").and_then(Value::as_str) == Some(condition.name);
                match conditions.into_iter().flatten().find(own) {
                    None => drop(self.seen.remove(policy)),
                    Some(found) => {
                        let field = |path: &str| text(found, path).unwrap_or_default();
                        let seen = Seen {
                            status: field("/status"),
                            reason: field("/reason"),
                            message: field("/message"),
                            since: field("/lastTransitionTime"),
                            generation: found.get("observedGeneration").and_then(Value::as_i64),
                        };
                        self.seen.insert(policy.clone(), seen);
                    }
                }
            }
            _ => {}
        }
    }

    fn fault_without_name(&mut self, object: &Value, out: &mut Vec<Told>) {
        let shown: String = object.to_string().chars().take(80).collect();
        let field = |name: &str| object.pointer(&format!("/metadata/{name}")).and_then(Value::as_str);
        let place = match (field("namespace"), field("name")) {
            (None, None) => format!("an object of {}", self.kind.api.plural),
            (namespace, name) => {
                format!("{} {}/{}", self.kind.api.kind, namespace.unwrap_or_default(), name.unwrap_or_default())
            }
        };
        self.nameless(place, format!("it has no name, or no namespace: {shown}"), out);
    }

    fn nameless(&mut self, place: String, message: String, out: &mut Vec<Told>) {
        self.malformed += 1;
        if self.nameless.len() < MAX_NAMELESS || self.nameless.contains(&place) {
            self.nameless.insert(place.clone());
            let issue = Issue { severity: Severity::Refused, path: String::new(), message };
            out.push(report(Place::Text(place), None, vec![issue]));
        }
    }
}

impl Objects for Known {
    type Told = Told;

    fn revision(&self) -> u64 {
        self.objects.revision()
    }

    fn set_back(&mut self) {
        self.objects.set_back();
    }

    fn begin(&mut self, out: &mut Vec<Told>) {
        self.objects.begin();
        for place in std::mem::take(&mut self.nameless) {
            out.push(report(Place::Text(place), None, Vec::new()));
        }
    }

    fn listed_at(&mut self, revision: u64) {
        self.objects.listed_at(revision);
    }

    fn item(&mut self, version: &str, object: Value, out: &mut Vec<Told>) {
        self.is(version, object, true, out);
    }

    fn end(&mut self, revision: u64, out: &mut Vec<Told>) {
        for id in self.objects.end(revision) {
            self.remove(&id, out);
        }
    }

    fn event(&mut self, verb: Verb, version: &str, object: Value, out: &mut Vec<Told>) {
        let revision = number(&object, "/metadata/resourceVersion");
        match verb {
            Verb::Is => self.is(version, object, false, out),
            Verb::Gone => match self.id_of(&object) {
                None => self.fault_without_name(&object, out),
                Some(id) if self.objects.is_deleted(&id, revision) => self.remove(&id, out),
                Some(_) => {}
            },
        }
        self.objects.moved(revision);
    }

    fn garbled(&mut self, what: &str, out: &mut Vec<Told>) {
        self.objects.unreadable();
        self.nameless(format!("{what} of {}", self.kind.api.plural), "it is no JSON, or too large".to_owned(), out);
    }

    fn bookmark(&mut self, revision: u64) {
        self.objects.moved(revision);
    }

    fn clear(&mut self, out: &mut Vec<Told>) {
        for id in self.objects.names().cloned().collect::<Vec<_>>() {
            self.remove(&id, out);
        }
        self.begin(out);
        self.objects.forget_revision();
    }

    fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }
}

const fn report(place: Place, generation: Option<i64>, issues: Vec<Issue>) -> Told {
    Told::Report(Report { place, generation, issues })
}

/// The object as it was read, where it cannot be written again from what was read.
fn json_of(object: &Object, mut value: Value) -> Option<Arc<str>> {
    if !matches!(object, Object::Policy(_) | Object::CidrGroup(_)) {
        return None;
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    Some(value.to_string().into())
}

#[cfg(test)]
mod tests;
