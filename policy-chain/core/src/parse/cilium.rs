//! CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a CiliumNetworkPolicy.
pub(super) fn policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}

/// Reads a CiliumClusterwideNetworkPolicy.
pub(super) fn clusterwide_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
