//! The rules of kube-proxy's iptables mode (Kubernetes 1.33, `pkg/proxy/iptables`), for either backend of iptables.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use sluice_policy_core::vector::schema::Family;

use super::{Front, MASQUERADE_MARK};

/// What an earlier text has left in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Before {
    /// Whether the base chains jump to ours.
    pub jumps: bool,
    /// The chains of fronts and backends.
    pub chains: BTreeSet<String>,
}

/// The text for `iptables-restore --noflush` (one transaction a table), and what is there after it.
#[must_use]
pub fn text(family: Family, fronts: &[Front], before: &Before) -> (String, Before) {
    let mut rules = Rules { family, chains: BTreeSet::new(), nat: String::new(), filter: String::new() };
    for front in fronts {
        if let Some(protocol) = front.protocol() {
            // Writing to a String cannot fail.
            let _infallible = rules.front(front, protocol);
        }
    }
    let mut out = String::from("*filter\n:KUBE-SERVICES - [0:0]\n");
    if !before.jumps {
        for chain in ["INPUT", "FORWARD", "OUTPUT"] {
            let _infallible = writeln!(out, "-I {chain} -m conntrack --ctstate NEW -j KUBE-SERVICES");
        }
    }
    out += &rules.filter;
    out += "COMMIT\n*nat\n";
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        let _infallible = writeln!(out, ":{chain} - [0:0]");
    }
    for chain in rules.chains.union(&before.chains) {
        let _infallible = writeln!(out, ":{chain} - [0:0]");
    }
    if !before.jumps {
        out += "-I PREROUTING -j KUBE-SERVICES\n-I OUTPUT -j KUBE-SERVICES\n-I POSTROUTING -j KUBE-POSTROUTING\n";
    }
    let mark = format!("{MASQUERADE_MARK:#x}");
    let _infallible = write!(
        out,
        "-A KUBE-MARK-MASQ -j MARK --or-mark {mark}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {mark}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    );
    out += &rules.nat;
    let loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1/128" };
    let _infallible = writeln!(out, "-A KUBE-SERVICES ! -d {loopback} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    for chain in before.chains.difference(&rules.chains) {
        let _infallible = writeln!(out, "-X {chain}");
    }
    out += "COMMIT\n";
    (out, Before { jumps: true, chains: rules.chains })
}

struct Rules {
    family: Family,
    chains: BTreeSet<String>,
    nat: String,
    filter: String,
}

impl Rules {
    /// What comes from outside.
    fn outer(&mut self, front: &Front, external: &str, service: &str) -> std::fmt::Result {
        let Some(local) = &front.local else {
            return writeln!(self.nat, "-A {external} -j KUBE-MARK-MASQ\n-A {external} -j {service}");
        };
        writeln!(self.nat, "-A {external} -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ")?;
        writeln!(self.nat, "-A {external} -m addrtype --src-type LOCAL -j {service}")?;
        for (index, backend) in local.iter().enumerate() {
            let chain = endpoint(front, backend);
            writeln!(self.nat, "-A {external}{} -j {chain}", chance(local.len() - index))?;
        }
        Ok(())
    }

    fn front(&mut self, front: &Front, protocol: &str) -> std::fmt::Result {
        let bits = if self.family == Family::V4 { 32 } else { 128 };
        let matches =
            |at: &SocketAddr| format!("-d {}/{bits} -p {protocol} -m {protocol} --dport {}", at.ip(), at.port());
        let node_port = front.node_port.map(|port| format!("-p {protocol} -m {protocol} --dport {port}"));
        if front.backends.is_empty() {
            for at in front.cluster.iter().chain(&front.external) {
                writeln!(self.filter, "-A KUBE-SERVICES {} -j REJECT", matches(at))?;
            }
            if let Some(port) = node_port {
                writeln!(self.filter, "-A KUBE-SERVICES -m addrtype --dst-type LOCAL {port} -j REJECT")?;
            }
            return Ok(());
        }
        let (service, external) = (format!("KUBE-SVC-{}", front.hash(None)), format!("KUBE-EXT-{}", front.hash(None)));
        self.chains.insert(service.clone());
        for at in &front.cluster {
            writeln!(self.nat, "-A KUBE-SERVICES {} -j {service}", matches(at))?;
        }
        if !front.external.is_empty() || node_port.is_some() {
            self.chains.insert(external.clone());
            self.outer(front, &external, &service)?;
        }
        for at in &front.external {
            writeln!(self.nat, "-A KUBE-SERVICES {} -j {external}", matches(at))?;
        }
        if let Some(port) = node_port {
            writeln!(self.nat, "-A KUBE-NODEPORTS {port} -j {external}")?;
        }
        if let Some(limit) = front.affinity {
            for chain in front.backends.iter().map(|backend| endpoint(front, backend)) {
                let seconds = limit.as_secs();
                writeln!(
                    self.nat,
                    "-A {service} -m recent --name {chain} --rcheck --seconds {seconds} --reap -j {chain}"
                )?;
            }
        }
        for (index, backend) in front.backends.iter().enumerate() {
            let chain = endpoint(front, backend);
            writeln!(self.nat, "-A {service}{} -j {chain}", chance(front.backends.len() - index))?;
            // A backend that dials itself must see another source than itself.
            writeln!(self.nat, "-A {chain} -s {}/{bits} -j KUBE-MARK-MASQ", backend.ip())?;
            let recent = front.affinity.map(|_| format!(" -m recent --name {chain} --set")).unwrap_or_default();
            writeln!(self.nat, "-A {chain} -p {protocol}{recent} -m {protocol} -j DNAT --to-destination {backend}")?;
            self.chains.insert(chain);
        }
        Ok(())
    }
}

fn endpoint(front: &Front, backend: &SocketAddr) -> String {
    format!("KUBE-SEP-{}", front.hash(Some(*backend)))
}

/// The match for the next of `left` backends; the last one takes what is left.
fn chance(left: usize) -> String {
    match left {
        1 => String::new(),
        left => format!(" -m statistic --mode random --probability {}", share(left)),
    }
}

/// One in `of`, with ten decimals, as kube-proxy writes it.
fn share(of: usize) -> String {
    let billions = 10_000_000_000_u64 / u64::try_from(of).unwrap_or(u64::MAX).max(1);
    format!("0.{billions:010}")
}
