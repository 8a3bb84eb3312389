//! The daemon of the AWS VPC CNI, as one that may serve the same node.
//!
//! It and the daemons of Sluice never serve a node together: as long as it answers, they wait and touch nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};

/// Where it keeps its allocations, unless it is told otherwise (`AWS_VPC_K8S_CNI_BACKING_STORE`). Its socket is beside that.
pub const CHECKPOINT: &str = "/var/run/aws-node/ipam.json";

/// What a kubelet is told of a daemon that waits for it.
pub const SERVES: &str = "aws-node serves this node: waiting until it has gone\n";

/// How often it is looked whether it has gone.
const AGAIN: Duration = Duration::from_secs(1);

/// How long its TCP port may take to answer.
const CONNECT: Duration = Duration::from_millis(200);

/// Where releases before 1.23 serve their plugin.
const PORT: u16 = 50_051;

/// The VPC CNI's daemon of this node, by the file that holds its allocations.
#[derive(Debug, Clone)]
pub struct AwsNode {
    file: PathBuf,
}

impl AwsNode {
    /// The one whose allocations are in `file`.
    #[must_use]
    pub const fn new(file: PathBuf) -> Self {
        Self { file }
    }

    /// The file that holds its allocations.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns when no daemon of the VPC CNI answers on this node.
    pub async fn has_gone(&self) {
        let mut told = false;
        while let Some(place) = self.answers().await {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(place, "the AWS VPC CNI's daemon serves this node: waiting until it is stopped");
            }
            tokio::time::sleep(AGAIN).await;
        }
        if told {
            tracing::info!("the AWS VPC CNI's daemon has gone");
        }
    }

    /// Where the VPC CNI's daemon answers, if it does.
    pub async fn answers(&self) -> Option<String> {
        let socket = self.file.with_file_name("ipamd.sock");
        if UnixStream::connect(&socket).await.is_ok() {
            return Some(socket.display().to_string());
        }
        if !self.file.exists() {
            return None;
        }
        // Whatever else may listen there: on a node that the VPC CNI has served it is most likely that.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(address)).await;
        connected.is_ok_and(|stream| stream.is_ok()).then(|| address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_long_as_its_daemon_answers_nothing_is_begun() {
        let dir = std::env::temp_dir().join(format!("sluice-aws-node-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let aws = AwsNode::new(dir.join("ipam.json"));
        aws.has_gone().await;
        let socket = tokio::net::UnixListener::bind(dir.join("ipamd.sock")).unwrap();
        assert!(aws.answers().await.unwrap().ends_with("ipamd.sock"));
        let waiting = tokio::spawn(async move { aws.has_gone().await });
        assert!(!waiting.is_finished());
        drop(socket);
        waiting.await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
