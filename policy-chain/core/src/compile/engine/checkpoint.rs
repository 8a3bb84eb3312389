//! The numbers of identities across a restart.
//!
//! A checkpoint has the number of each class with what holds for its members, in words. A class of an engine that was restored
//! from it gets the number that a class with the same facts had; every other number that the checkpoint has stays unused
//! until [`Engine::forget_checkpoint`]. So an entry in a pinned map still means what it meant.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Engine;
use super::atoms::Atoms;
use super::fronts::FrontId;
use crate::compile::image::Identity;
use crate::settings::Settings;

/// Identities with their meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// What can hold, in words.
    pub facts: Vec<String>,
    /// Classes of addresses.
    pub identities: Vec<CheckpointIdentity>,
    /// Frontends of Services.
    pub frontends: Vec<CheckpointFrontend>,
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

/// What a checkpoint left to be taken.
#[derive(Debug, Default)]
pub(super) struct Restored {
    identities: BTreeMap<Vec<String>, u32>,
    frontends: BTreeMap<String, u32>,
}

impl Restored {
    pub(super) fn identity(&mut self, key: &[u32], atoms: &Atoms) -> Option<u32> {
        if self.identities.is_empty() {
            return None;
        }
        let mut facts: Vec<String> = key.iter().map(|atom| atoms.text(*atom)).collect();
        facts.sort();
        self.identities.remove(&facts)
    }

    pub(super) fn frontend(&mut self, id: &FrontId) -> Option<u32> {
        if self.frontends.is_empty() {
            return None;
        }
        self.frontends.remove(&text(id))
    }
}

fn text(id: &FrontId) -> String {
    let family = if id.v4 { "IPv4" } else { "IPv6" };
    let FrontId { service, name, protocol, port, .. } = id;
    format!("{}/{} {name:?} {protocol} {port} {family}", service.namespace, service.name)
}

impl Engine {
    /// The identities in use, to be kept where the pinned maps are.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let mut facts: BTreeMap<String, u32> = BTreeMap::new();
        let mut identities = Vec::new();
        for (index, class) in self.classes.iter() {
            let Some(Identity(number)) = self.classes.number(index) else { continue };
            let texts: Vec<String> = class.key.iter().map(|atom| self.atoms.text(*atom)).collect();
            for text in &texts {
                facts.entry(text.clone()).or_insert(0);
            }
            identities.push((number, texts));
        }
        for (number, index) in (0..).zip(facts.values_mut()) {
            *index = number;
        }
        identities.sort();
        let of = |texts: &[String]| {
            let mut list: Vec<u32> = texts.iter().filter_map(|text| facts.get(text)).copied().collect();
            list.sort_unstable();
            list
        };
        let identities =
            identities.iter().map(|(number, texts)| CheckpointIdentity { number: *number, facts: of(texts) }).collect();
        let frontends = self.fronts.iter().map(|(_, front)| (front.identity.0, text(&front.id)));
        let frontends: BTreeSet<(u32, String)> = frontends.collect();
        let frontends =
            frontends.into_iter().map(|(number, frontend)| CheckpointFrontend { number, frontend }).collect();
        Checkpoint { facts: facts.into_keys().collect(), identities, frontends }
    }

    /// An engine that knows nothing yet but the numbers of identities. What in the checkpoint cannot be used is left
    /// out; its numbers are not given to anyone else.
    #[must_use]
    pub fn restore(settings: Settings, checkpoint: &Checkpoint) -> Self {
        let mut engine = Self::new(settings);
        let mut taken: BTreeSet<u32> = BTreeSet::new();
        for identity in &checkpoint.identities {
            let texts: Option<Vec<String>> =
                identity.facts.iter().map(|at| checkpoint.facts.get(*at as usize).cloned()).collect();
            if let Some(mut texts) = texts
                && identity.number >= Identity::FIRST.0
                && taken.insert(identity.number)
            {
                texts.sort();
                engine.restored.identities.insert(texts, identity.number);
            }
        }
        for frontend in &checkpoint.frontends {
            if frontend.number >= Identity::FIRST.0 && taken.insert(frontend.number) {
                engine.restored.frontends.insert(frontend.frontend.clone(), frontend.number);
            }
        }
        if let Some(last) = taken.last() {
            engine.classes.numbers.skip_to(last.saturating_add(1));
        }
        engine
    }

    /// What the checkpoint has and nobody took may be given to others from the next commit on. For when all objects
    /// have been told and the maps hold nothing of before.
    pub fn forget_checkpoint(&mut self) {
        let restored = std::mem::take(&mut self.restored);
        for number in restored.identities.into_values().chain(restored.frontends.into_values()) {
            self.classes.numbers.give_back(number);
        }
    }
}
