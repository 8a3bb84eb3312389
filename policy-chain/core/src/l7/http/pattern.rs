//! Regular expressions of rules, matched against a whole text.

use regex::bytes::{Regex, RegexBuilder};

use super::index::Key;

/// Longest expression.
const MAX_LENGTH: usize = 8192;
/// Most memory of a compiled expression. RE2's program of 221 instructions, which Cilium refuses (#41314), needs a tenth.
const MAX_PROGRAM: usize = 128 << 10;
/// Sizes of programs that are tried, one after the other: which of them it was is all that one can know of a program.
const SIZES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, MAX_PROGRAM];
/// Memory of the programs of one object together. An expression of 20 characters can need a thousand times its own size, and
/// an object has room for a hundred thousand of them.
const MAX_PROGRAMS: usize = 16 << 20;

/// Memory that the expressions of one object may still take. Those that were too large in vain have had their part as well:
/// it is time, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Self(MAX_PROGRAMS)
    }
}

/// Whether capitals and small letters are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    /// They are.
    Exact,
    /// They are one. Texts to be matched are in small letters already: hosts are (RFC 3986, 6.2.2.1).
    Ignored,
}

/// An expression that a whole text has to match. Takes time linear in the text's length.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// One of these texts: `GET|HEAD`.
    Texts(Box<[Box<str>]>),
    /// These texts, and anything between them: `/public/.*`, `.*\.example\.com`.
    Glob { head: Box<str>, middle: Box<[Box<str>]>, tail: Box<str> },
    /// Any other, and what all texts begin with that it matches.
    Regex { regex: Regex, head: Box<str> },
}

impl Pattern {
    /// Compiles it, within what is left.
    pub(super) fn within(expression: &str, case: Case, budget: &mut Budget) -> Result<Self, String> {
        if expression.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} characters"));
        }
        if let Some(simple) = Self::simple(expression) {
            return Ok(match case {
                Case::Exact => simple,
                Case::Ignored => simple.in_small_letters(),
            });
        }
        for size in SIZES {
            if size > budget.0 {
                return Err(format!("the expressions of this object need more than {MAX_PROGRAMS} bytes; split it"));
            }
            // Once alone, so that no parenthesis of it can close ours.
            let alone = compile(expression, case, size).map(|_| ());
            match alone.and_then(|()| compile(&format!(r"\A(?:{expression})\z"), case, size)) {
                Ok(regex) => {
                    budget.0 -= size;
                    let mut head = literal_head(expression);
                    if case == Case::Ignored {
                        head.make_ascii_lowercase();
                    }
                    return Ok(Self::Regex { regex, head: head.into() });
                }
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(error) => {
                    budget.0 = budget.0.saturating_sub(expression.len());
                    // The last line says what is wrong; those before show where, in a picture.
                    let text = error.to_string();
                    return Err(text.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned());
                }
            }
        }
        budget.0 = budget.0.saturating_sub(MAX_PROGRAM);
        Err(format!("its program is larger than {MAX_PROGRAM} bytes"))
    }

    /// Whether all of `text`, printable ASCII, matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Texts(texts) => texts.iter().any(|one| **one == *text),
            Self::Glob { head, middle, tail } => {
                let Some(mut rest) = text.strip_prefix(&**head) else { return false };
                for part in middle {
                    // The leftmost place leaves most to those that follow.
                    let Some((_, after)) = rest.split_once(&**part) else { return false };
                    rest = after;
                }
                rest.ends_with(&**tail)
            }
            Self::Regex { regex, .. } => regex.is_match(text.as_bytes()),
        }
    }

    fn in_small_letters(self) -> Self {
        let all = |texts: Box<[Box<str>]>| texts.iter().map(|text| text.to_ascii_lowercase().into()).collect();
        match self {
            Self::Texts(texts) => Self::Texts(all(texts)),
            Self::Glob { head, middle, tail } => Self::Glob {
                head: head.to_ascii_lowercase().into(),
                middle: all(middle),
                tail: tail.to_ascii_lowercase().into(),
            },
            regex @ Self::Regex { .. } => regex,
        }
    }

    /// What a text must have to match.
    pub(super) fn key(&self) -> Key<'_> {
        match self {
            Self::Texts(texts) => Key::Texts(texts),
            Self::Glob { head, .. } | Self::Regex { head, .. } => Key::Head(head),
        }
    }

    /// Most expressions of rules are texts, with a few alternatives or with `.*`: these need no automaton.
    fn simple(expression: &str) -> Option<Self> {
        // Texts that `.*` stands between; and, in `alternatives`, those that `|` does.
        let (mut parts, mut alternatives) = (Vec::new(), Vec::new());
        let mut text = String::new();
        let mut characters = expression.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' => text.push(characters.next().filter(char::is_ascii_punctuation)?),
                '|' => alternatives.push(std::mem::take(&mut text).into_boxed_str()),
                '.' => {
                    (characters.next()? == '*').then_some(())?;
                    parts.push(std::mem::take(&mut text).into_boxed_str());
                }
                '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
                _ if character.is_ascii_graphic() => text.push(character),
                _ => return None,
            }
            if matches!(characters.peek(), Some('*' | '+' | '?' | '{')) {
                return None;
            }
        }
        let text = text.into_boxed_str();
        if !parts.is_empty() {
            alternatives.is_empty().then_some(())?;
            let head = parts.remove(0);
            return Some(Self::Glob { head, middle: parts.into(), tail: text });
        }
        alternatives.push(text);
        Some(Self::Texts(alternatives.into()))
    }
}

/// What every text begins with that an expression matches. Empty where that is hard to see.
fn literal_head(expression: &str) -> String {
    let mut head = String::new();
    if alternates(expression) {
        return head;
    }
    let mut characters = expression.strip_prefix('^').unwrap_or(expression).chars().peekable();
    loop {
        let literal = match characters.next() {
            Some('\\') => characters.next().filter(char::is_ascii_punctuation),
            Some('.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' | '|') | None => None,
            Some(character) => Some(character).filter(char::is_ascii_graphic),
        };
        let Some(literal) = literal else { return head };
        match characters.peek() {
            // It may be absent.
            Some('*' | '?' | '{') => return head,
            Some('+') => {
                // Nor is it there for sure where what repeats it is repeated itself, as in `b+{0,2}`.
                characters.next();
                if !matches!(characters.peek(), Some('*' | '+' | '?' | '{')) {
                    head.push(literal);
                }
                return head;
            }
            _ => head.push(literal),
        }
    }
}

/// Whether an expression may consist of alternatives as a whole. Within parentheses they do not count; but what a class or
/// flags make of parentheses is not looked into.
fn alternates(expression: &str) -> bool {
    if !expression.contains('|') {
        return false;
    }
    if expression.contains('[') || expression.contains("(?") {
        return true;
    }
    let (mut depth, mut escaped) = (0_usize, false);
    for character in expression.chars() {
        match character {
            _ if escaped => {}
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 => return true,
            _ => {}
        }
        escaped = character == '\\' && !escaped;
    }
    false
}

/// What is matched is ASCII, so classes of ASCII mean the same as Unicode's, and are far smaller; but `\pL` exists in the
/// latter only.
pub(super) fn compile(expression: &str, case: Case, size: usize) -> Result<Regex, regex::Error> {
    let build = |unicode| {
        RegexBuilder::new(expression)
            .case_insensitive(case == Case::Ignored)
            .unicode(unicode)
            .size_limit(size)
            .dfa_size_limit(MAX_PROGRAM)
            .build()
    };
    build(false).or_else(|error| match error {
        regex::Error::CompiledTooBig(_) => Err(error),
        _ => build(true),
    })
}

#[cfg(test)]
mod tests;
