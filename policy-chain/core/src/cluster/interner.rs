//! What many objects have in common, held once.

mod policies;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::label_set::{BETWEEN, Form};
use super::{EndpointSlice, Labels, NamedPort, ObjectKey, Pod, PodTemplate, Service, ServicePort};
use crate::model::Text;

/// Longer texts are not shared: the API has no label or name that long.
const MAX_TEXT: usize = 256;

/// Label keys that are watched; the values of others are taken for common ones.
const MAX_KEYS: usize = 1_024;

/// After so many objects it can be told whether the values of a key are common ones.
const ENOUGH: u32 = 16;

/// Makes equal texts, label sets and port lists of objects the same. A memory of bounded size: what it forgets, or never
/// knew, is held twice, and that is all.
#[derive(Debug, Clone)]
pub(super) struct Interner {
    texts: Cache<str>,
    forms: Cache<Form>,
    key_lists: Cache<[Text]>,
    ports: Cache<[NamedPort]>,
    service_ports: Cache<[ServicePort]>,
    templates: Cache<PodTemplate>,
    keys: BTreeMap<Text, Seen>,
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            texts: Cache::new(1 << 16),
            forms: Cache::new(1 << 13),
            key_lists: Cache::new(1 << 10),
            ports: Cache::new(1 << 10),
            service_ports: Cache::new(1 << 10),
            templates: Cache::new(1 << 12),
            keys: BTreeMap::new(),
        }
    }
}

/// What is known of a label key.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    objects: u32,
    /// How many of their values were new.
    new: u32,
}

impl Interner {
    /// A text, as others have it.
    pub(super) fn text(&mut self, text: &Text) -> Text {
        if text.len() > MAX_TEXT { Arc::clone(text) } else { self.texts.share(text).0 }
    }

    /// Forgets what nobody else holds.
    pub(super) fn pack(&mut self) {
        self.texts.pack();
        self.forms.pack();
        self.key_lists.pack();
        self.ports.pack();
        self.service_ports.pack();
        self.templates.pack();
    }

    fn known(&mut self, text: &str) -> (Text, bool) {
        if text.len() > MAX_TEXT { (text.into(), false) } else { self.texts.share_with(text, || text.into()) }
    }

    /// Labels, their form as others have it.
    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut own: Option<String> = None;
        for (key, value) in labels.iter() {
            let key = self.text(key);
            let (value, known) = self.known(value);
            let watched = self.keys.len() < MAX_KEYS || self.keys.contains_key(&key);
            if watched && self.keys.entry(Arc::clone(&key)).or_default().count(known) && !value.contains(BETWEEN) {
                match &mut own {
                    None => own = Some(String::from(&*value)),
                    Some(own) => {
                        own.push(BETWEEN);
                        own.push_str(&value);
                    }
                }
                values.push(None);
            } else {
                values.push(Some(value));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Labels::default();
        }
        let keys = self.key_lists.share(&keys.into()).0;
        let form = self.forms.share(&Arc::new(Form { keys, values: values.into() })).0;
        Labels::of_form(form, own.map(Into::into))
    }

    fn key(&mut self, key: &ObjectKey) -> ObjectKey {
        ObjectKey { namespace: self.text(&key.namespace), name: self.text(&key.name) }
    }

    /// A Service, in few bytes.
    pub(super) fn service(&mut self, mut service: Service) -> Service {
        service.key = self.key(&service.key);
        service.labels = self.labels(&service.labels);
        service.selector = service.selector.map(|selector| self.labels(&selector));
        let ports = service.ports.iter().map(|port| ServicePort { name: self.text(&port.name), ..*port }).collect();
        service.ports = self.service_ports.share(&ports).0;
        service
    }

    /// A slice, in few bytes.
    pub(super) fn slice(&mut self, mut slice: EndpointSlice) -> EndpointSlice {
        slice.key = self.key(&slice.key);
        slice.service = slice.service.map(|service| self.text(&service));
        slice.ports = match &*slice.ports {
            [] => Arc::default(),
            ports => {
                let ports = self.named_ports(ports).into();
                self.ports.share(&ports).0
            }
        };
        slice
    }

    /// Ports, with the names as others have them.
    fn named_ports(&mut self, ports: &[NamedPort]) -> Box<[NamedPort]> {
        ports.iter().map(|port| NamedPort { name: self.text(&port.name), ..*port }).collect()
    }

    /// A pod, in few bytes. `before` is what was known of it.
    pub(super) fn pod(&mut self, mut pod: Pod, before: Option<&Pod>) -> Pod {
        match before {
            Some(before) => pod.key = before.key.clone(),
            // Nobody else has its name.
            None => pod.key.namespace = self.text(&pod.key.namespace),
        }
        pod.labels = match before {
            Some(before) if before.labels == pod.labels => before.labels.clone(),
            _ => self.labels(&pod.labels),
        };
        pod.node = pod.node.map(|node| self.text(&node));
        let service_account = self.text(&pod.template.service_account);
        let ports = self.named_ports(&pod.template.ports);
        let template = PodTemplate { service_account, ports, visible: pod.template.visible.clone() };
        pod.template = self.templates.share(&Arc::new(template)).0;
        pod
    }
}

impl Seen {
    /// Counts a value, and says whether few objects have one value of this key in common: less than four, on average.
    fn count(&mut self, known: bool) -> bool {
        if self.objects == u32::MAX {
            *self = Self { objects: self.objects / 2, new: self.new / 2 };
        }
        self.objects += 1;
        self.new += u32::from(!known);
        self.objects >= ENOUGH && self.new > self.objects / 4
    }
}

/// Values seen lately, in a table that grows up to a limit and then forgets: of the values that could stand in the same
/// place, the one that fewest hold.
#[derive(Debug)]
struct Cache<T: ?Sized> {
    slots: Vec<Option<Arc<T>>>,
    used: usize,
    most: usize,
}

impl<T: ?Sized> Clone for Cache<T> {
    fn clone(&self) -> Self {
        Self { slots: self.slots.clone(), used: self.used, most: self.most }
    }
}

/// Places that a value may stand in.
const WAYS: usize = 4;

impl<T: ?Sized + Hash + Eq> Cache<T> {
    /// `most` is a power of two, and not less than [`WAYS`].
    const fn new(most: usize) -> Self {
        Self { slots: Vec::new(), used: 0, most }
    }

    /// The value as it is held already, and whether it was.
    fn share(&mut self, value: &Arc<T>) -> (Arc<T>, bool) {
        self.share_with(value, || Arc::clone(value))
    }

    /// The same of one that is made if it is not held.
    fn share_with(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> (Arc<T>, bool) {
        if self.used >= self.slots.len() / 4 * 3 && self.slots.len() < self.most {
            self.grow();
        }
        let mut least: Option<&mut Option<Arc<T>>> = None;
        let holders = |slot: &Option<Arc<T>>| slot.as_ref().map_or(0, Arc::strong_count);
        for slot in places(&mut self.slots, value) {
            match slot {
                Some(held) if **held == *value => return (Arc::clone(held), true),
                slot if least.as_ref().is_none_or(|least| holders(slot) < holders(least)) => least = Some(slot),
                _ => {}
            }
        }
        let made = make();
        if let Some(slot) = least {
            self.used += usize::from(slot.is_none());
            *slot = Some(Arc::clone(&made));
        }
        (made, false)
    }

    fn pack(&mut self) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|value| Arc::strong_count(value) == 1) {
                *slot = None;
                self.used -= 1;
            }
        }
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(16 * WAYS).min(self.most);
        let old = std::mem::replace(&mut self.slots, vec![None; size]);
        self.used = 0;
        // Those that nobody else holds stay behind.
        for value in old.into_iter().flatten().filter(|value| Arc::strong_count(value) > 1) {
            if let Some(slot) = places(&mut self.slots, &value).iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(value);
                self.used += 1;
            }
        }
    }
}

/// The places where a value may stand.
fn places<'s, T: ?Sized + Hash>(slots: &'s mut [Option<Arc<T>>], value: &T) -> &'s mut [Option<Arc<T>>] {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    let sets = slots.len() / WAYS;
    let first = usize::try_from(hasher.finish() & 0xffff_ffff).unwrap_or(0).checked_rem(sets).unwrap_or(0) * WAYS;
    slots.get_mut(first..first + WAYS).unwrap_or_default()
}
