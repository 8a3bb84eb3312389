//! Whether the node's daemons are ready, and whether another CNI plugin's daemon is still there.

use std::path::Path;
use std::time::Duration;

use sluice_contract::node;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The socket of the AWS VPC CNI's daemon. While somebody answers there, Sluice only observes (DESIGN 2).
const AWS_NODE: &str = "/var/run/aws-node/ipamd.sock";

/// How long a daemon may take to accept a connection.
const ACCEPT: Duration = Duration::from_secs(2);

/// The same name below another directory than `/run/sluice`.
fn below(run_dir: &Path, name: &str) -> std::path::PathBuf {
    run_dir.join(Path::new(name).strip_prefix(node::RUN_DIR).unwrap_or(Path::new(name)))
}

/// Whether ipamd has not been ready since the node booted.
pub(super) fn is_fresh_boot(run_dir: &Path) -> bool {
    !below(run_dir, node::IPAMD_READY).exists()
}

/// What there has to be before the runtime may be told of the plugins; none when it is all there.
pub(super) async fn missing(run_dir: &Path, policy: bool) -> Option<String> {
    if accepts(Path::new(AWS_NODE)).await {
        return Some(format!("aws-node still serves {AWS_NODE}: take it off this node"));
    }
    let ipamd = ("sluice-ipamd", node::IPAMD_READY, node::IPAMD_SOCKET);
    let policyd = ("sluice-policyd", node::POLICYD_READY, node::POLICYD_SOCKET);
    for (daemon, mark, socket) in [Some(ipamd), policy.then_some(policyd)].into_iter().flatten() {
        if !below(run_dir, mark).exists() {
            return Some(format!("{daemon} has not been ready since the node booted"));
        }
        let socket = below(run_dir, socket);
        if !accepts(&socket).await {
            return Some(format!("{daemon} does not serve {}", socket.display()));
        }
    }
    None
}

/// The daemons that run.
pub(super) async fn running(run_dir: &Path) -> Vec<&'static str> {
    let mut running = Vec::new();
    let sockets = [
        ("sluice-ipamd", node::IPAMD_SOCKET),
        ("sluice-policyd", node::POLICYD_SOCKET),
        ("sluice-proxy", "/run/sluice/proxy.sock"),
    ];
    for (daemon, socket) in sockets {
        if accepts(&below(run_dir, socket)).await {
            running.push(daemon);
        }
    }
    running
}

async fn accepts(socket: &Path) -> bool {
    matches!(timeout(ACCEPT, UnixStream::connect(socket)).await, Ok(Ok(_)))
}
