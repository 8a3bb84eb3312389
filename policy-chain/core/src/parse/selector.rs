//! `LabelSelector`, with what the API checks of it (apimachinery, `pkg/apis/meta/v1/validation`, `ValidateLabelSelector`).

use serde_json::Value;

use super::Severity;
use super::cursor::{Cursor, Faults, Report, quoted};
use super::metadata::NameForm;
use crate::model::selector::{LabelSelector, Operator, Requirement};
use crate::model::{Text, Usable};

/// Longest label value, and longest label key without its prefix (apimachinery, `pkg/util/validation`).
const LONGEST: usize = 63;

/// Reads a selector. `grammar` is how much it matters when a key, a value or an operator is none: [`Severity::Refused`]
/// where the API server looks at them, [`Severity::Unusable`] where it does not (custom resources).
///
/// # Errors
/// A part of it cannot be used. The rest alone would select more than its author meant.
pub(super) fn label_selector(field: &Cursor<'_>, report: &mut Report, grammar: Severity) -> Usable<LabelSelector> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let mut requirements = Vec::new();
    if let Some(labels) = fields.take("matchLabels") {
        match_labels(&labels, report, grammar, &mut faults, &mut requirements);
    }
    let expressions = fields.take("matchExpressions").map_or(Ok(Vec::new()), |field| field.elements(report));
    for expression in faults.keep(expressions).unwrap_or_default() {
        requirements.extend(faults.keep(requirement(&expression, report, grammar)));
    }
    faults.keep(fields.finish(report));
    requirements.sort();
    requirements.dedup();
    faults.or(LabelSelector { requirements })
}

fn match_labels(
    field: &Cursor<'_>,
    report: &mut Report,
    grammar: Severity,
    faults: &mut Faults,
    requirements: &mut Vec<Requirement>,
) {
    let Value::Object(map) = field.value else {
        faults.keep(field.fields(report));
        return;
    };
    for (key, value) in map {
        let place = Cursor { value, path: field.path.clone() };
        let Value::String(text) = value else {
            let message = format!("{}: {} is not a string", quoted(key), place.shown());
            faults.keep::<()>(Err(report.refused(&field.path, message)));
            continue;
        };
        let key = faults.keep(label_key(key, &field.path, report, grammar));
        let value = faults.keep(label_value(text, &field.path, report, grammar));
        if let (Some(key), Some(value)) = (key, value) {
            requirements.push(Requirement { key, operator: Operator::In, values: vec![value] });
        }
    }
}

fn requirement(field: &Cursor<'_>, report: &mut Report, grammar: Severity) -> Usable<Requirement> {
    let mut fields = field.fields(report)?;
    let mut faults = Faults::default();
    let key = fields.required(report, "key").and_then(|key| {
        let text = key.text(report)?;
        label_key(text, &key.path, report, grammar)
    });
    let key = faults.keep(key);
    let operator = fields.required(report, "operator").and_then(|operator| {
        Ok(match operator.text(report)? {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                let message = format!("{} is none of In, NotIn, Exists, DoesNotExist", quoted(other));
                return Err(report.fault(grammar, &operator.path, message));
            }
        })
    });
    let operator = faults.keep(operator);
    let path = fields.path_of("values");
    let given = fields.take("values").map_or(Ok(Vec::new()), |field| field.elements(report));
    let given = faults.keep(given);
    let mut values: Vec<Text> = Vec::new();
    for value in given.iter().flatten() {
        let text = value.text(report).and_then(|text| label_value(text, &value.path, report, grammar));
        values.extend(faults.keep(text));
    }
    let fault = match (operator, given.as_ref().map(Vec::is_empty)) {
        (Some(Operator::In | Operator::NotIn), Some(true)) => Some("is empty; In and NotIn need a value"),
        (Some(Operator::Exists | Operator::DoesNotExist), Some(false)) => {
            Some("is not empty; Exists and DoesNotExist have no values")
        }
        _ => None,
    };
    if let Some(message) = fault {
        faults.keep::<()>(Err(report.fault(grammar, &path, message)));
    }
    faults.keep(fields.finish(report));
    values.sort();
    values.dedup();
    match (key, operator) {
        (Some(key), Some(operator)) => faults.or(Requirement { key, operator, values }),
        // Then there is a fault, and `or` gives it back: the requirement is never seen.
        _ => faults.or(Requirement { key: "".into(), operator: Operator::In, values }),
    }
}

/// Reads a label key.
///
/// # Errors
/// It is none.
pub(super) fn label_key(key: &str, path: &str, report: &mut Report, grammar: Severity) -> Usable<Text> {
    match broken_key_rule(key) {
        None => Ok(key.into()),
        Some(rule) => Err(report.fault(grammar, path, format!("{} is not a label key: {rule}", quoted(key)))),
    }
}

/// Reads a label value.
///
/// # Errors
/// It is none.
pub(super) fn label_value(value: &str, path: &str, report: &mut Report, grammar: Severity) -> Usable<Text> {
    if value.is_empty() || is_label_name(value) {
        return Ok(value.into());
    }
    let rule = "at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, or nothing";
    Err(report.fault(grammar, path, format!("{} is not a label value: {rule}", quoted(value))))
}

/// The rule that a label key breaks, if it breaks one: `name`, or `prefix/name` with a DNS name as prefix.
fn broken_key_rule(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| NameForm::Subdomain.broken_rule(prefix).is_some()) {
        return Some("what is before '/' has to be a DNS name of at most 253 lower case characters");
    }
    if is_label_name(name) {
        return None;
    }
    Some(
        "1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends; a DNS name and '/' may be before",
    )
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`, 63 characters at most.
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let at_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    bytes.len() <= LONGEST
        && at_end(bytes.first())
        && at_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests;
