//! What an operator sees of a node (issue G): flows by Hubble's protocol, also for a client that we did not write, and faults
//! that were seeded, each named by `sluice doctor`, `sluice explain` or a flow.

mod faults;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sluice_policy_bpf::gate::{Gate, GateConfig};
use sluice_tests::bed::{LIMIT, scene};
use sluice_tests::bench::rss::anonymous;
use sluice_tests::directory::Directory;
use sluice_tests::privileged::{may_run, privileged};
use sluice_tests::storm::{Storm, Told};
use sluice_vpcsim::deployment::{Binaries, Deployment, GateBinaries, Pod};
use sluice_vpcsim::policyd::Source;
use sluice_vpcsim::probe::http::{self, HTTP_PORT};
use sluice_vpcsim::probe::{self, ECHO_PORT};
use sluice_vpcsim::scene::Scene;
use sluice_vpcsim::world::World;
use tokio::process::Command;
use tokio::time::Instant;

/// How long what is seen may take to show.
const SHOWN: Duration = Duration::from_secs(20);
/// Packets that policyd does not look at, many times what the ring of events holds, and the MiB that it may need for what it keeps.
const STORM: u64 = 100_000;
const STORM_MEMORY: f64 = 48.0;
/// How long silence is listened to.
const SILENCE: Duration = Duration::from_millis(400);
/// A Hubble client by Python's gRPC, which knows the protocol from numbers alone.
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/see/client.py");

/// A node with everything, and three pods.
struct Ground {
    // The order is that in which they go.
    deployment: Arc<Deployment>,
    directory: Directory,
    pods: BTreeMap<&'static str, Pod>,
    _world: World,
}

/// Policies: web may not reach db (no rule), and may ask api for GET /public.
const POLICIES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "8081", protocol: TCP}], rules: {http: [{method: GET, path: /public}]}}]
"#;

const PODS: [&str; 3] = ["web", "db", "api"];
/// Two that come later.
const LATE: [&str; 2] = ["late", "later"];

impl Ground {
    async fn up() -> Self {
        Self::up_with(POLICIES, BTreeMap::new(), false).await
    }

    /// With these policies, with maps of the gates that hold so many entries, and with flows by TLS, whose files a test makes.
    async fn up_with(policies: &str, limits: BTreeMap<&'static str, u32>, tls: bool) -> Self {
        let world = World::up(&scene(0.05).parse::<Scene>().unwrap()).await.unwrap();
        let directory = Directory::new("see").unwrap();
        let node = Arc::clone(world.node("node-a").unwrap());
        let (binaries, gate) = (Binaries::beside_this_program().unwrap(), GateBinaries::beside_this_program().unwrap());
        let mut ground_pods = BTreeMap::new();
        write(&directory, &BTreeMap::new());
        fs::write(directory.path().join("policies.yaml"), policies).unwrap();
        if !limits.is_empty() {
            // policyd takes over what is there.
            let config = GateConfig { limits, ..GateConfig::default() };
            let make = move || Gate::open(&config).map(drop).map_err(|error| error.to_string());
            node.run(make).await.unwrap().unwrap();
        }
        let source = Source::Directory(directory.path().to_owned());
        let environment = BTreeMap::from([("WARM_IP_TARGET".to_owned(), "2".to_owned())]);
        let deployment = Deployment::install_gated(node, &binaries, &gate, environment, source).await.unwrap();
        let file = |name: &str| directory.path().join("tls").join(name).display().to_string();
        let files = [("CERT", "server.crt"), ("KEY", "server.key"), ("CLIENT_CA", "ca.crt")];
        let files = files.map(|(variable, name)| (format!("SLUICE_HUBBLE_TLS_{variable}"), file(name)));
        let deployment = deployment.with_policyd_environment(files.into_iter().filter(|_| tls).collect());
        let one = BTreeMap::from([("SLUICE_PROXY_WORKERS".to_owned(), "1".to_owned())]);
        let deployment = Arc::new(deployment.with_proxy(Binaries::find("sluice-proxy").unwrap(), one));
        deployment.start_ipamd().await.unwrap();
        deployment.policyd().unwrap().start().await.unwrap();
        deployment.proxy().unwrap().start().await.unwrap();
        deployment.ready(LIMIT).await.unwrap();
        deployment.policyd().unwrap().ready(LIMIT).await.unwrap();
        deployment.proxy().unwrap().ready(LIMIT).await.unwrap();
        for name in PODS {
            ground_pods.insert(name, deployment.add("shop", name).await.unwrap());
        }
        let addresses = ground_pods.iter().map(|(name, pod)| (*name, pod.address)).collect();
        write(&directory, &addresses);
        let known = |view: &Value| {
            view["endpoints"].as_array().is_some_and(|all| all.iter().all(|one| !one["revision"].is_null()))
        };
        deployment.policyd().unwrap().until("the pods' policies", LIMIT, known).await.unwrap();
        Self { deployment, directory, pods: ground_pods, _world: world }
    }

    fn address(&self, pod: &str) -> Ipv4Addr {
        self.pods[pod].address
    }

    /// Has a pod do something.
    async fn at<T: Send + 'static, F>(&self, pod: &str, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T> + 'static,
    {
        let thread = self.deployment.node().pod(&self.pods[pod].sandbox.netns).await.unwrap();
        thread.run(work).await.unwrap()
    }

    /// Runs a program on the node.
    async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
        self.deployment.node().spawn(command).await.unwrap().wait_with_output().await.unwrap()
    }

    /// What `sluice` prints on the node.
    async fn sluice(&self, arguments: &[&str]) -> String {
        let sluice = Binaries::find("sluice").unwrap();
        let output = self.run(sluice.to_str().unwrap(), arguments).await;
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Flows, as JSON, once one of them is wanted.
    async fn flow(&self, arguments: &[&str], wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + SHOWN;
        loop {
            let told = self.sluice(&[&["observe", "--all", "-o", "jsonpb"], arguments].concat()).await;
            let flows = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let flows: Vec<Value> = flows.map(|response| response["flow"].clone()).collect();
            if let Some(flow) = flows.iter().find(|flow| wanted(flow)) {
                return flow.clone();
            }
            assert!(Instant::now() < end, "sluice observe {arguments:?} shows {flows:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until doctor has a finding of this check with these words in it, and a mend.
    async fn finds(&self, check: &str, words: &str) {
        let end = Instant::now() + SHOWN;
        loop {
            let findings: Value = serde_json::from_str(&self.sluice(&["doctor", "--json"]).await).unwrap();
            let is_it = |finding: &&Value| {
                finding["check"] == check && finding["mend"].is_string() && finding.to_string().contains(words)
            };
            if findings.as_array().unwrap().iter().any(|finding| is_it(&finding)) {
                return;
            }
            assert!(Instant::now() < end, "no finding of {check} has {words:?}: {findings:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until doctor has nothing to say of a check.
    async fn well(&self, check: &str) {
        let end = Instant::now() + SHOWN;
        loop {
            let findings: Value = serde_json::from_str(&self.sluice(&["doctor", "--json"]).await).unwrap();
            let of = findings.as_array().unwrap().iter().filter(|finding| finding["check"] == check);
            if of.clone().all(|finding| finding["standing"] == "well") {
                return;
            }
            assert!(Instant::now() < end, "{check} does not become well: {findings:#}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A Prometheus that we did not write scrapes all three daemons, and loads the rules.
async fn scraped(ground: &Ground) {
    let directory = ground.directory.path().join("prometheus");
    fs::create_dir_all(&directory).unwrap();
    let targets = ["127.0.0.1:61678", "127.0.0.1:9962", "127.0.0.1:9963"];
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [repository("deploy/monitoring/alerts.yaml")],
        "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": targets}]}],
    });
    let file = directory.join("prometheus.yml");
    // JSON is YAML.
    fs::write(&file, config.to_string()).unwrap();
    let mut command = Command::new("/usr/bin/prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
    command.args(["--web.listen-address=127.0.0.1:9090", "--log.level=error"]).kill_on_drop(true);
    let mut prometheus = ground.deployment.node().spawn(command).await.unwrap();
    let ask = async |path: &str| {
        let output = ground.run("/usr/bin/curl", &["-gs", &format!("http://127.0.0.1:9090{path}")]).await;
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let end = Instant::now() + SHOWN;
    loop {
        let active = ask("/api/v1/targets?state=active").await;
        let up = active["data"]["activeTargets"]
            .as_array()
            .map_or(0, |targets| targets.iter().filter(|target| target["health"] == "up").count());
        let rules = ask("/api/v1/rules").await.to_string();
        let drops = ask("/api/v1/query?query=sum(hubble_drop_total)").await;
        let dropped = drops["data"]["result"][0]["value"][1].as_str().is_some_and(|count| count != "0");
        if up == targets.len() && dropped && rules.contains("SluiceProxyGone") && !rules.contains("\"health\":\"err\"")
        {
            break;
        }
        assert!(Instant::now() < end, "{active:#}\n{rules}\n{drops}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Every metric that is documented, with its type and its meaning; and every sample has the labels that are documented.
    let told = ask("/api/v1/targets/metadata").await;
    let told: BTreeMap<(&str, &str), (&str, &str)> = told["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| {
            let text = |key: &str| metric[key].as_str().unwrap();
            let target = metric["target"]["instance"].as_str().unwrap();
            ((target, text("metric")), (text("type"), text("help").trim_end_matches('.')))
        })
        .collect();
    for (target, page) in targets.iter().zip(["metrics", "policyd-metrics", "proxy-metrics"]) {
        let documented = documented(page);
        assert!(documented.len() > 30, "{page} documents {} metrics", documented.len());
        // Of these, those that are there where the cluster is an API server.
        let here = |name: &&String| !name.starts_with("sluice_policy_kube_");
        for (name, metric) in documented.iter().filter(|(name, _)| here(name)) {
            let found = told.get(&(target, name.as_str()));
            let help = metric.help.trim_end_matches('.');
            assert_eq!(found, Some(&(metric.kind.as_str(), help)), "{name} at {target}");
        }
        let series = ask(&format!("/api/v1/series?match[]={{instance=%22{target}%22}}")).await;
        for series in series["data"].as_array().unwrap() {
            let name = series["__name__"].as_str().unwrap();
            let ends = ["", "_bucket", "_sum", "_count"].into_iter().filter_map(|end| name.strip_suffix(end));
            // `up` and what a scrape took are Prometheus' own.
            let Some(metric) = ends.filter_map(|name| documented.get(name)).next() else {
                let own = name == "up" || name.starts_with("scrape_");
                assert!(own, "{target} has {name}, of which {page} says nothing");
                continue;
            };
            let labels = series.as_object().unwrap().keys().map(String::as_str);
            let mut labels: Vec<&str> =
                labels.filter(|label| !["__name__", "instance", "job", "le"].contains(label)).collect();
            labels.sort_unstable();
            let mut expected: Vec<&str> = metric.labels.iter().map(String::as_str).collect();
            expected.sort_unstable();
            // To Prometheus a label without a value is none: here no start has failed.
            expected.retain(|label| *label != "failure_reason" || labels.contains(label));
            assert_eq!(labels, expected, "{name} at {target}");
        }
    }
    prometheus.kill().await.unwrap();
}

/// A row of a page of metrics.
struct Documented {
    kind: String,
    labels: Vec<String>,
    help: String,
}

/// The metrics of a page of docs/, by name.
fn documented(page: &str) -> BTreeMap<String, Documented> {
    let text = fs::read_to_string(repository(&format!("docs/{page}.md"))).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, help] = cells[..] else { panic!("{page}: {line}") };
        let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty()).map(str::to_owned).collect();
        let metric = Documented { kind: kind.to_owned(), labels, help: help.to_owned() };
        (name.trim_matches('`').to_owned(), metric)
    };
    rows.map(row).collect()
}

fn repository(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Alerts and dashboards ask for metrics that there are, and promtool finds no fault with the rules.
#[test]
fn p61_alerts_and_dashboards_are_about_metrics_that_there_are() {
    let documented: BTreeMap<String, Documented> =
        ["metrics", "policyd-metrics", "proxy-metrics"].into_iter().flat_map(documented).collect();
    for file in ["deploy/monitoring/alerts.yaml", "deploy/dashboards/sluice.json"] {
        let text = fs::read_to_string(repository(file)).unwrap();
        let words = text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
        let is_metric = |word: &&str| ["sluice_", "awscni_", "hubble_"].iter().any(|prefix| word.starts_with(prefix));
        let metrics: Vec<&str> = words.filter(is_metric).collect();
        assert!(metrics.len() > 10, "{file} is about {metrics:?}");
        for metric in metrics {
            let name = metric.strip_suffix("_bucket").unwrap_or(metric);
            assert!(documented.contains_key(name), "{file} asks for {metric}, which no page of docs/ has");
        }
    }
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(repository("deploy/dashboards/sluice.json")).unwrap()).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    let has = std::process::Command::new("/usr/bin/promtool").arg("--version").output();
    if !may_run(has.map(drop)) {
        return;
    }
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        let mut promtool = std::process::Command::new("/usr/bin/promtool");
        let output = promtool.args(arguments).current_dir(repository("deploy/monitoring")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn write(directory: &Directory, addresses: &BTreeMap<&str, Ipv4Addr>) {
    let mut items = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.1.4"}]}}),
    ];
    items.extend(PODS.iter().chain(&LATE).map(|name| {
        let ips: Vec<Value> = addresses.get(name).iter().map(|address| json!({"ip": address})).collect();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
            "spec": {"nodeName": "node-a", "containers": []}, "status": {"phase": "Running", "podIPs": ips}})
    }));
    let text = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    directory.write("cluster.json", &text).unwrap();
}

/// A cluster is asked by kubectl, which is a script here: of its two nodes one is this, and the other's pod is gone.
async fn from_afar(ground: &Ground, port: &str) {
    let pod = |name: &str, node: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"phase": "Running"}});
    let pods = json!({"items": [pod("sluice-a", "node-a"), pod("gone", "node-b")]});
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*' get pods --selector app.kubernetes.io/name=sluice,app.kubernetes.io/component=node '*)\n\
         echo '{pods}' ;;\n*' exec sluice-a --container conflist -- /usr/local/bin/sluice '*)\n\
         while [ \"$1\" != -- ]; do shift; done; shift 2; exec {} \"$@\" ;;\n\
         *) echo 'Error from server (NotFound): pods \"gone\" not found' >&2; exit 1 ;;\nesac\n",
        Binaries::find("sluice").unwrap().display(),
    );
    let kubectl = ground.directory.path().join("kubectl");
    fs::write(&kubectl, script).unwrap();
    fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
    let kubectl = ["--kubectl", kubectl.to_str().unwrap()];
    let status = ground.sluice(&[&["status", "--cluster"], kubectl.as_slice()].concat()).await;
    assert!(status.contains("it cannot be asked: Error from server (NotFound)"), "{status}");
    let line = status.lines().find(|line| line.starts_with("node-a ")).unwrap_or_else(|| panic!("{status}"));
    assert!(line.contains(" 3 of "), "{status}");
    let asked = ["observe", "--cluster", "--verdict", "DROPPED", "--to-port", port, "-o", "jsonpb"];
    let flows = ground.sluice(&[asked.as_slice(), &kubectl].concat()).await;
    let flow: Value = serde_json::from_str(flows.lines().next().unwrap_or_default()).unwrap();
    assert_eq!(
        (&flow["node_name"], &flow["flow"]["destination"]["pod_name"]),
        (&json!("node-a"), &json!("db")),
        "{flows}"
    );
    let of_one = ground.sluice(&[&["status", "--on", "node-a"], kubectl.as_slice()].concat()).await;
    assert!(!of_one.contains("node-b"), "{of_one}");
}

/// SPECIFICATION P-62: every packet of a storm that is dropped is told, or counted as lost; policyd stays small, and does
/// what else it has to do.
async fn drops_by_the_hundred_thousand(ground: &Ground) {
    let policyd = ground.deployment.policyd().unwrap();
    let told = async || Told::of(&policyd.page("/v1/policy").await.unwrap());
    let memory = async || anonymous(policyd.pid().await.unwrap()).unwrap();
    // Counted from a time at which nothing is dropped: what is dropped while a page is made is among one number and not yet among
    // the other.
    let (mut before, quiet) = (told().await, Instant::now() + LIMIT);
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = told().await;
        if now == before {
            break;
        }
        assert!(Instant::now() < quiet, "drops do not come to rest: {now:?}");
        before = now;
    }
    let small = memory().await;
    let process = Pid::from_raw(policyd.pid().await.unwrap().try_into().unwrap());
    let to = (ground.address("db"), ECHO_PORT).into();
    let storm = ground.at("web", move || async move { Storm::begin(1, to) }).await.unwrap();
    // Whether it could keep up with them is the machine's doing: so many while it stands still, and the ring is full.
    kill(process, Signal::SIGSTOP).unwrap();
    let (begun, end) = (storm.sent(), Instant::now() + LIMIT);
    while storm.sent() - begun < STORM && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    kill(process, Signal::SIGCONT).unwrap();
    assert!(storm.sent() - begun >= STORM, "only {} were sent", storm.sent() - begun);
    let late = ground.deployment.add("shop", LATE[0]).await.unwrap();
    assert!(storm.end() >= STORM);
    let end = Instant::now() + SHOWN;
    loop {
        let since = told().await.since(before);
        if since.lost > 0 && since.is_all() {
            break;
        }
        assert!(Instant::now() < end, "drops of which nobody tells, or none that was lost: {since:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let grown = memory().await - small;
    assert!(grown < STORM_MEMORY, "policyd has grown by {grown} MiB");
    let said = ground.sluice(&["observe", "--since", "10m", "-o", "jsonpb"]).await;
    assert!(said.contains("lost_events"), "what was lost is told where it is missing");
    ground.deployment.delete(&late.sandbox).await.unwrap();
}

/// SPECIFICATION P-60.
#[tokio::test(flavor = "multi_thread")]
async fn p60_what_happens_on_a_node_is_seen_and_what_is_wrong_is_named() {
    if !privileged() {
        return;
    }
    let ground = Ground::up().await;
    let (web, db, api) = (ground.address("web"), ground.address("db"), ground.address("api"));
    let status = ground.sluice(&["status"]).await;
    assert!(status.contains("ipamd      ready, m5.large") && status.contains("endpoints  3:"), "{status}");

    // A wrong policy: the flow names it, and so does explain.
    let to_db = SocketAddrV4::new(db, ECHO_PORT);
    let denied = ground.at("web", move || async move { probe::tcp(None, to_db, SILENCE).await.is_err() }).await;
    assert!(denied, "db answers web");
    let dropped = ground.flow(&["--verdict", "DROPPED", "--to-pod", "shop/db"], |_| true).await;
    assert_eq!(dropped["source"]["pod_name"], "web");
    assert_eq!(dropped["IP"]["source"], web.to_string());
    assert_eq!(dropped["drop_reason_desc"], "POLICY_DENIED");
    assert_eq!(dropped["ingress_denied_by"][0]["name"], "db", "{dropped:#}");
    let port = format!("{ECHO_PORT}");
    let explained = ground.sluice(&["explain", "--from", "shop/web", "--to", "shop/db", "--port", &port]).await;
    assert!(explained.contains("deny") && explained.contains("NetworkPolicy shop/db"), "{explained}");

    // Requests, with their rule.
    let at = SocketAddrV4::new(api, HTTP_PORT);
    ground.at("api", move || http::serve_in_background(at)).await.unwrap();
    for (path, code) in [("/public", 200), ("/admin", 403)] {
        let answer = ground.at("web", move || async move { http::get(at, "GET", path, SHOWN).await }).await.unwrap();
        assert_eq!(answer.status, code, "{path}");
    }
    let passed = ground.flow(&["--type", "l7", "--http-path", "^/public$"], |_| true).await;
    assert_eq!((&passed["verdict"], &passed["l7"]["http"]["code"]), (&json!("FORWARDED"), &json!(200)), "{passed:#}");
    assert_eq!(passed["ingress_allowed_by"][0]["name"], "api", "{passed:#}");
    let refused = ground.flow(&["--http-status", "403"], |_| true).await;
    assert_eq!(
        (&refused["verdict"], &refused["source"]["pod_name"]),
        (&json!("DROPPED"), &json!("web")),
        "{refused:#}"
    );

    // A client that we did not write, on the socket and on the port.
    for server in ["unix:/run/sluice/hubble.sock", "127.0.0.1:4244"] {
        let output = ground.run("/usr/bin/python3", &[CLIENT, server]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{server}: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("all fields are where Hubble has them"), "{said}");
    }
    scraped(&ground).await;
    from_afar(&ground, &port).await;
    drops_by_the_hundred_thousand(&ground).await;

    // A missing route.
    ground.well("routes").await;
    let prefix = format!("{web}/32");
    let route = async || String::from_utf8(ground.run("/sbin/ip", &["route", "show", &prefix]).await.stdout).unwrap();
    let was = route().await;
    assert!(ground.run("/sbin/ip", &["route", "del", &prefix]).await.status.success(), "{was}");
    let end = Instant::now() + SHOWN;
    // It is named for as long as it is away: who repairs the host may have put it back before doctor looked.
    while !ground.sluice(&["doctor"]).await.contains(&format!("shop/web: no route {web}")) && route().await.is_empty() {
        assert!(Instant::now() < end, "doctor does not see that the route of web is gone");
    }
    let words: Vec<&str> = was.split_whitespace().collect();
    ground.run("/sbin/ip", &[&["route", "replace"], words.as_slice()].concat()).await;
    ground.well("routes").await;
    // A foreign rule.
    ground.run("/sbin/ip", &["rule", "add", "from", "10.0.0.0/8", "lookup", "100", "priority", "100"]).await;
    ground.finds("rules", "100: from 10.0.0.0/8").await;
    ground.run("/sbin/ip", &["rule", "del", "priority", "100"]).await;
    ground.well("rules").await;
    // A stale conflist.
    let stale = r#"{"name": "a", "plugins": [{"type": "aws-cni"}]}"#;
    ground.deployment.node().write("/etc/cni/net.d/00-a.conflist", stale).await.unwrap();
    ground.finds("conflist", "00-a.conflist").await;
    ground.run("/bin/rm", &["/etc/cni/net.d/00-a.conflist"]).await;
    ground.well("conflist").await;
    // A policy that means nothing.
    let broken = POLICIES.replace("method: GET", "method: '('");
    fs::write(ground.directory.path().join("policies.yaml"), broken).unwrap();
    ground.finds("policies", "CiliumNetworkPolicy shop/api").await;
    fs::write(ground.directory.path().join("policies.yaml"), POLICIES).unwrap();
    ground.well("policies").await;
    // A dead proxy: doctor and the flow say so.
    ground.deployment.proxy().unwrap().kill().await;
    ground.finds("proxy", "no sluice-proxy runs").await;
    let gone = ground.at("web", move || async move { http::get(at, "GET", "/public", SILENCE).await.is_err() }).await;
    assert!(gone, "a request passes without a proxy");
    ground
        .flow(&["--verdict", "DROPPED", "--to-port", "8081"], |flow| {
            flow["Summary"].to_string().contains("sluice-proxy")
        })
        .await;
    // What is logged changes while a daemon runs, and goes back.
    let lines = ground.sluice(&["log"]).await;
    assert!(lines.starts_with("sluice-ipamd    info\nsluice-policyd  info\nsluice-proxy    /run/"), "{lines}");
    let lines = ground.sluice(&["log", "policyd", "debug"]).await;
    assert_eq!(lines, "sluice-policyd  debug (it was started with info)\n");
    let logged = async || ground.deployment.node().log_tail("policyd", 100_000).matches(" DEBUG ").count();
    ground.at("web", move || async move { probe::tcp(None, to_db, SILENCE).await.is_err() }).await;
    let end = Instant::now() + SHOWN;
    while logged().await == 0 {
        assert!(Instant::now() < end, "policyd logs nothing at the level debug");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ground.sluice(&["log", "policyd", "--reset"]).await, "sluice-policyd  info\n");
    // Daemons that are gone.
    ground.deployment.policyd().unwrap().kill().await;
    ground.finds("policyd", "does not answer").await;
}

/// SPECIFICATION P-63: the node's page in a browser, in both themes, at three widths, by keyboard alone. Screenshots are kept in
/// `SLUICE_SCREENSHOTS`, where that is set.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "./test browser installs Chromium, and runs it"]
#[expect(clippy::disallowed_methods, reason = "where a person wants to look at the screenshots")]
async fn p63_the_page_of_a_node_is_seen_and_used_in_a_browser() {
    if !privileged() {
        return;
    }
    let ground = Ground::up().await;
    let (to_db, at) =
        (SocketAddrV4::new(ground.address("db"), ECHO_PORT), SocketAddrV4::new(ground.address("api"), HTTP_PORT));
    assert!(ground.at("web", move || async move { probe::tcp(None, to_db, SILENCE).await.is_err() }).await);
    ground.at("api", move || http::serve_in_background(at)).await.unwrap();
    for path in ["/public", "/admin"] {
        ground.at("web", move || async move { http::get(at, "GET", path, SHOWN).await }).await.unwrap();
    }
    let shots =
        std::env::var("SLUICE_SCREENSHOTS").map_or_else(|_| ground.directory.path().join("page"), PathBuf::from);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/node/see/browser.py");
    let needles = ["shop/web", "in force", "DROPPED", "NetworkPolicy shop/db isolates the pod", "GET", "all is well"];
    let arguments = [&[script, "http://127.0.0.1:61680/", shots.to_str().unwrap()], needles.as_slice()].concat();
    let output = ground.run("/usr/bin/python3", &arguments).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
