//! What one node asks of EC2 for all: who is in the groups that policies name, where the VPC's route tables lead, and what is
//! free in subnets.
//!
//! What EC2 does not tell stays as it was told last, on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::VpcId;
use sluice_ipamd_core::cloud::{Api, CloudError, CloudErrorKind};
use sluice_ipamd_core::op::{Failure, Op};
use sluice_ipamd_core::shared::{Group, MOST_CIDRS, MOST_GROUPS, MOST_ROUTES, private_networks};
use tokio::time::Instant;

use super::jobs::Job;
use super::{Daemon, Timer};
use crate::cloud::Cloud;
use crate::cluster::{About, Report, Shared, Weight};
use crate::executor::Executor;
use crate::kernel::Kernel;

/// How often everything is asked for: an interface counts this long after it has joined a group, at the latest. A group that
/// is named for the first time is asked for at once.
const EVERY: Duration = Duration::from_secs(60);

/// How often it is asked what is free in the subnets of this node's zone, whether ENIs are made or not.
const SUBNETS_EVERY: Duration = Duration::from_secs(300);

/// The pause after an answer that cannot be used: somebody has to change something.
const AGAIN: Duration = Duration::from_secs(60);

/// After so many failures in a row people are told of what may pass by itself.
const LASTING: u32 = 3;

/// What cannot be asked for now.
#[derive(Debug, Clone, Copy, Default)]
struct Failing {
    /// Failures in a row.
    times: u32,
    /// Whether people were told: at each attempt they would be told for ever.
    told: bool,
}

impl Failing {
    /// Takes in one more failure; whether people are to be told of it.
    fn again(&mut self, kind: CloudErrorKind) -> bool {
        self.times = self.times.saturating_add(1);
        let told_at = if passes(kind) { LASTING } else { 1 };
        let tells = !self.told && self.times >= told_at;
        self.told |= tells;
        tells
    }
}

/// Whether what failed may go well without anybody doing something.
const fn passes(kind: CloudErrorKind) -> bool {
    matches!(kind, CloudErrorKind::Throttled | CloudErrorKind::Timeout | CloudErrorKind::Unavailable)
}

/// What to do about it.
fn hint(error: &CloudError) -> String {
    match error.kind {
        CloudErrorKind::Denied => format!("the role of the nodes needs ec2:{}", error.api),
        CloudErrorKind::Throttled => "others of the account ask EC2 too much; it is tried again by itself".to_owned(),
        CloudErrorKind::Timeout => {
            "there was no answer in time, which says nothing of what is asked for; it is tried again by itself"
                .to_owned()
        }
        CloudErrorKind::Unavailable => "can the node reach EC2's endpoint? It is tried again by itself".to_owned(),
        _ => "it is tried again by itself".to_owned(),
    }
}

/// What is to be asked, and what is known.
#[derive(Debug)]
pub(super) struct Resolving {
    elected: bool,
    wanted: BTreeMap<String, Group>,
    /// Groups whose members were told since this node was elected.
    known: BTreeSet<String>,
    /// Groups that could not be asked for when it was last tried.
    failing: BTreeMap<String, Failing>,
    /// The same of the routes.
    routes_failing: Failing,
    all_at: Instant,
    subnets_at: Instant,
    pub(super) timer: Timer,
}

/// A round of questions.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    groups: BTreeMap<String, Group>,
    /// The VPC, if its routes are wanted.
    routes: Option<VpcId>,
}

/// The answers.
#[derive(Debug)]
pub(super) struct Found {
    groups: BTreeMap<String, Result<Vec<IpNet>, Failure>>,
    routes: Option<Result<Vec<Ipv4Net>, Failure>>,
}

impl Resolving {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            elected: false,
            wanted: BTreeMap::new(),
            known: BTreeSet::new(),
            failing: BTreeMap::new(),
            routes_failing: Failing { times: 0, told: false },
            all_at: now,
            subnets_at: now,
            timer: Timer::due(now, EVERY),
        }
    }

    /// Whoever was elected meanwhile may have told other things since: everything is asked for anew.
    pub(super) fn elected(&mut self, elected: bool) {
        if self.elected != elected {
            let now = Instant::now();
            self.elected = elected;
            self.known.clear();
            self.failing.clear();
            self.routes_failing = Failing::default();
            self.all_at = now;
            self.subnets_at = now;
            self.timer.hurry(now);
        }
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.timer.wake().into_iter().chain([self.subnets_at]).min().filter(|_| self.elected)
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Takes in which groups policies name.
    pub(super) fn groups_wanted(&mut self, mut groups: BTreeMap<String, Group>) {
        let (count, mut left_out) = (groups.len(), 0);
        if let Some(beyond) = groups.keys().nth(MOST_GROUPS).cloned() {
            left_out = groups.split_off(&beyond).len();
            let message = format!(
                "policies name {count} groups of AWS's interfaces and {MOST_GROUPS} are asked for, in the order of their names: \
                 {left_out} are not, {beyond} first; what was known of them stays, and new ones stand for nothing. Let policies \
                 name fewer: one that names several security groups at once is one group"
            );
            tracing::error!(
                groups = count, count = left_out, name = %beyond,
                "policies name too many groups of AWS's interfaces: some are left out"
            );
            self.notice(About::Node, Weight::Warning, "TooManyGroups", message);
        }
        let resolving = &mut self.resolving;
        resolving.known.retain(|name| groups.contains_key(name));
        resolving.failing.retain(|name, _| groups.contains_key(name));
        resolving.wanted = groups;
        self.parts.metrics.groups_wanted(resolving.wanted.len(), left_out);
        if resolving.wanted.keys().any(|name| !resolving.known.contains(name)) {
            resolving.timer.hurry(Instant::now());
        }
    }

    /// Asks, if it is time to and this node's turn.
    pub(super) fn resolve(&mut self, now: Instant) {
        let config = &self.parts.config;
        let Some(vpc) = self.state.node().map(|node| node.identity.vpc.clone()) else { return };
        let resolving = &mut self.resolving;
        if !resolving.elected || !resolving.timer.begin(now) {
            return;
        }
        let all = resolving.all_at <= now;
        if all {
            resolving.all_at = now + EVERY;
        }
        let due = |name: &String| all || !resolving.known.contains(name) || resolving.failing.contains_key(name);
        let groups: BTreeMap<String, Group> = resolving
            .wanted
            .iter()
            .filter(|(name, _)| due(name))
            .map(|(name, group)| (name.clone(), group.clone()))
            .collect();
        let routes = (all && config.network.exclude_snat_routes).then_some(vpc);
        if groups.is_empty() && routes.is_none() {
            return resolving.timer.succeeded(now);
        }
        self.spawn(Job::Resolve(Box::new(Wanted { groups, routes })));
    }

    /// Asks what is free in subnets, if it is time to and this node's turn. The plan asks by itself, too, where ENIs are made.
    pub(super) fn subnets_due(&mut self) -> Option<Op> {
        let now = Instant::now();
        let node = self.state.node()?;
        if !self.resolving.elected || self.resolving.subnets_at > now {
            return None;
        }
        self.resolving.subnets_at = now + SUBNETS_EVERY;
        let (vpc, availability_zone) = (node.identity.vpc.clone(), node.identity.availability_zone.clone());
        let op = Op::Subnets { vpc, availability_zone };
        (!self.state.flights().contains_key(&op.key())).then_some(op)
    }

    /// Takes in the answers, and hands on those that can be used.
    pub(super) fn resolved(&mut self, found: Found) {
        let now = Instant::now();
        // It may be another's turn by now.
        if !self.resolving.elected {
            return self.resolving.timer.succeeded(now);
        }
        let mut shared = Shared::default();
        let mut failures = Vec::new();
        for (name, answer) in found.groups {
            match answer {
                Ok(cidrs) => {
                    self.resolving.failing.remove(&name);
                    shared.groups.insert(name, cidrs);
                }
                Err(failure) => {
                    let tells = self.resolving.failing.entry(name.clone()).or_default().again(failure.error.kind);
                    failures.push((format!("the members of {name}"), "GroupNotResolved", failure, tells));
                }
            }
        }
        match found.routes {
            None => {}
            Some(Ok(routes)) => {
                self.resolving.routes_failing = Failing::default();
                shared.routes = Some(routes);
            }
            Some(Err(failure)) => {
                let tells = self.resolving.routes_failing.again(failure.error.kind);
                failures.push(("where the VPC's routes lead".to_owned(), "RoutesNotResolved", failure, tells));
            }
        }
        let told: Vec<String> = shared.groups.keys().cloned().collect();
        let mut pause = None;
        if shared != Shared::default() {
            if self.report(Report::Shared(shared)) {
                self.resolving.known.extend(told);
            } else {
                pause = Some(EVERY);
            }
        }
        for (what, reason, Failure { error, retry_after }, tells) in failures {
            tracing::warn!(what, error = %error, "EC2 does not tell what all nodes need");
            self.parts.metrics.error("resolve");
            pause = pause.max(Some(retry_after));
            if tells {
                let message = format!("EC2 does not tell {what}, and what was known stays: {error}; {}", hint(&error));
                self.notice(About::Node, Weight::Warning, reason, message);
            }
        }
        match pause {
            None => {
                let resolving = &mut self.resolving;
                resolving.timer.succeeded(now);
                // What came meanwhile has not been asked for.
                if resolving.wanted.keys().any(|name| !resolving.known.contains(name)) {
                    resolving.timer.hurry(now);
                }
            }
            Some(pause) => self.resolving.timer.failed(now, pause, &mut self.random),
        }
    }
}

/// Asks EC2, one call for each group. The routes come first: they are one call, and groups may be many and slow.
pub(super) async fn ask<C: Cloud>(executor: &Executor<C>, wanted: Wanted) -> Found {
    let cloud = executor.cloud();
    let routes = match wanted.routes {
        None => None,
        Some(vpc) => {
            const API: Api = Api::DescribeRouteTables;
            let routes = executor.call(API, cloud.routes(&vpc)).await;
            Some(routes.and_then(|routes| {
                private_networks(&routes)
                    .ok_or_else(|| too_many(API, &format!("{MOST_ROUTES} routes lead to private networks")))
            }))
        }
    };
    let mut groups = BTreeMap::new();
    for (name, group) in wanted.groups {
        let members = executor.call(group.api(), cloud.members(&group)).await;
        let cidrs = members.and_then(|members| {
            group.cidrs(&members).ok_or_else(|| too_many(group.api(), &format!("{MOST_CIDRS} CIDRs stand for {name}")))
        });
        groups.insert(name, cidrs);
    }
    Found { groups, routes }
}

fn too_many(api: Api, what: &str) -> Failure {
    let error = CloudError {
        api,
        kind: CloudErrorKind::Other,
        code: "TooMany".to_owned(),
        message: format!("more than {what}, and a part of them would be wrong"),
        retry_after: None,
    };
    Failure { error, retry_after: AGAIN }
}
