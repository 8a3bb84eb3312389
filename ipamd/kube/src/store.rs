//! The objects of one kind, as they were read last.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use sluice_cluster::{Known, Objects, Tell, Verb, number};
use sluice_ipamd_daemon::cluster::objects::{Object, Sort};

/// What is kept of an object.
pub(crate) trait Item: Clone + PartialEq + Send + 'static {
    /// The kinds that are read.
    type Sort: Copy + fmt::Display + Send + 'static;

    /// Reads an object of a kind.
    ///
    /// # Errors
    /// A field is of another type.
    fn read(sort: Self::Sort, object: Value) -> Result<Self, serde_json::Error>;
}

impl Item for Object {
    type Sort = Sort;

    fn read(sort: Sort, object: Value) -> Result<Self, serde_json::Error> {
        Self::read(sort, object)
    }
}

/// What is heard of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard<S> {
    /// All kinds are known.
    Synced,
    /// What is known may be out of date.
    Stale,
    /// All of a kind is known.
    Complete(S),
    /// An object of a kind is other than before.
    Changed(S),
}

impl<S: Send + 'static> Tell for Heard<S> {
    fn synced() -> Self {
        Self::Synced
    }

    /// Why is in the log.
    fn stale(_why: String) -> Self {
        Self::Stale
    }

    fn upto(_kind: &Arc<str>, _revision: u64) -> Option<Self> {
        None
    }

    fn is_object(&self) -> bool {
        matches!(self, Self::Changed(_))
    }
}

/// The objects of a kind.
#[derive(Debug)]
pub(crate) struct Store<T: Item> {
    pub(crate) sort: T::Sort,
    known: Known<(String, String), T>,
    malformed: u64,
}

impl<T: Item> Store<T> {
    pub(crate) fn new(sort: T::Sort) -> Self {
        Self { sort, known: Known::default(), malformed: 0 }
    }

    /// All of them.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &T> {
        self.known.kept()
    }

    /// One of them.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.known.get(&(namespace.to_owned(), name.to_owned()))
    }

    fn is(&mut self, object: Value, listed: bool, out: &mut Vec<Heard<T::Sort>>) {
        let Some(name) = name_of(&object) else {
            self.known.unreadable();
            self.malformed += 1;
            tracing::warn!(kind = %self.sort, "an object without a name");
            return;
        };
        let revision = number(&object, "/metadata/resourceVersion");
        if !self.known.is_news(&name, revision, listed) {
            return;
        }
        match T::read(self.sort, object) {
            Ok(read) => {
                if self.known.get(&name) != Some(&read) {
                    out.push(Heard::Changed(self.sort));
                }
                self.known.put(name, revision, read);
            }
            Err(error) => {
                self.malformed += 1;
                let (namespace, name_only) = &name;
                tracing::warn!(kind = %self.sort, namespace, name = name_only, %error, "an object cannot be read");
                // What it said before holds until it can be read again, and it is there.
                if let Some(before) = self.known.get(&name).cloned() {
                    self.known.put(name, revision, before);
                }
            }
        }
    }

    fn remove(&mut self, name: &(String, String), out: &mut Vec<Heard<T::Sort>>) {
        if self.known.remove(name).is_some() {
            out.push(Heard::Changed(self.sort));
        }
    }
}

fn name_of(object: &Value) -> Option<(String, String)> {
    let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = field("/metadata/name");
    (!name.is_empty()).then(|| (field("/metadata/namespace"), name))
}

impl<T: Item> Objects for Store<T> {
    type Told = Heard<T::Sort>;

    fn revision(&self) -> u64 {
        self.known.revision()
    }

    fn set_back(&mut self) {
        self.known.set_back();
    }

    fn begin(&mut self, _out: &mut Vec<Heard<T::Sort>>) {
        self.known.begin();
    }

    fn listed_at(&mut self, revision: u64) {
        self.known.listed_at(revision);
    }

    fn item(&mut self, _version: &str, object: Value, out: &mut Vec<Heard<T::Sort>>) {
        self.is(object, true, out);
    }

    fn end(&mut self, revision: u64, out: &mut Vec<Heard<T::Sort>>) {
        for name in self.known.end(revision) {
            self.remove(&name, out);
        }
        out.push(Heard::Complete(self.sort));
    }

    fn event(&mut self, verb: Verb, _version: &str, object: Value, out: &mut Vec<Heard<T::Sort>>) {
        let revision = number(&object, "/metadata/resourceVersion");
        match (verb, name_of(&object)) {
            (Verb::Is, _) => self.is(object, false, out),
            (Verb::Gone, Some(name)) if self.known.is_deleted(&name, revision) => self.remove(&name, out),
            (Verb::Gone, _) => {}
        }
        self.known.moved(revision);
    }

    fn garbled(&mut self, what: &str, _out: &mut Vec<Heard<T::Sort>>) {
        self.known.unreadable();
        self.malformed += 1;
        tracing::warn!(kind = %self.sort, what, "it is no JSON, or too large");
    }

    fn bookmark(&mut self, revision: u64) {
        self.known.moved(revision);
    }

    fn clear(&mut self, out: &mut Vec<Heard<T::Sort>>) {
        for name in self.known.names().cloned().collect::<Vec<_>>() {
            self.remove(&name, out);
        }
        self.known.begin();
        self.known.forget_revision();
        out.push(Heard::Complete(self.sort));
    }

    fn take_malformed(&mut self) -> u64 {
        std::mem::take(&mut self.malformed)
    }
}
