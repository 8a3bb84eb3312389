//! Answers of the proxy itself.

use std::borrow::Cow;

use sluice_policy_core::l7::http::Unjudged;

use super::head::put_number;

/// An answer of the proxy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status.
    pub(super) status: u16,
    /// What is wrong, for people.
    pub(super) why: &'static str,
    /// Where the client is sent, as a path.
    pub(super) elsewhere: Option<Box<str>>,
}

/// What Cilium's proxy says to a request that policy refuses, to the octet.
pub(super) const DENIED: Answer = Answer::new(403, "Access denied");

/// Whether the connection is kept after an answer, and how that is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// It is, as HTTP/1.1 has it.
    Yes,
    /// It is, and HTTP/1.0 has to be told.
    Told,
    /// It is not.
    No,
}

impl Answer {
    pub(super) const fn new(status: u16, why: &'static str) -> Self {
        Self { status, why, elsewhere: None }
    }

    /// Why the request was not judged, for its record.
    pub(super) fn reason(&self) -> Cow<'static, str> {
        match &self.elsewhere {
            Some(elsewhere) => format!("{}: {elsewhere}", self.why).into(),
            None => self.why.into(),
        }
    }

    /// Appends it. A response to HEAD has no content.
    pub(super) fn put(&self, out: &mut Vec<u8>, kept: Kept, is_head: bool) {
        out.extend_from_slice(b"HTTP/1.1 ");
        put_number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(phrase(self.status));
        out.extend_from_slice(b"\r\ncontent-length: ");
        put_number(out, self.why.len() as u64 + 2);
        out.extend_from_slice(b"\r\ncontent-type: text/plain\r\n");
        if let Some(elsewhere) = &self.elsewhere {
            out.extend_from_slice(b"location: ");
            out.extend_from_slice(elsewhere.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(match kept {
            Kept::Yes => b"",
            Kept::Told => b"connection: keep-alive\r\n",
            Kept::No => b"connection: close\r\n",
        });
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(self.why.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl From<Unjudged> for Answer {
    fn from(unjudged: Unjudged) -> Self {
        match unjudged {
            Unjudged::Bad(bad) => Self::new(400, bad.reason()),
            Unjudged::Moved(path) => Self {
                elsewhere: Some(path.into()),
                ..Self::new(307, "the path has an escaped slash or backslash, and is to be asked for without")
            },
        }
    }
}

/// The reason phrase (RFC 9110, 15; RFC 6585).
const fn phrase(status: u16) -> &'static [u8] {
    match status {
        307 => b"Temporary Redirect",
        400 => b"Bad Request",
        403 => b"Forbidden",
        408 => b"Request Timeout",
        414 => b"URI Too Long",
        431 => b"Request Header Fields Too Large",
        502 => b"Bad Gateway",
        504 => b"Gateway Timeout",
        _ => b"Error",
    }
}
