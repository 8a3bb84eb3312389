//! A node: a thread in namespaces of its own, and plugins' processes in them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use serde_json::{Map, Value, json};
use sluice_contract::id::IfName;
use sluice_contract::rpc::GateInterface;
use sluice_hostnet::netns::{Namespace, NamespaceThread, ThreadSpec};

use crate::policyd::Policyd;

/// The plugin under test.
const PLUGIN: &str = env!("CARGO_BIN_EXE_sluice-policy");
/// Where Debian has the plugins of the CNI project.
const PLUGINS: &str = "/usr/lib/cni";
/// The plugin's name as an executable.
pub(crate) const POLICY: &str = "sluice-policy";

pub(crate) struct Node {
    thread: NamespaceThread,
}

impl Node {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("policy{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let thread = NamespaceThread::spawn(ThreadSpec::new_node(name.clone(), name)).expect("needs root");
        let node = Self { thread };
        node.on(|| {
            for private in ["/run", "/var/lib"] {
                mount(Some("tmpfs"), private, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
            }
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

    pub(crate) fn policyd(&self) -> Policyd {
        self.on(Policyd::start)
    }

    /// Makes a sandbox, as a runtime does.
    pub(crate) fn netns(&self, name: &str) -> PathBuf {
        let path = Path::new("/run/netns").join(name);
        let made = path.clone();
        self.on(move || drop(Namespace::create(made).unwrap()));
        self.sh(&format!("ip -n {name} link set lo up"));
        path
    }

    /// A veth with one end in a sandbox, as a primary plugin makes it; gives the number of the host's end.
    pub(crate) fn veth(&self, host: &str, sandbox: &str, ifname: &str) -> u32 {
        self.sh(&format!("ip link add {host} type veth peer name {ifname} netns {sandbox}"));
        self.sh(&format!("ip link set {host} up; ip -n {sandbox} link set {ifname} up"));
        self.index(host)
    }

    pub(crate) fn index(&self, link: &str) -> u32 {
        let line = self.sh(&format!("ip -o link show {link}"));
        line.split(':').next().unwrap().parse().unwrap()
    }

    /// Waits for a predicate on a busy machine.
    pub(crate) fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !reached() {
            assert!(Instant::now() < deadline, "still not: {what}");
            std::thread::yield_now();
        }
    }

    /// Starts a plugin.
    pub(crate) fn spawn(&self, call: &Cni) -> Child {
        let kind = call.conf["type"].as_str().unwrap_or(POLICY);
        let plugin = if call.foreign { Path::new(PLUGINS).join(kind) } else { PLUGIN.into() };
        assert!(plugin.exists(), "{} is needed (apt-get install containernetworking-plugins)", plugin.display());
        let mut command = Command::new(plugin);
        command.env_clear().envs(call.env.clone()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let stdin = call.stdin.clone();
        self.on(move || {
            let mut child = command.spawn().unwrap();
            // A plugin that does not read all of it closes its end.
            drop(std::io::Write::write_all(&mut child.stdin.take().unwrap(), &stdin));
            child
        })
    }

    /// Executes a plugin.
    pub(crate) fn cni(&self, call: &Cni) -> Answer {
        Answer::of(self.spawn(call))
    }

    pub(crate) fn tombstones(&self) -> Vec<Value> {
        let list = self.sh("cat /run/sluice/policy/tombstones/*.json 2>/dev/null || true");
        serde_json::Deserializer::from_str(&list).into_iter().map(Result::unwrap).collect()
    }
}

/// One execution of a plugin, for the pod `default/web-0` with the uid `uid-1`.
#[derive(Clone)]
pub(crate) struct Cni {
    env: Vec<(String, String)>,
    stdin: Vec<u8>,
    conf: Map<String, Value>,
    foreign: bool,
}

impl Cni {
    pub(crate) fn new(verb: &str, version: &str) -> Self {
        let conf = json!({"cniVersion": version, "name": "sluice", "type": POLICY});
        let mut call = Self { env: vec![], stdin: vec![], conf: conf.as_object().unwrap().clone(), foreign: false };
        call = call.env("CNI_COMMAND", verb).env("CNI_PATH", PLUGINS);
        call.with("policyWaitSeconds", &json!(2))
    }

    /// A verb on the attachment `SANDBOX/eth0`.
    pub(crate) fn on(verb: &str, version: &str, netns: &Path) -> Self {
        let args = "K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=uid-1";
        Self::new(verb, version)
            .env("CNI_CONTAINERID", netns.file_name().unwrap().to_str().unwrap())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", netns.to_str().unwrap())
            .env("CNI_ARGS", args)
    }

    /// The same of a plugin of the CNI project, with its own configuration.
    pub(crate) fn foreign(verb: &str, version: &str, netns: &Path, conf: &Value) -> Self {
        let mut call = Self::on(verb, version, netns);
        call.foreign = true;
        conf.as_object().unwrap().iter().fold(call, |call, (field, value)| call.with(field, value))
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

    pub(crate) fn after(self, result: &Value) -> Self {
        self.with("prevResult", result)
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Vec<u8>>) -> Self {
        self.stdin = stdin.into();
        self
    }
}

/// What a plugin answered.
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

    /// The details of an error object.
    pub(crate) fn details(&self) -> String {
        let object: Value = serde_json::from_str(&self.stdout).unwrap();
        object["details"].as_str().unwrap_or_default().to_owned()
    }
}

/// An interface as policyd should be told of it.
pub(crate) fn gate(host: &str, host_index: u32, container: &str, addresses: &[&str]) -> GateInterface {
    GateInterface {
        host: IfName::new(host).unwrap(),
        host_index,
        container: IfName::new(container).unwrap(),
        addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
    }
}
