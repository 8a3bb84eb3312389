//! `sluice policy check`.

use std::process::Output;

use serde_json::Value;

use crate::{directory, json, text};

const WARNED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {}
  ingress: [{}, {ports: [{port: 80}]}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: db, namespace: shop}
";

const INVALID: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: \"bad\\e[31m\", namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 70000}]}]}
";

fn check(arguments: &[&str], input: &str) -> Output {
    crate::sluice(&[&["policy", "check"], arguments].concat(), input)
}

#[test]
fn warnings_are_told_and_are_no_failure() {
    let output = check(&["-"], WARNED);
    assert_eq!(output.status.code(), Some(0));
    let text = text(&output);
    for part in [
        "-\n",
        "  NetworkPolicy shop/db  line 1\n",
        "    warning shadowed-rule  spec.ingress[1]: it adds nothing: spec.ingress[0] allows all of it\n",
        "      is:  {\"ports\":[{\"port\":80}]}\n",
        "      do:  remove it",
        "\n  info other-kind  1 object that is no policy is passed over: 1 ConfigMap\n",
        "2 objects, 1 policy: 1 warning, 1 note\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "colours for no terminal:\n{text}");
}

#[test]
fn json_is_one_object() {
    let output = check(&["--json", "-"], WARNED);
    let all = json(&output);
    let counts = &all["counts"];
    for (name, count) in [("error", 0), ("warning", 1), ("info", 1), ("notTold", 0), ("objects", 2), ("policies", 1)] {
        assert_eq!(counts[name], count, "{name}");
    }
    let finding = &all["findings"][0];
    for (key, value) in [
        ("id", "shadowed-rule"),
        ("severity", "warning"),
        ("file", "-"),
        ("object", "NetworkPolicy shop/db"),
        ("path", "spec.ingress[1]"),
        ("value", "{\"ports\":[{\"port\":80}]}"),
        ("message", "it adds nothing: spec.ingress[0] allows all of it"),
    ] {
        assert_eq!(finding[key], value);
    }
    assert_eq!(finding["line"], 1);
    assert!(finding["hint"].as_str().unwrap().starts_with("remove it"));
}

#[test]
fn errors_are_a_failure_and_no_terminal_obeys_a_file() {
    let output = check(&["-"], INVALID);
    assert_eq!(output.status.code(), Some(1));
    let text = text(&output);
    assert!(text.contains("error invalid"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[test]
fn what_cannot_be_read_is_65_and_what_cannot_be_meant_64() {
    let output = check(&["--json", "-", "/nonexistent.yaml"], &format!("{WARNED}---\n{{a: [}}\n"));
    assert_eq!(output.status.code(), Some(65));
    let all = json(&output);
    let of = |id: &str| all["findings"].as_array().unwrap().iter().filter(|one| one["id"] == id).count();
    assert_eq!((of("unreadable"), of("shadowed-rule")), (2, 1));
    for arguments in [&[][..], &["--jsn", "-"], &["--cluster-dir"]] {
        assert_eq!(check(arguments, "").status.code(), Some(64), "{arguments:?}");
    }
    assert_eq!(check(&["--help"], "").status.code(), Some(0));
}

#[test]
fn directories_are_read_and_the_cluster_is_told_nothing_of() {
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: n}, \
                  spec: {podSelector: {matchLabels: {app: x}}}}";
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: n, labels: {app: y}}}";
    let path = directory(
        "check",
        &[
            ("policies/a/p.yaml", policy),
            ("policies/readme.md", "no object"),
            ("policies/.hidden.yaml", ": no object ["),
            ("cluster/pods.yml", pod),
            ("cluster/bad.json", INVALID),
        ],
    );
    let (policies, cluster) = (path.join("policies"), path.join("cluster"));
    let (policies, cluster) = (policies.to_str().unwrap(), cluster.to_str().unwrap());
    let alone = check(&["--json", policies], "");
    assert_eq!(json(&alone)["findings"], Value::Array(Vec::new()));
    let output = check(&["--json", policies, "--cluster-dir", cluster], "");
    assert_eq!(output.status.code(), Some(0));
    let all = json(&output);
    assert_eq!(all["findings"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(all["findings"][0]["id"], "selects-no-pod");
    let file = all["findings"][0]["file"].as_str().unwrap();
    assert!(file.ends_with("policies/a/p.yaml"), "{file}");
    let none = check(&[policies, "--cluster-dir", "/nonexistent"], "");
    assert_eq!(none.status.code(), Some(65));
    assert!(text(&none).contains("/nonexistent"), "{}", text(&none));
}
