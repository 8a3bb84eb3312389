//! Checkpoints one after the other, most of which is as it was.

use std::collections::BTreeMap;

use serde_json::value::{RawValue, to_raw_value};
use sluice_contract::id::EniId;

use super::{CheckpointError, Document, EniRecord, busy};
use crate::ledger::Eni;
use crate::state::State;
use crate::time::Timestamp;

/// Writes checkpoints of one state. A pod that comes or goes changes one ENI: of the others, what was written of them before is
/// written again. It takes the memory of the ledger and of a document.
#[derive(Debug, Default)]
pub struct Writer {
    enis: BTreeMap<EniId, Written>,
}

#[derive(Debug)]
struct Written {
    /// The ENI as it was then; none while it is worked on: what is written of it meanwhile tells of the time.
    eni: Option<Eni>,
    text: Box<RawValue>,
}

impl Writer {
    /// The document of `state`, as [`super::Checkpoint::to_json`] makes it.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; it does not happen with a state that was made by events.
    pub fn write(&mut self, state: &State, now: Timestamp) -> Result<Vec<u8>, CheckpointError> {
        let busy = busy(state);
        self.enis.retain(|id, _| state.ledger.eni(id).is_some());
        for eni in state.ledger.enis() {
            let busy = busy.contains(&eni.id);
            if !busy && self.enis.get(&eni.id).is_some_and(|written| written.eni.as_ref() == Some(eni)) {
                continue;
            }
            let record = EniRecord::of(eni, busy, now);
            let text = to_raw_value(&record).map_err(CheckpointError::Write)?;
            self.enis.insert(eni.id.clone(), Written { eni: (!busy).then(|| eni.clone()), text });
        }
        let enis: Vec<&RawValue> = self.enis.values().map(|written| &*written.text).collect();
        serde_json::to_vec(&Document::of(state, now, enis)).map_err(CheckpointError::Write)
    }
}
