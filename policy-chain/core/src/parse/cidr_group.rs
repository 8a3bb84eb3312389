//! CiliumCIDRGroup (`cilium.io/v2`, and `v2alpha1`, which says the same).

use ipnet::IpNet;

use super::cilium::cidr;
use super::cursor::{Cursor, Faults, Fields, Report};
use super::metadata::{Metadata, NameForm, Scope};
use crate::cluster::{CidrGroup, Object};
use crate::model::Usable;

/// Reads a CiliumCIDRGroup. One with a block that is none, or with a field that is not known, cannot be used as a whole: a
/// deny by what is left of it would deny too little.
pub(super) fn cidr_group(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    let mut fields = document.fields(report).ok()?;
    for ignored in ["apiVersion", "kind", "status"] {
        fields.take(ignored);
    }
    let metadata = Metadata::read(&mut fields, report, Scope::Cluster, NameForm::Subdomain)?;
    let cidrs = blocks(fields, report);
    Some(Object::CidrGroup(CidrGroup { name: metadata.name, labels: metadata.labels, cidrs }))
}

fn blocks(mut fields: Fields<'_>, report: &mut Report) -> Usable<Vec<IpNet>> {
    let mut faults = Faults::default();
    let mut cidrs = Vec::new();
    let spec = fields.required(report, "spec").and_then(|spec| spec.fields(report));
    if let Some(mut spec) = faults.keep(spec) {
        let list = spec.required(report, "externalCIDRs").and_then(|list| list.elements(report));
        for block in faults.keep(list).unwrap_or_default() {
            cidrs.extend(faults.keep(cidr::block_or_address(&block, report)));
        }
        faults.keep(spec.finish(report));
    }
    faults.keep(fields.finish(report));
    cidrs.sort();
    cidrs.dedup();
    faults.or(cidrs)
}
