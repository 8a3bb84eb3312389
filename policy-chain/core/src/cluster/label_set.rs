//! Labels of an object, shared between the objects that have the same.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::model::Text;

/// The keys of a label set, and the values that many objects have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Sorted, without doubles; what many forms have in common.
    pub(super) keys: Arc<[Text]>,
    /// As many.
    pub(super) values: Box<[Option<Text>]>,
}

/// Labels of an object, by key. Many objects have the same form, which they share: the keys, and the values that are
/// common. What only this one has stands beside it. Nobody sees a difference.
#[derive(Clone, Default)]
pub struct Labels {
    /// None if there are no labels.
    form: Option<Arc<Form>>,
    /// The values that the form leaves open, in its order, with [`BETWEEN`] between them; none if it leaves none open.
    own: Option<Arc<str>>,
}

/// What no value has that stands in [`Labels::own`].
pub(super) const BETWEEN: char = '\0';

impl Labels {
    /// Labels from pairs; of two values for a key, the later one.
    #[must_use]
    pub fn new(pairs: impl IntoIterator<Item = (Text, Text)>) -> Self {
        let map: BTreeMap<Text, Text> = pairs.into_iter().collect();
        if map.is_empty() {
            return Self::default();
        }
        let (keys, values): (Vec<Text>, Vec<Option<Text>>) =
            map.into_iter().map(|(key, value)| (key, Some(value))).unzip();
        Self { form: Some(Arc::new(Form { keys: keys.into(), values: values.into() })), own: None }
    }

    /// From a form, and as many values as it leaves open, joined by [`BETWEEN`].
    pub(super) const fn of_form(form: Arc<Form>, own: Option<Arc<str>>) -> Self {
        Self { form: Some(form), own }
    }

    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let form = self.form.as_ref()?;
        let at = form.keys.binary_search_by(|name| name.as_ref().cmp(key)).ok()?;
        let (before, found) = (form.values.get(..at)?, form.values.get(at)?);
        match found {
            Some(value) => Some(value),
            None => self.own().nth(before.iter().filter(|value| value.is_none()).count()),
        }
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Text, &str)> {
        let mut own = self.own();
        let pairs = self.form.iter().flat_map(|form| form.keys.iter().zip(&form.values));
        pairs.filter_map(move |(key, value)| Some((key, value.as_deref().or_else(|| own.next())?)))
    }

    fn own(&self) -> impl Iterator<Item = &str> {
        self.own.as_deref().into_iter().flat_map(|own| own.split(BETWEEN))
    }

    /// These labels and one more, whatever its value was.
    #[must_use]
    pub fn with(&self, key: Text, value: Text) -> Self {
        Self::new(self.iter().map(|(key, value)| (Arc::clone(key), value.into())).chain([(key, value)]))
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.form.is_none()
    }
}

impl PartialEq for Labels {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.form, &other.form) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        (same && self.own == other.own) || self.iter().eq(other.iter())
    }
}

impl Eq for Labels {}

impl PartialOrd for Labels {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Labels {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl Hash for Labels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.form.as_ref().map_or(0, |form| form.keys.len()).hash(state);
        self.iter().for_each(|pair| pair.hash(state));
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
