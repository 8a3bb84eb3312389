//! Names: what the proxy tells is in force when it is told so, and stays for its time, over restarts, and while it is used.

use std::net::IpAddr;
use std::time::SystemTime;

use sluice_contract::names::{ALONE_FILE, Resolved};
use sluice_contract::proxy::Resolution;
use sluice_policy_core::flow::Direction;
use tokio::sync::oneshot;

use super::sim::*;
use crate::daemon::names::{OF_POD, seconds};
use crate::inbox::{Input, Known};

const SITE: &str = "192.0.2.80";
const OTHER: &str = "192.0.2.81";

/// What gate 7's pod may reach.
fn reaches(node: &Node, address: &str) -> bool {
    node.kernel(|kernel| kernel.passes(7, &query(Direction::Egress, address, 443)))
}

fn names_policy(patterns: &[&str]) -> String {
    let names: Vec<String> = patterns.iter().map(|pattern| format!("{{matchPattern: \"{pattern}\"}}")).collect();
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: names, namespace: web}}\n\
         spec: {{endpointSelector: {{matchLabels: {{app: a}}}}, egress: [{{toFQDNs: [{}]}}]}}\n",
        names.join(", ")
    )
}

async fn with_names(patterns: &[&str]) -> Node {
    let node = Node::with(&[scene(), pod("a", "app: a"), names_policy(patterns)].concat()).await;
    assert!(node.add("c1", "a", 7).await.unwrap().is_ok());
    node
}

fn resolution(id: u64, name: &str, addresses: &[&str], ttl: u32) -> Resolution {
    let addresses = addresses.iter().map(|address| address.parse::<IpAddr>().unwrap()).collect();
    Resolution { id, namespace: "web".into(), pod: "a".into(), name: name.into(), addresses, ttl }
}

async fn tell(node: &Node, resolutions: Vec<Resolution>) -> Known {
    let (done, known) = oneshot::channel();
    node.send(Input::Resolved(resolutions, done)).await;
    known.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_a_name_resolves_to_is_in_force_when_the_proxy_is_told_so() {
    let node = with_names(&["*.example.com"]).await;
    assert!(!reaches(&node, SITE));
    let known = tell(
        &node,
        vec![
            resolution(1, "www.example.com", &[SITE], 30),
            resolution(2, "www.example.org", &[OTHER], 30),
            resolution(3, "a..b", &[OTHER], 30),
        ],
    )
    .await;
    assert_eq!((known.kept, known.dropped), (vec![1], vec![2, 3]));
    assert!(reaches(&node, SITE) && !reaches(&node, OTHER));
    // What is known is known at once.
    assert_eq!(tell(&node, vec![resolution(4, "www.example.com", &[SITE], 30)]).await.kept, [4]);
    // A rule that goes takes its names with it; one that comes back learns them anew.
    node.source.set(&names_policy(&["*.example.org"]));
    node.settle().await;
    assert!(!reaches(&node, SITE));
    assert_eq!(tell(&node, vec![resolution(5, "www.example.org", &[OTHER], 30)]).await.kept, [5]);
    assert!(reaches(&node, OTHER));
}

/// The least time is 60 seconds; ended addresses are looked for every 30.
#[tokio::test(start_paused = true)]
async fn an_address_stays_for_its_time_and_while_a_pod_uses_it() {
    let node = with_names(&["*"]).await;
    let told = vec![resolution(1, "a.example.com", &[SITE], 5), resolution(2, "b.example.com", &[OTHER], 300)];
    assert_eq!(tell(&node, told).await.kept, [1, 2]);
    node.wait(59_000).await;
    assert!(reaches(&node, SITE));
    node.wait(35_000).await;
    assert!(!reaches(&node, SITE), "forgotten");
    assert!(reaches(&node, OTHER));
    node.kernel(|kernel| kernel.peers.insert(OTHER.parse().unwrap()));
    node.wait(600_000).await;
    assert!(reaches(&node, OTHER), "in use");
    node.kernel(|kernel| kernel.peers.clear());
    node.wait(100_000).await;
    assert!(!reaches(&node, OTHER));
    assert_eq!(node.view().await.name_addresses, 0);
}

#[tokio::test(start_paused = true)]
async fn names_outlive_policyd() {
    let mut node = with_names(&["*.example.com"]).await;
    tell(&node, vec![resolution(1, "a.example.com", &[SITE], 300)]).await;
    let sizes = node.kernel(|kernel| kernel.sizes());
    for _ in 0..2 {
        node.kill().await;
        assert!(reaches(&node, SITE));
        node.start().await;
        node.settle().await;
        assert!(reaches(&node, SITE) && !reaches(&node, OTHER));
        assert_eq!(node.kernel(|kernel| kernel.sizes()), sizes, "the maps hold nothing of before");
    }
    // Its time goes on meanwhile.
    node.kill().await;
    node.wait(301_000).await;
    node.start().await;
    node.settle().await;
    assert!(!reaches(&node, SITE));
}

/// What the proxy wrote while nobody else did is taken over, before the maps are swept and later.
#[tokio::test(start_paused = true)]
async fn what_the_proxy_wrote_alone_is_taken_over() {
    let mut node = with_names(&["*.example.com"]).await;
    node.kill().await;
    let path = node.dir.path().join("run/policy").join(ALONE_FILE);
    let line = |name: &str, address: &str| {
        let until = seconds(SystemTime::now()) + 3_600;
        let one = Resolved { name: name.into(), addresses: vec![address.parse().unwrap()], until, pod: None };
        format!("{}\n", serde_json::to_string(&one).unwrap())
    };
    std::fs::write(&path, line("a.example.com", SITE)).unwrap();
    node.start().await;
    node.settle().await;
    assert!(reaches(&node, SITE));
    assert!(!path.exists());
    // A proxy that has not seen yet that policyd is back.
    std::fs::write(&path, line("b.example.com", OTHER)).unwrap();
    node.wait(31_000).await;
    assert!(reaches(&node, OTHER) && !path.exists());
    node.kill().await;
    node.start().await;
    node.settle().await;
    assert!(reaches(&node, SITE) && reaches(&node, OTHER), "it is policyd's own now");
}

/// A pod that asks for everything takes no room from others.
#[tokio::test(start_paused = true)]
async fn a_pod_makes_so_many_addresses_known_and_no_more() {
    let node = with_names(&["*"]).await;
    let addresses: Vec<String> =
        (0..1_000_u32).map(|at| IpAddr::from((0xc612_0000 + at).to_be_bytes()).to_string()).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let most = OF_POD / addresses.len();
    for id in 0..=most {
        let known = tell(&node, vec![resolution(id as u64, &format!("n{id}.example.com"), &addresses, 60)]).await;
        assert_eq!(known.kept.len(), usize::from(id < most), "{id}");
    }
    let other = Resolution { pod: "b".into(), ..resolution(1, "b.example.com", &[SITE], 60) };
    assert_eq!(tell(&node, vec![other]).await.kept, [1]);
    // Those that end make room.
    node.wait(100_000).await;
    assert_eq!(tell(&node, vec![resolution(1, "a.example.com", &[SITE], 60)]).await.kept, [1]);
}

/// The proxy is told which names are wanted, and what their addresses became.
#[tokio::test(start_paused = true)]
async fn the_proxy_knows_what_to_tell() {
    let node = with_names(&["*.example.com", "www.*.com"]).await;
    assert_eq!(node.wanted_names().patterns, ["*.example.com", "www.*.com"]);
    assert_eq!(node.wanted_names().least, 60);
    let classes = || {
        let classes = node.wanted_names().classes;
        assert!(classes.iter().all(|class| class.base != class.identity));
        classes.into_iter().map(|class| class.patterns).collect::<std::collections::BTreeSet<_>>()
    };
    // Before anybody has asked for a name.
    let [com, www] = ["*.example.com", "www.*.com"].map(str::to_owned);
    assert_eq!(classes(), [vec![com.clone()], vec![www.clone()]].into());
    assert_eq!(node.view().await.name_addresses, 0);
    tell(&node, vec![resolution(1, "a.example.com", &[SITE], 300)]).await;
    tell(&node, vec![resolution(2, "www.example.com", &[OTHER], 300)]).await;
    node.wait(2_000).await;
    // Something has to happen for it to be told.
    tell(&node, vec![resolution(3, "a.example.com", &[SITE], 300)]).await;
    assert_eq!(classes(), [vec![com.clone()], vec![www.clone()], vec![com, www]].into());
    assert_eq!(node.view().await.name_addresses, 2);
    node.source.set(&names_policy(&["*.example.org"]));
    node.settle().await;
    assert_eq!(node.wanted_names().patterns, ["*.example.org"]);
}
