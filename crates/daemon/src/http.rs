//! HTTP ports. A busy port is tried again, never fatal; connections are limited.

mod bounded;
pub mod health;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;

use self::bounded::Bounded;

/// Between two attempts to get a port.
const PORT_AGAIN: Duration = Duration::from_secs(5);

/// What a metrics page's `Content-Type` is (Prometheus text format 0.0.4).
pub const METRICS_CONTENT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `router` at `address` for as long as it is polled. `what` names the port in logs.
pub async fn serve(what: &'static str, address: SocketAddr, router: Router) {
    let mut said = false;
    loop {
        match TcpListener::bind(address).await {
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
