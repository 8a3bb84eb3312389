//! docs/policy-guide.md: each of its policies does what the rows below it say, and has no fault.

use serde_json::{Value, json};
use sluice_policy_core::lint::{self, Role, Severity};
use sluice_policy_core::settings::Settings;
use sluice_policy_core::vector::judge::{Afresh, Compiled, Judge};
use sluice_policy_core::vector::run::Judges;
use sluice_policy_core::{manifest, oracle, vector};

const PAGE: &str = include_str!("../../../../docs/policy-guide.md");

/// A wish of the page: its policies, and what passes and what does not.
struct Recipe {
    title: &'static str,
    policies: Vec<Value>,
    rows: Vec<Value>,
}

/// What stands in a block of YAML of the page.
fn read(block: &str) -> Value {
    serde_saphyr::from_str(block).unwrap_or_else(|error| panic!("{error}\n{block}"))
}

/// The cluster of the page, and its recipes: the sections whose headings are numbered.
fn page() -> (Value, Vec<Recipe>) {
    let (mut cluster, mut recipes) = (Value::Null, Vec::new());
    for section in PAGE.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap();
        let mut blocks = section.split("```yaml\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0);
        if title.starts_with(|first: char| first.is_ascii_digit()) {
            let (policies, rows) = (blocks.next().unwrap(), read(blocks.next().unwrap()));
            let policies = manifest::documents(policies).unwrap_or_else(|error| panic!("{title}: {error}"));
            recipes.push(Recipe { title, policies, rows: rows.as_array().unwrap().clone() });
        } else if let Some(found) = blocks.next() {
            assert!(cluster.is_null(), "{title}");
            cluster = read(found);
        }
        assert!(blocks.next().is_none(), "{title}");
    }
    (cluster, recipes)
}

#[test]
fn every_policy_of_the_guide_allows_and_refuses_what_the_guide_says() {
    let (cluster, recipes) = page();
    assert!(recipes.len() >= 11, "{}", recipes.len());
    let vectors: Vec<Value> = recipes
        .iter()
        .map(|one| json!({"id": one.title, "fixture": "guide", "steps": [{"apply": one.policies, "expect": one.rows}]}))
        .collect();
    let suite = json!({"schemaVersion": 1, "fixtures": {"guide": cluster}, "vectors": vectors});
    let suite = vector::read(&suite.to_string()).unwrap();
    let compiler = || -> Box<dyn Judge> { Box::new(Compiled::new(Settings::default())) };
    let by_oracle = || -> Box<dyn Judge> { Box::new(Afresh::new(Settings::default(), oracle::judge)) };
    let outcome = vector::run(&suite, Judges { judge: &compiler, beside: Some(&by_oracle) });
    assert_eq!(outcome.faulty, []);
    assert!(outcome.failures.is_empty(), "{:#?}", outcome.failures);
    let rows: usize = recipes.iter().map(|one| one.rows.len()).sum();
    assert_eq!((outcome.counts.passed, outcome.counts.undefined, outcome.counts.skipped), (rows, 0, 0));
    for one in &recipes {
        // What passes, and what would be dropped or refused: a dry run's rows say that beside the verdict.
        let said: Vec<&str> =
            one.rows.iter().map(|row| row.get("audit").unwrap_or(&row["verdict"]).as_str().unwrap()).collect();
        let (some_pass, some_do_not) = (said.contains(&"allow"), said.iter().any(|word| *word != "allow"));
        assert!(some_pass && some_do_not, "{}: {said:?}", one.title);
    }
}

#[test]
fn no_policy_of_the_guide_has_a_finding() {
    for one in page().1 {
        let documents: Vec<lint::Document> = one
            .policies
            .into_iter()
            .map(|value| lint::Document { file: one.title.to_owned(), line: 1, value, role: Role::Checked })
            .collect();
        let found = lint::check(&documents).findings;
        let worse: Vec<String> = found
            .iter()
            .filter(|finding| finding.id.severity() > Severity::Info)
            .map(|finding| format!("{} {}: {}", finding.id, finding.path, finding.message))
            .collect();
        assert!(worse.is_empty(), "{}: {worse:?}", one.title);
    }
}
