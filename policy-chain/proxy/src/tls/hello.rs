//! The first message of a TLS client, as far as its server's name (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3).

/// Most octets of a ClientHello. Post-quantum key shares and encrypted parts make some of 4 KiB.
const MOST: usize = 32 << 10;
/// Most octets of a record's content (RFC 8446, 5.1).
const RECORD: usize = 1 << 14;
/// Octets of a record's header.
const RECORD_HEAD: usize = 5;
/// Most octets that a client can send before its ClientHello is whole, were it in records of one octet each.
pub(super) const MOST_READ: usize = MOST * 2;

/// What a ClientHello says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hello {
    /// HostName of the `server_name` extension.
    pub(super) server_name: Option<Box<[u8]>>,
    /// It has an encrypted part with a name of its own (RFC 9849): the one above is its outer one.
    pub(super) encrypted: bool,
}

/// Why a ClientHello cannot be read.
pub(super) type BadHello = &'static str;

/// Reads a ClientHello from the first octets of a connection; none if there are too few of them.
///
/// # Errors
/// It is none, is malformed, has more than one reading, or is too large.
pub(super) fn read(octets: &[u8]) -> Result<Option<Hello>, BadHello> {
    let Some(message) = message(octets)? else { return Ok(None) };
    hello(&message).map(Some)
}

/// The content of the handshake message that the records make.
fn message(octets: &[u8]) -> Result<Option<Vec<u8>>, BadHello> {
    let mut rest = octets;
    let mut message = Vec::new();
    loop {
        match rest {
            [] => return Ok(None),
            [22, ..] => {}
            _ => return Err("this is no TLS handshake"),
        }
        if rest.get(1).is_some_and(|major| *major != 3) {
            return Err("this is no record of TLS");
        }
        let Some((head, after)) = rest.split_at_checked(RECORD_HEAD) else { return Ok(None) };
        let length = head.iter().skip(3).fold(0, |length, octet| length << 8 | usize::from(*octet));
        if length == 0 || length > RECORD {
            return Err("a record is empty or too long");
        }
        let part = after.get(..length).unwrap_or(after);
        message.extend_from_slice(part);
        if message.first().is_some_and(|kind| *kind != 1) {
            return Err("the first message of TLS is no ClientHello");
        }
        if let Some((head, content)) = message.split_at_checked(4) {
            let whole = head.iter().skip(1).fold(0, |length, octet| length << 8 | usize::from(*octet));
            if whole > MOST {
                return Err("the ClientHello is too large");
            }
            if content.len() > whole {
                // Nothing may follow before the server has answered.
                return Err("the ClientHello's record has something after it");
            }
            if content.len() == whole {
                message.drain(..4);
                return Ok(Some(message));
            }
        }
        let Some(after) = after.get(length..) else { return Ok(None) };
        rest = after;
    }
}

/// Takes a vector apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadHello> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("the ClientHello ends too early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, octets: usize) -> Result<usize, BadHello> {
        Ok(self.take(octets)?.iter().fold(0, |number, octet| number << 8 | usize::from(*octet)))
    }

    /// A vector with a length of so many octets before it.
    fn vector(&mut self, octets: usize) -> Result<&'a [u8], BadHello> {
        let length = self.number(octets)?;
        self.take(length)
    }

    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn hello(content: &[u8]) -> Result<Hello, BadHello> {
    let mut reader = Reader(content);
    reader.take(2 + 32)?;
    if reader.vector(1)?.len() > 32 {
        return Err("the ClientHello's session id is too long");
    }
    let suites = reader.vector(2)?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err("the ClientHello's cipher suites are malformed");
    }
    if reader.vector(1)?.is_empty() {
        return Err("the ClientHello has no compression method");
    }
    let mut found = Hello { server_name: None, encrypted: false };
    // TLS 1.2 and before allow to leave extensions out (RFC 5246, 7.4.1.2).
    if reader.is_empty() {
        return Ok(found);
    }
    let mut extensions = Reader(reader.vector(2)?);
    if !reader.is_empty() {
        return Err("the ClientHello has something after its extensions");
    }
    while !extensions.is_empty() {
        let kind = extensions.number(2)?;
        let data = extensions.vector(2)?;
        match kind {
            0 if found.server_name.is_some() => return Err("the ClientHello names its server twice"),
            0 => found.server_name = Some(server_name(data)?),
            0xfe0d => found.encrypted = true,
            _ => {}
        }
    }
    Ok(found)
}

/// The HostName of a ServerNameList: there is one, and nothing else (RFC 6066, 3; no other type was ever defined).
fn server_name(data: &[u8]) -> Result<Box<[u8]>, BadHello> {
    let mut reader = Reader(data);
    let mut list = Reader(reader.vector(2)?);
    if list.number(1)? != 0 {
        return Err("the server's name is no host name");
    }
    let name = list.vector(2)?;
    if !list.is_empty() || !reader.is_empty() || name.is_empty() {
        return Err("the ClientHello does not name one server");
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests;
