//! HTTP ports. A busy port is tried again, never fatal; connections are limited.

mod bounded;
pub mod health;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

use self::bounded::Bounded;

/// Between two attempts to get a port.
const PORT_AGAIN: Duration = Duration::from_secs(5);

/// What a metrics page's `Content-Type` is (Prometheus text format 0.0.4).
pub const METRICS_CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections that wait to be accepted, as many as the standard library lets.
const BACKLOG: u32 = 128;

/// Listens at `address`. `[::]` is every address of the machine in both families, whatever `net.ipv6.bindv6only` says, and where the
/// kernel has no IPv6, every IPv4 address.
///
/// # Errors
/// As [`TcpListener::bind`]. Outside a tokio runtime it panics.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !(address.is_ipv6() && address.ip().is_unspecified()) {
        return TcpListener::bind(address).await;
    }
    let socket = match TcpSocket::new_v6() {
        Err(error) if error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            return TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
        }
        socket => socket?,
    };
    setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` at `address` for as long as it is polled. `what` names the port in logs.
pub async fn serve(what: &'static str, address: SocketAddr, router: Router) {
    let mut said = false;
    loop {
        match listen(address).await {
            Ok(listener) => {
                said = false;
                tracing::info!(what, address = %address, "serving");
                if let Err(error) = axum::serve(Bounded::new(listener), router.clone()).await {
                    tracing::error!(what, error = %error, "serving ended");
                }
            }
            Err(error) if !said => {
                said = true;
                tracing::warn!(what, address = %address, error = %error, "the port cannot be had; trying on");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PORT_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[tokio::test]
    async fn every_address_is_of_both_families() {
        let listener = listen((Ipv6Addr::UNSPECIFIED, 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let address = SocketAddr::new(address.parse().unwrap(), port);
            // A machine without IPv6 listens for IPv4 alone.
            if address.is_ipv6() && listener.local_addr().unwrap().is_ipv4() {
                continue;
            }
            let (connected, accepted) = tokio::join!(tokio::net::TcpStream::connect(address), listener.accept());
            connected.unwrap();
            accepted.unwrap();
        }
    }
}
