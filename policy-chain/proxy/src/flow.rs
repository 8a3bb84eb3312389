//! A flow as the proxy sees it.

use std::fmt;
use std::net::SocketAddr;

pub use sluice_policy_core::flow::{Direction, Protocol};

/// A flow that a gate has redirected.
///
/// A flow that is proxied on both of its sides, both pods being on this node, is two flows here, one in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Whose gate it was: egress, the client is a pod of this node; ingress, the server is.
    pub direction: Direction,
    /// Who opened it.
    pub client: SocketAddr,
    /// Whom the client dialled. It may be a Service's address: [`crate::connect::Upstream::backend`] tells where packets go.
    pub server: SocketAddr,
}

impl fmt::Display for Flow {
    /// `egress 10.0.0.7:40000 -> 10.0.1.9:80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.direction, self.client, self.server)
    }
}
