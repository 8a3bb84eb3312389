//! From a request to its answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde_json::{Value, json};

use super::Shared;
use super::answer::{self, Shape};
use super::error::ApiError;
use super::kind::{ObjectPath, Path, decoded};
use super::patch;
use super::selector::Filter;
use super::store::Preconditions;
use super::watch::{From, WatchBody, Watched, begin};

/// A request, read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: Option<Path>,
    pub(super) query: BTreeMap<String, String>,
    pub(super) accept: String,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

/// What is answered.
pub(super) enum Answer {
    Object(u16, Value),
    List(String),
    Watch(WatchBody),
}

impl Asked {
    /// The parts of a query.
    pub(super) fn parse_query(query: &str) -> BTreeMap<String, String> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))
            })
            .collect()
    }

    /// What the request does, as RBAC names it.
    pub(super) fn verb(&self) -> &'static str {
        let Some(Path::Objects(path)) = &self.path else { return "discovery" };
        match self.method {
            Method::GET if !path.name.is_empty() => "get",
            Method::GET if self.flag("watch") => "watch",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        }
    }

    pub(super) fn objects(&self) -> Option<&ObjectPath> {
        match &self.path {
            Some(Path::Objects(path)) => Some(path),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn flag(&self, name: &str) -> bool {
        matches!(self.query.get(name).map(String::as_str), Some("true" | "1" | ""))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let parse =
            |text: &str| text.parse().map_err(|error| ApiError::bad_request(format!("{name}: {text:?}: {error}")));
        self.text(name).map(parse).transpose()
    }

    fn json(&self) -> Result<Value, ApiError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| ApiError::bad_request(format!("the body is no JSON: {error}")))
    }

    fn filter(&self, path: &ObjectPath) -> Result<Filter, ApiError> {
        Filter::new(&path.namespace, self.text("labelSelector"), self.text("fieldSelector"))
    }
}

/// Does what is asked.
pub(super) fn handle(shared: &Arc<Shared>, asked: &Asked) -> Result<Answer, ApiError> {
    let path = asked.path.as_ref().ok_or_else(ApiError::no_such_path)?;
    if let Path::Objects(path) = path {
        return objects(shared, asked, path);
    }
    if asked.method != Method::GET {
        return Err(ApiError::method());
    }
    let state = shared.state();
    let kinds = state.store.kinds();
    let value = match path {
        Path::Version => answer::version(),
        Path::Health => json!("ok"),
        Path::CoreVersions => answer::core_versions(),
        Path::Groups => answer::groups(kinds),
        Path::Group(name) => answer::group(kinds, name)?,
        Path::Resources { group, version } => answer::resources(kinds, group, version)?,
        Path::Objects(_) => return Err(ApiError::no_such_path()),
    };
    Ok(Answer::Object(200, value))
}

fn objects(shared: &Arc<Shared>, asked: &Asked, path: &ObjectPath) -> Result<Answer, ApiError> {
    let mut state = shared.state();
    let store = &mut state.store;
    let kind = store.kind(&path.table, &path.version)?;
    let status = match path.subresource.as_str() {
        "" => false,
        "status" if kind.status => true,
        _ => return Err(ApiError::no_such_path()),
    };
    if kind.namespaced && path.namespace.is_empty() && !(asked.method == Method::GET && path.name.is_empty())
        || !kind.namespaced && !path.namespace.is_empty()
    {
        return Err(ApiError::no_such_path());
    }
    let shape = Shape::new(&kind, &path.version, &asked.accept);
    let key = (path.namespace.clone(), path.name.clone());
    let written = match (&asked.method, path.name.is_empty()) {
        (&Method::GET, true) if asked.flag("watch") => {
            let watched = Watched {
                table: path.table.clone(),
                filter: asked.filter(path)?,
                shape,
                bookmarks: asked.flag("allowWatchBookmarks"),
                life: asked.number("timeoutSeconds")?.map(Duration::from_secs),
            };
            let initial = asked.flag("sendInitialEvents");
            let from = match asked.number("resourceVersion")? {
                Some(revision) if revision > 0 && !initial => {
                    if revision > store.revision() {
                        return Err(ApiError::future(revision, store.revision()));
                    }
                    From::Revision(revision)
                }
                _ => From::Everything { bookmark: initial },
            };
            drop(state);
            return Ok(Answer::Watch(begin(shared, watched, from)));
        }
        (&Method::GET, true) => {
            let after = asked.text("continue").map(answer::read_token).transpose()?;
            let least = asked.number("resourceVersion")?.unwrap_or_default();
            if least > store.revision() {
                return Err(ApiError::future(least, store.revision()));
            }
            let limit = usize::try_from(asked.number("limit")?.unwrap_or_default()).unwrap_or(usize::MAX);
            let page = store.list(&path.table, &asked.filter(path)?, after.as_ref(), limit)?;
            return Ok(Answer::List(shape.list(&page)));
        }
        (&Method::GET, false) => {
            let found = store.get(&path.table, &key).ok_or_else(|| ApiError::not_found(&kind.plural, &key.1))?;
            return Ok(Answer::Object(200, shape.object(&found)));
        }
        (&Method::POST, true) => (201, store.create(&kind, &path.namespace, asked.json()?)?),
        (&Method::PUT, false) => (200, store.update(&kind, &key, asked.json()?, status)?),
        (&Method::PATCH, false) => {
            let body = asked.json()?;
            let form = asked.content_type.split(';').next().unwrap_or_default();
            let apply = form.starts_with("application/apply-patch");
            let before = store.get(&path.table, &key);
            if before.is_none() && apply && !status {
                let mut object = body.clone();
                patch::apply(&mut object, &body, asked.text("fieldManager").unwrap_or_default(), "", true)?;
                (201, store.create(&kind, &path.namespace, object)?)
            } else {
                let before = before.ok_or_else(|| ApiError::not_found(&kind.plural, &key.1))?;
                let mut object = (*before).clone();
                match form {
                    "application/merge-patch+json" => patch::merge(&mut object, &body),
                    "application/strategic-merge-patch+json" if !kind.custom => patch::strategic(&mut object, &body),
                    _ if apply => {
                        let manager = asked.text("fieldManager");
                        let manager =
                            manager.ok_or_else(|| ApiError::invalid("fieldManager: is required for apply"))?;
                        patch::apply(&mut object, &body, manager, &path.subresource, asked.flag("force"))?;
                    }
                    other => return Err(ApiError::media_type(other)),
                }
                for field in ["/metadata/uid", "/metadata/resourceVersion"] {
                    let wanted = body.pointer(field).filter(|wanted| !wanted.is_null());
                    if wanted.is_some() && wanted != before.pointer(field) {
                        return Err(ApiError::conflict(&kind.plural, &key.1));
                    }
                }
                (200, store.write(&kind, &key, &object, &before, status))
            }
        }
        (&Method::DELETE, false) => {
            let body = if asked.body.is_empty() { json!({}) } else { asked.json()? };
            let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
            let only =
                Preconditions { uid: text("/preconditions/uid"), revision: text("/preconditions/resourceVersion") };
            (200, store.delete(&kind, &key, &only)?)
        }
        _ => return Err(ApiError::method()),
    };
    shared.told(store.revision());
    Ok(Answer::Object(written.0, shape.object(&written.1)))
}
