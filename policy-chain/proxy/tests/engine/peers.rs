//! Clients and servers that nobody here wrote, on both sides of the engines. Their packages are named in `./test`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::bed::{Proxy, http, public, requests, rules, show, within};

const LONG: Duration = Duration::from_secs(120);

/// Whether all these programs are here; in CI they must be.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|program| !Path::new(program).exists()).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "missing: {missing:?}");
    missing.is_empty()
}

/// A program that ends with its owner, and with this process however that ends.
pub(crate) fn mortal(program: &str) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).kill_on_drop(true);
    command
}

/// Runs a program to its end; gives what it printed.
async fn output(program: &str, arguments: &[&str]) -> String {
    let output = mortal(program).args(arguments).output().await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}: {text}", output.status);
    text
}

/// A directory that goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-peers-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Starts nginx; `listen` is added to its listen directive.
async fn nginx(name: &str, listen: &str) -> (SocketAddr, Child, Folder) {
    let folder = Folder::new(name);
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let root = folder.0.display().to_string();
    std::fs::write(folder.0.join("big"), vec![b'b'; 5_000_000]).unwrap();
    let text = format!(
        "daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
         events {{ worker_connections 512; }}
         http {{
           access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
           uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; keepalive_requests 1000000;
           server {{
             listen {address} {listen}; client_max_body_size 100m;
             location /public/big {{ alias {root}/big; }}
             location / {{ return 200 'from nginx $request_method $request_uri\\n'; }}
           }}
         }}"
    );
    let file = folder.0.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let child = mortal("/usr/sbin/nginx").arg("-c").arg(&file).spawn().unwrap();
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (address, child, folder)
}

/// Starts a server that prints its port.
pub(crate) async fn script(name: &str) -> (SocketAddr, Child) {
    let path = format!("{}/tests/engine/peers/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut child = mortal("/usr/bin/python3").args([&path, "server"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port: u16 = lines.next_line().await.unwrap().unwrap().parse().unwrap();
    (SocketAddr::from(([127, 0, 0, 1], port)), child)
}

#[test]
fn curl_and_nginx() {
    if !have(&["/usr/bin/curl", "/usr/sbin/nginx"]) {
        return;
    }
    within(LONG, async {
        let (server, _nginx, folder) = nginx("curl", "").await;
        let proxy = Proxy::start(public(), server).await;
        let base = format!("http://{}", proxy.address);
        let file = folder.0.join("big").display().to_string();
        let curl = async |arguments: &[&str]| {
            output("/usr/bin/curl", &[&["-sS", "-w", "%{http_code} %{num_connects}\n"], arguments].concat()).await
        };
        assert_eq!(curl(&[&format!("{base}/public/a")]).await, "from nginx GET /public/a\n200 1\n");
        assert_eq!(curl(&[&format!("{base}/secret")]).await, "Access denied\r\n403 1\n");
        // One connection for all of them.
        let answers =
            curl(&[&format!("{base}/public/1"), &format!("{base}/secret"), &format!("{base}/public/2")]).await;
        assert_eq!(
            answers,
            "from nginx GET /public/1\n200 1\nAccess denied\r\n403 0\nfrom nginx GET /public/2\n200 0\n"
        );
        assert!(curl(&["-I", &format!("{base}/public")]).await.ends_with("200 1\n"));
        let got = folder.0.join("got").display().to_string();
        curl(&["-o", &got, &format!("{base}/public/big")]).await;
        assert_eq!(std::fs::read(&got).unwrap().len(), 5_000_000);
        // Uploads: by length (with Expect), chunked, and refused.
        let upload = format!("{base}/upload");
        assert_eq!(curl(&["-T", &file, &upload]).await, "from nginx PUT /upload\n200 1\n");
        let chunked = ["-T", &file, "-H", "Transfer-Encoding: chunked", &upload];
        assert_eq!(curl(&chunked).await, "from nginx PUT /upload\n200 1\n");
        assert!(curl(&["-T", &file, &format!("{base}/secret")]).await.contains("403"));
        assert!(curl(&["--http1.0", &format!("{base}/public")]).await.ends_with("200 1\n"));
        // An upgrade to HTTP/2 that is not made.
        assert_eq!(curl(&["--http2", &format!("{base}/public")]).await, "from nginx GET /public\n200 1\n");
        assert!(curl(&["--path-as-is", &format!("{base}/public/../secret")]).await.contains("403"));
        let records = proxy.records();
        assert!(requests(&records).iter().all(|(status, ..)| matches!(status, 200 | 403)), "{records:?}");
    });
}

#[test]
fn wrk_and_nginx() {
    if !have(&["/usr/bin/wrk", "/usr/sbin/nginx"]) {
        return;
    }
    within(LONG, async {
        let (server, _nginx, _folder) = nginx("wrk", "").await;
        let proxy = Proxy::start(public(), server).await;
        let url = format!("http://{}/public", proxy.address);
        let text = output("/usr/bin/wrk", &["-t1", "-c50", "-d2s", &url]).await;
        assert!(
            text.contains("Requests/sec") && !text.contains("Non-2xx") && !text.contains("Socket errors"),
            "{text}"
        );
    });
}

#[test]
fn http_2_clients_and_nginx() {
    if !have(&["/usr/bin/nghttp", "/usr/bin/h2load", "/usr/bin/curl", "/usr/sbin/nginx"]) {
        return;
    }
    within(LONG, async {
        let (server, _nginx, folder) = nginx("h2", "http2").await;
        let proxy = Proxy::start(public(), server).await;
        let base = format!("http://{}", proxy.address);
        let (passes, refused) = (format!("{base}/public/a"), format!("{base}/secret"));
        let text = output("/usr/bin/nghttp", &["-v", "--no-dep", &passes, &refused]).await;
        assert!(text.contains("from nginx GET /public/a") && text.contains("Access denied"), "{text}");
        let got = folder.0.join("got").display().to_string();
        let big = format!("{base}/public/big");
        let curl = ["-sS", "--http2-prior-knowledge", "-w", "%{http_code} %{http_version}", "-o", &got, &big];
        assert_eq!(output("/usr/bin/curl", &curl).await, "200 2");
        assert_eq!(std::fs::read(&got).unwrap().len(), 5_000_000);
        let text = output("/usr/bin/h2load", &["-n2000", "-c10", "-m20", "-t1", &passes]).await;
        assert!(text.contains("2000 succeeded, 0 failed, 0 errored"), "{text}");
        assert!(text.contains("status codes: 2000 2xx"), "{text}");
        let text = output("/usr/bin/h2load", &["-n500", "-c5", "-m20", "-t1", &refused]).await;
        assert!(text.contains("500 4xx"), "{text}");
        assert_eq!(proxy.counter("http2_abuse"), 0);
    });
}

#[test]
fn grpc() {
    if !have(&["/usr/bin/python3", "/usr/lib/python3/dist-packages/grpc"]) {
        return;
    }
    within(LONG, async {
        let (server, _child) = script("grpc_peer.py").await;
        let proxy = Proxy::start(rules([http("POST", "/shop\\.Cart/(Add|Chat|Fail)")]), server).await;
        let path = format!("{}/tests/engine/peers/grpc_peer.py", env!("CARGO_MANIFEST_DIR"));
        let port = proxy.address.port().to_string();
        let text = output("/usr/bin/python3", &[&path, "client", &port]).await;
        assert!(text.contains("well"), "{text}");
        let records = proxy.wait_records(5).await;
        assert!(requests(&records).contains(&(403, "/shop.Cart/Remove".into(), false)), "{records:?}");
    });
}

#[test]
fn websocket() {
    if !have(&["/usr/bin/python3", "/usr/lib/python3/dist-packages/websockets"]) {
        return;
    }
    within(LONG, async {
        let (server, _child) = script("websocket_peer.py").await;
        let proxy = Proxy::start(public(), server).await;
        let path = format!("{}/tests/engine/peers/websocket_peer.py", env!("CARGO_MANIFEST_DIR"));
        let port = proxy.address.port().to_string();
        let text = output("/usr/bin/python3", &[&path, "client", &port]).await;
        assert!(text.contains("well"), "{}", show(text.as_bytes()));
        let found = requests(&proxy.wait_records(3).await);
        assert!(found.contains(&(101, "/public/ws".into(), true)) && found.contains(&(403, "/secret".into(), false)));
    });
}
