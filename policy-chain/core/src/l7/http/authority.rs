//! Host and port in the one form that is matched and forwarded.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::request::BadRequest;

/// Longest authority: a name of 255 characters and a port.
const MAX_AUTHORITY: usize = 261;

/// Brings `host`, `host:port`, `[address]` or `[address]:port` into its one form: lower case, an IPv6 address as in RFC 5952,
/// a port without needless zeros, and no colon without a port (RFC 3986, 3.2.2, 3.2.3 and 6.2.3).
///
/// Escaped characters in a host are refused, though RFC 3986 allows them: nobody needs them, and servers differ on them.
/// User information is an error (RFC 9110, 4.2.4). A final dot stays, as the client gave it.
pub(super) fn canonical(text: &str) -> Result<Cow<'_, str>, BadRequest> {
    if text.is_empty() {
        return Err(BadRequest("the host is empty"));
    }
    if text.len() > MAX_AUTHORITY {
        return Err(BadRequest("the host is too long"));
    }
    if text.contains('@') {
        return Err(BadRequest("the host has user information"));
    }
    let (host, port) = split(text)?;
    let address = match host.strip_prefix('[') {
        Some(address) => Some(
            address
                .parse::<Ipv6Addr>()
                .map_err(|_error| BadRequest("what is in brackets in the host is no IPv6 address"))?,
        ),
        None => check_name(host).map(|()| None)?,
    };
    let number = port.filter(|digits| !digits.is_empty()).map(parse_port).transpose()?;
    let as_given = match (port, number) {
        (None, None) => true,
        (Some(digits), Some(_)) => !digits.starts_with('0'),
        _ => false,
    };
    if address.is_none() && as_given && !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = match address {
        Some(address) => format!("[{address}]"),
        None => host.to_ascii_lowercase(),
    };
    if let Some(number) = number {
        out.push_str(&format!(":{number}"));
    }
    if out == text { Ok(Cow::Borrowed(text)) } else { Ok(Cow::Owned(out)) }
}

/// Whether an authority in its form has a port.
pub(super) fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'))
}

/// Splits host (a literal address with its opening bracket only) and port.
fn split(text: &str) -> Result<(&str, Option<&str>), BadRequest> {
    if text.starts_with('[') {
        let (host, rest) = text.split_once(']').ok_or(BadRequest("the host has a bracket that is not closed"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(BadRequest("the host has something after its address")),
        };
    }
    Ok(match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

fn check_name(host: &str) -> Result<(), BadRequest> {
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return Err(BadRequest("the host has a character that is no letter, digit, \"-\", \"_\" or \".\""));
    }
    if host.strip_suffix('.').unwrap_or(host).split('.').any(str::is_empty) {
        return Err(BadRequest("the host has an empty label"));
    }
    Ok(())
}

fn parse_port(digits: &str) -> Result<u16, BadRequest> {
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BadRequest("the port is no number"));
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(BadRequest("the port is not between 1 and 65535")),
        Ok(number) => Ok(number),
    }
}

#[cfg(test)]
mod tests;
