//! Changes to inputs, that a seed chooses.

use std::ops::Range;

use crate::random::Random;
use crate::{Grammar, LONGEST_INPUT, MOST_KEPT};

/// Numbers that are an end or a beginning.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "2",
    "7",
    "8",
    "15",
    "16",
    "17",
    "31",
    "32",
    "33",
    "63",
    "64",
    "127",
    "128",
    "129",
    "255",
    "256",
    "1000",
    "1024",
    "4095",
    "4096",
    "32767",
    "32768",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "0.5",
    "00",
    "+1",
    "0x10",
    "007",
];

/// Text that readers differ about.
const ODD: &[&str] = &[
    "",
    " ",
    "\t",
    "\r\n",
    "\n",
    "\r",
    "\0",
    "\u{feff}",
    "\u{85}",
    "\u{2028}",
    "\u{202e}",
    "\u{1f600}",
    "e\u{301}",
    "%",
    "%00",
    "%2e",
    "%2F",
    "..",
    "/",
    "//",
    "\\",
    "'",
    "\"",
    "`",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    "&",
    ";",
    ",",
    ":",
    "=",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "NaN",
    "0.0.0.0",
    "255.255.255.255",
    "10.0.0.1/33",
    "::",
    "::ffff:1.2.3.4",
    "fe80::1%1",
    "é",
];

/// What inputs are made of.
#[derive(Debug)]
pub(crate) struct Pool {
    seeds: usize,
    inputs: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

impl Pool {
    pub(crate) fn new(seeds: &[Vec<u8>], words: &[&str]) -> Self {
        let words = words.iter().chain(ODD).chain(NUMBERS).map(|word| word.as_bytes().to_vec()).collect();
        Self { seeds: seeds.len(), inputs: seeds.to_vec(), words }
    }

    /// Keeps an input; in place of another, when there are many.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.inputs.len() < self.seeds + MOST_KEPT {
            self.inputs.push(input);
        } else {
            let at = self.seeds + usize::from(input.first().copied().unwrap_or(0)) * 16 + input.len() % 16;
            if let Some(place) = self.inputs.get_mut(at) {
                *place = input;
            }
        }
    }

    /// A new input.
    pub(crate) fn input(&self, grammar: Grammar, random: &mut Random) -> Vec<u8> {
        let mut input = random.pick(&self.inputs).cloned().unwrap_or_default();
        for _ in 0..*random.pick(&[1, 1, 1, 2, 2, 3, 4, 6, 10]).unwrap_or(&1) {
            match grammar {
                Grammar::Text if !random.one_in(4) => self.change_text(&mut input, random),
                Grammar::Octets if random.one_in(3) => change_length(&mut input, random),
                _ => self.change_octets(&mut input, random),
            }
            input.truncate(LONGEST_INPUT);
        }
        input
    }

    fn word(&self, random: &mut Random) -> Vec<u8> {
        random.pick(&self.words).cloned().unwrap_or_default()
    }

    fn change_octets(&self, input: &mut Vec<u8>, random: &mut Random) {
        let range = range(input.len(), random);
        match random.below(9) {
            0 => {
                if let Some(octet) = input.get_mut(range.start) {
                    *octet ^= 1 << random.below(8);
                }
            }
            1 => {
                if let Some(octet) = input.get_mut(range.start) {
                    *octet = *random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'\n', b' ', b'0']).unwrap_or(&0);
                }
            }
            2 => drop(input.drain(range)),
            3 => input.truncate(range.start),
            4 => {
                let word = self.word(random);
                input.splice(range.start..range.start, word);
            }
            5 => {
                let word = self.word(random);
                input.splice(range, word);
            }
            6 => repeat(input, range, random),
            7 => {
                let other = random.pick(&self.inputs).cloned().unwrap_or_default();
                let from = other.get(random.below(other.len() + 1)..).unwrap_or_default().to_vec();
                input.splice(range.start.., from);
            }
            _ => {
                let octets: Vec<u8> = (0..random.below(16)).map(|_| random.next().to_le_bytes()[0]).collect();
                input.splice(range, octets);
            }
        }
    }

    /// Changes words and what stands between them.
    fn change_text(&self, input: &mut Vec<u8>, random: &mut Random) {
        let words = words(input);
        let Some(one) = random.pick(&words).cloned() else {
            *input = self.word(random);
            return;
        };
        let is_number = input.get(one.clone()).is_some_and(|word| word.iter().all(u8::is_ascii_digit));
        if is_number && !random.one_in(3) {
            let number = random.pick(NUMBERS).map(|number| number.as_bytes().to_vec()).unwrap_or_default();
            input.splice(one, number);
            return;
        }
        match random.below(8) {
            0 => drop(input.drain(one)),
            1 => {
                let word = self.word(random);
                input.splice(one, word);
            }
            2 => {
                let word = self.word(random);
                input.splice(one.end..one.end, word);
            }
            3 => {
                // A word of another input, or of this one.
                let other = random.pick(&self.inputs).cloned().unwrap_or_default();
                let theirs = self::words(&other);
                let word = random.pick(&theirs).and_then(|range| other.get(range.clone())).unwrap_or_default().to_vec();
                input.splice(one, word);
            }
            4 => {
                let other = random.pick(&words).cloned().unwrap_or(0..0);
                let run = one.start.min(other.start)..one.end.max(other.end);
                repeat(input, run, random);
            }
            5 => {
                let other = random.pick(&words).cloned().unwrap_or(0..0);
                drop(input.drain(one.start.min(other.start)..one.end.max(other.end)));
            }
            6 => {
                // A run of words of another input.
                let other = random.pick(&self.inputs).cloned().unwrap_or_default();
                let theirs = self::words(&other);
                if let (Some(a), Some(b)) = (random.pick(&theirs), random.pick(&theirs)) {
                    let run = other.get(a.start.min(b.start)..a.end.max(b.end)).unwrap_or_default().to_vec();
                    input.splice(one, run);
                }
            }
            _ => {
                // Another spelling of the word.
                for octet in input.get_mut(one).unwrap_or_default() {
                    if random.one_in(2) {
                        *octet = if octet.is_ascii_lowercase() {
                            octet.to_ascii_uppercase()
                        } else {
                            octet.to_ascii_lowercase()
                        };
                    }
                }
            }
        }
    }
}

/// Words, and the punctuation between them one by one.
fn words(input: &[u8]) -> Vec<Range<usize>> {
    let is_inner = |octet: u8| octet.is_ascii_alphanumeric() || octet >= 0x80 || b"_-.".contains(&octet);
    let mut words: Vec<Range<usize>> = Vec::new();
    let mut open = false;
    for (at, octet) in input.iter().enumerate() {
        match words.last_mut() {
            Some(last) if open && is_inner(*octet) => last.end = at + 1,
            _ => words.push(at..at + 1),
        }
        open = is_inner(*octet);
    }
    words
}

fn range(length: usize, random: &mut Random) -> Range<usize> {
    let start = random.below(length + 1);
    let longest = *random.pick(&[1, 1, 2, 4, 16, 256]).unwrap_or(&1);
    start..(start + random.below(longest) + 1).min(length).max(start)
}

/// Repeats a part: a few times, or very often.
fn repeat(input: &mut Vec<u8>, range: Range<usize>, random: &mut Random) {
    let part = input.get(range.clone()).unwrap_or_default().to_vec();
    let most = *random.pick(&[1, 2, 3, 10, 40, 500, 5000]).unwrap_or(&1);
    let times = (random.below(most) + 1).min(LONGEST_INPUT / part.len().max(1));
    input.splice(range.end..range.end, part.repeat(times));
}

/// Changes a number of one, two or three octets: most are lengths of what follows.
fn change_length(input: &mut [u8], random: &mut Random) {
    let width = 1 + random.below(3);
    let at = random.below(input.len());
    let left = input.len().saturating_sub(at + width);
    let Some(place) = input.get_mut(at..at + width) else { return };
    let was = place.iter().fold(0usize, |number, octet| number << 8 | usize::from(*octet));
    let now = match random.below(7) {
        0 => was.wrapping_add(1),
        1 => was.wrapping_sub(1),
        2 => left,
        3 => left.wrapping_add(1),
        4 => 0,
        5 => usize::MAX,
        _ => random.below(left + 2),
    };
    for (octet, new) in place.iter_mut().rev().zip(now.to_le_bytes()) {
        *octet = new;
    }
}
