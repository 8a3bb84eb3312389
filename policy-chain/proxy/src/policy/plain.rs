//! What policyd tells as plain data, made ready to judge by.

use std::sync::Arc;

use sluice_contract::proxy::{self as plain, Mismatch};
use sluice_policy_core::l7::dns::{InvalidName, NamePattern};
use sluice_policy_core::l7::http::{HeaderMatchSpec, HttpRule, HttpRuleSpec, InvalidHttpRule, MismatchAction};
use sluice_policy_core::l7::sni::ServerNamePattern;
use sluice_policy_core::model::cilium::Application;

use super::{Looks, RuleList};

/// Why a list of rules cannot be used. policyd has read the same rules, so this is a fault of one of the two.
#[derive(Debug, thiserror::Error)]
pub enum InvalidList {
    /// A rule for HTTP.
    #[error("an HTTP rule of it cannot be used")]
    Http(#[from] InvalidHttpRule),
    /// A pattern of names.
    #[error("a pattern of it cannot be used")]
    Name(#[from] InvalidName),
}

/// A list of rules.
pub(super) fn list(list: &plain::List) -> Result<RuleList, InvalidList> {
    let application = match &list.application {
        plain::Application::Http(rules) => {
            let rules = rules.iter().map(|rule| Ok(Arc::new(HttpRule::new(spec(rule))?)));
            Application::Http(rules.collect::<Result<_, InvalidHttpRule>>()?)
        }
        plain::Application::Dns(patterns) => {
            Application::Dns(patterns.iter().map(|text| NamePattern::cilium(text)).collect::<Result<_, InvalidName>>()?)
        }
        plain::Application::ServerNames(patterns) => Application::ServerNames(
            patterns.iter().map(|text| ServerNamePattern::new(text)).collect::<Result<_, InvalidName>>()?,
        ),
    };
    Ok(RuleList::new(list.rule.as_str().into(), application))
}

fn spec(rule: &plain::HttpRule) -> HttpRuleSpec {
    let header = |header: &plain::HeaderMatch| HeaderMatchSpec {
        name: header.name.clone(),
        value: header.value.clone(),
        mismatch: match header.mismatch {
            Mismatch::Refuse => MismatchAction::Refuse,
            Mismatch::Log => MismatchAction::Log,
            Mismatch::Add => MismatchAction::Add,
            Mismatch::Delete => MismatchAction::Delete,
            Mismatch::Replace => MismatchAction::Replace,
        },
    };
    HttpRuleSpec {
        path: rule.path.clone(),
        method: rule.method.clone(),
        host: rule.host.clone(),
        headers: rule.headers.clone(),
        header_matches: rule.header_matches.iter().map(header).collect(),
    }
}

/// What has to be read of a flow to show it.
pub(super) const fn looks(see: plain::Protocol) -> Looks {
    match see {
        plain::Protocol::Http => Looks::Http,
        plain::Protocol::Dns => Looks::Dns,
        plain::Protocol::Tls => Looks::Tls,
    }
}
