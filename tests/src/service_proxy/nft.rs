//! The rules of kube-proxy's nftables mode (Kubernetes 1.33, `pkg/proxy/nftables`).

use std::fmt::Write as _;
use std::net::SocketAddr;

use sluice_policy_core::vector::schema::Family;

use super::{Front, MASQUERADE_MARK};

/// The text for `nft -f -`: one transaction that replaces what was there. The clients that affinity remembers are forgotten
/// by it.
#[must_use]
pub fn text(family: Family, fronts: &[Front]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _infallible = write(&mut out, family, fronts);
    out
}

fn write(out: &mut String, family: Family, fronts: &[Front]) -> std::fmt::Result {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
    let loopback = if family == Family::V4 { "127.0.0.0/8" } else { "::1" };
    writeln!(out, "add table {ip} kube-proxy\ndelete table {ip} kube-proxy\ntable {ip} kube-proxy {{")?;
    let fronts: Vec<(&Front, &'static str)> =
        fronts.iter().filter_map(|front| Some((front, front.protocol()?))).collect();
    for (front, _) in &fronts {
        for backend in front.backends.iter().filter(|_| front.affinity.is_some()) {
            let timeout = front.affinity.map_or(0, |limit| limit.as_secs());
            let name = affinity(front, *backend);
            writeln!(
                out,
                "  set {name} {{\n    type {address}; flags dynamic,timeout; timeout {timeout}s; size 65535;\n  }}"
            )?;
        }
    }
    let elements = |lines: Vec<String>| match lines.is_empty() {
        true => String::new(),
        false => format!(" elements = {{\n      {}\n    }}", lines.join(",\n      ")),
    };
    let verdicts = |with_backends: bool| -> Vec<String> {
        let mut lines = Vec::new();
        for (front, protocol) in fronts.iter().filter(|(front, _)| front.backends.is_empty() != with_backends) {
            let verdict =
                |chain: String| if with_backends { format!("goto {chain}") } else { "goto reject-chain".into() };
            for at in &front.cluster {
                lines.push(format!("{} . {protocol} . {} : {}", at.ip(), at.port(), verdict(service(front))));
            }
            for at in &front.external {
                lines.push(format!("{} . {protocol} . {} : {}", at.ip(), at.port(), verdict(external(front))));
            }
        }
        lines
    };
    let node_ports = |with_backends: bool| -> Vec<String> {
        let mine = fronts.iter().filter(|(front, _)| front.backends.is_empty() != with_backends);
        mine.filter_map(|(front, protocol)| {
            let verdict = if with_backends { external(front) } else { "reject-chain".into() };
            Some(format!("{protocol} . {} : goto {verdict}", front.node_port?))
        })
        .collect()
    };
    for (name, with_backends) in [("service-ips", true), ("no-endpoint-services", false)] {
        let lines = elements(verdicts(with_backends));
        writeln!(out, "  map {name} {{\n    type {address} . inet_proto . inet_service : verdict;{lines}\n  }}")?;
    }
    for (name, with_backends) in [("service-nodeports", true), ("no-endpoint-nodeports", false)] {
        let lines = elements(node_ports(with_backends));
        writeln!(out, "  map {name} {{\n    type inet_proto . inet_service : verdict;{lines}\n  }}")?;
    }
    writeln!(out, "  chain mark-for-masquerade {{\n    meta mark set meta mark or {MASQUERADE_MARK:#x}\n  }}")?;
    writeln!(out, "  chain reject-chain {{\n    reject\n  }}")?;
    for (front, protocol) in fronts.iter().filter(|(front, _)| !front.backends.is_empty()) {
        for backend in &front.backends {
            writeln!(out, "  chain {} {{", endpoint(front, *backend))?;
            // A backend that dials itself must see another source than itself.
            writeln!(out, "    {ip} saddr {} jump mark-for-masquerade", backend.ip())?;
            if front.affinity.is_some() {
                writeln!(out, "    update @{} {{ {ip} saddr }}", affinity(front, *backend))?;
            }
            writeln!(out, "    meta l4proto {protocol} dnat to {backend}\n  }}")?;
        }
        writeln!(out, "  chain {} {{", service(front))?;
        for backend in front.backends.iter().filter(|_| front.affinity.is_some()) {
            writeln!(out, "    {ip} saddr @{} goto {}", affinity(front, *backend), endpoint(front, *backend))?;
        }
        let choices = front.backends.iter().enumerate();
        let choices: Vec<String> =
            choices.map(|(index, backend)| format!("{index} : goto {}", endpoint(front, *backend))).collect();
        writeln!(out, "    numgen random mod {} vmap {{ {} }}\n  }}", front.backends.len(), choices.join(", "))?;
        if !front.external.is_empty() || front.node_port.is_some() {
            outer(out, front)?;
        }
    }
    write!(
        out,
        "  chain services {{
    {ip} daddr . meta l4proto . th dport vmap @service-ips
    {ip} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @service-nodeports
  }}
  chain endpoints-check {{
    {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services
    {ip} daddr != {loopback} fib daddr type local meta l4proto . th dport vmap @no-endpoint-nodeports
  }}
  chain filter-input {{
    type filter hook input priority -110;
    ct state new jump endpoints-check
  }}
  chain filter-forward {{
    type filter hook forward priority -110;
    ct state new jump endpoints-check
  }}
  chain filter-output {{
    type filter hook output priority -110;
    ct state new jump endpoints-check
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority dstnat;
    jump services
  }}
  chain nat-output {{
    type nat hook output priority -100;
    jump services
  }}
  chain nat-postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark and {MASQUERADE_MARK:#x} == 0 return
    meta mark set meta mark xor {MASQUERADE_MARK:#x}
    masquerade fully-random
  }}
}}
"
    )
}

/// What comes from outside.
fn outer(out: &mut String, front: &Front) -> std::fmt::Result {
    let (name, service) = (external(front), service(front));
    let Some(local) = &front.local else {
        return writeln!(out, "  chain {name} {{\n    jump mark-for-masquerade\n    goto {service}\n  }}");
    };
    writeln!(out, "  chain {name} {{\n    fib saddr type local jump mark-for-masquerade")?;
    writeln!(out, "    fib saddr type local goto {service}")?;
    if !local.is_empty() {
        let choices = local.iter().enumerate();
        let choices: Vec<String> =
            choices.map(|(index, backend)| format!("{index} : goto {}", endpoint(front, *backend))).collect();
        writeln!(out, "    numgen random mod {} vmap {{ {} }}", local.len(), choices.join(", "))?;
    }
    // Nobody here: kube-proxy drops it, and the load balancer is told to ask another node.
    writeln!(out, "  }}")
}

fn service(front: &Front) -> String {
    format!("service-{}-{}", front.hash(None), slug(front))
}

fn external(front: &Front) -> String {
    format!("external-{}-{}", front.hash(None), slug(front))
}

fn endpoint(front: &Front, backend: SocketAddr) -> String {
    format!("endpoint-{}-{}", front.hash(Some(backend)), slug(front))
}

fn affinity(front: &Front, backend: SocketAddr) -> String {
    format!("affinity-{}-{}", front.hash(Some(backend)), slug(front))
}

/// The front's name in the letters that nft allows, as far as there is room (names have up to 128 bytes).
fn slug(front: &Front) -> String {
    let allowed = |letter: char| if letter.is_ascii_alphanumeric() || "/-_.".contains(letter) { letter } else { '_' };
    front.name.trim_end_matches('/').chars().map(allowed).take(80).collect()
}
