//! The network configuration on standard input (CNI spec 1.1.0, section 2 "Execution protocol"), and the capability
//! arguments in it (<https://www.cni.dev/docs/conventions/>).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::GcAttachment;
use super::invocation::Verb;
use super::result::{AddResult, ResultError};
use super::version::{SpecVersion, UnknownVersion};
use crate::id::{InvalidId, NetworkName};
use crate::node::nic;

/// The longest configuration that is read, in bytes. All annotations of a pod have at most 256 KiB in Kubernetes; a
/// GC with the attachments of 1,000 pods has 120 KiB.
pub const STDIN_LIMIT: usize = 1 << 20;
/// The most attachments in a GC's list.
const ATTACHMENT_LIMIT: usize = 16_384;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// More than [`STDIN_LIMIT`].
    #[error("the configuration on standard input is longer than {STDIN_LIMIT} bytes")]
    TooLong,
    /// Not JSON, or not an object.
    #[error("the configuration on standard input is not a JSON object")]
    Json(#[source] serde_json::Error),
    /// A field has a value of another type than it must.
    #[error("field {field:?} of the configuration has a value of the wrong type")]
    Type {
        /// The field.
        field: &'static str,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// A field that the verb needs is missing.
    #[error("field {field:?} is missing in the configuration")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// `cniVersion` is missing (then it means 0.1.0) or one that this build does not speak.
    #[error("cniVersion cannot be used")]
    Version(#[source] UnknownVersion),
    /// The version lacks the verb.
    #[error("{verb} exists since CNI {since}; the configuration says {version}")]
    VerbTooNew {
        /// The verb.
        verb: &'static str,
        /// Its first version.
        since: SpecVersion,
        /// The configuration's.
        version: SpecVersion,
    },
    /// `name` is not a network name.
    #[error("field \"name\" of the configuration is not valid")]
    Name(#[source] InvalidId),
    /// A field has a value that its rule forbids.
    #[error("field {field:?} of the configuration: {rule}")]
    Rule {
        /// The field.
        field: &'static str,
        /// The rule that it breaks.
        rule: String,
    },
    /// `prevResult` is not a result of the configuration's version.
    #[error("field \"prevResult\" of the configuration cannot be used")]
    PrevResult(#[source] ResultError),
}

impl ConfError {
    /// The code of CNI spec 1.1.0, section 5.
    #[must_use]
    pub const fn code(&self) -> super::ErrorCode {
        match self {
            Self::TooLong | Self::Json(_) | Self::Type { .. } => super::ErrorCode::Decode,
            Self::Version(_) | Self::VerbTooNew { .. } => super::ErrorCode::IncompatibleVersion,
            Self::Missing { .. } | Self::Name(_) | Self::Rule { .. } | Self::PrevResult(_) => {
                super::ErrorCode::InvalidConfig
            }
        }
    }
}

/// A plugin's configuration. Fields that are not of the specification stay in [`Self::plugin`], so that each plugin
/// reads its own; unknown ones do no harm.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`: the network.
    pub name: NetworkName,
    /// `type`: the plugin's binary.
    pub kind: String,
    /// `prevResult` as it came; see [`Self::prev_result`].
    pub raw_prev_result: Option<Value>,
    /// `runtimeConfig` as it came; see [`Self::runtime_config`].
    pub raw_runtime_config: Option<Value>,
    /// `cni.dev/valid-attachments`, or `cni.dev/attachments` as libcni also calls it
    /// (<https://github.com/containernetworking/cni/issues/1101>). No list and an empty list are not the same.
    pub valid_attachments: Option<Vec<GcAttachment>>,
    /// All other fields.
    pub plugin: Map<String, Value>,
}

impl NetConf {
    /// Reads the configuration that came with `verb`. `prevResult` and `runtimeConfig` are checked only when asked
    /// for, because DEL must converge without them.
    ///
    /// # Errors
    /// Any [`ConfError`]. GC without a list of attachments, and CHECK without `prevResult`, are among them.
    pub fn parse(verb: Verb, stdin: &[u8]) -> Result<Self, ConfError> {
        if stdin.len() > STDIN_LIMIT {
            return Err(ConfError::TooLong);
        }
        let mut plugin: Map<String, Value> = serde_json::from_slice(stdin).map_err(ConfError::Json)?;
        let version = version_in(&plugin)?;
        if version < verb.since() {
            return Err(ConfError::VerbTooNew { verb: verb.as_str(), since: verb.since(), version });
        }
        let name = string(&mut plugin, "name")?;
        let name = NetworkName::new(name).map_err(ConfError::Name)?;
        let kind = string(&mut plugin, "type")?;
        plugin.remove("cniVersion");
        let mut take = |field| plugin.remove(field).filter(|value| !value.is_null());
        let raw_prev_result = take("prevResult");
        let raw_runtime_config = take("runtimeConfig");
        let spelt = take("cni.dev/valid-attachments");
        let misspelt = take("cni.dev/attachments");
        let valid_attachments = spelt.or(misspelt).map(attachments).transpose()?;
        match verb {
            Verb::Gc if valid_attachments.is_none() => Err(ConfError::Missing { field: "cni.dev/valid-attachments" }),
            Verb::Check if raw_prev_result.is_none() => Err(ConfError::Missing { field: "prevResult" }),
            _ => Ok(Self { version, name, kind, raw_prev_result, raw_runtime_config, valid_attachments, plugin }),
        }
    }

    /// The version that `stdin` names, for the answer to a configuration that cannot be used otherwise.
    #[must_use]
    pub fn version_of(stdin: &[u8]) -> Option<SpecVersion> {
        if stdin.len() > STDIN_LIMIT {
            return None;
        }
        version_in(&serde_json::from_slice(stdin).ok()?).ok()
    }

    /// `prevResult`: what the plugins before this one, or the ADD before this verb, have made.
    ///
    /// # Errors
    /// [`ConfError::PrevResult`].
    pub fn prev_result(&self) -> Result<Option<AddResult>, ConfError> {
        let result = self.raw_prev_result.as_ref().map(|raw| AddResult::from_value(self.version, raw));
        result.transpose().map_err(ConfError::PrevResult)
    }

    /// `runtimeConfig`: the capability arguments.
    ///
    /// # Errors
    /// [`ConfError::Type`].
    pub fn runtime_config(&self) -> Result<RuntimeConfig, ConfError> {
        let Some(raw) = &self.raw_runtime_config else { return Ok(RuntimeConfig::default()) };
        RuntimeConfig::deserialize(raw).map_err(|source| ConfError::Type { field: "runtimeConfig", source })
    }
}

fn version_in(conf: &Map<String, Value>) -> Result<SpecVersion, ConfError> {
    let given = match conf.get("cniVersion") {
        // CNI spec 0.2.0: a configuration without version is one of 0.1.0.
        None | Some(Value::Null) => "0.1.0",
        Some(Value::String(version)) => version,
        Some(other) => return Err(wrong_type::<String>("cniVersion", other)),
    };
    given.parse().map_err(ConfError::Version)
}

fn string(conf: &mut Map<String, Value>, field: &'static str) -> Result<String, ConfError> {
    match conf.remove(field) {
        None | Some(Value::Null) => Err(ConfError::Missing { field }),
        Some(Value::String(value)) if value.is_empty() => Err(ConfError::Missing { field }),
        Some(Value::String(value)) => Ok(value),
        Some(other) => Err(wrong_type::<String>(field, &other)),
    }
}

/// The error of reading `value` as a `T`, which it is not.
fn wrong_type<T: serde::de::DeserializeOwned>(field: &'static str, value: &Value) -> ConfError {
    match T::deserialize(value) {
        Err(source) => ConfError::Type { field, source },
        Ok(_) => ConfError::Rule { field, rule: "its value cannot be used".to_owned() },
    }
}

/// The error of a value that breaks its field's rule.
pub(super) fn rule(field: &'static str, rule: impl Into<String>) -> ConfError {
    ConfError::Rule { field, rule: rule.into() }
}

/// An option that is a path.
pub(super) fn absolute(field: &'static str, value: &Value) -> Result<PathBuf, ConfError> {
    let path = value.as_str().filter(|path| path.starts_with('/') && path.len() <= 4095);
    path.map(PathBuf::from).ok_or_else(|| rule(field, "it must be an absolute path"))
}

/// One bad entry fails the whole list: an attachment that is passed over here would be taken away.
fn attachments(list: Value) -> Result<Vec<GcAttachment>, ConfError> {
    let field = "cni.dev/valid-attachments";
    let list: Vec<GcAttachment> = serde_json::from_value(list).map_err(|source| ConfError::Type { field, source })?;
    if list.len() > ATTACHMENT_LIMIT {
        return Err(ConfError::Rule { field, rule: format!("more than {ATTACHMENT_LIMIT} entries") });
    }
    Ok(list)
}

/// `runtimeConfig`: the arguments of the capabilities that the conflist asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// `portMappings`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// `dns`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
    /// `io.kubernetes.cri.pod-annotations`: all annotations of the pod.
    #[serde(
        rename = "io.kubernetes.cri.pod-annotations",
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_is_default"
    )]
    pub pod_annotations: BTreeMap<String, String>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl RuntimeConfig {
    /// Whether the pod asks for an interface on each network card.
    #[must_use]
    pub fn wants_every_card(&self) -> bool {
        self.pod_annotations.get(nic::ANNOTATION).is_some_and(|value| value == nic::EVERY_CARD)
    }
}

/// One port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port of the node; 0 in CRI for a port that is only declared.
    #[serde(default)]
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`; empty means `tcp`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Address of the node; `None` for all of them.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none", deserialize_with = "empty_is_none")]
    pub host_ip: Option<IpAddr>,
}

fn empty_is_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if !text.is_empty() => text.parse().map(Some).map_err(serde::de::Error::custom),
        _ => Ok(None),
    }
}

/// Limits of a pod's traffic, seen from the pod. 0 means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Bits per second into the pod.
    pub ingress_rate: u64,
    /// Bits that may come at once.
    pub ingress_burst: u64,
    /// Bits per second out of the pod.
    pub egress_rate: u64,
    /// Bits that may leave at once.
    pub egress_burst: u64,
}

/// What the pod's `resolv.conf` will say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct RuntimeDns {
    /// Name servers.
    #[serde(deserialize_with = "null_is_default")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(deserialize_with = "null_is_default")]
    pub searches: Vec<String>,
    /// Options.
    #[serde(deserialize_with = "null_is_default")]
    pub options: Vec<String>,
}
