//! What the AWS VPC CNI leaves in the packet filter of a node, and how it is taken away.
//!
//! Its rules are iptables', in whichever of the two backends the node uses, and since 1.23 partly a table of nftables. They are known by
//! the names of its chains and by its comments. What anybody else has in the same tables stays.
//!
//! The tables of iptables-nft are nftables' own: they are read from the kernel, and what goes is deleted by its handle, so that nothing
//! has to be understood of what stays. Those of iptables-legacy only its own programs can change.
//!
//! A chain of its egress plugin goes when its pod has gone: until then the pod needs it.

mod kernel;
mod legacy;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use sluice_contract::node::TABLE_MAIN;

use self::kernel::Table;
use crate::desired::View;
use crate::host::{Host, ObserveError};
use crate::netns::NamespaceError;
use crate::nft::{self, NftError};
use crate::state::{Family, NftFamily, NftTableId};

/// The beginnings of the names of its chains.
const CHAINS: [&str; 2] = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"];
/// The same of its egress plugin: a chain for each pod.
const EGRESS_CHAINS: [&str; 2] = ["CNI-E4-", "CNI-E6-"];
/// The comments of its rules in others' chains (`pkg/networkutils` and `cmd/aws-vpc-cni` of aws/amazon-vpc-cni-k8s).
const COMMENTS: [&str; 7] = [
    "AWS SNAT CHAIN",
    "AWS CONNMARK CHAIN",
    "AWS, outbound connections",
    "AWS, CONNMARK",
    "AWS, primary ENI",
    "Block Node Local Pod access via IPv4",
    "Block Node Local Pod access via IPv6",
];
/// The tables of iptables that it has rules in.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];
/// The families of iptables.
const FAMILIES: [NftFamily; 2] = [NftFamily::Ip, NftFamily::Ip6];
/// How often it is tried anew when somebody has changed the same tables meanwhile.
const ATTEMPTS: usize = 3;

/// Whether a pod has an address.
type Lives = dyn Fn(IpAddr) -> bool + Sync;

/// Why something may be left.
#[derive(Debug, thiserror::Error)]
pub enum LeftoversError {
    /// nftables.
    #[error("nftables")]
    Nft(#[source] NftError),
    /// The kernel does not say what a table holds.
    #[error("cannot read the packet filter's table {table}")]
    Read {
        /// Which.
        table: NftTableId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The routes, which tell what pods there are, cannot be read.
    #[error("cannot tell which pods live")]
    Routes(#[source] ObserveError),
    /// The namespace cannot be entered.
    #[error("cannot enter the namespace")]
    Namespace(#[source] NamespaceError),
    /// The thread that reads has died.
    #[error("the packet filter's tables were not read to the end")]
    Died(#[source] tokio::task::JoinError),
    /// A program of iptables-legacy cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// Which program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not end.
    #[error("{program} has not ended within {} s: does something else hold the lock of iptables?", legacy::PATIENCE.as_secs())]
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

/// What became of what the VPC CNI had left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// What was removed, a line each.
    pub removed: Vec<String>,
    /// Tables of iptables-legacy that hold something of its, and what, where there is no `iptables-legacy` to take it away.
    pub left: Vec<String>,
}

impl Host {
    /// Takes away what the VPC CNI has left in the packet filter.
    ///
    /// # Errors
    /// [`LeftoversError`]; what had been removed before stays removed.
    pub async fn remove_vpc_cni(&self) -> Result<Leftovers, LeftoversError> {
        let routes = Family::ALL.map(|family| (family, TABLE_MAIN)).into();
        let seen = self.observe(&View { routes, ..View::default() }).await.map_err(LeftoversError::Routes)?;
        // It routes a pod's IPv4 address by a route of its own; for IPv6 any but the default route will do.
        let leads = |net: &IpNet| net.prefix_len() > if net.addr().is_ipv4() { 31 } else { 0 };
        let routed: Vec<IpNet> = seen.routes.into_iter().map(|route| route.destination).filter(leads).collect();
        let lives = move |address: IpAddr| routed.iter().any(|net| net.contains(&address));

        let mut all = Leftovers::default();
        let own = NftTableId::new(NftFamily::Ip, "aws-cni");
        let id = own.clone();
        let is_there =
            self.within(|| async move { nft::text(&id).await }).await.map_err(LeftoversError::Nft)?.is_some();
        if is_there {
            let id = own.clone();
            let deleted = self.within(|| async move { nft::apply(&id, nft::delete_script(&id)).await }).await;
            deleted.map_err(LeftoversError::Nft)?;
            all.removed.push(format!("nftables table {own}"));
        }
        all.removed.extend(self.remove_of_nft(&lives).await?);
        for (id, found) in self.read(legacy_tables).await? {
            let (table, lives) = (id.clone(), lives.clone());
            let removed = self.within(|| async move { Ok(legacy::remove(&table, &lives).await) }).await;
            match removed.map_err(LeftoversError::Nft)?? {
                Some(removed) => all.removed.extend(removed),
                None => all.left.extend(in_words(&id, &found)),
            }
        }
        Ok(all)
    }

    /// Tables of iptables-legacy that hold something of the VPC CNI's, and what, a line each. Chains of its egress plugin are not told
    /// alone: they may be of pods that live.
    ///
    /// # Errors
    /// [`LeftoversError::Read`] where a table cannot be read.
    pub async fn vpc_cni_in_legacy(&self) -> Result<Vec<String>, LeftoversError> {
        let tables = self.read(legacy_tables).await?;
        Ok(tables.iter().filter_map(|(id, found)| in_words(id, found)).collect())
    }

    /// What of its is in tables of iptables-nft, in one transaction.
    async fn remove_of_nft(&self, lives: &Lives) -> Result<Vec<String>, LeftoversError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Some(removal) = removal(&self.read(nft_tables).await?, lives) else { return Ok(Vec::new()) };
            let Removal { first, script, words } = removal;
            match self.within(|| async move { nft::apply(&first, script).await }).await {
                Ok(()) => return Ok(words),
                // A rule may have gone since it was read.
                Err(NftError::Refused { .. }) if attempt < ATTEMPTS => {}
                Err(error) => return Err(LeftoversError::Nft(error)),
            }
        }
    }

    /// Runs `work`, which blocks, in the namespace.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, LeftoversError> + Send + 'static,
    ) -> Result<T, LeftoversError> {
        let namespace = self.namespace().clone();
        let read = tokio::task::spawn_blocking(move || namespace.run(work));
        read.await.map_err(LeftoversError::Died)?.map_err(LeftoversError::Namespace)?
    }
}

fn ids() -> impl Iterator<Item = NftTableId> {
    FAMILIES.into_iter().flat_map(|family| TABLES.map(|table| NftTableId::new(family, table)))
}

/// The tables of iptables-nft, in the namespace of the calling thread.
fn nft_tables() -> Result<Vec<Table>, LeftoversError> {
    let read = |id: NftTableId| kernel::table(id.clone()).map_err(|source| LeftoversError::Read { table: id, source });
    ids().map(read).collect()
}

/// The tables of iptables-legacy that hold something of its, and what, in the namespace of the calling thread.
fn legacy_tables() -> Result<Vec<(NftTableId, BTreeSet<String>)>, LeftoversError> {
    let mut all = Vec::new();
    for id in ids() {
        if legacy::tables(id.family).contains(&id.name) {
            let found = legacy::found(&id).map_err(|source| LeftoversError::Read { table: id.clone(), source })?;
            if !found.is_empty() {
                all.push((id, found));
            }
        }
    }
    Ok(all)
}

/// What a table of iptables-legacy holds that is of no pod that could live.
fn in_words(id: &NftTableId, found: &BTreeSet<String>) -> Option<String> {
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    (!found.iter().all(|mark| is_egress(mark))).then(|| format!("{id}: {}", found.join(", ")))
}

/// A transaction of nftables.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    /// One of the tables, for whoever has to say where it failed.
    first: NftTableId,
    /// What `nft` is told.
    script: String,
    /// The same in words, a line each.
    words: Vec<String>,
}

/// What takes the VPC CNI's chains and rules out of tables; none where there are none.
fn removal(tables: &[Table], lives: &Lives) -> Option<Removal> {
    let (mut first, mut script, mut words) = (None, String::new(), Vec::new());
    // Writing to a String cannot fail.
    let mut tell = |line: String| {
        let _infallible = writeln!(script, "{line}");
    };
    for Table { id, chains, rules } in tables {
        let is_needed = |chain: &String| {
            let mut leading = rules.iter().filter(|rule| rule.targets.contains(chain));
            is_egress(chain)
                && leading.any(|rule| rule.addresses.is_empty() || rule.addresses.iter().any(|one| lives(*one)))
        };
        let gone: BTreeSet<&String> = chains.iter().filter(|chain| is_its(chain) && !is_needed(chain)).collect();
        for rule in rules {
            let is_its = rule.targets.iter().any(|target| gone.contains(target)) || has_its_comment(&rule.comments);
            // Those inside its chains go with them.
            if is_its && !gone.contains(&rule.chain) {
                tell(format!("delete rule {id} {} handle {}", rule.chain, rule.handle));
                let comments = rule.comments.join("; ");
                words.push(format!("{id}: rule {} of {}: {comments}", rule.handle, rule.chain));
                first.get_or_insert(id);
            }
        }
        for chain in &gone {
            tell(format!("flush chain {id} {chain}"));
            first.get_or_insert(id);
        }
        for chain in &gone {
            tell(format!("delete chain {id} {chain}"));
            words.push(format!("{id}: chain {chain}"));
        }
    }
    Some(Removal { first: first?.clone(), script, words })
}

fn is_its(chain: &str) -> bool {
    is_egress(chain) || CHAINS.iter().any(|beginning| chain.starts_with(beginning))
}

fn is_egress(chain: &str) -> bool {
    EGRESS_CHAINS.iter().any(|beginning| chain.starts_with(beginning))
}

fn has_its_comment(comments: &[String]) -> bool {
    comments.iter().any(|said| COMMENTS.iter().any(|comment| said.starts_with(comment)))
}

#[cfg(test)]
mod tests;
