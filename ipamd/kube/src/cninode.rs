//! What AWS's VPC resource controller is asked to do for this node: `spec.features` of the node's CNINode, which it makes for
//! every node of EKS. With the feature SecurityGroupsForPods it attaches a trunk ENI.

use http::Method;
use serde_json::{Value, json};
use sluice_cluster::{Api, Backoff, CallError, Dice, Options, escaped, hash};
use sluice_daemon::log::ErrorChain;
use sluice_ipamd_daemon::cluster::Feature;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::metrics::Metrics;

/// The media type of a change to some fields (RFC 7396).
const MERGE: &str = "application/merge-patch+json";

/// Sees to it that the CNINode has what is wanted last, beside what it has of others. Nothing is taken away. What fails is
/// tried again, also where there is no such object yet.
pub(crate) async fn keep(api: &Api, options: &Options, metrics: &Metrics, mut wants: watch::Receiver<Vec<Feature>>) {
    let dice = Dice::new(options.seed ^ hash(&[&options.node, "CNINode"]));
    let mut backoff = Backoff::new(options.timing.least, options.timing.most, dice);
    loop {
        let wanted = wants.borrow_and_update().clone();
        if !wanted.is_empty() {
            match write(api, &options.node, &wanted).await {
                Ok(changed) => {
                    if changed {
                        metrics.features.inc();
                        tracing::info!(features = ?wanted, "AWS's VPC resource controller was asked for them by the CNINode");
                    }
                    backoff.reset();
                }
                Err(error) => {
                    metrics.features_failed.inc();
                    tracing::debug!(error = %ErrorChain(&error), "the node's CNINode cannot be changed");
                    // That there is none, or that somebody else was quicker, passes too.
                    if error.passes() || matches!(error.code(), Some(404 | 409)) {
                        tokio::select! {
                            () = sleep(backoff.next(error.retry_after())) => continue,
                            Ok(()) = wants.changed() => continue,
                        }
                    }
                    tracing::warn!(error = %ErrorChain(&error), "the node's CNINode may not be changed");
                }
            }
        }
        if wants.changed().await.is_err() {
            // Nobody reports any more.
            return std::future::pending().await;
        }
    }
}

/// Answers whether anything had to be changed.
async fn write(api: &Api, node: &str, wanted: &[Feature]) -> Result<bool, CallError> {
    let path = format!("/apis/vpcresources.k8s.aws/v1alpha1/cninodes/{}", escaped(node));
    let object: Value = serde_json::from_slice(&api.object(&path).await?).map_err(CallError::Garbled)?;
    let Some(features) = with(object.pointer("/spec/features"), wanted) else { return Ok(false) };
    let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    // The list is replaced as a whole: not if it has changed since it was read.
    let body = json!({"metadata": {"resourceVersion": version}, "spec": {"features": features}});
    api.write(Method::PATCH, &path, MERGE, &body).await.map(|_answer| true)
}

/// The features that there are, with those that are wanted; none where they are there.
fn with(there: Option<&Value>, wanted: &[Feature]) -> Option<Vec<Value>> {
    let before: Vec<Value> = there.and_then(Value::as_array).cloned().unwrap_or_default();
    let mut after = before.clone();
    for Feature { name, value } in wanted {
        let text =
            |feature: &Value, field: &str| feature.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let entry = if value.is_empty() { json!({"name": name}) } else { json!({"name": name, "value": value}) };
        match after.iter_mut().find(|feature| text(feature, "name") == *name) {
            Some(feature) if text(feature, "value") == *value => {}
            Some(feature) => *feature = entry,
            None => after.push(entry),
        }
    }
    (after != before).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_want_stays_and_what_is_there_is_not_written_again() {
        let feature = |name: &str, value: &str| Feature { name: name.to_owned(), value: value.to_owned() };
        let wanted = [feature("SecurityGroupsForPods", ""), feature("CustomNetworking", "zone-a")];
        let all = json!([{"name": "SecurityGroupsForPods"}, {"name": "CustomNetworking", "value": "zone-a"}]);
        assert_eq!(with(None, &wanted).map(Value::from), Some(all.clone()));
        assert_eq!(with(Some(&all), &wanted), None);
        let other = json!([{"name": "Other", "value": "x"}, {"name": "CustomNetworking", "value": "zone-b"}]);
        let merged = json!([
            {"name": "Other", "value": "x"},
            {"name": "CustomNetworking", "value": "zone-a"},
            {"name": "SecurityGroupsForPods"},
        ]);
        assert_eq!(with(Some(&other), &wanted).map(Value::from), Some(merged));
    }
}
