//! The lists of rules of a decision, and the way to the few of many rules that may have a request.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use sluice_policy_core::l7::http::{HttpRule, Index, Outcome, Request};
use sluice_policy_core::model::cilium::Application;

use super::{RuleList, Ruling};

/// So many rules are asked one after the other: that is quicker than to look for those that may match.
const FEW: usize = 8;

/// Lists of rules, in their order. A clone shares them.
#[derive(Clone, Default)]
pub struct Lists(Arc<Indexed>);

#[derive(Default)]
struct Indexed {
    lists: Vec<Arc<RuleList>>,
    index: Option<ListIndex>,
}

/// The HTTP rules of all lists.
pub(super) struct ListIndex {
    index: Index,
    /// By their place in the index: the list of each.
    rules: Vec<(usize, Arc<HttpRule>)>,
}

impl Lists {
    /// The index of the HTTP rules, if there are many.
    pub(super) fn index(&self) -> Option<&ListIndex> {
        self.0.index.as_ref()
    }
}

impl From<Vec<Arc<RuleList>>> for Lists {
    fn from(lists: Vec<Arc<RuleList>>) -> Self {
        let index = ListIndex::of(&lists);
        Self(Arc::new(Indexed { lists, index }))
    }
}

impl<const N: usize> From<[Arc<RuleList>; N]> for Lists {
    fn from(lists: [Arc<RuleList>; N]) -> Self {
        lists.to_vec().into()
    }
}

impl FromIterator<Arc<RuleList>> for Lists {
    fn from_iter<I: IntoIterator<Item = Arc<RuleList>>>(lists: I) -> Self {
        lists.into_iter().collect::<Vec<_>>().into()
    }
}

impl Deref for Lists {
    type Target = [Arc<RuleList>];

    fn deref(&self) -> &Self::Target {
        &self.0.lists
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Lists {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl ListIndex {
    fn of(lists: &[Arc<RuleList>]) -> Option<Self> {
        let mut rules = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            match &list.application {
                Application::Http(http) => rules.extend(http.iter().map(|rule| (number, Arc::clone(rule)))),
                Application::Dns(_) | Application::ServerNames(_) => {}
                // It lets everything pass, whatever the index says.
                Application::None => return None,
            }
        }
        (rules.len() > FEW).then(|| Self { index: Index::new(rules.iter().map(|(_, rule)| &**rule)), rules })
    }

    /// What the rules of `lists`, of which this is the index, say of a request: the same as if all were asked.
    pub(super) fn judge<'r>(&'r self, request: &Request<'_>, lists: &'r [Arc<RuleList>], ruling: &mut Ruling<'r>) {
        let mut found = false;
        for number in self.index.candidates(request) {
            let Some((list, rule)) = self.rules.get(number) else { continue };
            // Of those after the first that matches only changes of headers matter.
            if found && rule.spec().header_matches.is_empty() {
                continue;
            }
            let Outcome::Pass(pass) = rule.matches(request) else { continue };
            if !found && let Some(list) = lists.get(*list) {
                found = true;
                (ruling.passes, ruling.rule, ruling.reason) = (true, Some(&list.rule), &list.rule);
            }
            if pass.log() {
                ruling.headers.push(pass);
            }
        }
    }
}
