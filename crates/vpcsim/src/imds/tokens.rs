//! Tokens that were issued and have not run out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sluice_contract::id::InstanceId;

use crate::model::random::Random;

/// Tokens that are kept; the oldest go first, and their holders ask for new ones.
const MOST_TOKENS: usize = 10_000;

#[derive(Debug)]
pub(super) struct Tokens {
    random: Random,
    valid: BTreeMap<String, (InstanceId, Duration)>,
    order: VecDeque<String>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { random: Random::new(0x0001_d5d5), valid: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl Tokens {
    /// A token for an instance. In AWS's form; nothing here needs it to be hard to guess.
    pub(super) fn issue(&mut self, instance: &InstanceId, until: Duration, now: Duration) -> String {
        let token = format!("AQAEA{:016x}{:016x}{:08x}==", self.random.draw(), self.random.draw(), now.as_millis());
        if self.order.len() >= MOST_TOKENS
            && let Some(oldest) = self.order.pop_front()
        {
            self.valid.remove(&oldest);
        }
        self.valid.insert(token.clone(), (instance.clone(), until));
        self.order.push_back(token.clone());
        token
    }

    /// Whether a token was issued to the instance and has not run out.
    pub(super) fn holds(&self, instance: &InstanceId, token: &str, now: Duration) -> bool {
        self.valid.get(token).is_some_and(|(owner, until)| owner == instance && now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_instances_and_runs_out() {
        let (one, other) = ("i-0123456789abcdef0".parse().unwrap(), "i-0123456789abcdef1".parse().unwrap());
        let mut tokens = Tokens::default();
        let token = tokens.issue(&one, Duration::from_secs(5), Duration::ZERO);
        assert!(tokens.holds(&one, &token, Duration::from_secs(4)));
        assert!(!tokens.holds(&other, &token, Duration::from_secs(4)));
        assert!(!tokens.holds(&one, &token, Duration::from_secs(5)));
        for _ in 0..MOST_TOKENS {
            tokens.issue(&other, Duration::from_secs(9), Duration::ZERO);
        }
        assert!(!tokens.holds(&one, &token, Duration::ZERO));
    }
}
