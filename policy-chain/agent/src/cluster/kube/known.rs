//! What was told of the objects of one kind, and so what there is to tell: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
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
    /// `metadata.resourceVersion`; 0 where it is no number: then nothing is known to be older or newer.
    revision: u64,
    /// The list in which it was last seen, counted.
    list: u32,
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

/// What an event of a watch says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// `ADDED`, `MODIFIED`.
    Is,
    /// `DELETED`.
    Gone,
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Known {
    kind: &'static Kind,
    node: Text,
    objects: BTreeMap<ObjectId, Entry>,
    /// Places of faults that name no object.
    nameless: BTreeSet<String>,
    list: u32,
    /// The revision of the current list; 0: not known yet.
    listed_at: u64,
    /// An object of the current list has no name that could be read: it may be any.
    unreadable: bool,
    /// Everything up to here was told.
    revision: u64,
    local: BTreeMap<PodKey, Local>,
    seen: BTreeMap<PolicyRef, Seen>,
    /// `metadata.uid` of policies: events are found by it.
    uids: BTreeMap<PolicyRef, Text>,
    /// Objects that could not be read, ever.
    pub(super) malformed: u64,
}

impl Known {
    pub(super) fn new(kind: &'static Kind, node: Text) -> Self {
        Self {
            kind,
            node,
            objects: BTreeMap::new(),
            nameless: BTreeSet::new(),
            list: 0,
            listed_at: 0,
            unreadable: false,
            revision: 0,
            local: BTreeMap::new(),
            seen: BTreeMap::new(),
            uids: BTreeMap::new(),
            malformed: 0,
        }
    }

    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ObjectId> {
        self.objects.keys()
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

    /// Revisions have begun anew, below what is known (a storage that was restored): all of it is as old as can be.
    pub(super) fn set_back(&mut self) {
        self.revision = 0;
        for entry in self.objects.values_mut() {
            entry.revision = 0;
        }
    }

    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.objects.contains_key(id)
    }

    /// A list of everything begins.
    pub(super) fn begin(&mut self, out: &mut Vec<Told>) {
        self.list = self.list.wrapping_add(1);
        self.listed_at = 0;
        self.unreadable = false;
        for place in std::mem::take(&mut self.nameless) {
            out.push(report(Place::Text(place), None, Vec::new()));
        }
    }

    /// An object of the list.
    pub(super) fn item(&mut self, version: &str, object: Value, out: &mut Vec<Told>) {
        self.is(version, object, self.listed_at, out);
    }

    /// The revision of the list whose objects follow.
    pub(super) const fn listed_at(&mut self, revision: u64) {
        self.listed_at = revision;
    }

    /// The list is complete, as of a revision: what was not in it is gone.
    pub(super) fn end(&mut self, revision: u64, out: &mut Vec<Told>) {
        self.revision = self.revision.max(revision);
        if self.unreadable {
            // The one without a name may be any of those that are missing.
            return;
        }
        let gone = |entry: &Entry| entry.list != self.list && (entry.revision <= revision || revision == 0);
        let gone: Vec<ObjectId> =
            self.objects.iter().filter(|(_, entry)| gone(entry)).map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.remove(&id, out);
        }
    }

    /// An event of the watch.
    pub(super) fn event(&mut self, verb: Verb, version: &str, object: Value, out: &mut Vec<Told>) {
        let revision = number(&object, "/metadata/resourceVersion");
        match verb {
            Verb::Is => self.is(version, object, 0, out),
            Verb::Gone => match self.id_of(&object) {
                None => self.fault_without_name(&object, out),
                // It may be there again, and known from a look-up.
                Some(id) if self.objects.get(&id).is_some_and(|entry| revision != 0 && entry.revision > revision) => {}
                Some(id) => self.remove(&id, out),
            },
        }
        self.revision = self.revision.max(revision);
    }

    /// Something that is no JSON came in place of an object.
    pub(super) fn garbled(&mut self, what: &str, out: &mut Vec<Told>) {
        self.unreadable = true;
        self.nameless(format!("{what} of {}", self.kind.plural), "it is no JSON, or too large".to_owned(), out);
    }

    pub(super) fn bookmark(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// An object that was asked for. Whether it is there.
    pub(super) fn looked_up(&mut self, version: &str, object: Value, out: &mut Vec<Told>) -> bool {
        let Some(id) = self.id_of(&object) else { return false };
        let revision = number(&object, "/metadata/resourceVersion");
        // The watch is further than this answer: what is not known by now has been deleted since.
        if revision > self.revision || revision == 0 {
            self.is(version, object, 0, out);
        }
        self.has(&id)
    }

    /// The kind is not there any more.
    pub(super) fn clear(&mut self, out: &mut Vec<Told>) {
        for id in self.objects.keys().cloned().collect::<Vec<_>>() {
            self.remove(&id, out);
        }
        self.begin(out);
        self.revision = 0;
    }

    fn id_of(&self, object: &Value) -> Option<ObjectId> {
        let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (namespace, name) = (field("/metadata/namespace"), field("/metadata/name"));
        if name.is_empty() || (self.kind.namespaced && namespace.is_empty()) {
            return None;
        }
        Some(self.kind.id(namespace, name))
    }

    /// An object is so, as of a revision at which everything was listed (0: it comes alone).
    fn is(&mut self, version: &str, mut object: Value, listed_at: u64, out: &mut Vec<Told>) {
        let Some(id) = self.id_of(&object) else {
            self.unreadable = true;
            self.fault_without_name(&object, out);
            return;
        };
        let revision = number(&object, "/metadata/resourceVersion");
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        let before = self.objects.get(&id).copied();
        if let Some(entry) = self.objects.get_mut(&id)
            && revision != 0
            && (entry.revision == revision || (entry.revision > revision && entry.revision > listed_at))
        {
            // What an older list or a late event says is not newer than what was told. In a list that is newer, an older
            // object is one that was restored from a backup.
            entry.list = self.list;
            return;
        }
        if let Some(fields) = object.as_object_mut() {
            // Elements of lists do not say what they are.
            fields.insert("apiVersion".to_owned(), self.kind.api_version(version).into());
            fields.insert("kind".to_owned(), self.kind.kind.into());
        }
        let parsed = parse::object(&object);
        let told_before = before.is_some_and(|entry| entry.told);
        let faulty_before = before.is_some_and(|entry| entry.faulty);
        let mut entry = Entry {
            revision,
            list: self.list,
            generation: generation.unwrap_or_default(),
            told: told_before,
            faulty: !parsed.issues.is_empty(),
        };
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
        self.objects.insert(id, entry);
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
            (None, None) => format!("an object of {}", self.kind.plural),
            (namespace, name) => {
                format!("{} {}/{}", self.kind.kind, namespace.unwrap_or_default(), name.unwrap_or_default())
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

const fn report(place: Place, generation: Option<i64>, issues: Vec<Issue>) -> Told {
    Told::Report(Report { place, generation, issues })
}

/// The number in a text field; 0 where there is none.
pub(super) fn number(object: &Value, path: &str) -> u64 {
    object.pointer(path).and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or_default()
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
