//! What proxies are told, and when the kernel gets it.

use sluice_contract::proxy::{Application, Snapshot, Update};
use sluice_policy_core::cluster::ObjectId;
use sluice_policy_core::model::{PolicyKind, PolicyRef};

use super::sim::*;
use crate::proxy::{LINGER, PATIENCE, Place};

const FRIEND: &str = "10.1.0.1";

/// Pods with the label `app: APP` take requests with these methods at a port.
fn http(name: &str, app: &str, port: u16, method: &str) -> String {
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: web}}\n\
         spec: {{endpointSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{toPorts: [{{ports: [{{port: \"{port}\", \
         protocol: TCP}}], rules: {{http: [{{method: {method}}}]}}}}]}}]}}\n"
    )
}

fn http_id(name: &str) -> ObjectId {
    ObjectId::Policy(PolicyRef {
        kind: PolicyKind::CiliumNetworkPolicy,
        namespace: Some("web".into()),
        name: name.into(),
    })
}

/// A proxy that takes in what it is told when it is told to.
struct Proxy {
    place: Place,
    told: Snapshot,
    version: Option<u64>,
}

impl Proxy {
    fn join(node: &Node) -> Self {
        Self { place: node.feed().join(), told: Snapshot::default(), version: None }
    }

    fn read(&mut self, node: &Node) {
        for update in node.feed().since(self.version) {
            self.version = Some(update.version);
            update.parts().into_iter().for_each(|part: Update| self.told.apply(part));
        }
        assert_eq!(self.told, node.feed().look(Snapshot::clone), "changes lead to what there is");
        for decision in self.told.decisions.values() {
            let audit = decision.audit.iter().flat_map(|audit| &audit.lists);
            let mut lists = decision.verdict.lists.iter().chain(audit);
            assert!(lists.all(|list| self.told.lists.contains_key(list)), "no decision names what is not told");
        }
    }

    fn take_in(&mut self, node: &Node) {
        self.read(node);
        self.place.acknowledge(self.told.version);
    }

    fn methods(&self) -> Vec<String> {
        let rules = self.told.lists.values().flat_map(|list| match &list.application {
            Application::Http(rules) => rules.iter().filter_map(|rule| rule.method.clone()).collect(),
            _ => Vec::new(),
        });
        rules.collect()
    }
}

fn kernel_decisions(node: &Node) -> usize {
    node.kernel(|kernel| kernel.sizes()["decisions"])
}

async fn node() -> Node {
    let node = Node::with(&[scene(), pod("a", "app: a")].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_told_before_the_kernel_gets_it_and_forgotten_after() {
    let node = node().await;
    let mut proxy = Proxy::join(&node);
    proxy.take_in(&node);
    assert_eq!(proxy.told.endpoints.values().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(proxy.told.decisions.is_empty());
    let before = kernel_decisions(&node);
    node.source.set(&http("h", "a", 8080, "GET"));
    node.settle().await;
    assert_eq!(kernel_decisions(&node), before, "the kernel waits for the proxy");
    proxy.take_in(&node);
    assert_eq!(proxy.methods(), ["GET"]);
    node.settle().await;
    assert!(kernel_decisions(&node) > before);
    assert!(node.passes(7, FRIEND, 8080));

    // A rule that changes is another list, and the old one stays until nothing can name it.
    proxy.take_in(&node);
    node.source.set(&http("h", "a", 8080, "PUT"));
    node.settle().await;
    proxy.take_in(&node);
    assert_eq!(proxy.methods(), ["GET", "PUT"]);
    node.wait(1_000).await;
    proxy.take_in(&node);
    assert_eq!(proxy.methods(), ["GET", "PUT"]);
    node.wait(LINGER.as_secs() * 1_000 + 1_000).await;
    proxy.take_in(&node);
    assert_eq!(proxy.methods(), ["PUT"]);

    node.source.remove(http_id("h"));
    node.wait(LINGER.as_secs() * 1_000 + 2_000).await;
    proxy.take_in(&node);
    assert!(proxy.told.decisions.is_empty() && proxy.told.lists.is_empty(), "{:?}", proxy.told);
    let view = node.view().await.proxy;
    assert_eq!((view.connected, view.decisions, view.endpoints), (1, 0, 1));
}

/// DESIGN 6.12: what only a dry run would send to the proxy goes there to be seen, so that the proxy has to know its rules.
#[tokio::test(start_paused = true)]
async fn a_dry_run_is_told_too() {
    let node = node().await;
    let mut proxy = Proxy::join(&node);
    proxy.take_in(&node);
    let dry =
        |method| http("h", "a", 8080, method).replace("name: h,", "name: h, annotations: {sluice.dev/audit: 'true'},");
    node.source.set(&dry("GET"));
    node.wait(2_000).await;
    proxy.take_in(&node);
    assert_eq!(proxy.methods(), ["GET"]);
    let decisions: Vec<_> = proxy.told.decisions.values().collect();
    assert!(decisions.iter().any(|decision| decision.verdict.passes), "{decisions:?}");
    for decision in decisions {
        let audit = decision.audit.as_ref().map(|audit| audit.lists.len());
        assert_eq!((decision.verdict.lists.len(), audit), (0, Some(1)), "{decision:?}");
    }
    assert!(!node.passes(7, FRIEND, 8080), "it lets nothing pass either");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_answer_is_waited_for_once_and_not_for_long() {
    let node = node().await;
    let mut proxy = Proxy::join(&node);
    proxy.take_in(&node);
    let before = kernel_decisions(&node);
    node.source.set(&http("h", "a", 8080, "GET"));
    node.wait(PATIENCE.as_secs() * 1_000 - 100).await;
    assert_eq!(kernel_decisions(&node), before);
    node.wait(200).await;
    assert!(kernel_decisions(&node) > before);
    assert!(node.metrics.encode().contains("sluice_policy_proxy_late 1"), "{}", node.metrics.encode());
    // Nothing waits for it again before it says something.
    node.source.set(&http("j", "a", 8082, "GET"));
    node.settle().await;
    assert!(node.passes(7, FRIEND, 8082));
    proxy.take_in(&node);
    let before = kernel_decisions(&node);
    node.source.set(&http("i", "a", 8081, "PUT"));
    node.settle().await;
    assert_eq!(kernel_decisions(&node), before, "the kernel waits for it again");
    // One that goes is not waited for.
    drop(proxy);
    node.settle().await;
    assert!(node.passes(7, FRIEND, 8081));
}

#[tokio::test(start_paused = true)]
async fn without_a_proxy_nothing_waits_and_one_that_comes_is_told_everything() {
    let node = node().await;
    node.source.set(&[http("h", "a", 8080, "GET"), http("i", "a", 8081, "PUT")].concat());
    node.settle().await;
    assert!(node.passes(7, FRIEND, 8080));
    let mut proxy = Proxy::join(&node);
    proxy.read(&node);
    let mut methods = proxy.methods();
    methods.sort();
    assert_eq!(methods, ["GET", "PUT"]);
    // What is on disk is the same.
    let kept = std::fs::read(node.dir.path().join("run/policy/proxy.json")).unwrap();
    let kept: Snapshot = serde_json::from_slice(&kept).unwrap();
    assert_eq!((kept.lists, kept.decisions), (proxy.told.lists, proxy.told.decisions));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_old_decisions_are_told_until_the_maps_are_swept() {
    let mut node = node().await;
    node.source.set(&http("h", "a", 8080, "GET"));
    node.settle().await;
    let mut before = Proxy::join(&node);
    before.read(&node);
    node.kill().await;
    node.source.silent(true);
    node.start().await;
    node.settle().await;
    let mut proxy = Proxy::join(&node);
    proxy.take_in(&node);
    assert!(before.told.decisions.keys().all(|id| proxy.told.decisions.contains_key(id)), "gates still go by them");
    assert_eq!(proxy.told.endpoints, before.told.endpoints);
    assert!(proxy.told.version >= before.told.version);
    node.source.silent(false);
    node.settle().await;
    proxy.take_in(&node);
    node.settle().await;
    proxy.take_in(&node);
    assert!(before.told.decisions.keys().all(|id| !proxy.told.decisions.contains_key(id)), "{:?}", proxy.told);
    assert_eq!(proxy.methods(), ["GET"]);
    assert!(node.passes(7, FRIEND, 8080));
}
