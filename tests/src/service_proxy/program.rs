//! Hands rules to the kernel.

use std::fmt;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use sluice_hostnet::netns::{Namespace, NamespaceError};
use sluice_policy_core::cluster::Cluster;
use sluice_policy_core::vector::schema::Family;

use super::iptables::Before;
use super::{Extra, iptables, nft, plan};

/// What carries the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// nftables by `nft`.
    Nftables,
    /// iptables on nftables.
    IptablesNft,
    /// iptables as it was.
    IptablesLegacy,
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// The program that reads the rules of a family, and its arguments.
    const fn program(self, family: Family) -> &'static [&'static str] {
        match (self, family) {
            (Self::Nftables, _) => &["nft", "-f", "-"],
            (Self::IptablesNft, Family::V4) => &["iptables-nft-restore", "-w", "5", "--noflush"],
            (Self::IptablesNft, Family::V6) => &["ip6tables-nft-restore", "-w", "5", "--noflush"],
            (Self::IptablesLegacy, Family::V4) => &["iptables-legacy-restore", "-w", "5", "--noflush"],
            (Self::IptablesLegacy, Family::V6) => &["ip6tables-legacy-restore", "-w", "5", "--noflush"],
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

/// Why rules are not in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The node's namespace cannot be entered.
    #[error("the node cannot be entered")]
    Namespace(#[from] NamespaceError),
    /// The program cannot be executed.
    #[error("{program} cannot be run; install the packages nftables and iptables")]
    Missing {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The kernel or the program says no.
    #[error("{program} refuses the rules: {said}\n{rules}")]
    Refused {
        /// Which.
        program: &'static str,
        /// What it said.
        said: String,
        /// The rules.
        rules: String,
    },
}

/// The service proxy of a node.
#[derive(Debug)]
pub struct Proxy {
    net: Namespace,
    backend: Backend,
    before: Mutex<[Before; 2]>,
}

impl Proxy {
    /// A proxy for a node's network namespace, where there is none yet.
    #[must_use]
    pub fn new(net: Namespace, backend: Backend) -> Self {
        Self { net, backend, before: Mutex::default() }
    }

    /// Makes the kernel do what the cluster's Services say, one transaction a family. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`ProxyError`]; what was there before stays then.
    pub fn apply(&self, cluster: &Cluster, extra: &Extra) -> Result<(), ProxyError> {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        for (family, before) in [Family::V4, Family::V6].into_iter().zip(before.iter_mut()) {
            let fronts = plan(cluster, family, extra);
            let (rules, after) = match self.backend {
                Backend::Nftables => (nft::text(family, &fronts), Before::default()),
                Backend::IptablesNft | Backend::IptablesLegacy => iptables::text(family, &fronts, before),
            };
            self.net.run(|| hand_over(self.backend.program(family), &rules))??;
            *before = after;
        }
        Ok(())
    }

    /// Takes all rules away again, the base chains' jumps too.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub fn remove(self) -> Result<(), ProxyError> {
        let commands = [Family::V4, Family::V6].into_iter().flat_map(|family| self.backend.removal(family));
        commands.copied().try_for_each(|command| self.net.run(|| hand_over(command, ""))?)
    }
}

impl Backend {
    /// What takes away everything that rules of a family have made.
    const fn removal(self, family: Family) -> &'static [&'static [&'static str]] {
        match (self, family) {
            (Self::Nftables, Family::V4) => &[&["nft", "delete table ip kube-proxy"]],
            (Self::Nftables, Family::V6) => &[&["nft", "delete table ip6 kube-proxy"]],
            (Self::IptablesNft, Family::V4) => &[&["nft", "delete table ip nat; delete table ip filter"]],
            (Self::IptablesNft, Family::V6) => &[&["nft", "delete table ip6 nat; delete table ip6 filter"]],
            (Self::IptablesLegacy, Family::V4) => &[
                &["iptables-legacy", "-t", "nat", "-F"],
                &["iptables-legacy", "-t", "nat", "-X"],
                &["iptables-legacy", "-F"],
                &["iptables-legacy", "-X"],
            ],
            (Self::IptablesLegacy, Family::V6) => &[
                &["ip6tables-legacy", "-t", "nat", "-F"],
                &["ip6tables-legacy", "-t", "nat", "-X"],
                &["ip6tables-legacy", "-F"],
                &["ip6tables-legacy", "-X"],
            ],
        }
    }
}

/// Hands rules to nftables in the namespace of this thread.
///
/// # Errors
/// [`ProxyError`].
pub(crate) fn nft(rules: &str) -> Result<(), ProxyError> {
    hand_over(Backend::Nftables.program(Family::V4), rules)
}

fn hand_over(program: &'static [&'static str], rules: &str) -> Result<(), ProxyError> {
    let (name, arguments) = program.split_first().map_or(("nft", &[][..]), |(name, rest)| (*name, rest));
    let missing = |source| ProxyError::Missing { program: name, source };
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails early leaves its input unread; what it prints says why.
        let _unread = stdin.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ProxyError::Refused { program: name, said, rules: rules.to_owned() })
}
