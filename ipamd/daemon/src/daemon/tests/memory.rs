//! A hundred thousand pods, in a steady flow and in crowds with rests between them: the daemon's memory does not grow.

use std::process::Command;

use super::burst::burst;
use super::*;

/// Pods in all, and at once.
const PODS: u32 = 100_000;
const AT_ONCE: u32 = 25;

/// Rounds of the flow before each crowd, and its pods: as many as take several ENIs, which the rest after it gives back.
const BETWEEN_CROWDS: u32 = 50;
const CROWD: usize = 100;

/// `RssAnon` of this process (proc(5)), in KiB.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What the log of the model holds, in octets: it is full at some time only.
fn logged(world: &World) -> isize {
    let model = world.cloud.model();
    let records = model.log().records();
    let text = records.map(|call| {
        let texts = [&call.caller, &call.action, &call.parameters, &call.outcome];
        size_of_val(call) + texts.map(String::capacity).into_iter().sum::<usize>()
    });
    text.sum::<usize>().try_into().unwrap()
}

/// What ENIs remember of blocks that they gave back, as the checkpoint has it.
fn departed(world: &World) -> usize {
    let checkpoint = std::fs::read(world.config().checkpoint()).unwrap();
    remembered(&serde_json::from_slice(&checkpoint).unwrap())
}

fn remembered(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| if name == "departed" { value.as_object().unwrap().len() } else { remembered(value) })
            .sum(),
        serde_json::Value::Array(values) => values.iter().map(remembered).sum(),
        _ => 0,
    }
}

/// Runs in a process of its own, because tests beside it have memory too.
#[test]
fn memory_is_flat_over_100_000_pods() {
    let name = "daemon::tests::memory::a_hundred_thousand_pods";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads", "1"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{told}\n{}", String::from_utf8_lossy(&child.stderr));
    println!("{told}");
    let figures = |unit: &str| -> Vec<i64> {
        let figures: Vec<i64> = told.lines().filter_map(|line| line.split_once(unit)?.1.trim().parse().ok()).collect();
        assert_eq!(figures.len(), 10, "{told}");
        figures
    };
    let (pages, held) = (figures("KiB "), figures("held "));
    println!("after each tenth of {PODS} pods: anonymous memory in KiB {pages:?}, octets held {held:?}");
    // When crowds came, the EC2 of these tests kept its answers about their ENIs.
    assert!(pages[9] <= pages[5] + 1024, "it grows: {pages:?}");
    // An octet for each pod would be more.
    assert!(held[9] < held[5] + i64::from(PODS) * 4 / 10, "it grows: {held:?}");
}

#[test]
#[ignore = "memory_is_flat_over_100_000_pods runs it"]
fn a_hundred_thousand_pods() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        // So large that an address hardly comes twice: what is remembered of those that went is of ever new ones.
        let mut world = World::with(Settings::aws(), "m5.4xlarge", "10.0.0.0/17");
        world.set("IP_COOLDOWN_PERIOD", "1");
        world.set("WARM_IP_TARGET", "30");
        let node = world.settled().await;
        let (mut crowds, mut most_departed) = (0_u64, 0);
        for round in 0..PODS / AT_ONCE {
            let names: Vec<String> = (0..AT_ONCE).map(|index| format!("c{round}-{index}")).collect();
            let mut replies = Vec::new();
            for name in &names {
                let call = Call::Add(add_request(name));
                replies.push(node.handle.ask(call, Instant::now() + Duration::from_secs(60)).await.1);
            }
            for reply in replies {
                assert!(matches!(reply.await.unwrap().reply, Reply::Done(Outcome::Add(_))));
            }
            let mut replies = Vec::new();
            for name in &names {
                let request = DelRequest { attachment: attachment(name), pod: PodRef::default(), add_failed: false };
                replies.push(node.handle.ask(Call::Del(request), Instant::now() + Duration::from_secs(60)).await.1);
            }
            for reply in replies {
                assert!(matches!(reply.await.unwrap().reply, Reply::Done(Outcome::Del(_))));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            if (round + 1) % BETWEEN_CROWDS == 0 && round < PODS / AT_ONCE / 2 {
                let (addresses, _) = burst(&world, &node, "crowd", CROWD).await;
                most_departed = most_departed.max(departed(&world));
                for (index, address) in addresses.iter().enumerate() {
                    world.pod_ends(address.ip);
                    node.del(&format!("crowd{index}")).await;
                }
                node.wait("what the crowd took is given back", |view| view.is_settled() && view.pool.total <= 32).await;
                most_departed = most_departed.max(departed(&world));
                crowds += 1;
            }
            if (round + 1) % (PODS / AT_ONCE / 10) == 0 {
                println!("KiB {}", anonymous());
                println!("held {}", sluice_fuzz::held() - logged(&world));
            }
        }
        let given_back = world.cloud.counts()["UnassignPrivateIpAddresses"];
        println!("{crowds} crowds, {given_back} calls gave addresses back, {most_departed} were remembered at once");
        // An m5.4xlarge holds 232.
        assert!(most_departed > 0 && most_departed <= 2 * 232, "{most_departed}");
        assert!(given_back >= crowds, "{given_back} for {crowds} crowds");
    });
}
