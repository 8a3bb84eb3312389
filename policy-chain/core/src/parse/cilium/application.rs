//! An element of `toPorts` with its application rules: `rules` and `serverNames`.

use std::sync::Arc;

use super::super::cursor::{Cursor, Faults, Fields, Report, shown};
use super::each;
use super::ports::{self, Port};
use crate::flow::{Direction, Protocol};
use crate::l7::dns::NamePattern;
use crate::l7::http::{HeaderMatchSpec, HttpRule, HttpRuleSpec, MismatchAction};
use crate::l7::sni::ServerNamePattern;
use crate::model::Usable;
use crate::model::cilium::{Application, CiliumPorts};
use crate::model::port::{PortMatch, Ports, ProtocolMatch};

/// Reads an element of `toPorts` in a rule that allows. An application rule that cannot be used grants nothing and leaves
/// the others of its list as they are; if none is left, the whole rule cannot be used.
pub(super) fn port_rule(cursor: &Cursor<'_>, direction: Direction, report: &mut Report) -> Usable<CiliumPorts> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let ports = faults.keep(ports::list(&mut fields, report));
    let rules = match fields.take("rules") {
        None => Some(Application::None),
        Some(field) => faults.keep(rules(&field, report)),
    };
    let has_rules = rules.as_ref().is_none_or(|rules| *rules != Application::None);
    let terminated = tls(&mut fields, &mut faults, report);
    listener(&mut fields, direction, has_rules, &mut faults, report);
    let names = server_names(&mut fields, report);
    if has_rules && !matches!(&names, Ok(names) if names.is_empty()) && !terminated {
        let message = "ServerNames are not allowed with L7 rules without TLS termination";
        faults.keep::<()>(Err(report.refused(&cursor.path, message)));
    }
    let names = faults.keep(names).unwrap_or_default();
    faults.keep(fields.finish(report));
    let (Some(ports), Some(rules)) = (ports, rules) else {
        // One of them cannot be used.
        faults.or(())?;
        return Err(report.refused(&cursor.path, "cannot be read"));
    };
    if ports.is_empty() && !matches!(rules, Application::Dns(_)) {
        report.warn(&cursor.path, "names no port, and so allows nothing; port \"0\" is every port");
    }
    let application = match rules {
        Application::None if !names.is_empty() => Application::ServerNames(names.into()),
        rules => rules,
    };
    let ports = faults.keep(placed(ports, &application, direction, &cursor.path, report)).unwrap_or_default();
    faults.or(CiliumPorts { ports: Ports::Of(ports), application })
}

/// The ports as the application rules take them: HTTP and server names are for TCP, DNS is for TCP and UDP.
fn placed(
    ports: Vec<Port>,
    application: &Application,
    direction: Direction,
    path: &str,
    report: &mut Report,
) -> Usable<Vec<PortMatch>> {
    let mut faults = Faults::default();
    let mut placed = Vec::new();
    if matches!(application, Application::Dns(_)) {
        if direction == Direction::Ingress {
            faults.keep::<()>(Err(report.refused(path, "DNS rules are not allowed on ingress")));
        }
        if ports.is_empty() {
            faults.keep::<()>(Err(report.refused(path, "Port 53 must be specified for DNS rules (or another port)")));
        }
    }
    for Port { matched: PortMatch { protocol, port }, protocol: name, zero, range, path } in ports {
        let transport = protocol == ProtocolMatch::Transport;
        let exactly = |protocol| ProtocolMatch::Exactly(protocol);
        let tcp = protocol == exactly(Protocol::TCP);
        if zero && matches!(application, Application::Http(_) | Application::Dns(_)) {
            faults.keep::<()>(Err(report.refused(&path, "L7 rules can not be used when a port is 0")));
        }
        let protocols = match application {
            Application::None => vec![protocol],
            Application::Http(_) if tcp => vec![protocol],
            Application::Http(_) => {
                let message = format!("L7 rules can only apply to TCP (not {name}) except for DNS rules");
                faults.keep::<()>(Err(report.refused(&path, message)));
                continue;
            }
            Application::Dns(_) if range => {
                faults.keep::<()>(Err(report.refused(&path, "DNS rules do not support port ranges")));
                continue;
            }
            Application::Dns(_) if transport => vec![exactly(Protocol::TCP), exactly(Protocol::UDP)],
            Application::Dns(_) if tcp || protocol == exactly(Protocol::UDP) => vec![protocol],
            Application::Dns(_) => {
                faults.keep::<()>(Err(
                    report.refused(&path, format!("DNS rules can only apply to TCP, UDP and ANY (not {name})"))
                ));
                continue;
            }
            Application::ServerNames(_) if tcp => vec![protocol],
            Application::ServerNames(_) if transport => {
                report.warn(&path, "server names are in TLS over TCP; other protocols are not allowed by this");
                vec![exactly(Protocol::TCP)]
            }
            Application::ServerNames(_) => {
                faults
                    .keep::<()>(Err(report.refused(&path, format!("ServerNames can only apply to TCP (not {name})"))));
                continue;
            }
        };
        placed.extend(protocols.into_iter().map(|protocol| PortMatch { protocol, port: port.clone() }));
    }
    faults.or(placed)
}

/// `terminatingTLS` and `originatingTLS`: not supported. Tells whether the first is there.
fn tls(fields: &mut Fields<'_>, faults: &mut Faults, report: &mut Report) -> bool {
    let mut terminated = false;
    for name in ["terminatingTLS", "originatingTLS"] {
        if let Some(field) = fields.take(name) {
            let message = "TLS contexts are not supported: TLS is passed on as it is, by serverNames if there are any";
            faults.keep::<()>(Err(report.unusable(&field.path, message)));
            terminated |= name == "terminatingTLS";
        }
    }
    terminated
}

/// `listener`: not supported.
fn listener(fields: &mut Fields<'_>, direction: Direction, has_rules: bool, faults: &mut Faults, report: &mut Report) {
    let Some(field) = fields.take("listener") else { return };
    let name = field.value.get("name").map(shown).unwrap_or_default();
    faults.keep::<()>(Err(match (direction, has_rules) {
        (Direction::Ingress, _) => report.refused(&field.path, format!("Listener is not allowed on ingress ({name})")),
        (Direction::Egress, true) => {
            report.refused(&field.path, format!("Listener is not allowed with L7 rules ({name})"))
        }
        (Direction::Egress, false) => {
            report.unusable(&field.path, format!("listeners of an Envoy configuration are not supported ({name})"))
        }
    }));
}

/// `rules`. A list that is there and empty is no list: what reaches the port passes.
fn rules(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Application> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    for (name, instead) in [("kafka", "was removed from the API (Cilium 1.20)"), ("l7proto", REMOVED), ("l7", REMOVED)]
    {
        if let Some(field) = fields.take(name) {
            faults.keep::<()>(Err(report.unusable(&field.path, instead)));
        }
    }
    let (http, dns) = (fields.take("http"), fields.take("dns"));
    faults.keep(fields.finish(report));
    if http.is_some() && dns.is_some() {
        faults
            .keep::<()>(Err(report.refused(&cursor.path, "multiple L7 protocol rule types specified in single rule")));
    }
    let http = faults.keep(lenient(http.as_ref(), report, http_rule)).unwrap_or_default();
    let dns = faults.keep(lenient(dns.as_ref(), report, name)).unwrap_or_default();
    faults.or(match (http.is_empty(), dns.is_empty()) {
        (false, _) => Application::Http(http.into_iter().map(Arc::new).collect()),
        (true, false) => Application::Dns(dns.into()),
        (true, true) => Application::None,
    })
}

const REMOVED: &str = "is not supported: rules of other protocols were removed from the API (Cilium 1.20)";

/// Reads a list of application rules, of which one has to match: those that cannot be used are left out, as long as one
/// is left.
fn lenient<T>(
    list: Option<&Cursor<'_>>,
    report: &mut Report,
    mut read: impl FnMut(&Cursor<'_>, &mut Report) -> Usable<T>,
) -> Usable<Vec<T>> {
    let Some(list) = list else { return Ok(Vec::new()) };
    let elements = list.elements(report)?;
    let mut faults = Faults::default();
    let good: Vec<T> = elements.iter().filter_map(|element| faults.keep(read(element, report))).collect();
    if good.is_empty() { faults.or(good) } else { Ok(good) }
}

/// `serverNames`.
fn server_names(fields: &mut Fields<'_>, report: &mut Report) -> Usable<Vec<ServerNamePattern>> {
    let list = fields.take("serverNames");
    lenient(list.as_ref(), report, |cursor, report| {
        let text = cursor.text(report)?;
        if text.is_empty() {
            return Err(report.refused(&cursor.path, "Empty server name is not allowed"));
        }
        ServerNamePattern::new(text).map_err(|error| report.refused(&cursor.path, error.to_string()))
    })
}

/// An element of `toFQDNs` or `rules.dns`.
pub(super) fn name(cursor: &Cursor<'_>, report: &mut Report) -> Usable<NamePattern> {
    let mut fields = cursor.fields(report)?;
    let pattern = match (given(&mut fields, "matchName"), given(&mut fields, "matchPattern")) {
        (Some(field), None) => field
            .text(report)
            .and_then(|text| NamePattern::name(text).map_err(|error| report.refused(&field.path, error.to_string()))),
        (None, Some(field)) => field
            .text(report)
            .and_then(|text| NamePattern::cilium(text).map_err(|error| report.refused(&field.path, error.to_string()))),
        _ => Err(report.refused(&cursor.path, "must have exactly one of matchName and matchPattern")),
    };
    fields.finish(report)?;
    pattern
}

/// A text, if it is there and not empty, which is the same to Cilium.
fn given<'a>(fields: &mut Fields<'a>, name: &'static str) -> Option<Cursor<'a>> {
    fields.take(name).filter(|field| field.value != "")
}

/// An element of `rules.http`.
fn http_rule(cursor: &Cursor<'_>, report: &mut Report) -> Usable<HttpRule> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let [path, method, host] = ["path", "method", "host"].map(|name| optional(&mut fields, name, &mut faults, report));
    let headers = match fields.take("headers") {
        None => Vec::new(),
        Some(field) => {
            let elements = faults.keep(field.elements(report)).unwrap_or_default();
            let headers = each(&elements, report, |cursor, report| cursor.text(report).map(str::to_owned));
            faults.keep(headers).unwrap_or_default()
        }
    };
    let header_matches = match fields.take("headerMatches") {
        None => Vec::new(),
        Some(field) => {
            let elements = faults.keep(field.elements(report)).unwrap_or_default();
            faults.keep(each(&elements, report, header_match)).unwrap_or_default()
        }
    };
    faults.keep(fields.finish(report));
    let spec = faults.or(HttpRuleSpec { path, method, host, headers, header_matches })?;
    HttpRule::within(spec, &mut report.expressions).map_err(|error| {
        let value = cursor.value.get(&error.field).map(|value| format!("{}: ", shown(value))).unwrap_or_default();
        // Of the lines that a regular expression's fault has, the last one says what it is.
        let reason = error.reason.lines().next_back().unwrap_or_default().trim_start_matches("error: ");
        report.unusable(&format!("{}.{}", cursor.path, error.field), format!("{value}{reason}"))
    })
}

fn header_match(cursor: &Cursor<'_>, report: &mut Report) -> Usable<HeaderMatchSpec> {
    let mut fields = cursor.fields(report)?;
    let mut faults = Faults::default();
    let name = match given(&mut fields, "name") {
        None => faults.keep(Err(report.refused(&fields.path_of("name"), "Header name missing"))),
        Some(field) => faults.keep(field.text(report).map(str::to_owned)),
    };
    let value = optional(&mut fields, "value", &mut faults, report);
    if let Some(field) = fields.take("secret") {
        let message = "values out of Secrets are not supported; write the value, or have another part check it";
        faults.keep::<()>(Err(report.unusable(&field.path, message)));
    }
    let mismatch = match given(&mut fields, "mismatch") {
        None => MismatchAction::Refuse,
        Some(field) => match field.value.as_str() {
            Some("LOG") => MismatchAction::Log,
            Some("ADD") => MismatchAction::Add,
            Some("DELETE") => MismatchAction::Delete,
            Some("REPLACE") => MismatchAction::Replace,
            _ => {
                let message = format!("Invalid header action: {}", field.shown());
                faults.keep::<()>(Err(report.refused(&field.path, message)));
                MismatchAction::Refuse
            }
        },
    };
    faults.keep(fields.finish(report));
    faults.or(HeaderMatchSpec { name: name.unwrap_or_default(), value, mismatch })
}

/// A text, if it is there and not empty.
fn optional(fields: &mut Fields<'_>, name: &'static str, faults: &mut Faults, report: &mut Report) -> Option<String> {
    given(fields, name).and_then(|field| faults.keep(field.text(report).map(str::to_owned)))
}
