use super::*;

fn wanted(policy: bool, extra: &[&str]) -> Wanted {
    Wanted { policy, extra: extra.iter().map(|kind| json!({"type": kind})).collect() }
}

fn kinds(list: &Value) -> Vec<&str> {
    list["plugins"].as_array().unwrap().iter().map(|plugin| plugin["type"].as_str().unwrap()).collect()
}

#[test]
fn a_new_list_has_both_plugins_and_port_mappings() {
    let list = merged(None, None, &wanted(true, &["firewall"]), true);
    assert_eq!(kinds(&list), ["sluice-eni", "sluice-policy", "portmap", "firewall"]);
    assert_eq!(
        (&list["name"], &list["cniVersion"], &list["plugins"][0]["gated"]),
        (&json!("sluice"), &json!("1.0.0"), &json!(true))
    );
    assert_eq!(merged(Some(&list), None, &wanted(true, &["firewall"]), true), list, "the same again changes nothing");

    let plain = merged(Some(&list), None, &wanted(false, &[]), true);
    assert_eq!(kinds(&plain), ["sluice-eni", "portmap"], "what was put there for the asking goes with it");
    assert_eq!(plain["plugins"][0].get("gated"), None, "a pod that nobody opens would stay closed");
}

#[test]
fn what_a_person_has_written_stays() {
    let mut list = merged(None, None, &wanted(true, &[]), true);
    list["plugins"][0]["mtu"] = json!(1500);
    list["plugins"]
        .as_array_mut()
        .unwrap()
        .insert(2, json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}));
    list["plugins"][3]["snat"] = json!(false);
    list["disableCheck"] = json!(true);
    // Now somebody's own: portmap is not among what was added.
    list[ADDED] = json!([]);
    let again = merged(Some(&list), None, &wanted(true, &["firewall"]), true);
    assert_eq!(kinds(&again), ["sluice-eni", "sluice-policy", "tuning", "portmap", "firewall"]);
    assert_eq!((&again["plugins"][0]["mtu"], &again["plugins"][3]["snat"]), (&json!(1500), &json!(false)));
    assert_eq!((&again["disableCheck"], &again[ADDED]), (&json!(true), &json!(["firewall"])));
}

#[test]
fn the_primary_is_told_of_bandwidth_and_of_annotations_unless_somebody_does_not_want_it() {
    let capabilities =
        |there: Option<&Value>| merged(there, None, &wanted(true, &[]), false)["plugins"][0]["capabilities"].clone();
    let annotations = "io.kubernetes.cri.pod-annotations";
    assert_eq!(capabilities(None), json!({"bandwidth": true, annotations: true}));
    for (before, after) in [
        // As written before there were pods with several interfaces.
        (json!({"bandwidth": true}), json!({"bandwidth": true, annotations: true})),
        (json!({"bandwidth": false}), json!({"bandwidth": false, annotations: true})),
        (json!({}), json!({annotations: true})),
        (json!({"bandwidth": true, annotations: false}), json!({"bandwidth": true, annotations: false})),
        (Value::Null, Value::Null),
    ] {
        let there = json!({"name": "sluice", "plugins": [{"type": "sluice-eni", "capabilities": before}]});
        assert_eq!(capabilities(Some(&there)), after, "{before}");
    }
}

#[test]
fn the_network_keeps_its_name_and_the_vpc_cnis_further_plugins() {
    let aws = json!({"cniVersion": "0.4.0", "name": "aws-cni", "disableCheck": true, "plugins": [
        {"type": "aws-cni"}, {"type": "egress-cni"}, {"type": "portmap", "snat": true}, {"type": "bandwidth"}, {"type": "tuning"}]});
    let list = merged(None, Some(&aws), &wanted(true, &[]), true);
    assert_eq!(kinds(&list), ["sluice-eni", "sluice-policy", "portmap", "tuning"]);
    assert_eq!((&list["name"], list.get("disableCheck")), (&json!("aws-cni"), None));
    // Cilium's copy of the VPC CNI's list.
    let cilium =
        json!({"name": "aws-cni", "plugins": [{"type": "aws-cni"}, {"type": "cilium-cni"}, {"type": "portmap"}]});
    assert_eq!(
        kinds(&merged(None, Some(&cilium), &wanted(true, &[]), false)),
        ["sluice-eni", "sluice-policy", "portmap"]
    );
    // Another CNI's plugins are about its own network.
    let bridge = json!({"name": "pods", "plugins": [{"type": "bridge"}, {"type": "firewall"}]});
    let list = merged(None, Some(&bridge), &wanted(false, &[]), false);
    assert_eq!((kinds(&list), &list["name"]), (vec!["sluice-eni"], &json!("pods")));
}

#[test]
fn plugins_of_the_command_line_are_objects_of_others() {
    assert!(parse_plugin(r#"{"type": "firewall", "capabilities": {"firewall": true}}"#).is_ok());
    for wrong in
        ["", "[]", "{}", r#"{"type": 1}"#, r#"{"type": "sluice-eni"}"#, r#"{"type": "../sh"}"#, r#"{"type": ""}"#]
    {
        assert!(parse_plugin(wrong).is_err(), "{wrong}");
    }
}
