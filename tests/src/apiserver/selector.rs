//! Label and field selectors of a query.

use serde_json::Value;

use super::error::ApiError;

/// What a list or watch is limited to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filter {
    namespace: String,
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Filter {
    /// Objects of a namespace (empty: of all) that both selectors select.
    pub(super) fn new(namespace: &str, labels: Option<&str>, fields: Option<&str>) -> Result<Self, ApiError> {
        let labels =
            parts(labels.unwrap_or_default()).iter().map(|part| requirement(part)).collect::<Result<_, _>>()?;
        let fields = parts(fields.unwrap_or_default()).iter().map(|part| field(part)).collect::<Result<_, _>>()?;
        Ok(Self { namespace: namespace.to_owned(), labels, fields })
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let own = |name: &str| metadata.get(name).and_then(Value::as_str).unwrap_or_default();
        if !self.namespace.is_empty() && own("namespace") != self.namespace {
            return false;
        }
        let label = |key: &String| metadata.get("labels").and_then(|labels| labels.get(key)).and_then(Value::as_str);
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::NotIn(key, values) => !label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        }) && self.fields.iter().all(|(path, equal, value)| {
            let found = path.split('.').try_fold(object, |at, name| at.get(name)).and_then(Value::as_str);
            (found.unwrap_or_default() == value) == *equal
        })
    }
}

/// The parts between commas that stand in no brackets.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_u32;
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(character);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn requirement(part: &str) -> Result<Requirement, ApiError> {
    let text = |text: &str| text.trim().to_owned();
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Requirement::NotIn(text(key), vec![text(value)]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Requirement::In(text(key), vec![text(value)]));
    }
    if let Some((left, values)) = part.strip_suffix(')').and_then(|part| part.split_once('(')) {
        let values = values.split(',').map(text).collect();
        return match left.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => Ok(Requirement::In((*key).to_owned(), values)),
            [key, "notin"] => Ok(Requirement::NotIn((*key).to_owned(), values)),
            _ => Err(ApiError::bad_request(format!("unable to parse requirement: {part}"))),
        };
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Requirement::Absent(text(key))),
        None => Ok(Requirement::Exists(text(part))),
    }
}

fn field(part: &str) -> Result<(String, bool, String), ApiError> {
    const KNOWN: &[&str] = &["metadata.name", "metadata.namespace", "spec.nodeName", "status.phase", "regarding.name"];
    let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
        (path, false, value)
    } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (path, true, value)
    } else {
        return Err(ApiError::bad_request(format!("invalid field selector: {part}")));
    };
    if !KNOWN.contains(&path) {
        return Err(ApiError::bad_request(format!("field label not supported: {path}")));
    }
    Ok((path.to_owned(), equal, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"app": "web", "tier": "1"}}});
        let selects = |namespace: &str, labels: &str, fields: &str| {
            Filter::new(namespace, Some(labels), Some(fields)).unwrap().selects(&object)
        };
        assert!(selects("", "", "") && selects("n", "app=web,tier in (1,2),!gone", "metadata.name=a"));
        assert!(!selects("m", "", "") && !selects("", "app!=web", "") && !selects("", "app notin (web)", ""));
        assert!(selects("", "app", "metadata.name!=b") && !selects("", "gone", ""));
        assert!(selects("", "gone!=x", "") && !selects("", "", "metadata.namespace=x"));
        assert!(Filter::new("", None, Some("spec.x=1")).is_err() && Filter::new("", Some("a of (b)"), None).is_err());
    }
}
