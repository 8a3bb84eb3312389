//! `toPorts` and `icmps`.

use serde_json::Value;

use super::super::cursor::{Cursor, Faults, Fields, Report, shown};
use super::{application, each};
use crate::flow::{Direction, Protocol};
use crate::model::Usable;
use crate::model::cilium::CiliumPorts;
use crate::model::port::{PortMatch, PortTarget, Ports, ProtocolMatch};

/// Ports of an element of `toPorts`, and fields of an element of `icmps` (Cilium, `pkg/policy/api/rule_validation.go`).
const MAX: usize = 40;

/// Letters of a port's name (RFC 6335, 5.1).
const MAX_NAME: usize = 15;

/// Reads `toPorts` and `icmps` of a rule that allows. None: neither says anything, which is every port.
pub(super) fn allowed(
    fields: &mut Fields<'_>,
    direction: Direction,
    report: &mut Report,
) -> Usable<Option<Vec<CiliumPorts>>> {
    let mut faults = Faults::default();
    let (ports, icmps) = lists(fields, &mut faults, report);
    let rules = each(&ports, report, |cursor, report| application::port_rule(cursor, direction, report));
    let rules = faults.keep(rules);
    let messages = faults.keep(each(&icmps, report, icmp_rule));
    faults.or(match (ports.is_empty(), icmps.is_empty()) {
        (false, _) => rules,
        (true, false) => messages.map(|messages| vec![CiliumPorts::of(messages.concat())]),
        (true, true) => None,
    })
}

/// Reads `toPorts` and `icmps` of a rule that denies. None: neither says anything.
///
/// An element that names no port matches nothing in a rule that allows; here it matches every port.
pub(super) fn denied(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Option<Ports>> {
    let mut faults = Faults::default();
    let (ports, icmps) = lists(fields, &mut faults, report);
    let rules = faults.keep(each(&ports, report, deny_rule));
    let messages = faults.keep(each(&icmps, report, icmp_rule));
    let given = if ports.is_empty() { messages } else { rules };
    let everything = given.iter().flatten().any(Vec::is_empty);
    if everything {
        let name = if ports.is_empty() { "icmps" } else { "toPorts" };
        report.warn(&fields.path_of(name), "an element of it names no port; the rule denies every port");
    }
    faults.or(match (ports.is_empty() && icmps.is_empty(), everything) {
        (true, _) => None,
        (false, true) => Some(Ports::Any),
        (false, false) => Some(Ports::Of(given.unwrap_or_default().concat())),
    })
}

fn lists<'a>(fields: &mut Fields<'a>, faults: &mut Faults, report: &mut Report) -> (Vec<Cursor<'a>>, Vec<Cursor<'a>>) {
    let mut list = |name| {
        let field = fields.take(name);
        field.and_then(|field| faults.keep(field.elements(report))).unwrap_or_default()
    };
    let (ports, icmps) = (list("toPorts"), list("icmps"));
    if !ports.is_empty() && !icmps.is_empty() {
        let message = "The ICMPs block may only be present without ToPorts. Define a separate rule to use ToPorts.";
        faults.keep::<()>(Err(report.refused(fields.path(), message)));
    }
    (ports, icmps)
}

/// An element of `toPorts` in a rule that denies.
fn deny_rule(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vec<PortMatch>> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let ports = faults.keep(list(&mut fields, report)).unwrap_or_default();
    for name in ["rules", "serverNames", "listener", "terminatingTLS", "originatingTLS"] {
        if let Some(field) = fields.take(name) {
            faults.keep::<()>(Err(report.unusable(&field.path, "is not allowed in a deny rule")));
        }
    }
    faults.keep(fields.finish(report));
    faults.or(ports.into_iter().map(|port| port.matched).collect())
}

/// An element of `ports`.
pub(super) struct Port {
    /// What it matches.
    pub(super) matched: PortMatch,
    /// Its protocol, as Cilium names it.
    pub(super) protocol: String,
    /// The port is 0: every port.
    pub(super) zero: bool,
    /// It has an end beyond its port.
    pub(super) range: bool,
    /// Where it is.
    pub(super) path: String,
}

/// Reads `ports`.
pub(super) fn list(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Vec<Port>> {
    let Some(field) = fields.take("ports") else { return Ok(Vec::new()) };
    let elements = field.elements(report)?;
    if elements.len() > MAX {
        return Err(report.refused(&field.path, format!("too many ports, the max is {MAX}")));
    }
    each(&elements, report, port)
}

fn port(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Port> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let protocol = match fields.take("protocol") {
        None => Some(("ANY", ProtocolMatch::Transport, true)),
        Some(field) => faults.keep(protocol(&field, report)),
    };
    let ported = protocol.is_none_or(|(_, _, ported)| ported);
    let path = fields.path_of("port");
    let number = match fields.take("port") {
        None if !ported => Some(PortTarget::Any),
        None => {
            faults.keep::<()>(Err(report.refused(&path, "Port must be specified")));
            None
        }
        Some(field) => faults.keep(target(&field, report)),
    };
    if !ported && number.as_ref().is_some_and(|target| *target != PortTarget::Any) {
        faults.keep::<()>(Err(report.refused(&path, "must be \"0\": the protocol has no ports")));
    }
    let zero = number == Some(PortTarget::Any);
    let target = match (number, fields.take("endPort")) {
        (Some(target), Some(field)) if ported => faults.keep(ranged(target, &field, report)),
        (target, Some(field)) => {
            faults.keep(field.number(report, 0, 0));
            target
        }
        (target, None) => target,
    };
    faults.keep(fields.finish(report));
    let (Some((name, protocol, _)), Some(target)) = (protocol, target) else {
        // One of them cannot be used.
        faults.or(())?;
        return Err(report.refused(&cursor.path, "cannot be read"));
    };
    let range = matches!(target, PortTarget::Range(first, last) if first < last);
    faults.or(Port {
        matched: PortMatch { protocol, port: target },
        protocol: name.to_owned(),
        zero,
        range,
        path: cursor.path.clone(),
    })
}

/// The protocol, its name, and whether it has ports.
fn protocol<'a>(cursor: &Cursor<'a>, report: &mut Report) -> Usable<(&'a str, ProtocolMatch, bool)> {
    let exactly = |number| ProtocolMatch::Exactly(Protocol(number));
    // Numbers: IANA, Assigned Internet Protocol Numbers.
    let name = cursor.text(report)?;
    let (protocol, ported) = match name {
        "" => return Ok(("ANY", ProtocolMatch::Transport, true)),
        "ANY" => (ProtocolMatch::Transport, true),
        "TCP" => (ProtocolMatch::Exactly(Protocol::TCP), true),
        "UDP" => (ProtocolMatch::Exactly(Protocol::UDP), true),
        "SCTP" => (ProtocolMatch::Exactly(Protocol::SCTP), true),
        "IGMP" => (exactly(2), false),
        "IPIP" => (exactly(4), false),
        "IPV6" => (exactly(41), false),
        "GRE" => (exactly(47), false),
        "ESP" => (exactly(50), false),
        "AH" => (exactly(51), false),
        "VRRP" => (exactly(112), false),
        "ICMP" | "ICMPV6" | "ICMPv6" => {
            let message = format!("{} has no ports; write icmps in a rule without toPorts", cursor.shown());
            return Err(report.refused(&cursor.path, message));
        }
        _ => {
            let message = format!(
                "invalid protocol {}, must be one of TCP, UDP, SCTP, ANY, VRRP, IGMP, GRE, IPIP, IPV6, ESP, AH",
                cursor.shown()
            );
            return Err(report.refused(&cursor.path, message));
        }
    };
    Ok((name, protocol, ported))
}

/// `port`: a number, a name, or `"0"` for every port.
fn target(cursor: &Cursor<'_>, report: &mut Report) -> Usable<PortTarget> {
    let text = cursor.text(report)?;
    if text.is_empty() {
        return Err(report.refused(&cursor.path, "Port must be specified"));
    }
    if is_service_name(text) {
        return Ok(PortTarget::Named(text.to_ascii_lowercase().into()));
    }
    // Cilium reads "010" as an octal number and the schema as a decimal one: it is refused.
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
    match number {
        Some(0) if text.len() == 1 => Ok(PortTarget::Any),
        Some(number) if !text.starts_with('0') => Ok(PortTarget::Range(number, number)),
        _ => {
            let message = format!(
                "Unable to parse port: {} is neither a number from 0 to 65535 without leading zeros, \
                 nor a name of at most {MAX_NAME} letters, digits and single '-'",
                cursor.shown()
            );
            Err(report.refused(&cursor.path, message))
        }
    }
}

/// RFC 6335, 5.1 (Cilium, `pkg/iana`).
fn is_service_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && text.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
}

fn ranged(target: PortTarget, field: &Cursor<'_>, report: &mut Report) -> Usable<PortTarget> {
    let end = field.number(report, 0, i64::from(u16::MAX))?;
    let end = u16::try_from(end).unwrap_or(u16::MAX);
    let first = match target {
        PortTarget::Named(_) => {
            if end > 0 {
                report.warn(&field.path, "is not looked at: the port is a name");
            }
            return Ok(target);
        }
        PortTarget::Any => 0,
        PortTarget::Range(first, _) => first,
    };
    match end {
        0 => Ok(target),
        end if end < first => Err(report.unusable(&field.path, format!("{end} is before the port, {first}"))),
        end => Ok(PortTarget::Range(first, end)),
    }
}

/// An element of `icmps`.
fn icmp_rule(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vec<PortMatch>> {
    let mut fields = cursor.fields(report)?;
    let messages = match fields.take("fields") {
        None => Ok(Vec::new()),
        Some(field) => match field.elements(report) {
            Ok(list) if list.len() > MAX => {
                Err(report.refused(&field.path, format!("too many types, the max is {MAX}")))
            }
            Ok(list) => each(&list, report, icmp),
            Err(why) => Err(why),
        },
    };
    fields.finish(report)?;
    messages
}

fn icmp(cursor: &Cursor<'_>, report: &mut Report) -> Usable<PortMatch> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let family = match fields.take("family") {
        None => Some(false),
        Some(field) => faults.keep(match field.value.as_str() {
            Some("IPv4" | "") => Ok(false),
            Some("IPv6") => Ok(true),
            _ => Err(report.refused(&field.path, format!("wrong family: {}", field.shown()))),
        }),
    };
    let kind = match (fields.required(report, "type"), family) {
        (Ok(field), Some(wide)) => faults.keep(icmp_type(&field, wide, report)),
        (Err(why), _) => faults.keep(Err(why)),
        (Ok(_), None) => None,
    };
    faults.keep(fields.finish(report));
    let (Some(wide), Some(number)) = (family, kind) else {
        // One of them cannot be used.
        faults.or(())?;
        return Err(report.refused(&cursor.path, "cannot be read"));
    };
    let protocol = ProtocolMatch::Exactly(if wide { Protocol::ICMPV6 } else { Protocol::ICMP });
    let number = u16::from(number);
    faults.or(PortMatch { protocol, port: PortTarget::Range(number, number) })
}

fn icmp_type(cursor: &Cursor<'_>, wide: bool, report: &mut Report) -> Usable<u8> {
    let Value::String(text) = cursor.value else {
        let number = cursor.number(report, 0, i64::from(u8::MAX))?;
        return Ok(u8::try_from(number).unwrap_or(u8::MAX));
    };
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let names = if wide { ICMPV6 } else { ICMP };
    let named = names.iter().find(|(name, _)| name == text).map(|(_, number)| *number);
    named.or_else(|| digits.then(|| text.parse().ok()).flatten()).ok_or_else(|| {
        let family = if wide { "IPv6" } else { "IPv4" };
        let message = format!(
            "ICMP type {} not found in {family}: expected a number from 0 to 255 or a name, such as EchoRequest",
            shown(cursor.value)
        );
        report.refused(&cursor.path, message)
    })
}

/// Names of ICMP types (IANA, ICMP Parameters), as Cilium writes them (`pkg/policy/api/icmp.go`).
const ICMP: &[(&str, u8)] = &[
    ("EchoReply", 0),
    ("DestinationUnreachable", 3),
    ("Redirect", 5),
    ("Echo", 8),
    ("EchoRequest", 8),
    ("RouterAdvertisement", 9),
    ("RouterSelection", 10),
    ("TimeExceeded", 11),
    ("ParameterProblem", 12),
    ("Timestamp", 13),
    ("TimestampReply", 14),
    ("Photuris", 40),
    ("ExtendedEchoRequest", 42),
    ("ExtendedEchoReply", 43),
];

/// Names of ICMPv6 types (IANA, ICMPv6 Parameters), as Cilium writes them.
const ICMPV6: &[(&str, u8)] = &[
    ("DestinationUnreachable", 1),
    ("PacketTooBig", 2),
    ("TimeExceeded", 3),
    ("ParameterProblem", 4),
    ("EchoRequest", 128),
    ("EchoReply", 129),
    ("MulticastListenerQuery", 130),
    ("MulticastListenerReport", 131),
    ("MulticastListenerDone", 132),
    ("RouterSolicitation", 133),
    ("RouterAdvertisement", 134),
    ("NeighborSolicitation", 135),
    ("NeighborAdvertisement", 136),
    ("RedirectMessage", 137),
    ("RouterRenumbering", 138),
    ("ICMPNodeInformationQuery", 139),
    ("ICMPNodeInformationResponse", 140),
    ("InverseNeighborDiscoverySolicitation", 141),
    ("InverseNeighborDiscoveryAdvertisement", 142),
    ("HomeAgentAddressDiscoveryRequest", 144),
    ("HomeAgentAddressDiscoveryReply", 145),
    ("MobilePrefixSolicitation", 146),
    ("MobilePrefixAdvertisement", 147),
    ("DuplicateAddressRequestCodeSuffix", 157),
    ("DuplicateAddressConfirmationCodeSuffix", 158),
    ("ExtendedEchoRequest", 160),
    ("ExtendedEchoReply", 161),
];
