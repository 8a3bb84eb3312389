//! The kinds that are watched, where they are, and what of them is read.

use sluice_cluster::{Keep, Kind as Api};
use sluice_policy_core::cluster::{ObjectId, ObjectKey, POD_IPS_ANNOTATION, PodKey, VISIBILITY_ANNOTATION};
use sluice_policy_core::model::{AUDIT_ANNOTATION, PolicyKind, PolicyRef, Text};

/// A kind of the API.
#[derive(Debug)]
pub(super) struct Kind {
    /// Where it is, and what of it is read.
    pub(super) api: Api,
    /// What it is to policy-core.
    pub(super) is: Is,
    /// The type of the condition that says whether a policy is usable; none for a kind without status.
    pub(super) condition: Option<Condition>,
}

/// What objects of a kind are to policy-core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Namespace,
    Pod,
    Node,
    Service,
    EndpointSlice,
    CidrGroup,
    Policy(PolicyKind),
}

/// The condition in a policy's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Its `type`.
    pub(super) name: &'static str,
    /// Whether the kind's conditions have `observedGeneration`.
    pub(super) generation: bool,
}

impl Kind {
    /// The object of this kind with this name.
    pub(super) fn id(&self, namespace: &str, name: &str) -> ObjectId {
        let name = Text::from(name);
        let key = |name: Text| ObjectKey { namespace: namespace.into(), name };
        match self.is {
            Is::Namespace => ObjectId::Namespace(name),
            Is::Node => ObjectId::Node(name),
            Is::CidrGroup => ObjectId::CidrGroup(name),
            Is::Pod => ObjectId::Pod(PodKey { namespace: namespace.into(), name }),
            Is::Service => ObjectId::Service(key(name)),
            Is::EndpointSlice => ObjectId::EndpointSlice(key(name)),
            Is::Policy(kind) => {
                let namespace = self.api.namespaced.then(|| namespace.into());
                ObjectId::Policy(PolicyRef { kind, namespace, name })
            }
        }
    }
}

/// The kind of a policy.
pub(super) fn of_policy(kind: PolicyKind) -> Option<&'static Kind> {
    KINDS.iter().find(|known| known.is == Is::Policy(kind))
}

/// The UID that a static pod has on its node.
pub(super) const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

const METADATA: Keep = Keep::Fields(&[
    ("name", Keep::All),
    ("namespace", Keep::All),
    ("uid", Keep::All),
    ("labels", Keep::All),
    (
        "annotations",
        Keep::Fields(&[
            (AUDIT_ANNOTATION, Keep::All),
            (POD_IPS_ANNOTATION, Keep::All),
            (MIRROR_ANNOTATION, Keep::All),
            (VISIBILITY_ANNOTATION, Keep::All),
        ]),
    ),
    ("creationTimestamp", Keep::All),
    ("resourceVersion", Keep::All),
    ("generation", Keep::All),
]);

const CONTAINERS: Keep = Keep::Each(&Keep::Fields(&[("ports", Keep::All), ("restartPolicy", Keep::All)]));

/// Whatever is in a policy counts, also what nobody knows.
const POLICY: Keep = Keep::But(&[("metadata", METADATA), ("status", Keep::Fields(&[("conditions", Keep::All)]))]);

const VALID: Option<Condition> = Some(Condition { name: "Valid", generation: false });
const ACCEPTED: Option<Condition> = Some(Condition { name: "Accepted", generation: true });

const CORE: Api = Api {
    group: "",
    versions: &["v1"],
    kind: "",
    plural: "",
    namespaced: true,
    required: true,
    fresh: false,
    keep: Keep::All,
};

const CUSTOM: Api = Api { required: false, fresh: true, keep: POLICY, ..CORE };

/// All kinds that are watched.
pub(super) static KINDS: &[Kind] = &[
    Kind {
        api: Api {
            kind: "Namespace",
            plural: "namespaces",
            namespaced: false,
            fresh: true,
            keep: Keep::Fields(&[("metadata", METADATA)]),
            ..CORE
        },
        is: Is::Namespace,
        condition: None,
    },
    Kind {
        api: Api {
            kind: "Pod",
            plural: "pods",
            keep: Keep::Fields(&[
                ("metadata", METADATA),
                (
                    "spec",
                    Keep::Fields(&[
                        ("nodeName", Keep::All),
                        ("serviceAccountName", Keep::All),
                        ("hostNetwork", Keep::All),
                        ("containers", CONTAINERS),
                        ("initContainers", CONTAINERS),
                    ]),
                ),
                (
                    "status",
                    Keep::Fields(&[
                        ("phase", Keep::All),
                        ("podIP", Keep::All),
                        ("podIPs", Keep::All),
                        ("conditions", Keep::Each(&Keep::Fields(&[("type", Keep::All), ("status", Keep::All)]))),
                    ]),
                ),
            ]),
            ..CORE
        },
        is: Is::Pod,
        condition: None,
    },
    Kind {
        api: Api {
            kind: "Node",
            plural: "nodes",
            namespaced: false,
            keep: Keep::Fields(&[("metadata", METADATA), ("status", Keep::Fields(&[("addresses", Keep::All)]))]),
            ..CORE
        },
        is: Is::Node,
        condition: None,
    },
    Kind {
        api: Api {
            kind: "Service",
            plural: "services",
            keep: Keep::Fields(&[
                ("metadata", METADATA),
                (
                    "spec",
                    Keep::Fields(&[
                        ("type", Keep::All),
                        ("selector", Keep::All),
                        ("clusterIP", Keep::All),
                        ("clusterIPs", Keep::All),
                        ("externalIPs", Keep::All),
                        ("ports", Keep::All),
                    ]),
                ),
                ("status", Keep::Fields(&[("loadBalancer", Keep::All)])),
            ]),
            ..CORE
        },
        is: Is::Service,
        condition: None,
    },
    Kind {
        api: Api {
            group: "discovery.k8s.io",
            kind: "EndpointSlice",
            plural: "endpointslices",
            keep: Keep::Fields(&[
                ("metadata", METADATA),
                ("addressType", Keep::All),
                ("ports", Keep::All),
                (
                    "endpoints",
                    Keep::Each(&Keep::Fields(&[
                        ("addresses", Keep::All),
                        ("conditions", Keep::Fields(&[("ready", Keep::All)])),
                    ])),
                ),
            ]),
            ..CORE
        },
        is: Is::EndpointSlice,
        condition: None,
    },
    Kind {
        api: Api {
            group: "networking.k8s.io",
            kind: "NetworkPolicy",
            plural: "networkpolicies",
            fresh: true,
            keep: POLICY,
            ..CORE
        },
        is: Is::Policy(PolicyKind::NetworkPolicy),
        condition: None,
    },
    Kind {
        api: Api {
            group: "policy.networking.k8s.io",
            versions: &["v1alpha2"],
            kind: "ClusterNetworkPolicy",
            plural: "clusternetworkpolicies",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::ClusterNetworkPolicy),
        condition: ACCEPTED,
    },
    Kind {
        api: Api {
            group: "policy.networking.k8s.io",
            versions: &["v1alpha1"],
            kind: "AdminNetworkPolicy",
            plural: "adminnetworkpolicies",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::AdminNetworkPolicy),
        condition: ACCEPTED,
    },
    Kind {
        api: Api {
            group: "policy.networking.k8s.io",
            versions: &["v1alpha1"],
            kind: "BaselineAdminNetworkPolicy",
            plural: "baselineadminnetworkpolicies",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::BaselineAdminNetworkPolicy),
        condition: ACCEPTED,
    },
    Kind {
        api: Api {
            group: "networking.k8s.aws",
            versions: &["v1alpha1"],
            kind: "ClusterNetworkPolicy",
            plural: "clusternetworkpolicies",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::AwsClusterNetworkPolicy),
        condition: None,
    },
    Kind {
        api: Api {
            group: "networking.k8s.aws",
            versions: &["v1alpha1"],
            kind: "ApplicationNetworkPolicy",
            plural: "applicationnetworkpolicies",
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::AwsApplicationNetworkPolicy),
        condition: None,
    },
    Kind {
        api: Api {
            group: "cilium.io",
            versions: &["v2"],
            kind: "CiliumNetworkPolicy",
            plural: "ciliumnetworkpolicies",
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::CiliumNetworkPolicy),
        condition: VALID,
    },
    Kind {
        api: Api {
            group: "cilium.io",
            versions: &["v2"],
            kind: "CiliumClusterwideNetworkPolicy",
            plural: "ciliumclusterwidenetworkpolicies",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::Policy(PolicyKind::CiliumClusterwideNetworkPolicy),
        condition: VALID,
    },
    Kind {
        api: Api {
            group: "cilium.io",
            versions: &["v2", "v2alpha1"],
            kind: "CiliumCIDRGroup",
            plural: "ciliumcidrgroups",
            namespaced: false,
            ..CUSTOM
        },
        is: Is::CidrGroup,
        condition: None,
    },
];

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_policy_core::parse;

    use super::*;

    #[test]
    fn policy_core_reads_every_kind_in_every_version() {
        for kind in KINDS {
            for version in kind.api.versions {
                let value = json!({"apiVersion": kind.api.api_version(version), "kind": kind.api.kind, "metadata": {"name": "x"}});
                let unknown = parse::object(&value).issues.into_iter().find(|issue| {
                    matches!(issue.path.as_str(), "apiVersion" | "kind") && issue.message.contains("is not a known")
                });
                assert_eq!(unknown, None, "{}", kind.api.kind);
            }
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |kind: &str, namespace: &str| {
            let kind = KINDS.iter().find(|known| known.api.kind == kind).unwrap();
            kind.api.object_path(kind.api.versions[0], namespace, "x/y")
        };
        assert_eq!(path("Pod", "shop"), "/api/v1/namespaces/shop/pods/x%2Fy");
        assert_eq!(path("CiliumCIDRGroup", ""), "/apis/cilium.io/v2/ciliumcidrgroups/x%2Fy");
    }
}
