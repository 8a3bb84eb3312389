//! Fields of logs have the names that docs/logs.md lists, and messages are constant.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What runs on nodes.
const PARTS: [&str; 7] =
    ["crates/cluster", "crates/contract", "crates/daemon", "crates/hostnet", "ipamd", "plugin", "policy-chain"];

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn sources(directory: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push(path);
        }
    }
}

/// The arguments of a macro, from behind its opening parenthesis.
fn arguments(text: &str) -> Vec<String> {
    let (mut all, mut one, mut depth, mut quoted, mut escaped) = (Vec::new(), String::new(), 1, false, false);
    for character in text.chars() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 1 => {
                all.push(std::mem::take(&mut one));
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        one.push(character);
    }
    all.push(one);
    all.into_iter().map(|argument| argument.trim().to_owned()).filter(|argument| !argument.is_empty()).collect()
}

#[test]
fn fields_of_logs_are_those_that_are_listed_and_messages_are_constant() {
    let page = fs::read_to_string(repository().join("docs/logs.md")).unwrap();
    let (_, table) = page.split_once("| fields |").unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let listed: BTreeSet<&str> =
        cells.flat_map(|(names, _)| names.split([',', '`', ' '])).filter(|name| !name.is_empty()).collect();
    let mut files = Vec::new();
    for part in PARTS {
        sources(&repository().join(part), &mut files);
    }
    let (mut used, mut lines) = (BTreeSet::new(), 0);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for level in ["trace", "debug", "info", "warn", "error"] {
            for (at, found) in text.match_indices(&format!("tracing::{level}!(")) {
                lines += 1;
                for argument in arguments(text.get(at + found.len()..).unwrap_or_default()) {
                    if let Some(message) = argument.strip_prefix('"') {
                        assert!(!message.contains('{'), "{}: the message {argument} is not constant", file.display());
                        continue;
                    }
                    let name: String = argument
                        .trim_start_matches(['%', '?'])
                        .chars()
                        .take_while(|character| character.is_ascii_alphanumeric() || *character == '_')
                        .collect();
                    assert!(
                        listed.contains(name.as_str()),
                        "{}: docs/logs.md does not list {name:?} of {argument}",
                        file.display()
                    );
                    used.insert(name);
                }
            }
        }
    }
    assert!(lines > 200, "{lines} calls were found");
    let unused: Vec<&&str> = listed.iter().filter(|name| !used.contains(**name)).collect();
    assert!(unused.is_empty(), "docs/logs.md lists {unused:?}, which nothing has");
}
