//! ADD: results of every version, the state that it leaves, and what it does on ground that is not new.

use serde_json::{Value, json};
use sluice_contract::id::{Attachment, ContainerId, IfName, NetworkName};
use sluice_contract::node::veth::{self, End};
use sluice_contract::rpc::{Refusal, RefusalCode};

use crate::ipamd::{Fault, address};
use crate::node::{Cni, HOST_A, HOST_B, Node, POD_A, POD_B, PodName};

fn mac(end: End, container: &str) -> String {
    let attachment = Attachment {
        container: ContainerId::new(container).unwrap(),
        ifname: IfName::new("eth0").unwrap(),
        network: NetworkName::new("sluice").unwrap(),
    };
    veth::mac(end, &attachment).to_string()
}

/// The result for pod B in the shape of a version.
pub(crate) fn golden(version: &str, container: &str, netns: &str) -> Value {
    let mut result = json!({
        "cniVersion": version,
        "interfaces": [
            {"name": HOST_B, "mac": mac(End::Host, container)},
            {"name": "eth0", "mac": mac(End::Pod, container), "sandbox": netns},
        ],
        "ips": [{"interface": 1, "address": "10.0.1.60/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "sluice.dev/attachment": {
            "hostInterface": HOST_B, "eni": "eni-0a1b2c3d4e5f60711", "eniMac": "02:00:00:00:00:01",
            "card": 0, "device": 1, "table": 2,
        },
    });
    match version {
        "0.3.0" | "0.3.1" | "0.4.0" => result["ips"][0]["version"] = "4".into(),
        "1.1.0" => {
            result["interfaces"][0]["mtu"] = 9001.into();
            result["interfaces"][1]["mtu"] = 9001.into();
        }
        _ => {}
    }
    result
}

fn up(link: &Value) -> bool {
    ["UP", "BROADCAST"].iter().all(|flag| link["flags"].as_array().unwrap().contains(&json!(flag)))
}

/// The end state of reference/vpc-cni.md 4.14, as far as it is the plugin's.
#[test]
fn pods_a_and_b_leave_the_golden_state() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.20", 0)]);
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let (a, b) = (node.netns("a"), node.netns("b"));
    node.cni(&Cni::on("ADD", "1.0.0", POD_A, "aaa", &a)).result();
    node.cni(&Cni::on("ADD", "1.0.0", POD_B, "bbb", &b)).result();

    let rules = [
        "512: from all to 10.0.1.20 lookup main",
        "512: from all to 10.0.1.60 lookup main",
        "1536: from 10.0.1.60 to - lookup 2",
    ];
    assert_eq!(node.pod_rules(), rules);
    let routes = node.ip("route show table main");
    assert_eq!(
        routes,
        json!([
            {"dst": "10.0.1.20", "dev": HOST_A, "scope": "link", "flags": []},
            {"dst": "10.0.1.60", "dev": HOST_B, "scope": "link", "flags": []},
        ])
    );
    for (pod, container, ip, host) in [("a", "aaa", "10.0.1.20", HOST_A), ("b", "bbb", "10.0.1.60", HOST_B)] {
        let inside = |args: &str| node.ip(&format!("-n {pod} {args}"));
        assert_eq!(
            inside("route"),
            json!([
                {"dst": "default", "gateway": "169.254.1.1", "dev": "eth0", "flags": []},
                {"dst": "169.254.1.1", "dev": "eth0", "scope": "link", "flags": []},
            ])
        );
        assert_eq!(
            inside("neigh show nud permanent"),
            json!([{"dst": "169.254.1.1", "dev": "eth0", "lladdr": mac(End::Host, container), "state": ["PERMANENT"]}])
        );
        let link = &inside("-4 addr show dev eth0")[0];
        let addresses = link["addr_info"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "{link}");
        assert_eq!((&addresses[0]["local"], &addresses[0]["prefixlen"]), (&json!(ip), &json!(32)));
        assert_eq!(addresses[0]["scope"], "global");
        assert_eq!((&link["mtu"], up(link)), (&json!(9001), true));
        assert_eq!(inside("link show eth0")[0]["address"], json!(mac(End::Pod, container)));
        let host_end = &node.ip(&format!("-d link show {host}"))[0];
        assert_eq!(host_end["address"], json!(mac(End::Host, container)));
        assert_eq!((&host_end["mtu"], up(host_end)), (&json!(9001), true));
        assert_eq!(host_end["ifalias"], json!(format!("sluice {container}/eth0@sluice")));
        let sysctl = |name: &str| node.sh(&format!("cat /proc/sys/net/ipv6/conf/{host}/{name}")).trim().to_owned();
        assert_eq!(sysctl("disable_ipv6"), "1", "the pod has no address of it");
    }
    // The two pods reach each other, by the rules and routes alone.
    node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
    node.assert_reaches(Some("a"), "b", "10.0.1.60");
    node.assert_reaches(Some("b"), "a", "10.0.1.20");
}

#[test]
fn a_pod_of_both_families_is_reachable_in_both() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1), address("2001:db8::60", 1)]);
    let b = node.netns("b");
    // As runtimes make namespaces on hosts without IPv6.
    node.within("b", || {
        for all in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{all}/disable_ipv6"), "1").unwrap();
        }
    });
    let result = node.cni(&Cni::on("ADD", "0.4.0", POD_B, "bbb", &b)).result();
    assert_eq!(
        result["ips"],
        json!([
            {"version": "4", "interface": 1, "address": "10.0.1.60/32", "gateway": "169.254.1.1"},
            {"version": "6", "interface": 1, "address": "2001:db8::60/128", "gateway": "fe80::1"},
        ])
    );
    let routes = node.pod_routes();
    assert_eq!(routes, [format!("10.0.1.60 dev {HOST_B}"), format!("2001:db8::60 dev {HOST_B}")]);
    assert_eq!(node.pod_rules().len(), 4);
    let sysctl = |name: &str| node.sh(&format!("cat /proc/sys/net/ipv6/conf/{HOST_B}/{name}")).trim().to_owned();
    assert_eq!(["accept_ra", "accept_redirects", "forwarding", "accept_dad"].map(sysctl), ["0", "1", "0", "0"]);
    let six = node.ip("-n b -6 addr show dev eth0 scope global");
    let address = &six[0]["addr_info"][0];
    assert_eq!((&address["local"], &address["prefixlen"]), (&json!("2001:db8::60"), &json!(128)));
    assert_eq!(address["nodad"], json!(true), "{six}");
    node.has_addresses();
    node.assert_reaches(None, "b", "10.0.1.60");
    node.assert_reaches(None, "b", "2001:db8::60");
    node.cni(&Cni::on("DEL", "0.4.0", POD_B, "bbb", &b)).nothing();
    node.assert_clean();
}

#[test]
fn the_conflist_and_ipamd_agree_on_the_mtu_and_the_prefix() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let b = node.netns("b");
    let call = Cni::on("ADD", "1.1.0", POD_B, "bbb", &b).with("mtu", &json!("1400")).with("vethPrefix", &json!("pod"));
    let result = node.cni(&call).result();
    assert_eq!(result["interfaces"][0]["name"], "podb5faff8a083");
    assert_eq!(result["interfaces"][1]["mtu"], 1400);
    assert_eq!(node.ip("-n b link show eth0")[0]["mtu"], 1400);
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &b).with("vethPrefix", &json!("pod"))).nothing();
    node.assert_clean();
}

#[test]
fn a_small_mtu_works_without_ipv6() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let b = node.netns("b");
    node.cni(&Cni::on("ADD", "1.1.0", POD_B, "bbb", &b).with("mtu", &json!(1000))).result();
    assert_eq!(node.ip("-n b link show eth0")[0]["mtu"], 1000);
}

#[test]
fn a_second_add_changes_nothing() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.1.0", POD_B, "bbb", &b);
    let state = || {
        let inside = ["addr", "route", "neigh show nud permanent"].map(|args| node.ip(&format!("-n b {args}")));
        (inside, node.ip("link"), node.pod_rules(), node.pod_routes())
    };
    let first = node.cni(&add).result();
    let before = state();
    let events = node.monitored(|| assert_eq!(node.cni(&add).result(), first));
    assert_eq!(events, [""; 0], "a running pod's routes and rules were touched");
    assert_eq!(state(), before);
    // What was broken is mended, and the rest left alone.
    node.sh(&format!("ip rule del prio 1536; ip route del 10.0.1.60/32 dev {HOST_B}; ip -n b route del default"));
    node.sh(&format!("ip link set {HOST_B} alias ''"));
    let events = node.monitored(|| assert_eq!(node.cni(&add).result(), first));
    assert_eq!(events, ["1536:\tfrom 10.0.1.60 lookup 2".to_owned(), format!("10.0.1.60 dev {HOST_B} scope link")]);
    assert_eq!(state(), before);
    assert_eq!(ipamd.assigned(), ["10.0.1.60"]);
}

#[test]
fn a_second_add_that_gets_another_address_leaves_nothing_of_the_first() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    node.cni(&add).result();
    ipamd.forget();
    ipamd.give(vec![address("10.0.2.61", 2)]);
    assert_eq!(node.cni(&add).result()["ips"][0]["address"], "10.0.2.61/32");
    assert_eq!(node.pod_routes(), [format!("10.0.2.61 dev {HOST_B}")]);
    let rules = ["512: from all to 10.0.2.61 lookup main", "1536: from 10.0.2.61 to - lookup 3"];
    assert_eq!(node.pod_rules(), rules);
    let inside = node.ip("-n b -4 addr show dev eth0");
    let addresses = inside[0]["addr_info"].as_array().unwrap();
    assert_eq!((addresses.len(), &addresses[0]["local"]), (1, &json!("10.0.2.61")));
    node.assert_reaches(Some("b"), "b", "10.0.2.61");
    assert_eq!(node.ip("-n b route").as_array().unwrap().len(), 2);
}

#[test]
fn a_new_sandbox_of_the_same_pod_takes_the_place_of_the_old_one_and_the_late_del_spares_it() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    ipamd.give(vec![address("10.0.1.61", 1)]);
    let (old, new) = (node.netns("old"), node.netns("new"));
    let first = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "old", &old)).result();
    node.cni(&Cni::on("ADD", "1.0.0", POD_B, "new", &new)).result();
    assert_eq!(node.pod_routes(), [format!("10.0.1.61 dev {HOST_B}")]);
    for del in [
        Cni::on("DEL", "1.0.0", POD_B, "old", &old).with("prevResult", &first),
        Cni::on("DEL", "1.0.0", POD_B, "old", &old).env("CNI_NETNS", ""),
    ] {
        node.cni(&del).nothing();
        assert_eq!(node.pod_routes(), [format!("10.0.1.61 dev {HOST_B}")]);
        let rules = ["512: from all to 10.0.1.61 lookup main", "1536: from 10.0.1.61 to - lookup 2"];
        assert_eq!(node.pod_rules(), rules);
    }
    assert_eq!(ipamd.assigned(), ["10.0.1.61"]);
}

#[test]
fn a_veth_of_the_vpc_cni_is_replaced_and_a_foreign_interface_is_not() {
    let node = Node::new();
    let ipamd = node.ipamd();
    for ip in ["10.0.1.60", "10.0.1.61", "10.0.1.62"] {
        ipamd.give(vec![address(ip, 1)]);
    }
    let (old, new) = (node.netns("old"), node.netns("new"));
    node.sh(&format!("ip link add {HOST_B} type veth peer name eth0 netns old"));
    node.cni(&Cni::on("ADD", "1.0.0", POD_B, "new", &new)).result();
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "new", &new)).nothing();

    node.sh(&format!("ip link add {HOST_B} type bridge"));
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "new", &new)).error();
    assert_eq!(code, 102, "{text}");
    assert!(text.contains(&format!("the host has an interface {HOST_B} already")), "{text}");
    assert!(node.has_link(HOST_B));
    node.sh(&format!("ip link del {HOST_B}; ip -n new link add eth0 type bridge"));
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "new", &new)).error();
    assert_eq!(code, 102, "{text}");
    assert!(text.contains("the sandbox has an interface eth0 already"), "{text}");
    node.assert_clean();
    assert_eq!(ipamd.assigned(), [""; 0]);
    assert_eq!(ipamd.log().last().unwrap(), "del new add_failed");
    drop(old);
}

/// The kernel refuses the last step; all before it is taken back, the address too.
#[test]
fn a_failed_add_is_undone() {
    let node = Node::new();
    let ipamd = node.ipamd();
    // The kernel has no route to an IPv6 address by a link without IPv6.
    node.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    ipamd.give(vec![address("10.0.1.60", 1), address("2001:db8::60", 1)]);
    let b = node.netns("b");
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "bbb", &b)).error();
    assert_eq!(code, 100, "{text}");
    assert!(
        text.starts_with("cannot set up bbb/eth0@sluice: cannot set up the host's side: cannot do: route"),
        "{text}"
    );
    node.assert_clean();
    assert_eq!(node.ip("-n b link").as_array().unwrap().len(), 1);
    assert_eq!(ipamd.log(), [format!("add bbb on {HOST_B}"), "del bbb add_failed".to_owned()]);
}

/// A second ADD that fails must not give away the address of the pod that runs.
#[test]
fn a_second_add_that_fails_leaves_the_pod_its_address() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1), address("2001:db8::60", 1)]);
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    node.cni(&add).result();
    let (code, text) = node.cni(&add.clone().with("mtu", &json!(1000))).error();
    assert_eq!(code, 119);
    assert!(text.starts_with("MTU 1000 is too small for the pod's IPv6 address 2001:db8::60"), "{text}");
    // On a link that is too small for it the kernel has no IPv6, and so no route.
    node.sh(&format!("ip link set {HOST_B} mtu 1000"));
    let (code, text) = node.cni(&add).error();
    assert_eq!(code, 100, "{text}");
    assert_eq!(ipamd.assigned(), ["10.0.1.60", "2001:db8::60"]);
    assert_eq!(node.pod_routes(), [format!("10.0.1.60 dev {HOST_B}")]);
    node.assert_reaches(Some("b"), "b", "10.0.1.60");
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
    node.assert_clean();
}

/// As where pods have a way out by IPv6 from some day on.
#[test]
fn a_second_add_gives_an_address_of_ipv6_to_a_pod_that_had_none() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    node.cni(&add).result();
    ipamd.forget();
    ipamd.give(vec![address("10.0.1.60", 1), address("2001:db8::60", 1)]);
    node.cni(&add).result();
    node.has_addresses();
    node.assert_reaches(None, "b", "2001:db8::60");
    node.cni(&Cni::on("DEL", "1.0.0", POD_B, "bbb", &b)).nothing();
    node.assert_clean();
}

#[test]
fn an_answer_that_cannot_be_used_is_named() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![]);
    let b = node.netns("b");
    let (code, text) = node.cni(&Cni::on("ADD", "1.0.0", POD_B, "bbb", &b)).error();
    assert_eq!((code, text.as_str()), (119, "ipamd gave bbb/eth0@sluice no address"));
    node.assert_clean();
}

#[test]
fn refusals_keep_their_cause() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    assert_eq!(node.cni(&add).error(), (11, "no address was free within 1 s".to_owned()));
    for (code, number) in [
        (RefusalCode::SubnetExhausted, 110),
        (RefusalCode::EniLimit, 111),
        (RefusalCode::IamDenied, 112),
        (RefusalCode::Throttled, 11),
    ] {
        ipamd.fault(Fault::Refuse(Refusal::new(code, "subnet-1 is full").hint("add a subnet")));
        assert_eq!(node.cni(&add).error(), (number, "subnet-1 is full; add a subnet".to_owned()));
    }
    node.assert_clean();
}

#[test]
fn an_ipamd_that_loses_the_connection_is_asked_again() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    ipamd.fault(Fault::CloseAfterEffect);
    let b = node.netns("b");
    node.cni(&Cni::on("ADD", "1.0.0", POD_B, "bbb", &b)).result();
    assert_eq!(ipamd.assigned(), ["10.0.1.60"]);
}

#[test]
fn an_ipamd_that_does_not_answer_or_answers_garbage_is_named() {
    let node = Node::new();
    let ipamd = node.ipamd();
    let b = node.netns("b");
    let add = Cni::on("ADD", "1.0.0", POD_B, "bbb", &b);
    ipamd.fault(Fault::Garbage);
    let (code, text) = node.cni(&add).error();
    assert_eq!(code, 11);
    assert!(
        text.contains("/run/sluice/ipamd.sock gave no answer: a frame of 4294967295 bytes is over the limit"),
        "{text}"
    );
    ipamd.fault(Fault::Hang);
    let (code, text) = node.cni(&add).error();
    assert_eq!(code, 11);
    assert!(text.contains("ipamd on /run/sluice/ipamd.sock gave no answer within "), "{text}");
    drop(ipamd);
    let (code, text) = node.cni(&add).error();
    assert_eq!(code, 11);
    assert!(text.contains("ipamd does not listen on /run/sluice/ipamd.sock"), "{text}");
    node.assert_clean();
}

#[test]
fn attachments_without_a_pod_have_names_of_their_own() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    ipamd.give(vec![address("10.0.1.61", 1)]);
    let (a, b) = (node.netns("a"), node.netns("b"));
    let none = PodName { namespace: "", name: "" };
    for (container, netns) in [("aaa", &a), ("bbb", &b)] {
        node.cni(&Cni::on("ADD", "1.0.0", none, container, netns).env("CNI_ARGS", "")).result();
    }
    assert_eq!(node.pod_routes().len(), 2);
    for (container, netns) in [("aaa", &a), ("bbb", &b)] {
        node.cni(&Cni::on("DEL", "1.0.0", none, container, netns).env("CNI_ARGS", "")).nothing();
    }
    node.assert_clean();
}
