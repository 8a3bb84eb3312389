//! What label selectors ask for, as sets that can be compared: only what is proven counts.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::NAMESPACE_NAME_LABEL;
use crate::cluster::labels::{
    CILIUM_PREFIX, CLUSTER, CLUSTER_NAME, NAMESPACE_LABEL_PREFIX, POD_NAMESPACE, SERVICE_ACCOUNT,
};
use crate::model::Text;
use crate::model::cluster_network_policy::ClusterSubject;
use crate::model::selector::{CiliumRequirement, CiliumSelector, LabelSelector, LabelSource, Operator, Requirement};

/// The values that a label may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values {
    /// Whether it may be missing.
    absent: bool,
    /// Whether `named` are the only values, or all but those.
    only: bool,
    named: BTreeSet<Text>,
}

impl Values {
    const ANY: Self = Self { absent: true, only: false, named: BTreeSet::new() };
    const PRESENT: Self = Self { absent: false, only: false, named: BTreeSet::new() };
    const ABSENT: Self = Self { absent: true, only: true, named: BTreeSet::new() };

    fn these<'a>(values: impl IntoIterator<Item = &'a Text>) -> Self {
        Self { absent: false, only: true, named: values.into_iter().cloned().collect() }
    }

    /// What a requirement leaves.
    pub(super) fn of(requirement: &Requirement) -> Self {
        match requirement.operator {
            Operator::In => Self::these(&requirement.values),
            Operator::NotIn => Self { absent: true, only: false, named: requirement.values.iter().cloned().collect() },
            Operator::Exists => Self::PRESENT,
            Operator::DoesNotExist => Self::ABSENT,
        }
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        let (only, named) = match (self.only, other.only) {
            (true, true) => (true, self.named.intersection(&other.named).cloned().collect()),
            (true, false) => (true, self.named.difference(&other.named).cloned().collect()),
            (false, true) => (true, other.named.difference(&self.named).cloned().collect()),
            (false, false) => (false, self.named.union(&other.named).cloned().collect()),
        };
        Self { absent: self.absent && other.absent, only, named }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.absent && self.only && self.named.is_empty()
    }

    /// Whether all of it is in the other. That no value is left where not all are named is never claimed.
    fn within(&self, other: &Self) -> bool {
        let values = match (self.only, other.only) {
            (true, true) => self.named.is_subset(&other.named),
            (true, false) => self.named.is_disjoint(&other.named),
            (false, true) => false,
            (false, false) => other.named.is_subset(&self.named),
        };
        values && (other.absent || !self.absent)
    }
}

/// A label of something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// The name of a pod's namespace.
    Namespace,
    /// A label of a pod's namespace.
    OfNamespace(Text),
    /// A label of the object itself.
    Own(Text),
    /// A pod's service account.
    ServiceAccount,
    /// The pod's cluster, as Cilium has it.
    Cluster,
    /// Whether the address is one of the API server's.
    ApiServer,
    /// A label that pods do not have.
    Never,
}

impl Key {
    /// What may be, whatever is asked for.
    fn possible(&self) -> Values {
        match self {
            Self::Namespace | Self::ServiceAccount => Values::PRESENT,
            Self::OfNamespace(_) | Self::Own(_) | Self::ApiServer => Values::ANY,
            Self::Cluster => Values::these([&Text::from(CLUSTER_NAME)]),
            Self::Never => Values::ABSENT,
        }
    }

    fn of_namespace(key: &Text) -> Self {
        if &**key == NAMESPACE_NAME_LABEL { Self::Namespace } else { Self::OfNamespace(Text::clone(key)) }
    }

    /// What Cilium's view of a pod has under this key.
    fn of_endpoint(wanted: &CiliumRequirement) -> Self {
        let key = &wanted.requirement.key;
        match &wanted.source {
            LabelSource::Reserved | LabelSource::Other(_) => return Self::Never,
            LabelSource::Any | LabelSource::Kubernetes => {}
        }
        match &**key {
            POD_NAMESPACE => return Self::Namespace,
            SERVICE_ACCOUNT => return Self::ServiceAccount,
            CLUSTER => return Self::Cluster,
            _ => {}
        }
        match key.strip_prefix(NAMESPACE_LABEL_PREFIX) {
            Some(label) => Self::of_namespace(&label.into()),
            None if key.starts_with(CILIUM_PREFIX) => Self::Never,
            None => Self::Own(Text::clone(key)),
        }
    }
}

/// Objects by their labels: all conditions hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Labelled(BTreeMap<Key, Values>);

impl Labelled {
    fn add(&mut self, key: Key, values: &Values) {
        let before = self.0.get(&key).cloned().unwrap_or_else(|| key.possible());
        self.0.insert(key, before.and(values));
    }

    fn own(mut self, selector: &LabelSelector) -> Self {
        for one in &selector.requirements {
            self.add(Key::Own(Text::clone(&one.key)), &Values::of(one));
        }
        self
    }

    fn of_namespaces(mut self, selector: &LabelSelector) -> Self {
        for one in &selector.requirements {
            self.add(Key::of_namespace(&one.key), &Values::of(one));
        }
        self
    }

    /// Objects with these labels of their own.
    pub(super) fn objects(selector: &LabelSelector) -> Self {
        Self::default().own(selector)
    }

    /// Pods of a namespace.
    pub(super) fn pods_of(namespace: Option<&Text>, pods: &LabelSelector) -> Self {
        let mut set = Self::default().own(pods);
        if let Some(namespace) = namespace {
            set.add(Key::Namespace, &Values::these([namespace]));
        }
        set
    }

    /// Pods of namespaces with these labels.
    pub(super) fn pods_in(namespaces: &LabelSelector, pods: &LabelSelector) -> Self {
        Self::default().of_namespaces(namespaces).own(pods)
    }

    /// Subjects and peers of ClusterNetworkPolicies.
    pub(super) fn cluster(subject: &ClusterSubject) -> Self {
        match subject {
            ClusterSubject::Namespaces(namespaces) => Self::pods_in(namespaces, &LabelSelector::default()),
            ClusterSubject::Pods { namespaces, pods } => Self::pods_in(namespaces, pods),
        }
    }

    /// The pods that a selector of Cilium selects.
    pub(super) fn endpoints(selector: &CiliumSelector) -> Self {
        let mut set = Self::default();
        for one in &selector.requirements {
            set.add(Key::of_endpoint(one), &Values::of(&one.requirement));
        }
        set
    }

    /// Pods that back the API server.
    pub(super) fn api_server() -> Self {
        let mut set = Self::default();
        set.add(Key::ApiServer, &Values::PRESENT);
        set
    }

    /// Whether nothing can have such labels.
    pub(super) fn is_empty(&self) -> bool {
        self.0.values().any(Values::is_empty)
    }

    /// Whether everything that is meant here is meant there too.
    pub(super) fn within(&self, other: &Self) -> bool {
        other.0.iter().all(|(key, values)| match self.0.get(key) {
            Some(own) => own.within(values),
            None => key.possible().within(values),
        })
    }

    /// Whether nothing can be meant by both.
    pub(super) fn apart(&self, other: &Self) -> bool {
        self.is_empty()
            || other.is_empty()
            || self.0.iter().any(|(key, values)| other.0.get(key).is_some_and(|theirs| values.and(theirs).is_empty()))
    }

    /// Whether one of the values asked for is such a one.
    pub(super) fn is_named(&self, test: impl Fn(&str) -> bool) -> bool {
        self.0.values().any(|values| values.only && values.named.iter().any(|value| test(value)))
    }

    /// The names of the namespaces, where only some are meant.
    pub(super) fn namespaces(&self) -> Option<&BTreeSet<Text>> {
        self.0.get(&Key::Namespace).filter(|values| values.only).map(|values| &values.named)
    }
}

/// The label that a selector asks two things of that cannot be together.
pub(super) fn contradiction<'a>(
    wanted: impl IntoIterator<Item = (&'a LabelSource, &'a Requirement)>,
) -> Option<String> {
    let mut values: BTreeMap<(&LabelSource, &str), Values> = BTreeMap::new();
    for (source, one) in wanted {
        let of = values.entry((source, &one.key)).or_insert(Values::ANY);
        *of = of.and(&Values::of(one));
        if of.is_empty() {
            return Some(one.key.to_string());
        }
    }
    None
}
