//! Each finding where it belongs, none where it does not, and none about policies that are well.

mod hostile;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Checked, Document, Finding, Id, Role, Severity, check};
use crate::manifest;

const PAGE: &str = include_str!("../../../../docs/policy-check.md");
const CASES: &str = include_str!("tests/cases.txt");
const GOOD: &str = include_str!("tests/good.yaml");
// What the chart's admission policies are tried with, by tests/deploy/admission.py.
const USABLE: &str = include_str!("../../../../tests/deploy/usable.yaml");
const FAULTY: &str = include_str!("../../../../tests/deploy/faulty.yaml");

fn documents(file: &str, text: &str, role: Role) -> Vec<Document> {
    let manifest = manifest::read(text);
    assert_eq!(manifest.errors, [], "{text}");
    let document = |one: manifest::Document| Document { file: file.to_owned(), line: one.line, value: one.value, role };
    manifest.documents.into_iter().map(document).collect()
}

fn checked(text: &str) -> Checked {
    check(&documents("policies.yaml", text, Role::Checked))
}

fn shown(findings: &[Finding]) -> String {
    let line = |one: &Finding| format!("{} {} {}: {} ({})", one.id, one.object, one.path, one.message, one.value);
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The sections of the page: severity, id, example.
fn sections() -> Vec<(String, String, String)> {
    let mut severity = String::new();
    let mut sections = Vec::new();
    for part in PAGE.split("\n## ").skip(1) {
        let mut parts = part.split("\n### ");
        severity.clear();
        severity.push_str(parts.next().unwrap().trim());
        for part in parts {
            let (id, rest) = part.split_once('\n').unwrap();
            let example = rest.split_once("```yaml\n").and_then(|(_, rest)| rest.split_once("\n```"));
            let example = example.map(|(example, _)| example.to_owned()).unwrap_or_default();
            sections.push((severity.clone(), id.to_owned(), example));
        }
    }
    sections
}

#[test]
fn the_page_has_every_finding_and_no_other() {
    let heading = |severity: Severity| match severity {
        Severity::Error => "Errors",
        Severity::Warning => "Warnings",
        Severity::Info => "Info",
    };
    let code: Vec<(String, String)> =
        Id::ALL.iter().map(|id| (heading(id.severity()).to_owned(), id.to_string())).collect();
    let page: Vec<(String, String)> = sections().into_iter().map(|(severity, id, _)| (severity, id)).collect();
    assert_eq!(page, code);
}

#[test]
fn every_example_of_the_page_has_its_finding_and_none_that_is_worse() {
    for (_, id, example) in sections() {
        let id = *Id::ALL.iter().find(|one| one.as_str() == id).unwrap();
        if id == Id::NotAllCompared {
            continue;
        }
        if id == Id::Unreadable {
            let errors = manifest::read(&example).errors;
            assert_eq!(Finding::of_manifest("f", &errors[0]).id, id);
            continue;
        }
        let found = checked(&example).findings;
        assert!(found.iter().any(|one| one.id == id), "{id}:\n{}", shown(&found));
        let worse = found.iter().any(|one| one.id != id && one.id.severity() >= Severity::Warning);
        assert!(!worse, "{id}:\n{}", shown(&found));
    }
}

/// `=== ID PATH` before objects with the finding at the path, `=== ID -` before objects without it.
#[test]
fn every_finding_is_there_where_it_belongs_and_nowhere_else() {
    let mut seen: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for case in CASES.split("\n=== ").skip(1) {
        let (head, text) = case.split_once('\n').unwrap();
        let (id, path) = head.split_once(' ').unwrap();
        assert!(Id::ALL.iter().any(|one| one.as_str() == id), "{id}");
        let found = checked(text).findings;
        let at: Vec<&str> = found.iter().filter(|one| one.id.as_str() == id).map(|one| one.path.as_str()).collect();
        let counts = seen.entry(id).or_default();
        if path == "-" {
            counts.1 += 1;
            assert!(at.is_empty(), "{id} is told of\n{text}\n{}", shown(&found));
        } else {
            counts.0 += 1;
            let path = if path == "(whole)" { "" } else { path };
            assert_eq!(at, [path], "{id} of\n{text}\n{}", shown(&found));
        }
    }
    for id in Id::ALL {
        if ![Id::Unreadable, Id::NotAllCompared].contains(id) {
            let (with, without) = seen.get(id.as_str()).copied().unwrap_or_default();
            assert!(with > 0 && without > 0, "{id} has {with} cases with it and {without} without");
        }
    }
}

fn above_info(checked: &Checked) -> Vec<Finding> {
    checked.findings.iter().filter(|one| one.id.severity() > Severity::Info).cloned().collect()
}

#[test]
fn good_policies_have_no_finding_above_info() {
    let found = above_info(&checked(GOOD));
    assert!(found.is_empty(), "{}", shown(&found));
    // Nor has any of them alone, where nothing is known of the others.
    for document in documents("good.yaml", GOOD, Role::Checked) {
        let found = above_info(&check(std::slice::from_ref(&document)));
        // What another object of the set gives it is missing then.
        let found: Vec<Finding> = found
            .into_iter()
            .filter(|one| ![Id::DenyOnly, Id::NoDns, Id::NamesNeverLearned].contains(&one.id))
            .collect();
        assert!(found.is_empty(), "{}", shown(&found));
    }
}

#[test]
fn what_admission_tells_of_is_an_error_and_what_it_lets_pass_is_none() {
    let errors = |document: &Document| -> Vec<Finding> {
        let found = check(std::slice::from_ref(document)).findings;
        found.into_iter().filter(|one| one.id.severity() == Severity::Error).collect()
    };
    for document in documents("usable.yaml", USABLE, Role::Checked) {
        let found = errors(&document);
        assert!(found.is_empty(), "{}\n{}", document.value, shown(&found));
    }
    // ENIConfigs are ipamd's.
    let mut faulty = documents("faulty.yaml", FAULTY, Role::Checked);
    faulty.retain(|document| document.value["kind"] != "ENIConfig");
    assert!(faulty.len() >= 20, "{}", faulty.len());
    for document in faulty {
        assert!(!errors(&document).is_empty(), "nodes can use {}", document.value);
    }
}

/// The cluster of a vector's fixture, as objects.
fn fixture(fixture: &Value) -> Vec<Value> {
    let mut objects = Vec::new();
    for (name, labels) in fixture["namespaces"].as_object().unwrap() {
        objects.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}));
    }
    for (key, pod) in fixture["pods"].as_object().unwrap() {
        let (namespace, name) = key.split_once('/').unwrap();
        let port =
            |port: &Value| json!({"name": port["name"], "containerPort": port["port"], "protocol": port["protocol"]});
        let ports: Vec<Value> = pod["ports"].as_array().into_iter().flatten().map(port).collect();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": pod["labels"]},
            "spec": {"containers": [{"name": "c", "ports": ports}]},
            "status": {"podIPs": [{"ip": pod["ip"]}]},
        }));
    }
    objects
}

/// The recipes of kubernetes-network-policy-recipes, with their clusters around them and without.
#[test]
fn well_known_recipes_have_no_finding_above_info() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/policy/netpol.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let file = &manifest::documents(&text).unwrap()[0];
    let mut recipes = 0;
    for vector in file["vectors"].as_array().unwrap() {
        let id = vector["id"].as_str().unwrap();
        if !id.starts_with("recipes/") {
            continue;
        }
        recipes += 1;
        let around = fixture(&file["fixtures"][vector["fixture"].as_str().unwrap()]);
        let steps = vector["steps"].as_array().unwrap();
        let policies: Vec<Value> =
            steps.iter().flat_map(|step| step["apply"].as_array().cloned().unwrap_or_default()).collect();
        assert!(!policies.is_empty());
        for around in [around, Vec::new()] {
            let document = |value: &Value, role| Document { file: id.to_owned(), line: 1, value: value.clone(), role };
            let mut documents: Vec<Document> = policies.iter().map(|one| document(one, Role::Checked)).collect();
            documents.extend(around.iter().map(|one| document(one, Role::Cluster)));
            let found = above_info(&check(&documents));
            assert!(found.is_empty(), "{id}:\n{}", shown(&found));
        }
    }
    assert_eq!(recipes, 7);
}

#[test]
fn nothing_is_told_of_the_cluster_and_much_by_it() {
    let cluster = "
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: old, namespace: shop}
spec: {podSelector: {matchLabels: {app: gone}}}
";
    let policy = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: new, namespace: other}
spec: {podSelector: {matchLabels: {app: db}}}
";
    let mut all = documents("new.yaml", policy, Role::Checked);
    assert_eq!(check(&all).findings, []);
    all.extend(documents("cluster/all.yaml", cluster, Role::Cluster));
    let checked = check(&all);
    assert_eq!((checked.objects, checked.policies), (1, 1));
    assert_eq!(checked.findings.len(), 1, "{}", shown(&checked.findings));
    let Finding { id, file, line, object, path, value, .. } = &checked.findings[0];
    assert_eq!((*id, file.as_str(), *line), (Id::SelectsNoPod, "new.yaml", 1));
    assert_eq!((object.as_str(), path.as_str()), ("NetworkPolicy other/new", "spec.podSelector"));
    assert_eq!(value, r#"{"matchLabels":{"app":"db"}}"#);
    // The same policy in the cluster is what this one replaces.
    let replaced = policy.replace("app: db", "app: x");
    all.extend(documents("cluster/old.yaml", &replaced, Role::Cluster));
    assert_eq!(check(&all).findings.len(), 1);
}

#[test]
fn what_covers_is_named() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: n}
spec:
  podSelector: {}
  ingress: [{ports: [{port: 80}]}, {ports: [{port: 80, endPort: 90}]}]
---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: c}
specs:
- {endpointSelector: {}, egress: [{toEntities: [world]}]}
- {endpointSelector: {}, egressDeny: [{toEntities: [world, host]}]}
";
    let found = checked(text).findings;
    let said: Vec<(&str, &str)> = found.iter().map(|one| (one.path.as_str(), one.message.as_str())).collect();
    assert_eq!(
        said,
        [
            ("spec.ingress[0]", "it adds nothing: spec.ingress[1] allows all of it"),
            (
                "specs[0].egress[0]",
                "it allows nothing: specs[1].egressDeny[0] denies all of it, and a deny wins over every allow"
            ),
        ]
    );
}

/// What is left of a list by removing a rule may isolate nobody any more, or everybody.
#[test]
fn how_a_rule_is_taken_out_is_told() {
    let deny = "---
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: no-mail}
spec: {endpointSelector: {}, enableDefaultDeny: {egress: false, ingress: false}, egressDeny: [{toEntities: [all]}], ingressDeny: [{fromEntities: [all]}]}
";
    let np = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {{podSelector: {{}}, {spec}}}\n"
        )
    };
    let cnp = |spec: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: n}}\nspec: {{endpointSelector: {{}}, {spec}}}\n"
        )
    };
    let remove = "remove it, or make the deny narrower";
    for (policy, hint) in [
        (np("egress: [{ports: [{port: 25}]}]"), "write policyTypes: [Ingress, Egress] and remove it"),
        (np("policyTypes: [Egress], egress: [{ports: [{port: 25}]}]"), remove),
        (np("ingress: [{ports: [{port: 25}]}]"), remove),
        (cnp("egress: [{toEntities: [world]}]"), "write {} in its place"),
        (cnp("egress: [{toEntities: [world]}], egressDeny: [{toEntities: [cluster]}]"), remove),
    ] {
        let found = checked(&[policy.as_str(), deny].concat()).findings;
        let shadowed: Vec<&Finding> = found.iter().filter(|one| one.id == Id::ShadowedRule).collect();
        assert!(matches!(shadowed[..], [one] if one.hint.starts_with(hint)), "{policy}{shadowed:#?}");
    }
}

#[test]
fn there_is_an_end_to_comparing() {
    let rules: Vec<Value> = (0..3_000).map(|port| json!({"ports": [{"port": 1 + 2 * port}]})).collect();
    let value = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "many", "namespace": "n"},
        "spec": {"podSelector": {}, "ingress": rules},
    });
    let document = Document { file: "f".to_owned(), line: 1, value, role: Role::Checked };
    let found = check(&[document]).findings;
    assert_eq!(found.iter().map(|one| one.id).collect::<Vec<_>>(), [Id::NotAllCompared]);
}
