//! Path and query in the one form that is matched and forwarded.
//!
//! What a strict reader of RFC 3986 takes for the same resource becomes the same text: `%41` is `A` (6.2.2.2), `%2f` has
//! upper-case digits (6.2.2.1), dot segments are gone (6.2.2.3), and runs of slashes are one slash.
//!
//! `%2F` and `%5C`, which some servers take for slashes, before or after they look for dot segments (CVE-2021-29492), have no
//! such form: the client is sent to where slashes stand in their place ([`without_escaped_slashes`]), so that all who read
//! the path read the same. What else one server reads so and another otherwise is refused:
//!
//! - `\`, for the same reason;
//! - `#`, which some cut off and some do not (CVE-2021-32779);
//! - `..` after an empty segment, `/a//../b`: merging slashes before or after makes `/b` or `/a/b`;
//! - `.` and `..` with parameters, `/a/..;x=1/b`: servlet containers cut the parameters first, others do not;
//! - escaped control characters, and UTF-8 in longer form than needed, which have been read as `.` and `/`;
//! - what RFC 3986 does not allow at all: `%` without two hexadecimal digits, spaces, control and non-ASCII characters.
//!
//! Dot segments that are left to the server behind the gate were CVE-2019-9901.

use std::borrow::Cow;

use super::class::Class;
use super::request::BadRequest;

/// Brings `/path?query` into its one form; `target` begins with a slash. Takes time linear in its length.
pub(super) fn canonical(target: &str) -> Result<Cow<'_, str>, BadRequest> {
    if is_canonical(target.as_bytes()) {
        return Ok(Cow::Borrowed(target));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let mut out = String::with_capacity(target.len() + 16);
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        push_segment(&mut out, segment, segments.peek().is_none())?;
    }
    let mut slash = false;
    out.retain(|character| !(std::mem::replace(&mut slash, character == '/') && character == '/'));
    if let Some(query) = query {
        out.push('?');
        push_query(&mut out, query)?;
    }
    Ok(Cow::Owned(out))
}

/// Where a client is sent whose path has escaped slashes: the one form with slashes in their place (Envoy's
/// `UNESCAPE_AND_REDIRECT`, as Cilium has it). None if there are none.
pub(super) fn without_escaped_slashes(target: &str) -> Option<Result<String, BadRequest>> {
    let end = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at_checked(end)?;
    let mut plain = String::with_capacity(target.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        let escaped =
            after.get(..2).is_some_and(|two| two.eq_ignore_ascii_case("2f") || two.eq_ignore_ascii_case("5c"));
        plain.push(if escaped { '/' } else { '%' });
        rest = after.get(if escaped { 2 } else { 0 }..).unwrap_or_default();
    }
    plain.push_str(rest);
    if plain.len() == path.len() {
        return None;
    }
    plain.push_str(query);
    Some(canonical(&plain).map(Cow::into_owned))
}

/// Whether a target is certainly in its form already, as nearly all are.
fn is_canonical(target: &[u8]) -> bool {
    let mut bytes = target.iter();
    let mut before = 0;
    for byte in bytes.by_ref() {
        match byte {
            b'?' => return bytes.all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'#')),
            b'/' | b'.' if before == b'/' => return false,
            b'/' => {}
            _ if !is_plain(*byte) => return false,
            _ => {}
        }
        before = *byte;
    }
    true
}

/// Characters that stand in a path for themselves, and have no meaning there: `pchar` of RFC 3986, 3.3, less `%` and `;`.
static PLAIN: Class = Class::of(b"-._~!$&'()*+,=:@");

/// Whether a character is one of [`PLAIN`].
fn is_plain(byte: u8) -> bool {
    PLAIN.has(byte)
}

/// `unreserved` of RFC 3986, 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `/segment`, or what a dot segment does (RFC 3986, 5.2.4).
fn push_segment(out: &mut String, segment: &str, last: bool) -> Result<(), BadRequest> {
    let start = out.len();
    out.push('/');
    let mut escaped = Escapes::default();
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => match escaped.read(&mut bytes)? {
                value if is_unreserved(value) => out.push(char::from(value)),
                b'/' | b'\\' => return Err(BadRequest("the path has an escaped slash or backslash")),
                value if value.is_ascii_control() => {
                    return Err(BadRequest("the path has an escaped control character"));
                }
                value => push_escaped(out, value),
            },
            b';' => out.push(';'),
            _ if is_plain(byte) => out.push(char::from(byte)),
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => push_escaped(out, byte),
            b'\\' => return Err(BadRequest("the path has a backslash")),
            b'#' => return Err(BadRequest("the target has a fragment")),
            _ => return Err(BadRequest("the path has a space, a control character, or one that is not ASCII")),
        }
        if byte != b'%' {
            escaped = Escapes::default();
        }
    }
    let segment = out.get(start + 1..).unwrap_or_default();
    let name = segment.split(';').next().and_then(|name| name.split("%3B").next()).unwrap_or_default();
    match (name, name.len() == segment.len()) {
        ("." | "..", false) => return Err(BadRequest("the path has a dot segment with parameters")),
        ("", false) if !last => return Err(BadRequest("the path has an empty segment with parameters")),
        ("." | "..", true) => {}
        _ => return Ok(()),
    }
    let parent = segment == "..";
    out.truncate(start);
    if parent {
        if out.ends_with('/') {
            return Err(BadRequest("the path has a dot segment after an empty one"));
        }
        out.truncate(out.rfind('/').unwrap_or_default());
    }
    if last {
        out.push('/');
    }
    Ok(())
}

/// Appends a query, in which slashes, dots and escaped characters mean nothing to anyone but the application.
fn push_query(out: &mut String, query: &str) -> Result<(), BadRequest> {
    let mut escaped = Escapes::default();
    let mut bytes = query.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => match escaped.read(&mut bytes)? {
                value if is_unreserved(value) => out.push(char::from(value)),
                0 => return Err(BadRequest("the query has an escaped NUL")),
                value => push_escaped(out, value),
            },
            b'#' => return Err(BadRequest("the target has a fragment")),
            _ if byte.is_ascii_graphic() => out.push(char::from(byte)),
            _ => return Err(BadRequest("the query has a space, a control character, or one that is not ASCII")),
        }
        if byte != b'%' {
            escaped = Escapes::default();
        }
    }
    Ok(())
}

/// Appends `%XX`.
fn push_escaped(out: &mut String, value: u8) {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0').to_ascii_uppercase();
    out.push('%');
    out.push(digit(value >> 4));
    out.push(digit(value & 15));
}

/// A run of escaped octets.
#[derive(Default)]
struct Escapes {
    before: u8,
}

impl Escapes {
    /// Reads the two digits after a `%`.
    fn read(&mut self, bytes: &mut impl Iterator<Item = u8>) -> Result<u8, BadRequest> {
        let mut digit =
            || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok());
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(BadRequest("the target has a \"%\" without two hexadecimal digits"));
        };
        let value = high << 4 | low;
        // RFC 3629, 3 and 10: longer than needed, `%C0%AE` for a dot.
        if matches!((self.before, value), (0xC0 | 0xC1, 0x80..=0xBF) | (0xE0, 0x80..=0x9F) | (0xF0, 0x80..=0x8F)) {
            return Err(BadRequest("the target has UTF-8 in a longer form than needed"));
        }
        self.before = value;
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
