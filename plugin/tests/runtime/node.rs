//! A node: a thread in namespaces of its own, and the plugin's processes in them.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use serde_json::{Map, Value, json};
use sluice_hostnet::netns::{Namespace, NamespaceThread, ThreadSpec};

use crate::ipamd::Ipamd;

/// The plugin under test.
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_sluice-eni");
/// The pods of reference/vpc-cni.md 4.14.
pub(crate) const POD_A: PodName = PodName { namespace: "default", name: "sample-pod" };
pub(crate) const POD_B: PodName = PodName { namespace: "kube-system", name: "coredns-57ff979f67-qqbdh" };
pub(crate) const HOST_A: &str = "enicc21c2d7785";
pub(crate) const HOST_B: &str = "enib5faff8a083";

/// A pod as Kubernetes names it.
#[derive(Clone, Copy)]
pub(crate) struct PodName {
    pub(crate) namespace: &'static str,
    pub(crate) name: &'static str,
}

impl PodName {
    /// `CNI_ARGS` as containerd makes it.
    pub(crate) fn args(self) -> String {
        format!("K8S_POD_NAME={};IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_UID=uid-1", self.name, self.namespace)
    }
}

pub(crate) struct Node {
    thread: NamespaceThread,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("eni{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let thread = NamespaceThread::spawn(ThreadSpec::new_node(name.clone(), name)).expect("needs root");
        let node = Self { thread };
        node.on(|| {
            mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            std::fs::create_dir_all("/run/sluice").unwrap();
        });
        node.sh("ip link set lo up");
        node
    }

    /// Runs `work` on the node.
    pub(crate) fn on<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.thread.run_blocking(move || async move { work() }).unwrap()
    }

    /// Runs a shell command on the node; it must succeed.
    pub(crate) fn sh(&self, command: &str) -> String {
        let owned = command.to_owned();
        let output = self.on(move || Command::new("sh").args(["-c", &owned]).output().unwrap());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{command}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs `work` in a pod's namespace.
    pub(crate) fn within<T: Send + 'static>(&self, pod: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = Path::new("/run/netns").join(pod);
        self.on(move || Namespace::open(path).unwrap().run(work).unwrap())
    }

    /// A datagram goes from the host, or from a pod, to an address in a pod, and its answer comes back.
    pub(crate) fn assert_reaches(&self, from: Option<&str>, pod: &str, ip: &str) {
        let ip: std::net::IpAddr = ip.parse().unwrap();
        let far = self.within(pod, move || UdpSocket::bind((ip, 0)).unwrap());
        let to = far.local_addr().unwrap();
        let open = move || {
            let any: std::net::IpAddr = if ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            UdpSocket::bind((any, 0)).unwrap()
        };
        let near = match from {
            Some(pod) => self.within(pod, open),
            None => self.on(open),
        };
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        }
        near.send_to(b"there", to).unwrap();
        let mut buffer = [0; 8];
        let (length, back) = far.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{from:?} to {to}: {error}"));
        far.send_to(&buffer[..length], back).unwrap();
        near.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{to} to {from:?}: {error}"));
    }

    /// The host has an address of each family. Of IPv6 the kernel's worker makes the route to it, a moment later; without it
    /// what comes for the address is dropped.
    pub(crate) fn has_addresses(&self) {
        self.sh("ip addr add 10.0.1.10/32 dev lo; ip addr add 2001:db8::10/128 dev lo nodad");
        let routed = || !self.sh("ip -6 route show table local 2001:db8::10").trim().is_empty();
        self.wait("2001:db8::10 is routed to the host itself", routed);
    }

    /// What `ip -j ARGS` prints.
    pub(crate) fn ip(&self, args: &str) -> Value {
        let out = self.sh(&format!("ip -j {args}"));
        let mut value = serde_json::from_str(if out.trim().is_empty() { "[]" } else { &out }).unwrap();
        drop_late(&mut value);
        value
    }

    /// Makes a pod's namespace, as a runtime does.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        let path = Path::new("/run/netns").join(name);
        let made = path.clone();
        self.on(move || drop(Namespace::create(made).unwrap()));
        self.sh(&format!("ip -n {name} link set lo up"));
        path
    }

    /// Takes a pod's namespace away, and waits until the kernel has taken `host` with it.
    pub(crate) fn remove_netns(&self, name: &str, host: &str) {
        let path = Path::new("/run/netns").join(name);
        self.on(move || Namespace::remove(path).unwrap());
        self.wait(&format!("{host} is gone"), || !self.has_link(host));
    }

    pub(crate) fn has_link(&self, name: &str) -> bool {
        let name = name.to_owned();
        self.on(move || Path::new("/proc/sys/net/ipv4/conf").join(name).exists())
    }

    /// Waits for a predicate. The kernel takes its time to clean up a namespace on a busy machine.
    pub(crate) fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !reached() {
            assert!(Instant::now() < deadline, "still not: {what}");
            std::thread::yield_now();
        }
    }

    pub(crate) fn ipamd(&self) -> Ipamd {
        self.on(Ipamd::start)
    }

    /// What `ip monitor` prints of the host's IPv4 routes and rules while `work` is done.
    pub(crate) fn monitored(&self, work: impl FnOnce()) -> Vec<String> {
        let start = || Command::new("ip").args(["-4", "monitor", "route", "rule"]).stdout(Stdio::piped()).spawn();
        let mut monitor = self.on(move || start().unwrap());
        let stdout = monitor.stdout.take().unwrap();
        let (lines, seen) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok) {
                drop(lines.send(line.trim().to_owned()));
            }
        });
        // A change of our own shows where the monitor begins and where it has caught up.
        let passed = |mark: &str| {
            let mut between = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            loop {
                self.sh(&format!("ip route replace blackhole {mark} && ip route del blackhole {mark}"));
                while let Ok(line) = seen.recv_timeout(Duration::from_millis(200)) {
                    if line.contains(mark) && line.starts_with("Deleted") {
                        return between;
                    }
                    between.push(line);
                }
                assert!(Instant::now() < deadline, "ip monitor shows nothing");
            }
        };
        passed("192.0.2.1");
        work();
        let between = passed("192.0.2.2");
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        reader.join().unwrap();
        between.into_iter().filter(|line| !line.contains("192.0.2.")).collect()
    }

    /// Starts the plugin.
    pub(crate) fn spawn(&self, call: &Cni) -> Child {
        let mut command = Command::new(PLUGIN);
        command.env_clear().envs(call.env.clone()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stdin = call.stdin.clone();
        self.on(move || {
            let mut child = command.spawn().unwrap();
            // A plugin that does not read all of it closes its end.
            drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), &stdin));
            child
        })
    }

    /// Executes the plugin.
    pub(crate) fn cni(&self, call: &Cni) -> Answer {
        Answer::of(self.spawn(call))
    }

    /// The rules of the pods, as `PRIORITY: from X to Y lookup TABLE`.
    pub(crate) fn pod_rules(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for family in ["-4", "-6"] {
            for rule in self.ip(&format!("{family} rule")).as_array().unwrap() {
                let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or("-").to_owned();
                let priority = rule["priority"].as_u64().unwrap();
                if [512, 1536].contains(&priority) {
                    rules.push(format!("{priority}: from {} to {} lookup {}", text("src"), text("dst"), text("table")));
                }
            }
        }
        rules
    }

    /// The routes to pods, as `ADDRESS dev DEVICE`.
    pub(crate) fn pod_routes(&self) -> Vec<String> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            for route in self.ip(&format!("{family} route show table main")).as_array().unwrap() {
                let (dst, dev) = (route["dst"].as_str().unwrap(), route["dev"].as_str().unwrap());
                if dev.starts_with("eni") && !dst.starts_with("fe80::/") {
                    routes.push(format!("{dst} dev {dev}"));
                }
            }
        }
        routes
    }

    /// Nothing of any pod is left on the host.
    pub(crate) fn assert_clean(&self) {
        assert_eq!((self.pod_rules(), self.pod_routes()), (vec![], vec![]));
        let links = self.ip("link");
        let names: Vec<_> = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap()).collect();
        assert_eq!(names, ["lo"]);
    }

    pub(crate) fn tombstones(&self) -> Vec<String> {
        let list = self.sh("ls -A /run/sluice/tombstones 2>/dev/null | grep -v '^.lock$' || true");
        list.lines().map(str::to_owned).collect()
    }
}

/// Drops what the kernel changes by itself a moment later.
fn drop_late(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.retain(|flag| flag != "NO-CARRIER");
            list.iter_mut().for_each(drop_late);
        }
        Value::Object(map) => {
            for late in ["operstate", "tentative", "optimistic"] {
                map.remove(late);
            }
            map.values_mut().for_each(drop_late);
        }
        _ => {}
    }
}

/// One execution of the plugin.
#[derive(Clone)]
pub(crate) struct Cni {
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    conf: Map<String, Value>,
}

impl Cni {
    pub(crate) fn new(verb: &str, version: &str) -> Self {
        let conf = json!({"cniVersion": version, "name": "sluice", "type": "sluice-eni", "deadlineSeconds": 1});
        let mut call = Self { env: vec![], stdin: vec![], conf: conf.as_object().unwrap().clone() };
        call = call.env("CNI_COMMAND", verb).env("CNI_PATH", "/opt/cni/bin");
        call.with("capabilities", &json!({"portMappings": true}))
    }

    /// A verb on the attachment of a pod in a sandbox.
    pub(crate) fn on(verb: &str, version: &str, pod: PodName, container: &str, netns: &Path) -> Self {
        Self::new(verb, version)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns.to_str().unwrap())
            .env("CNI_ARGS", &pod.args())
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.retain(|(key, _)| key != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn with(mut self, field: &str, value: &Value) -> Self {
        self.conf.insert(field.to_owned(), value.clone());
        self.stdin = Value::from(self.conf.clone()).to_string().into_bytes();
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    pub(crate) fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The result of a success.
    pub(crate) fn result(&self) -> Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A success that says nothing, as all but ADD and VERSION.
    pub(crate) fn nothing(&self) {
        assert!(self.success, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
    }

    /// Code and text of an error object.
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success, "{self:?}");
        let object: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert!(object["cniVersion"].is_string(), "{self:?}");
        (object["code"].as_u64().unwrap(), object["msg"].as_str().unwrap().to_owned())
    }
}
