//! Prints how long an ADD takes, exec to exit. Figures for people; the benchmark `add_latency` is what counts.

use std::time::{Duration, Instant};

use crate::ipamd::address;
use crate::node::{Cni, Node, PodName};

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p95 {:?}, p99 {:?}, max {:?}", at(50), at(95), at(99), at(100));
}

#[test]
fn one_at_a_time() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let netns = node.netns("x");
    let pod = PodName { namespace: "default", name: "timed" };
    let mut times: [Vec<Duration>; 2] = Default::default();
    for round in 0..40 {
        ipamd.give(vec![address("10.0.1.60", 1)]);
        let container = format!("c{round}");
        for (verb, times) in ["ADD", "DEL"].into_iter().zip(&mut times) {
            let call = Cni::on(verb, "1.0.0", pod, &container, &netns);
            let started = Instant::now();
            let answer = node.cni(&call);
            times.push(started.elapsed());
            assert!(answer.success, "{answer:?}");
        }
    }
    for (what, times) in ["ADD", "DEL"].into_iter().zip(times) {
        print(what, times);
    }
}

#[test]
fn fifty_at_once() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let calls: Vec<[Cni; 2]> = (0..50)
        .map(|n| {
            ipamd.give(vec![address(&format!("10.0.2.{n}"), 1)]);
            let name = format!("p{n}");
            let netns = node.netns(&name);
            let args = format!("K8S_POD_NAME={name};K8S_POD_NAMESPACE=burst");
            let pod = PodName { namespace: "", name: "" };
            ["ADD", "DEL"].map(|verb| Cni::on(verb, "1.0.0", pod, &name, &netns).env("CNI_ARGS", &args))
        })
        .collect();
    for (at, what) in ["ADD", "DEL"].into_iter().enumerate() {
        let timed = |call: &Cni| {
            let started = Instant::now();
            let answer = node.cni(call);
            assert!(answer.success, "{answer:?}");
            started.elapsed()
        };
        let times = std::thread::scope(|scope| {
            let running: Vec<_> = calls.iter().map(|verbs| scope.spawn(move || timed(&verbs[at]))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        print(&format!("50 {what}s at once"), times);
        let (rules, routes) = if what == "ADD" { (100, 50) } else { (0, 0) };
        assert_eq!((node.pod_rules().len(), node.pod_routes().len()), (rules, routes));
    }
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
}
