//! The condition on the node's object: whether pods can have addresses here.

use std::time::Duration;

use http::Method;
use serde_json::json;
use sluice_cluster::{Api, Backoff, Dice, Options, escaped, hash};
use sluice_daemon::log::ErrorChain;
use sluice_ipamd_daemon::cluster::Condition;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::metrics::Metrics;

/// Its type. `False`: pods wait for addresses that do not come by themselves.
pub(crate) const TYPE: &str = "sluice.dev/PodAddresses";

/// Writes what is wanted last, whenever that changes, and no oftener than every `gap`: a thousand nodes whose pools come and go
/// must not keep the API server busy with it. What fails is tried again, and what is refused waits for the next change.
pub(crate) async fn keep(
    api: &Api,
    options: &Options,
    gap: Duration,
    metrics: &Metrics,
    mut wants: watch::Receiver<Option<Condition>>,
) {
    let dice = Dice::new(options.seed ^ hash(&[&options.node, TYPE]));
    let mut backoff = Backoff::new(options.timing.least, options.timing.most, dice);
    let mut written: Option<Condition> = None;
    loop {
        let wanted = wants.borrow_and_update().clone();
        if let Some(wanted) = wanted
            && written.as_ref() != Some(&wanted)
        {
            match write(api, &options.node, &wanted).await {
                Ok(()) => {
                    metrics.conditions.inc();
                    backoff.reset();
                    written = Some(wanted);
                    // What changes meanwhile, and back, is nobody's news.
                    sleep(gap).await;
                    continue;
                }
                Err(error) => {
                    metrics.conditions_failed.inc();
                    tracing::debug!(error = %ErrorChain(&error), "the node's condition cannot be written");
                    if error.passes() {
                        tokio::select! {
                            () = sleep(backoff.next(error.retry_after())) => continue,
                            Ok(()) = wants.changed() => continue,
                        }
                    }
                    tracing::warn!(error = %ErrorChain(&error), "the node's condition may not be written");
                }
            }
        }
        if wants.changed().await.is_err() {
            // Nobody reports any more.
            return std::future::pending().await;
        }
    }
}

async fn write(api: &Api, node: &str, wanted: &Condition) -> Result<(), sluice_cluster::CallError> {
    let path = format!("/api/v1/nodes/{}/status", escaped(node));
    let now = jiff::Timestamp::now();
    let now = jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let condition = json!({
        "type": TYPE,
        "status": if wanted.holds { "True" } else { "False" },
        "reason": wanted.reason,
        "message": wanted.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    });
    // A strategic merge: conditions are told by their type, and those of others stay.
    let body = json!({"status": {"conditions": [condition]}});
    api.write(Method::PATCH, &path, "application/strategic-merge-patch+json", &body).await.map(drop)
}
