//! `sluice explain`.

use std::process::Output;

use serde_json::Value;

use crate::{complaints, directory, sluice, sluice_with, text};

const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: blue}}}
- {apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 10.0.9.1}]}}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {nodeName: n1, containers: []}
  status: {phase: Running, podIPs: [{ip: 10.0.0.1}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: api, namespace: shop, labels: {app: api}}
  spec: {nodeName: n1, containers: []}
  status: {phase: Running, podIPs: [{ip: 10.0.0.2}]}
- apiVersion: v1
  kind: Service
  metadata: {name: front, namespace: shop}
  spec: {clusterIP: 172.20.0.1, clusterIPs: [172.20.0.1], ports: [{port: 80, targetPort: 8080, protocol: TCP}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: front-1, namespace: shop, labels: {kubernetes.io/service-name: front}}
  addressType: IPv4
  ports: [{name: "", port: 8080, protocol: TCP}]
  endpoints: [{addresses: [10.0.0.2], conditions: {ready: true}}]
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: api, namespace: shop}}
"#;

const POLICIES: &str = r#"
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: pass}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {}}
  ingress: [{name: to-the-team, action: Pass, from: [{namespaces: {}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: api, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "8080", protocol: TCP}], rules: {http: [{method: GET, path: /a}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress: [{toEntities: [cluster]}, {toFQDNs: [{matchName: example.com}]}]
"#;

fn explain(test: &str, arguments: &[&str]) -> Output {
    let folder = directory(&format!("explain-{test}"), &[("cluster.yaml", CLUSTER), ("policies/all.yml", POLICIES)]);
    sluice(&[&["explain", "--cluster-dir", folder.to_str().unwrap()], arguments].concat(), "")
}

fn json(test: &str, arguments: &[&str]) -> Value {
    let output = explain(test, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", complaints(&output));
    crate::json(&output)
}

#[test]
fn the_rules_are_told_in_the_order_of_precedence() {
    let to_api = ["--from", "shop/web", "--to", "shop/api", "--port", "8080/TCP"];
    let answer = json("order", &[&to_api[..], &["--http", "GET /b"]].concat());
    assert_eq!(answer["verdict"], "refuse");
    let gates = answer["ways"][0]["gates"].as_array().unwrap();
    assert_eq!((&gates[0]["direction"], &gates[0]["verdict"]), (&"egress".into(), &"allow".into()));
    assert_eq!(gates[0]["rule"], "CiliumNetworkPolicy shop/out, egress[0]");
    let told: Vec<(&str, &str)> = gates[1]["matching"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["tier"].as_str().unwrap(), one["effect"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("Admin", "pass"), ("Normal", "proxy"), ("Normal", "isolate")]);
    assert_eq!(gates[1]["matching"][0]["name"], "to-the-team");
    assert_eq!(gates[1]["matching"][1]["rule"], "CiliumNetworkPolicy shop/api, ingress[0]");
    assert_eq!(json("order", &[&to_api[..], &["--http", "GET /a"]].concat())["verdict"], "allow");
    assert!(answer["notes"].to_string().contains("Deployment"), "{}", answer["notes"]);
}

#[test]
fn services_nodes_addresses_and_names_may_be_asked_about() {
    for (from, to, port, verdict) in [
        ("shop/web", "shop/front", "80", "allow"),
        ("shop/web", "172.20.0.1", "80/TCP", "allow"),
        ("shop/web", "172.20.0.1", "443", "deny"),
        ("n1", "shop/api", "22/TCP", "allow"),
        ("198.51.100.7", "shop/api", "8080", "deny"),
        ("10.0.0.1", "10.0.0.2", "8080", "allow"),
        ("shop/web", "example.com", "443", "allow"),
        ("shop/web", "example.org", "443", "deny"),
        ("shop/web", "shop/api", "ICMP", "deny"),
    ] {
        let answer = json("kinds", &["--from", from, "--to", to, "--port", port]);
        assert_eq!(answer["verdict"], verdict, "{from} -> {to} {port}: {answer:#}");
    }
    let output = explain("kinds", &["--from", "shop/web", "--to", "shop/front", "--port", "80", "--http", "PUT /"]);
    let text = text(&output);
    for part in [
        "shop/web -> shop/front  80/TCP  PUT /  refuse",
        "(a Service)",
        "Admin 7",
        "isolate  CiliumNetworkPolicy shop/api",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

const HOST: &str = r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: d, namespace: shop, annotations: {sluice.dev/audit: "true"}}
spec: {endpointSelector: {}, enableDefaultDeny: {ingress: false}, ingressDeny: [{fromEntities: [host]}]}
"#;

/// A dry run's deny of the host is told as one, and hides none that is in force.
#[test]
fn denies_of_the_host_are_all_told() {
    let asked = ["--from", "n1", "--to", "shop/api", "--port", "22/TCP"];
    let explain = |name: &str, policies: &str| {
        let folder =
            directory(&format!("explain-{name}"), &[("cluster.yaml", CLUSTER), ("policies/all.yml", policies)]);
        sluice(&[&["explain", "--cluster-dir", folder.to_str().unwrap()], &asked[..]].concat(), "")
    };
    let rule_of = |told: &str, policy: &str| {
        let mut lines = told.lines().map(str::trim_start);
        lines.find(|line| line.starts_with("Normal") && line.contains(policy)).unwrap_or_default().to_owned()
    };
    let told = text(&explain("host-dry", HOST));
    let line = rule_of(&told, "shop/d");
    assert!(told.contains("allow") && line.contains("dry run"), "{told}");
    let both = [HOST, &HOST.replace("name: d,", "name: e,").replace("annotations", "labels")].join("---\n");
    let told = text(&explain("host-both", &both));
    let line = rule_of(&told, "shop/e");
    assert!(line.contains("deny") && !line.contains("dry run"), "{told}");
}

/// policyd's setting that CIDRs of cilium.io rules match pods too counts here as well.
#[test]
fn cidrs_match_pods_where_that_is_said() {
    let policies = "
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: api}}, ingress: [{fromCIDR: [10.0.0.0/24]}]}
";
    let folder = directory("explain-cidrs", &[("cluster.yaml", CLUSTER), ("policies/all.yml", policies)]);
    let asked = ["--from", "shop/web", "--to", "shop/api", "--port", "80", "--json"];
    let asked = [&["explain", "--cluster-dir", folder.to_str().unwrap()], &asked[..]].concat();
    let variable = |value| [("SLUICE_CILIUM_CIDRS_MATCH_MANAGED", value)];
    assert_eq!(crate::json(&sluice(&asked, ""))["verdict"], "deny");
    let output = sluice_with(&variable("true"), &asked, "");
    assert_eq!(crate::json(&output)["verdict"], "allow");
    assert!(text(&output).contains("CiliumNetworkPolicy shop/p, ingress[0]"), "{}", text(&output));
    let option = [&asked[..], &["--cilium-cidrs-match-managed=true"]].concat();
    assert_eq!(crate::json(&sluice(&option, ""))["verdict"], "allow");
    let output = sluice_with(&variable("perhaps"), &asked, "");
    assert_eq!(output.status.code(), Some(65));
    assert!(complaints(&output).contains("it must be true or false"), "{}", complaints(&output));
}

#[test]
fn what_is_not_there_is_said() {
    for (arguments, part) in [
        (["--from", "shop/none", "--to", "shop/api", "--port", "80"], "shop/none"),
        (["--from", "shop/web", "--to", "shop/none", "--port", "80/tcp"], "shop/none"),
        (["--from", "nowhere", "--to", "shop/api", "--port", "80"], "nowhere"),
        (["--from", "shop/web", "--to", "shop/api", "--port", "80/TPC"], "80/TPC"),
    ] {
        let output = explain("missing", &arguments);
        let told = complaints(&output);
        assert_eq!(output.status.code(), Some(65), "{told}");
        assert!(told.contains(part), "{told}");
    }
    assert_eq!(explain("missing", &["--from", "shop/web"]).status.code(), Some(64));
}
