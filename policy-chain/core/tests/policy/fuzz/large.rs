//! Texts that are large, and expressions that are large when compiled.

use serde_json::{Value, json};
use sluice_policy_core::cluster::Object;
use sluice_policy_core::manifest::{self, MAX_OBJECT_BYTES};
use sluice_policy_core::model::Policy;
use sluice_policy_core::model::cilium::Application;
use sluice_policy_core::parse::{self, Parsed, Severity};

use super::target::{Counts, Target};
use crate::CLUSTER;
use crate::cost::{Cost, cost};
use crate::random::Random;

const MILLISECOND: u64 = if cfg!(debug_assertions) { 20_000_000 } else { 1_000_000 };

fn network(ingress: Vec<Value>) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "n", "namespace": "shop"},
           "spec": {"podSelector": {}, "ingress": ingress.into_iter().collect::<Value>()}})
}

fn cilium(ingress: Vec<Value>) -> Value {
    json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "n", "namespace": "shop"},
           "spec": {"endpointSelector": {}, "ingress": ingress.into_iter().collect::<Value>()}})
}

fn http(paths: impl Iterator<Item = String>) -> Value {
    let rules: Vec<Value> = paths.map(|path| json!({"path": path})).collect();
    cilium(vec![json!({"toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": rules}}]})])
}

/// Objects of about so many bytes, each of another shape.
fn shapes(bytes: usize, mut visit: impl FnMut(&str, Value)) {
    let address = |number: usize| format!("{}.{}.{}.0/24", 1 + number / 65536 % 200, number / 256 % 256, number % 256);
    let each = |size: usize| 0..bytes / size;
    visit("a label", network(vec![json!({"from": [{"podSelector": {"matchLabels": {"a": "b".repeat(bytes)}}}]})]));
    visit("an unknown field", network(vec![json!({"zz": "b".repeat(bytes)})]));
    visit(
        "blocks in one peer list",
        network(vec![
            json!({"from": each(36).map(|number| json!({"ipBlock": {"cidr": address(number)}})).collect::<Vec<_>>()}),
        ]),
    );
    visit(
        "exceptions of one block",
        network(vec![
            json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": each(16).map(address).collect::<Vec<_>>()}}]}),
        ]),
    );
    visit(
        "rules of one block",
        network(each(60).map(|number| json!({"from": [{"ipBlock": {"cidr": address(number)}}]})).collect()),
    );
    visit(
        "ports",
        network(vec![json!({"ports": each(20).map(|number| json!({"port": 1 + number % 65535})).collect::<Vec<_>>()})]),
    );
    visit(
        "ranges",
        network(vec![
            json!({"ports": each(40).map(|number| json!({"port": 1 + number % 30000, "endPort": 30000 + number % 30000})).collect::<Vec<_>>()}),
        ]),
    );
    visit(
        "named ports",
        network(vec![
            json!({"ports": each(20).map(|number| json!({"port": format!("p-{number}")})).collect::<Vec<_>>()}),
        ]),
    );
    visit(
        "selectors",
        network(vec![
            json!({"from": each(60).map(|number| json!({"podSelector": {"matchLabels": {"app": format!("v{number}")}}})).collect::<Vec<_>>()}),
        ]),
    );
    visit(
        "requirements",
        network(vec![
            json!({"from": [{"podSelector": {"matchExpressions": each(50).map(|number| json!({"key": format!("k{number}"), "operator": "DoesNotExist"})).collect::<Vec<_>>()}}]}),
        ]),
    );
    visit(
        "values of a requirement",
        network(vec![
            json!({"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": each(10).map(|number| format!("v{number}")).collect::<Vec<_>>()}]}}]}),
        ]),
    );
    // What grows with the product of its two halves.
    let odd = |size: usize| each(size).map(|number| json!({"port": 1 + 2 * number % 65_000})).collect::<Vec<_>>();
    visit(
        "ports from anyone, and blocks with a port each",
        network(
            std::iter::once(json!({"ports": odd(30)}))
                .chain(each(180).map(|number| {
                    json!({"from": [{"ipBlock": {"cidr": address(number)}}], "ports": [{"port": 2 + 2 * number % 65_000}]})
                }))
                .collect(),
        ),
    );
    visit(
        "ports of all but one each",
        network(each(220).map(|number| {
            let selector = json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": [format!("v{number}")]}]});
            json!({"from": [{"podSelector": selector}], "ports": [{"port": 1 + 2 * number % 65_000}]})
        }).collect()),
    );
    visit(
        "blocks with as many ports each as a rule has",
        cilium(each(1_800).map(|number| {
            let ports: Vec<Value> =
                (0..40).map(|port| json!({"port": (1 + 2 * (number * 40 + port) % 65_000).to_string(), "protocol": "TCP"})).collect();
            json!({"fromCIDR": [address(number), "0.0.0.0/0"], "toPorts": [{"ports": ports}]})
        }).collect()),
    );
    visit("empty rules", network(each(3).map(|_| json!({})).collect()));
    visit("faults", network(each(9).map(|_| json!({"a": 1})).collect()));
    visit("blocks of cilium.io", cilium(vec![json!({"fromCIDR": each(16).map(address).collect::<Vec<_>>()})]));
    visit("rules of cilium.io", cilium(each(34).map(|number| json!({"fromCIDR": [address(number)]})).collect()));
    visit("small expressions", http(each(22).map(|number| format!("/[a-z]+/{}", number % 1000))));
    visit("large expressions", http(each(22).map(|number| format!("(a|b){{{}}}", 100 + number % 100))));
    visit(
        "expressions that are too large",
        http(each(30).map(|number| format!("((a{{99}}){{99}}){{{}}}", 10 + number % 100))),
    );
    visit("expressions that are none", http(each(14).map(|_| "(".to_owned())));
    visit("texts as expressions", http(each(30).map(|number| format!("/api/v1/{number}"))));
    visit(
        "names",
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "n", "namespace": "shop"},
            "spec": {"endpointSelector": {}, "egress": [{"toFQDNs": each(40).map(|number| json!({"matchPattern": format!("*.x{number}.com")})).collect::<Vec<_>>()}]}}),
    );
    visit(
        "specs",
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": {"name": "n", "namespace": "shop"},
            "specs": each(50).map(|_| json!({"endpointSelector": {}, "ingress": [{}]})).collect::<Vec<_>>()}),
    );
    visit(
        "labels of a pod",
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop",
            "labels": each(16).map(|number| (format!("k{number}"), json!("v"))).collect::<serde_json::Map<_, _>>()}}),
    );
    visit(
        "addresses of a node",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}, "status": {"addresses":
            each(50).map(|number| json!({"type": "InternalIP", "address": format!("10.{}.{}.{}", number / 65536 % 256, number / 256 % 256, number % 256)})).collect::<Vec<_>>()}}),
    );
    visit(
        "backends",
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "api"}}, "ports": [{"name": "web", "port": 8080}],
            "endpoints": each(30).map(|number| json!({"addresses": [format!("10.{}.{}.{}", number / 65536 % 256, number / 256 % 256, number % 256)]})).collect::<Vec<_>>()}),
    );
    visit(
        "a group of blocks",
        json!({"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"},
            "spec": {"externalCIDRs": each(16).map(address).collect::<Vec<_>>()}}),
    );
}

/// An object of more than the API server takes is refused, with its size and with what to do, before anything of it is read.
#[test]
fn an_object_of_10_mb_is_refused() {
    shapes(10_000_000, |shape, object| {
        let text = object.to_string();
        assert!(text.len() > MAX_OBJECT_BYTES, "{shape}: {} bytes", text.len());
        let (read, Cost { nanoseconds, bytes }) = cost(|| manifest::read(&text));
        assert!(read.documents.is_empty(), "{shape}");
        let [error] = read.errors.as_slice() else { panic!("{shape}: {:?}", read.errors) };
        assert!(!error.fault.is_empty() && !error.hint.is_empty(), "{shape}: {error}");
        println!("{shape}: {} bytes: {} ms, {bytes} bytes: {error}", text.len(), nanoseconds / 1_000_000);
        assert!(nanoseconds < 3000 * MILLISECOND, "{shape} took {} ms", nanoseconds / 1_000_000);
        // Objects with one field each are the worst: a map has room for eleven.
        assert!(bytes < 90 * text.len(), "{shape} took {bytes} bytes for {}", text.len());
    });
}

/// A large one, of whatever shape, is read, compiled and judged within bounds.
///
/// Not yet one of the most that is read: what 70,000 blocks in one policy take grows faster than their number.
#[test]
fn a_large_object_is_bounded() {
    let target = Target::new(CLUSTER);
    // Where nothing is optimised, less is enough to see what is far from linear.
    let bytes = if cfg!(debug_assertions) { 60_000 } else { 500_000 };
    shapes(bytes, |shape, object| {
        let text = object.to_string();
        let (_, read) = cost(|| manifest::read(&text));
        let (parsed, parse) = cost(|| parse::object(&object));
        let worst = parsed.issues.iter().map(|issue| issue.severity).max();
        let first = parsed.issues.first().map(|issue| format!("{issue}").chars().take(120).collect::<String>());
        drop(parsed);
        let mut counts = Counts::default();
        let ((), all) = cost(|| target.run(&text, &mut Random::new(1), &mut counts));
        let shown = |cost: Cost| format!("{} ms, {} KiB", cost.nanoseconds / 1_000_000, cost.bytes / 1024);
        println!(
            "{shape}: {} bytes; read {}; parsed {}; all {}; {worst:?} {first:?}",
            text.len(),
            shown(read),
            shown(parse),
            shown(all)
        );
        assert!(all.nanoseconds < 10_000 * MILLISECOND, "{shape} took {}", shown(all));
        assert!(all.bytes < 300 << 20, "{shape} took {}", shown(all));
    });
}

/// The HTTP rules that could be used, and the issues.
fn usable(parsed: &Parsed) -> usize {
    let Some(Object::Policy(Policy::Cilium(policy))) = &parsed.object else { panic!("{parsed:?}") };
    let rules = policy.rules[0].ingress.iter().flatten().flat_map(|rule| &rule.ports);
    rules.map(|ports| if let Application::Http(rules) = &ports.application { rules.len() } else { 0 }).sum()
}

/// An expression that needs too much memory, or is none, is refused with the reason, at once, and takes no other with it.
#[test]
fn expressions_that_are_too_large_are_refused_at_once() {
    let long = "(a|b)".repeat(1700);
    let nested = format!("{}a{}", "(".repeat(4000), ")".repeat(4000));
    let alternatives = (0..1600).map(|number| format!("{number}.")).collect::<Vec<_>>().join("|");
    for bad in [
        "((((a{100}){100}){100}){100})",
        "(a{1000}){1000}",
        "(\\pL{100}){100}",
        "[\\p{L}\\p{N}]{5000}",
        "(?i)(\\w{200}){200}",
        "((a?){1000}a{1000})+",
        "(x+x+)+{900}{900}",
        "a{4294967296}",
        "a{99999999999999999999}",
        &nested,
        &long.repeat(2),
        &alternatives.repeat(2),
        "(",
        "(?P<",
        "[",
        "\\",
        "(?<=a)b",
        "\\Q",
        "\u{0}(",
    ] {
        let object = http([bad.to_owned(), "/ok".to_owned()].into_iter());
        let (parsed, Cost { nanoseconds, bytes }) = cost(|| parse::object(&object));
        let shown: String = bad.chars().take(40).collect();
        let [issue] = parsed.issues.as_slice() else { panic!("{shown}: {:?}", parsed.issues) };
        assert_eq!((issue.severity, usable(&parsed)), (Severity::Unusable, 1), "{shown}");
        assert_eq!(issue.path, "spec.ingress[0].toPorts[0].rules.http[0].path");
        assert!(issue.message.len() < 500, "{}", issue.message);
        println!("{shown}: {} us, {bytes} bytes: {}", nanoseconds / 1000, issue.message);
        assert!(nanoseconds < 50 * MILLISECOND, "{shown} took {} us", nanoseconds / 1000);
        assert!(bytes < 4 << 20, "{shown} took {bytes} bytes");
    }
}
