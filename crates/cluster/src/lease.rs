//! One holder in a cluster, elected by a Lease (coordination.k8s.io/v1).
//!
//! As everybody who uses Leases does: whoever holds it writes it now and then; a Lease that is seen unchanged for as long as
//! it says that it lasts has no holder any more, and the first who writes its name over the one that it read has it. What is
//! compared is never a time of another machine's clock. The holder stops to be one by its own clock before the others can
//! take it.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_daemon::log::ErrorChain;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backoff::{Backoff, Dice, hash};
use crate::call::{Api, CallError, JSON};
use crate::event;
use crate::kind::escaped;

/// A Lease, and who wants to hold it.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who wants it; no two processes may say the same.
    pub identity: String,
    /// How long it lasts after it was written last.
    pub lasts: Duration,
    /// How often its holder writes it; at most a third of `lasts`.
    pub renew: Duration,
}

impl Lease {
    fn path(&self) -> String {
        format!("{}/{}", self.all(), escaped(&self.name))
    }

    fn all(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", escaped(&self.namespace))
    }

    /// Stands for it for as long as this future is polled. `holds` says whether it is held.
    pub async fn stand(&self, api: &Api, seed: u64, holds: &watch::Sender<bool>) {
        let mut dice = Dice::new(seed ^ hash(&[&self.identity, &self.name]));
        let mut backoff = Backoff::new(self.renew / 10, self.renew, dice.clone());
        let mut election = Election::new(self);
        let mut refused: Option<u16> = None;
        loop {
            let attempt = async {
                let found = self.look(api).await?;
                let now = Instant::now();
                match election.saw(found.as_ref(), now) {
                    Step::Wait => Ok(()),
                    Step::Write { lease, method } => self.write(api, method, &lease, &mut election, now).await,
                }
            };
            // One that took longer could outlast what is held.
            let tried = timeout(self.renew, attempt).await.unwrap_or(Err(CallError::Slow(self.renew)));
            let pause = match tried {
                Ok(()) => {
                    backoff.reset();
                    refused = None;
                    election.pause(&mut dice)
                }
                Err(error) => {
                    let lease = &self.name;
                    if error.passes() || refused == error.code() {
                        tracing::debug!(error = %ErrorChain(&error), lease, "the Lease cannot be read or written");
                    } else {
                        // It will not pass by itself, and nobody is elected meanwhile.
                        refused = error.code();
                        tracing::warn!(
                            error = %ErrorChain(&error), lease, namespace = self.namespace, reason = needed(refused),
                            "the Lease is refused"
                        );
                    }
                    backoff.next(error.retry_after())
                }
            };
            let next = Instant::now() + pause;
            // Held no longer than our last write of it says, however long the server is away.
            let ends = election.ends();
            set(holds, election.holds(Instant::now()), &self.name);
            if let Some(ends) = ends.filter(|ends| *ends < next) {
                sleep_until(ends).await;
                set(holds, false, &self.name);
            }
            sleep_until(next).await;
        }
    }

    async fn look(&self, api: &Api) -> Result<Option<Value>, CallError> {
        match api.object(&self.path()).await {
            Ok(json) => serde_json::from_slice(&json).map(Some).map_err(CallError::Garbled),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write(
        &self,
        api: &Api,
        method: Method,
        lease: &Value,
        election: &mut Election<'_>,
        asked: Instant,
    ) -> Result<(), CallError> {
        let path = if method == Method::POST { self.all() } else { self.path() };
        match api.write(method, &path, JSON, lease).await {
            Ok(_) => {
                election.wrote(asked);
                Ok(())
            }
            // Another one was faster.
            Err(error) if error.code() == Some(409) => {
                election.lost();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn set(holds: &watch::Sender<bool>, now: bool, lease: &str) {
    holds.send_if_modified(|held| {
        if *held != now {
            tracing::info!(lease, held = now, "the cluster's Lease");
        }
        std::mem::replace(held, now) != now
    });
}

/// What to do about a refusal with a status.
const fn needed(code: Option<u16>) -> &'static str {
    match code {
        Some(401) => "the server does not know who asks; look at the service account and its token",
        Some(403) => "the role needs create, get and update on leases",
        // One that is not there is made; what is missing then is what it would be in.
        Some(404) => "its namespace is not there, or the server has no Leases",
        _ => "the server says why",
    }
}

fn holder(lease: &Value) -> &str {
    lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default()
}

/// The Lease as it is written over what was read.
fn body(lease: &Lease, read: &Value, transitions_more: u64) -> Value {
    let now = event::time();
    let text = |path: &str| read.pointer(path).and_then(Value::as_str);
    let transitions = read.pointer("/spec/leaseTransitions").and_then(Value::as_u64).unwrap_or_default();
    let acquired =
        text("/spec/acquireTime").filter(|_| transitions_more == 0).map_or_else(|| now.clone(), str::to_owned);
    let mut metadata = json!({"name": lease.name, "namespace": lease.namespace});
    if let (Some(fields), Some(revision)) = (metadata.as_object_mut(), text("/metadata/resourceVersion")) {
        // Only over what was read: whoever comes later is refused.
        fields.insert("resourceVersion".to_owned(), revision.into());
    }
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
        "spec": {
            "holderIdentity": lease.identity,
            "leaseDurationSeconds": lease.lasts.as_secs().max(1),
            "acquireTime": acquired, "renewTime": now, "leaseTransitions": transitions + transitions_more,
        },
    })
}

/// What to do about a Lease as it was seen.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Another one holds it.
    Wait,
    /// It is ours, or may be.
    Write { method: Method, lease: Value },
}

/// What is known of the Lease: pure, but for the times that it writes for people to read.
#[derive(Debug)]
struct Election<'a> {
    lease: &'a Lease,
    /// Holder and revision as seen last, how long it lasts from then, and when it was first seen so.
    seen: Option<(String, String, Duration, Instant)>,
    /// When we asked for the latest write of ours that was granted.
    written: Option<Instant>,
}

impl<'a> Election<'a> {
    const fn new(lease: &'a Lease) -> Self {
        Self { lease, seen: None, written: None }
    }

    /// Takes in the Lease as it is at the server.
    fn saw(&mut self, found: Option<&Value>, now: Instant) -> Step {
        let Some(found) = found else {
            self.seen = None;
            self.written = None;
            return Step::Write { method: Method::POST, lease: body(self.lease, &Value::Null, 0) };
        };
        let ours = holder(found) == self.lease.identity;
        let take = |transitions| Step::Write { method: Method::PUT, lease: body(self.lease, found, transitions) };
        if ours {
            return take(0);
        }
        self.written = None;
        let revision = found.pointer("/metadata/resourceVersion").and_then(Value::as_str).unwrap_or_default();
        let seconds = found.pointer("/spec/leaseDurationSeconds").and_then(Value::as_u64);
        let lasts = seconds.map_or(self.lease.lasts, Duration::from_secs);
        let same = |(who, at, _, _): &(String, String, Duration, Instant)| who == holder(found) && at == revision;
        if !self.seen.as_ref().is_some_and(same) {
            self.seen = Some((holder(found).to_owned(), revision.to_owned(), lasts, now));
        }
        match &self.seen {
            Some((_, _, lasts, since))
                if now.saturating_duration_since(*since) < *lasts && !holder(found).is_empty() =>
            {
                Step::Wait
            }
            _ => take(1),
        }
    }

    fn wrote(&mut self, asked: Instant) {
        self.seen = None;
        self.written = Some(asked);
    }

    /// Another one wrote it before us.
    fn lost(&mut self) {
        self.written = None;
    }

    /// When it is held no longer, if nothing is written any more: a renewal before it lasts no longer for others.
    fn ends(&self) -> Option<Instant> {
        Some(self.written? + self.lease.lasts.saturating_sub(self.lease.renew))
    }

    fn holds(&self, now: Instant) -> bool {
        self.ends().is_some_and(|ends| now < ends)
    }

    /// Until the next look.
    fn pause(&self, dice: &mut Dice) -> Duration {
        if self.written.is_some() {
            self.lease.renew
        } else {
            // The many look seldom: nothing that the holder does is urgent.
            dice.between(self.lease.lasts / 2, self.lease.lasts)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(identity: &str) -> Lease {
        let (lasts, renew) = (Duration::from_secs(30), Duration::from_secs(10));
        Lease { namespace: "kube-system".into(), name: "l".into(), identity: identity.into(), lasts, renew }
    }

    /// What the server has after a write of its content at a revision.
    fn stored(step: Step, revision: u64) -> Value {
        let Step::Write { lease: mut stored, .. } = step else { panic!("it waits") };
        stored["metadata"]["resourceVersion"] = revision.to_string().into();
        stored
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_has_it_and_the_second_when_the_first_is_silent() {
        let (one, two) = (lease("one"), lease("two"));
        let (mut a, mut b) = (Election::new(&one), Election::new(&two));
        let begun = Instant::now();
        let first = stored(a.saw(None, begun), 1);
        a.wrote(begun);
        assert!(a.holds(begun) && !b.holds(begun));
        assert_eq!(b.saw(Some(&first), begun), Step::Wait);
        // It is written again: the time begins anew.
        let renewed = stored(a.saw(Some(&first), begun + one.renew), 2);
        assert_eq!(renewed["spec"]["acquireTime"], first["spec"]["acquireTime"]);
        assert_eq!(b.saw(Some(&renewed), begun + one.lasts), Step::Wait);
        assert_eq!(b.saw(Some(&renewed), begun + one.lasts * 2 - Duration::from_secs(1)), Step::Wait);
        let taken = stored(b.saw(Some(&renewed), begun + one.lasts * 2), 3);
        assert_eq!((holder(&taken), taken["spec"]["leaseTransitions"].as_u64()), ("two", Some(1)));
        assert_eq!(taken["metadata"]["resourceVersion"], "3");
        // The first one sees it, and has stopped by itself before.
        assert!(!a.holds(begun + one.lasts - one.renew));
        assert_eq!(a.saw(Some(&taken), begun + one.lasts * 2), Step::Wait);
    }

    #[test]
    fn a_refusal_is_told_with_what_to_do() {
        for (code, word) in [(401, "service account"), (403, "role"), (404, "namespace"), (422, "server")] {
            assert!(needed(Some(code)).contains(word), "{code}");
        }
        assert!(!needed(Some(401)).contains("role") && !needed(Some(404)).contains("role"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_is_taken_at_once_and_only_over_what_was_read() {
        let (one, two) = (lease("one"), lease("two"));
        let mut given = stored(Election::new(&one).saw(None, Instant::now()), 7);
        given["spec"]["holderIdentity"] = "".into();
        let Step::Write { method, lease } = Election::new(&two).saw(Some(&given), Instant::now()) else { panic!() };
        assert_eq!((method, &lease["metadata"]["resourceVersion"]), (Method::PUT, &json!("7")));
    }
}
