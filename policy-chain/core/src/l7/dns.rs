//! Domain names, and the patterns that rules give for them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::model::Text;

/// Longest name, written without its final dot: 255 octets on the wire, less the first length octet and the root
/// (RFC 1035, 2.3.4 and 3.1).
const MAX_NAME: usize = 253;
/// Longest label (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;
/// Longest pattern, as it is written (`MaxLength` of Cilium's and ClusterNetworkPolicy's types).
const MAX_PATTERN: usize = 255;

/// A domain name in lower case, without the dot at its end. The root is `.`.
///
/// A label may hold every printable ASCII character but the dot and the backslash: resolvers carry more than host names,
/// and what is no host name must still be told apart to be refused.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Text);

/// Why something is no domain name, or no pattern of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not usable as a domain name: {rule}")]
pub struct InvalidName {
    /// What was given, cut.
    pub value: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl InvalidName {
    pub(super) fn new(value: &str, rule: &'static str) -> Self {
        Self { value: value.chars().take(80).collect(), rule }
    }
}

impl Name {
    /// Reads a name as people write it: with a final dot or without.
    ///
    /// # Errors
    /// A label is empty or longer than 63 characters, the name is longer than 253, or a character is not printable ASCII.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        if text == "." {
            return Ok(Self::root());
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        Self::from_labels(bare.split('.').map(str::as_bytes)).map_err(|rule| InvalidName::new(text, rule))
    }

    /// Puts a name together from its labels, as they stand in a DNS message (without the empty one of the root).
    ///
    /// # Errors
    /// The rule that is broken: a label that holds a dot would be read as two of them, and control characters, spaces,
    /// backslashes and what is not ASCII are refused as well.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, &'static str> {
        let mut text = String::with_capacity(64);
        for label in labels {
            if text.len() + label.len() + usize::from(!text.is_empty()) > MAX_NAME {
                return Err("a name has at most 255 octets");
            }
            if label.is_empty() {
                return Err("a label has at least one character");
            }
            if label.len() > MAX_LABEL {
                return Err("a label has at most 63 characters");
            }
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                if !byte.is_ascii_graphic() || matches!(byte, b'.' | b'\\') {
                    return Err("a label has printable ASCII characters only, no dot and no backslash");
                }
                text.push(char::from(byte.to_ascii_lowercase()));
            }
        }
        if text.is_empty() { Ok(Self::root()) } else { Ok(Self(text.into())) }
    }

    /// The root of all names.
    #[must_use]
    pub fn root() -> Self {
        Self(".".into())
    }

    /// Whether it has only characters for which a star may stand; the root has no character at all.
    fn is_plain(&self) -> bool {
        &*self.0 != "." && self.0.bytes().all(|byte| is_plain(byte) || byte == b'.')
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pattern of names.
///
/// Patterns are equal if they mean the same by their form, whichever dialect they come from; they are shown as their
/// author wrote them.
#[derive(Debug, Clone)]
pub struct NamePattern {
    written: Text,
    /// Lower case, no final dot, runs of stars made one star. `**` is every name; `**.` before the rest is one or more
    /// labels; every other star stands for characters of its label.
    normal: Text,
    /// Where what is after the last star begins.
    end: usize,
    shape: Shape,
}

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Every,
    Exact,
    Labels,
    Subdomains,
}

impl NamePattern {
    /// The form that equal patterns have in common. [`Self::cilium`] reads it as the same pattern.
    #[must_use]
    pub fn normal(&self) -> &str {
        &self.normal
    }

    /// `matchName` of Cilium: this name only.
    ///
    /// # Errors
    /// It is no host name: letters, digits, `-` and `_`, in labels of 1 to 63, and 253 in all.
    pub fn name(text: &str) -> Result<Self, InvalidName> {
        if text.contains('*') {
            return Err(InvalidName::new(text, "matchName is one name; use matchPattern for \"*\""));
        }
        Self::cilium(text)
    }

    /// `matchPattern` of Cilium (`pkg/fqdn/matchpattern`): two stars or more and a dot at the beginning are one or more
    /// labels; any other run of stars is any number of letters, digits, `-` and `_` within its label; nothing but stars is
    /// every name, the root too.
    ///
    /// # Errors
    /// It is longer than 255 characters, has one that is not a letter, a digit or one of `-_.*`, or has an empty label;
    /// or it is without `*` and no name.
    pub fn cilium(text: &str) -> Result<Self, InvalidName> {
        let bare = Self::checked(text)?;
        let rest = bare.trim_start_matches('*');
        if rest.is_empty() {
            return Ok(Self::build(text, "**".to_owned(), Shape::Every));
        }
        match rest.strip_prefix('.') {
            Some(rest) if bare.starts_with("**") => Ok(Self::with_stars(text, rest, Shape::Subdomains)),
            _ if bare.contains('*') => Ok(Self::with_stars(text, bare, Shape::Labels)),
            _ => Self::without_stars(text, bare),
        }
    }

    /// An element of `domainNames` of ClusterNetworkPolicy (`DomainName` of policy.networking.k8s.io/v1alpha2): a name of
    /// at least two labels, or `*.` and such a name, which means all names below it (one label more, or several), but not
    /// the name itself (NPEP-133).
    ///
    /// # Errors
    /// As for [`Self::cilium`]; there is a `*` elsewhere, there is only one label, or one begins or ends with `-` or `_`.
    pub fn domain(text: &str) -> Result<Self, InvalidName> {
        let bare = Self::checked(text)?;
        let below = bare.strip_prefix("*.");
        let name = below.unwrap_or(bare);
        if name.contains('*') {
            return Err(InvalidName::new(text, "\"*\" may only be the whole first label"));
        }
        if !name.contains('.') {
            return Err(InvalidName::new(text, "a domain name has at least two labels"));
        }
        if name.split('.').any(|label| label.starts_with(['-', '_']) || label.ends_with(['-', '_'])) {
            return Err(InvalidName::new(text, "a label begins and ends with a letter or digit"));
        }
        match below {
            Some(name) => Ok(Self::with_stars(text, name, Shape::Subdomains)),
            None => Self::without_stars(text, name),
        }
    }

    /// What all dialects ask for; gives the text without its final dot.
    fn checked(text: &str) -> Result<&str, InvalidName> {
        let wrong = |rule| Err(InvalidName::new(text, rule));
        if text.len() > MAX_PATTERN {
            return wrong("at most 255 characters");
        }
        if !text.bytes().all(|byte| is_plain(byte) || matches!(byte, b'.' | b'*')) {
            return wrong("only letters, digits, \"-\", \"_\", \".\" and \"*\"");
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.split('.').any(str::is_empty) {
            return wrong("a label has at least one character");
        }
        Ok(bare)
    }

    fn without_stars(text: &str, bare: &str) -> Result<Self, InvalidName> {
        let name = Name::new(bare)?;
        Ok(Self::build(text, name.as_str().to_owned(), Shape::Exact))
    }

    fn with_stars(text: &str, rest: &str, shape: Shape) -> Self {
        let mut normal = String::with_capacity(rest.len() + 3);
        if shape == Shape::Subdomains {
            normal.push_str("**.");
        }
        let mut star = false;
        for character in rest.chars() {
            if !(star && character == '*') {
                normal.push(character.to_ascii_lowercase());
            }
            star = character == '*';
        }
        Self::build(text, normal, shape)
    }

    fn build(written: &str, normal: String, shape: Shape) -> Self {
        let normal: Text = normal.into();
        let written = if written == &*normal { Text::clone(&normal) } else { written.into() };
        let end = normal.rfind('*').map_or(0, |star| star + 1);
        Self { written, normal, end, shape }
    }

    /// The name, if the pattern means only one.
    #[must_use]
    pub fn exact(&self) -> Option<Name> {
        (self.shape == Shape::Exact).then(|| Name(Text::clone(&self.normal)))
    }

    /// Whether `name` is meant. Takes time linear in the lengths of both.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        if matches!(self.shape, Shape::Labels | Shape::Subdomains) {
            // Most names end otherwise, which is quickly seen.
            if !name.0.ends_with(self.normal.get(self.end..).unwrap_or_default()) {
                return false;
            }
        }
        match self.shape {
            Shape::Every => true,
            Shape::Exact => self.normal == name.0,
            // A star stands for plain characters only, and so does the rest of a pattern.
            Shape::Labels => tail_matches(&self.normal, &name.0) == Some(false) && name.is_plain(),
            Shape::Subdomains => {
                let rest = self.normal.strip_prefix("**.").unwrap_or(&self.normal);
                tail_matches(rest, &name.0) == Some(true) && name.is_plain()
            }
        }
    }
}

/// Whether the last labels of `name` match those of `pattern`; if they do, whether `name` has more.
fn tail_matches(pattern: &str, name: &str) -> Option<bool> {
    let mut labels = name.rsplit('.');
    for part in pattern.rsplit('.') {
        if !label_matches(part, labels.next()?) {
            return None;
        }
    }
    Some(labels.next().is_some())
}

/// Whether a label matches a pattern in which `*` is any number of characters. The leftmost place of each part is as good
/// as any other, and `str::find` is linear.
fn label_matches(pattern: &str, label: &str) -> bool {
    let Some((head, pattern)) = pattern.split_once('*') else { return pattern == label };
    let Some(mut label) = label.strip_prefix(head) else { return false };
    let (middle, tail) = pattern.rsplit_once('*').unwrap_or(("", pattern));
    for part in middle.split('*') {
        let Some((_, after)) = label.split_once(part) else { return false };
        label = after;
    }
    label.ends_with(tail)
}

/// A character for which `*` may stand.
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

impl PartialEq for NamePattern {
    fn eq(&self, other: &Self) -> bool {
        self.normal == other.normal
    }
}

impl Eq for NamePattern {}

impl PartialOrd for NamePattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for NamePattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.normal.cmp(&other.normal)
    }
}

impl Hash for NamePattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.normal.hash(state);
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests;
