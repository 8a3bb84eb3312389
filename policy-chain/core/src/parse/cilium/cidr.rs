//! Blocks of addresses.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::super::cursor::{Cursor, Report};
use super::{each, selector};
use crate::model::cilium::{CidrBlock, CidrRule};
use crate::model::{Text, Usable};

/// An element of `fromCIDR`, `toCIDR` or `externalCIDRs`: a block, or one address.
pub(in crate::parse) fn block_or_address(cursor: &Cursor<'_>, report: &mut Report) -> Usable<IpNet> {
    let text = cursor.text(report)?;
    if text.is_empty() {
        return Err(report.refused(&cursor.path, "IP must be specified"));
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(IpNet::from(address.to_canonical())),
        Err(_) => block(cursor, report),
    }
}

/// A block: an address, `/`, and a prefix length. Host bits are cleared; a block of IPv4-mapped IPv6 addresses is one of
/// IPv4 addresses.
fn block(cursor: &Cursor<'_>, report: &mut Report) -> Usable<IpNet> {
    let text = cursor.text(report)?;
    parse(text).ok_or_else(|| {
        let message = format!(
            "unable to parse CIDR {}: expected an address and a prefix length, like 10.0.0.0/8 or 2001:db8::/32",
            cursor.shown()
        );
        report.refused(&cursor.path, message)
    })
}

fn parse(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    // Neither "+8" nor "08": what has two readings is no length.
    if length.is_empty()
        || !length.bytes().all(|byte| byte.is_ascii_digit())
        || (length.len() > 1 && length.starts_with('0'))
    {
        return None;
    }
    let address: IpAddr = address.parse().ok()?;
    let network = IpNet::new(address, length.parse().ok()?).ok()?.trunc();
    match (network.network().to_canonical(), network.prefix_len()) {
        (IpAddr::V4(mapped), length @ 96..) => Ipv4Net::new(mapped, length - 96).ok().map(IpNet::V4),
        _ => Some(network),
    }
}

/// An element of `fromCIDRSet` or `toCIDRSet`.
pub(super) fn rule(cursor: &Cursor<'_>, report: &mut Report) -> Usable<CidrRule> {
    let mut fields = cursor.fields(report)?;
    let (cidr, name, labels) = (fields.take("cidr"), fields.take("cidrGroupRef"), fields.take("cidrGroupSelector"));
    let except = match fields.take("except") {
        None => Ok(Vec::new()),
        Some(list) => list
            .elements(report)
            .and_then(|list| each(&list, report, |cursor, report| Ok((block(cursor, report)?, cursor.path.clone())))),
    };
    let block = match (cidr, name, labels) {
        (Some(cidr), None, None) => block(&cidr, report).map(CidrBlock::Cidr),
        (None, Some(name), None) => group_name(&name, report).map(CidrBlock::Group),
        (None, None, Some(labels)) => selector::plain(&labels, report).map(CidrBlock::Groups),
        _ => Err(report.refused(&cursor.path, "must have exactly one of cidr, cidrGroupRef and cidrGroupSelector")),
    };
    fields.finish(report)?;
    let (block, except) = (block?, except?);
    if let CidrBlock::Cidr(cidr) = block {
        for (exception, path) in &except {
            if !cidr.contains(exception) {
                let message = format!("allow CIDR prefix {cidr} does not contain exclude CIDR prefix {exception}");
                return Err(report.refused(path, message));
            }
        }
    }
    let mut except: Vec<IpNet> = except.into_iter().map(|(exception, _)| exception).collect();
    except.sort();
    except.dedup();
    Ok(CidrRule { block, except })
}

fn group_name(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Text> {
    let text = cursor.text(report)?;
    match super::super::metadata::NameForm::Subdomain.broken_rule(text) {
        None => Ok(text.into()),
        Some(rule) => Err(report.refused(&cursor.path, format!("{} is not a name: {rule}", cursor.shown()))),
    }
}
