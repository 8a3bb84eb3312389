//! All pods.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::{Bound, RangeFrom};
use std::sync::Arc;

use super::{Pod, PodKey};
use crate::pack::pack_set;

/// Pods, in the order of their keys. The key of each is the one that the pod has: it is held once.
#[derive(Clone, Default)]
pub struct Pods(BTreeSet<ByKey>);

#[derive(Clone)]
struct ByKey(Arc<Pod>);

impl Borrow<PodKey> for ByKey {
    fn borrow(&self) -> &PodKey {
        &self.0.key
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

impl Pods {
    /// The pod of a key.
    #[must_use]
    pub fn get(&self, key: &PodKey) -> Option<&Arc<Pod>> {
        self.0.get(key).map(|one| &one.0)
    }

    /// Whether there is a pod of this key.
    #[must_use]
    pub fn contains_key(&self, key: &PodKey) -> bool {
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
    pub fn values(&self) -> impl Iterator<Item = &Arc<Pod>> + Clone {
        self.0.iter().map(|one| &one.0)
    }

    /// Their keys.
    pub fn keys(&self) -> impl Iterator<Item = &PodKey> {
        self.values().map(|pod| &pod.key)
    }

    /// All of them with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&PodKey, &Arc<Pod>)> {
        self.values().map(|pod| (&pod.key, pod))
    }

    /// Those from a key on.
    pub fn range(&self, keys: RangeFrom<PodKey>) -> impl Iterator<Item = (&PodKey, &Arc<Pod>)> {
        let from = (Bound::Included(&keys.start), Bound::Unbounded);
        self.0.range::<PodKey, _>(from).map(|one| (&one.0.key, &one.0))
    }

    /// Puts a pod in, in place of the one of its key.
    pub(super) fn put(&mut self, pod: Arc<Pod>) {
        self.0.replace(ByKey(pod));
    }

    /// Takes a pod out; whether it was there.
    pub(super) fn remove(&mut self, key: &PodKey) -> bool {
        self.0.remove(key)
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        pack_set(&mut self.0);
    }
}

impl PartialEq for Pods {
    /// Whether the same is known of the same pods.
    fn eq(&self, other: &Self) -> bool {
        self.values().eq(other.values())
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
