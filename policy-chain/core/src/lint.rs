//! What is wrong, doubtful or without effect in policies, for their authors: `sluice policy check`.
//!
//! Nothing is guessed. That a rule is covered by another one is said only where it follows from the selectors, blocks and
//! ports as they are written; that something does not exist, only where the documents show enough of the cluster.
//! `docs/policy-check.md` has an example of each finding.

mod cover;
mod id;
mod known;
mod peers;
mod place;
mod ports;
mod reach;
mod read;
mod rules;
mod single;
mod values;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use self::known::Known;
use self::rules::{Effect, Rules};
use crate::flow::{Direction, RuleRef};
use crate::manifest::ManifestError;
use crate::model::Policy;
use crate::parse::cursor::shown;

pub use self::id::{Id, Severity};

/// Findings that are told; those after are only counted.
pub const MAX_FINDINGS: usize = 10_000;

/// Pairs of rules that are compared.
const MAX_COMPARED: usize = 4_000_000;

/// What a document is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Its faults are told.
    Checked,
    /// It shows what the cluster holds; nothing is told of it.
    Cluster,
}

/// An object of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The file, as the user named it.
    pub file: String,
    /// The line where its document begins, counted from 1.
    pub line: usize,
    /// The object.
    pub value: Value,
    /// What it is there for.
    pub role: Role,
}

/// Something to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which of the kinds of findings.
    pub id: Id,
    /// The file.
    pub file: String,
    /// The line where the object's document begins, counted from 1.
    pub line: usize,
    /// The object, e.g. `NetworkPolicy shop/db`; empty if it is about the file.
    pub object: String,
    /// Where in the object, e.g. `spec.ingress[0]`; empty if it is about the whole.
    pub path: String,
    /// What stands there, as JSON, cut; empty if nothing does.
    pub value: String,
    /// What is found.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Finding {
    /// A file, or a document of one, that cannot be read.
    #[must_use]
    pub fn unreadable(file: &str, line: usize, message: String, hint: &str) -> Self {
        let (file, hint) = (file.to_owned(), hint.to_owned());
        Self {
            id: Id::Unreadable,
            file,
            line,
            object: String::new(),
            path: String::new(),
            value: String::new(),
            message,
            hint,
        }
    }

    /// A document that is no YAML or JSON that can be read.
    #[must_use]
    pub fn of_manifest(file: &str, error: &ManifestError) -> Self {
        let message =
            format!("document {}, line {}, column {}: {}", error.document, error.line, error.column, error.fault);
        Self::unreadable(file, error.line, message, error.hint)
    }
}

/// What came of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// The findings: by file and document in the order given, the worst of an object first.
    pub findings: Vec<Finding>,
    /// Findings that are not told because there were [`MAX_FINDINGS`].
    pub more: usize,
    /// Objects that were checked.
    pub objects: usize,
    /// Policies among them.
    pub policies: usize,
}

/// Checks all documents together.
#[must_use]
pub fn check(documents: &[Document]) -> Checked {
    let mut findings = Findings::default();
    let read = read::read(documents, &mut findings);
    let known = Known::of(documents, &read);
    let rules = Rules::of(read.items.iter().map(|item| item.policy.as_ref()));
    for item in read.items.iter().filter(|item| item.is_checked()) {
        single::check(item, &mut findings);
        known::check(item, &known, &mut findings);
    }
    let mut set = Set { items: &read.items, rules: &rules, findings: &mut findings };
    let compared = set.compare();
    let looked = reach::check(&mut set);
    if !(compared && looked) || known.is_exhausted() {
        set.tell_cut();
    }
    findings.all.sort_by_key(|(index, finding)| (*index, std::cmp::Reverse(finding.id.severity())));
    Checked {
        findings: findings.all.into_iter().map(|(_, finding)| finding).collect(),
        more: findings.more,
        objects: documents.iter().filter(|document| document.role == Role::Checked).count(),
        policies: read.items.iter().filter(|item| item.is_checked()).count(),
    }
}

/// Rules that can be left out of a policy set without a change of any verdict, each with a rule that covers it.
#[must_use]
pub fn shadowed(policies: &[Arc<Policy>]) -> Vec<(RuleRef, RuleRef)> {
    let rules = Rules::of(policies.iter().map(AsRef::as_ref));
    let covered = cover::covered(&rules, &mut Budget(MAX_COMPARED));
    let pairs = covered.iter().filter_map(|one| Some((rules.all.get(one.rule)?, rules.all.get(one.by)?)));
    pairs.map(|(rule, by)| (rule.rule.clone(), by.rule.clone())).collect()
}

/// How much is compared yet.
#[derive(Debug, Clone, Copy)]
struct Budget(usize);

impl Budget {
    const fn is_left(self) -> bool {
        self.0 > 0
    }

    const fn take(&mut self) -> bool {
        let left = self.0.checked_sub(1);
        if let Some(left) = left {
            self.0 = left;
        }
        left.is_some()
    }
}

/// A policy of a document.
#[derive(Debug)]
struct Item<'a> {
    /// Which document.
    index: usize,
    document: &'a Document,
    policy: Arc<Policy>,
}

impl Item<'_> {
    fn is_checked(&self) -> bool {
        self.document.role == Role::Checked
    }
}

/// What is found so far, each with the index of its document.
#[derive(Debug, Default)]
struct Findings {
    all: Vec<(usize, Finding)>,
    more: usize,
}

impl Findings {
    /// About a document.
    fn tell(
        &mut self,
        (index, document, object): (usize, &Document, String),
        id: Id,
        path: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if document.role != Role::Checked {
            return;
        }
        if self.all.len() >= MAX_FINDINGS {
            self.more = self.more.saturating_add(1);
            return;
        }
        let value = place::value_at(&document.value, path).map(shown).unwrap_or_default();
        let finding = Finding {
            id,
            file: document.file.clone(),
            line: document.line,
            object,
            path: path.to_owned(),
            value,
            message: message.into(),
            hint: hint.into(),
        };
        self.all.push((index, finding));
    }

    /// About a policy.
    fn of(&mut self, item: &Item<'_>, id: Id, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.tell((item.index, item.document, item.policy.id().to_string()), id, path, message, hint);
    }
}

/// The policy set, for what is between policies.
struct Set<'a, 'b> {
    items: &'a [Item<'a>],
    rules: &'a Rules,
    findings: &'b mut Findings,
}

impl<'a> Set<'a, '_> {
    /// What rules do to each other. False: there were too many to compare all.
    fn compare(&mut self) -> bool {
        let rules = self.rules;
        let mut budget = Budget(MAX_COMPARED);
        let covered = cover::covered(rules, &mut budget);
        let dead: BTreeSet<usize> = covered.iter().map(|one| one.rule).collect();
        let alive = rules.all.iter().enumerate().filter(|(index, _)| !dead.contains(index));
        let alive: BTreeSet<ListOf> = alive.map(|(_, rule)| list_of(rule)).collect();
        for one in &covered {
            let Some((item, rule, by)) = self.pair(one) else { continue };
            let deny = matches!(by.effect, Effect::Deny);
            let other = Self::named(by, rule);
            let message = match &rule.effect {
                Effect::Ordered { .. } => {
                    format!("it never decides: {other} comes first and matches all that it matches")
                }
                _ if deny => format!("it allows nothing: {other} denies all of it, and a deny wins over every allow"),
                _ => format!("it adds nothing: {other} allows all of it"),
            };
            let removal = removal(item, rule, alive.contains(&list_of(rule)));
            let or = match &rule.effect {
                Effect::Ordered { .. } => "put it first, or make the other one narrower",
                _ if deny => "or make the deny narrower",
                _ => "or make the other one narrower",
            };
            let hint = format!("{removal}, {or}");
            self.findings.of(item, Id::ShadowedRule, &place::rule(&rule.rule), message, hint);
        }
        for (one, port) in cover::toothless(rules, &mut budget) {
            let Some((item, rule, by)) = self.pair(&one).filter(|_| !dead.contains(&one.rule)) else { continue };
            let other = Self::named(by, rule);
            let message = format!(
                "its application rules refuse nothing: {other} allows the same peers on these ports without any"
            );
            let path = format!("{}.toPorts[{port}]", place::rule(&rule.rule));
            let hint =
                "narrow the other rule, or remove it; or remove the application rules, if traffic need not be seen";
            self.findings.of(item, Id::ToothlessApplicationRule, &path, message, hint);
        }
        for (one, port) in cover::mixed(rules, &mut budget) {
            let Some((item, rule, by)) = self.pair(&one) else { continue };
            let other = Self::named(by, rule);
            let message = format!(
                "{other} has DNS rules on the same port, for the same peers: a port has one application protocol, so both grant nothing"
            );
            let path = format!("{}.toPorts[{port}]", place::rule(&rule.rule));
            self.findings.of(item, Id::MixedApplicationRules, &path, message, "give each protocol ports of its own");
        }
        for one in cover::ties(rules, &mut budget) {
            let Some((item, rule, by)) = self.pair(&one) else { continue };
            let other = Self::named(by, rule);
            let message = format!(
                "{} and {other} have the same priority and may match the same traffic; Sluice takes Deny before Pass before Accept, others may not",
                place::rule(&rule.rule)
            );
            self.findings.of(
                item,
                Id::PriorityTie,
                "spec.priority",
                message,
                "give the two policies different priorities",
            );
        }
        budget.is_left()
    }

    /// Tells that not everything was looked at.
    fn tell_cut(&mut self) {
        if let Some(item) = self.items.iter().find(|item| item.is_checked()) {
            let message = "there are too many rules and pods to compare all of them: findings may be missing";
            self.findings.of(item, Id::NotAllCompared, "", message, "check fewer files at a time");
        }
    }

    fn pair(&self, one: &cover::Covered) -> Option<(&'a Item<'a>, &'a rules::Rule, &'a rules::Rule)> {
        let (rule, by) = (self.rules.all.get(one.rule)?, self.rules.all.get(one.by)?);
        Some((self.items.get(rule.policy)?, rule, by))
    }

    /// A rule, as a message about another one names it.
    fn named(rule: &rules::Rule, beside: &rules::Rule) -> String {
        let path = place::rule(&rule.rule);
        if rule.policy == beside.policy { path } else { format!("{path} of {}", rule.rule.policy) }
    }
}

/// The rules of a policy, or of an element of `specs`, for a direction.
type ListOf = (usize, u16, Direction);

fn list_of(rule: &rules::Rule) -> ListOf {
    (rule.policy, rule.rule.spec, rule.rule.direction)
}

/// How a rule that does nothing is taken out so that nothing changes. A list of rules isolates pods by being there: where no
/// other rule of it is left (`alive`), that has to be said in another way.
fn removal(item: &Item<'_>, rule: &rules::Rule, alive: bool) -> &'static str {
    match item.policy.as_ref() {
        _ if alive => "remove it",
        // They isolate nobody.
        Policy::Cluster(_) => "remove it",
        Policy::Network(_) => {
            let types = place::value_at(&item.document.value, "spec.policyTypes").and_then(Value::as_array);
            // Without types a policy is for ingress, and for egress if it has rules for it (Network Policies).
            match (types.is_some_and(|types| !types.is_empty()), rule.rule.direction) {
                (true, _) | (false, Direction::Ingress) => "remove it",
                (false, Direction::Egress) => {
                    "write policyTypes: [Ingress, Egress] and remove it (without any egress rule, only policyTypes isolates)"
                }
            }
        }
        Policy::Cilium(_) => "write {} in its place (which allows nothing, and keeps the default deny of the list)",
    }
}

#[cfg(test)]
mod tests;
