//! The executor carries out the planner's operations: one call of EC2 each. It decides nothing.
//!
//! What it adds to a call is when it goes out: a token bucket for each API, a limit on calls at once, a time limit; and
//! after a failure, when trying again is worth while. Throttling slows the API's bucket down and never ends anything.

mod bucket;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sluice_ipamd_core::cloud::{Api, CloudError, CloudErrorKind};
use sluice_ipamd_core::op::{Failure, Op, Outcome};
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub(crate) use bucket::{Backoff, Random};

use crate::cloud::Cloud;
use crate::metrics::Metrics;
use bucket::Bucket;

/// Calls of EC2 under way at once.
const CALLS_AT_ONCE: usize = 16;

/// The longest that a call waits for its token before it is given up as throttled.
const LONGEST_TOKEN_WAIT: Duration = Duration::from_secs(120);

/// First and longest pause after failures in a row.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// The same after throttling, which others of the account are met with too: a thousand nodes that boot at once would ask
/// each second what EC2 grants in a minute. At the longest an ADD that waits for a minute sees one more try, and its ENI.
const PAUSE_WHEN_THROTTLED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(45));

/// The longest that `Retry-After` is heeded, before it is spread: an ADD waits for a minute, and what asks for more is most likely
/// a proxy.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// A denied call is tried again this seldom: only a person can help.
const PAUSE_WHEN_DENIED: Duration = Duration::from_secs(60);

/// Calls `Cloud` within EC2's limits.
#[derive(Debug)]
pub(crate) struct Executor<C> {
    cloud: Arc<C>,
    gates: Mutex<BTreeMap<Api, Gate>>,
    random: Mutex<Random>,
    permits: Semaphore,
    metrics: Arc<Metrics>,
    start: Instant,
    rate: u32,
    call_timeout: Duration,
}

/// What stands before the calls of one API.
#[derive(Debug)]
struct Gate {
    bucket: Bucket,
    backoff: Backoff,
    throttled: Backoff,
}

/// Half as long again at most, by chance: all who were told the same time would come back together.
fn spread(pause: Duration, random: &mut Random) -> Duration {
    random.between(pause, pause + pause / 2)
}

impl<C: Cloud> Executor<C> {
    /// Carries out one operation.
    pub(crate) async fn run(&self, op: &Op) -> Result<Outcome, Failure> {
        let cloud = &self.cloud;
        match op {
            Op::Create(request) => self.call(op.api(), cloud.create_eni(request)).await.map(Outcome::Created),
            Op::Attach { eni, instance, card, device } => {
                self.call(op.api(), cloud.attach_eni(eni, instance, *card, *device)).await.map(Outcome::Attached)
            }
            Op::DeleteOnTermination { eni, attachment } => {
                self.call(op.api(), cloud.delete_on_termination(eni, attachment)).await.map(|()| Outcome::Done)
            }
            Op::SetGroups { eni, groups } => {
                self.call(op.api(), cloud.set_groups(eni, groups)).await.map(|()| Outcome::Done)
            }
            Op::Tag { eni, tags } => self.call(op.api(), cloud.tag_eni(eni, tags)).await.map(|()| Outcome::Done),
            Op::Assign { eni, count } => self.call(op.api(), cloud.assign(eni, *count)).await.map(Outcome::Assigned),
            Op::AssignIpv6 { eni } => {
                self.call(op.api(), cloud.assign_ipv6_prefix(eni)).await.map(Outcome::AssignedIpv6)
            }
            Op::Unassign { eni, what } => self.call(op.api(), cloud.unassign(eni, what)).await.map(|()| Outcome::Done),
            Op::Detach { attachment, .. } => {
                self.call(op.api(), cloud.detach_eni(attachment)).await.map(|()| Outcome::Done)
            }
            Op::Delete { eni } => self.call(op.api(), cloud.delete_eni(eni)).await.map(|()| Outcome::Done),
            Op::Survey { instance } => self.call(op.api(), cloud.owned_enis(instance)).await.map(Outcome::Surveyed),
            Op::Subnets { vpc, availability_zone } => {
                self.call(op.api(), cloud.subnets(vpc, availability_zone)).await.map(Outcome::Subnets)
            }
            Op::Inspect { eni } => {
                let described = self.call(op.api(), cloud.describe_enis(std::slice::from_ref(eni))).await?;
                Ok(Outcome::Inspected(described.into_iter().find(|described| described.eni == *eni)))
            }
        }
    }
}

impl<C> Executor<C> {
    /// An executor that makes `rate` calls a second of each changing API when EC2 lets it.
    pub(crate) fn new(cloud: Arc<C>, metrics: Arc<Metrics>, rate: u32, call_timeout: Duration, seed: u64) -> Self {
        Self {
            cloud,
            gates: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            permits: Semaphore::new(CALLS_AT_ONCE),
            metrics,
            start: Instant::now(),
            rate,
            call_timeout,
        }
    }

    /// The cloud, for the questions that recovery asks; they go through [`Executor::call`] too.
    pub(crate) fn cloud(&self) -> &C {
        &self.cloud
    }

    /// Makes one call when its bucket allows it, and says when to try again if it fails.
    pub(crate) async fn call<T>(
        &self,
        api: Api,
        call: impl Future<Output = Result<T, CloudError>> + Send,
    ) -> Result<T, Failure> {
        let Some(wait) = self.with_gate(api, |gate, now| gate.bucket.take(now, LONGEST_TOKEN_WAIT)) else {
            return Err(self.failure(CloudError {
                api,
                kind: CloudErrorKind::Throttled,
                code: "BucketEmpty".to_owned(),
                message: format!("calls of {api} wait for longer than {LONGEST_TOKEN_WAIT:?} already"),
                retry_after: None,
            }));
        };
        tokio::time::sleep(wait).await;
        let permit = self.permits.acquire().await;
        let begun = Instant::now();
        let result = match tokio::time::timeout(self.call_timeout, call).await {
            Ok(result) => result,
            Err(_elapsed) => Err(CloudError {
                api,
                kind: CloudErrorKind::Timeout,
                code: "NoAnswer".to_owned(),
                message: format!("no answer within {:?}", self.call_timeout),
                retry_after: None,
            }),
        };
        drop(permit);
        self.metrics.api_call(api, begun.elapsed(), result.as_ref().err());
        match result {
            Ok(answer) => {
                self.with_gate(api, |gate, now| {
                    gate.bucket.succeeded(now);
                    gate.backoff.reset();
                    gate.throttled.reset();
                });
                Ok(answer)
            }
            Err(error) => Err(self.failure(error)),
        }
    }

    fn failure(&self, error: CloudError) -> Failure {
        self.metrics.gave_up(error.api, &error.code);
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = self.with_gate(error.api, |gate, now| {
            if error.kind == CloudErrorKind::Throttled {
                gate.bucket.throttled(now);
                gate.throttled.next(&mut random)
            } else {
                gate.backoff.next(&mut random)
            }
        });
        let pause = if error.kind == CloudErrorKind::Denied { pause.max(PAUSE_WHEN_DENIED) } else { pause };
        let retry_after = match error.retry_after {
            Some(asked) => spread(pause.max(asked.min(LONGEST_ASKED)), &mut random),
            None => pause,
        };
        Failure { retry_after, error }
    }

    /// The time since this executor was made, so that buckets need no clock.
    fn with_gate<T>(&self, api: Api, change: impl FnOnce(&mut Gate, Duration) -> T) -> T {
        let now = self.start.elapsed();
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(api).or_insert_with(|| self.gate(api));
        let changed = change(gate, now);
        self.metrics.api_rate(api, gate.bucket.rate());
        changed
    }

    fn gate(&self, api: Api) -> Gate {
        let bucket = match api {
            // EC2 allows reading calls more (EC2 Developer Guide, "Request throttling": 100 at once, 20 a second).
            Api::DescribeInstances
            | Api::DescribeInstanceTypes
            | Api::DescribeNetworkInterfaces
            | Api::DescribeRouteTables
            | Api::DescribeSubnets => Bucket::new(self.rate.saturating_mul(4), self.rate.saturating_mul(2)),
            // IMDS is on the node, with a limit of packets only.
            Api::Imds => Bucket::new(50, 20),
            // A node's part of the account's bucket: what fills the largest instance at once.
            Api::AssignIpv6Addresses
            | Api::AssignPrivateIpAddresses
            | Api::AttachNetworkInterface
            | Api::CreateNetworkInterface
            | Api::CreateTags
            | Api::DeleteNetworkInterface
            | Api::DetachNetworkInterface
            | Api::ModifyNetworkInterfaceAttribute
            | Api::UnassignPrivateIpAddresses => Bucket::new(self.rate.saturating_mul(3), self.rate),
        };
        let pauses = |(first, longest)| Backoff::new(first, longest);
        Gate { bucket, backoff: pauses(PAUSE), throttled: pauses(PAUSE_WHEN_THROTTLED) }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    const API: Api = Api::AssignPrivateIpAddresses;

    /// EC2 as one node sees it.
    fn node(metrics: &Arc<Metrics>, seed: u64) -> Executor<()> {
        Executor::new(Arc::new(()), Arc::clone(metrics), 5, Duration::from_secs(10), seed)
    }

    fn refusal(retry_after: Option<u64>) -> CloudError {
        CloudError {
            api: API,
            kind: CloudErrorKind::Throttled,
            code: "RequestLimitExceeded".into(),
            message: "Request limit exceeded.".into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    async fn refused(node: &Executor<()>, retry_after: Option<u64>) -> Duration {
        node.call(API, async { Err::<(), _>(refusal(retry_after)) }).await.unwrap_err().retry_after
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_are_sent_away_for_the_same_time_do_not_come_back_together() {
        const NODES: u64 = 1000;
        let metrics = Arc::new(Metrics::new());
        let mut nodes = JoinSet::new();
        for seed in 0..NODES {
            let node = node(&metrics, seed);
            nodes.spawn(async move {
                let begun = Instant::now();
                let pause = refused(&node, Some(20)).await;
                tokio::time::sleep(pause).await;
                node.call(API, async { Ok(begun.elapsed()) }).await.unwrap()
            });
        }
        let mut back: Vec<Duration> = nodes.join_all().await;
        back.sort_unstable();
        assert!(back[0] >= Duration::from_secs(20), "one is back after {:?}", back[0]);
        assert!(back[999] <= Duration::from_secs(40), "one is back after {:?}", back[999]);
        let together = |from: &Duration| {
            back.iter().filter(|at| (0..1000).contains(&at.saturating_sub(*from).as_millis()) && *at >= from).count()
        };
        let most = back.iter().map(together).max().unwrap();
        assert!(most < 250, "{most} of {NODES} are back within a second");
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_of_nothing_or_of_hours_does_not_replace_the_own_pause() {
        let metrics = Arc::new(Metrics::new());
        let (asked, own) = (node(&metrics, 7), node(&metrics, 7));
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let pause = refused(&asked, Some(0)).await;
            assert!(pause >= PAUSE_WHEN_THROTTLED.0, "{pause:?}");
            longest = longest.max(pause);
        }
        assert!(longest > PAUSE_WHEN_THROTTLED.0 * 4, "it does not grow: {longest:?}");
        assert!(longest <= PAUSE_WHEN_THROTTLED.1 * 3 / 2, "{longest:?}");
        let hours = refused(&own, Some(3600)).await;
        assert!(hours >= LONGEST_ASKED && hours <= LONGEST_ASKED * 3 / 2, "{hours:?}");
        let pause = refused(&own, None).await;
        assert!(pause <= PAUSE_WHEN_THROTTLED.1, "{pause:?}");
    }
}
