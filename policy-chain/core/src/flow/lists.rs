//! Sets of application lists, of which neighbouring decisions share what they have in common.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::slice;
use std::sync::Arc;

use super::RuleRef;
use crate::model::cilium::Application;

/// Where a list of application rules stands: which element of `toPorts` of which rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListRef {
    /// The rule.
    pub rule: RuleRef,
    /// Index in its `toPorts`.
    pub element: u32,
}

impl fmt::Display for ListRef {
    /// `CiliumNetworkPolicy shop/db, ingress[0].toPorts[1]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.toPorts[{}]", self.rule, self.element)
    }
}

/// A list of application rules: where it stands, and what it says. Lists that say other things are other lists, wherever
/// they stand, so that a decision never means rules that came later.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct List {
    /// Where it stands.
    pub at: ListRef,
    /// What it says; never [`Application::None`].
    pub application: Application,
}

/// A set of [`List`]s, in the order of where they stand.
///
/// It is a tree whose nodes are shared: a set that differs from another by one list holds, besides what the other holds, as
/// many nodes as the tree is high. Thousands of decisions about overlapping ranges of ports so take memory by their number,
/// not by its square. A clone copies nothing. Sets are equal if their lists are, whatever they share.
#[derive(Clone, Default)]
pub struct Lists {
    root: Option<Arc<Node>>,
    /// Levels of nodes below the root.
    height: u32,
    len: usize,
    /// The sum of the hashes of where its lists stand.
    hash: u64,
}

const BITS: u32 = 4;
const FANOUT: usize = 1 << BITS;

#[derive(Debug, Clone)]
enum Node {
    Leaf([Option<Arc<List>>; FANOUT]),
    Inner([Option<Arc<Self>>; FANOUT]),
}

impl Node {
    const fn empty(height: u32) -> Self {
        match height {
            0 => Self::Leaf([const { None }; FANOUT]),
            _ => Self::Inner([const { None }; FANOUT]),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(lists) => lists.iter().all(Option::is_none),
            Self::Inner(nodes) => nodes.iter().all(Option::is_none),
        }
    }

    /// Puts a list in a place, or nothing; gives what was there.
    fn put(slot: &mut Option<Arc<Self>>, height: u32, place: usize, list: Option<Arc<List>>) -> Option<Arc<List>> {
        if slot.is_none() && list.is_none() {
            return None;
        }
        let node = Arc::make_mut(slot.get_or_insert_with(|| Arc::new(Self::empty(height))));
        let at = (place >> (height * BITS)) % FANOUT;
        let before = match node {
            Self::Leaf(lists) => lists.get_mut(at).and_then(|slot| std::mem::replace(slot, list)),
            Self::Inner(nodes) => nodes.get_mut(at).and_then(|slot| Self::put(slot, height - 1, place, list)),
        };
        // Equal sets have equal trees, if their lists have the same places.
        if node.is_empty() {
            *slot = None;
        }
        before
    }

    /// Whether all is equal, and in the same places.
    fn same(one: &Arc<Self>, other: &Arc<Self>) -> bool {
        fn all<T>(one: &[Option<Arc<T>>], other: &[Option<Arc<T>>], same: impl Fn(&Arc<T>, &Arc<T>) -> bool) -> bool {
            one.iter().zip(other).all(|pair| match pair {
                (None, None) => true,
                (Some(one), Some(other)) => Arc::ptr_eq(one, other) || same(one, other),
                _ => false,
            })
        }
        match (&**one, &**other) {
            (Self::Leaf(one), Self::Leaf(other)) => all(one, other, |one, other| one == other),
            (Self::Inner(one), Self::Inner(other)) => all(one, other, Self::same),
            _ => false,
        }
    }
}

/// Of where a list stands.
fn hash(list: &List) -> u64 {
    let mut hasher = DefaultHasher::new();
    list.at.hash(&mut hasher);
    hasher.finish()
}

impl Lists {
    /// An empty set, with places for so many lists. Sets with equally many places whose lists have the same ones share what
    /// they have in common.
    pub(crate) fn with_places(count: usize) -> Self {
        let mut height = 0;
        let mut places = FANOUT;
        while places < count {
            places = places.saturating_mul(FANOUT);
            height += 1;
        }
        Self { height, ..Self::default() }
    }

    /// Puts a list in a place that is empty. Places follow the order of where lists stand.
    pub(crate) fn insert(&mut self, place: usize, list: &Arc<List>) {
        Node::put(&mut self.root, self.height, place, Some(Arc::clone(list)));
        self.len += 1;
        self.hash = self.hash.wrapping_add(hash(list));
    }

    /// Makes a place empty.
    pub(crate) fn remove(&mut self, place: usize) {
        if let Some(list) = Node::put(&mut self.root, self.height, place, None) {
            self.len -= 1;
            self.hash = self.hash.wrapping_sub(hash(&list));
        }
    }

    /// The lists of both.
    pub(crate) fn union(&self, other: &Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (_, true) => self.clone(),
            (true, _) => other.clone(),
            _ if self == other => self.clone(),
            _ => self.iter().chain(other).cloned().collect(),
        }
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first one.
    #[must_use]
    pub fn first(&self) -> Option<&Arc<List>> {
        self.iter().next()
    }

    /// All of them, in order. A list of a policy is one object, whichever decisions of a program have it.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        let mut iter = Iter { nodes: Vec::new(), lists: [].iter() };
        if let Some(root) = &self.root {
            iter.enter(root);
        }
        iter
    }
}

impl FromIterator<Arc<List>> for Lists {
    fn from_iter<I: IntoIterator<Item = Arc<List>>>(lists: I) -> Self {
        let mut lists: Vec<Arc<List>> = lists.into_iter().collect();
        lists.sort_by(|one, other| one.at.cmp(&other.at));
        lists.dedup();
        let mut set = Self::with_places(lists.len());
        for (place, list) in lists.iter().enumerate() {
            set.insert(place, list);
        }
        set
    }
}

impl PartialEq for Lists {
    fn eq(&self, other: &Self) -> bool {
        if self.len != other.len || self.hash != other.hash {
            return false;
        }
        let same = self.height == other.height
            && match (&self.root, &other.root) {
                (None, None) => true,
                (Some(one), Some(other)) => Arc::ptr_eq(one, other) || Node::same(one, other),
                _ => false,
            };
        same || self.iter().eq(other)
    }
}

impl Eq for Lists {}

impl Hash for Lists {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<'a> IntoIterator for &'a Lists {
    type Item = &'a Arc<List>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The lists of a set.
#[derive(Debug, Clone)]
pub struct Iter<'a> {
    nodes: Vec<slice::Iter<'a, Option<Arc<Node>>>>,
    lists: slice::Iter<'a, Option<Arc<List>>>,
}

impl<'a> Iter<'a> {
    fn enter(&mut self, node: &'a Node) {
        match node {
            Node::Leaf(lists) => self.lists = lists.iter(),
            Node::Inner(nodes) => self.nodes.push(nodes.iter()),
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<List>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(list) = self.lists.by_ref().flatten().next() {
                return Some(list);
            }
            match self.nodes.last_mut()?.by_ref().flatten().next() {
                Some(node) => self.enter(node),
                None => {
                    self.nodes.pop();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::flow::Direction;
    use crate::model::{PolicyKind, PolicyRef};

    fn list(number: usize, name: &str) -> Arc<List> {
        let policy = PolicyRef { kind: PolicyKind::CiliumClusterwideNetworkPolicy, namespace: None, name: "p".into() };
        let rule = RuleRef { policy, direction: Direction::Egress, spec: 0, deny: false, index: 0 };
        let pattern = crate::l7::dns::NamePattern::name(name).unwrap();
        let at = ListRef { rule, element: u32::try_from(number).unwrap() };
        Arc::new(List { at, application: Application::Dns([pattern].into()) })
    }

    /// Nodes that none of `seen` is.
    fn new_nodes(slot: Option<&Arc<Node>>, seen: &mut HashSet<usize>) -> usize {
        let Some(node) = slot.filter(|node| seen.insert(Arc::as_ptr(node).addr())) else { return 0 };
        let below = match &**node {
            Node::Leaf(_) => 0,
            Node::Inner(nodes) => nodes.iter().map(|slot| new_nodes(slot.as_ref(), seen)).sum(),
        };
        1 + below
    }

    proptest! {
        #[test]
        fn a_set_is_what_was_put_in_it(
            places in 1_usize..600,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..200),
        ) {
            let mut set = Lists::with_places(places);
            let mut expected: BTreeMap<usize, Arc<List>> = BTreeMap::new();
            let mut kept: Vec<(Lists, Vec<Arc<List>>)> = Vec::new();
            for (index, other) in changes {
                let place = index.index(places);
                if expected.remove(&place).is_some() {
                    set.remove(place);
                } else {
                    let list = list(place, if other { "a.example" } else { "b.example" });
                    set.insert(place, &list);
                    expected.insert(place, list);
                }
                kept.push((set.clone(), expected.values().cloned().collect()));
            }
            for (at, (set, lists)) in kept.iter().enumerate() {
                // A change of one leaves the others as they are.
                prop_assert_eq!(&set.iter().cloned().collect::<Vec<_>>(), lists);
                prop_assert_eq!((set.len(), set.first()), (lists.len(), lists.first()));
                prop_assert_eq!(set.is_empty(), set.root.is_none());
                // By places that are not the same.
                let afresh: Lists = lists.iter().rev().cloned().collect();
                prop_assert_eq!(set, &afresh);
                let hash = |set: &Lists| {
                    let mut hasher = DefaultHasher::new();
                    set.hash(&mut hasher);
                    hasher.finish()
                };
                prop_assert_eq!(hash(set), hash(&afresh));
                let (last, of_last) = &kept[kept.len() - 1];
                prop_assert_eq!(set == last, lists == of_last, "{}", at);
                let both: BTreeMap<_, _> = lists.iter().chain(of_last).map(|list| (&list.at, list)).collect();
                let one_of_each = lists.iter().chain(of_last).all(|list| both[&list.at] == list);
                if one_of_each {
                    prop_assert!(set.union(last).iter().eq(both.values().copied()));
                }
            }
        }
    }

    #[test]
    fn sets_of_overlapping_ranges_share_what_they_have_in_common() {
        const COUNT: usize = 3_000;
        let all: Vec<Arc<List>> = (0..COUNT).map(|number| list(number, "a.example")).collect();
        let mut set = Lists::with_places(COUNT);
        let (mut sets, mut nodes, mut seen) = (Vec::new(), 0, HashSet::new());
        // Each begins one port behind the one before, and all end far behind.
        for step in 0..2 * COUNT {
            match all.get(step) {
                Some(list) => set.insert(step, list),
                None => set.remove(step - COUNT),
            }
            nodes += new_nodes(set.root.as_ref(), &mut seen);
            sets.push(set.clone());
        }
        assert_eq!(sets[COUNT - 1].len(), COUNT);
        assert!(sets[2 * COUNT - 1].is_empty());
        assert!(nodes <= 3 * sets.len(), "{nodes} nodes for {} sets", sets.len());
    }

    #[test]
    fn what_a_list_says_belongs_to_it() {
        let [one, other]: [Lists; 2] = ["a.example", "b.example"].map(|name| [list(0, name)].into_iter().collect());
        assert_ne!(one, other);
        assert_eq!(one.first().unwrap().at.to_string(), "CiliumClusterwideNetworkPolicy p, egress[0].toPorts[0]");
    }
}
