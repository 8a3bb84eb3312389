//! How EC2 behaves beside being right: how long it takes, when it throttles, what it tells late, and how it fails.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::address::Placement;
use super::api::Action;
use super::random::Random;
use crate::limits::{self, InstanceType};

/// A time that lies evenly between two others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The shortest.
    pub shortest: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self { shortest: Duration::ZERO, longest: Duration::ZERO };

    /// Between the two, in milliseconds.
    #[must_use]
    pub const fn from_millis(shortest: u64, longest: u64) -> Self {
        Self { shortest: Duration::from_millis(shortest), longest: Duration::from_millis(longest) }
    }
}

/// A token bucket: so many calls at once, and so many a second after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Tokens that it holds.
    pub capacity: u32,
    /// Tokens that come back each second.
    pub per_second: u32,
}

/// Everything about a model that is not in its calls.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The seed of ids, addresses, latencies and faults.
    pub seed: u64,
    /// The account id, twelve digits.
    pub account: String,
    /// The region, e.g. `us-east-1`.
    pub region: String,
    /// What the wall clock says at `now` 0, since 1970.
    pub epoch: Duration,
    /// Where public addresses come from, in order, from its tenth on.
    pub public_pool: Ipv4Net,
    /// How addresses are picked.
    pub placement: Placement,
    /// Multiplies every latency and lag; 0 is at once.
    pub time_scale: f64,
    /// How long each action takes to answer; [`answer_time`] for those that are not here.
    pub answer: BTreeMap<Action, Span>,
    /// From AttachNetworkInterface to the link at the instance.
    pub link: Span,
    /// From DetachNetworkInterface to the ENI being free.
    pub detach: Span,
    /// From RunInstances to `running`.
    pub boot: Span,
    /// Whether calls are throttled.
    pub throttle: bool,
    /// The bucket of each action; [`bucket`] for those that are not here.
    pub buckets: BTreeMap<Action, Bucket>,
    /// How far Describe calls see into the past.
    pub describe_lag: Duration,
    /// How far the metadata service sees into the past.
    pub imds_lag: Duration,
    /// Instance types beyond those of [`crate::limits::INSTANCE_TYPES`].
    pub further_types: Vec<&'static InstanceType>,
}

impl Settings {
    /// Near what AWS does.
    #[must_use]
    pub fn aws() -> Self {
        Self {
            seed: 1,
            account: "111122223333".to_owned(),
            region: "us-east-1".to_owned(),
            epoch: Duration::from_secs(1_767_225_600),
            public_pool: Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24),
            placement: Placement::Scattered,
            time_scale: 1.0,
            answer: BTreeMap::new(),
            link: Span::from_millis(2000, 6000),
            detach: Span::from_millis(1000, 5000),
            boot: Span::from_millis(5000, 15_000),
            throttle: true,
            buckets: BTreeMap::new(),
            describe_lag: Duration::from_millis(300),
            imds_lag: Duration::from_millis(500),
            further_types: Vec::new(),
        }
    }

    /// The same model without waiting: no latency, lag or throttling, and the lowest free address first.
    #[must_use]
    pub fn instant() -> Self {
        Self { time_scale: 0.0, throttle: false, placement: Placement::Lowest, ..Self::aws() }
    }

    /// The type of that name.
    #[must_use]
    pub fn instance_type(&self, name: &str) -> Option<&'static InstanceType> {
        limits::instance_type(name).or_else(|| self.further_types.iter().copied().find(|entry| entry.name == name))
    }

    /// A duration drawn from `span` and scaled.
    pub(super) fn draw(&self, span: Span, random: &mut Random) -> Duration {
        self.scaled(random.between(span.shortest, span.longest))
    }

    /// A duration scaled by [`Self::time_scale`]; a scale that is not a positive number is 0.
    pub(super) fn scaled(&self, time: Duration) -> Duration {
        Duration::try_from_secs_f64(time.as_secs_f64() * self.time_scale).unwrap_or(Duration::ZERO)
    }

    /// How long `action` takes.
    pub(super) fn answer_span(&self, action: Action) -> Span {
        self.answer.get(&action).copied().unwrap_or_else(|| answer_time(action))
    }

    /// The bucket of `action`.
    pub(super) fn bucket(&self, action: Action) -> Bucket {
        self.buckets.get(&action).copied().unwrap_or_else(|| bucket(action))
    }
}

/// How long AWS takes over an action, as seen from an instance in the region.
#[must_use]
pub fn answer_time(action: Action) -> Span {
    match action {
        Action::AssignPrivateIpAddresses
        | Action::UnassignPrivateIpAddresses
        | Action::AssignIpv6Addresses
        | Action::UnassignIpv6Addresses
        | Action::DetachNetworkInterface
        | Action::DeleteNetworkInterface => Span::from_millis(300, 600),
        Action::CreateNetworkInterface | Action::AttachNetworkInterface => Span::from_millis(500, 1000),
        Action::RunInstances => Span::from_millis(1000, 2000),
        Action::ModifyNetworkInterfaceAttribute
        | Action::CreateTags
        | Action::DeleteTags
        | Action::CreateVpc
        | Action::CreateSubnet
        | Action::CreateSecurityGroup
        | Action::AuthorizeSecurityGroupEgress
        | Action::AuthorizeSecurityGroupIngress
        | Action::RevokeSecurityGroupEgress
        | Action::RevokeSecurityGroupIngress
        | Action::TerminateInstances => Span::from_millis(200, 400),
        Action::DescribeInstances
        | Action::DescribeInstanceTypes
        | Action::DescribeNetworkInterfaces
        | Action::DescribeRouteTables
        | Action::DescribeSecurityGroups
        | Action::DescribeSubnets
        | Action::DescribeTags
        | Action::DescribeVpcs => Span::from_millis(80, 250),
    }
}

/// The default bucket of an action (EC2 Developer Guide, "Request throttling": non-mutating 100 and 20 a second, mutating
/// 50 and 5; assigning addresses has its own).
#[must_use]
pub fn bucket(action: Action) -> Bucket {
    match action {
        _ if action.is_describe() => Bucket { capacity: 100, per_second: 20 },
        Action::AssignPrivateIpAddresses
        | Action::AssignIpv6Addresses
        | Action::UnassignPrivateIpAddresses
        | Action::UnassignIpv6Addresses
        | Action::CreateNetworkInterface => Bucket { capacity: 100, per_second: 5 },
        _ => Bucket { capacity: 50, per_second: 5 },
    }
}

/// How full a bucket is.
#[derive(Debug, Clone)]
pub(super) struct Level {
    /// In millionths of a token.
    micro_tokens: u64,
    at: Duration,
}

const TOKEN: u64 = 1_000_000;

impl Level {
    pub(super) fn full(bucket: Bucket, now: Duration) -> Self {
        Self { micro_tokens: u64::from(bucket.capacity).saturating_mul(TOKEN), at: now }
    }

    /// Takes one token, if there is one.
    pub(super) fn take(&mut self, bucket: Bucket, now: Duration) -> bool {
        let elapsed = u64::try_from(now.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        let refill = elapsed.saturating_mul(u64::from(bucket.per_second));
        let most = u64::from(bucket.capacity).saturating_mul(TOKEN);
        self.micro_tokens = self.micro_tokens.saturating_add(refill).min(most);
        self.at = now.max(self.at);
        match self.micro_tokens.checked_sub(TOKEN) {
            Some(rest) => {
                self.micro_tokens = rest;
                true
            }
            None => false,
        }
    }
}

/// A failure on demand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The action it strikes; all of EC2's when absent. `Imds` is a request to the metadata service.
    #[serde(default)]
    pub action: Option<String>,
    /// What happens.
    pub effect: FaultEffect,
    /// How many calls it strikes before it is spent; without end when absent.
    #[serde(default)]
    pub count: Option<u32>,
    /// In how many of a million calls it strikes; always when absent.
    #[serde(default)]
    pub of_million: Option<u32>,
}

/// What a fault does to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultEffect {
    /// The call has no effect and is answered with this error.
    Error {
        /// The error code, e.g. `RequestLimitExceeded`.
        code: String,
        /// The message.
        #[serde(default)]
        message: String,
        /// The HTTP status; 400 when absent.
        #[serde(default)]
        status: Option<u16>,
    },
    /// The call has no effect and no answer ever comes.
    TimeoutBeforeEffect,
    /// The call has its effect and no answer ever comes.
    TimeoutAfterEffect,
    /// Half of what the call asked for is done (rounded down, and all of it where there is no half), and the answer is
    /// `InternalError`.
    PartialEffect,
    /// The call is right but takes this much longer.
    Slow {
        /// Milliseconds added.
        millis: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let bucket = Bucket { capacity: 2, per_second: 4 };
        let mut level = Level::full(bucket, Duration::ZERO);
        assert!(level.take(bucket, Duration::ZERO));
        assert!(level.take(bucket, Duration::ZERO));
        assert!(!level.take(bucket, Duration::from_millis(249)));
        assert!(level.take(bucket, Duration::from_millis(250)));
        assert!(!level.take(bucket, Duration::from_millis(250)));
        assert!(level.take(bucket, Duration::from_secs(60)));
        assert!(level.take(bucket, Duration::from_secs(60)));
        assert!(!level.take(bucket, Duration::from_secs(60)));
    }

    #[test]
    fn a_scale_of_zero_is_no_time() {
        let mut random = Random::new(1);
        assert_eq!(Settings::instant().draw(Span::from_millis(100, 200), &mut random), Duration::ZERO);
        let drawn = Settings::aws().draw(Span::from_millis(100, 200), &mut random);
        assert!((Duration::from_millis(100)..=Duration::from_millis(200)).contains(&drawn));
    }
}
