use super::*;

fn load(set: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
    let set: BTreeMap<String, String> = set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::load(&move |name| set.get(name).cloned())
}

#[test]
fn an_empty_environment_is_vpc_cnis_defaults() {
    let config = load(&[]).unwrap();
    assert_eq!(
        config.pool,
        PoolConfig {
            prefix_delegation: false,
            warm_mode: WarmSetting::Static,
            warm_eni_target: 1,
            warm_ip_target: 0,
            minimum_ip_target: 0,
            warm_prefix_target: 1,
            max_eni: None,
            cooldown: Duration::from_secs(30),
            manage_untagged_eni: true,
            subnet_discovery: true,
            cluster_name: None,
            provisioning: true,
            imds_only: false,
            warm_when_cordoned: false,
            custom_networking: None,
            multi_nic: false,
            additional_tags: BTreeMap::new(),
        }
    );
    assert_eq!(
        config.network,
        NetworkConfig {
            families: Families::V4,
            egress: None,
            eni_mtu: 9001,
            pod_mtu: 9001,
            connmark: 0x80,
            veth_prefix: "eni".to_owned(),
            randomize_snat: RandomizeSnat::Prng,
            node_port_support: true,
            external_snat: false,
            snat_by_eni: false,
            exclude_snat: Vec::new(),
            exclude_snat_routes: false,
            external_services: Vec::new(),
            disable_tcp_early_demux: false,
            disable_pod_v6: false,
            block_metadata: false,
            pod_eni: None,
        }
    );
    assert_eq!(config.socket().to_str(), Some(node::IPAMD_SOCKET));
    assert_eq!(config.checkpoint().to_str(), Some(node::IPAMD_CHECKPOINT));
    assert_eq!(config.tombstones().to_str(), Some(node::TOMBSTONE_DIR));
    assert_eq!(config.ready_mark().to_str(), Some(node::IPAMD_READY));
    assert_eq!(config.introspection_address, Some("127.0.0.1:61679".parse().unwrap()));
    assert_eq!(config.health_address, "127.0.0.1:61681".parse().unwrap());
    assert_eq!(config.log_filter, "info");
    assert!(config.without_effect.is_empty());
}

#[test]
fn the_most_pods_are_the_settings_or_the_nodes_or_those_of_the_type() {
    use sluice_ipamd_core::limits::limits;
    use sluice_ipamd_core::state::Event;
    use sluice_ipamd_core::time::Timestamp;
    let large = limits("m5.4xlarge").unwrap();
    let unset = load(&[]).unwrap();
    assert_eq!(unset.targets(Some(&large)).max_pods, 234);
    let mut state = State::new(1);
    assert_eq!(unset.targets_of(&state).max_pods, 110, "nothing is known");
    for (told, expected) in [(29, 29), (250, 250), (0, 0)] {
        state.apply(Event::MaxPodsKnown(told), Timestamp::default()).unwrap();
        assert_eq!(unset.targets_of(&state).max_pods, expected);
    }
    assert_eq!(load(&[("SLUICE_MAX_PODS", "58")]).unwrap().targets_of(&state).max_pods, 58);
}

#[test]
fn every_fault_is_reported_at_once_with_value_and_rule() {
    let faults = load(&[
        ("WARM_IP_TARGET", "many"),
        ("AWS_VPC_ENI_MTU", "9100"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan"),
        ("ENABLE_PREFIX_DELEGATION", "yes"),
        ("IP_COOLDOWN_PERIOD", "-1"),
        ("ADDITIONAL_ENI_TAGS", "{\"a\":"),
        ("ENABLE_IPv4", "false"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/8, 192.168.1.1/16"),
        ("SLUICE_RUN_DIR", "run"),
        ("INTROSPECTION_BIND_ADDRESS", "localhost"),
    ])
    .unwrap_err();
    let names: Vec<_> = faults.0.iter().map(|fault| fault.variable).collect();
    assert_eq!(
        names,
        [
            "ADDITIONAL_ENI_TAGS",
            "AWS_VPC_ENI_MTU",
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            "AWS_VPC_K8S_CNI_VETHPREFIX",
            "ENABLE_IPv4",
            "ENABLE_PREFIX_DELEGATION",
            "INTROSPECTION_BIND_ADDRESS",
            "IP_COOLDOWN_PERIOD",
            "SLUICE_RUN_DIR",
            "WARM_IP_TARGET"
        ]
    );
    let text = faults.to_string();
    assert!(text.starts_with("the configuration has 10 fault(s):\n"), "{text}");
    assert!(text.contains("\n  AWS_VPC_ENI_MTU=\"9100\": it must be a whole number from 576 to 9001"), "{text}");
}

#[test]
fn vpc_cnis_ways_of_saying_none_are_understood() {
    let config = load(&[
        ("MAX_ENI", "-1"),
        ("WARM_ENI_TARGET", "-1"),
        ("WARM_IP_TARGET", "-3"),
        ("CLUSTER_NAME", " "),
        ("ADDITIONAL_ENI_TAGS", "{}"),
        ("AWS_VPC_K8S_CNI_CONNMARK", "256"),
        ("POD_MTU", "1500"),
    ])
    .unwrap();
    assert_eq!((config.pool.max_eni, config.pool.warm_eni_target, config.pool.warm_ip_target), (None, 1, 0));
    assert_eq!(config.pool.cluster_name, None);
    assert_eq!((config.network.connmark, config.network.pod_mtu, config.network.eni_mtu), (256, 1500, 9001));
}

#[test]
fn what_has_no_effect_yet_is_named() {
    let name = "AWS_VPC_K8S_CNI_LOG_FILE";
    let config = load(&[(name, "/var/log/ipamd.log"), ("CLUSTER_NAME", "prod")]).unwrap();
    assert_eq!(config.without_effect, [name]);
    assert!(load(&[(name, "stderr")]).unwrap().without_effect.is_empty());
}

#[test]
fn annotations_of_pods_need_the_nodes_name() {
    let config = load(&[("ANNOTATE_POD_IP", "true"), ("MY_NODE_NAME", "n1")]).unwrap();
    assert!(config.annotate_pod_ip && config.without_effect.is_empty() && !load(&[]).unwrap().annotate_pod_ip);
    assert!(load(&[("ANNOTATE_POD_IP", "true")]).unwrap_err().to_string().contains("MY_NODE_NAME"));
}

#[test]
fn the_api_server_can_be_named_by_its_url() {
    let of = |url: &str| load(&[("CLUSTER_ENDPOINT", url)]).map(|config| config.cluster_endpoint);
    assert_eq!(of("https://api:6443").unwrap().as_deref(), Some("https://api:6443/"));
    assert_eq!(of("").unwrap(), None);
    let faults = of("ftp://api").unwrap_err().to_string();
    assert!(
        faults.contains("CLUSTER_ENDPOINT=\"ftp://api\": it must be the URL of a server, https://HOST"),
        "{faults}"
    );
}

#[test]
fn security_groups_of_pods_are_enforced_as_it_is_said_and_need_the_nodes_name() {
    let mode = |variables: &[(&str, &str)]| load(variables).map(|config| config.network.pod_eni);
    let named = ("MY_NODE_NAME", "n1");
    assert_eq!(mode(&[("POD_SECURITY_GROUP_ENFORCING_MODE", "standard")]).unwrap(), None);
    assert_eq!(mode(&[named, ("ENABLE_POD_ENI", "true")]).unwrap(), Some(Mode::Strict));
    let standard = [named, ("ENABLE_POD_ENI", "true"), ("POD_SECURITY_GROUP_ENFORCING_MODE", "standard")];
    assert_eq!(mode(&standard).unwrap(), Some(Mode::Standard));
    assert!(load(&standard).unwrap().targets(None).trunk);
    let faults = mode(&[("ENABLE_POD_ENI", "true"), ("POD_SECURITY_GROUP_ENFORCING_MODE", "lax")]).unwrap_err();
    let text = faults.to_string();
    assert!(text.contains("MY_NODE_NAME") && text.contains("POD_SECURITY_GROUP_ENFORCING_MODE"), "{text}");
}

#[test]
fn the_table_names_each_variable_once() {
    let mut names: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), VARIABLES.len());
}

/// docs/configuration.md is made from the table. With `UPDATE_GOLDENS` set in the environment it is written anew.
#[test]
fn the_documentation_is_the_table() {
    let mut text = String::from(
        "# Configuration of ipamd\n\nEnvironment variables: those of the AWS VPC CNI with their defaults, and `SLUICE_*` for \
         what is ours. An empty value is an\nunset one. Every fault is reported at once, with value and rule, and ipamd does \
         not start (exit status 64). This page is made from the\ntable in `ipamd/daemon/src/config/variables.rs`.\n\n\
         How to choose the settings of the pool, and what `SLUICE_WARM_MODE=adaptive` does, is in [capacity \
         planning](capacity-planning.md).\n",
    );
    for (heading, effect) in [
        ("The pool and the daemon", Effect::Daemon),
        ("The host's network", Effect::Network),
        ("Known, and not yet in effect", Effect::Later),
        ("Known, and without a meaning here", Effect::Never),
    ] {
        text.push_str(&format!("\n## {heading}\n| variable | default | meaning |\n|---|---|---|\n"));
        for Variable { name, default, meaning, .. } in VARIABLES.iter().filter(|variable| variable.effect == effect) {
            text.push_str(&format!("| `{name}` | {default} | {meaning} |\n"));
        }
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == text, "set UPDATE_GOLDENS to write docs/configuration.md anew");
}

#[test]
fn two_switches_say_which_addresses_pods_have() {
    let of = |v4, v6| load(&[("ENABLE_IPv4", v4), ("ENABLE_IPv6", v6)]).map(|config| config.network.families);
    assert_eq!(of("true", "false").unwrap(), Families::V4);
    assert_eq!(of("false", "true").unwrap(), Families::V6);
    assert_eq!(of("true", "true").unwrap(), Families::Dual);
    assert!(of("false", "false").unwrap_err().to_string().contains("ENABLE_IPv6 must be true"));
    let faults = load(&[("ENABLE_IPv6", "true"), ("POD_MTU", "1000")]).unwrap_err();
    assert!(faults.to_string().contains("1280"), "{faults}");
}

#[test]
fn custom_networking_names_what_it_needs() {
    let on = ("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "true");
    let config = load(&[on, ("MY_NODE_NAME", "n1"), ("ENI_CONFIG_LABEL_DEF", "topology.kubernetes.io/zone")]).unwrap();
    let naming = config.pool.custom_networking.unwrap();
    assert_eq!(naming.annotation, "k8s.amazonaws.com/eniConfig");
    assert_eq!(naming.label, "topology.kubernetes.io/zone");
    let faults = load(&[on, ("ENABLE_IPv4", "false"), ("ENABLE_IPv6", "true")]).unwrap_err().to_string();
    assert!(faults.contains("MY_NODE_NAME") && faults.contains("ENABLE_IPv6"), "{faults}");
}

#[test]
fn a_fault_quotes_so_much_of_a_value_and_no_more() {
    let long = "3".repeat(65_000);
    let faults = load(&[("AWS_EXTERNAL_SERVICE_CIDRS", &long), ("ADDITIONAL_ENI_TAGS", &long)]).unwrap_err();
    assert_eq!(faults.0.len(), 2);
    for fault in &faults.0 {
        assert!(fault.value.chars().count() == 200 && fault.value.ends_with('…'), "{fault}");
        assert!(fault.rule.chars().count() <= 400, "{fault}");
    }
}
