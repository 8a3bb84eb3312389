//! Tests of the parser: a table of cases, whole models, advisories, and properties.

mod advisories;
mod hostile;
mod models;
mod mutation;
mod shown;
mod table;

use serde_json::Value;

use crate::cluster::Object;
use crate::model::cilium::{CiliumAllow, CiliumDeny, CiliumPolicy, CiliumRule};
use crate::model::{Policy, Usable};
use crate::parse::{Parsed, object};

/// A document out of YAML.
fn document(text: &str) -> Value {
    let mut documents = crate::manifest::documents(text).expect("YAML");
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

/// A CiliumNetworkPolicy `shop/p`; `body` is what comes after its metadata.
fn namespaced(body: &str) -> Value {
    document(&format!(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: shop}}\n{body}"
    ))
}

/// A CiliumClusterwideNetworkPolicy `p`.
fn clusterwide(body: &str) -> Value {
    document(&format!("apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\n{body}"))
}

fn policy(parsed: &Parsed) -> &CiliumPolicy {
    match &parsed.object {
        Some(Object::Policy(Policy::Cilium(policy))) => policy,
        other => panic!("{other:?}"),
    }
}

/// The only rule of a document that has no fault.
fn rule(document: &Value) -> CiliumRule {
    let parsed = object(document);
    assert_eq!(parsed.issues, [], "{document}");
    let [rule] = policy(&parsed).rules.as_slice() else { panic!("{parsed:?}") };
    rule.clone()
}

/// All rules that allow, ingress first.
fn allows(rule: &CiliumRule) -> impl Iterator<Item = &Usable<CiliumAllow>> {
    rule.ingress.iter().chain(&rule.egress)
}

/// All rules that deny, ingress first.
fn denies(rule: &CiliumRule) -> impl Iterator<Item = &Usable<CiliumDeny>> {
    rule.ingress_deny.iter().chain(&rule.egress_deny)
}
