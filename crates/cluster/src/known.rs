//! Which objects of a kind are known and how new, and so what is news: pure.

use std::collections::BTreeMap;

use serde_json::Value;

/// What is known of an object.
#[derive(Debug, Clone)]
struct Entry<E> {
    /// `metadata.resourceVersion`; 0 where it is no number: then nothing is known to be older or newer.
    revision: u64,
    /// The list in which it was last seen, counted.
    list: u32,
    kept: E,
}

/// The objects of a kind by name, with what is kept of each.
#[derive(Debug, Clone)]
pub struct Known<K, E> {
    objects: BTreeMap<K, Entry<E>>,
    list: u32,
    /// The revision of the current list; 0: not known yet.
    listed_at: u64,
    /// An object of the current list has no name that could be read: it may be any.
    unreadable: bool,
    /// Everything up to here was told.
    revision: u64,
}

impl<K: Ord + Clone, E> Default for Known<K, E> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), list: 0, listed_at: 0, unreadable: false, revision: 0 }
    }
}

impl<K: Ord + Clone, E> Known<K, E> {
    /// Everything up to this revision is known.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// The names of all objects.
    pub fn names(&self) -> impl Iterator<Item = &K> {
        self.objects.keys()
    }

    /// What is kept of all objects.
    pub fn kept(&self) -> impl Iterator<Item = &E> {
        self.objects.values().map(|entry| &entry.kept)
    }

    /// What is kept of an object.
    #[must_use]
    pub fn get(&self, name: &K) -> Option<&E> {
        self.objects.get(name).map(|entry| &entry.kept)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Revisions have begun anew, below what is known (a storage that was restored): all of it is as old as can be.
    pub fn set_back(&mut self) {
        self.revision = 0;
        for entry in self.objects.values_mut() {
            entry.revision = 0;
        }
    }

    /// A list of everything begins.
    pub const fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
        self.listed_at = 0;
        self.unreadable = false;
    }

    /// The revision of the list whose objects follow.
    pub const fn listed_at(&mut self, revision: u64) {
        self.listed_at = revision;
    }

    /// Something came that could not be told by name: it may be any object.
    pub const fn unreadable(&mut self) {
        self.unreadable = true;
    }

    /// Whether what is said of an object at a revision is news. `listed`: a list says it.
    pub fn is_news(&mut self, name: &K, revision: u64, listed: bool) -> bool {
        let listed_at = if listed { self.listed_at } else { 0 };
        if let Some(entry) = self.objects.get_mut(name)
            && revision != 0
            && (entry.revision == revision || (entry.revision > revision && entry.revision > listed_at))
        {
            // What an older list or a late event says is not newer than what was told. In a list that is newer, an older
            // object is one that was restored from a backup.
            entry.list = self.list;
            return false;
        }
        true
    }

    /// An object is so, at a revision.
    pub fn put(&mut self, name: K, revision: u64, kept: E) {
        self.objects.insert(name, Entry { revision, list: self.list, kept });
    }

    /// The list is complete, as of a revision: what was not in it is gone.
    #[must_use]
    pub fn end(&mut self, revision: u64) -> Vec<K> {
        self.moved(revision);
        if self.unreadable {
            // The one without a name may be any of those that are missing.
            return Vec::new();
        }
        let gone = |entry: &Entry<E>| entry.list != self.list && (entry.revision <= revision || revision == 0);
        self.objects.iter().filter(|(_, entry)| gone(entry)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a deletion at a revision is news: the object may be there again, and known from a look-up.
    #[must_use]
    pub fn is_deleted(&self, name: &K, revision: u64) -> bool {
        self.objects.get(name).is_some_and(|entry| revision == 0 || entry.revision <= revision)
    }

    /// An object is gone.
    pub fn remove(&mut self, name: &K) -> Option<E> {
        self.objects.remove(name).map(|entry| entry.kept)
    }

    /// Everything up to a revision is known.
    pub fn moved(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Nothing is known any more, so that everything is news.
    pub const fn forget_revision(&mut self) {
        self.revision = 0;
    }
}

/// The number in a text field; 0 where there is none.
#[must_use]
pub fn number(object: &Value, path: &str) -> u64 {
    object.pointer(path).and_then(Value::as_str).and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[(&'static str, u64)]) -> Known<&'static str, ()> {
        let mut known = Known::default();
        known.begin();
        known.listed_at(10);
        for (name, revision) in names {
            assert!(known.is_news(name, *revision, true));
            known.put(*name, *revision, ());
        }
        assert!(known.end(10).is_empty());
        known
    }

    #[test]
    fn an_older_list_undoes_nothing() {
        let mut known = known(&[("a", 3)]);
        assert!(known.is_news(&"b", 12, false));
        known.put("b", 12, ());
        known.begin();
        known.listed_at(11);
        assert!(!known.is_news(&"a", 3, true));
        assert!(known.end(11).is_empty(), "b is newer than the list");
        known.begin();
        known.listed_at(13);
        assert_eq!(known.end(13), ["a", "b"]);
    }

    #[test]
    fn a_list_with_an_element_that_has_no_name_takes_nothing_away() {
        let mut known = known(&[("a", 3)]);
        known.begin();
        known.unreadable();
        assert!(known.end(20).is_empty());
        assert_eq!(known.revision(), 20);
    }

    #[test]
    fn a_late_deletion_is_not_that_of_the_next_object_of_the_name() {
        let mut known = known(&[("a", 3)]);
        known.put("a", 15, ());
        assert!(!known.is_deleted(&"a", 14) && known.is_deleted(&"a", 16) && known.is_deleted(&"a", 0));
        known.set_back();
        assert!(known.is_deleted(&"a", 1) && known.revision() == 0);
    }
}
