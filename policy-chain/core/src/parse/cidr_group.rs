//! CiliumCIDRGroup (`cilium.io/v2`, and `v2alpha1`, which says the same).

use super::cilium::{cidr, told};
use super::cursor::{Cursor, Report};
use super::metadata::{Metadata, NameForm, Scope};
use crate::cluster::{CidrGroup, Object};

/// Reads a CiliumCIDRGroup. A block that cannot be used is left out of it.
pub(super) fn cidr_group(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut fields = document.fields(report).ok()?;
    for ignored in ["apiVersion", "kind", "status"] {
        fields.take(ignored);
    }
    let metadata = Metadata::read(&mut fields, report, Scope::Cluster, NameForm::Subdomain)?;
    let mut cidrs = Vec::new();
    if let Ok(mut spec) = fields.required(report, "spec").and_then(|spec| spec.fields(report)) {
        let blocks = spec.required(report, "externalCIDRs").and_then(|list| list.elements(report));
        cidrs =
            blocks.unwrap_or_default().iter().filter_map(|block| cidr::block_or_address(block, report).ok()).collect();
        told(spec.finish(report));
    }
    told(fields.finish(report));
    cidrs.sort();
    cidrs.dedup();
    Some(Object::CidrGroup(CidrGroup { name: metadata.name, labels: metadata.labels, cidrs }))
}
