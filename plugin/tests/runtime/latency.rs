//! Prints how long an ADD takes, exec to exit. A figure for people; the benchmark `add_latency` is what counts.

use std::time::{Duration, Instant};

use crate::ipamd::address;
use crate::node::{Cni, Node, PodName};

#[test]
fn add_and_del_are_timed() {
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
    for (verb, times) in ["ADD", "DEL"].into_iter().zip(&mut times) {
        times.sort();
        println!(
            "{verb}: p50 {:?}, p95 {:?}, max {:?}",
            times[times.len() / 2],
            times[times.len() * 95 / 100],
            times[times.len() - 1]
        );
    }
}
