//! AWS's `networking.k8s.aws/v1alpha1` ClusterNetworkPolicy and ApplicationNetworkPolicy.

use super::cursor::{Cursor, Report};
use crate::cluster::Object;

/// Reads a ClusterNetworkPolicy of AWS.
pub(super) fn cluster_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}

/// Reads an ApplicationNetworkPolicy.
pub(super) fn application_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    report.unusable(&document.path, "this kind cannot be read yet");
    None
}
