//! AWS's `networking.k8s.aws/v1alpha1` ClusterNetworkPolicy and ApplicationNetworkPolicy.
//!
//! They are read as what they extend. Unlike AWS's agent, rules of one policy are asked in their order.

use super::cluster_network_policy::{self, AWS};
use super::cursor::{Cursor, Report};
use super::network_policy;
use crate::cluster::Object;
use crate::model::PolicyKind;

/// Reads a ClusterNetworkPolicy of AWS.
pub(super) fn cluster_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    cluster_network_policy::read(document, report, &AWS)
}

/// Reads an ApplicationNetworkPolicy.
pub(super) fn application_policy(document: &Cursor<'_>, report: &mut Report) -> Option<Object> {
    network_policy::read(document, report, PolicyKind::AwsApplicationNetworkPolicy)
}

#[cfg(test)]
mod tests;
