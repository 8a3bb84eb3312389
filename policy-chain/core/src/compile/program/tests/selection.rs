//! Which policies select a pod.

use std::sync::Arc;

use super::world::*;
use crate::cluster::Labels;
use crate::compile::select::selects;
use crate::compile::view::{CiliumView, PodView};
use crate::flow::Direction;
use crate::model::Policy;
use crate::model::cilium::CiliumPeers;
use crate::model::cluster_network_policy::{Action, ClusterSubject, ClusterTier};
use crate::model::port::Ports;
use crate::model::selector::{CiliumSelector, LabelSelector, LabelSource, Operator};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::new(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())))
}

/// A pod of the namespace `shop`, which is of team `red`.
fn with_pod<T>(pod_labels: &[(&str, &str)], ask: impl FnOnce(&PodView<'_>) -> T) -> T {
    let (namespace_labels, labels) =
        (labels(&[("kubernetes.io/metadata.name", "shop"), ("team", "red")]), labels(pod_labels));
    let namespace_labels = &namespace_labels;
    ask(&PodView { namespace: "shop", namespace_labels, labels: &labels, service_account: "robot" })
}

fn sees(pod_labels: &[(&str, &str)], selector: &CiliumSelector) -> bool {
    with_pod(pod_labels, |pod| CiliumView::Pod(*pod).matches(selector))
}

fn which(policy: Policy, direction: Direction) -> Option<Vec<u16>> {
    let policy = Arc::new(policy);
    with_pod(&[("app", "a")], |pod| selects(&policy, direction, pod)).map(|selected| selected.specs)
}

#[test]
fn network_policies_select_by_namespace_labels_and_direction() {
    let mut policy = network("np", []);
    let both = |policy: &crate::model::NetworkPolicy| {
        Direction::BOTH.map(|direction| which(Policy::Network(policy.clone()), direction).is_some())
    };
    assert_eq!(both(&policy), [true, true]);
    policy.egress = None;
    assert_eq!(both(&policy), [true, false]);
    policy.pods = labelled("app", "a");
    assert_eq!(both(&policy), [true, false]);
    policy.pods = labelled("app", "b");
    assert_eq!(both(&policy), [false, false]);
    policy.pods = LabelSelector::default();
    policy.id.namespace = Some("other".into());
    assert_eq!(both(&policy), [false, false]);
}

#[test]
fn cluster_policies_select_by_their_subject() {
    let mut policy = cluster(ClusterTier::Admin, 1, "admin", [rule(Action::Deny, "a", Ports::Any)]);
    let selected = |policy: &crate::model::ClusterNetworkPolicy, direction| {
        which(Policy::Cluster(policy.clone()), direction).is_some()
    };
    let subject = |namespaces, pods| Some(ClusterSubject::Pods { namespaces, pods });
    for (given, expected) in [
        (Some(ClusterSubject::Namespaces(LabelSelector::default())), true),
        (Some(ClusterSubject::Namespaces(labelled("kubernetes.io/metadata.name", "shop"))), true),
        (Some(ClusterSubject::Namespaces(labelled("app", "a"))), false),
        (subject(labelled("team", "red"), labelled("app", "a")), true),
        (subject(labelled("team", "red"), labelled("app", "b")), false),
        (subject(labelled("team", "blue"), labelled("app", "a")), false),
        (None, false),
    ] {
        policy.subject = given;
        assert_eq!(selected(&policy, Direction::Ingress), expected, "{:?}", policy.subject);
    }
    policy.subject = Some(ClusterSubject::Namespaces(LabelSelector::default()));
    policy.egress.clear();
    assert!(selected(&policy, Direction::Ingress) && !selected(&policy, Direction::Egress));
}

#[test]
fn cilium_policies_select_spec_by_spec() {
    let of = |app_name: &'static str| crate::model::cilium::CiliumRule { subject: app(app_name), ..spec([], []) };
    let policy = |rules: Vec<_>| Policy::Cilium(cilium("cnp", rules));
    assert_eq!(which(policy(vec![of("a"), of("b"), of("a")]), Direction::Ingress), Some(vec![0, 2]));
    assert_eq!(which(policy(vec![of("b")]), Direction::Ingress), None);
    assert_eq!(which(policy(vec![open(of("a"))]), Direction::Ingress), None);
    let mut one_way = open(of("a"));
    one_way.egress_deny = vec![deny(CiliumPeers::Any, Ports::Any)];
    assert_eq!(which(policy(vec![one_way.clone()]), Direction::Egress), Some(vec![0]));
    assert_eq!(which(policy(vec![one_way]), Direction::Ingress), None);
}

#[test]
fn cve_2023_39347_a_pod_cannot_forge_the_labels_of_the_system() {
    let forged = [
        ("io.kubernetes.pod.namespace", "other"),
        ("io.cilium.k8s.policy.serviceaccount", "admin"),
        ("io.cilium.k8s.policy.cluster", "other"),
        ("io.cilium.k8s.namespace.labels.team", "blue"),
        ("io.cilium.k8s.namespace.labels.new", "x"),
        ("io.cilium.k8s.anything", "x"),
        ("app", "a"),
    ];
    for source in [LabelSource::Any, LabelSource::Kubernetes] {
        let has = |key, value: &'static [&'static str]| {
            sees(&forged, &cilium_selector(&[(source.clone(), key, Operator::In, value)]))
        };
        assert!(has("io.kubernetes.pod.namespace", &["shop"]));
        assert!(has("io.cilium.k8s.policy.serviceaccount", &["robot"]));
        assert!(has("io.cilium.k8s.policy.cluster", &["default"]));
        assert!(has("io.cilium.k8s.namespace.labels.team", &["red"]));
        assert!(has("io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", &["shop"]));
        assert!(has("app", &["a"]));
        let exists = |key| sees(&forged, &cilium_selector(&[(source.clone(), key, Operator::Exists, &[])]));
        assert!(!exists("io.cilium.k8s.namespace.labels.new"));
        assert!(!exists("io.cilium.k8s.anything"));
        assert!(!has("io.kubernetes.pod.namespace", &["other"]));
    }
}

#[test]
fn cve_2023_41333_a_reserved_key_is_no_way_out_of_the_namespace() {
    // The parser adds the namespace; what a pod lacks holds for it and changes nothing about the other requirement.
    let escape = |namespace: &'static [&'static str]| {
        cilium_selector(&[
            (LabelSource::Kubernetes, "io.kubernetes.pod.namespace", Operator::In, namespace),
            (LabelSource::Reserved, "init", Operator::DoesNotExist, &[]),
        ])
    };
    assert!(sees(&[], &escape(&["shop"])));
    assert!(!sees(&[], &escape(&["evil"])));
}

#[test]
fn operators_and_sources() {
    use LabelSource::{Any, Kubernetes, Reserved};
    let pod = [("app", "a")];
    let other = || LabelSource::Other("container".into());
    for (source, key, operator, values, expected) in [
        (Any, "app", Operator::In, &["a", "b"][..], true),
        (Kubernetes, "app", Operator::In, &["b"][..], false),
        (Any, "app", Operator::NotIn, &["b"][..], true),
        (Any, "app", Operator::NotIn, &["a"][..], false),
        (Any, "none", Operator::NotIn, &["a"][..], true),
        (Any, "none", Operator::DoesNotExist, &[][..], true),
        (Any, "app", Operator::DoesNotExist, &[][..], false),
        (Reserved, "app", Operator::Exists, &[][..], false),
        (Reserved, "app", Operator::DoesNotExist, &[][..], true),
        (other(), "app", Operator::Exists, &[][..], false),
        (other(), "app", Operator::In, &["a"][..], false),
        (other(), "app", Operator::NotIn, &["a"][..], true),
    ] {
        let selector = cilium_selector(&[(source.clone(), key, operator, values)]);
        assert_eq!(sees(&pod, &selector), expected, "{selector:?}");
    }
    let host = CiliumView::Reserved(&["host", "kube-apiserver"]);
    assert!(host.matches(&host_selector()));
    assert!(host.matches(&cilium_selector(&[(Any, "kube-apiserver", Operator::In, &[""])])));
    assert!(!host.matches(&cilium_selector(&[(Reserved, "host", Operator::In, &["x"])])));
    assert!(!host.matches(&cilium_selector(&[(Kubernetes, "host", Operator::Exists, &[])])));
    assert!(!host.matches(&cilium_selector(&[(Kubernetes, "io.kubernetes.pod.namespace", Operator::Exists, &[])])));
    assert!(host.matches(&CiliumSelector::default()));
}
