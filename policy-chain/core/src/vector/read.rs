//! Reads a file of vectors. What is not known is refused, with its path: a typo must not make a test pass.

mod cluster;
mod row;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use self::cluster::{addresses, fixture, labels, namespaces, pods};
use super::schema::{Deleted, Faulty, Mode, Resolution, SCHEMA_VERSION, Step, Suite, Vector};
use crate::l7::dns::Name;
use crate::manifest::{MAX_DEPTH, MAX_TEXT_BYTES};
use crate::model::{Text, Usable};
use crate::parse::Issue;
use crate::parse::cursor::{Cursor, Fields, Report};

/// Values of a file.
const MAX_NODES: usize = 5_000_000;

/// Probes of a row.
pub(super) const MAX_PROBES: usize = 1_000_000;

/// Why a file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no YAML.
    #[error("this is no YAML: {0}")]
    Yaml(String),
    /// It is no file of vectors: each fault by its path.
    #[error("{}", list(.0))]
    Schema(Vec<Issue>),
}

fn list(issues: &[Issue]) -> String {
    issues.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Reads a file of vectors.
///
/// # Errors
/// The text is no YAML, or something in it is not as `docs/policy-vectors.md` says.
pub fn read(text: &str) -> Result<Suite, Unreadable> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Unreadable::Yaml(format!("it has {} bytes; {MAX_TEXT_BYTES} is the most", text.len())));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_total_scalar_bytes: MAX_TEXT_BYTES,
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        // y and on are text, as in the manifests that are tested.
        strict_booleans: true,
        with_snippet: false,
    };
    let value: Value =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| Unreadable::Yaml(error.to_string()))?;
    let mut report = Report::default();
    let suite = suite(&Cursor::document(&value), &mut report);
    let issues = report.into_issues();
    match suite {
        Ok(suite) if issues.is_empty() => Ok(suite),
        _ => Err(Unreadable::Schema(issues)),
    }
}

fn suite(document: &Cursor<'_>, report: &mut Report) -> Usable<Suite> {
    let mut fields = document.fields(report)?;
    fields.required(report, "schemaVersion")?.number(report, SCHEMA_VERSION, SCHEMA_VERSION)?;
    for_readers(&mut fields, &["title", "note"], report)?;
    let (mut fixtures, mut unusable) = (BTreeMap::new(), BTreeMap::new());
    for (name, cursor) in entries(fields.take("fixtures"), report)? {
        let mut own = Report::default();
        let fixture = fixture(&cursor, &mut own);
        match (fixture, own.into_issues()) {
            (Ok(fixture), issues) if issues.is_empty() => drop(fixtures.insert(Text::from(name), fixture)),
            (_, issues) => drop(unusable.insert(name, issues)),
        }
    }
    // The faults of one vector do not hide those of the next, nor keep it from being run.
    let (mut vectors, mut faulty) = (Vec::new(), Vec::new());
    let mut ids = BTreeSet::new();
    let mut used = BTreeSet::new();
    for cursor in fields.required(report, "vectors")?.elements(report)? {
        let mut own = Report::default();
        let vector = vector(&cursor, &mut own);
        let id = Text::from(cursor.value.get("id").and_then(Value::as_str).unwrap_or(&cursor.path));
        if let Ok(vector) = &vector {
            if !ids.insert(Text::clone(&id)) {
                own.refused(&format!("{}.id", cursor.path), format!("{id:?} is the id of an earlier vector too"));
            }
            let fixture = vector.fixture.as_ref();
            if unusable.contains_key(fixture) {
                used.insert(Text::clone(&vector.fixture));
            } else if !fixtures.contains_key(fixture) {
                own.refused(&format!("{}.fixture", cursor.path), format!("{fixture:?} is not among the fixtures"));
            }
        }
        let of_fixture = vector.as_ref().ok().and_then(|vector| unusable.get(vector.fixture.as_ref()));
        let issues: Vec<Issue> =
            own.into_issues().into_iter().chain(of_fixture.into_iter().flatten().cloned()).collect();
        match vector {
            Ok(vector) if issues.is_empty() => vectors.push(vector),
            _ => faulty.push(Faulty { vector: id, issues }),
        }
    }
    // What is wrong with a fixture is told by the vectors that use it.
    for issue in unusable.into_iter().filter(|(name, _)| !used.contains(*name)).flat_map(|(_, issues)| issues) {
        report.fault(issue.severity, &issue.path, issue.message);
    }
    fields.finish(report)?;
    Ok(Suite { fixtures, vectors, faulty })
}

/// What is for readers of the file and means nothing.
fn for_readers(fields: &mut Fields<'_>, names: &[&'static str], report: &mut Report) -> Usable<()> {
    names.iter().try_for_each(|name| fields.take(name).map_or(Ok(()), |field| field.text(report).map(drop)))
}

fn vector(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vector> {
    let mut fields = cursor.fields(report)?;
    let id = fields.required(report, "id")?.owned(report)?;
    let title = fields.take("title").map_or_else(|| Ok(Text::clone(&id)), |title| title.owned(report))?;
    if let Some(source) = fields.take("source") {
        // Where it comes from is for readers.
        source.fields(report)?;
    }
    for_readers(&mut fields, &["derivation", "note"], report)?;
    for (_, substitute) in entries(fields.take("liveSubstitute"), report)? {
        substitute.text(report)?;
    }
    let fixture = fields.required(report, "fixture")?.owned(report)?;
    let tags = texts(fields.take("tags"), report)?;
    let modes = fields.take("modes").map(|modes| self::modes(&modes, report)).transpose()?;
    let mut steps = Vec::new();
    for step in fields.required(report, "steps")?.elements(report)? {
        if let Ok(step) = self::step(&step, report) {
            steps.push(step);
        }
    }
    fields.finish(report)?;
    Ok(Vector { id, title, fixture, tags, modes, steps })
}

fn modes(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Vec<Mode>> {
    let mut modes = Vec::new();
    for element in cursor.elements(report)? {
        let mode = choice(&element, report, &[("podIP", Mode::PodIp), ("serviceIP", Mode::ServiceIp)])?;
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    if modes.is_empty() {
        return Err(report.refused(&cursor.path, "is empty: name podIP, serviceIP, or both"));
    }
    Ok(modes)
}

fn step(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Step> {
    let mut fields = cursor.fields(report)?;
    let name = fields.take("name").map(|name| name.owned(report)).transpose()?.unwrap_or_else(|| Text::from(""));
    for_readers(&mut fields, &["title", "note"], report)?;
    if let Some(latency) = fields.take("maxLatencySeconds")
        && !latency.value.is_number()
    {
        return Err(report.refused(&latency.path, format!("{} is not a number", latency.shown())));
    }
    let seconds =
        fields.take("advanceSeconds").map(|field| field.number(report, 0, i64::from(u32::MAX))).transpose()?;
    let mut step = Step {
        name,
        path: cursor.path.clone(),
        advance_seconds: seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
        ..Step::default()
    };
    for object in elements(fields.take("apply"), report)? {
        object.fields(report)?;
        step.apply.push(object.value.clone());
    }
    for object in elements(fields.take("delete"), report)? {
        step.delete.push(deleted(&object, report)?);
    }
    step.set_namespace_labels = namespaces(fields.take("setNamespaceLabels"), report)?;
    for (name, value) in entries(fields.take("setPodLabels"), report)? {
        step.set_pod_labels.insert(cluster::pod_key(name, &value.path, report)?, labels(&value, report)?);
    }
    step.create_namespace = namespaces(fields.take("createNamespace"), report)?;
    step.delete_namespace = texts(fields.take("deleteNamespace"), report)?;
    step.create_pod = pods(fields.take("createPod"), report)?;
    let path = fields.path_of("deletePod");
    for pod in texts(fields.take("deletePod"), report)? {
        step.delete_pod.push(cluster::pod_key(&pod, &path, report)?);
    }
    for (name, value) in entries(fields.take("resolve"), report)? {
        let name = Name::new(name).map_err(|error| report.refused(&value.path, error.to_string()))?;
        step.resolve.insert(name, resolution(&value, report)?);
    }
    for row in elements(fields.take("expect"), report)? {
        if let Ok(row) = row::row(&row, report) {
            step.expect.push(row);
        }
    }
    fields.finish(report)?;
    Ok(step)
}

fn deleted(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Deleted> {
    let mut fields = cursor.fields(report)?;
    let deleted = Deleted {
        api_version: optional(&mut fields, "apiVersion", report)?,
        kind: fields.required(report, "kind")?.owned(report)?,
        namespace: optional(&mut fields, "namespace", report)?,
        name: fields.required(report, "name")?.owned(report)?,
    };
    fields.finish(report)?;
    Ok(deleted)
}

fn resolution(cursor: &Cursor<'_>, report: &mut Report) -> Usable<Resolution> {
    let mut fields = cursor.fields(report)?;
    let addresses = addresses(&fields.required(report, "addresses")?, report)?;
    let ttl = fields.take("ttl").map(|ttl| ttl.number(report, 0, i64::from(u32::MAX))).transpose()?;
    fields.finish(report)?;
    Ok(Resolution { addresses, ttl: ttl.and_then(|ttl| u64::try_from(ttl).ok()) })
}

/// The elements of a list that may be missing.
fn elements<'a>(cursor: Option<Cursor<'a>>, report: &mut Report) -> Usable<Vec<Cursor<'a>>> {
    cursor.map_or_else(|| Ok(Vec::new()), |cursor| cursor.elements(report))
}

/// The entries of a map that may be missing.
fn entries<'a>(cursor: Option<Cursor<'a>>, report: &mut Report) -> Usable<Vec<(&'a str, Cursor<'a>)>> {
    let Some(cursor) = cursor else { return Ok(Vec::new()) };
    let Value::Object(map) = cursor.value else {
        return Err(report.refused(&cursor.path, format!("{} is not an object", cursor.shown())));
    };
    let path = |name: &str| if cursor.path.is_empty() { name.to_owned() } else { format!("{}.{name}", cursor.path) };
    Ok(map.iter().map(|(name, value)| (name.as_str(), Cursor { value, path: path(name) })).collect())
}

/// A list of texts; one of them may stand alone.
fn texts(cursor: Option<Cursor<'_>>, report: &mut Report) -> Usable<Vec<Text>> {
    if let Some(one) = cursor.as_ref().filter(|cursor| cursor.value.is_string()) {
        return Ok(vec![one.owned(report)?]);
    }
    elements(cursor, report)?.iter().map(|element| element.owned(report)).collect()
}

fn optional(fields: &mut Fields<'_>, name: &'static str, report: &mut Report) -> Usable<Option<Text>> {
    fields.take(name).map(|field| field.owned(report)).transpose()
}

/// One of some words.
fn choice<T: Copy>(cursor: &Cursor<'_>, report: &mut Report, words: &[(&str, T)]) -> Usable<T> {
    let text = cursor.text(report)?;
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        report.refused(&cursor.path, format!("{} is not one of {}", cursor.shown(), known.join(", ")))
    })
}
