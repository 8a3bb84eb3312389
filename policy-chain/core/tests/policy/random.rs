//! A small generator of random numbers: fast, and the same everywhere, so that a seed tells a whole case.
//!
//! With it, random [`objects`] and [`policies`], [`flows`] that are aimed at them, [`requests`] of them, and
//! policies [`render`]ed as their authors would write them.

pub(crate) mod flows;
pub(crate) mod objects;
pub(crate) mod policies;
pub(crate) mod render;
pub(crate) mod requests;

/// splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap();
        usize::try_from(self.next() % end).unwrap()
    }

    /// A number from `least` to `most`.
    pub(crate) fn between(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// As many of these as from `least` to `most`, with repetitions.
    pub(crate) fn list<T>(&mut self, least: usize, most: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.between(least, most)).map(|_| one(self)).collect()
    }

    /// Some once in `n` times.
    pub(crate) fn maybe<T>(&mut self, n: usize, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(n).then(|| one(self))
    }
}
