//! One request of HTTP/1, from its octets to what becomes of it.

use sluice_policy_core::l7::Message;
use sluice_policy_core::l7::http::{RawRequest, Request, Version};

use super::answer::Answer;
use super::head::{BadHead, read_request};
use super::message::{RequestPlan, plan_request, put_request};
use crate::connect::Connect;
use crate::engine::count;
use crate::policy::{Policy, Rules};
use crate::record::{Asked, Kind, Recorder};
use crate::session::{Pending, Session, Since, unreadable};

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Judged {
    /// It passes.
    Passes(RequestPlan, Pending),
    /// The rules refuse it.
    Refused(RequestPlan, Pending),
    /// It is malformed, or could be read in more than one way.
    Bad(Answer),
}

/// The request of a head, in its canonical form, and how it goes on.
fn read<T>(
    head: &[u8],
    lines: usize,
    most_fields: usize,
    then: impl FnOnce(Request<'_>, RequestPlan) -> T,
) -> Result<T, Answer> {
    let read = read_request(head, lines, |line, fields| {
        if fields.len() > most_fields {
            return Err(TOO_MANY_FIELDS);
        }
        let version = line.version;
        let raw = RawRequest { version, method: line.method, target: line.target, authority: None, fields };
        let request = Request::new(raw)?;
        let plan = plan_request(&request, version).map_err(|why| Answer::new(400, why))?;
        Ok(then(request, plan))
    });
    read.unwrap_or_else(|bad| {
        Err(match bad {
            BadHead::Malformed(why) => Answer::new(400, why),
            BadHead::Fields => TOO_MANY_FIELDS,
        })
    })
}

const TOO_MANY_FIELDS: Answer = Answer::new(431, "the request has too many fields");

/// Judges a request. What passes is appended to `out` as it goes on.
pub(super) fn judge<P: Policy, R: Recorder, C: Connect>(
    session: &Session<'_, P, R, C>,
    head: &[u8],
    lines: usize,
    out: &mut Vec<u8>,
) -> Judged {
    let counters = &session.engine.counters;
    let judged = read(head, lines, session.engine.limits.fields, |request, plan| {
        let version = plan.version;
        let message = Message::Http(request);
        let ruling = session.rules().judge(&message);
        let Message::Http(request) = &message else {
            return Judged::Bad(Answer::new(400, "this is no HTTP request"));
        };
        let pending = session.begin(kind(request, version, ruling.mismatched()), &ruling, Since::Now);
        if !ruling.passes {
            count(&counters.requests_refused);
            return Judged::Refused(plan, pending);
        }
        put_request(out, request, &plan, ruling.edits());
        Judged::Passes(plan, pending)
    });
    judged.unwrap_or_else(|answer| {
        count(counters.unjudged(answer.status));
        session.record_failed(unreadable(Version::Http11, answer.status), &answer.reason());
        Judged::Bad(answer)
    })
}

/// What a record says of a request.
pub(super) fn kind<'r>(request: &Request<'_>, version: Version, mismatched: impl Iterator<Item = &'r str>) -> Kind {
    Kind::Http {
        asked: Asked::new(
            request.method(),
            request.path().unwrap_or_default(),
            request.authority().unwrap_or_default(),
        ),
        status: None,
        version,
        mismatched: mismatched.map(Box::from).collect(),
    }
}

/// Whether rules let the request of this head pass, as when they have changed while it is answered.
pub(super) fn still_passes(rules: &Rules, head: &[u8], lines: usize) -> bool {
    read(head, lines, usize::MAX, |request, _plan| rules.judge(&Message::Http(request)).passes).unwrap_or(false)
}
