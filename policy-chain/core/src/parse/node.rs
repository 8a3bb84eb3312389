//! Node.

use super::cursor::{Cursor, Report};
use super::metadata::{Metadata, NameForm, Scope};
use super::plain::{address, list, section, text};
use crate::cluster::{Node, Object};

/// Reads a Node. Its addresses are those of type `InternalIP` and `ExternalIP`; the other types are names.
pub(super) fn node(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut document = document.fields(report).ok()?;
    let metadata = Metadata::read(&mut document, report, Scope::Cluster, NameForm::Subdomain)?;
    let mut addresses = Vec::new();
    if let Some(mut status) = section(&mut document, report, "status") {
        for element in list(&mut status, report, "addresses") {
            let Ok(mut fields) = element.fields(report) else { continue };
            let kind = text(&mut fields, report, "type").and_then(|field| field.value.as_str());
            let Some(field) = fields.take("address") else { continue };
            if matches!(kind, Some("InternalIP" | "ExternalIP")) {
                addresses.extend(address(&field, report).filter(|address| !addresses.contains(address)));
            }
        }
    }
    Some(Object::Node(Node { name: metadata.name, labels: metadata.labels, addresses }))
}
