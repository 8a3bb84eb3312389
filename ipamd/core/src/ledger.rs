//! The ledger: network card -> ENI -> prefix or secondary address -> the state of each address.
//!
//! It answers three questions without a search: which address has this attachment, who has this address, and which
//! address has been free for the longest. It is changed only through [`crate::state::State::apply`].
//!
//! An address goes `Free -> Assigned -> Cooling -> Free`. A cooling address whose time has come counts as free from then
//! on, without an event. `Quarantined` is an address that the kernel shows alive although no attachment has it.

mod record;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use sluice_contract::id::{Attachment, EniId, SubnetId};

pub use record::{AddressState, Block, Eni, Owner, Role, Stage};
pub use tally::Tally;

use crate::ipv6::{self, Delegation};
use crate::time::Timestamp;

/// Why a change of the ledger was refused. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The address is on no ENI of this node.
    #[error("address {0} is on no ENI of this node")]
    UnknownAddress(IpAddr),
    /// The address is not free, or its ENI does not take pods.
    #[error("address {address} cannot be assigned: {why}")]
    NotAvailable {
        /// The address.
        address: IpAddr,
        /// What stands against it.
        why: &'static str,
    },
    /// The attachment has an address already.
    #[error("attachment {attachment} holds {address} already")]
    OwnerHasAddress {
        /// The attachment.
        attachment: Attachment,
        /// What it holds.
        address: IpAddr,
    },
    /// The attachment has no address.
    #[error("attachment {0} holds no address")]
    UnknownOwner(Attachment),
    /// The ENI is not in the ledger.
    #[error("{0} is not in the ledger")]
    UnknownEni(EniId),
    /// The ENI is in the ledger already.
    #[error("{0} is in the ledger already")]
    KnownEni(EniId),
    /// It is neither an address nor a prefix as EC2 assigns them.
    #[error("{0} is neither an IPv4 address, nor a /28, nor a /80")]
    NoBlock(IpNet),
    /// The address or prefix is on an ENI already, maybe as part of a prefix.
    #[error("{block} on {eni} overlaps what {other} holds already")]
    Overlap {
        /// The new address or prefix.
        block: IpNet,
        /// Its ENI.
        eni: EniId,
        /// The ENI that holds one of its addresses.
        other: EniId,
    },
    /// Pods hold addresses of it, or addresses of it are cooling.
    #[error("{object} is in use: {address} is {state}")]
    InUse {
        /// The ENI, address or prefix.
        object: String,
        /// An address that is in use.
        address: IpAddr,
        /// Its state.
        state: &'static str,
    },
}

/// Network card -> its addresses that pods may have, each with the time from which it is free.
type Queue = BTreeMap<u32, BTreeSet<(Timestamp, IpAddr)>>;

/// Who holds which address on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    enis: BTreeMap<EniId, Eni>,
    /// Attachment -> its address.
    owners: BTreeMap<Attachment, IpAddr>,
    /// Address -> the ENI and the block that it is part of.
    homes: BTreeMap<IpAddr, (EniId, IpNet)>,
    /// Addresses that pods may have, by network card and the time from which they are free: the longest-free come first, cooling
    /// ones last.
    queue: Queue,
    /// Addresses that are alive in the kernel and on no ENI that is known: quarantined if an ENI turns out to have them.
    strays: BTreeSet<IpAddr>,
}

impl Ledger {
    /// All ENIs by id.
    pub fn enis(&self) -> impl Iterator<Item = &Eni> {
        self.enis.values()
    }

    /// One ENI.
    #[must_use]
    pub fn eni(&self, id: &EniId) -> Option<&Eni> {
        self.enis.get(id)
    }

    /// The ENI that has this address as a prefix or secondary address.
    #[must_use]
    pub fn eni_of(&self, address: IpAddr) -> Option<&Eni> {
        self.homes.get(&address).and_then(|(eni, _)| self.enis.get(eni))
    }

    /// The primary ENI, once it is known.
    #[must_use]
    pub fn primary(&self) -> Option<&Eni> {
        self.enis.values().find(|eni| eni.role == Role::Primary)
    }

    /// The address of an attachment.
    #[must_use]
    pub fn address_of(&self, attachment: &Attachment) -> Option<IpAddr> {
        self.owners.get(attachment).copied()
    }

    /// The IPv6 address that a pod has beside this one.
    #[must_use]
    pub fn companion_of(&self, address: IpAddr) -> Option<Ipv6Addr> {
        match self.address(address)? {
            AddressState::Assigned { ipv6, .. } => *ipv6,
            AddressState::Free { .. } | AddressState::Cooling { .. } | AddressState::Quarantined { .. } => None,
        }
    }

    /// The address beside which a pod has this IPv6 address, whichever /80 its ENI has by now. It goes through all pods.
    #[must_use]
    pub fn anchor_of(&self, companion: Ipv6Addr) -> Option<IpAddr> {
        self.owners.values().copied().find(|address| self.companion_of(*address) == Some(companion))
    }

    /// How many addresses the ENIs of a network card hold for pods, in whatever form and whatever they are doing.
    #[must_use]
    pub fn for_pods(&self, card: u32) -> u32 {
        let carrying = self.enis.values().filter(|eni| eni.card == card && eni.carries_pods());
        carrying.map(|eni| eni.count(|_| true)).fold(0, u32::saturating_add)
    }

    /// All attachments and their addresses.
    pub fn owners(&self) -> impl Iterator<Item = (&Attachment, IpAddr)> {
        self.owners.iter().map(|(attachment, address)| (attachment, *address))
    }

    /// What is known of an address.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> Option<&AddressState> {
        let (eni, net) = self.homes.get(&address)?;
        self.enis.get(eni)?.blocks.get(net)?.addresses.get(&address)
    }

    /// The address that has been free for the longest, of those that pods may have.
    #[must_use]
    pub fn next_available(&self, now: Timestamp) -> Option<IpAddr> {
        let first = self.queue.values().filter_map(BTreeSet::first).min();
        first.filter(|(from, _)| *from <= now).map(|(_, address)| *address)
    }

    /// All addresses that pods may have now, the longest-free first. It goes through all of them.
    pub fn available(&self, now: Timestamp) -> impl Iterator<Item = IpAddr> {
        let all: BTreeSet<&(Timestamp, IpAddr)> = self.queue.values().flatten().collect();
        all.into_iter().take_while(move |(from, _)| *from <= now).map(|(_, address)| *address)
    }

    /// Those of the ENIs of one network card.
    pub fn available_on(&self, card: u32, now: Timestamp) -> impl Iterator<Item = IpAddr> {
        let queue = self.queue.get(&card).into_iter().flatten();
        queue.take_while(move |(from, _)| *from <= now).map(|(_, address)| *address)
    }

    /// When the first of the cooling addresses that pods may have is free.
    #[must_use]
    pub fn next_cooled(&self, now: Timestamp) -> Option<Timestamp> {
        let later = (now + Duration::from_millis(1), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        self.queue.values().filter_map(|queue| queue.range(later..).next()).map(|(from, _)| *from).min()
    }

    /// Addresses alive in the kernel that no known ENI has.
    #[must_use]
    pub const fn strays(&self) -> &BTreeSet<IpAddr> {
        &self.strays
    }

    /// The queue as the index holds it, for the invariant checker.
    pub(crate) const fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The index of homes, for the invariant checker.
    pub(crate) const fn homes(&self) -> &BTreeMap<IpAddr, (EniId, IpNet)> {
        &self.homes
    }

    pub(crate) fn eni_mut(&mut self, id: &EniId) -> Result<&mut Eni, LedgerError> {
        self.enis.get_mut(id).ok_or_else(|| LedgerError::UnknownEni(id.clone()))
    }

    /// Gives a free address to an attachment that has none.
    pub(crate) fn assign(&mut self, address: IpAddr, owner: Arc<Owner>, now: Timestamp) -> Result<(), LedgerError> {
        let not = |why| LedgerError::NotAvailable { address, why };
        if let Some(held) = self.owners.get(&owner.attachment) {
            return Err(LedgerError::OwnerHasAddress { attachment: owner.attachment.clone(), address: *held });
        }
        match self.address(address).ok_or(LedgerError::UnknownAddress(address))? {
            AddressState::Free { .. } => {}
            AddressState::Cooling { until } if *until <= now => {}
            AddressState::Cooling { .. } => return Err(not("it is cooling")),
            AddressState::Assigned { .. } => return Err(not("another attachment holds it")),
            AddressState::Quarantined { .. } => return Err(not("it is in quarantine")),
        }
        if !self.is_offered(address) {
            return Err(not("its ENI takes no pods"));
        }
        let ipv6 = self.eni_of(address).and_then(|eni| eni.companion(address));
        self.owners.insert(owner.attachment.clone(), address);
        self.set(address, AddressState::Assigned { owner, ipv6, since: now });
        Ok(())
    }

    /// Records what a checkpoint says: the attachment holds the address, whatever its ENI is good for now.
    pub(crate) fn restore_owner(
        &mut self,
        address: IpAddr,
        owner: Arc<Owner>,
        ipv6: Option<Ipv6Addr>,
        since: Timestamp,
    ) -> Result<(), LedgerError> {
        if let Some(held) = self.owners.get(&owner.attachment) {
            return Err(LedgerError::OwnerHasAddress { attachment: owner.attachment.clone(), address: *held });
        }
        match self.address(address).ok_or(LedgerError::UnknownAddress(address))? {
            AddressState::Assigned { .. } => {
                return Err(LedgerError::NotAvailable { address, why: "another attachment holds it" });
            }
            AddressState::Free { .. } | AddressState::Cooling { .. } | AddressState::Quarantined { .. } => {}
        }
        self.owners.insert(owner.attachment.clone(), address);
        self.set(address, AddressState::Assigned { owner, ipv6, since });
        Ok(())
    }

    /// Gives an address in quarantine to the attachment that turns out to have it.
    pub(crate) fn adopt(&mut self, address: IpAddr, owner: Arc<Owner>, now: Timestamp) -> Result<(), LedgerError> {
        match self.address(address).ok_or(LedgerError::UnknownAddress(address))? {
            AddressState::Quarantined { .. } => {
                let ipv6 = self.eni_of(address).and_then(|eni| eni.companion(address));
                self.restore_owner(address, owner, ipv6, now)
            }
            AddressState::Free { .. } | AddressState::Assigned { .. } | AddressState::Cooling { .. } => {
                Err(LedgerError::NotAvailable { address, why: "it is not in quarantine" })
            }
        }
    }

    /// Takes an attachment's address back; it cools for `cooldown`, if any.
    pub(crate) fn release(
        &mut self,
        attachment: &Attachment,
        cooldown: Duration,
        now: Timestamp,
    ) -> Result<IpAddr, LedgerError> {
        let address = self.owners.remove(attachment).ok_or_else(|| LedgerError::UnknownOwner(attachment.clone()))?;
        let state = if cooldown.is_zero() {
            AddressState::Free { since: now }
        } else {
            AddressState::Cooling { until: now + cooldown }
        };
        self.set(address, state);
        Ok(address)
    }

    /// Sets an address that no pod holds.
    pub(crate) fn set_unowned(&mut self, address: IpAddr, state: AddressState) -> Result<(), LedgerError> {
        match self.address(address) {
            None => Err(LedgerError::UnknownAddress(address)),
            Some(AddressState::Assigned { .. }) => {
                Err(LedgerError::InUse { object: address.to_string(), address, state: "assigned" })
            }
            Some(_) => {
                self.set(address, state);
                Ok(())
            }
        }
    }

    pub(crate) fn add_eni(&mut self, eni: Eni) -> Result<(), LedgerError> {
        if self.enis.contains_key(&eni.id) {
            return Err(LedgerError::KnownEni(eni.id));
        }
        self.enis.insert(eni.id.clone(), Eni { blocks: BTreeMap::new(), ..eni });
        Ok(())
    }

    /// Says whether no pod gets an address of an ENI any more. What it holds is then given back as pods leave it.
    pub(crate) fn set_closed(&mut self, id: &EniId, closed: bool) -> Result<(), LedgerError> {
        let eni = self.eni_mut(id)?;
        eni.closed = closed;
        if closed {
            eni.blocks.values_mut().for_each(|block| block.withdrawn = true);
        }
        self.reindex(id);
        Ok(())
    }

    /// Tells an ENI its /80, or that it has none.
    pub(crate) fn set_ipv6(&mut self, id: &EniId, ipv6: Option<Delegation>) -> Result<(), LedgerError> {
        self.eni_mut(id)?.ipv6 = ipv6;
        Ok(())
    }

    /// Moves an ENI to another stage; its addresses enter or leave the queue with it.
    pub(crate) fn set_stage(&mut self, id: &EniId, stage: Stage) -> Result<(), LedgerError> {
        self.eni_mut(id)?.stage = stage;
        self.reindex(id);
        Ok(())
    }

    /// Adds prefixes and secondary addresses: free, or cooling for those whose past is not known. What the kernel shows
    /// alive among them goes into quarantine.
    pub(crate) fn add_blocks(
        &mut self,
        id: &EniId,
        blocks: impl IntoIterator<Item = IpNet>,
        cooling_until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        let new = match cooling_until.filter(|until| *until > now) {
            Some(until) => AddressState::Cooling { until },
            None => AddressState::Free { since: now },
        };
        let blocks: Vec<IpNet> = blocks.into_iter().collect();
        // What comes to an ENI that takes no pods any more, asked for before, goes back like the rest.
        let withdrawn = self.eni_mut(id)?.closed;
        for block in &blocks {
            if !ipv6::is_block(block) {
                // A wider one would be counted out address by address.
                return Err(LedgerError::NoBlock(*block));
            }
            if let Some(other) = Block::hosts(*block).find_map(|address| self.homes.get(&address)) {
                return Err(LedgerError::Overlap { block: *block, eni: id.clone(), other: other.0.clone() });
            }
        }
        for net in blocks {
            let mut block = Block { added: now, withdrawn, hearsay: false, addresses: BTreeMap::new() };
            for address in Block::hosts(net) {
                let state =
                    if self.strays.remove(&address) { AddressState::Quarantined { since: now } } else { new.clone() };
                block.addresses.insert(address, state);
                self.homes.insert(address, (id.clone(), net));
            }
            let eni = self.eni_mut(id)?;
            eni.departed.remove(&net);
            eni.blocks.insert(net, block);
        }
        self.reindex(id);
        Ok(())
    }

    /// Dates all blocks of an ENI back, to when they came at the latest.
    pub(crate) fn set_added(&mut self, id: &EniId, added: Timestamp) -> Result<(), LedgerError> {
        self.eni_mut(id)?.blocks.values_mut().for_each(|block| block.added = added);
        Ok(())
    }

    /// Takes a block out of the queue (`true`) or puts it back.
    pub(crate) fn set_withdrawn(&mut self, id: &EniId, net: IpNet, withdrawn: bool) -> Result<(), LedgerError> {
        if let Some(block) = self.eni_mut(id)?.blocks.get_mut(&net) {
            block.withdrawn = withdrawn;
        }
        self.reindex(id);
        Ok(())
    }

    /// Keeps a block out of the queue (`true`) until EC2 has shown it again.
    pub(crate) fn set_hearsay(&mut self, id: &EniId, net: IpNet, hearsay: bool) -> Result<(), LedgerError> {
        if let Some(block) = self.eni_mut(id)?.blocks.get_mut(&net) {
            block.hearsay = hearsay;
        }
        self.reindex(id);
        Ok(())
    }

    /// EC2 has assigned what a late description had shown: it was not ours in between, and is free as any that comes.
    pub(crate) fn assigned_anew(&mut self, id: &EniId, net: IpNet, now: Timestamp) -> Result<(), LedgerError> {
        if !self.eni_mut(id)?.blocks.get(&net).is_some_and(|block| block.hearsay) {
            return Ok(());
        }
        for address in Block::hosts(net) {
            if matches!(self.address(address), Some(AddressState::Cooling { .. })) {
                self.set(address, AddressState::Free { since: now });
            }
        }
        self.set_hearsay(id, net, false)
    }

    /// A call that was to give a block back has been refused, and may have come twice: pods may have the addresses again when
    /// EC2 shows the block later than it could show the past.
    pub(crate) fn offer_when_shown(&mut self, id: &EniId, net: IpNet, now: Timestamp) {
        if let Some(eni) = self.enis.get_mut(id)
            && let Some(block) = eni.blocks.get_mut(&net)
        {
            (block.withdrawn, block.hearsay) = (false, true);
            eni.departed.insert(net, now);
        }
        self.reindex(id);
    }

    /// Begins to free an ENI, if it is known.
    pub(crate) fn retire(&mut self, id: &EniId) {
        if let Some(eni) = self.enis.get_mut(id) {
            eni.stage = Stage::Leaving;
        }
        self.reindex(id);
    }

    /// Forgets a block that no pod uses; the ENI remembers that it went.
    pub(crate) fn remove_block(&mut self, id: &EniId, net: IpNet, now: Timestamp) -> Result<(), LedgerError> {
        let Some(block) = self.eni_mut(id)?.blocks.get(&net) else { return Ok(()) };
        if let Some((address, state)) = block.in_use(now) {
            return Err(LedgerError::InUse { object: net.to_string(), address, state });
        }
        self.forget_block(id, net, now)
    }

    /// Forgets a block that EC2 has only shown once, and late: what lives of it is on an ENI that is yet to be found.
    pub(crate) fn remove_hearsay(&mut self, id: &EniId, net: IpNet, now: Timestamp) -> Result<(), LedgerError> {
        let Some(block) = self.eni_mut(id)?.blocks.get(&net) else { return Ok(()) };
        let live = block.addresses.iter().filter(|(_, state)| state.is_live());
        let live: Vec<IpAddr> = live.map(|(address, _)| *address).collect();
        self.owners.retain(|_, address| !live.contains(address));
        self.strays.extend(live);
        self.forget_block(id, net, now)
    }

    fn forget_block(&mut self, id: &EniId, net: IpNet, now: Timestamp) -> Result<(), LedgerError> {
        for address in Block::hosts(net) {
            self.unqueue(address);
            self.homes.remove(&address);
        }
        let eni = self.eni_mut(id)?;
        eni.blocks.remove(&net);
        eni.departed.insert(net, now);
        Ok(())
    }

    /// Forgets an ENI that no pod uses.
    pub(crate) fn remove_eni(&mut self, id: &EniId, now: Timestamp) -> Result<(), LedgerError> {
        let eni = self.enis.get(id).ok_or_else(|| LedgerError::UnknownEni(id.clone()))?;
        if let Some((address, state)) = eni.in_use(now) {
            return Err(LedgerError::InUse { object: id.to_string(), address, state });
        }
        let blocks: Vec<IpNet> = eni.blocks.keys().copied().collect();
        for net in blocks {
            self.remove_block(id, net, now)?;
        }
        self.enis.remove(id);
        Ok(())
    }

    /// Takes in what the kernel shows: `alive` are all the addresses that live pods use. Unowned addresses among them are
    /// quarantined; those in quarantine that are gone cool for `cooldown`.
    pub(crate) fn kernel_seen(&mut self, alive: &BTreeSet<IpAddr>, cooldown: Duration, now: Timestamp) {
        self.strays = alive.iter().filter(|address| !self.homes.contains_key(address)).copied().collect();
        let changes: Vec<(IpAddr, AddressState)> = self
            .enis
            .values()
            .flat_map(|eni| eni.blocks.values())
            .flat_map(|block| &block.addresses)
            .filter_map(|(address, state)| match (state, alive.contains(address)) {
                (AddressState::Free { .. } | AddressState::Cooling { .. }, true) => {
                    Some((*address, AddressState::Quarantined { since: now }))
                }
                (AddressState::Quarantined { .. }, false) => {
                    Some((*address, AddressState::Cooling { until: now + cooldown }))
                }
                _ => None,
            })
            .collect();
        for (address, state) in changes {
            self.set(address, state);
        }
    }

    /// Tells the ENIs of a subnet its CIDR.
    pub(crate) fn set_subnet_cidr(&mut self, subnet: &SubnetId, cidr: Ipv4Net) {
        for eni in self.enis.values_mut().filter(|eni| eni.subnet == *subnet) {
            eni.subnet_cidr = cidr;
        }
    }

    /// Puts the strays of a checkpoint back.
    pub(crate) fn restore_strays(&mut self, strays: BTreeSet<IpAddr>) {
        self.strays = strays;
    }

    /// Whether pods may have addresses of this block of this ENI.
    fn is_offered(&self, address: IpAddr) -> bool {
        self.homes.get(&address).is_some_and(|(eni, net)| {
            self.enis.get(eni).is_some_and(|eni| eni.takes_pods() && eni.blocks.get(net).is_some_and(Block::is_offered))
        })
    }

    /// Says where an ENI is attached; its addresses go with it.
    pub(crate) fn set_place(&mut self, id: &EniId, card: u32, device: u32) -> Result<(), LedgerError> {
        let eni = self.eni_mut(id)?;
        let before = std::mem::replace(&mut eni.card, card);
        eni.device = Some(device);
        if before != card {
            let addresses: Vec<(Timestamp, IpAddr)> = eni
                .blocks
                .values()
                .flat_map(|block| &block.addresses)
                .filter_map(|(address, state)| Some((state.available_from()?, *address)))
                .collect();
            for place in &addresses {
                self.leave_queue(before, place);
            }
            self.reindex(id);
        }
        Ok(())
    }

    fn set(&mut self, address: IpAddr, state: AddressState) {
        self.unqueue(address);
        let from = state.available_from().filter(|_| self.is_offered(address));
        let Some((eni, net)) = self.homes.get(&address) else { return };
        let Some(eni) = self.enis.get_mut(eni) else { return };
        if let Some(slot) = eni.blocks.get_mut(net).and_then(|block| block.addresses.get_mut(&address)) {
            *slot = state;
            if let Some(from) = from {
                self.queue.entry(eni.card).or_default().insert((from, address));
            }
        }
    }

    fn unqueue(&mut self, address: IpAddr) {
        let from = self.address(address).and_then(AddressState::available_from);
        if let Some((from, card)) = from.zip(self.eni_of(address).map(|eni| eni.card)) {
            self.leave_queue(card, &(from, address));
        }
    }

    fn leave_queue(&mut self, card: u32, place: &(Timestamp, IpAddr)) {
        if let Some(queue) = self.queue.get_mut(&card) {
            queue.remove(place);
            if queue.is_empty() {
                self.queue.remove(&card);
            }
        }
    }

    /// Brings the queue up to date with one ENI.
    fn reindex(&mut self, id: &EniId) {
        let Some(eni) = self.enis.get(id) else { return };
        let mut queue = self.queue.remove(&eni.card).unwrap_or_default();
        for block in eni.blocks.values() {
            let offered = eni.takes_pods() && block.is_offered();
            for (address, state) in &block.addresses {
                let Some(from) = state.available_from() else { continue };
                if offered {
                    queue.insert((from, *address));
                } else {
                    queue.remove(&(from, *address));
                }
            }
        }
        if !queue.is_empty() {
            self.queue.insert(eni.card, queue);
        }
    }
}
