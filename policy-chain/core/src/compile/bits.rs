//! A set of small numbers.

/// Numbers below a bound, one bit each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

/// Word and bit of a number.
const fn place(number: usize) -> (usize, u64) {
    (number / 64, 1 << (number % 64))
}

impl Bits {
    /// How many words a set of numbers below `bound` has; one at the least.
    pub(super) const fn words(bound: usize) -> usize {
        if bound == 0 { 1 } else { bound.div_ceil(64) }
    }

    /// No number, of those below `bound`.
    pub(super) fn none(bound: usize) -> Self {
        Self(vec![0; Self::words(bound)])
    }

    /// Adds a number; one that is not below the bound is ignored.
    pub(super) fn insert(&mut self, number: usize) {
        let (word, bit) = place(number);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Adds a number that is not there, or removes one that is; whether it is there now. One that is not below the bound is
    /// ignored.
    pub(super) fn toggle(&mut self, number: usize) -> bool {
        let (word, bit) = place(number);
        self.0.get_mut(word).is_some_and(|word| {
            *word ^= bit;
            *word & bit != 0
        })
    }

    /// Becomes `other` without what is not in `mask`.
    pub(super) fn assign_masked(&mut self, other: &Self, mask: &Self) {
        for ((word, other), mask) in self.0.iter_mut().zip(&other.0).zip(&mask.0) {
            *word = other & mask;
        }
    }

    /// The numbers from `first` up to, not including, `end`, ascending.
    pub(super) fn range(&self, first: usize, end: usize) -> impl Iterator<Item = usize> {
        let words = self.0.iter().enumerate().take(end.div_ceil(64)).skip(first / 64);
        words.flat_map(move |(index, &word)| {
            let mut rest = word;
            if index == first / 64 {
                rest &= u64::MAX << (first % 64);
            }
            if index == end / 64 {
                rest &= (1 << (end % 64)) - 1;
            }
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    index * 64 + bit
                })
            })
        })
    }
}
