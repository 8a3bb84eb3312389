use super::*;
use sluice_contract::cni::SpecVersion;
use sluice_contract::id::{ContainerId, EniId, NetworkName, PodRef, VlanId};
use sluice_contract::node::route_table;
use sluice_contract::rpc::Branch;
use sluice_hostnet::plan::plan;
use sluice_hostnet::state::{Link, LinkKind, Observed};

fn address(ip: &str, table: u32) -> PodAddress {
    PodAddress {
        ip: ip.parse().unwrap(),
        interface: 0,
        eni: EniId::new("eni-0a1b2c3d4e5f60718").unwrap(),
        eni_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        card: 0,
        device: 1,
        table,
        branch: None,
    }
}

fn layout_of(addresses: Vec<PodAddress>, mtu: Option<u32>) -> Result<Layout, LayoutError> {
    layout_with(AddReply { addresses, mtu: 9001, egress: None, disable_ipv6: false }, mtu)
}

fn layout_with(reply: AddReply, mtu: Option<u32>) -> Result<Layout, LayoutError> {
    let mut layouts = layouts_of(reply, mtu)?;
    assert_eq!(layouts.len(), 1);
    Ok(layouts.remove(0))
}

fn named(ifname: &str) -> Attachment {
    Attachment {
        container: ContainerId::new("abc").unwrap(),
        ifname: IfName::new(ifname).unwrap(),
        network: NetworkName::new("sluice").unwrap(),
    }
}

fn layouts_of(reply: AddReply, mtu: Option<u32>) -> Result<Vec<Layout>, LayoutError> {
    let pod = PodRef { namespace: "kube-system".into(), name: "coredns-57ff979f67-qqbdh".into(), uid: None };
    let further = |of: &Attachment| veth::host_name("eni", &pod, of);
    layouts(&named("eth0"), &IfName::new("enib5faff8a083").unwrap(), further, mtu, reply)
}

fn told(layouts: &[Layout], version: SpecVersion) -> Value {
    result(layouts, Path::new("/run/netns/x")).to_value(version)
}

fn ops(layout: &Layout, name: &IfName, desired: &[Desired]) -> Vec<String> {
    let link = Link {
        index: 7,
        name: name.clone(),
        mac: None,
        mtu: layout.mtu,
        up: false,
        kind: LinkKind::Veth,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    };
    let observed = Observed { links: vec![link], ..Observed::default() };
    desired.iter().flat_map(|desired| plan(&observed, desired)).map(|planned| planned.op.to_string()).collect()
}

#[test]
fn a_pod_on_a_secondary_eni_is_laid_out_as_by_the_vpc_cni() {
    let layout = layout_of(vec![address("10.0.1.60", 2)], None).unwrap();
    let mac = layout.host_mac;
    assert_eq!(
        ops(&layout, &layout.attachment.ifname, &[layout.pod()]),
        [
            "link set eth0 up".to_owned(),
            "address add 10.0.1.60/32 dev eth0".to_owned(),
            format!("neighbour replace 169.254.1.1 dev eth0 lladdr {mac}"),
            "route replace 169.254.1.1/32 dev eth0 table 254".to_owned(),
            "route replace default via 169.254.1.1 dev eth0 table 254".to_owned(),
        ]
    );
    assert_eq!(
        ops(&layout, &layout.host, &[layout.host(), layout.host_routes()]),
        [
            "sysctl net/ipv6/conf/enib5faff8a083/disable_ipv6 = 1",
            "link set enib5faff8a083 up",
            "rule add 512: from all to 10.0.1.60/32 lookup 254",
            "rule add 1536: from 10.0.1.60/32 lookup 2",
            "route replace 10.0.1.60/32 dev enib5faff8a083 table 254",
        ]
    );
}

#[test]
fn an_address_of_the_primary_eni_needs_no_rule_of_its_own() {
    let layout = layout_of(vec![address("10.0.1.20", TABLE_MAIN)], None).unwrap();
    assert_eq!(layout.host().rules.len(), 1);
}

#[test]
fn both_families_are_laid_out_and_the_result_says_so() {
    let layout = layout_of(vec![address("10.0.1.60", 2), address("2001:db8::5", 2)], Some(1500)).unwrap();
    assert!(layout.has_v6());
    assert_eq!(layout.host().rules.len(), 4);
    let sysctls: Vec<String> =
        ops(&layout, &layout.host, &[layout.host()]).into_iter().filter(|op| op.starts_with("sysctl")).collect();
    assert_eq!(
        sysctls,
        [
            "sysctl net/ipv6/conf/enib5faff8a083/accept_ra = 0",
            "sysctl net/ipv6/conf/enib5faff8a083/accept_redirects = 1",
            "sysctl net/ipv6/conf/enib5faff8a083/forwarding = 0",
            "sysctl net/ipv6/conf/enib5faff8a083/accept_dad = 0",
        ]
    );
    assert_eq!(layout.pod().sysctls.len(), 2);
    let result = told(&[layout], SpecVersion::V0_4_0);
    assert_eq!(result["ips"][0]["version"], "4");
    assert_eq!(result["ips"][1]["version"], "6");
    assert_eq!(result["ips"][1]["gateway"], "fe80::1");
    assert_eq!(result["routes"][1]["dst"], "::/0");
}

#[test]
fn an_address_for_egress_alone_is_the_pods_and_nobody_is_told() {
    let egress = Some("169.254.176.7".parse().unwrap());
    let reply =
        AddReply { addresses: vec![address("2001:db8::7", TABLE_MAIN)], mtu: 9001, egress, disable_ipv6: false };
    let layout = layout_with(reply, None).unwrap();
    let mac = layout.host_mac;
    let pod = ops(&layout, &layout.attachment.ifname, &[layout.pod()]);
    for op in [
        "address add 169.254.176.7/32 dev eth0",
        &format!("neighbour replace 169.254.1.1 dev eth0 lladdr {mac}"),
        "route replace default via 169.254.1.1 dev eth0 table 254",
        "route replace default via fe80::1 dev eth0 table 254",
    ] {
        assert!(pod.iter().any(|made| made == op), "{op}: {pod:#?}");
    }
    let host = ops(&layout, &layout.host, &[layout.host(), layout.host_routes()]);
    assert!(host.iter().any(|op| op == "route replace 169.254.176.7/32 dev enib5faff8a083 table 254"), "{host:#?}");
    assert_eq!(layout.host().rules.len(), 1, "the main table has all of it");
    let result = told(&[layout], SpecVersion::V1_0_0);
    assert_eq!((result["ips"].as_array().unwrap().len(), result["routes"].as_array().unwrap().len()), (1, 1));
    // The other way round IPv6 wants its MTU.
    let egress = Some("fd00::ac:a00:13c".parse().unwrap());
    let reply = AddReply { addresses: vec![address("10.0.1.60", 2)], mtu: 9001, egress, disable_ipv6: false };
    assert!(layout_with(reply.clone(), None).unwrap().has_v6());
    assert!(matches!(layout_with(reply, Some(1000)), Err(LayoutError::Mtu { mtu: 1000, .. })));
}

#[test]
fn ipv6_is_switched_off_in_a_pod_that_has_no_address_of_it() {
    let off =
        |addresses| layout_with(AddReply { addresses, mtu: 9001, egress: None, disable_ipv6: true }, None).unwrap();
    let sysctls: Vec<String> =
        off(vec![address("10.0.1.60", 2)]).pod().sysctls.iter().map(|sysctl| format!("{sysctl:?}")).collect();
    assert_eq!(sysctls.len(), 3, "{sysctls:?}");
    for (sysctl, name) in sysctls.iter().zip(["all", "default", "lo"]) {
        assert!(sysctl.contains(&format!("net/ipv6/conf/{name}/disable_ipv6")) && sysctl.contains('1'), "{sysctl}");
    }
    let both = off(vec![address("10.0.1.60", 2), address("2001:db8::5", 2)]);
    assert!(!both.disable_ipv6, "it would have no use of its address");
}

#[test]
fn a_small_link_has_no_settings_of_ipv6() {
    let layout = layout_of(vec![address("10.0.1.60", 2)], Some(1000)).unwrap();
    assert_eq!(layout.host().sysctls, []);
}

#[test]
fn an_answer_that_cannot_be_made_real_is_refused() {
    for (addresses, mtu, message) in [
        (vec![], None, "ipamd gave abc/eth0@sluice no address"),
        (vec![address("10.0.1.60", 2); 65], None, "ipamd gave abc/eth0@sluice 65 addresses; at most 64 are set up"),
        (vec![on(1, "10.0.1.61")], None, "ipamd gave abc/eth0@sluice no address"),
        (vec![on(0, "10.0.1.60"), on(2, "10.0.1.62")], None, "ipamd gave abc/mNicIf1@sluice no address"),
        (
            (0..=64).map(|interface| on(interface, "10.0.1.60")).collect(),
            None,
            "ipamd gave abc/eth0@sluice 10.0.1.60 for interface 64 of the pod, which it cannot have",
        ),
        (
            vec![of_branch("10.0.2.30", branch::Mode::Standard), on(1, "10.0.1.61")],
            None,
            "ipamd gave abc/eth0@sluice a branch ENI beside interfaces on further network cards",
        ),
        (
            vec![address("2001:db8::5", 2)],
            Some(1000),
            "MTU 1000 is too small for the pod's IPv6 address 2001:db8::5: it must be at least 1280",
        ),
    ] {
        let reply = AddReply { addresses, mtu: 9001, egress: None, disable_ipv6: false };
        assert_eq!(layouts_of(reply, mtu).unwrap_err().to_string(), message);
    }
    // What is no Kubernetes pod's own attachment has no further interface.
    let reply = AddReply {
        addresses: vec![on(0, "10.0.1.60"), on(1, "10.0.1.61")],
        mtu: 9001,
        egress: None,
        disable_ipv6: false,
    };
    let unasked = |_: &Attachment| IfName::new("never");
    let error = layouts(&named("net1"), &IfName::new("enib5faff8a083").unwrap(), unasked, None, reply).unwrap_err();
    assert!(matches!(error, LayoutError::NoSuchInterface { interface: 1, .. }), "{error}");
}

/// An address of a pod's interface, by the first ENI of its network card.
fn on(interface: u8, ip: &str) -> PodAddress {
    let card = u32::from(interface);
    let table = if card == 0 { 2 } else { route_table(card, 0).unwrap() };
    PodAddress { interface, card, device: u32::from(card == 0), ..address(ip, table) }
}

#[test]
fn a_further_interface_is_answered_by_its_own_table() {
    let reply = AddReply {
        addresses: vec![on(1, "10.0.1.61"), on(0, "10.0.1.60")],
        mtu: 9001,
        egress: Some("fd00::ac:a00:13c".parse().unwrap()),
        disable_ipv6: false,
    };
    let [first, second]: [Layout; 2] = layouts_of(reply, None).unwrap().try_into().unwrap();
    // The first is laid out as the only one would be.
    let egress = first.egress;
    let only = AddReply { addresses: vec![on(0, "10.0.1.60")], mtu: 9001, egress, disable_ipv6: false };
    assert_eq!(first, layout_with(only, None).unwrap());
    assert_eq!((first.pod_rules(), second.egress), (vec![], None));

    assert_eq!((&second.attachment, second.host.as_str()), (&named("mNicIf1"), "eniceb4ba3e890"));
    let mac = second.host_mac;
    assert_ne!(mac, first.host_mac);
    assert_eq!(
        ops(&second, &second.attachment.ifname, &[second.pod()]),
        [
            "link set mNicIf1 up".to_owned(),
            "address add 10.0.1.61/32 dev mNicIf1".to_owned(),
            format!("neighbour replace 169.254.1.2 dev mNicIf1 lladdr {mac}"),
            "route replace 169.254.1.2/32 dev mNicIf1 table 1".to_owned(),
            "route replace default via 169.254.1.2 dev mNicIf1 table 1".to_owned(),
            "rule add 1: from 10.0.1.61/32 lookup 1".to_owned(),
        ]
    );
    assert_eq!(
        ops(&second, &second.host, &[second.host(), second.host_routes()])[1..],
        [
            "link set eniceb4ba3e890 up",
            "rule add 512: from all to 10.0.1.61/32 lookup 254",
            "rule add 1536: from 10.0.1.61/32 lookup 10100",
            "route replace 10.0.1.61/32 dev eniceb4ba3e890 table 254",
        ]
    );
}

#[test]
fn each_interface_of_both_families_has_its_gateways_and_the_result_tells_all() {
    let addresses = vec![
        on(0, "10.0.1.60"),
        on(0, "2001:db8::60"),
        on(1, "10.0.1.61"),
        on(1, "2001:db8::61"),
        on(2, "10.0.1.62"),
        on(2, "2001:db8::62"),
    ];
    let layouts = layouts_of(AddReply { addresses, mtu: 9001, egress: None, disable_ipv6: false }, None).unwrap();
    let third = &layouts[2];
    let mac = third.host_mac;
    assert_eq!(
        ops(third, &third.attachment.ifname, &[third.pod()]),
        [
            "sysctl net/ipv6/conf/lo/disable_ipv6 = 0".to_owned(),
            "sysctl net/ipv6/conf/mNicIf2/disable_ipv6 = 0".to_owned(),
            "link set mNicIf2 up".to_owned(),
            "address add 10.0.1.62/32 dev mNicIf2".to_owned(),
            "address add 2001:db8::62/128 dev mNicIf2".to_owned(),
            format!("neighbour replace 169.254.1.3 dev mNicIf2 lladdr {mac}"),
            format!("neighbour replace fe80::3 dev mNicIf2 lladdr {mac}"),
            "route replace 169.254.1.3/32 dev mNicIf2 table 2".to_owned(),
            "route replace fe80::3/128 dev mNicIf2 table 2".to_owned(),
            "route replace default via 169.254.1.3 dev mNicIf2 table 2".to_owned(),
            "route replace default via fe80::3 dev mNicIf2 table 2".to_owned(),
            "rule add 1: from 10.0.1.62/32 lookup 2".to_owned(),
            "rule add 1: from 2001:db8::62/128 lookup 2".to_owned(),
        ]
    );
    let result = told(&layouts, SpecVersion::V1_0_0);
    let names: Vec<_> =
        result["interfaces"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let expected = ["enib5faff8a083", "eth0", "eniceb4ba3e890", "mNicIf1", "eni8574824b815", "mNicIf2"];
    assert_eq!(names, expected);
    let ips: Vec<_> = result["ips"].as_array().unwrap().iter().map(|ip| (&ip["interface"], &ip["gateway"])).collect();
    let gateways =
        [(1, "169.254.1.1"), (1, "fe80::1"), (3, "169.254.1.2"), (3, "fe80::2"), (5, "169.254.1.3"), (5, "fe80::3")];
    assert_eq!(ips.len(), gateways.len());
    for ((interface, gateway), expected) in ips.into_iter().zip(gateways) {
        assert_eq!((interface.as_u64().unwrap(), gateway.as_str().unwrap()), expected);
    }
    assert_eq!(result["routes"].as_array().unwrap().len(), 2, "{}", result["routes"]);
    assert_eq!(result["routes"][0]["gw"], "169.254.1.1");
    assert_eq!(result["routes"][1]["gw"], "fe80::1");
    assert_eq!(result["sluice.dev/attachment"]["hostInterface"], "enib5faff8a083");
    let further = result["sluice.dev/further-attachments"].as_array().unwrap();
    let cards: Vec<_> = further.iter().map(|one| (one["hostInterface"].as_str(), one["card"].as_u64())).collect();
    assert_eq!(cards, [(Some("eniceb4ba3e890"), Some(1)), (Some("eni8574824b815"), Some(2))]);
    // One interface says nothing of others.
    let plain = told(&[layout_of(vec![address("10.0.1.60", 2)], None).unwrap()], SpecVersion::V1_0_0);
    assert_eq!(plain.get("sluice.dev/further-attachments"), None);
}

fn of_branch(ip: &str, mode: branch::Mode) -> PodAddress {
    let vlan = VlanId::new(7).unwrap();
    let gateway = branch::router(ip.parse().unwrap(), "10.0.2.0/24".parse().unwrap());
    PodAddress {
        branch: Some(Branch { vlan, trunk_mac: MacAddr([2, 0, 0, 0, 0, 10]), gateway, mode }),
        ..address(ip, branch::table(vlan))
    }
}

#[test]
fn a_strict_pod_is_routed_in_its_vlans_table_alone() {
    let layout = layout_of(vec![of_branch("10.0.2.30", branch::Mode::Strict)], None).unwrap();
    assert_eq!(layout.host.as_str(), "vlanb5faff8a083");
    let link = layout.branch.as_ref().unwrap().link.clone();
    let uplink = ops(&layout, &link, &[layout.uplink().unwrap()]);
    assert_eq!(
        uplink[5..],
        [
            "link set vlan.eth.7 up",
            "route replace 10.0.2.1/32 dev vlan.eth.7 table 107",
            "route replace default via 10.0.2.1 dev vlan.eth.7 table 107",
            "rule add 10: from all iif vlan.eth.7 lookup 107",
            "rule add 10: from all iif vlanb5faff8a083 lookup 107",
        ]
    );
    let host = ops(&layout, &layout.host, &[layout.host(), layout.host_routes()]);
    assert_eq!(
        host[1..],
        [
            "sysctl net/ipv4/conf/vlanb5faff8a083/rp_filter = 2",
            "link set vlanb5faff8a083 up",
            "rule add 10: from all iif vlan.eth.7 lookup 107",
            "rule add 10: from all iif vlanb5faff8a083 lookup 107",
            "route replace 10.0.2.30/32 dev vlanb5faff8a083 table 107",
        ]
    );
    // The pod sees nothing of it.
    let plain = layout_of(vec![address("10.0.2.30", 2)], None).unwrap();
    assert_eq!(layout.pod(), plain.pod());
    let result = told(&[layout], SpecVersion::V1_0_0);
    assert_eq!(result["interfaces"][0]["name"], "vlanb5faff8a083");
    let attachment = &result["sluice.dev/attachment"];
    assert_eq!((attachment["vlan"].as_u64(), attachment["table"].as_u64()), (Some(7), Some(107)));
}

#[test]
fn a_standard_pod_is_routed_as_others_are_and_leaves_by_its_branch() {
    let addresses =
        vec![of_branch("10.0.2.30", branch::Mode::Standard), of_branch("2001:db8::30", branch::Mode::Standard)];
    let layout = layout_of(addresses, None).unwrap();
    assert_eq!(layout.host.as_str(), "enib5faff8a083");
    let host = ops(&layout, &layout.host, &[layout.host(), layout.host_routes()]);
    assert_eq!(
        host[4..],
        [
            "link set enib5faff8a083 up",
            "rule add 512: from all to 10.0.2.30/32 lookup 254",
            "rule add 1536: from 10.0.2.30/32 lookup 107",
            "rule add 512: from all to 2001:db8::30/128 lookup 254",
            "rule add 1536: from 2001:db8::30/128 lookup 107",
            "route replace 10.0.2.30/32 dev enib5faff8a083 table 254",
            "route replace 2001:db8::30/128 dev enib5faff8a083 table 254",
        ]
    );
    assert_eq!(layout.uplink().unwrap().routes.len(), 3);
    let mut mixed = layout.addresses;
    mixed[1].branch = None;
    let error = layout_of(mixed, None).unwrap_err();
    assert!(matches!(error, LayoutError::Branch { .. }), "{error}");
}
