//! Traffic of a pod that is to be seen.

use std::fmt;

use crate::flow::{AppProtocol, Direction, Protocol};

/// Annotation on a pod with the traffic that is to be seen without being limited: elements
/// `direction/port/protocol/application`, separated by commas, such as `egress/53/UDP/DNS, ingress/8080/TCP/HTTP`. In the
/// spirit of Cilium's former `policy.cilium.io/proxy-visibility`.
pub const VISIBILITY_ANNOTATION: &str = "sluice.dev/visibility";

/// Flows of a pod that the proxy looks at, to record their requests; what is allowed passes as without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Visible {
    /// Direction.
    pub direction: Direction,
    /// [`Protocol::TCP`] or [`Protocol::UDP`].
    pub protocol: Protocol,
    /// The port that is served: the pod's own on ingress, the backend's on egress, as in policies.
    pub port: u16,
    /// What is spoken there.
    pub application: AppProtocol,
}

impl fmt::Display for Visible {
    /// As an element of [`VISIBILITY_ANNOTATION`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.direction, self.port, self.protocol, self.application)
    }
}
