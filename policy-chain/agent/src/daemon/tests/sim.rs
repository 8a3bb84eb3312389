//! A node: a cluster that can be told things and can fall silent, a kernel that outlives the daemon, and a daemon that can
//! be killed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sluice_contract::proxy::Names as WantedNames;
use sluice_contract::rpc::{
    PolicyAdd, PolicyAddReply, PolicyCall, PolicyDel, PolicyOutcome, Refusal, RefusalCode, Reply,
};
use sluice_policy_core::cluster::{Event, Object, ObjectId, PodKey, Uid};
use sluice_policy_core::flow::{Direction, Origin, Protocol, Query};
use sluice_policy_core::{manifest, parse};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Config;
use crate::cluster::{Cluster, ClusterError, Notice, PolicyStatus, TOLD_LIMIT, Told};
use crate::daemon::{Clock, Daemon};
use crate::datapath::model::{Attached, Kernel, Model};
use crate::inbox::{Answer, Handle, Input, Token};
use crate::metrics::Metrics;
use crate::outbox::{self, Outbox};
use crate::proxy::Feed;
use crate::run::prepare;
use crate::testing::{TestDir, add};
use crate::view::View;

pub(super) const NODE: &str = "node-1";

/// What the cluster is.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) objects: BTreeMap<ObjectId, (Object, Option<Arc<str>>)>,
    log: Vec<Told>,
    silent: bool,
    pub(super) looked_up: Vec<PodKey>,
    /// Pods that nobody is told of until they are looked up.
    hidden: BTreeMap<PodKey, Object>,
    pub(super) published: Vec<(PodKey, Vec<IpAddr>)>,
    pub(super) statuses: Vec<PolicyStatus>,
    pub(super) notices: Vec<Notice>,
    /// Calls that fail before the next ones succeed.
    pub(super) failing: u32,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    world: Arc<Mutex<World>>,
    news: Arc<Notify>,
}

impl Source {
    pub(super) fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let answer = look(&mut self.world.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_waiters();
        answer
    }

    /// Objects are so from now on.
    pub(super) fn set(&self, yaml: &str) {
        for (object, json) in objects(yaml) {
            self.world(|world| {
                world.objects.insert(object.id(), (object.clone(), json.clone()));
                world.log.push(Told::Event { event: Event::Upsert(object), json });
            });
        }
    }

    /// An object is gone.
    pub(super) fn remove(&self, id: ObjectId) {
        self.world(|world| {
            world.objects.remove(&id);
            world.log.push(Told::Event { event: Event::Delete(id), json: None });
        });
    }

    /// A pod that the watch does not tell of.
    pub(super) fn hide(&self, yaml: &str) {
        for (object, _) in objects(yaml) {
            let Object::Pod(pod) = &object else { panic!("only pods can be hidden") };
            let key = pod.key.clone();
            self.world(|world| world.hidden.insert(key, object));
        }
    }

    /// The source loses what it reads from, for those who start from now on too; or has it again.
    pub(super) fn silent(&self, silent: bool) {
        self.world(|world| {
            world.silent = silent;
            world.log.push(if silent {
                Told::Stale { why: "the API server is away".to_owned() }
            } else {
                Told::Synced
            });
        });
    }

    fn call(&self, done: impl FnOnce(&mut World)) -> Result<(), ClusterError> {
        self.world(|world| {
            if world.failing > 0 {
                world.failing -= 1;
                return Err(ClusterError::Unavailable { action: "a call".to_owned(), source: "away".into() });
            }
            done(world);
            Ok(())
        })
    }
}

pub(super) fn objects(yaml: &str) -> Vec<(Object, Option<Arc<str>>)> {
    let read = |document: serde_json::Value| {
        let parsed = parse::object(&document);
        let object = parsed.object.unwrap_or_else(|| panic!("{:?}", parsed.issues));
        let json = matches!(object, Object::Policy(_)).then(|| Arc::from(document.to_string()));
        (object, json)
    };
    manifest::documents(yaml).unwrap().into_iter().map(read).collect()
}

impl Cluster for Source {
    async fn run(&self, told: mpsc::Sender<Told>) {
        let (mut next, first) = self.world(|world| {
            let all = world.objects.values();
            let mut first: Vec<Told> = if world.silent {
                vec![Told::Stale { why: "the API server is away".to_owned() }]
            } else {
                all.map(|(object, json)| Told::Event { event: Event::Upsert(object.clone()), json: json.clone() })
                    .collect()
            };
            if !world.silent {
                first.push(Told::Synced);
            }
            (world.log.len(), first)
        });
        for value in first {
            if told.send(value).await.is_err() {
                return;
            }
        }
        let mut listed = self.world(|world| !world.silent);
        // What went while nobody could see it.
        let mut gone: Vec<ObjectId> = Vec::new();
        loop {
            let news = self.news.notified();
            let (silent, more) = {
                let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
                (world.silent, world.log.get(next..).map(<[Told]>::to_vec).unwrap_or_default())
            };
            if !silent && !std::mem::replace(&mut listed, true) {
                // It is back: everything is told, as a new list.
                let all: Vec<Told> = {
                    let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
                    gone.retain(|id| !world.objects.contains_key(id));
                    let objects = world.objects.values();
                    let there = objects
                        .map(|(object, json)| Told::Event { event: Event::Upsert(object.clone()), json: json.clone() });
                    let gone = gone.drain(..).map(|id| Told::Event { event: Event::Delete(id), json: None });
                    gone.chain(there).collect()
                };
                for value in all {
                    if told.send(value).await.is_err() {
                        return;
                    }
                }
            }
            for value in more {
                next += 1;
                // What happens while nobody can see it is seen by the list.
                if silent && !matches!(value, Told::Stale { .. }) {
                    listed = false;
                    if let Told::Event { event: Event::Delete(id), .. } = value {
                        gone.push(id);
                    }
                    continue;
                }
                if told.send(value).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = news => {}
                () = told.closed() => return,
            }
        }
    }

    async fn look_up(&self, pod: &PodKey) -> Result<bool, ClusterError> {
        self.call(|world| world.looked_up.push(pod.clone()))?;
        let found = self.world(|world| {
            let found = world.hidden.remove(pod);
            if let Some(object) = found.clone() {
                world.objects.insert(object.id(), (object.clone(), None));
                world.log.push(Told::Event { event: Event::Upsert(object), json: None });
            }
            found
        });
        Ok(found.is_some())
    }

    async fn publish_addresses(&self, pod: &PodKey, _: &Uid, addresses: &[IpAddr]) -> Result<(), ClusterError> {
        self.call(|world| world.published.push((pod.clone(), addresses.to_vec())))
    }

    async fn report(&self, status: &PolicyStatus) -> Result<(), ClusterError> {
        self.call(|world| world.statuses.push(status.clone()))
    }

    async fn emit(&self, notice: &Notice) -> Result<(), ClusterError> {
        self.call(|world| world.notices.push(notice.clone()))
    }
}

/// A daemon that runs.
#[derive(Debug)]
struct Running {
    handle: Handle,
    feed: Feed,
    daemon: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) dir: TestDir,
    pub(super) source: Source,
    kernel: Arc<Mutex<Kernel>>,
    config: Config,
    running: Option<Running>,
    /// Whether the AWS VPC CNI's daemon answers when the daemon starts.
    pub(super) aws_node: bool,
    clock: Clock,
    pub(super) metrics: Arc<Metrics>,
}

/// An ADD that may not have been answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) token: Token,
    pub(super) reply: oneshot::Receiver<Answer>,
}

impl Asked {
    /// The answer, if it is there.
    pub(super) fn answer(&mut self) -> Option<Result<PolicyAddReply, Refusal>> {
        let answer = self.reply.try_recv().ok()?;
        Some(match answer.reply {
            Reply::Done(PolicyOutcome::Add(reply)) => Ok(reply),
            Reply::Done(other) => panic!("{other:?}"),
            Reply::Refused(refusal) => Err(refusal),
        })
    }
}

impl Node {
    /// A node whose daemon runs and knows what `yaml` says.
    pub(super) async fn with(yaml: &str) -> Self {
        let mut node = Self::stopped();
        node.source.set(yaml);
        node.start().await;
        node.settle().await;
        node
    }

    /// A node without daemon.
    pub(super) fn stopped() -> Self {
        let dir = TestDir::new();
        let run_dir = dir.path().join("run").display().to_string();
        let config = Config::load(&|name| match name {
            "SLUICE_RUN_DIR" => Some(run_dir.clone()),
            "MY_NODE_NAME" => Some(NODE.to_owned()),
            "SLUICE_POLICY_MAX_WAITING" => Some("8".to_owned()),
            _ => None,
        });
        Self {
            dir,
            source: Source::default(),
            kernel: Arc::default(),
            config: config.unwrap(),
            running: None,
            aws_node: false,
            clock: Clock::starting_at(SystemTime::now()),
            metrics: Arc::new(Metrics::new()),
        }
    }

    pub(super) fn kernel<T>(&self, look: impl FnOnce(&mut Kernel) -> T) -> T {
        look(&mut self.kernel.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn start(&mut self) {
        assert!(self.running.is_none(), "it runs");
        crate::store::make_directory(&self.config.directory()).unwrap();
        let (model, found) = Model::open(&self.kernel);
        let links = self.kernel(|kernel| kernel.links());
        let source = Arc::new(self.source.clone());
        let (outbox, letters) = Outbox::new(Arc::clone(&self.metrics));
        let metrics = Arc::clone(&self.metrics);
        let (parts, mut start) = prepare(
            self.config.clone(),
            self.clock,
            Arc::clone(&source),
            (model, &found),
            Arc::clone(&metrics),
            outbox,
            &links,
        )
        .await
        .unwrap();
        start.aws_node = self.aws_node;
        let feed = parts.proxies.feed();
        let (handle, inputs) = Handle::new();
        let (sender, told) = mpsc::channel(TOLD_LIMIT);
        let sending = tokio::spawn(outbox::send(Arc::clone(&source), letters, metrics));
        let telling = tokio::spawn(async move { source.run(sender).await });
        let daemon = tokio::spawn(Daemon::new(parts, start).run(inputs, told, std::future::pending()));
        self.running = Some(Running { handle, feed, daemon, others: vec![sending, telling] });
    }

    /// The process is gone, as by SIGKILL.
    pub(super) async fn kill(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.daemon.abort();
        for task in &running.others {
            task.abort();
        }
        let _ended = running.daemon.await;
    }

    /// Whether the daemon was killed by the kernel's fuse.
    pub(super) fn is_dead(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.daemon.is_finished())
    }

    /// A DEL, as the plugin brings it: to the daemon, or left behind.
    pub(super) async fn del_or_leave(&self, container: &str) {
        if self.is_dead() {
            return self.tombstone(container);
        }
        let attachment = crate::testing::attachment(container);
        let request = PolicyDel { attachment, pod: sluice_contract::id::PodRef::default() };
        let deadline = Instant::now() + Duration::from_secs(5);
        let (_, reply) = self.handle().ask(PolicyCall::Del(request), deadline).await;
        if reply.await.is_err() {
            // It was killed while it did it.
            self.tombstone(container);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Lets everything that can happen now happen.
    pub(super) async fn settle(&self) {
        self.wait(20).await;
    }

    /// Milliseconds of virtual time pass.
    pub(super) async fn wait(&self, millis: u64) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// What proxies are told.
    pub(super) fn feed(&self) -> &Feed {
        &self.running.as_ref().unwrap().feed
    }

    fn handle(&self) -> &Handle {
        &self.running.as_ref().unwrap().handle
    }

    /// The runtime has made a sandbox's link and asks for its policy; the answer comes later.
    pub(super) async fn begin(&self, request: PolicyAdd) -> Asked {
        for interface in &request.interfaces {
            self.kernel(|kernel| {
                if kernel.attached(interface.host_index).is_none() {
                    kernel.plug(interface.host_index, Attached::Drop);
                }
            });
        }
        let deadline = Instant::now() + self.config.add_deadline;
        let (token, reply) = self.handle().ask(PolicyCall::Add(request), deadline).await;
        Asked { token, reply }
    }

    /// The same, by a runtime that does not wait: nobody withdraws the request either.
    pub(super) async fn begin_and_forget(&self, request: PolicyAdd) {
        let asked = self.begin(request).await;
        tokio::spawn(async move {
            let _answer = asked.reply.await;
        });
    }

    /// The same, and what becomes of it at once.
    pub(super) async fn add(&self, container: &str, pod: &str, index: u32) -> Option<Result<PolicyAddReply, Refusal>> {
        let mut asked = self.begin(add(container, pod, index)).await;
        self.settle().await;
        asked.answer()
    }

    /// The code of the refusal at once.
    pub(super) async fn refused(&self, container: &str, pod: &str, index: u32) -> RefusalCode {
        self.add(container, pod, index).await.expect("it is answered at once").expect_err("it is refused").code
    }

    pub(super) async fn try_call(&self, call: PolicyCall) -> Result<PolicyOutcome, Refusal> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let (_, reply) = self.handle().ask(call, deadline).await;
        match reply.await.unwrap().reply {
            Reply::Done(outcome) => Ok(outcome),
            Reply::Refused(refusal) => Err(refusal),
        }
    }

    pub(super) async fn call(&self, call: PolicyCall) -> PolicyOutcome {
        self.try_call(call).await.unwrap()
    }

    pub(super) async fn del(&self, container: &str) {
        let attachment = crate::testing::attachment(container);
        let request = PolicyDel { attachment, pod: sluice_contract::id::PodRef::default() };
        assert_eq!(self.call(PolicyCall::Del(request)).await, PolicyOutcome::Del);
    }

    pub(super) async fn send(&self, input: Input) {
        self.handle().send(input).await;
    }

    /// What the proxy was told of names.
    pub(super) fn wanted_names(&self) -> WantedNames {
        self.running.as_ref().unwrap().feed.look(|told| told.names.clone())
    }

    /// None: it was killed before it could answer.
    pub(super) async fn try_view(&self) -> Option<View> {
        self.handle().look().await
    }

    pub(super) async fn view(&self) -> View {
        self.handle().look().await.unwrap()
    }

    /// Whether a new TCP flow from a peer to the pod behind an interface passes its gate.
    pub(super) fn passes(&self, index: u32, peer: &str, port: u16) -> bool {
        self.kernel(|kernel| kernel.passes(index, &query(Direction::Ingress, peer, port)))
    }

    pub(super) fn tombstone(&self, container: &str) {
        let attachment = crate::testing::attachment(container);
        let directory = self.config.directory().join("tombstones");
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join(sluice_contract::rpc::tombstone::file_name(&attachment));
        let request = PolicyDel { attachment, pod: sluice_contract::id::PodRef::default() };
        std::fs::write(path, serde_json::to_vec(&request).unwrap()).unwrap();
    }

    /// Whether the mark of the first readiness is there.
    pub(super) fn is_marked(&self) -> bool {
        self.config.directory().join("ready").exists()
    }

    /// The journal, if there is one, is too old from now on.
    pub(super) fn age_if_there(&self) {
        if self.config.directory().join("journal").exists() {
            self.age(Duration::from_secs(301));
        }
    }

    /// Moves the daemon's files into the past.
    pub(super) fn age(&self, by: Duration) {
        let journal = self.config.directory().join("journal");
        let file = std::fs::OpenOptions::new().append(true).open(journal).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified - by).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.daemon.abort();
            running.others.iter().for_each(JoinHandle::abort);
        }
    }
}

pub(super) fn query(direction: Direction, peer: &str, port: u16) -> Query {
    Query {
        subject: PodKey { namespace: "web".into(), name: "subject".into() },
        direction,
        peer: peer.parse().unwrap(),
        protocol: Protocol::TCP,
        port,
        origin: Origin::Forwarded,
    }
}

/// A pod of this node.
pub(super) fn pod(name: &str, labels: &str) -> String {
    pod_of(name, &format!("u-{name}"), NODE, labels)
}

pub(super) fn pod_of(name: &str, uid: &str, node: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: web, uid: {uid}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{phase: Running}}\n"
    )
}

/// A pod elsewhere.
pub(super) fn peer(name: &str, address: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: web, uid: u-{name}, labels: {{{labels}}}}}\n\
         spec: {{nodeName: node-2}}\nstatus: {{phase: Running, podIPs: [{{ip: {address}}}]}}\n"
    )
}

/// Pods with the label `app: APP` take TCP port 80 from pods with `role: ROLE` only.
pub(super) fn policy(name: &str, app: &str, role: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: web, generation: 3}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {app}}}}}, policyTypes: [Ingress], ingress: \
         [{{from: [{{podSelector: {{matchLabels: {{role: {role}}}}}}}], ports: [{{port: 80}}]}}]}}\n"
    )
}

pub(super) fn pod_id(name: &str) -> ObjectId {
    ObjectId::Pod(PodKey { namespace: "web".into(), name: name.into() })
}

pub(super) fn policy_id(name: &str) -> ObjectId {
    ObjectId::Policy(sluice_policy_core::model::PolicyRef {
        kind: sluice_policy_core::model::PolicyKind::NetworkPolicy,
        namespace: Some("web".into()),
        name: name.into(),
    })
}

pub(super) const WEB: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";

/// A namespace with a policy for `app: a`, a friend at 10.1.0.1 and a stranger at 10.1.0.2.
pub(super) fn scene() -> String {
    [
        WEB,
        &policy("p", "a", "friend"),
        &peer("friend", "10.1.0.1", "role: friend"),
        &peer("stranger", "10.1.0.2", "role: other"),
    ]
    .concat()
}
