//! Prints how long the chained plugin takes, exec to exit, beside a policyd that answers at once. Figures for people; the
//! benchmark of the whole chain is what counts.

use std::time::{Duration, Instant};

use crate::add::pod;
use crate::node::{Cni, Node};

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p95 {:?}, p99 {:?}, max {:?}", at(50), at(95), at(99), at(100));
}

fn timed(node: &Node, call: &Cni) -> Duration {
    let started = Instant::now();
    let answer = node.cni(call);
    assert!(answer.success, "{answer:?}");
    started.elapsed()
}

#[test]
fn one_at_a_time_and_fifty_at_once() {
    let node = Node::new();
    let policyd = node.policyd();
    let pods: Vec<_> = (0..50).map(|n| pod(&node, &format!("p{n}"), "1.0.0")).collect();
    for verb in ["ADD", "DEL", "VERSION"] {
        let calls: Vec<_> = pods.iter().map(|(netns, _, result)| Cni::on(verb, "1.0.0", netns).after(result)).collect();
        print(verb, calls.iter().map(|call| timed(&node, call)).collect());
        let at_once = std::thread::scope(|scope| {
            let running: Vec<_> = calls.iter().map(|call| scope.spawn(|| timed(&node, call))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        print(&format!("50 {verb}s at once"), at_once);
    }
    assert_eq!(policyd.asked().len(), 200);
}
