//! The program `vpcsim`: up, a look around, down; and down after it was killed. Needs root.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::privileged;

const SCENE: &str = "
time_scale: 0
vpcs:
  main:
    cidrs: [10.0.0.0/16]
    internet_gateway: true
    subnets: {public: {cidr: 10.0.1.0/24, routes: {0.0.0.0/0: internet-gateway}}}
instances:
  node-a: {type: m5.large, subnet: main/public, public_address: true}
  node-b: {type: m5.large, subnet: main/public, address: 10.0.1.20}
internet_hosts: [198.51.100.10]
";

struct Up {
    child: Child,
    scene: PathBuf,
    printed: String,
    tag: String,
}

impl Up {
    fn new(test: &str) -> Self {
        let scene = std::env::temp_dir().join(format!("vpcsim-updown-{test}-{}.yaml", std::process::id()));
        std::fs::write(&scene, SCENE).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vpcsim"));
        let mut child = command.arg("up").arg("-f").arg(&scene).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        while !printed.contains("On the Internet") {
            assert!(out.read_line(&mut printed).unwrap() > 0, "it ended: {printed}");
        }
        let tag = printed.split(' ').nth(1).unwrap().to_owned();
        Self { child, scene, printed, tag }
    }

    /// Runs a command on a node by the hint that was printed.
    fn on_node(&self, node: &str, command: &str) -> std::process::Output {
        let hint = self.printed.lines().skip_while(|line| *line != format!("Enter {node}:")).nth(1).unwrap();
        let words: Vec<&str> = hint.trim().trim_end_matches("bash").split_whitespace().collect();
        Command::new(words[0]).args(&words[1..]).args(["sh", "-c", command]).output().unwrap()
    }

    fn dir(&self) -> PathBuf {
        Path::new("/run/vpcsim").join(&self.tag)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Most tests have ended it.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        let _gone = std::fs::remove_file(&self.scene);
        let _gone = std::fs::remove_dir_all(self.dir());
    }
}

fn down(tag: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vpcsim")).args(["down", tag]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_world_can_be_entered_and_goes_when_it_is_told_to() {
    if !privileged() {
        return;
    }
    let mut up = Up::new("told");
    assert!(up.printed.contains("10.0.1.20"), "{}", up.printed);
    let output = up.on_node("node-b", "hostname; ip -o -4 address show dev eth0; ls /run");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("node-b\n") && text.contains("10.0.1.20/24") && !text.contains("vpcsim"), "{text}");
    up.signal(Signal::SIGTERM);
    assert!(up.child.wait().unwrap().success());
    assert!(!up.dir().exists());
}

#[test]
fn down_stops_what_runs_and_cleans_up_after_what_was_killed() {
    if !privileged() {
        return;
    }
    let mut up = Up::new("stopped");
    let down_of_live = std::thread::spawn({
        let tag = up.tag.clone();
        move || down(&tag)
    });
    assert!(up.child.wait().unwrap().success());
    assert_eq!(down_of_live.join().unwrap(), format!("{}: stopped\n", up.tag));

    let mut up = Up::new("killed");
    // As a program of the node that outlives its parent: it carries the world's tag.
    let mut left = Command::new("sleep").arg("1000").env("VPCSIM_TAG", &up.tag).spawn().unwrap();
    up.signal(Signal::SIGKILL);
    assert!(!up.child.wait().unwrap().success());
    assert!(up.dir().exists());
    assert_eq!(down(&up.tag), format!("{}: its program was gone; 1 processes ended, its files removed\n", up.tag));
    assert!(!up.dir().exists());
    let deadline = Instant::now() + Duration::from_secs(5);
    while left.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "what it left still runs");
        std::thread::yield_now();
    }
}

#[test]
fn a_scene_with_faults_is_refused_with_all_of_them() {
    let path = std::env::temp_dir().join(format!("vpcsim-updown-faults-{}.yaml", std::process::id()));
    std::fs::write(&path, SCENE.replace("10.0.1.20", "10.9.1.20").replace("m5.large", "m5.tiny")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vpcsim"));
    let mut child = command.arg("up").arg("-f").arg(&path).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!child.wait().unwrap().success());
    std::fs::remove_file(&path).unwrap();
    for fault in ["instances.node-a.type", "instances.node-b.type", "instances.node-b.address"] {
        assert!(said.contains(fault), "{said}");
    }
}
