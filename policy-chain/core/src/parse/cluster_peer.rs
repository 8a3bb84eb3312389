//! Subjects and peers of the cluster-wide kinds.

use std::collections::BTreeSet;

use super::Severity;
use super::cidr::{CidrForm, cidr};
use super::cluster_network_policy::Dialect;
use super::cursor::{Cursor, Faults, Fields, Report};
use super::selector::label_selector;
use crate::flow::Direction;
use crate::l7::dns::NamePattern;
use crate::model::Usable;
use crate::model::cluster_network_policy::{Action, ClusterPeer, ClusterSubject};

/// Blocks of a `networks`, and names of a `domainNames`, at most.
const MAX_OF_PEER: usize = 25;

/// Reads `subject`: `namespaces` or `pods`.
///
/// # Errors
/// It cannot be told who is meant.
pub(super) fn subject(field: &Cursor<'_>, report: &mut Report, dialect: &Dialect) -> Usable<ClusterSubject> {
    let mut fields = field.fields(report)?;
    let mut found = Found::default();
    found.subject(&mut fields, report, dialect, |subject| subject);
    found.one(fields, report, "namespaces, pods")
}

/// Reads an element of `from` or `to`. `action` is that of its rule, if it is known.
///
/// # Errors
/// It cannot be told who is meant: the rule fails closed.
pub(super) fn peer(
    element: &Cursor<'_>,
    report: &mut Report,
    dialect: &Dialect,
    direction: Direction,
    action: Option<Action>,
) -> Usable<ClusterPeer> {
    let mut fields = element.fields(report)?;
    let mut found = Found::default();
    found.subject(&mut fields, report, dialect, ClusterPeer::Pods);
    if direction == Direction::Ingress {
        return found.one(fields, report, "namespaces, pods");
    }
    if dialect.nodes
        && let Some(nodes) = fields.take("nodes")
    {
        let selector = label_selector(&nodes, report, Severity::Unusable);
        found.keep(selector.map(ClusterPeer::Nodes));
    }
    if let Some(field) = fields.take("networks") {
        found.keep(networks(&field, report, dialect));
    }
    if !dialect.names_with.is_empty()
        && let Some(field) = fields.take("domainNames")
    {
        found.keep(names(&field, report, dialect, action));
    }
    found.one(fields, report, dialect.egress_peers())
}

/// What an object holds that has to have exactly one field.
struct Found<T> {
    count: usize,
    value: Option<T>,
    faults: Faults,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { count: 0, value: None, faults: Faults::default() }
    }
}

impl<T> Found<T> {
    fn keep(&mut self, value: Usable<T>) {
        self.count += 1;
        self.value = self.faults.keep(value);
    }

    /// Takes `namespaces` and `pods`.
    fn subject(
        &mut self,
        fields: &mut Fields<'_>,
        report: &mut Report,
        dialect: &Dialect,
        make: impl Fn(ClusterSubject) -> T,
    ) {
        if let Some(field) = fields.take("namespaces") {
            let selector = label_selector(&field, report, Severity::Unusable);
            self.keep(selector.map(|selector| make(ClusterSubject::Namespaces(selector))));
        }
        if let Some(field) = fields.take("pods") {
            self.keep(pods(&field, report, dialect).map(&make));
        }
    }

    fn one(mut self, fields: Fields<'_>, report: &mut Report, names: &str) -> Usable<T> {
        let path = fields.path().to_owned();
        self.faults.keep(fields.finish(report));
        match (self.value, self.count) {
            (Some(value), 1) => self.faults.or(value),
            (_, count) => Err(match self.faults.first() {
                Some(fault) => fault.clone(),
                None => report.refused(&path, format!("has {count} of the fields {names}; exactly one is needed")),
            }),
        }
    }
}

/// `{namespaceSelector, podSelector}`.
fn pods(field: &Cursor<'_>, report: &mut Report, dialect: &Dialect) -> Usable<ClusterSubject> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let namespaces = match fields.take("namespaceSelector") {
        Some(selector) => label_selector(&selector, report, Severity::Unusable),
        None if dialect.namespaces_optional => Ok(Default::default()),
        None => Err(report.refused(&fields.path_of("namespaceSelector"), "is missing")),
    };
    let namespaces = faults.keep(namespaces).unwrap_or_default();
    let pods = fields.required(report, "podSelector");
    let pods = pods.and_then(|selector| label_selector(&selector, report, Severity::Unusable));
    let pods = faults.keep(pods).unwrap_or_default();
    faults.keep(fields.finish(report));
    faults.or(ClusterSubject::Pods { namespaces, pods })
}

fn networks(field: &Cursor<'_>, report: &mut Report, dialect: &Dialect) -> Usable<ClusterPeer> {
    let elements = field.elements_between(report, 1, MAX_OF_PEER)?;
    let mut faults = Faults::default();
    no_doubles(&elements, report, &mut faults);
    let form = if dialect.cidrs_unchecked { CidrForm::Unchecked } else { CidrForm::Strict };
    let blocks = elements.iter().filter_map(|element| faults.keep(cidr(element, report, form))).collect();
    faults.or(ClusterPeer::Networks(blocks))
}

fn names(field: &Cursor<'_>, report: &mut Report, dialect: &Dialect, action: Option<Action>) -> Usable<ClusterPeer> {
    let mut faults = Faults::default();
    let names = faults.keep(domain_names(field, report, MAX_OF_PEER)).unwrap_or_default();
    if action.is_some_and(|action| !dialect.names_with.contains(&action)) {
        // A deny by name would have to know every address of the name beforehand.
        let message = "domain names cannot be used with this action: what a name resolves to is not known beforehand";
        faults.keep::<()>(Err(report.fault(dialect.names_fault, &field.path, message)));
    }
    faults.or(ClusterPeer::Names(names))
}

/// Reads `domainNames`: from 1 to `most` names, or `*.` and a name.
///
/// # Errors
/// One of them is none.
pub(super) fn domain_names(field: &Cursor<'_>, report: &mut Report, most: usize) -> Usable<Vec<NamePattern>> {
    let elements = field.elements_between(report, 1, most)?;
    let mut faults = Faults::default();
    no_doubles(&elements, report, &mut faults);
    let mut names = Vec::new();
    for element in &elements {
        let name = element.text(report).and_then(|text| {
            NamePattern::domain(text).map_err(|fault| report.refused(&element.path, fault.to_string()))
        });
        names.extend(faults.keep(name));
    }
    faults.or(names)
}

/// Lists that the API has as sets hold nothing twice.
fn no_doubles(elements: &[Cursor<'_>], report: &mut Report, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for element in elements {
        if element.value.as_str().is_some_and(|text| !seen.insert(text)) {
            let message = format!("{} stands here twice", element.shown());
            faults.keep::<()>(Err(report.refused(&element.path, message)));
        }
    }
}
