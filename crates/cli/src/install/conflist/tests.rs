use super::*;

/// A node's directories, without a plugin but ours.
struct Root {
    path: PathBuf,
    places: Places,
}

impl Root {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluice-conflist-{name}-{}", std::process::id()));
        let at = |name: &str| path.join(name);
        let places = Places { bin_dir: at("bin"), net_dir: at("net"), run_dir: at("run"), seccomp_dir: at("seccomp") };
        fs::create_dir_all(&places.bin_dir).unwrap();
        fs::create_dir_all(&places.net_dir).unwrap();
        // One that cannot be asked for its versions is taken as it is.
        fs::write(places.bin_dir.join(PRIMARY), "").unwrap();
        fs::set_permissions(places.bin_dir.join(PRIMARY), fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, places }
    }

    fn put(&self, name: &str, list: &str) {
        fs::write(self.places.net_dir.join(name), list).unwrap();
    }

    fn written(&self) -> Value {
        write(&self.places, &wanted(false, &[])).unwrap();
        serde_json::from_slice(&fs::read(self.places.conflist()).unwrap()).unwrap()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _left = fs::remove_dir_all(&self.path);
    }
}

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
    // Cilium's own list, without the VPC CNI: its further plugins are about its own network.
    let alone = json!({"name": "cilium", "plugins": [{"type": "cilium-cni"}, {"type": "firewall"}]});
    let list = merged(None, Some(&alone), &wanted(false, &[]), false);
    assert_eq!((kinds(&list), &list["name"]), (vec!["sluice-eni"], &json!("cilium")));
}

#[test]
fn a_list_that_is_not_taken_over_keeps_its_name_for_itself() {
    let root = Root::new("name");
    let podman = r#"{"cniVersion": "0.4.0", "name": "podman", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}"#;
    root.put("05-podman.conflist", podman);
    let list = root.written();
    assert_eq!((kinds(&list), &list["name"]), (vec!["sluice-eni"], &json!("sluice")));
    // The VPC CNI's comes after it, and is the one that is taken over.
    root.put("10-aws.conflist", r#"{"name": "aws-cni", "plugins": [{"type": "aws-cni"}]}"#);
    assert_eq!(root.written()["name"], "sluice", "a network is not renamed under its pods");
    fs::remove_file(root.places.conflist()).unwrap();
    assert_eq!(root.written()["name"], "aws-cni");
    // A runtime would use any of them if ours were not.
    fs::remove_file(root.places.net_dir.join("10-aws.conflist")).unwrap();
    assert!(has_other(&root.places.net_dir, &root.places.conflist()).unwrap());
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
