//! Objects by key.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Index, RangeFrom};
use std::sync::Arc;

use super::{EndpointSlice, ObjectKey, Pod, PodKey, Service};
use crate::model::{Policy, PolicyRef};
use crate::pack::pack_set;

/// What has a key of its own.
pub trait Keyed<K> {
    /// The key.
    fn key(&self) -> &K;
}

impl Keyed<PodKey> for Arc<Pod> {
    fn key(&self) -> &PodKey {
        &self.key
    }
}

impl Keyed<ObjectKey> for Service {
    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

impl Keyed<ObjectKey> for EndpointSlice {
    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

impl Keyed<PolicyRef> for Arc<Policy> {
    fn key(&self) -> &PolicyRef {
        self.id()
    }
}

/// Objects in the order of their keys. The key of each is the one that the object has: it is held once.
#[derive(Clone)]
pub struct Objects<K, T: Keyed<K>>(BTreeSet<ByKey<K, T>>);

/// Compares by key only.
#[derive(Clone)]
struct ByKey<K, T>(T, PhantomData<K>);

impl<K, T: Keyed<K>> Borrow<K> for ByKey<K, T> {
    fn borrow(&self) -> &K {
        self.0.key()
    }
}

impl<K: Ord, T: Keyed<K>> PartialEq for ByKey<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.key() == other.0.key()
    }
}

impl<K: Ord, T: Keyed<K>> Eq for ByKey<K, T> {}

impl<K: Ord, T: Keyed<K>> PartialOrd for ByKey<K, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K: Ord, T: Keyed<K>> Ord for ByKey<K, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key().cmp(other.0.key())
    }
}

impl<K: Ord, T: Keyed<K>> Objects<K, T> {
    /// The object of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&T> {
        self.0.get(key).map(|one| &one.0)
    }

    /// Whether there is an object of this key.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.0.contains(key)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn values(&self) -> impl Iterator<Item = &T> + Clone {
        self.0.iter().map(|one| &one.0)
    }

    /// Their keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.values().map(Keyed::key)
    }

    /// All of them with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &T)> {
        self.values().map(|object| (object.key(), object))
    }

    /// Those from a key on.
    pub fn range(&self, keys: RangeFrom<K>) -> impl Iterator<Item = (&K, &T)> {
        let from = (Bound::Included(&keys.start), Bound::Unbounded);
        self.0.range::<K, _>(from).map(|one| (one.0.key(), &one.0))
    }

    /// Puts an object in, in place of the one of its key. Whether that is a change.
    pub(super) fn put(&mut self, object: T) -> bool
    where
        T: PartialEq,
    {
        let changed = self.get(object.key()) != Some(&object);
        if changed {
            self.0.replace(ByKey(object, PhantomData));
        }
        changed
    }

    /// Takes an object out; whether it was there.
    pub(super) fn remove(&mut self, key: &K) -> bool {
        self.0.remove(key)
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        pack_set(&mut self.0);
    }
}

impl<K, T: Keyed<K>> Default for Objects<K, T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Ord, T: Keyed<K> + PartialEq> PartialEq for Objects<K, T> {
    /// Whether the same is known of the same objects.
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

impl<K: Ord, T: Keyed<K>> Index<&K> for Objects<K, T> {
    type Output = T;

    /// # Panics
    /// There is no object of this key.
    #[expect(clippy::panic, reason = "as every map does it")]
    fn index(&self, key: &K) -> &T {
        match self.get(key) {
            Some(object) => object,
            None => panic!("no object has this key"),
        }
    }
}

impl<K: Ord + fmt::Debug, T: Keyed<K> + fmt::Debug> fmt::Debug for Objects<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
