use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sluice_contract::id::IfName;
use sluice_contract::node::{RULE_FROM_POD, RULE_TO_POD, TABLE_MAIN};
use sluice_hostnet::state::{Family, Link, LinkKind, Mark, Observed, Route, Rule, Sysctl, SysctlKey, host_prefix};

use super::facts::max_pods;
use super::*;
use crate::daemons::Node;

const POD: &str = "10.0.0.5";

fn link(index: u32, name: &str, mtu: u32) -> Link {
    Link {
        index,
        name: IfName::new(name).unwrap(),
        mac: None,
        mtu,
        up: true,
        kind: LinkKind::Veth,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    }
}

/// A node on which all is well: one pod, on a secondary ENI.
fn well() -> Facts {
    let address = POD.parse().unwrap();
    let (eth0, veth) = (IfName::new("eth0").unwrap(), IfName::new("eni1").unwrap());
    let prefix = host_prefix(address);
    let gateway = "10.0.0.1".parse().unwrap();
    let everything = "0.0.0.0/0".parse().unwrap();
    let host = Observed {
        links: vec![link(2, "eth0", 9001), link(3, "eni1", 9001)],
        routes: vec![
            Route::via(TABLE_MAIN, everything, gateway, eth0.clone()),
            Route::via(3, everything, gateway, eth0),
            Route::on_link(TABLE_MAIN, prefix, veth),
        ],
        rules: vec![Rule::to(RULE_TO_POD, prefix, TABLE_MAIN), Rule::from(RULE_FROM_POD, prefix, 3)],
        sysctls: vec![
            Sysctl { key: SysctlKey::new("net/ipv4/ip_forward").unwrap(), value: "1".into() },
            Sysctl { key: SysctlKey::new("net/ipv4/conf/all/rp_filter").unwrap(), value: "0".into() },
        ],
        ..Observed::default()
    };
    let assigned = json!({"state": "assigned", "host_ifname": "eni1", "pod": {"namespace": "shop", "name": "web"}});
    let ipamd = json!({
        "ready": true, "held_up": null, "obstacles": {}, "strays": [],
        "pool": {"total": 9, "free": 8, "assigned": 1, "max_addresses": 27, "free_by_subnet": {"subnet-1": 200}},
        "node": {"limited_by_setting": false, "prefixes_would_help": true, "max_pods": null},
        "enis": {"eni-1": {"table": 3, "blocks": {"10.0.0.5/32": {POD: assigned}}}},
    });
    let policyd = json!({
        "serving": true, "synced": true, "stale": null, "revision": 3,
        "endpoints": [{"namespace": "shop", "name": "web", "interface": "eni1", "revision": 1, "locked": false}],
        "without_gate": [], "faults": {}, "policies": [{}], "drops": {}, "proxy": {"connected": 1, "decisions": 2},
    });
    let conflist = json!({"name": "sluice", "plugins": [{"type": "sluice-eni"}, {"type": "sluice-policy"}]});
    Facts {
        node: Node { ipamd: Ok(ipamd), policyd: Ok(policyd), proxy: Ok(json!({"serving": true})) },
        conflists: Ok(vec![("00-sluice.conflist".to_owned(), Some(conflist))]),
        plugins: BTreeSet::from(["sluice-eni".to_owned(), "sluice-policy".to_owned()]),
        host: Ok(host),
        legacy: Ok(Vec::new()),
        on_host: true,
        files: ["/sys/fs/bpf/sluice"].map(Into::into).into(),
        release: "6.1.0-25-cloud-amd64".to_owned(),
        max_pods: Some(29),
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn page(page: &mut Result<Value, String>, pointer: &str, value: Value) {
    *page.as_mut().unwrap().pointer_mut(pointer).unwrap() = value;
}

/// The one finding that is not well.
fn only(facts: &Facts) -> Finding {
    let mut found: Vec<Finding> = findings(facts).into_iter().filter(|one| one.standing != Standing::Well).collect();
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn seeded(check: &str, standing: Standing, evidence: &str, seed: impl FnOnce(&mut Facts)) {
    let mut facts = well();
    seed(&mut facts);
    let found = only(&facts);
    assert_eq!((found.check, found.standing), (check, standing), "{found:?}");
    let words = format!("{} {}", found.finding, found.evidence.join(" "));
    assert!(words.contains(evidence), "{evidence:?} is not in {found:?}");
    assert!(found.mend.is_some(), "{found:?}");
}

#[test]
fn on_a_node_on_which_all_is_well_nothing_is_found() {
    let found = findings(&well());
    assert!(found.iter().all(|finding| finding.standing == Standing::Well), "{found:#?}");
    assert!(text(&found, false, Paint { colours: false }).starts_with("checked: 0 broken, 0 doubtful, 0 unknown"));
}

#[test]
fn a_missing_route_is_found_with_its_pod() {
    seeded("routes", Standing::Broken, "shop/web: no route 10.0.0.5 dev eni1", |facts| {
        facts.host.as_mut().unwrap().routes.truncate(2);
    });
    seeded("routes", Standing::Broken, "no rule 1536: from 10.0.0.5 lookup 3", |facts| {
        facts.host.as_mut().unwrap().rules.truncate(1);
    });
    seeded("routes", Standing::Broken, "table 3: no default route", |facts| {
        facts.host.as_mut().unwrap().routes.remove(1);
    });
    seeded("routes", Standing::Broken, "its interface eni1 is gone", |facts| {
        facts.host.as_mut().unwrap().links.truncate(1);
    });
}

#[test]
fn a_foreign_rule_is_found() {
    seeded("rules", Standing::Doubtful, "100: from 10.0.0.0/8 lookup 100", |facts| {
        facts.host.as_mut().unwrap().rules.push(Rule::from(100, "10.0.0.0/8".parse().unwrap(), 100));
    });
}

#[test]
fn what_ec2_says_is_told_as_what_it_is() {
    seeded("subnet", Standing::Broken, "does not have enough free addresses", |facts| {
        let words = "CreateNetworkInterface: InsufficientFreeAddressesInSubnet: The specified subnet does not have enough free addresses";
        page(&mut facts.node.ipamd, "/held_up", json!(words));
    });
    seeded("iam", Standing::Broken, "CreateNetworkInterface", |facts| {
        page(
            &mut facts.node.ipamd,
            "/obstacles",
            json!({"CreateNetworkInterface": "UnauthorizedOperation: You are not authorized"}),
        );
    });
    seeded("throttling", Standing::Doubtful, "RequestLimitExceeded", |facts| {
        page(&mut facts.node.ipamd, "/obstacles", json!({"AssignPrivateIpAddresses": "RequestLimitExceeded"}));
    });
    let refused =
        |code: &str| json!({"CreateNetworkInterface": format!("CreateNetworkInterface failed with {code}: no")});
    seeded("quota", Standing::Broken, "NetworkInterfaceLimitExceeded", |facts| {
        page(&mut facts.node.ipamd, "/obstacles", refused("NetworkInterfaceLimitExceeded"));
    });
    for code in ["InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound", "SecurityGroupsPerInterfaceLimitExceeded"]
    {
        seeded("security groups", Standing::Broken, code, |facts| {
            page(&mut facts.node.ipamd, "/obstacles", refused(code));
        });
    }
    seeded("ec2", Standing::Doubtful, "Boom", |facts| {
        page(&mut facts.node.ipamd, "/held_up", json!("Boom"));
    });
    seeded("subnet room", Standing::Doubtful, "subnet-1: 3 free", |facts| {
        page(&mut facts.node.ipamd, "/pool/free_by_subnet/subnet-1", json!(3));
    });
}

#[test]
fn a_pool_that_cannot_hold_its_pods_is_found() {
    seeded("pool", Standing::Broken, "2 pods wait", |facts| {
        page(&mut facts.node.ipamd, "/pool", json!({"waiting": 2, "assigned": 27, "max_addresses": 27}));
    });
    seeded("max pods", Standing::Doubtful, "110 pods", |facts| facts.max_pods = Some(110));
    seeded("quarantine", Standing::Doubtful, "10.0.0.9", |facts| {
        page(&mut facts.node.ipamd, "/strays", json!(["10.0.0.9"]))
    });
    assert_eq!(max_pods("{\n \"maxPods\": 29,\n}"), Some(29));
    assert_eq!(max_pods("kind: K\nmaxPods: 58\n"), Some(58));
    assert_eq!(max_pods("kind: K\n"), None);
}

#[test]
fn what_is_on_already_is_not_advised() {
    let advice = |node: Value, pool: Value, max_pods: Option<u64>| {
        let mut facts = well();
        facts.max_pods = max_pods;
        page(&mut facts.node.ipamd, "/node", node);
        page(&mut facts.node.ipamd, "/pool", pool);
        only(&facts).mend.unwrap()
    };
    let node = |by_setting: bool, prefixes: bool, max_pods: Value| json!({"limited_by_setting": by_setting, "prefixes_would_help": prefixes, "max_pods": max_pods});
    // An m5.large with prefixes holds what the kubelet takes.
    let mut with_prefixes = well();
    page(&mut with_prefixes.node.ipamd, "/node", node(false, false, json!(110)));
    page(&mut with_prefixes.node.ipamd, "/pool/max_addresses", json!(432));
    assert!(findings(&with_prefixes).iter().all(|finding| finding.standing == Standing::Well));
    let small = json!({"max_addresses": 27});
    let kubelet = |node: Value| advice(node, small.clone(), Some(110));
    assert_eq!(
        kubelet(node(false, true, json!(null))),
        "set maxPods to 29 or less, or use prefixes (ENABLE_PREFIX_DELEGATION), or a larger instance type"
    );
    assert_eq!(kubelet(node(false, false, json!(null))), "set maxPods to 29 or less, or use a larger instance type");
    assert_eq!(kubelet(node(true, false, json!(null))), "set maxPods to 29 or less, or raise MAX_ENI");
    let full = json!({"waiting": 2, "assigned": 432, "max_addresses": 432});
    let full = advice(node(false, false, json!(null)), full, Some(29));
    assert_eq!(full, "lower the kubelet's maxPods to what the node holds (432), or use a larger instance type");
    // What the node's object says goes before the kubelet's file, and stands in where that is not seen.
    for file in [None, Some(29)] {
        assert!(advice(node(false, false, json!(110)), small.clone(), file).starts_with("set maxPods to 29"));
    }
}

#[test]
fn a_subnet_without_a_whole_prefix_is_found() {
    seeded("prefixes", Standing::Doubtful, "subnet-1", |facts| {
        let pool = facts.node.ipamd.as_mut().unwrap().pointer_mut("/pool").unwrap().as_object_mut().unwrap();
        pool.insert("without_prefixes".to_owned(), json!(["subnet-1"]));
    });
}

#[test]
fn a_stale_conflist_is_found_before_pods_are_made_by_it() {
    let cilium = || ("00-a.conflist".to_owned(), Some(json!({"plugins": [{"type": "cilium-cni"}]})));
    seeded("conflist", Standing::Broken, "00-a.conflist", |facts| {
        facts.conflists.as_mut().unwrap().insert(0, cilium())
    });
    seeded("conflist leftovers", Standing::Doubtful, "10-aws.conflist", |facts| {
        let aws = ("10-aws.conflist".to_owned(), Some(json!({"plugins": [{"type": "aws-cni"}]})));
        facts.conflists.as_mut().unwrap().push(aws);
    });
    seeded("conflist", Standing::Broken, "sluice-policy is not there", |facts| {
        facts.plugins.remove("sluice-policy");
    });
    seeded("conflist", Standing::Broken, "no pod starts", |facts| facts.conflists.as_mut().unwrap().clear());
    seeded("conflist", Standing::Broken, "no pod starts", |facts| facts.conflists.as_mut().unwrap()[0].1 = None);
}

#[test]
fn a_full_map_a_dead_proxy_and_faulty_policies_are_found() {
    seeded("maps", Standing::Broken, "shop/web", |facts| {
        page(&mut facts.node.policyd, "/endpoints/0/locked", json!(true))
    });
    seeded("proxy", Standing::Broken, "12 packets", |facts| {
        page(&mut facts.node.policyd, "/proxy/connected", json!(0));
        page(&mut facts.node.policyd, "/drops", json!({"no-proxy": 12}));
        facts.node.proxy = Err("nobody listens".to_owned());
    });
    seeded("policies", Standing::Doubtful, "spec.ingress[0]", |facts| {
        page(&mut facts.node.policyd, "/faults", json!({"NetworkPolicy shop/db": ["spec.ingress[0]: no such port"]}));
    });
    seeded("gates", Standing::Doubtful, "shop/old", |facts| {
        page(&mut facts.node.policyd, "/without_gate", json!(["shop/old"]))
    });
    seeded("api server", Standing::Doubtful, "away", |facts| {
        page(&mut facts.node.policyd, "/stale", json!("it is away"))
    });
}

#[test]
fn without_policy_nobody_misses_policyd() {
    let mut facts = well();
    facts.conflists.as_mut().unwrap()[0].1 = Some(json!({"plugins": [{"type": "sluice-eni"}]}));
    facts.node.policyd = Err("nobody listens".to_owned());
    let found = findings(&facts);
    assert!(found.iter().all(|finding| finding.standing == Standing::Well), "{found:#?}");
}

#[test]
fn what_a_container_does_not_see_is_unknown() {
    let mut facts = well();
    facts.on_host = false;
    facts.conflists = Err("/etc/cni/net.d is not there".to_owned());
    facts.files.clear();
    let found = findings(&facts);
    let found: Vec<_> = found.iter().filter(|one| one.standing != Standing::Well).collect();
    let found: Vec<_> = found.iter().map(|one| (one.check, one.standing)).collect();
    assert_eq!(found, ["conflist", "managers", "bpffs"].map(|check| (check, Standing::Unknown)));
}

#[test]
fn daemons_that_are_gone_are_found() {
    let gone = || Err("nobody listens at 127.0.0.1:61679".to_owned());
    seeded("ipamd", Standing::Broken, "nobody listens", |facts| facts.node.ipamd = gone());
    seeded("policyd", Standing::Broken, "nobody listens", |facts| facts.node.policyd = gone());
}

#[test]
fn a_host_that_others_configure_is_found() {
    seeded("managers", Standing::Broken, "nm-cloud-setup", |facts| {
        facts.files.insert("/etc/systemd/system/timers.target.wants/nm-cloud-setup.timer".into());
    });
    seeded("aws-node", Standing::Broken, "observes and waits", |facts| {
        facts.files.insert("/var/run/aws-node/ipamd.sock".into());
    });
    seeded("other CNIs", Standing::Doubtful, "cilium_host", |facts| {
        facts.host.as_mut().unwrap().links.push(link(9, "cilium_host", 1500));
    });
    for left in [
        "/sys/fs/bpf/cilium",
        "/sys/fs/bpf/tc/globals/cilium_metrics",
        "/var/run/cilium",
        "/sys/fs/bpf/globals/aws (the VPC CNI's network policy agent)",
    ] {
        seeded("other CNIs", Standing::Doubtful, left, |facts| {
            facts.files.insert(left.split(' ').next().unwrap().into());
        });
    }
    seeded("other CNIs", Standing::Doubtful, "ip rule 9: table 2004", |facts| {
        let mark = Some(Mark { value: 0x200, mask: 0xf00 });
        facts.host.as_mut().unwrap().rules.push(Rule { mark, ..Rule::all(Family::V4, 9, 2004) });
    });
    seeded("other CNIs", Standing::Doubtful, "iptables-legacy, ip nat: AWS-SNAT-CHAIN-0", |facts| {
        facts.legacy = Ok(vec!["ip nat: AWS-SNAT-CHAIN-0".to_owned()]);
    });
    seeded("sysctls", Standing::Doubtful, "rp_filter is 1", |facts| {
        facts.host.as_mut().unwrap().sysctls[1].value = "1\n".into();
    });
    seeded("mtu", Standing::Doubtful, "eni1: 9001", |facts| facts.host.as_mut().unwrap().links[0].mtu = 1500);
    seeded("kernel", Standing::Broken, "5.10", |facts| facts.release = "5.10.230".to_owned());
    seeded("clock", Standing::Broken, "60 seconds", |facts| {
        facts.now = SystemTime::UNIX_EPOCH + Duration::from_secs(60)
    });
}

#[test]
fn the_files_of_the_host_are_seen_from_a_container() {
    let root = std::env::temp_dir().join(format!("sluice-doctor-{}", std::process::id()));
    for directory in ["run/aws-node", "var", "sys/fs/bpf/globals/aws", "sys/fs/bpf/tc/globals", "etc/cni", "opt/net.d"]
    {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    for (link, target) in [("var/run", "/run"), ("etc/cni/net.d", "/opt/net.d")] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    for (file, text) in [
        ("run/aws-node/ipamd.sock", ""),
        ("sys/fs/bpf/tc/globals/cilium_metrics", ""),
        ("opt/net.d/10-aws.conflist", r#"{"plugins": [{"type": "aws-cni"}]}"#),
    ] {
        std::fs::write(root.join(file), text).unwrap();
    }
    let found: Vec<_> = facts::files(&root).into_iter().collect();
    let there = ["/sys/fs/bpf/globals/aws", "/sys/fs/bpf/tc/globals/cilium_metrics", "/var/run/aws-node/ipamd.sock"];
    assert_eq!(found, there.map(PathBuf::from));
    let lists = facts::conflists(&root, std::path::Path::new("/etc/cni/net.d")).unwrap();
    assert_eq!(lists, [("10-aws.conflist".to_owned(), Some(json!({"plugins": [{"type": "aws-cni"}]})))]);
    std::fs::remove_dir_all(&root).unwrap();
}
