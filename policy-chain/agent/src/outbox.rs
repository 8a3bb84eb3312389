//! What the node says to the cluster: addresses of its pods, the status of policies, events. One task, so that nothing here
//! holds up a gate.
//!
//! A newer message about the same thing takes the place of an older one that has not been sent. What fails is
//! tried again with growing pauses, a few times.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::{PodKey, Uid};
use sluice_policy_core::model::PolicyRef;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::cluster::{Cluster, ClusterError, Notice, PolicyStatus};
use crate::metrics::Metrics;

/// Messages between the daemon's loop and the task.
const LIMIT: usize = 1024;

/// Messages that wait in the task.
const PENDING: usize = 4096;

/// Messages that are being sent at once.
const AT_ONCE: usize = 16;

/// Attempts for each.
const ATTEMPTS: u32 = 8;

/// The first pause; each further one is twice as long, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(10);

/// A message.
#[derive(Debug, Clone)]
pub(crate) enum Letter {
    Publish { pod: PodKey, uid: Uid, addresses: Vec<IpAddr> },
    Status(PolicyStatus),
    Notice(Notice),
}

/// Where messages are put.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    letters: mpsc::Sender<Letter>,
    metrics: Arc<Metrics>,
}

impl Outbox {
    /// An outbox, and what its task takes from.
    pub(crate) fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Letter>) {
        let (letters, receiver) = mpsc::channel(LIMIT);
        (Self { letters, metrics }, receiver)
    }

    /// Puts a message in; if too many wait, it is dropped and counted.
    pub(crate) fn put(&self, letter: Letter) {
        if let Err(error) = self.letters.try_send(letter) {
            tracing::warn!(error = %error, "a message to the cluster was dropped");
            self.metrics.outbox_dropped();
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Publish(PodKey),
    Status(PolicyRef),
    Notice(u64),
}

#[derive(Debug)]
struct Pending {
    letter: Letter,
    attempts: u32,
    due: Instant,
}

/// Sends until all senders are gone.
pub(crate) async fn send<C: Cluster>(cluster: Arc<C>, mut letters: mpsc::Receiver<Letter>, metrics: Arc<Metrics>) {
    let mut pending: BTreeMap<Topic, Pending> = BTreeMap::new();
    let mut busy: BTreeSet<Topic> = BTreeSet::new();
    let mut sending: JoinSet<(Topic, Pending, Result<(), ClusterError>)> = JoinSet::new();
    let mut notices = 0;
    loop {
        let now = Instant::now();
        let due: Vec<Topic> = pending
            .iter()
            .filter(|(topic, pending)| pending.due <= now && !busy.contains(*topic))
            .map(|(topic, _)| topic.clone())
            .take(AT_ONCE.saturating_sub(busy.len()))
            .collect();
        for topic in due {
            let Some(next) = pending.remove(&topic) else { continue };
            busy.insert(topic.clone());
            let cluster = Arc::clone(&cluster);
            sending.spawn(async move {
                let sent = deliver(&*cluster, &next.letter).await;
                (topic, next, sent)
            });
        }
        let wake = pending.iter().filter(|(topic, _)| !busy.contains(*topic)).map(|(_, pending)| pending.due).min();
        let full = busy.len() >= AT_ONCE;
        tokio::select! {
            letter = letters.recv() => {
                let Some(letter) = letter else { return };
                if pending.len() >= PENDING {
                    metrics.outbox_dropped();
                    continue;
                }
                let topic = match &letter {
                    Letter::Publish { pod, .. } => Topic::Publish(pod.clone()),
                    Letter::Status(status) => Topic::Status(status.policy.clone()),
                    Letter::Notice(_) => {
                        notices += 1;
                        Topic::Notice(notices)
                    }
                };
                pending.insert(topic, Pending { letter, attempts: 0, due: now });
            }
            Some(ended) = sending.join_next(), if !sending.is_empty() => match ended {
                Ok((topic, sent, result)) => {
                    busy.remove(&topic);
                    again(&mut pending, topic, sent, result, &metrics);
                }
                Err(error) => {
                    // Its topic stays busy: a fault of our own, and one message less.
                    tracing::error!(error = %ErrorChain(&error), "a message's task ended badly");
                    metrics.error("outbox");
                }
            },
            () = sleep_until(wake.unwrap_or(now)), if wake.is_some() && !full => {}
        }
    }
}

/// Puts what failed back, unless something newer waits already.
fn again(
    pending: &mut BTreeMap<Topic, Pending>,
    topic: Topic,
    sent: Pending,
    result: Result<(), ClusterError>,
    metrics: &Metrics,
) {
    let Err(error) = result else { return };
    let attempts = sent.attempts + 1;
    tracing::warn!(error = %ErrorChain(&error), attempts, "a message to the cluster could not be sent");
    if attempts >= ATTEMPTS || matches!(error, ClusterError::Denied { .. }) {
        metrics.outbox_dropped();
        return;
    }
    let pause = PAUSE.saturating_mul(1 << attempts.min(16)).min(LONGEST);
    let again = Pending { attempts, due: Instant::now() + pause, ..sent };
    pending.entry(topic).or_insert(again);
}

async fn deliver<C: Cluster>(cluster: &C, letter: &Letter) -> Result<(), ClusterError> {
    match letter {
        Letter::Publish { pod, uid, addresses } => cluster.publish_addresses(pod, uid, addresses).await,
        Letter::Status(status) => cluster.report(status).await,
        Letter::Notice(notice) => cluster.emit(notice).await,
    }
}
