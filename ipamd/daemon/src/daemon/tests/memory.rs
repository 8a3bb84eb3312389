//! A hundred thousand pods, one after the other: the daemon's memory does not grow.

use std::process::Command;

use super::*;

/// Pods in all, and at once.
const PODS: u32 = 100_000;
const AT_ONCE: u32 = 25;

/// `RssAnon` of this process (proc(5)), in KiB.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
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
    let figures: Vec<u64> = told.lines().filter_map(|line| line.split_once("KiB ")?.1.parse().ok()).collect();
    println!("anonymous memory after each tenth of {PODS} pods, in KiB: {figures:?}");
    assert_eq!(figures.len(), 10, "{told}");
    let (early, last) = (figures[1], figures[9]);
    assert!(last <= early + 1024, "it grows: {figures:?}");
}

#[test]
#[ignore = "memory_is_flat_over_100_000_pods runs it"]
fn a_hundred_thousand_pods() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new("m5.4xlarge");
        world.set("IP_COOLDOWN_PERIOD", "1");
        world.set("SLUICE_WARM_MODE", "adaptive");
        let node = world.settled().await;
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
            if (round + 1) % (PODS / AT_ONCE / 10) == 0 {
                println!("KiB {}", anonymous());
            }
        }
    });
}
