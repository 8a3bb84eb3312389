//! The nodes of a cluster, asked from afar: `sluice` is run in the pods of the DaemonSet by kubectl, which knows how to reach the API
//! server and who one is there. Needed is a right to `pods/exec` in the namespace of Sluice.

use std::io::{self, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::Value;

use crate::daemons::{list, text};

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 16;
/// Nodes whose flows are followed, each by a process.
const FOLLOWED: usize = 128;
/// Bytes of a node's answer.
const LIMIT: u64 = 256 << 20;
/// Bytes of an answer that are read at once.
const PART: usize = 64 << 10;
/// Parts that may wait to be taken.
const PARTS: usize = 16;
/// Lines of all nodes that may wait to be shown; nodes wait for more.
const AHEAD: usize = 1024;
/// How long the API server may take.
const PATIENCE: &str = "--request-timeout=30s";
/// How long a node may be silent before it has said all of it: kubectl waits for ever for a kubelet that does not answer.
const SAYING: Duration = Duration::from_secs(120);
/// The pods that run on every node (the chart's labels), the container that is asked, and where `sluice` is in it. That container
/// sees what runtimes read, and is there without policy, too.
const SELECTOR: &str = "app.kubernetes.io/name=sluice,app.kubernetes.io/component=node";
const CONTAINER: &str = "conflist";
const PROGRAM: &str = "/usr/local/bin/sluice";

/// Whom to ask, if not this node.
#[derive(Debug, clap::Args)]
pub(crate) struct Reach {
    /// Ask all nodes of the cluster, by kubectl, from wherever this runs.
    #[arg(long)]
    cluster: bool,
    /// Ask this node, the same way.
    #[arg(long, value_name = "NODE", conflicts_with = "cluster")]
    on: Option<String>,
    /// The kubeconfig, where it is not the one that kubectl takes.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The namespace in which Sluice runs.
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    sluice_namespace: String,
    #[arg(long, value_name = "PROGRAM", default_value = "kubectl", hide = true)]
    kubectl: PathBuf,
}

/// A node and the pod on it that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) node: String,
    pod: String,
}

/// What a node said, or why it said nothing.
pub(crate) type Said = Result<Vec<u8>, String>;

impl Reach {
    /// Whether others are asked than this node.
    pub(crate) const fn is_far(&self) -> bool {
        self.cluster || self.on.is_some()
    }

    fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        if let Some(file) = &self.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command.args(["--namespace", &self.sluice_namespace]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn failed(&self, error: &io::Error) -> String {
        format!("{} cannot be run: {error}; install it, or put it into PATH", self.kubectl.display())
    }

    /// The nodes that can be asked, by name.
    pub(crate) fn agents(&self) -> Result<Vec<Agent>, String> {
        let mut command = self.kubectl();
        command.args([PATIENCE, "get", "pods", "--selector", SELECTOR, "--output", "json"]);
        let output = command.output().map_err(|error| self.failed(&error))?;
        if !output.status.success() {
            return Err(told(&output.stderr));
        }
        let pods = serde_json::from_slice(&output.stdout).map_err(|error| format!("kubectl get pods: {error}"))?;
        let mut agents = agents(&pods);
        if let Some(node) = &self.on {
            agents.retain(|agent| agent.node == *node);
        }
        if agents.is_empty() {
            let whose = self.on.as_ref().map_or_else(|| "no node".to_owned(), |node| format!("no node {node}"));
            return Err(format!(
                "{whose} has a running pod {SELECTOR} in the namespace {}: is it the right cluster (--context) and namespace \
                 (--sluice-namespace)?",
                self.sluice_namespace
            ));
        }
        Ok(agents)
    }

    fn exec(&self, agent: &Agent, options: &[&str], arguments: &[String]) -> Command {
        let mut command = self.kubectl();
        command.args(["exec", &agent.pod, "--container", CONTAINER]).args(options);
        command.args(["--", PROGRAM]).args(arguments);
        command
    }

    /// Runs `sluice` with these arguments at every agent, and returns what each said, in their order.
    pub(crate) fn ask(&self, agents: &[Agent], arguments: &[String]) -> Vec<Said> {
        let mut said = Vec::with_capacity(agents.len());
        for some in agents.chunks(AT_ONCE) {
            let asked = std::thread::scope(|scope| {
                let asking: Vec<_> =
                    some.iter().map(|agent| scope.spawn(move || self.ask_one(agent, arguments))).collect();
                let joined = asking.into_iter().map(|one| one.join());
                joined.map(|one| one.unwrap_or_else(|_| Err("it could not be asked".to_owned()))).collect::<Vec<_>>()
            });
            said.extend(asked);
        }
        said
    }

    fn ask_one(&self, agent: &Agent, arguments: &[String]) -> Said {
        let mut child = self.exec(agent, &[], arguments).spawn().map_err(|error| self.failed(&error))?;
        let errors = child.stderr.take().map(|errors| std::thread::spawn(move || read(errors)));
        let (to, parts) = sync_channel(PARTS);
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || pour(out, &to));
        }
        let answer = gathered(&parts, SAYING);
        let whole = answer.as_ref().is_some_and(|answer| u64::try_from(answer.len()).unwrap_or(LIMIT) < LIMIT);
        if !whole {
            // It would wait for ever with what nobody reads. That it has ended by itself is fine.
            let _gone = child.kill();
        }
        let Some(answer) = answer else {
            let _status = child.wait();
            return Err(format!("nothing has come from it for {} s: does its kubelet run?", SAYING.as_secs()));
        };
        let status = child.wait().map_err(|error| error.to_string())?;
        // The status may be that of `sluice`, which says so where something is wrong.
        if answer.is_empty() && !status.success() {
            let errors = errors.and_then(|errors| errors.join().ok()).unwrap_or_default();
            return Err(told(&errors));
        }
        Ok(answer)
    }

    /// Runs `sluice` at every agent, and hands on its lines as they come, until all have ended.
    pub(crate) fn follow(&self, agents: &[Agent], arguments: &[String]) -> Result<Followed, String> {
        if agents.len() > FOLLOWED {
            return Err(format!("{} nodes are too many to follow: ask one by --on", agents.len()));
        }
        let (to, lines) = sync_channel(AHEAD);
        // Those that were started end with it, also where another cannot be.
        let mut followed = Followed { lines, children: Vec::new() };
        for agent in agents {
            let mut command = self.exec(agent, &["--stdin"], arguments);
            // What a node has to say besides is for who looks on. Its standard input ends with this process, however that ends:
            // without, `sluice` would go on in the pod, since kubectl tells it of nothing else.
            command.stdin(Stdio::piped()).stderr(Stdio::inherit());
            let mut child = command.spawn().map_err(|error| self.failed(&error))?;
            if let Some(out) = child.stdout.take() {
                let (node, to) = (agent.node.clone(), to.clone());
                std::thread::spawn(move || pass_on(&node, BufReader::new(out), &to));
            }
            followed.children.push(child);
        }
        Ok(followed)
    }
}

/// Lines of nodes, as they come. Dropping it ends what writes them.
#[derive(Debug)]
pub(crate) struct Followed {
    /// A line, or the end of a node's.
    pub(crate) lines: Receiver<Result<String, String>>,
    children: Vec<Child>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.stdin.take());
            // One that has ended is what is wanted.
            let _gone = child.kill();
            let _status = child.wait();
        }
    }
}

fn pass_on(node: &str, lines: impl io::BufRead, to: &SyncSender<Result<String, String>>) {
    for line in lines.lines().map_while(Result::ok) {
        if to.send(Ok(line)).is_err() {
            return;
        }
    }
    // Nobody may listen any more.
    let _nobody = to.send(Err(format!("{node}: no more flows come from there")));
}

/// What a program wrote, up to the limit; what could not be read is not there.
fn read(from: impl io::Read) -> Vec<u8> {
    let mut all = Vec::new();
    let _read = from.take(LIMIT).read_to_end(&mut all);
    all
}

/// Hands on what a program writes, as it comes.
fn pour(mut from: impl io::Read, to: &SyncSender<Vec<u8>>) {
    let mut part = vec![0; PART];
    loop {
        let length = match from.read(&mut part) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What could not be read is not there.
            Err(_) => return,
        };
        let came = part.get(..length).unwrap_or_default();
        // Who has waited long enough takes it no more.
        if came.is_empty() || to.send(came.to_vec()).is_err() {
            return;
        }
    }
}

/// All parts until their end, or the limit; nothing, if for so long none has come.
fn gathered(parts: &Receiver<Vec<u8>>, patience: Duration) -> Option<Vec<u8>> {
    let limit = usize::try_from(LIMIT).unwrap_or(usize::MAX);
    let mut all: Vec<u8> = Vec::new();
    while all.len() < limit {
        match parts.recv_timeout(patience) {
            Ok(part) => all.extend(part),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => return None,
        }
    }
    all.truncate(limit);
    Some(all)
}

/// The last line of what a program complained of.
fn words(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let last = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    last.unwrap_or("kubectl has ended without a word").to_owned()
}

/// The same, and what to do about it.
fn told(errors: &[u8]) -> String {
    let said = words(errors);
    let is = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    let next = if is(&["Forbidden", "forbidden"]) {
        "needed are the rights to list pods and to create pods/exec in Sluice's namespace: --sluice-namespace"
    } else if is(&["logged in", "Unauthorized", "credentials", "exec plugin"]) {
        "log in to the cluster, and see --kubeconfig and --context"
    } else if is(&["refused", "no such host", "Unable to connect", "timeout", "timed out", "context", "kubeconfig"]) {
        "see --kubeconfig and --context, and whether the cluster answers `kubectl get nodes`"
    } else if is(&["NotFound", "not found"]) {
        "the pod is gone or not there yet: ask again"
    } else {
        return said;
    };
    format!("{said} ({next})")
}

fn agents(pods: &Value) -> Vec<Agent> {
    let of = |pod: &Value| {
        let (node, name) = (text(pod, "/spec/nodeName"), text(pod, "/metadata/name"));
        (text(pod, "/status/phase") == "Running" && !node.is_empty())
            .then(|| Agent { node: node.to_owned(), pod: name.to_owned() })
    };
    let mut agents: Vec<Agent> = list(pods, "/items").iter().filter_map(of).collect();
    agents.sort_unstable_by(|one, other| one.node.cmp(&other.node));
    agents
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_those_whose_pod_runs() {
        let pod = |name: &str, node: &str, phase: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"phase": phase}});
        let pods = json!({"items": [pod("b", "node-b", "Running"), pod("c", "node-c", "Pending"), pod("a", "node-a", "Running"), pod("d", "", "Running")]});
        let found = agents(&pods);
        let found: Vec<(&str, &str)> = found.iter().map(|agent| (agent.node.as_str(), agent.pod.as_str())).collect();
        assert_eq!(found, [("node-a", "a"), ("node-b", "b")]);
    }

    #[test]
    fn an_answer_may_take_its_time_while_it_comes() {
        let (to, parts) = sync_channel::<Vec<u8>>(PARTS);
        let patience = Duration::from_secs(2);
        let saying = std::thread::spawn(move || {
            for part in 0..13_u8 {
                to.send(vec![part]).unwrap();
                std::thread::park_timeout(patience / 10);
            }
        });
        let answer: Vec<u8> = (0..13).collect();
        assert_eq!(gathered(&parts, patience), Some(answer));
        saying.join().unwrap();
        // One that says nothing, or no more.
        let (to, parts) = sync_channel(PARTS);
        to.send(b"half of".to_vec()).unwrap();
        assert_eq!(gathered(&parts, Duration::from_millis(1)), None);
    }

    #[test]
    fn an_answer_of_many_parts_is_whole() {
        let (to, parts) = sync_channel(PARTS);
        let answer: Vec<u8> = (0..=u8::MAX).cycle().take(PART * PARTS * 2 + 1).collect();
        let written = answer.clone();
        let writing = std::thread::spawn(move || pour(written.as_slice(), &to));
        assert_eq!(gathered(&parts, SAYING), Some(answer));
        writing.join().unwrap();
    }

    #[test]
    fn what_kubectl_says_is_told() {
        assert_eq!(words(b"warning: x\nerror: You must be logged in\n\n"), "error: You must be logged in");
        assert_eq!(words(b""), "kubectl has ended without a word");
        let next = [
            ("Error from server (Forbidden): pods is forbidden", "pods/exec"),
            ("error: You must be logged in to the server", "log in"),
            ("error: context \"west\" does not exist", "--context"),
            ("Error from server (NotFound): pods \"a\" not found", "ask again"),
        ];
        for (error, words) in next {
            let said = told(error.as_bytes());
            assert!(said.starts_with(error) && said.contains(words), "{said}");
        }
        assert_eq!(told(b"something else"), "something else");
    }
}
