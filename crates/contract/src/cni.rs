//! The CNI protocol, versions 0.3.0 to 1.1.0, as <https://www.cni.dev/docs/spec/> has it.
//!
//! A runtime executes a plugin with the verb and the sandbox in the environment ([`Invocation`]) and the network's
//! configuration on standard input ([`NetConf`]). The plugin answers on standard output: with a result
//! ([`AddResult`], in the shape of the configuration's [`SpecVersion`]), a [`VersionReply`], an [`ErrorObject`] and a
//! non-zero exit status, or nothing.
//!
//! Everything that comes from the runtime is bounded and checked here, once.

mod conf;
mod eni;
mod error;
mod failure;
mod invocation;
mod policy;
mod result;
mod version;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, IfName};

pub use conf::{Bandwidth, ConfError, NetConf, PortMapping, RuntimeConfig, RuntimeDns, STDIN_LIMIT};
pub use eni::{ATTACHMENT_KEY, EniAttachment, EniConf, FURTHER_ATTACHMENTS_KEY};
pub use error::{ErrorCode, ErrorObject};
pub use failure::{Failure, chain};
pub use invocation::{Environment, Invocation, InvocationError, PodArgs, Verb};
pub use policy::PolicyConf;
pub use result::{AddResult, Dns, Interface, IpConfig, ResultError, Route};
pub use version::{SpecVersion, UnknownVersion, VersionReply};

/// One entry of `cni.dev/valid-attachments` (CNI spec 1.1.0, GC).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GcAttachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The interface in it.
    pub ifname: IfName,
}

#[cfg(test)]
mod tests;
