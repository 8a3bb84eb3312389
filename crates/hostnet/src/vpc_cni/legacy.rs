//! Tables of iptables-legacy (`linux/netfilter_ipv4/ip_tables.h`): only its own programs can change one. Whether it holds anything of
//! the VPC CNI's can be seen without them, by the names of its chains and the comments, which the kernel hands out as they stand in the
//! rules.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{CHAINS, COMMENTS, EGRESS_CHAINS, LeftoversError, Lives, is_egress, is_its};
use crate::state::{NftFamily, NftTableId};

mod sockopt;

/// How long a program may take: the node is not set up before it has ended.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// As much of a program's own words as an error keeps.
const MESSAGE_LIMIT: usize = 2000;
/// How often a table is read that changes meanwhile.
const ATTEMPTS: usize = 10;
/// `struct ipt_getinfo`, and where its `size` is.
const INFO: usize = 84;
const INFO_SIZE: usize = 80;
/// Where the rules begin in `struct ipt_get_entries`: behind the table's name and their size, aligned to eight bytes.
const ENTRIES: usize = 40;
/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: libc::c_int = 65;

/// The names of the tables that are there, in the namespace of the calling thread: to ask for another would make it.
pub(super) fn tables(family: NftFamily) -> Vec<String> {
    let file = if family == NftFamily::Ip6 { "ip6_tables_names" } else { "ip_tables_names" };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// What of the VPC CNI's a table holds, in the namespace of the calling thread: its chains, and comments of its rules.
pub(super) fn found(id: &NftTableId) -> io::Result<BTreeSet<String>> {
    for _ in 0..ATTEMPTS {
        match entries(id) {
            Ok(entries) => return Ok(marks(&entries)),
            Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(Errno::EBUSY as i32))
}

/// The table's rules as the kernel has them.
fn entries(id: &NftTableId) -> io::Result<Vec<u8>> {
    let (domain, level) = match id.family {
        NftFamily::Ip6 => (AddressFamily::Inet6, libc::IPPROTO_IPV6),
        _ => (AddressFamily::Inet, libc::IPPROTO_IP),
    };
    let socket = socket(domain, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let named = |length: usize| {
        let mut buffer = id.name.as_bytes().to_vec();
        buffer.resize(length, 0);
        buffer
    };
    let mut info = named(INFO);
    sockopt::get(&socket, level, GET_INFO, &mut info)?;
    let size = info.get(INFO_SIZE..).and_then(<[u8]>::first_chunk::<4>).copied().unwrap_or_default();
    let rules = usize::try_from(u32::from_ne_bytes(size)).unwrap_or_default();
    let mut entries = named(32);
    entries.extend(size);
    entries.resize(ENTRIES + rules, 0);
    sockopt::get(&socket, level, GET_ENTRIES, &mut entries)?;
    Ok(entries.split_off(ENTRIES))
}

/// Names of chains of the VPC CNI, and its comments, among bytes.
fn marks(entries: &[u8]) -> BTreeSet<String> {
    // All of them begin with one of few letters; what they stand in is binary.
    let all = || CHAINS.iter().chain(&EGRESS_CHAINS).chain(&COMMENTS);
    let begins = |rest: &[u8]| all().any(|mark| rest.starts_with(mark.as_bytes()));
    let firsts: BTreeSet<u8> = all().filter_map(|mark| mark.bytes().next()).collect();
    // Before a name or a comment is the revision of what it belongs to, which has been 0 ever since; else it is within another.
    let is_first = |pair: &&[u8]| matches!(pair, [0, byte] if firsts.contains(byte));
    let places = entries.windows(2).enumerate().filter(|(_, pair)| is_first(pair)).map(|(place, _)| place + 1);
    let rests = places.filter_map(|place| entries.get(place..)).filter(|rest| begins(rest));
    rests.map(super::kernel::text).collect()
}

/// The beginning of the names of the programs of a family.
fn programs(family: NftFamily) -> &'static str {
    if family == NftFamily::Ip6 { "ip6tables-legacy" } else { "iptables-legacy" }
}

/// Takes the VPC CNI's rules out of a table; none where there is no program to do it. Runs in the caller's namespace.
pub(super) async fn remove(id: &NftTableId, lives: &Lives) -> Result<Option<Vec<String>>, LeftoversError> {
    let program = |verb| format!("{}-{verb}", programs(id.family));
    let saved = match run(&program("save"), &["-t", &id.name], "").await {
        Err(LeftoversError::Run { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        saved => saved?,
    };
    let Some(script) = removal(&id.name, &saved, lives) else { return Ok(Some(Vec::new())) };
    run(&program("restore"), &["-w", "5", "--noflush"], &script).await?;
    let what = |line: &str| format!("{} {}: {line}", programs(id.family), id.name);
    Ok(Some(script.lines().filter(|line| line.starts_with('-')).map(what).collect()))
}

/// The input for `iptables-restore --noflush` that takes the VPC CNI's rules out of a table, given what `iptables-save` prints of it;
/// none where there are none. It is one transaction.
fn removal(table: &str, saved: &str, lives: &Lives) -> Option<String> {
    let rules = || saved.lines().filter_map(|line| line.strip_prefix("-A "));
    let name = |line: &str| line.strip_prefix(':')?.split(' ').next().map(str::to_owned);
    let mut chains: BTreeSet<String> = saved.lines().filter_map(name).filter(|name| is_its(name)).collect();
    chains.retain(|chain| {
        let leads_there = |rule: &&str| rule.split(' ').any(|word| word == chain) && !rule.starts_with(chain.as_str());
        !(is_egress(chain) && rules().filter(leads_there).any(|rule| source(rule).is_none_or(lives)))
    });
    let mut script = format!("*{table}\n");
    let mut found = !chains.is_empty();
    for rule in rules() {
        let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
        // Those inside its chains go with them.
        if !chains.contains(chain) && (rest.split(' ').any(|word| chains.contains(word)) || has_its_comment(rest)) {
            found = true;
            // Writing to a String cannot fail.
            let _infallible = writeln!(script, "-D {chain} {rest}");
        }
    }
    for verb in ["-F", "-X"] {
        for chain in &chains {
            let _infallible = writeln!(script, "{verb} {chain}");
        }
    }
    script += "COMMIT\n";
    found.then_some(script)
}

/// The address that a rule is about packets from, if it is one.
fn source(rule: &str) -> Option<IpAddr> {
    let mut words = rule.split(' ').skip_while(|word| *word != "-s");
    let net: ipnet::IpNet = words.nth(1)?.parse().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

fn has_its_comment(rule: &str) -> bool {
    COMMENTS.iter().any(|comment| rule.contains(&format!("--comment \"{comment}")))
}

async fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, LeftoversError> {
    let failed = |source| LeftoversError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails early leaves its input unread, and says why.
            let _unread = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let ended = tokio::time::timeout(PATIENCE, work).await;
    let output = ended.map_err(|_elapsed| LeftoversError::Slow { program: program.to_owned() })?.map_err(failed)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(MESSAGE_LIMIT).collect();
    Err(LeftoversError::Refused { program: program.to_owned(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vpc_cni::tests::{MANGLE, NAT};

    #[test]
    fn its_rules_go_and_others_stay() {
        let gone = |_: IpAddr| false;
        assert_eq!(
            removal("nat", NAT, &gone).unwrap(),
            "*nat\n-D PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
             -D PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
             -D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
             -D POSTROUTING -s 169.254.172.5/32 -m comment --comment \"name: \\\"aws-cni\\\" id: \\\"a\\\"\" -j CNI-E4-a1\n\
             -D POSTROUTING -s 169.254.172.6/32 -m comment --comment \"name: \\\"aws-cni\\\" id: \\\"b\\\"\" -j CNI-E4-b2\n\
             -F AWS-CONNMARK-CHAIN-0\n-F AWS-SNAT-CHAIN-0\n-F CNI-E4-a1\n-F CNI-E4-b2\n\
             -X AWS-CONNMARK-CHAIN-0\n-X AWS-SNAT-CHAIN-0\n-X CNI-E4-a1\n-X CNI-E4-b2\nCOMMIT\n"
        );
        let left = removal("nat", NAT, &|address| address == IpAddr::from([169, 254, 172, 5])).unwrap();
        assert!(!left.contains("CNI-E4-a1") && left.contains("-X CNI-E4-b2"), "{left}");
        let of_mangle = removal("mangle", MANGLE, &gone).unwrap();
        assert_eq!(of_mangle.lines().filter(|line| line.starts_with("-D")).count(), 2);
        assert_eq!(
            removal("nat", "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n", &gone),
            None
        );
        assert_eq!(removal("nat", "", &gone), None);
    }

    #[test]
    fn marks_are_found_among_binary_rules() {
        let blob = b"\x01\0AWS-SNAT-CHAIN-0\0\0\xffKUBE-SERVICES\0AWS is not meant\0\0AWS, CONNMARK\0CNI-E4-a1\0\
            no AWS, primary ENI\0CNI-HOSTPORT\0AWS";
        let found: Vec<String> = marks(blob).into_iter().collect();
        assert_eq!(found, ["AWS, CONNMARK", "AWS-SNAT-CHAIN-0", "CNI-E4-a1"]);
    }

    /// In virtual time, which goes on when there is nothing else to wait for.
    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_given_up() {
        let error = run("sleep", &["600"], "").await.unwrap_err();
        assert!(matches!(&error, LeftoversError::Slow { program } if program == "sleep"), "{error}");
    }
}
