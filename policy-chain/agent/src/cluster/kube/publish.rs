//! One pod: its look-up, and the publication of its addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use http::Method;
use serde_json::json;
use sluice_cluster::CallError;
use sluice_policy_core::cluster::{POD_IPS_ANNOTATION, PodKey, Uid};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::Run;
use super::kinds::Kind;
use super::known::{Known, Local};
use super::status::MANAGER;

/// Attempts to publish.
const ATTEMPTS: u32 = 4;

impl Run {
    fn pods(&self) -> Result<(&'static Kind, &'static str, &Mutex<Known>), CallError> {
        let found = super::kind("Pod").and_then(|kind| Some((kind, *kind.api.versions.first()?, self.known(kind)?)));
        found.ok_or(CallError::Odd("pods are not watched"))
    }

    /// Asks for a pod, and tells what is found. Whether it is there.
    pub(super) async fn look_up(&self, pod: &PodKey) -> Result<bool, CallError> {
        let (kind, version, known) = self.pods()?;
        let path = kind.api.object_path(version, &pod.namespace, &pod.name);
        let json = match self.session.api().object(&path).await {
            Ok(json) => json,
            Err(error) if error.code() == Some(404) => return Ok(false),
            Err(error) => return Err(error),
        };
        let object = kind.api.keep.read(&json).map_err(CallError::Garbled)?;
        let mut known = known.lock().await;
        let mut out = Vec::new();
        let there = known.looked_up(version, object, &mut out);
        for told in out {
            if !self.session.tell(told).await {
                break;
            }
        }
        Ok(there)
    }

    /// Writes the addresses of a pod on it, unless they are there.
    pub(super) async fn publish(&self, pod: &PodKey, uid: &Uid, addresses: &[IpAddr]) -> Result<(), CallError> {
        let (kind, version, known) = self.pods()?;
        let local = async || known.lock().await.local(pod).filter(|local| local.uid == *uid).cloned();
        let found = match local().await {
            Some(found) => found,
            // The watch is late.
            None if self.look_up(pod).await? => match local().await {
                Some(found) => found,
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        if is_announced(&found, addresses) {
            return Ok(());
        }
        let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let body = json!({"metadata": {"uid": &*found.api_uid, "annotations": { POD_IPS_ANNOTATION: list }}});
        let path = format!("{}?fieldManager={MANAGER}", kind.api.object_path(version, &pod.namespace, &pod.name));
        let mut backoff = self.session.backoff("publish");
        for attempt in 1.. {
            match self.session.api().write(Method::PATCH, &path, "application/merge-patch+json", &body).await {
                Ok(_) => break,
                // It is gone, or another one has its name.
                Err(error) if matches!(error.code(), Some(404 | 409)) => return Ok(()),
                Err(error) if error.passes() && attempt < ATTEMPTS => sleep(backoff.next(error.retry_after())).await,
                Err(error) => return Err(error),
            }
        }
        self.metrics.published.inc();
        Ok(())
    }
}

/// Whether the pod says these addresses already, in whatever order.
fn is_announced(local: &Local, addresses: &[IpAddr]) -> bool {
    let Some(text) = &local.announced else { return addresses.is_empty() };
    let said: BTreeSet<Option<IpAddr>> = text.split(',').map(|one| one.trim().parse().ok()).collect();
    said == addresses.iter().copied().map(Some).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_addresses_in_another_order_are_the_same() {
        let local =
            |text: Option<&str>| Local { uid: Uid::from("u"), api_uid: "u".into(), announced: text.map(Into::into) };
        let addresses: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert!(is_announced(&local(Some("2001:db8:0::1, 10.0.0.1")), &addresses));
        for other in [None, Some(""), Some("10.0.0.1"), Some("10.0.0.1,2001:db8::1,10.0.0.2"), Some("10.0.0.1,x")] {
            assert!(!is_announced(&local(other), &addresses), "{other:?}");
        }
    }
}
