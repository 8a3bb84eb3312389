//! Domain names, and the patterns that rules give for them.

use std::fmt;

use crate::model::Text;

/// A domain name in lower case, without the dot at its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Text);

/// Why something is no domain name, or no pattern of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a domain name: {rule}")]
pub struct InvalidName {
    /// What was given, cut.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl Name {
    /// Reads a name.
    ///
    /// # Errors
    /// It is longer than 255 characters.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        if text.len() > 255 {
            return Err(InvalidName { value: text.chars().take(80).collect(), rule: "at most 255 characters" });
        }
        Ok(Self(text.trim_end_matches('.').to_ascii_lowercase().into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A pattern of names, as its author wrote it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamePattern(Text);

impl NamePattern {
    /// `matchName` of Cilium: this name only.
    ///
    /// # Errors
    /// The API refuses it.
    pub fn name(text: &str) -> Result<Self, InvalidName> {
        Name::new(text).map(|name| Self(name.0))
    }

    /// `matchPattern` of Cilium.
    ///
    /// # Errors
    /// The API refuses it.
    pub fn cilium(text: &str) -> Result<Self, InvalidName> {
        Self::name(text)
    }

    /// An element of `domainNames` of ClusterNetworkPolicy.
    ///
    /// # Errors
    /// The API refuses it.
    pub fn domain(text: &str) -> Result<Self, InvalidName> {
        Self::name(text)
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        self.0 == name.0
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
