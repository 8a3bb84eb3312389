//! Connections to servers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::flow::Flow;

/// Opens connections to servers in their clients' names.
pub trait Connect: Send + Sync + 'static {
    /// Connects to the server of a flow from the address and port of its client.
    ///
    /// # Errors
    /// Why there is no connection, in the kernel's words: refused, unreachable, timed out.
    fn connect(&self, flow: &Flow) -> impl Future<Output = io::Result<Upstream>> + Send;
}

/// A connection to a server.
#[derive(Debug)]
pub struct Upstream {
    /// The connection, with `TCP_NODELAY`; nothing has been sent on it.
    pub stream: TcpStream,
    /// Where its packets go: [`Flow::server`], or the backend that the node's service proxy has chosen in its place.
    pub backend: SocketAddr,
}
