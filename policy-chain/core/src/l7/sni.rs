//! TLS server names, and the patterns that rules give for them.

use std::fmt;

use super::dns::{InvalidName, Name, NamePattern};

/// Reads a HostName of the `server_name` extension (RFC 6066, 3).
///
/// # Errors
/// It is no host name: not of letters, digits, `-` and `_` in labels of 1 to 63, with a dot at its end, or an IP address.
/// Such a ClientHello has more than one reading, and its connection is refused.
pub fn server_name(octets: &[u8]) -> Result<Name, InvalidName> {
    let wrong = |rule| InvalidName::new(&String::from_utf8_lossy(octets), rule);
    if !octets.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.')) {
        return Err(wrong("a TLS server name has letters, digits, \"-\", \"_\" and \".\" only"));
    }
    let name = Name::from_labels(octets.split(|octet| *octet == b'.')).map_err(wrong)?;
    if name.as_str().parse::<std::net::Ipv4Addr>().is_ok() {
        return Err(wrong("a TLS server name is not an IP address"));
    }
    Ok(name)
}

/// An element of `serverNames`, with the grammar and the meaning of [`NamePattern::cilium`]: `*` alone is every server
/// name, `**.` before a name everything below it, and other stars stay within their label.
///
/// A connection that names no server has no name that could match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerNamePattern(NamePattern);

impl ServerNamePattern {
    /// Reads it.
    ///
    /// # Errors
    /// As for [`NamePattern::cilium`].
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        NamePattern::cilium(text).map(Self)
    }

    /// Whether `name` is meant.
    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        self.0.matches(name)
    }
}

impl fmt::Display for ServerNamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
