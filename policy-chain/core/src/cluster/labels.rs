//! The label keys that Cilium's view of an address has besides the pod's own (Cilium, `pkg/k8s/apis/cilium.io/const.go`,
//! `pkg/labels/labels.go`).

/// The namespace of a pod. Users cannot set it: a pod label with this key is not part of the view (CVE-2023-39347).
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What the keys of the labels begin with that Cilium adds to a pod. A pod label that begins so is not part of the view.
pub const CILIUM_PREFIX: &str = "io.cilium.k8s.";

/// The service account of a pod.
pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";

/// The cluster of a pod; its value is [`CLUSTER_NAME`].
pub const CLUSTER: &str = "io.cilium.k8s.policy.cluster";

/// The value of [`CLUSTER`]: there is one cluster, and Cilium's name for one that was given none is this.
pub const CLUSTER_NAME: &str = "default";

/// What stands before the key of a namespace's label where a pod of the namespace has it.
pub const NAMESPACE_LABEL_PREFIX: &str = "io.cilium.k8s.namespace.labels.";

/// `reserved:host`: the own node.
pub const RESERVED_HOST: &str = "host";

/// `reserved:remote-node`: another node.
pub const RESERVED_REMOTE_NODE: &str = "remote-node";

/// `reserved:world`: an address that is neither a managed pod's nor a node's.
pub const RESERVED_WORLD: &str = "world";

/// `reserved:world-ipv4`.
pub const RESERVED_WORLD_IPV4: &str = "world-ipv4";

/// `reserved:world-ipv6`.
pub const RESERVED_WORLD_IPV6: &str = "world-ipv6";

/// `reserved:kube-apiserver`: an address that backs the Service `default/kubernetes`, whatever else it is.
pub const RESERVED_KUBE_APISERVER: &str = "kube-apiserver";

/// Whether a pod's own label of this key is left out of the view, because it would forge one that the system sets.
#[must_use]
pub fn is_forged(key: &str) -> bool {
    key == POD_NAMESPACE || key.starts_with(CILIUM_PREFIX)
}
