//! Heads of HTTP/1 messages: where they end, what they say, and how they are written.
//!
//! A head is read only when it is there as a whole, and always written anew from what was read: what goes on is what was
//! understood. Lines end in CR LF and nothing else (RFC 9112, 2.2, lets a reader accept a bare LF; readers that do and
//! readers that do not are how requests are smuggled).

use httparse::{Header, Status};
use memchr::memchr_iter;
use sluice_policy_core::l7::http::{Field, Version};

use crate::relay::uninit;

/// Most fields that can be read at all.
pub(crate) const MOST_FIELDS: usize = 512;
/// Fields that nearly all messages have at most.
const FEW_FIELDS: usize = 32;
/// Longest request line. The canonical form allows targets of 32 KiB.
pub(crate) const REQUEST_LINE: usize = (32 << 10) + 128;

/// Why a head cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHead {
    /// It is malformed, or could be read in more than one way.
    Malformed(&'static str),
    /// It has too many fields.
    Fields,
}

/// How far a head has been looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    seen: usize,
    lines: usize,
}

impl Scan {
    /// Looks at the octets that have arrived since; the head's length once it is whole.
    ///
    /// # Errors
    /// A line ends in a bare LF.
    pub(crate) fn find_end(&mut self, octets: &[u8]) -> Result<Option<usize>, BadHead> {
        let new = octets.get(self.seen..).unwrap_or_default();
        for at in memchr_iter(b'\n', new) {
            let end = self.seen + at + 1;
            let line = octets.get(..end).unwrap_or_default();
            if !line.ends_with(b"\r\n") {
                return Err(BadHead::Malformed("a line of the head ends in a bare line feed"));
            }
            self.lines += 1;
            if line.ends_with(b"\r\n\r\n") || end == 2 {
                return Ok(Some(end));
            }
        }
        self.seen = octets.len();
        Ok(None)
    }

    /// Whether the first line has ended.
    pub(crate) const fn has_line(&self) -> bool {
        self.lines > 0
    }

    /// How many lines there were.
    pub(crate) const fn lines(&self) -> usize {
        self.lines
    }
}

/// What stands in a request's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestLine<'b> {
    pub(crate) method: &'b [u8],
    pub(crate) target: &'b [u8],
    pub(crate) version: Version,
}

/// Reads a request's head and calls `then` with it. `lines` is how many it has, so that room for the fields is not larger
/// than needed.
///
/// # Errors
/// See [`BadHead`].
pub(crate) fn read_request<T>(
    head: &[u8],
    lines: usize,
    then: impl FnOnce(RequestLine<'_>, &[Field<'_>]) -> T,
) -> Result<T, BadHead> {
    if lines <= FEW_FIELDS { request::<T, FEW_FIELDS>(head, then) } else { request::<T, MOST_FIELDS>(head, then) }
}

fn request<T, const N: usize>(
    head: &[u8],
    then: impl FnOnce(RequestLine<'_>, &[Field<'_>]) -> T,
) -> Result<T, BadHead> {
    let mut room = uninit::<Header<'_>, N>();
    let mut request = httparse::Request::new(&mut []);
    whole(request.parse_with_uninit_headers(head, &mut room), head)?;
    let version = version(request.version)?;
    let method = request.method.unwrap_or_default().as_bytes();
    let target = request.path.unwrap_or_default().as_bytes();
    let mut fields = [Field::default(); N];
    let fields = copy(request.headers, &mut fields);
    Ok(then(RequestLine { method, target, version }, fields))
}

/// What stands in a response's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatusLine<'b> {
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) reason: &'b str,
}

/// Reads a response's head and calls `then` with it.
///
/// # Errors
/// See [`BadHead`].
pub(crate) fn read_response<T>(
    head: &[u8],
    lines: usize,
    then: impl FnOnce(StatusLine<'_>, &[Field<'_>]) -> T,
) -> Result<T, BadHead> {
    if lines <= FEW_FIELDS { response::<T, FEW_FIELDS>(head, then) } else { response::<T, MOST_FIELDS>(head, then) }
}

fn response<T, const N: usize>(
    head: &[u8],
    then: impl FnOnce(StatusLine<'_>, &[Field<'_>]) -> T,
) -> Result<T, BadHead> {
    let mut room = uninit::<Header<'_>, N>();
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, head, &mut room);
    whole(parsed, head)?;
    let version = version(response.version)?;
    let status = response.code.unwrap_or_default();
    if status < 100 {
        return Err(BadHead::Malformed("the status is less than 100"));
    }
    let mut fields = [Field::default(); N];
    let fields = copy(response.headers, &mut fields);
    Ok(then(StatusLine { version, status, reason: response.reason.unwrap_or_default() }, fields))
}

/// Reads the fields after a chunked body, the empty line with them.
///
/// # Errors
/// See [`BadHead`].
pub(crate) fn read_trailers<T>(section: &[u8], then: impl FnOnce(&[Field<'_>]) -> T) -> Result<T, BadHead> {
    let mut room = [httparse::EMPTY_HEADER; FEW_FIELDS];
    match httparse::parse_headers(section, &mut room) {
        Ok(Status::Complete((length, headers))) if length == section.len() => {
            let mut fields = [Field::default(); FEW_FIELDS];
            Ok(then(copy(headers, &mut fields)))
        }
        Err(httparse::Error::TooManyHeaders) => Err(BadHead::Fields),
        _ => Err(BadHead::Malformed("the trailers are malformed")),
    }
}

/// Whether a parser understood all of a head, to the same end that was found before.
fn whole(parsed: httparse::Result<usize>, head: &[u8]) -> Result<(), BadHead> {
    match parsed {
        Ok(Status::Complete(length)) if length == head.len() => Ok(()),
        Ok(_) => Err(BadHead::Malformed("the head has two ends")),
        Err(httparse::Error::TooManyHeaders) => Err(BadHead::Fields),
        Err(httparse::Error::HeaderName) => Err(BadHead::Malformed("a field's name is malformed")),
        Err(httparse::Error::HeaderValue) => Err(BadHead::Malformed("a field's value is malformed")),
        Err(httparse::Error::NewLine) => Err(BadHead::Malformed("a line does not end as it should")),
        Err(httparse::Error::Token) => Err(BadHead::Malformed("the first line is malformed")),
        Err(httparse::Error::Version) => Err(BadHead::Malformed("the version is neither HTTP/1.0 nor HTTP/1.1")),
        Err(httparse::Error::Status) => Err(BadHead::Malformed("the status is malformed")),
    }
}

fn version(minor: Option<u8>) -> Result<Version, BadHead> {
    match minor {
        Some(0) => Ok(Version::Http10),
        Some(1) => Ok(Version::Http11),
        _ => Err(BadHead::Malformed("the version is neither HTTP/1.0 nor HTTP/1.1")),
    }
}

fn copy<'f, 'b>(headers: &[Header<'b>], fields: &'f mut [Field<'b>]) -> &'f [Field<'b>] {
    for (field, header) in fields.iter_mut().zip(headers) {
        *field = Field { name: header.name.as_bytes(), value: header.value };
    }
    fields.get(..headers.len()).unwrap_or_default()
}

/// Appends `name: value` and the line's end.
pub(crate) fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number.
pub(crate) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut count = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789".get(usize::try_from(number % 10).unwrap_or_default()).copied().unwrap_or(b'0');
        number /= 10;
        count += 1;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20 - count..).unwrap_or_default());
}

#[cfg(test)]
mod tests;
