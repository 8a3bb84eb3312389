//! What the engine means, as plain data.

use sluice_contract::proxy::{Application, HeaderMatch, HttpRule, List, Mismatch, Protocol, Verdict};
use sluice_policy_core::flow::{self, AppProtocol, Judgement, Outcome};
use sluice_policy_core::l7::http::{self, MismatchAction};
use sluice_policy_core::model::cilium;

/// A list of application rules; none where there are none.
pub(super) fn list(list: &flow::List) -> Option<List> {
    let application = match &list.application {
        cilium::Application::None => return None,
        cilium::Application::Http(rules) => Application::Http(rules.iter().map(|rule| http_rule(rule)).collect()),
        cilium::Application::Dns(patterns) => Application::Dns(patterns.iter().map(ToString::to_string).collect()),
        cilium::Application::ServerNames(patterns) => {
            Application::ServerNames(patterns.iter().map(ToString::to_string).collect())
        }
    };
    Some(List { rule: list.at.to_string(), application })
}

fn http_rule(rule: &http::HttpRule) -> HttpRule {
    let spec = rule.spec();
    let header = |header: &http::HeaderMatchSpec| HeaderMatch {
        name: header.name.clone(),
        value: header.value.clone(),
        mismatch: match header.mismatch {
            MismatchAction::Refuse => Mismatch::Refuse,
            MismatchAction::Log => Mismatch::Log,
            MismatchAction::Add => Mismatch::Add,
            MismatchAction::Delete => Mismatch::Delete,
            MismatchAction::Replace => Mismatch::Replace,
        },
    };
    HttpRule {
        path: spec.path.clone(),
        method: spec.method.clone(),
        host: spec.host.clone(),
        headers: spec.headers.clone(),
        header_matches: spec.header_matches.iter().map(header).collect(),
    }
}

/// A judgement, with the numbers that its lists have.
pub(super) fn verdict(judgement: &Judgement, number: &mut impl FnMut(&flow::Lists) -> Option<Vec<u32>>) -> Verdict {
    let plain = |passes, reason: String| Verdict { lists: Vec::new(), see: None, passes, reason };
    match &judgement.verdict {
        flow::Verdict::Allow | flow::Verdict::Defer => plain(true, judgement.reason.to_string()),
        flow::Verdict::Deny => plain(false, judgement.reason.to_string()),
        flow::Verdict::Redirect(proxied) => {
            let Some(lists) = number(&proxied.lists) else {
                return plain(false, "there are more application rules than the proxy takes".to_owned());
            };
            let (passes, reason) = match &proxied.otherwise {
                Outcome::Allow(reason) => (true, reason.to_string()),
                Outcome::Deny(reason) => (false, reason.to_string()),
            };
            Verdict { lists, see: proxied.see.map(protocol), passes, reason }
        }
    }
}

const fn protocol(protocol: AppProtocol) -> Protocol {
    match protocol {
        AppProtocol::Http => Protocol::Http,
        AppProtocol::Dns => Protocol::Dns,
        AppProtocol::Tls => Protocol::Tls,
    }
}
