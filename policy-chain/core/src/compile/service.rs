//! What is decided at a frontend of a Service: what its backends say together (DESIGN 6.8, 7).

use crate::flow::{AppProtocol, Judgement, Lists, Outcome, Proxied, Reason, Verdict};

/// The judgement of a frontend whose backends, by address and port, are judged so.
pub(super) fn frontend<'a>(backends: impl IntoIterator<Item = &'a Judgement>) -> Judgement {
    let (mut enforced, mut full) = (Backends::default(), Backends::default());
    for backend in backends {
        enforced.add(backend);
        full.add(backend.audit.as_deref().unwrap_or(backend));
    }
    let (mut judgement, full) = (enforced.judgement(), full.judgement());
    if judgement != full {
        judgement.audit = Some(Box::new(full));
    }
    judgement
}

#[derive(Default)]
struct Backends {
    lists: Lists,
    see: Option<AppProtocol>,
    denied: Option<Reason>,
    passes: bool,
    /// Whether a request that no list has passes at some backend, and why it does not at the first one.
    otherwise: bool,
    refused: Option<Reason>,
}

impl Backends {
    fn add(&mut self, backend: &Judgement) {
        match &backend.verdict {
            Verdict::Deny => {
                self.denied.get_or_insert_with(|| backend.reason.clone());
                self.refused.get_or_insert_with(|| backend.reason.clone());
            }
            Verdict::Redirect(proxied) => {
                self.lists = self.lists.union(&proxied.lists);
                self.see = self.see.or(proxied.see);
                match &proxied.otherwise {
                    Outcome::Allow(_) => self.otherwise = true,
                    Outcome::Deny(reason) => {
                        self.refused.get_or_insert_with(|| reason.clone());
                    }
                }
            }
            Verdict::Allow | Verdict::Defer => (self.passes, self.otherwise) = (true, true),
        }
    }

    fn judgement(self) -> Judgement {
        let Self { lists, see, denied, passes, otherwise, refused } = self;
        // Which backend it will be is not known yet: what all of them refuse is refused (DESIGN 8; DNS over UDP, where it
        // is not known before the first packet has gone).
        let otherwise = match refused {
            Some(reason) if !otherwise => Outcome::Deny(reason),
            _ => Outcome::Allow(Reason::Service),
        };
        let first = lists.first().map(|list| Reason::Rule(list.at.rule.clone()));
        let (verdict, reason) = match (first.or(see.map(|_| Reason::Service)), denied) {
            (Some(reason), _) => (Verdict::Redirect(Proxied { lists, see, otherwise }), reason),
            (None, Some(reason)) if !passes => (Verdict::Deny, reason),
            (None, _) => (Verdict::Defer, Reason::Service),
        };
        Judgement { verdict, reason, audit: None }
    }
}
