//! The cluster layouts of a file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::schema::{
    Addresses, CidrGroupSpec, ContainerPort, External, Family, Fixture, NodeSpec, PodSpec, ServicePortSpec,
    ServiceSpec, TargetPort,
};
use super::{choice, elements, entries, for_readers, optional};
use crate::cluster::{Labels, ObjectKey, PodKey, Visible};
use crate::flow::Protocol;
use crate::l7::dns::Name;
use crate::model::{Text, Usable};
use crate::parse::cursor::{Cursor, Fields, Report};

pub(super) fn fixture(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Fixture> {
    let mut fields = cursor.fields(report)?;
    for_readers(&mut fields, &["title", "note"], report)?;
    let mut fixture = Fixture {
        namespaces: namespaces(fields.take("namespaces"), report)?,
        pods: pods(fields.take("pods"), report)?,
        ..Fixture::default()
    };
    for (name, value) in entries(fields.take("nodes"), report)? {
        fixture.nodes.insert(name.into(), node(&value, report)?);
    }
    for (name, value) in entries(fields.take("services"), report)? {
        let PodKey { namespace, name } = pod_key(name, &value.path, report)?;
        fixture.services.insert(ObjectKey { namespace, name }, service(&value, report)?);
    }
    for (name, value) in entries(fields.take("externals"), report)? {
        fixture.externals.insert(name.into(), external(&value, report)?);
    }
    for (name, value) in entries(fields.take("cidrGroups"), report)? {
        fixture.cidr_groups.insert(name.into(), cidr_group(&value, report)?);
    }
    fields.finish(report)?;
    Ok(fixture)
}

pub(super) fn namespaces(cursor: Option<Cursor<'_>>, report: &mut Report) -> Usable<BTreeMap<Text, Labels>> {
    let entries = entries(cursor, report)?;
    entries.iter().map(|(name, value)| Ok((Text::from(*name), labels(value, report)?))).collect()
}

pub(super) fn pods(cursor: Option<Cursor<'_>>, report: &mut Report) -> Usable<BTreeMap<PodKey, PodSpec>> {
    let entries = entries(cursor, report)?;
    entries.iter().map(|(name, value)| Ok((pod_key(name, &value.path, report)?, pod(value, report)?))).collect()
}

/// `namespace/name`.
pub(super) fn pod_key(text: &str, path: &str, report: &mut Report) -> Usable<PodKey> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(PodKey { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(report.refused(path, format!("{text:?} is not of the form namespace/name"))),
    }
}

/// Labels; none where there is `null`.
pub(super) fn labels(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Labels> {
    if cursor.value.is_null() {
        return Ok(Labels::default());
    }
    let entries = entries(Some(cursor.clone()), report)?;
    let pairs: Usable<Vec<_>> =
        entries.iter().map(|(name, value)| Ok((Text::from(*name), value.owned(report)?))).collect();
    Ok(Labels::new(pairs?))
}

fn optional_labels(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Labels> {
    fields.take("labels").map_or_else(|| Ok(Labels::default()), |cursor| labels(&cursor, report))
}

fn node(cursor: &Cursor<'_>, report: &mut Report) -> Usable<NodeSpec> {
    let mut fields = cursor.fields(report)?;
    let node = NodeSpec { labels: optional_labels(&mut fields, report)?, addresses: own(&mut fields, true, report)? };
    fields.finish(report)?;
    Ok(node)
}

fn pod(cursor: &Cursor<'_>, report: &mut Report) -> Usable<PodSpec> {
    let mut fields = cursor.fields(report)?;
    let mut ports = Vec::new();
    for port in elements(fields.take("ports"), report)? {
        ports.push(container_port(&port, report)?);
    }
    let host_network = flag(&mut fields, "hostNetwork", false, report)?;
    let mut visible: Vec<Visible> = Vec::new();
    for element in elements(fields.take("visibility"), report)? {
        let read = crate::parse::visibility::read(element.text(report)?);
        visible.push(read.map_err(|why| report.refused(&element.path, format!("{}: {why}", element.shown())))?);
    }
    // In the order in which an annotation is read.
    visible.sort_by_key(|seen| (seen.direction, seen.protocol, seen.port));
    let phases = [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true), ("Unknown", false)];
    let pod = PodSpec {
        labels: optional_labels(&mut fields, report)?,
        addresses: own(&mut fields, !host_network, report)?,
        node: optional(&mut fields, "node", report)?,
        host_network,
        ports,
        service_account: optional(&mut fields, "serviceAccount", report)?,
        ready: flag(&mut fields, "ready", true, report)?,
        finished: fields.take("phase").map_or(Ok(false), |phase| choice(&phase, report, &phases))?,
        audit: flag(&mut fields, "audit", false, report)?,
        visible: visible.into(),
    };
    fields.finish(report)?;
    Ok(pod)
}

fn flag(fields: &mut Fields<'_>, name: &'static str, default: bool, report: &mut Report) -> Usable<bool> {
    fields.take(name).map_or(Ok(default), |cursor| cursor.boolean(report))
}

fn container_port(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ContainerPort> {
    let mut fields = cursor.fields(report)?;
    let port = ContainerPort {
        name: optional(&mut fields, "name", report)?,
        port: port(&fields.required(report, "port")?, report)?,
        protocol: transport(&mut fields, report)?,
    };
    fields.finish(report)?;
    Ok(port)
}

fn transport(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Protocol> {
    let words = [("TCP", Protocol::TCP), ("UDP", Protocol::UDP), ("SCTP", Protocol::SCTP)];
    fields.take("protocol").map_or(Ok(Protocol::TCP), |cursor| choice(&cursor, report, &words))
}

fn service(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ServiceSpec> {
    let mut fields = cursor.fields(report)?;
    let selector = fields.take("selector").map(|cursor| labels(&cursor, report)).transpose()?;
    let mut cluster_addresses = Vec::new();
    let mut headless = false;
    if let Some(cursor) = fields.take("clusterIP") {
        match cursor.value.as_str() {
            Some("None") => headless = true,
            _ => cluster_addresses = addresses(&cursor, report)?,
        }
    }
    let mut ports = Vec::new();
    for cursor in fields.required(report, "ports")?.elements(report)? {
        ports.push(service_port(&cursor, report)?);
    }
    let external = fields.take("externalIPs");
    let endpoints = fields.take("endpoints");
    let spec = ServiceSpec {
        labels: optional_labels(&mut fields, report)?,
        selector,
        cluster_addresses,
        headless,
        external_addresses: external.map_or_else(|| Ok(Vec::new()), |cursor| addresses(&cursor, report))?,
        ports,
        endpoints: endpoints.map_or_else(|| Ok(Vec::new()), |cursor| addresses(&cursor, report))?,
    };
    if spec.selector.is_some() && !spec.endpoints.is_empty() {
        return Err(report.refused(&cursor.path, "has a selector and endpoints: only one of them can be right"));
    }
    fields.finish(report)?;
    Ok(spec)
}

fn service_port(cursor: &Cursor<'_>, report: &mut Report) -> Usable<ServicePortSpec> {
    let mut fields = cursor.fields(report)?;
    let number = port(&fields.required(report, "port")?, report)?;
    let target = match fields.take("targetPort") {
        None => TargetPort::Number(number),
        Some(cursor) if cursor.value.is_string() => TargetPort::Named(cursor.owned(report)?),
        Some(cursor) => TargetPort::Number(port(&cursor, report)?),
    };
    let spec = ServicePortSpec {
        name: optional(&mut fields, "name", report)?,
        port: number,
        target,
        protocol: transport(&mut fields, report)?,
        node_port: fields.take("nodePort").map(|cursor| port(&cursor, report)).transpose()?,
    };
    fields.finish(report)?;
    Ok(spec)
}

fn external(cursor: &Cursor<'_>, report: &mut Report) -> Usable<External> {
    let mut fields = cursor.fields(report)?;
    let mut names = Vec::new();
    for cursor in elements(fields.take("dnsNames"), report)? {
        names.push(Name::new(cursor.text(report)?).map_err(|error| report.refused(&cursor.path, error.to_string()))?);
    }
    let external = External { addresses: own(&mut fields, true, report)?, names };
    fields.finish(report)?;
    Ok(external)
}

fn cidr_group(cursor: &Cursor<'_>, report: &mut Report) -> Usable<CidrGroupSpec> {
    let mut fields = cursor.fields(report)?;
    let labels = optional_labels(&mut fields, report)?;
    let mut cidrs = Vec::new();
    for cursor in fields.required(report, "cidrs")?.elements(report)? {
        let text = cursor.text(report)?;
        let Ok(cidr) = text.parse::<IpNet>() else {
            return Err(report.refused(&cursor.path, format!("{} is not a CIDR", cursor.shown())));
        };
        cidrs.push(cidr.trunc());
    }
    fields.finish(report)?;
    Ok(CidrGroupSpec { labels, cidrs })
}

/// `ip` and `ip6`. Without them, what is `addressed` cannot be meant.
fn own(fields: &mut Fields<'_>, addressed: bool, report: &mut Report) -> Usable<Addresses> {
    let mut of = |name: &'static str, family: Family, report: &mut Report| -> Usable<Option<IpAddr>> {
        let Some(cursor) = fields.take(name) else { return Ok(None) };
        let address = address(&cursor, report)?;
        if Family::of(address) != family {
            return Err(report.refused(&cursor.path, format!("{address} is not an {} address", family.as_str())));
        }
        Ok(Some(address))
    };
    let addresses = Addresses { v4: of("ip", Family::V4, report)?, v6: of("ip6", Family::V6, report)? };
    if addressed && addresses == Addresses::default() {
        return Err(report.refused(fields.path(), "has no address: ip, ip6, or both are needed"));
    }
    Ok(addresses)
}

/// An address, or a list of them.
pub(super) fn addresses(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vec<IpAddr>> {
    if cursor.value.is_string() {
        return Ok(vec![address(cursor, report)?]);
    }
    cursor.elements(report)?.iter().map(|element| address(element, report)).collect()
}

fn address(cursor: &Cursor<'_>, report: &mut Report) -> Usable<IpAddr> {
    let text = cursor.text(report)?;
    text.parse().map_err(|_invalid| report.refused(&cursor.path, format!("{} is not an IP address", cursor.shown())))
}

pub(super) fn port(cursor: &Cursor<'_>, report: &mut Report) -> Usable<u16> {
    let number = cursor.number(report, 1, i64::from(u16::MAX))?;
    u16::try_from(number).map_err(|_invalid| report.refused(&cursor.path, "is not a port"))
}
