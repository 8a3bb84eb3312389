//! What is said on policies: a condition where the kind has a status, an Event where it has none.
//!
//! All nodes judge a policy alike, and one of them is to say so. Each node has a rank for each policy, by a hash of its own
//! name and the policy's among all nodes: the first writes at once, the others look, the later the higher their rank,
//! whether it has been said meanwhile. Each group that looks together is twice as large as the one before: where policyd runs on
//! few of the nodes, it is said after some of these rounds all the same. So there is no lease to keep, one write a change while the first lives,
//! and a node that is away is stood in for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use sluice_cluster::{Dice, Outgoing, hash};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::ObjectId;
use sluice_policy_core::model::{PolicyRef, Text};
use sluice_policy_core::parse::{Issue, Severity};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Run;
use super::kinds::{KINDS, Kind, of_policy};
use super::known::Seen;
use crate::cluster::{PolicyStatus, Weight};

/// Policies of which something is to be said; what is too much is not said.
const MOST: usize = 20_000;

/// Characters of a condition's or an Event's message (an Event's `note` may have 1 kB).
const MOST_TEXT: usize = 1_000;

/// Ranks that emit an Event: they cannot see whether it is there, and make it under one name.
const EVENT_RANKS: usize = 3;

/// Writes of one node, at most so often.
const BETWEEN_WRITES: Duration = Duration::from_millis(100);

/// Attempts to write one condition.
const ATTEMPTS: u32 = 5;

/// What waits to be said.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    waiting: Mutex<BTreeMap<PolicyRef, Waiting>>,
    changed: Notify,
}

#[derive(Debug, Clone)]
struct Waiting {
    status: PolicyStatus,
    /// The condition as it was when this was put.
    before: Option<Seen>,
    rank: usize,
    due: Instant,
    attempts: u32,
}

impl Statuses {
    /// Takes in what is to be said of a policy, in place of what waited to be said of it. Whether there was room.
    pub(super) async fn put(&self, run: &Run, status: &PolicyStatus) -> bool {
        let Some(kind) = of_policy(status.policy.kind) else { return true };
        if kind.condition.is_none() && status.issues.is_empty() {
            return true;
        }
        let rank = run.rank(&status.policy.to_string()).await;
        let before = match run.known(kind) {
            Some(known) => known.lock().await.seen(&status.policy).cloned(),
            None => None,
        };
        let mut dice = Dice::new(hash(&[&run.session.options().node, &status.policy.to_string()]));
        let step = run.session.options().timing.status;
        let wait = wait(rank, step, &mut dice);
        let waiting = Waiting { status: status.clone(), before, rank, due: Instant::now() + wait, attempts: 0 };
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST && !all.contains_key(&status.policy) {
            return false;
        }
        all.insert(status.policy.clone(), waiting);
        drop(all);
        self.changed.notify_one();
        true
    }

    fn next_due(&self) -> Option<Instant> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).values().map(|waiting| waiting.due).min()
    }

    fn take_due(&self) -> Option<Waiting> {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = all.iter().find(|(_, waiting)| waiting.due <= now).map(|(policy, _)| policy.clone())?;
        all.remove(&due)
    }

    /// Puts back what could not be said, unless there is something newer to say.
    fn again(&self, waiting: Waiting) {
        let mut all = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(waiting.status.policy.clone()).or_insert(waiting);
    }
}

/// How long a node of this rank waits.
fn wait(rank: usize, step: Duration, dice: &mut Dice) -> Duration {
    // 1; 2 and 3; 4 to 7; ...
    match rank.checked_ilog2() {
        None => step / 20,
        Some(0) => step,
        Some(round) => step.saturating_mul(round + 1) + dice.between(Duration::ZERO, step),
    }
}

/// Says what is due.
pub(super) async fn run(run: Arc<Run>) {
    let statuses = &run.writes.statuses;
    let mut dice = run.session.dice("status");
    loop {
        while let Some(mut waiting) = statuses.take_due() {
            if let Err(pause) = say(&run, &waiting).await {
                waiting.attempts += 1;
                if waiting.attempts < ATTEMPTS {
                    let pause = pause.unwrap_or(run.session.options().timing.most * waiting.attempts / 2);
                    waiting.due = Instant::now() + dice.between(pause / 2, pause);
                    statuses.again(waiting);
                } else {
                    run.metrics.status_dropped.inc();
                }
            }
        }
        match statuses.next_due() {
            Some(due) => tokio::select! {
                () = sleep_until(due) => {}
                () = statuses.changed.notified() => {}
            },
            None => statuses.changed.notified().await,
        }
    }
}

/// Says it, if it is not said. An error: try again after so long.
async fn say(run: &Run, waiting: &Waiting) -> Result<(), Option<Duration>> {
    let policy = &waiting.status.policy;
    let Some((kind, known)) = of_policy(policy.kind).and_then(|kind| Some((kind, run.known(kind)?))) else {
        return Ok(());
    };
    let (there, seen, uid) = {
        let known = known.lock().await;
        let there = known.has(&ObjectId::Policy(policy.clone()));
        (there, known.seen(policy).cloned(), known.uid(policy).cloned())
    };
    if !there {
        return Ok(());
    }
    let Some(condition) = kind.condition else {
        if waiting.rank < EVENT_RANKS {
            run.writes.events.put(event(run, kind, waiting, uid.as_deref()), &run.metrics.api);
        }
        return Ok(());
    };
    let mut wanted = wanted(&waiting.status);
    if !condition.generation {
        wanted.generation = None;
    }
    if let Some(seen) = &seen {
        // Somebody has said something since this was put; that it may be something else is the first one's to see.
        if same(seen, &wanted) || (waiting.rank > 0 && waiting.before.as_ref() != Some(seen)) {
            run.metrics.statuses_found.inc();
            return Ok(());
        }
        if seen.status == wanted.status && !seen.since.is_empty() {
            wanted.since = Text::clone(&seen.since);
        }
    }
    let Some(version) = run.version_of(kind) else { return Ok(()) };
    let mut object = json!({
        "type": condition.name, "status": &*wanted.status, "reason": &*wanted.reason, "message": &*wanted.message,
        "lastTransitionTime": &*wanted.since,
    });
    if let (Some(generation), Some(fields)) = (wanted.generation, object.as_object_mut()) {
        fields.insert("observedGeneration".to_owned(), generation.into());
    }
    let namespace = policy.namespace.as_deref().unwrap_or_default();
    let body = json!({
        "apiVersion": kind.api.api_version(version), "kind": kind.api.kind,
        "metadata": metadata(namespace, &policy.name, uid.as_deref()),
        "status": {"conditions": [object]},
    });
    let path = format!("{}/status?fieldManager={MANAGER}", kind.api.object_path(version, namespace, &policy.name));
    // Applied, not merged: conditions of others stay, and what another manager holds is not taken from it.
    let written = run.session.api().write(Method::PATCH, &path, "application/apply-patch+yaml", &body).await;
    sleep(BETWEEN_WRITES).await;
    match written {
        Ok(_) => {
            run.metrics.statuses.inc();
            Ok(())
        }
        Err(error) if matches!(error.code(), Some(404 | 409)) => {
            tracing::debug!(%policy, error = %ErrorChain(&error), "the condition is left to its owner");
            Ok(())
        }
        Err(error) if error.passes() => Err(error.retry_after()),
        Err(error) => {
            run.metrics.status_dropped.inc();
            tracing::warn!(%policy, error = %ErrorChain(&error), "the condition cannot be written");
            Ok(())
        }
    }
}

/// In whose name fields are written.
pub(super) const MANAGER: &str = "sluice-policyd";

fn metadata(namespace: &str, name: &str, uid: Option<&str>) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(fields) = metadata.as_object_mut() {
        if !namespace.is_empty() {
            fields.insert("namespace".to_owned(), namespace.into());
        }
        // So that a new policy of the same name does not get what is said of the old one.
        if let Some(uid) = uid {
            fields.insert("uid".to_owned(), uid.into());
        }
    }
    metadata
}

fn same(seen: &Seen, wanted: &Seen) -> bool {
    (&seen.status, &seen.reason, &seen.message, &seen.generation)
        == (&wanted.status, &wanted.reason, &wanted.message, &wanted.generation)
}

/// What there is to say.
fn wanted(status: &PolicyStatus) -> Seen {
    let unusable = status.issues.iter().any(|issue| issue.severity > Severity::Warning);
    let (truth, reason) = match (unusable, status.issues.is_empty()) {
        (true, _) => ("False", "Unusable"),
        (false, false) => ("True", "Warnings"),
        (false, true) => ("True", "Accepted"),
    };
    Seen {
        status: truth.into(),
        reason: reason.into(),
        message: message(&status.issues).into(),
        since: now().into(),
        generation: status.generation,
    }
}

/// The faults, as many as there is room for.
pub(super) fn message(issues: &[Issue]) -> String {
    if issues.is_empty() {
        return "All of it is in force.".to_owned();
    }
    let mut text = String::new();
    for (said, issue) in issues.iter().enumerate() {
        let one: String = issue.to_string().chars().take(MOST_TEXT / 2).collect();
        // Room for how many more there are.
        if text.len() + one.len() + 20 > MOST_TEXT {
            text.push_str(&format!("; and {} more", issues.len() - said));
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&one);
    }
    text
}

fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

/// An Event on a policy without status. Its name is the same from every node, so that it is there once.
fn event(run: &Run, kind: &'static Kind, waiting: &Waiting, uid: Option<&str>) -> Outgoing {
    let policy = &waiting.status.policy;
    let wanted = wanted(&waiting.status);
    let generation = waiting.status.generation.unwrap_or_default().to_string();
    let id = hash(&[uid.unwrap_or_default(), &generation, &wanted.reason, &wanted.message]);
    let version = run.version_of(kind).unwrap_or_default();
    Outgoing {
        version: kind.api.api_version(version),
        kind: kind.api.kind,
        namespace: policy.namespace.as_deref().unwrap_or_default().to_owned(),
        object: policy.name.to_string(),
        uid: uid.unwrap_or_default().to_owned(),
        weight: if &*wanted.status == "False" { Weight::Warning } else { Weight::Normal },
        reason: if &*wanted.status == "False" { "PolicyUnusable" } else { "PolicyWarnings" },
        note: wanted.message.to_string(),
        name: Some(format!("{}.{id:016x}", policy.name)),
    }
}

impl Run {
    /// Which place this node has for a text among all nodes: 0 is the first.
    pub(super) async fn rank(&self, text: &str) -> usize {
        let weight = |node: &str| hash(&[node, text]);
        let own = (weight(&self.session.options().node), &*self.session.options().node);
        let Some(nodes) = KINDS.iter().find(|kind| kind.api.kind == "Node").and_then(|kind| self.known(kind)) else {
            return 0;
        };
        let nodes = nodes.lock().await;
        let before = nodes.names().filter(|id| match id {
            // No DaemonSet runs there.
            ObjectId::Node(name) => !name.starts_with("fargate-") && (weight(name), &**name) < own,
            _ => false,
        });
        before.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_says_it_at_once_and_the_last_of_a_thousand_before_long() {
        let (step, mut dice) = (Duration::from_secs(5), Dice::new(7));
        let mut waits = |rank| wait(rank, step, &mut dice);
        assert_eq!((waits(0), waits(1)), (step / 20, step));
        assert!((step * 2..=step * 3).contains(&waits(2)) && (step * 2..=step * 3).contains(&waits(3)));
        assert!((step * 10..=step * 11).contains(&waits(999)));
    }

    #[test]
    fn a_message_has_room_for_some_faults_and_says_how_many_more_there_are() {
        let issue = |text: &str| Issue { severity: Severity::Unusable, path: "spec".into(), message: text.to_owned() };
        assert_eq!(message(&[issue("a"), issue("b")]), "spec: a; spec: b");
        let many: Vec<Issue> = (0..100).map(|number| issue(&format!("{number} {}", "ä".repeat(40)))).collect();
        let text = message(&many);
        assert!(text.len() <= MOST_TEXT && text.ends_with(" more"), "{text}");
        assert!(message(&[issue(&"x".repeat(10_000))]).len() <= MOST_TEXT);
    }
}
