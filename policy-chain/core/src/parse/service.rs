//! Service.

use std::net::IpAddr;
use std::sync::Arc;

use super::cursor::{Cursor, Fields, Report};
use super::metadata::{Metadata, NameForm, Scope, labels};
use super::plain::{address, is, list, owned, port, protocol, section, text};
use crate::cluster::{Addresses, Object, ObjectKey, Service, ServicePort};

/// Reads a Service. What the service proxy translates for it is what counts: nothing without a cluster IP (ExternalName,
/// headless, not yet given one; Kubernetes, `pkg/proxy/util`, `ShouldSkipService`), and of the load balancer's addresses
/// none with `ipMode: Proxy`.
pub(super) fn service(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut document = document.fields(report).ok()?;
    let metadata = Metadata::read(&mut document, report, Scope::Namespaced, NameForm::Label)?;
    let mut service = Service {
        key: ObjectKey { namespace: metadata.namespace, name: metadata.name },
        labels: metadata.labels,
        addresses: Addresses::default(),
        ports: Arc::default(),
        selector: None,
    };
    let Some(mut spec) = section(&mut document, report, "spec") else { return Some(Object::Service(service)) };
    let selector = labels(spec.take("selector").as_ref(), report);
    service.selector = Some(selector).filter(|selector| !selector.is_empty());
    let external_name = is(&mut spec, report, "type", "ExternalName");
    let mut addresses = cluster_addresses(&mut spec, report);
    let translated = !external_name && !addresses.is_empty();
    for element in list(&mut spec, report, "externalIPs") {
        addresses.extend(address(&element, report));
    }
    if let Some(mut status) = section(&mut document, report, "status") {
        load_balancer_addresses(&mut status, report, &mut addresses);
    }
    let mut ports = Vec::new();
    for element in list(&mut spec, report, "ports") {
        if let Ok(mut fields) = element.fields(report) {
            ports.extend(service_port(&mut fields, report, translated));
        }
    }
    service.ports = ports.into();
    if translated {
        service.addresses = addresses.into();
    }
    Some(Object::Service(service))
}

/// `clusterIPs`, else `clusterIP`. `None` stands for a headless Service.
fn cluster_addresses(spec: &mut Fields<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut fields = list(spec, report, "clusterIPs");
    let single = text(spec, report, "clusterIP");
    if fields.is_empty() {
        fields.extend(single);
    }
    let given = |field: &&Cursor<'_>| !matches!(field.value.as_str(), Some("None" | ""));
    fields.iter().filter(given).filter_map(|field| address(field, report)).collect()
}

fn load_balancer_addresses(status: &mut Fields<'_>, report: &mut Report, addresses: &mut Vec<IpAddr>) {
    let Some(mut balancer) = section(status, report, "loadBalancer") else { return };
    for element in list(&mut balancer, report, "ingress") {
        let Ok(mut fields) = element.fields(report) else { continue };
        let proxied = is(&mut fields, report, "ipMode", "Proxy");
        let address = text(&mut fields, report, "ip").and_then(|field| address(&field, report));
        addresses.extend(address.filter(|_| !proxied));
    }
}

fn service_port(fields: &mut Fields<'_>, report: &mut Report, translated: bool) -> Option<ServicePort> {
    let name = owned(fields, report, "name").unwrap_or_default();
    let protocol = protocol(fields, report);
    let number = fields.required(report, "port").ok().and_then(|field| port(&field, report));
    // 0 is a Service without node port, as some clients write it.
    let node_port = fields.take("nodePort").filter(|field| field.value.as_i64() != Some(0));
    let node_port = node_port.and_then(|field| port(&field, report)).filter(|_| translated);
    Some(ServicePort { name, protocol: protocol?, port: number?, node_port })
}
