//! A simulated machine as production binaries see it: its own files, processes and sandboxes, a runtime that executes
//! CNI plugins, and nothing left when it goes. Needs root.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_vpcsim::node::{Node, Program};
use sluice_vpcsim::runtime::{Runtime, RuntimeError};

use crate::privileged;

fn fresh_dir() -> PathBuf {
    static DIRS: AtomicU32 = AtomicU32::new(0);
    std::env::temp_dir().join(format!("vpcsim-machine-{}-{}", std::process::id(), DIRS.fetch_add(1, Ordering::Relaxed)))
}

async fn boot(name: &str) -> (Node, PathBuf) {
    let dir = fresh_dir();
    (Node::boot(name, &dir, "machine-test").await.unwrap(), dir)
}

async fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_machine_writes_stays_its_own() {
    if !privileged() {
        return;
    }
    let ((one, dir), (other, _)) = (boot("one").await, boot("other").await);
    let paths = ["/run/sluice/x", "/var/run/y", "/etc/cni/net.d/z", "/opt/cni/bin/p", "/var/lib/cni/c"];
    for path in paths {
        one.write(path, "one").await.unwrap();
    }
    let exist = move || paths.map(|path| Path::new(path).exists());
    assert_eq!(one.run(exist).await.unwrap(), [true; 5]);
    assert_eq!(other.run(exist).await.unwrap(), [false; 5]);
    assert_eq!(exist(), [false; 5], "on the host");
    assert!(one.run(|| Path::new("/run/y").exists()).await.unwrap(), "/var/run is /run");
    let about = || {
        let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
        [read("/proc/sys/kernel/hostname"), read("/proc/sys/net/ipv4/ip_forward")]
    };
    assert_eq!(one.run(about).await.unwrap(), ["one", "1"]);
    drop(one);
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_machine_takes_its_processes_along() {
    if !privileged() {
        return;
    }
    let (node, _) = boot("host").await;
    let pod = node.sandbox("default", "pod").await.unwrap();
    let script = format!(
        "echo started; sleep 1000 & nsenter --net={} sh -c 'echo in the pod; exec sleep 1000' & wait",
        pod.netns.display()
    );
    let program = Program {
        name: "daemon".into(),
        path: "/bin/sh".into(),
        args: vec!["-c".into(), script],
        ..Program::default()
    };
    let mut child = node.start(&program).await.unwrap();
    let log = node.log("daemon");
    wait_for("it says that it started", || std::fs::read_to_string(&log).unwrap().contains("in the pod")).await;
    wait_for("all three run", || node.processes().len() == 3).await;
    let pids = node.processes();
    assert!(pids.contains(&i32::try_from(child.id().unwrap()).unwrap()));
    drop(node);
    child.wait().await.unwrap();
    for pid in pids {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command.is_empty(), "{pid} still runs: {command}");
    }
}

#[tokio::test]
async fn sandboxes_are_named_namespaces_with_loopback_up() {
    if !privileged() {
        return;
    }
    let (node, _) = boot("host").await;
    let pod = node.sandbox("default", "pod").await.unwrap();
    assert!(pod.netns.starts_with("/run/netns"));
    assert!(!pod.netns.exists(), "on the host");
    let inside = node.pod(&pod.netns).await.unwrap();
    let bound = inside.run(|| async { tokio::net::TcpListener::bind("127.0.0.1:1").await.is_ok() });
    assert!(bound.await.unwrap());
    let state = inside.run(|| async { std::process::Command::new("ip").args(["-o", "link"]).output() }).await;
    let links = String::from_utf8(state.unwrap().unwrap().stdout).unwrap();
    assert!(links.contains("LOOPBACK,UP") && links.lines().all(|line| !line.contains("eth0")), "{links}");
    drop(inside);
    node.remove_sandbox(&pod).await.unwrap();
    node.remove_sandbox(&pod).await.unwrap();
    let path = pod.netns.clone();
    assert!(!node.run(move || path.exists()).await.unwrap());
    assert!(node.pod(&pod.netns).await.is_err());
}

/// Tells what it was given, in a file of the verb's name, and answers with its own name beside `prevResult`.
const PLUGIN: &str = r#"#!/bin/sh
input=$(cat)
echo "$CNI_COMMAND $0 $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS $CNI_ARGS" >> /run/calls
echo "$input" > "/run/$(basename "$0").$CNI_COMMAND"
case "$input" in *'"fail":"'$CNI_COMMAND'"'*)
  echo '{"cniVersion":"1.0.0","code":11,"msg":"try again","details":"later"}'; exit 1;;
esac
[ "$CNI_COMMAND" = ADD ] && echo "{\"cniVersion\":\"1.0.0\",\"from\":\"$(basename "$0")\"}"
exit 0
"#;

async fn install(node: &Node, second: &str) {
    for name in ["first", "second"] {
        node.write(Path::new("/opt/cni/bin").join(name), PLUGIN).await.unwrap();
        let path = Path::new("/opt/cni/bin").join(name);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        node.run(move || std::fs::set_permissions(path, executable)).await.unwrap().unwrap();
    }
    let conflist = format!(
        r#"{{"cniVersion":"1.0.0","name":"net","plugins":[{{"type":"first","mtu":"9001"}},{{"type":"second"{second}}}]}}"#
    );
    node.write("/etc/cni/net.d/10-b.conflist", "{}").await.unwrap();
    node.write("/etc/cni/net.d/00-a.conflist", &conflist).await.unwrap();
}

async fn json(node: &Node, path: &str) -> Value {
    let path = path.to_owned();
    serde_json::from_str(&node.run(move || std::fs::read_to_string(path)).await.unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn a_runtime_chains_plugins_by_prev_result_and_deletes_in_reverse() {
    if !privileged() {
        return;
    }
    let (node, _) = boot("host").await;
    install(&node, "").await;
    let runtime = Runtime::start(&node).await.unwrap();
    let pod = node.sandbox("default", "web-0").await.unwrap();
    let result = runtime.add(&node, &pod).await.unwrap();
    assert_eq!(result["from"], "second");
    let (first, second) = (json(&node, "/run/first.ADD").await, json(&node, "/run/second.ADD").await);
    assert_eq!((&first["name"], &first["mtu"], &first["cniVersion"]), (&"net".into(), &"9001".into(), &"1.0.0".into()));
    assert_eq!((first.get("prevResult"), &second["prevResult"]["from"]), (None, &"first".into()));
    runtime.check(&node, &pod).await.unwrap();
    runtime.status(&node).await.unwrap();
    runtime.gc(&node, &[&pod]).await.unwrap();
    assert_eq!(json(&node, "/run/first.GC").await["cni.dev/valid-attachments"][0]["containerID"], *pod.id);
    runtime.del(&node, &pod).await.unwrap();
    assert_eq!(json(&node, "/run/first.DEL").await["prevResult"]["from"], "second");
    runtime.del_blindly(&node, &pod).await.unwrap();
    assert_eq!(json(&node, "/run/first.DEL").await.get("prevResult"), None);
    let calls = node.run(|| std::fs::read_to_string("/run/calls").unwrap()).await.unwrap();
    let verbs: Vec<String> = calls.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    let bin = |verb: &str, plugin: &str| format!("{verb} /opt/cni/bin/{plugin}");
    let mut expected: Vec<String> =
        ["ADD", "CHECK", "STATUS", "GC"].iter().flat_map(|verb| [bin(verb, "first"), bin(verb, "second")]).collect();
    expected.extend(["second", "first", "second", "first"].map(|plugin| bin("DEL", plugin)));
    assert_eq!(verbs, expected);
    let add = calls.lines().next().unwrap();
    assert!(add.contains("eth0") && add.contains("K8S_POD_NAME=web-0") && add.contains(pod.netns.to_str().unwrap()));
}

#[tokio::test]
async fn a_plugin_that_refuses_is_told_by_its_own_words() {
    if !privileged() {
        return;
    }
    let (node, _) = boot("host").await;
    let none = Runtime::start(&node).await.unwrap_err();
    assert!(matches!(none, RuntimeError::Conflist { .. }), "{none}");
    install(&node, r#","fail":"ADD""#).await;
    let runtime = Runtime::start(&node).await.unwrap();
    let pod = node.sandbox("default", "web-0").await.unwrap();
    let refused = runtime.add(&node, &pod).await.unwrap_err();
    assert_eq!(refused.to_string(), "second ADD failed with code 11: try again (later)");
    runtime.del(&node, &pod).await.unwrap();
    assert_eq!(json(&node, "/run/second.DEL").await.get("prevResult"), None);
}

/// The program of the next test: boots a machine with a program on it, says which process that is, and waits to be
/// killed.
#[tokio::test]
#[ignore = "it is run by the next test"]
async fn boots_a_machine_and_waits() {
    let (node, dir) = boot("doomed").await;
    let program =
        Program { name: "daemon".into(), path: "/bin/sleep".into(), args: vec!["1000".into()], ..Program::default() };
    let child = node.start(&program).await.unwrap();
    println!("\n{} {}", child.id().unwrap(), dir.display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_program_dies_with_the_process_that_made_its_machine() {
    if !privileged() {
        return;
    }
    let arguments = ["--exact", "--ignored", "--nocapture", "machine::boots_a_machine_and_waits"];
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let mut child = command.args(arguments).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let told = lines.map(Result::unwrap).find_map(|line| {
        let (pid, dir) = line.split_once(' ')?;
        Some((pid.parse::<u32>().ok()?, PathBuf::from(dir)))
    });
    let (pid, dir) = told.unwrap();
    let command = || std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    // Not setpriv any more, which sets it up to die.
    wait_for("the program runs", || command().starts_with("/bin/sleep")).await;
    // By SIGKILL: nothing of it can clean up.
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the program is gone", || !command().starts_with("/bin/sleep")).await;
    std::fs::remove_dir_all(dir).unwrap();
}
