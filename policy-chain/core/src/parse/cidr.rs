//! Address blocks, as the APIs write them.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::Severity;
use super::cursor::{Cursor, Report, quoted};
use crate::model::Usable;

/// What the API makes of a text that should be a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CidrForm {
    /// `ipBlock` of NetworkPolicy: zeros may lead its numbers, and IPv4 may be written as IPv6 (`ParseCIDRSloppy` of
    /// k8s.io/utils/net; the API server still takes both).
    Sloppy,
    /// `isCIDR` of CEL: neither may be.
    Strict,
    /// The API server does not look: as strict, but it is we who cannot use another one.
    Unchecked,
}

/// The longest text that can be a block: IPv6 with an IPv4 part, and three digits of length.
const LONGEST: usize = 49;

/// Reads a block. Host bits are cleared, and IPv4 that is written as IPv6 becomes IPv4, both with a warning.
///
/// # Errors
/// It is none.
pub(super) fn cidr(field: &Cursor<'_>, report: &mut Report, form: CidrForm) -> Usable<IpNet> {
    let text = field.text(report)?;
    let sloppy = form == CidrForm::Sloppy;
    let severity = if form == CidrForm::Unchecked { Severity::Unusable } else { Severity::Refused };
    let Some(written) = parse(text, sloppy) else {
        let message = format!("{} is not an address block, such as 10.0.0.0/8 or fd00::/8", quoted(text));
        return Err(report.fault(severity, &field.path, message));
    };
    let mapped = matches!(written.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some());
    if mapped && !sloppy {
        let message = format!("{} is an IPv4 block written as IPv6; write it as IPv4", quoted(text));
        return Err(report.fault(severity, &field.path, message));
    }
    let net = unmapped(written.trunc());
    if net.addr().is_ipv4() && mapped {
        report.warn(&field.path, format!("{} is an IPv4 block written as IPv6; it is used as {net}", quoted(text)));
    } else if net != written {
        report.warn(&field.path, format!("{} has host bits; it is used as {net}", quoted(text)));
    } else if sloppy && parse(text, false).is_none() {
        report.warn(&field.path, format!("{} has zeros before its numbers; it is used as {net}", quoted(text)));
    }
    Ok(net)
}

/// A block as IPv4, if it is one that is written as IPv6 (`::ffff:0:0/96`): addresses of packets never are.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(wide) = net else { return net };
    let Some(length) = wide.prefix_len().checked_sub(96) else { return net };
    let narrow = Ipv6Addr::to_ipv4_mapped(&wide.addr());
    narrow.and_then(|address| IpNet::new(IpAddr::V4(address), length).ok()).unwrap_or(net)
}

fn parse(text: &str, sloppy: bool) -> Option<IpNet> {
    if text.len() > LONGEST {
        return None;
    }
    let (address, length) = text.split_once('/')?;
    if !length.bytes().all(|byte| byte.is_ascii_digit()) || (!sloppy && length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    let address: IpAddr = match address.parse() {
        Ok(address) => address,
        Err(_) if sloppy => without_leading_zeros(address).parse().ok()?,
        Err(_) => return None,
    };
    IpNet::new(address, length).ok()
}

/// `010.0.0.01` as `10.0.0.1`: the API reads such numbers as decimal.
fn without_leading_zeros(address: &str) -> String {
    let stripped = |number: &str| match number.trim_start_matches('0') {
        "" if number.is_empty() => String::new(),
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    };
    let (before, last) = address.rsplit_once(':').map_or((None, address), |(before, last)| (Some(before), last));
    let ipv4 = last.split('.').map(stripped).collect::<Vec<_>>().join(".");
    before.map_or_else(|| ipv4.clone(), |before| format!("{before}:{ipv4}"))
}

#[cfg(test)]
mod tests;
