//! A JSON value that is counted while it is read, from whatever format.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use super::{MAX_DEPTH, MAX_NODES, MAX_OBJECT_BYTES, MAX_TEXT_BYTES};

/// The text has more than [`MAX_NODES`].
pub(super) const TOO_MANY_NODES: &str = "there are more than 2000000 values";

/// There is more than [`MAX_DEPTH`].
pub(super) const TOO_DEEP: &str = "lists and objects are more than 64 levels deep";

/// Aliases make more than [`MAX_TEXT_BYTES`] of it.
pub(super) const TOO_MANY_BYTES: &str = "the values have more than 67108864 bytes";

/// There is more than [`MAX_OBJECT_BYTES`] of an object.
pub(super) const TOO_LARGE: &str = "an object has more than 3145728 bytes";

/// A number that JSON does not have.
pub(super) const NO_NUMBER: &str = "this number cannot be written in JSON";

/// What is said of a key that is there twice.
pub(super) fn twice(key: &str) -> String {
    let key: String = key.chars().take(80).collect();
    format!("the key {key:?} is there twice")
}

/// What to do about a fault.
pub(super) fn hint(fault: &str) -> &'static str {
    match fault {
        TOO_MANY_NODES | TOO_MANY_BYTES => "split the text into several files",
        TOO_LARGE => "split it: the API server takes no object of this size",
        TOO_DEEP => "no object of Kubernetes is that deep: look for brackets that are not closed",
        NO_NUMBER => "put it in quotes if it is text",
        fault if fault.ends_with("is there twice") => "keep one of them, or begin a new document with '---'",
        _ => "look at the indentation, quotes and brackets there and just before",
    }
}

/// A value, and how many nodes it has.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) value: Value,
    pub(super) nodes: usize,
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counter = Counter::default();
        let value = Seed { counter: &mut counter, depth: 0, place: Place::Document }.deserialize(deserializer)?;
        Ok(Self { value, nodes: counter.nodes })
    }
}

#[derive(Debug, Default)]
struct Counter {
    nodes: usize,
    bytes: usize,
    /// Of the field of the document, or the element of a list of objects, that is being read: about as [`bytes`] counts them.
    object: usize,
}

impl Counter {
    fn text<E: Error>(&mut self, text: &str) -> Result<(), E> {
        self.bytes = self.bytes.saturating_add(text.len());
        if self.bytes > MAX_TEXT_BYTES { Err(E::custom(TOO_MANY_BYTES)) } else { self.object(text.len()) }
    }

    /// What is too large is not read to its end.
    fn object<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        self.object = self.object.saturating_add(bytes);
        if self.object > MAX_OBJECT_BYTES { Err(E::custom(TOO_LARGE)) } else { Ok(()) }
    }
}

/// Where a value stands in its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is the document.
    Document,
    /// It is `items` of the document, which may be a list of objects.
    Items,
    /// Elsewhere.
    Within,
}

struct Seed<'c> {
    counter: &'c mut Counter,
    depth: usize,
    place: Place,
}

impl Seed<'_> {
    fn deeper<E: Error>(&self) -> Result<usize, E> {
        if self.depth >= MAX_DEPTH { Err(E::custom(TOO_DEEP)) } else { Ok(self.depth + 1) }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.counter.nodes += 1;
        if self.counter.nodes > MAX_NODES {
            return Err(D::Error::custom(TOO_MANY_NODES));
        }
        self.counter.object(2)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Value, E> {
        Err(E::custom(NO_NUMBER))
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Value, E> {
        Err(E::custom(NO_NUMBER))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom(NO_NUMBER))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.counter.text(value)?;
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.counter.text(&value)?;
        Ok(Value::String(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut list = Vec::new();
        let place = Place::Within;
        while let Some(value) = access.next_element_seed(Seed { counter: &mut *self.counter, depth, place })? {
            list.push(value);
            if self.place == Place::Items {
                self.counter.object = 0;
            }
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.counter.text(&key)?;
            let mut place = Place::Within;
            if self.place == Place::Document {
                self.counter.object = 0;
                if key == "items" {
                    place = Place::Items;
                }
            }
            match map.entry(key) {
                Entry::Occupied(entry) => return Err(A::Error::custom(twice(entry.key()))),
                Entry::Vacant(entry) => {
                    entry.insert(access.next_value_seed(Seed { counter: &mut *self.counter, depth, place })?);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// The size of a value, about as compact JSON.
pub(super) fn bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 5,
        Value::String(text) => text.len() + 3,
        Value::Array(list) => 2 + list.iter().map(bytes).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + bytes(value)).sum::<usize>(),
    }
}
