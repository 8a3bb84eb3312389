//! A kind of the API: where it is, and what of its objects is read.

use crate::keep::Keep;

/// A kind of the API.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Versions that are read, the first one served is taken.
    pub versions: &'static [&'static str],
    /// Kind.
    pub kind: &'static str,
    /// Name in paths.
    pub plural: &'static str,
    /// Whether it lives in namespaces.
    pub namespaced: bool,
    /// Whether every API server has it. Others come with a CustomResourceDefinition.
    pub required: bool,
    /// Whether the first list must be of this moment. Else it may come from the API server's cache and be a little old:
    /// what follows comes by the watch.
    pub fresh: bool,
    /// What is read of an object.
    pub keep: Keep,
}

/// Which objects of a kind are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only those of this namespace.
    pub namespace: Option<String>,
    /// Only those whose fields are so (`fieldSelector`).
    pub fields: Option<String>,
}

impl Kind {
    /// `apiVersion` of its objects in this version.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// The name of its table: `plural.group`, as its CustomResourceDefinition is named.
    #[must_use]
    pub fn table(&self) -> String {
        format!("{}.{}", self.plural, self.group).trim_end_matches('.').to_owned()
    }

    /// The path of all its objects.
    #[must_use]
    pub fn path(&self, version: &str) -> String {
        self.path_in(version, None)
    }

    /// The path of its objects of a namespace; of all without one.
    #[must_use]
    pub fn path_in(&self, version: &str, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{version}/namespaces/{}/{}", escaped(namespace), self.plural),
            None => format!("{root}/{version}/{}", self.plural),
        }
    }

    /// The path of one object.
    #[must_use]
    pub fn object_path(&self, version: &str, namespace: &str, name: &str) -> String {
        format!("{}/{}", self.path_in(version, Some(namespace)), escaped(name))
    }

    /// The path of the objects of a scope, up to where further parameters follow.
    pub(crate) fn query(&self, version: &str, scope: &Scope) -> String {
        let path = self.path_in(version, scope.namespace.as_deref());
        match &scope.fields {
            Some(fields) => format!("{path}?fieldSelector={}&", escaped(fields)),
            None => format!("{path}?"),
        }
    }
}

/// A part of a path or a query. Names of Kubernetes need no escape; what comes from elsewhere may.
#[must_use]
pub fn escaped(text: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: Kind = Kind {
        group: "",
        versions: &["v1"],
        kind: "ConfigMap",
        plural: "configmaps",
        namespaced: true,
        required: true,
        fresh: true,
        keep: Keep::All,
    };

    #[test]
    fn a_scope_is_a_path_and_a_selector() {
        let scope = Scope { namespace: Some("kube-system".to_owned()), fields: Some("metadata.name=a b".to_owned()) };
        let path = "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Da%20b&";
        assert_eq!(MAPS.query("v1", &scope), path);
        assert_eq!(MAPS.query("v1", &Scope::default()), "/api/v1/configmaps?");
        assert_eq!((MAPS.table(), MAPS.api_version("v1")), ("configmaps".to_owned(), "v1".to_owned()));
    }
}
