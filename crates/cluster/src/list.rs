//! Takes a list of the API apart while it arrives: one object after the other, so that never more than one of them is held,
//! and one that cannot be read does not hide the others.

/// Bytes of an object that are held; etcd takes no larger ones than half of it.
const MAX_ITEM: usize = 3 * 1024 * 1024;

/// Bytes of the list's own metadata.
const MAX_METADATA: usize = 64 * 1024;

/// What a list holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The JSON of one element of `items`.
    Item(Vec<u8>),
    /// The JSON of `metadata`.
    Metadata(Vec<u8>),
    /// An element that is too large to be held.
    TooLarge,
}

/// A text that is no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// What came is no JSON object with a list, from this byte on.
    #[error("the list is no JSON object (byte {0})")]
    Garbled(u64),
    /// It ended before its end, after so many bytes.
    #[error("the list breaks off after {0} bytes")]
    Broken(u64),
}

/// Where in the list the reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// Before a key of the list itself, or its end.
    Key,
    InKey,
    Colon,
    /// In the value of a key.
    Value,
    /// After `items:`.
    Items,
    /// Before an element.
    Element,
    InElement,
    /// After an element or a value.
    AfterElement,
    AfterValue,
    End,
}

/// The reader.
#[derive(Debug)]
pub(crate) struct ListReader {
    at: At,
    key: Vec<u8>,
    value: ValueEnd,
    held: Vec<u8>,
    too_large: bool,
    read: u64,
}

impl Default for ListReader {
    fn default() -> Self {
        Self { at: At::Start, key: Vec::new(), value: ValueEnd::default(), held: Vec::new(), too_large: false, read: 0 }
    }
}

/// Finds where a JSON value ends, without reading it.
#[derive(Debug, Default)]
struct ValueEnd {
    depth: u32,
    text: bool,
    escaped: bool,
    begun: bool,
}

impl ValueEnd {
    /// How many of these bytes belong to the value, and whether it ends with them.
    fn scan(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if self.text {
                // Most of an object is text: it is passed over in one go.
                let Some(found) = self.end_of_text(rest) else { break };
                at += found;
                if self.depth == 0 {
                    return (at, true);
                }
                continue;
            }
            let Some(found) = rest.iter().position(|byte| self.matters(*byte)) else { break };
            let byte = rest.get(found).copied().unwrap_or_default();
            at += found;
            match byte {
                b'"' => self.text = true,
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                // Of what surrounds the value: it ended before this byte.
                _ => return (at, true),
            }
            self.begun = true;
            at += 1;
        }
        (bytes.len(), false)
    }

    fn matters(&mut self, byte: u8) -> bool {
        let top = self.depth == 0;
        let ends = top && (byte == b',' || (byte.is_ascii_whitespace() && self.begun));
        self.begun |= top && !byte.is_ascii_whitespace();
        ends || matches!(byte, b'"' | b'{' | b'[' | b'}' | b']')
    }

    /// The number of bytes up to the quote that ends a text, with it. None: it goes on.
    fn end_of_text(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.escaped {
                self.escaped = false;
            } else if *byte == b'\\' {
                self.escaped = true;
            } else if *byte == b'"' {
                self.text = false;
                return Some(at + 1);
            }
        }
        None
    }
}

impl ListReader {
    /// Takes in more of the text, and gives out what is complete.
    ///
    /// # Errors
    /// The text is no list.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(Part)) -> Result<(), ListError> {
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            let length = if matches!(self.at, At::Value | At::InElement) {
                self.value(rest, &mut out)
            } else {
                // A byte that begins a value is looked at a second time, as part of it.
                let length = usize::from(self.byte(*byte)?);
                debug_assert!(length == 1 || matches!(self.at, At::Value | At::InElement));
                length
            };
            self.read += length as u64;
            rest = if length == 1 { after } else { rest.get(length..).unwrap_or_default() };
        }
        Ok(())
    }

    /// The text is over.
    ///
    /// # Errors
    /// The list is not.
    pub(crate) const fn finish(&self) -> Result<(), ListError> {
        match self.at {
            At::End => Ok(()),
            _ => Err(ListError::Broken(self.read)),
        }
    }

    /// Whether the byte was consumed.
    fn byte(&mut self, byte: u8) -> Result<bool, ListError> {
        let space = byte.is_ascii_whitespace();
        self.at = match (self.at, byte) {
            (At::InKey, b'"') => At::Colon,
            (At::InKey, _) => {
                // No key of a list has an escape; what is long is not one of those that are looked for.
                if self.key.len() < 16 {
                    self.key.push(byte);
                }
                At::InKey
            }
            (At::Element, b']') => At::AfterValue,
            (at, _) if space => at,
            (At::Start, b'{') | (At::AfterValue, b',') => At::Key,
            (At::Key, b'"') => {
                self.key.clear();
                At::InKey
            }
            (At::Key | At::AfterValue, b'}') => At::End,
            (At::Colon, b':') if self.key == b"items" => At::Items,
            (At::Colon, b':') => self.begin(At::Value),
            (At::Items, b'[') | (At::AfterElement, b',') => At::Element,
            (At::AfterElement, b']') => At::AfterValue,
            // `items: null`: an empty list.
            (At::Items, _) => {
                self.begin(At::Value);
                self.at = At::Value;
                return Ok(false);
            }
            (At::Element, _) => {
                self.begin(At::InElement);
                self.at = At::InElement;
                return Ok(false);
            }
            _ => return Err(ListError::Garbled(self.read + 1)),
        };
        Ok(true)
    }

    fn begin(&mut self, at: At) -> At {
        self.value = ValueEnd::default();
        self.held.clear();
        self.too_large = false;
        at
    }

    /// Takes in what belongs to the value. How many bytes that are.
    fn value(&mut self, bytes: &[u8], out: &mut impl FnMut(Part)) -> usize {
        let (length, ended) = self.value.scan(bytes);
        let element = self.at == At::InElement;
        let metadata = !element && self.key == b"metadata";
        if element || metadata {
            let most = if element { MAX_ITEM } else { MAX_METADATA };
            self.too_large |= self.held.len() + length > most;
            if !self.too_large {
                self.held.extend_from_slice(bytes.get(..length).unwrap_or_default());
            }
        }
        if ended {
            match (element, self.too_large) {
                (true, true) => out(Part::TooLarge),
                (true, false) => out(Part::Item(std::mem::take(&mut self.held))),
                (false, false) if metadata => out(Part::Metadata(std::mem::take(&mut self.held))),
                (false, _) => {}
            }
            self.at = if element { At::AfterElement } else { At::AfterValue };
        }
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a text that arrives in chunks of `size` bytes.
    fn parts(text: &str, size: usize) -> Result<Vec<String>, ListError> {
        let mut reader = ListReader::default();
        let mut parts = Vec::new();
        for chunk in text.as_bytes().chunks(size) {
            reader.feed(chunk, |part| {
                parts.push(match part {
                    Part::Item(json) => String::from_utf8(json).unwrap(),
                    Part::Metadata(json) => format!("m{}", String::from_utf8(json).unwrap()),
                    Part::TooLarge => "too large".to_owned(),
                });
            })?;
        }
        reader.finish()?;
        Ok(parts)
    }

    #[test]
    fn a_list_is_taken_apart_however_it_arrives() {
        let text = r#" { "kind":"PodList", "metadata":{"resourceVersion":"7","continue":"}\"]"} ,"x":[1,{"items":[]}],
            "items":[ {"a":"]}\\\"{"} , 7,"s", null ,[[]] ] , "n":1.5 } "#;
        for size in [1, 2, 7, 1000] {
            assert_eq!(
                parts(text, size).unwrap(),
                [r#"m{"resourceVersion":"7","continue":"}\"]"}"#, r#"{"a":"]}\\\"{"}"#, "7", "\"s\"", "null", "[[]]"]
            );
        }
    }

    #[test]
    fn empty_lists_are_lists() {
        for text in [r"{}", r#"{"items":[]}"#, r#"{"items": [ ] ,"a":1}"#, r#"{"items":null,"b":{}}"#] {
            assert_eq!(parts(text, 3).unwrap(), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn an_element_that_is_no_json_does_not_hide_the_others() {
        assert_eq!(
            parts(r#"{"items":[{"a":1},{"b":},{"c":3}]}"#, 5).unwrap(),
            [r#"{"a":1}"#, r#"{"b":}"#, r#"{"c":3}"#]
        );
    }

    #[test]
    fn what_is_no_list_or_breaks_off_is_an_error() {
        assert_eq!(parts("[]", 1), Err(ListError::Garbled(1)));
        assert_eq!(parts("<html>", 10), Err(ListError::Garbled(1)));
        assert_eq!(parts(r#"{"items":[{"a":1}"#, 4), Err(ListError::Broken(17)));
        assert_eq!(parts("", 4), Err(ListError::Broken(0)));
        assert_eq!(parts("{} x", 4), Err(ListError::Garbled(4)));
    }

    #[test]
    fn what_is_too_large_is_not_held() {
        let text = format!(r#"{{"items":["{}",1]}}"#, "x".repeat(MAX_ITEM));
        assert_eq!(parts(&text, 4096).unwrap(), ["too large", "1"]);
    }
}
