//! Regular expressions of rules, matched against a whole text.

use regex::bytes::{Regex, RegexBuilder};

/// Longest expression.
const MAX_LENGTH: usize = 8192;
/// Most memory of a compiled expression. RE2's program of 221 instructions, which Cilium refuses (#41314), needs a few KiB.
const MAX_PROGRAM: usize = 256 << 10;

/// An expression that a whole text has to match.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Compiles it.
    pub(super) fn new(expression: &str) -> Result<Self, String> {
        if expression.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} characters"));
        }
        // Once alone, so that no parenthesis of it can close ours.
        compile(expression)?;
        compile(&format!(r"\A(?:{expression})\z")).map(Self)
    }

    /// Whether all of `text`, which is ASCII, matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }
}

/// What is matched is ASCII, so classes of ASCII mean the same as Unicode's, and are far smaller; but `\pL` exists in the
/// latter only.
fn compile(expression: &str) -> Result<Regex, String> {
    let build = |unicode| {
        RegexBuilder::new(expression).unicode(unicode).size_limit(MAX_PROGRAM).dfa_size_limit(MAX_PROGRAM).build()
    };
    build(false).or_else(|_| build(true)).map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("its program is larger than {limit} bytes"),
        error => error.to_string(),
    })
}
