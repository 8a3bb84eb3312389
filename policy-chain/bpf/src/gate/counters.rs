//! How often each decision was made, and what was dropped why.

use std::collections::BTreeMap;

use sluice_policy_core::compile::image::DecisionId;

use super::{ApplyError, Gate, maps};
use crate::layout::{Counter, DropReason};

/// Counts since the maps were made, over all processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Judgements that rest on a decision.
    pub decisions: BTreeMap<DecisionId, Counter>,
    /// Packets that were dropped; [`DropReason::EventLost`] and [`DropReason::CounterLost`] count what is not told.
    pub drops: BTreeMap<DropReason, Counter>,
}

impl Gate {
    /// Reads the counters.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn counters(&self) -> Result<Counters, ApplyError> {
        let mut counters = Counters::default();
        for (id, values) in self.count_decisions()? {
            counters.decisions.insert(DecisionId(id), sum(&values));
        }
        counters.drops = self.drops()?;
        Ok(counters)
    }

    /// Reads what was dropped, by reason, alone: this costs little, whatever the number of decisions.
    ///
    /// # Errors
    /// [`ApplyError::Kernel`].
    pub fn drops(&self) -> Result<BTreeMap<DropReason, Counter>, ApplyError> {
        let mut drops = BTreeMap::new();
        for reason in DropReason::ALL {
            let values = self.maps.drops.get(&u32::from(reason.number()), 0);
            let values = values.map_err(|error| maps::kernel("drops", "read", error))?;
            let total = sum(&values);
            if total != Counter::default() {
                drops.insert(*reason, total);
            }
        }
        Ok(drops)
    }

    pub(super) fn count_decisions(&self) -> Result<Vec<(u32, Vec<Counter>)>, ApplyError> {
        let failed = |error| maps::kernel("counters", "read", error);
        let mut list = Vec::new();
        for entry in self.maps.counters.iter() {
            let (id, values) = entry.map_err(failed)?;
            list.push((id, values.to_vec()));
        }
        Ok(list)
    }
}

fn sum(values: &[Counter]) -> Counter {
    values.iter().fold(Counter::default(), |total, one| Counter {
        packets: total.packets.saturating_add(one.packets),
        bytes: total.bytes.saturating_add(one.bytes),
    })
}
