//! The whole daemon on its real socket and ports, in real time, against a model of EC2 that answers at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Instant as StdInstant;

use sluice_contract::id::{SecurityGroupId, SubnetId};
use sluice_contract::rpc::{
    AddRequest, Call, DelRequest, FRAME_LIMIT, Hello, Outcome, ProtocolRange, RefusalCode, Reply, Request, read_frame,
    write_frame,
};
use sluice_ipamd_core::cloud::EniConfig;
use sluice_vpcsim::model::Settings;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::cluster::{Nowhere, Told};
use crate::config::overrides::Overrides;
use crate::daemon::tests::add_request;
use crate::daemon::tests::sim::{SimCloud, SimHost};
use crate::testing::{TestDir, attachment};

const LONG: Duration = Duration::from_secs(20);

struct Running {
    dir: TestDir,
    cloud: SimCloud,
    host: SimHost,
    config: Config,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Result<(), RunError>>>,
}

/// A cluster that says what it has to say once.
struct Says(Vec<Told>);

impl Cluster for Says {
    async fn watch(&self, told: mpsc::Sender<Told>, mut reports: mpsc::Receiver<Report>) {
        for tells in &self.0 {
            told.send(tells.clone()).await.unwrap();
        }
        while reports.recv().await.is_some() {}
    }
}

impl Running {
    async fn with(set: &[(&str, &str)]) -> Self {
        let mut running = Self::prepared(set);
        running.start();
        running.ready().await;
        running
    }

    /// One that has not been started.
    fn prepared(set: &[(&str, &str)]) -> Self {
        let dir = TestDir::new();
        let run_dir = dir.path().join("run").display().to_string();
        let set: Vec<(String, String)> = set.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let config = Config::load(&|name| match name {
            "SLUICE_RUN_DIR" => Some(run_dir.clone()),
            // One of its own for each that runs.
            "SLUICE_HEALTH_ADDRESS" if !set.iter().any(|(set, _)| set == name) => Some("127.0.0.1:0".into()),
            "DISABLE_METRICS" | "DISABLE_INTROSPECTION" if !set.iter().any(|(set, _)| set.contains("ADDRESS")) => {
                Some("true".into())
            }
            _ => set.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone()),
        })
        .unwrap();
        let cloud = SimCloud::new(Settings::instant(), "m5.large", "10.0.1.0/24");
        let host = SimHost::new(cloud.clone());
        Self { dir, cloud, host, config, stop: None, task: None }
    }

    fn start(&mut self) {
        self.start_in(Nowhere);
    }

    fn start_in(&mut self, cluster: impl Cluster) {
        let (stop, stops) = oneshot::channel::<()>();
        let (config, cloud, host) = (self.config.clone(), self.cloud.clone(), self.host.clone());
        self.task = Some(tokio::spawn(run(config, cloud, host, cluster, async {
            stops.await.unwrap_or(());
        })));
        self.stop = Some(stop);
    }

    async fn stop(&mut self) {
        drop(self.stop.take());
        self.task.take().unwrap().await.unwrap().unwrap();
    }

    async fn ready(&self) {
        let end = StdInstant::now() + LONG;
        loop {
            if let Some(Reply::Done(_)) = self.ask(Call::Status).await {
                return;
            }
            assert!(StdInstant::now() < end, "not ready in time");
            tokio::task::yield_now().await;
        }
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let socket = UnixStream::connect(self.config.socket())?;
        socket.set_read_timeout(Some(LONG))?;
        Ok(socket)
    }

    /// Asks as the plugin does; none when nobody answers.
    async fn ask(&self, call: Call) -> Option<Reply> {
        let socket = self.connect().ok()?;
        spawn_blocking(move || exchange(socket, &Hello::of("test"), &call)).await.unwrap()
    }

    /// Sends bytes and reads what comes.
    async fn send(&self, bytes: Vec<u8>) -> Option<Reply> {
        let mut socket = self.connect().unwrap();
        spawn_blocking(move || {
            // The daemon may refuse before it has read all.
            let _sent = socket.write_all(&bytes);
            read_frame::<Hello>(&mut socket).ok()?;
            read_frame::<Reply>(&mut socket).ok()
        })
        .await
        .unwrap()
    }
}

fn exchange(mut socket: UnixStream, hello: &Hello, call: &Call) -> Option<Reply> {
    // The daemon may refuse, and close, after the greeting.
    let _sent = write_frame(&mut socket, hello)
        .and_then(|()| write_frame(&mut socket, &Request { deadline_ms: 10_000, call: call.clone() }));
    read_frame::<Hello>(&mut socket).ok()?;
    read_frame::<Reply>(&mut socket).ok()
}

fn refused(reply: Option<Reply>) -> (RefusalCode, String) {
    match reply {
        Some(Reply::Refused(refusal)) => (refusal.code, refusal.message),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_served_over_the_socket_and_a_restart_remembers_them() {
    let mut node = Running::with(&[]).await;
    let mode = std::fs::metadata(node.config.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = node.ask(Call::Add(add_request("a"))).await.unwrap();
    assert!(matches!(&first, Reply::Done(Outcome::Add(reply)) if reply.addresses.len() == 1));
    node.stop().await;
    assert!(node.connect().is_err(), "nobody listens after a stop");
    // EC2 and IMDS are gone; serving begins all the same.
    node.cloud.set_down(true);
    let begun = StdInstant::now();
    node.start();
    node.ready().await;
    assert_eq!(node.ask(Call::Add(add_request("a"))).await.unwrap(), first);
    println!("S-04: a restart served after {:?}", begun.elapsed());
    assert!(matches!(node.ask(Call::Add(add_request("b"))).await, Some(Reply::Done(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_understood_is_refused_in_words() {
    let mut node = Running::with(&[]).await;
    let frame = |body: &[u8]| [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat();
    let hello = sluice_contract::rpc::encode(&Hello::of("test")).unwrap();
    let (code, message) = refused(node.send(vec![0xff; 64]).await);
    assert_eq!(code, RefusalCode::BadRequest);
    assert!(message.contains("over the limit"), "{message}");
    let (code, message) = refused(node.send(frame(b"not json")).await);
    assert_eq!(code, RefusalCode::BadRequest);
    assert!(message.contains("expected message"), "{message}");
    let (code, _) = refused(node.send([hello.clone(), frame(br#"{"deadline_ms":1,"call":"dance"}"#)].concat()).await);
    assert_eq!(code, RefusalCode::BadRequest);
    let over = u32::try_from(FRAME_LIMIT + 1).unwrap().to_be_bytes();
    let (code, _) = refused(node.send([hello.clone(), over.to_vec()].concat()).await);
    assert_eq!(code, RefusalCode::BadRequest);
    let skewed = Hello { protocol: ProtocolRange { min: 7, max: 9 }, software: "sluice-eni 9.0".into() };
    let socket = node.connect().unwrap();
    let reply = spawn_blocking(move || exchange(socket, &skewed, &Call::Status)).await.unwrap();
    let (code, message) = refused(reply);
    assert_eq!(code, RefusalCode::VersionSkew);
    assert_eq!(message, "sluice-eni 9.0 speaks protocol 7 to 9, sluice-ipamd speaks 1 to 1");
    // A connection that closes in the middle of a frame is no reason to answer, nor to stop.
    drop(node.connect().unwrap().write_all(&hello[..hello.len() / 2]));
    assert!(matches!(node.ask(Call::Status).await, Some(Reply::Done(_))));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_dies_while_it_waits_leaves_no_address_behind() {
    let mut node = Running::with(&[]).await;
    for index in 0..27 {
        assert!(
            matches!(node.ask(Call::Add(add_request(&format!("p{index}")))).await, Some(Reply::Done(_))),
            "{index}"
        );
    }
    node.cloud.set_down(true);
    let mut socket = node.connect().unwrap();
    write_frame(&mut socket, &Hello::of("test")).unwrap();
    let call = Call::Add(AddRequest { netns: "/run/netns/x".into(), ..add_request("dies") });
    write_frame(&mut socket, &Request { deadline_ms: 20_000, call }).unwrap();
    drop(socket);
    let (code, _) = refused(node.ask(Call::Add(add_request("one-more"))).await);
    assert_eq!(code, RefusalCode::EniLimit);
    let Some(Reply::Done(Outcome::Status(status))) = node.ask(Call::Status).await else { panic!("no status") };
    assert_eq!((status.free, status.assigned), (0, 27));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_do_not_run_at_once() {
    let mut node = Running::with(&[]).await;
    let (config, cloud, host) = (node.config.clone(), node.cloud.clone(), node.host.clone());
    let second = tokio::spawn(run(config, cloud, host, Nowhere, std::future::pending()));
    // The second waits for the first; the socket stays the first one's.
    assert!(matches!(node.ask(Call::Status).await, Some(Reply::Done(_))));
    assert!(!second.is_finished());
    node.stop().await;
    node.ready().await;
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
}

/// Status and body of a page.
fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(LONG)).ok()?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

async fn fetch(address: SocketAddr, path: &'static str) -> String {
    fetch_when(address, path, |status, body| {
        assert_eq!(status, 200, "{path}: {body}");
        true
    })
    .await
}

/// The page as soon as it is served and is as it should be.
async fn fetch_when(address: SocketAddr, path: &'static str, holds: impl Fn(u16, &str) -> bool) -> String {
    let end = StdInstant::now() + LONG;
    loop {
        match spawn_blocking(move || get(address, path)).await.unwrap() {
            Some((status, body)) if holds(status, &body) => return body,
            _ => {}
        }
        assert!(StdInstant::now() < end, "{path} is not served, or not as it should be");
        tokio::task::yield_now().await;
    }
}

/// A port that is free now; another process may take it, but hardly does.
fn free_port() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_the_pool_and_a_busy_port_is_not_fatal() {
    let (busy, metrics) = free_port();
    let (free, pages) = free_port();
    drop(free);
    let (metrics_text, pages_text) = (metrics.to_string(), pages.to_string());
    let set = [
        ("SLUICE_METRICS_ADDRESS", metrics_text.as_str()),
        ("INTROSPECTION_BIND_ADDRESS", pages_text.as_str()),
        ("WARM_ENI_TARGET", "1"),
    ];
    let mut node = Running::with(&set).await;
    let Some(Reply::Done(Outcome::Add(reply))) = node.ask(Call::Add(add_request("a"))).await else {
        panic!("no address")
    };
    let address = reply.addresses[0].ip;
    assert!(fetch(pages, "/").await.contains("/v1/enis"));
    let enis = fetch(pages, "/v1/enis").await;
    assert!(enis.contains("\"k8sPodName\":\"a\"") && enis.contains(&format!("{address}/32")), "{enis}");
    assert!(!enis.contains("containerID"), "{enis}");
    let pool: serde_json::Value = serde_json::from_str(&fetch(pages, "/v1/pool").await).unwrap();
    assert_eq!((&pool["ready"], &pool["pool"]["assigned"]), (&true.into(), &1.into()));
    let calls: serde_json::Value = serde_json::from_str(&fetch(pages, "/v1/calls").await).unwrap();
    assert!(calls["AssignPrivateIpAddresses"]["calls"].as_u64() >= Some(1), "{calls}");
    assert!(fetch(pages, "/v1/ipamd-env-settings").await.contains("WARM_ENI_TARGET"));
    assert_eq!(fetch(pages, "/v1/eni-configs").await, "{}", "there is no custom networking");
    assert!(fetch(pages, "/v1/networkutils-env-settings").await.contains("AWS_VPC_ENI_MTU"));
    // The metrics port was somebody else's at the start, and is free now.
    drop(busy);
    let text = fetch(metrics, "/metrics").await;
    assert!(text.contains("\nawscni_assigned_ip_addresses 1\n"), "{text}");
    assert!(text.contains("\nawscni_add_ip_req_count 1\n"), "{text}");
    assert!(text.contains(&format!("\nawscni_assigned_ip_per_cidr{{cidr=\"{address}/32\"}} 1\n")), "{text}");
    for once in [
        "awscni_ipamd_startup_duration_seconds_count{success=\"true\",with_api_server=\"false\",failure_reason=\"\"} 1",
        "awscni_ipamd_node_initialization_duration_seconds_count{success=\"true\"} 1",
    ] {
        assert!(text.lines().any(|line| line == once), "{once} is not in\n{text}");
    }
    node.stop().await;
}

/// The pages show what the loop works by, not what the daemon was started with.
#[tokio::test(flavor = "multi_thread")]
async fn pages_show_what_the_cluster_has_set() {
    let (free, pages) = free_port();
    drop(free);
    let pages_text = pages.to_string();
    let set = [
        ("INTROSPECTION_BIND_ADDRESS", pages_text.as_str()),
        ("DISABLE_METRICS", "true"),
        ("WARM_IP_TARGET", "2"),
        ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true"),
        ("MY_NODE_NAME", "n1"),
    ];
    let mut node = Running::prepared(&set);
    let eni_config = EniConfig {
        name: "us-east-1a".into(),
        subnet: SubnetId::new("subnet-0123456789abcdef0").unwrap(),
        security_groups: vec![SecurityGroupId::new("sg-0123456789abcdef0").unwrap()],
    };
    let live = Overrides([("WARM_IP_TARGET".to_owned(), "5".to_owned())].into());
    node.start_in(Says(vec![Told::EniConfig(Some(eni_config)), Told::Overrides(Ok(live))]));
    let warm = |body: &str| {
        serde_json::from_str::<serde_json::Value>(body).unwrap()["effective"]["pool"]["warm_ip_target"].clone()
    };
    fetch_when(pages, "/v1/ipamd-env-settings", |status, body| status == 200 && warm(body) == 5).await;
    // VPC CNI's form is the object's spec.
    let configs: serde_json::Value = serde_json::from_str(&fetch(pages, "/v1/eni-configs").await).unwrap();
    let spec = serde_json::json!({
        "name": "us-east-1a", "subnet": "subnet-0123456789abcdef0", "securityGroups": ["sg-0123456789abcdef0"]
    });
    assert_eq!(configs, spec);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_known_yet_is_alive_and_not_ready() {
    let (free, metrics) = free_port();
    drop(free);
    let mut node = Running::prepared(&[("SLUICE_METRICS_ADDRESS", metrics.to_string().as_str())]);
    node.cloud.set_down(true);
    node.start();
    let not_yet = fetch_when(metrics, "/readyz", |status, _| status == 503).await;
    assert_eq!(not_yet, "no address can be handed out yet\n");
    assert_eq!(fetch(metrics, "/livez").await, "ok\n");
    node.cloud.set_down(false);
    assert_eq!(fetch_when(metrics, "/readyz", |status, _| status == 200).await, "ok\n");
    node.stop().await;
}

/// The probes of the VPC CNI start a program for each, which a busy node kills for being late.
#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_many_adds_are_under_way() {
    let (free, metrics) = free_port();
    drop(free);
    let mut node = Running::with(&[("SLUICE_METRICS_ADDRESS", metrics.to_string().as_str())]).await;
    fetch(metrics, "/livez").await;
    // More than the instance can hold: some are served, some wait, some are refused.
    let adds: Vec<_> = (0..60)
        .map(|index| {
            let socket = node.connect().unwrap();
            let call = Call::Add(add_request(&format!("p{index}")));
            spawn_blocking(move || exchange(socket, &Hello::of("test"), &call))
        })
        .collect();
    for _ in 0..50 {
        assert_eq!(fetch(metrics, "/livez").await, "ok\n");
        assert_eq!(fetch(metrics, "/readyz").await, "ok\n");
    }
    let mut served = 0;
    for add in adds {
        served += u32::from(matches!(add.await.unwrap(), Some(Reply::Done(_))));
    }
    assert_eq!(served, 27, "as many as an m5.large holds");
    node.stop().await;
}

/// How many descriptors of a file this process has open, of what was at its path before and of what is to be, too.
fn descriptors_of(file: &std::path::Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    // Other tests of this process open and close theirs meanwhile.
    let links = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
    let file = file.display().to_string();
    links.filter(|link| link.display().to_string().starts_with(&file)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_checkpoints_leave_no_file_open() {
    let (free, metrics) = free_port();
    drop(free);
    let address = metrics.to_string();
    let mut node = Running::with(&[("SLUICE_METRICS_ADDRESS", address.as_str()), ("IP_COOLDOWN_PERIOD", "0")]).await;
    let written = async || -> u64 {
        let text = fetch(metrics, "/metrics").await;
        let count = text.lines().find_map(|line| line.strip_prefix("sluice_ipamd_checkpoint_duration_seconds_count "));
        count.unwrap().parse().unwrap()
    };
    assert!(matches!(node.ask(Call::Add(add_request("first"))).await, Some(Reply::Done(_))));
    let before = written().await;
    for index in 0..150 {
        let request = AddRequest { netns: format!("/run/netns/{index}"), ..add_request("again") };
        assert!(matches!(node.ask(Call::Add(request)).await, Some(Reply::Done(_))), "{index}");
        let request = DelRequest { attachment: attachment("again"), pod: PodRef::default(), add_failed: false };
        assert!(matches!(node.ask(Call::Del(request)).await, Some(Reply::Done(_))), "{index}");
    }
    let checkpoints = written().await - before;
    println!("{checkpoints} checkpoints for 150 ADDs and as many DELs");
    assert!(checkpoints >= 300, "each depends on one of its own: {checkpoints}");
    // One may be on its way to the disk.
    let end = StdInstant::now() + LONG;
    let checkpoint = node.dir.path().join("run/ipam.json");
    while descriptors_of(&checkpoint) > 0 {
        assert!(StdInstant::now() < end, "{} are open", descriptors_of(&checkpoint));
        tokio::task::yield_now().await;
    }
    node.stop().await;
}

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

/// What it gets once it is what is wanted.
async fn probed(address: SocketAddr, path: &'static str, wanted: u16) -> String {
    let end = StdInstant::now() + LONG;
    loop {
        match spawn_blocking(move || probe(address, path)).await.unwrap() {
            Some((status, body)) if status == wanted => return body,
            answer => assert!(StdInstant::now() < end, "{path}: {answer:?}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Its introspection answers with success whatever is asked, at ports that are ours after it.
#[tokio::test(flavor = "multi_thread")]
async fn while_aws_node_serves_ipamd_is_alive_and_not_ready_and_nobody_answers_for_it() {
    let aws = TestDir::new();
    let plugin_socket = std::os::unix::net::UnixListener::bind(aws.path().join("ipamd.sock")).unwrap();
    let (listener, taken) = free_port();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let introspection = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let _read = client.read(&mut request).await;
            let _written =
                client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
        }
    });
    let (free, health) = free_port();
    drop(free);
    let (taken_text, health_text) = (taken.to_string(), health.to_string());
    let file = aws.path().join("ipam.json").display().to_string();
    let mut node = Running::prepared(&[
        ("INTROSPECTION_BIND_ADDRESS", taken_text.as_str()),
        ("SLUICE_METRICS_ADDRESS", taken_text.as_str()),
        ("SLUICE_HEALTH_ADDRESS", health_text.as_str()),
        ("AWS_VPC_K8S_CNI_BACKING_STORE", file.as_str()),
        ("DISABLE_METRICS", "true"),
    ]);
    node.start();
    assert_eq!(probed(taken, "/readyz", 200).await, "{}", "what probes would be told there");
    assert_eq!(probed(health, "/livez", 200).await, "ok\n");
    let why = probed(health, "/readyz", 503).await;
    assert!(why.contains("aws-node serves this node"), "{why}");
    assert!(node.connect().is_err(), "no plugin is served");
    // It is stopped, and waits for its release no longer.
    introspection.abort();
    assert!(introspection.await.unwrap_err().is_cancelled());
    drop(plugin_socket);
    assert_eq!(probed(health, "/readyz", 200).await, "ok\n");
    node.ready().await;
    assert!(fetch(taken, "/v1/pool").await.contains("\"ready\":true"), "the port is ours now");
    node.stop().await;
    let end = StdInstant::now() + LONG;
    while probe(health, "/livez").is_some() {
        assert!(StdInstant::now() < end, "nobody answers for one that has ended");
        tokio::task::yield_now().await;
    }
}
