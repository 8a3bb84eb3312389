//! The golden node in a real network namespace, read back through `ip` and `nft` (root).

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::Value;
use sluice_contract::id::{AttachmentId, EniId, InstanceId, PodRef, SubnetId, VpcId};
use sluice_contract::node::branch::RULE_BRANCH;
use sluice_hostnet::netlink::VethSpec;
use sluice_hostnet::netns::Namespace;
use sluice_hostnet::state::{Address, Link, Route, Rule, host_prefix};
use sluice_hostnet::watch::{Watch, Watched};
use sluice_ipamd_core::cloud::{Ec2Attachment, Ec2Eni, InstanceIdentity, InstanceLimits, InterfaceType};
use sluice_ipamd_core::garbage::{Garbage, Litter};
use sluice_ipamd_core::ipv6::Families;
use sluice_ipamd_core::ledger::Owner;
use sluice_ipamd_core::state::{Event, Node, State};
use sluice_ipamd_core::time::Timestamp;

use super::*;
use crate::config::Config;

const PRIMARY: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x10]);
const SECONDARY: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x50]);
const NEXT: MacAddr = MacAddr([2, 0, 0, 0, 1, 0x60]);

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 1, last])
}

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn run(namespace: &Namespace, program: &str, arguments: &str) -> String {
    let output = namespace
        .run(|| std::process::Command::new(program).args(arguments.split_whitespace()).output())
        .expect("network namespaces can be entered: run the tests as root")
        .unwrap_or_else(|error| panic!("{program} is needed (apt-get install iproute2 nftables): {error}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn without_ipv6(namespace: &Namespace, dev: &str) {
    let file = format!("/proc/sys/net/ipv6/conf/{dev}/disable_ipv6");
    namespace.run(|| std::fs::write(file, "1")).unwrap().unwrap();
}

fn json(namespace: &Namespace, arguments: &str) -> Vec<Value> {
    let text = run(namespace, "ip", &format!("-j {arguments}"));
    if text.trim().is_empty() { Vec::new() } else { serde_json::from_str(&text).unwrap() }
}

async fn plug(host: &Host, vpc: &Namespace, dev: &str, mac: MacAddr) {
    let peer = format!("{dev}-vpc");
    let spec = VethSpec {
        name: &name(dev),
        mac: Some(mac),
        up: false,
        peer_name: &name(&peer),
        peer_mac: None,
        peer_namespace: Some(vpc),
        mtu: 9001,
    };
    host.netlink().create_veth(&spec).await.unwrap();
}

fn node_network() -> NodeNetwork {
    NodeNetwork {
        primary_mac: PRIMARY,
        primary_ip: Ipv4Addr::new(10, 0, 1, 10),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap()],
        routed_cidrs: Vec::new(),
        config: Config::load(&|_| None).unwrap().network,
    }
}

fn eni_network() -> EniNetwork {
    EniNetwork {
        eni: EniId::new("eni-00000000000000050").unwrap(),
        mac: SECONDARY,
        primary_ip: Ipv4Addr::new(10, 0, 1, 50),
        subnet: "10.0.1.0/24".parse().unwrap(),
        ipv6: None,
        table: 2,
        mtu: 9001,
        trunk: false,
    }
}

/// What a DHCP client leaves on a node: the primary ENI with its address, and the secondary one with the kernel's route
/// to the subnet, which must go.
async fn booted() -> (Host, Namespace) {
    let host = Host::of(Namespace::new_unbound().expect("the tests run as root")).unwrap();
    let vpc = Namespace::new_unbound().unwrap();
    plug(&host, &vpc, "eth0", PRIMARY).await;
    let namespace = host.namespace();
    run(namespace, "ip", "addr add 10.0.1.10/24 dev eth0");
    run(namespace, "ip", "link set eth0 up");
    run(namespace, "ip", "link set lo up");
    run(&vpc, "ip", "link set eth0-vpc up");
    run(namespace, "ip", "route add default via 10.0.1.1 dev eth0");
    (host, vpc)
}

#[tokio::test]
async fn the_golden_node_in_a_real_namespace() {
    let (host, vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    kernel.set_up_node(&node_network()).await.unwrap();

    // The ENI shows while its set-up waits for it.
    let (eni, late) = (eni_network(), async {
        plug(&host, &vpc, "eth1", SECONDARY).await;
        run(&namespace, "ip", "addr add 10.0.1.50/24 dev eth1");
        run(&vpc, "ip", "link set eth1-vpc up");
    });
    let (set_up, ()) = tokio::join!(kernel.set_up_eni(&eni), late);
    set_up.unwrap();
    // Whichever came first, a second look finds nothing left to mend.
    kernel.set_up_eni(&eni).await.unwrap();

    let rules: Vec<String> = json(&namespace, "rule")
        .iter()
        .map(|rule| {
            let or = |field: &str, other: &str| rule[field].as_str().unwrap_or(other).to_owned();
            let mark = rule["fwmark"].as_str().map(|mark| format!(" fwmark {mark}/{}", or("fwmask", "")));
            format!(
                "{}: from {}{} lookup {}",
                rule["priority"],
                or("src", "all"),
                mark.unwrap_or_default(),
                or("table", "")
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            "0: from all lookup local",
            "1024: from all fwmark 0x80/0x80 lookup main",
            "32765: from 10.0.1.50 lookup 2",
            "32766: from all lookup main",
            "32767: from all lookup default",
        ]
    );
    let routes = |table: &str| {
        let routes = json(&namespace, &format!("route show table {table}"));
        routes
            .iter()
            .map(|route| {
                let via = route["gateway"].as_str().map(|via| format!(" via {via}")).unwrap_or_default();
                format!("{}{via} dev {}", route["dst"].as_str().unwrap(), route["dev"].as_str().unwrap())
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(routes("2"), ["default via 10.0.1.1 dev eth1", "10.0.1.1 dev eth1"]);
    assert_eq!(routes("main"), ["default via 10.0.1.1 dev eth0", "10.0.1.0/24 dev eth0"], "and none by eth1");
    let eth1 = json(&namespace, "addr show dev eth1").remove(0);
    assert_eq!(eth1["mtu"], 9001);
    assert_eq!(eth1["operstate"], "UP");
    assert_eq!(eth1["addr_info"][0]["local"], "10.0.1.50");
    for (key, value) in
        [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/eth0/rp_filter", "2"), ("net/ipv4/tcp_early_demux", "1")]
    {
        assert_eq!(run(&namespace, "cat", &format!("/proc/sys/{key}")).trim(), value, "{key}");
    }
    let table = run(&namespace, "nft", "list table ip sluice");
    for part in
        ["snat to 10.0.1.10 fully-random", "ip daddr != 10.0.0.0/16", "iifname \"eni*\"", "fib daddr . iif type local"]
    {
        assert!(table.contains(part), "{part} is not in {table}");
    }

    assert!(kernel.pods("eni").await.unwrap().leftovers.is_empty());
    // What is right stays untouched.
    let mut watch = Watch::open(&namespace, Watched::ALL).await.unwrap();
    let before = run(&namespace, "nft", "-a list table ip sluice");
    kernel.set_up_node(&node_network()).await.unwrap();
    kernel.set_up_eni(&eni).await.unwrap();
    assert_eq!(watch.settle().await, []);
    assert_eq!(run(&namespace, "nft", "-a list table ip sluice"), before, "not even the handles have changed");

    // What is wrong is mended.
    run(&namespace, "ip", "rule del priority 32765");
    run(&namespace, "nft", "flush chain ip sluice outbound");
    kernel.set_up_node(&node_network()).await.unwrap();
    kernel.set_up_eni(&eni).await.unwrap();
    assert_eq!(json(&namespace, "rule").len(), 5);
    assert!(run(&namespace, "nft", "list table ip sluice").contains("ct mark"), "the chain is back");

    // The link goes with the ENI; the rule is ours to take away.
    run(&namespace, "ip", "link del eth1");
    assert_eq!(kernel.pods("eni").await.unwrap().leftovers.into_iter().collect::<Vec<_>>(), [2]);
    kernel.clear_table(2).await.unwrap();
    assert_eq!(json(&namespace, "rule").len(), 4);
    kernel.clear_table(2).await.unwrap();
    assert!(kernel.pods("eni").await.unwrap().leftovers.is_empty());
}

#[tokio::test]
async fn an_eni_takes_the_table_of_the_one_before() {
    let (host, vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    plug(&host, &vpc, "eth1", SECONDARY).await;
    kernel.set_up_eni(&eni_network()).await.unwrap();
    run(&namespace, "ip", "link del eth1");
    plug(&host, &vpc, "eth1", NEXT).await;
    let next = EniNetwork { mac: NEXT, primary_ip: Ipv4Addr::new(10, 0, 1, 60), ..eni_network() };
    kernel.set_up_eni(&next).await.unwrap();
    let rules = json(&namespace, "rule");
    let sources: Vec<_> = rules.iter().filter(|rule| rule["table"] == "2").map(|rule| &rule["src"]).collect();
    assert_eq!(sources, ["10.0.1.60"]);
    assert!(kernel.pods("eni").await.unwrap().leftovers.is_empty());
}

#[tokio::test]
async fn pods_are_seen_by_their_routes_and_rules() {
    let (host, _vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    run(&namespace, "ip", "link add enia type veth peer name p0");
    run(&namespace, "ip", "link set enia up");
    let alias = ["link", "set", "enia", "alias", "sluice abc/eth0@sluice"];
    namespace.run(|| std::process::Command::new("ip").args(alias).status()).unwrap().unwrap();
    run(&namespace, "ip", "link set p0 up");
    run(&namespace, "ip", "route add 10.0.1.20/32 dev enia scope link");
    run(&namespace, "ip", "rule add priority 512 to 10.0.1.20/32 lookup main");
    run(&namespace, "ip", "rule add priority 512 to 10.0.1.21/32 lookup main");
    run(&namespace, "ip", "route add 10.0.1.99/32 dev eth0 scope link");
    let pods = kernel.pods("eni").await.unwrap();
    assert_eq!(pods.attachments.into_values().collect::<Vec<_>>(), [crate::testing::attachment("abc")]);
    let seen: Vec<_> = pods.view.pods.iter().map(|(address, dev)| format!("{address} {dev}")).collect();
    assert_eq!(seen, ["10.0.1.20 enia", "10.0.1.21 unknown"]);
    assert_eq!(pods.dead.into_iter().collect::<Vec<_>>(), [ip(21)]);

    // What is left of a pod that is gone goes; what belongs to a pod with an interface stays.
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.20/32 lookup 2");
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.21/32 lookup 2");
    let before = json(&namespace, "rule").len();
    assert_eq!(kernel.clear_pod(&[ip(20)], "eni").await.unwrap(), Cleared::InUse);
    assert_eq!(json(&namespace, "rule").len(), before);
    assert_eq!(kernel.clear_pod(&[ip(21)], "eni").await.unwrap(), Cleared::Removed);
    assert_eq!(json(&namespace, "rule").len(), before - 2);
    assert_eq!(kernel.clear_pod(&[ip(21)], "eni").await.unwrap(), Cleared::Nothing);
    // A rule by source alone counts as well.
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.22/32 lookup 3");
    assert!(kernel.pods("eni").await.unwrap().dead.contains(&ip(22)));
    assert_eq!(kernel.clear_pod(&[ip(22)], "eni").await.unwrap(), Cleared::Removed);
    assert_eq!(kernel.pods("eni").await.unwrap().view.pods.len(), 1);
}

/// A pod as the plugin makes it, as far as the host goes: its interface with its mark, and its route.
fn pod(namespace: &Namespace, container: &str, last: Option<u8>) {
    let dev = format!("eni{container}");
    run(namespace, "ip", &format!("link add {dev} type veth peer name p-{container}"));
    run(namespace, "ip", &format!("link set {dev} up"));
    let alias = ["link", "set", &dev, "alias", &format!("sluice {container}/eth0@sluice")];
    namespace.run(|| std::process::Command::new("ip").args(alias).status()).unwrap().unwrap();
    if let Some(last) = last {
        run(namespace, "ip", &format!("rule add priority 512 to 10.0.1.{last}/32 lookup main"));
        run(namespace, "ip", &format!("rule add priority 1536 from 10.0.1.{last}/32 lookup 2"));
        run(namespace, "ip", &format!("route add 10.0.1.{last}/32 dev {dev} scope link"));
    }
}

/// A node whose ledger has given 10.0.1.20 to `abc`.
fn ledger() -> State {
    let eni = Ec2Eni {
        eni: EniId::new("eni-00000000000000010").unwrap(),
        mac: PRIMARY,
        attachment: Some(Ec2Attachment {
            attachment: AttachmentId::new("eni-attach-00000010").unwrap(),
            instance: Some(InstanceId::new("i-00000010").unwrap()),
            device: 0,
            card: 0,
            delete_on_termination: true,
        }),
        subnet: SubnetId::new("subnet-00000010").unwrap(),
        primary_ip: Ipv4Addr::new(10, 0, 1, 10),
        secondary_ips: [Ipv4Addr::new(10, 0, 1, 20)].into(),
        prefixes: BTreeSet::new(),
        ipv6_prefixes: BTreeSet::new(),
        security_groups: Vec::new(),
        tags: BTreeMap::new(),
        interface_type: InterfaceType::Interface,
        description: String::new(),
        connection_tracking: None,
    };
    let identity = InstanceIdentity {
        instance: InstanceId::new("i-00000010").unwrap(),
        instance_type: "m5.large".to_owned(),
        availability_zone: "xx-1a".to_owned(),
        region: "xx-1".to_owned(),
        primary_mac: PRIMARY,
        vpc: VpcId::new("vpc-00000010").unwrap(),
    };
    let limits = InstanceLimits { enis: 3, further_cards: Vec::new(), ipv4_per_eni: 10, prefixes: true };
    let node = Node {
        identity,
        limits,
        vpc_cidrs: node_network().vpc_cidrs,
        security_groups: Vec::new(),
        tags: BTreeMap::new(),
        manage_untagged_enis: true,
        families: Families::V4,
        custom_networking: false,
        subnet_discovery: true,
        imds_only: false,
        multi_nic: false,
    };
    let owner = Owner {
        attachment: crate::testing::attachment("abc"),
        pod: PodRef::default(),
        host_ifname: name("eniabc"),
        netns: String::new(),
    };
    let mut state = State::new(1);
    let now = Timestamp::from_millis(0);
    let primary = eni.eni.clone();
    for event in [
        Event::NodeKnown(node),
        Event::Surveyed(vec![eni]),
        Event::EniReady(primary),
        Event::Assign(ip(20), Arc::new(owner)),
    ] {
        state.apply(event, now).unwrap();
    }
    state
}

#[tokio::test]
async fn of_what_is_there_only_what_pods_have_left_goes() {
    let (host, vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    plug(&host, &vpc, "eth1", SECONDARY).await;
    run(&vpc, "ip", "link set eth1-vpc up");
    kernel.set_up_node(&node_network()).await.unwrap();
    kernel.set_up_eni(&eni_network()).await.unwrap();
    pod(&namespace, "abc", Some(20));
    // Others': rules and routes of the same form that are not about the VPC, and an interface that carries an address.
    run(&namespace, "ip", "rule add priority 512 to 192.0.2.7/32 lookup main");
    run(&namespace, "ip", "rule add priority 1536 from 192.0.2.7/32 lookup 77");
    run(&namespace, "ip", "rule add priority 100 to 10.0.1.33/32 lookup 77");
    run(&namespace, "ip", "route add 192.0.2.8/32 dev eniabc scope link");
    run(&namespace, "ip", "route add 10.0.1.34/32 dev eth0 scope link");
    run(&namespace, "ip", "link add vethother type veth peer name p-other");
    run(&namespace, "nft", "add table ip other");
    pod(&namespace, "unknown", Some(35));
    let picture = || {
        let parts = ["rule", "-4 route show table all", "-br link"].map(|what| run(&namespace, "ip", what));
        [parts.concat(), run(&namespace, "nft", "list tables")].concat()
    };
    let before = picture();

    // Litter of each kind. Of nftables there is none: no pod has an element there.
    run(&namespace, "ip", "rule add priority 512 to 10.0.1.31/32 lookup main");
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.31/32 lookup 2");
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.32/32 lookup 9");
    run(&namespace, "ip", "route add 10.0.1.36/32 dev eniabc scope link");
    pod(&namespace, "left", None);

    let (state, mut garbage) = (ledger(), Garbage::default());
    let at = |seconds| Timestamp::from_millis(0) + Duration::from_secs(seconds);
    assert_eq!(garbage.look(&kernel.pods("eni").await.unwrap().look(), &state, |_| false, at(0)), []);
    let look = kernel.pods("eni").await.unwrap().look();
    let litter = garbage.look(&look, &state, |_| false, at(121));
    assert_eq!(litter.iter().map(Litter::kind).collect::<Vec<_>>(), ["rule", "rule", "route", "link"], "{litter:?}");
    for one in litter {
        let went = match one {
            Litter::Rules { address, .. } => {
                kernel.clear_pod(&[address], "eni").await.map(|cleared| cleared == Cleared::Removed)
            }
            Litter::Route(address, dev) => kernel.clear_route(address, &dev, &look.marked[&dev]).await,
            Litter::Link(dev, attachment) => kernel.clear_link(&dev, &attachment).await,
        };
        assert!(went.unwrap());
    }
    assert_eq!(picture(), before);
    let look = kernel.pods("eni").await.unwrap().look();
    assert_eq!(garbage.look(&look, &state, |_| false, at(300)), []);
    // What has changed since it was looked at stays: another's interface, and one that carries an address by now.
    let other = crate::testing::attachment("other");
    assert!(!kernel.clear_route(ip(20), &name("eniabc"), &other).await.unwrap());
    assert!(!kernel.clear_link(&name("eniabc"), &other).await.unwrap());
    assert!(!kernel.clear_link(&name("eniabc"), &look.marked[&name("eniabc")]).await.unwrap());
    assert_eq!(picture(), before);
}

/// What others have changed.
async fn heard(kernel: &HostKernel) -> Vec<String> {
    kernel.disturbed("eni", Instant::now()).await.unwrap().changes
}

/// What a repair came to, in words.
fn made(repaired: &Repaired) -> Vec<String> {
    assert!(repaired.failed.is_empty(), "{repaired:?}");
    let mut made: Vec<_> = repaired.made.iter().map(|repair| repair.op.clone()).collect();
    made.sort();
    made
}

#[tokio::test]
async fn what_others_change_is_noticed_and_mended_and_what_is_theirs_stays() {
    let (host, vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    plug(&host, &vpc, "eth1", SECONDARY).await;
    run(&vpc, "ip", "link set eth1-vpc up");
    kernel.set_up_node(&node_network()).await.unwrap();
    kernel.set_up_eni(&eni_network()).await.unwrap();
    assert_eq!(heard(&kernel).await, [""; 0], "the first look is at once");

    // A pod comes as the plugin makes it: its route last.
    run(&namespace, "ip", "link add enia type veth peer name p0");
    run(&namespace, "ip", "link set p0 up");
    run(&namespace, "ip", "link set enia up");
    let alias = ["link", "set", "enia", "alias", "sluice abc/eth0@sluice"];
    namespace.run(|| std::process::Command::new("ip").args(alias).status()).unwrap().unwrap();
    run(&namespace, "ip", "rule add priority 512 to 10.0.1.20/32 lookup main");
    run(&namespace, "ip", "rule add priority 1536 from 10.0.1.20/32 lookup 2");
    run(&namespace, "ip", "route add 10.0.1.20/32 dev enia scope link");
    let pod = PodNetwork {
        attachment: crate::testing::attachment("abc"),
        dev: name("enia"),
        addresses: vec![ip(20)],
        egress: None,
        table: 2,
        branch: None,
        settled: false,
    };
    // Somebody else's.
    run(&namespace, "ip", "rule add priority 100 from 192.0.2.0/24 lookup 77");
    run(&namespace, "ip", "route add 192.0.2.0/24 dev eth0 table 77");
    run(&namespace, "nft", "add table ip other");
    let theirs = |what: &str| (what.to_owned(), run(&namespace, "ip", what));
    let others = ["route show table 77", "rule show priority 100"].map(theirs);

    for change in [
        "rule del priority 1024",
        "rule del priority 512 to 10.0.1.20/32",
        "rule del priority 1536 from 10.0.1.20/32",
        "rule del priority 32765",
        "route del default table 2",
        "route del 10.0.1.20/32 dev enia",
        "route add default via 10.0.1.9 dev eth1 table 2 metric 7 onlink",
        "neigh replace 10.0.1.1 lladdr 02:00:00:00:00:99 dev eth1 nud permanent",
    ] {
        run(&namespace, "ip", change);
    }
    run(&namespace, "nft", "flush chain ip sluice outbound");
    let changes = heard(&kernel).await;
    assert!(changes.iter().any(|change| change.contains("rule 1024")), "{changes:?}");
    let repaired = kernel.repair(std::slice::from_ref(&pod)).await;
    assert_eq!(
        made(&repaired),
        [
            "neighbour del 10.0.1.1 dev eth1 lladdr 02:00:00:00:00:99",
            "nft table ip sluice",
            "route del default via 10.0.1.9 dev eth1 table 2",
            "route replace 10.0.1.20/32 dev enia table 254",
            "route replace default via 10.0.1.1 dev eth1 table 2",
            "rule add 1024: from all fwmark 0x80/0x80 lookup 254",
            "rule add 1536: from 10.0.1.20/32 lookup 2",
            "rule add 32765: from 10.0.1.50/32 lookup 2",
            "rule add 512: from all to 10.0.1.20/32 lookup 254",
        ]
    );
    assert!(repaired.made.iter().any(|repair| (repair.kind, repair.reason.as_str()) == ("rule", "missing")));

    // Links that were switched off or renamed, and the address with its routes.
    for change in ["link set eth1 down", "link set eth1 name lan7", "addr flush dev lan7", "link set enia down"] {
        run(&namespace, "ip", change);
    }
    heard(&kernel).await;
    let repaired = kernel.repair(std::slice::from_ref(&pod)).await;
    let words = made(&repaired);
    for word in ["link set lan7 up", "address add 10.0.1.50/24 dev lan7", "link set enia up"] {
        assert!(words.contains(&word.to_owned()), "{word}: {words:?}");
    }
    assert_eq!(json(&namespace, "route show table 2").len(), 2);
    assert_eq!(json(&namespace, "route show 10.0.1.20").len(), 1);
    // Once more finds nothing; so does a pod's end: its interface goes first.
    assert_eq!(made(&kernel.repair(std::slice::from_ref(&pod)).await), [""; 0]);
    run(&namespace, "ip", "link del enia");
    run(&namespace, "ip", "rule del priority 512 to 10.0.1.20/32");
    run(&namespace, "ip", "rule del priority 1536 from 10.0.1.20/32");
    run(&namespace, "ip", "rule del priority 1024");
    let changes = heard(&kernel).await;
    assert!(!changes.iter().any(|change| change.contains("10.0.1.20")), "{changes:?}");
    assert_eq!(made(&kernel.repair(&[pod]).await), ["rule add 1024: from all fwmark 0x80/0x80 lookup 254"]);
    assert_eq!(["route show table 77", "rule show priority 100"].map(theirs), others);
    assert!(run(&namespace, "nft", "list tables").contains("table ip other"));
}

#[tokio::test]
async fn what_fails_for_one_pod_holds_up_no_other() {
    let (host, _vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    pod(&namespace, "a", Some(20));
    pod(&namespace, "b", Some(21));
    // The kernel takes no route by an interface on which IPv6 is switched off.
    without_ipv6(&namespace, "enia");
    run(&namespace, "ip", "rule del priority 512 to 10.0.1.21/32");
    let network = |container: &str, addresses: Vec<IpAddr>| PodNetwork {
        attachment: crate::testing::attachment(container),
        dev: name(&format!("eni{container}")),
        addresses,
        egress: None,
        table: 2,
        branch: None,
        settled: true,
    };
    let pods = [network("a", vec![ip(20), "2001:db8::20".parse().unwrap()]), network("b", vec![ip(21)])];
    let repaired = kernel.repair(&pods).await;
    assert_eq!(repaired.failed.len(), 1, "{repaired:?}");
    let made: Vec<_> = repaired.made.iter().map(|repair| repair.op.as_str()).collect();
    assert_eq!(made, ["rule add 512: from all to 10.0.1.21/32 lookup 254"]);
}

#[tokio::test]
async fn a_pod_of_before_the_setting_is_mended_without_the_address_that_later_pods_have() {
    let (host, _vpc) = booted().await;
    let namespace = host.namespace().clone();
    let kernel = HostKernel::over(host.clone());
    let egress = |last: u8| format!("fd00::ac:{last}").parse::<IpAddr>().unwrap();
    let network = |container: &str, last: u8| PodNetwork {
        attachment: crate::testing::attachment(container),
        dev: name(&format!("eni{container}")),
        addresses: vec![ip(last)],
        egress: Some(egress(last)),
        table: 2,
        branch: None,
        settled: true,
    };
    pod(&namespace, "a", Some(20));
    pod(&namespace, "b", Some(21));
    without_ipv6(&namespace, "enia");
    run(&namespace, "ip", "rule del priority 512 to 10.0.1.20/32");
    let repaired = kernel.repair(&[network("a", 20), network("b", 21)]).await;
    assert!(repaired.failed.is_empty(), "{repaired:?}");
    let made: BTreeSet<_> = repaired.made.iter().map(|repair| repair.op.as_str()).collect();
    let later = format!("route replace {}/128 dev enib table 254", egress(21));
    assert_eq!(made, BTreeSet::from([later.as_str(), "rule add 512: from all to 10.0.1.20/32 lookup 254"]));
}

#[tokio::test]
async fn a_link_that_does_not_show_is_an_error_that_says_so() {
    let (host, _vpc) = booted().await;
    let kernel = HostKernel::over(host);
    let missing = NodeNetwork { primary_mac: SECONDARY, ..node_network() };
    let error = kernel.set_up_node(&missing).await.unwrap_err();
    assert!(matches!(error, KernelError::NoLink(mac) if mac == SECONDARY), "{error}");
}

/// A veth on the host, with the mark of an attachment if there is one.
fn veth_link(text: &str, alias: Option<&str>) -> Link {
    Link {
        index: 1,
        name: name(text),
        mac: None,
        mtu: 9001,
        up: true,
        kind: LinkKind::Veth,
        peer: None,
        peer_netns: None,
        alias: alias.map(str::to_owned),
        master: None,
    }
}

fn pod_route(net: &str, dev: &str) -> Route {
    Route::on_link(TABLE_MAIN, net.parse().unwrap(), name(dev))
}

#[test]
fn only_whole_addresses_by_pods_links_count() {
    let seen = Observed {
        links: vec![veth_link("enia", None), veth_link("eth1", None)],
        routes: vec![
            pod_route("10.0.1.20/32", "enia"),
            pod_route("10.0.2.0/24", "enia"),
            pod_route("10.0.1.30/32", "eth1"),
            pod_route("10.0.1.40/32", "enigone"),
        ],
        rules: vec![Rule::to(1535, "10.0.9.9/32".parse().unwrap(), TABLE_MAIN)],
        addresses: vec![Address::new(name("eth1"), host_prefix(Ipv4Addr::new(10, 0, 1, 50).into()))],
        ..Observed::default()
    };
    let found: Vec<_> = pods(&seen, "eni").view.pods.into_keys().collect();
    assert_eq!(found, [ip(20)]);
}

#[test]
fn a_vlan_is_litter_without_its_veth_and_its_rules_without_both() {
    let link = |index: u32, dev: &str, kind: LinkKind, of: &str| Link {
        index,
        name: name(dev),
        mac: None,
        mtu: 9001,
        up: true,
        kind,
        peer: None,
        peer_netns: None,
        alias: Some(format!("sluice {of}/eth0@sluice")),
        master: None,
    };
    let vlan = || LinkKind::Other("vlan".to_owned());
    let strict = |dev: &str, table: u32| Rule::iif(Family::V4, RULE_BRANCH, name(dev), table);
    let seen = Observed {
        links: vec![
            link(4, "vlana", LinkKind::Veth, "a"),
            link(5, "vlan.eth.7", vlan(), "a"),
            link(6, "vlan.eth.8", vlan(), "b"),
        ],
        rules: vec![
            strict("vlan.eth.7", 107),
            strict("vlana", 107),
            strict("vlan.eth.8", 108),
            strict("vlanb", 108),
            strict("vlan.eth.9", 109),
            strict("vlanc", 109),
            strict("somebody", 77),
            // Another's way: its interface is not there just now, its table has the number of a VLAN's.
            strict("tun0", 200),
        ],
        ..Observed::default()
    };
    let found = pods(&seen, "eni");
    assert_eq!(found.marked.keys().map(IfName::as_str).collect::<Vec<_>>(), ["vlan.eth.8"]);
    assert_eq!(found.leftovers, BTreeSet::from([109]));
    assert_eq!(found.veths, BTreeSet::from([name("vlana")]));
    assert!(found.view.pods.is_empty(), "{:?}", found.view);
}

/// The settings had another prefix when they were made: one by this daemon or one like it, one by the VPC CNI.
#[test]
fn pods_of_another_prefix_live_and_have_left_nothing() {
    let rule = |last: u8| Rule::to(RULE_TO_POD, host_prefix(ip(last)), TABLE_MAIN);
    let seen = Observed {
        links: vec![
            veth_link("ganabc", Some("sluice abc/eth0@sluice")),
            veth_link("ganold", None),
            // The ADD of a pod that nobody knows has made its route.
            veth_link("gannew", Some("sluice new/eth0@sluice")),
            veth_link("eth1", None),
        ],
        routes: vec![
            pod_route("10.0.1.20/32", "ganabc"),
            pod_route("10.0.1.21/32", "ganold"),
            pod_route("10.0.1.23/32", "gannew"),
            pod_route("10.0.1.30/32", "eth1"),
        ],
        rules: vec![rule(20), rule(21), rule(22)],
        ..Observed::default()
    };
    let found = pods(&seen, "eni");
    assert_eq!(found.dead.iter().copied().collect::<Vec<_>>(), [ip(22)]);
    let live: Vec<_> = found.look().routed.iter().map(|(address, dev)| format!("{address} {dev}")).collect();
    assert_eq!(live, ["10.0.1.20 ganabc", "10.0.1.21 ganold", "10.0.1.23 gannew"]);
    assert_eq!(found.attachments[&ip(20)], crate::testing::attachment("abc"));
    let (state, mut garbage) = (ledger(), Garbage::default());
    let at = |seconds| Timestamp::from_millis(0) + Duration::from_secs(seconds);
    assert_eq!(garbage.look(&found.look(), &state, |_| false, at(0)), []);
    let litter = garbage.look(&found.look(), &state, |_| false, at(121));
    assert!(matches!(litter.as_slice(), [Litter::Rules { address, .. }] if *address == ip(22)), "{litter:?}");
}
