//! A real container runtime on a node: Debian's containerd and runc, driven through CRI as the kubelet drives them.
//!
//! Everything that containerd keeps lies below `/run` of the node, which is the node's own and in memory. The pods'
//! control groups are the only thing outside, and go with [`Containerd`].

mod cgroup;
mod cri;
mod image;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_vpcsim::node::{Node, NodeError, Program};
use tokio::process::Child;

use cgroup::Cgroup;
use cri::{
    ContainerConfig, ContainerId, ContainerMetadata, CreateContainerRequest, CriClient, Empty, ExecSyncRequest,
    ExecSyncResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, LinuxPodSandboxConfig,
    ListPodSandboxResponse, PodSandboxConfig, PodSandboxMetadata, PodSandboxRequest, PodSandboxStatusResponse,
    RunPodSandboxRequest, RunPodSandboxResponse, StatusResponse,
};

pub use cri::CriError;

/// The directory of Debian's CNI plugins.
pub const DEBIAN_CNI: &str = "/usr/lib/cni";
/// Where the node's containerd keeps its files.
const DIR: &str = "/run/containerd-test";
const SOCKET: &str = "/run/containerd-test/containerd.sock";
/// The image of sandboxes and containers.
const IMAGE: &str = "sluice.test/pause:1";
/// How long containerd may take to serve, and to end.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a command in a container may take, in seconds.
const EXEC_LIMIT: i64 = 30;

/// What has to be installed: a program, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/containerd", "containerd"),
    ("/usr/bin/containerd-shim-runc-v2", "containerd"),
    ("/usr/bin/ctr", "containerd"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/loopback", "containernetworking-plugins"),
    ("/bin/busybox", "busybox-static"),
];

/// Why there is no containerd on a node.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// A program is not installed.
    #[error("{program} is missing: install Debian's package {package} (.ci/packages {package})")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// The node refused.
    #[error("containerd cannot be set up")]
    Node(#[from] NodeError),
    /// A file could not be read or written.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// containerd ended, or does not serve in time.
    #[error("containerd does not serve: {reason}; its log ends with: {log}")]
    NotReady {
        /// What it answered last.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// The image could not be imported.
    #[error("the image cannot be imported: {0}")]
    Import(String),
    /// containerd or one of its shims did not end.
    #[error("containerd does not end on SIGTERM")]
    Stuck,
    /// A call failed.
    #[error(transparent)]
    Cri(#[from] CriError),
}

/// A sandbox that containerd made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// The id that containerd gave; `CNI_CONTAINERID` for the plugins.
    pub id: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Its addresses, as containerd reports them to the kubelet.
    pub addresses: Vec<IpAddr>,
}

/// What a command in a container said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit status.
    pub status: i32,
    /// Standard output, then standard error.
    pub text: String,
}

/// A containerd that runs on a node. Call [`Containerd::shut_down`] in the end; dropping it kills the pods, and the
/// node takes the rest with it.
#[derive(Debug)]
pub struct Containerd<'node> {
    node: &'node Node,
    process: Child,
    cri: CriClient,
    /// Declared last: it goes when containerd is dead and makes no new groups.
    cgroup: Cgroup,
}

/// Names the first program that [`Containerd`] needs and the machine lacks.
///
/// # Errors
/// [`ContainerdError::Missing`].
pub fn installed() -> Result<(), ContainerdError> {
    match PROGRAMS.iter().find(|(program, _)| !Path::new(program).exists()) {
        Some((program, package)) => Err(ContainerdError::Missing { program, package }),
        None => Ok(()),
    }
}

impl<'node> Containerd<'node> {
    /// Starts containerd on `node` and waits until it can start pods, as far as that depends on containerd: a missing
    /// conflist shows when a pod is started.
    ///
    /// # Errors
    /// [`ContainerdError`]; the log is in the message.
    pub async fn start(node: &'node Node) -> Result<Self, ContainerdError> {
        installed()?;
        node.write(Path::new(DIR).join("config.toml"), &configuration()).await?;
        // containerd runs this plugin for every sandbox, whatever the conflist says.
        node.install(&Path::new(DEBIAN_CNI).join("loopback"), Path::new("/opt/cni/bin/loopback")).await?;
        let program = Program {
            name: "containerd".into(),
            path: "/usr/bin/containerd".into(),
            args: vec!["--config".into(), format!("{DIR}/config.toml")],
            env: BTreeMap::new(),
        };
        let cgroup = Cgroup::new();
        let mut process = node.start(&program).await?;
        let deadline = Instant::now() + LIMIT;
        let cri = loop {
            let reason = match connect(node).await {
                Ok(client) => match client.call("RuntimeService/Status", &Empty {}).await {
                    Ok(StatusResponse { status: Some(status) }) => {
                        match status.conditions.iter().find(|c| c.kind == "RuntimeReady" && !c.status) {
                            None => break client,
                            Some(condition) => condition.message.clone(),
                        }
                    }
                    Ok(_) => "it has no status".into(),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            let ended = process.try_wait().is_ok_and(|status| status.is_some());
            if ended || Instant::now() >= deadline {
                return Err(ContainerdError::NotReady { reason, log: log_end(node) });
            }
            tokio::time::sleep(LOOK).await;
        };
        let runtime = Self { node, process, cri, cgroup };
        runtime.import().await?;
        Ok(runtime)
    }

    async fn import(&self) -> Result<(), ContainerdError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| ContainerdError::Io { what, source }
        };
        let tar = image::busybox_image(IMAGE, Path::new("/bin/busybox"))
            .map_err(io("the image cannot be made of /bin/busybox"))?;
        let output = self
            .node
            .run(move || {
                let path = Path::new(DIR).join("image.tar");
                std::fs::write(&path, tar)?;
                let mut ctr = std::process::Command::new("/usr/bin/ctr");
                ctr.args(["--address", SOCKET, "--namespace", "k8s.io", "images", "import"]).arg(&path);
                let output = ctr.output()?;
                std::fs::remove_file(&path)?;
                Ok(output)
            })
            .await?
            .map_err(io("the image cannot be imported"))?;
        if !output.status.success() {
            return Err(ContainerdError::Import(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        // CRI learns of the image by an event.
        let deadline = Instant::now() + LIMIT;
        let request = ImageStatusRequest { image: Some(ImageSpec { image: IMAGE.into() }) };
        loop {
            let known: ImageStatusResponse = self.cri.call("ImageService/ImageStatus", &request).await?;
            if known.image.is_some() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ContainerdError::Import(format!("CRI does not see it within {} s", LIMIT.as_secs())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Starts a pod without containers: its namespaces, and its network by the node's conflist.
    ///
    /// # Errors
    /// [`CriError::Refused`] with containerd's reason, such as a plugin's error.
    pub async fn run_pod(&self, namespace: &str, name: &str) -> Result<Pod, CriError> {
        self.run_annotated(namespace, name, BTreeMap::new()).await
    }

    /// The same for a pod that has annotations.
    ///
    /// # Errors
    /// As [`Self::run_pod`].
    pub async fn run_annotated(
        &self,
        namespace: &str,
        name: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<Pod, CriError> {
        let config = PodSandboxConfig { annotations, ..self.sandbox_config(namespace, name) };
        let request = RunPodSandboxRequest { config: Some(config) };
        let made: RunPodSandboxResponse = self.cri.call("RuntimeService/RunPodSandbox", &request).await?;
        let addresses = self.addresses(&made.pod_sandbox_id).await?;
        Ok(Pod { id: made.pod_sandbox_id, namespace: namespace.into(), name: name.into(), addresses })
    }

    async fn addresses(&self, id: &str) -> Result<Vec<IpAddr>, CriError> {
        let method = "RuntimeService/PodSandboxStatus";
        let malformed = |reason: String| CriError::Malformed { method, reason };
        let request = PodSandboxRequest { pod_sandbox_id: id.into() };
        let answer: PodSandboxStatusResponse = self.cri.call(method, &request).await?;
        let status = answer.status.ok_or_else(|| malformed("no status".into()))?;
        if status.state != 0 || status.id != id {
            return Err(malformed(format!("sandbox {} is in state {}", status.id, status.state)));
        }
        let network = status.network.ok_or_else(|| malformed("no network".into()))?;
        std::iter::once(&network.ip)
            .chain(network.additional_ips.iter().map(|more| &more.ip))
            .map(|ip| ip.parse().map_err(|_not_one| malformed(format!("`{ip}` is no address"))))
            .collect()
    }

    /// Starts a container in the pod that runs busybox with `arguments`; its id is the answer.
    ///
    /// # Errors
    /// [`CriError::Refused`] with containerd's reason.
    pub async fn run_container(&self, pod: &Pod, name: &str, arguments: &[&str]) -> Result<String, CriError> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.into() }),
                image: Some(ImageSpec { image: IMAGE.into() }),
                command: busybox(arguments),
                linux: Some(Empty {}),
            }),
            sandbox_config: Some(self.sandbox_config(&pod.namespace, &pod.name)),
        };
        let made: ContainerId = self.cri.call("RuntimeService/CreateContainer", &request).await?;
        self.cri.call::<_, Empty>("RuntimeService/StartContainer", &made).await?;
        Ok(made.container_id)
    }

    /// Runs busybox with `arguments` in a container and waits for it, up to 30 s.
    ///
    /// # Errors
    /// [`CriError::Refused`] when it cannot be run or takes too long; that it failed is in [`Output::status`].
    pub async fn exec(&self, container: &str, arguments: &[&str]) -> Result<Output, CriError> {
        let request = ExecSyncRequest { container_id: container.into(), cmd: busybox(arguments), timeout: EXEC_LIMIT };
        let done: ExecSyncResponse = self.cri.call("RuntimeService/ExecSync", &request).await?;
        let text = [done.stdout, done.stderr].concat();
        Ok(Output { status: done.exit_code, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// The ids of the sandboxes that containerd knows.
    ///
    /// # Errors
    /// [`CriError`].
    pub async fn pods(&self) -> Result<Vec<String>, CriError> {
        let all: ListPodSandboxResponse = self.cri.call("RuntimeService/ListPodSandbox", &Empty {}).await?;
        Ok(all.items.into_iter().map(|item| item.id).collect())
    }

    /// Stops a pod, which executes the plugins' DEL, and removes it, which executes it again. Twice is fine.
    ///
    /// # Errors
    /// [`CriError::Refused`] with containerd's reason, such as a plugin's error.
    pub async fn remove_pod(&self, id: &str) -> Result<(), CriError> {
        let request = PodSandboxRequest { pod_sandbox_id: id.into() };
        self.cri.call::<_, Empty>("RuntimeService/StopPodSandbox", &request).await?;
        self.cri.call::<_, Empty>("RuntimeService/RemovePodSandbox", &request).await?;
        Ok(())
    }

    /// The directories of the pods' control groups that are there now.
    #[must_use]
    pub fn cgroups(&self) -> Vec<PathBuf> {
        self.cgroup.directories()
    }

    /// Removes all pods, ends containerd and waits for it.
    ///
    /// # Errors
    /// What a pod's removal failed with; [`ContainerdError::Stuck`].
    pub async fn shut_down(mut self) -> Result<(), ContainerdError> {
        for id in self.pods().await? {
            self.remove_pod(&id).await?;
        }
        if let Some(pid) = self.process.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended just now.
            let _ended = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match tokio::time::timeout(LIMIT, self.process.wait()).await {
            Ok(Ok(_status)) => Ok(()),
            Ok(Err(source)) => Err(ContainerdError::Io { what: "containerd cannot be waited for".into(), source }),
            Err(_elapsed) => Err(ContainerdError::Stuck),
        }
    }

    fn sandbox_config(&self, namespace: &str, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-of-{namespace}-{name}"),
                namespace: namespace.into(),
                attempt: 0,
            }),
            hostname: name.into(),
            annotations: BTreeMap::new(),
            linux: Some(LinuxPodSandboxConfig { cgroup_parent: self.cgroup.parent() }),
        }
    }
}

fn busybox(arguments: &[&str]) -> Vec<String> {
    std::iter::once("/bin/busybox").chain(arguments.iter().copied()).map(str::to_owned).collect()
}

async fn connect(node: &Node) -> Result<CriClient, ContainerdError> {
    let stream = node.run(|| UnixStream::connect(SOCKET)).await?.map_err(CriError::Socket)?;
    Ok(CriClient::new(stream).await?)
}

/// The last lines of containerd's log.
fn log_end(node: &Node) -> String {
    let text = std::fs::read_to_string(node.log("containerd")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// `restrict_oom_score_adj`: a machine without `CAP_SYS_RESOURCE` cannot make a sandbox harder to kill than containerd.
/// The metadata plugin `opt` would want `/opt/containerd`.
fn configuration() -> String {
    format!(
        r#"version = 2
root = "{DIR}/root"
state = "{DIR}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
    max_conf_num = 1
"#
    )
}
