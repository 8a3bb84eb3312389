//! What the files of a directory say, and what is new about it since they were read before. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use sluice_policy_core::cluster::{Event, Object, ObjectId};
use sluice_policy_core::manifest;
use sluice_policy_core::parse::{self, Issue, Severity};

use crate::cluster::{Place, Report, Told};

/// The files of a directory by name: their bytes, or why they cannot be read.
pub(super) type Files = BTreeMap<String, Result<Vec<u8>, String>>;

/// What all files say together.
#[derive(Debug, Default)]
pub(super) struct Contents {
    files: BTreeMap<String, File>,
    /// What has been told, by object.
    told: BTreeMap<ObjectId, Known>,
    /// Faults that have been told.
    reports: BTreeMap<Place, Vec<Issue>>,
}

/// An object of a file.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    object: Object,
    json: Option<Arc<str>>,
}

/// What one file says.
#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    /// Its objects; of two with one name the first.
    objects: BTreeMap<ObjectId, Known>,
    /// Faults, the ones of objects among them.
    faults: BTreeMap<Place, Vec<Issue>>,
}

impl Contents {
    /// Whether an object is there.
    pub(super) fn has(&self, id: &ObjectId) -> bool {
        self.told.contains_key(id)
    }

    /// Takes in what the files say now, and answers what has changed. Files that are not among `files` are gone.
    pub(super) fn read(&mut self, files: Files) -> Vec<Told> {
        self.files.retain(|name, _| files.contains_key(name));
        for (name, content) in files {
            match content {
                Ok(bytes) if self.files.get(&name).is_some_and(|known| known.bytes == bytes) => {}
                Ok(bytes) => {
                    let before = self.files.remove(&name).unwrap_or_default();
                    self.files.insert(name.clone(), File::read(&name, bytes, before));
                }
                Err(why) => {
                    // What it said before holds until it can be read again.
                    let file = self.files.entry(name.clone()).or_default();
                    file.bytes.clear();
                    let issue = Issue { severity: Severity::Refused, path: String::new(), message: why };
                    file.faults.insert(Place::Text(name), vec![issue]);
                }
            }
        }
        self.changes()
    }

    /// What is other than was told.
    fn changes(&mut self) -> Vec<Told> {
        let mut objects: BTreeMap<&ObjectId, (&str, &Known)> = BTreeMap::new();
        let mut reports: BTreeMap<Place, Vec<Issue>> = BTreeMap::new();
        for (name, file) in &self.files {
            for (place, issues) in &file.faults {
                reports.entry(place.clone()).or_default().extend(issues.iter().cloned());
            }
            for (id, known) in &file.objects {
                match objects.get(id) {
                    None => {
                        objects.insert(id, (name, known));
                    }
                    Some((first, _)) => {
                        let message = format!("{first} has this object too: what {name} says of it is not looked at");
                        let issue = Issue { severity: Severity::Refused, path: String::new(), message };
                        reports.entry(Place::Object(id.clone())).or_default().push(issue);
                    }
                }
            }
        }
        let mut told = Vec::new();
        let gone: Vec<ObjectId> = self.told.keys().filter(|id| !objects.contains_key(*id)).cloned().collect();
        let changed: Vec<(ObjectId, Known)> = objects
            .into_iter()
            .filter(|(id, (_, known))| self.told.get(*id) != Some(known))
            .map(|(id, (_, known))| (id.clone(), known.clone()))
            .collect();
        // What is new comes before what is gone: a policy that moved to another name leaves no gap.
        for (id, known) in changed {
            told.push(Told::Event { event: Event::Upsert(known.object.clone()), json: known.json.clone() });
            self.told.insert(id, known);
        }
        for id in gone {
            self.told.remove(&id);
            told.push(Told::Event { event: Event::Delete(id), json: None });
        }
        let mended: Vec<Place> = self.reports.keys().filter(|place| !reports.contains_key(*place)).cloned().collect();
        for place in mended {
            self.reports.remove(&place);
            told.push(Told::Report(Report { place, generation: None, issues: Vec::new() }));
        }
        for (place, issues) in reports {
            if self.reports.get(&place) != Some(&issues) {
                told.push(Told::Report(Report { place: place.clone(), generation: None, issues: issues.clone() }));
                self.reports.insert(place, issues);
            }
        }
        told
    }
}

impl File {
    fn read(name: &str, bytes: Vec<u8>, before: Self) -> Self {
        let mut file = Self { bytes, ..Self::default() };
        let (documents, errors) = match manifest::text(&file.bytes) {
            Ok(text) => {
                let manifest = manifest::read(text);
                (manifest.documents, manifest.errors)
            }
            Err(error) => (Vec::new(), vec![error]),
        };
        let mut unread = !errors.is_empty();
        for error in errors {
            let issue = Issue { severity: Severity::Refused, path: String::new(), message: error.to_string() };
            file.faults.entry(Place::Text(name.to_owned())).or_default().push(issue);
        }
        for document in documents {
            let parsed = parse::object(&document.value);
            let Some(object) = parsed.object else {
                // A kind that nobody here reads hides no object that was known.
                unread |= parsed.issues.iter().any(|issue| issue.path != "kind" && issue.path != "apiVersion");
                let place = Place::Text(format!("{name}, line {}", document.line));
                file.faults.entry(place).or_default().extend(parsed.issues);
                continue;
            };
            let id = object.id();
            if file.objects.contains_key(&id) {
                let message =
                    format!("{name} has this object twice: what line {} says is not looked at", document.line);
                let issue = Issue { severity: Severity::Refused, path: String::new(), message };
                file.faults.entry(Place::Object(id)).or_default().push(issue);
                continue;
            }
            if !parsed.issues.is_empty() {
                file.faults.insert(Place::Object(id.clone()), parsed.issues);
            }
            let json = json(&object, &document.value);
            file.objects.insert(id, Known { object, json });
        }
        if unread {
            // One of the documents that cannot be read may be what is missing now: a file half written must not
            // take a policy away.
            let read: BTreeSet<ObjectId> = file.objects.keys().cloned().collect();
            file.objects.extend(before.objects.into_iter().filter(|(id, _)| !read.contains(id)));
        }
        file
    }
}

/// The object as it was read, where it cannot be written again from what was read.
fn json(object: &Object, value: &Value) -> Option<Arc<str>> {
    if !matches!(object, Object::Policy(_) | Object::CidrGroup(_)) {
        return None;
    }
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    Some(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: web}\n";
    const DB: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: db}\n";
    const POLICY: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: none, namespace: web}\nspec: {podSelector: {}}\n";

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(name, text)| ((*name).to_owned(), Ok(text.as_bytes().to_vec()))).collect()
    }

    /// `+` and `-` with the objects' ids, `!` with places of faults, `=` with places that are mended.
    fn shown(told: &[Told]) -> Vec<String> {
        let shown = |told: &Told| match told {
            Told::Event { event: Event::Upsert(object), .. } => format!("+{}", Place::Object(object.id())),
            Told::Event { event: Event::Delete(id), .. } => format!("-{}", Place::Object(id.clone())),
            Told::Report(report) if report.issues.is_empty() => format!("={}", report.place),
            Told::Report(report) => format!("!{}", report.place),
            other => format!("{other:?}"),
        };
        told.iter().map(shown).collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut contents = Contents::default();
        let both = format!("{WEB}---\n{DB}");
        assert_eq!(shown(&contents.read(files(&[("a.yaml", &both)]))), ["+Namespace db", "+Namespace web"]);
        assert_eq!(shown(&contents.read(files(&[("a.yaml", &both)]))), [""; 0]);
        assert_eq!(shown(&contents.read(files(&[("a.yaml", &both), ("b.yaml", POLICY)]))), ["+NetworkPolicy web/none"]);
        assert_eq!(shown(&contents.read(files(&[("a.yaml", WEB), ("b.yaml", POLICY)]))), ["-Namespace db"]);
        assert!(contents.has(&ObjectId::Namespace("web".into())));
        let all = contents.read(files(&[]));
        assert_eq!(shown(&all), ["-Namespace web", "-NetworkPolicy web/none"]);
        assert!(!contents.has(&ObjectId::Namespace("web".into())));
    }

    #[test]
    fn an_object_that_moves_to_another_file_is_not_gone_in_between() {
        let mut contents = Contents::default();
        contents.read(files(&[("a.yaml", POLICY)]));
        assert_eq!(shown(&contents.read(files(&[("b.yaml", POLICY)]))), [""; 0]);
    }

    #[test]
    fn one_bad_document_is_reported_and_hides_neither_the_others_nor_what_it_said_before() {
        let mut contents = Contents::default();
        contents.read(files(&[("a.yaml", &format!("{POLICY}---\n{WEB}"))]));
        // Half written: the policy cannot be read, and stays.
        let cut = format!("kind: [\n---\n{DB}");
        assert_eq!(shown(&contents.read(files(&[("a.yaml", &cut)]))), ["+Namespace db", "!a.yaml"]);
        assert!(contents.has(&ObjectId::Namespace("web".into())));
        // Mended: what it does not have now is gone.
        assert_eq!(shown(&contents.read(files(&[("a.yaml", POLICY)]))), ["-Namespace db", "-Namespace web", "=a.yaml"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_keeps_what_it_said_and_one_that_is_gone_does_not() {
        let mut contents = Contents::default();
        contents.read(files(&[("a.yaml", POLICY)]));
        let denied = Files::from([("a.yaml".to_owned(), Err("permission denied".to_owned()))]);
        assert_eq!(shown(&contents.read(denied)), ["!a.yaml"]);
        assert_eq!(shown(&contents.read(files(&[("a.yaml", POLICY)]))), ["=a.yaml"]);
        assert_eq!(shown(&contents.read(files(&[]))), ["-NetworkPolicy web/none"]);
    }

    #[test]
    fn foreign_kinds_are_reported_and_hide_nothing() {
        let mut contents = Contents::default();
        let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n";
        contents.read(files(&[("a.yaml", &format!("{WEB}---\n{DB}"))]));
        let now = contents.read(files(&[("a.yaml", &format!("{WEB}---\n{deployment}"))]));
        assert_eq!(shown(&now), ["-Namespace db", "!a.yaml, line 4"]);
    }

    #[test]
    fn an_object_of_two_files_is_the_first_files() {
        let mut contents = Contents::default();
        let other = WEB.replace("{name: web}", "{name: web, labels: {team: b}}");
        let told = contents.read(files(&[("a.yaml", WEB), ("b.yaml", &other)]));
        assert_eq!(shown(&told), ["+Namespace web", "!Namespace web"]);
        // The first is gone: the second counts.
        assert_eq!(shown(&contents.read(files(&[("b.yaml", &other)]))), ["+Namespace web", "=Namespace web"]);
    }

    #[test]
    fn a_policy_comes_with_its_text_without_status() {
        let mut contents = Contents::default();
        let text = format!("{POLICY}status: {{conditions: []}}\n");
        let told = contents.read(files(&[("a.yaml", &text)]));
        let Some(Told::Event { json: Some(json), .. }) = told.first() else { panic!("{told:?}") };
        let value: Value = serde_json::from_str(json).unwrap();
        assert!(value.get("status").is_none() && value.get("spec").is_some(), "{json}");
    }
}
