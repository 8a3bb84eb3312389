//! The kinds that are watched, where they are, and what of them is read.

use sluice_policy_core::cluster::{ObjectId, ObjectKey, POD_IPS_ANNOTATION, PodKey, VISIBILITY_ANNOTATION};
use sluice_policy_core::model::{AUDIT_ANNOTATION, PolicyKind, PolicyRef, Text};

use super::keep::Keep;

/// A kind of the API.
#[derive(Debug)]
pub(super) struct Kind {
    /// API group; empty for the core group.
    pub(super) group: &'static str,
    /// Versions that are read, the first one served is taken.
    pub(super) versions: &'static [&'static str],
    /// Kind.
    pub(super) kind: &'static str,
    /// Name in paths.
    pub(super) plural: &'static str,
    /// Whether it lives in namespaces.
    pub(super) namespaced: bool,
    /// Whether every API server has it. Others come with a CustomResourceDefinition.
    pub(super) required: bool,
    /// Whether the first list must be of this moment. Else it may come from the API server's cache and be a little old:
    /// what follows comes by the watch.
    pub(super) fresh: bool,
    /// What is read of an object.
    pub(super) keep: Keep,
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
    /// `apiVersion` of its objects in this version.
    pub(super) fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// The path of all its objects.
    pub(super) fn path(&self, version: &str) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        format!("{root}/{version}/{}", self.plural)
    }

    /// The path of one object.
    pub(super) fn object_path(&self, version: &str, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        if self.namespaced {
            format!("{root}/{version}/namespaces/{}/{}/{}", escaped(namespace), self.plural, escaped(name))
        } else {
            format!("{root}/{version}/{}/{}", self.plural, escaped(name))
        }
    }

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
                let namespace = self.namespaced.then(|| namespace.into());
                ObjectId::Policy(PolicyRef { kind, namespace, name })
            }
        }
    }
}

/// A part of a path or a query. Names of Kubernetes need no escape; what comes from elsewhere may.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
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

const CORE: Kind = Kind {
    group: "",
    versions: &["v1"],
    kind: "",
    plural: "",
    namespaced: true,
    required: true,
    fresh: false,
    keep: Keep::All,
    is: Is::Pod,
    condition: None,
};

const CUSTOM: Kind = Kind { required: false, fresh: true, keep: POLICY, ..CORE };

/// All kinds that are watched.
pub(super) static KINDS: &[Kind] = &[
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        namespaced: false,
        fresh: true,
        keep: Keep::Fields(&[("metadata", METADATA)]),
        is: Is::Namespace,
        ..CORE
    },
    Kind {
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
        is: Is::Pod,
        ..CORE
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        namespaced: false,
        keep: Keep::Fields(&[("metadata", METADATA), ("status", Keep::Fields(&[("addresses", Keep::All)]))]),
        is: Is::Node,
        ..CORE
    },
    Kind {
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
        is: Is::Service,
        ..CORE
    },
    Kind {
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
        is: Is::EndpointSlice,
        ..CORE
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        fresh: true,
        keep: POLICY,
        is: Is::Policy(PolicyKind::NetworkPolicy),
        ..CORE
    },
    Kind {
        group: "policy.networking.k8s.io",
        versions: &["v1alpha2"],
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        namespaced: false,
        is: Is::Policy(PolicyKind::ClusterNetworkPolicy),
        condition: ACCEPTED,
        ..CUSTOM
    },
    Kind {
        group: "policy.networking.k8s.io",
        versions: &["v1alpha1"],
        kind: "AdminNetworkPolicy",
        plural: "adminnetworkpolicies",
        namespaced: false,
        is: Is::Policy(PolicyKind::AdminNetworkPolicy),
        condition: ACCEPTED,
        ..CUSTOM
    },
    Kind {
        group: "policy.networking.k8s.io",
        versions: &["v1alpha1"],
        kind: "BaselineAdminNetworkPolicy",
        plural: "baselineadminnetworkpolicies",
        namespaced: false,
        is: Is::Policy(PolicyKind::BaselineAdminNetworkPolicy),
        condition: ACCEPTED,
        ..CUSTOM
    },
    Kind {
        group: "networking.k8s.aws",
        versions: &["v1alpha1"],
        kind: "ClusterNetworkPolicy",
        plural: "clusternetworkpolicies",
        namespaced: false,
        is: Is::Policy(PolicyKind::AwsClusterNetworkPolicy),
        ..CUSTOM
    },
    Kind {
        group: "networking.k8s.aws",
        versions: &["v1alpha1"],
        kind: "ApplicationNetworkPolicy",
        plural: "applicationnetworkpolicies",
        is: Is::Policy(PolicyKind::AwsApplicationNetworkPolicy),
        ..CUSTOM
    },
    Kind {
        group: "cilium.io",
        versions: &["v2"],
        kind: "CiliumNetworkPolicy",
        plural: "ciliumnetworkpolicies",
        is: Is::Policy(PolicyKind::CiliumNetworkPolicy),
        condition: VALID,
        ..CUSTOM
    },
    Kind {
        group: "cilium.io",
        versions: &["v2"],
        kind: "CiliumClusterwideNetworkPolicy",
        plural: "ciliumclusterwidenetworkpolicies",
        namespaced: false,
        is: Is::Policy(PolicyKind::CiliumClusterwideNetworkPolicy),
        condition: VALID,
        ..CUSTOM
    },
    Kind {
        group: "cilium.io",
        versions: &["v2", "v2alpha1"],
        kind: "CiliumCIDRGroup",
        plural: "ciliumcidrgroups",
        namespaced: false,
        is: Is::CidrGroup,
        ..CUSTOM
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
            for version in kind.versions {
                let value =
                    json!({"apiVersion": kind.api_version(version), "kind": kind.kind, "metadata": {"name": "x"}});
                let unknown = parse::object(&value).issues.into_iter().find(|issue| {
                    matches!(issue.path.as_str(), "apiVersion" | "kind") && issue.message.contains("is not a known")
                });
                assert_eq!(unknown, None, "{}", kind.kind);
            }
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |kind: &str, namespace: &str| {
            let kind = KINDS.iter().find(|known| known.kind == kind).unwrap();
            kind.object_path(kind.versions[0], namespace, "x/y")
        };
        assert_eq!(path("Pod", "shop"), "/api/v1/namespaces/shop/pods/x%2Fy");
        assert_eq!(path("CiliumCIDRGroup", ""), "/apis/cilium.io/v2/ciliumcidrgroups/x%2Fy");
    }
}
