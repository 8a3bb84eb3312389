//! The tests by which SPECIFICATION.md and docs/vpc-cni.md say that a promise is held are there.

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The rows of the tables of a page that have a column `held by`: the line's number, and that column.
fn held_by(page: &str) -> Vec<(usize, String)> {
    let mut rows = Vec::new();
    let mut column = None;
    for (index, line) in page.lines().enumerate() {
        let Some(inner) = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |")) else {
            if !line.starts_with("|---") {
                column = None;
            }
            continue;
        };
        let cells: Vec<&str> = inner.split(" | ").collect();
        if let Some(found) = cells.iter().position(|cell| *cell == "held by") {
            column = Some(found);
        } else if let Some(column) = column {
            assert!(cells.len() > column, "line {}: {} cells", index + 1, cells.len());
            rows.push((index + 1, cells[column].to_owned()));
        }
    }
    rows
}

/// The spans of code in a cell.
fn spans(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// `{a,b}/c` is `a/c` and `b/c`.
fn unfold(text: &str) -> Vec<String> {
    let Some((before, rest)) = text.split_once('{') else { return vec![text.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap();
    choices.split(',').flat_map(|choice| unfold(&format!("{before}{choice}{after}"))).collect()
}

/// Whether a file has a test of this name, or with `...` behind it one whose name begins so.
fn has_test(text: &str, name: &str, of_rust: bool) -> bool {
    let (name, cut) = name.strip_suffix("...").map_or((name, false), |name| (name, true));
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with(if of_rust { "#[test]" } else { "@check" }) || line.starts_with("#[tokio::test") {
            is_test = true;
        }
        let line = line.strip_prefix("async ").unwrap_or(line);
        let Some(found) = line.strip_prefix(if of_rust { "fn " } else { "def " }) else { continue };
        let found = found.split('(').next().unwrap_or_default();
        if is_test && (found == name || (cut && found.starts_with(name))) {
            return true;
        }
        is_test = false;
    }
    false
}

/// What is wrong with a span that may name a file, or a test in one. `last` is the file that was named before it: the next
/// may be named by its last part alone.
fn wrong(span: &str, last: &mut PathBuf) -> Option<String> {
    let first = span.split(' ').next().unwrap_or_default();
    let (path, test) = first.split_once("::").map_or((first, None), |(path, test)| (path, Some(test)));
    if !path.contains('/') && !path.ends_with(".rs") && !path.ends_with(".py") {
        // A variable, an option, a word.
        return None;
    }
    let beside = last.with_file_name(path);
    let found = [repository().join(path), beside].into_iter().find(|path| path.exists());
    let Some(found) = found else { return Some(format!("there is no {path}")) };
    last.clone_from(&found);
    let test = test?;
    let text = fs::read_to_string(&found).unwrap();
    (!has_test(&text, test, path.ends_with(".rs"))).then(|| format!("{path} has no test {test}"))
}

fn all_wrong(page: &str) -> (usize, Vec<String>) {
    let text = fs::read_to_string(repository().join(page)).unwrap();
    let rows = held_by(&text);
    let mut found = Vec::new();
    for (line, cell) in &rows {
        let mut last = repository().to_owned();
        for span in spans(cell).flat_map(unfold) {
            found.extend(wrong(&span, &mut last).map(|wrong| format!("{page}:{line}: {wrong}")));
        }
        let is_held = cell.contains('`') || cell.contains("pending") || cell.contains("out of scope");
        if !is_held {
            found.push(format!("{page}:{line}: nothing is named"));
        }
    }
    (rows.len(), found)
}

#[test]
fn what_is_said_to_be_held_names_tests_that_there_are() {
    for (page, fewest) in [("SPECIFICATION.md", 100), ("docs/vpc-cni.md", 29 + 24 + 44)] {
        let (rows, wrong) = all_wrong(page);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(rows >= fewest, "{page}: {rows} rows were found");
    }
}

#[test]
fn what_is_not_there_is_noticed() {
    let law = "tests/tests/node/law.rs";
    let told = |span: &str| wrong(span, &mut repository().join(law));
    for fine in [law, "logs.rs", "--all", "./bench S-01", "tests/tests/node/law.rs::nobody_reaches..."] {
        assert_eq!(told(fine), None);
    }
    assert_eq!(told("tests/deploy/docs.py::the_book_builds"), None);
    assert!(told("tests/tests/node/flaw.rs").is_some());
    assert!(told("tests/tests/node/law.rs::nobody_reaches").is_some());
    assert!(told("tests/tests/node/law.rs::names").is_some(), "it is no test");
    assert_eq!(unfold("a/{b,c/{d,e}}.rs").len(), 3);
    assert_eq!(held_by("| id | held by |\n|---|---|\n| a | `b` |\n\n| c | d |\n"), [(3, "`b`".to_owned())]);
}
