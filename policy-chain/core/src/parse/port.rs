//! Protocols and ports, in the four ways in which the APIs write them.

use serde_json::Value;

use super::cursor::{Cursor, Faults, Fields, Report, quoted};
use crate::flow::Protocol;
use crate::model::port::{PortMatch, PortTarget, ProtocolMatch};
use crate::model::{Text, Usable};

/// `TCP`, `UDP` or `SCTP`.
///
/// # Errors
/// It is none of them.
pub(super) fn protocol(field: &Cursor<'_>, report: &mut Report) -> Usable<Protocol> {
    match field.text(report)? {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        other => Err(report.refused(&field.path, format!("{} is none of TCP, UDP, SCTP", quoted(other)))),
    }
}

/// A port number; there is no port 0.
///
/// # Errors
/// It is none.
pub(super) fn number(field: &Cursor<'_>, report: &mut Report) -> Usable<u16> {
    let number = field.number(report, 1, i64::from(u16::MAX))?;
    // The range is checked above.
    Ok(u16::try_from(number).unwrap_or(u16::MAX))
}

/// The rule that the name of a port breaks, if it breaks one (apimachinery, `IsValidPortName`).
pub(super) fn broken_name_rule(name: &str) -> Option<&'static str> {
    let characters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let name_is_good = name.len() <= 15
        && name.bytes().all(characters)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.contains("--")
        && !name.starts_with('-')
        && !name.ends_with('-');
    (!name_is_good).then_some(
        "1 to 15 lower case letters, digits and '-', one letter at the least, no '--' and no '-' at either end",
    )
}

/// An element of `ports` of a NetworkPolicy.
///
/// # Errors
/// It cannot be used.
pub(super) fn network_port(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let protocol = faults.keep(protocol_or_tcp(&mut fields, report));
    let first = fields.take("port");
    let last = fields.take("endPort");
    let target = match (&first, &last) {
        (None, None) => Ok(PortTarget::Any),
        (None, Some(last)) => Err(report.refused(&last.path, "needs a port as the beginning of the range")),
        (Some(first), _) => match (first.value, &last) {
            (Value::String(_), Some(last)) => {
                Err(report.refused(&last.path, "needs a port with a number, not a name, as the beginning of the range"))
            }
            (Value::String(name), None) => match broken_name_rule(name) {
                None => Ok(PortTarget::Named(name.as_str().into())),
                Some(rule) => {
                    Err(report.refused(&first.path, format!("{} is not the name of a port: {rule}", quoted(name))))
                }
            },
            (_, None) => number(first, report).map(|port| PortTarget::Range(port, port)),
            (_, Some(last)) => range(first, last, report, 0),
        },
    };
    let target = faults.keep(target);
    faults.keep(fields.finish(report));
    faults.or(port_match(protocol, target))
}

/// An element of `protocols` of a ClusterNetworkPolicy.
///
/// # Errors
/// It cannot be used.
pub(super) fn cluster_protocol(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let mut found = Vec::new();
    for (name, protocol) in [("tcp", Protocol::TCP), ("udp", Protocol::UDP), ("sctp", Protocol::SCTP)] {
        if let Some(inner) = fields.take(name) {
            let target = faults.keep(destination_port(&inner, report));
            found.push(port_match(Some(protocol), target));
        }
    }
    if let Some(name) = fields.take("destinationNamedPort") {
        found.extend(faults.keep(named(&name, report)));
    }
    one_of(fields, found, faults, report, "tcp, udp, sctp, destinationNamedPort")
}

/// An element of `ports` of an AdminNetworkPolicy, and of AWS's ClusterNetworkPolicy.
///
/// # Errors
/// It cannot be used.
pub(super) fn admin_port(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let mut found = Vec::new();
    if let Some(inner) = fields.take("portNumber") {
        found.extend(faults.keep(port_number(&inner, report)));
    }
    if let Some(inner) = fields.take("portRange") {
        found.extend(faults.keep(port_range(&inner, report)));
    }
    if let Some(name) = fields.take("namedPort") {
        found.extend(faults.keep(named(&name, report)));
    }
    one_of(fields, found, faults, report, "portNumber, portRange, namedPort")
}

/// The one condition of an element that has exactly one field.
fn one_of(
    fields: Fields<'_>,
    mut found: Vec<PortMatch>,
    mut faults: Faults,
    report: &mut Report,
    names: &str,
) -> Usable<PortMatch> {
    let path = fields.path().to_owned();
    faults.keep(fields.finish(report));
    if faults.first().is_none() && found.len() != 1 {
        let message = format!("has {} of the fields {names}; exactly one is needed", found.len());
        faults.keep::<()>(Err(report.refused(&path, message)));
    }
    faults.or(found.pop().unwrap_or_else(|| port_match(None, None)))
}

/// What `tcp`, `udp` and `sctp` hold.
fn destination_port(field: &Cursor<'_>, report: &mut Report) -> Usable<PortTarget> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let inner = fields.take("destinationPort");
    faults.keep(fields.finish(report));
    let Some(inner) = inner else {
        if faults.first().is_none() {
            let message = "needs a destinationPort; for every port write range {start: 1, end: 65535}";
            faults.keep::<()>(Err(report.refused(&field.path, message)));
        }
        return faults.or(PortTarget::Any);
    };
    let mut fields = inner.fields(report)?;
    let one = fields.take("number");
    let many = fields.take("range");
    let target = match (&one, &many) {
        (Some(one), None) => number(one, report).map(|port| PortTarget::Range(port, port)),
        (None, Some(many)) => start_to_end(many, report, false).map(|(_, target)| target),
        (Some(_), Some(_)) => Err(report.refused(&inner.path, "has number and range; exactly one is needed")),
        (None, None) => Ok(PortTarget::Any),
    };
    let target = faults.keep(target);
    faults.keep(fields.finish(report));
    if one.is_none() && many.is_none() && faults.first().is_none() {
        faults.keep::<()>(Err(report.refused(&inner.path, "has neither number nor range; exactly one is needed")));
    }
    faults.or(target.unwrap_or(PortTarget::Any))
}

fn port_number(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let protocol = faults.keep(protocol_or_tcp(&mut fields, report));
    let port = fields.required(report, "port").and_then(|port| number(&port, report));
    let target = faults.keep(port).map(|port| PortTarget::Range(port, port));
    faults.keep(fields.finish(report));
    faults.or(port_match(protocol, target))
}

fn port_range(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let (protocol, target) = start_to_end(field, report, true)?;
    Ok(port_match(Some(protocol), Some(target)))
}

/// `{protocol?, start, end}`, with start < end.
fn start_to_end(field: &Cursor<'_>, report: &mut Report, with_protocol: bool) -> Usable<(Protocol, PortTarget)> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let protocol = if with_protocol { faults.keep(protocol_or_tcp(&mut fields, report)) } else { Some(Protocol::TCP) };
    let start = faults.keep(fields.required(report, "start"));
    let end = faults.keep(fields.required(report, "end"));
    let target = start.zip(end).and_then(|(start, end)| faults.keep(range(&start, &end, report, 1)));
    faults.keep(fields.finish(report));
    faults.or((protocol.unwrap_or(Protocol::TCP), target.unwrap_or(PortTarget::Any)))
}

/// A range whose end is greater than its beginning by `least` or more.
fn range(first: &Cursor<'_>, last: &Cursor<'_>, report: &mut Report, least: u16) -> Usable<PortTarget> {
    let start = number(first, report);
    let end = number(last, report);
    let (start, end) = (start?, end?);
    if end.checked_sub(start).is_none_or(|length| length < least) {
        let wanted = if least == 0 { "not less than" } else { "greater than" };
        return Err(report.refused(&last.path, format!("{end} has to be {wanted} the beginning of the range, {start}")));
    }
    Ok(PortTarget::Range(start, end))
}

/// A port by its name in a custom resource, where the API server looks at no grammar. One that no container port can have
/// matches nothing.
fn named(field: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let name: Text = field.owned(report)?;
    if let Some(rule) = broken_name_rule(&name) {
        let message = format!("no container port is called {}, so this matches nothing: {rule}", quoted(&name));
        report.warn(&field.path, message);
    }
    Ok(PortMatch { protocol: ProtocolMatch::Transport, port: PortTarget::Named(name) })
}

fn protocol_or_tcp(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Protocol> {
    fields.take("protocol").map_or(Ok(Protocol::TCP), |field| protocol(&field, report))
}

/// What is not known is not seen either: there is a fault then, and the whole is given up.
fn port_match(protocol: Option<Protocol>, port: Option<PortTarget>) -> PortMatch {
    PortMatch {
        protocol: ProtocolMatch::Exactly(protocol.unwrap_or(Protocol::TCP)),
        port: port.unwrap_or(PortTarget::Any),
    }
}
