//! Objects in files.

use std::path::Path;

use serde_json::Value;
use sluice_policy_core::{manifest, parse};

use crate::files;

/// The objects of all files whose name ends in `.yaml`, `.yml` or `.json`, by the files' names, and what was left out.
pub(super) fn read(folder: &Path) -> Result<(Vec<Value>, Vec<String>), String> {
    let files = files::of_directory(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let (mut objects, mut notes) = (Vec::new(), Vec::new());
    for path in files {
        let told = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
        let bytes = files::bytes(&path).map_err(|error| told(&error))?;
        let text = manifest::text(&bytes).map_err(|error| told(&error))?;
        for object in manifest::documents(text).map_err(|error| told(&error))? {
            let parsed = parse::object(&object);
            if parsed.object.is_some() {
                objects.push(object);
                continue;
            }
            for issue in parsed.issues {
                notes.push(told(&format!("an object is left out: {issue}")));
            }
        }
    }
    if objects.is_empty() {
        return Err(format!("{}: there are no objects in it", folder.display()));
    }
    Ok((objects, notes))
}
