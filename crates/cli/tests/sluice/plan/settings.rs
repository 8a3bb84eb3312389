//! What each setting of ipamd does to a plan.

use sluice_ipamd_daemon::config::VARIABLES;

use super::*;

/// Pods, ENIs, addresses, prefixes, /80s, free addresses.
type Row = [u64; 6];

fn plan(kind: &str, settings: &[&str], pods: &str) -> Output {
    let mut arguments = vec!["plan", "--instance-type", kind, "--pods", pods, "--json"];
    settings.iter().for_each(|setting| arguments.extend(["--env", setting]));
    sluice(&arguments, "")
}

fn rows(output: &Output) -> Vec<Row> {
    let row = |row: &Value| {
        ["pods", "enis", "addresses", "prefixes", "ipv6_prefixes", "free"].map(|name| row[name].as_u64().unwrap())
    };
    json(output).as_array().unwrap().iter().map(row).collect()
}

/// The node holds this; what is said beside it.
fn holds(kind: &str, settings: &[&str], expected: &[Row]) -> String {
    let pods = expected.iter().map(|row| row[0].to_string()).collect::<Vec<_>>().join(",");
    let output = plan(kind, settings, &pods);
    assert!(output.status.success(), "{kind} {settings:?}: {}", complaints(&output));
    assert_eq!(rows(&output), expected, "{kind} {settings:?}");
    complaints(&output)
}

/// The node holds `most` pods, and one more is refused in these words.
fn is_full_at(kind: &str, settings: &[&str], most: u32, words: &[&str]) {
    assert!(plan(kind, settings, &most.to_string()).status.success(), "{kind} {settings:?}");
    let output = plan(kind, settings, &(most + 1).to_string());
    let told = complaints(&output);
    assert_eq!(output.status.code(), Some(1), "{kind} {settings:?}: {told}");
    assert!(told.contains(&format!("the node holds {most} pods")), "{told}");
    words.iter().for_each(|word| assert!(told.contains(word), "{word:?} is not in {told:?}"));
}

fn burst(kind: &str, settings: &[&str], pods: &str) -> Output {
    let mut arguments = vec!["plan", "--instance-type", kind, "--burst", pods, "--json"];
    settings.iter().for_each(|setting| arguments.extend(["--env", setting]));
    sluice(&arguments, "")
}

#[test]
fn custom_networking_takes_the_primary_eni_from_pods() {
    let custom = "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true";
    let told = holds("m5.large", &[custom], &[[0, 2, 9, 0, 0, 9], [1, 3, 18, 0, 0, 17], [18, 3, 18, 0, 0, 0]]);
    assert_eq!(told, "");
    is_full_at("m5.large", &[custom], 18, &["3 ENIs, and all 18 of their addresses"]);
    holds("m5.large", &[custom, "ENABLE_PREFIX_DELEGATION=true"], &[[0, 2, 16, 1, 0, 16], [110, 2, 112, 7, 0, 2]]);
    let both = json(&burst("m5.large", &[custom], "18"));
    assert_eq!((&both["sluice"]["at_once"], &both["vpc_cni"]["at_once"]), (&9.into(), &9.into()), "{both}");
    let more = json(&burst("m5.4xlarge", &[custom], "203"));
    assert!(more["vpc_cni"]["seconds"].as_f64().unwrap() > more["sluice"]["seconds"].as_f64().unwrap(), "{more}");
    let alone = plan("m5.large", &[custom, "ENABLE_IPv4=false", "ENABLE_IPv6=true"], "1");
    assert_eq!(alone.status.code(), Some(65));
    assert!(complaints(&alone).contains("custom networking needs IPv4"), "{}", complaints(&alone));
}

#[test]
fn pods_of_ipv6_have_one_prefix_and_nothing_grows() {
    let v6 = ["ENABLE_IPv4=false", "ENABLE_IPv6=true"];
    let told = holds("m5.large", &v6, &[[0, 1, 1022, 0, 1, 1022], [100, 1, 1022, 0, 1, 922]]);
    assert!(told.contains("a /80 has 2^48 addresses, of which pods get the first 1022"), "{told}");
    let table = sluice(&["plan", "--instance-type", "m5.large", "--env", v6[0], "--env", v6[1], "--pods", "100"], "");
    let lines: Vec<Vec<&str>> = vec![
        vec!["PODS", "ENIS", "ADDRESSES", "PREFIXES", "/80S", "FREE", "EC2", "CALLS"],
        vec!["100", "1", "1022", "0", "1", "922"],
    ];
    let printed = text(&table);
    let words: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], lines[0]);
    assert_eq!(&words[1][..6], &lines[1][..]);
    let both = json(&burst("m5.large", &v6, "100"));
    assert_eq!((&both["sluice"]["at_once"], &both["sluice"]["ec2_calls"]), (&100.into(), &0.into()), "{both}");
    assert_eq!(both["vpc_cni"], serde_json::json!({ "at_once": 100, "seconds": 0.0, "ec2_calls": 0 }));
    is_full_at("m4.large", &v6, 0, &["m4.large instances cannot be given /80s", "Nitro"]);
}

#[test]
fn pods_of_both_families_have_a_prefix_of_ipv6_on_each_eni() {
    let dual = "ENABLE_IPv6=true";
    holds("m5.large", &[dual], &[[0, 1, 9, 0, 1, 9], [5, 2, 18, 0, 2, 13], [27, 3, 27, 0, 3, 0]]);
    holds("m5.large", &[dual, "ENABLE_PREFIX_DELEGATION=true"], &[[17, 1, 48, 3, 1, 31]]);
    let output = burst("m5.large", &[dual], "27");
    assert!(json(&output)["vpc_cni"].is_null(), "it has no such mode");
    let table = sluice(&["plan", "--instance-type", "m5.large", "--env", dual, "--burst", "27"], "");
    assert!(text(&table).contains("it has no pods with addresses of both families"), "{}", text(&table));
}

#[test]
fn security_groups_for_pods_keep_a_place_for_the_trunk() {
    let told = holds("m5.large", &["ENABLE_POD_ENI=true"], &[[0, 1, 9, 0, 0, 9], [18, 2, 18, 0, 0, 0]]);
    assert!(told.contains("keeps the place of an ENI for the trunk"), "{told}");
    is_full_at("m5.large", &["ENABLE_POD_ENI=true"], 18, &["18 of their addresses"]);
    let told = holds("t3.small", &["ENABLE_POD_ENI=true"], &[[9, 3, 9, 0, 0, 0]]);
    assert!(told.contains("t3.small takes no trunk ENI"), "{told}");
}

#[test]
fn without_provisioning_nothing_grows() {
    for setting in ["DISABLE_NETWORK_RESOURCE_PROVISIONING=true", "ENABLE_IMDS_ONLY_MODE=true"] {
        let told = holds("m5.large", &[setting], &[[0, 1, 0, 0, 0, 0]]);
        assert!(told.contains("nothing is asked of EC2"), "{told}");
        is_full_at("m5.large", &[setting], 0, &["the settings ask for none"]);
    }
}

#[test]
fn further_network_cards_keep_one_address_each() {
    let told = holds("p4d.24xlarge", &["ENABLE_MULTI_NIC=true"], &[[0, 4, 52, 0, 0, 52], [1, 5, 101, 0, 0, 100]]);
    assert!(told.contains("one with an interface on each network card"), "{told}");
    let told = holds("m5.large", &["ENABLE_MULTI_NIC=true"], &[[0, 1, 9, 0, 0, 9]]);
    assert!(told.contains("m5.large has one network card"), "{told}");
}

#[test]
fn each_target_counts_where_nothing_goes_before_it() {
    for (settings, expected) in [
        (vec!["WARM_ENI_TARGET=0"], [5, 1, 9, 0, 0, 4]),
        (vec!["WARM_ENI_TARGET=2"], [5, 3, 27, 0, 0, 22]),
        (vec!["WARM_IP_TARGET=3"], [5, 1, 8, 0, 0, 3]),
        (vec!["MINIMUM_IP_TARGET=12"], [5, 2, 12, 0, 0, 7]),
        (vec!["MAX_ENI=1"], [5, 1, 9, 0, 0, 4]),
        (vec!["SLUICE_MAX_PODS=9"], [5, 1, 9, 0, 0, 4]),
        (vec!["ENABLE_PREFIX_DELEGATION=true"], [5, 1, 32, 2, 0, 27]),
        (vec!["ENABLE_PREFIX_DELEGATION=true", "WARM_PREFIX_TARGET=3"], [5, 1, 64, 4, 0, 59]),
    ] {
        assert_eq!(holds("m5.large", &settings, &[expected]), "", "{settings:?}");
    }
    let told =
        holds("m5.large", &["WARM_IP_TARGET=3", "WARM_ENI_TARGET=2", "WARM_PREFIX_TARGET=2"], &[[5, 1, 8, 0, 0, 3]]);
    for name in ["WARM_ENI_TARGET", "WARM_PREFIX_TARGET"] {
        assert!(told.contains(&format!("{name} is passed over: targets in addresses count")), "{told}");
    }
    let told = complaints(&plan("m5.large", &["SLUICE_WARM_MODE=adaptive", "WARM_IP_TARGET=3"], "5"));
    assert!(told.contains("WARM_IP_TARGET is passed over: SLUICE_WARM_MODE=adaptive counts"), "{told}");
}

#[test]
fn more_pods_than_the_kubelet_takes_are_told() {
    let told = holds("m5.large", &["SLUICE_MAX_PODS=9"], &[[12, 2, 18, 0, 0, 6]]);
    assert!(told.contains("the kubelet takes 9 pods (SLUICE_MAX_PODS)"), "{told}");
    let told = complaints(&plan("m5.large", &["ENABLE_PREFIX_DELEGATION=true"], "120"));
    assert!(told.contains("the kubelet takes 110 pods (derived from the instance type)"), "{told}");
}

#[test]
fn what_a_burst_would_wait_for_and_is_not_simulated_is_refused_by_name() {
    for (setting, words) in [
        ("SLUICE_EC2_RATE=2", vec!["SLUICE_EC2_RATE=2", "not slowed down", "leave it out"]),
        ("SLUICE_MAX_WAITING=5", vec!["SLUICE_MAX_WAITING=5 with --burst 27", "kubelet", "smaller burst"]),
        ("SLUICE_ADD_DEADLINE=1", vec!["SLUICE_ADD_DEADLINE=1 with --burst 27", "kubelet", "smaller burst"]),
    ] {
        let output = burst("m5.large", &[setting], "27");
        assert_eq!(output.status.code(), Some(65), "{setting}: {}", complaints(&output));
        words.iter().for_each(|word| assert!(complaints(&output).contains(word), "{}", complaints(&output)));
        // A burst that waits for nothing, or does not wait for so long, is answered.
        let small = burst("m5.large", &[setting], "9");
        assert_eq!(
            small.status.success(),
            !setting.starts_with("SLUICE_EC2_RATE"),
            "{setting}: {}",
            complaints(&small)
        );
    }
}

#[test]
fn settings_with_which_the_vpc_cni_does_not_rest_are_told() {
    for (settings, words) in [
        (["ENABLE_PREFIX_DELEGATION=true", "WARM_PREFIX_TARGET=0"], "it does not start with prefixes and no target"),
        (["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", "WARM_ENI_TARGET=0"], "it makes an ENI and frees it again"),
    ] {
        let output = burst("m5.large", &settings, "5");
        assert!(output.status.success() && json(&output)["vpc_cni"].is_null(), "{settings:?}: {}", complaints(&output));
        let [first, second] = settings;
        let table =
            sluice(&["plan", "--instance-type", "m5.large", "--env", first, "--env", second, "--burst", "5"], "");
        assert!(text(&table).contains(words), "{settings:?}: {}", text(&table));
    }
}

/// A value that is not the default.
fn other_value(name: &str, default: &str) -> &'static str {
    match (name, default) {
        (_, "false") | ("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", _) => "true",
        (_, "true") => "false",
        ("ADDITIONAL_ENI_TAGS", _) => r#"{"team":"shop"}"#,
        ("AWS_EXTERNAL_SERVICE_CIDRS" | "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", _) => "10.9.0.0/16",
        ("AWS_VPC_ENI_MTU" | "POD_MTU", _) => "1500",
        ("AWS_VPC_K8S_CNI_CONNMARK", _) => "0x40",
        ("AWS_VPC_K8S_CNI_LOGLEVEL", _) => "DEBUG",
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", _) => "none",
        ("AWS_VPC_K8S_CNI_VETHPREFIX", _) => "pod",
        ("CLUSTER_ENDPOINT", _) => "https://api.example:443",
        ("ENI_CONFIG_ANNOTATION_DEF" | "ENI_CONFIG_LABEL_DEF", _) => "example.com/eni-config",
        ("HTTP_TIMEOUT", _) => "20",
        ("INTROSPECTION_BIND_ADDRESS" | "SLUICE_METRICS_ADDRESS", _) => "127.0.0.1:5000",
        ("NETWORK_POLICY_ENFORCING_MODE", _) => "strict",
        ("POD_SECURITY_GROUP_ENFORCING_MODE", _) => "standard",
        ("SLUICE_LOG", _) => "debug",
        ("SLUICE_LOG_FORMAT", _) => "json",
        ("SLUICE_WARM_MODE", _) => "adaptive",
        ("MAX_ENI", _) => "1",
        ("MINIMUM_IP_TARGET", _) => "12",
        ("SLUICE_MAX_PODS", _) => "9",
        ("AWS_VPC_K8S_CNI_BACKING_STORE" | "AWS_VPC_K8S_CNI_LOG_FILE", _)
        | ("SLUICE_CLUSTER_DIR" | "SLUICE_RUN_DIR", _) => "/tmp/other",
        ("CLUSTER_NAME" | "MY_NODE_NAME" | "SLUICE_NAMESPACE", _) => "other",
        _ => "3",
    }
}

/// P-17: any setting.
#[test]
fn every_setting_changes_the_plan_or_is_said_not_to() {
    let plain = rows(&plan("m5.large", &[], "0,1,5"));
    for variable in VARIABLES {
        let setting = format!("{}={}", variable.name, other_value(variable.name, variable.default));
        let output = plan("m5.large", &[&setting], "0,1,5");
        let told = complaints(&output);
        if !output.status.success() {
            assert!(told.contains(variable.name) || told.contains("the settings ask for none"), "{setting}: {told}");
            continue;
        }
        let said = told.contains(variable.name);
        assert!(said || rows(&output) != plain, "{setting} changes nothing, and nobody says so");
        let no_effect = told.contains(&format!("{} does not change", variable.name))
            || told.contains(&format!("{} changes nothing here", variable.name));
        assert!(!no_effect || rows(&output) == plain, "{setting} changes what it is said not to: {told}");
    }
}
