//! Objects in files.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_policy_core::{manifest, parse};

/// Files of a folder, all folders in it included.
const MAX_FILES: usize = 100_000;
/// Folders within each other.
const MAX_DEPTH: usize = 32;
/// Bytes of a file.
const MAX_BYTES: u64 = manifest::MAX_TEXT_BYTES as u64;

/// The objects of all files whose name ends in `.yaml`, `.yml` or `.json`, by the files' names, and what was left out.
pub(super) fn read(folder: &Path) -> Result<(Vec<Value>, Vec<String>), String> {
    let mut files = Vec::new();
    list(folder, 0, &mut files)?;
    files.sort();
    let (mut objects, mut notes) = (Vec::new(), Vec::new());
    for path in files {
        let told = |fault: &dyn std::fmt::Display| format!("{}: {fault}", path.display());
        let size = std::fs::metadata(&path).map_err(|error| told(&error))?.len();
        if size > MAX_BYTES {
            return Err(told(&format!("the file has {size} bytes; {MAX_BYTES} is the most")));
        }
        let bytes = std::fs::read(&path).map_err(|error| told(&error))?;
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

fn list(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let told = |error: std::io::Error| format!("{}: {error}", folder.display());
    if depth > MAX_DEPTH {
        return Err(format!("{}: more than {MAX_DEPTH} folders deep", folder.display()));
    }
    for entry in std::fs::read_dir(folder).map_err(told)? {
        let path = entry.map_err(told)?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() {
            list(&path, depth + 1, files)?;
        } else if matches!(kind, Some("yaml" | "yml" | "json")) {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(format!("{}: more than {MAX_FILES} files", folder.display()));
        }
    }
    Ok(())
}
