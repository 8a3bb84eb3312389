//! How messages of HTTP/1 go on: their framing, what they say of the connection, and their heads as they are written.
//!
//! What belongs to a connection (RFC 9110, 7.6.1) is read, and written anew in the same sense: the client's connection and the
//! server's live and end together, so that `close` of one is `close` of the other. A `Connection` option that names another
//! field does not make it go away: the rules have seen that field, and so must the server.

use sluice_policy_core::l7::http::{Edit, Field, Request, Version};

use super::chunk::Chunks;
use super::head::{StatusLine, put_field, put_number};

/// How a message's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// There is none.
    Empty,
    /// After so many octets more.
    Length(u64),
    /// With the last chunk.
    Chunked(Chunks),
    /// With the connection.
    UntilEnd,
}

/// Fields that the proxy understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    Connection,
    ContentLength,
    Expect,
    Http2Settings,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
}

fn special(name: &[u8]) -> Option<Special> {
    // By length first: nearly all fields are none of these.
    let (wanted, special): (&[u8], _) = match name.len() {
        2 => (b"te", Special::Te),
        6 => (b"expect", Special::Expect),
        7 => (b"upgrade", Special::Upgrade),
        10 => (b"connection", Special::Connection),
        14 if name.first().is_some_and(|octet| octet.eq_ignore_ascii_case(&b'h')) => {
            (b"http2-settings", Special::Http2Settings)
        }
        14 => (b"content-length", Special::ContentLength),
        16 => (b"proxy-connection", Special::ProxyConnection),
        17 => (b"transfer-encoding", Special::TransferEncoding),
        _ => return None,
    };
    name.eq_ignore_ascii_case(wanted).then_some(special)
}

/// The elements of a list (RFC 9110, 5.6.1).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|octet| *octet == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// What fields say of connection and framing.
#[derive(Debug, Default)]
struct Said {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    trailers: bool,
    chunked: bool,
    length: Option<u64>,
    expects: bool,
}

impl Said {
    fn of<'f>(fields: impl Iterator<Item = &'f Field<'f>>) -> Result<Self, &'static str> {
        let mut said = Self::default();
        for Field { name, value } in fields {
            match special(name) {
                None | Some(Special::Upgrade | Special::ProxyConnection | Special::Http2Settings) => {}
                Some(Special::Connection) => {
                    for option in elements(value) {
                        said.close |= option.eq_ignore_ascii_case(b"close");
                        said.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                        said.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                Some(Special::Te) => {
                    said.trailers |= elements(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                }
                Some(Special::Expect) => said.expects = true,
                Some(Special::ContentLength) => {
                    let length = number(value.trim_ascii())?;
                    if said.length.replace(length).is_some_and(|before| before != length) {
                        return Err("there are two lengths");
                    }
                }
                Some(Special::TransferEncoding) => {
                    if said.chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return Err("Transfer-Encoding is not \"chunked\", once");
                    }
                    said.chunked = true;
                }
            }
        }
        Ok(said)
    }

    const fn persists(&self, version: Version) -> bool {
        match version {
            Version::Http10 => self.keep_alive && !self.close,
            Version::Http11 | Version::Http2 => !self.close,
        }
    }

    /// Appends `Connection`, if there is something to say.
    fn put_connection(&self, out: &mut Vec<u8>, upgrade: bool, te: bool) {
        let options: [(bool, &[u8]); 4] = [
            (self.close, b"close"),
            (self.keep_alive && !self.close, b"keep-alive"),
            (upgrade, b"upgrade"),
            (te, b"te"),
        ];
        let mut first = true;
        for (_, option) in options.iter().filter(|(said, _)| *said) {
            out.extend_from_slice(if first { b"connection: " } else { b", " });
            out.extend_from_slice(option);
            first = false;
        }
        if !first {
            out.extend_from_slice(b"\r\n");
        }
    }
}

fn number(digits: &[u8]) -> Result<u64, &'static str> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("Content-Length is not one number");
    }
    let digits = std::str::from_utf8(digits).unwrap_or_default();
    // As in a chunk's size: signed readers would take more for a negative length.
    digits.parse().ok().filter(|length| *length <= i64::MAX as u64).ok_or("Content-Length is too large")
}

/// A request that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestPlan {
    /// Its body.
    pub(crate) body: Body,
    /// Version.
    pub(crate) version: Version,
    /// Whether the client wants the connection kept.
    pub(crate) persists: bool,
    /// `HEAD`: the response has no body.
    pub(crate) is_head: bool,
    /// `CONNECT`: a response of 2xx makes the connection a tunnel.
    pub(crate) is_connect: bool,
    /// Whether an upgrade is offered to the server.
    pub(crate) offers_upgrade: bool,
    /// Whether an offer of HTTP/2 or TLS was taken away.
    pub(crate) lost_upgrade: bool,
    /// `Expect`: the client may wait for an answer before it sends the body.
    pub(crate) expects: bool,
}

/// Whether an upgrade to this protocol is offered on: not to another HTTP, whose requests would go unseen (h2c smuggling),
/// nor to TLS.
fn may_upgrade(protocol: &[u8]) -> bool {
    let name = protocol.split(|octet| *octet == b'/').next().unwrap_or_default();
    !name.eq_ignore_ascii_case(b"h2c")
        && !name.eq_ignore_ascii_case(b"h2")
        && !name.eq_ignore_ascii_case(b"http")
        && !name.eq_ignore_ascii_case(b"tls")
}

/// How a request goes on.
///
/// # Errors
/// Its framing is malformed.
pub(crate) fn plan_request(request: &Request<'_>, version: Version) -> Result<RequestPlan, &'static str> {
    let said = Said::of(request.fields())?;
    let is_connect = request.method() == "CONNECT";
    let body = match (said.chunked, said.length) {
        (true, _) => Body::Chunked(Chunks::default()),
        (false, None | Some(0)) => Body::Empty,
        (false, Some(length)) => Body::Length(length),
    };
    if is_connect && body != Body::Empty {
        return Err("a CONNECT has a body");
    }
    let (mut offered, mut lost) = (false, false);
    for protocol in upgrades(request) {
        if may_upgrade(protocol) {
            offered = true;
        } else {
            lost = true;
        }
    }
    Ok(RequestPlan {
        body,
        version,
        persists: said.persists(version),
        is_head: request.method() == "HEAD",
        is_connect,
        offers_upgrade: offered && said.upgrade && version == Version::Http11,
        lost_upgrade: lost,
        expects: said.expects,
    })
}

fn upgrades<'r>(request: &Request<'r>) -> impl Iterator<Item = &'r [u8]> {
    request
        .fields()
        .filter(|field| special(field.name) == Some(Special::Upgrade))
        .flat_map(|field| elements(field.value))
}

/// Appends a request's head in its canonical form, after these changes.
pub(crate) fn put_request<'e>(
    out: &mut Vec<u8>,
    request: &Request<'_>,
    plan: &RequestPlan,
    edits: impl Iterator<Item = Edit<'e>>,
) {
    out.extend_from_slice(request.method().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.target().as_bytes());
    out.extend_from_slice(if plan.version == Version::Http10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
    if let Some(authority) = request.authority() {
        put_field(out, b"Host", authority.as_bytes());
    }
    // Planned before from the same fields, so that it cannot fail.
    let said = Said::of(request.fields()).unwrap_or_default();
    let edits: Vec<Edit<'_>> = edits.collect();
    let replaced = |name: &[u8]| {
        edits.iter().any(|edit| match edit {
            Edit::Add { .. } => false,
            Edit::Delete { name: other } | Edit::Replace { name: other, .. } => {
                name.eq_ignore_ascii_case(other.as_bytes())
            }
        })
    };
    for Field { name, value } in request.fields() {
        match special(name) {
            None | Some(Special::Expect) if !edits.is_empty() && replaced(name) => {}
            None | Some(Special::Expect) => put_field(out, name, value.trim_ascii()),
            Some(_) => {}
        }
    }
    for (name, value) in added(&edits) {
        put_field(out, name.as_bytes(), value.as_bytes());
    }
    if plan.offers_upgrade {
        let mut first = true;
        for protocol in upgrades(request).filter(|protocol| may_upgrade(protocol)) {
            out.extend_from_slice(if first { b"upgrade: " } else { b", " });
            out.extend_from_slice(protocol);
            first = false;
        }
        out.extend_from_slice(b"\r\n");
    }
    if said.trailers {
        put_field(out, b"te", b"trailers");
    }
    said.put_connection(out, plan.offers_upgrade, said.trailers);
    put_framing(out, said.chunked, said.length);
    out.extend_from_slice(b"\r\n");
}

/// What is left of the fields that edits add, in their order.
fn added<'e>(edits: &[Edit<'e>]) -> Vec<(&'e str, &'e str)> {
    let mut fields: Vec<(&str, &str)> = Vec::new();
    for edit in edits {
        match *edit {
            Edit::Add { name, value } => fields.push((name, value)),
            Edit::Delete { name } => fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name)),
            Edit::Replace { name, value } => {
                fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
                fields.push((name, value));
            }
        }
    }
    fields
}

fn put_framing(out: &mut Vec<u8>, chunked: bool, length: Option<u64>) {
    if chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if let Some(length) = length {
        out.extend_from_slice(b"content-length: ");
        put_number(out, length);
        out.extend_from_slice(b"\r\n");
    }
}

/// A response that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResponsePlan {
    /// Status.
    pub(crate) status: u16,
    /// Its body.
    pub(crate) body: Body,
    /// Whether the connection is kept after it.
    pub(crate) persists: bool,
    /// Whether the connection is no longer HTTP after it.
    pub(crate) becomes_tunnel: bool,
}

impl ResponsePlan {
    /// Whether the response to the request is yet to come (RFC 9110, 15.2).
    pub(crate) const fn is_interim(&self) -> bool {
        self.status < 200 && !self.becomes_tunnel
    }
}

/// How a response to `request` goes on; appends its head to `out`.
///
/// # Errors
/// It is malformed, or could be read in more than one way.
pub(crate) fn put_response(
    out: &mut Vec<u8>,
    line: StatusLine<'_>,
    fields: &[Field<'_>],
    request: &RequestPlan,
) -> Result<ResponsePlan, &'static str> {
    let mut said = Said::of(fields.iter())?;
    if said.chunked && (said.length.is_some() || line.version == Version::Http10) {
        return Err("the response has both Transfer-Encoding and Content-Length, or is of HTTP/1.0");
    }
    let switches = line.status == 101;
    if switches && !request.offers_upgrade {
        return Err("the response switches to a protocol that nobody offered");
    }
    let becomes_tunnel = switches || request.is_connect && (200..300).contains(&line.status);
    let frameless = line.status < 200 || line.status == 204 || becomes_tunnel;
    if frameless {
        (said.chunked, said.length) = (false, None);
    }
    let strip = said.chunked && request.version == Version::Http10;
    let body = if frameless || line.status == 304 || request.is_head {
        Body::Empty
    } else if strip {
        Body::Chunked(Chunks::stripped())
    } else if said.chunked {
        Body::Chunked(Chunks::default())
    } else {
        match said.length {
            Some(0) => Body::Empty,
            Some(length) => Body::Length(length),
            None => Body::UntilEnd,
        }
    };
    let interim = line.status < 200;
    let persists = interim || request.persists && said.persists(line.version) && !strip && body != Body::UntilEnd;
    if !persists && !becomes_tunnel {
        said.close = true;
    }
    out.extend_from_slice(if line.version == Version::Http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    put_number(out, u64::from(line.status));
    out.push(b' ');
    out.extend_from_slice(line.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
    for Field { name, value } in fields {
        match special(name) {
            None | Some(Special::Expect | Special::Te) => put_field(out, name, value.trim_ascii()),
            Some(Special::Upgrade) if switches || line.status == 426 => put_field(out, name, value.trim_ascii()),
            Some(_) => {}
        }
    }
    said.put_connection(out, switches || line.status == 426 && said.upgrade, false);
    put_framing(out, said.chunked && !strip, said.length);
    out.extend_from_slice(b"\r\n");
    Ok(ResponsePlan { status: line.status, body, persists, becomes_tunnel })
}

/// Appends a trailer section, without the fields that must not stand in one (RFC 9110, 6.5.1).
pub(crate) fn put_trailers(out: &mut Vec<u8>, fields: &[Field<'_>]) {
    for Field { name, value } in fields {
        if special(name).is_none() && !name.eq_ignore_ascii_case(b"host") && !name.eq_ignore_ascii_case(b"trailer") {
            put_field(out, name, value.trim_ascii());
        }
    }
}

#[cfg(test)]
mod tests;
