//! The gates of this host's kernel.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use sluice_policy_bpf::layout::Verdict;
use sluice_policy_bpf::reader::{ReadError, Reader};
use sluice_policy_core::compile::image::DecisionId;

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
        let verdict = verdict(entry.verdict, entry.decision, |decision| self.verdict(decision)).map_err(unreadable)?;
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

/// What an entry says of its flow.
///
/// A flow that was proxied when policy stopped asking for it stays with the proxy (DESIGN 6.5), and one is there that only a dry
/// run sends: its entry says so still, and its decision that everything passes, or that the backend is to be judged; or it has
/// none, because no policy decides any more. What a policy sends to the proxy has a decision.
fn verdict<E>(
    entry: Verdict,
    decision: Option<DecisionId>,
    verdict_of: impl FnOnce(DecisionId) -> Result<Option<Verdict>, E>,
) -> Result<Verdict, E> {
    match (entry, decision) {
        (Verdict::Redirect, Some(decision)) => Ok(match verdict_of(decision)? {
            Some(passes @ (Verdict::Allow | Verdict::Defer)) => passes,
            _ => Verdict::Redirect,
        }),
        (Verdict::Redirect, None) => Ok(Verdict::Allow),
        (verdict, _) => Ok(verdict),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_that_stays_with_the_proxy_passes_once_policy_no_longer_sends_it_there() {
        use Verdict::{Allow, Defer, Deny, Redirect};
        let number = DecisionId(7);
        let of = |entry, decision: Option<Verdict>| {
            let told = |asked| {
                assert_eq!(asked, number);
                Ok::<_, ()>(decision)
            };
            verdict(entry, Some(number), told).unwrap()
        };
        assert_eq!(of(Redirect, Some(Redirect)), Redirect);
        assert_eq!(of(Redirect, Some(Allow)), Allow);
        // The gate judges the backend, whoever it is.
        assert_eq!(of(Redirect, Some(Defer)), Defer);
        // What the decision says is not known, or is not that it passes: the proxy's own rules are asked, and refuse.
        for decision in [None, Some(Deny)] {
            assert_eq!(of(Redirect, decision), Redirect);
        }
        let none = |entry| verdict(entry, None, |_| Err("no decision to be asked for"));
        assert_eq!(none(Redirect), Ok(Allow));
        for entry in [Allow, Deny, Defer] {
            assert_eq!(none(entry), Ok(entry));
            assert_eq!(verdict(entry, Some(number), |_| Err("it is not asked for")), Ok(entry));
        }
        assert_eq!(verdict(Redirect, Some(number), |_| Err("unreadable")), Err("unreadable"));
    }
}
