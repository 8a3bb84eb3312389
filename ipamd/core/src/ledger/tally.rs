//! The ledger in numbers.

use super::{AddressState, Block, Eni, Ledger, Stage};
use crate::ipv6::is_prefix;
use crate::time::Timestamp;

/// How many addresses there are, by what they are good for. Withdrawn blocks and leaving ENIs count for nothing but
/// `assigned` and `cooling`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// ENIs, those of others included.
    pub enis: u32,
    /// Prefixes.
    pub prefixes: u32,
    /// Addresses that a pod could have at once.
    pub free: u32,
    /// Addresses that pods hold.
    pub assigned: u32,
    /// Addresses that are cooling, or that EC2 has yet to confirm after a lost checkpoint.
    pub cooling: u32,
    /// Addresses in quarantine.
    pub quarantined: u32,
    /// Addresses on ENIs that are not in service yet.
    pub pending: u32,
}

impl Tally {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u32 {
        self.free + self.assigned + self.cooling + self.quarantined + self.pending
    }
}

impl Ledger {
    /// Counts everything.
    #[must_use]
    pub fn tally(&self, now: Timestamp) -> Tally {
        self.tally_where(|_| true, now)
    }

    /// Counts what the ENIs of a network card have.
    #[must_use]
    pub fn tally_of(&self, card: u32, now: Timestamp) -> Tally {
        self.tally_where(|eni| eni.card == card, now)
    }

    fn tally_where(&self, counts: impl Fn(&Eni) -> bool, now: Timestamp) -> Tally {
        let mut tally = Tally::default();
        for eni in self.enis().filter(|eni| counts(eni)) {
            tally.enis += 1;
            let going = eni.stage == Stage::Leaving || !eni.carries_pods();
            for (net, block) in &eni.blocks {
                tally.prefixes += u32::from(is_prefix(net) && !going && !block.withdrawn);
                for state in block.addresses.values() {
                    let going = going || block.withdrawn;
                    tally.add(state, going, block.hearsay, eni.takes_pods(), now);
                }
            }
        }
        tally
    }
}

impl Tally {
    fn add(&mut self, state: &AddressState, going: bool, hearsay: bool, in_service: bool, now: Timestamp) {
        match state {
            AddressState::Assigned { .. } => self.assigned += 1,
            AddressState::Quarantined { .. } => self.quarantined += u32::from(!going),
            state if !state.is_available(now) => self.cooling += 1,
            _ if going => {}
            _ if hearsay => self.cooling += 1,
            _ if in_service => self.free += 1,
            _ => self.pending += 1,
        }
    }

    /// Counts one block by itself.
    #[must_use]
    pub fn of_block(block: &Block, now: Timestamp) -> Self {
        let mut tally = Self::default();
        for state in block.addresses.values() {
            tally.add(state, false, block.hearsay, true, now);
        }
        tally
    }
}
