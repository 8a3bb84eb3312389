//! What an address leaves behind in connection tracking when its owner is gone: entries by which packets of its connections
//! go on to whoever has the address next.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::ControlFlow;

use super::{ATTEMPTS, CTA_TUPLE_ORIG, ConntrackError, Flow, Lookup, each_entry, flow};
use crate::netns::Namespace;
use crate::nfnetlink::{NESTED, NLM_F_ACK, NLM_F_REQUEST, append, attribute};

/// Flows that are deleted after one dump: so much of them is held at a time.
const ROUND: usize = 4096;

/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE`.
const CT_DELETE: u16 = 0x0102;

/// Makes connection tracking in `namespace` forget every flow that names one of the addresses, on either side and before or
/// after translation; at most `limit` of them. Answers how many it has forgotten. Blocks for as long as that takes: a dump
/// for each 4,096 of them, and some 10 microseconds for each.
///
/// # Errors
/// [`ConntrackError`]; [`ConntrackError::TooMany`] when `limit` of them are forgotten and there are more. A flow that the
/// kernel keeps holds up no other: [`ConntrackError::Kept`] comes at the end.
pub fn forget(namespace: &Namespace, addresses: &BTreeSet<IpAddr>, limit: usize) -> Result<usize, ConntrackError> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let mut asking = Lookup::open(namespace)?;
    namespace.run(|| forget_here(&mut asking, addresses, limit)).map_err(ConntrackError::Namespace)?
}

fn forget_here(asking: &mut Lookup, addresses: &BTreeSet<IpAddr>, limit: usize) -> Result<usize, ConntrackError> {
    let (mut tried, mut forgotten, mut kept) = (0, 0, None);
    let mut attempts = ATTEMPTS;
    loop {
        let room = ROUND.min(limit - tried);
        let (mut doomed, mut is_all) = (Vec::new(), true);
        let consistent = each_entry(|family, attributes| {
            let Some(one) = Doomed::of(family, attributes, addresses) else { return Ok(ControlFlow::Continue(())) };
            if doomed.len() >= room {
                is_all = false;
                return Ok(ControlFlow::Break(()));
            }
            doomed.push(one);
            Ok(ControlFlow::Continue(()))
        })?;
        tried += doomed.len();
        for one in &doomed {
            match asking.ask(CT_DELETE, NLM_F_REQUEST | NLM_F_ACK, one.family, &one.attributes) {
                Ok(found) => forgotten += usize::from(found.is_some()),
                // It is met in each round again, and counted, so that `limit` ends that.
                Err(ConntrackError::Refused(error)) => kept = Some(ConntrackError::Kept(error)),
                Err(error) => return Err(error),
            }
        }
        if is_all {
            attempts -= 1;
        } else if tried >= limit {
            return Err(ConntrackError::TooMany { limit });
        }
        if is_all && (consistent || attempts == 0) {
            return kept.map_or(Ok(forgotten), Err);
        }
    }
}

/// A flow as a message names it that deletes it.
#[derive(Debug)]
struct Doomed {
    family: u8,
    attributes: Vec<u8>,
}

impl Doomed {
    /// The flow of a dump's entry, if it names one of the addresses.
    fn of(family: u8, entry: &[u8], addresses: &BTreeSet<IpAddr>) -> Option<Self> {
        const CTA_ID: u16 = 12;
        const CTA_ZONE: u16 = 18;
        let Flow { original, reply, .. } = flow(entry)?;
        // A service proxy's client has sent to another address; what leaves in the node's name is answered to another.
        let named = [original.source, original.destination, reply.source, reply.destination];
        named.iter().any(|address| addresses.contains(address)).then_some(())?;
        let mut attributes = Vec::new();
        // As the kernel has written it, whatever the protocol.
        append(&mut attributes, NESTED | CTA_TUPLE_ORIG, attribute(entry, CTA_TUPLE_ORIG)?);
        // By its number, so that a newer flow of the same tuple is not hit; and a tuple is one of its zone.
        for kind in [CTA_ID, CTA_ZONE] {
            if let Some(value) = attribute(entry, kind) {
                append(&mut attributes, kind, value);
            }
        }
        Some(Self { family, attributes })
    }
}
