//! Which of many rules may match a request, without asking all of them.
//!
//! A rule stands under the most telling of what it asks for: whole paths, whole hosts, or how a path begins. What has none of
//! these is asked every time. A rule that is found still has to be asked; one that is not found does not match.

use std::collections::BTreeMap;

use super::request::Request;
use super::rule::HttpRule;

/// Rules, by what a request must have to be matched by them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Index {
    paths: BTreeMap<Box<str>, Vec<usize>>,
    hosts: BTreeMap<Box<str>, Vec<usize>>,
    /// How paths begin, by the length of that.
    heads: BTreeMap<usize, BTreeMap<Box<str>, Vec<usize>>>,
    others: Vec<usize>,
}

/// What a rule stands under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'r> {
    /// One of these texts, whole.
    Texts(&'r [Box<str>]),
    /// How the text begins; empty: in any way.
    Head(&'r str),
}

impl Index {
    /// Of rules, which are known by their place.
    pub fn new<'r>(rules: impl IntoIterator<Item = &'r HttpRule>) -> Self {
        let mut index = Self::default();
        for (number, rule) in rules.into_iter().enumerate() {
            index.add(number, rule);
        }
        index
    }

    fn add(&mut self, number: usize, rule: &HttpRule) {
        let (path, host) = rule.keys();
        match (path, host) {
            (Key::Texts(texts), _) => put(&mut self.paths, texts, number),
            (_, Key::Texts(texts)) => put(&mut self.hosts, texts, number),
            // All paths begin with a slash.
            (Key::Head(head), _) if head.len() > 1 => {
                put(self.heads.entry(head.len()).or_default(), &[head.into()], number);
            }
            _ => self.others.push(number),
        }
    }

    /// The places of all rules that match a request, and of others that may not, ascending and each once.
    #[must_use]
    pub fn candidates(&self, request: &Request<'_>) -> Vec<usize> {
        let mut found = self.others.clone();
        let before = found.len();
        if let Some(path) = request.path() {
            found.extend(self.paths.get(path).into_iter().flatten());
            for (length, heads) in &self.heads {
                let Some(head) = path.get(..*length) else { break };
                found.extend(heads.get(head).into_iter().flatten());
            }
        }
        if let Some(host) = request.authority() {
            found.extend(self.hosts.get(host).into_iter().flatten());
        }
        if found.len() > before {
            found.sort_unstable();
        }
        found
    }
}

fn put(map: &mut BTreeMap<Box<str>, Vec<usize>>, texts: &[Box<str>], number: usize) {
    for text in texts {
        let numbers = map.entry(text.clone()).or_default();
        // `GET|GET` is one.
        if numbers.last() != Some(&number) {
            numbers.push(number);
        }
    }
}

#[cfg(test)]
mod tests;
