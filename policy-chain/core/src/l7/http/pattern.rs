//! Regular expressions of rules, matched against a whole text.

use regex::bytes::{Regex, RegexBuilder};

/// Longest expression.
const MAX_LENGTH: usize = 8192;
/// Most memory of a compiled expression. RE2's program of 221 instructions, which Cilium refuses (#41314), needs a tenth.
const MAX_PROGRAM: usize = 128 << 10;

/// An expression that a whole text has to match. Takes time linear in the text's length.
#[derive(Debug, Clone)]
pub(super) enum Pattern {
    /// One of these texts: `GET|HEAD`.
    Texts(Box<[Box<str>]>),
    /// These texts, and anything between them: `/public/.*`, `.*\.example\.com`.
    Glob { head: Box<str>, middle: Box<[Box<str>]>, tail: Box<str> },
    /// Any other.
    Regex(Regex),
}

impl Pattern {
    /// Compiles it.
    pub(super) fn new(expression: &str) -> Result<Self, String> {
        if expression.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} characters"));
        }
        if let Some(simple) = Self::simple(expression) {
            return Ok(simple);
        }
        // Once alone, so that no parenthesis of it can close ours.
        compile(expression)?;
        compile(&format!(r"\A(?:{expression})\z")).map(Self::Regex)
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
            Self::Regex(regex) => regex.is_match(text.as_bytes()),
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

/// What is matched is ASCII, so classes of ASCII mean the same as Unicode's, and are far smaller; but `\pL` exists in the
/// latter only.
pub(super) fn compile(expression: &str) -> Result<Regex, String> {
    let build = |unicode| {
        RegexBuilder::new(expression).unicode(unicode).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).build()
    };
    build(false).or_else(|_| build(true)).map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("its program is larger than {limit} bytes"),
        // The last line says what is wrong; those before show where, in a picture.
        error => error.to_string().lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

#[cfg(test)]
mod tests;
