//! Reading JSON without what nobody looks at: it is dropped while it is decoded, so that it takes no memory.
//!
//! Of a pod of 8 KB, mostly `managedFields`, volumes and container statuses, some 500 bytes are of interest.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What is kept of a value. A value of another shape than expected is kept whole, so that whoever reads it says what is
/// wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of it.
    All,
    /// Of an object, these fields.
    Fields(&'static [(&'static str, Self)]),
    /// Of an object, all fields, and of these only a part.
    But(&'static [(&'static str, Self)]),
    /// Of a list, this of each element.
    Each(&'static Self),
    /// Nothing.
    Nothing,
}

impl Keep {
    fn of(self, field: &str) -> Self {
        let find = |fields: &[(&str, Self)]| fields.iter().find(|(name, _)| *name == field).map(|(_, keep)| *keep);
        match self {
            Self::Fields(fields) => find(fields).unwrap_or(Self::Nothing),
            Self::But(fields) => find(fields).unwrap_or(Self::All),
            Self::All | Self::Each(_) => Self::All,
            Self::Nothing => Self::Nothing,
        }
    }

    /// Reads a value from JSON.
    ///
    /// # Errors
    /// It is no JSON, or it is nested too deeply.
    pub fn read(self, json: &[u8]) -> Result<Value, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let value = self.deserialize(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self == Self::Nothing {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|IgnoredAny| Value::Null);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
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

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let element = if let Self::Each(keep) = self { *keep } else { Self::All };
        let mut list = Vec::new();
        while let Some(value) = access.next_element_seed(element)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            match self.of(&name) {
                Self::Nothing => {
                    access.next_value::<IgnoredAny>()?;
                }
                keep => {
                    let value = access.next_value_seed(keep)?;
                    map.insert(name, value);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: Keep = Keep::Fields(&[
        ("metadata", Keep::But(&[("managedFields", Keep::Nothing)])),
        ("spec", Keep::Fields(&[("containers", Keep::Each(&Keep::Fields(&[("ports", Keep::All)])))])),
    ]);

    #[test]
    fn only_what_is_kept_is_there() {
        let json = json!({
            "metadata": {"name": "a", "managedFields": [{"x": 1}]},
            "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}]}], "volumes": []},
            "status": {},
        });
        let kept = POD.read(json.to_string().as_bytes()).unwrap();
        assert_eq!(
            kept,
            json!({"metadata": {"name": "a"}, "spec": {"containers": [{"ports": [{"containerPort": 80}]}]}})
        );
    }

    #[test]
    fn what_has_another_shape_is_kept_whole() {
        let kept = |json: Value| POD.read(json.to_string().as_bytes()).unwrap();
        let odd = json!({"metadata": ["x"], "spec": {"containers": "many"}});
        assert_eq!(kept(odd.clone()), odd);
        assert_eq!(kept(json!(7)), json!(7));
        assert_eq!(kept(json!({"spec": null})), json!({"spec": null}));
    }

    #[test]
    fn what_is_no_json_is_an_error() {
        assert!(POD.read(b"{\"metadata\": }").is_err());
        assert!(POD.read(b"{} {}").is_err());
        let deep = "[".repeat(100_000);
        assert!(Keep::All.read(deep.as_bytes()).is_err());
    }
}
