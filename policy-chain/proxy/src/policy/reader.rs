//! The gates of this host's kernel.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use sluice_policy_bpf::layout::Verdict;
use sluice_policy_bpf::reader::{ReadError, Reader};

use super::{Entry, Gates, Judged, Unreadable};
use crate::flow::{Flow, Protocol};

/// Opens the maps that policyd has pinned in `root`.
///
/// # Errors
/// There are none, or this process may not open them.
pub fn open(root: &Path) -> Result<Reader, Unreadable> {
    Reader::open(root).map_err(unreadable)
}

fn unreadable(error: ReadError) -> Unreadable {
    Unreadable(Box::new(error))
}

impl Gates for Reader {
    fn flow(&self, flow: &Flow, protocol: Protocol) -> Result<Option<Entry>, Unreadable> {
        let found = self.flow(flow.direction, protocol, flow.client, flow.server).map_err(unreadable)?;
        let Some(entry) = found else { return Ok(None) };
        // A flow that was proxied when policy stopped asking for it stays with the proxy (DESIGN 6.5): its entry says so, and
        // its decision that everything passes.
        let verdict = match (entry.verdict, entry.decision) {
            (Verdict::Redirect, Some(decision)) => match self.verdict(decision).map_err(unreadable)? {
                Some(Verdict::Allow) => Verdict::Allow,
                _ => Verdict::Redirect,
            },
            // Nor does any policy decide any more. What a policy sends to the proxy has a decision.
            (Verdict::Redirect, None) => Verdict::Allow,
            (verdict, _) => verdict,
        };
        Ok(Some(Entry {
            endpoint: entry.subject.endpoint,
            audit: entry.subject.audit,
            locked: entry.subject.locked,
            judged: Judged { verdict, decision: entry.decision.map(|decision| decision.0) },
        }))
    }

    fn judge_backend(
        &self,
        own: IpAddr,
        protocol: Protocol,
        backend: SocketAddr,
    ) -> Result<Option<Judged>, Unreadable> {
        let found = self.judge_backend(own, protocol, backend).map_err(unreadable)?;
        Ok(found.map(|found| Judged { verdict: found.verdict, decision: found.decision.map(|decision| decision.0) }))
    }
}
