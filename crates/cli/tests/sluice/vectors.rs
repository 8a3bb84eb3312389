//! `sluice policy test`.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::{complaints, directory, sluice, sluice_with, text};

const GOOD: &str = "
schemaVersion: 1
fixtures:
  two:
    namespaces: {a: {}}
    pods: {a/x: {ip: 10.0.0.1}, a/y: {ip: 10.0.0.2}}
vectors:
- id: open
  fixture: two
  steps:
  - expect: [{from: [a/x, a/y], to: [a/x, a/y], port: 80, verdict: allow}]
- id: tie
  fixture: two
  tags: [tie-undefined-upstream]
  steps:
  - expect: [{from: a/x, to: a/y, port: 80, verdict: deny}]
";

fn lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn last(output: &Output) -> String {
    text(output).lines().last().unwrap_or_default().to_owned()
}

#[test]
fn what_passes_ends_with_the_counts() {
    let output = sluice(&["policy", "test", "--json", "-"], GOOD);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(last(&output), r#"{"passed":2,"failed":0,"undefined":1,"skipped":0}"#);
    let undefined: Vec<Value> = lines(&output).into_iter().filter(|line| line["type"] == "undefined").collect();
    assert_eq!(undefined.len(), 1);
    assert_eq!((&undefined[0]["vector"], &undefined[0]["agree"]), (&"tie".into(), &0.into()));
}

#[test]
fn what_fails_is_told_with_the_rule_that_decided() {
    let bad = GOOD.replace(
        "  - expect: [{from: [a/x, a/y]",
        "  - name: isolate
    apply:
    - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: a}, spec: {podSelector: {}}}
    expect: [{from: [a/x, a/y]",
    );
    let output = sluice(&["policy", "test", "--json", "--oracle", "-"], &bad);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(last(&output), r#"{"passed":0,"failed":2,"undefined":1,"skipped":0}"#);
    let failure = lines(&output).into_iter().find(|line| line["type"] == "failure").unwrap();
    for (key, value) in
        [("vector", "open"), ("stepName", "isolate"), ("from", "a/x"), ("to", "a/y"), ("protocol", "TCP")]
    {
        assert_eq!(failure[key], value);
    }
    assert_eq!((&failure["expected"], &failure["got"]), (&"allow".into(), &"deny".into()));
    assert_eq!(failure["gates"][1]["direction"], "ingress");
    assert!(failure["gates"][1]["rule"].as_str().unwrap().starts_with("NetworkPolicy a/p"), "{failure}");
    let text = text(&sluice(&["policy", "test", "-"], &bad));
    for part in ["open", "step 1: isolate", "a/x -> a/y", "80/TCP", "expected allow, got deny", "NetworkPolicy a/p"] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn what_cannot_be_read_is_65_and_what_cannot_be_meant_64() {
    let other = GOOD.replace("schemaVersion: 1", "schemaVersion: 2");
    let output = sluice(&["policy", "test", "--json", "-", "/nonexistent"], &other);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(last(&output), r#"{"passed":0,"failed":0,"undefined":0,"skipped":0}"#);
    let told = complaints(&output);
    assert!(told.contains("schemaVersion: 2 is not"), "{told}");
    assert!(told.contains("/nonexistent"), "{told}");
    for arguments in [&["policy", "test"][..], &["policy", "test", "--jsn", "x"], &["policy"], &["polcy"]] {
        assert_eq!(sluice(arguments, "").status.code(), Some(64), "{arguments:?}");
    }
    assert_eq!(sluice(&["policy", "test", "--help"], "").status.code(), Some(0));
}

#[test]
fn a_vector_that_cannot_be_run_fails_and_is_told() {
    for (part, instead, path) in [
        ("verdict: allow", "verdict: allow, prot: TCP", "vectors[0].steps[0].expect[0].prot"),
        ("to: a/y", "to: a/none", "vectors[1].steps[0].expect[0].to"),
    ] {
        let faulty = GOOD.replacen(part, instead, 1);
        let output = sluice(&["policy", "test", "--json", "-"], &faulty);
        assert_eq!(output.status.code(), Some(1));
        let first: Value = serde_json::from_str(text(&output).lines().next().unwrap()).unwrap();
        assert_eq!((&first["type"], &first["file"]), (&"faulty".into(), &"-".into()));
        assert!(first["issues"][0].as_str().unwrap().starts_with(path), "{first}");
        let told = text(&sluice(&["policy", "test", "-"], &faulty));
        assert!(told.contains("cannot be run as it is written") && told.contains(path), "{told}");
    }
}

/// Probes of a vector that cannot be run count as failed, and are no failures that were not kept.
#[test]
fn what_could_not_be_run_is_not_told_as_not_kept() {
    let bad = GOOD.replacen("verdict: allow", "verdict: deny", 1).replace("to: a/y,", "to: a/none,");
    let told = text(&sluice(&["policy", "test", "-"], &bad));
    assert!(told.contains("cannot be run as it is written") && told.contains("expected deny, got allow"), "{told}");
    assert!(!told.contains("not kept"), "{told}");
}

/// policyd's setting is one of these too: a CIDR of a cilium.io rule and a pod.
#[test]
fn cidrs_match_pods_where_that_is_said() {
    let vectors = GOOD.replace(
        "  - expect: [{from: [a/x, a/y]",
        "  - apply:
    - apiVersion: cilium.io/v2
      kind: CiliumNetworkPolicy
      metadata: {name: p, namespace: a}
      spec: {endpointSelector: {}, ingress: [{fromCIDR: [10.0.0.0/24]}]}
    expect: [{from: [a/x, a/y]",
    );
    let status = |arguments: &[&str], variable: &str| {
        let arguments = [&["policy", "test", "--oracle"], arguments, &["-"]].concat();
        sluice_with(&[("SLUICE_CILIUM_CIDRS_MATCH_MANAGED", variable)], &arguments, &vectors).status.code()
    };
    assert_eq!(status(&[], ""), Some(1));
    assert_eq!(status(&[], "true"), Some(0));
    assert_eq!(status(&["--cilium-cidrs-match-managed"], ""), Some(0));
    assert_eq!(status(&["--cilium-cidrs-match-managed=false"], "true"), Some(1));
    assert_eq!(status(&[], "perhaps"), Some(64));
}

#[test]
fn every_vector_of_the_repository_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios/policy");
    let path = folder.join("sluice.yaml");
    let output = sluice(&["policy", "test", "--json", path.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[test]
fn a_directory_stands_for_its_files() {
    let path = directory("vectors", &[("a/one.yaml", GOOD), ("b.yml", GOOD), ("readme.md", "no vectors")]);
    let output = sluice(&["policy", "test", "--json", path.to_str().unwrap()], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(last(&output), r#"{"passed":4,"failed":0,"undefined":2,"skipped":0}"#);
    let empty = directory("no-vectors", &[("readme.md", "no vectors")]);
    let output = sluice(&["policy", "test", "-", empty.to_str().unwrap()], GOOD);
    assert_eq!(output.status.code(), Some(65));
    assert!(complaints(&output).contains("no-vectors: the directory has no file to read"), "{}", complaints(&output));
}
