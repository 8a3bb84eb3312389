//! EndpointSlice.

use std::net::IpAddr;

use super::cursor::{Cursor, Fields, Report};
use super::metadata::{Metadata, NameForm, Scope};
use super::plain::{address, boolean, list, owned, port, protocol, section, text};
use crate::cluster::{EndpointSlice, NamedPort, Object, ObjectKey};

/// The label that names the Service of a slice.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Reads an EndpointSlice. One of address type `FQDN` has names in place of addresses, which no service proxy uses.
pub(super) fn endpoint_slice(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut document = document.fields(report).ok()?;
    let metadata = Metadata::read(&mut document, report, Scope::Namespaced, NameForm::Subdomain)?;
    let kind = text(&mut document, report, "addressType");
    let names = match kind.as_ref().map(|field| (field, field.value.as_str())) {
        Some((_, Some("IPv4" | "IPv6"))) => false,
        Some((_, Some("FQDN"))) => true,
        Some((field, _)) => {
            report.refused(&field.path, format!("{} is not IPv4, IPv6 or FQDN", field.shown()));
            false
        }
        None => {
            report.refused("addressType", "is missing");
            false
        }
    };
    let ports = list(&mut document, report, "ports").iter().filter_map(|element| slice_port(element, report)).collect();
    let elements = list(&mut document, report, "endpoints");
    let ready = elements.iter().filter(|_| !names).flat_map(|element| ready_addresses(element, report)).collect();
    let service = metadata.labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()).map(Into::into);
    let key = ObjectKey { namespace: metadata.namespace, name: metadata.name };
    Some(Object::EndpointSlice(EndpointSlice { key, service, ports, ready }))
}

fn slice_port(element: &Cursor<'_>, report: &mut Report) -> Option<NamedPort> {
    let mut fields = element.fields(report).ok()?;
    let name = owned(&mut fields, report, "name").unwrap_or_default();
    let protocol = protocol(&mut fields, report);
    let number = fields.take("port").and_then(|field| port(&field, report));
    Some(NamedPort { name, protocol: protocol?, port: number? })
}

/// The addresses of an endpoint; none of one that is not ready.
fn ready_addresses(element: &Cursor<'_>, report: &mut Report) -> Vec<IpAddr> {
    let Ok(mut fields) = element.fields(report) else { return Vec::new() };
    let elements = list(&mut fields, report, "addresses");
    let addresses: Vec<IpAddr> = elements.iter().filter_map(|element| address(element, report)).collect();
    if ready(&mut fields, report) { addresses } else { Vec::new() }
}

/// `conditions.ready`; what does not know is ready (Kubernetes API, `EndpointConditions`).
fn ready(fields: &mut Fields<'_>, report: &mut Report) -> bool {
    section(fields, report, "conditions").is_none_or(|mut conditions| boolean(&mut conditions, report, "ready", true))
}
