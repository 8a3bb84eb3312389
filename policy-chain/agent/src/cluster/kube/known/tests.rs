use serde_json::json;

use super::*;
use crate::cluster::kube::kinds::KINDS;

fn known(kind: &str) -> Known {
    Known::new(KINDS.iter().find(|known| known.api.kind == kind).unwrap(), "me".into())
}

fn pod(name: &str, revision: u64) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("u-{name}"), "resourceVersion": revision.to_string()},
        "spec": {"nodeName": "me"}, "status": {"podIPs": [{"ip": "10.0.0.1"}]},
    })
}

fn policy(name: &str, revision: u64, generation: i64, spec: &Value) -> Value {
    let metadata =
        json!({"name": name, "namespace": "shop", "generation": generation, "resourceVersion": revision.to_string()});
    json!({"metadata": metadata, "spec": spec})
}

/// `+` and `-` with ids, `!` with places of faults and `=` with places without.
fn shown(told: &[Told]) -> Vec<String> {
    let shown = |told: &Told| match told {
        Told::Event { event: Event::Upsert(object), .. } => format!("+{}", Place::Object(object.id())),
        Told::Event { event: Event::Delete(id), .. } => format!("-{}", Place::Object(id.clone())),
        Told::Report(report) if report.issues.is_empty() => format!("={}", report.place),
        Told::Report(report) => format!("!{}", report.place),
        other => format!("{other:?}"),
    };
    told.iter().map(shown).collect()
}

fn listed(known: &mut Known, revision: u64, items: Vec<Value>) -> Vec<String> {
    let mut out = Vec::new();
    known.begin(&mut out);
    known.listed_at(revision);
    for item in items {
        known.item("v1", item, &mut out);
    }
    known.end(revision, &mut out);
    shown(&out)
}

fn event(known: &mut Known, verb: Verb, object: Value) -> Vec<String> {
    let mut out = Vec::new();
    known.event(verb, "v1", object, &mut out);
    shown(&out)
}

#[test]
fn a_second_list_tells_only_what_is_new_and_what_is_gone() {
    let mut known = known("Pod");
    assert_eq!(listed(&mut known, 9, vec![pod("a", 1), pod("b", 2)]), ["+Pod shop/a", "+Pod shop/b"]);
    assert_eq!(listed(&mut known, 20, vec![pod("b", 2), pod("c", 19)]), ["+Pod shop/c", "-Pod shop/a"]);
    assert_eq!(listed(&mut known, 21, vec![pod("b", 20), pod("c", 19)]), ["+Pod shop/b"]);
    assert_eq!((known.objects.len(), known.revision()), (2, 21));
}

#[test]
fn a_list_that_is_older_than_what_is_known_undoes_nothing() {
    let mut known = known("Pod");
    listed(&mut known, 9, vec![pod("a", 1)]);
    assert_eq!(event(&mut known, Verb::Is, pod("a", 30)), ["+Pod shop/a"]);
    assert_eq!(event(&mut known, Verb::Is, pod("b", 31)), ["+Pod shop/b"]);
    // A replica that is behind answers.
    assert_eq!(listed(&mut known, 10, vec![pod("a", 1)]), Vec::<String>::new());
    assert_eq!(known.objects.len(), 2);
    // A storage that was restored from a backup: the list is newer, the object older.
    assert_eq!(listed(&mut known, 40, vec![pod("a", 1)]), ["+Pod shop/a", "-Pod shop/b"]);
}

#[test]
fn what_was_looked_up_is_told_once_and_goes_by_the_watch() {
    let mut known = known("Pod");
    listed(&mut known, 9, vec![]);
    let mut out = Vec::new();
    assert!(known.looked_up("v1", pod("a", 12), &mut out));
    assert_eq!(shown(&out), ["+Pod shop/a"]);
    assert_eq!(event(&mut known, Verb::Is, pod("a", 12)), Vec::<String>::new());
    // An older deletion, of a pod of the same name, does not take it away.
    assert_eq!(event(&mut known, Verb::Gone, pod("a", 11)), Vec::<String>::new());
    assert_eq!(event(&mut known, Verb::Gone, pod("a", 13)), ["-Pod shop/a"]);
    // An answer that is older than what the watch has seen raises no dead.
    let mut late = Vec::new();
    assert!(!known.looked_up("v1", pod("a", 12), &mut late));
    assert_eq!(shown(&late), Vec::<String>::new());
}

#[test]
fn a_malformed_object_is_told_and_the_rest_goes_on() {
    let mut known = known("Pod");
    let broken = json!({"metadata": {"name": "b", "namespace": "shop", "resourceVersion": "2"}, "spec": "none"});
    let told = listed(&mut known, 9, vec![pod("a", 1), broken, pod("c", 3)]);
    assert_eq!(told, ["+Pod shop/a", "+Pod shop/b", "!Pod shop/b", "+Pod shop/c"]);
    assert_eq!(event(&mut known, Verb::Is, pod("b", 10)), ["+Pod shop/b", "=Pod shop/b"]);
}

#[test]
fn an_object_without_a_name_takes_nothing_away() {
    let mut known = known("Pod");
    listed(&mut known, 9, vec![pod("a", 1), pod("b", 2)]);
    assert_eq!(listed(&mut known, 10, vec![pod("b", 2), json!("what")]), ["!an object of pods"]);
    assert_eq!(listed(&mut known, 11, vec![pod("b", 2)]), ["=an object of pods", "-Pod shop/a"]);
    let mut out = Vec::new();
    known.begin(&mut out);
    known.garbled("an element", &mut out);
    known.end(12, &mut out);
    assert_eq!(shown(&out), ["!an element of pods"]);
    assert_eq!((known.objects.len(), known.malformed), (1, 2));
}

#[test]
fn a_policy_that_cannot_be_read_any_more_keeps_what_it_said() {
    let mut known = known("NetworkPolicy");
    let good = policy("p", 1, 1, &json!({"podSelector": {}}));
    assert_eq!(listed(&mut known, 9, vec![good]), ["+NetworkPolicy shop/p", "=NetworkPolicy shop/p"]);
    let lost =
        json!({"metadata": {"name": "p", "namespace": "shop", "resourceVersion": "10", "generation": 2}, "spec": 7});
    assert_eq!(event(&mut known, Verb::Is, lost), ["!NetworkPolicy shop/p"]);
    // Only the status changed: there is nothing new to say of it.
    let again = policy("p", 11, 2, &json!({"podSelector": {}}));
    assert_eq!(event(&mut known, Verb::Is, again), ["+NetworkPolicy shop/p", "=NetworkPolicy shop/p"]);
    assert_eq!(event(&mut known, Verb::Is, policy("p", 12, 2, &json!({"podSelector": {}}))), ["+NetworkPolicy shop/p"]);
    assert_eq!(event(&mut known, Verb::Gone, policy("p", 13, 2, &json!({}))), ["-NetworkPolicy shop/p"]);
}

#[test]
fn the_condition_and_local_pods_are_kept_aside() {
    let mut known = known("CiliumNetworkPolicy");
    let mut object = policy("p", 1, 1, &json!({"endpointSelector": {}, "ingress": [{}]}));
    object["status"] = json!({"conditions": [{"type": "Other"}, {"type": "Valid", "status": "True", "reason": "R"}]});
    let mut out = Vec::new();
    known.event(Verb::Is, "v2", object, &mut out);
    let Some(Told::Event { event: Event::Upsert(found), json: Some(json) }) = out.first() else { panic!("{out:?}") };
    let ObjectId::Policy(id) = found.id() else { panic!() };
    assert_eq!(known.seen(&id).unwrap().reason, "R".into());
    assert!(!json.contains("conditions") && json.contains("\"kind\":\"CiliumNetworkPolicy\""));

    let mut pods = self::known("Pod");
    let mut mirror = pod("a", 2);
    mirror["metadata"]["annotations"] = json!({MIRROR_ANNOTATION: "static", POD_IPS_ANNOTATION: "10.0.0.1"});
    event(&mut pods, Verb::Is, mirror);
    let key = PodKey { namespace: "shop".into(), name: "a".into() };
    let local = pods.local(&key).unwrap();
    assert_eq!((local.uid.clone(), &*local.api_uid), (Uid::from("static"), "u-a"));
    let mut elsewhere = pod("a", 3);
    elsewhere["spec"]["nodeName"] = json!("another");
    event(&mut pods, Verb::Is, elsewhere);
    assert_eq!(pods.local(&key), None);
}

#[test]
fn a_kind_that_goes_takes_its_objects_along() {
    let mut known = known("Pod");
    listed(&mut known, 9, vec![pod("a", 1)]);
    let mut out = Vec::new();
    known.clear(&mut out);
    assert_eq!(shown(&out), ["-Pod shop/a"]);
    assert_eq!(listed(&mut known, 5, vec![pod("a", 1)]), ["+Pod shop/a"]);
}
