//! Against the real kernel, with real packets, in namespaces made for it (root).

use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sluice_contract::id::IfName;

use super::*;
use crate::bpf::testing::{DROP, PASS, load, load_as, program_id};
use crate::desired::{Desired, LinkSettings};
use crate::host::Host;
use crate::netlink::VethSpec;
use crate::netns::Namespace;
use crate::plan::plan;
use crate::state::{Address, Observed};

const HOST: &str = "10.0.0.1";
const POD: &str = "10.0.0.2";
const OTHER: Slot = Slot { priority: 7, handle: 3 };

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// A host and a pod, joined by a veth, with an address on each end.
struct Pair {
    host: Host,
    pod: Host,
    /// The host's end.
    index: u32,
}

impl Pair {
    async fn new() -> Self {
        let host = Host::of(Namespace::new_unbound().unwrap()).unwrap();
        let pod = Host::of(Namespace::new_unbound().unwrap()).unwrap();
        let spec = VethSpec {
            name: &name("eth0"),
            mac: None,
            up: true,
            peer_name: &name("host0"),
            peer_mac: None,
            peer_namespace: Some(host.namespace()),
            mtu: 1500,
        };
        let made = pod.netlink().create_veth(&spec).await.unwrap();
        let index = made.peer.unwrap();
        let on_host = host.netlink().link_by_index(index).await.unwrap().unwrap();
        for (side, link, ip) in [(&pod, &made, POD), (&host, &on_host, HOST)] {
            let desired = Desired {
                links: vec![LinkSettings { dev: link.name.clone(), up: Some(true), mtu: None }],
                addresses: vec![Address::new(link.name.clone(), format!("{ip}/24").parse().unwrap())],
                ..Desired::default()
            };
            let observed = Observed { links: vec![link.clone()], ..Observed::default() };
            side.execute_with(&plan(&observed, &desired), std::slice::from_ref(link)).await.unwrap();
        }
        Self { host, pod, index }
    }

    fn netlink(&self) -> &Netlink {
        self.host.netlink()
    }

    async fn put(&self, hook: Hook, slot: Slot, program: &OwnedFd) -> Result<(), TcError> {
        self.netlink().replace_filter(self.index, hook, slot, Program { fd: program.as_fd(), name: "test" }).await
    }

    async fn programs(&self, hook: Hook) -> Vec<(Slot, u32)> {
        let filters = self.netlink().filters(self.index, hook).await.unwrap();
        filters.iter().map(|filter| (filter.slot, filter.program.unwrap())).collect()
    }

    /// A datagram to the pod (`Egress`) or to the host (`Ingress`) arrives, or does not. One that is to arrive is waited
    /// for on a machine that has much to do; of one that is not, only so much can be seen.
    fn assert_passes(&self, hook: Hook, passes: bool) {
        let (from, to, ip) = match hook {
            Hook::Ingress => (&self.pod, &self.host, HOST),
            Hook::Egress => (&self.host, &self.pod, POD),
        };
        let ip: IpAddr = ip.parse().unwrap();
        let far = to.namespace().run(move || UdpSocket::bind((ip, 0)).unwrap()).unwrap();
        let near = from.namespace().run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        far.set_read_timeout(Some(Duration::from_millis(if passes { 20_000 } else { 300 }))).unwrap();
        near.send_to(b"x", far.local_addr().unwrap()).unwrap();
        assert_eq!(far.recv_from(&mut [0; 8]).is_ok(), passes, "{hook:?}");
    }

    fn assert_passes_both(&self, [ingress, egress]: [bool; 2]) {
        self.assert_passes(Hook::Ingress, ingress);
        self.assert_passes(Hook::Egress, egress);
    }

    /// Fills the neighbour tables, so that a lost answer of ARP is not taken for a lost datagram.
    fn warm_up(&self) {
        self.assert_passes_both([true, true]);
    }

    fn tc(&self, arguments: &str) {
        let run = || std::process::Command::new("tc").args(arguments.split_whitespace()).output();
        let output = self.host.namespace().run(run).unwrap().expect("tc is needed (apt-get install iproute2)");
        assert!(output.status.success(), "tc {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn a_program_decides_at_its_hook_and_is_replaced_in_place() {
    let pair = Pair::new().await;
    pair.warm_up();
    let (drop, pass) = (load(&DROP), load(&PASS));
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    for hook in Hook::ALL {
        assert_eq!(pair.programs(hook).await, []);
        pair.put(hook, Slot::GATE, &drop).await.unwrap();
        let filters = pair.netlink().filters(pair.index, hook).await.unwrap();
        let expected = Filter {
            slot: Slot::GATE,
            kind: "bpf".to_owned(),
            program: Some(program_id(drop.as_fd())),
            name: Some("test".to_owned()),
            direct_action: true,
        };
        assert_eq!(filters, [expected]);
        pair.assert_passes_both(Hook::ALL.map(|other| other != hook));
        pair.put(hook, Slot::GATE, &pass).await.unwrap();
        assert_eq!(pair.programs(hook).await, [(Slot::GATE, program_id(pass.as_fd()))]);
        pair.assert_passes(hook, true);
        assert!(pair.netlink().remove_filter(pair.index, hook, Slot::GATE).await.unwrap());
        assert_eq!(pair.programs(hook).await, []);
    }
}

#[tokio::test]
async fn programs_are_swapped_only_where_both_hooks_have_one() {
    let pair = Pair::new().await;
    pair.warm_up();
    let (drop, pass) = (load(&DROP), load(&PASS));
    let both = |program: &'static str, fd| Hook::ALL.map(|hook| (hook, Program { fd, name: program }));
    let swap = async |index: u32, link: &str| {
        let programs = both("pass", pass.as_fd());
        pair.netlink().swap(index, &name(link), Slot::GATE, &programs).await.unwrap()
    };
    let found = async || [pair.programs(Hook::Ingress).await, pair.programs(Hook::Egress).await];
    assert!(!swap(pair.index, "host0").await, "no hooks");
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    assert!(!swap(pair.index, "host0").await, "nothing on the hooks");
    assert_eq!(found().await, [[], []], "nothing is put where nothing was");
    pair.put(Hook::Egress, Slot::GATE, &drop).await.unwrap();
    pair.put(Hook::Ingress, OTHER, &pass).await.unwrap();
    assert!(!swap(pair.index, "host0").await, "one of them has another filter");
    pair.put(Hook::Ingress, Slot::GATE, &drop).await.unwrap();
    pair.put(Hook::Egress, Slot::GATE, &drop).await.unwrap();
    pair.assert_passes_both([false, false]);
    assert!(swap(pair.index, "host0").await);
    pair.assert_passes_both([true, true]);
    let ours = (Slot::GATE, program_id(pass.as_fd()));
    assert_eq!(found().await, [vec![ours, (OTHER, ours.1)], vec![ours]]);
    assert!(!swap(pair.index, "eth9").await, "another link's number");
    assert!(!swap(4_000, "host0").await, "no such link");
    // The qdisc of the bandwidth plugin has one hook, in the place of both.
    pair.tc("qdisc del dev host0 clsact");
    pair.tc("qdisc add dev host0 ingress");
    assert!(!swap(pair.index, "host0").await);
}

/// While one program takes the place of the other, neither of which lets anything through, nothing comes through.
#[tokio::test]
async fn no_packet_meets_the_hook_empty_while_its_program_is_replaced() {
    let pair = Pair::new().await;
    pair.warm_up();
    let programs = [load(&DROP), load(&DROP)];
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    pair.put(Hook::Egress, Slot::GATE, &programs[0]).await.unwrap();
    let far = pair.pod.namespace().run(|| UdpSocket::bind((POD, 0)).unwrap()).unwrap();
    let near = pair.host.namespace().run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let to = far.local_addr().unwrap();
    let sent = Arc::new(AtomicU32::new(0));
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let count = Arc::clone(&sent);
    let flood = std::thread::spawn(move || {
        while stopped.try_recv().is_err() {
            // What the hook drops may be told as a full queue.
            drop(near.send_to(b"x", to));
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    // As many of each, whoever of the two the machine prefers.
    let end = Instant::now() + Duration::from_secs(60);
    let mut rounds = 0;
    while rounds < 500 || sent.load(Ordering::Relaxed) < 500 {
        rounds += 1;
        pair.put(Hook::Egress, Slot::GATE, &programs[rounds % 2]).await.unwrap();
        assert!(Instant::now() < end, "{rounds} replacements, {sent:?} datagrams");
    }
    stop.send(()).unwrap();
    flood.join().unwrap();
    far.set_nonblocking(true).unwrap();
    assert!(far.recv_from(&mut [0; 8]).is_err(), "a packet came through");
}

#[tokio::test]
async fn attach_does_both_hooks_and_keeps_what_it_is_told_to() {
    let pair = Pair::new().await;
    pair.warm_up();
    let (drop, pass) = (load(&DROP), load(&PASS));
    let both = |program| Hook::ALL.map(|hook| (hook, Program { fd: OwnedFd::as_fd(program), name: "test" }));
    let attach = |program, existing| pair.netlink().attach(pair.index, Slot::GATE, program, existing);
    let (drops, passes) = (both(&drop), both(&pass));
    attach(&drops, Existing::Keep).await.unwrap();
    pair.assert_passes_both([false, false]);
    attach(&passes, Existing::Replace).await.unwrap();
    pair.assert_passes_both([true, true]);
    attach(&drops, Existing::Keep).await.unwrap();
    for hook in Hook::ALL {
        assert_eq!(pair.programs(hook).await, [(Slot::GATE, program_id(pass.as_fd()))]);
    }
    // One that is missing is put back, and the other stays.
    assert!(pair.netlink().remove_filter(pair.index, Hook::Egress, Slot::GATE).await.unwrap());
    attach(&drops, Existing::Keep).await.unwrap();
    pair.assert_passes_both([true, false]);
}

#[tokio::test]
async fn a_new_link_gets_all_at_once_and_an_old_one_is_refused() {
    let pair = Pair::new().await;
    pair.warm_up();
    let drop = load(&DROP);
    let programs = Hook::ALL.map(|hook| (hook, Program { fd: drop.as_fd(), name: "test" }));
    pair.netlink().attach_to_new(pair.index, Slot::GATE, &programs).await.unwrap();
    for hook in Hook::ALL {
        assert_eq!(pair.programs(hook).await, [(Slot::GATE, program_id(drop.as_fd()))]);
    }
    pair.assert_passes_both([false, false]);
    let error = pair.netlink().attach_to_new(pair.index, Slot::GATE, &programs).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
}

#[tokio::test]
async fn the_lowest_priority_is_asked_first_and_other_slots_are_let_alone() {
    let pair = Pair::new().await;
    pair.warm_up();
    let (drop, pass) = (load(&DROP), load(&PASS));
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    pair.put(Hook::Egress, OTHER, &drop).await.unwrap();
    pair.put(Hook::Egress, Slot::GATE, &pass).await.unwrap();
    let (dropping, passing) = (program_id(drop.as_fd()), program_id(pass.as_fd()));
    assert_eq!(pair.programs(Hook::Egress).await, [(Slot::GATE, passing), (OTHER, dropping)]);
    pair.assert_passes(Hook::Egress, true);
    assert!(pair.netlink().remove_filter(pair.index, Hook::Egress, Slot::GATE).await.unwrap());
    assert!(!pair.netlink().remove_filter(pair.index, Hook::Egress, Slot::GATE).await.unwrap());
    assert_eq!(pair.programs(Hook::Egress).await, [(OTHER, dropping)]);
    pair.assert_passes(Hook::Egress, false);
}

#[tokio::test]
async fn a_link_that_is_gone_or_bare_has_no_filters() {
    let pair = Pair::new().await;
    let pass = load(&PASS);
    assert_eq!(pair.programs(Hook::Ingress).await, []);
    assert!(!pair.netlink().remove_filter(pair.index, Hook::Ingress, Slot::GATE).await.unwrap());
    assert!(pair.put(Hook::Ingress, Slot::GATE, &pass).await.is_err(), "there are no hooks yet");
    // Hooks that were there and are not any more: the kernel has nothing to tell of what is in their place.
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    let run = || std::process::Command::new("tc").args(["qdisc", "del", "dev", "host0", "clsact"]).output().unwrap();
    let removed = pair.host.namespace().run(run).unwrap();
    assert!(removed.status.success(), "{removed:?}");
    assert!(!pair.netlink().remove_filter(pair.index, Hook::Ingress, Slot::GATE).await.unwrap());
    pair.netlink().delete_link(pair.index).await.unwrap();
    assert_eq!(pair.netlink().ensure_clsact(pair.index).await.unwrap_err().errno(), Some(Errno::ENODEV));
    assert_eq!(pair.put(Hook::Ingress, Slot::GATE, &pass).await.unwrap_err().errno(), Some(Errno::ENODEV));
    assert_eq!(pair.programs(Hook::Ingress).await, []);
    assert!(!pair.netlink().remove_filter(pair.index, Hook::Ingress, Slot::GATE).await.unwrap());
}

/// An `ingress` takes a filter for egress, and asks it about what comes in.
#[tokio::test]
async fn an_ingress_qdisc_is_no_clsact() {
    let pair = Pair::new().await;
    pair.tc("qdisc add dev host0 ingress");
    let error = pair.netlink().ensure_clsact(pair.index).await.unwrap_err();
    let text = format!("link #{} has the qdisc \"ingress\" already, which leaves no room for clsact", pair.index);
    assert_eq!(error.to_string(), text);
    let pass = load(&PASS);
    let programs = [(Hook::Egress, Program { fd: pass.as_fd(), name: "test" })];
    assert!(pair.netlink().attach(pair.index, Slot::GATE, &programs, Existing::Replace).await.is_err());
    assert_eq!(pair.programs(Hook::Ingress).await, []);
}

#[tokio::test]
async fn what_is_no_program_of_a_hook_and_a_slot_of_another_kind_are_refused() {
    let pair = Pair::new().await;
    pair.netlink().ensure_clsact(pair.index).await.unwrap();
    let file: OwnedFd = std::fs::File::open("/proc/self/status").unwrap().into();
    let socket_filter = load_as(1, &DROP);
    for other in [file, socket_filter] {
        assert_eq!(pair.put(Hook::Egress, Slot::GATE, &other).await.unwrap_err().errno(), Some(Errno::EINVAL));
    }
    pair.tc("filter add dev host0 egress protocol all prio 1 u32 match u32 0 0 classid 1:1");
    let error = pair.put(Hook::Egress, Slot::GATE, &load(&PASS)).await.unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error:?}");
    let filters = pair.netlink().filters(pair.index, Hook::Egress).await.unwrap();
    assert!(!filters.is_empty() && filters.iter().all(|filter| filter.kind == "u32"), "{filters:?}");
}
