use super::judge::{Afresh, Judge};
use super::read::{Unreadable, read};
use super::run::{Judges, Wrong, run};
use super::schema::{Family, Request, Suite};
use super::world::World;
use crate::flow::Protocol;
use crate::oracle;
use crate::settings::Settings;

const FILE: &str = r#"
schemaVersion: 1
fixtures:
  f:
    namespaces: {a: {}, b: {y: y}}
    nodes: {n: {ip: 10.0.9.1}}
    pods:
      a/x: {ip: 10.0.0.1, ip6: "fd00::1", node: n, labels: {app: x}, ports: [{name: http, port: 80}]}
      a/y: {ip: 10.0.0.2, labels: {app: x}, ports: [{name: http, port: 8080}]}
      b/z: {ip: 10.0.0.3}
    services:
      a/s: {selector: {app: x}, ports: [{port: 1, targetPort: http}, {port: 2, targetPort: 22}]}
    externals: {e: {ip: 203.0.113.1, dnsNames: [Example.COM.]}}
vectors:
- id: v
  fixture: f
  steps:
  - expect:
    - {from: a/x, to: b/z, port: 80, protocol: TCP, verdict: allow}
"#;

fn issues(text: &str) -> Vec<String> {
    match read(text) {
        Err(Unreadable::Schema(issues)) => issues.iter().map(ToString::to_string).collect(),
        Err(Unreadable::Yaml(fault)) => vec![fault],
        Ok(_) => Vec::new(),
    }
}

fn with_row(row: &str) -> String {
    FILE.replace("{from: a/x, to: b/z, port: 80, protocol: TCP, verdict: allow}", row)
}

fn with_steps(steps: &str) -> String {
    let (before, _) = FILE.split_once("  steps:").unwrap();
    format!("{before}  steps:\n{steps}")
}

fn suite(text: &str) -> Suite {
    read(text).unwrap_or_else(|error| panic!("{error}"))
}

fn wrong(text: &str) -> Vec<Wrong> {
    let make = || Box::new(Afresh::new(Settings::default(), oracle::judge)) as Box<dyn Judge>;
    let outcome = run(&suite(text), Judges { judge: &make, beside: None }).unwrap_or_else(|fault| panic!("{fault}"));
    outcome.failures.into_iter().map(|failure| failure.wrong).collect()
}

fn fault(text: &str) -> String {
    let make = || Box::new(Afresh::new(Settings::default(), oracle::judge)) as Box<dyn Judge>;
    run(&suite(text), Judges { judge: &make, beside: None }).unwrap_err().to_string()
}

#[test]
fn what_is_not_known_is_refused_with_its_path() {
    assert_eq!(issues(FILE), Vec::<String>::new());
    for (part, instead, path) in [
        ("schemaVersion: 1", "schemaVersion: 2", "schemaVersion"),
        ("schemaVersion: 1", "schemaVersion: 1\nmore: 1", "more"),
        ("    nodes:", "    node: {}\n    nodes:", "fixtures.f.node"),
        ("{ip: 10.0.9.1}", "{ip: 10.0.9.1, zone: a}", "fixtures.f.nodes.n.zone"),
        ("{ip: 10.0.9.1}", "{ip: 10.0.9.256}", "fixtures.f.nodes.n.ip"),
        ("{ip: 10.0.9.1}", "{ip: \"fd00::9\"}", "fixtures.f.nodes.n.ip"),
        ("{ip: 10.0.9.1}", "{labels: {}}", "fixtures.f.nodes.n"),
        ("b/z: {ip", "b.z: {ip", "fixtures.f.pods.b.z"),
        ("port: 8080}", "port: 80800}", "fixtures.f.pods.a/y.ports[0].port"),
        ("port: 8080}", "port: 8080, protocol: tcp}", "fixtures.f.pods.a/y.ports[0].protocol"),
        ("{selector:", "{endpoints: [10.0.0.1], selector:", "fixtures.f.services.a/s"),
        ("targetPort: 22", "targetport: 22", "fixtures.f.services.a/s.ports[1].targetport"),
        ("{y: y}", "{y: true}", "fixtures.f.namespaces.b.y"),
        ("  fixture: f", "  fixture: g", "vectors[0].fixture"),
        ("  fixture: f", "  fixture: f\n  tag: [x]", "vectors[0].tag"),
        ("  fixture: f", "  fixture: f\n  modes: []", "vectors[0].modes"),
        ("  - expect:", "  - wait: 1\n    expect:", "vectors[0].steps[0].wait"),
        ("  - expect:", "  - advanceSeconds: -1\n    expect:", "vectors[0].steps[0].advanceSeconds"),
        ("verdict: allow", "verdict: accept", "vectors[0].steps[0].expect[0].verdict"),
        ("verdict: allow", "verdict: allow, prot: TCP", "vectors[0].steps[0].expect[0].prot"),
        ("to: b/z", "to: pod:z", "vectors[0].steps[0].expect[0].to"),
        ("to: b/z", "to: [b/z, z]", "vectors[0].steps[0].expect[0].to[1]"),
    ] {
        assert!(FILE.contains(part), "{part}");
        let told = issues(&FILE.replacen(part, instead, 1));
        assert!(told.iter().any(|issue| issue.starts_with(&format!("{path}: "))), "{instead}: {told:?}");
    }
    let twice = format!("{FILE}- {{id: v, fixture: f, steps: []}}\n");
    assert!(issues(&twice)[0].starts_with("vectors[1].id: "));
    assert!(!issues("[").is_empty());
    assert!(!issues("").is_empty());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for row in [
        "{from: a/x, to: b/z, port: 80, verdict: refuse}",
        "{from: a/x, to: b/z, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, icmpType: 8, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, protocol: ICMP, verdict: allow}",
        "{from: a/x, to: b/z, protocol: ICMP, family: IPv6, verdict: allow}",
        "{from: a/x, to: b/z, protocol: ICMPv6, family: IPv4, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, targetPort: 80, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, http: GET, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, http: 'GET /', dns: a.example, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, host: a.example, verdict: allow}",
        "{from: a/x, to: b/z, port: 80, protocol: UDP, http: 'GET /', verdict: allow}",
        "{from: a/x, to: b/z, port: 80, protocol: SCTP, dns: a.example, verdict: allow}",
    ] {
        assert!(!issues(&with_row(row)).is_empty(), "{row}");
    }
}

#[test]
fn what_is_left_out_is_what_the_documentation_says() {
    let row = |text: &str| suite(&with_row(text)).vectors[0].steps[0].expect[0].clone();
    let tcp = row("{from: a/x, to: b/z, port: 80, verdict: allow}");
    assert_eq!((tcp.protocol, tcp.family, tcp.established), (Protocol::TCP, Family::V4, false));
    let dns = row("{from: a/x, to: b/z, port: 53, dns: a.example, verdict: refuse}");
    assert_eq!((dns.protocol, dns.request), (Protocol::UDP, Some(Request::Dns("a.example".into()))));
    let ping = row("{from: a/x, to: b/z, port: 0, protocol: ICMP, verdict: allow}");
    assert_eq!((ping.port, ping.family), (8, Family::V4));
    let ping = row("{from: a/x, to: b/z, protocol: ICMPv6, verdict: allow}");
    assert_eq!((ping.port, ping.family), (128, Family::V6));
    let address = row("{from: a/x, to: \"ip:fd00::5\", port: 1, verdict: allow}");
    assert_eq!(address.family, Family::V6);
}

#[test]
fn lists_are_the_cross_product_without_oneself() {
    let pairs = |text: &str| super::run::pairs(&suite(&with_row(text)).vectors[0].steps[0].expect[0]).count();
    assert_eq!(pairs("{from: a/x, to: a/x, port: 1, verdict: allow}"), 1);
    assert_eq!(pairs("{from: [a/x], to: a/x, port: 1, verdict: allow}"), 0);
    assert_eq!(pairs("{from: [a/x, a/y, b/z], to: [a/x, a/y], port: 1, verdict: allow}"), 4);
}

#[test]
fn slices_follow_the_pods() {
    let suite = suite(FILE);
    let mut world = World::new(&suite.fixtures["f"]);
    let told = |world: &World| -> Vec<(usize, Vec<u16>)> {
        let slices = world.cluster().slices.values();
        slices.map(|slice| (slice.endpoints.len(), slice.ports.iter().map(|port| port.port).collect())).collect()
    };
    // One slice for each number that the name has, and one of IPv6.
    assert_eq!(told(&world), [(1, vec![80, 22]), (1, vec![8080, 22]), (1, vec![80, 22])]);
    let steps =
        &self::suite(&with_steps("  - {setPodLabels: {a/x: {}}}\n  - {deleteNamespace: [a]}\n")).vectors[0].steps;
    world.step(&steps[0]).unwrap();
    assert_eq!(told(&world), [(1, vec![8080, 22])]);
    world.step(&steps[1]).unwrap();
    let cluster = world.cluster();
    assert!(cluster.slices.is_empty() && cluster.services.is_empty() && !cluster.namespaces.contains_key("a"));
    assert_eq!(cluster.pods.keys().map(ToString::to_string).collect::<Vec<_>>(), ["b/z"]);
}

#[test]
fn what_is_not_as_expected_is_told_apart() {
    let isolate = "  - apply: [{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: b}, spec: {podSelector: {}}}]\n    expect:\n";
    let of = |rows: &str| wrong(&with_steps(&format!("{isolate}{rows}")));
    assert_eq!(of("    - {from: a/x, to: b/z, port: 1, verdict: deny, rule: NetworkPolicy b/p}\n"), []);
    assert_eq!(of("    - {from: a/x, to: b/z, port: 1, verdict: allow}\n"), [Wrong::Verdict]);
    assert_eq!(of("    - {from: a/x, to: b/z, port: 1, verdict: deny, rule: NetworkPolicy b/q}\n"), [Wrong::Rule]);
    let audit = "    - {from: a/x, to: b/z, port: 1, verdict: deny, audit: allow}\n";
    assert_eq!(of(audit), [Wrong::Audit(super::schema::Expected::Deny)]);
    let established = "    - {from: a/x, to: b/z, port: 1, connection: established, verdict: deny}\n";
    assert_eq!(of(&format!("    - {{from: a/x, to: b/z, port: 1, verdict: deny}}\n{established}")), [Wrong::NotOpen]);
    assert_eq!(of(established), []);
    // Port 1 of the Service leads to port 80 of one pod and 8080 of the other: only a rule by name is for both.
    let out = |ports: &str| {
        format!(
            "  - apply: [{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: b}}, spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: [{{port: {ports}}}]}}]}}}}]\n    expect:\n    - {{from: b/z, to: a/s, port: 1, verdict: allow}}\n"
        )
    };
    assert_eq!(wrong(&with_steps(&out("http"))), []);
    assert_eq!(wrong(&with_steps(&out("80"))), [Wrong::Backends]);
}

#[test]
fn what_is_not_there_is_a_fault_of_the_file() {
    for (steps, path) in [
        ("  - {expect: [{from: a/x, to: a/none, port: 1, verdict: allow}]}\n", "vectors[0].steps[0].expect[0].to"),
        (
            "  - {expect: [{from: a/x, to: b/z, port: 1, family: IPv6, verdict: allow}]}\n",
            "vectors[0].steps[0].expect[0].to",
        ),
        (
            "  - {expect: [{from: \"ext:none\", to: b/z, port: 1, verdict: allow}]}\n",
            "vectors[0].steps[0].expect[0].from",
        ),
        ("  - {deletePod: [a/none]}\n", "vectors[0].steps[0].deletePod"),
        ("  - {setPodLabels: {a/none: {}}}\n", "vectors[0].steps[0].setPodLabels"),
        ("  - {delete: [{kind: NetworkPolicy, namespace: a, name: none}]}\n", "vectors[0].steps[0].delete[0]"),
        ("  - {delete: [{kind: Deployment, namespace: a, name: none}]}\n", "vectors[0].steps[0].delete[0]"),
        ("  - {apply: [{apiVersion: v1, kind: Secret, metadata: {name: s}}]}\n", "vectors[0].steps[0].apply[0]"),
        (
            "  - {expect: [{from: a/x, to: b/z, port: 1, via: nodePort, verdict: allow}]}\n",
            "vectors[0].steps[0].expect[0]",
        ),
    ] {
        let told = fault(&with_steps(steps));
        assert!(told.starts_with(&format!("{path}: ")), "{steps}: {told}");
    }
}
