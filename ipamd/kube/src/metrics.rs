//! What the source counts.

use prometheus_client::metrics::counter::Counter;
use sluice_daemon::metrics::Named;

/// What the names of all of them begin with.
const PREFIX: &str = "sluice_ipamd_kube";

/// Counters of the Kubernetes source.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Of what is read, and of Events.
    pub api: sluice_cluster::Metrics,
    /// Pods whose addresses were written into their annotation, or out of it.
    pub annotations: Counter,
    /// Pods whose annotation was given up.
    pub annotations_dropped: Counter,
    /// Attempts at one that failed.
    pub annotations_failed: Counter,
    /// Conditions that were written on the node.
    pub conditions: Counter,
    /// Conditions that could not be written.
    pub conditions_failed: Counter,
    /// Times that features were written into the node's CNINode.
    pub features: Counter,
    /// Attempts at that that failed.
    pub features_failed: Counter,
    /// Objects written for all nodes, or taken away.
    pub shared: Counter,
    /// Attempts at that that failed.
    pub shared_failed: Counter,
}

impl Metrics {
    fn counters(&self) -> impl Iterator<Item = (&'static str, &'static str, &Counter)> {
        let own = [
            ("annotations", "Pods whose addresses were written into their annotation, or out of it", &self.annotations),
            (
                "annotations_dropped",
                "Pods whose annotation was given up: too many waited, it was refused, or nobody answered for long",
                &self.annotations_dropped,
            ),
            ("annotations_failed", "Attempts to write such an annotation that failed", &self.annotations_failed),
            ("conditions", "Conditions written on the node's object", &self.conditions),
            ("conditions_failed", "Attempts to write a condition that failed", &self.conditions_failed),
            ("features", "Features written into the node's CNINode", &self.features),
            ("features_failed", "Attempts to write features that failed", &self.features_failed),
            (
                "shared",
                "Objects for all nodes that were written or taken away: members of groups, private networks",
                &self.shared,
            ),
            ("shared_failed", "Attempts to write such an object that failed", &self.shared_failed),
        ];
        self.api.counters().into_iter().chain(own)
    }

    /// Registers all of them.
    pub fn register(&self, registry: &mut Named) {
        for (name, help, counter) in self.counters() {
            registry.register_counter(format!("{PREFIX}_{name}"), help, counter.clone());
        }
        for (name, help, gauge) in self.api.gauges() {
            registry.register(format!("{PREFIX}_{name}"), help, gauge.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of docs/ipamd-kubernetes.md is made from the registry. With `UPDATE_GOLDENS` set in the environment it is
    /// written anew.
    #[test]
    fn the_documentation_is_the_registry() {
        let mut named = Named::default();
        Metrics::default().register(&mut named);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ipamd-kubernetes.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once("| metric |").unwrap();
        let after = rest.split_once("\n\n").map_or(String::new(), |(_, after)| format!("\n{after}"));
        let text = format!("{before}{}{after}", named.table());
        if std::env::var_os("UPDATE_GOLDENS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(written == text, "set UPDATE_GOLDENS to write docs/ipamd-kubernetes.md anew");
    }
}
