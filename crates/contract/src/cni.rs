//! The CNI protocol, versions 0.3.0 to 1.1.0, as <https://www.cni.dev/docs/spec/> has it.
use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, IfName};

/// One entry of `cni.dev/valid-attachments` (CNI spec 1.1.0, GC).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GcAttachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The interface in it.
    pub ifname: IfName,
}
