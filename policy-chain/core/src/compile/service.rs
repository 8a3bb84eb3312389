//! What is decided at a frontend of a Service: what its backends say together (DESIGN 6.8, 7).

use std::collections::BTreeSet;

use crate::flow::{Judgement, Outcome, Proxied, Reason, RuleRef, Verdict};

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
    rules: BTreeSet<RuleRef>,
    denied: Option<Reason>,
    passes: bool,
}

impl Backends {
    fn add(&mut self, backend: &Judgement) {
        match &backend.verdict {
            Verdict::Deny => {
                self.denied.get_or_insert_with(|| backend.reason.clone());
            }
            Verdict::Redirect(proxied) => self.rules.extend(proxied.rules.iter().cloned()),
            Verdict::Allow | Verdict::Defer => self.passes = true,
        }
    }

    fn judgement(self) -> Judgement {
        let Self { rules, denied, passes } = self;
        let (verdict, reason) = match (rules.first().cloned(), denied) {
            (Some(first), _) => {
                let proxied =
                    Proxied { rules: rules.into_iter().collect(), otherwise: Outcome::Allow(Reason::Service) };
                (Verdict::Redirect(proxied), Reason::Rule(first))
            }
            (None, Some(reason)) if !passes => (Verdict::Deny, reason),
            (None, _) => (Verdict::Defer, Reason::Service),
        };
        Judgement { verdict, reason, audit: None }
    }
}
