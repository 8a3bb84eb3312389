use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use sluice_contract::id::EniId;

use super::*;
use crate::host::request;
use crate::netlink::{VlanSpec, delete_request};
use crate::plan::{Op, Planned, plan};
use crate::state::Observed;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x30]);
const TRUNK: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);
/// Numbers of links: the trunk, the VLAN, the host's end of the pod's veth.
const NUMBERS: [u32; 3] = [3, 11, 12];

fn address(ip: &str, vlan: u16, mode: Mode) -> PodAddress {
    let vlan = VlanId::new(vlan).unwrap();
    let ip: IpAddr = ip.parse().unwrap();
    PodAddress {
        ip,
        interface: 0,
        eni: EniId::new("eni-0a1b2c3d4e5f60718").unwrap(),
        eni_mac: MAC,
        card: 0,
        device: 3,
        table: branch::table(vlan),
        branch: Some(Branch {
            vlan,
            trunk_mac: TRUNK,
            gateway: branch::router(ip, "10.0.2.0/24".parse().unwrap()),
            mode,
        }),
    }
}

fn host(mode: Mode) -> IfName {
    branch::host_name(&IfName::new("enib5faff8a083").unwrap(), mode)
}

fn link(index: u32, name: &IfName, kind: LinkKind, mac: MacAddr) -> Link {
    Link {
        index,
        name: name.clone(),
        mac: Some(mac),
        mtu: 9001,
        up: false,
        kind,
        peer: None,
        peer_netns: None,
        alias: None,
        master: None,
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for word in bytes.chunks(4) {
        text.push(' ');
        for byte in word {
            write!(text, "{byte:02x}").unwrap();
        }
    }
    text
}

/// Everything that an ADD asks of the host's kernel for a pod's branch, and then what its DEL asks, with the messages as they
/// go over the socket.
fn played(branch: &PodBranch) -> String {
    let host = host(branch.mode);
    let [trunk, vlan, veth] = NUMBERS;
    let seen = Observed {
        links: vec![
            link(vlan, &branch.link, LinkKind::Other(KIND.to_owned()), MAC),
            link(veth, &host, LinkKind::Veth, MacAddr([2, 0, 0, 0, 0, 1])),
        ],
        ..Observed::default()
    };
    let numbers = HashMap::from([(branch.link.clone(), vlan), (host.clone(), veth)]);
    let mut text = String::from("# ADD\n");
    let spec = VlanSpec { name: &branch.link, parent: trunk, vlan: branch.vlan, mac: branch.mac, mtu: 9001 };
    writeln!(text, "link add {} link #{trunk} id {}\n {}", spec.name, spec.vlan, hex(&spec.request().bytes())).unwrap();
    let mut ops = plan(&seen, &branch.uplink(&host, 9001));
    let pods = Desired { rules: branch.rules(&host), sysctls: branch.host_sysctls(&host), ..Desired::default() };
    for planned in plan(&seen, &pods) {
        // In strict mode the rules are those of the way out.
        if !ops.iter().any(|before| before.op == planned.op) {
            ops.push(planned);
        }
    }
    ops.extend(plan(&seen, &Desired { routes: branch.pod_routes(&host), ..Desired::default() }));
    let tell = |text: &mut String, ops: &[Planned]| {
        for Planned { op, .. } in ops {
            writeln!(text, "{op}").unwrap();
            if let Some(request) = request(op, &numbers) {
                writeln!(text, " {}", hex(&request.bytes())).unwrap();
            }
        }
    };
    tell(&mut text, &ops);
    text.push_str("# DEL\n");
    for (name, index) in [(&host, veth), (&branch.link, vlan)] {
        writeln!(text, "link del {name}\n {}", hex(&delete_request(index).bytes())).unwrap();
    }
    let gone = branch.rules(&host).into_iter().map(|rule| Planned::new(Op::DeleteRule(rule), "its pod is gone"));
    tell(&mut text, &gone.collect::<Vec<_>>());
    text
}

/// Linux here has no VLANs, so that what would be asked of it is held fast to the last byte. With `UPDATE_GOLDENS` set in the
/// environment the files are written anew.
#[test]
fn what_is_asked_of_the_kernel_is_as_the_goldens_say() {
    let v4 = "10.0.2.30";
    let v6 = "2001:db8:0:2::30";
    let cases = [
        ("strict-v4", vec![v4], 7, Mode::Strict),
        ("strict-v6", vec![v6], 7, Mode::Strict),
        ("standard-v4", vec![v4], 7, Mode::Standard),
        ("standard-v6", vec![v6], 7, Mode::Standard),
        ("strict-both-vlan-155", vec![v4, v6], 155, Mode::Strict),
    ];
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/branch/goldens");
    let mut changed = Vec::new();
    for (name, ips, vlan, mode) in cases {
        let addresses: Vec<PodAddress> = ips.into_iter().map(|ip| address(ip, vlan, mode)).collect();
        let played = played(&PodBranch::of(&addresses).unwrap().unwrap());
        let golden = directory.join(format!("{name}.golden"));
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::write(&golden, &played).unwrap();
        }
        if std::fs::read_to_string(&golden).unwrap_or_default() != played {
            changed.push(format!("{name}:\n{played}"));
        }
    }
    assert!(changed.is_empty(), "set UPDATE_GOLDENS to write them anew\n{}", changed.join("\n"));
}

/// reference/vpc-cni.md, 4.14: three routes in the table, both interfaces' rules, nothing in the main table.
#[test]
fn a_strict_pod_is_as_the_vpc_cni_has_it() {
    let branch = PodBranch::of(&[address("10.0.2.30", 7, Mode::Strict)]).unwrap().unwrap();
    let host = host(Mode::Strict);
    let mut routes = branch.uplink(&host, 9001).routes;
    routes.extend(branch.pod_routes(&host));
    let routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
    assert_eq!(
        routes,
        [
            "10.0.2.1/32 dev vlan.eth.7 table 107",
            "default via 10.0.2.1 dev vlan.eth.7 table 107",
            "10.0.2.30/32 dev vlanb5faff8a083 table 107",
        ]
    );
    let rules: Vec<String> = branch.rules(&host).iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["10: from all iif vlan.eth.7 lookup 107", "10: from all iif vlanb5faff8a083 lookup 107"]);
}

#[test]
fn a_standard_pod_is_routed_as_any_other_and_leaves_by_its_branch() {
    let branch = PodBranch::of(&[address("10.0.2.30", 7, Mode::Standard)]).unwrap().unwrap();
    let host = host(Mode::Standard);
    let rules: Vec<String> = branch.rules(&host).iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["512: from all to 10.0.2.30/32 lookup 254", "1536: from 10.0.2.30/32 lookup 107"]);
    let routes: Vec<String> = branch.pod_routes(&host).iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["10.0.2.30/32 dev enib5faff8a083 table 254"]);
    assert_eq!((branch.uplink(&host, 9001).rules, branch.host_sysctls(&host)), (Vec::new(), Vec::new()));
}

#[test]
fn a_second_add_changes_nothing_and_an_earlier_pods_rules_go() {
    let branch = PodBranch::of(&[address("10.0.2.30", 7, Mode::Strict)]).unwrap().unwrap();
    let host = host(Mode::Strict);
    let wanted = branch.uplink(&host, 9001);
    let mut seen =
        Observed { links: vec![link(11, &branch.link, LinkKind::Other(KIND.to_owned()), MAC)], ..Observed::default() };
    for planned in plan(&seen, &wanted) {
        seen.apply(&planned.op);
    }
    // The pod's own route is another step's, and stays.
    seen.routes.extend(branch.pod_routes(&host));
    assert_eq!(plan(&seen, &wanted), []);
    let earlier = IfName::new("vlan00000000000").unwrap();
    seen.rules.insert(0, Rule::iif(Family::V4, RULE_BRANCH, earlier.clone(), 107));
    seen.rules.insert(0, Rule::iif(Family::V4, RULE_BRANCH, host.clone(), 108));
    let ops: Vec<String> = plan(&seen, &wanted).iter().map(|planned| planned.op.to_string()).collect();
    assert_eq!(ops, [format!("rule del 10: from all iif {earlier} lookup 107")]);
    assert_eq!(strict_rules_beside(&seen.rules, &host, 107).count(), 1);
    assert_eq!(strict_rules_to(&seen.rules, 107).count(), 3);
}

#[test]
fn addresses_that_contradict_each_other_are_told() {
    let of = |addresses: &[PodAddress]| PodBranch::of(addresses).unwrap_err().to_string();
    let (one, other) = (address("10.0.2.30", 7, Mode::Strict), address("10.0.2.31", 8, Mode::Strict));
    assert_eq!(of(&[one.clone(), other]), "10.0.2.30 and 10.0.2.31 are not addresses of one branch ENI");
    let plain = PodAddress { branch: None, ..one.clone() };
    let mixed = of(&[one.clone(), plain.clone()]);
    assert_eq!(mixed, "10.0.2.30 and 10.0.2.30 are not addresses of one branch ENI");
    assert_eq!(PodBranch::of(&[plain]), Ok(None));
    let table = PodAddress { table: 254, ..one.clone() };
    assert_eq!(of(&[table]), "VLAN 7 has route table 107, not 254");
    let mut strange = one;
    if let Some(branch) = &mut strange.branch {
        branch.gateway = branch::ROUTER_V6.into();
    }
    assert_eq!(of(&[strange]), "fe80:ec2::1 cannot be the router for 10.0.2.30");
}
