//! ClusterNetworkPolicy, and its elders AdminNetworkPolicy and BaselineAdminNetworkPolicy.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a ClusterNetworkPolicy.
pub(super) fn policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}

/// Reads an AdminNetworkPolicy.
pub(super) fn admin(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}

/// Reads a BaselineAdminNetworkPolicy.
pub(super) fn baseline(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
