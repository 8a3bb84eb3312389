//! Less room for maps that grew.
//!
//! A node of a B-tree that was filled in the order of its keys, as objects are told, is half empty. Built anew from its sorted
//! entries it is full.

use std::collections::{BTreeMap, BTreeSet};

/// A map, in less room.
pub(crate) fn pack_map<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}

/// A set, in less room.
pub(crate) fn pack_set<K: Ord>(set: &mut BTreeSet<K>) {
    *set = std::mem::take(set).into_iter().collect();
}
