//! A request in its canonical form.

use std::borrow::Cow;

use super::class::Class;
use super::{authority, path};

/// Longest method.
const MAX_METHOD: usize = 64;
/// Longest target.
const MAX_TARGET: usize = 32 << 10;
/// Most fields.
const MAX_FIELDS: usize = 512;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
///
/// It borrows from the request as it came, and only what had to be changed is new. To forward it: [`Self::method`],
/// [`Self::target`], a Host (or `:authority`) of [`Self::authority`], and [`Self::fields`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    method: &'a str,
    path: Option<Cow<'a, str>>,
    authority: Option<Cow<'a, str>>,
    fields: &'a [Field<'a>],
}

/// Why a request is refused with 400: it is malformed, or can be read in more than one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad request: {0}")]
pub struct BadRequest(pub(super) &'static str);

impl BadRequest {
    /// What is wrong.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.0
    }
}

/// Why a request is answered before it is judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unjudged {
    /// It is refused.
    #[error(transparent)]
    Bad(#[from] BadRequest),
    /// Its path has escaped slashes: the client is sent to where slashes stand in their place, with 307.
    #[error("the path has an escaped slash or backslash: it is to be asked for as {0}")]
    Moved(String),
}

impl<'a> Request<'a> {
    /// Brings a request into its canonical form.
    ///
    /// # Errors
    /// It is malformed, has more than one reading, or is to be asked for elsewhere.
    pub fn new(raw: RawRequest<'a>) -> Result<Self, Unjudged> {
        let method = method(raw.method)?;
        let host = fields(raw.version, raw.fields)?;
        let target = target(method, &raw)?;
        let named = match raw.version {
            Version::Http10 | Version::Http11 => {
                if raw.version == Version::Http11 && host.is_none() {
                    return Err(BadRequest("there is no Host").into());
                }
                target.authority
            }
            Version::Http2 => raw.authority.map(ascii).transpose()?,
        };
        // RFC 9112, 3.2.2, lets the target win over Host and RFC 9113, 8.3.1, `:authority`; but not every server knows.
        let named = named.map(authority::canonical).transpose()?;
        let host = host.map(authority::canonical).transpose()?;
        let authority = match (named, host) {
            (Some(named), Some(host)) if named != host => {
                return Err(BadRequest("two different hosts are named").into());
            }
            (named, host) => named.or(host),
        };
        if target.path.is_none() && !authority.as_deref().is_some_and(authority::has_port) {
            return Err(BadRequest("CONNECT needs a host and a port").into());
        }
        if raw.version == Version::Http2 && authority.is_none() {
            return Err(BadRequest("there is no :authority").into());
        }
        if let Some(elsewhere) = target.elsewhere {
            return Err(Unjudged::Moved(elsewhere));
        }
        Ok(Self { method, path: target.path, authority, fields: raw.fields })
    }

    /// Method.
    #[must_use]
    pub const fn method(&self) -> &str {
        self.method
    }

    /// Path and query; `*` for the server as a whole; none for a CONNECT to a host and port.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Host, and port where the client gave one. HTTP/1.0 may be without.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_deref()
    }

    /// What stands in HTTP/1's request line: the path, or for a CONNECT host and port.
    #[must_use]
    pub fn target(&self) -> &str {
        self.path().or(self.authority()).unwrap_or_default()
    }

    /// The fields to forward: all but Host, which is [`Self::authority`].
    pub fn fields(&self) -> impl Iterator<Item = &'a Field<'a>> + use<'a> {
        self.fields.iter().filter(|field| !field.name.eq_ignore_ascii_case(b"host"))
    }

    /// The values of the fields of this name, without white space around them; of Host, the authority.
    pub fn values<'r>(&'r self, name: &'r str) -> impl Iterator<Item = &'r [u8]> {
        let is_host = name.eq_ignore_ascii_case("host");
        let host = self.authority().filter(|_| is_host).map(str::as_bytes);
        let fields = if is_host { &[] } else { self.fields };
        host.into_iter().chain(
            fields
                .iter()
                .filter(move |field| field.name.eq_ignore_ascii_case(name.as_bytes()))
                .map(|field| field.value.trim_ascii()),
        )
    }
}

/// A target, taken apart.
#[derive(Default)]
struct Target<'a> {
    authority: Option<&'a str>,
    path: Option<Cow<'a, str>>,
    /// Where the client is sent, in place of a path that has no canonical form.
    elsewhere: Option<String>,
}

impl<'a> Target<'a> {
    /// A path, and the host that was named with it.
    fn of(authority: Option<&'a str>, path: Cow<'a, str>) -> Result<Self, BadRequest> {
        if path.contains('%')
            && let Some(elsewhere) = path::without_escaped_slashes(&path)
        {
            return Ok(Self { authority, path: Some(Cow::Borrowed("/")), elsewhere: Some(elsewhere?) });
        }
        let path = match path {
            Cow::Borrowed(path) => path::canonical(path)?,
            Cow::Owned(path) => Cow::Owned(path::canonical(&path)?.into_owned()),
        };
        Ok(Self { authority, path: Some(path), elsewhere: None })
    }
}

/// The four forms of RFC 9112, 3.2; in HTTP/2 the first, the last, and nothing for a CONNECT (RFC 9113, 8.3.1 and 8.5).
fn target<'a>(method: &str, raw: &RawRequest<'a>) -> Result<Target<'a>, BadRequest> {
    if raw.target.len() > MAX_TARGET {
        return Err(BadRequest("the target is too long"));
    }
    let text = ascii(raw.target)?;
    let http2 = raw.version == Version::Http2;
    if method == "CONNECT" && (!http2 || text.is_empty()) {
        let authority = if http2 { None } else { Some(text) };
        return Ok(Target { authority, ..Target::default() });
    }
    if text.starts_with('/') {
        return Target::of(None, Cow::Borrowed(text));
    }
    if text == "*" {
        if method != "OPTIONS" {
            return Err(BadRequest("the target \"*\" is for OPTIONS only"));
        }
        return Ok(Target { path: Some(Cow::Borrowed(text)), ..Target::default() });
    }
    let (scheme, rest) = text.split_once("://").ok_or(BadRequest("the target is neither a path nor a URI"))?;
    if http2 {
        return Err(BadRequest("the :path is no path"));
    }
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(BadRequest("the target's scheme is neither http nor https"));
    }
    match rest.find(['/', '?', '#']).and_then(|end| rest.split_at_checked(end)) {
        Some((authority, path)) if path.starts_with('/') => Target::of(Some(authority), Cow::Borrowed(path)),
        Some((authority, path)) => Target::of(Some(authority), Cow::Owned(format!("/{path}"))),
        None => {
            let path = if method == "OPTIONS" { "*" } else { "/" };
            Ok(Target { authority: Some(rest), path: Some(Cow::Borrowed(path)), elsewhere: None })
        }
    }
}

fn method(octets: &[u8]) -> Result<&str, BadRequest> {
    if !is_token(octets) || octets.len() > MAX_METHOD {
        return Err(BadRequest("the method is no token"));
    }
    ascii(octets)
}

/// Checks the fields; gives Host.
///
/// Framing that a server behind could see otherwise is refused here too (RFC 9112, 6.1 and 6.3; RFC 9113, 8.2.2).
fn fields<'a>(version: Version, fields: &'a [Field<'a>]) -> Result<Option<&'a str>, BadRequest> {
    if fields.len() > MAX_FIELDS {
        return Err(BadRequest("there are too many fields"));
    }
    let (mut host, mut length, mut coding) = (None, false, false);
    for Field { name, value } in fields {
        if !is_token(name) {
            return Err(BadRequest("a field's name is no token"));
        }
        if has_control(value) {
            return Err(BadRequest("a field's value has a control character"));
        }
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        if version == Version::Http2 {
            let own = [&b"connection"[..], b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];
            if name.iter().any(u8::is_ascii_uppercase) || own.iter().any(|own| is(own)) {
                return Err(BadRequest("a field does not belong into HTTP/2"));
            }
        }
        if is(b"host") {
            if host.replace(ascii(value.trim_ascii())?).is_some() {
                return Err(BadRequest("there are several Hosts"));
            }
        } else if is(b"content-length") {
            let value = value.trim_ascii();
            if value.is_empty() || !value.iter().all(u8::is_ascii_digit) || std::mem::replace(&mut length, true) {
                return Err(BadRequest("Content-Length is not one number"));
            }
        } else if is(b"transfer-encoding") {
            let chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked") && version == Version::Http11;
            if !chunked || std::mem::replace(&mut coding, true) {
                return Err(BadRequest("Transfer-Encoding is not \"chunked\", once, in HTTP/1.1"));
            }
        }
    }
    if length && coding {
        return Err(BadRequest("there are both Content-Length and Transfer-Encoding"));
    }
    Ok(host)
}

fn ascii(octets: &[u8]) -> Result<&str, BadRequest> {
    str::from_utf8(octets).ok().filter(|text| text.is_ascii()).ok_or(BadRequest("a character is not ASCII"))
}

/// `tchar` of RFC 9110, 5.6.2.
static TOKEN: Class = Class::of(b"!#$%&'*+-.^_`|~");

/// Whether it is a token (RFC 9110, 5.6.2), as methods and field names are.
pub(super) fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| TOKEN.has(*octet))
}

/// Whether there is a control character other than a tab. Looks at all octets, many at a time.
fn has_control(octets: &[u8]) -> bool {
    octets.iter().fold(false, |found, octet| found | ((*octet < 0x20) & (*octet != b'\t')) | (*octet == 0x7f))
}

#[cfg(test)]
mod tests;
