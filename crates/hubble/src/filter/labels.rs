//! Label selectors, in Kubernetes' syntax, on labels of flows: `k8s:app=web`.

use super::{FilterError, wrong};

/// A requirement for one label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    /// It has one of these values.
    In(Vec<String>),
    /// It has none of these, or is not there.
    NotIn(Vec<String>),
    /// It is there.
    Exists,
    /// It is not.
    Missing,
}

/// A selector. Keys may begin with where a label is from (`k8s:`, `reserved:`); without, it does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<(String, Requirement)>);

impl Selector {
    pub(super) fn read(field: &'static str, text: &str) -> Result<Self, FilterError> {
        let requirements: Option<Vec<_>> = parts(text).into_iter().map(requirement).collect();
        match requirements {
            Some(requirements) if !requirements.is_empty() => Ok(Self(requirements)),
            _ => Err(wrong(field, text, "is no label selector; examples: app=web, env in (a, b), !old")),
        }
    }

    pub(super) fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|(key, requirement)| {
            let value = labels.iter().find_map(|label| value_of(label, key));
            match requirement {
                Requirement::In(values) => value.is_some_and(|value| values.iter().any(|one| one == value)),
                Requirement::NotIn(values) => value.is_none_or(|value| values.iter().all(|one| one != value)),
                Requirement::Exists => value.is_some(),
                Requirement::Missing => value.is_none(),
            }
        })
    }
}

/// The value of `label`, if it is the one of this key.
fn value_of<'l>(label: &'l str, key: &str) -> Option<&'l str> {
    let (name, value) = label.split_once('=').unwrap_or((label, ""));
    let bare = name.split_once(':').map_or(name, |(_, bare)| bare);
    (name == key || bare == key || (key.strip_prefix("any:") == Some(bare))).then_some(value)
}

/// What is between commas that are not in parentheses.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    text.split(|character: char| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
    .map(str::trim)
    .collect()
}

fn requirement(text: &str) -> Option<(String, Requirement)> {
    let key = |text: &str| {
        let text = text.trim();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
        (!text.is_empty() && text.bytes().all(allowed)).then(|| text.to_owned())
    };
    let list = |text: &str| -> Option<Vec<String>> {
        let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some((name, values)) = text.split_once(" notin ") {
        return Some((key(name)?, Requirement::NotIn(list(values)?)));
    }
    if let Some((name, values)) = text.split_once(" in ") {
        return Some((key(name)?, Requirement::In(list(values)?)));
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Some((key(name)?, Requirement::NotIn(vec![value.trim().to_owned()])));
    }
    if let Some((name, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Some((key(name)?, Requirement::In(vec![value.trim().to_owned()])));
    }
    match text.strip_prefix('!') {
        Some(name) => Some((key(name)?, Requirement::Missing)),
        None => Some((key(text)?, Requirement::Exists)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_kubernetes_and_cilium_s() {
        let labels: Vec<String> =
            ["k8s:app=web", "k8s:env=prod", "reserved:world"].into_iter().map(str::to_owned).collect();
        for (text, matches) in [
            ("app=web", true),
            ("app==web", true),
            ("k8s:app=web", true),
            ("any:app=web", true),
            ("reserved:app=web", false),
            ("reserved:world", true),
            ("world", true),
            ("app=db", false),
            ("app!=db", true),
            ("app=web,env=prod", true),
            ("app=web, env=test", false),
            ("env in (test, prod)", true),
            ("env notin (test, prod)", false),
            ("team notin (a)", true),
            ("app", true),
            ("!app", false),
            ("!team", true),
        ] {
            assert_eq!(Selector::read("source_label", text).unwrap().matches(&labels), matches, "{text}");
        }
        for text in ["", "app in web", "app=web,", "a b"] {
            assert!(Selector::read("source_label", text).is_err(), "{text:?}");
        }
    }
}
