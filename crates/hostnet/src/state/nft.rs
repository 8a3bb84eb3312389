//! nftables tables, compared by content.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The families of nftables that tables of ours are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NftFamily {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// A device's ingress and egress.
    Netdev,
}

impl NftFamily {
    /// The word that `nft` uses.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Netdev => "netdev",
        }
    }
}

/// Which table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NftTableId {
    /// Its family.
    pub family: NftFamily,
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
}

impl NftTableId {
    /// A table's id.
    #[must_use]
    pub fn new(family: NftFamily, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

impl fmt::Display for NftTableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family.as_str(), self.name)
    }
}

/// What a table holds, in the form in which `nft` lists it, less what changes by itself (handles, counters). Equal
/// contents do the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NftContent(pub String);

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NftTable {
    /// Which one.
    pub id: NftTableId,
    /// What it holds.
    pub content: NftContent,
}

/// A table as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NftRuleset {
    /// Which one.
    pub id: NftTableId,
    /// What stands between the braces of `table FAMILY NAME { ... }`, in nft's own language.
    pub body: String,
    /// What the body comes to once it is loaded. Only `nft` can tell; the executor's half of this package asks it.
    pub content: NftContent,
}
