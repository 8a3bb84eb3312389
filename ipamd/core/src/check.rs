//! Every rule that the state must keep, checked by going through all of it: after each step in tests, at start, and on a
//! timer in production.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use sluice_contract::id::{Attachment, EniId};
use sluice_contract::node::nic;

use crate::ledger::{AddressState, Block, Eni, Role, Stage};
use crate::state::State;
use crate::time::Timestamp;

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two blocks hold the address.
    AddressTwice(IpAddr),
    /// Two addresses have the same owner.
    OwnerTwice(Attachment),
    /// An index of the ledger does not say what the ledger says.
    Index {
        /// Which index.
        index: &'static str,
        /// Of what.
        object: String,
    },
    /// A block holds other addresses than its own.
    BlockContents(IpNet),
    /// A pod could be given the ENI's own address.
    PrimaryAddressOffered(IpAddr),
    /// An ENI holds more addresses and prefixes than the instance type allows.
    AddressLimit {
        /// Which ENI.
        eni: EniId,
        /// Places that are taken.
        taken: u32,
        /// Places that there are.
        limit: u32,
    },
    /// More ENIs than the instance type allows are attached.
    EniLimit {
        /// To which network card.
        card: u32,
        /// ENIs there.
        enis: u32,
        /// ENIs allowed.
        limit: u32,
    },
    /// Two ENIs have the same device number, and so the same route table.
    TableTwice(u32),
    /// Two ENIs are primary, or the primary one is being freed.
    Primary(EniId),
    /// An ENI is being freed although pods use it.
    LeavingInUse {
        /// Which ENI.
        eni: EniId,
        /// Who is on it.
        address: IpAddr,
    },
    /// Two pods have the same IPv6 address beside their IPv4 addresses.
    CompanionTwice(Ipv6Addr),
    /// Two ENIs have the same /80.
    DelegatedTwice(Ipv6Net),
    /// An ENI takes pods and has no /80 for their IPv6 addresses.
    NotDelegated(EniId),
    /// Pods have addresses of an ENI that is not ours to use.
    NotOurs(EniId),
    /// Two pods have the same branch ENI, or a pod has one and an address of the pool.
    BranchTwice(Attachment),
    /// Two interfaces of a pod have addresses of one network card.
    CardTwice(Attachment),
    /// An operation is under way on something that the ledger does not have.
    Flight(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressTwice(address) => write!(f, "{address} is in two blocks"),
            Self::OwnerTwice(attachment) => write!(f, "{attachment} holds two addresses"),
            Self::Index { index, object } => write!(f, "the index of {index} is wrong about {object}"),
            Self::BlockContents(net) => write!(f, "{net} does not hold exactly its own addresses"),
            Self::PrimaryAddressOffered(address) => write!(f, "{address} is an ENI's own address and in the pool"),
            Self::AddressLimit { eni, taken, limit } => write!(f, "{eni} has {taken} of {limit} places taken"),
            Self::EniLimit { card, enis, limit } => {
                write!(f, "{enis} ENIs are attached to network card {card}, where {limit} are allowed")
            }
            Self::CardTwice(attachment) => write!(f, "{attachment} has an address of another interface's network card"),
            Self::TableTwice(table) => write!(f, "two ENIs have route table {table}"),
            Self::Primary(eni) => write!(f, "{eni} is one primary ENI too many, or is being freed"),
            Self::LeavingInUse { eni, address } => write!(f, "{eni} is being freed, and {address} is in use"),
            Self::CompanionTwice(address) => write!(f, "two pods have {address}"),
            Self::DelegatedTwice(net) => write!(f, "two ENIs have {net}"),
            Self::NotDelegated(eni) => write!(f, "{eni} takes pods, and has no /80 for their IPv6 addresses"),
            Self::NotOurs(eni) => write!(f, "{eni} is not ours, and pods could use it"),
            Self::BranchTwice(attachment) => write!(f, "what {attachment} has of a branch ENI is not its alone"),
            Self::Flight(op) => write!(f, "under way on nothing: {op}"),
        }
    }
}

/// All rules that are broken; none, if all is well.
#[must_use]
pub fn check(state: &State, now: Timestamp) -> Vec<Violation> {
    let mut found = Vec::new();
    addresses(state, &mut found);
    enis(state, now, &mut found);
    branches(state, &mut found);
    limits(state, &mut found);
    for (key, op) in state.flights() {
        if *key != op.key() || op.eni().is_some_and(|eni| state.ledger().eni(eni).is_none()) {
            found.push(Violation::Flight(op.to_string()));
        }
    }
    found
}

fn addresses(state: &State, found: &mut Vec<Violation>) {
    let ledger = state.ledger();
    let (mut seen, mut queued, mut owned) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    let mut companions = BTreeSet::new();
    // One that is attached to nothing may be gone, and EC2 have given its address to another: the answer of a delete was lost, or a
    // description late.
    let is_there = |eni: &&Eni| eni.device.is_some();
    let own: BTreeSet<IpAddr> = ledger.enis().filter(is_there).map(|eni| eni.primary_ip.into()).collect();
    for eni in ledger.enis() {
        for (net, block) in &eni.blocks {
            if !Block::hosts(*net).eq(block.addresses.keys().copied()) {
                found.push(Violation::BlockContents(*net));
            }
            for (address, state) in &block.addresses {
                if !seen.insert(*address) {
                    found.push(Violation::AddressTwice(*address));
                }
                if ledger.homes().get(address) != Some(&(eni.id.clone(), *net)) {
                    found.push(Violation::Index { index: "homes", object: address.to_string() });
                }
                if let AddressState::Assigned { owner, .. } = state
                    && owned.insert(owner.attachment.clone(), *address).is_some()
                {
                    found.push(Violation::OwnerTwice(owner.attachment.clone()));
                }
                if let AddressState::Assigned { ipv6: Some(ipv6), .. } = state
                    && !companions.insert(*ipv6)
                {
                    found.push(Violation::CompanionTwice(*ipv6));
                }
                let offered = eni.takes_pods() && block.is_offered();
                if let Some(from) = state.available_from().filter(|_| offered) {
                    queued.insert((eni.card, from, *address));
                    // A prefix may hold the ENI's own address only if EC2 says so; it does not.
                    if own.contains(address) {
                        found.push(Violation::PrimaryAddressOffered(*address));
                    }
                }
            }
        }
    }
    let in_queue =
        |(card, queue): (&u32, &BTreeSet<_>)| queue.iter().map(|(from, ip)| (*card, *from, *ip)).collect::<Vec<_>>();
    let queue: BTreeSet<_> = ledger.queue().iter().flat_map(in_queue).collect();
    if queue != queued {
        let odd = queue.symmetric_difference(&queued).next().map(|(_, _, address)| address.to_string());
        found.push(Violation::Index { index: "free addresses", object: odd.unwrap_or_default() });
    }
    if ledger.homes().len() != seen.len() {
        found.push(Violation::Index { index: "homes", object: "an address that no ENI has".to_owned() });
    }
    if !ledger.owners().eq(owned.iter().map(|(attachment, address)| (attachment, *address))) {
        found.push(Violation::Index { index: "owners", object: "an attachment".to_owned() });
    }
    let mut cards = BTreeSet::new();
    for (attachment, address) in &owned {
        let card = ledger.eni_of(*address).map(|eni| eni.card);
        if card.is_some_and(|card| !cards.insert((nic::first(attachment), card))) {
            found.push(Violation::CardTwice(attachment.clone()));
        }
    }
    for stray in ledger.strays().iter().filter(|stray| seen.contains(stray)) {
        found.push(Violation::Index { index: "strays", object: stray.to_string() });
    }
}

fn enis(state: &State, now: Timestamp, found: &mut Vec<Violation>) {
    let (mut tables, mut delegated, mut primaries) = (BTreeSet::new(), BTreeSet::new(), 0);
    for eni in state.ledger().enis() {
        if eni.role == Role::Primary {
            primaries += 1;
            if primaries > 1 || eni.stage == Stage::Leaving {
                found.push(Violation::Primary(eni.id.clone()));
            }
        }
        if let Some(table) = eni.table().filter(|table| !tables.insert(*table)) {
            found.push(Violation::TableTwice(table));
        }
        if let Some(ipv6) = eni.ipv6.filter(|ipv6| !delegated.insert(ipv6.net)) {
            found.push(Violation::DelegatedTwice(ipv6.net));
        }
        if eni.takes_pods() && state.lacks_ipv6(&eni.id) {
            found.push(Violation::NotDelegated(eni.id.clone()));
        }
        // What a closed ENI has left of another time is given back.
        let is_drained = |block: &Block| eni.is_of_pods() && block.withdrawn;
        if !eni.carries_pods() && !eni.blocks.values().all(is_drained) {
            found.push(Violation::NotOurs(eni.id.clone()));
        }
        if let Some((address, _)) = eni.in_use(now).filter(|_| eni.stage == Stage::Leaving) {
            found.push(Violation::LeavingInUse { eni: eni.id.clone(), address });
        }
    }
}

fn branches(state: &State, found: &mut Vec<Violation>) {
    let ledger = state.ledger();
    let (mut vlans, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for held in state.branches() {
        let mut alone = vlans.insert(held.vlan) && ledger.address_of(&held.owner.attachment).is_none();
        for (ip, _) in &held.addresses {
            alone &= addresses.insert(*ip) && ledger.address(*ip).is_none();
        }
        if !alone {
            found.push(Violation::BranchTwice(held.owner.attachment.clone()));
        }
    }
}

fn limits(state: &State, found: &mut Vec<Violation>) {
    let Some(node) = state.node() else { return };
    let places = State::places_per_eni(&node.limits);
    for eni in state.ledger().enis().filter(|eni| eni.carries_pods()) {
        let taken = eni.places_taken();
        if taken > places {
            found.push(Violation::AddressLimit { eni: eni.id.clone(), taken, limit: places });
        }
    }
    // What is asked for is held against the limits when it is begun; EC2 may tell of more in the meantime.
    let mut attached: BTreeMap<u32, u32> = BTreeMap::new();
    for eni in state.ledger().enis().filter(|eni| eni.device.is_some()) {
        *attached.entry(eni.card).or_default() += 1;
    }
    // What is on cards that serve no pods is not ours to judge.
    for (card, enis) in attached.into_iter().filter(|(card, _)| state.is_for_pods(*card)) {
        let limit = node.limits.enis_of(card);
        if enis > limit {
            found.push(Violation::EniLimit { card, enis, limit });
        }
    }
}
