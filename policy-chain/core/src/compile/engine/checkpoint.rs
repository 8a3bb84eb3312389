//! Numbers across a restart.
//!
//! A checkpoint has the number of each class with what holds for its members, in words (see [`super::words`]). A class of an
//! engine that was restored from it gets the number that a class with the same facts had. So an entry in a pinned map still
//! means what it meant.
//!
//! Policies, rows and decisions have no checkpoint: a restarted engine numbers them anew, above the highest numbers that the
//! pinned maps hold ([`Floor`]), so that the old and the new ones stand beside each other until the gates have been swapped.
//! Every number that the checkpoint has and nobody took, or that lies below the floor, stays unused until
//! [`Engine::forget_checkpoint`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::atoms::{Atom, Atoms};
use super::fronts::FrontId;
use super::numbers::Numbers;
use super::{Engine, words};
use crate::compile::image::Identity;
use crate::settings::Settings;

/// Identities with their meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The form of what is in it: [`Self::VERSION`]. Of a checkpoint of another version nothing is used.
    #[serde(default)]
    pub version: u32,
    /// What can hold, in words.
    pub facts: Vec<String>,
    /// Classes of addresses.
    pub identities: Vec<CheckpointIdentity>,
    /// Frontends of Services.
    pub frontends: Vec<CheckpointFrontend>,
}

impl Checkpoint {
    /// The form that this program writes and reads.
    pub const VERSION: u32 = 1;
}

/// A class of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointIdentity {
    /// Its number.
    pub number: u32,
    /// What holds for its members: indexes of [`Checkpoint::facts`].
    pub facts: Vec<u32>,
}

/// A frontend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointFrontend {
    /// Its number.
    pub number: u32,
    /// Service, port and family, in words.
    pub frontend: String,
}

/// The highest numbers that the pinned maps hold; 0 where they hold none. A restored engine gives out higher ones only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// Of a policy.
    pub policy: u32,
    /// Of a row.
    pub row: u32,
    /// Of a decision.
    pub decision: u32,
    /// Of an identity. What is in the checkpoint keeps its number whatever this is; it is for numbers that were given out after
    /// the checkpoint was written, or whose checkpoint is lost: until the gates have been swapped, the old policies
    /// still mean the old identities by them.
    pub identity: u32,
    /// Of a gate's revision. A gate begins above it, so that what flows remember of the time before is judged again: the
    /// policies may have changed meanwhile.
    pub revision: u64,
}

/// What a checkpoint left to be taken.
#[derive(Debug, Default)]
pub(super) struct Restored {
    facts: HashMap<String, u32>,
    /// By the numbers of their facts, sorted.
    identities: HashMap<Vec<u32>, u32>,
    frontends: BTreeMap<String, u32>,
    /// Numbers of what is in the checkpoint twice.
    doubles: Vec<u32>,
    /// The facts that atoms are, for the time of a commit: later they may be others.
    atoms: HashMap<Atom, Option<u32>>,
}

impl Restored {
    fn new(checkpoint: &Checkpoint) -> (Self, BTreeSet<u32>) {
        let (mut restored, mut taken) = (Self::default(), BTreeSet::new());
        if checkpoint.version != Checkpoint::VERSION {
            return (restored, taken);
        }
        for (number, text) in (0..).zip(&checkpoint.facts) {
            restored.facts.entry(text.clone()).or_insert(number);
        }
        let fact = |at: &u32| restored.facts.get(checkpoint.facts.get(*at as usize)?).copied();
        for identity in &checkpoint.identities {
            let facts: Option<Vec<u32>> = identity.facts.iter().map(fact).collect();
            if let Some(mut facts) = facts
                && identity.number >= Identity::FIRST.0
                && taken.insert(identity.number)
            {
                facts.sort_unstable();
                restored.doubles.extend(restored.identities.insert(facts, identity.number));
            }
        }
        for frontend in &checkpoint.frontends {
            if frontend.number >= Identity::FIRST.0 && taken.insert(frontend.number) {
                let before = restored.frontends.insert(frontend.frontend.clone(), frontend.number);
                restored.doubles.extend(before);
            }
        }
        (restored, taken)
    }

    /// The number that a class had.
    pub(super) fn identity(&mut self, key: &[Atom], atoms: &Atoms) -> Option<u32> {
        if self.identities.is_empty() {
            return None;
        }
        let mut facts: Vec<u32> = Vec::with_capacity(key.len());
        for atom in key {
            let known = self.atoms.entry(*atom).or_insert_with(|| self.facts.get(&atoms.text(*atom)).copied());
            facts.push((*known)?);
        }
        facts.sort_unstable();
        self.identities.remove(&facts)
    }

    /// The number that a frontend had.
    pub(super) fn frontend(&mut self, id: &FrontId) -> Option<u32> {
        if self.frontends.is_empty() {
            return None;
        }
        self.frontends.remove(&words::frontend(id))
    }

    /// The end of a commit.
    pub(super) fn settle(&mut self) {
        self.atoms.clear();
    }
}

impl Engine {
    /// The identities in use, to be kept where the pinned maps are.
    ///
    /// To be written before the operations of the commit are done: then whatever number the maps have is in it.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let mut texts: HashMap<Atom, String> = HashMap::new();
        for (_, class) in self.classes.iter() {
            for atom in class.key.iter() {
                texts.entry(*atom).or_insert_with(|| self.atoms.text(*atom));
            }
        }
        let facts: BTreeSet<&String> = texts.values().collect();
        let index: HashMap<&String, u32> = facts.iter().copied().zip(0..).collect();
        let of = |atom: &Atom| texts.get(atom).and_then(|text| index.get(text)).copied();
        let numbered = self.classes.iter().filter_map(|(at, class)| Some((self.classes.number(at)?.0, class)));
        let mut identities: Vec<CheckpointIdentity> = numbered
            .map(|(number, class)| {
                let mut facts: Vec<u32> = class.key.iter().filter_map(of).collect();
                facts.sort_unstable();
                CheckpointIdentity { number, facts }
            })
            .collect();
        identities.sort_by_key(|identity| identity.number);
        let mut frontends: Vec<CheckpointFrontend> = self
            .fronts
            .iter()
            .map(|(_, front)| CheckpointFrontend { number: front.identity.0, frontend: words::frontend(&front.id) })
            .collect();
        frontends.sort_by_key(|frontend| frontend.number);
        let facts = facts.into_iter().cloned().collect();
        Checkpoint { version: Checkpoint::VERSION, facts, identities, frontends }
    }

    /// An engine that knows nothing yet but numbers: those of the checkpoint, which mean what they meant, and the floor, above
    /// which all others are. What in the checkpoint cannot be used is left out.
    #[must_use]
    pub fn restore(settings: Settings, checkpoint: &Checkpoint, floor: Floor) -> Self {
        let mut engine = Self::new(settings);
        let (restored, taken) = Restored::new(checkpoint);
        engine.restored = restored;
        engine.classes.numbers = Numbers::above(Identity::FIRST.0, floor.identity, &taken);
        engine.programs.number_above(floor.policy);
        engine.store.number_above(floor.row, floor.decision);
        engine.first_revision = floor.revision;
        engine
    }

    /// What the checkpoint has and nobody took, and what is below the floor, may be given to others from the next commit on.
    /// For when all objects have been told and the maps hold nothing of before.
    pub fn forget_checkpoint(&mut self) {
        let restored = std::mem::take(&mut self.restored);
        let left = restored.identities.into_values().chain(restored.frontends.into_values());
        for number in left.chain(restored.doubles) {
            self.classes.numbers.give_back(number);
        }
        self.classes.numbers.open();
        self.programs.open_numbers();
        self.store.open_numbers();
    }
}
