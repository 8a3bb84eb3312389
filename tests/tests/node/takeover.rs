//! A node that the AWS VPC CNI ran on is taken over with its pods talking, and handed back.

mod agent;
mod by_hand;
mod cilium;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_hostnet::watch::{Event, Watch, Watched};
use sluice_tests::bed::{Bed, INTERNET, LIMIT, add_pods, ask, run, scene, serve};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, Pod};

const AWS_NODE: &str = "/var/run/aws-node";

/// The VPC CNI's rules for what leaves the VPC (reference/vpc-cni.md 4.6, backend nftables and iptables-nft), as one table.
const AWS_RULES: &str = "table ip aws-cni {
    chain nat-prerouting { type nat hook prerouting priority -90; policy accept;
        fib daddr type local return
        iifname \"eni*\" ip daddr != 10.0.0.0/16 ct mark set ct mark | 0x80
        iifname \"eni*\" ct mark & 0x80 == 0x80 meta mark set ct mark & 0x80
    }
    chain restore { type filter hook prerouting priority -150; policy accept;
        iifname \"eni*\" ct mark & 0x80 == 0x80 meta mark set 0x80
    }
    chain nat-postrouting { type nat hook postrouting priority 100; policy accept;
        ip daddr 10.0.0.0/16 return
        oifname != \"vlan*\" fib daddr type != local snat to NODE
    }
}";

/// Makes of a node that Sluice has served one that the VPC CNI has: the same links, addresses, routes, rules and ENIs (P-02),
/// its own tables, its own record of the pods, and nothing of Sluice.
async fn as_aws_node_leaves_it(bed: &Bed, name: &str, pods: &[&Pod]) {
    let node = bed.node(name).unwrap();
    let (address, _) = bed.addresses_of(name).unwrap();
    node.kill_ipamd().await;
    // The VPC CNI's first, so that nothing goes untranslated in between.
    node.node().write("/run/aws.nft", &AWS_RULES.replace("NODE", &address.to_string())).await.unwrap();
    run(node, &["nft", "-f", "/run/aws.nft"]).await.unwrap();
    run(node, &["nft", "delete", "table", "ip", "sluice"]).await.unwrap();
    run(node, &["rm", "-rf", "/run/sluice", "/run/aws.nft"]).await.unwrap();
    run(
        node,
        &[
            "sh",
            "-c",
            "for link in $(ip -br link | cut -d@ -f1); do case $link in eni*) ip link set $link alias '';; esac; done",
        ],
    )
    .await
    .unwrap();
    let allocations: Vec<Value> = pods
        .iter()
        .map(|pod| {
            json!({"networkName": "aws-cni", "containerID": pod.sandbox.id, "ifName": "eth0", "ipv4": pod.address.to_string(),
                "allocationTimestamp": 1_711_111_111_000_000_000_i64,
                "metadata": {"k8sPodNamespace": pod.sandbox.namespace, "k8sPodName": pod.sandbox.name, "interfacesCount": 1}})
        })
        .collect();
    let document = json!({"version": "vpc-cni-ipam/1", "allocations": allocations}).to_string();
    run(node, &["mkdir", "-p", AWS_NODE]).await.unwrap();
    node.node().write(format!("{AWS_NODE}/ipam.json"), &document).await.unwrap();
}

/// Pods that talk to each other and the Internet without a pause.
struct Talk {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Talk {
    fn begin(talks: Vec<(Arc<Deployment>, Pod, std::net::Ipv4Addr)>) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let tasks = talks
            .into_iter()
            .map(|(node, pod, to)| {
                let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
                tokio::spawn(async move {
                    let mut lost = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        if let Err(error) = ask(&node, &pod, to).await {
                            lost.push(error.to_string());
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    lost
                })
            })
            .collect();
        Self { stop, asked, tasks }
    }

    /// Waits until so many connections more have been tried.
    async fn has_asked(&self, more: u32) {
        let (from, end) = (self.asked.load(Ordering::Relaxed), tokio::time::Instant::now() + LIMIT);
        while self.asked.load(Ordering::Relaxed) < from + more {
            assert!(tokio::time::Instant::now() < end, "the pods do not talk");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it; answers how often something was asked, and what was lost.
    async fn end(self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let mut lost = Vec::new();
        for task in self.tasks {
            lost.extend(task.await.unwrap());
        }
        (self.asked.load(Ordering::Relaxed), lost)
    }
}

/// Rules and routes of these pods that were touched.
async fn touched(watch: &mut Watch, pods: &[Pod]) -> Vec<Event> {
    let alive: BTreeSet<String> = pods.iter().map(|pod| format!("{}/32", pod.address)).collect();
    let of_pods = |event: &&Event| match event {
        Event::Route(_, route) => alive.contains(&route.destination.to_string()),
        Event::Rule(_, rule) => {
            [&rule.from, &rule.to].into_iter().flatten().any(|net| alive.contains(&net.to_string()))
        }
        Event::Lost => true,
        _ => false,
    };
    watch.settle().await.iter().filter(of_pods).cloned().collect()
}

/// The pods in the VPC CNI's record: addresses with the ids of their containers.
async fn handed_back(node: &Deployment) -> BTreeMap<String, String> {
    let written = run(node, &["cat", &format!("{AWS_NODE}/ipam.json")]).await.unwrap();
    let written: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written["version"], "vpc-cni-ipam/1");
    let of = |one: &Value| {
        assert_eq!((&one["networkName"], &one["ifName"]), (&json!("aws-cni"), &json!("eth0")));
        (one["ipv4"].as_str().unwrap().to_owned(), one["containerID"].as_str().unwrap().to_owned())
    };
    written["allocations"].as_array().unwrap().iter().map(of).collect()
}

/// SPECIFICATION P-25.
#[tokio::test(flavor = "multi_thread")]
async fn p25_a_node_of_the_vpc_cni_is_taken_over_and_handed_back_without_a_packet_lost() {
    if !privileged() {
        return;
    }
    let bed = Bed::up(&scene(0.1), &[]).await.unwrap();
    let (node, other) = (bed.node("node-a").unwrap(), bed.node("node-b").unwrap());
    // More than the primary ENI holds.
    let pods = add_pods(node, "default", "p", 12).await.unwrap();
    let far = other.add("default", "far").await.unwrap();
    serve(other, &far).await.unwrap();
    serve(node, &pods[0]).await.unwrap();
    let of_device = |device| pods.iter().find(|pod| bed.device_of(pod.address) == Some(device)).unwrap();
    let (first, second) = (of_device(0), of_device(1));
    let talk = Talk::begin(vec![
        (Arc::clone(node), first.clone(), far.address),
        (Arc::clone(node), second.clone(), far.address),
        (Arc::clone(node), second.clone(), INTERNET),
        (Arc::clone(node), second.clone(), pods[0].address),
        (Arc::clone(other), far.clone(), pods[0].address),
    ]);
    // One pod is not in the VPC CNI's record: nobody gets its address either.
    let (known, unknown) = (&pods[..11], &pods[11]);
    as_aws_node_leaves_it(&bed, "node-a", &known.iter().collect::<Vec<_>>()).await;

    // While the VPC CNI's daemon answers, nothing is begun.
    let socket = node.node().run(|| UnixListener::bind(format!("{AWS_NODE}/ipamd.sock")).unwrap()).await.unwrap();
    let mut watch = Watch::open(node.node().net(), Watched::ALL).await.unwrap();
    node.start_ipamd().await.unwrap();
    let end = tokio::time::Instant::now() + LIMIT;
    while !node.log_tail(50).contains("waiting until it is stopped") {
        assert!(tokio::time::Instant::now() < end, "{}", node.log_tail(50));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(run(node, &["test", "-e", "/run/sluice/ipamd.sock"]).await.is_err(), "nobody is served");
    drop(socket);
    node.ready(LIMIT).await.unwrap();
    let adopted = |view: &Value| view["pool"]["assigned"] == 11 && view["pool"]["quarantined"] == 1;
    let view = node.pool_until("the pods were not taken over", LIMIT, adopted).await.unwrap();
    assert_eq!(view["pool"]["violations"], 0, "{view}");

    // What the pods stand on is as it was.
    let touched = touched(&mut watch, &pods).await;
    assert!(touched.is_empty(), "{touched:?}");

    // New pods get other addresses; those of the VPC CNI end as any.
    let mut taken: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    for pod in add_pods(node, "default", "q", 3).await.unwrap() {
        assert!(taken.insert(pod.address), "{} belongs to a running pod", pod.address);
    }
    let ending =
        known.iter().find(|pod| ![first.address, second.address, pods[0].address].contains(&pod.address)).unwrap();
    node.delete(&ending.sandbox).await.unwrap();
    let fewer = |view: &Value| view["pool"]["assigned"] == 13;
    node.pool_until("a pod of the VPC CNI did not give its address back", LIMIT, fewer).await.unwrap();
    let rules = run(node, &["ip", "rule"]).await.unwrap();
    let address = ending.address.to_string();
    assert!(!rules.split_whitespace().any(|word| word == address), "{rules}");

    // And back. It is refused while the daemon runs, and as long as a pod would be forgotten.
    let sluice = Binaries::find("sluice").unwrap();
    let sluice = sluice.to_str().unwrap();
    let refused = run(node, &[sluice, "handback"]).await.unwrap_err().to_string();
    assert!(refused.contains("stop it first"), "{refused}");
    node.kill_ipamd().await;
    let refused = run(node, &[sluice, "handback"]).await.unwrap_err().to_string();
    assert!(refused.contains(&unknown.address.to_string()), "{refused}");
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    node.delete(&unknown.sandbox).await.unwrap();
    let known_all = |view: &Value| view["pool"]["quarantined"] == 0;
    node.pool_until("a quarantine did not end", LIMIT + LIMIT, known_all).await.unwrap();
    node.kill_ipamd().await;
    let said = run(node, &[sluice, "handback"]).await.unwrap();
    assert!(said.starts_with("pods that are the AWS VPC CNI's: 13 (/var/run/aws-node/ipam.json)"), "{said}");
    let back = handed_back(node).await;
    assert_eq!(back.len(), 13);
    for pod in [first, second, &pods[0]] {
        assert_eq!(back.get(&pod.address.to_string()), Some(&pod.sandbox.id));
    }
    assert!(run(node, &["test", "-e", "/run/sluice/ipam.json"]).await.is_err(), "it would be believed another time");
    let (asked, lost) = talk.end().await;
    println!("{asked} connections during takeover and handback, {} lost", lost.len());
    assert!(lost.is_empty() && asked > 100, "{asked} asked, lost: {lost:?}");
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// What the VPC CNI leaves in iptables (reference/vpc-cni.md 4.14), among rules of others.
const IPTABLES: &str = r#"
iptables-legacy-restore <<'RULES'
*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.10 --random-fully
COMMIT
*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
COMMIT
*filter
-A OUTPUT -p tcp -m tcp --dport 50051 -m comment --comment "Block Node Local Pod access via IPv4" -j DROP
-A INPUT -i lo -m comment --comment "of another" -j ACCEPT
COMMIT
RULES
"#;

/// The image has no iptables, so that on a node with its older backend an operator takes them away.
#[test]
fn the_guides_commands_take_its_rules_out_of_iptables_legacy_and_no_others() {
    if !privileged() {
        return;
    }
    let commands = cilium::guide("-legacy-restore");
    let script = format!("{IPTABLES}\n{commands}\n{commands}\nexec iptables-legacy-save");
    let output = std::process::Command::new("unshare").args(["--net", "sh", "-ec", &script]).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let saved = String::from_utf8(output.stdout).unwrap();
    let rules: BTreeSet<&str> = saved.lines().filter(|line| line.starts_with("-A")).collect();
    let others = [
        r#"-A INPUT -i lo -m comment --comment "of another" -j ACCEPT"#,
        r#"-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j RETURN"#,
    ];
    assert_eq!(rules, BTreeSet::from(others));
    assert!(!saved.contains("AWS"), "{saved}");
}
