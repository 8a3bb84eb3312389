//! The connections that are open, of all workers: how many each pod has, what a page shows of them, and when those that
//! wait for nothing are to end.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::Notify;

use crate::flow::{Direction, Flow};
use crate::policy::Rules;

/// Parts with a lock each, so that workers seldom meet. A pod is in one of them.
const SHARDS: usize = 16;

/// The connections that are open.
#[derive(Debug, Default)]
pub struct Connections {
    shards: [Mutex<Shard>; SHARDS],
    hash: RandomState,
    numbers: AtomicU64,
    ending: AtomicBool,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Shard {
    pods: HashMap<IpAddr, usize>,
    open: BTreeMap<u64, Open>,
}

/// A connection that is open.
#[derive(Debug, Clone)]
pub struct Open {
    /// Its flow.
    pub flow: Flow,
    /// Since when.
    pub since: SystemTime,
    /// The rules that it is judged by.
    pub rules: Arc<Rules>,
    /// Where its packets go, once that is known.
    pub backend: Option<SocketAddr>,
}

impl Connections {
    /// Takes a place among the connections of the flow's pod, of which it may have `most`.
    #[must_use]
    pub fn take(self: &Arc<Self>, flow: Flow, rules: &Arc<Rules>, most: usize) -> Option<Place> {
        let pod = match flow.direction {
            Direction::Egress => flow.client.ip(),
            Direction::Ingress => flow.server.ip(),
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut shard = self.shard(pod);
        let taken = shard.pods.entry(pod).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        let open = Open { flow, since: SystemTime::now(), rules: Arc::clone(rules), backend: None };
        shard.open.insert(number, open);
        drop(shard);
        Some(Place { all: Arc::clone(self), pod, number })
    }

    /// The oldest ones, `most` at most.
    #[must_use]
    pub fn oldest(&self, most: usize) -> Vec<Open> {
        let mut all: Vec<(u64, Open)> = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.open.iter().take(most).map(|(number, open)| (*number, open.clone())));
        }
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().take(most).map(|(_, open)| open).collect()
    }

    /// From now on those that wait for nothing end, and others as soon as they do.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Whether they are to end.
    pub(crate) fn ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// Resolves when they are to end.
    pub(crate) async fn until_end(&self) {
        let mut ended = std::pin::pin!(self.ended.notified());
        ended.as_mut().enable();
        if !self.ending() {
            ended.await;
        }
    }

    fn shard(&self, pod: IpAddr) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hash.hash_one(pod) % SHARDS as u64).unwrap_or_default();
        let [first, ..] = &self.shards;
        self.shards.get(index).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    all: Arc<Connections>,
    pod: IpAddr,
    number: u64,
}

impl Place {
    /// It is judged by other rules from now on, or it is known where its packets go.
    pub(crate) fn update(&self, rules: &Arc<Rules>, backend: Option<SocketAddr>) {
        if let Some(open) = self.all.shard(self.pod).open.get_mut(&self.number) {
            open.rules = Arc::clone(rules);
            open.backend = backend;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.all.shard(self.pod);
        shard.open.remove(&self.number);
        if let Some(taken) = shard.pods.get_mut(&self.pod) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                shard.pods.remove(&self.pod);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_policy_core::cluster::PodKey;

    use super::*;
    use crate::policy::{Lists, Looks, Outcome};

    fn flow(direction: Direction, client: &str, server: &str) -> Flow {
        Flow { direction, client: client.parse().unwrap(), server: server.parse().unwrap() }
    }

    #[test]
    fn a_pod_has_so_many_connections_whatever_their_worker() {
        let rules = Arc::new(Rules {
            pod: PodKey { namespace: "x".into(), name: "a".into() },
            lists: Lists::default(),
            otherwise: Outcome { passes: true, reason: "all".into() },
            audit: None,
            looks: Looks::Nothing,
        });
        let all = Arc::new(Connections::default());
        let out = flow(Direction::Egress, "10.0.0.1:4000", "10.0.0.2:80");
        let into = flow(Direction::Ingress, "10.0.0.9:4000", "10.0.0.1:80");
        let other = flow(Direction::Ingress, "10.0.0.1:4000", "10.0.0.2:80");
        let first = all.take(out, &rules, 2).unwrap();
        let second = all.take(into, &rules, 2).unwrap();
        assert!(all.take(out, &rules, 2).is_none());
        let third = all.take(other, &rules, 2).unwrap();
        second.update(&rules, Some("10.0.0.1:8080".parse().unwrap()));
        let seen: Vec<_> = all.oldest(10).into_iter().map(|open| (open.flow, open.backend)).collect();
        assert_eq!(seen, [(out, None), (into, Some("10.0.0.1:8080".parse().unwrap())), (other, None)]);
        assert_eq!(all.oldest(1).len(), 1);
        drop(first);
        let fourth = all.take(out, &rules, 2).unwrap();
        drop((second, third, fourth));
        assert!(all.oldest(10).is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_is_told_of_the_end_and_whoever_comes_later_too() {
        let all = Arc::new(Connections::default());
        let waits = tokio::spawn({
            let all = Arc::clone(&all);
            async move { all.until_end().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished() && !all.ending());
        all.end();
        waits.await.unwrap();
        all.until_end().await;
        assert!(all.ending());
    }
}
