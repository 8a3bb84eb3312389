//! Pod.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::cursor::{Cursor, Fields, Report, shown};
use super::metadata::{Metadata, NameForm, Scope};
use super::plain::{address, boolean, is, list, owned, port, protocol, section, text};
use super::visibility::visible;
use crate::cluster::{
    Created, NamedPort, Object, POD_IPS_ANNOTATION, Pod, PodKey, PodTemplate, Uid, VISIBILITY_ANNOTATION,
};
use crate::model::Text;

/// The UID that a static pod has on its node, on its mirror in the API (Kubernetes, `ConfigMirrorAnnotationKey`).
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Addresses of a pod that are looked at. The API has at most one of each family; several interfaces make it more.
const MAX_ADDRESSES: usize = 64;

/// Reads a Pod.
pub(super) fn pod(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut document = document.fields(report).ok()?;
    let metadata = Metadata::read(&mut document, report, Scope::Namespaced, NameForm::Subdomain)?;
    let mut ports = BTreeSet::new();
    let (mut node, mut service_account, mut host_network) = (None, None, false);
    if let Some(mut spec) = section(&mut document, report, "spec") {
        node = owned(&mut spec, report, "nodeName");
        service_account = owned(&mut spec, report, "serviceAccountName");
        host_network = boolean(&mut spec, report, "hostNetwork", false);
        container_ports(&mut spec, report, &mut ports);
    }
    let status = Status::read(&mut document, report);
    let addresses = if status.addresses.is_empty() { announced(&metadata, report) } else { status.addresses };
    if addresses.len() > MAX_ADDRESSES {
        report.warn("status.podIPs", format!("only the first {MAX_ADDRESSES} of {} addresses count", addresses.len()));
    }
    let uid = metadata.annotation(MIRROR_ANNOTATION).map_or_else(|| Uid::from(&*metadata.uid), Uid::from);
    let visible = visible(&metadata, report);
    if host_network && !visible.is_empty() {
        let message =
            format!("{VISIBILITY_ANNOTATION}: a pod with hostNetwork has no gate; nothing of it is looked at");
        report.warn("metadata.annotations", message);
    }
    Some(Object::Pod(Pod {
        uid,
        created: created(&metadata, report),
        template: Arc::new(PodTemplate {
            service_account: service_account.unwrap_or_else(|| Text::from("default")),
            ports: ports.into_iter().collect(),
            visible,
        }),
        node,
        host_network,
        finished: status.finished,
        addresses: addresses.into_iter().take(MAX_ADDRESSES).collect(),
        ready: status.ready,
        audit: metadata.audit(report),
        key: PodKey { namespace: metadata.namespace, name: metadata.name },
        labels: metadata.labels,
    }))
}

fn created(metadata: &Metadata<'_>, report: &mut Report) -> Created {
    let created = Created::parse(&metadata.created);
    if created.is_none() && !metadata.created.is_empty() {
        let message = format!(
            "{} is not a time such as 2026-01-31T23:59:59Z; the pod counts as the oldest",
            shown(&(*metadata.created).into())
        );
        report.warn("metadata.creationTimestamp", message);
    }
    created.unwrap_or_default()
}

/// The named ports of the containers, and of the init containers that run as long as they do.
fn container_ports(spec: &mut Fields<'_>, report: &mut Report, ports: &mut BTreeSet<NamedPort>) {
    for container in list(spec, report, "containers") {
        if let Ok(mut fields) = container.fields(report) {
            named_ports(&mut fields, report, ports);
        }
    }
    for container in list(spec, report, "initContainers") {
        let Ok(mut fields) = container.fields(report) else { continue };
        if is(&mut fields, report, "restartPolicy", "Always") {
            named_ports(&mut fields, report, ports);
        }
    }
}

fn named_ports(container: &mut Fields<'_>, report: &mut Report, ports: &mut BTreeSet<NamedPort>) {
    for element in list(container, report, "ports") {
        let Ok(mut fields) = element.fields(report) else { continue };
        let Some(name) = owned(&mut fields, report, "name") else { continue };
        let protocol = protocol(&mut fields, report);
        let number = fields.required(report, "containerPort").ok().and_then(|field| port(&field, report));
        if let Some((protocol, port)) = protocol.zip(number) {
            ports.insert(NamedPort { name, protocol, port });
        }
    }
}

#[derive(Debug, Default)]
struct Status {
    finished: bool,
    ready: bool,
    addresses: Vec<IpAddr>,
}

impl Status {
    fn read(document: &mut Fields<'_>, report: &mut Report) -> Self {
        let Some(mut status) = section(document, report, "status") else { return Self::default() };
        let phase = text(&mut status, report, "phase").and_then(|field| field.value.as_str());
        let mut addresses = Vec::new();
        for element in list(&mut status, report, "podIPs") {
            let Ok(mut fields) = element.fields(report) else { continue };
            addresses.extend(text(&mut fields, report, "ip").and_then(|field| address(&field, report)));
        }
        if let Some(field) = text(&mut status, report, "podIP").filter(|_| addresses.is_empty()) {
            addresses.extend(address(&field, report));
        }
        Self { finished: matches!(phase, Some("Succeeded" | "Failed")), ready: ready(&mut status, report), addresses }
    }
}

/// Whether the condition `Ready` is true.
fn ready(status: &mut Fields<'_>, report: &mut Report) -> bool {
    let mut ready = false;
    for element in list(status, report, "conditions") {
        let Ok(mut fields) = element.fields(report) else { continue };
        if is(&mut fields, report, "type", "Ready") {
            ready = is(&mut fields, report, "status", "True");
        }
    }
    ready
}

/// The addresses that the annotation tells. A status that has any is the better witness.
fn announced(metadata: &Metadata<'_>, report: &mut Report) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    let texts = metadata.annotation(POD_IPS_ANNOTATION).into_iter().flat_map(|value| value.split(','));
    for text in texts.map(str::trim).filter(|text| !text.is_empty()) {
        match text.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => report.warn(
                "metadata.annotations",
                format!("{POD_IPS_ANNOTATION}: {} is not an IP address; it is not looked at", shown(&text.into())),
            ),
        }
    }
    addresses
}
