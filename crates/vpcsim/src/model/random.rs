//! Randomness from a seed, so that a run can be repeated.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014). Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u32) -> u32 {
        let scaled = (self.draw() >> 32).wrapping_mul(u64::from(end)) >> 32;
        u32::try_from(scaled).unwrap_or(0)
    }

    /// Whether something that happens in `of_million` of a million cases happens now.
    pub fn happens(&mut self, of_million: u32) -> bool {
        self.below(1_000_000) < of_million
    }

    /// A duration between the two, evenly spread.
    pub fn between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        let span = longest.saturating_sub(shortest).as_micros();
        let span = u32::try_from(span).unwrap_or(u32::MAX);
        shortest.saturating_add(Duration::from_micros(u64::from(self.below(span.saturating_add(1)))))
    }
}
