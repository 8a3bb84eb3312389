//! What is told to the cluster: Events about what was refused and what stands in the way, and whether pods can have
//! addresses here.

use std::collections::BTreeSet;
use std::time::Duration;

use sluice_contract::id::{PodRef, SubnetId};
use sluice_contract::rpc::{Refusal, RefusalCode};
use sluice_ipamd_core::plan::{Cause, HaveSubnets, NO_PREFIXES_HINT};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Daemon;
use crate::cloud::Cloud;
use crate::cluster::{About, Condition, Notice, Report, Weight};
use crate::kernel::Kernel;
use crate::view;

/// For how long something that may pass by itself has to stand in the pool's way before people are told.
pub(super) const LASTING: Duration = Duration::from_secs(60);

/// How long a call may take that is tried again. While it is under way nothing stands in the way, and yet it has not passed.
const TRIED_AGAIN: Duration = Duration::from_secs(15);

/// What has been told.
#[derive(Debug)]
pub(super) struct Reports {
    to: mpsc::Sender<Report>,
    trouble: Option<Trouble>,
    /// Subnets without a whole /28 that people were told of.
    without_prefixes: BTreeSet<SubnetId>,
    condition: Option<Condition>,
}

/// What stands in the pool's way.
#[derive(Debug, Clone, Copy)]
struct Trouble {
    code: RefusalCode,
    since: Instant,
    /// Whether people were told.
    told: bool,
    /// Since when it was not seen any more: a call that is tried again is not yet one that went well.
    gone: Option<Instant>,
}

impl Reports {
    pub(super) const fn new(to: mpsc::Sender<Report>) -> Self {
        Self { to, trouble: None, without_prefixes: BTreeSet::new(), condition: None }
    }

    /// When there is something to tell, if nothing changes.
    pub(super) fn wake(&self) -> Option<Instant> {
        let Trouble { since, told, gone, .. } = self.trouble?;
        // What has passed before it was told is nothing to tell.
        let from = if told { gone } else { gone.is_none().then_some(since) };
        from.map(|from| from + LASTING)
    }
}

impl<C: Cloud, K: Kernel> Daemon<C, K> {
    /// Whether it will be told: what finds no room is dropped, and counted.
    pub(super) fn report(&self, report: Report) -> bool {
        let told = self.reports.to.try_send(report).is_ok();
        if !told {
            self.parts.metrics.report_dropped();
        }
        told
    }

    pub(super) fn notice(&self, about: About, weight: Weight, reason: &'static str, message: String) {
        let _told = self.report(Report::Notice(Notice { about, weight, reason, message }));
    }

    /// Tells of a refused ADD beside its pod.
    pub(super) fn report_refusal(&self, pod: PodRef, refusal: &Refusal) {
        // What the runtime asked for itself is no news, nor that a daemon stops.
        if self.stopping || refusal.code == RefusalCode::Cancelled {
            return;
        }
        let message = match &refusal.hint {
            Some(hint) => format!("{}; {hint}", refusal.message),
            None => refusal.message.clone(),
        };
        self.notice(About::Pod(pod), Weight::Warning, reason(refusal.code), message);
    }

    /// Tells of subnets that have no whole /28 left: pods have single addresses of them, and the node holds fewer pods.
    fn report_prefixes(&mut self) {
        let lacking: BTreeSet<SubnetId> = view::without_prefixes(&self.state, &self.targets).cloned().collect();
        let new: Vec<SubnetId> = lacking.difference(&self.reports.without_prefixes).cloned().collect();
        self.reports.without_prefixes = lacking;
        if !new.is_empty() {
            self.notice(About::Node, Weight::Warning, NO_PREFIXES, no_prefixes(&new));
        }
    }

    /// Tells what keeps the pool from growing, for some time or for good, and whether pods can have addresses.
    pub(super) fn report_pool(&mut self) {
        self.report_prefixes();
        let now = Instant::now();
        let first = (None, self.plan.hopeless.as_ref(), self.plan.held_up.as_ref());
        let further = self.plan.further.iter();
        let further = further.map(|(card, outlook)| (Some(*card), outlook.hopeless.as_ref(), outlook.held_up.as_ref()));
        let all = std::iter::once(first).chain(further);
        let hopeless = all.clone().find_map(|(card, hopeless, _)| Some((card, &hopeless?.cause)));
        // A node that has all that it may have is in no trouble before a pod goes without.
        let passing = |cause: &&Cause| !matches!(cause, Cause::EniLimit { .. });
        let mut held_up = all.filter_map(|(card, _, held_up)| Some((card, held_up.filter(passing)?)));
        let Some((card, cause)) = hopeless.or_else(|| held_up.next()) else { return self.report_no_trouble(now) };
        let code = cause.code();
        let is_same = |before: &Trouble| {
            let gone = before.gone.filter(|_| !before.told);
            before.code == code && gone.is_none_or(|gone| now.saturating_duration_since(gone) < TRIED_AGAIN)
        };
        let before = self.reports.trouble.filter(is_same);
        let trouble = before.unwrap_or(Trouble { code, since: now, told: false, gone: None });
        let tells = hopeless.is_some() || now.saturating_duration_since(trouble.since) >= LASTING;
        let of_card = card.map(|card| format!("network card {card}: ")).unwrap_or_default();
        let words = format!("{of_card}{cause}; {}", cause.hint());
        self.reports.trouble = Some(Trouble { told: trouble.told || tells, gone: None, ..trouble });
        if tells && !trouble.told {
            let message = format!("the pool does not grow: {words}");
            self.notice(About::Node, Weight::Warning, reason(code), message);
        }
        if tells || trouble.told {
            // Most pods have nothing of further cards.
            let holds = card.is_some() || self.free() > 0;
            let reason = if holds { "Available" } else { reason(code) };
            self.report_condition(Condition { holds, reason, message: words });
        }
    }

    fn report_no_trouble(&mut self, now: Instant) {
        if let Some(trouble) = &mut self.reports.trouble {
            let gone = *trouble.gone.get_or_insert(now);
            if trouble.told {
                if now.saturating_duration_since(gone) < LASTING {
                    return;
                }
                let message = "nothing stands in the pool's way any more".to_owned();
                self.notice(About::Node, Weight::Normal, "PoolGrows", message);
                self.reports.trouble = None;
            }
        }
        if self.state.node().is_some() {
            let lacking: Vec<SubnetId> = self.reports.without_prefixes.iter().cloned().collect();
            let (reason, message) = if lacking.is_empty() {
                ("Available", "pods can have addresses".to_owned())
            } else {
                (NO_PREFIXES, no_prefixes(&lacking))
            };
            self.report_condition(Condition { holds: true, reason, message });
        }
    }

    fn report_condition(&mut self, condition: Condition) {
        let said = self.reports.condition.as_ref();
        // Its words may hold what changes with each look; what counts is whether it holds, and why.
        if said.is_none_or(|said| (said.holds, said.reason) != (condition.holds, condition.reason))
            && self.report(Report::Condition(condition.clone()))
        {
            self.reports.condition = Some(condition);
        }
    }
}

/// The reason where a subnet has no whole /28 left.
const NO_PREFIXES: &str = "PrefixesExhausted";

fn no_prefixes(subnets: &[SubnetId]) -> String {
    format!(
        "{} no whole /28 left: pods get single addresses, of which an ENI holds a sixteenth; {NO_PREFIXES_HINT}",
        HaveSubnets(subnets)
    )
}

/// The reason of an Event or a condition.
const fn reason(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::PoolGrowing => "PoolGrowing",
        RefusalCode::SubnetExhausted => "SubnetExhausted",
        RefusalCode::EniLimit => "EniLimitReached",
        RefusalCode::Throttled => "Ec2Throttled",
        // VPC CNI's word.
        RefusalCode::IamDenied => "MissingIAMPermissions",
        RefusalCode::Ec2Unavailable => "Ec2Unavailable",
        RefusalCode::QueueFull => "TooManyPodsWait",
        RefusalCode::Storage => "StateNotWritable",
        RefusalCode::NotReady => "IpamdNotReady",
        RefusalCode::PodEniPending => "BranchENIPending",
        RefusalCode::Cancelled
        | RefusalCode::UnknownAttachment
        | RefusalCode::PolicyNotReady
        | RefusalCode::VersionSkew
        | RefusalCode::BadRequest
        | RefusalCode::Other => "AddressRefused",
    }
}
