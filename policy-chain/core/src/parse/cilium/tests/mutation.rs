//! A policy that has every field, with one place of it changed: the change is always told, and never lets more pass.

use serde_json::{Value, json};

use super::{document, policy};
use crate::model::Usable;
use crate::model::cilium::{Application, CiliumAllow, CiliumPolicy, CiliumPorts};
use crate::parse::object;

/// Every field that can be used.
fn whole() -> Value {
    document(
        r#"
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: shop}
spec:
  description: all of it
  labels: [{key: a, source: k8s, value: b}]
  log: {value: web}
  enableDefaultDeny: {ingress: true, egress: true}
  endpointSelector: &selector
    matchLabels: {app: web}
    matchExpressions: [{key: tier, operator: NotIn, values: [a, b]}]
  ingress:
  - fromEndpoints: [*selector, {}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}, {port: "8080", endPort: 8090, protocol: TCP}]
      rules:
        http:
        - {path: "/a", method: GET, host: a.b, headers: [X-A], headerMatches: [{name: X-B, value: c, mismatch: LOG}]}
        - {path: "/b"}
  - fromCIDR: [10.0.0.0/8, 192.0.2.1]
    icmps: [{fields: [{family: IPv6, type: EchoRequest}, {type: 8}]}]
  - fromCIDRSet:
    - {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    - {cidrGroupRef: g}
    - {cidrGroupSelector: *selector}
  - fromEntities: [world, cluster]
  - fromGroups: [{aws: {labels: {a: b}, securityGroupsIds: [sg-1], securityGroupsNames: [n], region: r}}]
  - fromNodes: [*selector]
  ingressDeny:
  - fromEndpoints: [*selector]
    toPorts: [{ports: [{port: http, protocol: TCP}]}]
  - fromEntities: [world]
    icmps: [{fields: [{type: 8}]}]
  egress:
  - toServices:
    - {k8sService: {serviceName: s, namespace: n}}
    - {k8sServiceSelector: {selector: *selector, namespace: n}}
  - toFQDNs: [{matchName: a.b}, {matchPattern: "*.b"}]
    toPorts: [{ports: [{port: "443", protocol: TCP}], serverNames: [a.b, "*.b"]}]
  - toPorts: [{ports: [{port: "53"}], rules: {dns: [{matchName: a.b}, {matchPattern: "*.b"}]}}]
  - toEndpoints: [*selector]
  - toNodes: [*selector]
  egressDeny:
  - toCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
  - toCIDR: [10.0.0.0/8]
  - toGroups: [{aws: {securityGroupsIds: [sg-1]}}]
specs:
- endpointSelector: {}
  egress: [{toEntities: [all]}]
"#,
    )
}

/// JSON pointers of all values below `spec`.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| places(value, &format!("{at}/{name}"), found)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| places(value, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

fn all_places(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    places(&document["spec"], "/spec", &mut found);
    found
}

/// Whether the object at this place has fields of the user's own choice, or says nothing that is looked at.
fn is_free(place: &str) -> bool {
    place.ends_with("/matchLabels") || place.ends_with("/aws/labels") || place.starts_with("/spec/labels")
}

fn is_no_more(now: &CiliumPolicy, then: &CiliumPolicy, place: &str) {
    assert_eq!(now.rules.len(), then.rules.len(), "{place}");
    assert_eq!(now.rules[1], then.rules[1], "{place}");
    let (now, then) = (&now.rules[0], &then.rules[0]);
    // A subject that cannot be told governs nobody; then there is nothing to compare.
    if now.subject != then.subject {
        assert!(place.starts_with("/spec/endpointSelector") || place == "/spec", "{place}: {:?}", now.subject);
        return;
    }
    assert!(now.default_deny_ingress && now.default_deny_egress, "{place}");
    for (list, now, then) in [("ingress", &now.ingress, &then.ingress), ("egress", &now.egress, &then.egress)] {
        if place == format!("/spec/{list}") {
            assert!(matches!(now.as_slice(), [Err(_)]), "{place}");
            continue;
        }
        assert_eq!(now.len(), then.len(), "{place}");
        assert!(now.iter().zip(then).all(|(now, then)| allows_no_more(now, then)), "{place}: {now:?}");
    }
    for (list, now, then) in
        [("ingressDeny", &now.ingress_deny, &then.ingress_deny), ("egressDeny", &now.egress_deny, &then.egress_deny)]
    {
        if place == format!("/spec/{list}") {
            assert!(matches!(now.as_slice(), [Err(_)]), "{place}");
            continue;
        }
        assert_eq!(now.len(), then.len(), "{place}");
        assert!(now.iter().zip(then).all(|(now, then)| now.is_err() || now == then), "{place}: {now:?}");
    }
}

fn allows_no_more(now: &Usable<CiliumAllow>, then: &Usable<CiliumAllow>) -> bool {
    match (now, then) {
        (Err(_), _) => true,
        (Ok(now), Ok(then)) => {
            now.peers == then.peers
                && now.ports.len() == then.ports.len()
                && now.ports.iter().zip(&then.ports).all(|(now, then)| passes_no_more(now, then))
        }
        (Ok(_), Err(_)) => false,
    }
}

fn passes_no_more(now: &CiliumPorts, then: &CiliumPorts) -> bool {
    now.ports == then.ports
        && match (&now.application, &then.application) {
            (Application::Http(now), Application::Http(then)) => {
                !now.is_empty() && now.iter().all(|rule| then.contains(rule))
            }
            (Application::Dns(now), Application::Dns(then)) => {
                !now.is_empty() && now.iter().all(|rule| then.contains(rule))
            }
            (Application::ServerNames(now), Application::ServerNames(then)) => {
                !now.is_empty() && now.iter().all(|rule| then.contains(rule))
            }
            (now, then) => now == then,
        }
}

#[test]
fn the_whole_policy_has_no_fault() {
    let parsed = object(&whole());
    assert_eq!(parsed.issues, []);
    let rule = &policy(&parsed).rules[0];
    assert_eq!((rule.ingress.len(), rule.ingress_deny.len()), (6, 2));
    assert_eq!((rule.egress.len(), rule.egress_deny.len()), (5, 3));
    assert!(all_places(&whole()).len() > 200);
}

#[test]
fn an_unknown_field_anywhere_is_told_and_lets_nothing_more_pass() {
    let whole = whole();
    let then = object(&whole);
    let mut tested = 0;
    for place in all_places(&whole) {
        let mut document = whole.clone();
        let Some(Value::Object(map)) = document.pointer_mut(&place) else { continue };
        if is_free(&place) {
            continue;
        }
        map.insert("unheardOf".into(), json!(true));
        let now = object(&document);
        let [issue] = now.issues.as_slice() else { panic!("{place}: {:?}", now.issues) };
        assert!(issue.path.ends_with(".unheardOf"), "{place}: {issue}");
        let (now, then) = (policy(&now), policy(&then));
        is_no_more(now, then, &place);
        if !place.starts_with("/spec/endpointSelector") {
            assert_ne!(now, then, "{place}: a field that is not known was passed over");
        }
        tested += 1;
    }
    assert!(tested > 60, "{tested}");
}

#[test]
fn a_value_of_another_type_anywhere_is_told_and_lets_nothing_more_pass() {
    let whole = whole();
    let then = object(&whole);
    let mut tested = 0;
    for place in all_places(&whole) {
        if place.starts_with("/spec/labels/") {
            continue;
        }
        for other in [json!({"a": 1}), json!([[]]), json!("\u{1}"), json!(-1.5)] {
            let mut document = whole.clone();
            let value = document.pointer_mut(&place).expect("place");
            let same = matches!(
                (&*value, &other),
                (Value::Array(_), Value::Array(_))
                    | (Value::Object(_), Value::Object(_))
                    | (Value::Bool(_), Value::Bool(_))
            );
            // A control character is text where any text is taken, and an expression that matches it.
            let text = ["/description", "/log/value", "/path", "/method", "/host"];
            if same || other.is_string() && text.iter().any(|name| place.ends_with(name)) {
                continue;
            }
            *value = other.clone();
            let now = object(&document);
            assert!(!now.issues.is_empty(), "{place} = {other}");
            is_no_more(policy(&now), policy(&then), &place);
            tested += 1;
        }
    }
    assert!(tested > 600, "{tested}");
}
