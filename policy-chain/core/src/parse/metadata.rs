//! `metadata`: what every object has. Only what is needed is looked at.

use serde_json::{Map, Value};

use super::cursor::{Cursor, Fields, Report, quoted, shown};
use crate::cluster::Labels;
use crate::model::{AUDIT_ANNOTATION, Text};

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// They do; without one it is `default`.
    Namespaced,
    /// They do not.
    Cluster,
}

/// What names of a kind look like (apimachinery, `pkg/util/validation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameForm {
    /// RFC 1123 subdomain: most kinds.
    Subdomain,
    /// RFC 1123 label: Namespace, Service.
    Label,
}

/// The `metadata` of an object.
#[derive(Debug, Clone)]
pub struct Metadata<'a> {
    /// `name`.
    pub name: Text,
    /// `namespace`; empty for a kind that lives in none.
    pub namespace: Text,
    /// `labels`.
    pub labels: Labels,
    /// `uid`; empty where there is none.
    pub uid: Text,
    /// `creationTimestamp`; empty where there is none.
    pub created: Text,
    annotations: Option<&'a Map<String, Value>>,
}

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

impl<'a> Metadata<'a> {
    /// Reads the `metadata` of a document. None: there is no name; the report says so.
    pub fn read(document: &mut Fields<'a>, report: &mut Report, scope: Scope, form: NameForm) -> Option<Self> {
        let mut fields = document.required(report, "metadata").ok()?.fields(report).ok()?;
        let name = fields.required(report, "name").ok()?;
        let name = (name.text(report).ok()?, name.path);
        if name.0.is_empty() {
            report.refused(&name.1, "is empty");
            return None;
        }
        if let Some(rule) = form.broken_rule(name.0) {
            report.refused(&name.1, format!("{} is not a name: {rule}", quoted(name.0)));
        }
        let namespace = namespace(&mut fields, report, scope)?;
        let labels = labels(fields.take("labels").as_ref(), report);
        let annotations = fields.take("annotations").and_then(|field| match field.value {
            Value::Object(map) => Some(map),
            _ => {
                report.refused(&field.path, format!("{} is not an object", field.shown()));
                None
            }
        });
        Some(Self {
            name: name.0.into(),
            namespace,
            labels,
            uid: text(&mut fields, "uid"),
            created: text(&mut fields, "creationTimestamp"),
            annotations,
        })
    }

    /// The value of an annotation, if it is text.
    pub fn annotation(&self, name: &str) -> Option<&'a str> {
        self.raw_annotation(name)?.as_str()
    }

    /// The value of an annotation, whatever it is.
    pub fn raw_annotation(&self, name: &str) -> Option<&'a Value> {
        self.annotations?.get(name)
    }

    /// Whether [`AUDIT_ANNOTATION`] makes the object a dry run. Any value but `true` and `false` is a fault, and none.
    pub fn audit(&self, report: &mut Report) -> bool {
        match self.raw_annotation(AUDIT_ANNOTATION) {
            None => false,
            Some(Value::String(text)) if text == "false" => false,
            Some(Value::String(text)) if text == "true" => true,
            Some(other) => {
                let message = format!("{AUDIT_ANNOTATION}: {} is neither \"true\" nor \"false\"", shown(other));
                report.warn("metadata.annotations", message + "; the object is in force, not a dry run");
                false
            }
        }
    }
}

fn text(fields: &mut Fields<'_>, name: &'static str) -> Text {
    fields.take(name).and_then(|field| field.value.as_str()).unwrap_or_default().into()
}

fn namespace(fields: &mut Fields<'_>, report: &mut Report, scope: Scope) -> Option<Text> {
    let given = match fields.take("namespace") {
        None => None,
        Some(field) => Some((field.text(report).ok()?, field.path)).filter(|given| !given.0.is_empty()),
    };
    match (scope, given) {
        (Scope::Namespaced, None) => Some(DEFAULT_NAMESPACE.into()),
        (Scope::Namespaced, Some((name, path))) => {
            if let Some(rule) = NameForm::Label.broken_rule(name) {
                report.refused(&path, format!("{} is not a namespace: {rule}", quoted(name)));
            }
            Some(name.into())
        }
        (Scope::Cluster, None) => Some("".into()),
        (Scope::Cluster, Some((name, path))) => {
            report.warn(&path, format!("this kind lives in no namespace; {} is not looked at", quoted(name)));
            Some("".into())
        }
    }
}

/// Labels of an object. One whose value is not text is left out, and told.
pub fn labels(field: Option<&Cursor<'_>>, report: &mut Report) -> Labels {
    let Some(field) = field else { return Labels::default() };
    let Value::Object(map) = field.value else {
        report.refused(&field.path, format!("{} is not an object", field.shown()));
        return Labels::default();
    };
    let mut pairs: Vec<(Text, Text)> = Vec::new();
    for (key, value) in map {
        match value {
            Value::String(text) => pairs.push((key.as_str().into(), text.as_str().into())),
            Value::Null => pairs.push((key.as_str().into(), "".into())),
            _ => {
                let message = format!("{}: {} is not a string", quoted(key), shown(value));
                report.refused(&field.path, message);
            }
        }
    }
    Labels::new(pairs)
}

impl NameForm {
    /// The rule that `name` breaks, if it breaks one.
    pub fn broken_rule(self, name: &str) -> Option<&'static str> {
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        match self {
            Self::Label if name.len() > 63 || !label(name) => {
                Some("1 to 63 lower case letters, digits and '-', with a letter or digit at both ends")
            }
            Self::Subdomain if name.len() > 253 || !name.split('.').all(label) => Some(
                "at most 253 characters; lower case letters, digits and '-', with a letter or digit at both ends, \
                 in parts joined by '.'",
            ),
            Self::Label | Self::Subdomain => None,
        }
    }
}
