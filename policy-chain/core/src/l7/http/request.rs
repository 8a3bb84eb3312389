//! A request in its canonical form.

use std::borrow::Cow;

/// Version of HTTP by which a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name, in any case.
    pub name: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

/// A request as it came.
#[derive(Debug, Clone, Copy)]
pub struct RawRequest<'a> {
    /// Version.
    pub version: Version,
    /// Method.
    pub method: &'a [u8],
    /// HTTP/1: the request target. HTTP/2: `:path`, empty if there is none.
    pub target: &'a [u8],
    /// HTTP/2: `:authority`, if there is one.
    pub authority: Option<&'a [u8]>,
    /// The fields, without HTTP/2's pseudo-headers.
    pub fields: &'a [Field<'a>],
}

/// A request in the one form in which it is matched and forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    method: &'a str,
    path: Option<Cow<'a, str>>,
    authority: Option<Cow<'a, str>>,
    fields: &'a [Field<'a>],
}

/// Why a request is refused with 400: it is malformed, or can be read in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub &'static str);

impl<'a> Request<'a> {
    /// Brings a request into its canonical form.
    ///
    /// # Errors
    /// It is malformed, or has more than one reading.
    pub fn new(raw: RawRequest<'a>) -> Result<Self, BadRequest> {
        let text = |octets| str::from_utf8(octets).map_err(|_error| BadRequest("not ASCII"));
        Ok(Self {
            method: text(raw.method)?,
            path: Some(Cow::Borrowed(text(raw.target)?)),
            authority: raw.authority.map(text).transpose()?.map(Cow::Borrowed),
            fields: raw.fields,
        })
    }

    /// Method.
    #[must_use]
    pub const fn method(&self) -> &str {
        self.method
    }

    /// Path and query string; `*` for the server as a whole; none for a CONNECT.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Host, and port where the client gave one.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// The values of the fields of this name, without white space around them.
    pub fn values<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'a [u8]> + use<'r, 'a> {
        self.fields
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|field| field.value.trim_ascii())
    }
}

/// Whether it is a token (RFC 9110, 5.6.2), as methods and field names are.
pub(super) fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet))
}
