//! Pauses between attempts: decorrelated jitter, so that the nodes of a cluster do not come back all at once.

use std::time::Duration;

/// A source of numbers that need not be hard to guess (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Numbers that follow from a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `most`; 0 below 0.
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(most).unwrap_or_default()
    }

    /// A time between two times.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u64::MAX);
        least + Duration::from_millis(self.below(span.saturating_add(1)))
    }
}

/// A number for texts: FNV-1a.
#[must_use]
pub fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

/// The pauses of one kind of attempt.
#[derive(Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    last: Duration,
    dice: Dice,
}

impl Backoff {
    /// Pauses between the shortest and the longest one.
    #[must_use]
    pub const fn new(least: Duration, most: Duration, dice: Dice) -> Self {
        Self { least, most, last: least, dice }
    }

    /// The next pause: up to three times the last one, and never less than the server asks for, to which it adds a part
    /// by chance.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let upper = self.last.saturating_mul(3).min(self.most);
        self.last = self.dice.between(self.least, upper.max(self.least));
        match asked {
            Some(asked) => {
                let asked = asked.min(self.most.saturating_mul(2));
                asked + self.dice.between(Duration::ZERO, (asked / 4).max(self.least))
            }
            None => self.last,
        }
    }

    /// It went well.
    pub const fn reset(&mut self) {
        self.last = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(least, most, Dice::new(7));
        assert!(backoff.next(None) <= least * 3);
        let pauses: Vec<Duration> = (0..200).map(|_| backoff.next(None)).collect();
        assert!(pauses.iter().all(|pause| (least..=most).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause > most / 2));
        backoff.reset();
        assert!(backoff.next(None) <= least * 3);
    }

    #[test]
    fn what_the_server_asks_for_is_kept_within_bounds() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10), Dice::new(7));
        let pause = backoff.next(Some(Duration::from_secs(8)));
        assert!((Duration::from_secs(8)..=Duration::from_secs(10)).contains(&pause), "{pause:?}");
        assert!(backoff.next(Some(Duration::from_secs(86_400))) <= Duration::from_secs(25));
    }

    #[test]
    fn nodes_differ() {
        assert_ne!(hash(&["node-a", "x"]), hash(&["node-b", "x"]));
        assert_ne!(hash(&["a", "b"]), hash(&["ab", ""]));
    }
}
