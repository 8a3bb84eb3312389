//! What is asked, as a row of a vector.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::flow::Protocol;
use sluice_policy_core::l7::dns::Name;
use sluice_policy_core::vector::schema::{Endpoint, Expected, Family, Many, Request, Resolution, Row, Step};

use super::Options;

/// Where a name leads that was not said to have resolved (TEST-NET-1, RFC 5737).
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The question, and the cluster that it is about.
pub(super) struct Question {
    pub(super) step: Step,
    pub(super) row: Row,
    pub(super) families: Vec<Family>,
    pub(super) notes: Vec<String>,
}

impl Question {
    pub(super) fn read(options: &Options, resolved: &[String], objects: &[Value]) -> Result<Self, String> {
        let (protocol, port) = port(&options.port)?;
        let mut resolve = BTreeMap::new();
        for text in resolved {
            let wrong = || format!("--resolve {text:?} is not of the form name=address");
            let (name, address) = text.split_once('=').ok_or_else(wrong)?;
            let address: IpAddr = address.parse().map_err(|_invalid| wrong())?;
            let name = Name::new(name).map_err(|error| format!("--resolve: {error}"))?;
            let known = resolve.entry(name).or_insert_with(|| Resolution { addresses: Vec::new(), ttl: None });
            known.addresses.push(address);
        }
        let at =
            |object: &Value, pointer: &str, text: &str| object.pointer(pointer).and_then(Value::as_str) == Some(text);
        let is_node =
            |text: &str| objects.iter().any(|object| at(object, "/kind", "Node") && at(object, "/metadata/name", text));
        let mut notes = Vec::new();
        let from = match plain(&options.from, &is_node) {
            Some(from) => from,
            None => return Err(format!("--from {:?} is no namespace/pod, IP address or node", options.from)),
        };
        let to = match plain(&options.to, &is_node) {
            Some(to) => to,
            None => {
                let name = Name::new(&options.to).map_err(|error| format!("--to: {error}"))?;
                let known = resolve.entry(name).or_insert_with(|| {
                    notes.push(format!("{} is taken to resolve to {SOMEWHERE}; --resolve says otherwise", options.to));
                    Resolution { addresses: vec![SOMEWHERE], ttl: None }
                });
                Endpoint::Address(known.addresses.first().copied().unwrap_or(SOMEWHERE))
            }
        };
        let fixed = [&from, &to].into_iter().find_map(|endpoint| match endpoint {
            Endpoint::Address(address) => Some(Family::of(*address)),
            Endpoint::Pod(_) | Endpoint::Node(_) | Endpoint::External(_) => None,
        });
        let families = match (protocol, fixed) {
            (Protocol::ICMP, _) => vec![Family::V4],
            (Protocol::ICMPV6, _) => vec![Family::V6],
            (_, Some(family)) => vec![family],
            (_, None) => vec![Family::V4, Family::V6],
        };
        let one = |endpoint| Many { endpoints: vec![endpoint], list: false };
        let row = Row {
            path: String::new(),
            from: one(from),
            to: one(to),
            port,
            protocol,
            family: Family::V4,
            via: None,
            target_port: None,
            established: false,
            origin: None,
            request: request(options)?,
            verdict: Expected::Allow,
            audit: None,
            rule: None,
        };
        let step = Step { apply: objects.to_vec(), resolve, ..Step::default() };
        Ok(Self { step, row, families, notes })
    }
}

fn plain(text: &str, is_node: &dyn Fn(&str) -> bool) -> Option<Endpoint> {
    if let Ok(address) = text.parse() {
        return Some(Endpoint::Address(address));
    }
    if let Some((namespace, name)) = text.split_once('/') {
        return Some(Endpoint::Pod(PodKey { namespace: namespace.into(), name: name.into() }));
    }
    is_node(text).then(|| Endpoint::Node(text.into()))
}

fn port(text: &str) -> Result<(Protocol, u16), String> {
    let wrong = || format!("--port {text:?} is not of the form 80/TCP, 53/UDP, 80, ICMP or ICMP/8");
    let (first, second) = text.split_once('/').unwrap_or((text, ""));
    let (first, second) = (first.to_ascii_uppercase(), second.to_ascii_uppercase());
    let icmp = match first.as_str() {
        "ICMP" => Some((Protocol::ICMP, 8)),
        "ICMPV6" => Some((Protocol::ICMPV6, 128)),
        _ => None,
    };
    if let Some((protocol, echo)) = icmp {
        let kind = if second.is_empty() { echo } else { second.parse::<u8>().map_err(|_invalid| wrong())? };
        return Ok((protocol, kind.into()));
    }
    let protocol = match second.as_str() {
        "" | "TCP" => Protocol::TCP,
        "UDP" => Protocol::UDP,
        "SCTP" => Protocol::SCTP,
        _ => return Err(wrong()),
    };
    match first.parse() {
        Ok(0) | Err(_) => Err(wrong()),
        Ok(port) => Ok((protocol, port)),
    }
}

fn request(options: &Options) -> Result<Option<Request>, String> {
    if let Some(line) = &options.http {
        let wrong = || format!("--http {line:?} is not of the form \"GET /path\"");
        let (method, target) = line.split_once(' ').ok_or_else(wrong)?;
        let host = options.host.as_deref().unwrap_or_default();
        return Ok(Some(Request::Http {
            method: method.into(),
            target: target.into(),
            host: host.into(),
            headers: Vec::new(),
        }));
    }
    let dns = options.dns.as_deref().map(|name| Request::Dns(name.into()));
    Ok(dns.or_else(|| options.server_name.as_deref().map(|name| Request::ServerName(name.into()))))
}
