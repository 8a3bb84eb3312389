//! What the source has told, on disk, so that a restart without the API server goes on with it (DESIGN 6).
//!
//! One line a change, appended before the change is in force in the kernel: after a crash at any point the journal knows
//! everything that the gates know, so that what is compiled from it is never looser than what was in force. The file's
//! time of change says of when it is: it is moved on as long as the source is alive, and by nothing else.

mod encode;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sluice_policy_core::cluster::{Object, ObjectId};
use sluice_policy_core::parse;

use crate::store::{self, StoreError, failed};
use sluice_daemon::log::ErrorChain;

/// Bytes of a journal that is read: several times what 10,000 pods take.
const SIZE_LIMIT: u64 = 256 * 1024 * 1024;

/// Bytes that may be appended before it is written anew, if what it held when it was written is less.
const SLACK: u64 = 4 * 1024 * 1024;

/// The journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// None: it could not be written, or not yet; there is no file then.
    file: Option<File>,
    written: u64,
    appended: u64,
    /// Of when the file is.
    at: SystemTime,
}

/// The manifest of an object, as [`sluice_policy_core::parse`] reads it; `own` is the object's own text, for a policy or a
/// group.
pub(crate) fn manifest(object: &Object, own: Option<&str>) -> Option<Value> {
    encode::object(object, own)
}

/// One change.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Entry<'a> {
    /// The object is so from now on. The text is the object's own, for a policy or a group.
    Set(&'a Object, Option<&'a str>),
    /// It is gone.
    Gone(&'a ObjectId),
}

impl Journal {
    /// The journal at `path`. Nothing is read or written.
    pub(crate) const fn new(path: PathBuf) -> Self {
        Self { path, file: None, written: 0, appended: 0, at: SystemTime::UNIX_EPOCH }
    }

    /// What a journal of this node's boot says, if it is not older than `age`; with the texts of policies and groups.
    pub(crate) fn read(&mut self, age: Duration, now: SystemTime) -> Option<Vec<(Object, Option<String>)>> {
        let file = File::open(&self.path).ok()?;
        let metadata = file.metadata().ok()?;
        let at = metadata.modified().ok()?;
        // A time in the future is one of a clock that was set back: as good as now.
        let old = now.duration_since(at).unwrap_or_default();
        if old > age || metadata.len() > SIZE_LIMIT {
            tracing::warn!(age_seconds = old.as_secs(), bytes = metadata.len(), "the journal is too old or too long");
            return None;
        }
        self.at = at;
        let mut objects: BTreeMap<String, Value> = BTreeMap::new();
        let mut bad = 0_u32;
        for line in BufReader::new(file).split(b'\n') {
            let read = line.ok().and_then(|line| serde_json::from_slice::<Value>(&line).ok());
            let Some((id, value)) = read.and_then(parts) else {
                bad += 1;
                continue;
            };
            match value {
                Value::Null => {
                    objects.remove(&id);
                }
                value => {
                    objects.insert(id, value);
                }
            }
        }
        if bad > 0 {
            // The last line is cut when the process was killed while it wrote. Nothing that it says was in force.
            tracing::warn!(lines = bad, "lines of the journal could not be read");
        }
        let mut read = Vec::new();
        for (id, value) in objects {
            match parse::object(&value).object {
                Some(object) => {
                    let text = matches!(object, Object::Policy(_) | Object::CidrGroup(_)).then(|| value.to_string());
                    read.push((object, text));
                }
                None => tracing::warn!(id, "an object of the journal could not be read"),
            }
        }
        Some(read)
    }

    /// Whether it is to be written anew: it is not there, or has grown much.
    pub(crate) fn wants_rewriting(&self) -> bool {
        self.file.is_none() || self.appended > SLACK.max(self.written.saturating_mul(2))
    }

    /// Writes everything anew.
    pub(crate) fn rewrite<'a>(
        &mut self,
        objects: impl Iterator<Item = (Object, Option<&'a str>)>,
    ) -> Result<(), StoreError> {
        let mut text = Vec::new();
        for (object, own) in objects {
            line(&mut text, Entry::Set(&object, own));
        }
        self.file = None;
        store::write(&self.path, &text)?;
        let mut options = OpenOptions::new();
        let file = options.append(true).mode(0o600).open(&self.path).map_err(failed("opening", &self.path))?;
        self.file = Some(file);
        self.written = text.len() as u64;
        self.appended = 0;
        self.date();
        Ok(())
    }

    /// Appends changes. Nothing if there is no file yet. On a failure there is no file any more: none is better than one
    /// that lacks a policy.
    pub(crate) fn append<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = Vec::new();
        for entry in entries {
            line(&mut text, entry);
        }
        if text.is_empty() {
            return Ok(());
        }
        self.appended += text.len() as u64;
        if let Err(source) = file.write_all(&text) {
            self.discard();
            return Err(failed("writing", &self.path)(source));
        }
        self.date();
        Ok(())
    }

    /// What it says is up to date at `now`.
    pub(crate) fn touch(&mut self, now: SystemTime) {
        self.at = now;
        self.date();
    }

    fn date(&self) {
        if let Some(Err(error)) = self.file.as_ref().map(|file| file.set_modified(self.at)) {
            tracing::warn!(error = %error, "the journal's time could not be set");
        }
    }

    fn discard(&mut self) {
        self.file = None;
        if let Err(error) = store::remove(&self.path) {
            tracing::error!(error = %ErrorChain(&error), "a journal that is not whole could not be removed");
            // Emptied, at least.
            if let Err(error) = fs::write(&self.path, b"") {
                tracing::error!(error = %error, "a journal that is not whole could not be emptied");
            }
        }
    }
}

/// `{"id": ..., "object": ...}`
fn parts(line: Value) -> Option<(String, Value)> {
    let Value::Object(mut fields) = line else { return None };
    match (fields.remove("id")?, fields.remove("object")?) {
        (Value::String(id), value) => Some((id, value)),
        _ => None,
    }
}

fn line(text: &mut Vec<u8>, entry: Entry<'_>) {
    let (id, object) = match entry {
        Entry::Set(object, own) => (object.id(), encode::object(object, own)),
        Entry::Gone(id) => (id.clone(), Some(Value::Null)),
    };
    match object {
        Some(object) => {
            // Bytes of JSON with a line feed only at the end: serde_json escapes those in strings.
            text.extend_from_slice(json!({"id": format!("{id:?}"), "object": object}).to_string().as_bytes());
            text.push(b'\n');
        }
        None => tracing::error!(id = ?id, "an object came without its text and is not in the journal"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestDir;

    const AGE: Duration = Duration::from_secs(300);

    fn object(yaml: &str) -> (Object, String) {
        let value = sluice_policy_core::manifest::documents(yaml).unwrap().remove(0);
        (parse::object(&value).object.unwrap(), value.to_string())
    }

    fn namespace(name: &str) -> Object {
        object(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{a: b}}}}")).0
    }

    #[test]
    fn what_was_told_is_read_again() {
        let dir = TestDir::new();
        let mut journal = Journal::new(dir.path().join("journal"));
        let now = SystemTime::now();
        assert_eq!(journal.read(AGE, now), None);
        assert!(journal.wants_rewriting());
        let (policy, text) = object(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: none, namespace: web}\nspec: {podSelector: {}}",
        );
        journal.rewrite([(namespace("web"), None), (policy.clone(), Some(&*text))].into_iter()).unwrap();
        assert!(!journal.wants_rewriting());
        journal.touch(now);
        let (db, web) = (namespace("db"), namespace("web").id());
        journal.append([Entry::Set(&db, None), Entry::Gone(&web)].into_iter()).unwrap();
        let mut read = journal.read(AGE, now).unwrap();
        read.sort_by_key(|(object, _)| object.id());
        assert_eq!(read, [(db, None), (policy, Some(text))]);
    }

    #[test]
    fn a_cut_line_takes_nothing_with_it() {
        let dir = TestDir::new();
        let path = dir.path().join("journal");
        let mut journal = Journal::new(path.clone());
        journal.rewrite([(namespace("web"), None)].into_iter()).unwrap();
        journal.touch(SystemTime::now());
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend_from_slice(b"{\"id\": \"x\", \"obj");
        fs::write(&path, bytes).unwrap();
        assert_eq!(journal.read(AGE, SystemTime::now()).unwrap(), [(namespace("web"), None)]);
    }

    #[test]
    fn an_old_journal_is_not_used_and_one_that_is_kept_up_to_date_is() {
        let dir = TestDir::new();
        let mut journal = Journal::new(dir.path().join("journal"));
        journal.rewrite([(namespace("web"), None)].into_iter()).unwrap();
        let now = SystemTime::now();
        journal.touch(now);
        let later = now + AGE + Duration::from_secs(5);
        assert!(journal.read(AGE, later - Duration::from_secs(10)).is_some());
        assert_eq!(journal.read(AGE, later), None);
        // Writing does not make it younger: what is written is what was known then.
        let mut next = Journal::new(dir.path().join("journal"));
        next.read(AGE, now).unwrap();
        next.rewrite([(namespace("db"), None)].into_iter()).unwrap();
        next.append([Entry::Gone(&namespace("db").id())].into_iter()).unwrap();
        assert_eq!(next.read(AGE, later), None);
        next.touch(later);
        assert!(next.read(AGE, later).is_some());
    }

    #[test]
    fn a_journal_that_grows_is_written_anew() {
        let dir = TestDir::new();
        let mut journal = Journal::new(dir.path().join("journal"));
        journal.rewrite(std::iter::empty()).unwrap();
        let web = namespace("web");
        let mut rounds = 0;
        while !journal.wants_rewriting() {
            journal.append(std::iter::repeat_n(Entry::Set(&web, None), 1000)).unwrap();
            rounds += 1;
            assert!(rounds < 1000);
        }
        journal.rewrite([(web, None)].into_iter()).unwrap();
        assert!(!journal.wants_rewriting());
    }
}
