//! The lines of a watch.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::keep::Keep;

/// Bytes of a line: an object, and some more.
const MAX_LINE: usize = 4 * 1024 * 1024;

/// Cuts what arrives into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: Vec<u8>,
}

/// A line that is longer than any object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Lines {
    /// Takes in more, and gives out the lines that are complete; empty ones are left out.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) -> Result<(), TooLong> {
        let mut parts = bytes.split(|byte| *byte == b'\n');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            if self.held.is_empty() {
                if !part.trim_ascii().is_empty() {
                    line(part);
                }
            } else {
                self.hold(part)?;
                line(&self.held);
                self.held.clear();
            }
        }
        self.hold(last)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.held.len() + bytes.len() > MAX_LINE {
            return Err(TooLong);
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }
}

/// A line: what happened, and to what.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK`, `ERROR`.
    pub(crate) kind: String,
    pub(crate) object: Value,
}

/// Reads a line, and of its object what is to be kept; a bookmark and an error are kept whole.
///
/// # Errors
/// It is no JSON, or no event.
pub(crate) fn read(line: &[u8], keep: Keep) -> Result<Line, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(line);
    let found = Seed(keep).deserialize(&mut reader)?;
    reader.end()?;
    Ok(found)
}

struct Seed(Keep);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Line;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Line, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Line, A::Error> {
        let (mut kind, mut object, mut is_kept) = (None::<String>, None::<Value>, false);
        while let Some(name) = access.next_key::<String>()? {
            match name.as_str() {
                "type" => kind = Some(access.next_value()?),
                "object" => {
                    is_kept = kind.as_deref().is_some_and(is_object);
                    object = Some(access.next_value_seed(if is_kept { self.0 } else { Keep::All })?);
                }
                _ => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        let kind = kind.ok_or_else(|| A::Error::missing_field("type"))?;
        let mut object = object.ok_or_else(|| A::Error::missing_field("object"))?;
        if is_object(&kind) && !is_kept {
            // The API server writes the type first; somebody else need not.
            object = self.0.deserialize(object).map_err(A::Error::custom)?;
        }
        Ok(Line { kind, object })
    }
}

/// Whether events of this type are about an object.
fn is_object(kind: &str) -> bool {
    matches!(kind, "ADDED" | "MODIFIED" | "DELETED")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_cut_however_they_arrive() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"c\"";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for chunk in text.chunks(size) {
                lines.feed(chunk, |line| found.push(String::from_utf8(line.to_vec()).unwrap())).unwrap();
            }
            assert_eq!(found, ["{\"a\":1}", "{\"b\":2}"], "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_an_error() {
        let mut lines = Lines::default();
        let chunk = vec![b'x'; MAX_LINE / 2];
        assert_eq!(lines.feed(&chunk, |_| ()), Ok(()));
        assert_eq!(lines.feed(&chunk, |_| ()), Ok(()));
        assert_eq!(lines.feed(b"x", |_| ()), Err(TooLong));
    }

    #[test]
    fn of_an_object_only_what_is_kept_is_read_of_a_status_all() {
        const KEEP: Keep = Keep::Fields(&[("a", Keep::All)]);
        let read = |line: Value| read(line.to_string().as_bytes(), KEEP);
        for text in [r#"{"type":"ADDED","object":{"a":1,"b":2}}"#, r#"{"object":{"a":1,"b":2},"x":3,"type":"ADDED"}"#] {
            let line = super::read(text.as_bytes(), KEEP).unwrap();
            assert_eq!((line.kind.as_str(), line.object), ("ADDED", json!({"a": 1})));
        }
        let line = super::read(br#"{"type":"ERROR","object":{"code":410}}"#, KEEP).unwrap();
        assert_eq!(line.object["code"], 410);
        assert!(
            read(json!({"type": "ADDED"})).is_err() && read(json!([])).is_err() && read(json!({"object": 1})).is_err()
        );
    }
}
