//! Against real iptables of both kinds, in namespaces.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::kernel::Rule;
use super::*;
use crate::netns::Namespace;

/// What the VPC CNI has in a node (1.18, connection marks by iptables, and its egress plugin), among others' rules.
pub(super) const NAT: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
:CNI-E4-a1 - [0:0]
:CNI-E4-b2 - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A POSTROUTING -s 192.0.2.0/24 -m comment --comment "AWS is not meant" -j MASQUERADE
-A POSTROUTING -s 169.254.172.5/32 -m comment --comment "name: \"aws-cni\" id: \"a\"" -j CNI-E4-a1
-A POSTROUTING -s 169.254.172.6/32 -m comment --comment "name: \"aws-cni\" id: \"b\"" -j CNI-E4-b2
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.10 --random-fully
-A CNI-E4-a1 -d 224.0.0.0/4 -m comment --comment "name: \"aws-cni\" id: \"a\"" -j ACCEPT
-A CNI-E4-a1 -m comment --comment "name: \"aws-cni\" id: \"a\"" -j SNAT --to-source 10.0.1.10 --random-fully
-A CNI-E4-b2 -m comment --comment "name: \"aws-cni\" id: \"b\"" -j SNAT --to-source 10.0.1.10 --random-fully
COMMIT
"#;
pub(super) const MANGLE: &str = r#"*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i eth9 -j MARK --set-xmark 0x1/0x1
COMMIT
"#;
const FILTER: &str = r#"*filter
-A FORWARD -d 169.254.172.0/22 -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via IPv4" -j REJECT
COMMIT
"#;
const OF_IPV6: &str = r#"*nat
:CNI-E6-c3 - [0:0]
-A POSTROUTING -s fd00::ac:7/128 -m comment --comment "name: \"aws-cni\" id: \"c\"" -j CNI-E6-c3
-A CNI-E6-c3 -d ff00::/8 -j ACCEPT
-A CNI-E6-c3 -j SNAT --to-source 2001:db8::1 --random-fully
COMMIT
*filter
-A FORWARD -d fd00::ac:0/118 -m conntrack --ctstate NEW -m comment --comment "Block Node Local Pod access via IPv6" -j REJECT
COMMIT
"#;

/// What kube-proxy and others have in the same tables, with extensions that `nft` can only print or not even that.
fn of_others(ipv6: bool) -> String {
    let (own, service, family) = if ipv6 { ("fd12::9", "fd34::1", "6") } else { ("10.9.9.9", "172.20.0.1", "4") };
    let (own_long, service_long) = if ipv6 { ("128", "128") } else { ("32", "32") };
    let port = if ipv6 { format!("[{own}]:443") } else { format!("{own}:443") };
    format!(
        r#"*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-IT2ZTR26TO4XFPTO - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-IT2ZTR26TO4XFPTO -s {own}/{own_long} -m comment --comment "default/kubernetes:https, no AWS, CONNMARK" -j KUBE-MARK-MASQ
-A KUBE-SEP-IT2ZTR26TO4XFPTO -p tcp -m comment --comment "default/kubernetes:https" -m tcp -j DNAT --to-destination {port}
-A KUBE-SERVICES -d {service}/{service_long} -p tcp -m comment --comment "default/kubernetes:https IPv{family}" -m tcp --dport 443 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-IT2ZTR26TO4XFPTO
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP --mask {mask} --rsource -j KUBE-SEP-IT2ZTR26TO4XFPTO
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
"#,
        mask = if ipv6 { "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff" } else { "255.255.255.255" },
    )
}

fn feed(namespace: &Namespace, program: &[&str], input: &str) -> String {
    let run = || {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("apt-get install iptables nftables");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    namespace.run(run).expect("the tests run as root")
}

/// All rules of a kind and family, but for the time at which they were printed, and without what chains have counted.
fn saved(namespace: &Namespace, program: &str) -> String {
    let text = feed(namespace, &[&format!("{program}-save")], "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let uncounted = lines.map(|line| match line.split_once(" [") {
        Some((chain, _)) if line.starts_with(':') => format!("{chain} [0:0]\n"),
        _ => format!("{line}\n"),
    });
    uncounted.collect()
}

const PROGRAMS: [&str; 4] = ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"];

/// A namespace with what others have in all four kinds of tables. What that is.
fn with_others() -> (Namespace, [String; 4]) {
    let namespace = Namespace::new_unbound().unwrap();
    for program in PROGRAMS {
        feed(&namespace, &[&format!("{program}-restore")], &of_others(program.starts_with("ip6")));
    }
    let before = PROGRAMS.map(|program| saved(&namespace, program));
    (namespace, before)
}

fn add_vpc_cni(namespace: &Namespace) {
    for program in PROGRAMS {
        let restore = format!("{program}-restore");
        if program.starts_with("ip6") {
            feed(namespace, &[&restore, "--noflush"], OF_IPV6);
            continue;
        }
        // What is there already is not declared anew, which would empty it; and the one rule that is not its is not added.
        let lines = NAT.lines().filter(|line| !line.contains("KUBE-SERVICES") && !line.contains("is not meant"));
        let nat: String = lines.map(|line| format!("{line}\n")).collect();
        let mangle = MANGLE.replace("-A PREROUTING -i eth9 -j MARK --set-xmark 0x1/0x1\n", "");
        for table in [nat.as_str(), mangle.as_str(), FILTER] {
            feed(namespace, &[&restore, "--noflush"], table);
        }
    }
}

#[tokio::test]
async fn nothing_of_it_is_left_in_either_backend_and_in_nftables() {
    let (namespace, before) = with_others();
    let host = Host::of(namespace.clone()).unwrap();
    assert_eq!(host.remove_vpc_cni().await.unwrap(), Leftovers::default(), "a node that never had it");
    assert_eq!(PROGRAMS.map(|program| saved(&namespace, program)), before);

    add_vpc_cni(&namespace);
    feed(&namespace, &["nft", "-f", "-"], "table ip aws-cni { chain snat-mark { }\n}\ntable ip kube-proxy { }\n");
    let with = PROGRAMS.map(|program| saved(&namespace, program));
    assert!(with.iter().zip(&before).all(|(with, before)| with != before), "its rules are there");
    let leftovers = host.remove_vpc_cni().await.unwrap();
    assert_eq!(leftovers.left, [""; 0]);
    let removed = leftovers.removed.join("\n");
    for part in [
        "nftables table ip aws-cni",
        "of PREROUTING: AWS, CONNMARK",
        "ip nat: chain AWS-SNAT-CHAIN-0",
        "ip6 nat: chain CNI-E6-c3",
        "of FORWARD: Block Node Local Pod access via IPv6",
        "iptables-legacy nat: -X AWS-SNAT-CHAIN-0",
        "ip6tables-legacy nat: -X CNI-E6-c3",
    ] {
        assert!(removed.contains(part), "{part}: {removed}");
    }
    let after = PROGRAMS.map(|program| saved(&namespace, program));
    assert_eq!(after, before, "byte for byte what it was");
    let tables = feed(&namespace, &["nft", "list", "tables"], "");
    assert!(tables.contains("kube-proxy") && !tables.contains("aws-cni"), "{tables}");
    assert_eq!(host.remove_vpc_cni().await.unwrap(), Leftovers::default(), "once is enough");
}

/// A pod of the egress plugin leaves by its chain for as long as it is there.
#[tokio::test]
async fn the_chain_of_a_pod_that_lives_stays() {
    let (namespace, before) = with_others();
    add_vpc_cni(&namespace);
    for ip in [
        "ip link add pod type veth peer name inside",
        "ip link set pod up",
        "ip link set inside up",
        "ip route add 169.254.172.5 dev pod",
        "ip route add 169.254.0.0/16 dev pod",
    ] {
        feed(&namespace, &ip.split(' ').collect::<Vec<_>>(), "");
    }
    let host = Host::of(namespace.clone()).unwrap();
    host.remove_vpc_cni().await.unwrap();
    for (program, before) in PROGRAMS.into_iter().zip(&before) {
        let after = saved(&namespace, program);
        let others: String =
            after.lines().filter(|line| !line.contains("CNI-E4-a1")).map(|line| format!("{line}\n")).collect();
        assert_eq!(&others, before, "{program}");
        assert_eq!(after.matches("-A CNI-E4-a1").count(), if program.starts_with("ip6") { 0 } else { 2 }, "{program}");
    }
    feed(&namespace, &["ip", "route", "delete", "169.254.172.5", "dev", "pod"], "");
    host.remove_vpc_cni().await.unwrap();
    assert_eq!(PROGRAMS.map(|program| saved(&namespace, program)), before);
}

/// As in the image: this test runs itself where `nft` is the only program.
#[tokio::test]
async fn with_nft_alone_what_is_iptables_nfts_goes_and_of_the_rest_is_told() {
    const ALONE: &str = "SLUICE_TEST_NFT_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let host = Host::current().unwrap();
        let leftovers = host.remove_vpc_cni().await.unwrap();
        assert_eq!(host.vpc_cni_in_legacy().await.unwrap(), leftovers.left);
        // Standard output is where the other half reads.
        println!("\nremoved {}\nleft {}\n", leftovers.removed.len(), leftovers.left.join("; "));
        return;
    }
    let (namespace, before) = with_others();
    let path = std::env::temp_dir().join(format!("sluice-nft-alone-{}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    let nft = feed(&namespace, &["sh", "-c", "command -v nft"], "");
    std::os::unix::fs::symlink(nft.trim(), path.join("nft")).unwrap();
    let again = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "vpc_cni::tests::with_nft_alone_what_is_iptables_nfts_goes_and_of_the_rest_is_told";
        command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").env("PATH", &path);
        let output = namespace.run(|| command.output().unwrap()).unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    let said = again();
    assert!(said.contains("\nremoved 0\nleft \n"), "nobody is told of what was never there: {said}");
    add_vpc_cni(&namespace);
    let with = PROGRAMS.map(|program| saved(&namespace, program));
    let said = again();
    std::fs::remove_dir_all(&path).unwrap();
    let after = PROGRAMS.map(|program| saved(&namespace, program));
    assert_eq!(after[..2], before[..2], "iptables-nft's");
    assert_eq!(after[2..], with[2..], "iptables-legacy's");
    let left = said.lines().find_map(|line| line.strip_prefix("left ")).unwrap();
    let tables: Vec<&str> = left.split("; ").map(|table| table.split(": ").next().unwrap()).collect();
    assert_eq!(tables, ["ip nat", "ip mangle", "ip filter", "ip6 filter"], "{said}");
    assert!(left.contains("AWS-CONNMARK-CHAIN-0") && left.contains("AWS, primary ENI"), "{said}");
}

#[test]
fn rules_go_by_their_handles_and_nothing_is_said_of_others() {
    let rule = |chain: &str, handle, targets: &[&str], comments: &[&str]| Rule {
        chain: chain.into(),
        handle,
        targets: targets.iter().map(|target| (*target).to_owned()).collect(),
        comments: comments.iter().map(|comment| (*comment).to_owned()).collect(),
        addresses: Vec::new(),
    };
    let table = |name: &str, chains: &[&str], rules| Table {
        id: NftTableId::new(NftFamily::Ip, name),
        chains: chains.iter().map(|chain| (*chain).to_owned()).collect(),
        rules,
    };
    let others =
        table("filter", &["FORWARD", "CNI-FORWARD"], vec![rule("FORWARD", 3, &["CNI-FORWARD"], &["AWS is not meant"])]);
    assert_eq!(removal(std::slice::from_ref(&others), &|_| true), None);
    let its = table(
        "nat",
        &["POSTROUTING", "AWS-SNAT-CHAIN-0", "AWS-SNAT-CHAIN-1"],
        vec![
            rule("POSTROUTING", 5, &["KUBE-POSTROUTING"], &[]),
            rule("POSTROUTING", 6, &["AWS-SNAT-CHAIN-0"], &[]),
            rule("POSTROUTING", 7, &[], &["AWS, CONNMARK"]),
            rule("AWS-SNAT-CHAIN-0", 8, &["AWS-SNAT-CHAIN-1"], &["AWS SNAT CHAIN"]),
        ],
    );
    assert_eq!(
        removal(&[others, its], &|_| true).unwrap().script,
        "delete rule ip nat POSTROUTING handle 6\ndelete rule ip nat POSTROUTING handle 7\n\
         flush chain ip nat AWS-SNAT-CHAIN-0\nflush chain ip nat AWS-SNAT-CHAIN-1\n\
         delete chain ip nat AWS-SNAT-CHAIN-0\ndelete chain ip nat AWS-SNAT-CHAIN-1\n"
    );
}
