//! The kinds that the server knows, and how a request's path names them.

/// A kind of object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: String,
    /// Versions that are served, the preferred one first. All of them show the same objects.
    pub versions: Vec<String>,
    /// Kind, e.g. `NetworkPolicy`.
    pub kind: String,
    /// Name in paths, e.g. `networkpolicies`.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it has a status subresource.
    pub status: bool,
    /// Whether a CustomResourceDefinition makes it.
    pub custom: bool,
}

/// Group and plural: which table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId {
    /// API group; empty for the core group.
    pub group: String,
    /// Name in paths.
    pub plural: String,
}

impl TableId {
    /// A table by its names.
    #[must_use]
    pub fn new(group: &str, plural: &str) -> Self {
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }
}

impl Kind {
    /// A kind that the server has from the start.
    fn builtin(version: &str, kind: &str, plural: &str, namespaced: bool, status: bool) -> Self {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        Self {
            group: group.to_owned(),
            versions: vec![version.to_owned()],
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
            status,
            custom: false,
        }
    }

    /// A kind of a CustomResourceDefinition. `versions`: `cilium.io/v2`, or several as `cilium.io/v2,v2alpha1`.
    #[must_use]
    pub fn custom(versions: &str, kind: &str, plural: &str, namespaced: bool, status: bool) -> Self {
        let (group, versions) = versions.split_once('/').unwrap_or(("", versions));
        Self {
            group: group.to_owned(),
            versions: versions.split(',').map(str::to_owned).collect(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
            status,
            custom: true,
        }
    }

    /// Where its objects are.
    #[must_use]
    pub fn table(&self) -> TableId {
        TableId { group: self.group.clone(), plural: self.plural.clone() }
    }

    /// `apiVersion` of its objects in one of its versions.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Whether an object's `apiVersion` and `kind` are this kind's.
    #[must_use]
    pub fn is(&self, api_version: &str, kind: &str) -> bool {
        self.kind == kind && self.versions.iter().any(|version| self.api_version(version) == api_version)
    }
}

/// What every cluster has, as far as it is needed here.
#[must_use]
pub fn builtin() -> Vec<Kind> {
    vec![
        Kind::builtin("v1", "Namespace", "namespaces", false, true),
        Kind::builtin("v1", "Pod", "pods", true, true),
        Kind::builtin("v1", "Node", "nodes", false, true),
        Kind::builtin("v1", "Service", "services", true, true),
        Kind::builtin("v1", "ConfigMap", "configmaps", true, false),
        Kind::builtin("v1", "Event", "events", true, false),
        Kind::builtin("events.k8s.io/v1", "Event", "events", true, false),
        Kind::builtin("discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true, false),
        Kind::builtin("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true, false),
        Kind::builtin("coordination.k8s.io/v1", "Lease", "leases", true, false),
        Kind::builtin("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", false, true),
    ]
}

/// The policy kinds that a cluster has only if someone installed them.
#[must_use]
pub fn policy_kinds() -> Vec<Kind> {
    let kcnp = "policy.networking.k8s.io/v1alpha2";
    let older = "policy.networking.k8s.io/v1alpha1";
    let aws = "networking.k8s.aws/v1alpha1";
    vec![
        Kind::custom(kcnp, "ClusterNetworkPolicy", "clusternetworkpolicies", false, true),
        Kind::custom(older, "AdminNetworkPolicy", "adminnetworkpolicies", false, true),
        Kind::custom(older, "BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", false, true),
        Kind::custom(aws, "ClusterNetworkPolicy", "clusternetworkpolicies", false, false),
        Kind::custom(aws, "ApplicationNetworkPolicy", "applicationnetworkpolicies", true, false),
        Kind::custom("cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", true, true),
        Kind::custom("cilium.io/v2", "CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", false, true),
        Kind::custom("cilium.io/v2,v2alpha1", "CiliumCIDRGroup", "ciliumcidrgroups", false, false),
    ]
}

/// What a path asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// `/version`.
    Version,
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/VERSION` or `/apis/GROUP/VERSION`.
    Resources {
        /// Group; empty for the core group.
        group: String,
        /// Version.
        version: String,
    },
    /// Objects of a kind.
    Objects(ObjectPath),
}

/// A path of objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPath {
    /// Which table.
    pub table: TableId,
    /// Version in the path.
    pub version: String,
    /// Namespace in the path; empty for a cluster-scoped kind and for all namespaces.
    pub namespace: String,
    /// Name; empty for a list.
    pub name: String,
    /// `status`, or another subresource; empty for the object itself.
    pub subresource: String,
}

impl Path {
    /// Reads a path. None: there is nothing of that form.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["version"] => Some(Self::Version),
            ["healthz" | "livez" | "readyz", ..] => Some(Self::Health),
            ["api"] => Some(Self::CoreVersions),
            ["apis"] => Some(Self::Groups),
            ["api", version, rest @ ..] => Self::under("", version, rest),
            ["apis", group] => Some(Self::Group((*group).to_owned())),
            ["apis", group, version, rest @ ..] => Self::under(group, version, rest),
            _ => None,
        }
    }

    fn under(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let (plural, namespace, name, subresource) = match rest {
            [] => return Some(Self::Resources { group: group.to_owned(), version: version.to_owned() }),
            // A namespace's own subresources, not objects within it.
            ["namespaces", name, sub @ ("status" | "finalize")] => ("namespaces", "", *name, *sub),
            ["namespaces", namespace, plural] => (*plural, *namespace, "", ""),
            ["namespaces", namespace, plural, name] => (*plural, *namespace, *name, ""),
            ["namespaces", namespace, plural, name, sub] => (*plural, *namespace, *name, *sub),
            [plural] => (*plural, "", "", ""),
            [plural, name] => (*plural, "", *name, ""),
            [plural, name, sub] => (*plural, "", *name, *sub),
            _ => return None,
        };
        Some(Self::Objects(ObjectPath {
            table: TableId::new(group, plural),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        }))
    }
}

/// A part of a path or of a query, with `%XX` and `+` as what they stand for.
#[must_use]
pub fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let digits = if *byte == b'%' { after.split_at_checked(2) } else { None };
        let value = digits.and_then(|(digits, after)| {
            let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
            Some((value, after))
        });
        match value {
            Some((value, after)) => {
                bytes.push(value);
                rest = after;
            }
            None => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(path: &str) -> (String, String, String, String, String) {
        match Path::parse(path) {
            Some(Path::Objects(path)) => {
                (path.table.group, path.table.plural, path.namespace, path.name, path.subresource)
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_tables_objects_and_subresources() {
        let is = |path: &str, expected: [&str; 5]| {
            let (group, plural, namespace, name, sub) = objects(path);
            assert_eq!([group.as_str(), &plural, &namespace, &name, &sub], expected, "{path}");
        };
        is("/api/v1/pods", ["", "pods", "", "", ""]);
        is("/api/v1/namespaces", ["", "namespaces", "", "", ""]);
        is("/api/v1/namespaces/shop", ["", "namespaces", "", "shop", ""]);
        is("/api/v1/namespaces/shop/status", ["", "namespaces", "", "shop", "status"]);
        is("/api/v1/namespaces/shop/pods", ["", "pods", "shop", "", ""]);
        is("/api/v1/namespaces/shop/pods/db%2D0", ["", "pods", "shop", "db-0", ""]);
        is("/apis/cilium.io/v2/ciliumcidrgroups/x", ["cilium.io", "ciliumcidrgroups", "", "x", ""]);
        is(
            "/apis/cilium.io/v2/namespaces/a/ciliumnetworkpolicies/x/status",
            ["cilium.io", "ciliumnetworkpolicies", "a", "x", "status"],
        );
        assert_eq!(Path::parse("/apis/cilium.io"), Some(Path::Group("cilium.io".to_owned())));
        assert_eq!(Path::parse("/nothing"), None);
        assert_eq!(decoded("a%3Db%2"), "a=b%2");
    }
}
