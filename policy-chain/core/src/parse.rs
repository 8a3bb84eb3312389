//! From JSON or YAML to [`crate::model`] and [`crate::cluster`], with every fault named by path and value.

pub mod cursor;

use std::fmt;

use crate::cluster::Object;

/// How much a fault matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; everything is in force as written.
    Warning,
    /// A part cannot be used: an allow in it grants nothing, a deny or pass in it denies all of its direction.
    Unusable,
    /// The API server refuses such an object. If it is here nonetheless, what could be read of it counts, with the faulty
    /// parts unusable.
    Refused,
}

/// A fault in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// How much it matters.
    pub severity: Severity,
    /// Where, e.g. `spec.ingress[0].from[1].ipBlock.cidr`.
    pub path: String,
    /// What is wrong, with the value, and what is expected.
    pub message: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What could be read of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The object; none if its kind, name or subject cannot be told. Then the issues say why.
    pub object: Option<Object>,
    /// Its faults, in the order of the text.
    pub issues: Vec<Issue>,
}
