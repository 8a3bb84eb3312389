//! What the end of an operation means for the state.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;

use super::observe::blocks_of;
use super::{ATTACHMENT_LIMIT_PAUSE, ApplyError, Obstacle, PREFIX_PAUSE, SETTLE, SUBNET_PAUSE, Shortage, State};
use crate::cloud::{AddressCount, Api, CloudError, CloudErrorKind, CreateEni, Ec2Eni};
use crate::ipv6::{Delegation, Families};
use crate::ledger::Stage;
use crate::op::{Failure, Op, Outcome};
use crate::time::Timestamp;

/// Before EC2 is asked what a call without an answer has done: its descriptions lag behind.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long a detach takes at least: a delete before that is refused.
const DETACH_TAKES: Duration = Duration::from_secs(2);

impl State {
    pub(super) fn end(&mut self, op: &Op, result: Result<Outcome, Failure>, now: Timestamp) -> Result<(), ApplyError> {
        self.flights.remove(&op.key());
        match result {
            Ok(outcome) => {
                self.obstacles.remove(&op.api());
                self.succeeded(op, outcome, now)
            }
            Err(failure) => {
                self.failed(op, &failure, now);
                Ok(())
            }
        }
    }

    fn succeeded(&mut self, op: &Op, outcome: Outcome, now: Timestamp) -> Result<(), ApplyError> {
        match (op, outcome) {
            (Op::Create(request), Outcome::Created(eni)) => {
                self.subnet_has(&eni.subnet, request.addresses);
                self.created(&request.client_token, &eni, now)
            }
            (Op::Attach { eni, card, device, .. }, Outcome::Attached(attachment)) => {
                let known = self.ledger.eni_mut(eni)?;
                known.attachment = Some(attachment);
                known.since = now;
                let is_new = known.stage == Stage::Created;
                self.ledger.set_place(eni, *card, *device)?;
                if is_new {
                    self.ledger.set_stage(eni, Stage::Attached)?;
                }
                Ok(())
            }
            (Op::DeleteOnTermination { eni, .. }, Outcome::Done) => {
                self.ledger.eni_mut(eni)?.delete_on_termination = true;
                Ok(())
            }
            (Op::Tag { eni, .. }, Outcome::Done) => {
                self.ledger.eni_mut(eni)?.missing_tags.clear();
                Ok(())
            }
            (Op::Assign { eni, count }, Outcome::Assigned(assigned)) => {
                let mut new = blocks_of(&assigned.addresses, &assigned.prefixes);
                let known = self.ledger.eni_mut(eni)?;
                // The call may have come twice, and EC2 gives out again what was given back: what is shown of it from now on may
                // be the surplus, and no longer the past.
                known.departed.retain(|_, at| now.since(*at) < SETTLE);
                // A repeated answer may name what has come in by a description.
                let named: Vec<IpNet> = new.iter().filter(|net| known.blocks.contains_key(net)).copied().collect();
                new.retain(|net| !known.blocks.contains_key(net));
                let subnet = known.subnet.clone();
                for net in named {
                    self.ledger.assigned_anew(eni, net, now)?;
                }
                self.subnet_has(&subnet, *count);
                self.last_grown = Some(now);
                self.arrivals.assigned(eni, now);
                let new = self.make_way(eni, new, true, now);
                Ok(self.ledger.add_blocks(eni, new, None, now)?)
            }
            (Op::SetGroups { eni, groups }, Outcome::Done) => {
                self.ledger.eni_mut(eni)?.security_groups.clone_from(groups);
                Ok(())
            }
            (Op::AssignIpv6 { eni }, Outcome::AssignedIpv6(net)) => {
                self.ledger.set_ipv6(eni, Some(Delegation { net, since: now }))?;
                if self.families() == Families::V6 {
                    let new = self.make_way(eni, BTreeSet::from([IpNet::V6(net)]), true, now);
                    self.ledger.add_blocks(eni, new, None, now)?;
                }
                Ok(())
            }
            (Op::Unassign { eni, what }, Outcome::Done) => {
                self.last_shrunk = Some(now);
                for net in blocks_of(&what.addresses, &what.prefixes) {
                    if self.ledger.remove_block(eni, net, now).is_err() {
                        // The kernel has shown one of its addresses alive meanwhile: it stays withdrawn until that is gone.
                        self.doubt_eni(eni, now + SETTLE);
                    }
                }
                Ok(())
            }
            (Op::Detach { eni, .. }, Outcome::Done) => {
                let known = self.ledger.eni_mut(eni)?;
                (known.attachment, known.device, known.since) = (None, None, now);
                known.not_before = Some(now + DETACH_TAKES);
                self.last_shrunk = Some(now);
                Ok(())
            }
            (Op::Delete { eni }, Outcome::Done) => {
                if self.ledger.remove_eni(eni, now).is_err() {
                    self.doubt_eni(eni, now + SETTLE);
                } else {
                    self.deleted.retain(|_, at| now.since(*at) < SETTLE);
                    self.deleted.insert(eni.clone(), now);
                }
                Ok(())
            }
            (Op::Inspect { eni }, Outcome::Inspected(described)) => self.described(eni, described.as_ref(), now),
            (Op::Survey { .. }, Outcome::Surveyed(enis)) => {
                self.surveyed(&enis, now);
                Ok(())
            }
            (Op::Subnets { .. }, Outcome::Subnets(subnets)) => self.subnets_known(subnets, now),
            (op, _) => Err(ApplyError::Stale { op: op.to_string(), why: "its outcome is one of another operation" }),
        }
    }

    /// Takes in the ENI that an intent has made.
    pub(super) fn created(&mut self, token: &str, eni: &Ec2Eni, now: Timestamp) -> Result<(), ApplyError> {
        let intent = self.intents.remove(token);
        if self.ledger.eni(&eni.eni).is_some() {
            return Ok(());
        }
        self.arrivals.begun(&eni.eni, intent.as_ref().map_or(now, |intent| intent.since));
        let card = intent.map_or(0, |intent| intent.card);
        self.last_grown = Some(now);
        let (record, blocks) = self.record_for(eni, card, now);
        self.found(crate::ledger::Eni { stage: Stage::Created, ..record }, blocks, None, now)
    }

    fn failed(&mut self, op: &Op, failure: &Failure, now: Timestamp) {
        let Failure { error, retry_after } = failure;
        if let Op::Assign { eni, .. } = op {
            self.arrivals.given_up(eni);
        }
        let retry = now + *retry_after;
        match error.kind {
            // It is about IPv6, and says nothing of the subnet's IPv4 addresses.
            CloudErrorKind::InsufficientAddresses | CloudErrorKind::InsufficientPrefixes
                if matches!(op, Op::AssignIpv6 { .. }) =>
            {
                self.blocked(op.api(), error, retry);
            }
            CloudErrorKind::InsufficientAddresses | CloudErrorKind::InsufficientPrefixes => {
                self.subnet_lacks(op, error.kind, now);
            }
            CloudErrorKind::AttachmentLimit => {
                let until = now + ATTACHMENT_LIMIT_PAUSE;
                match op {
                    // Other cards may have places.
                    Op::Attach { card, .. } => {
                        self.full_cards.insert(*card, until);
                    }
                    _ => self.blocked(Api::CreateNetworkInterface, error, until),
                }
                if let Op::Attach { eni, .. } = op {
                    if self.ledger.eni(eni).is_some_and(|eni| eni.in_use(now).is_some()) {
                        // Pods live on it: it is attached, and what said otherwise was late.
                        self.doubt_eni(eni, retry);
                    } else {
                        // It has no place on the instance: away with it.
                        self.ledger.retire(eni);
                    }
                }
            }
            CloudErrorKind::AddressLimit | CloudErrorKind::NotFound | CloudErrorKind::Conflict => {
                self.doubt(op, error, retry, now);
            }
            CloudErrorKind::Timeout => {
                self.blocked(op.api(), error, retry);
                self.doubt(op, error, (now + LOOK_AGAIN).min(retry), now);
                if let Some(eni) = op.eni() {
                    self.recheck_eni(eni, now + SETTLE);
                }
            }
            CloudErrorKind::Throttled
            | CloudErrorKind::Denied
            | CloudErrorKind::Unavailable
            | CloudErrorKind::Other => {
                self.blocked(op.api(), error, retry);
            }
        }
        if let (Op::Unassign { eni, what }, CloudErrorKind::Throttled | CloudErrorKind::Denied) = (op, error.kind)
            && self.ledger.eni(eni).is_some_and(|eni| !eni.closed)
        {
            // Refused calls have no effect; but this may have been the second try of one that had, by the SDK or a proxy.
            for net in blocks_of(&what.addresses, &what.prefixes) {
                self.ledger.offer_when_shown(eni, net, now);
            }
            self.recheck_eni(eni, now + SETTLE);
        }
        if let Op::Create(request) = op {
            // The same call may yet succeed after these; after all others it would only fail again, and nothing was made.
            let may_succeed =
                matches!(error.kind, CloudErrorKind::Timeout | CloudErrorKind::Unavailable | CloudErrorKind::Throttled);
            if !may_succeed && self.intents.remove(&request.client_token).is_some() {
                // An earlier try may have made one: of ours, or of this same call, where it came twice.
                self.survey_again(now + SETTLE);
            }
        }
    }

    /// The failure concerns one ENI: look at it before the next try.
    fn doubt(&mut self, op: &Op, error: &CloudError, retry: Timestamp, now: Timestamp) {
        let Some(id) = op.eni() else {
            self.blocked(op.api(), error, retry);
            return;
        };
        if let (Op::Attach { card, device, .. }, CloudErrorKind::Conflict) = (op, error.kind) {
            self.busy_devices.insert((*card, *device), now);
        }
        self.doubt_eni(id, retry);
    }

    fn blocked(&mut self, api: Api, error: &CloudError, until: Timestamp) {
        let obstacle = Obstacle { kind: error.kind, code: error.code.clone(), message: error.to_string(), until };
        self.obstacles.insert(api, obstacle);
    }

    fn subnet_lacks(&mut self, op: &Op, kind: CloudErrorKind, now: Timestamp) {
        let id = op.subnet().cloned().or_else(|| op.eni().and_then(|id| Some(self.ledger.eni(id)?.subnet.clone())));
        let Some(subnet) = id.and_then(|id| self.subnets.get_mut(&id)) else { return };
        let shortage = match kind {
            CloudErrorKind::InsufficientPrefixes => &mut subnet.no_prefixes,
            _ => &mut subnet.no_addresses,
        };
        let asked = match op {
            Op::Create(CreateEni { addresses: count, .. }) | Op::Assign { count, .. } => count.places(),
            _ => 1,
        };
        let times = shortage.map_or(0, |shortage| shortage.times);
        *shortage = Some(if asked > 1 {
            // It may have fewer: half of that is tried at once.
            Shortage { until: now, times, at_most: asked / 2 }
        } else {
            let (first, longest) =
                if kind == CloudErrorKind::InsufficientPrefixes { PREFIX_PAUSE } else { SUBNET_PAUSE };
            let pause = first.saturating_mul(1 << times.min(8)).min(longest);
            Shortage { until: now + pause, times: times.saturating_add(1), at_most: 1 }
        });
    }

    fn subnet_has(&mut self, subnet: &sluice_contract::id::SubnetId, form: AddressCount) {
        if let Some(subnet) = self.subnets.get_mut(subnet) {
            subnet.no_addresses = None;
            if matches!(form, AddressCount::Prefixes(_)) {
                subnet.no_prefixes = None;
            }
        }
    }
}
