//! The image as the engine writes it: rows and decisions shared and counted, and what was there before each change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use super::numbers::Numbers;
use crate::cluster::PodKey;
use crate::compile::diff::{self, Before, Operation};
use crate::compile::image::{DecisionId, Endpoint, FrontendKey, Identity, Image, PolicyId, RowEntries, RowId};
use crate::compile::stage::{self, Numbering};
use crate::flow::{Judgement, Verdict};

#[derive(Debug)]
struct Counted<T> {
    value: Arc<T>,
    references: u32,
}

/// The image and its bookkeeping.
#[derive(Debug)]
pub(super) struct Store {
    image: Image,
    before: Before,
    rows: HashMap<Arc<RowEntries>, RowId>,
    counted_rows: HashMap<RowId, Counted<RowEntries>>,
    unused_rows: BTreeSet<RowId>,
    row_numbers: Numbers,
    decisions: HashMap<Arc<Judgement>, DecisionId>,
    counted_decisions: HashMap<DecisionId, Counted<Judgement>>,
    unused_decisions: BTreeSet<DecisionId>,
    decision_numbers: Numbers,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            image: Image::default(),
            before: Before::default(),
            rows: HashMap::new(),
            counted_rows: HashMap::new(),
            unused_rows: BTreeSet::new(),
            row_numbers: Numbers::from(1),
            decisions: HashMap::new(),
            counted_decisions: HashMap::new(),
            unused_decisions: BTreeSet::new(),
            decision_numbers: Numbers::from(1),
        }
    }

    /// Less room for what is held.
    pub(super) fn pack(&mut self) {
        self.image.pack();
        self.rows.shrink_to_fit();
        self.counted_rows.shrink_to_fit();
        self.decisions.shrink_to_fit();
        self.counted_decisions.shrink_to_fit();
    }

    /// Numbers of rows and decisions are above these.
    pub(super) fn number_above(&mut self, row: u32, decision: u32) {
        self.row_numbers = Numbers::above(1, row, &BTreeSet::new());
        self.decision_numbers = Numbers::above(1, decision, &BTreeSet::new());
    }

    /// Nothing below is in use any more.
    pub(super) fn open_numbers(&mut self) {
        self.row_numbers.open();
        self.decision_numbers.open();
    }

    pub(super) const fn image(&self) -> &Image {
        &self.image
    }

    /// The operations since the last call, in safe order.
    pub(super) fn operations(&mut self) -> Vec<Operation> {
        diff::operations(&std::mem::take(&mut self.before), &self.image)
    }

    /// The same, where policies and addresses may have changed together.
    pub(super) fn staged(&mut self, identities: &mut Numbers, policies: &mut Numbers) -> Vec<Operation> {
        let (gone, mut given, mut ids) = (identities.gone(), Vec::new(), Vec::new());
        let before = std::mem::take(&mut self.before);
        let list = {
            let identities = std::cell::RefCell::new(&mut *identities);
            let mut numbering = Numbering {
                born: &|identity| identities.borrow().is_new(identity.0),
                dead: &|identity| gone.contains(&identity.0),
                identity: &mut || {
                    let number = identities.borrow_mut().take();
                    given.push(number);
                    Identity(number)
                },
                policy: &mut || {
                    let number = policies.take();
                    ids.push(number);
                    PolicyId(number)
                },
            };
            stage::operations(&before, &self.image, &mut numbering)
        };
        given.into_iter().for_each(|number| identities.give_back(number));
        ids.into_iter().for_each(|number| policies.give_back(number));
        list
    }

    /// A decision's number. Someone has to refer to it before the next [`Self::sweep`].
    pub(super) fn decision(&mut self, judgement: Judgement) -> DecisionId {
        if let Some(id) = self.decisions.get(&judgement) {
            return *id;
        }
        let id = DecisionId(self.decision_numbers.take());
        let value = Arc::new(judgement);
        self.decisions.insert(Arc::clone(&value), id);
        let before = self.image.decisions.insert(id, Arc::clone(&value));
        self.before.decisions.entry(id).or_insert(before);
        self.counted_decisions.insert(id, Counted { value, references: 0 });
        self.unused_decisions.insert(id);
        id
    }

    pub(super) fn judgement(&self, id: DecisionId) -> Option<&Judgement> {
        self.counted_decisions.get(&id).map(|counted| counted.value.as_ref())
    }

    pub(super) fn entries(&self, id: RowId) -> Option<&RowEntries> {
        self.counted_rows.get(&id).map(|counted| counted.value.as_ref())
    }

    /// Whether some packet that passes by one row does not pass, or not so freely, by another.
    pub(super) fn tightens(&self, row: RowId, other: RowId) -> bool {
        let passes = |verdict: &Verdict| *verdict != Verdict::Deny;
        let direct = |verdict: &Verdict| matches!(verdict, Verdict::Allow | Verdict::Defer);
        let (Some(row), Some(other)) = (self.entries(row), self.entries(other)) else { return true };
        row.compare(other, |before, now| {
            before != now
                && self.judgement(*before).zip(self.judgement(*now)).is_none_or(|(before, now)| {
                    passes(&before.verdict) && !direct(&now.verdict) && before.verdict != now.verdict
                })
        })
    }

    /// A row's number, with one more reference to it.
    pub(super) fn row(&mut self, row: RowEntries) -> RowId {
        if let Some(id) = self.rows.get(&row).copied() {
            self.refer(id);
            return id;
        }
        let id = RowId(self.row_numbers.take());
        let decisions: BTreeSet<DecisionId> = row.entries.iter().map(|(_, decision)| *decision).collect();
        for decision in decisions {
            if let Some(counted) = self.counted_decisions.get_mut(&decision) {
                counted.references += 1;
                self.unused_decisions.remove(&decision);
            }
        }
        let value = Arc::new(row);
        self.rows.insert(Arc::clone(&value), id);
        let before = self.image.rows.insert(id, Arc::clone(&value));
        self.before.rows.entry(id).or_insert(before);
        self.counted_rows.insert(id, Counted { value, references: 1 });
        id
    }

    /// One more reference to a row.
    pub(super) fn refer(&mut self, id: RowId) {
        if let Some(counted) = self.counted_rows.get_mut(&id) {
            counted.references += 1;
            self.unused_rows.remove(&id);
        }
    }

    /// One reference less.
    pub(super) fn release(&mut self, id: RowId) {
        if let Some(counted) = self.counted_rows.get_mut(&id) {
            counted.references = counted.references.saturating_sub(1);
            if counted.references == 0 {
                self.unused_rows.insert(id);
            }
        }
    }

    /// Removes rows and decisions that nobody refers to.
    pub(super) fn sweep(&mut self) {
        let unused = std::mem::take(&mut self.unused_rows);
        self.remove_rows(unused);
        for id in std::mem::take(&mut self.unused_decisions) {
            let Some(counted) = self.counted_decisions.remove(&id) else { continue };
            self.decisions.remove(&counted.value);
            let before = self.image.decisions.remove(&id);
            self.before.decisions.entry(id).or_insert(before);
            self.decision_numbers.give_back(id.0);
        }
    }

    /// Removes the rows that nobody refers to and that the kernel has not seen.
    pub(super) fn sweep_unseen(&mut self) {
        let unseen = |id: &RowId| matches!(self.before.rows.get(id), Some(None));
        let (unseen, unused) = std::mem::take(&mut self.unused_rows).into_iter().partition(unseen);
        self.unused_rows = unused;
        self.remove_rows(unseen);
    }

    fn remove_rows(&mut self, rows: BTreeSet<RowId>) {
        for id in rows {
            let Some(counted) = self.counted_rows.remove(&id) else { continue };
            self.rows.remove(&counted.value);
            let before = self.image.rows.remove(&id);
            self.before.rows.entry(id).or_insert(before);
            self.row_numbers.give_back(id.0);
            let decisions: BTreeSet<DecisionId> = counted.value.entries.iter().map(|(_, decision)| *decision).collect();
            for decision in decisions {
                if let Some(counted) = self.counted_decisions.get_mut(&decision) {
                    counted.references = counted.references.saturating_sub(1);
                    if counted.references == 0 {
                        self.unused_decisions.insert(decision);
                    }
                }
            }
        }
    }

    /// What came back may be given out again.
    pub(super) fn settle(&mut self) {
        self.row_numbers.settle();
        self.decision_numbers.settle();
    }

    pub(super) fn set_peer(&mut self, policy: PolicyId, identity: Identity, row: Option<RowId>) {
        let key = (policy, identity);
        let before = match row {
            Some(row) => self.image.peers.insert(key, row),
            None => self.image.peers.remove(&key),
        };
        if before != row {
            self.before.peers.entry(key).or_insert(before);
        }
    }

    pub(super) fn set_address(&mut self, prefix: IpNet, identity: Option<Identity>) {
        let before = self.image.ipcache.set(prefix, identity);
        if before != identity {
            self.before.ipcache.entry(prefix).or_insert(before);
        }
    }

    pub(super) fn set_name(&mut self, prefix: IpNet, identity: Option<Identity>) {
        let before = self.image.names.set(prefix, identity);
        if before != identity {
            self.before.names.entry(prefix).or_insert(before);
        }
    }

    pub(super) fn set_frontend(&mut self, key: FrontendKey, identity: Option<Identity>) {
        let before = match identity {
            Some(identity) => self.image.frontends.insert(key, identity),
            None => self.image.frontends.remove(&key),
        };
        if before != identity {
            self.before.frontends.entry(key).or_insert(before);
        }
    }

    pub(super) fn set_endpoint(&mut self, pod: &PodKey, endpoint: Option<Endpoint>) {
        let before = match endpoint {
            Some(endpoint) => self.image.endpoints.insert(pod.clone(), Arc::new(endpoint)),
            None => self.image.endpoints.remove(pod),
        };
        self.before.endpoints.entry(pod.clone()).or_insert(before);
    }
}
