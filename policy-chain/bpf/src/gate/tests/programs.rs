//! Programs on a real interface: attached, looked after, put back, promoted.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use sluice_hostnet::netlink::Netlink;
use sluice_hostnet::tc::{Existing, Hook, Slot};

use super::*;
use crate::filters::{FilterError, Filters, Instead, Missing};
use crate::links::Links;
use crate::programs::Program;

/// Between two packets.
const PACE: Duration = Duration::from_micros(20);

fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An interface, and its index.
async fn veth(netlink: &Netlink) -> u32 {
    run("ip", "link add eni0 type veth peer name peer0");
    netlink.link_by_name(&IfName::new("eni0").unwrap()).await.unwrap().unwrap().index
}

fn missing(hook: Hook, program: Program, instead: Instead) -> Missing {
    Missing { hook, program, instead }
}

#[test]
fn filters_are_attached_and_put_back() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        let filters = Filters::new(gate.programs(), netlink.clone());
        let nothing = [(Hook::Ingress, Program::FromPod), (Hook::Egress, Program::ToPod)]
            .map(|(hook, program)| missing(hook, program, Instead::Nothing));
        assert_eq!(filters.check(index).await.unwrap(), nothing);

        filters.attach_drop(index).await.unwrap();
        let closed = nothing.clone().map(|missing| Missing { instead: Instead::Drop, ..missing });
        assert_eq!(filters.check(index).await.unwrap(), closed);
        filters.attach(index).await.unwrap();
        assert_eq!(filters.check(index).await.unwrap(), []);
        // What drops everything never takes the place of a gate.
        filters.attach_drop(index).await.unwrap();
        assert_eq!(filters.check(index).await.unwrap(), []);

        netlink.remove_filter(index, Hook::Ingress, Slot::GATE).await.unwrap();
        assert_eq!(filters.repair(index).await.unwrap(), nothing[..1]);
        assert_eq!(filters.check(index).await.unwrap(), []);
        run("tc", "qdisc del dev eni0 clsact");
        assert_eq!(filters.repair(index).await.unwrap(), nothing);
        assert_eq!(filters.repair(index).await.unwrap(), []);

        // Another program in the slot.
        let other = sluice_hostnet::tc::Program { fd: gate.programs.descriptor(Program::Uplink), name: "other" };
        netlink.attach(index, Slot::GATE, &[(Hook::Egress, other)], Existing::Replace).await.unwrap();
        let instead =
            Instead::Other { program: Some(gate.programs.id(Program::Uplink)), name: Some("other".to_owned()) };
        assert_eq!(filters.repair(index).await.unwrap(), [missing(Hook::Egress, Program::ToPod, instead)]);

        netlink.delete_link(index).await.unwrap();
        assert!(!filters.check(index).await.is_ok_and(|missing| missing.is_empty()));
        let gone = filters.attach(index).await;
        assert!(matches!(gone, Err(FilterError::Gone { index: gone }) if gone == index), "{gone:?}");
    });
}

#[test]
fn filters_of_an_older_process_are_replaced() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        Filters::new(gate.programs(), netlink.clone()).attach(index).await.unwrap();
        drop(gate);
        let (gate, _) = open();
        let filters = Filters::new(gate.programs(), netlink.clone());
        let found = filters.check(index).await.unwrap();
        assert_eq!(found[0], missing(Hook::Ingress, Program::FromPod, Instead::Older));
        filters.attach(index).await.unwrap();
        assert_eq!(filters.check(index).await.unwrap(), []);
        assert_eq!(netlink.filters(index, Hook::Ingress).await.unwrap().len(), 1);
    });
}

#[test]
fn an_uplink_is_judged_at_egress() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        let filters = Filters::new(gate.programs(), netlink.clone());
        filters.attach_uplink(index).await.unwrap();
        assert_eq!(filters.check_uplink(index).await.unwrap(), []);
        assert_eq!(netlink.filters(index, Hook::Ingress).await.unwrap(), []);
        netlink.remove_filter(index, Hook::Egress, Slot::GATE).await.unwrap();
        assert_eq!(filters.check_uplink(index).await.unwrap().len(), 1);
    });
}

/// Making the hooks that filters need stops an interface for a moment.
#[test]
fn an_uplink_in_use_is_judged_by_a_link_and_loses_nothing_by_it() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        for end in ["peer0", "eni0"] {
            run("sysctl", &format!("-qw net.ipv6.conf.{end}.disable_ipv6=1"));
            run("ip", &format!("link set {end} up"));
        }
        run("ip", "address add 192.0.2.1/24 dev eni0 noprefixroute");
        run("ip", "route add 192.0.2.2 dev eni0");
        run("ip", "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev eni0");
        let received = || -> u64 {
            let links = Command::new("ip").args(["-json", "-stats", "link", "show", "peer0"]).output().unwrap();
            let links: serde_json::Value = serde_json::from_slice(&links.stdout).unwrap();
            links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
        };
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.connect("192.0.2.2:9").unwrap();
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = received();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    socket.send(b"x").unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                    // A busy machine takes its time until it receives them, and has room for a thousand.
                    let next = Instant::now() + PACE;
                    while Instant::now() < next {
                        std::thread::yield_now();
                    }
                }
            });
            let goes_on = || {
                let until = sent.load(Ordering::Relaxed) + 100;
                while sent.load(Ordering::Relaxed) < until {
                    std::thread::yield_now();
                }
            };
            goes_on();
            Links::open(Path::new(ROOT)).unwrap().attach_uplink(index, &IfName::new("eni0").unwrap()).unwrap();
            goes_on();
            stop.store(true, Ordering::Relaxed);
        });
        let filters = Filters::new(gate.programs(), netlink.clone());
        assert_eq!(filters.check_uplink(index).await.unwrap(), []);
        assert!(!filters.has_hooks(index).await.unwrap());
        let (sent, received) = (sent.load(Ordering::Relaxed), received() - before);
        assert_eq!(received, sent, "packets were lost");

        // A new process, and one of another layout of the maps.
        drop((filters, gate));
        let (gate, _) = open();
        let filters = Filters::new(gate.programs(), netlink.clone());
        assert_eq!(filters.check_uplink(index).await.unwrap(), []);
        assert!(gate.has_link(index, Program::Uplink));
        std::fs::remove_file(Path::new(ROOT).join(format!("links/{index}_uplink"))).unwrap();
        // The kernel frees the link a moment later.
        let end = Instant::now() + Duration::from_secs(30);
        while filters.check_uplink(index).await.unwrap().is_empty() {
            assert!(Instant::now() < end, "a link without a pin stays");
            std::thread::yield_now();
        }
        Links::open(Path::new(ROOT)).unwrap().attach_uplink(index, &IfName::new("eni0").unwrap()).unwrap();
        assert_eq!(filters.check_uplink(index).await.unwrap(), []);
        drop((filters, gate));
        std::fs::rename(ROOT, Path::new(ROOT).with_file_name("4000000000")).unwrap();
        let (gate, _) = open();
        let filters = Filters::new(gate.programs(), netlink.clone());
        assert_eq!(filters.check_uplink(index).await.unwrap().len(), 1);
        assert!(!gate.has_link(index, Program::Uplink) && gate.is_of_another_layout(index, Program::Uplink));
        // Filters are as good, where the hooks are there.
        filters.attach_uplink(index).await.unwrap();
        assert!(filters.has_hooks(index).await.unwrap());
        assert_eq!(filters.check_uplink(index).await.unwrap(), []);
    });
}

#[test]
fn an_interface_is_promoted_to_links_that_outlive_everything() {
    on_a_node(|| async {
        if !Links::supported() {
            let kernel = nix::sys::utsname::uname().unwrap();
            panic!("the kernel {} has no tcx links: Linux 6.6 is needed for this test", kernel.release().display());
        }
        let (mut gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        let name = IfName::new("eni0").unwrap();
        let filters = Filters::new(gate.programs(), netlink.clone());
        filters.attach(index).await.unwrap();
        let mut links = Links::open(Path::new(ROOT)).unwrap();
        links.promote(index, &name).unwrap();
        links.promote(index, &name).unwrap();
        filters.leave_to_links(index).await.unwrap();
        assert_eq!(netlink.filters(index, Hook::Ingress).await.unwrap(), []);
        assert_eq!(filters.check(index).await.unwrap(), [], "a link is as good as a filter");
        run("tc", "qdisc del dev eni0 clsact");
        assert_eq!(filters.repair(index).await.unwrap(), [], "and better against this");
        let pinned = pins(&Path::new(ROOT).join("links"));
        assert_eq!(pinned, [format!("{index}_from_pod"), format!("{index}_to_pod")]);
        // Attaching goes on as it was, and nothing that drops gets behind a link, where it would be asked next.
        filters.attach_drop(index).await.unwrap();
        filters.attach(index).await.unwrap();
        assert_eq!(netlink.filters(index, Hook::Egress).await.unwrap(), []);
        let drop_program =
            sluice_hostnet::tc::Program { fd: gate.programs.descriptor(Program::Drop), name: "sluice-drop" };
        netlink.attach(index, Slot::GATE, &[(Hook::Egress, drop_program)], Existing::Keep).await.unwrap();
        let in_the_way = [missing(Hook::Egress, Program::ToPod, Instead::Drop)];
        assert_eq!(filters.repair(index).await.unwrap(), in_the_way);
        assert_eq!(netlink.filters(index, Hook::Egress).await.unwrap(), []);

        // A new process, new programs: the links run them when it has opened the gates.
        drop((links, filters, gate));
        let (new, _) = open();
        gate = new;
        let filters = Filters::new(gate.programs(), netlink.clone());
        assert_eq!(filters.check(index).await.unwrap(), []);
        assert_eq!(pins(&Path::new(ROOT).join("links")), pinned);

        // The link's pin goes with the interface, and not before.
        gate.forget(index).unwrap();
        assert_eq!(pins(&Path::new(ROOT).join("links")), pinned);
        assert!(filters.are_linked(index).unwrap());
        netlink.delete_link(index).await.unwrap();
        gate.forget(index).unwrap();
        assert_eq!(pins(&Path::new(ROOT).join("links")), [] as [&str; 0]);
    });
}

/// A gate of another layout of the maps is told from one that somebody has taken away, as long as its links are there.
#[test]
fn a_link_of_another_layout_is_a_gate_of_before() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        Links::open(Path::new(ROOT)).unwrap().promote(index, &IfName::new("eni0").unwrap()).unwrap();
        assert!(
            Program::POD.iter().all(|(_, program)| !gate.is_of_another_layout(index, *program)),
            "it is of this one"
        );
        drop(gate);
        let other = Path::new(ROOT).with_file_name("4000000000");
        std::fs::rename(ROOT, &other).unwrap();
        let (gate, _) = open();
        let filters = Filters::new(gate.programs(), netlink.clone());
        let of_another = || Program::POD.map(|(_, program)| gate.is_of_another_layout(index, program));
        assert_eq!(of_another(), [true, true]);
        assert!(!gate.is_of_another_layout(index + 1, Program::FromPod));
        // It judges until it goes; the gate of now is behind it.
        filters.attach_drop(index).await.unwrap();
        assert_eq!(netlink.filters(index, Hook::Ingress).await.unwrap(), []);
        filters.attach(index).await.unwrap();
        assert_eq!(filters.check(index).await.unwrap(), []);
        // An agent that is still ending holds it.
        let held = Flock::lock(File::open(&other).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        assert_eq!(gate.remove_other_layouts().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(gate.other_layouts().unwrap(), std::slice::from_ref(&other));
        drop(held);
        assert_eq!(gate.remove_other_layouts().unwrap(), [other]);
        assert_eq!(gate.other_layouts().unwrap(), Vec::<PathBuf>::new());
        assert_eq!(of_another(), [false, false]);
        assert_eq!(filters.check(index).await.unwrap(), []);
    });
}

/// A link that could not be given the program of now judges on, and is told from one that somebody has taken away.
#[test]
fn a_link_that_goes_on_with_the_program_of_before_is_a_gate_of_before() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        let has_links = |gate: &Gate| Program::POD.map(|(_, program)| gate.has_link(index, program));
        assert_eq!(has_links(&gate), [false, false]);
        Links::open(Path::new(ROOT)).unwrap().promote(index, &IfName::new("eni0").unwrap()).unwrap();
        drop(gate);
        // As if the process had ended before a pin was in its place.
        let pin = Path::new(ROOT).join("links").join(format!("{index}_to_pod"));
        std::fs::rename(&pin, pin.with_file_name(format!("{index}_to_pod-new"))).unwrap();
        // As if the kernel refused: the next process does not find the pin.
        let pin = Path::new(ROOT).join("links").join(format!("{index}_from_pod"));
        let hidden = pin.with_file_name("hidden");
        std::fs::rename(&pin, &hidden).unwrap();
        let (gate, _) = open();
        std::fs::rename(&hidden, &pin).unwrap();
        let filters = Filters::new(gate.programs(), netlink.clone());
        let nothing = [missing(Hook::Ingress, Program::FromPod, Instead::Nothing)];
        assert_eq!(filters.check(index).await.unwrap(), nothing);
        assert_eq!(has_links(&gate), [true, true]);
        assert!(!Program::POD.iter().any(|(_, program)| gate.is_of_another_layout(index, *program)));
        // It is given another link when its turn comes.
        Links::open(Path::new(ROOT)).unwrap().promote(index, &IfName::new("eni0").unwrap()).unwrap();
        assert_eq!(filters.check(index).await.unwrap(), []);
        netlink.delete_link(index).await.unwrap();
        assert_eq!(has_links(&gate), [false, false]);
    });
}

#[test]
fn pins_of_links_whose_interface_is_gone_are_removed_by_the_next_opening() {
    on_a_node(|| async {
        let (gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let index = veth(&netlink).await;
        Links::open(Path::new(ROOT)).unwrap().promote(index, &IfName::new("eni0").unwrap()).unwrap();
        drop(gate);
        netlink.delete_link(index).await.unwrap();
        assert_eq!(pins(&Path::new(ROOT).join("links")).len(), 2);
        drop(open());
        assert_eq!(pins(&Path::new(ROOT).join("links")), [] as [&str; 0]);
    });
}

/// Descriptors of links that this process has open: other tests have one for a moment.
fn open_links() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let names = files.filter_map(|file| std::fs::read_link(file.path()).ok()?.into_os_string().into_string().ok());
    // `anon_inode:bpf_link`, with a `-` in other versions.
    names.filter(|name| name.starts_with("anon_inode:bpf") && name.ends_with("link")).count()
}

#[test]
fn pods_that_come_and_go_leave_nothing() {
    on_a_node(|| async {
        let (mut gate, _) = open();
        let netlink = Netlink::open().unwrap();
        let filters = Filters::new(gate.programs(), netlink.clone());
        let mut links = Links::open(Path::new(ROOT)).unwrap();
        let mut one = async |number: u32| {
            let index = veth(&netlink).await;
            let pod = key(&format!("pod-{number}"));
            gate.bind(&pod, interface(index, &["10.0.0.1"])).unwrap();
            filters.attach(index).await.unwrap();
            if number.is_multiple_of(10) {
                links.promote(index, &IfName::new("eni0").unwrap()).unwrap();
                filters.leave_to_links(index).await.unwrap();
                let held = aya::programs::links::PinnedLink::from_pin(format!("{ROOT}/links/{index}_to_pod")).unwrap();
                assert!(open_links() > 0, "{held:?} is one");
            }
            gate.unbind(index).unwrap();
            netlink.delete_link(index).await.unwrap();
            gate.forget(index).unwrap();
            (
                entries(&gate).len(),
                gate.pods.len(),
                gate.bound.len() + gate.closed.len() + gate.kept.len(),
                open_links(),
            )
        };
        let first = one(0).await;
        let mut last = first;
        for number in 1..100 {
            last = one(number).await;
        }
        assert_eq!((first.0, first.1, first.2), (0, 0, 0));
        assert_eq!((last.0, last.1, last.2), (0, 0, 0));
        assert!(last.3 < 10, "20 links were made: {last:?}");
        assert_eq!(pins(&Path::new(ROOT).join("links")), [] as [&str; 0]);
    });
}
