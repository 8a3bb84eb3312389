//! Rows of `expect`.

use super::super::schema::{Endpoint, Expected, Family, Many, Request, Row, Via};
use super::{MAX_PROBES, choice, cluster, entries, for_readers, optional};
use crate::flow::{Origin, Protocol};
use crate::model::{Text, Usable};
use crate::parse::cursor::{Cursor, Fields, Report};

const VERDICTS: [(&str, Expected); 3] =
    [("allow", Expected::Allow), ("deny", Expected::Deny), ("refuse", Expected::Refuse)];

pub(super) fn row(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Row> {
    let mut fields = cursor.fields(report)?;
    for_readers(&mut fields, &["title", "note"], report)?;
    let from = many(&fields.required(report, "from")?, report)?;
    let to = many(&fields.required(report, "to")?, report)?;
    let request = request(&mut fields, report)?;
    let protocol = match fields.take("protocol") {
        Some(cursor) => protocol(&cursor, report)?,
        None if matches!(request, Some(Request::Dns(_))) => Protocol::UDP,
        None => Protocol::TCP,
    };
    let family = family(&mut fields, protocol, &from, &to, report)?;
    let port = port(&mut fields, protocol, report)?;
    let vias = [("podIP", Via::Pod), ("service", Via::Service), ("nodePort", Via::NodePort)];
    let origins = [("forwarded", Origin::Forwarded), ("ownNode", Origin::OwnNode), ("hairpin", Origin::Hairpin)];
    let established = match fields.take("connection") {
        Some(cursor) => choice(&cursor, report, &[("new", false), ("established", true)])?,
        None => false,
    };
    let row = Row {
        path: cursor.path.clone(),
        from,
        to,
        port,
        protocol,
        family,
        via: fields.take("via").map(|cursor| choice(&cursor, report, &vias)).transpose()?,
        target_port: fields.take("targetPort").map(|cursor| cluster::port(&cursor, report)).transpose()?,
        established,
        origin: fields.take("origin").map(|cursor| choice(&cursor, report, &origins)).transpose()?,
        request,
        verdict: choice(&fields.required(report, "verdict")?, report, &VERDICTS)?,
        audit: fields.take("audit").map(|cursor| choice(&cursor, report, &VERDICTS)).transpose()?,
        rule: optional(&mut fields, "rule", report)?,
    };
    fields.finish(report)?;
    check(&row, report)?;
    Ok(row)
}

/// What cannot be meant.
fn check(row: &Row, report: &mut Report) -> Usable<()> {
    let tcp = row.protocol == Protocol::TCP;
    let fault = match &row.request {
        None if row.verdict == Expected::Refuse || row.audit == Some(Expected::Refuse) => {
            "refuse is the verdict on a request: give http, dns or serverName, or expect deny"
        }
        Some(Request::Http { .. } | Request::ServerName(_)) if !tcp => "http and serverName go over TCP",
        Some(Request::Dns(_)) if !tcp && row.protocol != Protocol::UDP => "dns goes over UDP or TCP",
        _ if row.target_port.is_some() && row.via.is_none_or(|via| via == Via::Pod) => {
            "targetPort is the port behind a Service: say via: service or via: nodePort"
        }
        _ if row.from.endpoints.len().saturating_mul(row.to.endpoints.len()) > MAX_PROBES => {
            "has more than a million probes: split it"
        }
        _ => return Ok(()),
    };
    Err(report.refused(&row.path, fault))
}

fn many(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Many> {
    if cursor.value.is_string() {
        return Ok(Many { endpoints: vec![endpoint(cursor, report)?], list: false });
    }
    let endpoints: Usable<Vec<_>> = cursor.elements(report)?.iter().map(|element| endpoint(element, report)).collect();
    Ok(Many { endpoints: endpoints?, list: true })
}

fn endpoint(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Endpoint> {
    let text = cursor.text(report)?;
    match text.split_once(':') {
        Some(("node", name)) if !name.is_empty() => Ok(Endpoint::Node(name.into())),
        Some(("ext", name)) if !name.is_empty() => Ok(Endpoint::External(name.into())),
        Some(("ip", address)) => address
            .parse()
            .map(Endpoint::Address)
            .map_err(|_invalid| report.refused(&cursor.path, format!("{} is not an IP address", cursor.shown()))),
        Some(_) => {
            let message =
                format!("{} is not of the form namespace/pod, node:name, ext:name or ip:address", cursor.shown());
            Err(report.refused(&cursor.path, message))
        }
        None => cluster::pod_key(text, &cursor.path, report).map(Endpoint::Pod),
    }
}

fn protocol(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Protocol> {
    if cursor.value.is_number() {
        let number = cursor.number(report, 0, i64::from(u8::MAX))?;
        return u8::try_from(number)
            .map(Protocol)
            .map_err(|_invalid| report.refused(&cursor.path, "is not a protocol"));
    }
    let words = [
        ("TCP", Protocol::TCP),
        ("UDP", Protocol::UDP),
        ("SCTP", Protocol::SCTP),
        ("ICMP", Protocol::ICMP),
        ("ICMPv6", Protocol::ICMPV6),
    ];
    choice(cursor, report, &words)
}

/// `family`; where it is not given, that of the protocol (ICMPv6) or of an `ip:` endpoint, else IPv4.
fn family(fields: &mut Fields<'_>, protocol: Protocol, from: &Many, to: &Many, report: &mut Report) -> Usable<Family> {
    let mut implied = from.endpoints.iter().chain(&to.endpoints).filter_map(|endpoint| match endpoint {
        Endpoint::Address(address) => Some(Family::of(*address)),
        Endpoint::Pod(_) | Endpoint::Node(_) | Endpoint::External(_) => None,
    });
    let implied = match protocol {
        Protocol::ICMP => Some(Family::V4),
        Protocol::ICMPV6 => Some(Family::V6),
        _ => implied.next(),
    };
    let Some(cursor) = fields.take("family") else { return Ok(implied.unwrap_or(Family::V4)) };
    let family = choice(&cursor, report, &[("IPv4", Family::V4), ("IPv6", Family::V6)])?;
    match (protocol, family) {
        (Protocol::ICMP, Family::V6) => Err(report.refused(&cursor.path, "over IPv6 it is ICMPv6")),
        (Protocol::ICMPV6, Family::V4) => Err(report.refused(&cursor.path, "over IPv4 it is ICMP")),
        _ => Ok(family),
    }
}

/// `port`, or `icmpType`; a ping where ICMP has neither.
fn port(fields: &mut Fields<'_>, protocol: Protocol, report: &mut Report) -> Usable<u16> {
    let (cursor, icmp_type) = (fields.take("port"), fields.take("icmpType"));
    let echo = match protocol {
        Protocol::ICMP => Some(8),
        Protocol::ICMPV6 => Some(128),
        _ => None,
    };
    let Some(echo) = echo else {
        if let Some(cursor) = icmp_type {
            return Err(report.refused(&cursor.path, format!("{protocol} has no types")));
        }
        return match (protocol, cursor) {
            (Protocol::TCP | Protocol::UDP | Protocol::SCTP, Some(cursor)) => cluster::port(&cursor, report),
            (Protocol::TCP | Protocol::UDP | Protocol::SCTP, None) => fields.required(report, "port").map(|_| 0),
            (_, Some(cursor)) => cursor.number(report, 0, 0).map(|_| 0),
            (_, None) => Ok(0),
        };
    };
    if let Some(cursor) = cursor {
        cursor.number(report, 0, 0)?;
    }
    let Some(cursor) = icmp_type else { return Ok(echo) };
    let number = cursor.number(report, 0, i64::from(u8::MAX))?;
    u16::try_from(number).map_err(|_invalid| report.refused(&cursor.path, "is not a type"))
}

fn request(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Option<Request>> {
    let (http, dns, server_name) = (fields.take("http"), fields.take("dns"), fields.take("serverName"));
    let (host, headers) = (fields.take("host"), fields.take("headers"));
    if [&http, &dns, &server_name].iter().filter(|request| request.is_some()).count() > 1 {
        return Err(report.refused(fields.path(), "has two of http, dns and serverName"));
    }
    if let (None, Some(cursor)) = (&http, host.as_ref().or(headers.as_ref())) {
        return Err(report.refused(&cursor.path, "belongs to http, which is missing"));
    }
    if let Some(cursor) = http {
        return self::http(&cursor, host, headers, report).map(Some);
    }
    if let Some(cursor) = dns {
        return Ok(Some(Request::Dns(cursor.owned(report)?)));
    }
    server_name.map(|cursor| cursor.owned(report).map(Request::ServerName)).transpose()
}

fn http(
    cursor: &Cursor<'_>,
    host: Option<Cursor<'_>>,
    headers: Option<Cursor<'_>>,
    report: &mut Report,
) -> Usable<Request> {
    let line = cursor.text(report)?;
    let (method, target) = match line.split_once(' ') {
        Some((method, target)) if !method.is_empty() && !target.is_empty() => (method, target),
        _ => return Err(report.refused(&cursor.path, format!("{line:?} is not of the form \"GET /path\""))),
    };
    let host = host.map(|host| host.owned(report)).transpose()?.unwrap_or_else(|| Text::from(""));
    let mut list = Vec::new();
    for (name, value) in entries(headers, report)? {
        if value.value.is_string() {
            list.push((name.into(), value.owned(report)?));
            continue;
        }
        for value in value.elements(report)? {
            list.push((name.into(), value.owned(report)?));
        }
    }
    Ok(Request::Http { method: method.into(), target: target.into(), host, headers: list })
}
