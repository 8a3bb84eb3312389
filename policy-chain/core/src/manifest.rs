//! Text of users to documents: YAML with any number of documents, or JSON; lists are taken apart.
//!
//! The text is hostile until read: its size, depth, number of nodes and what aliases make of it are bounded, a key that is
//! there twice is refused, and every fault says where it is and what to do.

mod value;

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use serde_json::Value;

use self::value::Counted;

/// Bytes of a text.
pub const MAX_TEXT_BYTES: usize = 64 * 1024 * 1024;

/// Bytes of one object, as compact JSON and aliases put in. The API server takes no larger ones either (etcd: 1.5 MiB).
pub const MAX_OBJECT_BYTES: usize = 3 * 1024 * 1024;

/// Documents of a text, the elements of lists counted one by one.
pub const MAX_DOCUMENTS: usize = 200_000;

/// Nodes (values, keys not counted) of a text.
pub const MAX_NODES: usize = 2_000_000;

/// Lists and objects within each other. What Kubernetes has is a third as deep.
pub const MAX_DEPTH: usize = 64;

/// Faults that are told of a text; with the last of them, reading ends.
pub const MAX_ERRORS: usize = 100;

/// Aliases and merge keys of a text.
const MAX_ALIASES: usize = 1_000;

/// Merge keys between two lines `---`.
const MAX_MERGE_KEYS: usize = 1_000;

/// What aliases may add to what stands between two lines `---`, in nodes.
const MAX_REPLAYED: usize = 20_000;

/// How much of a message of a parser is shown.
const SHOWN: usize = 300;

/// Why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    /// The document, counted from 1.
    pub document: usize,
    /// The line in the text, counted from 1.
    pub line: usize,
    /// The column in the line, counted from 1; 0 where only the line is known.
    pub column: usize,
    /// What is wrong.
    pub fault: String,
    /// What to do.
    pub hint: &'static str,
}

impl fmt::Display for ManifestError {
    /// `document 2, line 14, column 3: the key "spec" is there twice; keep one of them`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}, line {}", self.document, self.line)?;
        if self.column > 0 {
            write!(f, ", column {}", self.column)?;
        }
        write!(f, ": {}; {}", self.fault, self.hint)
    }
}

impl std::error::Error for ManifestError {}

/// An object of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The object.
    pub value: Value,
    /// The line where its document begins, counted from 1. Elements of a list have the line of the list.
    pub line: usize,
}

/// What a text holds: the objects of the documents that could be read, and the faults of the others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// The objects, in the order of the text.
    pub documents: Vec<Document>,
    /// The faults, in the order of the text.
    pub errors: Vec<ManifestError>,
}

/// The objects of a text.
///
/// # Errors
/// A document cannot be read; the first fault.
pub fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    let manifest = read(text);
    match manifest.errors.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(manifest.documents.into_iter().map(|document| document.value).collect()),
    }
}

/// The text of a file.
///
/// # Errors
/// It is not UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str, ManifestError> {
    std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line = 1 + newlines(valid);
        let start = valid.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = 1 + String::from_utf8_lossy(valid.get(start..).unwrap_or_default()).chars().count();
        let wide = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
        let fault = if wide { "the text is UTF-16, not UTF-8" } else { "the text is not UTF-8" };
        ManifestError { document: 1, line, column, fault: fault.to_owned(), hint: "save the file as UTF-8" }
    })
}

/// Reads a text as far as it can be read: a document with a fault does not hide the others.
#[must_use]
pub fn read(text: &str) -> Manifest {
    let mut reader = Reader::default();
    if text.len() > MAX_TEXT_BYTES {
        reader.document = 1;
        reader.error(
            1,
            0,
            format!("the text has {} bytes; {MAX_TEXT_BYTES} is the most", text.len()),
            "split it into several files",
        );
        return reader.manifest;
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for chunk in (Chunks { text, line: 1 }) {
        if reader.full {
            break;
        }
        reader.chunk(&chunk);
    }
    reader.manifest
}

fn newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// A part of the text between two lines `---`, with the first of them.
#[derive(Debug)]
struct Chunk<'a> {
    text: &'a str,
    /// Its first line.
    line: usize,
}

/// The text, cut before every line that begins with `---`. Nothing else in YAML may begin a line so (YAML 1.2.2, 9.1.2).
#[derive(Debug)]
struct Chunks<'a> {
    text: &'a str,
    line: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Chunk<'a>> {
        if self.text.is_empty() {
            return None;
        }
        let (mut end, mut lines, mut directives_only) = (0, 0, true);
        let mut has_directive = false;
        for line in self.text.split_inclusive('\n') {
            let after_directives = has_directive && directives_only;
            if end > 0 && is_marker(line) && !after_directives {
                break;
            }
            has_directive |= line.starts_with('%');
            directives_only &= line.starts_with('%') || is_blank(line);
            end += line.len();
            lines += 1;
        }
        let (text, rest) = self.text.split_at_checked(end)?;
        let chunk = Chunk { text, line: self.line };
        self.text = rest;
        self.line += lines;
        Some(chunk)
    }
}

/// Whether a line ends a document and begins the next.
fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether there is nothing in a line but a comment.
fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

#[derive(Debug, Default)]
struct Reader {
    manifest: Manifest,
    /// The document that is being read, counted from 1.
    document: usize,
    nodes: usize,
    aliases: usize,
    /// A limit of the text is reached: nothing more is read.
    full: bool,
}

impl Reader {
    fn error(&mut self, line: usize, column: usize, fault: String, hint: &'static str) {
        self.manifest.errors.push(ManifestError { document: self.document, line, column, fault, hint });
        self.full |= self.manifest.errors.len() >= MAX_ERRORS;
    }

    fn chunk(&mut self, chunk: &Chunk<'_>) {
        if chunk.text.lines().all(is_blank) {
            return;
        }
        let body = match chunk.text.split_once('\n') {
            Some((first, rest)) if first.trim_end() == "---" => rest,
            _ => chunk.text,
        };
        let body_line = chunk.line + newlines(chunk.text.as_bytes()) - newlines(body.as_bytes());
        if body.trim_start().starts_with(['{', '[']) && self.json(body, body_line) {
            return;
        }
        self.document += 1;
        let aliases = Rc::new(Cell::new(0));
        let told = Rc::clone(&aliases);
        let options = yaml_options(MAX_ALIASES.saturating_sub(self.aliases));
        let options =
            options.with_budget_report(move |report| told.set(report.aliases.saturating_add(report.merge_keys)));
        let read = serde_saphyr::from_multiple_with_options::<Counted>(chunk.text, options);
        self.aliases = self.aliases.saturating_add(aliases.get());
        match read {
            Ok(values) => {
                for counted in values {
                    self.counted(counted, chunk.line);
                }
            }
            Err(error) => {
                let error = error.without_snippet();
                let place = error.location().filter(|location| location.line() > 0);
                let (line, column) = place.map_or((1, 0), |place| (place.line(), place.column()));
                let (fault, hint) = yaml_fault(error);
                let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
                self.error(chunk.line + number(line) - 1, number(column), fault, hint);
            }
        }
    }

    /// Reads a stream of JSON documents. False: this is none, and nothing was kept of it.
    fn json(&mut self, body: &str, first_line: usize) -> bool {
        let mut found = Vec::new();
        let mut stream = serde_json::Deserializer::from_str(body).into_iter::<Counted>();
        let (mut line, mut seen, mut nodes) = (first_line, 0, self.nodes);
        loop {
            let rest = body.get(stream.byte_offset()..).unwrap_or_default();
            let start = body.len() - rest.trim_start().len();
            line += newlines(body.as_bytes().get(seen..start).unwrap_or_default());
            seen = start;
            match stream.next() {
                None => break,
                Some(Ok(counted)) => {
                    nodes = nodes.saturating_add(counted.nodes);
                    found.push((counted, line));
                    if found.len() > MAX_DOCUMENTS || nodes > MAX_NODES {
                        break;
                    }
                }
                Some(Err(error)) if error.is_data() => {
                    let message = error.to_string();
                    let fault = message.split_once(" at line ").map_or(&*message, |(fault, _)| fault).to_owned();
                    self.take(found);
                    self.document += 1;
                    self.error(first_line + error.line().max(1) - 1, error.column(), cut(&fault), value::hint(&fault));
                    return true;
                }
                Some(Err(_)) => return false,
            }
        }
        self.take(found);
        true
    }

    fn take(&mut self, found: Vec<(Counted, usize)>) {
        for (counted, line) in found {
            self.document += 1;
            self.counted(counted, line);
        }
    }

    fn counted(&mut self, counted: Counted, line: usize) {
        if self.full {
            return;
        }
        self.nodes = self.nodes.saturating_add(counted.nodes);
        if self.nodes > MAX_NODES {
            self.full = true;
            self.error(line, 0, value::TOO_MANY_NODES.to_owned(), value::hint(value::TOO_MANY_NODES));
            return;
        }
        self.expand(counted.value, line, "");
    }

    /// Keeps an object, or the elements of a list.
    fn expand(&mut self, value: Value, line: usize, path: &str) {
        if self.full {
            return;
        }
        let mut map = match value {
            Value::Null if path.is_empty() => return,
            Value::Object(map) => map,
            other => {
                let what = if path.is_empty() { "the document" } else { path };
                let fault = format!("{what} is not an object but {}", crate::parse::cursor::shown(&other));
                self.error(line, 0, fault, "write one object with apiVersion and kind in each document");
                return;
            }
        };
        let kind =
            map.get("kind").and_then(Value::as_str).and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
        match (kind, map.remove("items")) {
            (Some(kind), Some(Value::Array(items))) => {
                let version = map.remove("apiVersion");
                for (index, mut item) in items.into_iter().enumerate() {
                    complete(&mut item, version.as_ref(), &kind);
                    self.expand(item, line, &format!("{path}items[{index}]."));
                }
            }
            (Some(_), None | Some(Value::Null)) => {}
            (Some(kind), Some(items)) => {
                let fault = format!("items of a {kind}List is not a list but {}", crate::parse::cursor::shown(&items));
                self.error(line, 0, fault, "put the objects of the list under items, each after a '-'");
            }
            (None, items) => {
                map.extend(items.map(|items| ("items".to_owned(), items)));
                self.keep(Value::Object(map), line);
            }
        }
    }

    fn keep(&mut self, value: Value, line: usize) {
        let bytes = value::bytes(&value);
        if bytes > MAX_OBJECT_BYTES {
            let fault = format!("an object has about {bytes} bytes; {MAX_OBJECT_BYTES} is the most");
            self.error(line, 0, fault, "split it: the API server takes no object of this size");
        } else if self.manifest.documents.len() >= MAX_DOCUMENTS {
            self.full = true;
            self.error(
                line,
                0,
                format!("there are more than {MAX_DOCUMENTS} objects"),
                "split the text into several files",
            );
        } else {
            self.manifest.documents.push(Document { value, line });
        }
    }
}

/// Gives an element of a typed list what the API server leaves out of it.
fn complete(item: &mut Value, version: Option<&Value>, kind: &str) {
    let Value::Object(map) = item else { return };
    if kind.is_empty() {
        return;
    }
    if let Some(version) = version {
        map.entry("apiVersion").or_insert_with(|| version.clone());
    }
    map.entry("kind").or_insert_with(|| kind.into());
}

fn yaml_options(max_aliases: usize) -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_documents: MAX_DOCUMENTS,
            max_aliases: max_aliases,
            max_merge_keys: max_aliases.min(MAX_MERGE_KEYS),
            max_anchors: MAX_ALIASES,
            max_recorded_anchor_events: 10 * MAX_REPLAYED,
            max_recorded_anchor_bytes: MAX_OBJECT_BYTES,
            max_total_scalar_bytes: MAX_TEXT_BYTES,
            // One anchor with many aliases is honest; what the aliases add is bounded below.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 16,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::Error,
        // As kubectl reads it: 010 is 8 (YAML 1.1).
        legacy_octal_numbers: true,
        // Not as kubectl: y, yes and on are text (YAML 1.2). Where a boolean is wanted, that is a fault that is told; where a
        // name or label is wanted, its author meant text.
        strict_booleans: true,
        emit_comments: false,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn yaml_fault(error: &serde_saphyr::Error) -> (String, &'static str) {
    use serde_saphyr::Error;
    use serde_saphyr::budget::BudgetBreach;

    match error {
        Error::AliasError { error, .. } => yaml_fault(error),
        Error::DuplicateMappingKey { key, .. } => {
            let fault = value::twice(key.as_deref().unwrap_or("?"));
            let hint = value::hint(&fault);
            (fault, hint)
        }
        Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            (value::TOO_DEEP.to_owned(), value::hint(value::TOO_DEEP))
        }
        Error::Budget { breach: BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. }, .. } => {
            (value::TOO_MANY_NODES.to_owned(), value::hint(value::TOO_MANY_NODES))
        }
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::Budget {
            breach:
                BudgetBreach::Aliases { .. }
                | BudgetBreach::Anchors { .. }
                | BudgetBreach::MergeKeys { .. }
                | BudgetBreach::RecordedAnchorBytes { .. }
                | BudgetBreach::RecordedAnchorEvents { .. },
            ..
        } => ("anchors and aliases make too much of this text".to_owned(), "write out what '*name' stands for"),
        Error::Budget { breach: BudgetBreach::ScalarBytes { .. }, .. } => {
            (value::TOO_MANY_BYTES.to_owned(), value::hint(value::TOO_MANY_BYTES))
        }
        Error::NonFiniteFloat { .. } => (value::NO_NUMBER.to_owned(), value::hint(value::NO_NUMBER)),
        Error::UnknownAnchor { .. } => (
            "an alias names an anchor that is not before it in its document".to_owned(),
            "write out what '*name' stands for",
        ),
        Error::RecursiveReferencesRequireWeakTypes { .. } => {
            ("an anchor holds an alias of itself".to_owned(), "write out what '*name' stands for")
        }
        Error::NullIntoString { .. } | Error::Unexpected { expected: "string scalar", .. } => {
            ("a key is not text".to_owned(), "put the key in quotes, and '{}' templates too")
        }
        Error::UnsupportedTag { tag, .. } => (format!("the tag {} is not known", cut(tag)), "leave it out"),
        other => {
            let message = other.to_string();
            let fault = cut(message.rsplit_once(" at line ").map_or(&*message, |(fault, _)| fault));
            let hint = value::hint(&fault);
            (fault, hint)
        }
    }
}

fn cut(message: &str) -> String {
    if message.chars().count() <= SHOWN {
        return message.to_owned();
    }
    message.chars().take(SHOWN).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests;
