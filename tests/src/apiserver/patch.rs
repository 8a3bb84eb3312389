//! Patches: JSON merge patch (RFC 7396), strategic merge as far as lists of conditions go, and server-side apply.

use serde_json::{Map, Value, json};

use super::error::ApiError;

/// Lists whose elements are told apart by a field, wherever they stand (Kubernetes' `x-kubernetes-list-map-keys`, and the
/// patch merge keys).
const KEYED: &[(&str, &str)] = &[("conditions", "type"), ("containers", "name"), ("podIPs", "ip")];

fn list_key(field: &str) -> Option<&'static str> {
    KEYED.iter().find(|(name, _)| *name == field).map(|(_, key)| *key)
}

/// JSON merge patch.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Strategic merge patch: as [`merge`], but elements of a keyed list are merged with those of equal key.
pub(super) fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(fields) = target.as_object_mut() else { return };
    for (name, value) in patch {
        match (value, list_key(name)) {
            (Value::Null, _) => {
                fields.remove(name);
            }
            (Value::Array(elements), Some(key)) => {
                let list = fields.entry(name.clone()).or_insert_with(|| json!([]));
                for element in elements {
                    strategic(element_of(list, key, element.get(key)), element);
                }
            }
            _ => strategic(fields.entry(name.clone()).or_insert(Value::Null), value),
        }
    }
}

/// The element of a list whose key is this; made if it is not there. What is no list becomes one.
fn element_of<'a>(list: &'a mut Value, key: &str, wanted: Option<&Value>) -> &'a mut Value {
    if !list.is_array() {
        *list = json!([]);
    }
    let found = list.as_array().and_then(|list| list.iter().position(|one| one.get(key) == wanted));
    let at = found.unwrap_or_else(|| {
        list.as_array_mut().map_or(0, |list| {
            list.push(json!({}));
            list.len() - 1
        })
    });
    &mut list[at]
}

/// Server-side apply of `patch` on `target` in the name of a field manager.
///
/// Fields that the manager applied before and does not apply now go, unless another manager applied them too. A field
/// that another manager applied with another value is a conflict, unless `force` takes it.
pub(super) fn apply(target: &mut Value, patch: &Value, manager: &str, sub: &str, force: bool) -> Result<(), ApiError> {
    let mut wanted = patch.clone();
    if let Some(fields) = wanted.as_object_mut() {
        for identity in ["apiVersion", "kind"] {
            fields.remove(identity);
        }
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            for identity in ["name", "namespace", "uid", "resourceVersion", "managedFields", "creationTimestamp"] {
                metadata.remove(identity);
            }
            if metadata.is_empty() {
                fields.remove("metadata");
            }
        }
    }
    let set = field_set(&wanted);
    let mut managers = target.pointer("/metadata/managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_own = |entry: &Value| text(entry, "manager") == manager && text(entry, "subresource") == sub;

    for entry in managers.iter_mut().filter(|entry| !is_own(entry)) {
        let mut paths = Vec::new();
        let Some(owned) = entry.get("fieldsV1") else { continue };
        differing(owned, &set, target, &wanted, "", &mut paths);
        if !paths.is_empty() && !force {
            return Err(ApiError::field_conflict(&text(entry, "manager"), &paths));
        }
        if !paths.is_empty()
            && let Some(owned) = entry.get_mut("fieldsV1")
        {
            subtract(owned, &set);
        }
    }
    let own = managers.iter().position(is_own);
    if let Some(before) = own.and_then(|at| managers.get(at)).and_then(|entry| entry.get("fieldsV1")) {
        let mut gone = before.clone();
        subtract(&mut gone, &set);
        for other in managers.iter().filter(|entry| !is_own(entry)).filter_map(|entry| entry.get("fieldsV1")) {
            subtract(&mut gone, other);
        }
        remove(target, &gone);
    }
    strategic(target, &wanted);

    // The time is that of the last change of the set, so that applying twice changes nothing.
    let same = own.and_then(|at| managers.get(at)).is_some_and(|entry| entry.get("fieldsV1") == Some(&set));
    if !same {
        let mut entry = json!({
            "manager": manager, "operation": "Apply", "apiVersion": patch.get("apiVersion"),
            "time": super::store::now(), "fieldsType": "FieldsV1", "fieldsV1": set,
        });
        if let Some(fields) = entry.as_object_mut().filter(|_| !sub.is_empty()) {
            fields.insert("subresource".to_owned(), json!(sub));
        }
        match own.and_then(|at| managers.get_mut(at)) {
            Some(old) => *old = entry,
            None => managers.push(entry),
        }
    }
    managers.retain(|entry| entry.get("fieldsV1").and_then(Value::as_object).is_none_or(|set| !set.is_empty()));
    merge(target, &json!({"metadata": {"managedFields": managers}}));
    Ok(())
}

/// The fields of a value, in the form of `FieldsV1`: `f:NAME` for a field, `k:{KEY}` for an element of a keyed list.
fn field_set(value: &Value) -> Value {
    let mut set = Map::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let inner = match (value, list_key(name)) {
            (Value::Array(elements), Some(key)) => {
                let keyed = elements.iter().map(|element| {
                    let name = format!("k:{}", json!({ key: element.get(key) }));
                    (name, field_set(element))
                });
                Value::Object(keyed.collect())
            }
            (Value::Object(_), _) => field_set(value),
            _ => json!({}),
        };
        set.insert(format!("f:{name}"), inner);
    }
    Value::Object(set)
}

/// The part of a value that an entry of a field set names.
fn part<'a>(value: &'a Value, entry: &str) -> Option<&'a Value> {
    match (entry.strip_prefix("f:"), entry.strip_prefix("k:")) {
        (Some(name), _) => value.get(name),
        (_, Some(key)) => {
            let key: Map<String, Value> = serde_json::from_str(key).ok()?;
            let is = |element: &&Value| key.iter().all(|(name, wanted)| element.get(name) == Some(wanted));
            value.as_array()?.iter().find(is)
        }
        _ => None,
    }
}

/// Paths of the leaves in both sets whose values differ.
fn differing(owned: &Value, set: &Value, target: &Value, wanted: &Value, path: &str, found: &mut Vec<String>) {
    for (entry, inner) in owned.as_object().into_iter().flatten() {
        let Some(other) = set.get(entry) else { continue };
        let path = format!("{path}.{}", entry.trim_start_matches("f:"));
        let leaf = |set: &Value| set.as_object().is_none_or(Map::is_empty);
        match (part(target, entry), part(wanted, entry)) {
            (Some(was), Some(is)) if was == is => {}
            (Some(_), Some(_)) if leaf(inner) || leaf(other) => found.push(path),
            (Some(was), Some(is)) => differing(inner, other, was, is, &path, found),
            _ => {}
        }
    }
}

/// Takes what is in `set` out of `from`.
fn subtract(from: &mut Value, set: &Value) {
    let Some(fields) = from.as_object_mut() else { return };
    fields.retain(|entry, inner| match set.get(entry) {
        None => true,
        Some(other) => {
            if inner.as_object().is_none_or(Map::is_empty) {
                return false;
            }
            subtract(inner, other);
            inner.as_object().is_some_and(|left| !left.is_empty())
        }
    });
}

/// Removes from a value the leaves that a set names, and keyed elements of which nothing but the key is left.
fn remove(value: &mut Value, set: &Value) {
    for (entry, inner) in set.as_object().into_iter().flatten() {
        let leaf = inner.as_object().is_none_or(Map::is_empty);
        if let Some(name) = entry.strip_prefix("f:") {
            if leaf && let Some(fields) = value.as_object_mut() {
                fields.remove(name);
            } else if let Some(part) = value.get_mut(name) {
                remove(part, inner);
            }
        } else if let Some(key) = entry.strip_prefix("k:")
            && let (Ok(key), Some(list)) = (serde_json::from_str::<Map<String, Value>>(key), value.as_array_mut())
        {
            let is = |element: &Value| key.iter().all(|(name, wanted)| element.get(name) == Some(wanted));
            // The set of an element that is gone as a whole names its key too.
            let whole = key.keys().all(|name| inner.get(format!("f:{name}")).is_some());
            list.retain(|element| !(whole && is(element)));
            for element in list.iter_mut().filter(|element| is(element)) {
                remove(element, inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(target: &mut Value, manager: &str, force: bool, status: &Value) -> Result<(), ApiError> {
        apply(target, &json!({"apiVersion": "x/v1", "kind": "X", "status": status}), manager, "status", force)
    }

    #[test]
    fn a_merge_patch_merges_replaces_and_removes() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut value, &json!({"a": {"b": null, "e": 3}, "d": [2, 3]}));
        assert_eq!(value, json!({"a": {"c": 2, "e": 3}, "d": [2, 3]}));
    }

    #[test]
    fn managers_own_conditions_by_type() {
        let mut object = json!({"metadata": {"name": "x"}});
        applied(&mut object, "one", false, &json!({"conditions": [{"type": "A", "status": "True"}]})).unwrap();
        applied(&mut object, "two", false, &json!({"conditions": [{"type": "B", "status": "False"}]})).unwrap();
        let types = |object: &Value| {
            object["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].to_string()).collect::<Vec<_>>()
        };
        assert_eq!(types(&object), ["\"A\"", "\"B\""]);
        // What a manager applies no more goes; what the other one applied stays.
        applied(&mut object, "one", false, &json!({"conditions": [{"type": "C", "status": "True"}]})).unwrap();
        assert_eq!(types(&object), ["\"B\"", "\"C\""]);
    }

    #[test]
    fn a_field_of_another_manager_is_a_conflict_unless_forced() {
        let mut object = json!({"metadata": {"name": "x"}});
        applied(&mut object, "one", false, &json!({"phase": "a"})).unwrap();
        applied(&mut object, "two", false, &json!({"phase": "a"})).unwrap();
        let error = applied(&mut object, "two", false, &json!({"phase": "b"})).unwrap_err();
        assert_eq!((error.code, error.reason), (409, "Conflict"));
        assert_eq!(object["status"]["phase"], "a");
        applied(&mut object, "two", true, &json!({"phase": "b"})).unwrap();
        assert_eq!(object["status"]["phase"], "b");
        let before = object.clone();
        applied(&mut object, "two", false, &json!({"phase": "b"})).unwrap();
        assert_eq!(object, before);
    }
}
