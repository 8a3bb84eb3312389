//! The whole daemon on its real sockets and ports, in real time, with a model of the kernel's gates.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;
use std::time::Instant;

use tokio::task::spawn_blocking;

use super::*;
use crate::cluster::directory::Directory;
use crate::datapath::model::{Kernel, Model};
use crate::testing::TestDir;

const LONG: Duration = Duration::from_secs(20);

/// What a probe gets: the status, and the body.
fn probe(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(LONG)).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The body of the answer that is wanted, once it comes.
async fn probed(address: SocketAddr, path: &'static str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let end = Instant::now() + LONG;
    loop {
        match spawn_blocking(move || probe(address, path)).await.unwrap() {
            Some((status, body)) if wanted(status, &body) => return body,
            answer => assert!(Instant::now() < end, "{path}: {answer:?}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_aws_node_answers_policyd_is_alive_and_not_ready() {
    let dir = TestDir::new();
    let (aws, cluster) = (dir.path().join("aws-node"), dir.path().join("cluster"));
    std::fs::create_dir_all(&aws).unwrap();
    std::fs::create_dir_all(&cluster).unwrap();
    let plugin_socket = UnixListener::bind(aws.join("ipamd.sock")).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = Config::load(&|name| match name {
        "SLUICE_RUN_DIR" => Some(dir.path().join("run").display().to_string()),
        "AWS_VPC_K8S_CNI_BACKING_STORE" => Some(aws.join("ipam.json").display().to_string()),
        "MY_NODE_NAME" => Some("node-1".to_owned()),
        "DISABLE_METRICS" | "DISABLE_HUBBLE" => Some("true".to_owned()),
        "SLUICE_POLICY_INTROSPECTION_ADDRESS" => Some(address.to_string()),
        _ => None,
    })
    .unwrap();
    let kernel: Arc<Mutex<Kernel>> = Arc::default();
    let open = move || Ok(Model::open(&kernel));
    let (stop, stops) = oneshot::channel::<()>();
    let daemon = run(config, Directory::new(cluster), open, async {
        stops.await.unwrap_or(());
    });
    let probes = async {
        assert_eq!(probed(address, "/livez", |status, _| status == 200).await, "ok\n");
        probed(address, "/readyz", |status, body| status == 503 && body.contains("aws-node serves this node")).await;
        drop(plugin_socket);
        probed(address, "/readyz", |status, _| status == 200).await;
        drop(stop);
    };
    let (ended, ()) = tokio::join!(Box::pin(daemon), probes);
    ended.unwrap();
}
