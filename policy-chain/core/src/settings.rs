//! What a policy set is compiled or judged for.

use crate::model::Text;

/// Whose gates these are, and the choices that DESIGN leaves to the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The node: its pods are the subjects, and it is `host` to Cilium's rules. None: the pods that have no node.
    pub node: Option<Text>,
    /// Whether the CIDRs of cilium.io rules match managed pods and nodes too (DESIGN 6.2; Cilium's `policy-cidr-match-mode`).
    pub cilium_cidrs_match_managed: bool,
}
