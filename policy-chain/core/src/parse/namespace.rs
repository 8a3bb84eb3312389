//! Namespace.

use std::sync::Arc;

use super::cursor::{Cursor, Report, shown};
use super::metadata::{Metadata, NameForm, Scope};
use crate::cluster::{NAMESPACE_NAME_LABEL, Namespace, Object};

/// Reads a Namespace. It has the label of its name, whatever the object says: the API server keeps it so.
pub(super) fn namespace(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut document = document.fields(report).ok()?;
    let metadata = Metadata::read(&mut document, report, Scope::Cluster, NameForm::Label)?;
    let label = metadata.labels.get(NAMESPACE_NAME_LABEL);
    if let Some(other) = label.filter(|label| *label != &*metadata.name) {
        let message = format!("{NAMESPACE_NAME_LABEL} is always the name; {} is not looked at", shown(&other.into()));
        report.warn("metadata.labels", message);
    }
    let labels = metadata.labels.with(NAMESPACE_NAME_LABEL.into(), Arc::clone(&metadata.name));
    Some(Object::Namespace(Namespace { name: metadata.name, labels }))
}
