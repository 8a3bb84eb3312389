//! Blocks of addresses.

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::cidr::{CidrForm, cidr};
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

/// A block: an address, `/`, and a prefix length. Host bits are cleared.
fn block(cursor: &Cursor<'_>, report: &mut Report) -> Usable<IpNet> {
    cidr(cursor, report, CidrForm::Strict)
}

/// An element of `fromCIDRSet` or `toCIDRSet`.
pub(super) fn rule(cursor: &Cursor<'_>, report: &mut Report) -> Usable<CidrRule> {
    let mut fields = cursor.fields(report)?;
    let (net, name, labels) = (fields.take("cidr"), fields.take("cidrGroupRef"), fields.take("cidrGroupSelector"));
    let except = match fields.take("except") {
        None => Ok(Vec::new()),
        Some(list) => list
            .elements(report)
            .and_then(|list| each(&list, report, |cursor, report| Ok((block(cursor, report)?, cursor.path.clone())))),
    };
    let block = match (net, name, labels) {
        (Some(net), None, None) => block(&net, report).map(CidrBlock::Cidr),
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
