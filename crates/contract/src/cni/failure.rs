//! What a runtime is told when something fails.

use std::error::Error;
use std::fmt;

use super::{ConfError, ErrorCode, ErrorObject, InvocationError, SpecVersion};
use crate::rpc::Refusal;

/// A failure with the code that it has on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Found here.
    Own {
        /// The code.
        code: ErrorCode,
        /// All causes, outermost first.
        message: String,
    },
    /// A daemon's refusal.
    Refused(Refusal),
}

impl Failure {
    /// A failure with a code and a text.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Own { code, message: message.into() }
    }

    /// `error` and all that caused it.
    #[must_use]
    pub fn of(code: ErrorCode, error: &dyn Error) -> Self {
        Self::Own { code, message: chain(error) }
    }

    /// The object for standard output.
    #[must_use]
    pub fn object(&self, version: SpecVersion) -> ErrorObject {
        match self {
            Self::Own { code, message } => ErrorObject::new(version, *code, message.as_str()),
            Self::Refused(refusal) => ErrorObject::of_refusal(version, refusal),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { message, .. } => f.write_str(message),
            Self::Refused(refusal) => write!(f, "{} ({})", refusal.message, refusal.code),
        }
    }
}

impl From<ConfError> for Failure {
    fn from(error: ConfError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<InvocationError> for Failure {
    fn from(error: InvocationError) -> Self {
        Self::of(ErrorCode::InvalidEnvironment, &error)
    }
}

/// `error: its cause: the cause of that`. A cause whose words are there already, because an error of elsewhere has those of its causes
/// in its own, is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{NetConf, Verb};

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Level {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn a_cause_that_has_been_told_is_not_told_again() {
        let level = |text, source: Option<Level>| Level { text, source: source.map(Box::new) };
        let whole = level("cannot start", Some(level("no file: not found", Some(level("not found", None)))));
        assert_eq!(chain(&whole), "cannot start: no file: not found");
        let plain = level("cannot start", Some(level("no file", Some(level("not found", None)))));
        assert_eq!(chain(&plain), "cannot start: no file: not found");
    }

    #[test]
    fn each_cause_is_told_once() {
        let error = NetConf::parse(Verb::Add, br#"{"name":"n","type":"t"}"#).unwrap_err();
        assert_eq!(
            Failure::from(error).to_string(),
            "cniVersion cannot be used: CNI version \"0.1.0\" is not supported; this plugin speaks 0.3.0, 0.3.1, 0.4.0, \
             1.0.0, 1.1.0"
        );
    }
}
