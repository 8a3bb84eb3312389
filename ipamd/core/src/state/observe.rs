//! What descriptions by EC2 and IMDS mean for the state. Nothing that a pod uses goes because a description lacks it, and
//! no description is believed against a call that it may lag behind ([`SETTLE`]).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_contract::id::{EniId, SubnetId};
use sluice_contract::node::route_table;

use super::{ApplyError, DEPARTED_KEPT, SETTLE, State, Subnet, tag};
use crate::cloud::{Ec2Attachment, Ec2Eni, Ec2Subnet, ImdsEni, InstanceLimits, InterfaceType};
use crate::ipv6::{Delegation, Families};
use crate::ledger::{AddressState, Block, Eni, LedgerError, Role, Stage};
use crate::op::{Op, OpKey};
use crate::time::Timestamp;

/// Before a description that is not to be believed yet is asked for again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

impl State {
    /// An ENI as EC2 describes it, as the ledger would have it, and its blocks.
    pub(crate) fn record_of(&self, eni: &Ec2Eni, now: Timestamp) -> (Eni, BTreeSet<IpNet>) {
        let attached = eni.attachment.as_ref();
        let untagged_too = self.node.as_ref().is_none_or(|node| node.manage_untagged_enis);
        let role = match attached {
            Some(attachment) if attachment.card == 0 && attachment.device == 0 => Role::Primary,
            _ if eni.tags.get(tag::NO_MANAGE).is_some_and(|value| value == "true") => Role::Unmanaged,
            Some(attachment) if !self.is_for_pods(attachment.card) => Role::Unmanaged,
            // Whoever has attached it there, pods' packets would not leave by it.
            Some(attachment) if route_table(attachment.card, attachment.device).is_none() => Role::Unmanaged,
            _ if untagged_too || self.is_tagged_ours(eni) => Role::Secondary,
            _ => Role::Unmanaged,
        };
        let cidr = self.subnets.get(&eni.subnet).map_or_else(|| Ipv4Net::from(eni.primary_ip), |subnet| subnet.cidr);
        let record = Eni {
            id: eni.eni.clone(),
            mac: eni.mac,
            card: attached.map_or(0, |attachment| attachment.card),
            device: attached.map(|attachment| attachment.device),
            subnet: eni.subnet.clone(),
            subnet_cidr: cidr,
            primary_ip: eni.primary_ip,
            security_groups: eni.security_groups.clone(),
            connection_tracking: eni.connection_tracking,
            missing_tags: self.missing_tags(role, &eni.tags),
            interface_type: eni.interface_type,
            role,
            closed: self.is_closed(role, attached.map_or(0, |attachment| attachment.card), &eni.subnet),
            stage: if attached.is_some() { Stage::Attached } else { Stage::Created },
            since: now,
            attachment: attached.map(|attachment| attachment.attachment.clone()),
            delete_on_termination: attached.is_some_and(|attachment| attachment.delete_on_termination),
            unsure: false,
            not_before: None,
            recheck: None,
            confirmed: None,
            ipv6: None,
            blocks: BTreeMap::new(),
            departed: BTreeMap::new(),
        };
        let record = self.with_ipv6(record, &eni.ipv6_prefixes, now);
        let blocks = self.blocks_for_pods(&record, &eni.secondary_ips, &eni.prefixes);
        (record, blocks)
    }

    /// The same for one that is to be attached to `card`, unless it is attached already.
    pub(super) fn record_for(&self, eni: &Ec2Eni, card: u32, now: Timestamp) -> (Eni, BTreeSet<IpNet>) {
        let (record, blocks) = self.record_of(eni, now);
        if record.device.is_some() || card == record.card {
            return (record, blocks);
        }
        let closed = self.is_closed(record.role, card, &record.subnet);
        // With IPv6 alone it depends on the card whether pods have addresses of its /80.
        let record = self.with_ipv6(Eni { card, closed, ..record }, &eni.ipv6_prefixes, now);
        let blocks = self.blocks_for_pods(&record, &eni.secondary_ips, &eni.prefixes);
        (record, blocks)
    }

    /// An attached ENI as IMDS shows it, as the ledger would have it.
    fn record_of_imds(&self, seen: &ImdsEni, role: Role, now: Timestamp) -> Eni {
        // One without addresses is of EFA alone.
        let is_bare = seen.primary_ip.is_unspecified();
        Eni {
            id: seen.eni.clone(),
            mac: seen.mac,
            card: seen.card,
            device: Some(seen.device),
            subnet: seen.subnet.clone(),
            subnet_cidr: seen.subnet_cidr,
            primary_ip: seen.primary_ip,
            security_groups: seen.security_groups.clone(),
            // IMDS does not tell.
            connection_tracking: None,
            missing_tags: BTreeMap::new(),
            interface_type: if is_bare { InterfaceType::EfaOnly } else { InterfaceType::Interface },
            role,
            closed: self.is_closed(role, seen.card, &seen.subnet),
            stage: Stage::Attached,
            since: now,
            attachment: None,
            delete_on_termination: true,
            unsure: false,
            not_before: None,
            recheck: None,
            confirmed: None,
            ipv6: None,
            blocks: BTreeMap::new(),
            departed: BTreeMap::new(),
        }
    }

    /// The record with the /80 that pods of the ENI use, if they use one: that which they use already, else the lowest.
    fn with_ipv6(&self, record: Eni, seen: &BTreeSet<Ipv6Net>, now: Timestamp) -> Eni {
        let wanted = Self::is_delegated_to(self.families(), &record);
        let ipv6 = seen.first().filter(|_| wanted).map(|net| Delegation { net: *net, since: now });
        Eni { ipv6, ..record }
    }

    /// The blocks that pods may have addresses of, by what a description shows.
    fn blocks_for_pods(
        &self,
        record: &Eni,
        secondaries: &BTreeSet<Ipv4Addr>,
        prefixes: &BTreeSet<Ipv4Net>,
    ) -> BTreeSet<IpNet> {
        match self.families() {
            Families::V4 | Families::Dual => blocks_of(secondaries, prefixes),
            Families::V6 => record.ipv6.map(|ipv6| IpNet::V6(ipv6.net)).into_iter().collect(),
        }
    }

    /// Takes in which /80s EC2 shows on an ENI. Answers whether that is certain.
    fn described_ipv6(
        &mut self,
        id: &EniId,
        seen: &BTreeSet<Ipv6Net>,
        settled: bool,
        now: Timestamp,
    ) -> Result<bool, ApplyError> {
        let families = self.families();
        let eni = self.ledger.eni_mut(id)?;
        if !Self::is_delegated_to(families, eni) {
            return Ok(true);
        }
        match eni.ipv6 {
            Some(ipv6) if seen.contains(&ipv6.net) => return Ok(true),
            // Assigned a moment ago: this may be news of the past.
            Some(ipv6) if !settled || now.since(ipv6.since) <= SETTLE => return Ok(false),
            None if seen.is_empty() => return Ok(true),
            Some(_) | None => {}
        }
        let ipv6 = seen.first().map(|net| Delegation { net: *net, since: now });
        self.ledger.set_ipv6(id, ipv6)?;
        // What routes to the /80 is set up with the ENI; pods that have addresses of one that is gone keep them.
        self.set_up_again(id)?;
        Ok(true)
    }

    /// Whether pods get no address of an ENI of this role on this network card and in this subnet.
    pub(super) fn is_closed(&self, role: Role, card: u32, subnet: &SubnetId) -> bool {
        let Some(node) = &self.node else { return false };
        if card > 0 && !node.multi_nic {
            return role == Role::Secondary;
        }
        if node.custom_networking {
            // Where ENIs are is the ENIConfig's to say, whatever subnets' tags are.
            return role == Role::Primary;
        }
        // A /80 of the primary ENI is all that pods of IPv6 alone have.
        let follows_tags = node.subnet_discovery && role != Role::Unmanaged && node.families != Families::V6;
        let cluster = node.tags.get(tag::CLUSTER).map(String::as_str);
        follows_tags && self.subnets.get(subnet).is_some_and(|subnet| subnet.is_excluded(cluster))
    }

    /// Which of the tags that this node's ENIs are to have are not among `tags`. The primary ENI is the instance's and goes
    /// with it: it needs none.
    fn missing_tags(&self, role: Role, tags: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let wanted = self.node.iter().filter(|_| role == Role::Secondary).flat_map(|node| &node.tags);
        let missing = wanted.filter(|(key, value)| tags.get(*key) != Some(value));
        missing.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn is_tagged_ours(&self, eni: &Ec2Eni) -> bool {
        let ours = self.node.as_ref().map(|node| node.identity.instance.as_str());
        ours.is_some() && eni.tags.get(tag::INSTANCE).map(String::as_str) == ours
    }

    fn survey_wanted(&mut self, now: Timestamp) {
        self.survey_at = self.survey_at.or(Some(now));
    }

    /// EC2 has to be asked about the ENI before it is worked on, at `not_before`.
    pub(super) fn doubt_eni(&mut self, id: &EniId, not_before: Timestamp) {
        if let Ok(eni) = self.ledger.eni_mut(id) {
            eni.unsure = true;
            eni.not_before = Some(not_before);
        }
    }

    /// EC2 is asked about the ENI once more at `at`.
    pub(super) fn recheck_eni(&mut self, id: &EniId, at: Timestamp) {
        if let Ok(eni) = self.ledger.eni_mut(id) {
            eni.recheck = Some(at);
        }
    }

    /// Takes in what IMDS shows. Nothing goes because IMDS lacks it; a difference makes EC2 be asked.
    pub(super) fn imds_seen(&mut self, enis: &[ImdsEni], now: Timestamp) -> Result<(), ApplyError> {
        if self.node.as_ref().is_some_and(|node| node.imds_only) {
            return self.imds_alone(enis, now);
        }
        for seen in enis {
            let families = self.families();
            if let Some(known) = self.ledger.eni(&seen.eni) {
                let blocks = self.blocks_for_pods(known, &seen.secondary_ips, &seen.prefixes);
                let lacks_ipv6 = known.ipv6.is_none() && Self::is_delegated_to(families, known);
                // IMDS shows for a while what was given back.
                let went = |net: &IpNet| known.departed.get(net).is_some_and(|at| now.since(*at) < DEPARTED_KEPT);
                let is_news = |net: &IpNet| !known.blocks.contains_key(net) && !went(net);
                let news = (lacks_ipv6 && !seen.ipv6_prefixes.is_empty()) || blocks.iter().any(is_news);
                let known = self.ledger.eni_mut(&seen.eni)?;
                known.unsure |= news && known.carries_pods() && known.may_be_asked_about(now);
                if known.device.is_none() && known.stage != Stage::Leaving {
                    known.unsure = true;
                }
                continue;
            }
            if (seen.card, seen.device) != (0, 0) {
                // Whether it is ours to use stands in its tags, and those only EC2 tells.
                self.survey_wanted(now);
                continue;
            }
            let trusted = self.imds_trusted;
            let record = Eni { unsure: !trusted, ..self.record_of_imds(seen, Role::Primary, now) };
            let record = if trusted { self.with_ipv6(record, &seen.ipv6_prefixes, now) } else { record };
            // An overlap is for EC2 to resolve.
            let blocks = self.blocks_for_pods(&record, &seen.secondary_ips, &seen.prefixes);
            let used = if trusted { blocks } else { BTreeSet::new() };
            if self.found(record, used, self.found_cool_until, now).is_err() {
                self.survey_wanted(now);
            }
        }
        let missing: Vec<EniId> = self
            .ledger
            .enis()
            .filter(|eni| eni.device.is_some() && eni.stage != Stage::Leaving && eni.may_be_asked_about(now))
            .filter(|eni| !enis.iter().any(|seen| seen.eni == eni.id))
            .map(|eni| eni.id.clone())
            .collect();
        for id in missing {
            self.ledger.eni_mut(&id)?.unsure = true;
        }
        Ok(())
    }

    /// Takes in what IMDS shows where EC2 is never asked, so that nothing else can confirm it. What it lacks once takes no new
    /// pods; what it lacks twice and no pod uses is forgotten. What it shows again is used again.
    fn imds_alone(&mut self, enis: &[ImdsEni], now: Timestamp) -> Result<(), ApplyError> {
        (self.survey_at, self.resurvey_at) = (None, None);
        let mut gone: Vec<(EniId, IpNet)> = Vec::new();
        for seen in enis {
            if self.ledger.eni(&seen.eni).is_none() {
                // Its tags are not told: what others do not want used has to be on another card, or of EFA alone.
                let role = match (seen.card, seen.device) {
                    (0, 0) => Role::Primary,
                    (card, device) if self.is_for_pods(card) && route_table(card, device).is_some() => Role::Secondary,
                    _ => Role::Unmanaged,
                };
                let record = self.with_ipv6(self.record_of_imds(seen, role, now), &seen.ipv6_prefixes, now);
                let blocks = self.blocks_for_pods(&record, &seen.secondary_ips, &seen.prefixes);
                self.found(record, blocks, self.found_cool_until, now)?;
                continue;
            }
            if self.is_taken_up(&seen.eni, None) {
                self.take_up(&seen.eni)?;
            }
            let settled = now.since(self.ledger.eni_mut(&seen.eni)?.since) > SETTLE;
            self.described_ipv6(&seen.eni, &seen.ipv6_prefixes, settled, now)?;
            if self.ledger.eni_mut(&seen.eni)?.role == Role::Unmanaged || route_table(seen.card, seen.device).is_some()
            {
                self.ledger.set_place(&seen.eni, seen.card, seen.device)?;
            }
            let known = self.ledger.eni_mut(&seen.eni)?;
            (known.unsure, known.not_before, known.recheck) = (false, None, None);
            if known.stage == Stage::Created {
                self.ledger.set_stage(&seen.eni, Stage::Attached)?;
            }
            let Some(known) = self.ledger.eni(&seen.eni).filter(|eni| eni.carries_pods()) else { continue };
            let there = self.blocks_for_pods(known, &seen.secondary_ips, &seen.prefixes);
            let new: BTreeSet<IpNet> = there.iter().filter(|net| !known.blocks.contains_key(net)).copied().collect();
            let held: Vec<IpNet> = known.blocks.keys().copied().collect();
            let is_late = self.hearsay_until.is_some_and(|until| until > now);
            for net in held {
                if !there.contains(&net) {
                    gone.push((seen.eni.clone(), net));
                } else if !is_late {
                    self.ledger.set_hearsay(&seen.eni, net, false)?;
                    self.ledger.set_withdrawn(&seen.eni, net, false)?;
                }
            }
            let new = self.make_way(&seen.eni, new, false, now);
            self.ledger.add_blocks(&seen.eni, new.iter().copied(), self.found_cool_until, now)?;
            self.note_hearsay(&seen.eni, new, now)?;
        }
        let shown: BTreeSet<&EniId> = enis.iter().map(|eni| &eni.eni).collect();
        let absent: Vec<EniId> =
            self.ledger.enis().map(|eni| &eni.id).filter(|id| !shown.contains(id)).cloned().collect();
        for id in &absent {
            let eni = self.ledger.eni_mut(id)?;
            let lacked_before = eni.unsure;
            eni.unsure = true;
            let may_go = lacked_before && eni.role != Role::Primary && eni.in_use(now).is_none();
            gone.extend(self.ledger.eni_mut(id)?.blocks.keys().map(|net| (id.clone(), *net)));
            if may_go {
                self.ledger.remove_eni(id, now)?;
            }
        }
        for (id, net) in gone {
            let Some(block) = self.ledger.eni(&id).and_then(|eni| eni.blocks.get(&net)) else { continue };
            if block.withdrawn && block.in_use(now).is_none() {
                self.forget_block(&id, net, now)?;
            } else {
                self.ledger.set_withdrawn(&id, net, true)?;
            }
        }
        Ok(())
    }

    /// Takes in all ENIs that EC2 says this node owns.
    pub(super) fn surveyed(&mut self, enis: &[Ec2Eni], now: Timestamp) {
        self.resurvey_at = self.resurvey_at.filter(|at| *at > now);
        self.survey_at = self.resurvey_at;
        let ours = self.node.as_ref().map(|node| node.identity.instance.clone());
        for eni in enis {
            let known = self.ledger.eni(&eni.eni).is_some();
            let mine = match &eni.attachment {
                Some(attachment) => attachment.instance == ours,
                // Left behind between create and attach, or between detach and delete.
                None => self.is_tagged_ours(eni),
            };
            if known {
                // An error would be about an address that another ENI has; the next description settles it.
                if self.described(&eni.eni, Some(eni), now).is_err() {
                    self.doubt_eni(&eni.eni, now + LOOK_AGAIN);
                }
            } else if mine && self.deleted.get(&eni.eni).is_none_or(|at| now.since(*at) >= SETTLE) {
                let intent = eni.tags.get(tag::INTENT).and_then(|intent| self.intents.remove(intent));
                let (record, blocks) = self.record_for(eni, intent.map_or(0, |intent| intent.card), now);
                // It may have been freed a moment ago, and be shown late.
                let recheck = record.may_be_freed().then_some(now + SETTLE);
                if self
                    .found(Eni { confirmed: Some(now), recheck, ..record }, blocks, self.found_cool_until, now)
                    .is_err()
                {
                    // Another ENI of ours has one of its addresses: a description is late.
                    self.survey_again(now + SETTLE);
                }
            }
        }
        let missing: Vec<EniId> = self
            .ledger
            .enis()
            .filter(|known| !enis.iter().any(|eni| eni.eni == known.id))
            .map(|eni| eni.id.clone())
            .collect();
        for id in missing {
            if self.described(&id, None, now).is_err() {
                self.doubt_eni(&id, now + LOOK_AGAIN);
            }
        }
    }

    /// Takes in an ENI that is new to the ledger. `cooling_until` is for one whose past is not known.
    pub(super) fn found(
        &mut self,
        eni: Eni,
        blocks: BTreeSet<IpNet>,
        cooling_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        let (id, carries_pods) = (eni.id.clone(), eni.carries_pods());
        let subnet = Subnet::unknown(eni.subnet_cidr);
        self.subnets.entry(eni.subnet.clone()).or_insert(subnet);
        // After a lost checkpoint no call of ours is known that a description could lag behind: the next one is believed.
        let since = if cooling_until.is_some_and(|until| until > now) { now.earlier(SETTLE * 2) } else { now };
        self.ledger.add_eni(Eni { since, ..eni })?;
        if carries_pods {
            let blocks = self.make_way(&id, blocks, false, now);
            let cooling_until = cooling_until.and(self.found_cool_until);
            self.ledger.add_blocks(&id, blocks.iter().copied(), cooling_until, now)?;
            self.ledger.set_added(&id, since)?;
            if cooling_until.is_some() {
                self.note_hearsay(&id, blocks, now)?;
            }
        }
        Ok(())
    }

    /// Marks blocks that a description has brought while it may be late.
    fn note_hearsay(
        &mut self,
        id: &EniId,
        blocks: impl IntoIterator<Item = IpNet>,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        if self.hearsay_until.is_some_and(|until| until > now) {
            for net in blocks {
                self.ledger.set_hearsay(id, net, true)?;
            }
        }
        Ok(())
    }

    /// Which of these blocks can be added to an ENI. What another ENI is thought to hold, but is being given back, makes way:
    /// EC2 has moved it on. So does what is merely free, when the news is the answer to a call and not a description that may
    /// be late, and hearsay. All else that overlaps is left out, and EC2 is asked about both ENIs.
    pub(super) fn make_way(
        &mut self,
        id: &EniId,
        blocks: BTreeSet<IpNet>,
        is_answer: bool,
        now: Timestamp,
    ) -> BTreeSet<IpNet> {
        let mut clear = BTreeSet::new();
        for net in blocks {
            let others: BTreeSet<(EniId, IpNet)> =
                Block::hosts(net).filter_map(|address| self.ledger.homes().get(&address)).cloned().collect();
            let mut is_clear = true;
            for (eni, old) in others {
                let goes = self.ledger.eni(&eni).is_some_and(|eni| {
                    let given_up = eni.stage == Stage::Leaving || is_answer;
                    eni.blocks.get(&old).is_some_and(|block| {
                        block.hearsay || (block.in_use(now).is_none() && (block.withdrawn || given_up))
                    })
                });
                if !goes || self.forget_block(&eni, old, now).is_err() {
                    is_clear = false;
                    // Who is to be asked about already is not asked about later because of this.
                    if self.ledger.eni(&eni).is_some_and(|eni| !eni.unsure) {
                        self.doubt_eni(&eni, now + LOOK_AGAIN);
                    }
                    self.doubt_eni(id, now + LOOK_AGAIN);
                }
            }
            if is_clear {
                clear.insert(net);
            }
        }
        clear
    }

    pub(super) fn described(
        &mut self,
        id: &EniId,
        described: Option<&Ec2Eni>,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        let settled = now.since(self.ledger.eni_mut(id)?.since) > SETTLE;
        let certain = match described {
            None => self.unknown_to_ec2(id, settled, now)?,
            Some(described) => {
                if self.is_taken_up(id, Some(described)) {
                    self.take_up(id)?;
                }
                let attachment = self.described_attachment(id, described, settled)?;
                self.ledger.eni_mut(id)?.connection_tracking = described.connection_tracking;
                if !self.flights.contains_key(&OpKey::Attribute(id.clone())) {
                    self.ledger.eni_mut(id)?.security_groups.clone_from(&described.security_groups);
                    let role = self.ledger.eni_mut(id)?.role;
                    self.ledger.eni_mut(id)?.missing_tags = self.missing_tags(role, &described.tags);
                }
                let ipv6 = self.described_ipv6(id, &described.ipv6_prefixes, settled, now)?;
                let blocks = self.described_blocks(id, described, settled, now)?;
                attachment && ipv6 && blocks
            }
        };
        if let Ok(eni) = self.ledger.eni_mut(id) {
            eni.unsure = !certain;
            eni.confirmed = Some(now);
            eni.recheck = eni.recheck.filter(|at| *at > now);
            eni.not_before = (!certain).then(|| now + LOOK_AGAIN);
            eni.departed.retain(|_, at| now.since(*at) < DEPARTED_KEPT);
        }
        self.busy_devices.retain(|_, at| now.since(*at) < SETTLE);
        Ok(())
    }

    /// Whether an ENI that was let alone because its network card served no pods is for pods by now. Its tags say so, where EC2
    /// has told of them.
    fn is_taken_up(&self, id: &EniId, described: Option<&Ec2Eni>) -> bool {
        let was_let_alone = |eni: &&Eni| eni.role == Role::Unmanaged && eni.card > 0 && eni.table().is_some();
        let Some(known) = self.ledger.eni(id).filter(was_let_alone) else { return false };
        let is_ours = |described: &Ec2Eni| self.record_of(described, Timestamp::default()).0.role == Role::Secondary;
        self.is_for_pods(known.card) && described.is_none_or(is_ours)
    }

    /// An ENI that was let alone is for pods from now on.
    fn take_up(&mut self, id: &EniId) -> Result<(), ApplyError> {
        let (card, subnet) = {
            let eni = self.ledger.eni_mut(id)?;
            eni.role = Role::Secondary;
            (eni.card, eni.subnet.clone())
        };
        let closed = self.is_closed(Role::Secondary, card, &subnet);
        self.ledger.set_closed(id, closed)?;
        self.ledger.set_stage(id, Stage::Attached)?;
        Ok(())
    }

    /// EC2 does not know the ENI. It is forgotten if that is not news of the past and no pod uses it.
    fn unknown_to_ec2(&mut self, id: &EniId, settled: bool, now: Timestamp) -> Result<bool, ApplyError> {
        let is_worked_on = self.flights.values().any(|op| op.eni() == Some(id));
        let eni = self.ledger.eni_mut(id)?;
        if is_worked_on {
            // The end of that call will tell.
            return Ok(false);
        }
        if eni.role == Role::Primary {
            // An instance cannot lose its primary ENI: EC2 shows it late.
            return Ok(false);
        }
        if settled && eni.in_use(now).is_none() {
            self.ledger.remove_eni(id, now)?;
            return Ok(true);
        }
        if settled {
            self.withdraw_all(id)?;
        }
        Ok(false)
    }

    fn described_attachment(&mut self, id: &EniId, described: &Ec2Eni, settled: bool) -> Result<bool, ApplyError> {
        let ours = self.node.as_ref().map(|node| node.identity.instance.clone());
        let eni = self.ledger.eni_mut(id)?;
        let detached = eni.stage == Stage::Leaving && eni.attachment.is_none() && eni.device.is_none();
        // Of others' ENIs it does not matter by which table packets would leave.
        let is_others = eni.role == Role::Unmanaged;
        let is_usable = |at: &Ec2Attachment| is_others || route_table(at.card, at.device).is_some();
        match (&described.attachment, eni.stage) {
            // Detached a moment ago: this is news of the past.
            (Some(_), _) if detached && !settled => Ok(false),
            (Some(attachment), stage) if is_usable(attachment) && (attachment.instance == ours || ours.is_none()) => {
                eni.attachment = Some(attachment.attachment.clone());
                eni.delete_on_termination = attachment.delete_on_termination;
                self.ledger.set_place(id, attachment.card, attachment.device)?;
                if stage == Stage::Created {
                    self.ledger.set_stage(id, Stage::Attached)?;
                }
                Ok(true)
            }
            (None, Stage::Created) => Ok(true),
            (None, Stage::Leaving) => {
                (eni.attachment, eni.device) = (None, None);
                Ok(true)
            }
            _ if !settled => Ok(false),
            // An instance cannot lose its primary ENI: EC2 shows it late.
            (None, _) if eni.role == Role::Primary => Ok(false),
            (None, Stage::Attached | Stage::InService) if !eni.has_pods() => {
                // Attached to nothing, as one that was just made: it is attached again, or goes.
                (eni.attachment, eni.device, eni.delete_on_termination) = (None, None, false);
                self.ledger.set_stage(id, Stage::Created)?;
                Ok(true)
            }
            (found, Stage::Attached | Stage::InService | Stage::Created | Stage::Leaving) => {
                // Somebody has detached it, or attached it elsewhere. Pods that are on it keep their addresses until they
                // go; no new ones come.
                if found.is_none() {
                    eni.attachment = None;
                }
                self.withdraw_all(id)?;
                Ok(true)
            }
        }
    }

    fn described_blocks(
        &mut self,
        id: &EniId,
        described: &Ec2Eni,
        settled: bool,
        now: Timestamp,
    ) -> Result<bool, ApplyError> {
        let eni = self.ledger.eni(id).ok_or_else(|| LedgerError::UnknownEni(id.clone()))?;
        let there = self.blocks_for_pods(eni, &described.secondary_ips, &described.prefixes);
        if !eni.is_of_pods() {
            return Ok(true);
        }
        let mut certain = true;
        let mut new = BTreeSet::new();
        let wanted = there.iter().filter(|net| !eni.closed && !eni.blocks.contains_key(net));
        for net in wanted {
            if eni.departed.get(net).is_some_and(|at| now.since(*at) < SETTLE) {
                // Given back a moment ago: this may be news of the past.
                certain = false;
            } else {
                new.insert(*net);
            }
        }
        let is_late = self.hearsay_until.is_some_and(|until| until > now);
        let gone: Vec<(IpNet, bool, bool, bool)> = eni
            .blocks
            .iter()
            .filter(|(net, _)| !there.contains(net))
            .map(|(net, block)| {
                let in_use = block.in_use(now).is_some() && !block.hearsay;
                (*net, in_use, !block.is_offered(), now.since(block.added) > SETTLE)
            })
            .collect();
        let confirmed: Vec<IpNet> = eni
            .blocks
            .iter()
            .filter(|(net, block)| block.hearsay && !is_late && there.contains(net))
            .map(|(net, _)| *net)
            // What a refused give-back may have taken all the same: this may be news of the past.
            .filter(|net| eni.departed.get(net).is_none_or(|at| now.since(*at) >= SETTLE))
            .collect();
        for net in confirmed {
            self.ledger.set_hearsay(id, net, false)?;
        }
        if !new.is_empty() {
            let wanted = new.len();
            let new = self.make_way(id, new, false, now);
            certain &= new.len() == wanted;
            self.ledger.add_blocks(id, new.iter().copied(), self.found_cool_until, now)?;
            self.note_hearsay(id, new, now)?;
        }
        for (net, in_use, not_offered, old) in gone {
            if in_use && old {
                self.ledger.set_withdrawn(id, net, true)?;
            } else if !in_use && (not_offered || (old && settled)) {
                self.forget_block(id, net, now)?;
            } else {
                certain = false;
            }
        }
        Ok(certain)
    }

    /// Forgets a block that EC2 does not show any more, or shows on another ENI. Of hearsay the newest counts, even where
    /// pods live on it: they are on what is found instead, and that cools as long as what is forgotten would have.
    fn forget_block(&mut self, id: &EniId, net: IpNet, now: Timestamp) -> Result<(), ApplyError> {
        let Some(block) = self.ledger.eni_mut(id)?.blocks.get(&net).filter(|block| block.hearsay) else {
            return Ok(self.ledger.remove_block(id, net, now)?);
        };
        let cooled = block.addresses.values().filter_map(AddressState::available_from).max();
        self.found_cool_until = self.found_cool_until.max(cooled);
        Ok(self.ledger.remove_hearsay(id, net, now)?)
    }

    fn withdraw_all(&mut self, id: &EniId) -> Result<(), ApplyError> {
        let blocks: Vec<IpNet> = self.ledger.eni_mut(id)?.blocks.keys().copied().collect();
        for net in blocks {
            self.ledger.set_withdrawn(id, net, true)?;
        }
        Ok(())
    }

    pub(super) fn subnets_known(&mut self, subnets: Vec<Ec2Subnet>, now: Timestamp) -> Result<(), ApplyError> {
        self.subnets_at = Some(now);
        for described in subnets {
            self.ledger.set_subnet_cidr(&described.subnet, described.cidr);
            let subnet = self.subnets.entry(described.subnet).or_insert_with(|| Subnet::unknown(described.cidr));
            subnet.cidr = described.cidr;
            subnet.ipv6_cidr = described.ipv6_cidr;
            subnet.available = Some(described.available);
            subnet.tags = described.tags;
        }
        self.close_and_open()?;
        Ok(())
    }

    /// The places of an ENI that calls under way will take.
    #[must_use]
    pub fn places_asked_for(&self, eni: &EniId) -> u32 {
        match self.flights.get(&OpKey::Eni(eni.clone())) {
            Some(Op::Assign { count, .. }) => count.places(),
            _ => 0,
        }
    }

    /// The places for addresses that an ENI of this node has beside its own.
    #[must_use]
    pub fn places_per_eni(limits: &InstanceLimits) -> u32 {
        limits.ipv4_per_eni.saturating_sub(1)
    }
}

/// Secondary addresses and prefixes as blocks.
pub(crate) fn blocks_of(addresses: &BTreeSet<Ipv4Addr>, prefixes: &BTreeSet<Ipv4Net>) -> BTreeSet<IpNet> {
    let singles = addresses.iter().map(|address| Ipv4Net::from(*address));
    singles.chain(prefixes.iter().copied()).map(IpNet::V4).collect()
}
