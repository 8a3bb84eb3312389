//! A pod whose policy is still to come: closed from before its host interface is up.

use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_contract::node::DROP_PROGRAM;

use crate::add::golden;
use crate::bpf::{DROP, PASS, bpffs, load, load_as, pin, program_id};
use crate::ipamd::{Ipamd, address};
use crate::node::{Cni, HOST_B, Node, POD_B};

const POD_IP: &str = "10.0.1.60";
const HOST_IP: &str = "10.0.1.10";

/// A node with a file system for pins, and in it the program that `make` loads, as policyd leaves it.
pub(crate) fn node(make: impl FnOnce() -> OwnedFd + Send + 'static) -> (Node, Ipamd, PathBuf, u32) {
    let node = Node::new();
    let id = node.on(move || {
        bpffs("/sys/fs/bpf");
        std::fs::create_dir_all(Path::new(DROP_PROGRAM).parent().unwrap()).unwrap();
        let program = make();
        pin(program.as_fd(), Path::new(DROP_PROGRAM));
        program_id(program.as_fd())
    });
    let ipamd = node.ipamd();
    ipamd.give(vec![address(POD_IP, 1)]);
    let netns = node.netns("b");
    node.sh(&format!("ip addr add {HOST_IP}/32 dev lo"));
    (node, ipamd, netns, id)
}

fn add(netns: &Path) -> Cni {
    Cni::on("ADD", "1.1.0", POD_B, "bbb", netns).with("gated", &json!(true))
}

/// The programs on the hooks of pod B's host interface, from the pod and to it: name and id.
pub(crate) fn programs(node: &Node) -> [Vec<(String, u64)>; 2] {
    programs_on(node, HOST_B)
}

/// The same of any of the host's interfaces.
pub(crate) fn programs_on(node: &Node, host: &str) -> [Vec<(String, u64)>; 2] {
    ["ingress", "egress"].map(|hook| {
        let filters = node.sh(&format!("tc -j filter show dev {host} {hook}"));
        let filters: Value = serde_json::from_str(filters.trim()).unwrap();
        let programs = filters.as_array().unwrap().iter().filter(|filter| filter["options"]["handle"].is_string());
        programs
            .map(|filter| {
                let options = &filter["options"];
                assert_eq!((&filter["pref"], &options["handle"]), (&json!(1), &json!("0x1")), "{filter}");
                assert_eq!(options["direct-action"], json!(true), "{filter}");
                (options["bpf_name"].as_str().unwrap().to_owned(), options["prog"]["id"].as_u64().unwrap())
            })
            .collect()
    })
}

pub(crate) fn both(id: u32) -> [Vec<(String, u64)>; 2] {
    [(); 2].map(|()| vec![("sluice-drop".to_owned(), id.into())])
}

/// Puts the program that lets everything pass into both slots, as policyd does.
fn open(node: &Node) -> u32 {
    node.on(|| {
        let program = load(&PASS);
        pin(program.as_fd(), Path::new("/sys/fs/bpf/pass"));
        program_id(program.as_fd())
    })
}

/// Whether anything of a flood arrives in the pod and on the host, while `work` is done and for so much longer; and how
/// long it was waited for.
fn flooded(node: &Node, patience: Duration, work: impl FnOnce()) -> ([bool; 2], Duration) {
    let far = || UdpSocket::bind("0.0.0.0:7").unwrap();
    // What waits for a neighbour that is never found must not hold up the next.
    let near = || UdpSocket::bind("0.0.0.0:0").and_then(|near| near.set_nonblocking(true).map(|()| near)).unwrap();
    let receivers = [node.within("b", far), node.on(far)];
    let stop = Arc::new(AtomicBool::new(false));
    let flood = |(socket, to): (UdpSocket, &'static str)| {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // There is no route yet, or no room: the next one may do.
                drop(socket.send_to(b"x", (to, 7)));
                std::thread::yield_now();
            }
        })
    };
    let floods = [(node.on(near), POD_IP), (node.within("b", near), HOST_IP)].map(flood);
    work();
    let since = Instant::now();
    let arrived = receivers.map(|socket| {
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.recv_from(&mut [0; 8]).is_ok()
    });
    let waited = since.elapsed();
    stop.store(true, Ordering::Relaxed);
    for flood in floods {
        flood.join().unwrap();
    }
    (arrived, waited)
}

#[test]
fn no_packet_passes_from_the_first_moment_on() {
    let (node, ipamd, netns, id) = node(|| load(&DROP));
    let expected = golden("1.1.0", "bbb", netns.to_str().unwrap());
    // The same without the gate, so that what is not seen could have been.
    let plain = Cni::on("ADD", "1.1.0", POD_B, "bbb", &netns);
    let (arrived, took) = flooded(&node, Duration::from_secs(60), || assert_eq!(node.cni(&plain).result(), expected));
    assert_eq!(arrived, [true, true]);
    let patience = (2 * took).clamp(Duration::from_millis(50), Duration::from_secs(1));
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    for _round in 0..5 {
        ipamd.refill(vec![address(POD_IP, 1)]);
        let (arrived, _) = flooded(&node, patience, || assert_eq!(node.cni(&add(&netns)).result(), expected));
        assert_eq!(arrived, [false, false]);
        assert_eq!(programs(&node), both(id));
        node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns).with("gated", &json!(true))).nothing();
        node.assert_clean();
    }
}

#[test]
fn without_the_program_it_says_that_policy_is_not_ready_and_takes_nothing() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address(POD_IP, 1)]);
    let netns = node.netns("b");
    let answer = node.cni(&add(&netns));
    let (code, text) = answer.error();
    assert_eq!(code, 11);
    assert!(text.starts_with(&format!("policyd has not pinned {DROP_PROGRAM} since this node booted; see")), "{text}");
    let object: Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(object["details"], "code policy_not_ready");
    node.assert_clean();
    assert_eq!(ipamd.log(), [""; 0]);
}

#[test]
fn a_program_that_is_none_of_a_hook_is_told_and_everything_is_taken_back() {
    // A socket filter.
    let (node, ipamd, netns, _) = node(|| load_as(1, &DROP));
    let (code, text) = node.cni(&add(&netns)).error();
    assert_eq!(code, 100, "{text}");
    let start =
        format!("cannot set up bbb/eth0@sluice: cannot close {HOST_B} until there is a policy: cannot attach a");
    assert!(text.starts_with(&start), "{text}");
    node.assert_clean();
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1);
    assert_eq!(ipamd.log(), [format!("add bbb on {HOST_B}"), "del bbb add_failed".to_owned()]);
}

#[test]
fn the_same_again_leaves_a_policy_in_force() {
    let (node, _ipamd, netns, id) = node(|| load(&DROP));
    let first = node.cni(&add(&netns)).result();
    assert_eq!(node.cni(&add(&netns)).result(), first);
    assert_eq!(programs(&node), both(id));
    let pass = open(&node);
    for hook in ["ingress", "egress"] {
        let program = "bpf direct-action object-pinned /sys/fs/bpf/pass";
        node.sh(&format!("tc filter replace dev {HOST_B} {hook} prio 1 handle 1 {program}"));
    }
    node.assert_reaches(None, "b", POD_IP);
    assert_eq!(node.cni(&add(&netns)).result(), first);
    assert_eq!(programs(&node).map(|hook| hook[0].1), [u64::from(pass); 2]);
    node.assert_reaches(None, "b", POD_IP);
}

/// An ADD that was killed between making the veth and closing it, or a machine that lost a filter since.
#[test]
fn what_was_not_closed_yet_is_closed_by_the_next_add() {
    let (node, _ipamd, netns, id) = node(|| load(&DROP));
    let first = node.cni(&add(&netns)).result();
    node.sh(&format!(
        "ip route del {POD_IP}/32 dev {HOST_B}; ip link set {HOST_B} down; tc qdisc del dev {HOST_B} clsact"
    ));
    let patience = Duration::from_millis(200);
    assert_eq!(flooded(&node, patience, || assert_eq!(node.cni(&add(&netns)).result(), first)).0, [false, false]);
    assert_eq!(programs(&node), both(id));
}

/// What a UDP flood of a second brings from one socket to the other, in bytes, and how long that really was.
fn carried(from: &UdpSocket, to: UdpSocket, target: &'static str) -> (u64, Duration) {
    let received = std::thread::spawn(move || {
        to.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let (mut buffer, mut total) = (vec![0; 2000], 0);
        while let Ok(length) = to.recv(&mut buffer) {
            total += u64::try_from(length).unwrap();
        }
        total
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        // What finds no room is lost; the next one may find some.
        drop(from.send_to(&[0; 1000], (target, 7)));
    }
    (received.join().unwrap(), begun.elapsed())
}

/// A pod has its limits in both directions, and the gate its hooks.
#[test]
fn a_gated_pods_traffic_is_limited_both_ways_without_an_ingress_qdisc() {
    const RATE: u64 = 8_000_000;
    const BURST: u64 = 800_000;
    let (node, _ipamd, netns, id) = node(|| load(&DROP));
    let limits = json!({"bandwidth": {"ingressRate": RATE, "ingressBurst": BURST, "egressRate": 2 * RATE, "egressBurst": BURST}});
    node.cni(&add(&netns).with("runtimeConfig", &limits)).result();
    assert_eq!(programs(&node), both(id));
    open(&node);
    node.sh(&format!("tc filter replace dev {HOST_B} ingress prio 1 handle 1 bpf da pinned /sys/fs/bpf/pass"));
    node.sh(&format!("tc filter replace dev {HOST_B} egress prio 1 handle 1 bpf da pinned /sys/fs/bpf/pass"));
    let kinds =
        |text: String| text.lines().filter_map(|line| line.split(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(kinds(node.sh(&format!("tc qdisc show dev {HOST_B}"))), ["tbf", "clsact"]);
    assert_eq!(kinds(node.sh("tc -n b qdisc show dev eth0")), ["tbf"]);
    let socket = |address: &'static str| move || UdpSocket::bind(address).unwrap();
    let (near, far) = (node.on(socket("0.0.0.0:0")), node.within("b", socket("0.0.0.0:7")));
    let (into, took) = carried(&near, far, POD_IP);
    let (near, far) = (node.within("b", socket("0.0.0.0:0")), node.on(socket("0.0.0.0:7")));
    let (out, took_out) = carried(&near, far, HOST_IP);
    // A bucket never gives more than its burst and its rate for the time; what waited at the end comes a little later.
    let most =
        |rate: u64, took: Duration| (BURST + rate * 11 / 10 * u64::try_from(took.as_millis()).unwrap() / 1000) / 8;
    assert!((1000..=most(RATE, took)).contains(&into), "{into} bytes in {took:?}");
    assert!((1000..=most(2 * RATE, took_out)).contains(&out), "{out} bytes in {took_out:?}");
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    node.assert_clean();
}
