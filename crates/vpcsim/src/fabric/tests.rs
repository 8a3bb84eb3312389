//! Packets through the fabric, between machines that are configured by hand. Needs root.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use super::project::tests::{HOUR, add_eni, add_subnet, eni_id, route, state as scene, subnet_id};
use super::*;
use crate::model::state::{Association, RouteTarget, State};
use crate::probe;

const LIMIT: Duration = Duration::from_secs(3);
const SHORT: Duration = Duration::from_millis(300);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

fn privileged() -> bool {
    let root = nix::unistd::geteuid().is_root();
    #[expect(clippy::disallowed_methods, reason = "CI is how a test knows that it must not be skipped")]
    let must = std::env::var("CI").is_ok();
    assert!(root || !must, "this test needs root");
    root
}

struct Rig {
    fabric: Fabric,
    nodes: BTreeMap<InstanceId, Arc<Node>>,
    state: State,
    dir: PathBuf,
}

impl Rig {
    async fn up(test: &str, state: State) -> Self {
        let dir = std::env::temp_dir().join(format!("vpcsim-{test}-{}", std::process::id()));
        let mut nodes = BTreeMap::new();
        for link in state.links(HOUR) {
            let name = link.instance.as_str().to_owned();
            let node = Node::boot(&name, &dir.join(&name), "test").await.unwrap();
            nodes.insert(link.instance.clone(), Arc::new(node));
        }
        let fabric = Fabric::new(&[HOST.into()].into()).await.unwrap();
        let mut rig = Self { fabric, nodes, state, dir };
        rig.settle().await;
        rig
    }

    async fn settle(&mut self) {
        let machines = self.nodes.keys().cloned().collect();
        let projection = Projection::of(&self.state, HOUR, &machines);
        self.fabric.apply(&projection, &self.nodes).await.unwrap();
    }

    fn node(&self, n: u8) -> Arc<Node> {
        Arc::clone(&self.nodes[&instance(n)])
    }

    async fn ping(&self, from: u8, to: &str, size: usize, limit: Duration) -> bool {
        let to = to.parse().unwrap();
        self.node(from).run_async(move || probe::ping(None, to, size, limit)).await.unwrap().is_ok()
    }

    async fn seen_by(&self, from: u8, host: Ipv4Addr) -> Option<Ipv4Addr> {
        let to = SocketAddrV4::new(host, probe::ECHO_PORT);
        let seen = self.node(from).run_async(move || probe::tcp(None, to, LIMIT)).await.unwrap();
        seen.ok().map(|seen| *seen.ip())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.nodes.clear();
        // Not empty when a node went down badly, which it says itself.
        let _kept = std::fs::remove_dir(&self.dir);
    }
}

fn instance(n: u8) -> InstanceId {
    InstanceId::new(format!("i-0000000000000000{n}")).unwrap()
}

/// VPC 1 with instance 1 (public) and 2 (not), behind an Internet gateway; instance 3 in a subnet behind the NAT
/// gateway; VPC 2 with instance 4, peered.
fn state() -> State {
    let mut state = scene();
    add_eni(&mut state, 2, 1, "10.0.1.11", Some("i-00000000000000002"));
    add_subnet(&mut state, 2, 1, "10.0.2.0/24");
    add_eni(&mut state, 3, 2, "10.0.2.30", Some("i-00000000000000003"));
    add_subnet(&mut state, 3, 2, "10.1.1.0/24");
    add_eni(&mut state, 4, 3, "10.1.1.40", Some("i-00000000000000004"));
    let public = |state: &mut State, n, public: &str, private: &str| {
        let association = Association { public_ip: public.parse().unwrap(), private_ip: private.parse().unwrap() };
        state.enis.get_mut(&eni_id(n)).unwrap().association = Some(association);
    };
    public(&mut state, 1, "203.0.113.10", "10.0.1.10");
    // A table of its own for the subnet behind the NAT gateway, and the way back for the peered VPC.
    let (nat, peering) =
        (state.nat_gateways.keys().next().unwrap().clone(), state.peerings.keys().next().unwrap().clone());
    let mut table = state.route_tables.values().next().unwrap().clone();
    table.id = crate::model::RouteTableId::new("rtb-3");
    table.subnets = [subnet_id(2)].into();
    table.routes = [("0.0.0.0/0".parse().unwrap(), RouteTarget::NatGateway(nat))].into();
    state.route_tables.insert(table.id.clone(), table);
    route(&mut state, 2, "10.0.0.0/16", RouteTarget::Peering(peering));
    state
}

#[tokio::test]
async fn packets_go_where_the_vpc_says() {
    if !privileged() {
        return;
    }
    let rig = Rig::up("where", state()).await;
    // Within a subnet, between subnets, and at the full MTU of a VPC, IP and ICMP headers included.
    assert!(rig.ping(1, "10.0.1.11", 9001 - 28, LIMIT).await);
    assert!(rig.ping(3, "10.0.1.10", 9001 - 28, LIMIT).await);
    assert!(rig.ping(1, "10.0.1.1", 56, LIMIT).await, "the router answers");
    assert!(!rig.ping(1, "10.0.1.77", 56, SHORT).await, "nobody has this address");
    // The Internet: 1:1 for a public address, nothing without one, the gateway's behind a NAT gateway.
    assert_eq!(rig.seen_by(1, HOST).await, Some("203.0.113.10".parse().unwrap()));
    assert!(!rig.ping(2, &HOST.to_string(), 56, SHORT).await);
    assert_eq!(rig.seen_by(3, HOST).await, Some("203.0.113.90".parse().unwrap()));
    let (thread, to) = (Arc::clone(rig.fabric.internet().thread()), "203.0.113.10".parse().unwrap());
    assert!(thread.run(move || probe::ping(Some(HOST), to, 56, LIMIT)).await.unwrap().is_ok(), "and from there");
    // Peering.
    assert!(rig.ping(1, "10.1.1.40", 9001 - 28, LIMIT).await);
    assert!(rig.ping(4, "10.0.1.10", 56, LIMIT).await);
    assert_eq!(rig.fabric.dropped().await.unwrap(), []);
}

#[tokio::test]
async fn an_address_works_where_it_is_assigned_and_only_there() {
    if !privileged() {
        return;
    }
    let mut rig = Rig::up("source", state()).await;
    let moving: Ipv4Addr = "10.0.1.50".parse().unwrap();
    for n in [1, 2] {
        let node = rig.node(n);
        let add = || std::process::Command::new("ip").args(["address", "add", "10.0.1.50/32", "dev", "lo"]).status();
        assert!(node.run(add).await.unwrap().unwrap().success());
    }
    let sends = async |rig: &Rig, n: u8, limit| {
        let to = "10.0.2.30".parse().unwrap();
        rig.node(n).run_async(move || probe::ping(Some(moving), to, 56, limit)).await.unwrap().is_ok()
    };
    assert!(!sends(&rig, 1, SHORT).await);
    let dropped = rig.fabric.dropped().await.unwrap();
    assert!(
        matches!(dropped.as_slice(), [Dropped { eni, source, packets, .. }] if *eni == eni_id(1) && *source == moving && *packets > 0),
        "{dropped:?}"
    );
    rig.fabric.forget_dropped().await.unwrap();
    for (holder, other) in [(1, 2), (2, 1)] {
        rig.state.enis.get_mut(&eni_id(other)).unwrap().secondaries.clear();
        rig.state.enis.get_mut(&eni_id(holder)).unwrap().secondaries.insert(moving);
        rig.settle().await;
        assert!(sends(&rig, holder, LIMIT).await, "the ENI of {holder} has it");
        assert_eq!(rig.fabric.dropped().await.unwrap(), []);
        assert!(!sends(&rig, other, SHORT).await, "the ENI of {other} has it not");
        rig.fabric.forget_dropped().await.unwrap();
    }
}

#[tokio::test]
async fn an_eni_is_plugged_in_and_out_and_in_again_elsewhere() {
    if !privileged() {
        return;
    }
    let mut rig = Rig::up("plug", state()).await;
    add_eni(&mut rig.state, 5, 1, "10.0.1.55", Some("i-00000000000000001"));
    rig.state.enis.get_mut(&eni_id(5)).unwrap().attachment.as_mut().unwrap().device = 1;
    let links = async |rig: &Rig, n: u8| {
        let list = || std::process::Command::new("ip").args(["-o", "link"]).output();
        String::from_utf8(rig.node(n).run(list).await.unwrap().unwrap().stdout).unwrap()
    };
    assert!(!links(&rig, 1).await.contains("eth1"));
    rig.settle().await;
    let seen = links(&rig, 1).await;
    assert!(seen.contains("eth1") && seen.contains("02:00:00:00:00:05"), "{seen}");
    assert_eq!(rig.fabric.link_on_node(&eni_id(5)), Some("eth1"));
    rig.state.enis.get_mut(&eni_id(5)).unwrap().attachment.as_mut().unwrap().instance = Some(instance(2));
    rig.settle().await;
    assert!(!links(&rig, 1).await.contains("eth1"));
    let seen = links(&rig, 2).await;
    assert!(seen.contains("eth1") && seen.contains("02:00:00:00:00:05"), "{seen}");
    assert!(rig.ping(1, "10.0.1.11", 56, LIMIT).await, "the others never noticed");
    rig.state.enis.remove(&eni_id(5));
    rig.settle().await;
    assert!(!links(&rig, 2).await.contains("eth1"));
}

#[tokio::test]
async fn a_link_that_its_node_destroyed_can_be_unplugged_and_plugged_in_again() {
    if !privileged() {
        return;
    }
    let mut rig = Rig::up("broken", state()).await;
    let destroy = || std::process::Command::new("ip").args(["link", "del", "eth0"]).status();
    assert!(rig.node(2).run(destroy).await.unwrap().unwrap().success());
    rig.state.enis.get_mut(&eni_id(1)).unwrap().secondaries.insert("10.0.1.66".parse().unwrap());
    rig.settle().await;
    let eni = rig.state.enis.remove(&eni_id(2)).unwrap();
    rig.settle().await;
    rig.state.enis.insert(eni.id.clone(), eni);
    rig.settle().await;
    assert!(rig.ping(1, "10.0.1.11", 56, LIMIT).await);
}

#[tokio::test]
async fn arp_is_answered_for_what_somebody_holds_in_the_subnet_and_for_the_services_only() {
    if !privileged() {
        return;
    }
    let rig = Rig::up("arp", state()).await;
    // A node that takes everything to be on its link asks for everything by ARP.
    let resolves = async |address: &'static str| {
        let route =
            move || std::process::Command::new("ip").args(["route", "replace", address, "dev", "eth0"]).status();
        assert!(rig.node(1).run(route).await.unwrap().unwrap().success());
        let _answered = rig.ping(1, address, 56, SHORT).await;
        let entry = move || std::process::Command::new("ip").args(["neigh", "show", address]).output().unwrap();
        String::from_utf8(rig.node(1).run(entry).await.unwrap().stdout).unwrap().contains("lladdr")
    };
    for (address, answered) in [
        ("10.0.1.11", true),
        ("10.0.1.1", true),
        ("169.254.169.254", true),
        ("10.0.1.77", false),
        ("10.0.2.30", false),
        ("198.51.100.10", false),
    ] {
        assert_eq!(resolves(address).await, answered, "{address}");
    }
}

#[tokio::test]
async fn the_source_check_can_be_off_and_a_public_address_can_change() {
    if !privileged() {
        return;
    }
    let mut rig = Rig::up("attributes", state()).await;
    let eni = |rig: &mut Rig, change: &dyn Fn(&mut crate::model::state::Eni)| {
        change(rig.state.enis.get_mut(&eni_id(1)).unwrap());
    };
    let add = || std::process::Command::new("ip").args(["address", "add", "172.31.0.9/32", "dev", "lo"]).status();
    assert!(rig.node(1).run(add).await.unwrap().unwrap().success());
    // Nobody answers to such an address; what counts is whether it was refused.
    let refused = async |rig: &Rig| {
        let (from, to) = ("172.31.0.9".parse().unwrap(), "10.0.1.11".parse().unwrap());
        let ping = move || probe::ping(Some(from), to, 56, SHORT);
        assert!(rig.node(1).run_async(ping).await.unwrap().is_err());
        let refused = !rig.fabric.dropped().await.unwrap().is_empty();
        rig.fabric.forget_dropped().await.unwrap();
        refused
    };
    assert!(refused(&rig).await);
    eni(&mut rig, &|eni| eni.source_dest_check = false);
    rig.settle().await;
    assert!(!refused(&rig).await);
    eni(&mut rig, &|eni| eni.source_dest_check = true);
    rig.settle().await;
    assert!(refused(&rig).await);

    for public in ["203.0.113.44", "203.0.113.45"] {
        let public = public.parse().unwrap();
        eni(&mut rig, &|eni| eni.association.as_mut().unwrap().public_ip = public);
        rig.settle().await;
        assert_eq!(rig.seen_by(1, HOST).await, Some(public));
    }
    eni(&mut rig, &|eni| eni.association = None);
    rig.settle().await;
    assert!(!rig.ping(1, &HOST.to_string(), 56, SHORT).await);
}
