//! A place in a JSON document that knows its path, so that every fault names where it is.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

use super::{Issue, Severity};
use crate::l7::http::Budget;
use crate::model::{Text, Unusable, Usable};

/// Faults of one object that are told; those after are only counted.
pub const MAX_ISSUES: usize = 64;

/// How much of a value a message shows.
const SHOWN: usize = 80;

/// Collects the faults of one object.
#[derive(Debug, Default)]
pub struct Report {
    issues: Vec<Issue>,
    more: usize,
    /// What the object's regular expressions may still take.
    pub(super) expressions: Budget,
}

impl Report {
    /// Notes a fault, and returns it as the reason why the part that has it cannot be used.
    pub fn fault(&mut self, severity: Severity, path: &str, message: impl Into<String>) -> Unusable {
        let message = message.into();
        if !self.is_full() {
            self.issues.push(Issue { severity, path: path.to_owned(), message: message.clone() });
        } else {
            self.more += 1;
        }
        Unusable { path: path.to_owned(), reason: message }
    }

    /// Notes what the API server refuses.
    pub fn refused(&mut self, path: &str, message: impl Into<String>) -> Unusable {
        self.fault(Severity::Refused, path, message)
    }

    /// Notes what the API takes and we cannot use.
    pub fn unusable(&mut self, path: &str, message: impl Into<String>) -> Unusable {
        self.fault(Severity::Unusable, path, message)
    }

    /// Notes what is worth knowing.
    pub fn warn(&mut self, path: &str, message: impl Into<String>) {
        self.fault(Severity::Warning, path, message);
    }

    /// Whether further faults are only counted.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.issues.len() >= MAX_ISSUES
    }

    /// All faults, in the order in which they were found.
    #[must_use]
    pub fn into_issues(mut self) -> Vec<Issue> {
        if self.more > 0 {
            let message = format!("{} more faults are not shown", self.more);
            self.issues.push(Issue { severity: Severity::Warning, path: String::new(), message });
        }
        self.issues
    }
}

/// Puts something together from parts of which some cannot be used: all faults are told, and the first is the reason why
/// the whole cannot be used.
#[derive(Debug, Default)]
pub struct Faults(Option<Unusable>);

impl Faults {
    /// The part, if it can be used.
    pub fn keep<T>(&mut self, part: Usable<T>) -> Option<T> {
        part.map_err(|fault| self.0.get_or_insert(fault)).ok()
    }

    /// The first fault, if there is one.
    #[must_use]
    pub const fn first(&self) -> Option<&Unusable> {
        self.0.as_ref()
    }

    /// The whole.
    ///
    /// # Errors
    /// One of its parts cannot be used.
    pub fn or<T>(self, whole: T) -> Usable<T> {
        self.0.map_or(Ok(whole), Err)
    }
}

/// A value and its path.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    /// The value.
    pub value: &'a Value,
    /// Its path, e.g. `spec.ingress[0]`; empty for the document.
    pub path: String,
}

impl<'a> Cursor<'a> {
    /// The document itself.
    #[must_use]
    pub const fn document(value: &'a Value) -> Self {
        Self { value, path: String::new() }
    }

    /// The value as a message shows it: JSON, cut.
    #[must_use]
    pub fn shown(&self) -> String {
        shown(self.value)
    }

    fn mismatch<T>(&self, report: &mut Report, expected: &str) -> Usable<T> {
        Err(report.refused(&self.path, format!("{} is not {expected}", self.shown())))
    }

    /// The fields of an object.
    ///
    /// # Errors
    /// It is none.
    pub fn fields(&self, report: &mut Report) -> Usable<Fields<'a>> {
        match self.value {
            Value::Object(map) => Ok(Fields { map, path: self.path.clone(), taken: Vec::new() }),
            _ => self.mismatch(report, "an object"),
        }
    }

    /// The elements of a list, each with its path.
    ///
    /// # Errors
    /// It is no list.
    pub fn elements(&self, report: &mut Report) -> Usable<Vec<Self>> {
        match self.value {
            Value::Array(list) => Ok(list
                .iter()
                .enumerate()
                .map(|(index, value)| Cursor { value, path: format!("{}[{index}]", self.path) })
                .collect()),
            _ => self.mismatch(report, "a list"),
        }
    }

    /// The elements of a list that must not have fewer than `least` or more than `most` ([`usize::MAX`]: any number).
    ///
    /// # Errors
    /// It is no list, or has another length.
    pub fn elements_between(&self, report: &mut Report, least: usize, most: usize) -> Usable<Vec<Self>> {
        match self.value {
            Value::Array(list) if !(least..=most).contains(&list.len()) => {
                let possible = match most {
                    usize::MAX => format!("at least {least} is needed"),
                    _ => format!("{least} to {most} are possible"),
                };
                let message = format!("has {} elements; {possible}", list.len());
                Err(report.refused(&self.path, message))
            }
            _ => self.elements(report),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// It is none.
    pub fn text(&self, report: &mut Report) -> Usable<&'a str> {
        match self.value {
            Value::String(text) => Ok(text),
            _ => self.mismatch(report, "a string"),
        }
    }

    /// A string that is kept.
    ///
    /// # Errors
    /// It is none.
    pub fn owned(&self, report: &mut Report) -> Usable<Text> {
        self.text(report).map(Into::into)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// It is neither.
    pub fn boolean(&self, report: &mut Report) -> Usable<bool> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => self.mismatch(report, "true or false"),
        }
    }

    /// A whole number in a range, both ends included.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, report: &mut Report, least: i64, most: i64) -> Usable<i64> {
        match self.value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Ok(number),
            _ => self.mismatch(report, &format!("a whole number from {least} to {most}")),
        }
    }
}

/// A value as a message shows it: JSON, cut. A large value is not written out to be cut.
#[must_use]
pub fn shown(value: &Value) -> String {
    let mut text = Cut::default();
    match write!(text, "{value}") {
        Ok(()) => text.text,
        Err(fmt::Error) => text.text + "...",
    }
}

/// Text as a message shows it: quoted, cut.
#[must_use]
pub fn quoted(text: &str) -> String {
    shown(&Value::String(cut(text)))
}

/// The beginning of a text, not much longer than what a message shows.
fn cut(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Takes no more text than a message shows.
#[derive(Default)]
struct Cut {
    text: String,
    length: usize,
}

impl fmt::Write for Cut {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        for character in part.chars() {
            if self.length == SHOWN {
                return Err(fmt::Error);
            }
            self.text.push(character);
            self.length += 1;
        }
        Ok(())
    }
}

/// The fields of an object, which are taken one by one; what is left is not known.
#[derive(Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
    taken: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Path of the object.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Path of one of its fields.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Whether there are no fields at all (a field with the value `null` is one).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A field, if it is there and not `null`: the API does not tell the two apart, but a list that is there and empty is
    /// not a list that is missing.
    pub fn take(&mut self, name: &'static str) -> Option<Cursor<'a>> {
        self.taken.push(name);
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        Some(Cursor { value, path: self.path_of(name) })
    }

    /// A field that has to be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&mut self, report: &mut Report, name: &'static str) -> Usable<Cursor<'a>> {
        let path = self.path_of(name);
        self.take(name).ok_or_else(|| report.refused(&path, "is missing"))
    }

    /// Says which fields are not known.
    ///
    /// # Errors
    /// There is one: what it would have meant is not known, so the object cannot be used.
    pub fn finish(self, report: &mut Report) -> Usable<()> {
        let mut unknown = None;
        for (name, value) in self.map {
            // `null` is the same as missing, whatever the field would mean.
            if !value.is_null() && !self.taken.iter().any(|taken| taken == name) {
                let message = format!("this field is not known (value {})", shown(value));
                unknown = Some(report.unusable(&self.path_of(&cut(name)), message));
            }
        }
        unknown.map_or(Ok(()), Err)
    }
}
