//! `sluice demo` as a person or a program runs it: what it finds, what it exits with, and that the machine is afterwards
//! as it was.

#![cfg(test)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::Binaries;
use sluice_vpcsim::world::BASE_DIR;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// Both tests compare the whole machine: one after the other.
static MACHINE: Mutex<()> = Mutex::const_new(());
/// How long a whole demo may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// What a world on this machine could leave behind where everybody sees it.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    named_namespaces: BTreeSet<String>,
    links: BTreeSet<String>,
    mounts: BTreeSet<String>,
    run_sluice: BTreeSet<String>,
}

impl Machine {
    fn now() -> Self {
        let lines = |path: &str| std::fs::read_to_string(path).unwrap();
        let name = |line: &str| Some(line.split_once(':')?.0.trim().to_owned());
        Self {
            named_namespaces: entries("/run/netns"),
            links: lines("/proc/self/net/dev").lines().filter_map(name).collect(),
            mounts: lines("/proc/self/mounts").lines().map(str::to_owned).collect(),
            run_sluice: entries("/run/sluice"),
        }
    }
}

/// Names in a directory, which need not exist.
fn entries(path: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Directories and processes of the worlds that the process `owner` has made: their tags begin with its id.
fn of_worlds(owner: u32) -> (BTreeSet<String>, BTreeSet<String>) {
    let prefix = format!("{owner}-");
    let directories = entries(BASE_DIR).into_iter().filter(|name| name.starts_with(&prefix)).collect();
    let tagged = format!("VPCSIM_TAG={prefix}");
    let carries = |pid: &String| {
        let environment = std::fs::read(Path::new("/proc").join(pid).join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(tagged.as_bytes()))
    };
    let pids = entries("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok());
    (directories, pids.filter(carries).collect())
}

/// A demo that runs.
fn start(options: &[&str]) -> Child {
    let mut command = Command::new(Binaries::find("sluice").unwrap());
    command.args(["demo", "--json"]).args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).spawn().unwrap()
}

fn as_before(before: &Machine, demo: u32) {
    assert_eq!(*before, Machine::now(), "the machine is not as it was");
    assert_eq!(of_worlds(demo), Default::default(), "something of the demo's is left");
}

/// Waits until the demo says so; what it says after is still to be read.
async fn told(demo: &mut Child, what: &str) -> Lines<BufReader<ChildStderr>> {
    let mut progress = BufReader::new(demo.stderr.take().unwrap()).lines();
    let waiting = async {
        while let Some(line) = progress.next_line().await.unwrap() {
            if line.contains(what) {
                return;
            }
        }
        panic!("the demo ended and did not say {what:?}");
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("the demo does not say {what:?}"));
    progress
}

/// SPECIFICATION P-01.
#[tokio::test(flavor = "multi_thread")]
async fn p01_the_demo_holds_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let _alone = MACHINE.lock().await;
    let before = Machine::now();
    let demo = start(&[]);
    let pid = demo.id().unwrap();
    let output = timeout(LIMIT, demo.wait_with_output()).await.expect("the demo takes too long").unwrap();
    let progress = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{progress}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("standard output is JSON and nothing else");
    let cells = report["matrix"].as_array().unwrap();
    // Four pods and two nodes, each to the other pods and to the Internet.
    assert!(cells.len() >= 20, "{} cells", cells.len());
    for cell in cells {
        assert!(cell["seen"] == cell["expected"] && cell["problem"].is_null(), "{cell}");
    }
    let acts = report["policies"].as_array().unwrap();
    assert_eq!(acts.len(), 7, "no policy, then six sets of them");
    for act in acts {
        let cells = act["cells"].as_array().unwrap();
        // Four pods, each to the three others, to the Internet, and, but for the one behind it, to the Service.
        assert_eq!(cells.len(), 4 * 4 + 3, "{act}");
        for cell in cells {
            let (allowed, passed) = (cell["allowed"].as_bool().unwrap(), cell["passed"].as_bool().unwrap());
            assert!(allowed == passed && allowed == cell["denied_by"].is_null(), "{}: {cell}", act["title"]);
        }
        let denied = cells.iter().filter(|cell| cell["allowed"] == false).count();
        assert_eq!(denied > 0, act["title"] != "no policy yet", "{}", act["title"]);
    }
    let acts = report["requests"].as_array().unwrap();
    assert_eq!(acts.len(), 2, "a policy for HTTP, and one for DNS names");
    for cell in acts.iter().flat_map(|act| act["cells"].as_array().unwrap()) {
        assert_eq!(cell["seen"], cell["expected"], "{cell}");
        let judged = cell["request"].as_str().unwrap().split(' ').next();
        assert!(judged == Some("connect") || cell["recorded"].is_string(), "{cell}");
    }
    assert_eq!((report["burst"]["pods"].as_u64(), report["burst"]["served"].as_u64()), (Some(20), Some(20)));
    as_before(&before, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn p01_an_interrupted_demo_says_so_and_leaves_nothing() {
    if !privileged() {
        return;
    }
    let _alone = MACHINE.lock().await;
    let before = Machine::now();
    let mut demo = start(&[]);
    let pid = demo.id().unwrap();
    let mut progress = told(&mut demo, "pods may start").await;
    let (directories, processes) = of_worlds(pid);
    assert!(!directories.is_empty() && processes.len() >= 2, "{directories:?} {processes:?}");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    let mut stdout = demo.stdout.take().unwrap();
    let status = timeout(LIMIT, async {
        while progress.next_line().await.unwrap().is_some() {}
        stdout.read_to_string(&mut rest).await.unwrap();
        demo.wait().await.unwrap()
    });
    assert_eq!(status.await.expect("the demo does not end").code(), Some(130));
    assert_eq!(rest, "", "an interrupted demo has found nothing");
    as_before(&before, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn p01_a_kept_demo_runs_on_until_it_is_interrupted() {
    if !privileged() {
        return;
    }
    let _alone = MACHINE.lock().await;
    let before = Machine::now();
    let mut demo = start(&["--keep"]);
    let pid = demo.id().unwrap();
    let mut stdout = demo.stdout.take().unwrap();
    let mut progress = told(&mut demo, "Everything stays up").await;
    let daemons = of_worlds(pid).1.into_iter().filter(|pid| {
        let program = std::fs::read_link(Path::new("/proc").join(pid).join("exe")).unwrap_or_default();
        program.file_name().is_some_and(|name| name == "sluice-ipamd")
    });
    assert_eq!(daemons.count(), 2, "there is a node without ipamd to look at");
    kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut report = Vec::new();
    let status = timeout(LIMIT, async {
        while progress.next_line().await.unwrap().is_some() {}
        stdout.read_to_end(&mut report).await.unwrap();
        demo.wait().await.unwrap()
    });
    assert_eq!(status.await.expect("the demo does not end").code(), Some(0), "the matrix was as it has to be");
    serde_json::from_slice::<Value>(&report).expect("standard output is JSON and nothing else");
    as_before(&before, pid);
}
