//! podman drives a node by the conflist: pods come and go, one of them with a port of the host by the portmap plugin in the chain.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sluice_tests::bed::run;
use sluice_tests::containerd::DEBIAN_CNI;
use sluice_tests::privileged::{everything, may_run};
use sluice_vpcsim::deployment::{Binaries, Deployment};
use sluice_vpcsim::node::Node;
use sluice_vpcsim::world::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::containerd::traces;

const SCENE: &str = "
time_scale: 0.1
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    subnets: {a: {cidr: 10.0.1.0/24}}
instances:
  node-a: {type: m5.large, subnet: main/a}
  node-b: {type: m5.large, subnet: main/a}
";
const CONFLIST: &str = r#"{"cniVersion": "1.0.0", "name": "sluice",
    "plugins": [{"type": "sluice-eni"}, {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
/// Without what this machine may not have: rlimits above its own, systemd.
const CONFIGURATION: &str = r#"
[network]
network_backend = "cni"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;
const DIR: &str = "/run/podman-test";
const LIMIT: Duration = Duration::from_secs(60);
/// The port of the host, and that of the pod.
const PORTS: (u16, u16) = (18_080, 8080);

#[derive(Debug, thiserror::Error)]
#[error("{0} is missing: apt-get install podman runc busybox-static containernetworking-plugins")]
struct Missing(&'static str);

fn installed() -> Result<(), Missing> {
    let needed = ["/usr/bin/podman", "/usr/sbin/runc", "/bin/busybox", "/usr/lib/cni/portmap"];
    needed.into_iter().find(|path| !Path::new(path).exists()).map_or(Ok(()), |path| Err(Missing(path)))
}

async fn podman(node: &Deployment, words: &[&str]) -> String {
    let configuration = format!("CONTAINERS_CONF={DIR}/containers.conf");
    let (root, runroot, temporary) = (format!("{DIR}/root"), format!("{DIR}/runroot"), format!("{DIR}/tmp"));
    let mut all = vec!["env", &configuration, "podman", "--root", &root, "--runroot", &runroot, "--tmpdir", &temporary];
    all.extend(["--storage-driver", "vfs"]);
    all.extend(words);
    run(node, &all).await.unwrap()
}

/// What an HTTP server says first.
async fn get(node: &Node, to: SocketAddr) -> io::Result<String> {
    let asked = node.run_async(move || async move {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(b"GET /busybox HTTP/1.0\r\n\r\n").await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    });
    asked.await.map_err(io::Error::other)?
}

/// Issue F, 5.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_podman_starts_have_addresses_of_the_vpc_and_host_ports_and_leave_nothing() {
    if !may_run(installed()) {
        return;
    }
    // More than the addresses of the primary ENI.
    let (pods, instance_type) = if everything() { (50, "m5.xlarge") } else { (11, "m5.large") };
    let binaries = Binaries::beside_this_program().unwrap();
    let world = World::up(&SCENE.replace("m5.large", instance_type).parse().unwrap()).await.unwrap();
    let machine = world.node("node-a").unwrap();
    let node = Deployment::install(Arc::clone(machine), &binaries, CONFLIST, BTreeMap::new()).await.unwrap();
    machine.install(&Path::new(DEBIAN_CNI).join("portmap"), Path::new("/opt/cni/bin/portmap")).await.unwrap();
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    machine.write(Path::new(DIR).join("containers.conf"), CONFIGURATION).await.unwrap();
    let root = format!("{DIR}/image");
    run(&node, &["mkdir", "-p", &format!("{root}/bin")]).await.unwrap();
    run(&node, &["cp", "/bin/busybox", &format!("{root}/bin/busybox")]).await.unwrap();
    run(&node, &["tar", "-C", &root, "-cf", &format!("{root}.tar"), "."]).await.unwrap();
    podman(&node, &["import", &format!("{root}.tar"), "pod:1"]).await;

    let own = world.look(|model, _| {
        let id = world.instance("node-a").unwrap();
        model.state().attached(id)[0].primary
    });
    let published = format!("{}:{}", PORTS.0, PORTS.1);
    for number in 1..=pods {
        let name = format!("p{number}");
        let mut words = vec!["run", "-d", "--network", "sluice", "--name", &name];
        if number == pods {
            words.extend(["-p", &published]);
        }
        words.extend(["pod:1", "/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/bin"]);
        podman(&node, &words).await;
    }
    let all = |view: &serde_json::Value| view["pool"]["assigned"].as_u64() == u64::try_from(pods).ok();
    node.pool_until("an address for each pod", LIMIT, all).await.unwrap();
    let traced = traces(machine).await;
    assert!(traced.matches(": eni").count() == pods, "{traced}");
    // The pod with the host's port is on a secondary ENI: its answers leave by the primary one.
    let answer = get(world.node("node-b").unwrap(), SocketAddr::new(own.into(), PORTS.0)).await;
    assert!(answer.as_ref().unwrap().ends_with(" 200"), "{answer:?}");
    assert_eq!(world.dropped().await.unwrap(), []);

    podman(&node, &["rm", "-f", "-t", "0", "-a"]).await;
    let none = |view: &serde_json::Value| view["pool"]["assigned"] == 0;
    node.pool_until("pods that are gone still had addresses", LIMIT, none).await.unwrap();
    let left = traces(machine).await;
    let lines: Vec<&str> = left.lines().filter(|line| line.contains(" eni") || line.starts_with("512:")).collect();
    assert!(lines.is_empty(), "{lines:#?}");
    let nat = run(&node, &["iptables-save", "-t", "nat"]).await.unwrap();
    assert!(!nat.contains("-j CNI-DN-"), "{nat}");
}
