//! Versions of the CNI specification, and which verbs and fields each of them has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A version of the CNI specification that this build speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SpecVersion {
    /// 0.3.0: results with interfaces, chains of plugins.
    V0_3_0,
    /// 0.3.1: 0.3.0 with a corrected text.
    V0_3_1,
    /// 0.4.0: CHECK, and `prevResult` on DEL.
    V0_4_0,
    /// 1.0.0: lists only; `ips` without `version`.
    V1_0_0,
    /// 1.1.0: GC and STATUS; more fields of interfaces and routes.
    V1_1_0,
}

/// A version that is not one of [`SpecVersion::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("CNI version {given:?} is not supported; this plugin speaks {}", SpecVersion::list())]
pub struct UnknownVersion {
    /// What was given, cut to 40 characters.
    pub given: String,
}

impl SpecVersion {
    /// All versions that this build speaks, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest of them.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as it is written in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The newest of `offered` that this build speaks: what a runtime picks from `cniVersions` (CNI spec 1.1.0,
    /// section 1). Versions that are not known are passed over.
    #[must_use]
    pub fn negotiate<S: AsRef<str>>(offered: &[S]) -> Option<Self> {
        offered.iter().filter_map(|version| version.as_ref().parse().ok()).max()
    }

    /// Whether `ips` carry their family in `version`: until 0.4.0.
    #[must_use]
    pub fn has_ip_family(self) -> bool {
        self <= Self::V0_4_0
    }

    /// Whether interfaces have `mtu`, `socketPath` and `pciID`, and routes `mtu`, `advmss`, `priority`, `table` and
    /// `scope`: from 1.1.0.
    #[must_use]
    pub fn has_link_details(self) -> bool {
        self >= Self::V1_1_0
    }

    fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SpecVersion {
    type Err = UnknownVersion;

    fn from_str(value: &str) -> Result<Self, UnknownVersion> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == value)
            .ok_or_else(|| UnknownVersion { given: value.chars().take(40).collect() })
    }
}

impl TryFrom<String> for SpecVersion {
    type Error = UnknownVersion;
    fn try_from(value: String) -> Result<Self, UnknownVersion> {
        value.parse()
    }
}

impl From<SpecVersion> for String {
    fn from(version: SpecVersion) -> Self {
        version.as_str().to_owned()
    }
}

/// The answer to VERSION.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionReply {
    /// The version that the runtime asked in, where this build speaks it; else the newest that it does.
    pub cni_version: SpecVersion,
    /// All that this build speaks, oldest first.
    pub supported_versions: Vec<SpecVersion>,
}

impl VersionReply {
    /// The answer to a runtime that asked with `stdin`, which may be empty or anything else: the verb is how a runtime
    /// finds out what it may send.
    #[must_use]
    pub fn to(stdin: &[u8]) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Asked {
            cni_version: SpecVersion,
        }
        let asked = serde_json::from_slice::<Asked>(stdin).map(|asked| asked.cni_version);
        Self { cni_version: asked.unwrap_or(SpecVersion::NEWEST), supported_versions: SpecVersion::ALL.to_vec() }
    }
}
