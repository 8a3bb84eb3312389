//! Whatever happens in whatever order, no interface that was gated passes what its pod's policies do not allow.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config as RunConfig, TestCaseError};
use sluice_policy_core::cluster::{Event, Object, ObjectId, Pod, PodKey};
use sluice_policy_core::compile::engine::Engine;
use sluice_policy_core::flow::{Direction, Query, Verdict};
use sluice_policy_core::settings::Settings;

use super::sim::*;
use crate::testing::add;

const PODS: [&str; 3] = ["a", "b", "c"];
const PEERS: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.0.0.250"];

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A pod is, with these labels, and this incarnation.
    Pod {
        name: usize,
        app: usize,
        incarnation: u8,
    },
    PodGone {
        name: usize,
    },
    Policy {
        name: usize,
        app: usize,
        role: usize,
    },
    PolicyGone {
        name: usize,
    },
    /// A policy that denies what nobody else would.
    Deny {
        app: usize,
        role: usize,
    },
    DenyGone,
    Peer {
        number: usize,
        role: usize,
    },
    /// The runtime makes a sandbox.
    Add {
        name: usize,
        incarnation: u8,
    },
    /// It removes one: the so many eldest.
    Del {
        eldest: usize,
    },
    LinkGone {
        eldest: usize,
    },
    Silent(bool),
    Kill,
    KillAfter(u32),
    Start,
    /// The journal is too old.
    Age,
    Full(&'static str, usize),
    Room,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_usize, 0..3_usize, 0..2_u8).prop_map(|(name, app, incarnation)| Step::Pod { name, app, incarnation }),
        1 => (0..3_usize).prop_map(|name| Step::PodGone { name }),
        4 => (0..3_usize, 0..3_usize, 0..3_usize).prop_map(|(name, app, role)| Step::Policy { name, app, role }),
        1 => (0..3_usize).prop_map(|name| Step::PolicyGone { name }),
        3 => (0..3_usize, 0..3_usize).prop_map(|(app, role)| Step::Deny { app, role }),
        1 => Just(Step::DenyGone),
        2 => (0..2_usize, 0..3_usize).prop_map(|(number, role)| Step::Peer { number, role }),
        6 => (0..3_usize, 0..2_u8).prop_map(|(name, incarnation)| Step::Add { name, incarnation }),
        2 => (0..4_usize).prop_map(|eldest| Step::Del { eldest }),
        1 => (0..4_usize).prop_map(|eldest| Step::LinkGone { eldest }),
        2 => any::<bool>().prop_map(Step::Silent),
        2 => Just(Step::Kill),
        3 => (0..40_u32).prop_map(Step::KillAfter),
        4 => Just(Step::Start),
        1 => Just(Step::Age),
        3 => (prop_oneof![Just("peers"), Just("rows"), Just("ipcache"), Just("endpoints")], 0..3_usize)
            .prop_map(|(map, more)| Step::Full(map, more)),
        2 => Just(Step::Room),
        2 => prop_oneof![Just(30_u64), Just(600), Just(6000), Just(12_000)].prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..30)
}

/// So that there is something to break: pods with sandboxes, peers, and policies of both kinds.
fn prelude() -> Vec<Step> {
    let pods = (0..3).map(|name| Step::Pod { name, app: name, incarnation: 0 });
    let peers = (0..2).map(|number| Step::Peer { number, role: number });
    let policies = [Step::Policy { name: 0, app: 0, role: 0 }, Step::Deny { app: 1, role: 1 }];
    let adds = (0..3).map(|name| Step::Add { name, incarnation: 0 });
    pods.chain(peers).chain(policies).chain(adds).collect()
}

/// A sandbox as its runtime knows it.
#[derive(Debug, Clone)]
struct Sandbox {
    container: String,
    index: u32,
    /// The pod's name, and UID.
    pod: (String, String),
}

/// By name and UID, what is known of an incarnation of a pod: its last object; of one that has gone, also those that it had had since
/// policyd was told of one. Nobody tells it any more which of them was the last.
type Incarnations = BTreeMap<(String, String), Vec<Pod>>;

/// What the cluster was at some time, and the pods that it had had by then.
#[derive(Debug, Clone, Default)]
struct World {
    objects: BTreeMap<ObjectId, Object>,
    pods: Incarnations,
}

struct Storm {
    node: Node,
    sandboxes: Vec<Sandbox>,
    number: u32,
    /// Every state that the cluster had since the last look that had everything in force.
    worlds: Vec<World>,
    pods: Incarnations,
    silent: bool,
}

impl Storm {
    async fn step(&mut self, step: &Step) {
        match step {
            Step::Pod { name, app, incarnation } => {
                let (name, uid) = (PODS[*name], format!("u{incarnation}-{}", PODS[*name]));
                self.set(&pod_of(name, &uid, NODE, &format!("app: {}", PODS[*app])));
            }
            Step::PodGone { name } => self.remove(pod_id(PODS[*name])),
            Step::Policy { name, app, role } => self.set(&policy(PODS[*name], PODS[*app], PODS[*role])),
            Step::PolicyGone { name } => self.remove(policy_id(PODS[*name])),
            Step::Deny { app, role } => self.set(&denial(PODS[*app], PODS[*role])),
            Step::DenyGone => self.remove(denial_id()),
            Step::Peer { number, role } => {
                self.set(&peer(&format!("peer{number}"), PEERS[*number], &format!("role: {}", PODS[*role])));
            }
            Step::Add { name, incarnation } if self.node.is_running() => {
                self.number += 1;
                let container = format!("c{}", self.number);
                let index = 10 + self.number;
                let uid = format!("u{incarnation}-{}", PODS[*name]);
                let mut request = add(&container, PODS[*name], index);
                request.pod.uid = Some(uid.clone());
                self.sandboxes.push(Sandbox { container, index, pod: (PODS[*name].to_owned(), uid) });
                self.node.begin_and_forget(request).await;
            }
            Step::Del { eldest } if *eldest < self.sandboxes.len() => {
                let sandbox = self.sandboxes.remove(*eldest);
                self.node.del_or_leave(&sandbox.container).await;
            }
            Step::LinkGone { eldest } if *eldest < self.sandboxes.len() => {
                let sandbox = self.sandboxes.remove(*eldest);
                self.node.kernel(|kernel| kernel.unplug(sandbox.index));
                if self.node.is_running() {
                    self.node.send(crate::inbox::Input::LinkGone(sandbox.index)).await;
                }
            }
            Step::Silent(silent) => {
                if self.silent != *silent {
                    self.silent = *silent;
                    self.node.source.silent(*silent);
                }
            }
            Step::Kill => self.node.kill().await,
            Step::KillAfter(writes) => {
                if self.node.is_running() {
                    self.node.kernel(|kernel| kernel.kill_after(*writes));
                }
            }
            Step::Start => {
                if self.node.is_dead() {
                    self.node.kill().await;
                    self.node.kernel(|kernel| kernel.disarm());
                    self.node.start().await;
                }
            }
            Step::Age => self.node.age_if_there(),
            Step::Full(map, more) => self.node.kernel(|kernel| {
                let held = kernel.sizes()[map];
                kernel.limit(map, held + more);
            }),
            Step::Room => self.node.kernel(|kernel| kernel.unlimited()),
            Step::Wait(millis) => self.node.wait(*millis).await,
            Step::Add { .. } | Step::Del { .. } | Step::LinkGone { .. } => {}
        }
    }

    fn set(&mut self, yaml: &str) {
        self.node.source.set(yaml);
        self.note();
    }

    fn remove(&mut self, id: ObjectId) {
        self.node.source.remove(id);
        self.note();
    }

    fn note(&mut self) {
        let world: BTreeMap<ObjectId, Object> = self
            .node
            .source
            .world(|world| world.objects.iter().map(|(id, (object, _))| (id.clone(), object.clone())).collect());
        for object in world.values() {
            if let Object::Pod(pod) = object {
                let all = self.pods.entry((pod.key.name.to_string(), pod.uid.to_string())).or_default();
                if all.last() != Some(pod) {
                    all.push(pod.clone());
                }
            }
        }
        self.worlds.push(World { objects: world, pods: self.pods.clone() });
    }

    /// No gate passes what in none of the states since the last look its pod's policies allow; and when everything
    /// is in force, only the last state counts.
    async fn look(&mut self) -> Result<(), TestCaseError> {
        self.node.settle().await;
        let alive = self.node.is_running() && !self.node.is_dead();
        let engines: Vec<(Engine, &World)> = self.worlds.iter().map(|world| (engine(world), world)).collect();
        for sandbox in &self.sandboxes {
            for peer in PEERS {
                for port in [80, 81] {
                    let query = query(Direction::Ingress, peer, port);
                    if !self.node.kernel(|kernel| kernel.passes(sandbox.index, &query)) {
                        continue;
                    }
                    let allowed = engines.iter().any(|(engine, world)| allows(engine, world, sandbox, &query));
                    prop_assert!(allowed, "{sandbox:?} passes {peer}:{port}");
                }
            }
        }
        drop(engines);
        // The step that comes before the view may be the one in which it is killed.
        let view = if alive && !self.silent { self.node.try_view().await } else { None };
        if view.is_some_and(|view| view.synced) {
            let last = self.worlds.pop().unwrap_or_default();
            for object in last.objects.values() {
                if let Object::Pod(pod) = object {
                    self.pods.insert((pod.key.name.to_string(), pod.uid.to_string()), vec![pod.clone()]);
                }
            }
            self.worlds = vec![World { pods: self.pods.clone(), ..last }];
        }
        Ok(())
    }
}

/// What a fresh compiler makes of a state.
fn engine(world: &World) -> Engine {
    let mut engine = Engine::new(Settings { node: Some(NODE.into()), ..Settings::default() });
    for object in world.objects.values() {
        engine.apply(Event::Upsert(object.clone()));
    }
    // Every incarnation of every pod under a name of its own.
    for ((_, uid), pods) in &world.pods {
        for (number, pod) in pods.iter().enumerate() {
            let key = subject(uid, number);
            engine.apply(Event::Upsert(Object::Pod(Pod { key, addresses: Vec::new().into(), ..pod.clone() })));
        }
    }
    engine.commit();
    engine
}

fn subject(uid: &str, number: usize) -> PodKey {
    PodKey { namespace: "web".into(), name: format!("{uid}-{number}").as_str().into() }
}

fn allows(engine: &Engine, world: &World, sandbox: &Sandbox, query: &Query) -> bool {
    let known = world.pods.get(&sandbox.pod).map_or(0, Vec::len);
    (0..known).any(|number| {
        let subject = subject(&sandbox.pod.1, number);
        engine.judge(&Query { subject, ..query.clone() }).verdict != Verdict::Deny
    })
}

/// Pods with `app: APP` take nothing from those with `role: ROLE`, and the rest as if this were not there.
fn denial(app: &str, role: &str) -> String {
    let pods = |label: &str, value: &str| {
        format!("{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{{label}: {value}}}}}}}}}")
    };
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: denial}}\n\
         spec: {{tier: Admin, priority: 10, subject: {}, ingress: [{{action: Deny, from: [{}]}}]}}\n",
        pods("app", app),
        pods("role", role)
    )
}

fn denial_id() -> ObjectId {
    ObjectId::Policy(sluice_policy_core::model::PolicyRef {
        kind: sluice_policy_core::model::PolicyKind::ClusterNetworkPolicy,
        namespace: None,
        name: "denial".into(),
    })
}

/// A storm so far.
async fn after(steps: &[Step]) -> Result<Storm, TestCaseError> {
    let node = Node::with(WEB).await;
    let mut storm =
        Storm { node, sandboxes: Vec::new(), number: 0, worlds: Vec::new(), pods: BTreeMap::new(), silent: false };
    storm.note();
    for step in prelude() {
        storm.step(&step).await;
    }
    storm.look().await?;
    for step in steps {
        storm.step(step).await;
        storm.look().await?;
    }
    Ok(storm)
}

fn run(steps: &[Step]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut storm = after(steps).await?;
        // In the end everything works again.
        storm.node.kernel(|kernel| kernel.unlimited());
        storm.node.kernel(|kernel| kernel.disarm());
        if storm.node.is_dead() {
            storm.node.kill().await;
            storm.node.start().await;
        }
        if storm.silent {
            storm.silent = false;
            storm.node.source.silent(false);
        }
        storm.node.wait(12_000).await;
        storm.look().await?;
        storm.number += 1;
        storm.set(&pod_of("last", "u-last", NODE, "app: last"));
        storm.node.settle().await;
        let answer = storm.node.add("last", "last", 9).await;
        prop_assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
        Ok(())
    })
}

/// The maps are full when policyd comes back, so that they are not swept, and a pod has gone meanwhile whose sandbox lives.
#[tokio::test(start_paused = true)]
async fn whoever_is_not_known_any_more_keeps_no_policy_where_maps_are_full() {
    let storm = after(&[
        Step::Policy { name: 2, app: 2, role: 0 },
        Step::KillAfter(26),
        Step::Full("rows", 0),
        Step::Policy { name: 2, app: 0, role: 0 },
        Step::Policy { name: 0, app: 0, role: 1 },
        Step::Pod { name: 0, app: 0, incarnation: 0 },
        Step::Age,
        Step::PodGone { name: 0 },
        Step::Start,
        Step::Pod { name: 1, app: 0, incarnation: 0 },
    ]);
    let storm = storm.await.unwrap();
    for peer in PEERS {
        let query = query(Direction::Ingress, peer, 80);
        assert!(!storm.node.kernel(|kernel| kernel.passes(11, &query)), "{peer}");
    }
}

proptest! {
    #![proptest_config(RunConfig { cases: 48, ..RunConfig::default() })]

    #[test]
    fn nothing_ever_opens(steps in steps()) {
        // The panic of a killed daemon is not news.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let outcome = std::panic::catch_unwind(|| run(&steps));
        std::panic::set_hook(hook);
        match outcome {
            Ok(outcome) => outcome?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
