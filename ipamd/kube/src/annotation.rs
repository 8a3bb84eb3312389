//! The annotation by which others know a pod's addresses before its status has them (`ANNOTATE_POD_IP`).

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::Method;
use serde_json::json;
use sluice_cluster::{Api, Backoff, CallError, Dice, Options, escaped, hash};
use sluice_contract::id::PodRef;
use sluice_daemon::log::ErrorChain;
use sluice_ipamd_daemon::cluster::PodIps;
use sluice_ipamd_daemon::cluster::objects::Object;
use sluice_policy_core::cluster::POD_IPS_ANNOTATION;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::metrics::Metrics;
use crate::store::Store;

/// Pods that may wait; those that are too many are left as they are.
const WAITING: usize = 1_024;

/// Attempts at a pod that the server says is another one. What it refuses for other reasons is tried for as long as the pod is
/// there: nothing else would write it.
const ATTEMPTS: u32 = 12;

/// A pod that waits for its annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    pod: PodRef,
    addresses: Vec<IpAddr>,
    /// Most pods say it already: only where the watch shows that this one does not.
    again: bool,
    /// Attempts that have failed.
    failed: u32,
}

/// What is to be written: of each pod the latest alone.
#[derive(Debug, Default)]
pub(crate) struct Annotations {
    queue: Mutex<VecDeque<Wanted>>,
    more: Notify,
}

impl Annotations {
    fn queue(&self) -> MutexGuard<'_, VecDeque<Wanted>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has addresses written, in place of what waits for the same pods. It never waits.
    pub(crate) fn put(&self, ips: PodIps, metrics: &Metrics) {
        let PodIps { all, again } = ips;
        let mut queue = self.queue();
        for (pod, addresses) in all {
            let wanted = Wanted { pod, addresses, again, failed: 0 };
            let is_full = queue.len() >= WAITING;
            match queue.iter_mut().find(|other| other.pod == wanted.pod) {
                // What is new is written whatever the watch, which may be late, shows.
                Some(other) => *other = Wanted { again: again && other.again, ..wanted },
                None if !is_full => queue.push_back(wanted),
                None => {
                    metrics.annotations_dropped.inc();
                }
            }
        }
        self.more.notify_one();
    }

    /// Puts back what failed, behind the others; not if something newer waits for its pod.
    fn put_back(&self, wanted: Wanted) {
        let mut queue = self.queue();
        if queue.iter().all(|other| other.pod != wanted.pod) {
            queue.push_back(wanted);
        }
    }

    /// Writes what is put, one pod after the other. What fails is tried again, behind the others. `pods` are those of this node
    /// as they are known.
    pub(crate) async fn write(
        &self,
        api: &Api,
        options: &Options,
        metrics: &Metrics,
        pods: &tokio::sync::Mutex<Store<Object>>,
    ) {
        let dice = Dice::new(options.seed ^ hash(&[&options.node, POD_IPS_ANNOTATION]));
        let mut backoff = Backoff::new(options.timing.least, options.timing.most, dice);
        loop {
            let next = self.queue().pop_front();
            let Some(mut wanted) = next else {
                self.more.notified().await;
                continue;
            };
            let uid = uid(pods.lock().await.get(&wanted.pod.namespace, &wanted.pod.name), &wanted);
            let Some(uid) = uid else { continue };
            let Err(error) = patch(api, &wanted, &uid).await else {
                metrics.annotations.inc();
                backoff.reset();
                continue;
            };
            if error.code() == Some(404) {
                // It is gone, and so is its annotation.
                backoff.reset();
                continue;
            }
            metrics.annotations_failed.inc();
            wanted.failed += 1;
            // Another pod may have the name, or the watch has not told yet of a mirror pod, whose UID is another one.
            let is_other = matches!(error.code(), Some(409 | 422));
            let pod = wanted.pod.clone();
            // The role may be given the right, or the token be renewed.
            let may_pass = error.passes() || matches!(error.code(), Some(401 | 403));
            if (is_other && wanted.failed < ATTEMPTS) || (may_pass && !is_other) {
                tracing::debug!(pod = %pod, error = %ErrorChain(&error), "a pod's addresses cannot be written");
                self.put_back(wanted);
                sleep(backoff.next(error.retry_after())).await;
            } else if is_other {
                tracing::debug!(pod = %pod, error = %ErrorChain(&error), "another pod has the name by now");
            } else {
                metrics.annotations_dropped.inc();
                tracing::warn!(pod = %pod, error = %ErrorChain(&error), "a pod's addresses are not written");
            }
        }
    }
}

/// The UID of the object to write on. None where there is nothing to write: the pod says so already, is another one by now, or
/// its runtime does not tell which one it is.
fn uid(known: Option<&Object>, wanted: &Wanted) -> Option<String> {
    let of_sandbox = wanted.pod.uid.as_ref()?;
    let known = known.map(|pod| &pod.metadata);
    match known {
        Some(metadata) if metadata.sandbox_uid().as_ref() == Some(of_sandbox) => {
            let says = metadata.annotations.get(POD_IPS_ANNOTATION).map(String::as_str);
            (!wanted.again || !is_said(says, &wanted.addresses)).then(|| metadata.uid.clone())
        }
        // The watch may be late, but a restart waits for it, and a pod that has gone before another is not looked for.
        None if !wanted.again => Some(of_sandbox.clone()),
        Some(_) if !wanted.again && !wanted.addresses.is_empty() => Some(of_sandbox.clone()),
        _ => None,
    }
}

/// Whether a pod says these addresses, in whatever order: policyd may have written them.
fn is_said(annotation: Option<&str>, addresses: &[IpAddr]) -> bool {
    let words = annotation.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
    let said: BTreeSet<Option<IpAddr>> = words.map(|word| word.parse().ok()).collect();
    said == addresses.iter().copied().map(Some).collect()
}

async fn patch(api: &Api, wanted: &Wanted, uid: &str) -> Result<(), CallError> {
    let PodRef { namespace, name, .. } = &wanted.pod;
    let path = format!("/api/v1/namespaces/{}/pods/{}", escaped(namespace), escaped(name));
    let text = wanted.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    // With its UID, so that no other pod of the name gets them.
    let body = json!({"metadata": {"uid": uid, "annotations": { POD_IPS_ANNOTATION: text }}});
    api.write(Method::PATCH, &path, "application/merge-patch+json", &body).await.map(drop)
}

#[cfg(test)]
mod tests {
    use sluice_ipamd_daemon::cluster::objects::Sort;

    use super::*;

    fn pod(number: usize) -> PodRef {
        PodRef { namespace: "ns".to_owned(), name: format!("p{number}"), uid: Some(format!("u-{number}")) }
    }

    fn ips(number: usize, address: &str) -> PodIps {
        PodIps { all: [(pod(number), address.parse::<IpAddr>().into_iter().collect())].into(), again: false }
    }

    #[test]
    fn the_latest_of_a_pod_waits_alone_and_too_many_are_counted() {
        let (annotations, metrics) = (Annotations::default(), Metrics::default());
        annotations.put(ips(0, "10.0.0.1"), &metrics);
        let failed = annotations.queue().pop_front().unwrap();
        annotations.put_back(failed.clone());
        annotations.put(ips(0, ""), &metrics);
        // What failed meanwhile is old news.
        annotations.put_back(failed);
        annotations.put(PodIps { again: true, ..ips(0, "") }, &metrics);
        let waiting: Vec<_> = annotations.queue().iter().map(|wanted| (wanted.addresses.len(), wanted.again)).collect();
        assert_eq!(waiting, [(0, false)]);
        (1..=WAITING).for_each(|number| annotations.put(ips(number, "10.0.0.1"), &metrics));
        assert_eq!((annotations.queue().len(), metrics.annotations_dropped.get()), (WAITING, 1));
    }

    #[test]
    fn only_the_pod_itself_is_written_on_and_after_a_restart_only_if_it_says_something_else() {
        let object = |metadata: serde_json::Value| Object::read(Sort::Pod, json!({"metadata": metadata})).unwrap();
        let own = object(json!({"uid": "u-0", "annotations": {POD_IPS_ANNOTATION: "2001:db8::1, 10.0.0.1"}}));
        let bare = object(json!({"uid": "u-0"}));
        let mirror = object(json!({"uid": "api", "annotations": {"kubernetes.io/config.mirror": "u-0"}}));
        let other = object(json!({"uid": "u-1"}));
        let addresses: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let wanted =
            |addresses: &[IpAddr], again| Wanted { pod: pod(0), addresses: addresses.to_vec(), again, failed: 0 };
        let written = |known: Option<&Object>, addresses: &[IpAddr], again| uid(known, &wanted(addresses, again));
        let u0 = Some("u-0".to_owned());
        for known in [Some(&own), Some(&bare), Some(&other), None] {
            assert_eq!(written(known, &addresses, false), u0, "{known:?}");
        }
        assert_eq!(written(Some(&mirror), &addresses, false).as_deref(), Some("api"));
        assert_eq!((written(Some(&own), &[], false), written(None, &[], false)), (u0.clone(), u0.clone()));
        assert_eq!(written(Some(&other), &[], false), None);
        assert_eq!(written(Some(&bare), &addresses, true), u0);
        assert_eq!(written(Some(&own), &addresses[..1], true), u0);
        for known in [Some(&own), Some(&other), None] {
            assert_eq!(written(known, &addresses, true), None, "{known:?}");
        }
        let nobody = Wanted { pod: PodRef { uid: None, ..pod(0) }, ..wanted(&addresses, false) };
        assert_eq!(uid(Some(&bare), &nobody), None);
    }
}
