//! What came of an input, without what is only its own.

use std::fmt::{Debug, Display};

/// What came of an input. Two inputs of one shape have shown the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shape(u64);

impl Shape {
    /// The shape of an outcome as its `Debug` tells it: names of types, variants and fields count; numbers count by their
    /// length, and of what stands in quotes that it is there. Lists count by their first elements.
    #[must_use]
    pub fn of(outcome: &impl Debug) -> Self {
        Self::of_text(&format!("{outcome:?}"))
    }

    /// The shape of an error by its words: what it says counts, but for its numbers and for what it quotes.
    #[must_use]
    pub fn said(error: &impl Display) -> Self {
        Self::of_text(&error.to_string())
    }

    /// This, and then others.
    #[must_use]
    pub fn and(self, others: impl IntoIterator<Item = Self>) -> Self {
        std::iter::once(self).chain(others).collect()
    }

    fn of_text(text: &str) -> Self {
        let mut shape = Vec::with_capacity(text.len().min(LONGEST));
        let mut characters = text.chars();
        let mut number = false;
        while let Some(character) = characters.next() {
            let is_digit = character.is_ascii_digit();
            if is_digit && number {
                continue;
            }
            number = is_digit;
            match character {
                '"' => {
                    shape.push(b'"');
                    quoted(&mut characters);
                }
                _ if is_digit => shape.push(b'0'),
                other => shape.extend(other.to_string().bytes()),
            }
            if shape.len() >= LONGEST {
                break;
            }
        }
        Self(hash(&shape))
    }
}

/// The shape of several things that happened, in their order.
impl FromIterator<Self> for Shape {
    fn from_iter<I: IntoIterator<Item = Self>>(shapes: I) -> Self {
        Self(hash(&shapes.into_iter().flat_map(|shape| shape.0.to_le_bytes()).collect::<Vec<_>>()))
    }
}

/// So much of an outcome is looked at.
const LONGEST: usize = 512;

/// Passes over the rest of a quoted text.
fn quoted(characters: &mut std::str::Chars<'_>) {
    while let Some(character) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '"' => return,
            _ => {}
        }
    }
}

/// FNV-1a.
pub(crate) fn hash(octets: &[u8]) -> u64 {
    octets.iter().fold(0xcbf2_9ce4_8422_2325, |hash, octet| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3))
}
