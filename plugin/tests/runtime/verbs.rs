//! Every verb in every version.

use serde_json::{Value, json};

use crate::add::golden;
use crate::ipamd::address;
use crate::node::{Cni, HOST_B, Node, POD_B};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

#[test]
fn a_pod_lives_and_dies_in_every_version() {
    let node = Node::new();
    let ipamd = node.ipamd();
    for version in VERSIONS {
        ipamd.give(vec![address("10.0.1.60", 1)]);
        let container = format!("c-{version}");
        let netns = node.netns(&container);
        let call = |verb| Cni::on(verb, version, POD_B, &container, &netns);
        let result = node.cni(&call("ADD")).result();
        assert_eq!(result, golden(version, &container, netns.to_str().unwrap()));
        let check = node.cni(&call("CHECK").with("prevResult", &result));
        match version {
            "0.3.0" | "0.3.1" => {
                let text = format!("CHECK exists since CNI 0.4.0; the configuration says {version}");
                assert_eq!(check.error(), (1, text));
            }
            _ => check.nothing(),
        }
        node.cni(&call("DEL").with("prevResult", &result)).nothing();
        node.assert_clean();
    }
    assert_eq!(ipamd.assigned(), [""; 0]);
}

#[test]
fn status_fails_only_until_ipamd_has_been_ready_once() {
    let node = Node::new();
    let status = |version| node.cni(&Cni::new("STATUS", version));
    let text = "ipamd has not been ready since this node booted: there is no /run/sluice/ready".to_owned();
    assert_eq!(status("1.1.0").error(), (50, text));
    node.sh("touch /run/sluice/ready");
    // ipamd is down all the while.
    status("1.1.0").nothing();
    for version in VERSIONS.iter().filter(|version| **version != "1.1.0") {
        assert_eq!(status(version).error().0, 1);
        assert_eq!(node.cni(&Cni::new("GC", version)).error().0, 1);
    }
}

#[test]
fn version_needs_nothing() {
    let node = Node::new();
    for version in VERSIONS {
        // As podman asks.
        let call = Cni::new("VERSION", version).env("CNI_NETNS", "dummy").env("CNI_IFNAME", "dummy");
        let reply = node.cni(&call).result();
        assert_eq!(reply, json!({"cniVersion": version, "supportedVersions": VERSIONS}));
    }
    let reply = node.cni(&Cni::new("VERSION", "1.0.0").stdin("")).result();
    assert_eq!(reply["cniVersion"], "1.1.0");
}

#[test]
fn check_names_every_difference() {
    let node = Node::new();
    let ipamd = node.ipamd();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    let netns = node.netns("b");
    let add = Cni::on("ADD", "1.1.0", POD_B, "bbb", &netns);
    let result = node.cni(&add).result();
    let check = |result: &Value| node.cni(&Cni::on("CHECK", "1.1.0", POD_B, "bbb", &netns).with("prevResult", result));
    check(&result).nothing();
    for (breakage, complaint) in [
        ("ip rule del prio 512", "on the host: rule add 512: from all to 10.0.1.60/32 lookup 254 (missing)".to_owned()),
        ("ip rule del prio 1536", "on the host: rule add 1536: from 10.0.1.60/32 lookup 2 (missing)".to_owned()),
        ("ip route del 10.0.1.60", format!("on the host: route replace 10.0.1.60/32 dev {HOST_B} table 254 (missing)")),
        ("ip link set enib5faff8a083 down", format!("on the host: link set {HOST_B} up (is down)")),
        ("ip -n b addr flush dev eth0", "in the sandbox: address add 10.0.1.60/32 dev eth0 (missing)".to_owned()),
        ("ip -n b route del default", "default via 169.254.1.1 dev eth0 table 254 (missing)".to_owned()),
        ("ip -n b neigh del 169.254.1.1 dev eth0", "in the sandbox: neighbour replace 169.254.1.1".to_owned()),
        ("ip -n b link set eth0 mtu 1400", "in the sandbox: link set eth0 mtu 9001 (MTU is 1400)".to_owned()),
        ("ip -n b link set eth0 address 02:00:00:00:00:77", "eth0 has MAC address 02:00:00:00:00:77".to_owned()),
    ] {
        node.sh(breakage);
        let (code, text) = check(&result).error();
        assert_eq!(code, 101, "{breakage}");
        assert!(
            text.starts_with("bbb/eth0@sluice is not as ADD left it: ") && text.contains(&complaint),
            "{breakage}: {text}"
        );
        // Whatever was broken, a new attachment is whole again.
        node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
        ipamd.give(vec![address("10.0.1.60", 1)]);
        assert_eq!(node.cni(&add).result(), result);
        check(&result).nothing();
    }
    // A later plugin may change what is its own to change; it says so in the result.
    node.sh("ip -n b link set eth0 mtu 1400");
    let mut tuned = result.clone();
    tuned["interfaces"][1]["mtu"] = 1400.into();
    check(&tuned).nothing();
    // Another MAC address costs the pod its neighbours; ADD mends that and keeps the address.
    node.sh("ip -n b link set eth0 address 02:00:00:00:00:77");
    tuned["interfaces"][1]["mac"] = "02:00:00:00:00:77".into();
    assert_eq!(check(&tuned).error().0, 101);
    node.cni(&add).result();
    tuned["interfaces"][1]["mtu"] = 9001.into();
    check(&tuned).nothing();
    node.cni(&Cni::on("DEL", "1.1.0", POD_B, "bbb", &netns)).nothing();
    ipamd.give(vec![address("10.0.1.60", 1)]);
    node.cni(&add).result();
    let mut other = result.clone();
    other["ips"][0]["address"] = "10.0.1.99/32".into();
    let (code, text) = check(&other).error();
    assert_eq!(code, 101);
    assert!(text.contains("prevResult has 10.0.1.99, which ipamd does not hold for it"), "{text}");
    ipamd.forget();
    assert_eq!(check(&result).error().0, 3);
    drop(ipamd);
    assert_eq!(check(&result).error().0, 11);
}
