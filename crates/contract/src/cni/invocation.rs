//! The environment in which a runtime executes a plugin (CNI spec 1.1.0, section 2 "Parameters").

use std::path::PathBuf;

use super::version::SpecVersion;
use crate::id::{ContainerId, IfName, InvalidId, PodRef};

/// The longest value of a variable that is read, in bytes. Linux itself ends at 128 KiB.
const VALUE_LIMIT: usize = 64 * 1024;
/// The longest path of a namespace, in bytes: `PATH_MAX` less the final zero.
const PATH_LIMIT: usize = 4095;

/// What a runtime asks of a plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Attach the sandbox.
    Add,
    /// Detach it.
    Del,
    /// Is it still attached as ADD said?
    Check,
    /// May pods be started?
    Status,
    /// Take away what belongs to none of the listed attachments.
    Gc,
    /// Which versions does the plugin speak?
    Version,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// The verb as `CNI_COMMAND` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }

    /// The first version of the specification that has the verb.
    #[must_use]
    pub const fn since(self) -> SpecVersion {
        match self {
            Self::Add | Self::Del | Self::Version => SpecVersion::V0_3_0,
            Self::Check => SpecVersion::V0_4_0,
            Self::Status | Self::Gc => SpecVersion::V1_1_0,
        }
    }
}

/// The variables as the process got them; one that is empty counts as missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: Option<String>,
    /// `CNI_CONTAINERID`.
    pub container_id: Option<String>,
    /// `CNI_NETNS`.
    pub netns: Option<String>,
    /// `CNI_IFNAME`.
    pub ifname: Option<String>,
    /// `CNI_ARGS`.
    pub args: Option<String>,
    /// `CNI_PATH`; only plugins that delegate need it.
    pub path: Option<String>,
}

impl Environment {
    /// Reads the variables through `get`, e.g. `std::env::var_os` with lossy conversion.
    pub fn read(mut get: impl FnMut(&str) -> Option<String>) -> Self {
        let mut value = |name| get(name).filter(|value| !value.is_empty());
        Self {
            command: value("CNI_COMMAND"),
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: value("CNI_ARGS"),
            path: value("CNI_PATH"),
        }
    }
}

/// Why an environment is not an invocation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvocationError {
    /// Variables that the verb needs are missing or empty.
    #[error("{} missing in the environment{}", .variables.join(" and "), match .verb { Some(verb) => format!("; {verb} needs it"), None => String::new() })]
    Missing {
        /// Their names.
        variables: Vec<&'static str>,
        /// The verb that needs them, where it is known.
        verb: Option<&'static str>,
    },
    /// `CNI_COMMAND` is none of [`Verb::ALL`].
    #[error("CNI_COMMAND {given:?} is not a verb of CNI 0.3.0 to 1.1.0")]
    UnknownVerb {
        /// What was given, cut to 40 characters.
        given: String,
    },
    /// A variable holds what its grammar forbids.
    #[error("{variable} is not valid")]
    Invalid {
        /// The variable.
        variable: &'static str,
        /// The grammar and the value.
        #[source]
        source: InvalidId,
    },
    /// A variable is longer than anyone needs.
    #[error("{variable} has {length} bytes; at most {limit} are read")]
    TooLong {
        /// The variable.
        variable: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// `CNI_NETNS` is not an absolute path.
    #[error("CNI_NETNS {given:?} is not an absolute path")]
    Netns {
        /// What was given, cut to 80 characters.
        given: String,
    },
    /// A part of `CNI_ARGS` is not `KEY=VALUE`.
    #[error("CNI_ARGS: {part:?} is not KEY=VALUE")]
    Argument {
        /// The part, cut to 80 characters.
        part: String,
    },
    /// `CNI_ARGS` has a key that the plugin does not know, and no `IgnoreUnknown=1`.
    #[error("CNI_ARGS: unknown key {key:?}; with IgnoreUnknown=1 it is passed over")]
    UnknownArgument {
        /// The key, cut to 80 characters.
        key: String,
    },
    /// `CNI_ARGS` names the pod with characters that no Kubernetes name has.
    #[error("CNI_ARGS: {key} {value:?} is not a Kubernetes name")]
    PodName {
        /// The key.
        key: &'static str,
        /// Its value, cut to 80 characters.
        value: String,
    },
}

/// What a runtime asks, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// [`Verb::Add`].
    Add {
        /// The sandbox.
        container: ContainerId,
        /// Its network namespace.
        netns: PathBuf,
        /// The interface to make in it.
        ifname: IfName,
        /// The pod.
        args: PodArgs,
    },
    /// [`Verb::Del`].
    Del {
        /// The sandbox.
        container: ContainerId,
        /// Its network namespace, where the runtime still knows one; it may be gone.
        netns: Option<PathBuf>,
        /// The interface that ADD made.
        ifname: IfName,
        /// The pod, where the runtime still knows it.
        args: PodArgs,
    },
    /// [`Verb::Check`].
    Check {
        /// The sandbox.
        container: ContainerId,
        /// Its network namespace.
        netns: PathBuf,
        /// The interface that ADD made.
        ifname: IfName,
        /// The pod.
        args: PodArgs,
    },
    /// [`Verb::Status`].
    Status,
    /// [`Verb::Gc`].
    Gc,
    /// [`Verb::Version`].
    Version,
}

impl Invocation {
    /// Checks `env`.
    ///
    /// # Errors
    /// Any [`InvocationError`]; all of them are code 4 on the wire.
    pub fn parse(env: &Environment) -> Result<Self, InvocationError> {
        let Some(command) = env.command.as_deref() else {
            return Err(InvocationError::Missing { variables: vec!["CNI_COMMAND"], verb: None });
        };
        let verb = Verb::ALL
            .into_iter()
            .find(|verb| verb.as_str() == command)
            .ok_or_else(|| InvocationError::UnknownVerb { given: cut(command, 40) })?;
        match verb {
            Verb::Status => return Ok(Self::Status),
            Verb::Gc => return Ok(Self::Gc),
            Verb::Version => return Ok(Self::Version),
            Verb::Add | Verb::Del | Verb::Check => {}
        }
        let needs_netns = verb != Verb::Del;
        let (container, ifname) = match (&env.container_id, &env.ifname, &env.netns) {
            (Some(container), Some(ifname), netns) if netns.is_some() || !needs_netns => (container, ifname),
            (container, ifname, netns) => {
                let missing = [
                    ("CNI_CONTAINERID", container.is_none()),
                    ("CNI_NETNS", needs_netns && netns.is_none()),
                    ("CNI_IFNAME", ifname.is_none()),
                ];
                let variables = missing.into_iter().filter(|(_, gone)| *gone).map(|(name, _)| name).collect();
                return Err(InvocationError::Missing { variables, verb: Some(verb.as_str()) });
            }
        };
        let container = ContainerId::new(container)
            .map_err(|source| InvocationError::Invalid { variable: "CNI_CONTAINERID", source })?;
        let ifname =
            IfName::new(ifname).map_err(|source| InvocationError::Invalid { variable: "CNI_IFNAME", source })?;
        let args = PodArgs::parse(env.args.as_deref().unwrap_or(""))?;
        let netns = env.netns.as_deref().map(netns_path).transpose()?;
        match (verb, netns) {
            (Verb::Add, Some(netns)) => Ok(Self::Add { container, netns, ifname, args }),
            (Verb::Check, Some(netns)) => Ok(Self::Check { container, netns, ifname, args }),
            (_, netns) => Ok(Self::Del { container, netns, ifname, args }),
        }
    }

    /// Which verb it is.
    #[must_use]
    pub const fn verb(&self) -> Verb {
        match self {
            Self::Add { .. } => Verb::Add,
            Self::Del { .. } => Verb::Del,
            Self::Check { .. } => Verb::Check,
            Self::Status => Verb::Status,
            Self::Gc => Verb::Gc,
            Self::Version => Verb::Version,
        }
    }
}

fn netns_path(given: &str) -> Result<PathBuf, InvocationError> {
    if given.len() > PATH_LIMIT {
        return Err(InvocationError::TooLong { variable: "CNI_NETNS", length: given.len(), limit: PATH_LIMIT });
    }
    if given.starts_with('/') { Ok(given.into()) } else { Err(InvocationError::Netns { given: cut(given, 80) }) }
}

/// `CNI_ARGS`, as Kubernetes' runtimes fill it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodArgs {
    /// `K8S_POD_NAMESPACE`, `K8S_POD_NAME` and `K8S_POD_UID`.
    pub pod: PodRef,
    /// `K8S_POD_INFRA_CONTAINER_ID`: the sandbox once more.
    pub infra_container: Option<String>,
}

impl PodArgs {
    /// Reads `KEY=VALUE;KEY=VALUE`. Like libcni, an unknown key is an error unless `IgnoreUnknown` is `1` or `true`.
    ///
    /// # Errors
    /// [`InvocationError::Argument`], [`InvocationError::UnknownArgument`], [`InvocationError::PodName`],
    /// [`InvocationError::TooLong`].
    pub fn parse(args: &str) -> Result<Self, InvocationError> {
        if args.len() > VALUE_LIMIT {
            return Err(InvocationError::TooLong { variable: "CNI_ARGS", length: args.len(), limit: VALUE_LIMIT });
        }
        let mut parsed = Self::default();
        let mut ignore_unknown = false;
        let mut unknown = None;
        for part in args.split(';').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| InvocationError::Argument { part: cut(part, 80) })?;
            match key {
                "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true" | "True" | "TRUE"),
                "K8S_POD_NAMESPACE" => parsed.pod.namespace = pod_name("K8S_POD_NAMESPACE", value)?,
                "K8S_POD_NAME" => parsed.pod.name = pod_name("K8S_POD_NAME", value)?,
                "K8S_POD_UID" => {
                    parsed.pod.uid = Some(pod_name("K8S_POD_UID", value)?).filter(|uid| !uid.is_empty());
                }
                "K8S_POD_INFRA_CONTAINER_ID" => parsed.infra_container = Some(value.chars().take(253).collect()),
                other => unknown = unknown.or_else(|| Some(cut(other, 80))),
            }
        }
        match unknown {
            Some(key) if !ignore_unknown => Err(InvocationError::UnknownArgument { key }),
            _ => Ok(parsed),
        }
    }
}

/// A name of a namespace or pod. Runtimes outside Kubernetes put names of containers there, so that the check is
/// wider than RFC 1123: what could break a log line or a file name is refused, and no more.
fn pod_name(key: &'static str, value: &str) -> Result<String, InvocationError> {
    let fits = value.len() <= 253 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fits { Ok(value.to_owned()) } else { Err(InvocationError::PodName { key, value: cut(value, 80) }) }
}

fn cut(value: &str, characters: usize) -> String {
    value.chars().take(characters).collect()
}
