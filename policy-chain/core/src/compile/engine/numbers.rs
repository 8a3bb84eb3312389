//! Numbers that are given out and come back.

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;

/// Numbers that are given out and come back. What comes back is given out again after a commit at the earliest, and what
/// came back first is given out first.
#[derive(Debug)]
pub(in crate::compile) struct Numbers {
    next: u32,
    free: VecDeque<u32>,
    freed: Vec<u32>,
    /// What `next` was when the commit began.
    first: u32,
    /// Lower numbers that were given out since.
    again: BTreeSet<u32>,
    /// Numbers below `next` that nobody has and that may be given out, ascending.
    spare: VecDeque<RangeInclusive<u32>>,
    /// Numbers below `next` that what is older than this process may have.
    reserved: VecDeque<RangeInclusive<u32>>,
}

impl Numbers {
    pub(in crate::compile) const fn from(first: u32) -> Self {
        Self {
            next: first,
            free: VecDeque::new(),
            freed: Vec::new(),
            first,
            again: BTreeSet::new(),
            spare: VecDeque::new(),
            reserved: VecDeque::new(),
        }
    }

    /// From `first` on, but nothing up to `floor`, which may be in use by what is older than this process, and nothing that
    /// is `taken`. What is up to `floor` and not taken waits for [`Self::open`].
    pub(in crate::compile) fn above(first: u32, floor: u32, taken: &BTreeSet<u32>) -> Self {
        let mut numbers = Self::from(first);
        let last = taken.last().copied().unwrap_or_default().max(floor);
        if last < first {
            return numbers;
        }
        let mut from = Some(first);
        for number in taken.range(first..) {
            if let Some(from) = from
                && from < *number
            {
                numbers.reserved.push_back(from..=*number - 1);
            }
            from = number.checked_add(1);
        }
        if let Some(from) = from.filter(|from| *from <= last) {
            numbers.reserved.push_back(from..=last);
        }
        numbers.next = last.saturating_add(1);
        numbers.first = numbers.next;
        numbers
    }

    pub(in crate::compile) fn take(&mut self) -> u32 {
        if let Some(number) = self.free.pop_front().or_else(|| first_of(&mut self.spare)) {
            self.again.insert(number);
            return number;
        }
        // The last number is never given out: it would be given out twice.
        if self.next == u32::MAX
            && let Some(number) = first_of(&mut self.reserved)
        {
            self.again.insert(number);
            return number;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        number
    }

    pub(in crate::compile) fn give_back(&mut self, number: u32) {
        self.freed.push(number);
    }

    /// Whether a number was given out since the commit began.
    pub(in crate::compile) fn is_new(&self, number: u32) -> bool {
        number >= self.first || self.again.contains(&number)
    }

    /// What came back since the commit began.
    pub(in crate::compile) fn gone(&self) -> BTreeSet<u32> {
        self.freed.iter().copied().collect()
    }

    /// The end of a commit.
    pub(in crate::compile) fn settle(&mut self) {
        self.first = self.next;
        self.again.clear();
        self.freed.sort_unstable();
        self.free.extend(self.freed.drain(..));
    }

    /// Nothing that is older than this process is in use any more.
    pub(in crate::compile) fn open(&mut self) {
        self.spare.append(&mut self.reserved);
    }
}

fn first_of(ranges: &mut VecDeque<RangeInclusive<u32>>) -> Option<u32> {
    while let Some(range) = ranges.front_mut() {
        if let Some(number) = range.next() {
            return Some(number);
        }
        ranges.pop_front();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(numbers: &mut Numbers, count: usize) -> Vec<u32> {
        (0..count).map(|_| numbers.take()).collect()
    }

    #[test]
    fn what_comes_back_is_given_out_after_a_commit() {
        let mut numbers = Numbers::from(1);
        assert_eq!(taken(&mut numbers, 3), [1, 2, 3]);
        numbers.give_back(2);
        numbers.give_back(1);
        assert_eq!(numbers.take(), 4);
        numbers.settle();
        assert_eq!(taken(&mut numbers, 3), [1, 2, 5]);
    }

    #[test]
    fn nothing_up_to_the_floor_is_given_out_before_it_is_opened() {
        let mut numbers = Numbers::above(256, 260, &BTreeSet::from([257, 262]));
        assert_eq!(taken(&mut numbers, 2), [263, 264]);
        numbers.open();
        // All that is below, but for what was taken.
        assert_eq!(taken(&mut numbers, 6), [256, 258, 259, 260, 261, 265]);
    }

    #[test]
    fn a_floor_below_the_first_changes_nothing() {
        let mut numbers = Numbers::above(256, 7, &BTreeSet::new());
        numbers.open();
        assert_eq!(taken(&mut numbers, 2), [256, 257]);
    }

    #[test]
    fn numbers_that_run_out_go_on_below_the_floor_and_none_is_given_twice() {
        let mut numbers = Numbers::above(1, u32::MAX - 2, &BTreeSet::from([2]));
        assert_eq!(taken(&mut numbers, 4), [u32::MAX - 1, 1, 3, 4]);
        let mut numbers = Numbers::above(1, u32::MAX, &BTreeSet::new());
        assert_eq!(taken(&mut numbers, 2), [1, 2]);
    }
}
