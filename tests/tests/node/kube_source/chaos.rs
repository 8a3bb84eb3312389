//! Whatever happens to the API server on the way: in the end exactly what is there is known.

use serde_json::Value;
use sluice_tests::apiserver::{ApiServer, Backup, Fault, FaultRule, Outage, TableId};

use super::observer::{Observer, cilium_policy, network_policy, pod, pods};

/// Changes and faults of one run.
const STEPS: u64 = 150;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

fn tables() -> [TableId; 3] {
    [pods(), TableId::new("networking.k8s.io", "networkpolicies"), TableId::new("cilium.io", "ciliumnetworkpolicies")]
}

fn object(table: usize, name: &str, dice: &mut Dice) -> Value {
    match table {
        0 => pod("default", name, &format!("10.0.0.{}", 1 + dice.below(250))),
        1 => network_policy("default", name),
        _ => cilium_policy("default", name),
    }
}

/// What the server has, as the observer would show it: pods with their addresses, and policies.
fn expected(server: &ApiServer) -> (Vec<String>, Vec<String>) {
    let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let named = |object: &Value| format!("default/{}", text(object, "/metadata/name"));
    let shown = |object: &Value| format!("{} {}", named(object), text(object, "/status/podIP"));
    let [pods, network, cilium] = tables().map(|table| server.objects(&table));
    let policies = network.iter().map(|policy| format!("NetworkPolicy {}", named(policy)));
    let policies = policies.chain(cilium.iter().map(|policy| format!("CiliumNetworkPolicy {}", named(policy))));
    (pods.iter().map(|pod| shown(pod)).collect(), policies.collect())
}

fn known(seen: &Observer) -> (Vec<String>, Vec<String>) {
    let shown =
        |pod: &sluice_policy_core::cluster::Pod| format!("{} {}", pod.key, pod.addresses.iter().next().unwrap());
    (seen.state.pods.values().map(|pod| shown(pod)).collect(), seen.policies())
}

async fn run(seed: u64) {
    let server = ApiServer::start().await.unwrap();
    let mut dice = Dice(seed);
    let mut seen = Observer::new(&server);
    let mut backup: Option<Backup> = None;
    for _ in 0..STEPS {
        let table = usize::try_from(dice.below(3)).unwrap();
        let name = format!("o{}", dice.below(12));
        let plural = ["pods", "networkpolicies", "ciliumnetworkpolicies"][table];
        match dice.below(24) {
            0..=9 => drop(server.put(object(table, &name, &mut dice)).unwrap()),
            // It may not be there.
            10..=14 => drop(server.delete(&tables()[table], "default", &name)),
            15 => server.cut(),
            16 => server.end_watches(),
            17 => server.compact(),
            18 => server.outage(if dice.below(2) == 0 { Outage::Refuse } else { Outage::Hang }),
            19 => server.heal(),
            20 => server.fault(FaultRule::times(
                1,
                "watch",
                plural,
                Fault::Truncate(usize::try_from(dice.below(2_000)).unwrap()),
            )),
            21 => server.fault(FaultRule::times(
                1,
                "list",
                plural,
                Fault::Truncate(usize::try_from(dice.below(2_000)).unwrap()),
            )),
            22 => server.watch_line(&tables()[table], "{\"type\":\"MODIFIED\",\"obj"),
            _ => match backup.take() {
                Some(backup) => server.restore(&backup),
                None => backup = Some(server.backup()),
            },
        }
        // Now and then the source gets to see what came about so far.
        if dice.below(4) == 0 {
            tokio::task::yield_now().await;
            seen.drain();
        }
        if dice.below(30) == 0 {
            server.heal();
            seen.until("a part of the way", |seen| seen.stale.is_none()).await;
        }
    }
    server.heal();
    server.cut();
    let expected = expected(&server);
    seen.until(&format!("seed {seed}: {expected:?}"), |seen| seen.stale.is_none() && known(seen) == expected).await;
    // And it stays so.
    server.bookmark();
    server.put(pod("default", "last", "10.0.0.99")).unwrap();
    seen.until("the last pod", |seen| seen.pods().contains(&"default/last".to_owned())).await;
    assert_eq!(known(&seen).1, expected.1);
}

#[tokio::test]
async fn in_the_end_what_is_there_is_known() {
    for seed in 0..12 {
        run(seed).await;
    }
}
