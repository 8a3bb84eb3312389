//! Prints how long an ADD takes, exec to exit. Figures for people; the benchmark `add_latency` is what counts.

use std::time::{Duration, Instant};

use crate::bpf::{DROP, load};
use crate::gated;
use crate::ipamd::address;
use crate::node::{Cni, PodName};

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p95 {:?}, p99 {:?}, max {:?}", at(50), at(95), at(99), at(100));
}

/// With and without the gate in turns, so that what else the machine does falls on both.
#[test]
fn one_at_a_time() {
    let (node, ipamd, netns, _) = gated::node(|| load(&DROP));
    let pod = PodName { namespace: "default", name: "timed" };
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..80 {
        ipamd.refill(vec![address("10.0.1.60", 1)]);
        let container = format!("c{round}");
        let gated = round % 2 == 1;
        for (at, verb) in ["ADD", "DEL"].into_iter().enumerate() {
            let call = Cni::on(verb, "1.0.0", pod, &container, &netns).with("gated", &gated.into());
            let started = Instant::now();
            let answer = node.cni(&call);
            times[at + 2 * usize::from(gated)].push(started.elapsed());
            assert!(answer.success, "{answer:?}");
        }
    }
    for (what, times) in ["ADD", "DEL", "gated ADD", "gated DEL"].into_iter().zip(times) {
        print(what, times);
    }
}

#[test]
fn fifty_at_once() {
    let (node, ipamd, _, _) = gated::node(|| load(&DROP));
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..6 {
        let gated = round % 2 == 1;
        let calls: Vec<[Cni; 2]> = (0..50)
            .map(|n| {
                let name = format!("p{n}-{round}");
                let netns = node.netns(&name);
                let args = format!("K8S_POD_NAME={name};K8S_POD_NAMESPACE=burst");
                let pod = PodName { namespace: "", name: "" };
                let call = |verb| Cni::on(verb, "1.0.0", pod, &name, &netns).env("CNI_ARGS", &args);
                ["ADD", "DEL"].map(|verb| call(verb).with("gated", &gated.into()))
            })
            .collect();
        ipamd.refill(vec![address("10.0.2.0", 1)]);
        (1..50).for_each(|n| ipamd.give(vec![address(&format!("10.0.2.{n}"), 1)]));
        for (at, verb) in ["ADD", "DEL"].into_iter().enumerate() {
            let timed = |call: &Cni| {
                let started = Instant::now();
                let answer = node.cni(call);
                assert!(answer.success, "{answer:?}");
                started.elapsed()
            };
            times[at + 2 * usize::from(gated)].extend(std::thread::scope(|scope| {
                let running: Vec<_> = calls.iter().map(|verbs| scope.spawn(move || timed(&verbs[at]))).collect();
                running.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            }));
            let (rules, routes) = if verb == "ADD" { (100, 50) } else { (0, 0) };
            assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (rules, routes));
        }
        node.assert_clean();
        assert_eq!(ipamd.assigned(), [""; 0]);
    }
    for (what, times) in ["ADD", "DEL", "gated ADD", "gated DEL"].into_iter().zip(times) {
        print(&format!("50 at once: {what}"), times);
    }
}
