//! A node that nobody but the AWS VPC CNI has served is taken over with its pods talking.
//!
//! Nothing of Sluice has run there before: links, addresses, routes, rules, chains and the record of the pods are made here by `ip`
//! and `iptables` from what is known of the VPC CNI (reference/vpc-cni.md 2.5, 4.2 to 4.6, 4.10), with the names of its golden
//! example (4.14).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_contract::id::EniId;
use sluice_hostnet::watch::{Watch, Watched};
use sluice_tests::bed::{Bed, INTERNET, LIMIT, add_pods, ip, run, scene, serve};
use sluice_tests::privileged::privileged;
use sluice_vpcsim::deployment::{Binaries, Deployment, Pod};
use sluice_vpcsim::model::SceneEni;
use sluice_vpcsim::model::api::{AssignPrivateIpAddresses, WantIpv4, WantIpv6};

use super::{AWS_NODE, Talk, touched};

/// What stands in the place of the VPC CNI's list: its network, in its version.
const LIST: &str = r#"{"cniVersion": "0.4.0", "name": "aws-cni", "plugins": [{"type": "sluice-eni"}]}"#;

/// What aws-node and its init container make of a node with a second ENI: 4.10, 4.5, the rules of 4.4, and the chains of 4.6 with
/// what kube-proxy's node ports need.
const NODE: &str = r#"
echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter
ip link set eth0 mtu 9001
ip link set eth1 mtu 9001 up
ip addr flush dev eth1 scope global
ip addr add "$ENI/24" dev eth1
ip route replace 10.0.1.1/32 dev eth1 scope link table 2
ip route replace default via 10.0.1.1 dev eth1 table 2
ip route delete 10.0.1.0/24 dev eth1 src "$ENI"
ip rule add priority 32765 from "$ENI" lookup 2
ip rule add priority 1024 fwmark 0x80/0x80 lookup main
iptables -w -t nat -N AWS-SNAT-CHAIN-0
iptables -w -t nat -N AWS-CONNMARK-CHAIN-0
iptables -w -t nat -A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
iptables -w -t nat -A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
iptables -w -t nat -A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
iptables -w -t nat -A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
iptables -w -t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
iptables -w -t nat -A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
iptables -w -t nat -A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source "$NODE" --random-fully
iptables -w -t mangle -A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
iptables -w -t mangle -A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
"#;

/// What the VPC CNI's plugin makes of a sandbox: 4.2 and 4.3, in their order.
const POD: &str = r#"
ip link add "$LINK" mtu 9001 address "$MAC" type veth peer name eth0 mtu 9001 netns "$NETNS"
for setting in accept_ra=0 accept_redirects=1 forwarding=0; do
    file=/proc/sys/net/ipv6/conf/$LINK/${setting%=*}
    [ ! -e "$file" ] || echo "${setting#*=}" > "$file"
done
ip link set "$LINK" up
inside() { nsenter --net="$NETNS" ip "$@"; }
inside link set eth0 up
inside route replace 169.254.1.1/32 dev eth0 scope link
inside route add default via 169.254.1.1 dev eth0
inside addr add "$IP/32" dev eth0
inside neigh add 169.254.1.1 lladdr "$MAC" dev eth0 nud permanent
ip route replace "$IP/32" dev "$LINK" scope link table main
ip rule add priority 512 to "$IP/32" lookup main
[ "$TABLE" = 254 ] || ip rule add priority 1536 from "$IP/32" lookup "$TABLE"
"#;

/// The pods of the golden example: namespace, name, the host's interface, and the MAC address of that.
const SAMPLE: [&str; 4] = ["default", "sample-pod", "enicc21c2d7785", "ee:00:00:00:00:01"];
const COREDNS: [&str; 4] = ["kube-system", "coredns-57ff979f67-qqbdh", "enib5faff8a083", "ee:00:00:00:00:02"];

async fn shell(node: &Deployment, script: &str, variables: &[(&str, &str)]) {
    let variables: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut words = vec!["env"];
    words.extend(variables.iter().map(String::as_str));
    words.extend(["sh", "-euc", script]);
    run(node, &words).await.unwrap();
}

/// A node that the VPC CNI has served until now.
struct Served {
    node: Arc<Deployment>,
    /// Its first pod has an address of the primary ENI, the second one of the other.
    pods: [Pod; 2],
}

impl Served {
    /// With addresses as `want` says on each ENI. Of a prefix pods have its sixth address: the VPC CNI gives out all sixteen.
    async fn up(bed: &Bed, want: &WantIpv4, settings: &[(&str, &str)]) -> Self {
        let machine = Arc::clone(bed.world.node("node-a").unwrap());
        let environment = settings.iter().chain(&[("MY_NODE_NAME", "node-a")]);
        let environment = environment.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let binaries = Binaries::beside_this_program().unwrap();
        let node = Arc::new(Deployment::install(machine, &binaries, LIST, environment).await.unwrap());

        let (own, _) = bed.addresses_of("node-a").unwrap();
        let (first, _) = bed.eni_of(own).unwrap();
        let second = enis(bed, &first, want).await;
        assert_eq!(bed.world.link_of(&second).await.unwrap(), "eth1");
        let (of_first, _) = addresses(bed, &first);
        let (of_second, eni) = addresses(bed, &second);
        shell(&node, NODE, &[("NODE", &own.to_string()), ("ENI", &eni.to_string())]).await;
        let pods = [pod(&node, SAMPLE, of_first, 0).await, pod(&node, COREDNS, of_second, 1).await];

        let allocations: Vec<Value> = pods.iter().map(allocation).collect();
        let record = json!({"version": "vpc-cni-ipam/1", "allocations": allocations}).to_string();
        run(&node, &["mkdir", "-p", AWS_NODE]).await.unwrap();
        node.node().write(format!("{AWS_NODE}/ipam.json"), &record).await.unwrap();
        Self { node, pods }
    }
}

/// Gives the primary ENI addresses, and the instance another one.
async fn enis(bed: &Bed, primary: &EniId, want: &WantIpv4) -> EniId {
    let instance = bed.world.instance("node-a").unwrap().clone();
    let assign = AssignPrivateIpAddresses { eni: primary.clone(), want: want.clone(), allow_reassignment: false };
    bed.world.edit(|model, now| model.call_from("aws-node", assign, now).result).await.unwrap();
    let tags = BTreeMap::from([
        ("node.k8s.amazonaws.com/instance_id".to_owned(), instance.to_string()),
        ("node.k8s.amazonaws.com/createdAt".to_owned(), "2026-01-01T00:00:00Z".to_owned()),
    ]);
    let eni = SceneEni {
        subnet: bed.world.subnet("main/nodes").unwrap().clone(),
        private_ip: None,
        want: want.clone(),
        want_ipv6: WantIpv6::default(),
        place: Some((instance, 0, 1)),
        tags,
    };
    bed.world.edit(|model, _| model.add_eni(&eni)).await.unwrap()
}

/// An address for a pod, and the ENI's own.
fn addresses(bed: &Bed, eni: &EniId) -> (Ipv4Addr, Ipv4Addr) {
    bed.world.look(|model, _| {
        let eni = &model.state().enis[eni];
        let of_prefix = eni.prefixes.first().map(|prefix| Ipv4Addr::from_bits(prefix.network().to_bits() + 5));
        (of_prefix.or_else(|| eni.secondaries.first().copied()).unwrap(), eni.primary)
    })
}

async fn pod(node: &Deployment, [namespace, name, link, mac]: [&str; 4], address: Ipv4Addr, device: u32) -> Pod {
    let sandbox = node.node().sandbox(namespace, name).await.unwrap();
    let table = if device == 0 { "254".to_owned() } else { (device + 1).to_string() };
    let (netns, ip) = (sandbox.netns.display().to_string(), address.to_string());
    shell(node, POD, &[("LINK", link), ("MAC", mac), ("NETNS", &netns), ("IP", &ip), ("TABLE", &table)]).await;
    // As the plugin answers it, the table in the place of a MAC address, and the device in that of a sandbox (6.2).
    let result = json!({
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": link},
            {"name": "eth0", "mac": table, "sandbox": netns},
            {"name": link.replace("eni", "dummy"), "mac": "0", "sandbox": device.to_string()},
        ],
        "ips": [{"version": "4", "interface": 1, "address": format!("{ip}/32")}],
        "dns": {},
    });
    node.runtime().adopt(&sandbox, result.clone());
    Pod { sandbox, address, ipv6: None, result, took: Duration::ZERO }
}

fn allocation(pod: &Pod) -> Value {
    json!({"networkName": "aws-cni", "containerID": pod.sandbox.id, "ifName": "eth0", "ipv4": pod.address.to_string(),
        "allocationTimestamp": 1_711_111_111_000_000_000_i64,
        "metadata": {"k8sPodNamespace": pod.sandbox.namespace, "k8sPodName": pod.sandbox.name, "interfacesCount": 1}})
}

/// The second ENI's routes, and the rule of its own address.
async fn eni_network(node: &Deployment) -> (Value, Vec<Value>) {
    let rules = ip(node, None, &["rule", "show", "priority", "32765", "table", "2"]).await.unwrap();
    (ip(node, None, &["route", "show", "table", "2"]).await.unwrap(), rules.as_array().unwrap().clone())
}

async fn is_taken_over(want: &WantIpv4, settings: &[(&str, &str)]) {
    let bed = Bed::up_on(&scene(0.1), |name| name == "node-b", &[]).await.unwrap();
    let other = bed.node("node-b").unwrap();
    let far = other.add("default", "far").await.unwrap();
    serve(other, &far).await.unwrap();
    let Served { node, pods } = Served::up(&bed, want, settings).await;
    let [first, second] = &pods;
    assert_eq!((bed.device_of(first.address), bed.device_of(second.address)), (Some(0), Some(1)));
    serve(&node, first).await.unwrap();
    serve(&node, second).await.unwrap();
    let talk = Talk::begin(vec![
        (Arc::clone(&node), first.clone(), far.address),
        (Arc::clone(&node), second.clone(), far.address),
        (Arc::clone(&node), first.clone(), INTERNET),
        (Arc::clone(&node), second.clone(), INTERNET),
        (Arc::clone(&node), second.clone(), first.address),
        (Arc::clone(other), far.clone(), first.address),
        (Arc::clone(other), far.clone(), second.address),
    ]);
    talk.has_asked(20).await;
    let before = eni_network(&node).await;

    let mut watch = Watch::open(node.node().net(), Watched::ALL).await.unwrap();
    node.start_ipamd().await.unwrap();
    node.ready(LIMIT).await.unwrap();
    let adopted = |view: &Value| view["pool"]["assigned"] == 2 && view["pool"]["quarantined"] == 0;
    let view = node.pool_until("the pods were not taken over", LIMIT, adopted).await.unwrap();
    assert_eq!(view["pool"]["violations"], 0, "{view}");
    // The VPC CNI's chains go once ours do what they did.
    let end = tokio::time::Instant::now() + LIMIT;
    loop {
        let left = run(&node, &["iptables-save"]).await.unwrap();
        if !left.contains("AWS") {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "{left}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // What the pods stand on is as it was, and the ENI's own.
    let touched = touched(&mut watch, &pods).await;
    assert!(touched.is_empty(), "{touched:?}");
    assert_eq!(eni_network(&node).await, before);
    let mut taken: BTreeSet<_> = pods.iter().map(|pod| pod.address).collect();
    for pod in add_pods(&node, "default", "q", 3).await.unwrap() {
        assert!(taken.insert(pod.address), "{} belongs to a running pod", pod.address);
    }
    talk.has_asked(100).await;
    let (asked, lost) = talk.end().await;
    println!("{asked} connections during the takeover, {} lost", lost.len());
    assert!(lost.is_empty(), "{asked} asked, lost: {lost:?}");

    // They end as any, by the result that the runtime has kept of the VPC CNI.
    for pod in &pods {
        node.delete(&pod.sandbox).await.unwrap();
    }
    let fewer = |view: &Value| view["pool"]["assigned"] == 3;
    node.pool_until("the VPC CNI's pods did not give their addresses back", LIMIT, fewer).await.unwrap();
    let rules = run(&node, &["ip", "rule"]).await.unwrap();
    let routes = run(&node, &["ip", "route", "show", "table", "main"]).await.unwrap();
    for address in pods.iter().map(|pod| pod.address.to_string()) {
        let told = rules.split_whitespace().chain(routes.split_whitespace()).any(|word| word == address);
        assert!(!told, "{address}:\n{rules}{routes}");
    }
    assert_eq!(bed.world.dropped().await.unwrap(), []);
}

/// SPECIFICATION P-25.
#[tokio::test(flavor = "multi_thread")]
async fn p25_pods_with_secondary_addresses_that_only_the_vpc_cni_has_made_are_taken_over() {
    if privileged() {
        is_taken_over(&WantIpv4 { count: 2, ..WantIpv4::default() }, &[]).await;
    }
}

/// SPECIFICATION P-25.
#[tokio::test(flavor = "multi_thread")]
async fn p25_pods_with_addresses_of_prefixes_that_only_the_vpc_cni_has_made_are_taken_over() {
    if privileged() {
        let want = WantIpv4 { prefix_count: 1, ..WantIpv4::default() };
        is_taken_over(&want, &[("ENABLE_PREFIX_DELEGATION", "true")]).await;
    }
}
