//! Whether what was told is true now: of all kinds together.

use std::collections::{BTreeMap, BTreeSet};

/// What there is to tell of all kinds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// All are known.
    Synced,
    /// One cannot be read.
    Stale {
        /// Which, and why.
        why: String,
    },
}

/// What is known of the kinds. Each kind is told by a number.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// Kinds that have been told completely at least once, or that are known not to be served.
    complete: BTreeSet<usize>,
    /// Kinds whose list or watch fails, and why.
    down: BTreeMap<usize, String>,
    kinds: usize,
    told: Option<bool>,
}

impl Fresh {
    pub(crate) fn new(kinds: usize) -> Self {
        Self { kinds, ..Self::default() }
    }

    /// A kind has been told completely, or its watch goes on.
    pub(crate) fn up(&mut self, kind: usize) -> Option<Turn> {
        self.complete.insert(kind);
        self.down.remove(&kind);
        self.tell()
    }

    /// A kind cannot be read.
    pub(crate) fn down(&mut self, kind: usize, why: String) -> Option<Turn> {
        self.down.insert(kind, why);
        self.tell()
    }

    /// How many kinds cannot be read.
    pub(crate) fn failing(&self) -> usize {
        self.down.len()
    }

    fn tell(&mut self) -> Option<Turn> {
        match self.down.values().next() {
            Some(why) if self.told != Some(false) => {
                self.told = Some(false);
                Some(Turn::Stale { why: why.clone() })
            }
            None if self.told != Some(true) && self.complete.len() == self.kinds => {
                self.told = Some(true);
                Some(Turn::Synced)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_synced_once_all_kinds_are_and_stale_while_one_fails() {
        let mut fresh = Fresh::new(2);
        let stale = |why: &str| Some(Turn::Stale { why: why.to_owned() });
        assert_eq!(fresh.up(0), None);
        assert_eq!(fresh.down(1, "away".to_owned()), stale("away"));
        assert_eq!(fresh.down(1, "still".to_owned()), None);
        assert_eq!(fresh.up(1), Some(Turn::Synced));
        assert_eq!(fresh.up(0), None);
        assert_eq!(fresh.down(0, "a".to_owned()), stale("a"));
        assert_eq!(fresh.down(1, "b".to_owned()), None);
        assert_eq!(fresh.up(0), None);
        assert_eq!(fresh.failing(), 1);
        assert_eq!(fresh.up(1), Some(Turn::Synced));
    }

    #[test]
    fn a_failure_is_mended_only_when_all_kinds_are_complete() {
        let mut fresh = Fresh::new(2);
        assert!(fresh.down(0, "a".to_owned()).is_some());
        assert_eq!(fresh.up(0), None);
        assert_eq!(fresh.up(1), Some(Turn::Synced));
    }
}
