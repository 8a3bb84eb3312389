//! What policyd has told: which pod an endpoint is, and what a decision means.

use std::collections::HashMap;
use std::sync::Arc;

use sluice_contract::proxy::{self as plain, Snapshot, Update};
use sluice_daemon::log::ErrorChain;
use sluice_policy_core::cluster::PodKey;
use sluice_policy_core::model::cilium::Application;

use super::{Lists, Looks, Outcome, RuleList, Rules, plain as read};

/// All that policyd has told, ready to be asked. A clone shares all but the tables themselves.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    lists: HashMap<u32, Arc<RuleList>>,
    decisions: HashMap<u32, Arc<Meaning>>,
    endpoints: HashMap<u32, PodKey>,
}

/// What a decision means.
#[derive(Debug)]
struct Meaning {
    lists: Lists,
    otherwise: Outcome,
    looks: Looks,
    audit: Option<Box<Self>>,
}

impl Table {
    /// A table of everything.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let mut table = Self::default();
        table.apply(&snapshot.full());
        table
    }

    /// Takes a whole update in. Gives how many parts of it cannot be used: flows that need them are refused.
    pub(super) fn apply(&mut self, update: &Update) -> usize {
        let mut faults = 0;
        if update.full {
            // What is told again is as it was: expressions that are compiled stay.
            self.decisions.clear();
            self.endpoints.clear();
        }
        let mut told = HashMap::with_capacity(update.lists.len());
        for (number, list) in &update.lists {
            let Some(list) = list else {
                self.lists.remove(number);
                continue;
            };
            match read::list(list) {
                Ok(list) => {
                    told.insert(*number, Arc::new(list));
                }
                Err(error) => {
                    faults += 1;
                    self.lists.remove(number);
                    tracing::error!(rule = list.rule, error = %ErrorChain(&error), "rules from policyd cannot be used");
                }
            }
        }
        if update.full {
            self.lists = told;
        } else {
            self.lists.extend(told);
        }
        for (number, decision) in &update.decisions {
            let meaning = decision.as_ref().map(|decision| self.meaning(decision));
            match meaning {
                Some(Some(meaning)) => {
                    self.decisions.insert(*number, Arc::new(meaning));
                }
                unusable => {
                    if unusable.is_some() {
                        faults += 1;
                        tracing::error!(decision = number, "a decision names rules that are not known");
                    }
                    self.decisions.remove(number);
                }
            }
        }
        for (number, pod) in &update.endpoints {
            match pod {
                Some(pod) => {
                    let key = PodKey { namespace: pod.namespace.as_str().into(), name: pod.name.as_str().into() };
                    self.endpoints.insert(*number, key);
                }
                None => {
                    self.endpoints.remove(number);
                }
            }
        }
        faults
    }

    /// What a decision means; none if it names a list that is not known.
    fn meaning(&self, decision: &plain::Decision) -> Option<Meaning> {
        let mut meaning = self.verdict(&decision.verdict)?;
        if let Some(audit) = &decision.audit {
            let audit = self.verdict(audit)?;
            // A dry run has to see what it judges.
            meaning.looks = meaning.looks.and(audit.looks);
            meaning.audit = Some(Box::new(audit));
        }
        Some(meaning)
    }

    fn verdict(&self, verdict: &plain::Verdict) -> Option<Meaning> {
        let lists = verdict.lists.iter().map(|number| self.lists.get(number).map(Arc::clone));
        let lists = lists.collect::<Option<Lists>>()?;
        let see = verdict.see.map_or(Looks::Nothing, read::looks);
        let looks = lists.iter().fold(see, |looks, list| looks.and(Looks::of(&list.application)));
        debug_assert!(lists.iter().all(|list| list.application != Application::None), "nobody tells such a list");
        let otherwise = Outcome { passes: verdict.passes, reason: verdict.reason.as_str().into() };
        Some(Meaning { lists, otherwise, looks, audit: None })
    }

    /// The pod of an endpoint.
    pub(super) fn pod(&self, endpoint: u32) -> Option<&PodKey> {
        self.endpoints.get(&endpoint)
    }

    /// What a decision means for a pod.
    pub(super) fn rules(&self, pod: &PodKey, decision: u32) -> Option<Rules> {
        self.decisions.get(&decision).map(|meaning| meaning.rules(pod))
    }

    /// Numbers of what is known: lists, decisions, endpoints.
    pub(super) fn sizes(&self) -> [usize; 3] {
        [self.lists.len(), self.decisions.len(), self.endpoints.len()]
    }
}

impl Meaning {
    fn rules(&self, pod: &PodKey) -> Rules {
        Rules {
            pod: pod.clone(),
            lists: self.lists.clone(),
            otherwise: self.otherwise.clone(),
            audit: self.audit.as_ref().map(|audit| Arc::new(audit.rules(pod))),
            looks: self.looks,
        }
    }
}
