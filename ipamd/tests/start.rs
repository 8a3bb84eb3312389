//! The built binary: what it says of a bad configuration, that it serves before IMDS and EC2 answer, and that it ends
//! when told to.
#![cfg(test)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

fn ipamd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-ipamd"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

struct RunDir(PathBuf);

impl RunDir {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-ipamd-start-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

/// An address where nobody listens.
fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn alone(run_dir: &Path) -> Command {
    let nowhere = nowhere();
    let mut command = ipamd();
    command
        .env("SLUICE_RUN_DIR", run_dir)
        .env("DISABLE_METRICS", "true")
        .env("DISABLE_INTROSPECTION", "true")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &nowhere)
        .env("AWS_ENDPOINT_URL_EC2", &nowhere);
    command
}

/// Waits for a line of the log that holds `words`, and gives it.
async fn said(child: &mut Child, words: &str) -> String {
    let mut lines = BufReader::new(child.stderr.as_mut().unwrap()).lines();
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(words) {
                return line;
            }
        }
        panic!("the log ended without {words:?}");
    };
    timeout(PATIENCE, found).await.unwrap()
}

async fn connected(socket: &Path) {
    let wait = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

#[tokio::test]
async fn it_tells_its_version() {
    let output = ipamd().arg("--version").output().await.unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("sluice-ipamd {}", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_told_at_once() {
    let output = ipamd().env("WARM_ENI_TARGET", "x").env("HTTP_TIMEOUT", "soon").output().await.unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("WARM_ENI_TARGET") && text.contains("HTTP_TIMEOUT"), "{text}");
}

#[tokio::test]
async fn wrong_endpoints_and_filters_are_told() {
    for (name, value) in [("AWS_EC2_ENDPOINT", "ec2"), ("SLUICE_LOG", "sluice=loud")] {
        let output = ipamd().env(name, value).output().await.unwrap();
        assert_eq!(output.status.code(), Some(64), "{name}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(name) && text.contains(value), "{text}");
    }
}

#[tokio::test]
async fn a_cluster_endpoint_that_is_no_url_is_told() {
    let output = ipamd().env("CLUSTER_ENDPOINT", "ftp://api").output().await.unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("CLUSTER_ENDPOINT=\"ftp://api\": it must be the URL of a server"), "{text}");
}

/// What is configured says who ipamd is; the endpoint says where the API server is.
#[tokio::test]
async fn the_api_server_is_asked_at_the_cluster_endpoint() {
    let run_dir = RunDir::new();
    let kubeconfig = run_dir.0.join("kubeconfig");
    let elsewhere = nowhere();
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: '{elsewhere}'}}}}],
        users: [{{name: u, user: {{token: t-1}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let mut child = alone(&run_dir.0)
        .env("MY_NODE_NAME", "n1")
        .env("KUBECONFIG", &kubeconfig)
        .env("CLUSTER_ENDPOINT", endpoint)
        .spawn()
        .unwrap();
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut head = Vec::new();
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| !line.is_empty()) {
            head.push(line.to_ascii_lowercase());
        }
    };
    timeout(PATIENCE, read).await.unwrap();
    assert!(head.iter().any(|line| line == "authorization: bearer t-1"), "{head:?}");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn a_run_directory_that_cannot_be_had_is_told() {
    let output = ipamd().env("SLUICE_RUN_DIR", "/proc/nothing/here").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("ipamd cannot run"), "{text}");
}

#[tokio::test]
async fn it_serves_without_aws_and_ends_when_told() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let run_dir = RunDir::new();
        let mut child = alone(&run_dir.0).spawn().unwrap();
        connected(&run_dir.0.join("ipamd.sock")).await;
        let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        kill(pid, signal).unwrap();
        said(&mut child, "ipamd has ended").await;
        let status = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(status.success(), "{signal}: {status}");
    }
}

#[tokio::test]
async fn logs_can_be_json() {
    let run_dir = RunDir::new();
    let mut child = alone(&run_dir.0).env("SLUICE_LOG_FORMAT", "json").spawn().unwrap();
    let line = said(&mut child, "\"message\":\"sluice-ipamd\"").await;
    assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    child.kill().await.unwrap();
}
