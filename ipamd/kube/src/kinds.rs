//! The kinds that ipamd reads, and which of their objects.

use sluice_cluster::{Keep, Kind, Scope, Watched};
use sluice_ipamd_core::branch::POD_ENI;
use sluice_ipamd_daemon::cluster::objects::{MIRROR_ANNOTATION, OVERRIDES_NAME, SHARED_NAME, Sort};
use sluice_policy_core::cluster::POD_IPS_ANNOTATION;

/// What is read of an object's metadata. Its annotations are few on nodes and unbounded on pods.
const METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    ("labels", Keep::All),
    ("annotations", Keep::All),
    ("resourceVersion", Keep::All),
]);

const POD_METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    ("annotations", Keep::Fields(&[(MIRROR_ANNOTATION, Keep::All), (POD_IPS_ANNOTATION, Keep::All)])),
    ("deletionTimestamp", Keep::All),
    ("resourceVersion", Keep::All),
]);

const POD_METADATA_WITH_CLAIM: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    (
        "annotations",
        Keep::Fields(&[(MIRROR_ANNOTATION, Keep::All), (POD_ENI, Keep::All), (POD_IPS_ANNOTATION, Keep::All)]),
    ),
    ("deletionTimestamp", Keep::All),
    ("resourceVersion", Keep::All),
]);

const CORE: Kind = Kind {
    group: "",
    versions: &["v1"],
    kind: "",
    plural: "",
    namespaced: true,
    required: true,
    fresh: false,
    keep: Keep::All,
};

static NODE: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    namespaced: false,
    keep: Keep::Fields(&[
        ("metadata", METADATA),
        ("spec", Keep::Fields(&[("unschedulable", Keep::All)])),
        ("status", Keep::Fields(&[("capacity", Keep::Fields(&[("pods", Keep::All)]))])),
    ]),
    ..CORE
};

static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    keep: Keep::Fields(&[
        ("metadata", POD_METADATA),
        ("spec", Keep::Fields(&[("nodeName", Keep::All), ("hostNetwork", Keep::All)])),
        ("status", Keep::Fields(&[("phase", Keep::All), ("podIP", Keep::All)])),
    ]),
    ..CORE
};

/// The same with what it says of a branch ENI.
static POD_WITH_CLAIM: Kind = Kind {
    keep: Keep::Fields(&[
        ("metadata", POD_METADATA_WITH_CLAIM),
        (
            "spec",
            Keep::Fields(&[
                ("nodeName", Keep::All),
                ("hostNetwork", Keep::All),
                ("containers", Keep::Each(&Keep::Fields(&[("resources", Keep::Fields(&[("limits", Keep::All)]))]))),
            ]),
        ),
        ("status", Keep::Fields(&[("phase", Keep::All), ("podIP", Keep::All)])),
    ]),
    kind: "Pod",
    plural: "pods",
    ..CORE
};

static CONFIG_MAP: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    fresh: true,
    keep: Keep::Fields(&[("metadata", METADATA), ("data", Keep::All)]),
    ..CORE
};

static ENI_CONFIG: Kind = Kind {
    group: "crd.k8s.amazonaws.com",
    versions: &["v1alpha1"],
    kind: "ENIConfig",
    plural: "eniconfigs",
    namespaced: false,
    required: false,
    fresh: true,
    keep: Keep::Fields(&[("metadata", METADATA), ("spec", Keep::All)]),
};

/// A policy, of which what is named in groups is wanted: that can stand anywhere in its rules.
const POLICY: Keep = Keep::Fields(&[
    ("metadata", Keep::Fields(&[("name", Keep::All), ("namespace", Keep::All), ("resourceVersion", Keep::All)])),
    ("spec", Keep::All),
    ("specs", Keep::All),
]);

const CILIUM: Kind = Kind { group: "cilium.io", versions: &["v2"], required: false, fresh: true, keep: POLICY, ..CORE };

static NETWORK_POLICY: Kind = Kind { kind: "CiliumNetworkPolicy", plural: "ciliumnetworkpolicies", ..CILIUM };

static CLUSTERWIDE_POLICY: Kind = Kind {
    kind: "CiliumClusterwideNetworkPolicy",
    plural: "ciliumclusterwidenetworkpolicies",
    namespaced: false,
    ..CILIUM
};

pub(crate) static CIDR_GROUP: Kind = Kind {
    kind: "CiliumCIDRGroup",
    plural: "ciliumcidrgroups",
    versions: &["v2", "v2alpha1"],
    namespaced: false,
    keep: Keep::Fields(&[
        ("metadata", Keep::Fields(&[("name", Keep::All), ("labels", Keep::All), ("resourceVersion", Keep::All)])),
        ("spec", Keep::Fields(&[("externalCIDRs", Keep::All)])),
    ]),
    ..CILIUM
};

/// What the elected node reads beside that: policies, and the objects that stand for what they name.
pub(crate) fn watched_by_the_elected() -> [Watched; 3] {
    [&NETWORK_POLICY, &CLUSTERWIDE_POLICY, &CIDR_GROUP].map(|kind| Watched { kind, scope: Scope::default() })
}

/// What is read: of nodes this one, of pods its own, of ConfigMaps ours; and ENIConfigs, where they say where ENIs are made.
pub(crate) fn watched(
    node: &str,
    namespace: &str,
    eni_configs: bool,
    routes: bool,
    claims: bool,
) -> Vec<(Sort, Watched)> {
    let pod = if claims { &POD_WITH_CLAIM } else { &POD };
    let named = |name: &str| Some(format!("metadata.name={name}"));
    let mut watched = vec![
        (Sort::Node, Watched { kind: &NODE, scope: Scope { namespace: None, fields: named(node) } }),
        (
            Sort::Pod,
            Watched { kind: pod, scope: Scope { namespace: None, fields: Some(format!("spec.nodeName={node}")) } },
        ),
        (
            Sort::ConfigMap,
            Watched {
                kind: &CONFIG_MAP,
                scope: Scope { namespace: Some(namespace.to_owned()), fields: named(OVERRIDES_NAME) },
            },
        ),
    ];
    if routes {
        let scope = Scope { namespace: Some(namespace.to_owned()), fields: named(SHARED_NAME) };
        watched.push((Sort::Shared, Watched { kind: &CONFIG_MAP, scope }));
    }
    if eni_configs {
        watched.push((Sort::EniConfig, Watched { kind: &ENI_CONFIG, scope: Scope::default() }));
    }
    watched
}

#[cfg(test)]
mod tests {
    use sluice_ipamd_daemon::cluster::objects::{Object, max_pods};

    use super::*;

    #[test]
    fn of_a_nodes_status_its_pods_are_kept_and_nothing_else() {
        let node = r#"{"metadata": {"name": "n1", "managedFields": [1]}, "spec": {"unschedulable": true, "podCIDR": "10.0.0.0/24"},
            "status": {"capacity": {"pods": "29", "cpu": "2"}, "allocatable": {"pods": "27"}, "images": [{"names": ["a"]}]}}"#;
        let kept = NODE.keep.read(node.as_bytes()).unwrap();
        let expected = serde_json::json!({"metadata": {"name": "n1"}, "spec": {"unschedulable": true}, "status": {"capacity": {"pods": "29"}}});
        assert_eq!(kept, expected);
        let object = Object::read(Sort::Node, kept).unwrap();
        assert_eq!(max_pods([&object], "n1"), Some(Ok(29)));
    }
}
