//! What the objects of a cluster mean for this node, and what of that is news: pure, for every source.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use serde::Deserialize;
use sluice_contract::id::PodRef;
use sluice_ipamd_core::branch::POD_ENI;
use sluice_ipamd_core::cloud::EniConfig;
use sluice_ipamd_core::shared::MOST_ROUTES;

use super::objects::{
    Metadata, Naming, NoEniConfig, OVERRIDES_NAME, Object, ROUTES_KEY, SHARED_NAME, Sort, eni_config, is_schedulable,
    max_pods,
};
use super::{Claim, Claims, Told};
use crate::config::overrides::Overrides;

/// What is known; none: not all of the objects that say so are known yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    schedulable: Option<bool>,
    max_pods: Option<Result<u32, String>>,
    eni_config: Option<Result<EniConfig, NoEniConfig>>,
    bound: Option<BTreeSet<PodRef>>,
    overrides: Option<Result<Overrides, Vec<String>>>,
    routes: Option<Vec<Ipv4Net>>,
    claims: Option<Claims>,
}

impl Meaning {
    /// What these objects mean for a node, as far as all objects of their sort are known (`complete`). How the node names its
    /// ENIConfig is said where it has one.
    #[must_use]
    pub fn of(objects: &[Object], complete: &BTreeSet<Sort>, node: &str, naming: Option<&Naming>) -> Self {
        let known = |sorts: &[Sort]| sorts.iter().all(|sort| complete.contains(sort));
        Self {
            schedulable: known(&[Sort::Node]).then(|| is_schedulable(objects, node)),
            max_pods: max_pods(objects, node).filter(|_| known(&[Sort::Node])),
            eni_config: naming
                .filter(|_| known(&[Sort::Node, Sort::EniConfig]))
                .map(|naming| eni_config(objects, node, naming)),
            bound: known(&[Sort::Pod]).then(|| pods_bound(objects, node)),
            claims: known(&[Sort::Pod]).then(|| claims(objects, node)),
            overrides: known(&[Sort::Node, Sort::ConfigMap]).then(|| overrides(objects, node)),
            routes: routes(objects),
        }
    }

    /// The same where nobody asks what pods say of branch ENIs: all of them have addresses of the pool.
    #[must_use]
    pub fn without_claims(self) -> Self {
        Self { claims: None, ..self }
    }

    /// The pods that are about to ask the pool for an address.
    fn demand(&self) -> Option<BTreeSet<PodRef>> {
        let of_pool = |pod: &&PodRef| {
            let claim = self.claims.as_ref().and_then(|all| all.get(&(pod.namespace.clone(), pod.name.clone())));
            claim.is_none_or(|claim| !claim.wants)
        };
        self.bound.as_ref().map(|bound| bound.iter().filter(of_pool).cloned().collect())
    }

    /// What is to be told that was not before.
    #[must_use]
    pub fn news(&self, before: &Self) -> Vec<Told> {
        let mut news = Vec::new();
        if let Some(schedulable) = self.schedulable
            && before.schedulable != self.schedulable
        {
            tracing::info!(schedulable, "whether pods are scheduled to the node");
            news.push(Told::Schedulable(schedulable));
        }
        if let Some(found) = &self.max_pods
            && before.max_pods != self.max_pods
        {
            match found {
                Ok(pods) => {
                    tracing::info!(pods, "how many pods the kubelet takes");
                    news.push(Told::MaxPods(*pods));
                }
                Err(found) => {
                    tracing::warn!(
                        reason = found,
                        "status.capacity.pods of the node is no number of pods; what was known stays"
                    );
                }
            }
        }
        if let Some(found) = &self.eni_config
            && before.eni_config != self.eni_config
        {
            match found {
                Ok(config) => tracing::info!(name = config.name, subnet = %config.subnet, "the node's ENIConfig"),
                Err(error) => tracing::warn!(error = %error, "the node has no ENIConfig"),
            }
            news.push(Told::EniConfig(found.as_ref().ok().cloned()));
        }
        if let Some(claims) = &self.claims
            && before.claims != self.claims
        {
            news.push(Told::Claims(claims.clone()));
        }
        let bound = self.demand();
        if let Some(bound) = bound.filter(|bound| before.demand().as_ref() != Some(bound)) {
            news.push(Told::PodsBound(bound));
        }
        if let Some(overrides) = &self.overrides
            && before.overrides != self.overrides
        {
            news.push(Told::Overrides(overrides.clone()));
        }
        if let Some(routes) = &self.routes
            && before.routes != self.routes
        {
            tracing::info!(?routes, "private networks that the VPC's route tables lead to");
            news.push(Told::Routes(routes.clone()));
        }
        news
    }
}

/// What the pods of a node that have an address of their own say of a branch ENI.
fn claims(objects: &[Object], node: &str) -> Claims {
    let own = objects.iter().filter(|object| {
        object.sort() == Some(Sort::Pod) && object.spec.node_name == node && !object.spec.host_network
    });
    own.map(|pod| {
        let Metadata { namespace, name, annotations, .. } = &pod.metadata;
        let annotation = annotations.get(POD_ENI).filter(|text| !text.is_empty()).cloned();
        let wants = annotation.is_some() || pod.spec.asks_for(POD_ENI);
        ((namespace.clone(), name.clone()), Claim { uid: pod.metadata.sandbox_uid(), wants, annotation })
    })
    .collect()
}

/// The pods of a node that want an address of their own and have no sandbox yet, by the UID that their sandbox will have.
fn pods_bound(objects: &[Object], node: &str) -> BTreeSet<PodRef> {
    let bound = objects.iter().filter(|object| {
        let (spec, status) = (&object.spec, &object.status);
        let begins = matches!(status.phase.as_str(), "" | "Pending") && status.pod_ip.is_empty();
        object.sort() == Some(Sort::Pod)
            && spec.node_name == node
            && !spec.host_network
            && begins
            && object.metadata.deletion_timestamp.is_none()
    });
    bound
        .map(|pod| {
            let metadata = &pod.metadata;
            let uid = metadata.sandbox_uid();
            PodRef { namespace: metadata.namespace.clone(), name: metadata.name.clone(), uid }
        })
        .collect()
}

/// What the elected node has found. Where it has found nothing yet, or what it wrote cannot be read, what was known stays.
fn routes(objects: &[Object]) -> Option<Vec<Ipv4Net>> {
    let is_it = |object: &&Object| object.sort() == Some(Sort::ConfigMap) && object.metadata.name == SHARED_NAME;
    let text = objects.iter().find(is_it)?.data.get(ROUTES_KEY)?;
    let networks: Result<Vec<Ipv4Net>, _> =
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::parse).collect();
    match networks {
        Ok(networks) if networks.len() <= MOST_ROUTES => Some(networks),
        _ => {
            tracing::warn!(
                object = SHARED_NAME,
                "a routed network is no CIDR of IPv4, or there are too many; none is taken"
            );
            None
        }
    }
}

/// A group of nodes, and what is set on them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Group {
    /// Labels that its nodes have; none: all nodes.
    #[serde(default)]
    node_selector: BTreeMap<String, String>,
    /// Variables, as in ipamd's environment.
    #[serde(default)]
    env: BTreeMap<String, Scalar>,
}

/// A value, with or without quotes.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(i64),
    Switch(bool),
}

impl Scalar {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
            Self::Switch(on) => on.to_string(),
        }
    }
}

/// What the ConfigMap sets on a node: of all groups that select it, in the order of their names, the later ones first in
/// line. Every fault is told, and with one nothing of it is used.
fn overrides(objects: &[Object], node: &str) -> Result<Overrides, Vec<String>> {
    let named = |sort: Sort, name: &str| {
        objects.iter().find(|object| object.sort() == Some(sort) && object.metadata.name == name)
    };
    let Some(map) = named(Sort::ConfigMap, OVERRIDES_NAME) else { return Ok(Overrides::default()) };
    let labels = named(Sort::Node, node).map(|node| &node.metadata.labels);
    let (mut set, mut faults) = (BTreeMap::new(), Vec::new());
    for (name, text) in &map.data {
        match super::objects::yaml::<Group>(text) {
            Ok(Group { node_selector, env }) => {
                let selects = node_selector
                    .iter()
                    .all(|(label, value)| labels.and_then(|labels| labels.get(label)) == Some(value));
                if selects {
                    set.extend(env.into_iter().map(|(variable, value)| (variable, value.into_text())));
                }
            }
            Err(error) => faults.push(format!("{name}: {error}")),
        }
    }
    if faults.is_empty() { Ok(Overrides(set)) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::objects::read;

    fn meaning(text: &str) -> Meaning {
        Meaning::of(&read(text).unwrap(), &Sort::ALL.into(), "n1", None)
    }

    #[test]
    fn pods_that_are_bound_here_and_have_no_sandbox_are_demand() {
        let pod = |name: &str, spec: &str, rest: &str| {
            format!("{{kind: Pod, metadata: {{name: {name}, namespace: ns, uid: u-{name}{rest}}}, spec: {{{spec}}}}}")
        };
        let here = "nodeName: n1";
        let text = [
            pod("plain", here, ""),
            pod("static", here, ", annotations: {kubernetes.io/config.mirror: hash}"),
            pod("elsewhere", "nodeName: n2", ""),
            pod("unbound", "", ""),
            pod("host", "nodeName: n1, hostNetwork: true", ""),
            pod("leaving", here, ", deletionTimestamp: '2026-01-01T00:00:00Z'"),
            pod("pending", here, "").replace("}}", "}, status: {phase: Pending}}"),
            pod("running", here, "").replace("}}", "}, status: {phase: Running, podIP: 10.0.0.1}}"),
            pod("done", here, "").replace("}}", "}, status: {phase: Succeeded}}"),
        ]
        .join("\n---\n");
        let bound = meaning(&text).bound.unwrap();
        let shown: Vec<String> = bound.iter().map(|pod| format!("{} {:?}", pod.name, pod.uid.as_deref())).collect();
        assert_eq!(shown, ["pending Some(\"u-pending\")", "plain Some(\"u-plain\")", "static Some(\"hash\")"]);
    }

    const MAP: &str = "
kind: ConfigMap
metadata: {name: sluice-ipamd, namespace: kube-system}
data:
  10-all: '{env: {WARM_IP_TARGET: 5, MINIMUM_IP_TARGET: \"10\"}}'
  20-big: '{nodeSelector: {size: big}, env: {WARM_IP_TARGET: 50, ENABLE_PREFIX_DELEGATION: true}}'
---
kind: Node
metadata: {name: n1, labels: {size: SIZE}}
";

    #[test]
    fn the_groups_that_select_a_node_are_laid_over_each_other() {
        let set = |size: &str| meaning(&MAP.replace("SIZE", size)).overrides.unwrap().unwrap().0;
        let text = |set: BTreeMap<String, String>| format!("{set:?}");
        assert_eq!(text(set("small")), r#"{"MINIMUM_IP_TARGET": "10", "WARM_IP_TARGET": "5"}"#);
        let big = r#"{"ENABLE_PREFIX_DELEGATION": "true", "MINIMUM_IP_TARGET": "10", "WARM_IP_TARGET": "50"}"#;
        assert_eq!(text(set("big")), big);
        assert_eq!(meaning("{kind: Node, metadata: {name: n1}}").overrides, Some(Ok(Overrides::default())));
    }

    #[test]
    fn every_group_that_cannot_be_read_is_told() {
        let text = "{kind: ConfigMap, metadata: {name: sluice-ipamd}, data: {a: '{envs: {}}', b: '[', c: '{env: {X: [1]}}', d: '{}'}}";
        let faults = meaning(text).overrides.unwrap().unwrap_err();
        assert_eq!(faults.len(), 3, "{faults:?}");
        assert!(faults[0].starts_with("a: ") && faults[0].contains("envs"), "{faults:?}");
    }

    #[test]
    fn what_the_elected_node_wrote_holds_until_it_is_known_better() {
        let map = |text: &str| {
            meaning(&format!(
                "{{kind: ConfigMap, metadata: {{name: sluice-vpc}}, data: {{privateNetworks: '{text}'}}}}"
            ))
            .routes
        };
        assert_eq!(map("10.1.0.0/16, 10.2.0.0/16").unwrap().len(), 2);
        assert_eq!(map(""), Some(Vec::new()));
        assert_eq!(map("10.1.0.0/16,peered"), None);
        assert_eq!(meaning("{kind: ConfigMap, metadata: {name: sluice-vpc}}").routes, None);
    }

    #[test]
    fn what_pods_say_of_branch_enis_is_told_and_they_are_no_demand() {
        let pod = |name: &str, rest: &str, containers: &str| {
            format!(
                "{{kind: Pod, metadata: {{name: {name}, namespace: ns, uid: u-{name}{rest}}}, spec: {{nodeName: n1{containers}}}}}"
            )
        };
        let asks = ", containers: [{resources: {limits: {vpc.amazonaws.com/pod-eni: '1', cpu: 1}}}]";
        let text = [
            pod("plain", "", ", containers: [{resources: {limits: {cpu: 1}}}, {}]"),
            pod("asks", "", asks),
            pod("has", ", annotations: {vpc.amazonaws.com/pod-eni: '[7]'}", asks),
            pod("empty", ", annotations: {vpc.amazonaws.com/pod-eni: ''}", ", containers: [{resources: null}]"),
        ]
        .join("\n---\n");
        let all = meaning(&text);
        let said = |name: &str| all.claims.as_ref().unwrap()[&("ns".to_owned(), name.to_owned())].clone();
        let wants: Vec<bool> = ["plain", "asks", "has", "empty"].map(|name| said(name).wants).into();
        assert_eq!(wants, [false, true, true, false]);
        assert_eq!((said("asks").annotation, said("has").annotation), (None, Some("[7]".to_owned())));
        assert_eq!(said("has").uid.as_deref(), Some("u-has"));
        let names = |meaning: &Meaning| meaning.demand().unwrap().into_iter().map(|pod| pod.name).collect::<Vec<_>>();
        assert_eq!(names(&all), ["empty", "plain"]);
        assert_eq!(names(&all.without_claims()), ["asks", "empty", "has", "plain"]);
    }

    #[test]
    fn how_many_pods_the_kubelet_takes_is_told_when_it_changes_and_not_where_it_is_unclear() {
        let of = |pods: &str| {
            let node = format!("{{kind: Node, metadata: {{name: n1}}, status: {{capacity: {{pods: {pods}}}}}}}");
            Meaning::of(&read(&node).unwrap(), &BTreeSet::from([Sort::Node]), "n1", None)
        };
        let (small, large, wrong) = (of("'29'"), of("'110'"), of("lots"));
        assert_eq!(small.news(&Meaning::default()), [Told::Schedulable(true), Told::MaxPods(29)]);
        assert_eq!(small.news(&of("29")), [], "the same in another form");
        assert_eq!(large.news(&small), [Told::MaxPods(110)]);
        assert_eq!(wrong.news(&large), []);
        assert_eq!(large.news(&wrong), [Told::MaxPods(110)]);
        let gone = Meaning::of(&[], &BTreeSet::from([Sort::Node]), "n1", None);
        assert_eq!(gone.news(&large), []);
        let other = read("{kind: Node, metadata: {name: n1}, status: {capacity: {pods: 29}}}").unwrap();
        assert_eq!(Meaning::of(&other, &BTreeSet::new(), "n1", None).news(&Meaning::default()), []);
    }

    #[test]
    fn nothing_is_told_of_what_is_not_known_whole_and_nothing_twice() {
        let objects = read("{kind: Pod, metadata: {name: a, namespace: ns}, spec: {nodeName: n1}}").unwrap();
        let early = Meaning::of(&objects, &BTreeSet::from([Sort::Node]), "n1", None);
        assert_eq!(early.news(&Meaning::default()), [Told::Schedulable(true)]);
        let later = Meaning::of(&objects, &BTreeSet::from([Sort::Node, Sort::Pod]), "n1", None);
        let later = later.without_claims();
        assert!(matches!(later.news(&early).as_slice(), [Told::PodsBound(bound)] if bound.len() == 1));
        assert!(later.news(&later).is_empty());
    }
}
