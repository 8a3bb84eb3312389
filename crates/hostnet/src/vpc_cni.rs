//! What the AWS VPC CNI leaves in the packet filter of a node, and how it is taken away.
//!
//! Its rules are iptables', in whichever of the two backends the node uses, and since 1.23 partly a table of nftables. They are known by
//! the names of its chains and by its comments. What anybody else has in the same tables stays. Our own rules never go through
//! iptables; here it is the only one that can read what it has written, and where it is not installed nothing of its can be.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::host::Host;
use crate::nft::{self, NftError};
use crate::state::{NftFamily, NftTableId};

/// The beginnings of the names of its chains.
const CHAINS: [&str; 2] = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"];
/// The comments of its rules in others' chains (`pkg/networkutils` and `cmd/aws-vpc-cni` of aws/amazon-vpc-cni-k8s).
const COMMENTS: [&str; 6] = [
    "AWS SNAT CHAIN",
    "AWS CONNMARK CHAIN",
    "AWS, outbound connections",
    "AWS, CONNMARK",
    "AWS, primary ENI",
    "Block Node Local Pod access via IPv4",
];
/// The tables of iptables that it has rules in.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];
/// How long a program may take: the node is not set up before it has ended.
const PATIENCE: Duration = Duration::from_secs(20);
/// As much of a program's own words as an error keeps.
const MESSAGE_LIMIT: usize = 2000;

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub enum LeftoversError {
    /// nftables.
    #[error("nftables")]
    Nft(#[source] NftError),
    /// iptables has rules here and cannot be run.
    #[error("cannot run {program}, which alone can read the rules of its kind: install iptables")]
    Run {
        /// Which program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("{program} has not ended within {} s: does something else hold the lock of iptables?", PATIENCE.as_secs())]
    Slow {
        /// Which program.
        program: String,
    },
    /// It said no.
    #[error("{program} refuses: {message}")]
    Refused {
        /// Which program.
        program: String,
        /// Its own words.
        message: String,
    },
}

/// Which backend of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Nft,
    Legacy,
}

impl Backend {
    fn program(self, verb: &str) -> String {
        format!("iptables-{}-{verb}", if self == Self::Nft { "nft" } else { "legacy" })
    }
}

impl Host {
    /// Takes away what the VPC CNI has left in the packet filter. Answers what was removed, a line each.
    ///
    /// # Errors
    /// [`LeftoversError`]; what had been removed before stays removed.
    pub async fn remove_vpc_cni(&self) -> Result<Vec<String>, LeftoversError> {
        self.within(|| async { Ok(remove().await) }).await.map_err(LeftoversError::Nft)?
    }
}

async fn remove() -> Result<Vec<String>, LeftoversError> {
    let mut removed = Vec::new();
    let own = NftTableId::new(NftFamily::Ip, "aws-cni");
    if nft::text(&own).await.map_err(LeftoversError::Nft)?.is_some() {
        nft::apply(&own, nft::delete_script(&own)).await.map_err(LeftoversError::Nft)?;
        removed.push(format!("nftables table {own}"));
    }
    // Only tables that are there: to ask for another would make it.
    let legacy = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    for table in TABLES {
        let id = NftTableId::new(NftFamily::Ip, table);
        if nft::text(&id).await.map_err(LeftoversError::Nft)?.is_some() {
            removed.extend(remove_from(Backend::Nft, table).await?);
        }
        if legacy.lines().any(|name| name == table) {
            removed.extend(remove_from(Backend::Legacy, table).await?);
        }
    }
    Ok(removed)
}

async fn remove_from(backend: Backend, table: &str) -> Result<Vec<String>, LeftoversError> {
    let saved = match run(&backend.program("save"), &["-t", table], "").await {
        Ok(saved) => saved,
        // A table of nftables by that name that iptables cannot read is not of its making.
        Err(LeftoversError::Refused { message, .. }) if backend == Backend::Nft => {
            tracing::debug!(table, message, "a table of nftables is not iptables'");
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let Some(script) = removal(table, &saved) else { return Ok(Vec::new()) };
    run(&backend.program("restore"), &["-w", "5", "--noflush"], &script).await?;
    let what = |line: &str| format!("{} {table}: {line}", backend.program("restore"));
    Ok(script.lines().filter(|line| line.starts_with('-')).map(what).collect())
}

/// The input for `iptables-restore --noflush` that takes the VPC CNI's rules out of a table, given what `iptables-save` prints of it;
/// none where there are none. It is one transaction.
fn removal(table: &str, saved: &str) -> Option<String> {
    let name = |line: &str| line.strip_prefix(':')?.split(' ').next().map(str::to_owned);
    let chains: BTreeSet<String> = saved.lines().filter_map(name).filter(|name| is_its(name)).collect();
    let mut script = format!("*{table}\n");
    let mut found = !chains.is_empty();
    for rule in saved.lines().filter_map(|line| line.strip_prefix("-A ")) {
        let (chain, rest) = rule.split_once(' ').unwrap_or((rule, ""));
        // Those inside its chains go with them.
        if !chains.contains(chain) && (rest.split(' ').any(is_its) || has_its_comment(rest)) {
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

fn is_its(chain: &str) -> bool {
    CHAINS.iter().any(|beginning| chain.starts_with(beginning))
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
    use std::io::Write as _;

    use super::*;
    use crate::netns::Namespace;

    /// What the VPC CNI has in a node (1.18, connection marks by iptables), among others' rules.
    const NAT: &str = r#"*nat
:KUBE-SERVICES - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A POSTROUTING -s 192.0.2.0/24 -m comment --comment "AWS is not meant" -j MASQUERADE
-A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.10 --random-fully
COMMIT
"#;
    const MANGLE: &str = r#"*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i eth9 -j MARK --set-xmark 0x1/0x1
COMMIT
"#;

    #[test]
    fn its_rules_go_and_others_stay() {
        assert_eq!(
            removal("nat", NAT).unwrap(),
            "*nat\n-D PREROUTING -i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0\n\
             -D PREROUTING -m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80\n\
             -D POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0\n\
             -F AWS-CONNMARK-CHAIN-0\n-F AWS-SNAT-CHAIN-0\n-X AWS-CONNMARK-CHAIN-0\n-X AWS-SNAT-CHAIN-0\nCOMMIT\n"
        );
        assert_eq!(removal("mangle", MANGLE).unwrap().lines().filter(|line| line.starts_with("-D")).count(), 2);
        assert_eq!(removal("nat", "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"), None);
        assert_eq!(removal("nat", ""), None);
    }

    /// In virtual time, which goes on when there is nothing else to wait for.
    #[tokio::test(start_paused = true)]
    async fn a_program_that_does_not_end_is_given_up() {
        let error = run("sleep", &["600"], "").await.unwrap_err();
        assert!(matches!(&error, LeftoversError::Slow { program } if program == "sleep"), "{error}");
    }

    fn feed(namespace: &Namespace, program: &[&str], input: &str) -> String {
        let run = || {
            let mut command = std::process::Command::new(program[0]);
            command.args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("apt-get install iptables nftables");
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{program:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        namespace.run(run).expect("the tests run as root")
    }

    #[tokio::test]
    async fn nothing_of_it_is_left_in_either_backend_and_in_nftables() {
        let namespace = Namespace::new_unbound().unwrap();
        let host = Host::of(namespace.clone()).unwrap();
        assert_eq!(host.remove_vpc_cni().await.unwrap(), [""; 0], "a node that never had it");
        for kind in ["nft", "legacy"] {
            for table in [NAT, MANGLE] {
                feed(&namespace, &[&format!("iptables-{kind}-restore"), "--noflush"], table);
            }
        }
        feed(&namespace, &["nft", "-f", "-"], "table ip aws-cni { chain snat-mark { }\n}\ntable ip kube-proxy { }\n");
        let removed = host.remove_vpc_cni().await.unwrap();
        assert!(removed.contains(&"nftables table ip aws-cni".to_owned()), "{removed:?}");
        for kind in ["nft", "legacy"] {
            let left = feed(&namespace, &[&format!("iptables-{kind}-save")], "");
            let rules: Vec<&str> = left.lines().filter(|line| line.starts_with("-A")).collect();
            assert_eq!(rules.len(), 3, "{kind}: {left}");
            assert!(left.contains("AWS is not meant") && !left.contains("CHAIN-0"), "{kind}: {left}");
        }
        let tables = feed(&namespace, &["nft", "list", "tables"], "");
        assert!(tables.contains("kube-proxy") && !tables.contains("aws-cni"), "{tables}");
        assert_eq!(host.remove_vpc_cni().await.unwrap(), [""; 0], "once is enough");
    }
}
