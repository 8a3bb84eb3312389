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
        Ok(suite) => suite.faulty.iter().flat_map(|one| &one.issues).map(ToString::to_string).collect(),
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
    let suite = read(text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(suite.faulty, []);
    suite
}

fn wrong(text: &str) -> Vec<Wrong> {
    let make = || Box::new(Afresh::new(Settings::default(), oracle::judge)) as Box<dyn Judge>;
    let outcome = run(&suite(text), Judges { judge: &make, beside: None });
    assert_eq!(outcome.faulty, []);
    outcome.failures.into_iter().map(|failure| failure.wrong).collect()
}

fn fault(text: &str) -> String {
    let make = || Box::new(Afresh::new(Settings::default(), oracle::judge)) as Box<dyn Judge>;
    let outcome = run(&suite(text), Judges { judge: &make, beside: None });
    let [faulty] = outcome.faulty.as_slice() else { panic!("{:?}", outcome.faulty) };
    faulty.issues[0].to_string()
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
        slices.map(|slice| (slice.ready.iter().count(), slice.ports.iter().map(|port| port.port).collect())).collect()
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
fn an_applied_service_is_as_an_api_server_and_its_controllers_make_it() {
    let service =
        |spec: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: t, namespace: a}}, spec: {spec}}}");
    let ports = "selector: {app: x}, ports: [{name: web, port: 81, targetPort: http}, {name: ssh, port: 22}]";
    let told = |world: &World| -> Vec<String> {
        let of = |name: &&str| {
            world.cluster().slices.values().filter(|slice| slice.service.as_deref() == Some(*name)).collect::<Vec<_>>()
        };
        let slices = of(&"t").into_iter();
        slices
            .map(|slice| {
                format!("{:?} {:?}", slice.ready, slice.ports.iter().map(|port| port.port).collect::<Vec<_>>())
            })
            .collect()
    };
    let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: mine, namespace: a, labels: {kubernetes.io/service-name: t}}, ports: [{name: web, port: 1}], endpoints: [{addresses: [10.0.0.3]}]}";
    let steps = [
        format!("{{apply: [{}]}}", service(&format!("{{{ports}}}"))),
        "{setPodLabels: {a/y: {}}}".into(),
        format!("{{apply: [{}]}}", service(&format!("{{clusterIP: 198.51.100.1, {ports}}}"))),
        format!("{{apply: [{slice}]}}"),
        "{delete: [{kind: EndpointSlice, namespace: a, name: mine}]}".into(),
        format!("{{apply: [{}]}}", service("{type: ExternalName, externalName: example.com}")),
    ];
    let suite = suite(&with_steps(&steps.map(|step| format!("  - {step}\n")).concat()));
    let mut world = World::new(&suite.fixtures["f"]);
    let mut addresses = Vec::new();
    let mut after = |world: &mut World, index: usize| {
        world.step(&suite.vectors[0].steps[index]).unwrap();
        let service = world.cluster().services.values().find(|service| &*service.key.name == "t").unwrap();
        addresses.push(service.addresses.len());
        told(world)
    };
    let (x, y, x6) = ("{10.0.0.1} [80, 22]", "{10.0.0.2} [8080, 22]", "{fd00::1} [80, 22]");
    assert_eq!(after(&mut world, 0), [x, y, x6]);
    assert_eq!(after(&mut world, 1), [x, x6]);
    assert_eq!(after(&mut world, 2), [x]);
    assert_eq!(after(&mut world, 3), ["{10.0.0.3} [1]"]);
    assert_eq!(after(&mut world, 4), [x]);
    assert_eq!(after(&mut world, 5), Vec::<String>::new());
    assert_eq!(addresses, [2, 2, 1, 1, 1, 0]);
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
fn a_faulty_vector_fails_and_the_others_are_run() {
    let policy = |spec: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: b}}, spec: {spec}}}"
        )
    };
    let row = "{from: [a/x, a/y], to: [b/z], port: 80, verdict: deny}";
    let vector =
        |id: &str, fixture: &str, steps: &str| format!("- {{id: {id}, fixture: {fixture}, steps: [{steps}]}}\n");
    let text = [
        FILE.replace("fixtures:\n", "fixtures:\n  g: {pods: {a.x: {}}}\n"),
        // Refused as it is read: a typo, a fixture with a fault, none.
        vector("typo", "f", &format!("{{expects: [{row}]}}")),
        vector("bad-fixture", "g", &format!("{{expect: [{row}]}}")),
        vector("no-fixture", "h", &format!("{{expect: [{row}]}}")),
        vector("v", "f", ""),
        "- 5\n".to_owned(),
        // Refused where it is run, after two probes of four, and of six.
        vector("object", "f", &format!("{{expect: [{row}]}}, {{apply: [{}], expect: [{row}]}}", policy("5"))),
        vector("pod", "f", &format!("{{apply: [{}], expect: [{row}]}}, {{expect: [{{from: a/none, to: b/z, port: 1, verdict: deny}}, {row}]}}", policy("{}"))),
        vector("later", "f", &format!("{{apply: [{}], expect: [{row}]}}", policy("{}"))),
    ]
    .concat();
    let suite = read(&text).unwrap();
    let make = || Box::new(Afresh::new(Settings::default(), oracle::judge)) as Box<dyn Judge>;
    let outcome = run(&suite, Judges { judge: &make, beside: None });
    let told: Vec<String> = outcome.faulty.iter().map(|one| format!("{} {}", one.vector, one.issues[0].path)).collect();
    assert_eq!(
        told,
        [
            "typo vectors[1].steps[0].expects",
            "bad-fixture fixtures.g.pods.a.x",
            "no-fixture vectors[3].fixture",
            "v vectors[4].id",
            "vectors[5] vectors[5]",
            "object vectors[6].steps[1].apply[0]",
            "pod vectors[7].steps[1].expect[0].from",
        ]
    );
    // One of v, two of pod, two of later; one each for those that were not begun, four of object, three of pod.
    assert_eq!((outcome.counts.passed, outcome.counts.failed), (5, 5 + 4 + 3));
}

#[test]
fn services_of_every_kind_are_destinations() {
    let services = "    services:\n      a/h: {clusterIP: None, selector: {app: x}, ports: [{port: 80}]}\n      a/n: {selector: {app: x}, ports: [{port: 1, targetPort: http, nodePort: 30001}]}\n";
    let file = FILE.replace("    services:\n", services).replace("b/z: {ip: 10.0.0.3}", "b/z: {ip: 10.0.0.3, node: n}");
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: b}, spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 8080}]}]}}";
    let with = |row: &str| {
        file.replace(
            "  - expect:\n    - {from: a/x, to: b/z, port: 80, protocol: TCP, verdict: allow}",
            &format!("  - apply: [{policy}]\n    expect: [{row}]"),
        )
    };
    for row in [
        // The headless one stands for its pods, with the port that is dialled.
        "{from: b/z, to: a/h, port: 80, verdict: allow}",
        "{from: b/z, to: a/h, port: 81, verdict: deny, rule: NetworkPolicy b/p}",
        "{from: b/z, to: a/n, port: 1, verdict: allow}",
        "{from: b/z, to: a/n, port: 30001, via: nodePort, verdict: allow}",
    ] {
        assert_eq!(wrong(&with(row)), [], "{row}");
    }
    for (row, message) in [
        ("{from: b/z, to: a/n, port: 2, verdict: deny}", "Service a/n has no port 2/TCP"),
        ("{from: b/z, to: a/n, port: 1, protocol: UDP, verdict: deny}", "Service a/n has no port 1/UDP"),
        ("{from: b/z, to: a/n, port: 1, via: nodePort, verdict: deny}", "Service a/n has no node port 1/TCP"),
    ] {
        assert_eq!(fault(&with(row)), format!("vectors[0].steps[0].expect[0].to: {message}"));
    }
}

#[test]
fn pods_of_the_host_have_their_nodes_addresses() {
    let file = FILE.replace("b/z: {ip: 10.0.0.3}", "b/z: {hostNetwork: true, node: n}");
    assert_eq!(wrong(&file), []);
    assert_eq!(
        World::new(&suite(&file).fixtures["f"]).cluster().pods.values().last().unwrap().addresses.to_vec(),
        ["10.0.9.1".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn notes_are_for_readers() {
    let noted = FILE
        .replace("schemaVersion: 1", "schemaVersion: 1\ntitle: t\nnote: n")
        .replace("  f:\n", "  f:\n    note: n\n")
        .replace("  - expect:", "  - title: t\n    note: n\n    expect:")
        .replace("{from: a/x,", "{note: n, from: a/x,");
    assert_eq!(suite(&noted).vectors[0].steps, suite(FILE).vectors[0].steps);
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
